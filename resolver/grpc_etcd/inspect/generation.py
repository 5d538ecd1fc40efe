"""GrpcServices for what existing manifests run: which Services and workloads serve gRPC, and at which port.

    a Service's port is gRPC's      its appProtocol, its name or the container port's says so, or a gRPC probe uses it
    several ports are               the one named grpc, else the one that a probe uses, else nobody can know
    a workload has a gRPC port      and no Service by which it is generated: one for the workload itself
    two select the same Pods        at the same port: the first, since the other would be the same endpoints again

What cannot be decided is left out with its reason; nothing is guessed.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

API_VERSION, KIND = "grpc-etcd.dev/v1alpha1", "GrpcService"
GRPC_PROTOCOL = re.compile(r"(kubernetes\.io/)?h2c|grpcs?")
GRPC_NAME = re.compile(r"(.+-)?(grpcs?\d*|h2c|rpc)(-(?!web).+)?")
PROBES = ("readinessProbe", "livenessProbe", "startupProbe")
UNLESS = "nothing to do, unless it does: then name the port grpc, set its appProtocol, or add a gRPC probe"
PROBE_PROGRAM = "grpc_health_probe"
PROBE_ADDRESS = re.compile(r"--?addr(?:=|\s+)\S*:(\d{1,5})(?!\d)")
Raw = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Port:
    """A container port, and what is said of it: other names, an appProtocol, a gRPC probe. `number` 0: unknown."""

    number: int
    name: str = ""
    said: tuple[str, ...] = ()
    protocol: str = ""
    is_probed: bool = False

    @property
    def is_grpc(self) -> bool:
        """Return whether anything says that gRPC is spoken here."""
        is_named = any(map(GRPC_NAME.fullmatch, (self.name, *self.said)))
        return self.is_probed or is_named or bool(GRPC_PROTOCOL.fullmatch(self.protocol))

    @property
    def wanted(self) -> str | int:
        """Return how `spec.port` names it."""
        return self.name or self.number


@dataclass(frozen=True, slots=True)
class Workload:
    """Pods that a manifest describes; `selector` is what a GrpcService of their own would select them by."""

    kind: str
    name: str
    namespace: str
    labels: Raw
    selector: Raw
    ports: tuple[Port, ...]

    def find(self, port: str | int) -> Port | None:
        """Find a container port by name or number."""
        return next((each for each in self.ports if port and port in (each.name, each.number)), None)


@dataclass(frozen=True, slots=True)
class Service:
    """A Kubernetes Service. `ports`: the target port of each with what the Service says of it."""

    name: str
    namespace: str
    selector: Raw
    ports: tuple[Port, ...]

    def selects(self, workload: Workload) -> bool:
        """Return whether it sends to these Pods."""
        return self.namespace == workload.namespace and self.selector.items() <= workload.labels.items()


@dataclass(slots=True)
class Generated:
    """GrpcServices ready to be written, and for each Service or workload that was left out the reason."""

    manifests: list[Raw] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def generate(
    objects: Iterable[object], namespace: str = "", layouts: tuple[str, ...] = (), *, by_reference: bool = False
) -> Generated:
    """Make GrpcServices for the objects of manifests; `namespace` is that of objects which name none.

    With `by_reference` those that are made for a Service follow it, instead of having a copy of its selector.
    """
    raws = list(_flatten(objects))
    workloads = [workload for raw in raws if (workload := _read_workload(raw, namespace))]
    services = [service for raw in raws if raw.get("kind") == "Service" and (service := read_service(raw, namespace))]
    taken = {_place(raw, namespace) for raw in raws if raw.get("kind") == KIND}
    maker = _Maker(layouts, taken, by_reference=by_reference)
    served: list[Workload] = []
    for service in services:
        selected = [each for each in workloads if service.selector and service.selects(each)]
        if maker.add_service(service, selected):
            served += selected
    for workload in workloads:
        if workload not in served:
            maker.add_workload(workload)
    return maker.made


class _Maker:
    """Makes one GrpcService after the other; none is the same as one before."""

    def __init__(self, layouts: tuple[str, ...], taken: set[tuple[str, str]], *, by_reference: bool) -> None:
        self.made, self._layouts, self._by_reference, self._taken = Generated(), layouts, by_reference, taken
        self._names: dict[str, str] = {}
        self._endpoints: dict[object, str] = {}

    def add_service(self, service: Service, selected: list[Workload]) -> bool:
        what = f"Service {_title(service)}"
        if not service.selector:
            self.made.left_out[what] = "it has no selector"
            return False
        ports = [_resolve(each, selected) for each in service.ports]
        return self._add(what, service, {"matchLabels": dict(service.selector)}, ports)

    def add_workload(self, workload: Workload) -> None:
        grpc = [each for each in workload.ports if each.is_grpc]
        if grpc:  # else nothing is to be expected of it
            self._add(f"{workload.kind} {_title(workload)}", workload, workload.selector, grpc)

    def _add(self, what: str, source: Service | Workload, selector: Raw, ports: list[Port]) -> bool:
        grpc = [each for each in ports if each.is_grpc]
        port = _choose(grpc)
        endpoints = repr((source.namespace, sorted(selector.items(), key=repr), port and port.number))
        reason = self._refusal(source, grpc, endpoints)
        if reason or port is None:
            unclear = f"several ports may serve gRPC ({', '.join(str(each.wanted) for each in grpc)}): name one grpc"
            self.made.left_out[what] = reason or unclear
            return False
        self._names[source.name], self._endpoints[endpoints] = source.namespace, what
        refers_to = source if self._by_reference and isinstance(source, Service) else None
        selection = _refer(refers_to, port) if refers_to else {"selector": selector, "port": port.wanted}
        self.made.manifests.append(_write(source, selection, self._layouts))
        return True

    def _refusal(self, source: Service | Workload, grpc: list[Port], endpoints: str) -> str:
        if (source.namespace, source.name) in self._taken:
            return f"there is already a {KIND} of this name"
        if not grpc:
            return f"none of its ports is known to serve gRPC: {UNLESS}"
        if (other := self._endpoints.get(endpoints)) is not None:
            return f"it selects the same Pods at the same port as {other}"
        if source.name in self._names:
            other = self._names[source.name] or "another object"
            return f"{source.name} is already the name of a service of {other}: use another spec.name"
        return ""


def _resolve(port: Port, selected: list[Workload]) -> Port:
    """Join what a Service says of a port with what the containers say."""
    found = next((each for workload in selected if (each := workload.find(port.name or port.number))), None)
    return replace(found, said=port.said, protocol=port.protocol) if found else port


def _choose(ports: list[Port]) -> Port | None:
    """Choose among ports that may all be gRPC's."""
    named = [each for each in ports if "grpc" in (each.name, *each.said)]
    probed = [each for each in ports if each.is_probed]
    return next((each[0] for each in (named, probed, ports) if len({port.wanted for port in each}) == 1), None)


def choose_target(ports: Sequence[Port]) -> str | int | None:
    """Choose among the target ports of a Service of whose Pods nothing is known, as the operator does."""
    port = _choose([each for each in ports if each.is_grpc] or list(ports))
    return port.wanted if port else None


def _refer(service: Service, port: Port) -> Raw:
    """Write which Service to follow, and the port unless the operator chooses the same."""
    is_same = choose_target(service.ports) in (port.name, port.number)
    return {"serviceRef": {"name": service.name}} | ({} if is_same else {"port": port.wanted})


def _write(source: Service | Workload, selection: Raw, layouts: tuple[str, ...]) -> Raw:
    metadata = {"name": source.name} | ({"namespace": source.namespace} if source.namespace else {})
    spec: dict[str, object] = dict(selection)
    if layouts:
        spec["layouts"] = list(layouts)
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec}


def _title(source: Service | Workload) -> str:
    return f"{source.namespace}/{source.name}" if source.namespace else source.name


# -- manifests, in which anything may be anything ---------------------------------------------------------------------


def _flatten(objects: Iterable[object]) -> Iterator[Raw]:
    for each in objects:
        raw = _mapping(each)
        if raw.get("kind") == "List" or "items" in raw:
            yield from _flatten(_items(raw.get("items")))
        elif raw:
            yield raw


def _place(raw: Raw, namespace: str) -> tuple[str, str]:
    metadata = _mapping(raw.get("metadata"))
    return str(metadata.get("namespace") or namespace), str(metadata.get("name") or "")


def read_service(raw: Raw, namespace: str) -> Service | None:
    """Read a Service; None: it has no name."""
    spec = _mapping(raw.get("spec"))
    of, name = _place(raw, namespace)
    selector = {} if spec.get("type") == "ExternalName" else _mapping(spec.get("selector"))
    found = map(_mapping, _items(spec.get("ports")))
    ports = tuple(_read_target(each) for each in found if each.get("protocol") in (None, "", "TCP"))
    return Service(name, of, selector, ports) if name else None


def _read_target(raw: Raw) -> Port:
    target = raw.get("targetPort") or raw.get("port")
    number = target if isinstance(target, int) else 0
    name = target if isinstance(target, str) else ""
    return Port(number, name, (str(raw.get("name") or ""),), str(raw.get("appProtocol") or ""))


def _read_workload(raw: Raw, namespace: str) -> Workload | None:
    """Read whatever has a Pod template, and Pods."""
    spec = _mapping(raw.get("spec"))
    is_pod = raw.get("kind") == "Pod"
    template = raw if is_pod else _mapping(spec.get("template"))
    of, name = _place(raw, namespace)
    labels = _mapping(_mapping(template.get("metadata")).get("labels"))
    pod = _mapping(template.get("spec"))
    if not (name and labels and pod):
        return None
    selector = _mapping(spec.get("selector")) if not is_pod else {}
    if "matchLabels" not in selector and "matchExpressions" not in selector:
        selector = {"matchLabels": dict(labels)}
    containers = [_mapping(each) for each in _items(pod.get("containers"))]
    containers += [each for each in map(_mapping, _items(pod.get("initContainers"))) if each.get("restartPolicy")]
    ports = tuple(port for each in containers for port in _read_ports(each))
    return Workload(str(raw.get("kind")), name, of, labels, selector, ports)


def _read_ports(container: Raw) -> Iterator[Port]:
    """Read the ports that a container declares, and those that only its gRPC probes name."""
    probed = {port for probe in PROBES if (port := _read_probe(_mapping(container.get(probe))))}
    for raw in map(_mapping, _items(container.get("ports"))):
        number = raw.get("containerPort")
        if isinstance(number, int) and raw.get("protocol", "TCP") == "TCP":
            yield Port(number, str(raw.get("name") or ""), is_probed=number in probed)
            probed.discard(number)
    for number in sorted(probed):
        yield Port(number, is_probed=True)


def _read_probe(probe: Raw) -> int:
    """Return the port of a gRPC probe, or of the program that was used before there were any; 0: neither."""
    port = _mapping(probe.get("grpc")).get("port")
    if isinstance(port, int):
        return port
    command = " ".join(str(each) for each in _items(_mapping(probe.get("exec")).get("command")))
    address = PROBE_ADDRESS.search(command) if PROBE_PROGRAM in command else None
    return int(address[1]) if address else 0


def _mapping(value: object) -> Raw:
    return value if isinstance(value, Mapping) else {}


def _items(value: object) -> list[object]:
    return value if isinstance(value, list) else []

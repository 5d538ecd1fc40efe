"""What Kubernetes shows of GrpcServices and their Pods: facts, read from its objects of JSON. Pure.

The operator has such facts of its own, smaller ones for many Pods. What both conclude, which Pods a selector finds,
which port is meant and who is ready, is compared by a test: tests/unit/inspect/test_same_as_operator.py.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

GATE = "grpc-etcd.dev/registered"
MOST_DIGITS = 5  # of a port
GRACE_SECONDS = 30  # Kubernetes' default of terminationGracePeriodSeconds
SLEEP = re.compile(r"(?:^|[\s/;&])sleep\s+([0-9]{1,6})")


class Condition(NamedTuple):
    """One condition of an object."""

    status: str
    reason: str = ""
    message: str = ""


class ContainerPort(NamedTuple):
    """One container port of a Pod, or one that only a gRPC probe names."""

    name: str
    number: int
    is_probed: bool = False
    is_declared: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class PodFacts:
    """One Pod, or the Pod template of a manifest: then nothing but labels and ports is known."""

    namespace: str
    name: str
    uid: str = ""
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    ports: tuple[ContainerPort, ...] = ()
    ip: str = ""
    running: bool = False
    ended: bool = False  # as a Job's, which stays selected
    ready: bool = False  # judged without the operator's own gate while that is closed
    terminating: bool = False
    gate: Condition | None = None  # None: it has no such gate
    gates: tuple[str, ...] = ()  # all readiness gates, whoever opens them
    pause_seconds: int = 0  # for which a container's preStop sleeps
    grace_seconds: int = GRACE_SECONDS

    @property
    def reference(self) -> str:
        """Name it as messages do."""
        return f"{self.namespace}/{self.name}"

    @property
    def waits_at_gate(self) -> bool:
        """Return whether nothing but the operator's gate keeps it from being ready."""
        is_closed = self.gate is not None and self.gate.status != "True"
        return is_closed and self.ready and self.running and not self.terminating

    def is_serving(self, *, publish_not_ready: bool = False) -> bool:
        """Return whether its endpoints belong in the registry."""
        return self.running and not self.terminating and bool(self.ip) and (self.ready or publish_not_ready)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceFacts:
    """One GrpcService."""

    namespace: str
    name: str
    uid: str = ""
    age_seconds: float = 0.0
    generation: int = 0
    observed: int = -1
    registry_name: str
    selector: Mapping[str, Any] = field(default_factory=dict, hash=False)
    service_ref: str = ""  # the Service that selector and port are of
    port: str | int | None = None
    prefix: str = ""
    layouts: tuple[str, ...] = ("jupiter",)
    registries: tuple[str, ...] = ("default",)
    enable: bool = True
    publish_not_ready: bool = False
    drains: bool = False  # terminating Pods keep a disabled record
    conditions: Mapping[str, Condition] = field(default_factory=dict, hash=False)

    @property
    def reference(self) -> str:
        """Name it as owner records and messages do."""
        return f"{self.namespace}/{self.name}"

    @property
    def is_seen(self) -> bool:
        """Return whether the status is of the present spec."""
        return self.observed == self.generation

    @property
    def is_resolved(self) -> bool:
        """Return whether it says of itself whom it selects, or its Service does."""
        return not self.service_ref or bool(self.selector)

    def selects(self, pod: PodFacts) -> bool:
        """Return whether a Pod backs it."""
        return pod.namespace == self.namespace and matches(self.selector, pod.labels)

    def condition(self, kind: str) -> Condition:
        """Return a condition; one without a status where there is none of the present spec."""
        return self.conditions.get(kind, Condition("")) if self.is_seen else Condition("")


class TargetFacts(NamedTuple):
    """A Service. `port` is the container port for gRPC; None where `unclear_ports` lists several, or it has none."""

    namespace: str
    name: str
    selector: Mapping[str, Any]
    port: str | int | None = None
    unclear_ports: str = ""
    served: tuple[tuple[int, str | int], ...] = ()  # its own ports, each with the container port that it leads to
    file: str = ""  # that it was read from


class Deployment(NamedTuple):
    """A Deployment of the operator."""

    namespace: str
    name: str
    wanted: int
    ready: int
    dry_run: bool = False  # it writes nothing
    account: str = "grpc-etcd-operator"  # its ServiceAccount, in the same namespace

    @property
    def user(self) -> str:
        """Name its ServiceAccount as the API server does."""
        return f"system:serviceaccount:{self.namespace}:{self.account}"


class Denied(NamedTuple):
    """What somebody, such as the caller, may not list; an empty namespace means all."""

    resource: str
    namespace: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterFacts:
    """What the caller sees of a cluster. `namespace` is the one that was looked at; empty: all."""

    namespace: str
    services: tuple[ServiceFacts, ...] = ()
    others: tuple[ServiceFacts, ...] = ()  # those that were not asked for, of whatever namespace
    pods: tuple[PodFacts, ...] = ()
    targets: tuple[TargetFacts, ...] = ()
    deployments: tuple[Deployment, ...] | None = None  # None: may not be listed
    denied: tuple[Denied, ...] = ()
    barred: tuple[Denied, ...] = ()  # what no operator may list, as far as the caller may ask that
    has_crd: bool = True
    has_namespace: bool = True  # also where that may not be read
    uid: str = ""  # kube-system's; empty where it may not be read
    skew_seconds: float = 0.0  # by how much the API server's clock is ahead of this machine's

    @property
    def known(self) -> tuple[ServiceFacts, ...]:
        """All GrpcServices that are known, also those that were not asked for."""
        return (*self.services, *self.others)

    def selected(self, service: ServiceFacts) -> tuple[PodFacts, ...]:
        """Return the Pods of a GrpcService."""
        return tuple(pod for pod in self.pods if service.selects(pod))

    def may_read(self, resource: str, namespace: str) -> bool:
        """Return whether objects of a namespace were read."""
        return not any(each.resource == resource and each.namespace in {"", namespace} for each in self.denied)


def matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Return whether Pods with these labels are selected; an empty selector selects none."""
    wanted, requirements = read_selector(selector)
    return (
        bool(wanted or requirements)
        and all(labels.get(key) == value for key, value in wanted.items())
        and all(_meets(each, labels) for each in requirements)
    )


def read_selector(selector: Any) -> tuple[dict[str, str], list[Mapping[str, Any]]]:
    """Return labels and requirements; what cannot be read is left out."""
    found = _mapping(selector)
    requirements = [each for each in _list(found.get("matchExpressions")) if isinstance(each, Mapping)]
    return {str(key): str(value) for key, value in _mapping(found.get("matchLabels")).items()}, requirements


def _meets(requirement: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    value = labels.get(str(requirement.get("key", "")))
    values = _list(requirement.get("values"))
    match requirement.get("operator"):
        case "In":
            return value is not None and value in values
        case "NotIn":
            return value is None or value not in values
        case "Exists":
            return value is not None
        case _:
            return value is None


def find_port(ports: tuple[ContainerPort, ...], wanted: str | int | None) -> int | None:
    """Return the port that a GrpcService means; None where the Pod has no such port.

    A number needs no declaration. Without a wish it is the port named `grpc`, else the only one that is declared, else
    the only one that a gRPC probe names.
    """
    if isinstance(wanted, int):
        return wanted
    named = next((port.number for port in ports if port.name == (wanted or "grpc")), None)
    if named is not None or wanted is not None:
        return named
    declared = [port.number for port in ports if port.is_declared]
    probed = {port.number for port in ports if port.is_probed}
    return declared[0] if len(declared) == 1 else next(iter(probed)) if len(probed) == 1 else None


def parse_pod(item: Mapping[str, Any]) -> PodFacts:
    """Read a Pod."""
    metadata, spec, status = (_mapping(item.get(part)) for part in ("metadata", "spec", "status"))
    conditions = parse_conditions(status)
    stop = _parse_stop(spec)
    gates = stop["gates"]
    gate = conditions.get(GATE, Condition("")) if GATE in gates else None
    return PodFacts(
        namespace=str(metadata.get("namespace") or ""),
        name=str(metadata.get("name") or ""),
        uid=str(metadata.get("uid") or ""),
        labels=_labels(metadata),
        ports=_parse_ports(spec),
        ip=str(status.get("podIP") or ""),
        running=status.get("phase") == "Running",
        ended=status.get("phase") in {"Succeeded", "Failed"},
        ready=_is_ready(gate, gates, conditions),
        terminating="deletionTimestamp" in metadata,
        gate=gate,
        **stop,
    )


def _is_ready(gate: Condition | None, gates: Iterable[str], conditions: Mapping[str, Condition]) -> bool:
    if gate is None or gate.status == "True":
        return _is_true(conditions, "Ready")
    return all(_is_true(conditions, each) for each in ("ContainersReady", *gates) if each != GATE)


def _is_true(conditions: Mapping[str, Condition], kind: str) -> bool:
    return conditions.get(kind, Condition("")).status == "True"


def parse_template(item: Mapping[str, Any], namespace: str) -> PodFacts | None:
    """Read the Pods that a manifest makes: a Pod's own, or those of a workload's template; None where it makes none."""
    metadata, spec = _mapping(item.get("metadata")), _mapping(item.get("spec"))
    template = item if item.get("kind") == "Pod" else _mapping(spec.get("template"))
    if not _mapping(template.get("spec")).get("containers"):
        return None
    return PodFacts(
        namespace=str(metadata.get("namespace") or namespace),
        name=f"{item.get('kind')} {metadata.get('name')}",
        labels=_labels(_mapping(template.get("metadata"))),
        ports=_parse_ports(_mapping(template.get("spec"))),
        **_parse_stop(_mapping(template.get("spec"))),
    )


def _parse_stop(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Read gates, and how Pods stop: containers pause beside each other, so the longest pause counts."""
    hooks = [
        _mapping(_mapping(_mapping(each).get("lifecycle")).get("preStop")) for each in _list(spec.get("containers"))
    ]
    return {
        "gates": tuple(str(_mapping(each).get("conditionType")) for each in _list(spec.get("readinessGates"))),
        "pause_seconds": max(map(_read_pause, hooks), default=0),
        "grace_seconds": _whole(spec.get("terminationGracePeriodSeconds"), GRACE_SECONDS),
    }


def _read_pause(hook: Mapping[str, Any]) -> int:
    """Return for how many seconds a preStop hook sleeps: by its own action, or by the program."""
    command = " ".join(map(str, _list(_mapping(hook.get("exec")).get("command"))))
    found = SLEEP.search(command)
    return int(found[1]) if found else _whole(_mapping(hook.get("sleep")).get("seconds"), 0)


def parse_service(item: Mapping[str, Any], now: float = 0.0, created: float = 0.0) -> ServiceFacts:
    """Read a GrpcService; `now` and `created` are Unix seconds by the API server's clock."""
    metadata, spec, status = (_mapping(item.get(part)) for part in ("metadata", "spec", "status"))
    name, port = str(metadata.get("name") or ""), spec.get("port")
    return ServiceFacts(
        namespace=str(metadata.get("namespace") or ""),
        name=name,
        uid=str(metadata.get("uid") or ""),
        age_seconds=max(now - created, 0.0),
        generation=_whole(metadata.get("generation"), 0),
        observed=_whole(status.get("observedGeneration"), -1),
        registry_name=str(spec.get("name") or name),
        selector=_mapping(spec.get("selector")),
        service_ref=str(_mapping(spec.get("serviceRef")).get("name") or ""),
        port=_read_port(port),
        prefix=str(spec.get("prefix") or ""),
        layouts=tuple(map(str, _list(spec.get("layouts")))) or ("jupiter",),
        registries=tuple(map(str, _list(spec.get("registries")))) or ("default",),
        enable=spec.get("enable") is not False,
        publish_not_ready=spec.get("publishNotReady") is True,
        drains=_mapping(spec.get("drain")).get("mode") == "Disable",
        conditions=parse_conditions(status),
    )


def _read_port(value: Any) -> str | int | None:
    """Read a number also where it is written as a string; one that has more digits than any port is none."""
    if isinstance(value, str) and value.isdecimal() and len(value) <= MOST_DIGITS:
        return int(value)
    return value if isinstance(value, str | int) else None


def _whole(value: Any, missing: int) -> int:
    """Read a number; in a manifest it may be anything."""
    return value if isinstance(value, int) and not isinstance(value, bool) else missing


def parse_deployment(item: Mapping[str, Any]) -> Deployment:
    """Read a Deployment."""
    metadata, spec, status = (_mapping(item.get(part)) for part in ("metadata", "spec", "status"))
    wanted = spec.get("replicas")
    of_pods = _mapping(_mapping(spec.get("template")).get("spec"))
    containers = _list(of_pods.get("containers"))
    return Deployment(
        str(metadata["namespace"]),
        str(metadata["name"]),
        wanted=1 if wanted is None else int(wanted),
        ready=int(status.get("readyReplicas") or 0),
        dry_run=any("--dry-run" in _list(_mapping(each).get("args")) for each in containers),
        account=str(of_pods.get("serviceAccountName") or "default"),
    )


def parse_conditions(status: Mapping[str, Any]) -> dict[str, Condition]:
    """Read the conditions of a status, by their type."""
    found = [each for each in _list(status.get("conditions")) if isinstance(each, Mapping)]
    return {
        str(each.get("type")): Condition(*(str(each.get(part) or "") for part in ("status", "reason", "message")))
        for each in found
    }


def _parse_ports(spec: Mapping[str, Any]) -> tuple[ContainerPort, ...]:
    """Collect container ports, those of sidecars (init containers that restart) last."""
    sidecars = [each for each in _list(spec.get("initContainers")) if _mapping(each).get("restartPolicy") == "Always"]
    containers: Iterable[Any] = (*_list(spec.get("containers")), *sidecars)
    return tuple(port for container in containers for port in _ports_of(_mapping(container)))


def _ports_of(container: Mapping[str, Any]) -> Iterator[ContainerPort]:
    probes = (_mapping(container.get(f"{kind}Probe")) for kind in ("readiness", "liveness", "startup"))
    probed = next((port for probe in probes if (port := _number(_mapping(probe.get("grpc")).get("port")))), 0)
    ports = [_mapping(each) for each in _list(container.get("ports"))]
    declared = [each for each in ports if each.get("protocol") in (None, "", "TCP")]
    numbers = [_number(each.get("containerPort")) for each in declared]
    for each, number in zip(declared, numbers, strict=True):
        yield ContainerPort(str(each.get("name") or ""), number, is_probed=number == probed)
    if probed and probed not in numbers:
        yield ContainerPort("", probed, is_probed=True, is_declared=False)


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _labels(metadata: Mapping[str, Any]) -> dict[str, str]:
    return {str(key): str(value) for key, value in _mapping(metadata.get("labels")).items()}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []

"""What ought to stand in a registry for one Pod or one GrpcService, given the facts.

    Pod + the accepted GrpcServices that select it  ->  endpoints  ->  wanted records

Faults never stop the rest: a record that cannot be written is left out and said. Where two GrpcServices want the very
same key of a Pod, the older one's value is written.
"""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from grpc_etcd.registry.configurators import metric_target, route_record
from grpc_etcd.registry.endpoint import EMPTY, Endpoint, join_address
from grpc_etcd.registry.layout import Layout, Rejected
from grpc_etcd.registry.own import policy_key
from grpc_etcd_operator.core.pods import REGION_LABEL, ZONE_LABEL, Pod, find_port
from grpc_etcd_operator.core.services import MAX_WEIGHT, GrpcService, Spec


@dataclass(frozen=True, slots=True)
class Unit:
    """Whose records they are: a Pod's, or a GrpcService's own (then `pod` is empty). Each unit has one lease."""

    uid: str
    namespace: str
    pod: str = ""
    node: str = ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One record that ought to exist. `only_if_held`: keep it if it is there, do not create it (a drain)."""

    key: bytes
    value: bytes
    source: str
    layout: Layout | None = None
    endpoint: Endpoint | None = None
    only_if_held: bool = False


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that keeps a record of a GrpcService (by UID) from being as its owner wished."""

    source: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Desired:
    """All that a unit ought to have in one registry. `gone`: the unit will never come back, its lease may go too.

    `is_awaited`: it has, or will have as soon as it is ready, something to put under its lease.
    """

    unit: Unit
    wanted: tuple[Wanted, ...] = ()
    references: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()
    gone: bool = False
    is_awaited: bool = False


def make_pod_desired(pod: Pod, services: Iterable[GrpcService], registry: str, *, gone: bool = False) -> Desired:
    """Say what `registry` ought to hold for a Pod; `services` are the accepted ones that select it, in any order."""
    unit = Unit(pod.uid, pod.namespace, pod.name, pod.node)
    if gone:
        return Desired(unit, gone=True)
    wanted: dict[bytes, Wanted] = {}
    references: list[str] = []
    faults: list[Fault] = []
    is_awaited = False
    for service in sorted(services, key=lambda each: each.age_order):
        if service.spec is None or registry not in service.spec.registries:
            continue
        is_awaited |= service.spec.enable and pod.is_serving(publish_not_ready=True)
        records = _wanted_of(pod, service, service.spec, registry, faults)
        references += [service.reference] if records else []
        for record in records:
            older = wanted.setdefault(record.key, record)
            if older is not record:
                faults.append(_shadowed(record))
    return Desired(unit, tuple(wanted.values()), tuple(references), tuple(faults), is_awaited=is_awaited)


def make_service_desired(service: GrpcService, registry: str, *, accepted: bool, gone: bool = False) -> Desired:
    """Say what `registry` ought to hold for a GrpcService itself: its client policy and its routes."""
    unit = Unit(service.uid, service.namespace)
    spec = service.spec
    if gone or spec is None or not accepted or registry not in spec.registries:
        return Desired(unit, gone=gone)
    wanted, faults = [], []
    if spec.policy:
        wanted.append(Wanted(policy_key(spec.prefixes[registry], spec.registry_name), spec.policy, service.uid))
    for layout, route in itertools.product(spec.layouts[registry], spec.routes):
        try:
            record = route_record(layout, spec.registry_name, spec.scheme, route)
        except ValueError as error:
            faults.append(Fault(service.uid, "Unwritable", f"spec.routes: the route {route.id!r}: {error}"))
            continue
        if record is not None:
            wanted.append(Wanted(record.key, record.value, service.uid))
    return Desired(unit, tuple(wanted), (service.reference,) if wanted else (), tuple(faults))


def _shadowed(record: Wanted) -> Fault:
    key = record.key.decode(errors="replace")
    return Fault(record.source, "KeyShared", f"an older GrpcService of this namespace writes {key}; its value stands")


def _wanted_of(pod: Pod, service: GrpcService, spec: Spec, registry: str, faults: list[Fault]) -> list[Wanted]:
    serving = pod.is_serving(publish_not_ready=spec.publish_not_ready)
    if not spec.enable or not pod.ip or not (serving or spec.drain_by_disabling):
        return []
    number = find_port(pod.ports, spec.port)
    if number is None:
        faults.append(_no_port(pod, service, spec.port))
        return []
    endpoint = make_endpoint(pod, service, spec, number, faults)
    wanted = []
    for layout in spec.layouts[registry]:
        if not serving and not layout.can_disable:
            continue
        shown = endpoint if serving else replace(endpoint, enable=False)
        encoded = layout.encode(spec.registry_name, shown)
        if isinstance(encoded, Rejected):
            faults.append(
                Fault(service.uid, "Unwritable", f"{layout.name} cannot carry Pod {pod.name}: {encoded.reason}")
            )
        else:
            wanted.append(Wanted(encoded.key, encoded.value, service.uid, layout, shown, only_if_held=not serving))
    if serving and wanted and spec.metrics_port is not None:
        wanted += _metric_targets(pod, service, spec, faults)
    return wanted


def _no_port(pod: Pod, service: GrpcService, port: str | int | None) -> Fault:
    has = ", ".join(f"{each.name or '(no name)'}={each.number}" for each in pod.ports) or "none"
    want = f"named {port!r}" if port else "named 'grpc', and more or less than one port"
    return Fault(service.uid, "PortNotFound", f"Pod {pod.name} has no port {want} (it declares: {has}); set spec.port")


def _metric_targets(pod: Pod, service: GrpcService, spec: Spec, faults: list[Fault]) -> list[Wanted]:
    """Give the key by which Prometheus finds the Pod, as Jupiter's registerMetric writes it."""
    number = find_port(pod.ports, spec.metrics_port)
    if number is None:
        faults.append(_no_port(pod, service, spec.metrics_port))
        return []
    target = metric_target(spec.registry_name, pod.name, join_address(pod.ip, number))
    return [Wanted(target.key, target.value, service.uid)]


def make_endpoint(pod: Pod, service: GrpcService, spec: Spec, port: int, faults: list[Fault]) -> Endpoint:
    """Describe a Pod as an endpoint of a GrpcService; zone and region default to the Pod's topology labels."""
    return Endpoint(
        name=spec.registry_name,
        address=join_address(pod.ip, port),
        scheme=spec.scheme,
        weight=_weight(pod, service, spec, faults),
        metadata=_metadata(pod.labels, spec),
        region=spec.region or pod.labels.get(REGION_LABEL, ""),
        zone=spec.zone or pod.labels.get(ZONE_LABEL, ""),
        deployment=spec.deployment,
        group=spec.group,
        app_id=spec.app_id,
        instance=f"{pod.uid}-{port}",
    )


def _metadata(labels: Mapping[str, str], spec: Spec) -> Mapping[str, str]:
    if not spec.metadata and not spec.metadata_from_labels:
        return EMPTY
    copied = {name: labels[name] for name in spec.metadata_from_labels if name in labels}
    return MappingProxyType({**spec.metadata, **copied})


def _weight(pod: Pod, service: GrpcService, spec: Spec, faults: list[Fault]) -> int:
    if pod.weight is None:
        return spec.weight
    if pod.weight.isascii() and pod.weight.isdigit() and int(pod.weight) <= MAX_WEIGHT:
        return int(pod.weight)
    message = (
        f"Pod {pod.name} has the weight annotation {pod.weight!r}, which is no whole number from 0 to {MAX_WEIGHT}"
    )
    faults.append(Fault(service.uid, "BadWeight", f"{message}; the GrpcService's weight is used"))
    return spec.weight

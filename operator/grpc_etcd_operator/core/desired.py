"""What ought to are in a registry for one Pod or one GrpcService, given the facts.

    Pod + the accepted GrpcServices that select it  ->  endpoints  ->  wanted records

Faults never stop the rest: a record that cannot be written is left out and said. Where two GrpcServices want the very
same key of a Pod, the older one's value is written.
"""

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from grpc_etcd.layouts.configurators import metric_target, route_record
from grpc_etcd.registry.endpoint import EMPTY, Endpoint, join_address, join_host
from grpc_etcd.registry.layout import Layout, Rejected
from grpc_etcd.registry.own import policy_key
from grpc_etcd_operator.core.pods import REGION_LABEL, ZONE_LABEL, Pod, find_port
from grpc_etcd_operator.core.reasons import KEEPING, Reason
from grpc_etcd_operator.core.services import MAX_WEIGHT, GrpcService, Spec

# Of a Pod's keys and values in one registry: twice what all of a GrpcService's metadata take in all layouts. Hundreds
# of GrpcServices that select the same Pods would fill etcd, and the memory and time of whoever writes it, for all.
MOST_BYTES = 1_000_000
GRPC_NAMES = re.compile(r"grpc|h2c|rpc|http2")  # in names that people give to ports of gRPC servers
SHOWN_PORTS = 10  # of a Pod that a message lists; arbitrary
SHOWN_WEIGHT = 40  # characters of an annotation that a message quotes; arbitrary
_WEIGHT = re.compile("0*([0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose records they are: a Pod's, or a GrpcService's own (then `pod` is empty). Each unit has one lease."""

    uid: str
    namespace: str
    pod: str = ""
    node: str = ""


@dataclass(frozen=True, slots=True)
class DesiredRecord:
    """One record that ought to exist. `only_if_held`: keep it if it is there, do not create it (a drain)."""

    key: bytes
    value: bytes
    source: str
    layout: Layout | None = None
    endpoint: Endpoint | None = None
    only_if_held: bool = False
    reference: str = ""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that keeps a record of a GrpcService (by UID) from being as its owner wished."""

    source: str
    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Desired:
    """All that a unit ought to have in one registry. `gone`: the unit will never come back, its lease may go too.

    `is_awaited`: it has, or will have as soon as it is ready, something to put under its lease. What the unit holds for
    the GrpcServices `keep_references` stays as it is, wanted or not, and so do the keys `keeps`; but of a Pod only what
    leads to the address `host` that it has now.
    """

    unit: Owner
    wanted: tuple[DesiredRecord, ...] = ()
    references: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()
    gone: bool = False
    is_awaited: bool = False
    keep_references: frozenset[str] = frozenset()
    keeps: frozenset[bytes] = frozenset()
    host: str = ""


def leads_elsewhere(host: str, key: bytes, value: bytes) -> bool:
    """Return whether a record leads to another address than that of its Pod.

    Every layout has it in the key or the value.

    A Pod whose sandbox was recreated has another address, and its old one may be any other Pod's by now.
    """
    if not host:
        return False
    pattern = re.compile(rb"(?<![0-9A-Za-z.])" + re.escape(host.encode()) + rb":[0-9]")
    return not (pattern.search(key) or pattern.search(value))


def make_pod_desired(
    pod: Pod,
    services: Iterable[GrpcService],
    registry: str,
    *,
    gone: bool = False,
    kept: frozenset[str] = frozenset(),
) -> Desired:
    """Return what `registry` ought to hold for a Pod.

    `services` are those in force that select it, in any order; `kept` are those of which nothing is known but that what
    they have of this Pod, as it is now, stays.
    """
    unit = Owner(pod.uid, pod.namespace, pod.name, pod.node)
    if gone:
        return Desired(unit, gone=True)
    wanted: dict[bytes, DesiredRecord] = {}
    references: list[str] = []
    faults: list[Fault] = []
    is_awaited = False
    left_bytes, is_full = MOST_BYTES, False
    keep = kept
    for service in sorted(services, key=lambda each: each.age_order):
        if service.spec is None or registry not in service.spec.registries:
            continue
        is_awaited |= service.spec.enable and pod.is_serving(publish_not_ready=True)
        known, serving = len(faults), pod.is_serving(publish_not_ready=service.spec.publish_not_ready)
        records = [] if is_full else _wanted_of(pod, service, service.spec, registry, faults)
        left_bytes -= sum(len(record.key) + len(record.value) for record in records)
        is_full = left_bytes < 0  # and stays so: the younger ones are not even looked at
        if is_full and _is_wanted(pod, service.spec):
            records = []
            faults.append(_too_much(pod, service))
        if len(faults) > known and serving and any(fault.reason in KEEPING for fault in faults[known:]):
            keep |= {service.reference}  # a mistake in its spec, or in a rollout: what exists is better than nothing
        references += [service.reference] if records else []
        for record in records:
            older = wanted.setdefault(record.key, record)
            if older is not record:
                faults.append(_shadowed(record, older))
    return Desired(
        unit,
        tuple(wanted.values()),
        tuple(references),
        tuple(faults),
        is_awaited=is_awaited,
        keep_references=keep,
        host=join_host(pod.ip),
    )


def make_service_desired(
    service: GrpcService, registry: str, *, accepted: bool, gone: bool = False, keep: bool = False
) -> Desired:
    """Return what `registry` ought to hold for a GrpcService itself: its client policy and its routes."""
    unit = Owner(service.uid, service.namespace)
    spec = service.spec
    if gone or spec is None or not accepted or registry not in spec.registries:
        return Desired(unit, gone=gone, keep_references=frozenset([service.reference] if keep else []))
    wanted, faults = [], []
    if spec.policy:
        wanted.append(
            DesiredRecord(
                policy_key(spec.prefixes[registry], spec.registry_name),
                spec.policy,
                service.uid,
                reference=service.reference,
            )
        )
    for layout, route in itertools.product(spec.layouts[registry], spec.routes):
        try:
            record = route_record(layout, spec.registry_name, spec.scheme, route)
        except ValueError as error:
            faults.append(Fault(service.uid, Reason.UNWRITABLE, f"spec.routes: the route {route.id!r}: {error}"))
            continue
        if record is not None:
            wanted.append(DesiredRecord(record.key, record.value, service.uid, reference=service.reference))
    stays = frozenset([service.reference] if faults else [])
    return Desired(unit, tuple(wanted), (service.reference,) if wanted else (), tuple(faults), keep_references=stays)


def _shadowed(record: DesiredRecord, older: DesiredRecord) -> Fault:
    """Report a key that two want: two GrpcServices, or two layouts of one, which are alike under a common prefix."""
    key = record.key.decode(errors="replace")
    if record.source == older.source and record.layout and older.layout:
        written, left_out = older.layout.name, record.layout.name
        remedy = (
            f"remove one of the two from spec.layouts, or write {left_out} through a GrpcService with another prefix"
        )
        message = f"the layouts {written} and {left_out} both write {key}, and {written} takes precedence; {remedy}"
        return Fault(record.source, Reason.KEY_SHARED, message)
    remedy = "give one of the two another spec.name, or delete one"
    message = f"an older GrpcService of this namespace writes {key} and takes precedence; {remedy}"
    return Fault(record.source, Reason.KEY_SHARED, message)


def _is_wanted(pod: Pod, spec: Spec) -> bool:
    """Return whether there is to be anything at all of a Pod."""
    # One that has ended is not drained: its address is another's by now, and its object may stay for days. Nor is one
    # that has turned unready, perhaps for hours: not every client obeys enable=false.
    serving = pod.is_serving(publish_not_ready=spec.publish_not_ready)
    is_draining = spec.drain_by_disabling and pod.terminating and pod.running
    return spec.enable and bool(pod.ip) and (serving or is_draining)


def _too_much(pod: Pod, service: GrpcService) -> Fault:
    return Fault(
        service.uid,
        Reason.UNWRITABLE,
        f"Pod {pod.name} would have more than {MOST_BYTES} bytes of keys and values in a registry; older GrpcServices "
        f"take precedence: let fewer of them select it, or give them less metadata, fewer layouts or shorter names",
    )


def _wanted_of(pod: Pod, service: GrpcService, spec: Spec, registry: str, faults: list[Fault]) -> list[DesiredRecord]:
    serving = pod.is_serving(publish_not_ready=spec.publish_not_ready)
    if not _is_wanted(pod, spec):
        return []
    number = find_port(pod.ports, spec.wanted_port)
    if number is None:
        faults.append(_no_port(pod, service, spec.wanted_port, "spec.port"))
        return []
    try:
        endpoint = make_endpoint(pod, service, spec, number, faults)
    except ValueError as error:
        faults.append(Fault(service.uid, Reason.UNWRITABLE, f"no layout can encode Pod {pod.name}: {error}"))
        return []
    wanted = []
    for layout in spec.layouts[registry]:
        if not serving and not layout.can_disable:
            continue
        shown = endpoint if serving else replace(endpoint, enable=False)
        encoded = layout.encode(spec.registry_name, shown)
        if isinstance(encoded, Rejected):
            faults.append(
                Fault(service.uid, Reason.UNWRITABLE, f"{layout.name} cannot encode Pod {pod.name}: {encoded.reason}")
            )
        else:
            record = DesiredRecord(
                encoded.key, encoded.value, service.uid, layout, shown, not serving, service.reference
            )
            wanted.append(record)
    if serving and wanted and spec.metrics_port is not None:
        wanted += _metric_targets(pod, service, spec, faults)
    return wanted


def _no_port(pod: Pod, service: GrpcService, port: str | int | None, field: str) -> Fault:
    ports = [each for each in pod.ports if each.is_declared]
    shown = [f"{each.name or '(no name)'}={each.number}" for each in ports[:SHOWN_PORTS]]
    more = [f"and {len(ports) - SHOWN_PORTS} more"] if len(ports) > SHOWN_PORTS else []
    has = ", ".join([*shown, *more]) or "none"
    want = f"named {port!r}" if port else "that is named 'grpc', the only one, or the only one with a gRPC probe"
    likely = next((each.name for each in ports if GRPC_NAMES.search(each.name)), "")
    remedy = f"set {field}" + (f", perhaps to {likely}" if likely and field == "spec.port" else "")
    return Fault(
        service.uid, Reason.PORT_NOT_FOUND, f"Pod {pod.name} has no port {want} (it declares: {has}); {remedy}"
    )


def _metric_targets(pod: Pod, service: GrpcService, spec: Spec, faults: list[Fault]) -> list[DesiredRecord]:
    """Return the key by which Prometheus finds the Pod, as Jupiter's registerMetric writes it."""
    number = find_port(pod.ports, spec.metrics_port)
    if number is None:
        faults.append(_no_port(pod, service, spec.metrics_port, "spec.metricsPort"))
        return []
    target = metric_target(spec.registry_name, pod.name, join_address(pod.ip, number))
    return [DesiredRecord(target.key, target.value, service.uid, reference=service.reference)]


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
    found = _WEIGHT.fullmatch(pod.weight)  # int() raises where there are thousands of digits
    if found and int(found[1]) <= MAX_WEIGHT:
        return int(found[1])
    shown = pod.weight if len(pod.weight) <= SHOWN_WEIGHT else f"{pod.weight[:SHOWN_WEIGHT]}..."
    message = f"Pod {pod.name} has the weight annotation {shown!r}, which is not a whole number from 0 to {MAX_WEIGHT}"
    faults.append(Fault(service.uid, Reason.BAD_WEIGHT, f"{message}; the GrpcService's weight is used"))
    return spec.weight

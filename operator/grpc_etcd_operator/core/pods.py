"""What the operator remembers of a Pod: a small record instead of the object, and whether it is ready to serve.

This is one of the three files that read Kubernetes objects (services.py and targets.py are the others). Two Pods with
equal facts need the same records, so an event that changes no fact is dropped at once.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Protocol

from grpc_etcd_operator.core.pod_message import Condition, Container, ObjectMeta, PodSpec, PodStatus

GATE = "grpc-etcd.dev/registered"
WEIGHT_ANNOTATION = "grpc-etcd.dev/weight"
ZONE_LABEL = "topology.kubernetes.io/zone"
REGION_LABEL = "topology.kubernetes.io/region"
MOST_SHARED = 4096  # lists of ports; beyond that they are of what is long gone, for the most part
# Of a list that is shared, and so kept when its Pods are gone: those of templates are short. Arbitrary
SHARED_PORTS = 32
# Of a Pod: an object has room for a hundred thousand, which would take as much memory as thousands of Pods. Arbitrary
MOST_PORTS = 1000


class PodMessage(Protocol):
    """A Pod as sources deliver it; an object of JSON is none."""

    @property
    def metadata(self) -> ObjectMeta:
        """What every object has."""

    @property
    def spec(self) -> PodSpec:
        """What it was asked to be."""

    @property
    def status(self) -> PodStatus:
        """What has become of it."""


@dataclass(frozen=True, slots=True)
class Port:
    """One container port of a Pod, or one that only a gRPC probe names."""

    name: str
    number: int
    is_probed: bool = False
    is_declared: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A provider: everything about a Pod that decides what is in the registry.

    Times are Unix seconds, 0 where there is none. `ready` is judged without the operator's own readiness gate until it
    has been open and Ready has followed (`ready_followed`). `since` (of its readiness) and `terminating_since` (when
    its deletion was asked for) time the operator and never decide anything. `outside` means that the installation's
    selector does not find it, so that it serves nobody here. `resource_version` is no fact: it says of which
    state of the Pod these facts are.
    """

    uid: str
    namespace: str
    name: str
    created: int = 0
    node: str = ""
    ip: str = ""
    labels: Mapping[str, str]
    ports: tuple[Port, ...] = ()
    running: bool = False
    ready: bool = False
    terminating: bool = False
    gated: bool = False
    gate_open: bool = False
    ready_followed: bool = False
    outside: bool = False
    weight: str | None = None
    since: int = 0
    terminating_since: int = 0
    resource_version: str = field(default="", compare=False)

    def is_serving(self, *, publish_not_ready: bool = False) -> bool:
        """Return whether the Pod's endpoints belong in the registry."""
        return self.running and not self.terminating and bool(self.ip) and (self.ready or publish_not_ready)


def take_out_of_scope(pod: Pod) -> Pod:
    """Return the same Pod as one that the installation's selector does not find."""
    return replace(pod, labels={}, running=False, outside=True)


def parse_pod(pod: PodMessage, known: Pod | None = None) -> Pod:
    """Reduce a Pod (a message of Kubernetes, as `kube/messages.py` describes it) to its facts; most may be missing.

    `known` is the same Pod as it was: what a Pod never changes is taken from there.
    """
    metadata, spec, status = pod.metadata, pod.spec, pod.status
    if not metadata.uid:
        raise ValueError(f"Pod {metadata.namespace}/{metadata.name} has no UID")
    conditions = {condition.type: condition for condition in status.conditions}
    gates = [gate.conditionType for gate in spec.readinessGates]
    ready_followed = GATE in gates and _has_ready_followed(conditions, known)
    return Pod(
        uid=metadata.uid,
        namespace=sys.intern(metadata.namespace),
        name=metadata.name,
        created=metadata.creationTimestamp.seconds,
        node=sys.intern(spec.nodeName),
        ip=status.podIP,
        labels=_parse_labels(metadata.labels, known.labels if known else {}),
        ports=known.ports if known else _parse_ports(spec.containers, spec.initContainers),
        running=status.phase == "Running",
        ready=_is_ready(gates, conditions, ready_followed=ready_followed),
        terminating=metadata.HasField("deletionTimestamp"),
        gated=GATE in gates,
        gate_open=_is_true(conditions, GATE),
        ready_followed=ready_followed,
        weight=metadata.annotations.get(WEIGHT_ANNOTATION),
        since=_ready_since(gates, conditions),
        # Kubernetes' deletionTimestamp is when the grace period will be over.
        terminating_since=metadata.deletionTimestamp.seconds - metadata.deletionGracePeriodSeconds,
        resource_version=metadata.resourceVersion,
    )


def _is_ready(gates: list[str], conditions: Mapping[str, Condition], *, ready_followed: bool) -> bool:
    """Judge readiness; a Pod that waits for our own gate is judged by its containers and its other gates."""
    if GATE not in gates:
        return _is_true(conditions, "Ready")
    if ready_followed and not _is_true(conditions, "Ready"):
        return False
    others = (gate for gate in gates if gate != GATE)
    return _is_true(conditions, "ContainersReady") and all(_is_true(conditions, gate) for gate in others)


# The kubelet's word for a Pod that waits for its gates; it is still there for a moment after the last one has opened.
WAITING_FOR_GATES = "ReadinessGatesNotReady"


def _has_ready_followed(conditions: Mapping[str, Condition], known: Pod | None) -> bool:
    """Return whether Ready has been worked out again since our gate opened: from then on it counts.

    When the gate opens, Ready is False and stays so until the kubelet has seen it. A False that came later is another
    one: a node died, and the node lifecycle controller turned Ready, and nothing else, to False. It leaves the reason
    empty (pkg/controller/util/node, MarkPodsNotReady); the kubelet always gives one.

    Times are whole seconds of several clocks. So what was seen before decides first: Ready was True while the gate was
    open. Where nothing is known (a restart), a False counts that is later than the gate's opening; within the same
    second it is the old one, since a node is not given up in its first second.
    """
    ready, gate = conditions.get("Ready"), conditions.get(GATE)
    if ready is None or gate is None or gate.status != "True":
        return False
    if ready.status == "True" or (known is not None and known.gate_open and known.ready_followed):
        return True
    is_later = ready.lastTransitionTime.seconds > gate.lastTransitionTime.seconds
    return bool(is_later and ready.reason != WAITING_FOR_GATES)


def _ready_since(gates: list[str], conditions: Mapping[str, Condition]) -> int:
    """Return when the readiness that `_is_ready` judges last changed."""
    judged = ["Ready"] if GATE not in gates else ["ContainersReady", *(gate for gate in gates if gate != GATE)]
    return max((conditions[kind].lastTransitionTime.seconds for kind in judged if kind in conditions), default=0)


def _is_true(conditions: Mapping[str, Condition], kind: str) -> bool:
    condition = conditions.get(kind)
    return condition is not None and condition.status == "True"


def _parse_labels(found: Mapping[str, str], known: Mapping[str, str]) -> Mapping[str, str]:
    if (labels := dict(found)) == known:
        return known
    return {sys.intern(name): sys.intern(value) for name, value in labels.items()}


_PORTS: dict[tuple[Port, ...], tuple[Port, ...]] = {}


def _parse_ports(containers: Iterable[Container], inits: Iterable[Container]) -> tuple[Port, ...]:
    """Collect the first MOST_PORTS container ports, those of sidecars (init containers that restart) last."""
    sidecars = (container for container in inits if container.restartPolicy == "Always")
    found = (port for container in (*containers, *sidecars) for port in _ports_of(container))
    ports = tuple(islice(found, MOST_PORTS))
    if len(ports) > SHARED_PORTS:
        return ports
    if len(_PORTS) >= MOST_SHARED:
        _PORTS.clear()
    return _PORTS.setdefault(ports, ports)  # Pods of one Deployment share one tuple: 10,000 Pods stay small


def _ports_of(container: Container) -> Iterator[Port]:
    probes = (container.readinessProbe, container.livenessProbe, container.startupProbe)
    probed = next((probe.handler.grpc.port for probe in probes if probe.handler.grpc.port), 0)
    declared = list(islice((port for port in container.ports if port.protocol in ("", "TCP")), MOST_PORTS))
    for port in declared:
        yield Port(sys.intern(port.name), port.containerPort, is_probed=port.containerPort == probed)
    if probed and not any(port.containerPort == probed for port in declared):
        yield Port("", probed, is_probed=True, is_declared=False)


def find_port(ports: tuple[Port, ...], wanted: str | int | None) -> int | None:
    """Find the port that a GrpcService means; None when the Pod has no such port.

    A number needs no declaration, as with Kubernetes' own targetPort. Without a wish it is the port named `grpc`, else
    the only one that is declared, else the only one that a gRPC probe names.
    """
    if isinstance(wanted, int):
        return wanted
    name = wanted or "grpc"
    number = next((port.number for port in ports if port.name == name), None)
    if number is not None or wanted is not None:
        return number
    declared = [port.number for port in ports if port.is_declared]
    probed = {port.number for port in ports if port.is_probed}
    return declared[0] if len(declared) == 1 else next(iter(probed)) if len(probed) == 1 else None

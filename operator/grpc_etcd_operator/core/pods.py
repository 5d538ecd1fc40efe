"""What the operator remembers of a Pod: a small record instead of the object, and whether it is ready to serve.

This is one of the two files that read Kubernetes objects (services.py is the other). Two Pods with equal facts need
the same records, so an event that changes no fact is dropped at once.
"""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

GATE = "grpc-etcd.dev/registered"
WEIGHT_ANNOTATION = "grpc-etcd.dev/weight"
ZONE_LABEL = "topology.kubernetes.io/zone"
REGION_LABEL = "topology.kubernetes.io/region"


@dataclass(frozen=True, slots=True)
class Port:
    """One container port of a Pod."""

    name: str
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A provider: everything about a Pod that decides what stands in the registry.

    Times are Unix seconds, 0 where there is none. `ready` is judged without the operator's own readiness gate. `since`
    and `terminating_since` time the operator and never decide anything.
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
    weight: str | None = None
    since: int = 0
    terminating_since: int = 0

    def is_serving(self, *, publish_not_ready: bool = False) -> bool:
        """Say whether the Pod's endpoints belong in the registry."""
        return self.running and not self.terminating and bool(self.ip) and (self.ready or publish_not_ready)


def parse_pod(pod: Any, known: Pod | None = None) -> Pod:
    """Reduce a Pod (a message of Kubernetes, as `kube/messages.py` describes it) to its facts; most may be missing.

    `known` is the same Pod as it was: what a Pod never changes is taken from there.
    """
    metadata, spec, status = pod.metadata, pod.spec, pod.status
    if not metadata.uid:
        raise ValueError(f"Pod {metadata.namespace}/{metadata.name} has no UID")
    conditions = {condition.type: condition for condition in status.conditions}
    gates = [gate.conditionType for gate in spec.readinessGates]
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
        ready=_is_ready(gates, conditions),
        terminating=metadata.HasField("deletionTimestamp"),
        gated=GATE in gates,
        gate_open=_is_true(conditions, GATE),
        weight=metadata.annotations.get(WEIGHT_ANNOTATION),
        since=conditions["Ready"].lastTransitionTime.seconds if "Ready" in conditions else 0,
        terminating_since=metadata.deletionTimestamp.seconds,
    )


def _is_ready(gates: list[str], conditions: Mapping[str, Any]) -> bool:
    """Judge readiness; a Pod that waits for our own gate is judged by its containers and its other gates."""
    if GATE not in gates:
        return _is_true(conditions, "Ready")
    others = (gate for gate in gates if gate != GATE)
    return _is_true(conditions, "ContainersReady") and all(_is_true(conditions, gate) for gate in others)


def _is_true(conditions: Mapping[str, Any], kind: str) -> bool:
    condition = conditions.get(kind)
    return condition is not None and condition.status == "True"


def _parse_labels(found: Mapping[str, str], known: Mapping[str, str]) -> Mapping[str, str]:
    if (labels := dict(found)) == known:
        return known
    return {sys.intern(name): sys.intern(value) for name, value in labels.items()}


_PORTS: dict[tuple[Port, ...], tuple[Port, ...]] = {}


def _parse_ports(containers: Iterable[Any], inits: Iterable[Any]) -> tuple[Port, ...]:
    """Collect container ports, those of sidecars (init containers that restart) last."""
    sidecars = (container for container in inits if container.restartPolicy == "Always")
    ports = tuple(
        Port(sys.intern(port.name), port.containerPort)
        for container in (*containers, *sidecars)
        for port in container.ports
        if port.protocol in ("", "TCP")
    )
    return _PORTS.setdefault(ports, ports)  # Pods of one Deployment share one tuple: 10,000 Pods stay small


def find_port(ports: tuple[Port, ...], wanted: str | int | None) -> int | None:
    """Find the port that a GrpcService means; None when the Pod has no such port.

    A number needs no declaration, as with Kubernetes' own targetPort. Without a wish it is the port named `grpc`, else
    the only one.
    """
    if isinstance(wanted, int):
        return wanted
    name = wanted or "grpc"
    number = next((port.number for port in ports if port.name == name), None)
    if number is None and wanted is None and len(ports) == 1:
        return ports[0].number
    return number

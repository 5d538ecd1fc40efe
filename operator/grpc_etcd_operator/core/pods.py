"""What the operator remembers of a Pod: a small record instead of the object, and whether it is ready to serve.

This is one of the two files that read raw Kubernetes objects (services.py is the other). Two Pods with equal facts need
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

    `ready` is judged without the operator's own readiness gate. `since` and `terminating_since` are the Pod's own
    timestamps (RFC 3339, whole seconds); they time the operator and never decide anything.
    """

    uid: str
    namespace: str
    name: str
    created: str = ""
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
    since: str = ""
    terminating_since: str = ""

    def is_serving(self, *, publish_not_ready: bool = False) -> bool:
        """Say whether the Pod's endpoints belong in the registry."""
        return self.running and not self.terminating and bool(self.ip) and (self.ready or publish_not_ready)


def parse_pod(raw: Mapping[str, Any]) -> Pod:
    """Reduce a Pod object to its facts. Every part of the object may be missing."""
    metadata, spec, status = raw.get("metadata") or {}, raw.get("spec") or {}, raw.get("status") or {}
    conditions = {c.get("type", ""): c for c in status.get("conditions") or ()}
    gates = [gate.get("conditionType", "") for gate in spec.get("readinessGates") or ()]
    ready = conditions.get("Ready") or {}
    return Pod(
        uid=metadata["uid"],
        namespace=sys.intern(metadata["namespace"]),
        name=metadata["name"],
        created=sys.intern(metadata.get("creationTimestamp") or ""),
        node=sys.intern(spec.get("nodeName") or ""),
        ip=status.get("podIP") or "",
        labels={sys.intern(k): sys.intern(v) for k, v in (metadata.get("labels") or {}).items()},
        ports=_parse_ports(spec.get("containers") or (), spec.get("initContainers") or ()),
        running=status.get("phase") == "Running",
        ready=_is_ready(gates, conditions),
        terminating=bool(metadata.get("deletionTimestamp")),
        gated=GATE in gates,
        gate_open=_is_true(conditions, GATE),
        weight=(metadata.get("annotations") or {}).get(WEIGHT_ANNOTATION),
        since=sys.intern(ready.get("lastTransitionTime") or ""),
        terminating_since=metadata.get("deletionTimestamp") or "",
    )


def _is_ready(gates: list[str], conditions: Mapping[str, Mapping[str, Any]]) -> bool:
    """Judge readiness; a Pod that waits for our own gate is judged by its containers and its other gates."""
    if GATE not in gates:
        return _is_true(conditions, "Ready")
    others = (gate for gate in gates if gate != GATE)
    return _is_true(conditions, "ContainersReady") and all(_is_true(conditions, gate) for gate in others)


def _is_true(conditions: Mapping[str, Mapping[str, Any]], kind: str) -> bool:
    condition = conditions.get(kind)
    return condition is not None and condition.get("status") == "True"


_PORTS: dict[tuple[Port, ...], tuple[Port, ...]] = {}


def _parse_ports(containers: Iterable[Mapping[str, Any]], inits: Iterable[Mapping[str, Any]]) -> tuple[Port, ...]:
    """Collect container ports, those of sidecars (init containers that restart) last."""
    sidecars = (c for c in inits if c.get("restartPolicy") == "Always")
    ports = tuple(
        Port(sys.intern(port.get("name") or ""), int(port["containerPort"]))
        for container in (*containers, *sidecars)
        for port in container.get("ports") or ()
        if port.get("protocol", "TCP") == "TCP"
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

"""A Pod as sources deliver it, whichever way it came: the fields that are asked for, with Kubernetes' own names.

Messages of protobuf have them (`kube/messages.py` describes these), and so is made what came as JSON. What is not set
is empty, or zero.
"""

# ruff: noqa: N815  the names are Kubernetes' own

from collections.abc import Mapping, Sequence
from typing import Protocol


class Time(Protocol):
    """A time in Unix seconds."""

    seconds: int


class ObjectMeta(Protocol):
    """What every object has."""

    name: str
    namespace: str
    uid: str
    resourceVersion: str
    creationTimestamp: Time
    deletionTimestamp: Time
    deletionGracePeriodSeconds: int
    labels: Mapping[str, str]
    annotations: Mapping[str, str]

    def HasField(self, name: str, /) -> bool:  # noqa: N802  protobuf's name
        """Return whether a field is set."""


class ContainerPort(Protocol):
    """A port that a container declares."""

    name: str
    containerPort: int
    protocol: str


class GrpcAction(Protocol):
    """A call of gRPC's health service; port 0: the probe is of another kind."""

    port: int


class ProbeHandler(Protocol):
    """What a probe does."""

    grpc: GrpcAction


class Probe(Protocol):
    """A probe of the kubelet's."""

    handler: ProbeHandler


class Container(Protocol):
    """A container, or an init container."""

    ports: Sequence[ContainerPort]
    livenessProbe: Probe
    readinessProbe: Probe
    startupProbe: Probe
    restartPolicy: str


class ReadinessGate(Protocol):
    """A condition without which a Pod is not ready."""

    conditionType: str


class PodSpec(Protocol):
    """What a Pod was asked to be."""

    containers: Sequence[Container]
    initContainers: Sequence[Container]
    nodeName: str
    readinessGates: Sequence[ReadinessGate]


class Condition(Protocol):
    """A condition of a Pod."""

    type: str
    status: str
    lastTransitionTime: Time
    reason: str


class PodStatus(Protocol):
    """What has become of a Pod."""

    phase: str
    podIP: str
    conditions: Sequence[Condition]

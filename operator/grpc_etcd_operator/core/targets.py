"""What a GrpcService takes of a Kubernetes Service: the selector of its Pods, and the port at which they serve gRPC.

This is one of the three files that read Kubernetes objects (services.py and pods.py are the others). Of each Service no
more is kept than that, however many ports and labels it has; of a large one that nobody names, that it is there.
Nothing in an object makes the parser fail.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

from grpc_etcd_operator.core.selector import ANYBODY, Selector, parse_selector
from grpc_etcd_operator.core.services import MAX_PORT

MOST_LABELS = 32  # of a selector, as the CRD has it for spec.selector
MOST_PORTS = 1000  # of a Service that are looked at, as of a Pod. Arbitrary
# Characters of what a GrpcService may take of a Service, which are kept also while none names it. The largest selector
# has 12,000, and a tenant may create Services by the ten thousand; one in use has rarely 200. Arbitrary.
MOST_SPARE = 1024
SHOWN_PORTS = 10  # that a message lists; arbitrary
MAX_PORT_NAME = 63  # characters of the name of a Service's port; those of containers have 15
# By what ports of gRPC are recognized, as by `grpc-etcd generate` (a test compares both).
GRPC_PROTOCOL = re.compile(r"(kubernetes\.io/)?h2c|grpcs?")
GRPC_NAME = re.compile(r"(.+-)?(grpcs?\d*|h2c|rpc)(-(?!web).+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A Service. `fault` says why its selector cannot be used, `port_fault` why none of its ports is meant.

    `port` is the container port, by name or number; None without a fault: the Service has no ports. Of one that
    `is_brief` nothing else is known than that it is there.
    """

    uid: str
    namespace: str
    name: str
    selector: Selector = ANYBODY
    port: str | int | None = None
    fault: str = ""
    port_fault: str = ""
    is_brief: bool = False

    def spare(self) -> "Target":
        """Return what is kept while no GrpcService names it: all of it, or briefly where that is much."""
        labels = sum(len(key) + len(value) for key, value in self.selector.labels)
        if labels + len(self.fault) + len(self.port_fault) <= MOST_SPARE:
            return self
        return replace(self, selector=ANYBODY, port=None, fault="", port_fault="", is_brief=True)


class _Port(NamedTuple):
    name: str
    protocol: str
    target: str | int

    @property
    def is_grpc(self) -> bool:
        names = (self.name, str(self.target))
        return any(map(GRPC_NAME.fullmatch, names)) or bool(GRPC_PROTOCOL.fullmatch(self.protocol))


def parse_target(raw: Mapping[str, Any]) -> Target:
    """Reduce a Service to its facts."""
    metadata, spec = raw["metadata"], _mapping(raw.get("spec"))
    selector, fault = _read_selector(spec)
    read = map(_read_port, islice(_items(spec.get("ports")), MOST_PORTS))
    ports = [each for each in read if each]
    port = _choose(ports)
    shown = ", ".join(f"{each.name or '(no name)'}={each.target}" for each in ports[:SHOWN_PORTS])
    return Target(
        uid=str(metadata["uid"]),
        namespace=sys.intern(str(metadata.get("namespace") or "")),
        name=str(metadata["name"]),
        selector=selector,
        port=port,
        fault=fault,
        port_fault=f"none of its ports is known to be the one of gRPC ({shown})" if ports and port is None else "",
    )


def _read_selector(spec: Mapping[str, Any]) -> tuple[Selector, str]:
    labels, faults = _mapping(spec.get("selector")), list[str]()
    if spec.get("type") == "ExternalName":
        return ANYBODY, "it leads out of the cluster (ExternalName)"
    if not labels:
        return ANYBODY, "it has no selector: its endpoints are managed by hand"
    if len(labels) > MOST_LABELS:
        return ANYBODY, f"its selector has more than {MOST_LABELS} labels"
    selector = parse_selector({"matchLabels": labels}, faults)
    return (ANYBODY, f"its selector is at fault: {faults[0]}") if faults else (selector, "")


def _read_port(item: object) -> _Port | None:
    raw = _mapping(item)
    target = raw.get("targetPort") or raw.get("port")
    if raw.get("protocol") not in (None, "", "TCP"):
        return None
    name, protocol = str(raw.get("name") or "")[:MAX_PORT_NAME], str(raw.get("appProtocol") or "")
    if isinstance(target, str):
        return _Port(name, protocol, target[:MAX_PORT_NAME])
    return _Port(name, protocol, target) if isinstance(target, int) and 0 < target <= MAX_PORT else None


def _choose(ports: Sequence[_Port]) -> str | int | None:
    """Choose the port of gRPC: the one named grpc, else the only one that can be gRPC's, else the only one at all."""
    grpc = [each for each in ports if each.is_grpc]
    named = [each for each in grpc if "grpc" in (each.name, each.target)]
    choices = (named, grpc) if grpc else (ports,)
    return next((each[0].target for each in choices if len({port.target for port in each}) == 1), None)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _items(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else ()

"""How xDS resources are called, and what a name asks for.

`xds://etcd/default/greeter` is the service `greeter` of the registry `default`; gRPC asks for its listener as
`xdstp://etcd/envoy.config.listener.v3.Listener/default/greeter`. Clients in other languages that have no authority in
their bootstrap ask for `default/greeter`, or just `greeter`. Behind the service may stand a selection of its endpoints:
a group, or one address. Names are parsed, not looked up, so that whatever is asked for can be answered. Pure.
"""

import enum
from dataclasses import dataclass, replace
from urllib.parse import quote, unquote

AUTHORITY = "etcd"
DEFAULT_REGISTRY = "default"
_SAFE = "-._~!$&'()*+,;=:@"  # what gRPC leaves unescaped in a path (RFC 3986 pchar)
_PREFIX = "type.googleapis.com/"


class Selection(enum.StrEnum):
    """Which of a service's endpoints a cluster holds."""

    ALL = "all"
    GROUP = "group"
    ADDRESS = "address"


@dataclass(frozen=True, slots=True)
class ServiceName:
    """A service in one of this process's registries."""

    registry: str
    service: str


@dataclass(frozen=True, slots=True)
class ResourceName:
    """What one resource is about; `federated` names begin with `xdstp://` and the authority."""

    owner: ServiceName
    selection: Selection = Selection.ALL
    selected: str = ""
    federated: bool = True

    def select(self, selection: Selection, selected: str) -> "ResourceName":
        """Name a part of the same service, in the same style."""
        return replace(self, selection=selection, selected=selected)

    def format(self, type_url: str) -> str:
        """Write the name as a resource of that type."""
        path = [self.owner.registry, self.owner.service]
        if self.selection is not Selection.ALL:
            path += [self.selection, self.selected]
        tail = "/".join(quote(segment, safe=_SAFE) for segment in path)
        return f"xdstp://{AUTHORITY}/{type_url.removeprefix(_PREFIX)}/{tail}" if self.federated else tail


def parse_resource_name(name: str, type_url: str) -> ResourceName | None:
    """Read a name of either style; None means that it cannot be one of ours."""
    head = f"xdstp://{AUTHORITY}/{type_url.removeprefix(_PREFIX)}/"
    federated = name.startswith("xdstp:")
    if federated and not name.startswith(head):
        return None
    segments = [unquote(segment) for segment in name.removeprefix(head).split("/")]
    if len(segments) == 1:
        segments.insert(0, DEFAULT_REGISTRY)
    match segments:
        case [registry, service] if service:
            return ResourceName(ServiceName(registry, service), federated=federated)
        case [registry, service, "group" | "address" as selection, selected]:
            return ResourceName(ServiceName(registry, service), Selection(selection), selected, federated)
    return None


def format_target(owner: ServiceName) -> str:
    """Write what `grpc.insecure_channel` takes; the part behind the last slash is the name that TLS checks."""
    return f"xds://{AUTHORITY}/{quote(owner.registry, safe=_SAFE)}/{quote(owner.service, safe=_SAFE)}"

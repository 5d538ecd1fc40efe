"""How xDS resources are called, and what a name asks for.

`xds://etcd/default/greeter` is the service `greeter` of the registry `default`; gRPC asks for its listener as
`xdstp://etcd/envoy.config.listener.v3.Listener/default/greeter`. Clients in other languages that have no authority in
their bootstrap ask for `default/greeter`, or just `greeter`. Behind the service may stand a selection of its endpoints:
a group, or one address. `default/shared/0` is a listener that many services of a registry share (see `sharing`); no
service can have such a name, since names hold no slash. Names are parsed, not looked up, so that whatever is asked for
can be answered. Pure.
"""

import enum
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from urllib.parse import quote, unquote

AUTHORITY = "etcd"
DEFAULT_REGISTRY = "default"
_SAFE = "-._~!$&'()*+,;=:@"  # what gRPC leaves unescaped in a path (RFC 3986 pchar)
_PREFIX = "type.googleapis.com/"
_SHARED = "shared"
_IN_WORDS = ": "  # no other name holds whitespace
_TURN = re.compile("[1-9][0-9]{0,17}")
_LONGEST_REASON = 500  # characters; arbitrary: several sentences


class Selection(enum.StrEnum):
    """Which of a service's endpoints a cluster holds."""

    ALL = "all"
    GROUP = "group"
    ADDRESS = "address"
    EMPTY = "empty"  # none, and why; in words: `default/greeter: nothing is registered under /jupiter/greeter/`
    RETRIES = "retries"  # all of them, by a listener with retries of its own


@dataclass(frozen=True, slots=True)
class ServiceName:
    """A service in one of this process's registries."""

    registry: str
    service: str

    @property
    def is_shared(self) -> bool:
        """Return whether this names a shared listener instead of a service."""
        return self.service.startswith(f"{_SHARED}/")


@dataclass(frozen=True, slots=True)
class ResourceName:
    """What one resource is about; `federated` names begin with `xdstp://` and the authority."""

    owner: ServiceName
    selection: Selection = Selection.ALL
    selected: str = ""
    federated: bool = True
    turn: int = 0  # of a group or an address: another after each time that it has left the routes, see service.Turns

    def select(self, selection: Selection, selected: str, turn: int = 0) -> "ResourceName":
        """Name a part of the same service, in the same style."""
        return replace(self, selection=selection, selected=selected, turn=turn)

    def explain(self, type_url: str, reason: str, *, in_words: bool) -> str:
        """Name a resource that is empty for a reason, which gRPC puts into the details of failed calls.

        `in_words`: names without an authority are asked of us too, and they may be any text.
        """
        words = " ".join(reason.encode(errors="replace").decode().split())[:_LONGEST_REASON]
        if in_words or not self.federated:
            return f"{replace(self, federated=False).format(type_url)}: {words}"
        return f"{self.format(type_url)}/{Selection.EMPTY}/{quote(words.replace(' ', '_'), safe=_SAFE + '/')}"

    def format(self, type_url: str) -> str:
        """Write the name as a resource of that type."""
        path = [self.owner.registry, *self.owner.service.split("/")]
        if self.selection is not Selection.ALL:
            path += [self.selection, _escape(self.selected), *([str(self.turn)] if self.turn else [])]
        tail = "/".join(quote(segment, safe=_SAFE) for segment in path)
        return f"xdstp://{AUTHORITY}/{type_url.removeprefix(_PREFIX)}/{tail}" if self.federated else tail


@lru_cache(maxsize=20_000)  # a request names all that its stream follows, not just what is new
def parse_resource_name(name: str, type_url: str) -> ResourceName | None:
    """Read a name of either style; None means that it cannot be one of ours."""
    head = f"xdstp://{AUTHORITY}/{type_url.removeprefix(_PREFIX)}/"
    federated = name.startswith("xdstp:")
    if federated and not name.startswith(head):
        return None
    name, in_words, _ = (name, "", "") if federated else name.partition(_IN_WORDS)
    segments = [unquote(segment) for segment in name.removeprefix(head).split("/")]
    if in_words:
        segments = [*segments[:2], Selection.EMPTY]
    if len(segments) == 1:
        segments.insert(0, DEFAULT_REGISTRY)
    match segments:
        case [registry, service] if service:
            return ResourceName(ServiceName(registry, service), federated=federated)
        case [registry, "shared" as shared, number] if number:
            return ResourceName(ServiceName(registry, f"{shared}/{number}"), federated=federated)
        case [registry, service, "empty", *_]:
            return ResourceName(ServiceName(registry, service), Selection.EMPTY, federated=federated)
        case [registry, service, "group" | "address" | "retries" as selection, selected, *turn] if _is_turn(turn):
            owner = ServiceName(registry, service)
            return ResourceName(owner, Selection(selection), _unescape(selected), federated, int("".join(turn) or 0))
    return None


def _is_turn(segments: list[str]) -> bool:
    return not segments or (len(segments) == 1 and _TURN.fullmatch(segments[0]) is not None)


def shared_name(registry: str, number: str) -> ServiceName:
    """Name a shared listener."""
    return ServiceName(registry, f"{_SHARED}/{number}")


def _escape(selected: str) -> str:
    """Hide the slash, as a JSON pointer does (RFC 6901): gRPC asks for a name with `%2F` as one with a slash."""
    return selected.replace("~", "~0").replace("/", "~1")


def _unescape(segment: str) -> str:
    return segment.replace("~1", "/").replace("~0", "~")


def format_target(owner: ServiceName) -> str:
    """Write what `grpc.insecure_channel` takes; the part behind the last slash is the name that TLS checks."""
    return f"xds://{AUTHORITY}/{quote(owner.registry, safe=_SAFE)}/{quote(owner.service, safe=_SAFE + '/')}"

"""One client's xDS stream (state of the world): what it wants, what it has been told, what to tell it next. Pure.

Rule 1: every name that is asked for is answered, also that of a service nobody offers, because gRPC waits 15 s for a
        resource that is kept from it. Only endpoints that are not known yet are waited for.
Rule 2: listeners before clusters before endpoints, so that nothing is referred to before it is there.
Rule 3: an answer of listeners or clusters holds all that the client wants, since one left out counts as deleted; an
        answer of endpoints holds only those that changed.
"""

from collections.abc import Callable, Iterator

from grpc_etcd.xds import resources
from grpc_etcd.xds.names import ResourceName, ServiceName, parse_resource_name
from grpc_etcd.xds.resources import DiscoveryRequest
from grpc_etcd.xds.service import ServiceResources

_ORDER = (resources.LISTENER, resources.CLUSTER, resources.ASSIGNMENT)


class Conversation:
    """Not safe for concurrent use; `look_up` gives the present resources of a service."""

    def __init__(self, look_up: Callable[[ServiceName], ServiceResources]) -> None:
        self._look_up = look_up
        self._wanted: dict[str, dict[str, ResourceName]] = {type_url: {} for type_url in _ORDER}
        self._told: dict[str, dict[str, bytes]] = {type_url: {} for type_url in _ORDER}
        self._due: set[str] = set()
        self._sent = 0

    def __repr__(self) -> str:
        return f"<Conversation about {sorted(owner.service for owner in self.owners)} sent={self._sent}>"

    @property
    def owners(self) -> frozenset[ServiceName]:
        """The services that the client follows."""
        return frozenset(name.owner for wanted in self._wanted.values() for name in wanted.values())

    def receive(self, request: DiscoveryRequest) -> None:
        """Take a request: a first wish, a changed one, or the acceptance or refusal of what was told."""
        if request.type_url not in self._wanted:
            return
        names = {name: parse_resource_name(name, request.type_url) for name in request.names}
        wanted = {name: parsed for name, parsed in names.items() if parsed}
        if wanted.keys() == self._wanted[request.type_url].keys():
            return
        self._wanted[request.type_url] = wanted
        told = self._told[request.type_url]
        self._told[request.type_url] = {name: body for name, body in told.items() if name in wanted}
        self._due.add(request.type_url)

    def replies(self) -> Iterator[bytes]:
        """Give what the client has to be told now, in order; nothing if it is up to date."""
        for type_url in _ORDER:
            bodies = self._news(type_url)
            if bodies:
                self._sent += 1
                yield resources.response(self._sent, type_url, str(self._sent), bodies)

    def _news(self, type_url: str) -> list[bytes]:
        told = self._told[type_url]
        answers = {name: self._answer(type_url, name, parsed) for name, parsed in self._wanted[type_url].items()}
        current = {name: body for name, body in answers.items() if body is not None}
        changed = [body for name, body in current.items() if told.get(name) != body]
        is_due = type_url in self._due
        self._due.discard(type_url)
        self._told[type_url] = told | current
        if type_url == resources.ASSIGNMENT:
            return changed
        return list(current.values()) if changed or is_due else []

    def _answer(self, type_url: str, requested: str, name: ResourceName) -> bytes | None:
        return self._look_up(name.owner).answer(type_url, requested, name)

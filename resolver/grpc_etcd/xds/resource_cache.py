"""Where the resources of all services of this process hang, for every stream to read. Thread-safe.

Registries put up what they know and are asked, by the streams' wishes, what to find out: a service is followed because
somebody asks for it, however the name came into the target.
"""

import threading
from collections import Counter, defaultdict, deque
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple, Protocol, TypeVar

from grpc_etcd.xds import resources
from grpc_etcd.xds.ads_stream import Refusal, Resources
from grpc_etcd.xds.names import ResourceName, ServiceName
from grpc_etcd.xds.server import Listener
from grpc_etcd.xds.service import ServiceResources, SharedResources
from grpc_etcd.xds.sharing import SharedListeners

# Of one service in a shared listener: that of all its members together is one message to gRPC, which takes 4 MB.
_LARGEST_HOST_BYTES = 64 << 10
# Of the clusters to which all its members' routes lead: they are one message too, and so are those beside them that
# calls under way hold on to for a while.
_LARGEST_CLUSTERS_BYTES = 3 << 20
_ANY_BYTES = 80  # what a message has around each resource
_UNKNOWN = ServiceResources()
T = TypeVar("T")
_NOBODY = ServiceResources(clusters={}, reason="no registry of that name is open in this process")


class Followable(Protocol):
    """A registry, as the board sees it. The methods must return at once."""

    def follow(self, service: str) -> object:
        """Find out about the service and keep the board up to date."""

    def refused(self, service: str, reason: str) -> None:
        """Record that gRPC refused what it was sent about the service."""


class ResourceCache:
    """The board of one ADS server."""

    def __init__(self, generation: int = 0) -> None:
        self._lock = threading.Lock()
        self._registries: dict[str, Followable] = {}
        self._resources: dict[ServiceName, ServiceResources] = {}
        self._listeners: defaultdict[ServiceName, set[Listener]] = defaultdict(set)
        self._followed: Counter[str] = Counter()  # by registry: what streams follow
        self._left_behind: set[str] = set()  # registries that are closed, and whose channels and streams may be open
        self._used: Counter[str] = Counter()
        self._sharing = SharedListeners(generation)
        self._closed_channels: deque[tuple[ServiceName, bool]] = deque()
        self._shared: dict[ServiceName, SharedResources] = {}
        self._hosts: dict[ServiceName, bytes] = {}
        self._sizes: dict[ServiceName, int] = {}  # of the clusters that a service has for its routes
        self._crowded_out: set[ServiceName] = set()  # whose routes are not reported
        self._in_words = False
        self._nobody = _NOBODY

    def __repr__(self) -> str:
        return f"<ResourceCache registries={sorted(self._registries)} services={len(self._resources)}>"

    def add(self, name: str, registry: Followable) -> None:
        """Let a registry answer for a name; ValueError when the name is taken."""
        with self._lock:
            if name in self._registries:
                raise ValueError(f"a registry named {name!r} is already open in this process; choose another name")
            self._registries[name] = registry
            self._left_behind.discard(name)
            woken = self._followers_in(name)
        _wake(woken)

    def remove(self, name: str, registry: Followable) -> bool:
        """Take a registry off, if the name is its own; return whether it is.

        What it has put up stays: open channels keep their last set.
        """
        with self._lock:
            if self._registries.get(name) is not registry:
                return False
            del self._registries[name]
            woken = self._followers_in(name)
        _wake(woken)
        return True

    def leave_behind(self, name: str) -> None:
        """Forget all of a registry that has been removed, as soon as no channel and no stream is left of it."""
        with self._lock:
            self._left_behind.add(name)
            self._count_out()
            self._clear_away(name)

    def _clear_away(self, name: str) -> None:
        if name not in self._left_behind or self._followed[name] or self._sharing.is_used(name):
            return
        self._left_behind.discard(name)
        self._sharing.drop(name)
        self._resources, self._hosts = _without(self._resources, name), _without(self._hosts, name)
        self._sizes, self._shared = _without(self._sizes, name), _without(self._shared, name)
        self._crowded_out = {each for each in self._crowded_out if each.registry != name}

    def find_address(self, name: str) -> str:
        """Return the name by which channels ask for a registry: its own, unless streams still ask for an earlier one's.

        gRPC keeps what it was sent by name as long as a stream is open; another name leaves nothing of that.
        """
        with self._lock:
            if self._followed[name]:
                self._used[name] += 1
                return f"{name}~{self._used[name] + 1}"
            self._resources = _without(self._resources, name)
            return name

    def open_channel(self, owner: ServiceName, *, shares: bool) -> ServiceName:
        """Count a channel to a service in, and name the listener for it: a shared one, if it `shares`."""
        with self._lock:
            self._count_out()
            self._sharing.open(owner, apart=not shares)
            is_new = shares and self._sharing.place(owner) is None
            listener = self._sharing.join(owner) if shares else owner
            woken = self._change(listener) if is_new else ()
            crowded_out = self._make_room(listener) if is_new else ()
        _wake(woken)
        _publish_crowded_out(crowded_out)
        return listener

    def descriptors(self) -> int:
        """Return how many descriptors the open channels need at least.

        A service with many endpoints needs more; those show once they are connected.
        """
        with self._lock:
            self._count_out()
            return self._sharing.descriptors()

    def close_channel(self, owner: ServiceName, *, shares: bool) -> None:
        """Count a channel out. Takes no lock: a finalizer may call it at any moment, also of this object's methods."""
        self._closed_channels.append((owner, shares))

    def _count_out(self) -> None:
        while self._closed_channels:
            owner, shares = self._closed_channels.popleft()
            self._sharing.close(owner, apart=not shares)
            self._clear_away(owner.registry)

    def publish(
        self, owner: ServiceName, resources: ServiceResources, *, instead_of: ServiceResources | None = None
    ) -> None:
        """Put up what a service's channels are to be sent from now on; `instead_of` this alone, if it is given."""
        resources = replace(resources, in_words=self._in_words)
        host, size, fault = _write_host(owner, resources)
        with self._lock:
            if instead_of is not None and self._resources.get(owner) is not instead_of:
                return
            self._resources[owner] = resources.plain() if fault else resources
            self._hosts[owner], self._sizes[owner] = host, size
            listener = self._sharing.place(owner)
            woken = [*self._followers_of(owner), *self._change(listener)]
            crowded_out = self._make_room(listener)
            registry = self._registries.get(owner.registry)
        _wake(woken)
        _publish_crowded_out(crowded_out)
        if fault and registry:
            registry.refused(owner.service, fault)

    def use_words(self) -> None:
        """Name what is empty in plain words from now on: whatever gRPC asks for, it asks of this board."""
        with self._lock:
            self._in_words = True
            self._nobody = replace(_NOBODY, in_words=True)
            self._resources = {owner: replace(found, in_words=True) for owner, found in self._resources.items()}
            woken = [each for owner in self._listeners for each in self._followers_of(owner)]
        _wake(woken)

    def look_up(self, owner: ServiceName) -> Resources:
        """Return the present resources: unknown while a registry finds out, nobody where there is no such registry.

        What is unchanged is the same object.
        """
        with self._lock:
            return self._look_up_shared(owner) if owner.is_shared else self._look_up(owner)

    def join(self, owner: ServiceName, listener: Listener) -> bool:
        """Wake `listener` when the service changes, and have its registry follow it.

        Return whether nothing is put up about it yet: the registry will, whatever becomes of the service.
        """
        with self._lock:
            self._followed[owner.registry] += owner not in self._listeners
            self._listeners[owner].add(listener)
            registry = None if owner.is_shared else self._registries.get(owner.registry)
        if registry:
            try:
                registry.follow(owner.service)
            except Exception as error:  # noqa: BLE001 - a name that cannot be followed is answered, as every other is
                self.publish(owner, ServiceResources(clusters={}, reason=str(error)))
        with self._lock:
            return registry is not None and owner not in self._resources

    def leave(self, owner: ServiceName, listener: Listener) -> None:
        """Undo `join`."""
        with self._lock:
            if owner not in self._listeners:
                return
            self._listeners[owner].discard(listener)
            if not self._listeners[owner]:
                del self._listeners[owner]
                self._followed[owner.registry] -= 1
                if not self._followed[owner.registry]:  # clients of an ADS server may ask for any name
                    del self._followed[owner.registry]
                self._count_out()
                self._clear_away(owner.registry)

    def forget(self, owner: ServiceName) -> None:
        """Take a service off that nobody follows any more."""
        with self._lock:
            self._count_out()
            self._resources.pop(owner, None)
            self._hosts.pop(owner, None)
            self._sizes.pop(owner, None)
            listener = self._sharing.place(owner)
            woken = self._change(listener) if self._sharing.forget(owner) else ()
            crowded_out = self._make_room(listener)
        _wake(woken)
        _publish_crowded_out(crowded_out)

    def followers(self, owner: ServiceName) -> int:
        """Count the streams that follow a service, and the open channels to it: one at rest has no stream."""
        with self._lock:
            self._count_out()
            return len(self._listeners.get(owner, ())) + self._sharing.channels(owner)

    def has_answered(self, owner: ServiceName) -> bool | None:
        """Return whether all streams that follow a service have taken or refused what was put up.

        None: there is none.
        """
        with self._lock:
            listeners = tuple(self._listeners.get(owner, ()))
        return all(listener.has_answered() for listener in listeners) if listeners else None

    def refused(self, refusals: Iterable[Refusal]) -> None:
        """Pass refusals on to the registries concerned, and leave away what may have been at fault in shared listeners.

        A wish that gRPC does not take costs the service that wish, and no other service anything. What a client has
        for itself, its stream leaves away for it alone: another one, perhaps of another language, may well take it.
        """
        for refusal in refusals:
            for owner in self._blamed(refusal):
                with self._lock:
                    registry = self._registries.get(owner.registry)
                    found = self._resources.get(owner)
                if found and refusal.owner.is_shared and found != (plain := found.plain()):
                    self.publish(owner, plain, instead_of=found)  # what has come meanwhile is refused by itself
                if registry:
                    registry.refused(owner.service, refusal.reason)

    def _blamed(self, refusal: Refusal) -> tuple[ServiceName, ...]:
        if not refusal.owner.is_shared:
            return (refusal.owner,)
        with self._lock:
            members = self._sharing.members(refusal.owner)
        return members if refusal.member is None else members[refusal.member : refusal.member + 1]

    def _look_up(self, owner: ServiceName) -> ServiceResources:
        found = self._resources.get(owner)
        return found or (_UNKNOWN if owner.registry in self._registries else self._nobody)

    def _look_up_shared(self, listener: ServiceName) -> SharedResources:
        if listener not in self._shared:
            members = self._sharing.members(listener)
            self._shared[listener] = SharedResources(tuple(map(self._virtual_host, members)))
        return self._shared[listener]

    def _virtual_host(self, owner: ServiceName) -> bytes:
        if owner in self._crowded_out:
            return _write_host(owner, replace(self._look_up(owner), routes=(), idle=())).body
        return self._hosts.get(owner) or _write_host(owner, self._look_up(owner)).body

    def _followers_in(self, registry: str) -> Iterable[tuple[Listener, ServiceName]]:
        owners = [owner for owner in self._listeners if owner.registry == registry]
        return [each for owner in owners for each in self._followers_of(owner)]

    def _followers_of(self, owner: ServiceName) -> Iterable[tuple[Listener, ServiceName]]:
        return [(listener, owner) for listener in self._listeners.get(owner, ())]

    def _make_room(self, listener: ServiceName | None) -> Iterable[tuple[Followable, ServiceName]]:
        """Leave out the routes of the largest members while those of all are too large; return who is new to that."""
        members = self._sharing.members(listener) if listener else ()
        sizes = {owner: self._sizes.get(owner, 0) for owner in members}
        total, left_out = sum(sizes.values()), set()
        for owner in sorted(members, key=sizes.__getitem__, reverse=True):
            if total <= _LARGEST_CLUSTERS_BYTES:
                break
            total -= sizes[owner]
            left_out.add(owner)
        before, self._crowded_out = self._crowded_out, self._crowded_out.difference(members) | left_out
        return [
            (self._registries[each.registry], each) for each in left_out - before if each.registry in self._registries
        ]

    def _change(self, listener: ServiceName | None) -> Iterable[tuple[Listener, ServiceName]]:
        """Have a shared listener written again, where there is one."""
        if listener is None:
            return ()
        self._shared.pop(listener, None)
        return self._followers_of(listener)


def _without(of: dict[ServiceName, T], registry: str) -> dict[ServiceName, T]:
    """Leave out what is of a registry."""
    return {owner: each for owner, each in of.items() if owner.registry != registry}


class _Host(NamedTuple):
    """A service's part of a shared listener, and how much the clusters take to which its routes lead."""

    body: bytes
    clusters_bytes: int = 0
    fault: str = ""


def _write_host(owner: ServiceName, found: ServiceResources) -> _Host:
    """Write a service's part of a shared listener, without its wishes if need be; a string says why that was."""
    name = ResourceName(owner)
    try:
        host = _Host(found.virtual_host(name, owner.service), _clusters_bytes(found, name))
    except Exception as error:  # noqa: BLE001 - whatever is wrong with one service must cost no other anything
        fault = f"its routes cannot be written: {error!r}"
        return _Host(found.plain().virtual_host(name, owner.service), fault=fault)
    if len(host.body) <= _LARGEST_HOST_BYTES:
        return host
    fault = f"its routes and policy take {len(host.body)} bytes; the limit is {_LARGEST_HOST_BYTES}"
    return _Host(found.plain().virtual_host(name, owner.service), fault=fault)


def _clusters_bytes(found: ServiceResources, name: ResourceName) -> int:
    """Return how much the clusters of a service's routes take, besides the one that every service has."""
    parts = found.parts.union(found.idle)
    if not parts:
        return 0
    requested = name.format(resources.CLUSTER)
    others = len(found.answer(resources.CLUSTER, requested, name) or b"") - 2 * len(requested) + _ANY_BYTES
    return sum(others + 2 * len(name.select(*part).format(resources.CLUSTER)) for part in parts)


def _publish_crowded_out(crowded_out: Iterable[tuple[Followable, ServiceName]]) -> None:
    for registry, owner in crowded_out:
        registry.refused(owner.service, "its routes have more groups and addresses than fit beside those of others")


def _wake(woken: Iterable[tuple[Listener, ServiceName]]) -> None:
    for listener, owner in woken:
        listener.wake(owner)

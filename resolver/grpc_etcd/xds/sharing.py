"""Which services share one xDS listener, and with it one xDS client of gRPC. Pure.

gRPC makes an xDS client for each distinct target: 2 MB of memory, a stream and two descriptors, which no process with
hundreds of services can afford. So the channels of a registry have few targets among them. Each names a shared
listener, which holds a virtual host per service, and a channel takes the one whose domain is its authority, the name
of its service. A listener is sent whole when a service joins it, and read by every channel that it serves; that is why
it does not hold them all.

Rule 1: a service stays where it is while a channel to it is open, and on until its place is needed.
Rule 2: no two services of a listener differ in case alone, since gRPC compares domains without it.
Rule 3: a name that means something else in a domain, or is changed on its way into an authority, shares nothing.
"""

import re
from collections import Counter
from dataclasses import dataclass, field

from grpc_etcd.xds.names import ServiceName, shared_name

# Measured for 400 services, memory and CPU of the first calls to all: 25 in a listener 107 MB and 1.2 s, 50 90 MB and
# 1.2 s, 100 83 MB and 1.5 s, 200 81 MB and 2.3 s; plain channels 65 MB and 0.9 s.
LARGEST_LISTENER = 50
_DOMAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


def can_share(service: str) -> bool:
    """Return whether the name can be the domain of a virtual host as it is."""
    return _DOMAIN.fullmatch(service) is not None


@dataclass(slots=True)
class _Listener:
    name: ServiceName
    members: dict[str, ServiceName] = field(default_factory=dict)  # by lower-case name


class SharedListeners:
    """Who is in which listener. Not safe for concurrent use."""

    def __init__(self, generation: int = 0, largest: int = LARGEST_LISTENER) -> None:
        """Number listeners for one generation of a forking process: gRPC takes equal targets for the same client."""
        self._generation = generation
        self._largest = largest
        self._listeners: dict[str, list[_Listener]] = {}
        self._places: dict[ServiceName, _Listener] = {}
        self._channels: Counter[ServiceName] = Counter()
        self._apart: Counter[ServiceName] = Counter()

    def __repr__(self) -> str:
        return f"<SharedListeners {len(self._places)} services in {sum(map(len, self._listeners.values()))}>"

    def join(self, owner: ServiceName) -> ServiceName:
        """Find a place for a service, if it has none; name its listener."""
        place = self._places.get(owner)
        if place is None:
            place = self._places[owner] = self._find_place(owner)
            place.members[owner.service.lower()] = owner
        return place.name

    def open(self, owner: ServiceName, *, apart: bool = False) -> None:
        """Count a channel to a service in, `apart`: with a target that it shares with no other service."""
        (self._apart if apart else self._channels)[owner] += 1

    def close(self, owner: ServiceName, *, apart: bool = False) -> None:
        """Count a channel out."""
        counts = self._apart if apart else self._channels
        counts[owner] -= 1
        if counts[owner] <= 0:
            del counts[owner]

    def channels(self, owner: ServiceName) -> int:
        """Count the open channels to a service."""
        return self._channels[owner] + self._apart[owner]

    def descriptors(self) -> int:
        """Return how many descriptors the channels need at least: one for each service, and two for each listener."""
        shared = sum(map(len, self._listeners.values()))
        return len(self._channels) + 3 * len(self._apart) + 2 * shared

    def place(self, owner: ServiceName) -> ServiceName | None:
        """Name the listener that holds a service."""
        place = self._places.get(owner)
        return place.name if place else None

    def members(self, listener: ServiceName) -> tuple[ServiceName, ...]:
        """Return the services of a listener, in the order of its virtual hosts."""
        for each in self._listeners.get(listener.registry, ()):
            if each.name == listener:
                return tuple(each.members.values())
        return ()

    def forget(self, owner: ServiceName) -> bool:
        """Free the place of a service without a channel; report whether there was one."""
        if owner in self._channels or owner not in self._places:
            return False
        del self._places.pop(owner).members[owner.service.lower()]
        return True

    def is_used(self, registry: str) -> bool:
        """Return whether a channel to a service of a registry is open."""
        return any(owner.registry == registry for owner in (*self._channels, *self._apart))

    def drop(self, registry: str) -> None:
        """Forget the listeners of a registry of which no channel is open."""
        for listener in self._listeners.pop(registry, ()):
            for owner in listener.members.values():
                del self._places[owner]

    def _find_place(self, owner: ServiceName) -> _Listener:
        listeners = self._listeners.setdefault(owner.registry, [])
        fitting = [each for each in listeners if owner.service.lower() not in each.members]
        for listener in fitting:
            if len(listener.members) < self._largest:
                return listener
        for listener in fitting:
            idle = next((each for each in listener.members.values() if each not in self._channels), None)
            if idle is not None:
                self.forget(idle)
                return listener
        number = f"{self._generation}.{len(listeners)}" if self._generation else str(len(listeners))
        listeners.append(_Listener(shared_name(owner.registry, number)))
        return listeners[-1]

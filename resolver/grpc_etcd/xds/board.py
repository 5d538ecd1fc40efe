"""Where the resources of all services of this process hang, for every stream to read. Thread-safe.

Registries put up what they know and are asked, by the streams' wishes, what to find out: a service is followed because
somebody asks for it, however the name came into the target.
"""

import threading
from collections import defaultdict
from typing import Protocol

from grpc_etcd.xds.names import ServiceName
from grpc_etcd.xds.server import Listener
from grpc_etcd.xds.service import ServiceResources

_UNKNOWN = ServiceResources()
_NOBODY = ServiceResources(clusters={})


class Followable(Protocol):
    """A registry, as the board sees it. The methods must return at once."""

    def follow(self, service: str) -> object:
        """Find out about the service and keep the board up to date."""

    def refused(self, service: str, reason: str) -> None:
        """Take note that gRPC refused what it was told about the service."""


class ServiceBoard:
    """The board of one ADS server."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._registries: dict[str, Followable] = {}
        self._resources: dict[ServiceName, ServiceResources] = {}
        self._listeners: defaultdict[ServiceName, set[Listener]] = defaultdict(set)

    def __repr__(self) -> str:
        return f"<ServiceBoard registries={sorted(self._registries)} services={len(self._resources)}>"

    def add(self, name: str, registry: Followable) -> None:
        """Let a registry answer for a name; ValueError when the name is taken."""
        with self._lock:
            if name in self._registries:
                raise ValueError(f"a registry named {name!r} is open in this process already; choose another name")
            self._registries[name] = registry

    def remove(self, name: str) -> None:
        """Take a registry off; what it has put up stays, so that open channels keep their last good set."""
        with self._lock:
            self._registries.pop(name, None)

    def publish(self, owner: ServiceName, resources: ServiceResources) -> None:
        """Put up what a service's channels shall be told from now on."""
        with self._lock:
            self._resources[owner] = resources
            listeners = tuple(self._listeners.get(owner, ()))
        for listener in listeners:
            listener.wake()

    def look_up(self, owner: ServiceName) -> ServiceResources:
        """Give the present resources: unknown while a registry finds out, nobody where there is no such registry."""
        with self._lock:
            found = self._resources.get(owner)
            return found or (_UNKNOWN if owner.registry in self._registries else _NOBODY)

    def join(self, owner: ServiceName, listener: Listener) -> None:
        """Wake `listener` when the service changes, and have its registry follow it."""
        with self._lock:
            self._listeners[owner].add(listener)
            registry = self._registries.get(owner.registry)
        if registry:
            registry.follow(owner.service)

    def leave(self, owner: ServiceName, listener: Listener) -> None:
        """Undo `join`."""
        with self._lock:
            self._listeners[owner].discard(listener)
            if not self._listeners[owner]:
                del self._listeners[owner]

    def forget(self, owner: ServiceName) -> None:
        """Take a service off that nobody follows any more."""
        with self._lock:
            self._resources.pop(owner, None)

    def followers(self, owner: ServiceName) -> int:
        """Count the streams that follow a service."""
        with self._lock:
            return len(self._listeners.get(owner, ()))

    def refused(self, owners: frozenset[ServiceName], reason: str) -> None:
        """Pass a refusal on to the registries concerned."""
        for owner in owners:
            with self._lock:
                registry = self._registries.get(owner.registry)
            if registry:
                registry.refused(owner.service, reason)

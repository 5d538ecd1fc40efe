"""What a registry runs in one process: its connection, its publisher, and the services that it follows there.

A forked child gets a new one; the inherited one is the parent's and is never touched again.
"""

import threading
import time
from contextlib import AbstractContextManager
from typing import Any, Protocol

from grpc_etcd.discovery.publisher import FollowedService, Publisher
from grpc_etcd.xds import control_plane
from grpc_etcd.xds.localities import Here
from grpc_etcd.xds.names import ServiceName
from grpc_etcd.xds.resource_cache import Followable, ResourceCache
from grpc_etcd.xds.service import ServiceResources

_LINGER_SECONDS = 60.0  # arbitrary: how long a service is followed after the last one who wanted it


class Lockable(Followable, Protocol):
    """A registry, as what runs for it sees it."""

    def exclusively(self) -> AbstractContextManager[object]:
        """Let nobody begin to follow a service meanwhile."""


class Running:
    """Thread-safe. `services` changes while it is read: whoever goes through it takes a copy, which is one step.

    A copy for each service that comes would cost the square of their number, and who asks decides on that.
    """

    def __init__(self, name: str, registry: Lockable, opened: Any, here: Here) -> None:
        process = control_plane.this_process()
        self._registry = registry
        self.opened = opened
        self.generation = process.forks
        self.services: dict[str, FollowedService] = {}
        self._name = name
        self._lock = threading.Lock()
        self._control_plane = process.control_plane
        self._resource_cache = process.control_plane.resource_cache
        self._boards: tuple[tuple[str, ResourceCache], ...] = ()
        self.publisher = Publisher(here, self._publish, self._sweep, self._has_answered)
        self.address = name

    def start(self) -> None:
        """Begin. After whatever interrupts that, such as Ctrl-C, `close` leaves nothing behind."""
        self.publisher.start()  # before the name is taken, so that it stays free where no thread may be started
        self._take_name()
        control_plane.this_process().take_along(self)

    def __repr__(self) -> str:
        return f"<Running {self._name!r} services={sorted(self.services)}>"

    def _take_name(self) -> None:
        """Be followed under the registry's name, and under the one by which channels ask for it."""
        self._resource_cache.add(self._name, self._registry)
        self.address = self._resource_cache.find_address(self._name)
        self._boards = ((self.address, self._resource_cache),)
        if self.address != self._name:
            self._resource_cache.add(self.address, self._registry)

    def add(self, followed: FollowedService) -> None:
        """Begin to follow a service."""
        try:
            with self._lock:
                self.services[followed.name] = followed
                self.publisher.follow(followed)
            followed.feed.start()
        except BaseException:  # such as a part of this registry that is closed, or Ctrl-C: it is begun again next time
            self._drop(followed)
            raise
        self.publisher.changed(followed)

    def show_on(self, name: str, resource_cache: ResourceCache, registry: Followable) -> None:
        """Publish on another server's board too, under that name."""
        resource_cache.add(name, registry)
        with self._lock:
            self._boards = (*self._boards, (name, resource_cache))
        for followed in tuple(self.services.values()):
            while published := followed.published:
                resource_cache.publish(ServiceName(name, followed.name), published)
                if followed.published is published:
                    break  # else the publisher's thread may have been there with the newer one before

    def hide_from(self, resource_cache: ResourceCache) -> None:
        """Publish no more on a server's board."""
        with self._lock:
            self._boards = tuple(each for each in self._boards if each[1] is not resource_cache)

    def close(self) -> None:
        """Stop everything. What was published stays for open channels, until another registry has the name."""
        shown = ((self._name, self._resource_cache), *self._boards)
        own = tuple(each for each in shown if each[1].remove(each[0], self._registry))
        self.publisher.close()
        for followed in tuple(self.services.values()):
            followed.close()
            if not self.wants(followed):
                self._forget(followed)
        # A channel that the program made by the target of a service may be open, and at rest without a stream.
        if not any(followed.is_kept for followed in tuple(self.services.values())):
            for name, resource_cache in own:
                resource_cache.leave_behind(name)

    def before_fork(self) -> None:
        """Do nothing: no thread of this object is ever in gRPC."""

    def after_fork_in_parent(self) -> None:
        """Go on."""

    def after_fork_in_child(self) -> None:
        """Leave everything to the parent."""

    def _publish(self, followed: FollowedService, resources: ServiceResources) -> None:
        for name, resource_cache in self._boards:
            resource_cache.publish(ServiceName(name, followed.name), resources)

    def _has_answered(self, followed: FollowedService) -> bool | None:
        """Return whether the channels of this process have taken what they were sent of a service last."""
        return self._resource_cache.has_answered(ServiceName(self.address, followed.name))

    def _sweep(self) -> None:
        """Let go of services that nobody has wanted for a while, and see to it that channels find their server."""
        for followed in tuple(self.services.values()):
            followed.feed.look_after()
            self.let_go(followed, _LINGER_SECONDS)
        self._control_plane.look_after()
        self._control_plane.keep_socket()  # at last: it fails where somebody else has taken the socket's folder

    def let_go(self, followed: FollowedService, linger_seconds: float) -> None:
        """Follow a service no longer that nobody has wanted for so long."""
        with self._registry.exclusively():
            now = time.monotonic()
            if self.wants(followed):
                followed.needed_at = now
            elif now - followed.needed_at >= linger_seconds and self.services.get(followed.name) is followed:
                self._drop(followed)

    def wants(self, followed: FollowedService) -> bool:
        """Return whether anybody wants a service now: by an open channel, a stream, or by waiting for it."""
        return bool(followed.pins or self._followers(followed))

    def _drop(self, followed: FollowedService) -> None:
        with self._lock:
            if self.services.get(followed.name) is followed:
                del self.services[followed.name]
            self.publisher.leave(followed)
        followed.close()
        self._forget(followed)

    def _forget(self, followed: FollowedService) -> None:
        for name, resource_cache in self._boards:
            resource_cache.forget(ServiceName(name, followed.name))

    def _followers(self, followed: FollowedService) -> int:
        return sum(resource_cache.followers(ServiceName(name, followed.name)) for name, resource_cache in self._boards)

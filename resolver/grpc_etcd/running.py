"""What a registry runs in one process: its connection, its publisher, and the services that it follows there.

A forked child gets a new one; the inherited one is the parent's and is never touched again.
"""

import threading
import time
from typing import Any, Protocol

from grpc_etcd.publishing import FollowedService, Publisher
from grpc_etcd.xds import plane
from grpc_etcd.xds.board import Followable, ServiceBoard
from grpc_etcd.xds.localities import Here
from grpc_etcd.xds.names import ServiceName
from grpc_etcd.xds.service import ServiceResources

_LINGER_SECONDS = 60.0  # arbitrary: how long a service is followed after the last one who wanted it

_QUIET_SECONDS = 1.0  # arbitrary: how long a fork is held up at most; leaving etcd takes about a millisecond


class Inheritable(Followable, Protocol):
    """A registry, as what runs for it sees it."""

    def forked(self) -> None:
        """Be a forked child's."""


class Running:
    """Thread-safe. `services` is replaced, never changed."""

    def __init__(self, name: str, registry: Inheritable, opened: Any, here: Here) -> None:
        process = plane.this_process()
        self._registry = registry
        self.opened = opened
        self.generation = process.forks
        self.services: dict[str, FollowedService] = {}
        self._name = name
        self._lock = threading.Lock()
        self._boards = {name: process.plane.board}
        process.plane.board.add(name, registry)
        process.take_along(self)
        self.publisher = Publisher(here, self._publish, self._sweep)
        self.publisher.start()

    def __repr__(self) -> str:
        return f"<Running {self._name!r} services={sorted(self.services)}>"

    def add(self, followed: FollowedService) -> None:
        """Begin to follow a service."""
        with self._lock:
            self.services = self.services | {followed.name: followed}
            self.publisher.follow(self.services.values())
        followed.feed.start()
        self.publisher.changed(followed)

    def show_on(self, name: str, board: ServiceBoard, registry: Followable) -> None:
        """Publish on another server's board too, under that name."""
        board.add(name, registry)
        self._boards = self._boards | {name: board}

    def close(self) -> None:
        """Stop everything; what was published stays."""
        for name, board in self._boards.items():
            board.remove(name)
        self.publisher.close()
        for followed in self.services.values():
            followed.feed.close()

    def before_fork(self) -> None:
        """Get every thread out of gRPC: while one is in it, gRPC skips its fork handlers, and the child crashes."""
        feeds = [followed.feed for followed in self.services.values()]
        for feed in feeds:
            feed.hang_up()
        deadline = time.monotonic() + _QUIET_SECONDS
        for feed in feeds:
            feed.wait_quiet(max(0.0, deadline - time.monotonic()))

    def after_fork_in_parent(self) -> None:
        """Follow on."""
        for followed in self.services.values():
            followed.feed.go_on()

    def after_fork_in_child(self) -> None:
        """Leave everything to the parent."""
        self._registry.forked()

    def _publish(self, followed: FollowedService, resources: ServiceResources) -> None:
        for name, board in self._boards.items():
            board.publish(ServiceName(name, followed.name), resources)

    def _sweep(self) -> None:
        """Let go of services that nobody has wanted for a while."""
        now = time.monotonic()
        for followed in self.services.values():
            if followed.pins or self._followers(followed):
                followed.needed_at = now
            elif now - followed.needed_at > _LINGER_SECONDS:
                self._drop(followed)

    def _drop(self, followed: FollowedService) -> None:
        with self._lock:
            self.services = {name: each for name, each in self.services.items() if each is not followed}
            self.publisher.follow(self.services.values())
        followed.feed.close()
        for name, board in self._boards.items():
            board.forget(ServiceName(name, followed.name))

    def _followers(self, followed: FollowedService) -> int:
        return sum(board.followers(ServiceName(name, followed.name)) for name, board in self._boards.items())

"""Channels and views of followed services: what every kind of registry gives, wherever its endpoints come from.

Nothing starts before the first use, and everything starts anew in a forked child. Thread-safe.
"""

import abc
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import grpc

from grpc_etcd.aio import AioRegistry
from grpc_etcd.channels import FollowingChannel, Renewable
from grpc_etcd.feed import ViewSource
from grpc_etcd.publishing import FollowedService, Wishes
from grpc_etcd.registry.endpoint import name_fault
from grpc_etcd.registry.policy import Policy
from grpc_etcd.registry.snapshot import Snapshot
from grpc_etcd.running import Running
from grpc_etcd.stats import RegistryStats, make_service_stats
from grpc_etcd.view import View
from grpc_etcd.xds import plane
from grpc_etcd.xds.board import ServiceBoard
from grpc_etcd.xds.localities import Here
from grpc_etcd.xds.names import DEFAULT_REGISTRY, ServiceName, format_target
from grpc_etcd.xds.service import MethodRoute

ChannelOptions = Sequence[tuple[str, Any]]


class Following(abc.ABC):
    """Follows services and gives channels to them; a subclass says where the news come from."""

    def __init__(self, name: str | None, here: Here) -> None:
        self._process = plane.this_process()
        self.name = name or self._process.free_name(DEFAULT_REGISTRY)
        self._here = here
        self._lock = threading.RLock()
        self._wishes: dict[str, Wishes] = {}
        self._inside: Running | None = None
        self._aside: list[object] = []
        self._closed = False

    @abc.abstractmethod
    def _open(self) -> Any:
        """Open what the feeds of this process share."""

    @abc.abstractmethod
    def _close(self, opened: Any) -> None:
        """Close what `_open` gave."""

    @abc.abstractmethod
    def _make_feed(self, service: str, changed: Callable[[], None]) -> ViewSource:
        """Make the feed of a service, not started yet."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True) and self._inside and self._inside.generation == self._process.forks:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)

    # Channels

    def insecure_channel(
        self, service: str, options: ChannelOptions | None = None, compression: grpc.Compression | None = None
    ) -> grpc.Channel:
        """Give a channel to the service that follows the registry; as `grpc.insecure_channel` otherwise."""
        return self._channel(
            service, lambda target, more: grpc.insecure_channel(target, [*more, *(options or ())], compression)
        )

    def secure_channel(
        self,
        service: str,
        credentials: grpc.ChannelCredentials,
        options: ChannelOptions | None = None,
        compression: grpc.Compression | None = None,
    ) -> grpc.Channel:
        """Give a channel over TLS; the name that the servers' certificates must carry is the service's."""
        return self._channel(
            service,
            lambda target, more: grpc.secure_channel(target, credentials, [*more, *(options or ())], compression),
        )

    def _channel(self, service: str, make: Callable[[str, ChannelOptions], grpc.Channel]) -> grpc.Channel:
        return FollowingChannel(Renewable(self, service, lambda: make(*self.prepare_channel(service))))

    @property
    def aio(self) -> AioRegistry:
        """The same registry for asyncio."""
        return AioRegistry(self)

    def prepare_channel(self, service: str) -> tuple[str, ChannelOptions]:
        """Begin to follow a service, and give the target and the options of a channel to it."""
        self.follow(service)
        authority = ("grpc.default_authority", quote(service, safe=""))  # else it would be `default%2Fgreeter`
        return self._target(service), [*self._process.plane.channel_options(), authority]

    def target(self, service: str) -> str:
        """Give the target to build a channel of one's own with, such as `xds://etcd/default/greeter`.

        Over TLS such a channel also needs the option `("grpc.default_authority", service)`, and behind a proxy
        `("grpc.enable_http_proxy", 0)`; the channels made here have both.
        """
        self.prepare_channel(service)
        return self._target(service)

    def _target(self, service: str) -> str:
        return format_target(ServiceName(self.name, service))

    def default_timeout(self, service: str) -> float | None:
        """Give the timeout in seconds of calls to the service that name none; None: they have none."""
        inside = self._inside
        followed = inside.services.get(service) if inside else None
        return followed.policy.timeout_seconds if followed else None

    def configure(
        self,
        service: str,
        policy: Policy | None = None,
        *,
        routes: Iterable[MethodRoute] | None = None,
        strict_removal: bool | None = None,
    ) -> None:
        """Set what this program wishes for a service; it goes before what the registry says, field by field.

        `strict_removal` makes channels leave a set that has been replaced as a whole at once, instead of when one of
        the new endpoints has been reached.
        """
        with self._lock:
            wishes = self._wishes.get(service, Wishes())
            self._wishes[service] = Wishes(
                wishes.policy if policy is None else policy,
                wishes.routes if routes is None else tuple(routes),
                wishes.strict_removal if strict_removal is None else strict_removal,
            )
            inside = self._inside
            if inside and (followed := inside.services.get(service)):
                followed.wishes = self._wishes[service]
                inside.publisher.changed(followed)

    # Reading

    def endpoints(self, service: str, timeout_seconds: float | None = 5.0) -> Snapshot:
        """Give what channels to the service follow now; raises TimeoutError while nothing is known of it."""
        return self._wait(service, lambda view: view.snapshot is not None, timeout_seconds)

    def wait_for_endpoints(self, service: str, timeout_seconds: float | None = None, *, at_least: int = 1) -> Snapshot:
        """Block until the service has some endpoints; raises TimeoutError, which says why it has none."""
        return self._wait(service, lambda view: view.has_endpoints(at_least), timeout_seconds)

    def _wait(self, service: str, is_enough: Callable[[View], bool], timeout_seconds: float | None) -> Snapshot:
        with self.pinned(service) as followed:
            in_time = followed.feed.wait_until(is_enough, timeout_seconds)
            snapshot = followed.feed.view.snapshot
            if in_time and snapshot:
                return snapshot
            raise TimeoutError(followed.explain(timeout_seconds))

    def watch_services(self, service: str) -> Iterator[Snapshot]:
        """Give the service's snapshots: the present one, then each newer one. Ends when the registry is closed.

        A slow consumer misses what is between, never the newest.
        """
        with self.pinned(service) as followed:
            last: Snapshot | None = None
            while True:
                followed.feed.wait_until(lambda view, last=last: view.snapshot not in (None, last), None)  # type: ignore[misc]
                snapshot = followed.feed.view.snapshot
                if followed.feed.closed or snapshot is None:
                    return
                last = snapshot
                yield snapshot

    @contextmanager
    def pinned(self, service: str) -> Iterator[FollowedService]:
        """Follow a service for as long as the block runs."""
        followed = self.follow(service)
        followed.pins += 1
        try:
            yield followed
        finally:
            followed.pins -= 1
            followed.needed_at = time.monotonic()

    def stats(self) -> RegistryStats:
        """Say what is known of each followed service, how fresh it is, and what was wrong."""
        inside = self._inside
        services = tuple(inside.services.values()) if inside else ()
        return RegistryStats(self.name, tuple(make_service_stats(service) for service in services))

    # Following

    def follow(self, service: str) -> FollowedService:
        """Begin to follow a service; returns at once, with nothing known yet at the first time."""
        if fault := name_fault(service):
            raise ValueError(fault)
        with self._lock:
            inside = self._enter()
            followed = inside.services.get(service)
            if followed is None:
                followed = FollowedService(
                    service, lambda changed: self._make_feed(service, changed), inside.publisher.changed
                )
                followed.wishes = self._wishes.get(service, Wishes())
                inside.add(followed)
            followed.needed_at = time.monotonic()
            return followed

    def serve_on(self, name: str, board: ServiceBoard) -> None:
        """Answer under that name on the board of a server of one's own."""
        with self._lock:
            self._enter().show_on(name, board, self)

    def refused(self, service: str, reason: str) -> None:
        """Take note that gRPC refused what it was told about the service."""
        inside = self._inside
        if inside and (followed := inside.services.get(service)):
            followed.note_refusal(reason)

    def forked(self) -> None:
        """Be a forked child's: a thread that is not there may have held the lock."""
        self._lock = threading.RLock()

    def _enter(self) -> Running:
        """Give what runs in this process; start it at the first use, and again in a forked child."""
        with self._lock:
            if self._closed:
                raise ValueError(f"{self!r} cannot be used any more")
            if self._inside and self._inside.generation == self._process.forks:
                return self._inside
            self._aside.append(self._inside)  # inherited threads and connections are the parent's: never touched
            opened = self._open()
            try:
                self._inside = Running(self.name, self, opened, self._here)
            except ValueError:
                self._close(opened)
                raise
            return self._inside

    def close(self) -> None:
        """Stop following. Channels that are still open keep what they know until they are closed themselves."""
        with self._lock:
            self._closed = True
            inside, self._inside = self._inside, None
        if inside and inside.generation == self._process.forks:
            inside.close()
            self._close(inside.opened)

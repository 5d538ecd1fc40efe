"""Channels and views of followed services: what every kind of registry gives, wherever its endpoints come from.

Nothing starts before the first use, and everything starts again in a forked child. Thread-safe.
"""

import abc
import math
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, NoReturn, Self

import grpc

from grpc_etcd.client.changes import Changes, ChangeSubscription
from grpc_etcd.client.channels import FollowingChannel, Renewable
from grpc_etcd.client.configuration import OF_POLICY, check_least, check_wishes, read_wait
from grpc_etcd.client.runtime import Running
from grpc_etcd.client.stats import RegistryStats, make_service_stats
from grpc_etcd.client.targets import service_name
from grpc_etcd.discovery.publisher import FollowedService, Wishes
from grpc_etcd.discovery.state import WAIT_SECONDS, ResolverState
from grpc_etcd.discovery.subscription import StateSource
from grpc_etcd.registry.keywords import suggesting
from grpc_etcd.registry.policy import Policy
from grpc_etcd.registry.snapshot import Snapshot
from grpc_etcd.xds import control_plane
from grpc_etcd.xds.limits import check_gevent
from grpc_etcd.xds.localities import Here
from grpc_etcd.xds.names import DEFAULT_REGISTRY, ServiceName, format_target
from grpc_etcd.xds.resource_cache import ResourceCache
from grpc_etcd.xds.retries import MethodRetries
from grpc_etcd.xds.service import MethodRoute

ChannelOptions = Sequence[tuple[str, Any]]
_NO_WISHES = Wishes()


class Following(abc.ABC):
    """Follows services and gives channels to them; a subclass says where the news come from."""

    def __init__(self, name: str | None, here: Here) -> None:
        self._process = control_plane.this_process()
        self.name = self._process.choose_name(name, DEFAULT_REGISTRY)
        self.here = here
        self._lock = threading.RLock()
        self._wishes: dict[str, Wishes] = {}
        self._inside: Running | None = None
        self._aside: list[object] = []
        self._changes = Changes()
        self._closed = False
        self._last_timeouts: Mapping[str, float | None] = {}  # what channels that outlive the registry go by
        self._process.hand_down(self)

    def _open(self) -> Any:
        """Open what the feeds of this process share, if they share anything."""
        return None

    def _close(self, opened: Any) -> None:  # noqa: B027 - most have nothing to close
        """Close what `_open` gave."""

    @abc.abstractmethod
    def _make_feed(self, service: str, changed: Callable[[], None]) -> StateSource:
        """Make the feed of a service, not started yet."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    async def __aenter__(self) -> NoReturn:
        raise TypeError(f"{self!r} is used with `with`; for asyncio write `async with registry.aio`")

    async def __aexit__(self, *error: object) -> None:  # noqa: B027 - no subclass needs it either
        """Be never called; without it Python would not call `__aenter__`."""

    def __del__(self) -> None:
        if not getattr(self, "_closed", True) and self._inside and self._inside.generation == self._process.forks:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)

    # Channels

    def insecure_channel(
        self, service: str, options: ChannelOptions | None = None, compression: grpc.Compression | None = None
    ) -> grpc.Channel:
        """Return a channel to the service that follows the registry; otherwise like `grpc.insecure_channel`."""
        return self._channel(service, options, lambda target, more: grpc.insecure_channel(target, more, compression))

    def secure_channel(
        self,
        service: str,
        credentials: grpc.ChannelCredentials,
        options: ChannelOptions | None = None,
        compression: grpc.Compression | None = None,
    ) -> grpc.Channel:
        """Return a channel over TLS; the servers' certificates must contain the service name."""
        return self._channel(
            service, options, lambda target, more: grpc.secure_channel(target, credentials, more, compression)
        )

    def _channel(
        self, service: str, options: ChannelOptions | None, make: Callable[[str, ChannelOptions], grpc.Channel]
    ) -> grpc.Channel:
        return FollowingChannel(Renewable(self, service_name(service), options or (), make))

    def lead(self, service: str, options: ChannelOptions, retries: MethodRetries) -> control_plane.Lead:
        """Begin to follow a service, and say how a channel with such options and retries of its own gets to it."""
        with self._lock:
            followed = self.follow(service)
            let_go = followed.hold()
            owner = ServiceName(self._enter().address, service)
        try:
            lead = self._process.control_plane.lead(owner, options, retries)
        except BaseException:
            let_go()
            raise

        def release() -> None:
            lead.release()
            let_go()

        return lead._replace(release=release)

    def target(self, service: str) -> str:
        """Return the target for a channel that the program creates itself, such as `xds://etcd/default/greeter`.

        Over TLS such a channel also needs the option `("grpc.default_authority", service)`, and if an HTTP proxy is
        configured `("grpc.enable_http_proxy", 0)`; the registry's own channels have both. The service is followed until
        the registry is closed, because the registry does not see whether such a channel is still open.
        """
        service = service_name(service)
        self.follow(service).keep()
        self._process.control_plane.channel_options()
        return format_target(ServiceName(self._enter().address, service))

    def default_timeout(self, service: str) -> float | None:
        """Return the timeout in seconds of calls to the service that name none; None: they have none."""
        followed = self.find_followed(service)
        wished = (followed.wishes if followed else self._wishes.get(service, _NO_WISHES)).policy.timeout_seconds
        said = followed.feed.view.policy.timeout_seconds if followed else self._last_timeouts.get(service)
        timeout = said if wished is None else wished
        return None if timeout == math.inf else timeout  # gRPC takes an infinite timeout for one that is over

    def find_followed(self, service: str) -> FollowedService | None:
        """Return a service that is followed now; None: it is not, or the registry is closed."""
        inside = self._inside
        return inside.services.get(service) if inside else None

    def is_policy_known(self, service: str) -> bool:
        """Return whether the default timeout cannot be another one by what the registry's first answer may say."""
        followed = self.find_followed(service)
        return followed is None or followed.wishes.policy.timeout_seconds is not None or _is_followed(followed)

    def wait_for_policy(self, service: str, timeout_seconds: float) -> None:
        """Wait until the policy is known, or the registry is unavailable."""
        if followed := self.find_followed(service):
            followed.feed.wait_until(lambda _: _is_followed(followed), timeout_seconds)

    @suggesting("configure", OF_POLICY)
    def configure(
        self,
        service: str,
        policy: Policy | None = None,
        *,
        routes: Iterable[MethodRoute] | None = None,
        strict_removal: bool | None = None,
    ) -> None:
        """Set this program's policy and routes for a service; they override the registry's, field by field.

        If all endpoints are replaced at once, channels keep calling the old ones until one of the new ones has been
        reached; with `strict_removal` they stop at once. Raises TypeError or ValueError for invalid arguments.
        """
        service = service_name(service)
        routes = None if routes is None else tuple(routes)
        check_wishes(policy, routes, strict_removal)
        with self._lock:
            wishes = self._wishes.get(service, Wishes())
            self._wishes[service] = Wishes(
                wishes.policy if policy is None else policy,
                wishes.routes if routes is None else routes,
                wishes.strict_removal if strict_removal is None else strict_removal,
            )
            inside = self._inside
            if inside and (followed := inside.services.get(service)):
                followed.wishes = self._wishes[service]
                inside.publisher.changed(followed)

    # Reading

    @suggesting("endpoints")
    def endpoints(self, service: str, timeout_seconds: float | None = 5.0) -> Snapshot:
        """Return the endpoints that channels to the service follow now; raises TimeoutError while they are unknown."""
        with self.pinned(service) as followed:
            return _wait(followed, followed.feed, lambda view: view.snapshot is not None, timeout_seconds)

    @suggesting("wait_for_endpoints")
    def wait_for_endpoints(
        self, service: str, timeout_seconds: float | None = WAIT_SECONDS, *, at_least: int = 1
    ) -> Snapshot:
        """Block until channels have `at_least` endpoints that can be called; the TimeoutError has the reason.

        Endpoints that are disabled, unhealthy, have weight 0 or an address that cannot be dialled are in the snapshot,
        but do not count. With a timeout of None it waits forever; the default is 30 seconds.
        """
        check_least(at_least)
        with self.pinned(service) as followed:
            source = followed.sent
            enough = partial(source.has_endpoints, at_least=at_least)
            return _wait(followed, source, enough, timeout_seconds, at_least)

    def on_change(self, service: str, callback: Callable[[Snapshot], object]) -> ChangeSubscription:
        """Call `callback` with the service's current snapshot, as soon as it is known, then with each newer one.

        The service is followed until the returned subscription, or the registry, is closed. All callbacks of a registry
        run in one thread of the registry, one after the other; exceptions are logged. A slow callback skips
        intermediate snapshots, never the newest.
        """
        return self._changes.subscribe(self.pinned(service), callback)

    def watch_services(self, service: str) -> Iterator[Snapshot]:
        """Do the same as `watch`, under its older name."""
        return self.watch(service)

    def watch(self, service: str) -> Iterator[Snapshot]:
        """Iterate over the service's snapshots: the current one, then each newer one, until the registry is closed.

        A slow consumer skips intermediate snapshots, never the newest.
        """
        with self.pinned(service) as followed:
            last: Snapshot | None = None
            while True:
                followed.feed.wait_until(lambda view, last=last: view.snapshot not in (None, last), None)  # type: ignore[misc]  # it binds a value
                snapshot = followed.feed.view.snapshot
                if followed.feed.closed or snapshot is None:
                    return
                last = snapshot
                yield snapshot

    @contextmanager
    def pinned(self, service: str) -> Iterator[FollowedService]:
        """Follow a service for as long as the block runs."""
        followed, release = self._hold(service)
        try:
            yield followed
        finally:
            release()

    def _hold(self, service: str) -> tuple[FollowedService, Callable[[], None]]:
        with self._lock:
            followed = self.follow(service)
            return followed, followed.hold()

    def stats(self) -> RegistryStats:
        """Return the state of each followed service: the number and origin of its endpoints, and errors."""
        inside = self._inside
        if inside is None:
            return RegistryStats(self.name, ())
        followed = tuple(inside.services.values())
        services = tuple(make_service_stats(each, wanted=inside.wants(each)) for each in followed)
        return RegistryStats(self.name, services)

    def ready(self) -> bool:
        """Return whether every service with an open channel has an endpoint that can be called; for readiness probes.

        Does not depend on the connection to etcd, because last known endpoints stay in use during an outage.
        `stats().unready` has the reasons. A closed registry is not ready.
        """
        return not self._closed and not self.stats().unready

    # Following

    def exclusively(self) -> AbstractContextManager[Any]:
        """Return the lock under which services begin to be followed."""
        return self._lock

    def follow(self, service: str) -> FollowedService:
        """Begin to follow a service; returns at once, with nothing known yet at the first time."""
        service = service_name(service)
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

    def serve_on(self, name: str, resource_cache: ResourceCache) -> None:
        """Answer under that name on the board of a server of one's own."""
        with self._lock:
            self._enter().show_on(name, resource_cache, self)

    def leave_resource_cache(self, resource_cache: ResourceCache) -> None:
        """Answer there no more: its server has stopped."""
        if inside := self._inside:
            inside.hide_from(resource_cache)

    def let_go_empty(self, service: str) -> None:
        """Follow a service without endpoints no longer if nobody wants it: clients may name any that do not exist."""
        inside, followed = self._inside, self.find_followed(service)
        if inside and followed and not (followed.feed.view.snapshot and followed.feed.view.snapshot.endpoints):
            inside.let_go(followed, 0.0)

    def refused(self, service: str, reason: str) -> None:
        """Record that gRPC refused what it was sent about the service."""
        if followed := self.find_followed(service):
            followed.note_refusal(reason)

    def forked(self) -> None:
        """Be a forked child's: follow nothing yet, and leave what the parent follows alone, with its locks."""
        self._lock = threading.RLock()
        self._set_aside()
        self._changes = Changes()

    @property
    def closed(self) -> bool:
        """Whether `close` has been called."""
        return self._closed

    def _enter(self) -> Running:
        """Return what runs in this process; start it at the first use, and again in a forked child."""
        with self._lock:
            if self._closed:
                raise ValueError(f"{self!r} cannot be used any more")
            check_gevent()
            if self._inside and self._inside.generation == self._process.forks:
                return self._inside
            self._set_aside()
            opened = self._open()
            running = Running(self.name, self, opened, self.here)
            try:
                running.start()
                self._inside = running
            except BaseException:
                running.close()
                self._close(opened)
                raise
            return running

    def _set_aside(self) -> None:
        """Keep what was inherited alive and untouched: its threads and connections are the parent's."""
        self._aside.append(self._inside)
        self._inside = None

    def close(self) -> None:
        """Stop following services. Open channels keep their last known endpoints until they are closed."""
        with self._lock:
            self._closed = True
            inside = self._inside
            if inside:
                said = ((name, each.feed.view.policy) for name, each in tuple(inside.services.items()))
                self._last_timeouts = {name: policy.timeout_seconds for name, policy in said}
            self._inside = None  # at last: calls take no lock
        self._changes.close()
        if inside and inside.generation == self._process.forks:
            try:
                inside.close()
            finally:
                self._close(inside.opened)


def _is_followed(followed: FollowedService) -> bool:
    """Return whether waiting for the registry's first answer is over, or vain: calls fail then, with the reason."""
    return not followed.feed.is_waiting


def _wait(
    followed: FollowedService,
    source: StateSource,
    is_enough: Callable[[ResolverState], bool],
    timeout_seconds: float | None,
    at_least: int = 1,
) -> Snapshot:
    in_time = source.wait_until(is_enough, read_wait(timeout_seconds))
    snapshot = source.view.snapshot
    if in_time and snapshot:
        return snapshot
    raise TimeoutError(followed.explain(timeout_seconds, at_least))

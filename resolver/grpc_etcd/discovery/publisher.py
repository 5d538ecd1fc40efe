"""From what is known of services to what their channels are sent: one thread per registry.

The first change of a service goes out at once. What follows is gathered for a while that grows with the set, because an
update costs gRPC time in proportion to it (6 ms of CPU at 10 endpoints, 0.1 s at 1,000): a registry that changes a
thousand times a second must not eat a client's CPU.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from grpc_etcd.discovery.log_limit import LogLimit
from grpc_etcd.discovery.reasons import OUTAGES, Cause, Facts, Reason, describe_shortfall, explain
from grpc_etcd.discovery.state import ResolverState
from grpc_etcd.discovery.subscription import StateSource
from grpc_etcd.layouts.configurators import RouteConfig
from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.policy import Balancing, Policy
from grpc_etcd.threads import start_thread
from grpc_etcd.xds.hosts import HostNames, read_socket
from grpc_etcd.xds.localities import Dialable, Here, Past, is_callable
from grpc_etcd.xds.resources import Socket
from grpc_etcd.xds.rings import Rings
from grpc_etcd.xds.service import (
    Gap,
    MethodRoute,
    ServiceResources,
    Turns,
    make_service_resources,
    match_faults,
    route_faults,
)
from grpc_etcd.xds.warming import Warming

_LOG = logging.getLogger("grpc_etcd")
_PAUSE_SECONDS = 0.01
_PAUSE_SECONDS_PER_ENDPOINT = (
    0.0003  # three times what an update costs gRPC: it never takes more than a third of a core
)
# What is rendered and turns out to be what was sent, as after a record that is put again as it is, costs only us.
_PAUSE_FOR_NOTHING = 4.0  # arbitrary: times what rendering took, so that it takes no more than a fifth of a core
_RETRY_SECONDS = 1.0  # arbitrary: after an unforeseen error about one service, doubled each time
_LONGEST_RETRY_SECONDS = 60.0
# gRPC answers what it is sent within milliseconds, and asks for the endpoints of a cluster once it has taken that.
# Arbitrary: how often it is looked at, for how long everything must have been answered, and the longest wait.
_LOOK_SECONDS = 0.001
_QUIET_SECONDS = 0.01
_ANSWER_SECONDS = 1.0
# Why nothing is known of a service, where etcd has not answered: any other cause is the service's own.
_UNANSWERED = OUTAGES | {Cause.PENDING}
_SWEEP_SECONDS = 10.0  # arbitrary: how often followed services are looked at whether anybody still wants them


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the program asks for one service; it goes before what the registry says."""

    policy: Policy = field(default_factory=Policy)
    routes: tuple[MethodRoute, ...] | None = None
    strict_removal: bool = False


class Rendered(NamedTuple):
    """What channels are sent: a view, and how many of its endpoints may be called and can be dialled."""

    view: ResolverState
    callables: int


class SentState(StateSource):
    """The view that a service's channels have taken last: who waits in order to call waits for this one."""

    def __init__(self) -> None:
        super().__init__()
        self._rendered = Rendered(self.view, 0)

    @property
    def callables(self) -> int:
        """Count the endpoints that may be called and can be dialled."""
        return self._rendered.callables

    def start(self) -> None:
        """Do nothing: the publisher reports."""

    def note_sent(self, rendered: Rendered) -> None:
        """Record what channels have been sent."""
        if not self.is_as(rendered):
            with self._changed:
                self._rendered = rendered
                self._announce(rendered.view)

    def is_as(self, rendered: Rendered) -> bool:
        """Return whether channels have taken just that."""
        return rendered.view is self._rendered.view and rendered.callables == self.callables

    def has_endpoints(self, view: ResolverState, at_least: int) -> bool:
        """Return whether a view is what channels have, with so many endpoints that calls may go to.

        Whoever looks at a view without a lock may be late: what is known by then is of the next one.
        """
        sent = self._rendered
        return sent.view is view and view.snapshot is not None and sent.callables >= at_least


@dataclass(slots=True)
class _Delivery:
    """What the channels to a service have been sent and may not have taken yet: `by` then, or when all is quiet."""

    rendered: Rendered
    by: float
    quiet_at: float = math.inf


class FollowedService:
    """One service of one registry: its feed, the program's wishes, and what was published last."""

    def __init__(
        self,
        name: str,
        make_feed: Callable[[Callable[[], None]], StateSource],
        changed: Callable[["FollowedService"], None],
    ) -> None:
        self.name = name
        self.wishes = Wishes()
        self.feed = make_feed(lambda: changed(self))
        self.sent = SentState()
        self.rendered = Rendered(self.feed.view, 0)
        self.published: ServiceResources | None = None
        self.policy = Policy()
        self.unusable: Mapping[str, str] = {}
        self.faults: tuple[str, ...] = ()  # of the policy and the routes in force, with these endpoints
        self._awaited: tuple[str, ...] = ()
        self.updates = 0
        self.refusals = 0
        self.last_refusal = ""
        self.needed_at = time.monotonic()
        self.reason = Reason(Cause.NONE, "")
        self._logged = Cause.NONE  # the cause that the log had last
        self.log_limit = LogLimit(_LOG)  # the publisher's, once it has the service
        self.not_before = 0.0
        self._holders: dict[object, None] = {}
        self._fault = ""
        self._failures = 0
        self.due = math.inf  # when it is to be rendered again though nothing has changed
        self._sockets: frozenset[Socket] = frozenset()
        self._generation = 0
        self._warming = Warming()
        self._rings = Rings()
        self._turns = Turns()

    def __repr__(self) -> str:
        return f"<FollowedService {self.name!r} updates={self.updates} {self.feed!r}>"

    def close(self) -> None:
        """Follow it no longer, and let nobody wait for it."""
        self.feed.close()
        self.sent.close()

    def hosts(self) -> set[str]:
        """Return the host names among the addresses."""
        snapshot = self.feed.view.snapshot
        read = (read_socket(endpoint.address) for endpoint in snapshot.endpoints) if snapshot else ()
        return {found[0] for found in read if found and not isinstance(found, Socket)}

    @property
    def pins(self) -> int:
        """Count who holds the service: open channels, and whoever waits for it."""
        return len(self._holders)

    def hold(self) -> Callable[[], None]:
        """Have the service followed until the function that is given back is called, by whatever thread.

        Neither takes a lock: a finalizer may run in the midst of anything.
        """
        holder = object()
        self._holders[holder] = None
        return lambda: self._let_go(holder)

    def keep(self) -> None:
        """Have the service followed for as long as its registry is open."""
        self._holders[self] = None

    @property
    def is_kept(self) -> bool:
        """Return whether it is followed for as long as its registry is open."""
        return self in self._holders

    def _let_go(self, holder: object) -> None:
        self.needed_at = time.monotonic()
        self._holders.pop(holder, None)

    def render(self, names: HostNames, here: Here) -> ServiceResources | None:
        """Decide what the channels are sent now; None means: nothing yet."""
        self.feed.look_after()
        self.due = math.inf
        waits_until = self.feed.waits_until  # read before the view: what comes in between is rendered next
        view = self.feed.view
        self.policy = self.wishes.policy.over(view.policy)
        if time.monotonic() < waits_until:
            self.due = waits_until
            if self.feed.looking_since is None:  # else the names that are looked up belong in the log's line
                self._give_reason()
            return None
        if view.snapshot is None:
            self._give_reason()
            why = Gap.OUTAGE if self.reason.cause in _UNANSWERED else Gap.OWN
            unknown = ServiceResources(self.policy, clusters={}, reason=self.reason.text, gap=why)
            self.rendered = Rendered(view, 0)
            return self._turns.note(unknown, time.monotonic())
        dialables, unusable, pending = _resolve(view.snapshot.endpoints, names)
        self._report(unusable)
        self._fault = ""
        self._awaited = _awaited(dialables, pending, self.policy.match_metadata or {})
        self._give_reason()
        callables = sum(is_callable(dialable.endpoint) for dialable in dialables)
        if self._awaited or (self.feed.is_more_awaited and not callables):
            return None
        self._note_sockets(frozenset(socket for dialable in dialables for socket in dialable.sockets))
        now = time.monotonic()
        past = Past(self._generation, self._warm_up(view.snapshot.endpoints, now))
        own = self.wishes.routes
        routes = tuple(map(_method_route, view.routes)) if own is None else own
        unmatched = match_faults(self.policy.match_metadata or {}, view.snapshot.endpoints)
        self.faults = (*unmatched, *route_faults(routes, view.snapshot.endpoints))
        made = make_service_resources(dialables, self.policy, routes, here, past, earlier=self._turns.known(now))
        self._failures = 0
        self.rendered = Rendered(view, callables)
        # What other registries have answered of other services is not to wait for the one that has not.
        gap = Gap.OWN if view.is_partial and not view.callables else None
        noted = self._turns.note(replace(made, reason=self.reason.text, gap=gap), now)
        self.due = min(self.due, self._turns.due)
        return noted

    def _warm_up(self, endpoints: Iterable[Endpoint], now: float) -> Mapping[str, float]:
        self._warming.note((endpoint.address for endpoint in endpoints if is_callable(endpoint)), now)
        self.due = self._warming.due(self.policy.slow_start, now)
        return self._warming.shares(self.policy.slow_start, now)

    def note_failure(self, error: Exception) -> float:
        """Record that rendering failed unforeseen; say after how many seconds it is worth trying again."""
        self._failures += 1
        self._fault = f"internal error: {type(error).__name__}: {error}"
        self._give_reason()
        return min(_LONGEST_RETRY_SECONDS, _RETRY_SECONDS * 2.0 ** min(self._failures - 1, 16))

    def facts(self) -> Facts:
        """Gather what an explanation goes by."""
        feed = self.feed
        feed.note_end()
        return Facts(
            view=feed.view,
            whereabouts=feed.whereabouts,
            error=feed.freshness.error,
            remedy=feed.freshness.remedy,
            since=feed.freshness.since,
            last_seen_at=feed.last_seen_at,
            fault=feed.fault or self._fault,
            unusable=self.unusable,
            names=feed.names,
            advice=feed.advice,
            is_waiting=feed.is_waiting and feed.looking_since is None,
            awaited=self._awaited,
        )

    def _give_reason(self) -> None:
        """Explain the service again, and log when the cause has changed."""
        before, self.reason = self.reason, explain(self.name, self.facts())
        if self.reason.cause is before.cause:
            return
        if self.reason.cause is Cause.NONE:
            self._log_recovery()
        elif self.reason.cause in OUTAGES and self.feed.view.snapshot:
            _LOG.debug(
                "%s: %s", self.name, self.reason.text, extra={"event": "service_degraded"}
            )  # the registry has logged it once for all services
        elif self.reason.cause is not Cause.PENDING:
            self._logged = self.reason.cause
            self.log_limit.write(logging.WARNING, "%s: %s", self.name, self.reason.text, event="service_degraded")

    def _log_recovery(self) -> None:
        """Log that all is well again, where the log has that it was not: a start that waits for etcd is no fault."""
        before, self._logged = self._logged, Cause.NONE
        if before is not Cause.NONE:
            self.log_limit.write(logging.INFO, "%s: recovered (from: %s)", self.name, before, event="service_recovered")

    def pause_after_nothing(self, spent_seconds: float) -> float:
        """Return how long the next look has to wait after one of so many seconds that has brought nothing to send."""
        return min(self._usual_pause_seconds, _PAUSE_FOR_NOTHING * spent_seconds)

    @property
    def _usual_pause_seconds(self) -> float:
        return _PAUSE_SECONDS + _PAUSE_SECONDS_PER_ENDPOINT * self._sent_size

    @property
    def _sent_size(self) -> int:
        return self.published.size if self.published else 0

    def pause_seconds(self) -> float:
        """Return how long the next update has to wait after this one."""
        sent, usual = self._sent_size, self._usual_pause_seconds
        balancing = self.policy.load_balancing
        is_ring = balancing is not None and balancing.type is Balancing.RING_HASH
        leaves_something = is_ring or self._turns.has_departed
        return max(usual, self._rings.pause_seconds(sent, time.monotonic())) if leaves_something else usual

    def explain(self, timeout_seconds: float | None, at_least: int = 1) -> str:
        """Return why the service, or so many endpoints of it, is not there, to somebody who has waited for that."""
        if self.feed.closed:
            return f"{self.name!r} cannot become ready: the registry has been closed meanwhile"
        facts = self.facts()
        reason = explain(self.name, facts).text
        if at_least > 1 or not reason:
            shortfall = describe_shortfall(facts, at_least, self.sent.callables)
            reason = f"{shortfall}; {reason}" if reason else shortfall
        return f"{self.name!r} is not ready after {timeout_seconds} s: {reason}"

    def note_refusal(self, reason: str) -> None:
        """Record that gRPC refused a set whole, and stays on the one before."""
        self.refusals += 1
        self.last_refusal = reason
        _LOG.error("%s: gRPC rejected the endpoint set: %s", self.name, reason, extra={"event": "set_rejected"})

    def _note_sockets(self, sockets: frozenset[Socket]) -> None:
        """With strict removal, a set without a survivor is a new generation: the old one is left at once.

        Otherwise gRPC goes on with the removed endpoints until one of the new set can be reached, at most 20 s.
        """
        if self.wishes.strict_removal and self._sockets and sockets and not self._sockets & sockets:
            self._generation += 1
        self._sockets = sockets

    def _report(self, unusable: Mapping[str, str]) -> None:
        for address in unusable.keys() - self.unusable.keys():
            _LOG.warning(
                "%s: the endpoint %s is skipped: %s",
                self.name,
                address,
                unusable[address],
                extra={"event": "endpoint_unusable"},
            )
        self.unusable = unusable


def _method_route(config: RouteConfig) -> MethodRoute:
    return MethodRoute(config.uri, config.groups or {}, config.nodes or {})


def _resolve(endpoints: Iterable[Endpoint], names: HostNames) -> tuple[list[Dialable], dict[str, str], list[Endpoint]]:
    """Return what can be dialled, why the rest cannot be, and whose host names are still being looked up."""
    dialables: list[Dialable] = []
    unusable: dict[str, str] = {}
    pending: list[Endpoint] = []
    for endpoint in endpoints:
        match read_socket(endpoint.address):
            case Socket() as socket:
                dialables.append(Dialable(endpoint, (socket,)))
            case None:
                unusable[endpoint.address] = f"{endpoint.address!r} is not host:port with a port of 1 to 65535"
            case host, port:
                if names.is_pending(host):
                    pending.append(endpoint)
                if sockets := names.sockets(host, port):  # also the last answer of a DNS server that is down now
                    dialables.append(Dialable(endpoint, sockets))
                elif fault := names.fault(host):
                    unusable[endpoint.address] = fault
    return dialables, unusable, pending


def _awaited(dialables: Iterable[Dialable], pending: Iterable[Endpoint], wanted: Mapping[str, str]) -> tuple[str, ...]:
    """Return the addresses of which one must be looked up before the service can be sent as it is.

    That is so while all that may be called is being looked up, or all that may be called and has the metadata wanted.
    """
    for metadata in ({}, wanted) if pending else ():
        known = any(_fits(dialable.endpoint, metadata) for dialable in dialables)
        if not known and (awaited := tuple(each.address for each in pending if _fits(each, metadata))):
            return awaited
    return ()


def _fits(endpoint: Endpoint, metadata: Mapping[str, str]) -> bool:
    return is_callable(endpoint) and metadata.items() <= endpoint.metadata.items()


def _not_too_soon(service: FollowedService, due: float) -> float:
    """Return when a service is rendered that is due without a change; a slow start pauses as changes do."""
    return max(due, service.not_before)


class Publisher:
    """Renders changed services and hands them on. What it is given is called by this object's thread.

    `has_answered` reports whether the channels to a service have taken what was published of it; None: there are none.
    """

    def __init__(
        self,
        here: Here,
        publish: Callable[[FollowedService, ServiceResources], None],
        sweep: Callable[[], None],
        has_answered: Callable[[FollowedService], bool | None] = lambda _: None,
    ) -> None:
        self._here = here
        self._publish = publish
        self._sweep = sweep
        self._has_answered = has_answered
        self._delivery: dict[FollowedService, _Delivery] = {}
        self._names = HostNames(self._names_changed)
        self._log_limit = LogLimit(_LOG)
        self._condition = threading.Condition()
        self._dirty: dict[FollowedService, None] = {}
        self._services: dict[FollowedService, None] = {}
        self._hosts: dict[FollowedService, set[str]] = {}  # the host names of those services that have some
        self._later: dict[FollowedService, float] = {}  # when to render again though nothing has changed
        self._closed = False

    def start(self) -> None:
        """Begin to publish."""
        start_thread(self._run, name="grpc-etcd-publisher")

    def close(self) -> None:
        """Publish no more."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        self._names.close()

    def follow(self, service: FollowedService) -> None:
        """Publish a service from now on, whenever it changes."""
        service.log_limit = self._log_limit
        self._services[service] = None

    def leave(self, service: FollowedService) -> None:
        """Publish a service no more."""
        self._services.pop(service, None)
        if service in self._hosts:
            self.changed(service)  # so that its names are looked up no longer

    def changed(self, service: FollowedService) -> None:
        """Have a service published soon. Returns at once; any thread may call it."""
        with self._condition:
            self._dirty[service] = None
            self._condition.notify()

    def _names_changed(self) -> None:
        for service in tuple(self._hosts):
            self.changed(service)

    def _run(self) -> None:
        next_sweep = time.monotonic() + _SWEEP_SECONDS
        while not self._closed:
            due = self._wait(self._next_look(next_sweep))
            now = time.monotonic()
            later = (each for each, then in self._later.items() if _not_too_soon(each, then) <= now)
            for service in dict.fromkeys([*due, *later]):
                self._try_to_render(service)
            self._notify_waiting()
            if time.monotonic() >= next_sweep:
                next_sweep = time.monotonic() + _SWEEP_SECONDS
                self._try_to_sweep()

    def _next_look(self, next_sweep: float) -> float:
        look = time.monotonic() + _LOOK_SECONDS if self._delivery else next_sweep
        return min(look, next_sweep, *(_not_too_soon(each, then) for each, then in self._later.items()))

    def _notify_waiting(self) -> None:
        """Report of the sets that channels have taken: a call before that would still meet the set before."""
        for service, delivery in tuple(self._delivery.items()):
            now, answered = time.monotonic(), self._ask_whether_answered(service)
            quiet_at = now + _QUIET_SECONDS if answered else now
            delivery.quiet_at = math.inf if answered is False else min(delivery.quiet_at, quiet_at)
            if now >= min(delivery.by, delivery.quiet_at):
                del self._delivery[service]
                service.sent.note_sent(delivery.rendered)

    def _ask_whether_answered(self, service: FollowedService) -> bool | None:
        try:
            return self._has_answered(service)
        except Exception:  # noqa: BLE001 - whoever waits is notified at once
            _LOG.exception(
                "%s: Unexpected error while its channels are updated",
                service.name,
                extra={"event": "unexpected_error"},
            )
            return None

    def _try_to_render(self, service: FollowedService) -> None:
        """Render a service; whatever goes wrong concerns it alone, and is tried again."""
        try:
            self._render(service)
        except Exception as error:  # noqa: BLE001
            _LOG.exception(
                "%s: unexpected error, retrying; all other services continue",
                service.name,
                extra={"event": "unexpected_error"},
            )
            service.not_before = time.monotonic() + service.note_failure(error)
            self.changed(service)

    def _try_to_sweep(self) -> None:
        try:
            self._sweep()
        except Exception:  # noqa: BLE001
            _LOG.exception(
                "Unexpected error while services are checked, retrying",
                extra={"event": "unexpected_error"},
            )

    def _wait(self, until: float) -> list[FollowedService]:
        """Wait for a service that is due, and take those that are."""
        with self._condition:
            now = time.monotonic()
            soonest = min((service.not_before for service in self._dirty), default=until)
            if soonest > now and not self._closed:
                self._condition.wait(min(soonest, until) - now)
            now = time.monotonic()
            due = [service for service in self._dirty if service.not_before <= now]
            for service in due:
                del self._dirty[service]
            return due

    def _render(self, service: FollowedService) -> None:
        self._later.pop(service, None)
        is_followed = service in self._services and not service.feed.closed
        self._note_hosts(service, service.hosts() if is_followed else set())
        if not is_followed:
            return  # nobody wants it any more: what was put up now would stay, and be sent to who comes later
        begun = time.monotonic()
        resources = service.render(self._names, self._here)
        if service.due < math.inf:
            self._later[service] = service.due
        if resources is None:
            return
        rendered = service.rendered
        if rendered.callables <= service.sent.callables:  # nobody is to count on those that go
            self._delivery.pop(service, None)
            service.sent.note_sent(rendered)
        if resources != service.published:
            self._hand_on(service, resources)
        else:
            now = time.monotonic()
            service.not_before = now + service.pause_after_nothing(now - begun)
        if not service.sent.is_as(rendered):
            before = self._delivery.get(service)
            self._delivery[service] = _Delivery(rendered, before.by if before else time.monotonic() + _ANSWER_SECONDS)

    def _hand_on(self, service: FollowedService, resources: ServiceResources) -> None:
        before, service.published = service.published, resources
        service.updates += before is None or replace(before, reason=resources.reason) != resources
        self._publish(service, resources)
        service.not_before = time.monotonic() + service.pause_seconds()

    def _note_hosts(self, service: FollowedService, hosts: set[str]) -> None:
        """Have host names looked up. What the other services have is not looked at again, however many they are."""
        if hosts == self._hosts.get(service, set()):
            return
        known = {each: names for each, names in self._hosts.items() if each in self._services and each is not service}
        found = known | {service: hosts} if hosts else known
        self._names.use({host for names in found.values() for host in names})
        self._hosts = found  # at last: where no thread may be started, retrying

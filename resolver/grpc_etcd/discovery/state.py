"""What one reader knows of one service, and what its channels are sent: the core behind channels and watches. Pure.

What decides about a service is in several ranges of keys: its provider keys in each layout, its policy, its routes,
and the synced keys of all operators. Each is known up to a position of its own (`positions.py`), for events of two
ranges may overtake one another. An endpoint that comes or changes is sent at once. Whatever would take one away waits
until every range is known up to that position; so nobody sees a moment that never was. What has happened while a range
was not watched waits until every range is known up to where etcd was when the watch went on: an endpoint that came
meanwhile may be long gone. Then this counts, first row first:

    what is known                                                  reported                                 source
    -------------------------------------------------------------  -----------------------------------  --------
    some range has neither been listed nor refused                 as before; at first: unknown         as it was
    no provider keys may be read                                   as before; at first: unknown         as it was
    only the disk has been read                                    what it holds                        cache
    every synced key that was ever seen is there ("confirmed")       what etcd holds, also nothing        registry
    another history, or one that went back before the disk's       what etcd holds, and the last good   kept
                                                                   set without what etcd confirms
    a synced key is gone, or may not be read any more:
      the last endpoint that may be called goes                    the last good set                    kept
      others come after that                                       what etcd holds, and the last good   kept
                                                                   set without what etcd confirms
      some are left                                                what etcd holds                      registry
    no operator was ever seen                                      what etcd holds, also nothing        registry

* Confirmed is an endpoint of the last good set whose address etcd holds again, in whatever state, as a range says that
  has been read since: it is etcd's from then on. When all are, or when the registry is confirmed, nothing is kept any
  more.
* Without an operator nothing will confirm it. Then what has not been confirmed is dropped some time after another
  history was found (`settle`), provided that etcd holds an endpoint that may be called.
* The last good set is what etcd held before the first unconfirmed loss, and from each arrival on what it holds then: it
  is replaced, and does not grow.
* A range that is refused concerns itself alone: what was known of it stays, the others go on, and it counts again when
  it responds again. Policy and routes that vanish while a set is kept are kept along with it.
"""

import enum
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from grpc_etcd.discovery.positions import BEFORE_ALL, Change, Position, RangeLog
from grpc_etcd.layouts.configurators import RouteConfig, configurators_prefix, decode_configurator
from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.layout import Layout, Rejected
from grpc_etcd.registry.own import SYNCED_PREFIX, policy_key
from grpc_etcd.registry.policy import ParsedPolicy, Policy, read_policy
from grpc_etcd.registry.snapshot import Snapshot, SnapshotBuilder
from grpc_etcd.xds.localities import is_callable

OTHER_HISTORY = "etcd has lost its data, or was restored from a backup"
WAIT_SECONDS = 30.0  # arbitrary: longer than a rollout takes to show its first Pod, shorter than a human waits
_NO_POLICY = b"{}"
_MOST_FAULTS = 10  # arbitrary: of a policy; it may have as many as etcd takes bytes


class Source(enum.StrEnum):
    """Where a view comes from."""

    UNKNOWN = "unknown"  # nothing has been received of the service yet
    REGISTRY = "registry"  # as the registry says, or said when it last responded
    STALE = "stale"  # with endpoints of the last good set: etcd does not hold them, and nobody confirms it for that
    CACHE = "cache"  # from the disk, until the registry responds


class Range(NamedTuple):
    """Keys to follow: one key, or all with a prefix. A shared range is the same for all services of a registry."""

    start: bytes
    is_key: bool = False
    is_shared: bool = False

    def holds(self, key: bytes) -> bool:
        """Return whether a key is in the range."""
        return key == self.start if self.is_key else key.startswith(self.start)


SYNCED = Range(SYNCED_PREFIX, is_shared=True)


@dataclass(frozen=True, slots=True)
class ResolverState:
    """A service as its channels should see it. `snapshot` of None is unknown; without endpoints it is empty.

    `refused` says of each range that may not be read why; `is_denied` means that no provider keys may be read, so that
    nothing will be known. `reason` says why endpoints are kept that etcd does not hold. `is_partial` means that one of
    several registries has not answered, and may know more.
    """

    source: Source = Source.UNKNOWN
    snapshot: Snapshot | None = None
    policy: Policy = field(default_factory=Policy)
    policy_faults: tuple[str, ...] = ()
    routes: tuple[RouteConfig, ...] = ()
    reason: str = ""
    refused: tuple[tuple[bytes, str], ...] = ()
    is_denied: bool = False
    is_partial: bool = False

    @property
    def callables(self) -> int:
        """Count the endpoints that calls may go to."""
        return sum(map(is_callable, self.snapshot.endpoints)) if self.snapshot else 0


class Reader:
    """Turns news of ranges into views. Not safe for concurrent use."""

    def __init__(
        self, service: str, layouts: Sequence[Layout], prefix: str, schemes: Iterable[str] = ("grpc",)
    ) -> None:
        self._builder = SnapshotBuilder(service, layouts, schemes=schemes)
        self._service = service
        self._prefix = prefix
        self._policy_key = policy_key(prefix, service)
        self._routes_prefix = configurators_prefix(prefix, service)
        self.prefixes = self._builder.prefixes
        own = [*map(Range, self.prefixes), Range(self._routes_prefix), Range(self._policy_key, is_key=True)]
        self.ranges: tuple[Range, ...] = (*_disjoint(own), SYNCED)
        self._logs = {each: RangeLog() for each in self.ranges}
        self._others: dict[bytes, bytes] = {}  # what is in force besides provider keys
        self._policy = read_policy(_NO_POLICY)
        self._routes: dict[bytes, RouteConfig] = {}
        self._marks_seen: set[bytes] = set()
        self._judged: Position | None = None
        self._good: Mapping[str, Endpoint] = {}
        self._before: Mapping[str, Endpoint] = {}
        self._kept: Mapping[str, Endpoint] = {}
        self._is_other_history = False
        self._is_decided = False
        self.view = ResolverState()

    def __repr__(self) -> str:
        return f"<Reader {self._service!r} source={self.view.source} judged={self._judged}>"

    # News.

    def take_cache(self, records: Iterable[tuple[bytes, bytes]], revision: int) -> ResolverState:
        """Take what was kept on disk, as known before anything is known of etcd."""
        position = Position(BEFORE_ALL, revision)
        records = list(records)
        for each, log in self._logs.items():
            log.list_at(position)
            self._take(each, [(key, value) for key, value in records if each.holds(key)], position)
        return self._judge()

    def take_listing(self, which: Range, records: Iterable[tuple[bytes, bytes]], position: Position) -> ResolverState:
        """Take all that is in a range in place of what was known of it."""
        records = list(records)
        listed = {key for key, _ in records}
        log = self._logs[which]
        known = {*self._builder.keys, *self._others, *log.keys()}
        gone = [(key, None) for key in known if which.holds(key) and key not in listed]
        log.list_at(position)
        self._take(which, [*gone, *records], position)
        return self._judge()

    def take_changes(self, which: Range, changes: Iterable[tuple[int, Change]], revision: int) -> ResolverState:
        """Take changes in order, each with its revision; the range is known up to `revision`."""
        log = self._logs[which]
        history = log.known.history if log.known else 0
        for at, change in changes:
            self._take(which, [change], Position(history, at))
        log.advance(Position(history, revision))
        return self._judge()

    def take_progress(self, which: Range, revision: int, store: int = 0) -> ResolverState:
        """Record that a range is known up to a revision; `store`: it is watched again, and etcd is there already."""
        log = self._logs[which]
        if log.known and store > revision:
            log.resume_at(Position(log.known.history, store))
        if log.known is None or not (log.refusal or log.known.revision < revision):
            return self.view
        log.advance(Position(log.known.history, revision))
        return self._judge()

    def take_refusal(self, which: Range, reason: str) -> ResolverState:
        """Record that a range cannot be read, for a reason that concerns it alone."""
        self._logs[which].refusal = reason
        self._is_decided = False
        return self._judge()

    def settle(self) -> ResolverState:
        """Record that whoever registers has had the time to do so again since another history was found."""
        if self._is_other_history and not self._marks_seen and self._is_rebuilt():
            self._kept, self._is_other_history, self._is_decided = {}, False, False
        return self._judge()

    def _is_rebuilt(self) -> bool:
        """Return whether etcd holds an endpoint that may be called in its present history."""
        held = self._builder.snapshot()
        confirmed = self._confirmed(held)
        return any(is_callable(each) for each in held.endpoints if each.address in confirmed)

    @property
    def is_settling(self) -> bool:
        """Whether `settle` could end the keeping."""
        return bool(self._kept) and self._is_other_history and not self._marks_seen

    @property
    def is_settled(self) -> bool:
        """Whether all that was received is in force and believed: what is worth keeping for a cold start."""
        return self._is_decided and not self._doubt() and not any(log.held_until for log in self._deciding())

    def awaited(self) -> Iterator[tuple[Range, int]]:
        """Return the ranges that must be known up to a revision before what is held back can be judged."""
        held = [log.held_until for log in self._deciding() if log.held_until]
        is_open = held or not self._is_decided or (self._kept and self._outdated())
        floors = [log.floor for log in self._deciding() if log.floor] if is_open else []
        wanted = max((*held, *floors), default=None)
        if wanted is None:
            return
        for which, log in self._logs.items():
            if not log.refusal and log.known and log.known.history == wanted.history and log.known < wanted:
                yield which, wanted.revision

    # What is held back, and up to where it may be judged.

    def _take(self, which: Range, changes: Iterable[Change], position: Position) -> None:
        log = self._logs[which]
        for key, value in changes:
            if self._is_provider(key):
                self._take_provider(log, key, value, position)
            elif self._judged is None:
                self._take_other(key, value)
            else:
                log.append(position, key, value)
        self._is_decided = False

    def _take_provider(self, log: RangeLog, key: bytes, value: bytes | None, position: Position) -> None:
        if value is not None and log.holds_back(key) and self._is_broken(key, value):
            log.follow_up(key, value)  # what was there before it stays; that is what is held back, and may be nothing
        elif self._takes_away(key, value) or (value is not None and log.is_past(position)):
            log.hold(position, key, value)
        else:
            log.let_go(key)
            self._builder.apply([(key, value)], position.revision)

    def _is_provider(self, key: bytes) -> bool:
        return key.startswith(self.prefixes) and not key.startswith(self._routes_prefix) and key != self._policy_key

    def _takes_away(self, key: bytes, value: bytes | None) -> bool:
        """Return whether a change takes an endpoint away that may be called."""
        known = self._builder.endpoint(key)
        is_known = known is not None and is_callable(known)
        if value is None:
            return is_known
        match self._builder.read(key, value):
            case Endpoint() as endpoint:
                return not is_callable(endpoint) and (is_known or self._is_callable_at(endpoint.address))
            case Rejected():
                return False  # the good value stays
            case _:
                return is_known

    def _is_broken(self, key: bytes, value: bytes) -> bool:
        return isinstance(self._builder.read(key, value), Rejected)

    def _is_callable_at(self, address: str) -> bool:
        """Return whether an address may be called: as another record says, or because it is kept."""
        held = self._builder.at(address)
        return address in self._kept or (held is not None and is_callable(held))

    def _deciding(self) -> list[RangeLog]:
        return [log for log in self._logs.values() if not log.refusal]

    def _cut(self) -> Position | None:
        """Return the position up to which all ranges are known, where there is one since each was listed."""
        logs = self._deciding()
        known = [log.known for log in logs if log.known]
        if len(known) < len(logs) or not known:
            return None
        cut = min(known)
        return cut if all(log.floor <= cut for log in logs if log.floor) else None

    def _commit(self, cut: Position) -> None:
        for log in self._logs.values():
            for key, value in log.take_until(cut):
                self._is_decided = False
                if self._is_provider(key):
                    self._builder.apply([(key, value)], cut.revision)
                else:
                    self._take_other(key, value)

    def _take_other(self, key: bytes, value: bytes | None) -> None:
        if value is None:
            self._others.pop(key, None)
        else:
            self._others[key] = value
        if key == self._policy_key:
            self._policy = _read_policy(value or _NO_POLICY)
        elif key.startswith(self._routes_prefix):
            self._take_route(key, value)
        elif key.startswith(SYNCED_PREFIX) and value is not None:
            self._marks_seen.add(key)

    def _take_route(self, key: bytes, value: bytes | None) -> None:
        """Take a configurator; a broken value leaves the route that was there."""
        if value is None:
            self._routes.pop(key, None)
        elif isinstance(route := self._read_route(key, value), RouteConfig):
            self._routes[key] = route

    def _read_route(self, key: bytes, value: bytes) -> object:
        try:
            return decode_configurator(self._prefix, self._service, key, value)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            return Rejected(f"{type(error).__name__}: {error}")

    # The law.

    def _judge(self) -> ResolverState:
        cut = self._cut()
        if cut:
            self._note_history(cut)
            self._commit(cut)
        if not self._is_decided and self._is_followed() and (cut or self._holds_callables()):
            self.view = self._decide(cut or self._judged)
            self._is_decided = True
        refused = tuple((each.start, log.refusal) for each, log in self._logs.items() if log.refusal)
        if refused != self.view.refused:
            self.view = replace(self.view, refused=refused, is_denied=self._is_denied())
        return self.view

    def _is_followed(self) -> bool:
        """Return whether there is something to say: all ranges are listed or refused, and provider keys may be read."""
        if any(log.known is None and not log.refusal for log in self._logs.values()):
            return False
        return any(log.known for each, log in self._logs.items() if each.start in self.prefixes)

    def _is_denied(self) -> bool:
        providers = [log for each, log in self._logs.items() if each.start in self.prefixes]
        return all(log.refusal and log.known is None for log in providers)

    def _holds_callables(self) -> bool:
        return any(is_callable(endpoint) for endpoint in self._builder.endpoints())

    def _note_history(self, cut: Position) -> None:
        """Begin to keep the last good set when etcd turns out to hold another history than the one judged before."""
        outdated = self._outdated() if self._kept else ()
        before, self._judged = self._judged, cut
        if self._kept and outdated != self._outdated():
            self._is_decided = False  # what these ranges hold already confirms from now on
        if before is None or before.history == cut.history:
            return
        if before.history != BEFORE_ALL or cut.revision < before.revision:
            self._is_other_history, self._is_decided = True, False
            self._kept = _callables(self.view.snapshot)

    def _decide(self, judged: Position | None) -> ResolverState:
        """Apply the table at the top to what is in force."""
        held = replace(self._builder.snapshot(), revision=max(log.known for log in self._logs.values() if log.known)[1])
        now = _callables(held)
        doubt = self._doubt()
        if doubt:
            self._keep(held, now)
        else:
            self._kept, self._is_other_history = {}, False
            self._good = self._before = now
        is_from_disk = judged is not None and judged.history == BEFORE_ALL
        if not self._kept:
            source = Source.CACHE if is_from_disk else Source.REGISTRY
            return ResolverState(source, held, self._policy.policy, self._policy.faults, self._routes_in_force())
        return self._keeping(held, doubt)

    def _keep(self, held: Snapshot, now: Mapping[str, Endpoint]) -> None:
        """Decide which endpoints of the last good set stay although etcd does not hold them."""
        if any(self._before.get(address) != endpoint for address, endpoint in now.items()):
            self._good = now
        self._before = now
        if not self._kept and not now and not self._is_other_history:
            self._kept = self._good
        confirmed = self._confirmed(held)
        self._kept = {address: endpoint for address, endpoint in self._kept.items() if address not in confirmed}
        if not self._kept:
            self._is_other_history = False

    def _confirmed(self, held: Snapshot) -> set[str]:
        """Return the addresses that etcd holds in the history that is judged, as ranges say that are known so far."""
        outdated = self._outdated()
        if not outdated:
            return {endpoint.address for endpoint in held.endpoints}
        found = (self._builder.endpoint(key) for key in self._builder.keys if not key.startswith(outdated))
        return {endpoint.address for endpoint in found if endpoint}

    def _outdated(self) -> tuple[bytes, ...]:
        """Return where the ranges begin of which what is in force is not of the position that is judged."""
        judged = self._judged
        return tuple(each.start for each, log in self._logs.items() if judged and log.is_beside(judged))

    def _keeping(self, held: Snapshot, doubt: str) -> ResolverState:
        merged = {endpoint.address: endpoint for endpoint in held.endpoints} | dict(self._kept)
        kept = replace(held, endpoints=tuple(merged[address] for address in sorted(merged)))
        what = "the last known endpoints stay in use" if not held.endpoints else f"{len(self._kept)} endpoints are kept"
        parsed = self._policy if self._policy_key in self._others else _as_parsed(self.view)
        return ResolverState(
            Source.STALE,
            kept,
            parsed.policy,
            parsed.faults,
            self._routes_in_force() or self.view.routes,
            f"the registry {'has lost endpoints' if held.endpoints else 'is empty'}, but {doubt}: {what}",
        )

    def _doubt(self) -> str:
        """Return why what etcd does not hold is not taken for gone; empty means that it is."""
        log = self._logs[SYNCED]
        missing = sorted(self._marks_seen - self._others.keys())
        if missing:
            names = ", ".join(mark.removeprefix(SYNCED_PREFIX).decode(errors="replace") for mark in missing)
            return f"the operator of {names} does not confirm it"
        if log.refusal and self._marks_seen:
            return f"the synced keys can no longer be read ({log.refusal})"
        if self._is_other_history and not self._marks_seen:
            return OTHER_HISTORY
        return ""

    def _routes_in_force(self) -> tuple[RouteConfig, ...]:
        return tuple(route for _, route in sorted(self._routes.items()))


def _callables(snapshot: Snapshot | None) -> Mapping[str, Endpoint]:
    return {each.address: each for each in snapshot.endpoints if is_callable(each)} if snapshot else {}


def _as_parsed(view: ResolverState) -> ParsedPolicy:
    return ParsedPolicy(view.policy, view.policy_faults)


def _read_policy(value: bytes) -> ParsedPolicy:
    """Read a policy; one that cannot even be parsed (nested too deeply) is a fault like any other."""
    try:
        policy, faults = read_policy(value)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        policy, faults = Policy(), (f"{type(error).__name__}: {error}",)
    shown = [Rejected(each).reason for each in faults[:_MOST_FAULTS]]  # as long as why a record is rejected
    return ParsedPolicy(policy, (*shown, *([f"{len(faults) - len(shown)} more"] if len(faults) > len(shown) else ())))


def _disjoint(ranges: Sequence[Range]) -> list[Range]:
    """Drop the ranges that another one covers, so that no event comes twice."""
    kept: list[Range] = []
    for each in sorted(set(ranges), key=lambda each: each.start):
        if not any(other.holds(each.start) and not other.is_key for other in kept):
            kept.append(each)
    return kept

"""All that works on one registry, put together: client, cache, election, leases, writer, mark, audit.

Stations know nothing of each other: a registry that is down holds up no other. Nor does one part of a controller hold
up the others: each that fails is started again by itself.

When etcd turns out to hold another history (it was wiped, or restored from a backup), all that is remembered of each
prefix is dropped as its new listing comes, leases are taken to exist no longer, and the synced key waits for all of
them.
"""

import asyncio
import contextlib
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from grpc_etcd.etcd.aio import Etcd
from grpc_etcd.etcd.errors import EtcdError, PermissionDenied
from grpc_etcd.etcd.model import Disconnected, Record, WatchEvents, WatchSnapshot, WatchUpdate
from grpc_etcd.registry.own import POLICY_PREFIX, ROOT, owner_prefix
from grpc_etcd_operator.controller.outcomes import Outcome
from grpc_etcd_operator.controller.parts import Facts, Parts
from grpc_etcd_operator.controller.reconciler import Reconciler
from grpc_etcd_operator.core.leases import SETTLED, lease_id
from grpc_etcd_operator.core.reasons import Reason
from grpc_etcd_operator.core.scope import Candidate, Relation
from grpc_etcd_operator.core.services import GrpcService
from grpc_etcd_operator.core.standing import Complaint, Lead, Sight, Standing, Store, judge
from grpc_etcd_operator.isolation import Isolation, supervise
from grpc_etcd_operator.registry.audit import Audit
from grpc_etcd_operator.registry.cache import RegistryCache
from grpc_etcd_operator.registry.clock_key import ClockKey
from grpc_etcd_operator.registry.election import REPORT_SECONDS, RESIGN_SECONDS, SILENT_SECONDS, Election, Outlook
from grpc_etcd_operator.registry.leases import Leases
from grpc_etcd_operator.registry.prefixes import Streams
from grpc_etcd_operator.registry.refusals import Refusing, grant
from grpc_etcd_operator.registry.synced_key import OVERDUE_SECONDS, SyncedKey
from grpc_etcd_operator.registry.watch import REFUSALS, PrefixWatch
from grpc_etcd_operator.telemetry.samples import RegistryFigures

log = logging.getLogger(__name__)
LOOK_SECONDS = 0.25  # while something is to become right
CALM_SECONDS = 1.0  # while all is: what goes wrong then is reported, or a matter of seconds
LOST_SECONDS = 20.0  # a connection that has gone silent is given up after 15 s (etcd/endpoints.py)
TIDY_SECONDS = 5.0  # how often prefixes that no GrpcService names any more are looked at, while there are any


@dataclass(frozen=True, slots=True)
class Views:
    """What a controller asks of the rest of the operator, and whom it notifies.

    `is_fresh` says whether Kubernetes' event streams can be trusted, `blind_seconds` for how long it has not been seen,
    `is_behind` whether what was missed then has not been listed yet,
    `advise` what an admin can do about an error, `is_turn` whether no other registry has to be led first,
    `is_asked_for` whether GrpcServices may name a registry that is not in the settings, `owners` gives all Pods and
    GrpcServices that there are. `unreached` and `lost` name registries of the settings, as the election asks for them.
    """

    facts: Facts
    is_fresh: Callable[[], bool]
    blind_seconds: Callable[[], float]
    is_behind: Callable[[], bool]
    advise: Callable[[EtcdError], str]
    on_outcome: Callable[[str, Outcome], None]
    on_change: Callable[[], None]
    is_turn: Callable[[], bool] = lambda: True
    is_asked_for: Callable[[str], bool] = lambda _name: False
    units: Callable[[], Iterable[str]] = tuple
    unreached: Callable[[], frozenset[str]] = frozenset
    lost: Callable[[], frozenset[str]] = frozenset


class RegistryController:
    """One registry's part of the operator.

    The synced key goes when a change has waited for more than `overdue_seconds`.
    """

    def __init__(  # noqa: PLR0913, PLR0917  what one registry's part of the operator consists of
        self,
        name: str,
        cluster: str,
        etcd: Etcd,
        candidate: Candidate,
        views: Views,
        isolation: Isolation,
        *,
        lease_ttl_seconds: int,
        leader_ttl_seconds: int,
        overdue_seconds: float = OVERDUE_SECONDS,
        long_seconds: float = REPORT_SECONDS,
    ) -> None:
        self.name, self.cluster, self.etcd, self._overdue_seconds = name, cluster, etcd, overdue_seconds
        self._long_seconds = long_seconds
        self._views, self._facts, self._isolation = views, views.facts, isolation
        self._owners = owner_prefix(cluster)
        self.registry_cache = RegistryCache(cluster)
        self.feed = PrefixWatch(etcd, self._take, lambda prefix, error: isolation.caught("watch", repr(prefix), error))
        asked = (views.is_turn, views.is_asked_for)
        outlook = Outlook(self._is_able, views.blind_seconds, views.is_behind, self._has_records, *asked, self._advise)
        outlook = replace(outlook, unreached=views.unreached, lost=views.lost)
        self.election = Election(etcd, cluster, candidate, leader_ttl_seconds, self._leadership_changed, outlook)
        self.leases = Leases(etcd, lease_ttl_seconds, self._lost_lease)
        self.streams = Streams(self.feed.has)
        self.refusing = Refusing(etcd, self.election, self.streams, self._owners)
        parts = Parts(
            name,
            cluster,
            etcd,
            views.facts,
            self.registry_cache,
            self.election,
            self.leases,
            self.streams,
            self.refusing,
            isolation,
        )
        self.writer = Reconciler(parts, lambda outcome: views.on_outcome(name, outcome), views.on_change)
        self.audit = Audit(etcd, self.registry_cache, self._followed, self.writer.enqueue)
        self.has_settled = self._has_searched = False
        self._is_lost = self._is_rehearsing = False
        self._history = 0
        self._was: tuple[object, ...] = ()
        self._reached_at, self._contradicted_at = time.monotonic(), -math.inf
        self._unused: set[bytes] = set()
        self._look_soon = asyncio.Event()
        self._tidy_at = 0.0
        self._known_since = math.inf  # when all of Kubernetes and of the owner records was known, in this term
        self._new: dict[bytes, float] = {}  # prefixes that were not listed yet, and since when they are followed
        self.synced_key = SyncedKey(etcd, cluster, self.election, self.is_in_step, self._is_same_history)
        self.clock_key = ClockKey(etcd, cluster, self.election)
        self.feed.follow([*self.election.prefixes, self._owners, self.streams.learn_plain(POLICY_PREFIX)])

    # -- what is known ------------------------------------------------------------------------------------------------

    @property
    def is_listed(self) -> bool:
        """Return whether all owner records have been seen."""
        return self.feed.has([self._owners])

    @property
    def error(self) -> EtcdError | None:
        """Return why the registry cannot be read or written just now."""
        if trouble := self.feed.trouble:
            return trouble.error
        unread = self.feed.refused.get(self._owners)
        return self.writer.trouble.error or unread or self.refusing.own or self.election.refused

    @property
    def store(self) -> Store:
        """Return what is known of etcd."""
        if self.error:
            return Store.UNREACHABLE
        return Store.LISTED if self.is_listed else Store.RELISTING

    @property
    def lead(self) -> Lead:
        """Return who leads."""
        election = self.election
        if election.is_leading:
            return Lead.LEADING
        if election.is_foreign:
            return Lead.OTHER_CLUSTER
        if election.relation in (Relation.OTHER_INSTALLATION, Relation.TWIN):
            return Lead.OTHER_INSTALLATION
        return Lead.VACANT if election.is_vacant and not self._is_rehearsing else Lead.STANDBY

    @property
    def sight(self) -> Sight:
        """Return what is known of Kubernetes."""
        if not self._facts.has_seen_all():
            return Sight.INCOMPLETE
        is_blind = self._views.blind_seconds() > RESIGN_SECONDS or not self._views.is_fresh()
        return Sight.BLIND if is_blind else Sight.SEEING

    @property
    def standing(self) -> Standing:
        """Return what follows from all that."""
        return judge(self.sight, self.store, self.lead)

    @property
    def complaint(self) -> Complaint | None:
        """Return what is wrong with the registry and what to do about it, for people."""
        reason = self.standing.reason
        if reason is None:
            return None
        if twin := self.election.twin:
            text = f"it is the same etcd as the registry {twin}; give both a common endpoint, or remove one of them"
        elif reason == Reason.FOREIGN_LEADER:
            text = "another cluster or installation has the same cluster id; give one of them another --cluster-id"
        elif reason == Reason.NO_LEADER:
            text = f"no replica is leader there. {self._describe(self.election.error)}".rstrip()
        else:
            text = self._describe(self.error)
        return Complaint(text, reason)

    def _describe(self, error: EtcdError | None) -> str:
        return f"{str(error).rstrip('.')}. {self._advise(error)}" if error else ""

    def _advise(self, error: EtcdError) -> str:
        """Return what to do about an error of the registry as a whole: the permission that it lacks is to the root."""
        advice = self._views.advise(error)
        return f"{advice} Here: {grant(ROOT)}." if isinstance(error, PermissionDenied) else advice

    @property
    def has_had_turn(self) -> bool:
        """Return whether registries that come after this one in the settings have to wait for it no longer."""
        return self.error is not None or self.election.has_had_turn

    @property
    def is_cut_off(self) -> bool:
        """Return whether the connection is lost: what is known of etcd may have changed since."""
        return self.feed.trouble is not None

    @property
    def can_report(self) -> bool:
        """Return whether what is known of the registry is worth reporting.

        All was judged once, or it cannot be served.
        """
        return self.has_settled or self.standing.reason is not None

    @property
    def is_long_lost(self) -> bool:
        """Return whether etcd has been unavailable for so long that whoever was known to lead there may be gone."""
        return self.store is Store.UNREACHABLE and time.monotonic() - self._reached_at > self._long_seconds

    @property
    def is_lost(self) -> bool:
        """Return whether this replica has had no connection for so long that a standby that has one had better lead.

        Longer than it takes others to notice, and to say so, where etcd is down for everybody.
        """
        is_out = self.is_cut_off and not self.election.is_leading
        return is_out and time.monotonic() - self._reached_at > LOST_SECONDS

    def is_gone(self, *, is_other_alive: bool) -> bool:
        """Return whether who led this registry is to be waited for no longer: it may be gone with etcd.

        Where a status shows that somebody still writes there, this replica alone has lost etcd; whoever lives may go on
        for longer until the next status shows it.
        """
        patience_seconds = SILENT_SECONDS if is_other_alive else REPORT_SECONDS
        return self.is_long_lost and time.monotonic() - self._contradicted_at >= patience_seconds

    def note_other_status(self, service: GrpcService, *, reaches: bool | None) -> None:
        """Record that somebody else has written a status, from which may follow that etcd is there for others.

        That it is not (`reaches` is False) can be concluded only where it is the GrpcService's only registry.
        """
        self.election.note_other_reporter()
        registries = service.spec.registries if service.spec else ()
        if reaches and self.name in registries and self.is_long_lost:
            self._contradicted_at = time.monotonic()
        elif reaches is False and tuple(registries) == (self.name,):
            self._contradicted_at = -math.inf

    def is_in_step(self) -> bool:
        """Return whether the registry is true to Kubernetes, as far as anybody can know."""
        self.settle()
        if not self.standing.may_mark:
            return False
        if self.synced_key.is_put:
            latest = time.monotonic() - self._overdue_seconds
            return self._has_listed(latest) and self.writer.overdue_seconds() < self._overdue_seconds
        known = self._known_since
        return (
            known < math.inf
            and self._has_listed(known)
            and self._has_caught_up()
            and not self._facts.has_open_claims(known)
        )

    def _has_caught_up(self) -> bool:
        """Return whether all is written that waited when all was known; what came later waits as any change does.

        A service that changes on and on, faster than its clients tolerate, keeps nobody's registry from being complete.
        """
        writer = self.writer
        return writer.may_settle() or (self.election.is_leading and writer.has_caught_up(self._known_since))

    def _has_listed(self, moment: float) -> bool:
        """Return whether all is listed except for what was asked for after a moment: it waits as any change does.

        A tenant that asks for names on and on keeps nobody's registry from being complete.
        """
        needed = self._needed()
        if self.feed.has(needed):
            return True
        return all(self._new.get(prefix, -math.inf) > moment for prefix in needed if not self.feed.has([prefix]))

    def settle(self) -> None:
        """Record when all has been judged for the first time, by a leader or by a standby."""
        if not self._facts.has_seen_all() or self._facts.awaits_services() or self.store is not Store.LISTED:
            self._known_since = math.inf
            return
        self._known_since = min(self._known_since, time.monotonic())
        if self.has_settled or not self._has_listed(self._known_since):
            return
        if not self._has_searched:
            self._search()
        if self._has_caught_up():
            self.has_settled = True
            self._views.on_change()

    def _search(self) -> None:
        """Look for keys of units of ours whose owner records were deleted while nobody saw it.

        A unit that wants nothing and holds nothing was judged before the prefixes were listed where it has some.
        """
        self._has_searched = True
        if self.registry_cache.has_unnamed:
            self.writer.enqueue(
                uid for uid in self._views.units() if self.registry_cache.unnamed(lease_id(self.cluster, uid))
            )
            self._known_since = time.monotonic()

    def _followed(self) -> list[bytes]:
        """Return the prefixes that the mirror holds in full."""
        known = {self._owners, POLICY_PREFIX, *self.streams.all_used()}
        return sorted(prefix for prefix in known if self.feed.has([prefix]))

    def _needed(self) -> set[bytes]:
        """Return the prefixes without which what is known is not all, except for those that etcd refuses."""
        return {self._owners, *self.streams.all_used()} - self.feed.refused.keys()

    def _is_able(self) -> bool:
        return self._facts.has_seen_all() and self.store is Store.LISTED and self._views.is_fresh()

    def _has_records(self) -> bool:
        return bool(self.registry_cache.owners) or not self.is_listed

    # -- what GrpcServices need ---------------------------------------------------------------------------------------

    def learn(self, uid: str, forms: Iterable[GrpcService]) -> None:
        """Follow the prefixes that a GrpcService writes under, in each form that is or may come into force.

        Never those of one that is refused: they may be another's, or the operator's own, whose pace they would change
        and which would be forgotten with it.
        """
        prefixes = list(dict.fromkeys(prefix for form in forms for prefix in self._prefixes(form)))
        self._new.update({each: time.monotonic() for each in prefixes if not self.feed.is_followed(each)})
        self._assign(uid, prefixes)
        self.feed.follow(prefixes)

    def _prefixes(self, service: GrpcService) -> list[bytes]:
        spec = service.claimed
        if spec is None or self.name not in spec.registries:
            return []
        prefixes = [self.streams.learn(layout, spec.registry_name) for layout in spec.layouts[self.name]]
        if spec.metrics_port is not None:
            prefixes.append(self.streams.learn_plain(f"/prometheus/job/{spec.registry_name}/".encode()))
        return prefixes

    def unlearn(self, uid: str) -> None:
        """Record that a GrpcService is gone."""
        self._assign(uid, [])

    def _assign(self, uid: str, prefixes: list[bytes]) -> None:
        self._unused |= self.streams.assign(uid, prefixes)
        self._unused -= set(prefixes)
        for prefix in [each for each in self._unused if each in self.refusing.refusals]:
            self._let_go(prefix)

    def _let_go(self, prefix: bytes) -> None:
        """Follow a prefix no longer; whatever its units held back may go on."""
        self._unused.discard(prefix)
        self._new.pop(prefix, None)
        self.feed.unfollow([prefix])
        self.streams.forget(prefix)
        self.writer.forget(prefix)
        self.writer.enqueue(self.registry_cache.forget([prefix]) | self.refusing.refusals.end(prefix))
        self.writer.wake()

    def _tidy(self) -> None:
        """Let those prefixes go that no GrpcService names and no unit has keys under; forget reads of gone units."""
        self.streams.keep_reads(self.registry_cache.owners.values())
        if not self._unused:
            return
        under = tuple(self._unused)
        named = itertools.chain.from_iterable(owner.keys for owner in self.registry_cache.owners.values())
        owned = itertools.chain(named, self.registry_cache.bereft)
        held = {self.streams.find(key) for key in owned if key.startswith(under)}
        for prefix in self._unused - held:
            self._let_go(prefix)

    # -- at work ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until cancelled; a part that fails is started again alone."""
        parts = {
            "feed": self.feed.run,
            "election": self.election.run,
            "lease": self.leases.run,
            "writer": self.writer.run,
            "mark": self.synced_key.run,
            "clock": self.clock_key.run,
            "audit": self.audit.run,
            "station": self._look,
        }
        async with asyncio.TaskGroup() as group:
            for part, run in parts.items():
                group.create_task(supervise(part, run, self._isolation))

    async def run_dry(self) -> None:
        """Read and plan until cancelled; write nothing and never lead, so that nobody does is no fault."""
        self._is_rehearsing = True
        async with asyncio.TaskGroup() as group:
            group.create_task(supervise("feed", self.feed.run, self._isolation))
            group.create_task(supervise("writer", self.writer.run, self._isolation))

    async def hand_over(self) -> None:
        """Let another replica lead at once; keys and leases stay."""
        await self.writer.flush(0.5)
        await self.election.resign()

    def enqueue(self, uids: Iterable[str], *, urgent: bool = False) -> None:
        """Look at these units again."""
        self.writer.enqueue(uids, urgent=urgent)

    def remembers(self, uid: str) -> bool:
        """Return whether a unit has records, or waits to be looked at."""
        return uid in self.registry_cache.owners or self.writer.is_waiting(uid)

    async def _look(self) -> None:
        """Notice what nobody calls for: that time has passed, and what that changes for others."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CALM_SECONDS if self._is_calm else LOOK_SECONDS):
                    await self._look_soon.wait()
            self._look_soon.clear()
            self._look_once()

    @property
    def _is_calm(self) -> bool:
        """Return whether nothing is about to become right that was not."""
        return self.has_settled and (self.synced_key.is_put or not self.election.is_leading)

    def _look_once(self) -> None:
        self.settle()
        self.synced_key.look()
        if self.store is not Store.UNREACHABLE:
            self._reached_at, self._contradicted_at = time.monotonic(), -math.inf
        kinds = type(self.error), type(self.election.error)  # what is said of a trouble ends with it
        is_gone = [self.is_gone(is_other_alive=each) for each in (False, True)]
        now = (self.lead, self.store, *is_gone, self.election.may_report, self.election.has_able_standby, *kinds)
        if now != self._was:
            self._was = now
            self._views.on_change()
        if time.monotonic() >= self._tidy_at:
            self._tidy_at = time.monotonic() + TIDY_SECONDS
            self._tidy()

    def _take(self, prefixes: tuple[bytes, ...], news: WatchUpdate) -> None:
        was_lost, self._is_lost = self._is_lost, self.feed.trouble is not None
        if was_lost and not self._is_lost:
            self._views.on_change()
        prefix = prefixes[0]
        match news:
            case WatchSnapshot(records=records, revision=revision, history=history):
                self._take_history(history)
                if prefix in self.election.prefixes:
                    self.election.take(prefix, news)
                    return
                self._take_listing(prefixes, records, revision)
            case WatchEvents(events=events, revision=revision):
                if prefix in self.election.prefixes:
                    self.election.take(prefix, news)
                    return
                self.clock_key.note(revision)
                self.writer.note_events(events)
                changed = self.registry_cache.apply(events)
                if changed:
                    if self.election.has_term:  # what the one before wrote last may be reported after it is over
                        self._adopt_units(changed)
                    self.writer.enqueue(changed)
            case Disconnected(error=error):
                self._take_loss(prefix, error, news)

    def _take_history(self, history: int) -> None:
        """Drop what is known of a history that is no more; the listings of all prefixes come one by one."""
        if history != self._history:
            self._history = history
            self._start_over()

    async def _is_same_history(self) -> bool:
        """Find out whether etcd has all that is remembered; if not, start over.

        What transactions have reported may be newer than what the watch has seen, so the watch may not notice a
        restore.
        """
        newest = self.registry_cache.newest
        result = await self.etcd.transaction([], [self.election.read()])
        if result.revision >= newest:
            return True
        prefixes = [*self.election.prefixes, self._owners, POLICY_PREFIX, *self.streams.all_used(), *self._unused]
        self.feed.unfollow(prefixes)
        self.election.forget()
        self._start_over()
        self.feed.follow(prefixes)
        return False

    def _start_over(self) -> None:
        """Drop all that is remembered, leases included."""
        log.warning(
            "etcd was restored or lost its data, comparing everything again",
            extra={"event": "history_changed"},
        )
        self.has_settled = self._has_searched = False
        self._known_since = math.inf
        self._new.clear()
        self.leases.release_all()
        concerned = set(self.registry_cache.owners) | self.registry_cache.forget([b""])
        self.writer.begin_history()
        self.writer.enqueue(concerned)

    def _take_listing(self, prefixes: tuple[bytes, ...], records: Iterable[Record], revision: int) -> None:
        for prefix in prefixes:
            self._new.pop(prefix, None)
        changed = self.registry_cache.replace(prefixes, records, revision)
        if self._owners in prefixes and self.election.has_term:
            self._adopt()
        if self.refusing.refusals:
            for prefix in prefixes:
                changed |= self.refusing.refusals.end(prefix)
        self.writer.enqueue(changed)
        self.writer.wake()
        if self._owners in prefixes:
            self._views.on_change()

    def _take_loss(self, prefix: bytes, error: EtcdError, news: Disconnected) -> None:
        self.writer.trouble.count(error)
        if prefix in self.election.prefixes:
            self.election.take(prefix, news)
        elif isinstance(error, REFUSALS) and prefix != self._owners:
            self.refusing.note_unreadable(prefix, error)
            self.writer.enqueue(self.streams.users(prefix))
            self.writer.wake()
            return
        fields = {"registry": self.name, "error": str(error), "remedy": self._advise(error)}
        log.warning("etcd unavailable, retrying", extra={"event": "etcd_unavailable", "fields": fields})
        self._views.on_change()

    def _leadership_changed(self) -> None:
        self._known_since = math.inf
        if self.election.has_term:
            self._adopt()
        else:
            self.leases.release_all()
        self.writer.drop_plans()
        self._look_soon.set()
        self._views.on_change()

    def _adopt(self) -> None:
        """Keep alive the leases of all units that are ours: it is what a takeover consists of."""
        self.leases.adopt(lease_id(self.cluster, SETTLED))
        self._adopt_units(self.registry_cache.owners)

    def _adopt_units(self, uids: Iterable[str]) -> None:
        for uid in uids:
            owner = self.registry_cache.owner(uid)
            if owner and self.election.candidate.scope.covers(owner.namespace):
                self.leases.adopt(lease_id(self.cluster, uid))

    def _lost_lease(self, lease: int) -> None:
        uid = self.registry_cache.unit_of_lease(lease)
        if uid:
            self.writer.enqueue([uid])

    def figures(self, unregistered: int, conflicts: int) -> RegistryFigures:
        """Return the figures of the metrics; so many Pods are ready and not registered, and so many keys another's."""
        writer, election = self.writer, self.election
        # Where another leads, it counts: a standby may remember a wish that a restart has made the leader forget.
        stands_by = election.is_leader_known and not election.is_leading
        return RegistryFigures(
            workqueue_depth=writer.depth,
            workqueue_in_flight=writer.in_flight,
            workqueue_longest_wait_seconds=writer.overdue_seconds(),
            rate_limited_objects=writer.rate_limited,
            leases=len(self.leases),
            registered_objects=len(self.registry_cache.owners),
            leader=election.is_leading,
            foreign_cluster=election.is_foreign,
            denied_prefixes=self.refusing.count,
            no_leader_seconds=election.vacant_seconds,
            ready_not_registered=0 if stands_by else unregistered,
            missed_changes=self.audit.missed,
            synced=self.synced_key.is_put,
            registry_up=self.standing.reason is None and self.is_listed,
            conflicts=conflicts,
            campaign_errors=election.failures,
            etcd_errors=writer.trouble.counts,
        )

    async def close(self) -> None:
        """Close the client."""
        with contextlib.suppress(EtcdError):
            await self.etcd.close()

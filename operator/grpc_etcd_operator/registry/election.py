"""Who writes: one replica per registry, elected by an etcd key under a short lease.

    no replica leads       -> who is able campaigns at once; who is not, or is blind, only when nobody able stands by
    a peer leads       -> stand by; who sees Kubernetes and has everything listed says so by a key of its own
    this one leads     -> until it resigns, its lease expires by its own clock, or it is blind and another is able
    its predecessor    -> take over at once: a process with our identity, of which there is one at a time, has ended
    another installation or cluster leads, or the id is another cluster's -> refuse, and say so
    this process leads for another registry of the settings -> both are one etcd: refuse, and say so

The key's create revision and lease are the fence: every write transaction compares those of the term it was planned in,
so a leader that was frozen and wakes up changes nothing. The revision alone may be another term's too, once etcd has
lost its data and counts from the start. The cluster's key is compared by the transaction that wins the election.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from grpc_etcd.etcd import compare, ops
from grpc_etcd.etcd.aio import Etcd
from grpc_etcd.etcd.compare import Compare
from grpc_etcd.etcd.errors import (
    AuthFailed,
    EtcdError,
    LeaseNotFound,
    PermissionDenied,
)
from grpc_etcd.etcd.model import (
    Deleted,
    Disconnected,
    LeaseId,
    Listing,
    Record,
    TransactionResult,
    WatchEvents,
    WatchSnapshot,
    WatchUpdate,
)
from grpc_etcd.registry.own import leader_key, standby_prefix, synced_key
from grpc_etcd_operator.core.scope import (
    Candidate,
    Relation,
    reaches_more,
    relation,
    write_leader,
    write_refusal,
    write_standby,
)
from grpc_etcd_operator.registry.leader_lease import LeaderLease, end_lease
from grpc_etcd_operator.registry.leader_view import LeaderView
from grpc_etcd_operator.registry.standbys import Standbys

log = logging.getLogger(__name__)
RETRY_SECONDS = 1.0
# More than it takes a replica to notice that it is blind (kube/freshness.py) and to say so: a standby that is as blind
# as the leader has said so before.
RESIGN_SECONDS = 13.0
REPORT_SECONDS = 60.0  # for how long a leader that has lost etcd reports so beside a standby. Arbitrary
SILENT_SECONDS = 600.0  # for which who has lost etcd says nothing once another responds. Arbitrary
WAIT_TTLS = 2  # times to live for which others come first
LOGIN_SECONDS = 10.0  # between two looks of a standby at whether it is still let in. Arbitrary


def _see() -> float:
    return 0.0


@dataclass(frozen=True, slots=True)
class Outlook:
    """What the election asks of the rest of the operator."""

    is_able: Callable[[], bool] = lambda: True  # everything is listed, so that leading needs no preparation
    blind_seconds: Callable[[], float] = _see  # for how long Kubernetes has not been seen
    is_behind: Callable[[], bool] = lambda: False  # what was missed of Kubernetes has not been listed yet
    has_records: Callable[[], bool] = lambda: True  # something in the registry is the cluster id's, or nobody knows
    is_turn: Callable[[], bool] = lambda: True  # nobody is to be waited for
    is_asked_for: Callable[[str], bool] = lambda _name: False  # what is under such a name of this etcd stays
    advise: Callable[[EtcdError], str] = lambda error: error.remedy
    unreached: Callable[[], frozenset[str]] = frozenset  # registries of the settings that are not known just now
    lost: Callable[[], frozenset[str]] = frozenset  # those to which this replica has long had no connection


class Election(LeaderView):
    """This replica's part in the election for one registry. `on_change` is called after each gain and each loss."""

    def __init__(  # noqa: PLR0913, PLR0917  who campaigns, where, for what
        self,
        etcd: Etcd,
        cluster: str,
        candidate: Candidate,
        ttl_seconds: int,
        on_change: Callable[[], None],
        outlook: Outlook | None = None,
    ) -> None:
        self._outlook = outlook or Outlook()
        super().__init__(cluster, candidate, ttl_seconds, self._outlook.has_records)
        self._etcd = etcd
        self._key, self._synced_key = leader_key(cluster), synced_key(cluster)
        self._standbys = Standbys(etcd, standby_prefix(cluster), candidate.identity)
        self.awaits_sight = False  # it leads, and has been behind since before: it keeps what others have written
        self._on_change = on_change
        self._predecessor: Record | None = None
        self._listed: dict[bytes, int] = {}
        self._reported_at = 0  # the revision at which the watch last reported who leads
        self._news = asyncio.Event()
        self._not_before = self._said_at = 0.0
        self._silent_until = -math.inf
        self._lease = LeaderLease(etcd, ttl_seconds, self._lost_lease)
        self._reported: set[str] = set()
        self._login_at = 0.0
        self.error: EtcdError | None = None
        self.refused: AuthFailed | None = None  # this replica is not let in now, whatever its watch still reports
        self.failures: Counter[str] = Counter()
        self.revision = 0
        self.number = 0  # of the terms of this process: revisions come again when etcd has lost its data

    # -- what others ask ----------------------------------------------------------------------------------------------

    @property
    def lease(self) -> LeaseId:
        """Return the lease under which this replica leads or stands by; 0: none."""
        return self._lease.id

    @property
    def term(self) -> int:
        """Return the create revision of the leader's key while this replica leads by its own clock too; else 0."""
        return self.revision if self.revision and not self._lease.has_run_out else 0

    @property
    def is_leading(self) -> bool:
        """Return whether this replica believes to be the leader; the fence decides."""
        return self.term != 0

    @property
    def has_term(self) -> bool:
        """Return whether this replica has a term that is not known to be over.

        By its own clock its lease may have expired, and turn out to live: what keeps the registry is not dropped yet.
        """
        return self.revision != 0

    @property
    def may_write(self) -> bool:
        """Return whether this replica leads and what it knows of Kubernetes is not older than what others wrote."""
        return self.is_leading and not self.awaits_sight

    @property
    def may_report(self) -> bool:
        """Return whether this replica speaks for the registry.

        It leads, or was the last to, as far as anybody can know.

        Who has lost etcd leaves the word to whoever else responds, and after a while in any case to an able standby
        that it knows of: it may have taken over.
        """
        if self.is_leading:
            return True
        is_last = self.relation is Relation.ITSELF and time.monotonic() >= self._silent_until
        return is_last and (not self._standbys.has_others or time.monotonic() - self._vacant_since < REPORT_SECONDS)

    @property
    def has_able_standby(self) -> bool:
        """Return whether this replica leads, and another that lives and sees Kubernetes stands by."""
        return self.is_leading and self._standbys.has_others

    def note_other_reporter(self) -> None:
        """Record that somebody else speaks: another replica leads, which etcd has not reported this one yet.

        It may have been a person; so it is forgotten after a while.
        """
        if not self.is_leading:
            self._silent_until = time.monotonic() + SILENT_SECONDS

    def fence(self, term: int) -> tuple[Compare, ...]:
        """Return the conditions of every write of a term."""
        return self._fence(term, self.lease)

    def _fence(self, term: int, lease: int) -> tuple[Compare, ...]:
        if term <= 0:
            raise ValueError("not leader: only the leader writes")
        return compare.create_revision(self._key, "==", term), compare.lease(self._key, "==", lease)

    def never(self) -> Compare:
        """Return a condition that never holds: a transaction under it shows what etcd refuses, and changes nothing."""
        return compare.version(self._key, "<", 0)

    def read(self) -> ops.GetOp:
        """Return the read that reports, when a transaction was refused, whether the fence did it."""
        return ops.get(self._key)

    def note_read(self, record: Record | None, revision: int) -> None:
        """Take who led at a revision, as a transaction has read it; what is known to be newer stands.

        An answer may come after the news of the watch, or after this replica's own win. Nothing would put it right.
        """
        if revision >= max(self._reported_at, self.revision):
            self._note_leader(record)

    def _note_leader(self, record: Record | None) -> None:
        """Take who leads, as far as is known."""
        if record is None and self._leader is not None:
            self._vacant_since = time.monotonic()
        did_refuse = self.refuses
        self._leader, self._silent_until = record, -math.inf
        if record is not None:
            self.last_leader = record.value
            self.error = None
            self._reported.clear()
        if self.refuses:
            self._say_refusal()
        if did_refuse or self.refuses:
            # Its other replicas come first: two times to live give them the time to notice that their leader is gone.
            self._not_before = time.monotonic() + WAIT_TTLS * self._ttl
        if self.revision and (record is None or record.create_revision != self.revision):
            self._lose()
        self._news.set()

    def close(self) -> None:
        """Let the lease expire: for those who must be followed by nobody for a while."""
        self._lease.let_run_out()

    async def resign(self) -> None:
        """Hand over at once and for good: the lease goes, and with it the leader's key and the synced key."""
        if not (lease := self._lease.give_up()):
            return
        self._lose()
        with contextlib.suppress(EtcdError):  # without etcd the lease expires by itself
            await self._etcd.revoke(lease)

    # -- the loop -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Take part until cancelled; somebody else hands the news on."""
        while True:
            self._news.clear()
            try:
                await self._step()
            except EtcdError as error:
                self.refused = error if isinstance(error, AuthFailed) else self.refused
                self._failed(error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETRY_SECONDS):
                    await self._news.wait()

    async def run_alone(self) -> None:
        """Take part until cancelled, where nobody else follows the prefixes."""
        hub = self._etcd.watch_hub()
        try:
            for prefix in self.prefixes:
                hub.follow(prefix, partial(self.take, prefix))
            await self.run()
        finally:
            await hub.close()

    async def _step(self) -> None:
        if self._lease.is_given_up:
            return
        if self.revision:
            await self._lead()
        else:
            await self._seek_the_lead()
        is_standby = not self.revision and self.is_listed and not self._lease.is_given_up
        if is_standby:
            await self._announce()
        if is_standby or self.refused:  # there may be nothing else to ask, and that alone lets nobody in
            await self._try_login()

    async def _seek_the_lead(self) -> None:
        """Campaign, or do what has to be done before, or take up what is ours already."""
        if self._leader is None:
            if self._may_campaign():
                await self._campaign()
        elif not self._leader.lease:
            if self._may_campaign():
                await self._clear_away(self._leader)
        elif self.relation is Relation.ITSELF:
            await self._resume(self._leader)
        elif self._predecessor == self._leader:
            await self._succeed(self._leader)

    async def _lead(self) -> None:
        """Look whether this replica is still the one to lead."""
        if self.awaits_sight and not self._is_behind():
            self.awaits_sight = False
            self._on_change()
        if self._lease.has_run_out:
            self._lose()
        elif self._outlook.blind_seconds() > RESIGN_SECONDS and self._standbys.has_others:
            await self._step_down("No connection to Kubernetes, resigning in favor of a standby that has one")
        elif (lost := self._outlook.lost()) and any(reaches_more(each, lost) for each in self._standbys.others):
            self._not_before = time.monotonic() + self._ttl  # it would be the first to know that nobody leads
            await self._step_down("No connection to another registry, resigning in favor of a standby that has one")
        elif self._standbys.has_own:  # from before a term that was taken up again
            await self._standbys.deregister()
        else:
            await self._record_candidate()

    async def _step_down(self, why: str) -> None:
        """Let an able standby lead, and stand by."""
        term = self.revision
        log.warning(why, extra={"event": "leadership_resigned"})
        self._lose()
        gone = [ops.delete(self._key), ops.delete(self._synced_key)]
        result = await self._etcd.transaction(self.fence(term), gone)
        if result.succeeded:
            self.note_read(None, result.revision)  # before the watch reports it, the term would be taken up again

    async def _clear_away(self, record: Record) -> None:
        """Delete a leader's key without a lease: put by hand or copied from another etcd, it would stay forever.

        Whoever leads puts its own under its lease again.
        """
        unchanged = compare.mod_revision(self._key, "==", record.mod_revision)
        result = await self._etcd.transaction([unchanged], [ops.delete(self._key)])
        if result.succeeded:
            log.warning(
                "Deleted a leader key without a lease",
                extra={"event": "leader_key_deleted", "fields": {"key": self._key.decode()}},
            )
            self.note_read(None, result.revision)

    async def _resume(self, record: Record) -> None:
        """Take up a term that is this process's own: an answer was lost, or etcd was down for a while."""
        if record.lease != self.lease:
            await end_lease(self._etcd, record.lease)
        elif not self._lease.has_run_out:  # else the next renewal reports whether it lives
            self._win(record.create_revision)

    async def _succeed(self, record: Record) -> None:
        """Take over from the process that was here before this one."""
        await end_lease(self._etcd, record.lease)
        self._predecessor = None  # only now: what fails is tried again
        log.info(
            "Taking over the leadership of this replica's predecessor, which has ended",
            extra={"event": "leadership_resumed"},
        )

    def _is_able(self) -> bool:
        return self._outlook.is_able() and not self._is_blind() and not self.refuses and not self.is_foreign

    def _is_blind(self) -> bool:
        return self._outlook.blind_seconds() > 0

    def _is_behind(self) -> bool:
        return self._is_blind() or self._outlook.is_behind()

    def _may_campaign(self) -> bool:
        if not self.is_listed or time.monotonic() < self._not_before or self.is_foreign or not self._outlook.is_turn():
            return False
        if self._is_blind():
            return not self._standbys.has_others and self.vacant_seconds > WAIT_TTLS * self._ttl
        return not self._standbys.has_others or self._outlook.is_able() or self.vacant_seconds > self._ttl

    async def _campaign(self) -> None:
        await self._lease.ensure()
        if self._lease.is_given_up:
            return
        absent = compare.create_revision(self._key, "==", 0)
        wins: list[ops.Op] = [ops.put(self._key, write_leader(self.candidate), lease=self.lease)]
        # A synced key that an earlier term has left behind says nothing of this one.
        wins += [ops.delete(self._synced_key), self._standbys.deregistering()]
        if self._is_unrecorded():
            wins.append(ops.put(self.cluster_key.key, self._make_holder()))
        result = await self._etcd.transaction(
            [absent, self.cluster_key.is_unchanged()], wins, [self.read(), self.cluster_key.read()]
        )
        if not result.succeeded:
            self._take_reads(result)
        elif not self._lease.is_given_up:  # else its lease has been given back, and the key has gone with it
            # Known before the watch reports it: who is called now asks who leads, and may be called no more.
            now = result.revision
            self._leader = Record(self._key, write_leader(self.candidate), self.lease, now, now, 1)
            self._standbys.forget_own()
            if not self._lease.has_run_out:  # else etcd was frozen, and the next renewal reports whether it lives
                self._win(now)

    def _take_reads(self, result: TransactionResult) -> None:
        leader, holder = (
            each.records[0] if isinstance(each, Listing) and each.records else None for each in result.responses
        )
        self._note_holder(holder)
        self.note_read(leader, result.revision)

    def _win(self, revision: int) -> None:
        self.revision, self._silent_until = revision, -math.inf
        self.number += 1
        self.awaits_sight = self._is_behind()
        self.error = None
        self._reported.clear()
        log.info(
            "Became leader",
            extra={"event": "leadership_acquired", "fields": {"key": self._key.decode(), "revision": revision}},
        )
        self._on_change()

    async def _announce(self) -> None:
        """Return whether this replica could lead at once."""
        if self.relation is Relation.TWIN:  # what there is to be reported is the other registry's affair
            return
        value = write_standby(self.candidate, self._outlook.unreached())
        if not self._is_able():
            if self._standbys.has_own:
                await self._standbys.deregister()
        # For who waits for another name no leader may resign.
        elif not self._standbys.has_said(value) and (self._standbys.has_own or self._outlook.is_turn()):
            await self._lease.ensure()
            if self._lease.is_given_up:
                return
            await self._standbys.announce(value, self.lease)

    async def _try_login(self) -> None:
        """Find out now and then whether a standby is still let in: a watch outlives the login that it began with.

        Who was refused asks each time. Only etcd's answer reports that it is over: neither that there was nothing to
        ask nor that nobody has answered does.
        """
        if not self.refused and time.monotonic() < self._login_at:
            return
        try:
            await self._etcd.transaction([], [self.read()])
        except AuthFailed:
            raise
        except EtcdError:  # of that the watch reports
            return
        self.refused = None
        self._login_at = time.monotonic() + LOGIN_SECONDS

    async def _record_candidate(self) -> None:
        """Keep the leader's key and the cluster's as this cluster is now: who leads has proved to be of it.

        By a previous CA, other replicas would take their leader for another cluster's.
        """
        leader, record = self._leader, self.cluster_key.record
        values: dict[bytes, bytes] = {}
        if leader and (leader.value, leader.lease) != (write_leader(self.candidate), self.lease):
            values[self._key] = write_leader(self.candidate)
        if self._is_unrecorded():
            values[self.cluster_key.key] = self._make_holder()
        if not values:
            return
        puts = [ops.put(key, value, lease=self.lease if key == self._key else 0) for key, value in values.items()]
        fence = self._fence(self.revision, leader.lease if leader else self.lease)
        result = await self._etcd.transaction(fence, puts, [self.read()])
        if not result.succeeded:
            return
        now = result.revision
        if leader and self._leader is leader and self._key in values:  # else the watch has reported something newer
            self._leader = leader._replace(value=values[self._key], lease=self.lease, mod_revision=now)
        if self.cluster_key.record is record and self.cluster_key.key in values:
            self.cluster_key.note_put(values[self.cluster_key.key], now)

    def _is_unrecorded(self) -> bool:
        """Return whether the cluster's key is to be written."""
        return self.cluster_key.is_to_be_written(self.candidate.fingerprint, self._choose_name())

    def _choose_name(self) -> str:
        """Choose the name of this etcd that comes first from now on: ours, once nobody asks for the last any more.

        Until then what was written under that name stands, and whoever puts it back into the settings finds it so.
        """
        last, mine = self.last_registry, self.candidate.registry
        return last if last and last != mine and self._outlook.is_asked_for(last) else mine

    def _make_holder(self) -> bytes:
        return self.cluster_key.make_value(self.candidate.fingerprint, self._choose_name())

    # -- news of etcd -------------------------------------------------------------------------------------------------

    @property
    def prefixes(self) -> tuple[bytes, ...]:
        """Return the prefixes whose news `take` must be given."""
        return self._key, self.cluster_key.key, self._standbys.prefix

    def forget(self) -> None:
        """Record that etcd holds another history: what is listed next counts, whatever its revision."""
        self._listed.clear()
        self.is_listed = False
        self._reported_at = 0

    def take(self, prefix: bytes, news: WatchUpdate) -> None:
        """Take news of one of the prefixes."""
        match news:
            case WatchSnapshot(records=records, revision=revision, history=history):
                self._take_listing(prefix, {record.key: record for record in records}, revision, history)
            case WatchEvents(events=events):
                for event in events:
                    record = None if isinstance(event, Deleted) else event.record
                    self._take_change(prefix, event.key, record, event.revision)
            case Disconnected(error=error):
                if isinstance(error, PermissionDenied | AuthFailed):
                    self._failed(error)

    def _take_listing(self, prefix: bytes, listed: dict[bytes, Record], revision: int, history: int) -> None:
        is_first, is_other = prefix not in self._listed, history != self._listed.get(prefix, 0)
        self._listed[prefix] = history
        self.is_listed = len(self._listed) == len(self.prefixes)
        if prefix == self._standbys.prefix:
            self._standbys.take_listing(listed.values())
        elif prefix == self.cluster_key.key:
            self._note_holder(listed.get(prefix))
        elif is_first or is_other or revision >= self.revision:  # else it was read before this replica's own term
            self._reported_at = revision
            self._take_leader(listed.get(prefix), is_first=is_first)
        self._news.set()

    def _take_leader(self, leader: Record | None, *, is_first: bool) -> None:
        if is_first:
            self._vacant_since = time.monotonic()
            is_own = leader is not None and relation(self.candidate, leader.value) is Relation.PREDECESSOR
            self._predecessor = leader if is_own else None
        self._note_leader(leader)

    def _take_change(self, prefix: bytes, key: bytes, record: Record | None, revision: int) -> None:
        if prefix == self._standbys.prefix:
            self._standbys.take_change(key, record)
        elif key == self.cluster_key.key:
            self._note_holder(record)
        elif key == self._key and revision >= self.revision:
            self._reported_at = revision
            self._note_leader(record)
        self._news.set()

    def _note_holder(self, record: Record | None) -> None:
        self.cluster_key.record = record
        if not self.revision and self.is_foreign:
            self._say_refusal()

    def _say_refusal(self) -> None:
        now = time.monotonic()
        if now < self._said_at + WAIT_TTLS * self._ttl and self._said_at:
            return
        self._said_at = now
        text = write_refusal(self.cluster_key.key.decode(), is_foreign=self.is_foreign, twin=self.twin)
        held = self._leader or self.cluster_key.record
        log.error(
            text,
            extra={
                "event": "leadership_refused",
                "fields": {"held_by": held.value.decode(errors="replace") if held else ""},
            },
        )

    # -- what ends a term ---------------------------------------------------------------------------------------------

    def _lost_lease(self) -> None:
        self._standbys.forget_own()
        self._lose()
        self._news.set()

    def _lose(self) -> None:
        if self.revision:
            self.revision, self.awaits_sight = 0, False
            self._vacant_since = time.monotonic()
            log.warning(
                "Lost leadership",
                extra={"event": "leadership_lost", "fields": {"key": self._key.decode()}},
            )
            self._on_change()

    def _failed(self, error: EtcdError) -> None:
        """Take a failure: the first of each kind is reported with its remedy, all are counted."""
        kind = type(error).__name__
        self.error = error
        self.failures[kind] += 1
        if isinstance(error, LeaseNotFound):
            self._lease.drop()
            self._standbys.forget_own()
            self._news.set()
        is_new = kind not in self._reported
        self._reported.add(kind)
        fields = {"key": self._key.decode(), "error": str(error), "remedy": self._outlook.advise(error)}
        level = logging.WARNING if is_new else logging.DEBUG
        log.log(level, "Campaign failed, retrying", extra={"event": "campaign_failed", "fields": fields})

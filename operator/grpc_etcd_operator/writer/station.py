"""All that works on one registry, put together: client, mirror, election, leases, writer, mark.

Stations know nothing of each other: a registry that is down holds up no other.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable

from grpc_etcd.etcd.aio import Etcd
from grpc_etcd.etcd.errors import EtcdError
from grpc_etcd.etcd.model import Changed, Listed, Lost, News
from grpc_etcd.registry.own import POLICY_PREFIX, owner_prefix
from grpc_etcd_operator.core.leases import SETTLED, lease_id
from grpc_etcd_operator.core.scope import Scope
from grpc_etcd_operator.core.services import GrpcService
from grpc_etcd_operator.writer.electing import Election
from grpc_etcd_operator.writer.feeding import Feed
from grpc_etcd_operator.writer.leasing import Leases
from grpc_etcd_operator.writer.marking import OVERDUE_SECONDS, Mark
from grpc_etcd_operator.writer.mirror import Mirror
from grpc_etcd_operator.writer.streams import Streams
from grpc_etcd_operator.writer.writing import Facts, Outcome, Writer

log = logging.getLogger(__name__)


class Station:
    """One registry's part of the operator.

    `is_fresh` says whether Kubernetes' event streams can be trusted, `advise` what an admin can do about an error. The
    synced mark goes when a change has waited for more than `overdue_seconds`.
    """

    def __init__(  # noqa: PLR0913  what one registry's part of the operator consists of
        self,
        name: str,
        cluster: str,
        etcd: Etcd,
        *,
        identity: str,
        scope: Scope,
        lease_ttl_seconds: int,
        leader_ttl_seconds: int,
        facts: Facts,
        is_fresh: Callable[[], bool],
        advise: Callable[[EtcdError], str],
        on_outcome: Callable[[str, Outcome], None],
        on_change: Callable[[], None],
        overdue_seconds: float = OVERDUE_SECONDS,
    ) -> None:
        self.name, self.cluster, self.etcd, self._overdue_seconds = name, cluster, etcd, overdue_seconds
        self._scope, self._facts, self._is_fresh, self._on_change = scope, facts, is_fresh, on_change
        self._advise = advise
        self._owners = owner_prefix(cluster)
        self.mirror = Mirror(cluster)
        self.feed = Feed(etcd, self._take)
        self.election = Election(etcd, cluster, identity, scope, leader_ttl_seconds, self._leadership_changed)
        self.leases = Leases(etcd, lease_ttl_seconds, self._lost_lease)
        self.streams = Streams(self.feed.has)
        self.writer = Writer(
            name,
            cluster,
            etcd,
            facts,
            self.mirror,
            self.election,
            self.leases,
            self.streams,
            lambda outcome: on_outcome(name, outcome),
            on_change,
        )
        self.has_settled = False
        self._is_lost = False
        self.mark = Mark(etcd, cluster, self.election, self.is_in_step)
        self.feed.follow([self._owners, self.streams.learn_plain(POLICY_PREFIX)])

    @property
    def is_listed(self) -> bool:
        """Say whether all owner records have been seen."""
        return self.feed.has([self._owners])

    @property
    def error(self) -> EtcdError | None:
        """Say why the registry cannot be read or written just now."""
        trouble = self.feed.trouble
        return trouble.error if trouble else self.writer.trouble.error

    @property
    def complaint(self) -> str | None:
        """Say what is wrong and what to do about it, for people."""
        return f"{self.error} {self._advise(self.error)}" if self.error else None

    @property
    def can_report(self) -> bool:
        """Say whether what is known of the registry is worth telling: all was judged once, or it is out of reach."""
        return self.has_settled or self.error is not None

    def is_in_step(self) -> bool:
        """Say whether the registry is true to Kubernetes, as far as anybody can know."""
        writer = self.writer
        if not self.has_settled and self._facts.has_seen_all() and not (writer.depth or writer.in_flight):
            self.has_settled = True
            self._on_change()
        if not self._facts.has_seen_all() or not self._is_fresh() or self.error:
            return False
        return (
            writer.overdue_seconds() < self._overdue_seconds
            if self.mark.is_put
            else not (writer.depth or writer.in_flight)
        )

    def learn(self, service: GrpcService) -> None:
        """Follow the prefixes that a GrpcService writes under."""
        spec = service.spec
        if spec is None or self.name not in spec.registries:
            return
        prefixes = [self.streams.learn(layout, spec.registry_name) for layout in spec.layouts[self.name]]
        if spec.metrics_port is not None:
            prefixes.append(self.streams.learn_plain(f"/prometheus/job/{spec.registry_name}/".encode()))
        self.feed.follow(prefixes)

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            for part in (self.feed, self.election, self.leases, self.writer, self.mark):
                group.create_task(part.run())

    async def run_dry(self) -> None:
        """Read and plan until cancelled; write nothing and never lead."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.feed.run())
            group.create_task(self.writer.run())

    async def hand_over(self) -> None:
        """Let another replica lead at once; keys and leases stay."""
        await self.writer.flush(0.5)
        await self.election.resign()

    def enqueue(self, uids: Iterable[str], *, urgent: bool = False) -> None:
        """Look at these units again."""
        self.writer.enqueue(uids, urgent=urgent)

    def _take(self, prefixes: tuple[bytes, ...], news: News) -> None:
        was_lost, self._is_lost = self._is_lost, self.feed.trouble is not None
        if was_lost and not self._is_lost:
            self._on_change()
        match news:
            case Listed(records=records, revision=revision):
                changed = self.mirror.replace(prefixes, records, revision)
                if self._owners in prefixes and self.election.is_leading:
                    self._adopt()
                self.writer.enqueue(changed)
                self.writer.wake()
                if self._owners in prefixes:
                    self._on_change()
            case Changed(events=events):
                self.writer.note_events(events)
                changed = self.mirror.apply(events)
                if changed:
                    self.writer.enqueue(changed)
            case Lost(error=error):
                self.writer.trouble.count(error)
                fields = {"registry": self.name, "error": str(error), "remedy": self._advise(error)}
                log.warning("etcd is out of reach; it is tried again", extra={"fields": fields})
                self._on_change()

    def _leadership_changed(self) -> None:
        if self.election.is_leading:
            self._adopt()
        else:
            self.leases.release_all()
        self.writer.drop_plans()
        self._on_change()

    def _adopt(self) -> None:
        """Keep alive the leases of all units that are ours: it is what a takeover consists of."""
        self.leases.adopt(lease_id(self.cluster, SETTLED))
        for uid, owner in self.mirror.owners.items():
            if self._scope.covers(owner.namespace):
                self.leases.adopt(lease_id(self.cluster, uid))

    def _lost_lease(self, lease: int) -> None:
        uid = self.mirror.unit_of_lease(lease)
        if uid:
            self.writer.enqueue([uid])

    async def close(self) -> None:
        """Close the client."""
        with contextlib.suppress(EtcdError):
            await self.etcd.close()

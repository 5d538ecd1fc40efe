"""Who writes: one replica per registry, elected by an etcd key under a short lease.

The key's create revision is the fence: every write transaction compares it, so a leader that was frozen and wakes up
changes nothing. A replica that takes care of something else under the same cluster id never leads beside another one.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from grpc_etcd.etcd import compare, ops
from grpc_etcd.etcd.aio import Etcd
from grpc_etcd.etcd.compare import Compare
from grpc_etcd.etcd.errors import EtcdError
from grpc_etcd.etcd.model import Changed, Deleted, LeaseId, Listed, Record
from grpc_etcd.registry.own import leader_key
from grpc_etcd_operator.core.scope import Scope, is_conflicting, write_leader

log = logging.getLogger(__name__)
RETRY_SECONDS = 1.0


class Election:
    """This replica's part in the election for one registry. `on_change` is called after each gain and each loss."""

    def __init__(  # noqa: PLR0913, PLR0917  who campaigns, where, for what
        self, etcd: Etcd, cluster: str, identity: str, scope: Scope, ttl_seconds: int, on_change: Callable[[], None]
    ) -> None:
        self._etcd, self._scope, self._ttl = etcd, scope, ttl_seconds
        self._key = leader_key(cluster)
        self._value = write_leader(identity, scope)
        self._on_change = on_change
        self._leader: Record | None = None
        self._is_listed = False
        self._news = asyncio.Event()
        self._not_before = 0.0
        self._has_resigned = False
        self._keep_alive = etcd.keep_alive(self._lost_lease)
        self.lease = LeaseId(0)
        self.revision = 0

    @property
    def is_leading(self) -> bool:
        """Say whether this replica believes to be the leader; the fence decides."""
        return self.revision != 0

    @property
    def is_leader_known(self) -> bool:
        """Say whether anybody is known to lead."""
        return self._leader is not None

    @property
    def refuses(self) -> bool:
        """Say whether another installation with another scope leads under our cluster id."""
        return self._leader is not None and is_conflicting(self._scope, self._leader.value)

    def fence(self) -> Compare:
        """Give the condition of every write."""
        return compare.create_revision(self._key, "==", self.revision)

    def read(self) -> ops.GetOp:
        """Give the read that tells, when a transaction was refused, whether the fence did it."""
        return ops.get(self._key)

    def note_leader(self, record: Record | None) -> None:
        """Take who leads, as a transaction or the watch has seen it."""
        self._leader = record
        if record is not None and is_conflicting(self._scope, record.value):
            if self._not_before < time.monotonic():
                log.error(
                    "another installation leads under this cluster id, with other namespaces or another selector; "
                    "this one stands back: give one of them another --cluster-id",
                    extra={"fields": {"leader": record.value.decode(errors="replace")}},
                )
            # Its other replicas come first: two times to live give them the time to notice that their leader is gone.
            self._not_before = time.monotonic() + 2 * self._ttl
        if self.revision and (record is None or record.create_revision != self.revision):
            self._lose()
        self._news.set()

    async def run(self) -> None:
        """Campaign whenever nobody leads, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch())
            while True:
                self._news.clear()
                if self._may_campaign():
                    await self._campaign()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(RETRY_SECONDS):
                        await self._news.wait()

    def _may_campaign(self) -> bool:
        is_open = self._is_listed and self._leader is None
        return is_open and not self._has_resigned and time.monotonic() >= self._not_before

    async def resign(self) -> None:
        """Hand over at once and for good: the lease goes, and with it the leader's key and the synced mark."""
        self._has_resigned = True
        if not self.lease:
            return
        lease, self.lease = self.lease, LeaseId(0)
        self._lose()
        with contextlib.suppress(EtcdError):  # without etcd the lease runs out by itself
            await self._etcd.revoke(lease)

    def close(self) -> None:
        """Let the lease run out: for those who must be followed by nobody for a while."""
        self._keep_alive.remove(self.lease)

    async def _watch(self) -> None:
        async with self._etcd.list_watch(self._key) as stream:
            async for news in stream:
                match news:
                    case Listed(records=records, revision=revision) if revision >= self.revision:
                        self._is_listed = True
                        self.note_leader(next((each for each in records if each.key == self._key), None))
                    case Changed(events=events):
                        for event in events:
                            if event.key == self._key and event.revision >= self.revision:
                                self.note_leader(None if isinstance(event, Deleted) else event.record)

    async def _campaign(self) -> None:
        try:
            if not self.lease:
                self.lease = await self._etcd.lease(self._ttl)
                self._keep_alive.add(self.lease, self._ttl, remaining_seconds=0)
            absent = compare.create_revision(self._key, "==", 0)
            put = ops.put(self._key, self._value, lease=self.lease)
            result = await self._etcd.transaction([absent], [put], [self.read()])
        except EtcdError as error:
            log.debug("the campaign failed; it goes on", extra={"fields": {"error": str(error)}})
            self._drop_lease()
            return
        if result.succeeded:
            self.revision = result.revision
            log.info("this replica leads", extra={"fields": {"key": self._key.decode(), "revision": result.revision}})
            self._on_change()

    def _lost_lease(self, lease: LeaseId) -> None:
        if lease == self.lease:
            self._drop_lease()
            self._lose()
            self._news.set()

    def _drop_lease(self) -> None:
        self._keep_alive.remove(self.lease)
        self.lease = LeaseId(0)

    def _lose(self) -> None:
        if self.revision:
            self.revision = 0
            log.warning("this replica no longer leads", extra={"fields": {"key": self._key.decode()}})
            self._on_change()

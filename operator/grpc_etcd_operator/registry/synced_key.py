"""The synced key: a key that signals to readers "what you see is complete and cared for".

It is under the leader's lease, is put once and not rewritten, and goes as soon as the leader falls not synced.
When somebody else deletes it, it is put again.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

from grpc_etcd.etcd import compare, ops
from grpc_etcd.etcd.aio import Etcd
from grpc_etcd.etcd.compare import Compare
from grpc_etcd.etcd.errors import EtcdError
from grpc_etcd.etcd.model import Listing, TransactionResult
from grpc_etcd.registry.own import synced_key
from grpc_etcd_operator.registry.election import Election

log = logging.getLogger(__name__)
CHECK_SECONDS = 5.0
OVERDUE_SECONDS = 30.0
UNKNOWN = (0, False)  # of no term: whatever is wanted is made so


class SyncedKey:
    """Puts and removes the synced key of one registry. `is_in_step` is asked at each `look`."""

    def __init__(
        self,
        etcd: Etcd,
        cluster: str,
        election: Election,
        is_in_step: Callable[[], bool],
        is_same_history: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        """Ask `is_same_history` before the synced key is put, and now and then while it stands."""
        self._is_same_history = is_same_history
        self._etcd, self._key = etcd, synced_key(cluster)
        self._election, self._is_in_step = election, is_in_step
        self._known = UNKNOWN
        self._check_at = 0.0
        self._is_due = asyncio.Event()

    @property
    def is_put(self) -> bool:
        """Return whether the synced key stands, put or found by this replica in its present term."""
        return self._known == (self._election.number, True) and self._election.is_leading

    def look(self) -> None:
        """Let `run` do what is to be done; to be called at least once a second."""
        election = self._election
        wanted = election.term != 0 and self._is_in_step()
        is_other = election.is_leading and self._known != (election.number, wanted)
        if is_other or (wanted and time.monotonic() >= self._check_at):
            self._is_due.set()

    async def run(self) -> None:
        """Keep the synced key true, until cancelled; somebody else has it look."""
        while True:
            await self._is_due.wait()
            self._is_due.clear()
            await self._keep()

    async def _keep(self) -> None:
        term, number = self._election.term, self._election.number
        wanted = term != 0 and self._is_in_step()
        if term and self._known != (number, wanted):
            # To confirm that takes a while, in which it may have fallen not synced.
            if not wanted or (await self._may_confirm() and self._is_in_step()):
                await self._set(term, number, wanted=wanted)
        elif self.is_put and await self._may_confirm():
            await self._put_back(term)

    async def _may_confirm(self) -> bool:
        try:
            return self._is_same_history is None or await self._is_same_history()
        except EtcdError:
            return False

    async def _set(self, term: int, number: int, *, wanted: bool) -> None:
        """Put or delete the synced key; of a term that was taken up again it may stand already."""
        fence = self._election.fence(term)
        conditions, operation = (
            ([*fence, self._is_not_ours()], self._put()) if wanted else ([*fence], ops.delete(self._key))
        )
        was_put = self._known[1]
        if wanted:
            self._known = UNKNOWN  # an answer may be lost: it stands then, and is to go should that be wanted next
        try:
            result = await self._etcd.transaction(conditions, [operation], [self._election.read(), ops.get(self._key)])
        except EtcdError as error:
            log.debug(
                "Synced key not written",
                extra={"event": "synced_key_failed", "fields": {"error": str(error)}},
            )
            return
        if result.succeeded or (wanted and self._stands(result, term)):
            self._known = (number, wanted)
            if wanted or was_put:
                log.info(
                    "Registry synced" if wanted else "Registry no longer synced",
                    extra={"event": "synced_key_put" if wanted else "synced_key_deleted"},
                )

    def _stands(self, result: TransactionResult, term: int) -> bool:
        leader, mark = (response.records for response in result.responses if isinstance(response, Listing))
        return bool(leader and leader[0].create_revision == term and mark and mark[0].lease == self._election.lease)

    async def _put_back(self, term: int) -> None:
        """Put the synced key again if it is no longer there as it was."""
        self._check_at = time.monotonic() + CHECK_SECONDS
        conditions = [*self._election.fence(term), self._is_not_ours()]
        with contextlib.suppress(EtcdError):  # the next look comes soon
            if (await self._etcd.transaction(conditions, [self._put()])).succeeded:
                log.warning(
                    "Synced key changed by another client, writing it again",
                    extra={"event": "synced_key_overwritten"},
                )

    def _is_not_ours(self) -> Compare:
        """Return the condition that it does not are under our lease: without one it would outlive whoever confirms."""
        return compare.lease(self._key, "!=", self._election.lease)

    def _put(self) -> ops.PutOp:
        return ops.put(self._key, b"synced", lease=self._election.lease)

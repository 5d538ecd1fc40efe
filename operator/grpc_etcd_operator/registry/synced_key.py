"""The synced mark: a key that tells readers "what you see is complete and cared for".

It stands under the leader's lease, is put once and not rewritten, and goes as soon as the leader falls out of step.
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
LOOK_SECONDS = 0.25
CHECK_SECONDS = 5.0
OVERDUE_SECONDS = 30.0
UNKNOWN = (0, False)  # of no term: whatever is wanted is made so


class Mark:
    """Puts and removes the mark of one registry. `is_in_step` is asked a few times a second."""

    def __init__(
        self,
        etcd: Etcd,
        cluster: str,
        election: Election,
        is_in_step: Callable[[], bool],
        is_same_history: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        """Ask `is_same_history` before the mark is put, and now and then while it stands."""
        self._is_same_history = is_same_history
        self._etcd, self._key = etcd, synced_key(cluster)
        self._election, self._is_in_step = election, is_in_step
        self._known = UNKNOWN
        self._check_at = 0.0

    @property
    def is_put(self) -> bool:
        """Say whether the mark stands, put or found by this replica in its present term."""
        return self._known == (self._election.number, True) and self._election.is_leading

    async def run(self) -> None:
        """Keep the mark true, until cancelled."""
        while True:
            term, number = self._election.term, self._election.number
            wanted = term != 0 and self._is_in_step()
            if term and self._known != (number, wanted):
                # To vouch takes a while, in which it may have fallen out of step.
                if not wanted or (await self._may_vouch() and self._is_in_step()):
                    await self._set(term, number, wanted=wanted)
            elif self.is_put and time.monotonic() >= self._check_at and await self._may_vouch():
                await self._put_back(term)
            await asyncio.sleep(LOOK_SECONDS)

    async def _may_vouch(self) -> bool:
        try:
            return self._is_same_history is None or await self._is_same_history()
        except EtcdError:
            return False

    async def _set(self, term: int, number: int, *, wanted: bool) -> None:
        """Put or delete the mark; of a term that was taken up again it may stand already."""
        fence = self._election.fence(term)
        conditions, operation = (
            ([fence, self._is_not_ours()], self._put()) if wanted else ([fence], ops.delete(self._key))
        )
        was_put = self._known[1]
        if wanted:
            self._known = UNKNOWN  # an answer may be lost: it stands then, and is to go should that be wanted next
        try:
            result = await self._etcd.transaction(conditions, [operation], [self._election.read(), ops.get(self._key)])
        except EtcdError as error:
            log.debug(
                "the synced mark could not be set",
                extra={"event": "synced_key_failed", "fields": {"error": str(error)}},
            )
            return
        if result.succeeded or (wanted and self._stands(result, term)):
            self._known = (number, wanted)
            if wanted or was_put:
                log.info(
                    "in step: the synced mark is put" if wanted else "out of step: the synced mark is withdrawn",
                    extra={"event": "synced_key_put" if wanted else "synced_key_deleted"},
                )

    def _stands(self, result: TransactionResult, term: int) -> bool:
        leader, mark = (response.records for response in result.responses if isinstance(response, Listing))
        return bool(leader and leader[0].create_revision == term and mark and mark[0].lease == self._election.lease)

    async def _put_back(self, term: int) -> None:
        """Put the mark again if it is no longer there as it was."""
        self._check_at = time.monotonic() + CHECK_SECONDS
        conditions = [self._election.fence(term), self._is_not_ours()]
        with contextlib.suppress(EtcdError):  # the next look comes soon
            if (await self._etcd.transaction(conditions, [self._put()])).succeeded:
                log.warning(
                    "somebody else deleted or put the synced mark; it is put again",
                    extra={"event": "synced_key_overwritten"},
                )

    def _is_not_ours(self) -> Compare:
        """Give the condition that it does not stand under our lease: without one it would outlive whoever vouches."""
        return compare.lease(self._key, "!=", self._election.lease)

    def _put(self) -> ops.PutOp:
        return ops.put(self._key, b"in step", lease=self._election.lease)

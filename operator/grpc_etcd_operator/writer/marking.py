"""The synced mark: a key that tells readers "what you see is complete and cared for".

It stands under the leader's lease, is put once and not rewritten, and goes as soon as the leader falls out of step.
When somebody else deletes it, it is put again.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from grpc_etcd.etcd import compare, ops
from grpc_etcd.etcd.aio import Etcd
from grpc_etcd.etcd.errors import EtcdError
from grpc_etcd.registry.own import synced_key
from grpc_etcd_operator.writer.electing import Election

log = logging.getLogger(__name__)
LOOK_SECONDS = 0.25
CHECK_SECONDS = 5.0
OVERDUE_SECONDS = 30.0


class Mark:
    """Puts and removes the mark of one registry. `is_in_step` is asked a few times a second."""

    def __init__(self, etcd: Etcd, cluster: str, election: Election, is_in_step: Callable[[], bool]) -> None:
        self._etcd, self._key = etcd, synced_key(cluster)
        self._election, self._is_in_step = election, is_in_step
        self._put_by = 0
        self._check_at = 0.0

    @property
    def is_put(self) -> bool:
        """Say whether the mark stands, put by this replica's present term."""
        return self._put_by != 0 and self._put_by == self._election.revision

    async def run(self) -> None:
        """Keep the mark true, until cancelled."""
        while True:
            wanted = self._election.is_leading and self._is_in_step()
            if wanted != self.is_put and self._election.is_leading:
                await self._set(wanted=wanted)
            elif self.is_put and time.monotonic() >= self._check_at:
                await self._put_back()
            await asyncio.sleep(LOOK_SECONDS)

    async def _set(self, *, wanted: bool) -> None:
        term = self._election.revision
        operation = self._put() if wanted else ops.delete(self._key)
        try:
            result = await self._etcd.transaction([self._election.fence()], [operation])
        except EtcdError as error:
            log.debug("the synced mark could not be set", extra={"fields": {"error": str(error)}})
            return
        if result.succeeded:
            self._put_by = term if wanted else 0
            log.info("in step: the synced mark is put" if wanted else "out of step: the synced mark is withdrawn")

    async def _put_back(self) -> None:
        """Put the mark again if it is no longer there."""
        self._check_at = time.monotonic() + CHECK_SECONDS
        absent = compare.create_revision(self._key, "==", 0)
        with contextlib.suppress(EtcdError):  # the next look comes soon
            if (await self._etcd.transaction([self._election.fence(), absent], [self._put()])).succeeded:
                log.warning("somebody else deleted the synced mark; it is put again")

    def _put(self) -> ops.PutOp:
        return ops.put(self._key, b"in step", lease=self._election.lease)

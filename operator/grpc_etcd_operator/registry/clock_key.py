"""The clock key: when revisions of etcd were committed, which etcd itself does not record.

Not part of the transactions that change the registry: those are to be refused for no reason of its own. The first
revision after a quiet second is recorded at once, in a storm one each second. What cannot be written is left out: a
later reading says of the same revisions that they were there by then.
"""

import asyncio
import logging
import time

from grpc_etcd.etcd import ops
from grpc_etcd.etcd.aio import Etcd
from grpc_etcd.etcd.errors import EtcdError
from grpc_etcd.registry.own import ClockReading, clock_key
from grpc_etcd_operator.registry.election import Election

log = logging.getLogger(__name__)
PAUSE_SECONDS = 1.0  # how exact the times in a storm are, and how often the key is written at most. Arbitrary


class ClockKey:
    """Writes the clock key of one registry while this replica leads it."""

    def __init__(self, etcd: Etcd, cluster: str, election: Election) -> None:
        self._etcd, self._key, self._election = etcd, clock_key(cluster), election
        self._reading = ClockReading(0, 0.0)
        self._is_due = asyncio.Event()

    def note(self, revision: int) -> None:
        """Record that a revision has been seen just now."""
        if self._election.is_leading:
            self._reading = ClockReading(revision, time.time())
            self._is_due.set()

    async def run(self) -> None:
        """Write what is recorded, until cancelled."""
        while True:
            await self._is_due.wait()
            self._is_due.clear()
            await self._write()
            await asyncio.sleep(PAUSE_SECONDS)

    async def _write(self) -> None:
        term = self._election.term
        if not term:
            return
        try:
            await self._etcd.transaction(self._election.fence(term), [ops.put(self._key, self._reading.to_json())])
        except EtcdError as error:
            log.debug("Clock key not written", extra={"event": "clock_key_failed", "fields": {"error": str(error)}})

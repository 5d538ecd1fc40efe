"""Compares what is remembered of a registry with what etcd holds, now and then: whatever the watches have missed.

A listing of keys alone, in pages, costs little; it shows each key's revision and lease. What differs may just be on its
way, so it is looked at once more after a while; what still differs has been missed, is read and corrected, and counted.
"""

import asyncio
import bisect
import contextlib
import itertools
import logging
from collections.abc import Callable, Collection, Sequence

from grpc_etcd.etcd.aio import Etcd
from grpc_etcd.etcd.errors import EtcdError
from grpc_etcd.etcd.model import Record
from grpc_etcd_operator.registry.cache import RegistryCache

log = logging.getLogger(__name__)
EVERY_SECONDS = 300.0
GRACE_SECONDS = 5.0  # for what the watch has yet to deliver. Arbitrary


class Audit:
    """Compares one registry's cache with etcd.

    `prefixes` gives what is followed; `on_missed` is called with whom a correction concerns.
    """

    def __init__(  # noqa: PLR0913  what is compared with what, and how often
        self,
        etcd: Etcd,
        registry_cache: RegistryCache,
        prefixes: Callable[[], Collection[bytes]],
        on_missed: Callable[[set[str]], None],
        *,
        every_seconds: float = EVERY_SECONDS,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        self._etcd, self._registry_cache, self._prefixes, self._on_missed = etcd, registry_cache, prefixes, on_missed
        self._every_seconds, self._grace_seconds = every_seconds, grace_seconds
        self.missed = 0

    async def run(self) -> None:
        """Compare now and then, until cancelled."""
        while True:
            await asyncio.sleep(self._every_seconds)
            await self.compare()

    async def compare(self) -> None:
        """Compare once, and correct what has been missed; a prefix that cannot be read now is left out."""
        known = sorted(self._registry_cache.records)
        for prefix in tuple(self._prefixes()):
            with contextlib.suppress(EtcdError):
                await self._compare(prefix, known)

    async def _compare(self, prefix: bytes, known: Sequence[bytes]) -> None:
        if suspects := await self._find_differing(prefix, known):
            await asyncio.sleep(self._grace_seconds)
            lasting = suspects & await self._find_differing(prefix, known)
            for key, _ in sorted(lasting):
                await self._correct(prefix, key)

    async def _find_differing(self, prefix: bytes, known: Sequence[bytes]) -> set[tuple[bytes, int]]:
        """Return keys that differ, with the revision at which they stand in etcd (0: they are not there)."""
        listing = await self._etcd.get_prefix(prefix, keys_only=True)
        held, record = {each.key: each for each in listing.records}, self._registry_cache.record
        differing = {(key, each.mod_revision) for key, each in held.items() if not _is_same(record(key), each)}
        remembered = itertools.takewhile(
            lambda key: key.startswith(prefix), itertools.islice(known, bisect.bisect_left(known, prefix), None)
        )
        return differing | {(key, 0) for key in remembered if key not in held and record(key)}

    async def _correct(self, prefix: bytes, key: bytes) -> None:
        before = self._registry_cache.record(key)
        record = await self._etcd.get(key)
        if self._registry_cache.record(key) != before or record == before:
            return  # the news have come meanwhile
        if prefix not in self._prefixes():
            return  # nobody follows it any more, nor is anything of it to be remembered
        self.missed += 1
        log.error(
            "Watch missed a change",
            extra={"event": "change_missed", "fields": {"key": key.decode(errors="replace")}},
        )
        self._on_missed(self._registry_cache.correct(key, record))


def _is_same(known: Record | None, held: Record) -> bool:
    return known is not None and (known.mod_revision, known.lease) == (held.mod_revision, held.lease)

"""Keeps a mirror in step: list+watches of the owner records and of the prefixes that our services write under.

Prefixes come and go with GrpcServices. Those that come together share one stream; a prefix once followed stays
followed, which costs nothing when nobody writes there.
"""

import asyncio
from collections.abc import Callable, Iterable

from grpc_etcd.etcd.aio import Etcd
from grpc_etcd.etcd.model import Listed, Lost, News

# Prefixes that turn up within this time share a stream: a start finds all GrpcServices at once. Arbitrary.
GATHER_SECONDS = 0.02


class Feed:
    """Follows prefixes of one registry and hands on all news with the prefixes that they are of."""

    def __init__(self, etcd: Etcd, on_news: Callable[[tuple[bytes, ...], News], None]) -> None:
        self._etcd, self._on_news = etcd, on_news
        self._wanted: set[bytes] = set()
        self._listed: set[bytes] = set()
        self._lost: dict[tuple[bytes, ...], Lost] = {}
        self._added = asyncio.Event()

    def follow(self, prefixes: Iterable[bytes]) -> None:
        """Follow these prefixes too, from now on and for ever."""
        self._wanted.update(prefixes)
        self._added.set()

    def has(self, prefixes: Iterable[bytes]) -> bool:
        """Say whether all these prefixes have been listed."""
        return self._listed.issuperset(prefixes)

    def is_followed(self, prefix: bytes) -> bool:
        """Say whether a prefix is or will be followed."""
        return prefix in self._wanted

    @property
    def trouble(self) -> Lost | None:
        """Give the oldest loss of connection that still lasts."""
        return min(self._lost.values(), key=lambda lost: lost.since, default=None)

    async def run(self) -> None:
        """Open streams as prefixes come, until cancelled."""
        followed: set[bytes] = set()
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    await self._added.wait()
                    await asyncio.sleep(GATHER_SECONDS)
                    self._added.clear()
                    new = tuple(sorted(self._wanted - followed))
                    followed |= self._wanted
                    if new:
                        group.create_task(self._follow(new))
        finally:
            self._listed.clear()

    async def _follow(self, prefixes: tuple[bytes, ...]) -> None:
        async with self._etcd.list_watch(*prefixes) as stream:
            async for news in stream:
                if isinstance(news, Lost):
                    self._lost[prefixes] = news
                elif self._lost:
                    self._lost.pop(prefixes, None)
                if isinstance(news, Listed):
                    self._listed.update(prefixes)
                self._on_news(prefixes, news)

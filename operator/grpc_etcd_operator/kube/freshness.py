"""How fresh the watch streams are. Kopf delivers no bookmarks, so this looks at the bytes that arrive, through aiohttp.

A stream is *deaf* when it is open and no byte comes, or when nobody even tries to open one: then the process is of no
use and liveness fails. Refused and failed requests are no deafness: an API server that is away will come back.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import aiohttp

DEAF_SECONDS = 180.0  # bookmarks come once a minute
GAP_SECONDS = 30.0
_RESOURCE = re.compile(r"/(pods|grpcservices)$")


@dataclass(slots=True)
class Stream:
    """What is known of the watch of one resource in one namespace."""

    resource: str
    attempted_at: float
    is_listed: bool = False
    response: aiohttp.ClientResponse | None = None
    received_bytes: int = 0
    heard_at: float = 0.0


class Freshness:
    """Follows the watch requests of a session.

    `on_opened` is told the resource each time one of its watches begins after a list. One that goes on where it was cut
    off has missed nothing.
    """

    def __init__(
        self,
        on_opened: Callable[[str], None],
        *,
        deaf_seconds: float = DEAF_SECONDS,
        gap_seconds: float = GAP_SECONDS,
    ) -> None:
        self._on_opened, self._deaf_seconds, self._gap_seconds = on_opened, deaf_seconds, gap_seconds
        self._streams: dict[tuple[str, str], Stream] = {}
        self._started = time.monotonic()

    def trace(self) -> aiohttp.TraceConfig:
        """Give the trace that a session must carry."""
        trace = aiohttp.TraceConfig()
        trace.on_request_end.append(self._ended)
        trace.on_request_exception.append(self._failed)
        return trace

    async def _ended(
        self, _: aiohttp.ClientSession, __: SimpleNamespace, params: aiohttp.TraceRequestEndParams
    ) -> None:
        stream = self._note(params.url)
        if stream is None or not params.response.ok:
            return
        if params.url.query.get("watch") != "true":
            stream.is_listed = True
            return
        stream.response, stream.received_bytes, stream.heard_at = params.response, 0, stream.attempted_at
        if stream.is_listed:
            stream.is_listed = False
            self._on_opened(stream.resource)

    async def _failed(
        self, _: aiohttp.ClientSession, __: SimpleNamespace, params: aiohttp.TraceRequestExceptionParams
    ) -> None:
        self._note(params.url)

    def _note(self, url: Any) -> Stream | None:
        found = _RESOURCE.search(url.path)
        if not found:
            return None
        stream = self._streams.setdefault((found[1], url.path), Stream(found[1], 0.0))
        stream.attempted_at = time.monotonic()
        return stream

    def _look(self, stream: Stream) -> None:
        """Take note of bytes that have come since the last look."""
        if stream.response is None:
            return
        received = stream.response.content.total_bytes
        if received != stream.received_bytes:
            stream.received_bytes, stream.heard_at = received, time.monotonic()

    def event_age(self, resource: str) -> float:
        """Say how many seconds ago the quietest watch of a resource last said anything."""
        now = time.monotonic()
        streams = [stream for (name, _), stream in self._streams.items() if name == resource]
        for stream in streams:
            self._look(stream)
        return now - min((stream.heard_at or self._started for stream in streams), default=self._started)

    def is_fresh(self) -> bool:
        """Say whether every watch is open, or was until a moment ago, and not silent."""
        now = time.monotonic()
        for stream in self._streams.values():
            self._look(stream)
            closed = stream.response is None or stream.response.closed
            if now - stream.heard_at > (self._gap_seconds if closed else self._deaf_seconds):
                return False
        return bool(self._streams)

    def is_deaf(self) -> bool:
        """Say whether a watch is neither heard nor tried any more."""
        now = time.monotonic()
        for stream in self._streams.values():
            self._look(stream)
        latest = [max(stream.attempted_at, stream.heard_at) for stream in self._streams.values()]
        return now - min(latest, default=self._started) > self._deaf_seconds

"""Asks for fewer objects at a time where a page of a list does not come in time.

A page that is too large for a slow connection, or an API server that has little CPU, would else be asked for again and
again, and would never come: nothing would be known of Kubernetes. Whoever lists asks for the usual number; this is in
the session and asks for what comes, however large the objects are.
"""

import asyncio
import logging
import time

import aiohttp
from aiohttp import ClientHandlerType, ClientRequest, ClientResponse

log = logging.getLogger(__name__)
PAGE_SECONDS = 30.0  # for a page of a list, from the request to its last byte
QUICK_SECONDS = 3.0  # after a page that came in so little time more is asked for. Arbitrary
LIST_SECONDS = 150.0  # for a page with all that it takes to find out how large it may be
CUT = 8  # a page that is late is asked for again with so much less in it; the fourth has one object. Arbitrary


class Paging:
    """How many objects at a time one session asks for."""

    def __init__(self, *, page_seconds: float = PAGE_SECONDS, quick_seconds: float = QUICK_SECONDS) -> None:
        self._page_seconds, self._quick_seconds = page_seconds, quick_seconds
        self._most = 0  # 0: as many as whoever lists asks for

    async def __call__(self, request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        """Send a request; a page of a list is read in full, with less in it if need be."""
        wanted = _read_limit(request)
        if wanted <= 1:
            return await handler(request)
        while True:
            size = min(wanted, self._most or wanted)
            request.url = request.url.update_query(limit=str(size))
            began = time.monotonic()
            try:
                async with asyncio.timeout(self._page_seconds):
                    response = await handler(request)
                    await response.read()
            except aiohttp.ConnectionTimeoutError:
                raise  # nobody was there to be asked
            except TimeoutError:
                if size == 1:
                    raise
                self._most = max(1, size // CUT)
                fields = {"of": request.url.path, "objects": size, "next": self._most}
                log.warning(
                    "A page of a list did not arrive in time, requesting fewer objects",
                    extra={"event": "page_cut", "fields": fields},
                )
            else:
                if time.monotonic() - began < self._quick_seconds:
                    self._most = size * 2 if size * 2 < wanted else 0
                return response


def _read_limit(request: ClientRequest) -> int:
    """Read how many objects a request asks for at most; 0: it is none for a page of a list."""
    limit = request.url.query.get("limit", "")
    return int(limit) if request.method == "GET" and limit.isascii() and limit.isdigit() else 0

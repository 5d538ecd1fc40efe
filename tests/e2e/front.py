"""An HTTP server in front of an API server, which spoils what a test asks it to: it hangs, refuses, counts.

TcpProxy fails whole connections; this one knows requests. It forwards without TLS, each chunk as it comes, in a thread
of its own.
"""

import asyncio
import contextlib
import itertools
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

import aiohttp
from aiohttp import web

from testbed.apiserver import ApiServer
from testbed.conditions import free_port, wait_until

STOP_SECONDS = 60.0
Matches = Callable[[web.Request], bool]


def is_watch(request: web.Request) -> bool:
    """Whether a request is a watch."""
    return request.query.get("watch") == "true"


class Front:
    """Stands before `api`; `requests` has the path of each request, what became of it, and when."""

    def __init__(self, api: ApiServer, folder: Path) -> None:
        self._api = api
        self._port = free_port()
        self._sockets: list[socket.socket] = []
        self.requests: list[tuple[str, int, float]] = []
        self.refused: list[tuple[str, float]] = []
        self.hangs: Matches = lambda _: False
        self.refuses: Matches = lambda _: False
        self.refusal: tuple[int, Mapping[str, str]] = (401, {})
        self.loses: Callable[[web.Request, bytes], bool] = lambda _request, _body: False  # the answer, not the request
        self.withholds: Matches = lambda _: False  # what is still to come of an answer
        self.kubeconfig = folder / "front.kubeconfig"
        config = json.loads(api.kubeconfig.read_text())
        config["clusters"][0]["cluster"] = {"server": f"http://127.0.0.1:{self._port}"}
        self.kubeconfig.write_text(json.dumps(config))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="front", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(STOP_SECONDS)
        # A handshake that was cancelled ends some steps of the loop later.
        wait_until(lambda: all(each.fileno() < 0 for each in self._sockets), "the front's connections are closed")
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def count(self, status: int) -> int:
        """How many requests ended so."""
        return sum(each == status for _, each, _ in self.requests)

    def gaps(self) -> list[float]:
        """The seconds between requests of one path that it refused itself."""
        times: dict[str, list[float]] = {}
        for path, at in self.refused:
            times.setdefault(path, []).append(at)
        return [later - earlier for each in times.values() for earlier, later in itertools.pairwise(each)]

    def _note(self, request: web.Request, status: int) -> None:
        self.requests.append((request.path, status, time.monotonic()))

    async def _start(self) -> None:
        self._is_closing = asyncio.Event()
        trusts = ssl.create_default_context(cafile=str(self._api.authority.ca))
        connector = aiohttp.TCPConnector(limit=0, ssl=trusts, socket_factory=self._make_socket)
        self._session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None))
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()

    def _make_socket(self, address: aiohttp.AddrInfoType) -> socket.socket:
        family, kind, protocol, *_ = address
        made = socket.socket(family, kind, protocol)
        self._sockets.append(made)
        return made

    async def _stop(self) -> None:
        await self._session.close()  # first, which ends what is being forwarded
        self._is_closing.set()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if self.hangs(request):
            self._note(request, 0)
            await self._is_closing.wait()
        if self.refuses(request):
            status, headers = self.refusal
            self._note(request, status)
            self.refused.append((request.path, time.monotonic()))
            return web.json_response({"kind": "Status", "message": "spoilt"}, status=status, headers=headers)
        return await self._forward(request)

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        kept = {
            name: value
            for name, value in request.headers.items()
            if name in {"Authorization", "Accept", "Content-Type"}
        }
        body = await request.read()
        is_lost = self.loses(request, body)
        async with self._session.request(
            request.method, self._api.url + request.path_qs, headers=kept, data=body or None
        ) as reply:
            self._note(request, reply.status)
            if is_lost and request.transport is not None:
                request.transport.abort()
            response = web.StreamResponse(status=reply.status, headers={"Content-Type": reply.headers["Content-Type"]})
            try:
                with contextlib.suppress(aiohttp.ClientError, ConnectionError):  # either end may be gone by now
                    await response.prepare(request)
                    async for chunk in reply.content.iter_any():
                        if self.withholds(request):
                            await self._is_closing.wait()
                        await response.write(chunk)
            finally:
                if reply.connection is not None and reply.connection.transport is not None:
                    reply.connection.transport.abort()  # its TLS may else still say goodbye when the loop ends
            return response

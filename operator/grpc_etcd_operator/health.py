"""The port that Kubernetes and Prometheus ask: /healthz, /readyz, /metrics."""

import logging
import socket
from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

log = logging.getLogger(__name__)

# A check gives one sentence when something is wrong, else None.
Check = Callable[[], str | None]


async def serve(port: int, is_alive: Check, is_ready: Check, metrics: Callable[[], bytes]) -> web.AppRunner:
    """Listen on all addresses; the runner that is returned ends it. Port 0 picks a free one, which is logged."""

    async def health(_: web.Request) -> web.Response:
        return _answer(is_alive())

    async def readiness(_: web.Request) -> web.Response:
        return _answer(is_ready())

    async def exposition(_: web.Request) -> web.Response:
        return web.Response(body=metrics(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    application = web.Application()
    application.add_routes(
        [web.get("/healthz", health), web.get("/readyz", readiness), web.get("/metrics", exposition)]
    )
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    listener = _listen(port)
    await web.SockSite(runner, listener).start()
    log.info("metrics and health are served", extra={"fields": {"port": listener.getsockname()[1]}})
    return runner


def _listen(port: int) -> socket.socket:
    """Open one socket for IPv4 and IPv6, so that port 0 is one port and not two."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _answer(fault: str | None) -> web.Response:
    return web.Response(text=f"{fault or 'ok'}\n", status=503 if fault else 200)

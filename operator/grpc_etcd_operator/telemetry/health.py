"""The port that Kubernetes and Prometheus ask: /healthz, /readyz, /metrics.

Everybody in the cluster may connect, so whoever opens connections without end, and says nothing on them or reads
nothing, must not use up this process's file descriptors: without them neither etcd nor the API server can be reached.
Nor its time, of which the metrics of thousands of Pods take much: who asks for them again soon gets the previous ones.
"""

import asyncio
import logging
import socket
import time
from collections import Counter
from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from grpc_etcd.registry.escaping import escape_lines

log = logging.getLogger(__name__)
MOST_CONNECTIONS = 64  # then the oldest goes of whoever has the most. Arbitrary
IDLE_SECONDS = 10.0  # until whoever has connected says something. Arbitrary
END_SECONDS = 1.0  # for an answer under way when the process ends. Arbitrary
METRICS_SHARE = 20  # metrics are worked out again for so small a part of the time. Arbitrary

# A check gives one sentence when something is wrong, else None.
Check = Callable[[], str | None]


class Door(web.Server):
    """A server that tolerates only so many connections, and takes none from a kubelet for those of others."""

    def __call__(self) -> web.RequestHandler:
        """Make the protocol of a new connection."""
        transports = [each.transport for each in self.connections if each.transport is not None]
        transports = [each for each in transports if not each.is_closing()]
        if len(transports) >= MOST_CONNECTIONS:
            hosts = [_read_host(each) for each in transports]
            most, _ = Counter(hosts).most_common(1)[0]
            transports[hosts.index(most)].abort()
        return super().__call__()


class Spared:
    """Returns again what a function returned last, until so much time has passed that making it took little of it."""

    def __init__(self, make: Callable[[], bytes]) -> None:
        self._make, self._made, self._until = make, b"", 0.0

    def __call__(self) -> bytes:
        """Return what the function returns now, or returned a moment ago."""
        began = time.monotonic()
        if began >= self._until:
            self._made = self._make()
            ended = time.monotonic()
            self._until = ended + METRICS_SHARE * (ended - began)
        return self._made


async def serve(port: int, is_alive: Check, is_ready: Check, metrics: Callable[[], bytes]) -> web.ServerRunner:
    """Listen on all addresses; the runner that is returned ends it. Port 0 picks a free one, which is logged."""
    spared = Spared(metrics)

    async def answer(request: web.BaseRequest) -> web.Response:
        found = look_up(request)
        found.force_close()  # of many requests on one connection only the first costs anything
        return found

    def look_up(request: web.BaseRequest) -> web.Response:
        if request.method not in ("GET", "HEAD"):
            return web.Response(status=405)
        match request.path:
            case "/healthz":
                return _answer(is_alive())
            case "/readyz":
                return _answer(is_ready())
            case "/metrics":
                return web.Response(body=spared(), headers={"Content-Type": CONTENT_TYPE_LATEST})
        return web.Response(status=404)

    door = Door(answer, access_log=None, keepalive_timeout=IDLE_SECONDS)
    runner = web.ServerRunner(door, shutdown_timeout=END_SECONDS)
    await runner.setup()
    listener = _listen(port)
    await web.SockSite(runner, listener).start()
    log.info(
        "Serving metrics and health", extra={"event": "port_opened", "fields": {"port": listener.getsockname()[1]}}
    )
    return runner


def _read_host(transport: asyncio.BaseTransport) -> str:
    """Return the address that a connection comes from."""
    peer = transport.get_extra_info("peername")
    return str(peer[0]) if peer else ""


def _listen(port: int) -> socket.socket:
    """Open one socket for IPv4 and IPv6, so that port 0 is one port and not two."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _answer(fault: str | None) -> web.Response:
    return web.Response(text=f"{escape_lines(fault or 'ok')}\n", status=503 if fault else 200)

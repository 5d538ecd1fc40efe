"""The API server of these tests and a client of it."""

from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web

from grpc_etcd_operator.kube.client import Client
from tests.integration.operator_kube.scene import ApiServer


@pytest.fixture
async def api() -> AsyncIterator[tuple[ApiServer, Client]]:
    server = ApiServer()
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", server.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    client = Client(f"http://127.0.0.1:{runner.addresses[0][1]}", aiohttp.ClientSession())
    yield server, client
    await client.close()
    await runner.cleanup()

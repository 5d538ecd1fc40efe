"""What answers where an API server should be, and is none, is told as that: it ends nothing."""

import aiohttp
import pytest
from aiohttp import web

from grpc_etcd_operator.kube.client import ApiError, Client


@pytest.mark.parametrize("answer", ["[]", "7", '{"metadata": 1}', '{"resources": 5, "versions": 5}', "<html>"])
async def test_an_answer_of_another_shape_is_an_error_of_the_api_server(answer: str) -> None:
    async def give(_: web.Request) -> web.Response:
        return web.Response(text=answer, content_type="application/json")

    app = web.Application()
    app.router.add_get("/{path:.*}", give)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    client = Client("http://{}:{}".format(*runner.addresses[0]), aiohttp.ClientSession())
    try:
        with pytest.raises(ApiError, match="not an API server's"):
            await client.cluster_uid()
        with pytest.raises(ApiError, match="not an API server's"):
            await client.uid_of("pods", "shop", "one")
        if answer != '{"metadata": 1}':  # discovery has no metadata
            with pytest.raises(ApiError, match="not an API server's"):
                await client.crd_state()
    finally:
        await client.close()
        await runner.cleanup()

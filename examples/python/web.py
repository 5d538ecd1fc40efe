"""A web application that calls the greeter by name: `uvicorn web:app --workers 2`, with GRPC_ETCD_ENDPOINTS set.

Each worker process opens its own registry when it starts; the health page says what the channel knows.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from greeter_pb2 import HelloRequest
from greeter_pb2_grpc import GreeterStub

import grpc_etcd


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with grpc_etcd.Registry.from_environ().aio as registry, registry.insecure_channel("greeter") as channel:
        app.state.registry, app.state.greeter = registry, GreeterStub(channel)
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/hello/{name}")
async def hello(name: str, request: Request) -> dict[str, str]:
    reply = await request.app.state.greeter.SayHello(HelloRequest(name=name), timeout=5, wait_for_ready=True)
    return {"message": reply.message}


@app.get("/health")
async def health(request: Request) -> dict[str, object]:
    greeter = request.app.state.registry.stats()["greeter"]
    return {"endpoints": greeter.endpoints, "source": greeter.source, "connected": greeter.connected}

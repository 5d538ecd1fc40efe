"""A server that echoes, for benchmarks: `python -m bench.echo_server PORT HOST...` listens on all of them.

All have the same port, which it prints; 0 takes a free one. `SIGTERM` ends it.
"""

import asyncio
import sys
from collections.abc import Iterable

import grpc
from grpc import aio

SERVICE, NAME = "bench.Echo", "Call"


async def echo(request: bytes, _: object) -> bytes:
    return request


async def serve(port: int, hosts: Iterable[str]) -> None:
    server = aio.server(options=[("grpc.so_reuseport", 0)])
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {NAME: grpc.unary_unary_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    for host in hosts:
        port = server.add_insecure_port(f"{host}:{port}")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), sys.argv[2:]))

"""A server that echoes, for benchmarks: `python -m bench.echo_server HOST PORT COUNT` listens on COUNT addresses.

The first is HOST itself, the others follow it (127.9.0.1, 127.9.0.2, ...), all with the same port; it prints the port.
`SIGTERM` ends it.
"""

import asyncio
import ipaddress
import sys

import grpc
from grpc import aio

SERVICE, NAME = "bench.Echo", "Call"


async def echo(request: bytes, _: object) -> bytes:
    return request


async def serve(host: str, port: int, count: int) -> None:
    server = aio.server(options=[("grpc.so_reuseport", 0)])
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {NAME: grpc.unary_unary_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    first = int(ipaddress.ip_address(host))
    for number in range(count):
        port = server.add_insecure_port(f"{ipaddress.ip_address(first + number)}:{port}")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))

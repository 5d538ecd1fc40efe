"""Calls the greeter ten times at once over one `grpc.aio` channel, and prints who answered how often."""

import asyncio
from collections import Counter

from greeter_pb2 import HelloRequest
from greeter_pb2_grpc import GreeterStub

import grpc_etcd


async def main() -> None:
    with grpc_etcd.Registry.from_environ() as registry:
        await registry.aio.wait_for_endpoints("greeter", timeout_seconds=30)
        async with registry.aio.insecure_channel("greeter") as channel:
            greeter = GreeterStub(channel)
            calls = (greeter.SayHello(HelloRequest(name="asyncio"), timeout=5) for _ in range(10))
            replies = await asyncio.gather(*calls)
    for message, count in sorted(Counter(reply.message for reply in replies).items()):
        print(count, message)


asyncio.run(main())

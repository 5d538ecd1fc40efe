"""Calls the greeter ten times at once over one `grpc.aio` channel, and prints who answered how often."""

import asyncio
from collections import Counter

from greeter_pb2 import HelloRequest
from greeter_pb2_grpc import GreeterStub

import grpc_etcd


async def main() -> None:
    async with grpc_etcd.Registry.from_environ().aio as registry:
        await registry.wait_for_endpoints("greeter", timeout_seconds=30)
        async with registry.insecure_channel("greeter") as channel:
            await channel.channel_ready()  # the first endpoint is connected, and all calls would go to it
            await asyncio.sleep(0.2)  # the others are connected within a handshake
            greeter = GreeterStub(channel)
            calls = (greeter.SayHello(HelloRequest(name="asyncio"), timeout=5) for _ in range(10))
            replies = await asyncio.gather(*calls)
    for message, count in sorted(Counter(reply.message for reply in replies).items()):
        print(count, message)


asyncio.run(main())

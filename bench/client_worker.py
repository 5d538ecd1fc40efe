"""A process that calls: one (kind of channel, API, concurrency) each, so that none disturbs another's GIL.

It reads commands from standard input and answers with a line of JSON: `run SECONDS` makes calls for so long, `quit`
ends it.
`python -m bench.client_worker KIND TARGET API CONCURRENCY`; KIND is `native` (TARGET: addresses) or `registry` (TARGET:
etcd's endpoints).
"""

import asyncio
import json
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import ExitStack

import grpc

import grpc_etcd

METHOD = "/bench.Echo/Call"
SERVICE = "bench"
ROUND_ROBIN = ("grpc.service_config", '{"loadBalancingConfig":[{"round_robin":{}}]}')


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] if values else 0.0


def report(latencies: list[float], wall: float, cpu: float) -> dict[str, float]:
    return {
        "rate": len(latencies) / wall,
        "p50_us": percentile(latencies, 0.5) * 1e6,
        "p99_us": percentile(latencies, 0.99) * 1e6,
        "cpu_us": cpu / max(1, len(latencies)) * 1e6,
    }


class SyncCaller:
    def __init__(self, channel: grpc.Channel, concurrency: int) -> None:
        self._call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
        self._concurrency = concurrency
        self._call(b"x", timeout=30, wait_for_ready=True)

    def run(self, seconds: float) -> dict[str, float]:
        results: list[list[float]] = [[] for _ in range(self._concurrency)]
        begun, cpu = time.perf_counter(), time.process_time()
        threads = [threading.Thread(target=self._loop, args=(begun + seconds, each)) for each in results]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wall, cpu = time.perf_counter() - begun, time.process_time() - cpu
        return report([each for result in results for each in result], wall, cpu)

    def _loop(self, until: float, latencies: list[float]) -> None:
        call, clock = self._call, time.perf_counter
        while (begun := clock()) < until:
            call(b"x", timeout=30)
            latencies.append(clock() - begun)


class AioCaller:
    def __init__(self, channel: grpc.aio.Channel, concurrency: int) -> None:
        self._call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
        self._concurrency = concurrency

    async def run(self, seconds: float) -> dict[str, float]:
        latencies: list[float] = []
        begun, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(self._loop(begun + seconds, latencies) for _ in range(self._concurrency)))
        return report(latencies, time.perf_counter() - begun, time.process_time() - cpu)

    async def _loop(self, until: float, latencies: list[float]) -> None:
        call, clock = self._call, time.perf_counter
        while (begun := clock()) < until:
            await call(b"x", timeout=30)
            latencies.append(clock() - begun)


def answer(found: dict[str, float]) -> None:
    print(json.dumps(found), flush=True)


def seconds_of(commands: Iterable[str]) -> Iterable[float]:
    for command in commands:
        if command.startswith("quit"):
            return
        yield float(command.split()[1])


def serve_sync(kind: str, target: str, concurrency: int) -> None:
    with ExitStack() as closing:
        if kind == "native":
            channel = closing.enter_context(grpc.insecure_channel(f"ipv4:{target}", [ROUND_ROBIN]))
        else:
            registry = closing.enter_context(grpc_etcd.Registry(target))
            channel = closing.enter_context(registry.insecure_channel(SERVICE))
        caller = SyncCaller(channel, concurrency)
        for seconds in seconds_of(sys.stdin):
            answer(caller.run(seconds))


async def serve_aio(kind: str, target: str, concurrency: int) -> None:
    registry = grpc_etcd.Registry(target) if kind == "registry" else None
    channel = (
        registry.aio.insecure_channel(SERVICE)
        if registry
        else grpc.aio.insecure_channel(f"ipv4:{target}", [ROUND_ROBIN])
    )
    warm: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
    await warm(b"x", timeout=30, wait_for_ready=True)
    caller = AioCaller(channel, concurrency)
    while not (command := await asyncio.to_thread(sys.stdin.readline)).startswith("quit"):
        answer(await caller.run(float(command.split()[1])))
    await channel.close()
    if registry:
        registry.close()


def main() -> None:
    _, kind, target, api, concurrency = sys.argv
    if api == "sync":
        serve_sync(kind, target, int(concurrency))
    else:
        asyncio.run(serve_aio(kind, target, int(concurrency)))


if __name__ == "__main__":
    main()

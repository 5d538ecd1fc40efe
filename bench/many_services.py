"""A process that follows many services: threads, memory, descriptors, CPU at rest, and the time until all are called.

`python -m bench.many_services KIND TARGET COUNT` prints one line of JSON; KIND is `native` (TARGET: an address for all
channels) or `registry` (TARGET: etcd's endpoints).
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import grpc

import grpc_etcd
from bench.client_worker import METHOD

REST_SECONDS = 10.0
SETTLE_SECONDS = 3.0  # connections and timers of the beginning
PATIENCE_SECONDS = 120.0


def service(number: int) -> str:
    """Name one of the services."""
    return f"many-{number}"


def opened(kind: str, target: str, closing: ExitStack) -> Callable[[str], grpc.Channel]:
    if kind == "native":  # an authority each, or they would share one connection
        return lambda name: grpc.insecure_channel(f"ipv4:{target}", [("grpc.default_authority", name)])
    registry = closing.enter_context(grpc_etcd.Registry(target))
    return registry.insecure_channel


def measure(kind: str, target: str, count: int) -> dict[str, float]:
    with ExitStack() as closing:
        make = opened(kind, target, closing)
        begun = time.perf_counter()
        channels = [closing.enter_context(make(service(number))) for number in range(count)]
        methods: list[grpc.UnaryUnaryMultiCallable[bytes, bytes]]
        methods = [channel.unary_unary(METHOD) for channel in channels]
        calls = [method.future(b"x", timeout=PATIENCE_SECONDS) for method in methods]
        for call in calls:
            call.result()
        first = time.perf_counter() - begun
        time.sleep(SETTLE_SECONDS)
        rested, cpu = time.perf_counter(), time.process_time()
        time.sleep(REST_SECONDS)
        return {
            "first_seconds": first,
            "idle_percent": (time.process_time() - cpu) / (time.perf_counter() - rested) * 100,
            "threads": len(list(Path("/proc/self/task").iterdir())),
            "descriptors": len(list(Path("/proc/self/fd").iterdir())),
            "memory_mib": int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20,
        }


def main() -> None:
    _, kind, target, count = sys.argv
    print(json.dumps(measure(kind, target, int(count))), flush=True)


if __name__ == "__main__":
    main()

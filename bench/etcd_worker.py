"""One piece of work, done by one etcd client in a process of its own, whose cost is told as JSON: used by bench_etcd.

Runs in the client's own environment, so it imports nothing but that client. `seconds` and `cpu` are of the work alone
(connected and warmed up before), over all threads of the process; `peak` is the process's largest resident set in MB.
"""

import asyncio
import json
import statistics
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

AT_ONCE = 64
VALUE = b"v" * 64
PUTS, PUTS_AT_ONCE, BATCHES, BATCH = 2_000, 10_000, 800, 128
BATCHES_AT_ONCE = 8
CHANGES = 400
GRANTS = 10_000
RECEIVE_ALL = [("grpc.max_receive_message_length", -1)]

Figures = dict[str, float]


class Meter:
    """Takes the time and the CPU of the work."""

    def __init__(self) -> None:
        self._began, self._cpu = time.perf_counter(), time.process_time()

    def stop(self, count: int, **more: float) -> Figures:
        """Give the figures of `count` operations."""
        seconds, cpu = time.perf_counter() - self._began, time.process_time() - self._cpu
        return {"seconds": seconds, "cpu": cpu, "peak": peak_mb(), "rate": count / seconds, **more}


def peak_mb() -> float:
    """Give the largest resident set so far; getrusage would tell that of the parent, before this program began."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def latencies(values: list[float]) -> Figures:
    """The middle and the slow end, in ms."""
    return {"median_ms": statistics.median(values) * 1e3, "p99_ms": sorted(values)[int(len(values) * 0.99)] * 1e3}


class Threads(ABC):
    """What every client for threads does; a subclass says how."""

    def __init__(self, address: str) -> None:
        self.address = address

    @abstractmethod
    def put(self, key: bytes, value: bytes, lease: int = 0) -> None: ...

    @abstractmethod
    def batch(self, keys: list[bytes]) -> None: ...

    @abstractmethod
    def count(self, prefix: bytes) -> int: ...

    @abstractmethod
    def grant(self) -> int: ...

    @abstractmethod
    def renew(self, count: int) -> None: ...

    @abstractmethod
    def watch(self, prefix: bytes, seen: Callable[[bytes], None]) -> Callable[[], None]: ...

    def puts(self) -> Figures:
        self.put(b"warm", VALUE)
        meter = Meter()
        for number in range(PUTS):
            self.put(b"p/%d" % number, VALUE)
        return meter.stop(PUTS)

    def puts_at_once(self) -> Figures:
        return self._spread(lambda number: self.put(b"p/%d" % number, VALUE), PUTS_AT_ONCE, AT_ONCE)

    def batches(self) -> Figures:
        def one(number: int) -> None:
            self.batch([b"b/%d/%d" % (number, part) for part in range(BATCH)])

        return self._spread(one, BATCHES, BATCHES_AT_ONCE, BATCH)

    def _spread(self, work: Callable[[int], None], count: int, at_once: int, each: int = 1) -> Figures:
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(work, range(at_once)))
            meter = Meter()
            list(pool.map(work, range(count)))
            return meter.stop(count * each)

    def listing(self) -> Figures:
        self.count(b"none/")
        meter = Meter()
        found = self.count(b"list/")
        return meter.stop(found, keys=found)

    def grants(self) -> Figures:
        def one(number: int) -> None:
            self.put(b"g/%d" % number, VALUE, self.grant())

        self.put(b"warm", VALUE)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            meter = Meter()
            list(pool.map(one, range(GRANTS)))
            return meter.stop(GRANTS)

    def renewals(self, count: int) -> Figures:
        self.put(b"warm", VALUE)
        meter = Meter()
        self.renew(count)
        return meter.stop(count)

    def latency(self) -> Figures:
        arrived: dict[bytes, float] = {}
        news = threading.Event()

        def seen(key: bytes) -> None:
            arrived[key] = time.perf_counter()
            news.set()

        stop = self.watch(b"w/", seen)
        while not news.wait(0.05):  # until the watch is there
            self.put(b"w/warm", VALUE)
        meter, values = Meter(), []
        for number in range(CHANGES):
            key, began = b"w/%d" % number, time.perf_counter()
            self.put(key, VALUE)
            while key not in arrived:
                news.wait(0.01)
                news.clear()
            values.append(arrived[key] - began)
            time.sleep(0.001)  # so that a change never rides with the one before
        figures = meter.stop(CHANGES, **latencies(values))
        stop()
        return figures


class OursThreads(Threads):
    def __init__(self, address: str) -> None:
        from grpc_etcd.etcd import Etcd  # noqa: PLC0415  only in this client's environment

        super().__init__(address)
        self.client = Etcd(address, timeout_seconds=60)

    def put(self, key: bytes, value: bytes, lease: int = 0) -> None:
        self.client.put(key, value, lease=lease)

    def batch(self, keys: list[bytes]) -> None:
        from grpc_etcd.etcd import ops  # noqa: PLC0415

        self.client.transaction([], [ops.put(key, VALUE) for key in keys])

    def count(self, prefix: bytes) -> int:
        return len(self.client.get_prefix(prefix).records)

    def grant(self) -> int:
        return self.client.lease(3600)

    def renew(self, count: int) -> None:
        ended = threading.Semaphore(0)
        keeper = self.client.keep_alive(lambda _: ended.release())
        for lease in [*range(1, count + 1), *LAST]:
            keeper.add(lease, 3600, remaining_seconds=0)
        for _ in LAST:
            ended.acquire()
        keeper.close()

    def watch(self, prefix: bytes, seen: Callable[[bytes], None]) -> Callable[[], None]:
        from grpc_etcd.etcd import WatchEvents  # noqa: PLC0415

        watch = self.client.list_watch(prefix)

        def follow() -> None:
            for news in watch:
                if isinstance(news, WatchEvents):
                    for event in news.events:
                        seen(event.key)

        threading.Thread(target=follow, daemon=True).start()
        return watch.close


# Leases that nobody granted, one for each of our four streams: the answer that one is gone comes after all others.
LAST = (1 << 40, (1 << 40) + 1, (1 << 40) + 2, (1 << 40) + 3)


class Cslab(Threads):
    def __init__(self, address: str) -> None:
        import etcd3  # noqa: PLC0415

        super().__init__(address)
        host, _, port = address.partition(":")
        self.client = etcd3.client(host, int(port), grpc_options=RECEIVE_ALL, timeout=60)

    def put(self, key: bytes, value: bytes, lease: int = 0) -> None:
        self.client.put(key, value, lease or None)

    def batch(self, keys: list[bytes]) -> None:
        put = self.client.transactions.put
        self.client.transaction([], [put(key, VALUE) for key in keys], [])

    def count(self, prefix: bytes) -> int:
        return len(list(self.client.get_prefix(prefix)))

    def grant(self) -> int:
        found: int = self.client.lease(3600).id
        return found

    def renew(self, count: int) -> None:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for _ in pool.map(lambda lease: list(self.client.refresh_lease(lease)), range(1, count + 1)):
                pass

    def watch(self, prefix: bytes, seen: Callable[[bytes], None]) -> Callable[[], None]:
        cancel: Callable[[], None]
        events, cancel = self.client.watch_prefix(prefix)

        def follow() -> None:
            for event in events:
                seen(event.key)

        threading.Thread(target=follow, daemon=True).start()
        return cancel


class Asyncio(ABC):
    """What every client for asyncio does; a subclass says how."""

    def __init__(self, address: str) -> None:
        self.address = address

    @abstractmethod
    async def put(self, key: bytes, value: bytes, lease: int = 0) -> None: ...

    @abstractmethod
    async def batch(self, keys: list[bytes]) -> None: ...

    @abstractmethod
    async def count(self, prefix: bytes) -> int: ...

    @abstractmethod
    async def grant(self) -> int: ...

    @abstractmethod
    async def renew(self, count: int) -> None: ...

    @abstractmethod
    async def follow(self, prefix: bytes, seen: Callable[[bytes], None]) -> None: ...

    async def puts(self) -> Figures:
        await self.put(b"warm", VALUE)
        meter = Meter()
        for number in range(PUTS):
            await self.put(b"p/%d" % number, VALUE)
        return meter.stop(PUTS)

    async def puts_at_once(self) -> Figures:
        await self.put(b"warm", VALUE)
        meter = Meter()
        await spread(lambda number: self.put(b"p/%d" % number, VALUE), PUTS_AT_ONCE, AT_ONCE)
        return meter.stop(PUTS_AT_ONCE)

    async def batches(self) -> Figures:
        await self.put(b"warm", VALUE)
        meter = Meter()
        await spread(
            lambda number: self.batch([b"b/%d/%d" % (number, part) for part in range(BATCH)]), BATCHES, BATCHES_AT_ONCE
        )
        return meter.stop(BATCHES * BATCH)

    async def listing(self) -> Figures:
        await self.count(b"none/")
        meter = Meter()
        found = await self.count(b"list/")
        return meter.stop(found, keys=found)

    async def grants(self) -> Figures:
        async def one(number: int) -> None:
            await self.put(b"g/%d" % number, VALUE, await self.grant())

        await self.put(b"warm", VALUE)
        meter = Meter()
        await spread(one, GRANTS, AT_ONCE)
        return meter.stop(GRANTS)

    async def renewals(self, count: int) -> Figures:
        await self.put(b"warm", VALUE)
        meter = Meter()
        await self.renew(count)
        return meter.stop(count)

    async def latency(self) -> Figures:
        arrived: dict[bytes, float] = {}
        news = asyncio.Event()

        def seen(key: bytes) -> None:
            arrived[key] = time.perf_counter()
            news.set()

        following = asyncio.create_task(self.follow(b"w/", seen))
        while not arrived:  # until the watch is there
            await self.put(b"w/warm", VALUE)
            await asyncio.sleep(0.05)
        meter, values = Meter(), []
        for number in range(CHANGES):
            key, began = b"w/%d" % number, time.perf_counter()
            await self.put(key, VALUE)
            while key not in arrived:
                news.clear()
                await news.wait()
            values.append(arrived[key] - began)
            await asyncio.sleep(0.001)  # so that a change never rides with the one before
        figures = meter.stop(CHANGES, **latencies(values))
        following.cancel()
        return figures


async def spread(work: Callable[[int], Awaitable[object]], count: int, at_once: int) -> None:
    """Do the work for each number, so many at once."""
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            await work(number)

    await asyncio.gather(*(worker() for _ in range(at_once)))


class OursAsyncio(Asyncio):
    def __init__(self, address: str) -> None:
        from grpc_etcd.etcd import aio  # noqa: PLC0415

        super().__init__(address)
        self.client = aio.Etcd(address, timeout_seconds=60)

    async def put(self, key: bytes, value: bytes, lease: int = 0) -> None:
        await self.client.put(key, value, lease=lease)

    async def batch(self, keys: list[bytes]) -> None:
        from grpc_etcd.etcd import ops  # noqa: PLC0415

        await self.client.transaction([], [ops.put(key, VALUE) for key in keys])

    async def count(self, prefix: bytes) -> int:
        return len((await self.client.get_prefix(prefix)).records)

    async def grant(self) -> int:
        return await self.client.lease(3600)

    async def renew(self, count: int) -> None:
        ended = asyncio.Semaphore(0)
        keeper = self.client.keep_alive(lambda _: ended.release())
        for lease in [*range(1, count + 1), *LAST]:
            keeper.add(lease, 3600, remaining_seconds=0)
        for _ in LAST:
            await ended.acquire()
        await keeper.close()

    async def follow(self, prefix: bytes, seen: Callable[[bytes], None]) -> None:
        from grpc_etcd.etcd import WatchEvents  # noqa: PLC0415

        async for news in self.client.list_watch(prefix):
            if isinstance(news, WatchEvents):
                for event in news.events:
                    seen(event.key)


class Aetcd(Asyncio):
    def __init__(self, address: str) -> None:
        import aetcd  # noqa: PLC0415

        super().__init__(address)
        host, _, port = address.partition(":")
        self.client = aetcd.Client(host, int(port), options=dict(RECEIVE_ALL), timeout=60)

    async def put(self, key: bytes, value: bytes, lease: int = 0) -> None:
        await self.client.put(key, value, lease or None)

    async def batch(self, keys: list[bytes]) -> None:
        put = self.client.transactions.put
        await self.client.transaction([], [put(key, VALUE) for key in keys], [])

    async def count(self, prefix: bytes) -> int:
        return len(list(await self.client.get_prefix(prefix)))

    async def grant(self) -> int:
        found: int = (await self.client.lease(3600)).id
        return found

    async def renew(self, count: int) -> None:
        await spread(lambda number: self.client.refresh_lease(number + 1), count, AT_ONCE)

    async def follow(self, prefix: bytes, seen: Callable[[bytes], None]) -> None:
        async for event in await self.client.watch_prefix(prefix):
            seen(event.kv.key)


CLIENTS: dict[str, Any] = {"ours": OursThreads, "ours aio": OursAsyncio, "aetcd": Aetcd, "cslab-etcd3": Cslab}


async def run_asyncio(kind: type[Asyncio], address: str, work: str, arguments: list[int]) -> Figures:
    client = kind(address)
    figures: Figures = await getattr(client, work)(*arguments)
    return figures


def main() -> None:
    """Do one piece of work: CLIENT ADDRESS WORK [NUMBER]."""
    name, address, work, *numbers = sys.argv[1:]
    kind, arguments = CLIENTS[name], [int(number) for number in numbers]
    if issubclass(kind, Asyncio):
        figures = asyncio.run(run_asyncio(kind, address, work, arguments))
    else:
        figures = getattr(kind(address), work)(*arguments)
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()

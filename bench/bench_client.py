"""Channels that follow a registry beside native ones: `make bench-client`.

Everything is measured in one run on this machine, side by side and interleaved, with real servers and a real etcd on
loopback; figures are medians. A ratio is the median of the ratios of rounds: both sides of a round share its noise.
"""

import json
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import grpc

import grpc_etcd
from bench import many_services as many
from bench.client_worker import METHOD, SERVICE
from bench.rolling import BACKENDS, LEAST_CALLS, THREADS, rolling_restart
from grpc_etcd.etcd import Etcd, ops
from grpc_etcd.layouts.jupiter import Jupiter
from grpc_etcd.registry.layout import KeyValue
from grpc_etcd.xds.localities import LARGEST_SET
from testbed.conditions import free_port
from testbed.etcd import EtcdServer

ROUNDS = 40
ROUND_SECONDS = 0.3
CHANGES = 60
FLOOD_SECONDS = 60
CELLS = (("sync", 1), ("sync", 8), ("aio", 1), ("aio", 64))
MANY = (1, 100, 400, 1000)
JUDGED = 400
MANY_GOALS = (
    ("threads", "", 20),
    ("memory_mib", "MiB", 200),
    ("idle_percent", "% of a core", 1),
    ("first_seconds", "s", 3),
)
LAYOUT = Jupiter()


@dataclass(slots=True)
class Table:
    """What was measured, beside the goals."""

    rows: list[tuple[str, str, str, str]] = field(default_factory=list)

    def add(self, what: str, found: str, goal: str = "", *, met: bool | None = None) -> None:
        verdict = "" if met is None else ("yes" if met else "NO")
        self.rows.append((what, found, goal, verdict))
        print(f"{what:<58} {found:<34} {goal:<14} {verdict}", flush=True)


def record(address: str) -> KeyValue:
    made = LAYOUT.encode(SERVICE, grpc_etcd.Endpoint(name=SERVICE, address=address))
    assert isinstance(made, KeyValue)
    return made


def put_all(etcd: Etcd, addresses: list[str]) -> None:
    etcd.delete_prefix(LAYOUT.prefix(SERVICE))
    for start in range(0, len(addresses), 100):
        etcd.transaction([], [ops.put(*record(address)) for address in addresses[start : start + 100]])


@contextmanager
def echo_server(*hosts: str, port: int = 0) -> Iterator[int]:
    """Run one server process on some addresses; give its port."""
    command = [sys.executable, "-m", "bench.echo_server", str(port), *hosts]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        yield int(process.stdout.readline())
    finally:
        process.terminate()
        process.wait()


class Worker:
    """A process of `bench.client_worker`."""

    def __init__(self, kind: str, target: str, api: str, concurrency: int) -> None:
        command = [sys.executable, "-m", "bench.client_worker", kind, target, api, str(concurrency)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, seconds: float) -> dict[str, float]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"run {seconds}\n")
        self._process.stdin.flush()
        found: dict[str, float] = json.loads(self._process.stdout.readline())
        return found

    def close(self) -> None:
        self._process.communicate("quit\n", timeout=30)


def throughput(table: Table, etcd: EtcdServer, addresses: list[str]) -> None:
    """Compare calls per second, latency and CPU with a static native channel, and that with itself."""
    for api, concurrency in CELLS:
        native = ",".join(addresses)
        workers = {
            "native": Worker("native", native, api, concurrency),
            "control": Worker("native", native, api, concurrency),
            "ours": Worker("registry", etcd.endpoints, api, concurrency),
        }
        rounds: list[dict[str, dict[str, float]]] = []
        for number in range(ROUNDS + 2):
            order = random.sample(sorted(workers), len(workers))
            found = {name: workers[name].run(ROUND_SECONDS) for name in order}
            if number > 1:  # the first rounds warm up
                rounds.append(found)
        for worker in workers.values():
            worker.close()
        compare(table, f"{api} {concurrency}", rounds)


def compare(table: Table, cell: str, rounds: list[dict[str, dict[str, float]]]) -> None:
    def ratios(name: str, figure: str) -> list[float]:
        return sorted(each[name][figure] / each["native"][figure] for each in rounds)

    def middle(name: str, figure: str) -> float:
        return statistics.median(each[name][figure] for each in rounds)

    for name, goal in (("control", ""), ("ours", ">= 0.97")):
        rate = ratios(name, "rate")
        ratio, low, high = statistics.median(rate), rate[len(rate) // 4], rate[len(rate) * 3 // 4]
        met = None if not goal else ratio >= 0.97
        table.add(f"{cell}: calls/s, {name} / native", f"{ratio:.3f} [{low:.2f}-{high:.2f}]", goal, met=met)
    for figure, unit in (("rate", "/s"), ("p50_us", "us p50"), ("p99_us", "us p99"), ("cpu_us", "us CPU/call")):
        found = " / ".join(f"{middle(name, figure):.0f}" for name in ("native", "control", "ours"))
        table.add(f"{cell}: native / control / ours", f"{found} {unit}")


def latency(table: Table, etcd: EtcdServer, addresses: list[str]) -> None:
    """Time a change: from before the put or delete is sent to etcd."""
    client = Etcd(etcd.endpoints)
    put_all(client, addresses[:-1])
    changing = addresses[-1]
    host = changing.encode()
    with grpc_etcd.Registry(etcd.endpoints) as registry, registry.insecure_channel(SERVICE) as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/bench.Who/Where")
        call(b"", timeout=30, wait_for_ready=True)
        added, removed = [], []
        key, value = record(changing)
        for _ in range(CHANGES):
            time.sleep(0.05)
            begun = time.perf_counter()
            client.put(key, value)
            while call(b"", timeout=30) != host:
                pass
            added.append(time.perf_counter() - begun)
            time.sleep(0.05)
            removed.append(last_call_after_removal(lambda: call(b"", timeout=30) == host, lambda: client.delete(key)))
    client.close()
    for what, values in (
        ("put in etcd -> first call on the new endpoint", added),
        ("delete -> last call started", removed),
    ):
        middle, worst = statistics.median(values) * 1e3, sorted(values)[int(len(values) * 0.95)] * 1e3
        table.add(what, f"median {middle:.1f} ms, p95 {worst:.1f} ms", "<= 10 ms", met=middle <= 10)


def last_call_after_removal(is_old: Callable[[], bool], remove: Callable[[], object]) -> float:
    """Call for a while; give when the last call to the removed endpoint started, after the delete was sent."""
    removed_at = [time.perf_counter()]
    thread = threading.Thread(target=lambda: (removed_at.__setitem__(0, time.perf_counter()), remove()))
    thread.start()
    last, until = 0.0, time.perf_counter() + 0.15
    while (begun := time.perf_counter()) < until:
        if is_old():
            last = begun
    thread.join()
    return max(0.0, last - removed_at[0])


@contextmanager
def who_servers(count: int) -> Iterator[list[str]]:
    """Serve in this process: each answers with its own address."""
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

    servers, addresses = [], []
    for number in range(1, count + 1):
        server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
        address = f"127.0.9.{number}:{server.add_insecure_port(f'127.0.9.{number}:0')}"
        handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(
            lambda _, __, address=address: address.encode()
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Who", {"Where": handler}),))
        server.start()
        servers.append(server)
        addresses.append(address)
    yield addresses
    for server in servers:
        server.stop(None).wait()


PROBE = """
import resource, sys, time
def rss():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 2**20
import grpc
t, m = time.perf_counter(), rss()
import grpc_etcd
imported = time.perf_counter() - t
grpc_etcd.Registry
loaded, memory = time.perf_counter() - t, rss() - m
registry = grpc_etcd.Registry(sys.argv[1])
t = time.perf_counter()
channel = registry.insecure_channel("bench")
channel.unary_unary("/bench.Echo/Call")(b"x", timeout=30)
first = time.perf_counter() - t
t = time.perf_counter()
second = registry.insecure_channel("bench")
second.unary_unary("/bench.Echo/Call")(b"x", timeout=30)
print(imported, loaded, memory, first, time.perf_counter() - t, rss() - m)
"""


def start_up(table: Table, etcd: EtcdServer) -> None:
    """Measure what importing costs, and the first call of a fresh process."""
    runs = [
        list(map(float, subprocess.check_output([sys.executable, "-c", PROBE, etcd.endpoints], text=True).split()))
        for _ in range(15)
    ]
    imported, loaded, memory, first, second, total = (statistics.median(column) for column in zip(*runs, strict=True))
    table.add("import grpc_etcd, beside grpc", f"{imported * 1e3:.1f} ms")
    table.add("the same with Registry loaded", f"{loaded * 1e3:.1f} ms, {memory:.1f} MiB")
    table.add("first call after creation, fresh process", f"median {first * 1e3:.1f} ms", "<= 50 ms", met=first <= 0.05)
    table.add("second channel to the service: creation and call", f"median {second * 1e3:.1f} ms")
    table.add("memory with one channel in use, beside grpc", f"{total:.1f} MiB")


def cost_per_update(table: Table, etcd: EtcdServer) -> None:
    """Replace one endpoint of a set of which every endpoint is connected; CPU of the whole client process."""
    client = Etcd(etcd.endpoints)
    port = free_port("127.10.0.1")
    ranked = sorted((f"127.10.{number // 250}.{number % 250 + 1}:{port}" for number in range(10_010)), key=hash_rank)
    live = ranked[: LARGEST_SET + 1]  # of a larger set, this client takes these
    with echo_server(*(address.rpartition(":")[0] for address in live), port=port):
        for size in (10, 100, 1000, 10_000):
            connected = min(size, LARGEST_SET)
            addresses = [*live[:connected], *ranked[len(live) :][: size - connected]]
            put_all(client, addresses)
            with grpc_etcd.Registry(etcd.endpoints, client_id="bench") as registry:
                cpu, wall = measure_updates(client, registry, addresses, live[connected])
            table.add(f"one update of {size} endpoints", f"{cpu * 1e3:.1f} ms CPU, {wall * 1e3:.0f} ms until told")
    client.close()


def hash_rank(address: str) -> bytes:
    """Rank an address as a client with the id `bench` does when it chooses its subset."""
    return blake2b(f"bench\0{address}".encode(), digest_size=8).digest()


def measure_updates(
    client: Etcd, registry: grpc_etcd.Registry, addresses: list[str], spare: str
) -> tuple[float, float]:
    """Give the CPU of an update, and the time from before the change was sent until the channel was told."""
    registry.configure(SERVICE, grpc_etcd.Policy(subset=LARGEST_SET))
    with registry.insecure_channel(SERVICE) as channel:
        registry.wait_for_endpoints(SERVICE, 60, at_least=len(addresses))
        first: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
        first(b"x", timeout=60, wait_for_ready=True)
        time.sleep(3)  # until every endpoint is connected and the process is at rest
        cpus, walls = [], []
        old, new = addresses[0], spare
        for _ in range(6):
            updates = registry.stats()[SERVICE].updates
            begun, cpu = time.perf_counter(), time.process_time()
            client.transaction([], [ops.delete(record(old).key), ops.put(*record(new))])
            while registry.stats()[SERVICE].updates == updates:
                time.sleep(0.001)
            walls.append(time.perf_counter() - begun)
            time.sleep(1.2)
            cpus.append(time.process_time() - cpu)
            old, new = new, old
        return statistics.median(cpus), statistics.median(walls)


def flood(table: Table, etcd: EtcdServer, addresses: list[str]) -> None:
    """Change one endpoint a thousand times a second for a minute, with calls beside it."""
    client = Etcd(etcd.endpoints)
    put_all(client, addresses)
    with grpc_etcd.Registry(etcd.endpoints) as registry, registry.insecure_channel(SERVICE) as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
        call(b"x", timeout=30, wait_for_ready=True)
        stop, failures, calls = threading.Event(), [0], [0]

        def load() -> None:
            while not stop.wait(0.002):
                calls[0] += 1
                try:
                    call(b"x", timeout=30)
                except grpc.RpcError:
                    failures[0] += 1

        command = [sys.executable, "-c", FLOODER, etcd.endpoints, str(FLOOD_SECONDS), addresses[0]]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        thread = threading.Thread(target=load)
        thread.start()
        time.sleep(10)
        early, threads, cpu = resident_mib(), threading.active_count(), time.process_time()
        begun = time.perf_counter()
        written = int(writer.communicate()[0])
        busy = (time.process_time() - cpu) / (time.perf_counter() - begun)
        late, stats = resident_mib(), registry.stats()[SERVICE]
        stop.set()
        thread.join()
    client.close()
    table.add(
        f"{written / FLOOD_SECONDS:.0f} updates/s for {FLOOD_SECONDS} s: memory after 10 s -> at the end",
        f"{early:.1f} -> {late:.1f} MiB, {threads} threads",
        "no growth",
        met=late - early < 5,
    )
    table.add(
        "the same: failed calls, CPU of the client",
        f"{failures[0]} of {calls[0]}, {busy:.2f} cores, {stats.updates} sets told",
        "0",
        met=not failures[0],
    )


FLOODER = """
import sys, time
import grpc_etcd
from grpc_etcd.etcd import Etcd, ops
from bench.bench_client import LAYOUT, SERVICE
client, seconds = Etcd(sys.argv[1]), float(sys.argv[2])
begun, sent = time.perf_counter(), 0
while (now := time.perf_counter() - begun) < seconds:
    if sent > now * 1000:
        time.sleep(0.001)
        continue
    puts = []
    for number in range(5):
        address = sys.argv[3] if number == 0 else f"127.0.6.{200 + number}:9"
        weight = 50 + sent % 50
        endpoint = grpc_etcd.Endpoint(name=SERVICE, address=address, weight=weight, enable=number == 0)
        puts.append(ops.put(*LAYOUT.encode(SERVICE, endpoint)))
    client.transaction([], puts)
    sent += 5
print(sent)
client.close()
"""


def restarts(table: Table) -> None:
    """Replace every backend again and again under load, through the real operator."""
    found = rolling_restart()
    print(*found.failures[:5], sep="\n", end="\n" if found.failures else "")
    table.add(
        f"rolling restart of {BACKENDS} backends under {THREADS} threads: failed calls",
        f"{len(found.failures)} of {found.calls}, {found.replaced} replaced",
        f"0 of >= {LEAST_CALLS}",
        met=not found.failures and found.calls >= LEAST_CALLS,
    )


def many_services(table: Table, etcd: EtcdServer, address: str) -> None:
    """Follow many services from one process, and have as many plain channels beside them."""
    with Etcd(etcd.endpoints) as client:
        for number in range(max(MANY)):
            name = many.service(number)
            made = LAYOUT.encode(name, grpc_etcd.Endpoint(name=name, address=address))
            assert isinstance(made, KeyValue)
            client.put(*made)
    for count in MANY:
        for kind, target in (("native", address), ("registry", etcd.endpoints)):
            add_many(table, f"{count} {'services' if kind == 'registry' else 'plain channels'}", count, kind, target)


def add_many(table: Table, what: str, count: int, kind: str, target: str) -> None:
    command = [sys.executable, "-m", "bench.many_services", kind, target, str(count)]
    found = json.loads(subprocess.check_output(["sh", "-c", 'ulimit -n 4096; exec "$@"', "sh", *command], text=True))
    is_judged = kind == "registry" and count == JUDGED
    for figure, unit, most in MANY_GOALS:
        goal = f"<= {most:g}" if is_judged else ""
        met = found[figure] <= most if is_judged else None
        table.add(f"{what}: {figure.rpartition('_')[0] or figure}", f"{found[figure]:.2f} {unit}", goal, met=met)
    table.add(f"{what}: descriptors", f"{found['descriptors']:.0f}")


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def main() -> None:
    """Run all and exit with 1 if a goal is missed."""
    table = Table()
    with ExitStack() as closing:
        etcd = closing.enter_context(EtcdServer.start())
        client = closing.enter_context(Etcd(etcd.endpoints))
        ports = [closing.enter_context(echo_server(f"127.0.6.{number}")) for number in (1, 2)]
        addresses = [f"127.0.6.{number}:{port}" for number, port in zip((1, 2), ports, strict=True)]
        put_all(client, addresses)
        many_services(table, etcd, addresses[0])
        throughput(table, etcd, addresses)
        start_up(table, etcd)
        with who_servers(3) as who:
            latency(table, etcd, who)
        cost_per_update(table, etcd)
        flood(table, etcd, addresses)
    restarts(table)
    sys.exit(any(verdict == "NO" for *_, verdict in table.rows))


if __name__ == "__main__":
    main()

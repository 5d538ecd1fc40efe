"""The etcd layer beside aetcd, cslab-etcd3 and etcdctl: `make bench-etcd`.

Every figure is of a whole process that does one piece of work on a real etcd on loopback (bench/etcd_worker.py), with
all its threads. The clients take turns in random order; figures are medians over the rounds. The other clients live in
environments of their own, with the same grpcio and protobuf. etcdctl is there where it can do the work at all: it is a
process a command, so its figures are those of a script that calls it.

    python -m bench.bench_etcd --only listing     # some rows, measured again
"""

import argparse
import asyncio
import json
import math
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.measuring import median
from grpc_etcd.etcd import Etcd, aio, ops
from testbed.build import binary
from testbed.environments import AETCD, CSLAB_ETCD3, NEWEST, environment, variables
from testbed.etcd import EtcdServer

WORKER = Path(__file__).with_name("etcd_worker.py")
OURS = ("ours", "ours aio")
CLIENTS = (*OURS, "aetcd", "cslab-etcd3", "etcdctl")
LISTED_KEYS, LISTED_VALUE = 100_000, b"x" * 100
LEASES = 100_000
# A client within so much of the best one is level with it: rounds of one client differ by as much.
LEVEL = 0.05
WORK_SECONDS = 300

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Row:
    """One piece of work: which figure decides and which way it goes, how to show it, and what ours must reach."""

    name: str
    work: tuple[str, ...]
    figure: str
    show: Callable[[Figures], str]
    more_is_better: bool = False
    rounds: int = 3
    goals: tuple[tuple[str, str, float], ...] = ()  # in words, which figure, its limit; negative: at least

    def best(self, values: Sequence[float]) -> float:
        """Give the best of some clients' figures."""
        return max(values) if self.more_is_better else min(values)

    def is_level(self, ours: float, best: float) -> bool:
        """Tell whether ours is first or level."""
        return ours >= best * (1 - LEVEL) if self.more_is_better else ours <= best * (1 + LEVEL)


def show_rate(figures: Figures) -> str:
    """Show operations per second and the CPU of one."""
    per_operation = figures["cpu"] / (figures["rate"] * figures["seconds"]) * 1e6
    return f"{figures['rate']:,.0f}/s [{per_operation:.0f} us]"


def show_cost(figures: Figures) -> str:
    """Show wall time and CPU."""
    return f"{figures['seconds']:.2f} s [{figures['cpu']:.2f} s]"


def show_memory(figures: Figures) -> str:
    """Show wall time and the process's peak."""
    memory = "" if math.isnan(figures["peak"]) else f", {figures['peak']:.0f} MB"
    return f"{figures['seconds']:.2f} s{memory}"


def show_latency(figures: Figures) -> str:
    """Show the middle and the slow end."""
    return f"{figures['median_ms']:.2f} / {figures['p99_ms']:.2f} ms"


ROWS = (
    Row("puts, one after the other", ("puts",), "rate", show_rate, more_is_better=True),
    Row("puts, 64 in flight", ("puts_at_once",), "rate", show_rate, more_is_better=True),
    Row(
        "puts in transactions of 128",
        ("batches",),
        "rate",
        show_rate,
        more_is_better=True,
        goals=((">= 90,000/s", "rate", -90_000),),
    ),
    Row("put to watch event, p50 / p99", ("latency",), "median_ms", show_latency),
    Row(
        "listing of 100,000 keys",
        ("listing",),
        "seconds",
        show_memory,
        goals=(("<= 0.5 s", "seconds", 0.5), ("<= 80 MB", "peak", 80)),
    ),
    Row(
        "keep-alive round of 10,000 leases",
        ("renewals", "10000"),
        "cpu",
        show_cost,
        goals=(("<= 1.2 s of CPU", "cpu", 1.2),),
    ),
    Row("keep-alive round of 100,000 leases", ("renewals", str(LEASES)), "cpu", show_cost, rounds=1),
    Row("grant and put of 10,000", ("grants",), "seconds", show_cost, rounds=7),
)


class Environments:
    """The Python of each client."""

    def __init__(self) -> None:
        self._pythons = {
            "aetcd": environment(*NEWEST, AETCD),
            "cslab-etcd3": environment(*NEWEST, CSLAB_ETCD3),
        }

    def run(self, client: str, address: str, work: Sequence[str]) -> Figures:
        """Let a client do a piece of work in a fresh process."""
        python = self._pythons.get(client, Path(sys.executable))
        command: list[str | Path] = [python, WORKER, client, address, *work]
        done = subprocess.run(command, env=variables(), stdout=subprocess.PIPE, timeout=WORK_SECONDS, check=True)
        figures: Figures = json.loads(done.stdout)
        return figures


def etcdctl(address: str, *arguments: str, words: str | None = None) -> str:
    """Run etcdctl once."""
    command: list[str | Path] = [binary("etcdctl"), f"--endpoints={address}", *arguments]
    return subprocess.run(command, input=words, stdout=subprocess.PIPE, text=True, check=True).stdout


def etcdctl_puts(address: str) -> Figures:
    """A process a put."""
    return timed(100, lambda: [etcdctl(address, "put", f"p/{number}", "v" * 64) for number in range(100)])


def etcdctl_batches(address: str) -> Figures:
    """A process a transaction, its operations on standard input."""
    words = ["\n" + "".join(f"put b/{batch}/{part} {'v' * 64}\n" for part in range(128)) + "\n" for batch in range(50)]
    return timed(50 * 128, lambda: [etcdctl(address, "txn", words=f"{each}\n") for each in words])


def etcdctl_listing(address: str) -> Figures:
    """One process, whose output is thrown away."""
    command: list[str | Path] = [binary("etcdctl"), f"--endpoints={address}", "get", "--prefix", "list/"]
    return timed(LISTED_KEYS, lambda: subprocess.run(command, stdout=subprocess.DEVNULL, check=True))


def timed(count: int, work: Callable[[], object]) -> Figures:
    """Take the time and the CPU of child processes; what each takes of memory is not to be had in this way."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    work()
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "cpu": cpu, "peak": float("nan"), "rate": count / seconds}


ETCDCTL: dict[str, Callable[[str], Figures]] = {
    "puts": etcdctl_puts,
    "batches": etcdctl_batches,
    "listing": etcdctl_listing,
}


def fill(etcd: EtcdServer) -> None:
    """Put the keys that are listed, and grant the leases that are renewed."""
    with Etcd(etcd.endpoints) as client:
        for start in range(0, LISTED_KEYS, 100):
            client.transaction([], [ops.put(b"list/%06d" % (start + n), LISTED_VALUE) for n in range(100)])

    async def grant() -> None:
        async with aio.Etcd(etcd.endpoints, timeout_seconds=60) as client:
            for start in range(1, LEASES + 1, 200):
                await asyncio.gather(*(client.lease(3600, number) for number in range(start, start + 200)))

    asyncio.run(grant())


def measure(environments: Environments, etcd: EtcdServer, row: Row) -> dict[str, Figures]:
    """Let all clients do a row's work, in turns, and give each one's medians."""
    clients = [client for client in CLIENTS if client != "etcdctl" or row.work[0] in ETCDCTL]
    found: dict[str, list[Figures]] = {client: [] for client in clients}
    for _ in range(row.rounds):
        for client in random.sample(clients, len(clients)):
            if client == "etcdctl":
                found[client].append(ETCDCTL[row.work[0]](etcd.endpoints))
            else:
                found[client].append(environments.run(client, etcd.endpoints, row.work))
            tidy(etcd)
    return {client: {name: median(run[name] for run in runs) for name in runs[0]} for client, runs in found.items()}


def tidy(etcd: EtcdServer) -> None:
    """Take away the keys that a piece of work wrote; leases without keys cost nothing."""
    with Etcd(etcd.endpoints, timeout_seconds=60) as client:
        for prefix in (b"p/", b"b/", b"w/", b"g/", b"warm"):
            client.delete_prefix(prefix)
        client.compact(client.put(b"warm", b""))


def verdicts(row: Row, figures: dict[str, Figures]) -> list[str]:
    """Say where ours stands and which goals it met."""
    ours = {client: figures[client][row.figure] for client in OURS}
    best = row.best([each[row.figure] for each in figures.values()])
    said = []
    for client, value in ours.items():
        said.append(f"{client}: {'first or level' if row.is_level(value, best) else 'NOT first'}")
    for words, figure, limit in row.goals:
        reached = [figures[client][figure] for client in OURS]
        met = max(reached) >= -limit if limit < 0 else min(reached) <= limit
        said.append(f"{words}: {'met' if met else 'MISSED'}")
    return said


def main() -> None:
    """Print a table; exit with 1 when neither of our clients is first or level in a row, or a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.bench_etcd", description=__doc__)
    parser.add_argument("--only", action="append", default=[], help="a word of a row's work, such as listing")
    only = parser.parse_args().only
    environments = Environments()
    failed = False
    print("| work | " + " | ".join(CLIENTS) + " | verdict |", "|" + " --- |" * (len(CLIENTS) + 2), sep="\n", flush=True)
    with EtcdServer.start() as etcd:
        fill(etcd)
        for row in ROWS:
            if only and not any(word in " ".join(row.work) for word in only):
                continue
            figures = measure(environments, etcd, row)
            said = verdicts(row, figures)
            failed |= any("MISSED" in each for each in said) or all("NOT" in each for each in said[: len(OURS)])
            cells = [row.show(figures[client]) if client in figures else "-" for client in CLIENTS]
            print(f"| {row.name} | {' | '.join(cells)} | {'; '.join(said)} |", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()

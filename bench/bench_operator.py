"""Measures the operator, with each source of Pods, beside Kubernetes' EndpointSlice controller and a Go writer.

    make bench-operator                  # all repeats, about 35 minutes
    make bench-operator QUICK=1          # one short repeat of everything, about 5 minutes: good for finding mistakes
    python -m bench.bench_operator --only "storm 50" --only start    # some scenarios, measured again
    python -m bench.bench_operator --quick --pods 1000    # fewer Pods in storms and at starts: does it run?

Prints a table with the goals. The contestants take turns in alternating order, one at a time, in one API server;
figures are medians over the repeats, p50 and p99 over the changes of all repeats together. Figures and SVG plots go to
bench/results/; what `--only` leaves out is shown as it was measured last.
"""

import argparse
import itertools
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench import scenarios
from bench.contestants import ALL, GO, OPERATOR, OPERATOR_DIRECT, OPERATORS, YARDSTICKS, Contestant
from bench.contestants import ENDPOINT_SLICE_CONTROLLER as SLICES
from bench.measuring import median, percentile
from bench.plot import write_plot
from bench.rig import Rig
from bench.scenarios import KINDS, Figures

RESULTS = Path(__file__).with_name("results")


@dataclass(frozen=True)
class Size:
    """How long and how often everything is measured."""

    steady_seconds: float = 30.0
    steady_repeats: int = 2
    storm_repeats: int = 3
    start_repeats: int = 2
    idle_seconds: float = 60.0  # with one sweep
    storm_pods: int = 5_000
    start_pods: int = 10_000


QUICK = Size(6.0, 1, 1, 1, 5.0)


class Collected:
    """All figures of all runs: numbers as one value a repeat, latencies pooled."""

    def __init__(self) -> None:
        self._figures: dict[str, dict[str, list[Figures]]] = {}

    def read(self, file: Path) -> None:
        """Take what was measured before."""
        if file.exists():
            self._figures = json.loads(file.read_text())

    def write(self, file: Path) -> None:
        """Keep all for the next time."""
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(self._figures))

    def forget(self, scenario: str) -> None:
        """Drop the figures of a scenario that is measured again."""
        self._figures.pop(scenario, None)

    def add(self, scenario: str, contestant: str, figures: Figures) -> None:
        """Take the figures of one run."""
        self._figures.setdefault(scenario, {}).setdefault(contestant, []).append(figures)
        shown = {k: f"{v:.2f}" if isinstance(v, float | int) else f"{len(v)} values" for k, v in figures.items()}
        print(f"  {scenario:24} {contestant:14} {shown}", file=sys.stderr, flush=True)

    def median(self, scenario: str, contestant: str, figure: str) -> float:
        """The median over the repeats."""
        values = [run.get(figure) for run in self._runs(scenario, contestant)]
        return median(value for value in values if isinstance(value, float | int))

    def latency(self, scenario: str, contestant: str, figure: str, share: float) -> float:
        """A percentile, in ms, over the changes of all repeats."""
        pooled: list[float] = []
        for run in self._runs(scenario, contestant):
            values = run.get(figure, [])
            pooled += values if isinstance(values, list) else []
        return percentile(pooled, share)

    def _runs(self, scenario: str, contestant: str) -> list[Figures]:
        return self._figures.get(scenario, {}).get(contestant, [])


def alternating(contestants: Sequence[Contestant], repeats: int) -> list[Contestant]:
    """Everybody in turn, there and back, so that a machine that changes its speed treats all alike."""
    return [each for repeat in range(repeats) for each in (contestants if repeat % 2 == 0 else contestants[::-1])]


Measure = Callable[[Rig, Contestant], Figures]


def scenarios_of(size: Size) -> dict[str, tuple[int, Sequence[Contestant], Measure]]:
    """List what is measured, by name: how often, whom, and how."""
    alone = (OPERATOR,)
    return {
        "steady 1": (size.steady_repeats, ALL, lambda rig, who: scenarios.steady(rig, who, 1, size.steady_seconds)),
        "steady 50": (size.steady_repeats, ALL, lambda rig, who: scenarios.steady(rig, who, 50, size.steady_seconds)),
        "storm 50": (size.storm_repeats, ALL, lambda rig, who: scenarios.storm(rig, who, 50, size.storm_pods)),
        "storm 1": (1, OPERATORS, lambda rig, who: scenarios.storm(rig, who, 1, size.storm_pods)),
        "start": (
            size.start_repeats,
            ALL,
            lambda rig, who: scenarios.cold_start(rig, who, size.start_pods, size.idle_seconds),
        ),
        "small": (1, OPERATORS, scenarios.small_change),
        "repairs": (1, alone, lambda rig, _: scenarios.repairs(rig)),
        "SIGKILL": (1, alone, lambda rig, _: scenarios.takeover(rig, signal.SIGKILL)),
        "SIGTERM": (1, alone, lambda rig, _: scenarios.takeover(rig, signal.SIGTERM)),
        "same Pod": (size.start_repeats, alone, lambda rig, _: scenarios.same_pod(rig)),
    }


def measure(rig: Rig, size: Size, only: Sequence[str], found: Collected) -> None:
    """Run what is asked for; nothing means everything."""
    for name, (repeats, contestants, run) in scenarios_of(size).items():
        if only and name not in only:
            continue
        found.forget(name)
        for each in alternating(contestants, repeats):
            found.add(name, each.name, run(rig, each))


@dataclass(frozen=True)
class Row:
    """One line of the table; `limit` is what the goal comes to with the yardsticks of this very run."""

    who: Contestant
    what: str
    goal: str
    value: float
    limit: float
    unit: str
    yardsticks: str = ""

    def __str__(self) -> str:
        value = f"{self.value:.4g} {self.unit}"
        if self.limit == math.inf:
            return f"| {self.what} | {self.who.name} | {value} | | none | {self.yardsticks} | |"
        verdict, limit = "met" if self.value <= self.limit else "MISSED", f"{self.limit:.4g} {self.unit}"
        return f"| {self.what} | {self.who.name} | {value} | {limit} | {self.goal} | {self.yardsticks} | {verdict} |"


@dataclass(frozen=True)
class Goals:
    """What the operator has to reach with one source of Pods; the factors are of the Go writer's figures.

    `slices_p50` is of the EndpointSlice controller's p50 with as many services, `slices_p99` and `slices_cpu` of its
    figures with one Service; infinite is no goal.
    """

    p50: float
    p99: float
    cpu: float
    slices_p50: float
    slices_p99: float
    slices_cpu: float
    storm: float
    slices_storm: float
    start_seconds: float
    peak_mib: float


GOALS = {
    OPERATOR_DIRECT: Goals(1.5, 2.0, 3.0, math.inf, 1 / 2, 1 / 3, 2.0, 1.0, 8, 150),
    OPERATOR: Goals(1.4, math.inf, 3.3, 1.0, math.inf, math.inf, 2.2, math.inf, 9, 160),
}


def rows(found: Collected, size: Size) -> list[Row]:
    """Hold the figures against the goals."""
    return [
        *steady_rows(found),
        *storm_rows(found, size),
        *start_rows(found, size),
        *repair_rows(found),
        *takeover_rows(found),
    ]


def yardsticks(figure: Callable[[Contestant], float], digits: int = 2) -> str:
    """Show a figure of those that the operator is compared with."""
    return ", ".join(f"{each.name} {figure(each):.{digits}f}" for each in YARDSTICKS)


def limit_of(*parts: tuple[float, float, str]) -> tuple[float, str]:
    """Return the least of several limits (factor, yardstick, its name), and the goal in words; infinite is no limit."""
    known = [part for part in parts if part[0] < math.inf]
    words = ", ".join(f"<= {factor:.3g}x {name}" for factor, _, name in known)
    return min((factor * value for factor, value, _ in known), default=math.inf), words


def steady_rows(found: Collected) -> list[Row]:
    """The goals for 20 changes a second; the strictest comparison is with the controller's one Service."""
    return [row for services in (1, 50) for row in (*latency_rows(found, services), *cpu_rows(found, services))]


def latency_rows(found: Collected, services: int) -> list[Row]:
    """How long each kind of change takes."""
    made = []
    for kind, share in itertools.product(KINDS, (0.5, 0.99)):

        def figure(who: Contestant, services: int = services, kind: str = kind, share: float = share) -> float:
            return found.latency(f"steady {services}", who.name, kind, share)

        what = f"{kind}, {services} GrpcService{'s' * (services > 1)}, p{share * 100:.0f}"
        for who, goals in GOALS.items():
            limit, goal = (
                limit_of((goals.p50, figure(GO), "go"), (goals.slices_p50, figure(SLICES), "slices"))
                if share == 0.5
                else limit_of(
                    (goals.p99, figure(GO), "go"), (goals.slices_p99, figure(SLICES, 1), "slices (one Service)")
                )
            )
            made.append(Row(who, what, goal, figure(who), limit, "ms", yardsticks(figure, 1)))
    return made


def cpu_rows(found: Collected, services: int) -> list[Row]:
    """What the changes cost."""
    made = []
    for who, goals in GOALS.items():

        def figure(who: Contestant, services: int = services) -> float:
            return found.median(f"steady {services}", who.name, "cpu")

        limit, goal = limit_of(
            (goals.cpu, figure(GO), "go"), (goals.slices_cpu, figure(SLICES, 1), "slices (one Service)")
        )
        what = f"CPU for 30 s of that, {services} GrpcService{'s' * (services > 1)}"
        made.append(Row(who, what, goal, figure(who), limit, "s", yardsticks(figure)))
    return made


def storm_rows(found: Collected, size: Size) -> list[Row]:
    """The goals for thousands of changes at once."""
    made = []
    for direction, (who, goals) in itertools.product(("up", "down"), GOALS.items()):

        def figure(who: Contestant, direction: str = direction) -> float:
            return found.median("storm 50", who.name, direction)

        cpu = [found.median("storm 50", each.name, f"cpu {direction}") for each in (who, *YARDSTICKS)]
        note = f"{yardsticks(figure)}; CPU s {' / '.join(f'{each:.1f}' for each in cpu)}"
        limit, goal = limit_of((goals.storm, figure(GO), "go"), (goals.slices_storm, figure(SLICES), "slices"))
        what = f"storm of {size.storm_pods} in 50 services, {direction}"
        made.append(Row(who, what, goal, figure(who), limit, "s", note))
        alone = found.median("storm 1", who.name, direction)
        pace = size.storm_pods / 500
        goal = "no longer than 500 keys/s need, and 1 s"
        made.append(Row(who, f"storm of {size.storm_pods} in one, {direction}", goal, alone, pace + 1, "s"))
    return made


def start_rows(found: Collected, size: Size) -> list[Row]:
    """The goals for 10,000 Pods."""
    return [row for rows in zip(*(start_rows_of(found, size, who) for who in GOALS), strict=True) for row in rows]


def start_rows_of(found: Collected, size: Size, who: Contestant) -> list[Row]:
    """What one of our own has to reach with 10,000 Pods."""

    def row(what: str, goal: str, name: str, limit: float, unit: str) -> Row:
        def figure(each: Contestant) -> float:
            return found.median("start", each.name, name)

        note = "" if math.isnan(figure(GO)) else yardsticks(figure)
        return Row(who, what, goal, figure(who), limit, unit, note)

    goals, few = GOALS[who], found.median("small", who.name, "change cpu")
    seconds, peak = goals.start_seconds, goals.peak_mib
    return [
        row(f"start with {size.start_pods} Pods, all keys", f"<= {seconds:g} s", "all keys", seconds, "s"),
        row("its peak memory", f"<= {peak:g} MiB", "peak", peak, "MiB"),
        row(f"idle with {size.start_pods} Pods", "<= 2.5 % of a core", "idle", 2.5, "%"),
        row(f"restart with {size.start_pods}, synced", "<= 5 s", "restart", 5, "s"),
        row("its writes of provider keys", "0", "restart writes", 0, "keys"),
        row("a change made while down is seen", "<= 6 s", "change seen", 6, "s"),
        row(
            f"CPU of one change among {size.start_pods}",
            f"<= 1.5x among 500 ({few:.1f})",
            "change cpu",
            1.5 * few,
            "ms",
        ),
    ]


def repair_rows(found: Collected) -> list[Row]:
    """The goals for what others do to our keys."""
    made = []
    for damage in ("overwritten", "deleted", "revoked"):
        typical, longest = (found.latency("repairs", OPERATOR.name, damage, share) for share in (0.5, 1.0))
        what = f"a key that was {damage} is as before, longest of {scenarios.REPAIRS}"
        made.append(Row(OPERATOR, what, "<= 1 s", longest, 1000, "ms", f"half of them within {typical:.0f} ms"))
    return made


def takeover_rows(found: Collected) -> list[Row]:
    """The goals for the leader's end."""
    made = []
    ends = {
        "SIGKILL": ("leader gets SIGKILL, next change", 6.0),
        "SIGTERM": ("leader gets SIGTERM, next change", 1.0),
        "same Pod": ("from the start of the next process in the Pod of a leader that was killed, next change", 1.5),
    }
    for name, (what, limit) in ends.items():
        seconds = found.median(name, OPERATOR.name, "takeover")
        touched = found.median(name, OPERATOR.name, "keys touched")
        note = f"{touched:.0f} other keys written or lost"
        made.append(Row(OPERATOR, what, f"<= {limit:g} s", seconds, limit, "s", note))
    return made


def plots(found: Collected) -> None:
    """Draw each scenario that has been measured."""
    for services in (1, 50):
        for share in (0.5, 0.99):
            groups = {
                kind: {each.name: found.latency(f"steady {services}", each.name, kind, share) for each in ALL}
                for kind in KINDS
            }
            title = f"20 changes/s, 500 Pods, {services} service(s), p{share * 100:.0f}"
            draw(f"steady-{services}-p{share * 100:.0f}", title, "ms", groups)
    for name, scenario, title, unit, figures in (
        ("steady-1-cpu", "steady 1", "20 changes/s for 30 s, one service: CPU", "s", ("cpu",)),
        ("steady-50-cpu", "steady 50", "20 changes/s for 30 s, 50 services: CPU", "s", ("cpu",)),
        ("storm-50", "storm 50", "5,000 Pods of 50 services change at once", "s", ("up", "down")),
        ("storm-50-cpu", "storm 50", "the same: CPU", "s", ("cpu up", "cpu down")),
        ("storm-1", "storm 1", "5,000 Pods of one service change at once", "s", ("up", "down")),
        ("start", "start", "10,000 ready Pods, from process start", "s", ("all keys", "cpu")),
        ("start-memory", "start", "10,000 Pods: peak memory", "MiB", ("peak",)),
        ("idle", "start", "10,000 Pods, nothing happens", "% of a core", ("idle",)),
        ("restart", "start", "restart with 10,000 Pods", "s", ("restart", "change seen")),
    ):
        groups = {figure: {each.name: found.median(scenario, each.name, figure) for each in ALL} for figure in figures}
        draw(name, title, unit, groups)
    ends = {name: {OPERATOR.name: found.median(name, OPERATOR.name, "takeover")} for name in ("SIGKILL", "SIGTERM")}
    draw("takeover", "the leader ends, until the next change is written", "s", ends)


def draw(name: str, title: str, unit: str, groups: Mapping[str, Mapping[str, float]]) -> None:
    """Draw the bars that there are figures for."""
    known = {
        group: {who: value for who, value in bars.items() if not math.isnan(value)} for group, bars in groups.items()
    }
    if filled := {group: bars for group, bars in known.items() if bars}:
        write_plot(RESULTS, name, title, unit, filled)


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description="Measure the operator beside its yardsticks.")
    parser.add_argument("--quick", action="store_true", help="one short repeat of each")
    parser.add_argument("--only", action="append", default=[], choices=list(scenarios_of(QUICK)), help="repeatable")
    parser.add_argument(
        "--pods", type=int, help="as many in storms, and twice as many at starts, in the place of thousands"
    )
    chosen = parser.parse_args()
    size = QUICK if chosen.quick or os.environ.get("QUICK") else Size()
    if chosen.pods:
        size = replace(size, storm_pods=chosen.pods, start_pods=2 * chosen.pods)
    since, found = time.monotonic(), Collected()
    if chosen.only:
        found.read(RESULTS / "figures.json")
    with Rig() as rig:
        print(f"stored Pods of {rig.pod_bytes} bytes; {os.cpu_count()} cores", file=sys.stderr)
        measure(rig, size, chosen.only, found)
    found.write(RESULTS / "figures.json")
    print("| what | who | value | limit | goal | yardsticks | |\n| --- | --- | --- | --- | --- | --- | --- |")
    print("\n".join(str(row) for row in rows(found, size) if not math.isnan(row.value)))
    print(f"\n{size}\ntook {time.monotonic() - since:.0f} s; plots in bench/results/")
    plots(found)


if __name__ == "__main__":
    main()

"""How the demo looks: on a terminal a live table of Pods above a timeline, elsewhere plain lines."""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

REFRESHES_PER_SECOND = 8
TIMELINE_LINES = 18
PLAIN_WIDTH = 110
# A person needs to see each step; a log does not.
PAUSE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class PodLine:
    """One Pod as the table shows it."""

    name: str
    address: str
    ready: bool
    registered: bool
    calls: int


@dataclass(frozen=True, slots=True)
class StepResult:
    """What came of one step: seconds until the key and the client had followed, None where nothing had to change."""

    title: str
    key_seconds: float | None
    client_seconds: float | None
    fault: str = ""


def format_milliseconds(seconds: float | None) -> str:
    """Seconds as a person reads them best."""
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def pod_table(pods: Sequence[PodLine], title: str) -> Table:
    """The live table: every Pod, whether it is ready, has its key, and gets calls."""
    table = Table(title=title, title_justify="left")
    for column in ("Pod", "address", "ready", "key in etcd", "calls in the last second"):
        table.add_column(column, justify="right" if column.startswith("calls") else "left")
    for pod in pods:
        marks = ("[green]yes" if pod.ready else "[red]no", "[green]yes" if pod.registered else "[red]no")
        table.add_row(pod.name, pod.address, *marks, str(pod.calls))
    return table


def result_table(results: Sequence[StepResult]) -> Table:
    """The summary: each step with the time that its two ends took."""
    table = Table(title="How long each step took", title_justify="left")
    table.add_column("step")
    table.add_column("until the key changed", justify="right")
    table.add_column("until the client followed", justify="right")
    for result in results:
        took = [format_milliseconds(seconds) for seconds in (result.key_seconds, result.client_seconds)]
        table.add_row(result.title, *([Text(result.fault, "red"), ""] if result.fault else took))
    return table


class Screen:
    """Prints the timeline; on a terminal it also keeps the table and the newest lines in place."""

    def __init__(self, title: Callable[[], str], pods: Callable[[], Sequence[PodLine]]) -> None:
        self.console = Console(highlight=False)
        if not self.console.is_terminal:
            self.console = Console(highlight=False, width=PLAIN_WIDTH)
        self._title = title
        self._pods = pods
        self._started = time.monotonic()
        self._lines: list[str] = []

    def live(self) -> Any:
        """The context in which the table is kept in place; nothing without a terminal."""
        if not self.console.is_terminal:
            return nullcontext()
        return Live(get_renderable=self._render, console=self.console, refresh_per_second=REFRESHES_PER_SECOND)

    def say(self, text: str) -> None:
        """Add a line to the timeline."""
        line = f"{time.monotonic() - self._started:6.2f} s  {text}"
        self._lines.append(line)
        if not self.console.is_terminal:
            self.console.print(line, soft_wrap=True, markup=False)

    def pause(self) -> None:
        """Let a person look, where there is one."""
        if self.console.is_terminal:
            time.sleep(PAUSE_SECONDS)

    def show_pods(self) -> None:
        """Print the table once, for those without a terminal."""
        if not self.console.is_terminal:
            self.console.print(pod_table(self._pods(), self._title()))

    def _render(self) -> RenderableType:
        return Group(pod_table(self._pods(), self._title()), *map(Text, self._lines[-TIMELINE_LINES:]))

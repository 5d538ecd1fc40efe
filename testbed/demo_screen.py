"""How the demo looks: on a terminal a live table of Pods above a timeline, elsewhere plain lines; and as a picture."""

import io
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from html import escape
from typing import Any

from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

REFRESHES_PER_SECOND = 8
TIMELINE_LINES = 18
PLAIN_WIDTH = 110
# A person needs to see each step; a log does not.
PAUSE_SECONDS = 2.0
PICTURE_WIDTH = 56  # columns, so that its text is still of 11 pixels on a phone
# Headings of the table of Pods, with the width to which a narrow one folds them.
COLUMNS = (("Pod", None), ("address", None), ("ready", None), ("key in etcd", 7), ("calls in the last second", 10))
# As rich's own, which loads a font from a server, but for that; and with words for those who do not see it.
PICTURE = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {{width}} {{height:.0f}}" width="560" role="img" \
aria-labelledby="title desc">
<title id="title">{title}</title>
<desc id="desc">{description}</desc>
<style>
.{{unique_id}}-matrix {{{{ font: {{char_height}}px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace }}}}
.{{unique_id}}-title {{{{ font: 20px system-ui, sans-serif }}}}
{{styles}}
</style>
<defs>
<clipPath id="{{unique_id}}-clip-terminal">
<rect x="0" y="0" width="{{terminal_width}}" height="{{terminal_height}}"/>
</clipPath>
{{lines}}
</defs>
{{chrome}}
<g transform="translate({{terminal_x}}, {{terminal_y}})" clip-path="url(#{{unique_id}}-clip-terminal)">
{{backgrounds}}
<g class="{{unique_id}}-matrix">
{{matrix}}
</g>
</g>
</svg>
"""


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


def pod_table(pods: Sequence[PodLine], title: str, *, is_narrow: bool = False) -> Table:
    """The live table: every Pod, whether it is ready, has its key, and gets calls. If narrow, long headings fold."""
    style: dict[str, Any] = {"box": None, "pad_edge": False, "collapse_padding": True} if is_narrow else {}
    table = Table(title=title, title_justify="left", **style)
    for column, most in COLUMNS:
        justify: JustifyMethod = "right" if column.startswith("calls") else "left"
        table.add_column(column, justify=justify, max_width=most if is_narrow else None, no_wrap=is_narrow and not most)
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


def timeline(lines: Iterable[str]) -> Table:
    """The timeline as a table, so that a long line goes on below its beginning; what a step took stands out."""
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right", no_wrap=True)
    table.add_column()
    for line in lines:
        when, _, what = line.partition(" s  ")
        table.add_row(f"{when.strip()} s", Text(what, "green" if what.startswith("  ->") else ""))
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

    def picture(self) -> str:
        """Return what a terminal would show now as an SVG, which loads nothing; the same screen gives the same text."""
        console = Console(record=True, width=PICTURE_WIDTH, file=io.StringIO(), force_terminal=True, highlight=False)
        pods = pod_table(self._pods(), self._title(), is_narrow=True)
        console.print(pods, "", timeline(self._lines))
        words = (escape(text).replace("{", "{{").replace("}", "}}") for text in (self._title(), *self._lines))
        template = PICTURE.format(title="The demo on a terminal", description="; ".join(words))
        return console.export_svg(title="make demo", code_format=template, unique_id="demo")

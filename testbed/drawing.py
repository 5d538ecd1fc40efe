"""Pictures for the pages, as SVG: one style, legible in light and dark, at any width, and loading nothing.

A picture is 560 units wide with text of 16, so that its text is still of 11 pixels on a phone.
"""

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import NamedTuple

WIDTH = 560
MARGIN = 16
LINE = 22
LINE_CHARACTERS = 60  # of any font that a browser may take
LABEL_WIDTH = 226
BAR_WIDTH = 236  # leaves room for the value
BAR_STEP = 26
COLOURS = 4
STYLE = """\
text { font: 16px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2328 }
.strong { font-weight: 600 }
.soft { fill: #57606a }
.paper { fill: #ffffff }
.box { fill: #f6f8fa; stroke: #8c959f }
.good { fill: #dafbe1; stroke: #4ac26b }
.warn { fill: #fff8c5; stroke: #9a6700; stroke-dasharray: 4 3 }
.bar0 { fill: #0969da }
.bar1 { fill: #54aeff }
.bar2 { fill: #1a7f37 }
.bar3 { fill: #8c959f }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 }
.soft { fill: #9da7b3 }
.paper { fill: #0d1117 }
.box { fill: #161b22; stroke: #6e7681 }
.good { fill: #033a16; stroke: #2ea043 }
.warn { fill: #3a2a00; stroke: #d29922 }
.bar0 { fill: #388bfd }
.bar1 { fill: #a5d6ff }
.bar2 { fill: #3fb950 }
.bar3 { fill: #6e7681 }
}"""


class Bar(NamedTuple):
    """A value, and how it is written with its unit."""

    value: float
    shown: str


def picture(title: str, description: str, height: float, parts: Iterable[str]) -> str:
    """Return an SVG's text; title and description are for those who do not see it."""
    size = f'viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" height="{height:g}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-labelledby="title desc">',
            f'<title id="title">{escape(title)}</title>',
            f'<desc id="desc">{escape(description)}</desc>',
            f"<style>\n{STYLE}\n</style>",
            rect(0, 0, WIDTH, height, "paper", radius=8),
            *parts,
            "</svg>\n",
        ]
    )


def rect(x: float, y: float, width: float, height: float, kind: str, *, radius: float = 0) -> str:
    """Return a rectangle of a class of the style."""
    rounded = f' rx="{radius:g}"' if radius else ""
    return f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"{rounded}/>'


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    """Return a line of text on the base line `y`."""
    named = f' class="{kind}"' if kind else ""
    placed = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text{named} x="{x:g}" y="{y:g}"{placed}>{escape(words, quote=False)}</text>'


def bars(title: str, note: str, groups: Mapping[str, Mapping[str, Bar]], *, is_one_scale: bool) -> str:
    """Return a picture of horizontal bars in groups: of one scale for all, or one for each group."""
    largest = {group: max(bar.value for bar in found.values()) for group, found in groups.items()}
    if is_one_scale:
        largest = dict.fromkeys(largest, max(largest.values()))
    parts, y = [text(MARGIN, 30, title, "strong"), text(MARGIN, 30 + LINE, note, "soft")], 42.0 + LINE
    for group, found in groups.items():
        parts += _lines(group, y + LINE)
        y += LINE * len(textwrap.wrap(group, LINE_CHARACTERS)) + 10
        parts += _group(found, largest[group] or 1.0, y)
        y += BAR_STEP * len(found) + 12
    return picture(title, _in_words(groups), y + 4, parts)


def _lines(words: str, y: float) -> list[str]:
    return [text(MARGIN, y + LINE * n, line) for n, line in enumerate(textwrap.wrap(words, LINE_CHARACTERS))]


def _group(found: Mapping[str, Bar], largest: float, y: float) -> Iterator[str]:
    for number, (name, bar) in enumerate(found.items()):
        width = bar.value / largest * BAR_WIDTH
        top = y + BAR_STEP * number
        yield text(MARGIN, top + 16, name, "soft")
        yield rect(MARGIN + LABEL_WIDTH, top + 2, width, BAR_STEP - 8, f"bar{number % COLOURS}")
        yield text(MARGIN + LABEL_WIDTH + width + 6, top + 16, bar.shown)


def _in_words(groups: Mapping[str, Mapping[str, Bar]]) -> str:
    rows = (f"{group}: {', '.join(f'{n} {bar.shown}' for n, bar in found.items())}" for group, found in groups.items())
    return "; ".join(rows) + "."

"""Draw the measurements of docs/operations.md as bars, from the very table of the page."""

import re
from collections.abc import Mapping
from pathlib import Path

from testbed.build import ROOT
from testbed.drawing import Bar, bars

PAGE = ROOT / "docs/operations.md"
PICTURE = ROOT / "docs/pictures/sizing.svg"
TABLE = re.compile(r"(?m)^ *\| .*EndpointSlice controller.*\n(?: *\|.*\n)+")


def outputs() -> Mapping[Path, str]:
    """Give the picture of the page's table."""
    return {PICTURE: draw(PAGE.read_text())}


def draw(page: str) -> str:
    """Return the picture of the measurements in a page; each row is of its own unit, so of its own scale."""
    table = TABLE.search(page)
    if not table:
        raise ValueError("the page has no table of measurements")
    (note, *contestants), _, *rows = [_cells(line) for line in table[0].splitlines()]
    groups = {
        title: {name: read_bar(shown) for name, shown in zip(contestants, values, strict=True)}
        for title, *values in rows
    }
    return bars("The operator beside other writers: less is better", note, groups, is_one_scale=False)


def read_bar(shown: str) -> Bar:
    """Parse a value with its unit, such as `8.1 ms`."""
    number, _, unit = shown.partition(" ")
    if not unit:
        raise ValueError(f"{shown!r} has no unit")
    return Bar(float(number), shown)


def _cells(line: str) -> list[str]:
    return [cell.strip().replace("`", "") for cell in line.strip().strip("|").split("|")]

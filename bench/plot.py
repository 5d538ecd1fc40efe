"""Draws one SVG of horizontal bars for a scenario: a group for each figure, a bar for each contestant."""

from collections.abc import Mapping
from pathlib import Path
from xml.sax.saxutils import escape

COLOURS = {"operator": "#2b6cb0", "operator, direct": "#63b3ed", "go": "#38a169", "slices": "#a0aec0"}
NAMES = {"operator": "grpc-etcd operator", "go": "Go writer", "slices": "EndpointSlice controller"}
BAR, GAP, LEFT, WIDTH = 18, 14, 190, 460
Groups = Mapping[str, Mapping[str, float]]


def draw(title: str, unit: str, groups: Groups) -> str:
    """Return the SVG's text. Bars share one scale, so a group is a figure of one unit."""
    largest = max(value for bars in groups.values() for value in bars.values()) or 1.0
    lines, y = [_text(8, 24, title, 'font-weight="bold" font-size="15"')], 44
    for group, bars in groups.items():
        lines.append(_text(LEFT - 8, y + BAR * len(bars) / 2 + 4, group, 'text-anchor="end"'))
        for contestant, value in bars.items():
            width = value / largest * WIDTH
            colour = COLOURS.get(contestant) or COLOURS[contestant.partition(",")[0]]
            lines.append(f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR - 3}" fill="{colour}"/>')
            lines.append(_text(LEFT + width + 6, y + 12, f"{value:.3g} {unit}, {_name(contestant)}"))
            y += BAR
        y += GAP
    size = f'width="{LEFT + WIDTH + 260}" height="{y + 4}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *lines, "</svg>", ""])


def _name(contestant: str) -> str:
    name, separator, rest = contestant.partition(",")
    return NAMES[name] + separator + rest


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {more}>{escape(text)}</text>'


def write_plot(folder: Path, name: str, title: str, unit: str, groups: Groups) -> None:
    """Write it to a file named for the scenario."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.svg").write_text(draw(title, unit, groups))

"""Draws one SVG of horizontal bars for a scenario: a group for each figure, a bar for each contestant."""

from collections.abc import Mapping
from pathlib import Path

from testbed.drawing import Bar, bars

NAMES = {"operator": "grpc-etcd operator", "go": "Go writer", "slices": "EndpointSlice controller"}
Groups = Mapping[str, Mapping[str, float]]


def draw(title: str, unit: str, groups: Groups) -> str:
    """Return the SVG's text. Bars share one scale, so a group is a figure of one unit."""
    shown = {
        group: {_name(who): Bar(value, f"{value:.3g} {unit}") for who, value in found.items()}
        for group, found in groups.items()
    }
    return bars(title, unit, shown, is_one_scale=True)


def _name(contestant: str) -> str:
    name, separator, rest = contestant.partition(",")
    return NAMES[name] + separator + rest


def write_plot(folder: Path, name: str, title: str, unit: str, groups: Groups) -> None:
    """Write it to a file named for the scenario."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.svg").write_text(draw(title, unit, groups))

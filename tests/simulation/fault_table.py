"""The table of docs/architecture.md: for how many simulated hours each fault was about, in one run that ended well."""

from collections.abc import Mapping
from pathlib import Path

BEGIN = "<!-- simulated faults, written by `make simulate TABLE=docs/architecture.md` -->"
END = "<!-- end of simulated faults -->"


def make(hours: float, happened: Mapping[str, int], seconds_with: Mapping[str, int]) -> str:
    """Write the table."""
    rows = [
        f"| {name.replace('_', ' ')} | {happened[name]:,} | {seconds_with[name] / 3600:,.1f} |" for name in happened
    ]
    head = f"{hours:,.0f} simulated hours in all; the hours of a fault are those of the rounds in which it happened."
    return "\n".join([head, "", "| fault | times | hours |", "| --- | --- | --- |", *sorted(rows)])


def put_into(page: Path, table: str) -> None:
    """Put the table into a page in place of the one that is there."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page} has no place for the table: the lines {BEGIN} and {END}")
    page.write_text(f"{before}{begin}\n{table}\n{end}{after}")

"""Tables for people, JSON and YAML for programs."""

import json
from collections.abc import Sequence
from typing import Any

import click
import yaml
from rich.console import Console
from rich.table import Table

OUTPUTS = ("table", "json", "yaml")
WIDE = 250  # where there is no terminal, lines are not broken


def print_data(data: object, output: str) -> None:
    """Print data for programs."""
    if output == "yaml":
        click.echo(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), nl=False)
    else:
        click.echo(json.dumps(data, ensure_ascii=False, indent=2))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table without frames, as kubectl does."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.upper(), overflow="fold")
    for row in rows:
        table.add_row(*("-" if cell in ("", None) else str(cell) for cell in row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)
    console.print(table, highlight=False, markup=False)

"""The records that docs/wire-format.md shows are what the layouts write and read, and its figures are theirs."""

import re
from pathlib import Path

import pytest

from grpc_etcd.layouts.index import LAYOUT_NAMES, make_layout
from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.layout import KeyValue

PAGE = (Path(__file__).parents[3] / "docs/wire-format.md").read_text()
RECORDS = {
    name: KeyValue(key.encode(), value.encode())
    for name, key, value in re.findall(r"```record (\S+)\n(.+)\n(.+)\n", PAGE)
}
SHOWN = Endpoint(name="greeter", address="10.0.0.1:9000", zone="eu-1a", metadata={"version": "v2"})


def test_every_layout_is_shown() -> None:
    assert set(RECORDS) == set(LAYOUT_NAMES)


@pytest.mark.parametrize("name", LAYOUT_NAMES)
def test_the_record_shown_is_the_one_written(name: str) -> None:
    assert make_layout(name).encode("greeter", SHOWN) == RECORDS[name]


@pytest.mark.parametrize("name", LAYOUT_NAMES)
def test_the_pace_shown_is_the_layouts(name: str) -> None:
    pace = make_layout(name).pace
    row = next(line for line in PAGE.splitlines() if line.startswith("|") and f"`{name}`" in line)
    _, _, transaction, second, touch, _ = (cell.strip() for cell in row.split("|"))
    assert transaction == str(pace.keys_per_transaction)
    assert second == ("no limit" if pace.keys_per_second is None else str(pace.keys_per_second))
    assert touch == ("yes" if pace.settling_touch else "no")

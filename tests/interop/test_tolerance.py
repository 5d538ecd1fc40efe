"""Our decoders take what the real readers take, and nothing else.

Each record is a good one with a single field replaced by a value of another type or made broken in one way; the real
reader and ours look at all of them at once. The only difference allowed: an address that nobody can dial, which Go
programs hand on and we reject.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from grpc_etcd.registry.endpoint import Endpoint, address_fault
from grpc_etcd.registry.layout import KeyValue
from grpc_etcd.registry.snapshot import SnapshotBuilder
from testbed.conditions import wait_until
from tests.interop.conftest import Interop

pytestmark = pytest.mark.interop

GREETER = "greeter"
REPLACEMENTS: list[Any] = [
    None,
    "x",
    "7",
    0,
    1,
    7,
    256,
    -1,
    1.5,
    True,
    [],
    ["a"],
    [1],
    [None],
    {},
    {"a": 1},
    {"a": "b"},
    {"a": None},
]
LAST = "127.0.9.9:9000"


def _mutated(value: bytes) -> Iterator[bytes]:
    """Yield the value broken in every way."""
    yield from (value, b"", value[:-1], value + b"x", value + b" \n", b"\xef\xbb\xbf" + value, b"[" + value + b"]")
    yield from (value.replace(b"shop", broken) for broken in (b"\xff", b"\\ud800", b"\x01", b"\\u00zz", b"a\nb"))
    yield from (value.replace(b'":', tail) for tail in (b'" :', b"':", b'"='))
    yield value.replace(b'"Addr"', b'"ADDR"').replace(b'"address"', b'"ADDRESS"').replace(b'"nodes"', b'"Nodes"')
    yield from (
        b'{"other":' + other + b"," + value[1:] for other in (b"{}", b"[1,{}]", b"1e400", b"nul", b"NaN", b"01")
    )
    for path in _paths(json.loads(value)):
        for replacement in REPLACEMENTS:
            yield json.dumps(_replaced(json.loads(value), path, replacement)).encode()


def _paths(parsed: Any) -> Iterator[tuple[str | int, ...]]:
    """Yield where each field stands, but for those inside a map of metadata."""
    items: Any = parsed.items() if isinstance(parsed, dict) else enumerate(parsed) if isinstance(parsed, list) else ()
    for name, item in items:
        yield (name,)
        if name not in {"metadata", "Metadata", "tags"}:
            yield from ((name, *rest) for rest in _paths(item))


def _replaced(parsed: Any, path: tuple[str | int, ...], replacement: Any) -> Any:
    inner = parsed
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = replacement
    return parsed


def _records(interop: Interop) -> list[KeyValue]:
    """Make a record at an address of its own for each way of breaking one."""
    records = []
    count = len(list(_mutated(_good(interop, LAST).value)))
    for number in range(count):
        good = _good(interop, f"127.0.{1 + number // 200}.{1 + number % 200}:9000")
        records.append(KeyValue(good.key, list(_mutated(good.value))[number]))
    return records


def _good(interop: Interop, address: str) -> KeyValue:
    endpoint = Endpoint(name=GREETER, address=address, metadata={"team": "shop"}, instance=f"id-{address}")
    record = interop.layout.encode(GREETER, endpoint)
    assert isinstance(record, KeyValue)
    return record


@pytest.mark.parametrize(
    "interop", ["jupiter027", "jupiter011", "naming", "kitex", "gomicro4", "gomicro5"], indirect=True
)
def test_a_broken_record_is_read_by_us_just_where_the_real_reader_reads_it(interop: Interop) -> None:
    records = [*_records(interop), _good(interop, LAST)]
    for record in records:
        interop.etcd.put(*record)
    ours = SnapshotBuilder(GREETER, [interop.layout], schemes=None)
    ours.replace(records, 1)
    expected = {endpoint.address for endpoint in ours.snapshot().endpoints}
    with interop.run("list" if interop.program.startswith("gomicro") else "watch").start() as reader:
        if interop.program.startswith("gomicro"):
            seen = {endpoint["address"] for endpoint in reader.wait_for("listed")["endpoints"]}
        else:
            wait_until(lambda: LAST in (reader.last_set() or ()), "the reader to see the last record")
            seen = reader.last_set() or set()
    theirs = {address for address in seen if address_fault(address) is None}
    values = {record.key: record.value for record in records}
    differing = {
        key: value for key, value in values.items() for address in expected ^ theirs if address.encode() in key
    }
    assert expected == theirs, differing


@pytest.mark.parametrize("interop", ["jupiter027"], indirect=True)
def test_jupiters_reader_takes_our_choice_of_keys(interop: Interop) -> None:
    tails = [
        *("10.0.0.1:9090", "[2001:db8::1]:9090", "2001:db8::1:9090", "[fe80::1%25eth0]:9090", "fe80::1%eth0:9090"),
        *(
            "10.0.0.1:grpc",
            "10.0.0.1",
            ":9092",
            "pod_a.ns:9090",
            "u@h:1",
            "h:1/",
            "h:1?weight=1",
            "",
            "h h:1",
            "h%41:1",
        ),
        *(
            "[::1:1",
            "[::1]x",
            "h:1#%2",
            "h|:1",
            "h%C3%A9:1",
            "h<:1",
            "u u@h:1",
            "h:1/%zz",
            "a/b/c",
            "%",
            "?",
            "//",
        ),
    ]
    records = []
    for number, tail in enumerate(tails, 1):
        good = _good(interop, f"127.0.1.{number}:9000")
        records.append(KeyValue(f"/jupiter/greeter/providers/grpc://{tail}".encode(), good.value))
    records.append(_good(interop, LAST))
    for record in records:
        interop.etcd.put(*record)
    ours = SnapshotBuilder(GREETER, [interop.layout])
    ours.replace(records, 1)
    with interop.run("watch").start() as reader:
        wait_until(lambda: LAST in (reader.last_set() or ()), "the reader to see the last record")
        assert reader.last_set() == {endpoint.address for endpoint in ours.snapshot().endpoints}

"""Snapshots: complete, immutable, the same for the same input, whatever order and way it came in."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from grpc_etcd.layouts.index import make_layout
from grpc_etcd.layouts.jupiter import Jupiter
from grpc_etcd.layouts.jupiter_v2 import JupiterV2
from grpc_etcd.registry.endpoint import Endpoint, Kind
from grpc_etcd.registry.layout import KeyValue, Layout
from grpc_etcd.registry.snapshot import Snapshot, SnapshotBuilder, diff

JUPITER = Jupiter()
V2 = JupiterV2()


def _record(address: str, layout: Layout = JUPITER, *, weight: int = 100, scheme: str = "grpc") -> KeyValue:
    record = layout.encode("main", Endpoint(name="main", address=address, weight=weight, scheme=scheme))
    assert isinstance(record, KeyValue)
    return record


def _addresses(snapshot: Snapshot) -> list[str]:
    return [endpoint.address for endpoint in snapshot.endpoints]


def _builder(*records: KeyValue, layouts: tuple[Layout, ...] = (JUPITER,)) -> SnapshotBuilder:
    builder = SnapshotBuilder("main", layouts)
    builder.replace(records, 1)
    return builder


def test_a_listing_makes_a_snapshot_sorted_by_address() -> None:
    builder = _builder(_record("b:1"), _record("a:1"), _record("c:1"))
    snapshot = builder.snapshot()
    assert _addresses(snapshot) == ["a:1", "b:1", "c:1"]
    assert (snapshot.service, snapshot.revision, snapshot.rejected) == ("main", 1, {})


def test_changes_are_applied_in_order() -> None:
    builder = _builder(_record("a:1"))
    assert builder.apply([_record("b:1"), (_record("a:1").key, None)], 7)
    assert _addresses(builder.snapshot()) == ["b:1"]
    assert builder.snapshot().revision == 7


def test_a_put_of_the_same_value_changes_nothing() -> None:
    builder = _builder(_record("a:1"))
    assert not builder.apply([_record("a:1")], 2)
    assert builder.apply([_record("a:1", weight=7)], 3)
    assert builder.snapshot().endpoints[0].weight == 7


def test_a_bad_value_keeps_the_good_one_of_its_key_and_is_reported_until_mended() -> None:
    builder = _builder(_record("a:1", weight=7))
    key = _record("a:1").key
    assert builder.apply([(key, b"broken")], 2)
    snapshot = builder.snapshot()
    assert [(endpoint.address, endpoint.weight) for endpoint in snapshot.endpoints] == [("a:1", 7)]
    assert list(snapshot.rejected) == [key]
    assert not builder.apply([(key, b"broken")], 3)
    assert builder.apply([_record("a:1", weight=8)], 4)
    assert builder.snapshot().rejected == {}


def test_a_bad_value_survives_a_new_listing_as_bad_and_its_key_as_good() -> None:
    builder = _builder(_record("a:1"), _record("b:1"))
    builder.replace([KeyValue(_record("a:1").key, b"broken")], 9)
    assert _addresses(builder.snapshot()) == ["a:1"]
    builder.replace([], 10)
    assert builder.snapshot() == Snapshot("main", 10)


def test_a_bad_value_from_the_start_is_only_reported() -> None:
    builder = _builder(KeyValue(_record("a:1").key, b"broken"))
    assert _addresses(builder.snapshot()) == []
    assert "JSON" in builder.snapshot().rejected[_record("a:1").key]


def test_other_kinds_schemes_and_keys_are_left_out() -> None:
    governor = JUPITER.encode("main", Endpoint(name="main", address="g:1", scheme="http", kind=Kind.GOVERNOR))
    assert isinstance(governor, KeyValue)
    settled = JUPITER.settled("main", "c1")
    records = [governor, settled, _record("h:1", scheme="http"), _record("a:1")]
    assert _addresses(_builder(*records).snapshot()) == ["a:1"]
    assert _builder(*records).snapshot().rejected == {}
    everything = SnapshotBuilder("main", [JUPITER], schemes=None)
    everything.replace(records, 1)
    assert _addresses(everything.snapshot()) == ["a:1", "h:1"]


def test_an_address_in_two_layouts_is_one_endpoint_of_the_layout_given_first() -> None:
    old, new = _record("a:1", weight=1), _record("a:1", V2, weight=2)
    builder = _builder(new, old, _record("b:1", V2), layouts=(JUPITER, V2))
    assert [(e.address, e.weight) for e in builder.snapshot().endpoints] == [("a:1", 1), ("b:1", 100)]
    builder.apply([(old.key, None)], 2)
    assert [(e.address, e.weight) for e in builder.snapshot().endpoints] == [("a:1", 2), ("b:1", 100)]
    builder.apply([(new.key, None)], 3)
    assert _addresses(builder.snapshot()) == ["b:1"]


def test_an_address_that_two_keys_name_stays_until_both_are_gone() -> None:
    one, two = (KeyValue(b"/jupiter/main/providers/grpc://" + name, _record("a:1").value) for name in (b"x:1", b"y:1"))
    builder = _builder(one, two)
    builder.apply([(one.key, None)], 2)
    assert _addresses(builder.snapshot()) == ["a:1"]
    builder.apply([(two.key, None)], 3)
    assert _addresses(builder.snapshot()) == []


def test_a_key_whose_value_moves_to_another_address_moves() -> None:
    builder = _builder(_record("a:1"))
    builder.apply([KeyValue(_record("a:1").key, _record("b:1").value)], 2)
    assert _addresses(builder.snapshot()) == ["b:1"]


def test_layouts_that_share_a_prefix_are_told_apart_by_their_values() -> None:
    naming, zero = make_layout("etcd-naming"), make_layout("go-zero")
    records = [_record("a:1", naming), _record("b:1", zero)]
    builder = _builder(*records, layouts=(naming, zero))
    assert builder.prefixes == (b"main/",)
    assert _addresses(builder.snapshot()) == ["a:1", "b:1"]
    assert builder.snapshot().rejected == {}


def test_a_snapshot_does_not_change_with_its_builder() -> None:
    builder = _builder(_record("a:1"), KeyValue(_record("b:1").key, b"broken"))
    before = builder.snapshot()
    builder.apply([(_record("a:1").key, None), (_record("b:1").key, None)], 2)
    assert _addresses(before) == ["a:1"]
    assert len(before.rejected) == 1


def test_a_difference_names_what_came_went_and_changed() -> None:
    old = _builder(_record("a:1"), _record("b:1"), _record("c:1")).snapshot()
    new = _builder(_record("b:1"), _record("c:1", weight=7), _record("d:1")).snapshot()
    difference = diff(old, new)
    assert [endpoint.address for endpoint in difference.added] == ["d:1"]
    assert [endpoint.address for endpoint in difference.removed] == ["a:1"]
    assert [(endpoint.address, endpoint.weight) for endpoint in difference.changed] == [("c:1", 7)]
    assert diff(new, new) == ((), (), ())


changes = st.lists(
    st.tuples(
        st.sampled_from([b"%d" % n for n in range(5)]),
        st.none()
        | st.builds(lambda a, w: _record(f"{a}:1", weight=w).value, st.sampled_from("abc"), st.integers(0, 2)),
    ),
    max_size=25,
)


@given(changes)
def test_changes_lead_to_what_a_listing_of_their_end_says(history: list[tuple[bytes, bytes | None]]) -> None:
    history = [(b"/jupiter/main/providers/grpc://k:" + tail, value) for tail, value in history]
    followed = SnapshotBuilder("main", [JUPITER])
    states: dict[bytes, bytes] = {}
    snapshots = [followed.snapshot()]
    for key, value in history:
        changed = followed.apply([(key, value)], 1)
        states = {k: v for k, v in (states | ({key: value} if value else {})).items() if value or k != key}
        snapshots.append(followed.snapshot())
        assert changed or snapshots[-2].endpoints == snapshots[-1].endpoints
    listed = SnapshotBuilder("main", [JUPITER])
    listed.replace(reversed(states.items()), 1)
    assert followed.snapshot().endpoints == listed.snapshot().endpoints
    for old, new in pairwise(snapshots):
        added, removed, changed_endpoints = diff(old, new)
        state = {e.address: e for e in old.endpoints} | {e.address: e for e in (*added, *changed_endpoints)}
        for endpoint in removed:
            del state[endpoint.address]
        assert tuple(state[address] for address in sorted(state)) == new.endpoints


def test_why_a_record_is_rejected_is_short_however_large_the_record_is() -> None:
    """It is logged, and stands in `stats()`."""
    record = _record("10.0.0.1:1")
    large = record.value.replace(b"10.0.0.1:1", b"x" * 1_000_000)
    (reason,) = _builder(KeyValue(record.key, large)).snapshot().rejected.values()
    assert len(reason) < 1_000

"""What a reader believes: the whole table of views, without etcd."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpc_etcd.compound import merge_views
from grpc_etcd.registry.configurators import RouteConfig, encode_configurator
from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.jupiter import Jupiter
from grpc_etcd.registry.layout import KeyValue
from grpc_etcd.registry.own import policy_key, synced_key
from grpc_etcd.registry.policy import Policy, write_policy
from grpc_etcd.view import Reader, Source, View

LAYOUT = Jupiter()
MARK = (synced_key("c1"), b"")
OTHER_MARK = (synced_key("c2"), b"")


def record(number: int) -> tuple[bytes, bytes]:
    made = LAYOUT.encode("greeter", Endpoint(name="greeter", address=f"10.0.0.{number}:1"))
    assert isinstance(made, KeyValue)
    return made


def gone(*pairs: tuple[bytes, bytes]) -> list[tuple[bytes, None]]:
    return [(key, None) for key, _ in pairs]


def make_reader(*records: tuple[bytes, bytes], revision: int = 10) -> Reader:
    reader = Reader("greeter", [LAYOUT], "jupiter")
    reader.take_listing(records, revision, Source.REGISTRY)
    return reader


def numbers(view: View) -> list[int]:
    assert view.snapshot is not None
    return [int(endpoint.address.split(":")[0].split(".")[3]) for endpoint in view.snapshot.endpoints]


def test_before_the_first_listing_everything_is_unknown() -> None:
    view = Reader("greeter", [LAYOUT], "jupiter").view
    assert (view.source, view.snapshot) == (Source.UNKNOWN, None)
    assert not view.has_endpoints(0)


def test_an_empty_first_listing_is_empty() -> None:
    assert make_reader().view.snapshot is not None
    assert numbers(make_reader().view) == []


@pytest.mark.parametrize("marks", [(), (MARK,), (MARK, OTHER_MARK)])
def test_deletes_are_obeyed_while_nothing_is_missing(marks: tuple[tuple[bytes, bytes], ...]) -> None:
    reader = make_reader(record(1), *marks)
    view = reader.take_changes(gone(record(1)), 11)
    assert (numbers(view), view.source) == ([], Source.REGISTRY)


def test_the_last_good_set_is_kept_while_a_mark_is_missing() -> None:
    reader = make_reader(record(1), record(2), MARK, OTHER_MARK)
    reader.take_changes(gone(MARK), 11)
    assert numbers(reader.take_changes(gone(record(1)), 12)) == [2]
    assert numbers(reader.take_changes([record(3)], 13)) == [2, 3]
    view = reader.take_changes(gone(record(2), record(3)), 14)
    assert (numbers(view), view.source) == ([1, 2, 3], Source.KEPT)
    assert "c1" in view.reason
    view = reader.take_changes([MARK], 15)
    assert (numbers(view), view.source) == ([], Source.REGISTRY)


def test_a_registry_that_went_back_in_time_has_been_reset() -> None:
    reader = make_reader(record(1), revision=100)
    view = reader.take_listing([], 3, Source.REGISTRY)
    assert (numbers(view), view.source) == ([1], Source.KEPT)
    view = reader.take_changes([(policy_key("jupiter", "greeter"), b"{}")], 4)
    assert numbers(view) == [1]
    view = reader.take_changes([record(2)], 5)
    assert (numbers(view), view.source) == ([2], Source.REGISTRY)


def test_what_was_cached_counts_as_seen() -> None:
    reader = Reader("greeter", [LAYOUT], "jupiter")
    view = reader.take_listing([record(1), MARK], 10, Source.CACHE)
    assert view.source is Source.CACHE
    view = reader.take_listing([], 20, Source.REGISTRY)
    assert (numbers(view), view.source) == ([1], Source.KEPT)


def test_the_policy_outlives_the_registry_that_was_lost() -> None:
    policy = (policy_key("jupiter", "greeter"), write_policy(Policy(timeout_seconds=2)))
    reader = make_reader(record(1), MARK, policy)
    view = reader.take_changes(gone(MARK, policy, record(1)), 11)
    assert view.policy.timeout_seconds == 2


def test_the_policy_of_another_service_with_the_same_beginning_is_not_ours() -> None:
    reader = make_reader((policy_key("jupiter", "greeter-2"), write_policy(Policy(timeout_seconds=2))))
    assert reader.view.policy == Policy()


def test_a_broken_route_leaves_the_one_that_was_there() -> None:
    made = encode_configurator("jupiter", "greeter", RouteConfig(id="1", uri="/a/b", groups={"x": 1}))
    assert isinstance(made, KeyValue)
    reader = make_reader(made)
    assert [route.uri for route in reader.take_changes([(made.key, b"broken")], 11).routes] == ["/a/b"]
    assert reader.take_changes(gone(made), 12).routes == ()


steps = st.lists(st.tuples(st.sampled_from(["put", "delete", "mark", "unmark"]), st.integers(1, 3)), max_size=20)


@given(steps)
def test_a_set_that_was_good_never_becomes_empty_while_the_mark_is_missing(steps: list[tuple[str, int]]) -> None:
    reader = make_reader(record(1), MARK)
    marked, revision = True, 10
    for step, number in steps:
        revision += 1
        before = bool(numbers(reader.view))
        change: tuple[bytes, bytes | None] = {
            "put": record(number),
            "delete": (record(number)[0], None),
            "mark": MARK,
            "unmark": (MARK[0], None),
        }[step]
        marked = step == "mark" or (marked and step != "unmark")
        view = reader.take_changes([change], revision)
        assert numbers(view) or marked or not before


def test_a_union_believes_the_first_and_needs_one_alone() -> None:
    here, there = make_reader(record(1), record(2)), make_reader(record(2), record(3))
    merged = merge_views("greeter", [here.view, View(), there.view])
    assert numbers(merged) == [1, 2, 3]
    assert merge_views("greeter", [View(), View()]).snapshot is None

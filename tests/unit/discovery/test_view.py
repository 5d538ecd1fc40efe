"""What a reader believes: the whole table of views, without etcd."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpc_etcd.client.union import merge_views
from grpc_etcd.discovery.positions import Position
from grpc_etcd.discovery.state import SYNCED, Range, Reader, ResolverState, Source
from grpc_etcd.layouts.configurators import RouteConfig, encode_configurator
from grpc_etcd.layouts.index import make_layout
from grpc_etcd.layouts.jupiter import Jupiter
from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.layout import KeyValue, Layout
from grpc_etcd.registry.own import SYNCED_PREFIX, policy_key, synced_key
from grpc_etcd.registry.policy import Policy, write_policy

LAYOUT = Jupiter()
OTHER_LAYOUT = make_layout("kratos")
MARK = (synced_key("c1"), b"")
OTHER_MARK = (synced_key("c2"), b"")

Pair = tuple[bytes, bytes]


def record(number: int, layout: Layout = LAYOUT, *, enable: bool = True) -> Pair:
    made = layout.encode("greeter", Endpoint(name="greeter", address=f"10.0.0.{number}:1", enable=enable))
    assert isinstance(made, KeyValue)
    return made.key, made.value


def gone(*pairs: Pair) -> list[tuple[bytes, None]]:
    return [(key, None) for key, _ in pairs]


def range_of(reader: Reader, key: bytes) -> Range:
    return next(each for each in reader.ranges if each.holds(key))


def list_all(reader: Reader, records: Iterable[Pair], revision: int, history: int = 0) -> ResolverState:
    """Tell every range's records at one revision."""
    held = list(records)
    for each in reader.ranges:
        pairs = [(key, value) for key, value in held if each.holds(key)]
        reader.take_listing(each, pairs, Position(history, revision))
    return reader.view


def change(reader: Reader, changes: Iterable[tuple[bytes, bytes | None]], revision: int) -> ResolverState:
    """Tell changes that happened at one revision, and that nothing else did."""
    found = list(changes)
    for each in reader.ranges:
        own = [(revision, (key, value)) for key, value in found if each.holds(key)]
        if own:
            reader.take_changes(each, own, revision)
    for each in reader.ranges:
        reader.take_progress(each, revision)
    return reader.view


def make_reader(*records: Pair, revision: int = 10, layouts: tuple[Layout, ...] = (LAYOUT,)) -> Reader:
    reader = Reader("greeter", layouts, "jupiter")
    list_all(reader, records, revision)
    return reader


def numbers(view: ResolverState) -> list[int]:
    assert view.snapshot is not None
    return [int(endpoint.address.split(":")[0].split(".")[3]) for endpoint in view.snapshot.endpoints]


def test_before_the_first_listing_everything_is_unknown() -> None:
    view = Reader("greeter", [LAYOUT], "jupiter").view
    assert (view.source, view.snapshot) == (Source.UNKNOWN, None)


def test_a_service_is_unknown_until_every_range_has_been_heard() -> None:
    reader = Reader("greeter", [LAYOUT], "jupiter")
    own = range_of(reader, record(1)[0])
    view = reader.take_listing(own, [record(1)], Position(0, 10))
    for each in reader.ranges:
        assert view.snapshot is None
        view = view if each == own else reader.take_listing(each, [], Position(0, 10))
    assert numbers(view) == [1]


def test_an_empty_first_listing_is_empty() -> None:
    assert make_reader().view.snapshot is not None
    assert numbers(make_reader().view) == []


def test_a_service_that_moves_between_two_first_listings_is_not_empty() -> None:
    reader = Reader("greeter", [LAYOUT, OTHER_LAYOUT], "jupiter")
    for each in reader.ranges:
        if not each.holds(record(1)[0]):
            reader.take_listing(each, [], Position(0, 10))
    reader.take_listing(range_of(reader, record(1)[0]), [], Position(0, 12))  # it was moved to kratos at 11
    assert reader.view.snapshot is None
    assert {revision for _, revision in reader.awaited()} == {12}
    other = range_of(reader, record(1, OTHER_LAYOUT)[0])
    assert numbers(reader.take_changes(other, [(11, record(1, OTHER_LAYOUT))], 11)) == [1]


@pytest.mark.parametrize("marks", [(), (MARK,), (MARK, OTHER_MARK)])
def test_deletes_are_obeyed_while_nothing_is_missing(marks: tuple[Pair, ...]) -> None:
    reader = make_reader(record(1), *marks)
    view = change(reader, gone(record(1)), 11)
    assert (numbers(view), view.source) == ([], Source.REGISTRY)


def test_an_arrival_is_told_at_once_and_a_loss_only_when_all_ranges_are_known_so_far() -> None:
    reader = make_reader(record(1), record(2), MARK)
    own = range_of(reader, record(1)[0])
    view = reader.take_changes(own, [(11, record(3)), (12, (record(1)[0], None))], 12)
    assert numbers(view) == [1, 2, 3]
    waiting = dict(reader.awaited())
    assert set(waiting.values()) == {12}
    assert own not in waiting
    for each in waiting:
        assert numbers(reader.view) == [1, 2, 3]
        reader.take_progress(each, 12)
    assert numbers(reader.view) == [2, 3]
    assert not list(reader.awaited())


def resume(reader: Reader, known: int, store: int) -> None:
    """Tell that every range is watched again, from a revision on that etcd has left behind."""
    for each in reader.ranges:
        reader.take_progress(each, known, store)


def test_what_came_and_went_while_a_range_was_not_watched_is_never_shown() -> None:
    reader = make_reader(record(1), MARK)
    own = range_of(reader, record(1)[0])
    resume(reader, 10, 2_000)
    assert numbers(reader.take_changes(own, [(11, record(2)), (12, record(3))], 12)) == [1]
    assert numbers(reader.take_changes(own, [(1_500, gone(record(2))[0]), (1_501, gone(record(1))[0])], 1_501)) == [1]
    assert {revision for _, revision in reader.awaited()} == {2_000}
    assert numbers(reader.take_changes(own, [(2_001, record(4))], 2_001)) == [1, 4]
    for each in reader.ranges:
        reader.take_progress(each, 2_001)
    assert numbers(reader.view) == [3, 4]


def test_a_range_that_has_missed_nothing_shows_at_once_what_comes() -> None:
    reader = make_reader(record(1), MARK)
    resume(reader, 10, 10)
    own = range_of(reader, record(1)[0])
    assert numbers(reader.take_changes(own, [(11, record(2))], 11)) == [1, 2]


def test_a_broken_value_of_a_time_when_a_range_was_not_watched_leaves_the_good_one() -> None:
    reader = make_reader(record(1), MARK)
    resume(reader, 10, 20)
    own, (key, value) = range_of(reader, record(1)[0]), record(2)
    reader.take_changes(own, [(11, (key, b"{")), (12, (key, value)), (13, (key, b"{"))], 13)
    for each in reader.ranges:
        reader.take_progress(each, 20)
    assert numbers(reader.view) == [1, 2]


def test_a_range_that_is_listed_again_shows_what_it_holds_whatever_it_has_missed() -> None:
    reader = make_reader(record(1), MARK)
    own = range_of(reader, record(1)[0])
    resume(reader, 10, 20)
    reader.take_changes(own, [(11, record(2))], 11)
    assert numbers(reader.take_listing(own, [record(1), record(3)], Position(0, 21))) == [1, 3]


def test_a_broken_value_does_not_bring_an_endpoint_back_whose_loss_is_held_back() -> None:
    reader = make_reader(record(1), record(2))
    which, (key, _) = range_of(reader, record(1)[0]), record(1)
    reader.take_changes(which, [(11, (key, None))], 11)
    assert numbers(reader.take_changes(which, [(12, (key, b"{"))], 12)) == [1, 2]  # the policy is known up to 10 only
    assert numbers(change(reader, [], 12)) == [2]
    assert numbers(list_all(reader, [record(2), (key, b"{")], 13)) == [2]


EDITS = st.tuples(st.integers(1, 2), st.sampled_from(["good", "disabled", "broken", "gone"]), st.booleans())


@given(st.lists(EDITS, max_size=8))
def test_what_is_held_back_ends_as_if_each_change_had_been_judged_at_once(edits: list[tuple[int, str, bool]]) -> None:
    late, at_once = make_reader(record(1), record(2)), make_reader(record(1), record(2))
    which = range_of(late, record(1)[0])
    for at, (number, what, is_judged) in enumerate(edits, start=11):
        key, value = record(number, enable=what != "disabled")
        edit = (key, {"gone": None, "broken": b"{"}.get(what, value))
        change(at_once, [edit], at)
        late.take_changes(which, [(at, edit)], at)
        if is_judged:
            change(late, [], at)
    last, wanted = change(late, [], 100).snapshot, change(at_once, [], 100).snapshot
    assert last
    assert wanted
    assert (last.endpoints, last.rejected) == (wanted.endpoints, wanted.rejected)


def test_a_set_that_moves_to_another_layout_is_never_empty_whichever_event_is_first() -> None:
    for is_loss_first in (True, False):
        reader = make_reader(record(1), MARK, layouts=(LAYOUT, OTHER_LAYOUT))
        old, new = range_of(reader, record(1)[0]), range_of(reader, record(1, OTHER_LAYOUT)[0])
        steps = [(old, (record(1)[0], None)), (new, record(1, OTHER_LAYOUT))]
        for which, moved in steps if is_loss_first else reversed(steps):
            assert numbers(reader.take_changes(which, [(11, moved)], 11)) == [1]
        for each in reader.ranges:
            assert numbers(reader.take_progress(each, 11)) == [1]


def test_a_set_that_is_disabled_in_one_layout_and_put_in_another_is_never_without_a_callable_one() -> None:
    reader = make_reader(record(1), MARK, layouts=(LAYOUT, OTHER_LAYOUT))
    view = reader.take_changes(range_of(reader, record(1)[0]), [(11, record(1, enable=False))], 11)
    assert view.callables == 1
    view = reader.take_changes(range_of(reader, record(2, OTHER_LAYOUT)[0]), [(11, record(2, OTHER_LAYOUT))], 11)
    assert view.callables == 2
    assert change(reader, [], 11).callables == 1


def test_keys_that_vanish_before_their_synced_key_is_known_to_be_gone_are_kept() -> None:
    reader = make_reader(record(1), record(2), MARK)
    own = range_of(reader, record(1)[0])
    view = reader.take_changes(own, [(12, pair) for pair in gone(record(1), record(2))], 12)
    assert numbers(view) == [1, 2]
    view = reader.take_changes(SYNCED, [(11, (MARK[0], None))], 11)
    view = change(reader, [], 12)
    assert (numbers(view), view.source) == ([1, 2], Source.STALE)


def test_the_last_good_set_is_kept_while_a_mark_is_missing_and_replaced_by_what_comes() -> None:
    reader = make_reader(record(1), record(2), MARK, OTHER_MARK)
    change(reader, gone(MARK), 11)
    assert numbers(change(reader, gone(record(1)), 12)) == [2]
    view = change(reader, gone(record(2)), 13)
    assert (numbers(view), view.source) == ([1, 2], Source.STALE)
    assert "c1" in view.reason
    view = change(reader, [MARK], 14)
    assert (numbers(view), view.source) == ([], Source.REGISTRY)


def test_a_set_that_is_replaced_while_a_mark_is_missing_does_not_grow() -> None:
    reader = make_reader(record(1), MARK)
    change(reader, gone(MARK), 11)
    for number in range(2, 30):
        change(reader, [record(number)], 10 * number)
        change(reader, gone(record(number - 1)), 10 * number + 1)
    view = change(reader, gone(record(29)), 1000)
    assert view.source is Source.STALE
    assert numbers(view) == [28, 29]
    for number in range(30, 60):
        change(reader, [record(number)], 100 * number)
        assert len(numbers(change(reader, gone(record(number)), 100 * number + 1))) == 2


def test_what_is_kept_is_not_left_to_the_first_that_comes_back() -> None:
    reader = make_reader(record(1), record(2), record(3), MARK)
    change(reader, gone(MARK), 11)
    change(reader, gone(record(1), record(2), record(3)), 12)
    view = change(reader, [record(1)], 13)
    assert (numbers(view), view.source) == ([1, 2, 3], Source.STALE)
    view = change(reader, [MARK], 14)
    assert (numbers(view), view.source) == ([1], Source.REGISTRY)


@pytest.mark.parametrize("revision", [3, 500])
def test_another_history_takes_nothing_away_before_the_mark_is_back(revision: int) -> None:
    reader = make_reader(record(1), record(2), MARK, revision=100)
    view = list_all(reader, [], revision, history=1)
    assert (numbers(view), view.source) == ([1, 2], Source.STALE)
    view = change(reader, [record(3)], revision + 1)
    assert numbers(view) == [1, 2, 3]
    view = change(reader, [MARK], revision + 2)
    assert (numbers(view), view.source) == ([3], Source.REGISTRY)


def test_without_an_operator_endpoints_are_confirmed_one_by_one_after_another_history_began() -> None:
    reader = make_reader(record(1), record(2), revision=100)
    assert numbers(list_all(reader, [], 3, history=1)) == [1, 2]
    assert numbers(change(reader, [record(1)], 4)) == [1, 2]
    assert numbers(change(reader, gone(record(1)), 5)) == [2], "a confirmed endpoint is etcd's"
    view = change(reader, [record(1), record(2)], 6)
    assert (numbers(view), view.source) == ([1, 2], Source.REGISTRY)
    assert numbers(change(reader, gone(record(1), record(2)), 7)) == []


def test_without_an_operator_keys_that_may_not_be_read_confirm_nothing_of_another_history() -> None:
    reader = make_reader(record(1), record(2), revision=100)
    providers = range_of(reader, record(1)[0])
    reader.take_refusal(providers, "permission denied")
    for each in set(reader.ranges) - {providers}:
        reader.take_listing(each, [], Position(1, 3))
    assert numbers(reader.settle()) == [1, 2]
    assert numbers(reader.take_listing(providers, [], Position(1, 4))) == [1, 2]
    view = change(reader, [], 4)
    assert (numbers(view), view.source) == ([1, 2], Source.STALE)


@pytest.mark.parametrize("is_listed", [True, False])
def test_what_is_back_is_confirmed_once_the_other_ranges_are_known_as_far_though_nothing_else_happens(
    is_listed: bool,  # noqa: FBT001  a case
) -> None:
    reader = make_reader(record(1), record(2), MARK)
    change(reader, gone(MARK, record(1), record(2)), 11)
    providers = range_of(reader, record(1)[0])
    if is_listed:
        reader.take_listing(providers, [record(1), record(2)], Position(0, 13))
    else:
        reader.take_progress(providers, 11, store=12)
        reader.take_changes(providers, [(13, record(1)), (13, record(2))], 13)
    assert reader.view.source is Source.STALE
    while awaited := list(reader.awaited()):  # only what is asked for comes
        for which, revision in awaited:
            reader.take_progress(which, revision)
    assert (numbers(reader.view), reader.view.source) == ([1, 2], Source.REGISTRY)


def test_without_an_operator_what_has_not_come_back_is_dropped_in_the_end_but_never_the_last() -> None:
    reader = make_reader(record(1), record(2), revision=100)
    list_all(reader, [], 3, history=1)
    assert reader.is_settling
    assert numbers(reader.settle()) == [1, 2]
    change(reader, [record(3)], 4)
    view = reader.settle()
    assert (numbers(view), view.source) == ([3], Source.REGISTRY)
    assert not reader.is_settling


def test_ranges_of_two_histories_are_not_judged_together() -> None:
    reader = make_reader(record(1), MARK, revision=100)
    own = range_of(reader, record(1)[0])
    assert numbers(reader.take_listing(own, [], Position(1, 3))) == [1]
    for each in reader.ranges:
        if each != own:
            reader.take_listing(each, [MARK] if each == SYNCED else [], Position(1, 3))
    assert numbers(reader.view) == [], "the mark confirms the new history"


def test_what_was_cached_counts_as_seen() -> None:
    reader = Reader("greeter", [LAYOUT], "jupiter")
    view = reader.take_cache([record(1), MARK], 10)
    assert (numbers(view), view.source) == ([1], Source.CACHE)
    view = list_all(reader, [], 20)
    assert (numbers(view), view.source) == ([1], Source.STALE)


def test_an_etcd_that_is_behind_the_cache_has_lost_its_data() -> None:
    reader = Reader("greeter", [LAYOUT], "jupiter")
    reader.take_cache([record(1)], 100)
    assert numbers(list_all(reader, [], 5)) == [1]


def test_a_cached_set_is_replaced_by_what_etcd_holds() -> None:
    reader = Reader("greeter", [LAYOUT], "jupiter")
    reader.take_cache([record(1), MARK], 10)
    view = list_all(reader, [record(2), MARK], 20)
    assert (numbers(view), view.source) == ([2], Source.REGISTRY)


def test_the_policy_outlives_the_registry_that_was_lost() -> None:
    policy = (policy_key("jupiter", "greeter"), write_policy(Policy(timeout_seconds=2)))
    reader = make_reader(record(1), MARK, policy)
    view = change(reader, gone(MARK, policy, record(1)), 11)
    assert view.policy.timeout_seconds == 2


def test_the_policy_of_another_service_with_the_same_beginning_is_not_ours() -> None:
    reader = Reader("greeter", [LAYOUT], "jupiter")
    assert not [each for each in reader.ranges if each.holds(policy_key("jupiter", "greeter-2"))]


def test_a_policy_that_cannot_be_parsed_is_a_fault_and_disturbs_nothing() -> None:
    reader = make_reader(record(1), MARK)
    view = change(reader, [(policy_key("jupiter", "greeter"), b"[" * 100_000)], 11)
    assert numbers(view) == [1]
    assert view.policy_faults
    assert numbers(change(reader, [record(2)], 12)) == [1, 2]


def test_a_broken_route_leaves_the_one_that_was_there() -> None:
    made = encode_configurator("jupiter", "greeter", RouteConfig(id="1", uri="/a/b", groups={"x": 1}))
    assert isinstance(made, KeyValue)
    reader = make_reader((made.key, made.value))
    assert [route.uri for route in change(reader, [(made.key, b"broken")], 11).routes] == ["/a/b"]
    assert [route.uri for route in change(reader, [(made.key, b"[" * 100_000)], 12).routes] == ["/a/b"]
    assert change(reader, gone((made.key, b"")), 13).routes == ()


def test_a_range_that_is_refused_concerns_itself_alone() -> None:
    reader = Reader("greeter", [LAYOUT, OTHER_LAYOUT], "jupiter")
    for each in reader.ranges:
        if each.holds(record(1)[0]):
            reader.take_listing(each, [record(1)], Position(0, 10))
        else:
            reader.take_refusal(each, "permission denied")
    assert numbers(reader.view) == [1]
    assert {SYNCED_PREFIX, OTHER_LAYOUT.prefix("greeter")} < {prefix for prefix, _ in reader.view.refused}
    other = range_of(reader, record(2, OTHER_LAYOUT)[0])
    assert numbers(reader.take_listing(other, [record(2, OTHER_LAYOUT)], Position(0, 11))) == [1, 2]
    assert other.start not in {prefix for prefix, _ in reader.view.refused}


def test_a_service_whose_keys_may_not_be_read_is_unknown() -> None:
    reader = Reader("greeter", [LAYOUT], "jupiter")
    for each in reader.ranges:
        reader.take_refusal(each, "permission denied")
    assert reader.view.snapshot is None
    assert reader.view.refused
    assert reader.view.is_denied


def test_a_service_of_which_only_the_policy_may_not_be_read_is_not_given_up() -> None:
    reader = Reader("greeter", [LAYOUT], "jupiter")
    for each in reader.ranges:
        if not each.holds(record(1)[0]):
            assert not reader.take_refusal(each, "permission denied").is_denied
    view = reader.take_listing(range_of(reader, record(1)[0]), [record(1)], Position(0, 10))
    assert numbers(view) == [1]


def test_marks_that_may_not_be_read_any_more_vouch_for_nothing() -> None:
    reader = make_reader(record(1), MARK)
    reader.take_refusal(SYNCED, "permission denied")
    view = change(reader, gone(record(1)), 11)
    assert (numbers(view), view.source) == ([1], Source.STALE)
    view = reader.take_listing(SYNCED, [MARK], Position(0, 12))
    assert numbers(change(reader, [], 12)) == []


def test_an_endpoint_that_is_disabled_while_nobody_vouches_is_not_called_again() -> None:
    reader = make_reader(record(1), record(2), MARK)
    change(reader, gone(MARK), 11)
    change(reader, [record(1, enable=False)], 12)
    view = change(reader, gone(record(2)), 13)
    assert view.source is Source.STALE
    assert view.callables == 1
    assert numbers(view) == [1, 2]


def test_a_union_believes_the_first_and_needs_one_alone() -> None:
    here, there = make_reader(record(1), record(2)), make_reader(record(2), record(3))
    merged = merge_views("greeter", [here.view, ResolverState(), there.view])
    assert numbers(merged) == [1, 2, 3]
    assert merge_views("greeter", [ResolverState(), ResolverState()]).snapshot is None


def test_a_union_is_empty_only_once_every_part_has_answered_or_failed() -> None:
    empty = make_reader().view
    assert merge_views("greeter", [empty, ResolverState()], [False, False]).snapshot is None
    assert numbers(merge_views("greeter", [empty, ResolverState()], [False, True])) == []
    assert numbers(merge_views("greeter", [empty, empty], [False, False])) == []


def test_a_union_is_partial_while_a_part_has_not_answered() -> None:
    known, denied = make_reader(record(1)).view, ResolverState(is_denied=True)
    assert merge_views("greeter", [known, ResolverState()], [False, True]).is_partial
    assert not merge_views("greeter", [known, known, denied]).is_partial


def test_faults_of_a_policy_are_cut_where_they_are_many_or_long() -> None:
    reader = make_reader(record(1), MARK)
    many = ",".join(f'"{number}{"x" * 1000}":1' for number in range(1000))
    view = change(reader, [(policy_key("jupiter", "greeter"), f"{{{many}}}".encode())], 11)
    assert view.policy_faults[0].startswith("0xxx")
    assert view.policy_faults[-1] == "990 more"
    assert len(str(view.policy_faults)) < 10_000

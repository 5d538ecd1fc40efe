"""Whoever waits has a turn after at most one of each other group, and nobody is lost or given out twice."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from grpc_etcd_operator.core.waiting import Waiting

uids = st.lists(st.sampled_from([f"{group}{number}" for group in "abc" for number in range(5)]), unique=True)


def make_waiting(units: list[str]) -> Waiting:
    waiting = Waiting(lambda uid: uid[0])
    for number, uid in enumerate(units):
        waiting.add(uid, float(number))
    return waiting


@given(uids, st.integers(1, 20), st.sets(st.sampled_from(["a0", "b1", "c2"])))
def test_as_many_are_chosen_as_there_are_and_each_group_before_the_second_of_another(
    units: list[str], most: int, but: set[str]
) -> None:
    waiting = make_waiting(units)
    eligible = [uid for uid in units if uid not in but]
    chosen = waiting.choose(most, but)
    assert len(chosen) == len(set(chosen)) == min(most, len(eligible))
    assert set(chosen) <= set(eligible)
    first = chosen[: len({uid[0] for uid in eligible})]
    assert len({uid[0] for uid in first}) == len(first)
    assert len(waiting) == len(units)


@given(uids)
def test_each_has_its_turn_after_at_most_one_of_each_other_group(units: list[str]) -> None:
    waiting, groups = make_waiting(units), [uid[0] for uid in units]
    order = []
    while waiting:
        order += (chosen := waiting.choose(1, ()))
        assert waiting.pop(chosen[0]) == float(units.index(chosen[0]))
    assert sorted(order) == sorted(units)
    for group in set(groups):
        mine = [place for place, uid in enumerate(order) if uid[0] == group]
        assert all(after - before <= len(set(groups)) for before, after in pairwise(mine))
        assert [uid for uid in order if uid[0] == group] == [uid for uid in units if uid[0] == group]


def test_who_waits_already_keeps_its_place_and_the_earlier_time() -> None:
    waiting = make_waiting(["a0", "a1"])
    waiting.add("a0", 7.0)
    waiting.add("a1", 0.5)
    assert waiting.choose(2, ()) == ["a0", "a1"]
    assert sorted(waiting.times()) == [0.0, 0.5]
    assert (waiting.pop("a0"), waiting.pop("a0")) == (0.0, float("inf"))

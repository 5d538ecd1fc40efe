"""What is due is given out in turns of groups, each once, at a cost that does not grow with how many are due."""

from hypothesis import given, settings
from hypothesis import strategies as st

from grpc_etcd_operator.core.waiting import Turns
from testbed.examples import examples
from tests.unit.operator_core.conftest import count_lines

UIDS = ("a1", "a2", "b1", "b2", "c1")
happenings = st.lists(
    st.tuples(
        st.sampled_from(["add", "advance", "forget", "take", "count"]), st.sampled_from(UIDS), st.integers(0, 20)
    ),
    max_size=60,
)


def make_turns() -> Turns:
    return Turns(lambda uid: uid[0])


@settings(max_examples=examples(300))
@given(happenings=happenings)
def test_each_is_taken_when_it_is_due_and_once(happenings: list[tuple[str, str, int]]) -> None:
    turns, expected, now = make_turns(), dict[str, float](), 0
    for what, uid, number in happenings:
        match what:
            case "add":
                turns.add(uid, number)
                expected[uid] = number
            case "advance":
                turns.advance(uid, number)
                expected[uid] = min(number, expected.get(uid, number))
            case "forget":
                turns.forget(uid)
                expected.pop(uid, None)
            case "take":
                now = max(now, number)
                due = {each for each, at in expected.items() if at <= now}
                some = turns.take(now, 2)
                assert len(some) == len(set(some)) == min(2, len(due))
                assert due.issuperset(some)
                for each in some:
                    del expected[each]
            case _:
                now = max(now, number)
                assert turns.count_due(now) == sum(at <= now for at in expected.values())
        assert len(turns) == len(expected)
        assert all((each in turns) == (each in expected) for each in UIDS)
        assert (turns.next_at() <= now) == any(at <= now for at in expected.values())
    assert set(turns.take(20)) == expected.keys()


def test_groups_take_turns_from_one_take_to_the_next() -> None:
    turns = make_turns()
    for number in range(3):
        for group in "abc":
            turns.add(f"{group}{number}", 0.0)
    assert [turns.take(1.0, 2) for _ in range(5)] == [["a0", "b0"], ["c0", "a1"], ["b1", "c1"], ["a2", "b2"], ["c2"]]


def test_who_changes_on_and_on_while_it_is_due_keeps_its_place() -> None:
    turns = make_turns()
    for uid in ("a1", "a2", "a3"):
        turns.advance(uid, 0.0)
    assert turns.take(1.0, 1) == ["a1"]
    turns.advance("a2", 0.0)
    assert turns.take(1.0, 1) == ["a2"]


def count_steps(due: int) -> int:
    """Count the lines of the module that it takes to take one of so many of a group, beside one of another."""
    turns = make_turns()
    turns.add("b", 0.0)
    for number in range(due):
        turns.add(f"a{number}", 0.0)
    turns.count_due(0.0)
    steps = count_lines(Turns.__module__, lambda: turns.take(1.0, 2))
    assert len(turns) == due - 1
    return steps


def test_to_take_some_costs_the_same_however_many_are_due() -> None:
    assert count_steps(1000) == count_steps(2)

"""Whatever is postponed comes when it is due, once; to find that out costs the same however many others wait."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from grpc_etcd_operator.core.waiting import SLACK, Postponed
from testbed.examples import examples
from tests.unit.operator_core.conftest import count_lines

happenings = st.lists(
    st.tuples(st.sampled_from(["add", "forget", "take"]), st.sampled_from("abcde"), st.integers(0, 20)), max_size=60
)


@settings(max_examples=examples(300))
@given(happenings=happenings)
def test_each_comes_when_it_is_due_and_once(happenings: list[tuple[str, str, int]]) -> None:
    postponed, expected = Postponed(), dict[str, float]()
    for what, uid, at in happenings:
        if what == "add":
            postponed.add(uid, at)
            expected[uid] = at
        elif what == "forget":
            postponed.forget(uid)
            expected.pop(uid, None)
        else:
            taken = postponed.take(at)
            assert sorted(taken) == sorted((each, due) for each, due in expected.items() if due <= at)
            assert [due for _, due in taken] == sorted(due for _, due in taken)
            expected = {each: due for each, due in expected.items() if due > at}
        assert len(postponed) == len(expected)
        assert all((each in postponed) == (each in expected) for each in "abcde")
        assert postponed.next_at() == min(expected.values(), default=math.inf)


def test_one_that_is_put_off_on_and_on_takes_no_memory() -> None:
    postponed = Postponed()
    for number in range(100 * SLACK):
        postponed.add("p", float(number))
    assert len(postponed._queue) <= 2 + SLACK  # which shows nowhere else
    assert postponed.take(math.inf) == [("p", 100.0 * SLACK - 1)]


def count_steps(waiting: int) -> int:
    """Count the lines of the module that a look at what is due takes, beside so many that are not."""
    postponed = Postponed()
    for number in range(waiting):
        postponed.add(f"p{number}", 1000.0 + number)
    steps = count_lines(Postponed.__module__, lambda: (postponed.take(1.0), postponed.next_at()))
    assert (len(postponed), postponed.next_at()) == (waiting, 1000.0)
    return steps


def test_a_look_costs_the_same_however_many_wait() -> None:
    assert count_steps(1000) == count_steps(1)

"""When statuses are looked at and written: never too often, never too late, and cheaply however many change."""

import itertools
import math
from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from grpc_etcd_operator.core.status_schedule import (
    COUNTS_AT_ONCE,
    COUNTS_PER_SECOND,
    COUNTS_SPACING_SECONDS,
    COUNTS_WAIT_SECONDS,
    PASS_SECONDS,
    RETRY_SECONDS,
    SETTLE_SECONDS,
    WRITE_SPACING_SECONDS,
    StatusSchedule,
)

Changes = list[tuple[float, str, bool]]  # when, of whom, and whether the judgement changes with the counts
NAMES = [f"s{number}" for number in range(60)]
SLACK = 1e-6


class Play:
    """A reporter that needs no time: looks whenever a pass is due, and remembers when it looked and wrote."""

    def __init__(self, changes: Changes) -> None:
        self.schedule = StatusSchedule()
        self.passes: list[float] = []
        self.written: dict[str, list[float]] = defaultdict(list)
        self.waited: dict[bool, list[float]] = {True: [0.0], False: [0.0]}
        self._unwritten: dict[str, tuple[float, bool]] = {}
        for at, uid, is_judgement in sorted(changes):
            self._look_until(at)
            since, was_judgement = self._unwritten.get(uid, (at, False))
            self._unwritten[uid] = at if is_judgement and not was_judgement else since, is_judgement or was_judgement
            self.schedule.note([uid], at)
        self._look_until(math.inf)

    def _look_until(self, end: float) -> None:
        while (now := self.schedule.next_pass_at()) < end:
            self.passes.append(now)
            for uid in self.schedule.take(now):
                self._look(uid, now)

    def _look(self, uid: str, now: float) -> None:
        if uid not in self._unwritten:
            self.schedule.is_true(uid)
            return
        since, is_judgement = self._unwritten[uid]
        if is_judgement or self.schedule.may_write_counts(uid, now):
            del self._unwritten[uid]
            self.waited[is_judgement].append(now - since)
            self.written[uid].append(now)
            self.schedule.wrote(uid, now)


def changes(judgements: st.SearchStrategy[bool]) -> st.SearchStrategy[Changes]:
    return st.lists(st.tuples(st.floats(0.0, 100.0), st.sampled_from(NAMES), judgements), max_size=200)


@given(changes(st.booleans()))
def test_nothing_is_written_too_often_and_nothing_too_late(made: Changes) -> None:
    play = Play(made)
    assert {uid for _, uid, _ in made} == play.written.keys()
    for times in play.written.values():
        assert all(later - earlier >= WRITE_SPACING_SECONDS - SLACK for earlier, later in itertools.pairwise(times))
    assert max(play.waited[True]) <= WRITE_SPACING_SECONDS + PASS_SECONDS + SETTLE_SECONDS
    assert max(play.waited[False]) <= WRITE_SPACING_SECONDS + 2 * PASS_SECONDS + SETTLE_SECONDS + COUNTS_WAIT_SECONDS
    assert all(later - earlier >= PASS_SECONDS - SLACK for earlier, later in itertools.pairwise(play.passes))


def test_counts_of_many_that_change_on_and_on_take_turns() -> None:
    play = Play([(round_ * 2.5, uid, False) for round_ in range(40) for uid in NAMES])
    first = [at for times in play.written.values() for at in times if at < COUNTS_WAIT_SECONDS]
    assert COUNTS_AT_ONCE <= len(first) <= COUNTS_AT_ONCE + COUNTS_WAIT_SECONDS * COUNTS_PER_SECOND + 1
    assert max(play.waited[False]) <= COUNTS_WAIT_SECONDS + SETTLE_SECONDS + 2 * PASS_SECONDS + SLACK


def test_counts_of_many_that_change_once_are_all_written_in_the_end() -> None:
    play = Play([(0.0, uid, False) for uid in NAMES])
    times = sorted(itertools.chain(*play.written.values()))
    assert len(times) == len(NAMES)
    assert times[COUNTS_AT_ONCE - 1] == SETTLE_SECONDS
    assert times[COUNTS_AT_ONCE] > SETTLE_SECONDS


def test_counts_of_one_that_changes_on_and_on_are_written_soon_and_then_seldom() -> None:
    play = Play([(number * SETTLE_SECONDS / 2, "a", False) for number in range(1000)])
    times = play.written["a"]
    assert times[0] == SETTLE_SECONDS
    assert all(later - earlier >= COUNTS_SPACING_SECONDS for earlier, later in itertools.pairwise(times))
    assert len(times) >= 1000 * SETTLE_SECONDS / 2 / (COUNTS_SPACING_SECONDS + PASS_SECONDS)


def test_judgements_of_one_that_change_on_and_on_are_written_every_two_seconds() -> None:
    times = Play([(number * SETTLE_SECONDS / 2, "a", True) for number in range(1000)]).written["a"]
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert len(pauses) > 10
    assert all(WRITE_SPACING_SECONDS - SLACK <= pause <= WRITE_SPACING_SECONDS + SETTLE_SECONDS for pause in pauses)


def test_counts_of_a_few_are_written_when_they_have_settled() -> None:
    play = Play([(0.0, uid, False) for uid in NAMES[:COUNTS_AT_ONCE]])
    assert set(itertools.chain(*play.written.values())) == {SETTLE_SECONDS}


def test_what_failed_is_looked_at_again_after_a_pause() -> None:
    schedule = StatusSchedule()
    schedule.note(["a"], 0.0)
    assert schedule.take(1.0) == ["a"]
    schedule.wrote("a", 1.0)
    schedule.failed("a", 5.0)
    assert schedule.next_pass_at() == 5.0 + RETRY_SECONDS


def test_who_notes_something_learns_when_it_can_be_looked_at() -> None:
    schedule = StatusSchedule()
    assert schedule.note(["a"], 0.0) == SETTLE_SECONDS
    assert schedule.note([], 0.0) == math.inf
    schedule.take(SETTLE_SECONDS)
    assert schedule.note(["b"], SETTLE_SECONDS) == SETTLE_SECONDS + PASS_SECONDS == schedule.next_pass_at()


def test_nothing_waits_of_what_is_gone() -> None:
    schedule = StatusSchedule()
    schedule.note(["a"], 0.0)
    schedule.forget("a")
    assert schedule.next_pass_at() == math.inf


def test_a_pass_goes_on_until_all_have_been_taken_and_groups_take_turns() -> None:
    schedule = StatusSchedule(lambda uid: uid[0])
    schedule.note(["a1", "a2", "a3"], 0.0)
    assert schedule.take(1.0, 2) == ["a1", "a2"]
    schedule.note(["b1"], 0.5)
    schedule.note(["a4"], 0.5)
    assert schedule.count_due(1.0) == 3
    assert schedule.take(1.0, 2) == ["a3", "b1"]
    assert schedule.next_pass_at() <= 1.0
    assert schedule.take(1.0, 2) == ["a4"]
    schedule.note(["a5"], 1.0)
    assert (schedule.count_due(1.5), schedule.take(1.5, 2)) == (0, []), "the next pass is not due yet"

"""A GrpcService without Pods is told of once, and only when that has lasted."""

import math

from hypothesis import given
from hypothesis import strategies as st

from grpc_etcd_operator.core.vacancies import Vacancies

PATIENCE = 30.0
steps = st.lists(st.tuples(st.sampled_from(["a", "b"]), st.booleans(), st.floats(0, 40)), max_size=20)


def test_it_is_told_once_after_a_while_and_anew_after_there_were_pods() -> None:
    vacancies = Vacancies(PATIENCE)
    vacancies.note("a", 0, is_vacant=True)
    vacancies.note("a", 20, is_vacant=True)
    assert vacancies.next_at() == PATIENCE
    assert (vacancies.take(29), vacancies.is_long("a")) == ([], False)
    assert (vacancies.take(30), vacancies.is_long("a")) == (["a"], True)
    vacancies.note("a", 31, is_vacant=True)
    assert (vacancies.take(99), vacancies.next_at()) == ([], math.inf)
    vacancies.note("a", 100, is_vacant=False)
    assert not vacancies.is_long("a")
    vacancies.note("a", 101, is_vacant=True)
    assert vacancies.take(131) == ["a"]


def test_what_was_told_before_is_told_no_more_and_what_could_not_be_told_is_told_again() -> None:
    vacancies = Vacancies(PATIENCE)
    vacancies.note("a", 0, is_vacant=True, was_reported=True)
    assert (vacancies.is_long("a"), vacancies.is_reported("a"), vacancies.take(99)) == (True, True, [])
    vacancies.note("b", 0, is_vacant=True)
    assert vacancies.take(30) == ["b"]
    vacancies.report_again("b", 40)
    vacancies.note("b", 31, is_vacant=True)
    assert (vacancies.take(39), vacancies.is_reported("b"), vacancies.take(40)) == ([], False, ["b"])
    vacancies.note_reported("b")
    assert (vacancies.is_reported("b"), vacancies.take(999)) == (True, [])
    vacancies.note("b", 1000, is_vacant=False)
    vacancies.note_reported("b")
    vacancies.report_again("b", 1000)
    assert (vacancies.is_reported("b"), vacancies.is_long("b"), vacancies.take(9999)) == (False, False, [])


@given(steps)
def test_long_is_who_has_been_vacant_without_a_break(changes: list[tuple[str, bool, float]]) -> None:
    vacancies, since, now = Vacancies(PATIENCE), dict[str, float](), 0.0
    for uid, is_vacant, pause in changes:
        now += pause
        vacancies.note(uid, now, is_vacant=is_vacant)
        if is_vacant:
            since.setdefault(uid, now)
        else:
            since.pop(uid, None)
        vacancies.take(now)
        assert [each for each in "ab" if vacancies.is_long(each)] == [
            each for each in "ab" if each in since and since[each] + PATIENCE <= now
        ]

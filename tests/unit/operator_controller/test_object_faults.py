"""What nobody foresaw about an object is taken for it once in a while, and nothing of it is kept for long."""

from hypothesis import given
from hypothesis import strategies as st

from grpc_etcd_operator.isolation import REPORT_SECONDS, ObjectFaults, Subject


@given(st.lists(st.tuples(st.integers(0, 30), st.floats(0, REPORT_SECONDS)), max_size=100))
def test_each_is_reported_once_in_ten_minutes_and_nothing_older_is_kept(caught: list[tuple[int, float]]) -> None:
    faults, now = ObjectFaults(), 0.0
    reported: dict[Subject, float] = {}
    for number, pause in caught:
        now += pause
        faults.note(Subject(str(number), "pods", "shop", f"pod-{number}"), ValueError())
        for subject, words in faults.take(now):
            assert "ValueError" in words
            assert subject not in reported or now - reported[subject] >= REPORT_SECONDS
            reported[subject] = now
        assert len(faults) == sum(now - at < REPORT_SECONDS for at in reported.values())


def test_a_replica_that_does_not_report_keeps_nothing() -> None:
    faults, subject = ObjectFaults(), Subject("1")
    faults.note(subject, ValueError())
    assert len(faults.take(0.0)) == 1
    faults.note(subject, ValueError())
    faults.clear()
    assert len(faults) == 0

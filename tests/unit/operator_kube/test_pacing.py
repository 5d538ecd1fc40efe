"""A refused identity is tried about once a second, by one request at a time; who is asked to come later does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpc_etcd_operator.kube.pacing import LONGEST_HOLD_SECONDS, Refusals, hold_seconds


@given(
    gaps=st.lists(st.floats(0, 0.3), min_size=50, max_size=200),
    chances=st.lists(st.floats(0, 1), min_size=1, max_size=5),
)
def test_a_refused_identity_is_not_tried_more_than_about_once_a_second(gaps: list[float], chances: list[float]) -> None:
    refusals, now, asked = Refusals(), 0.0, 0
    for number, gap in enumerate(gaps):
        now += gap
        if refusals.may_ask(now):
            asked += 1
            refusals.note(now, chances[number % len(chances)], refused=True)
    assert asked <= now + 5


def test_after_the_first_refusal_it_is_tried_at_once_and_one_success_ends_the_waiting() -> None:
    refusals = Refusals()
    refusals.note(10.0, 0.5, refused=True)
    assert refusals.may_ask(10.0), "a new token has been read"
    assert not refusals.may_ask(10.0), "the others wait for its outcome"
    refusals.note(10.1, 0.5, refused=True)
    assert not refusals.may_ask(10.2)
    assert refusals.may_ask(10.6)
    refusals.note(10.7, 0.5, refused=False)
    assert all(refusals.may_ask(10.7) for _ in range(3))


@pytest.mark.parametrize(
    ("status", "text", "seconds"),
    [
        (429, "2", 2.0),
        (503, "7", 7.0),
        (200, "7", 0.0),
        (503, "", 0.0),
        (503, "Sat, 28 Nov 2026 19:00:00 GMT", 0.0),
        (503, "-1", 0.0),
        (429, "86400", LONGEST_HOLD_SECONDS),
    ],
)
def test_an_api_server_says_when_to_come_again(status: int, text: str, seconds: float) -> None:
    assert hold_seconds(status, {"Retry-After": text} if text else {}) == seconds

"""Slow start: who is new, how much of its weight it has, and when that changes."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpc_etcd.registry.policy import SlowStart
from grpc_etcd.xds.warming import Warming

WISH = SlowStart(window_seconds=10, min_weight_percent=20)


def test_the_first_set_is_warm_and_what_comes_later_grows() -> None:
    warming = Warming()
    warming.note([], 0)
    warming.note(["a", "b"], 5)
    assert warming.shares(WISH, 5) == {}
    assert warming.due(WISH, 5) == math.inf
    warming.note(["a", "b", "c"], 100)
    seen = [warming.shares(WISH, 100 + second).get("c", 1) for second in (0, 1, 5, 9, 10, 11)]
    assert seen == pytest.approx([0.2, 0.28, 0.6, 0.92, 1, 1])
    assert warming.shares(None, 100) == {}


def test_what_went_and_came_again_is_new() -> None:
    warming = Warming()
    warming.note(["a", "b"], 0)
    warming.note(["a"], 100)
    warming.note(["a", "b"], 101)
    assert set(warming.shares(WISH, 101)) == {"b"}


def test_a_set_that_is_new_as_a_whole_has_its_weight() -> None:
    warming = Warming()
    warming.note(["a"], 0)
    warming.note(["b", "c"], 100)
    assert warming.shares(WISH, 101) == {}
    warming.note(["b", "c", "d"], 105)
    assert set(warming.shares(WISH, 105)) == {"b", "c", "d"}


@given(st.floats(0, 1e9), st.floats(1, 3600), st.lists(st.floats(0, 100), max_size=20))
def test_each_step_is_due_once_and_there_are_few(start: float, window: float, ages: list[float]) -> None:
    wish = SlowStart(window_seconds=window)
    warming = Warming()
    warming.note(["warm"], start)
    now = start
    for number, pause in enumerate(ages):
        now += pause
        warming.note(["warm", *(f"n{each}" for each in range(number + 1))], now)
    steps = 0
    while (due := warming.due(wish, now)) < math.inf:
        assert due >= now
        now = max(due, math.nextafter(now, math.inf)) + 1e-6 * window
        steps += 1
        assert steps <= 12 * len(ages) + 1
    assert warming.shares(wish, now) == {}

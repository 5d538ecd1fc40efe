"""Pacing on a clock of our own: what clients tolerate is kept to, nothing waits longer than that needs."""

import math
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from grpc_etcd.layouts.rate_limits import CATCH_UP, OPERATIONS_PER_TRANSACTION, Change, RateLimitedQueue, interleave
from grpc_etcd.registry.layout import BURST_SECONDS, FLUSHES, HEAL_SECONDS, SETTLE_SECONDS, WriteLimits

JUPITER = WriteLimits(keys_per_transaction=8, keys_per_second=500, flush_key=True)
MICRO = WriteLimits(keys_per_transaction=1, keys_per_second=500)
FREE = WriteLimits()
PACES = {"jupiter": JUPITER, "micro": MICRO, "free": FREE}

Queue = RateLimitedQueue[str, str]
Batch = tuple[Change[str, str], ...]


def _queue(*changes: Change[str, str]) -> Queue:
    queue = Queue(lambda stream: PACES[stream.partition("/")[0]])
    for change in changes:
        queue.push(change)
    return queue


def _pods(stream: str, count: int, *, urgent: bool = False) -> list[Change[str, str]]:
    return [Change(f"{stream}-{urgent}-{n}", 2, {stream: 1}, urgent) for n in range(count)]


def _drain(queue: Queue, now: float = 0.0) -> list[tuple[float, Batch]]:
    """Take as a writer would: whenever the queue says that something may go."""
    batches = []
    while (at := queue.ask_again_at()) is not None:
        now = max(now, at)
        batch = queue.take(now)
        assert batch
        batches.append((now, batch))
    return batches


def test_a_single_change_goes_at_once_and_needs_no_touch() -> None:
    queue = _queue(*_pods("jupiter/a", 1))
    assert queue.ask_again_at() == -math.inf
    assert len(queue.take(5.0)) == 1
    assert queue.flush_at() is None
    assert queue.ask_again_at() is None


def test_a_service_is_paced_to_what_its_readers_bear() -> None:
    batches = _drain(_queue(*_pods("jupiter/a", 120)))
    assert [len(batch) for _, batch in batches] == [8] * 15
    assert math.isclose(batches[-1][0], 14 * 8 / 500)


@given(st.lists(st.floats(0.0, CATCH_UP * 0.015), min_size=15, max_size=15))
def test_a_writer_that_is_always_a_little_late_keeps_the_pace(delays: list[float]) -> None:
    times: list[float] = []
    queue = _queue(*_pods("jupiter/a", 120))
    for delay in delays:
        ready = max(queue.ask_again_at() or 0.0, 0.0)
        times.append(max(ready + delay, times[-1] if times else 0.0))
        assert len(queue.take(times[-1])) == 8
    for number, at in enumerate(times):
        assert -1e-9 <= at - times[0] - number * 8 / 500 <= max(delays) + 1e-9


def test_a_writer_that_is_late_by_more_makes_nothing_up() -> None:
    queue = _queue(*_pods("jupiter/a", 24))
    for at in (0.0, 1.0):
        assert len(queue.take(at)) == 8
    assert queue.ask_again_at() == 1.0 + 8 / 500


def test_go_micro_gets_one_key_at_a_time() -> None:
    assert {len(batch) for _, batch in _drain(_queue(*_pods("micro/a", 20)))} == {1}


def test_readers_that_bear_everything_are_not_held_up() -> None:
    batches = _drain(_queue(*_pods("free/a", 1000)))
    assert {at for at, _ in batches} == {0.0}
    assert len(batches) == math.ceil(1000 * 2 / OPERATIONS_PER_TRANSACTION)


def test_services_share_transactions_and_do_not_hold_each_other_up() -> None:
    changes = [change for n in range(50) for change in _pods(f"jupiter/{n}", 8)]
    batches = _drain(_queue(*changes))
    assert {at for at, _ in batches} == {0.0}
    assert len(batches) == math.ceil(len(changes) * 2 / OPERATIONS_PER_TRANSACTION)


def test_a_long_queue_of_one_service_leaves_room_for_another() -> None:
    queue = _queue(*_pods("jupiter/a", 500), *_pods("jupiter/b", 1))
    assert {stream for change in queue.take(0.0) for stream in change.keys} == {"jupiter/a", "jupiter/b"}


def test_deregistrations_go_first() -> None:
    queue = _queue(*_pods("jupiter/a", 20), *_pods("jupiter/a", 8, urgent=True))
    first, second = (batch for _, batch in _drain(queue)[:2])
    assert all(change.urgent for change in first)
    assert not any(change.urgent for change in second)


def test_small_deregistrations_that_come_on_and_on_keep_no_large_change_waiting_nor_who_is_behind_it() -> None:
    """A Pod with a hundred keys of one tenant, Pods of another that turn unready and ready again, and all others."""
    queue = _queue(Change("large", OPERATIONS_PER_TRANSACTION, {"free/a": 1}), *_pods("free/b", 1))
    taken: list[str] = []
    for turn in range(3):
        queue.push(Change(f"deregistration-{turn}", 2, {"free/c": 1}, urgent=True))
        taken += [change.of for change in queue.take(turn * 0.01)]
    assert {"large", "free/b-False-0", "deregistration-0"} <= set(taken)


def test_a_large_change_whose_readers_bear_nothing_now_holds_up_nobody() -> None:
    queue = _queue(Change("large", OPERATIONS_PER_TRANSACTION, {"jupiter/a": 1}), *_pods("free/b", 1))
    queue.note("jupiter/a", 100, 0.0)
    queue.push(Change("deregistration", 2, {"free/c": 1}, urgent=True))
    assert {change.of for change in queue.take(0.0)} == {"deregistration", "free/b-False-0"}


def test_a_change_larger_than_a_share_goes_alone() -> None:
    queue = _queue(Change("big", 4, {"micro/a": 3}), *_pods("micro/a", 1))
    sizes = [[change.of for change in batch] for _, batch in _drain(queue)]
    assert sorted(map(len, sizes)) == [1, 1]


def test_a_change_larger_than_a_transaction_still_goes() -> None:
    assert len(_drain(_queue(Change("huge", 1000, {"free/a": 999})))) == 1


def test_a_later_change_takes_the_place_of_an_earlier_one() -> None:
    queue = _queue(*_pods("jupiter/a", 3))
    queue.push(Change("jupiter/a-False-1", 2, {"jupiter/a": 1}, urgent=True))
    assert len(queue) == 3
    assert next(change.of for change in queue.take(0.0)) == "jupiter/a-False-1"
    queue.discard("never waited")


def test_the_touch_is_due_once_a_burst_is_over() -> None:
    queue = _queue(*_pods("jupiter/a", 16))
    end = _drain(queue)[-1][0]
    due = queue.flush_at()
    assert due == end + SETTLE_SECONDS
    assert queue.flushes_due(due - 0.01) == []
    assert queue.flushes_due(due) == ["jupiter/a"]
    assert queue.flushes_due(due + HEAL_SECONDS - 0.01) == []
    assert not queue.has_bursts


def test_the_touch_is_due_once_more_for_readers_that_were_held_up() -> None:
    queue = _queue()
    queue.note("jupiter/a", 2, 10.0)
    assert queue.flushes_due(20.0) == ["jupiter/a"]
    assert queue.flush_at() == 20.0 + HEAL_SECONDS
    queue.note("jupiter/a", 1, 20.0 + BURST_SECONDS * 1.5)  # which makes them publish, too
    again = 20.0 + BURST_SECONDS * 1.5 + HEAL_SECONDS
    assert queue.flush_at() == again
    assert queue.flushes_due(again) == ["jupiter/a"]
    assert queue.flush_at() is None


def test_a_touch_that_failed_is_due_again_when_all_has_been_quiet() -> None:
    queue = _queue()
    queue.note("jupiter/a", 2, 10.0)
    assert queue.flushes_due(20.0) == ["jupiter/a"]
    queue.flush_again("jupiter/a", 20.0)
    assert queue.flush_at() == 20.0 + SETTLE_SECONDS
    assert queue.flushes_due(20.0 + SETTLE_SECONDS) == ["jupiter/a"]
    assert queue.flushes_due(40.0) == ["jupiter/a"]
    queue.flush_again("jupiter/a", 40.0)
    assert queue.flush_at() == 40.0 + HEAL_SECONDS
    assert queue.flushes_due(40.0 + HEAL_SECONDS) == ["jupiter/a"]
    assert queue.flush_at() is None


def test_two_changes_close_together_are_a_burst_and_two_far_apart_are_none() -> None:
    queue = _queue()
    queue.note("jupiter/a", 1, 0.0)
    queue.note("jupiter/b", 1, 0.0)
    queue.note("jupiter/a", 1, BURST_SECONDS / 2)
    queue.note("jupiter/b", 1, BURST_SECONDS * 1.5)
    assert queue.flushes_due(100.0) == ["jupiter/a"]


def test_a_burst_that_goes_on_puts_the_touch_off() -> None:
    queue = _queue()
    for step in range(20):
        queue.note("jupiter/a", 1, step * SETTLE_SECONDS / 2)
        assert queue.flushes_due(step * SETTLE_SECONDS / 2) == []
    assert queue.flush_at() == 19 * SETTLE_SECONDS / 2 + SETTLE_SECONDS


def test_touches_of_several_services_are_due_in_the_order_of_their_last_writes() -> None:
    queue = _queue()
    for stream, now in (("jupiter/a", 0.0), ("jupiter/b", 0.1), ("jupiter/a", 0.2)):
        queue.note(stream, 2, now)
    assert queue.flush_at() == 0.1 + SETTLE_SECONDS
    assert queue.flushes_due(0.1 + SETTLE_SECONDS) == ["jupiter/b"]
    assert queue.flush_at() == 0.2 + SETTLE_SECONDS
    assert queue.flushes_due(0.2 + SETTLE_SECONDS) == ["jupiter/a"]


def test_services_at_rest_are_forgotten_though_another_goes_on() -> None:
    queue = _queue()
    for stream, now in (("free/a", 0.0), ("free/b", 0.0), ("free/c", 0.0), ("free/a", BURST_SECONDS)):
        queue.note(stream, 1, now)
    assert "streams=3" in repr(queue)
    queue.flushes_due(BURST_SECONDS * 1.5)
    assert "streams=1" in repr(queue)
    queue.flushes_due(BURST_SECONDS * 3)
    assert "streams=0" in repr(queue)


def test_readers_that_lose_nothing_get_no_touch() -> None:
    queue = _queue(*_pods("free/a", 200))
    _drain(queue)
    assert queue.flush_at() is None


@given(
    st.lists(
        st.tuples(st.sampled_from(["jupiter/a", "jupiter/b"]), st.integers(1, 200), st.floats(0.0, 3 * HEAL_SECONDS)),
        max_size=60,
    )
)
def test_touches_are_few_however_many_changes_there_are(changes: list[tuple[str, int, float]]) -> None:
    """At most two for each quiet stretch of a service, and none is left once all has been quiet for long."""
    queue, now, stretches, touches, last = _queue(), 0.0, Counter[str](), Counter[str](), dict[str, float]()
    for stream, keys, pause in changes:
        now += pause
        touches.update(queue.flushes_due(now))
        if now - last.get(stream, -math.inf) > SETTLE_SECONDS:
            stretches[stream] += 1
        last[stream] = now
        queue.note(stream, keys, now)
    while (at := queue.flush_at()) is not None:
        touches.update(queue.flushes_due(at))
    assert all(touches[stream] <= FLUSHES * stretches[stream] for stream in stretches)
    queue.flushes_due(now + 1000.0)
    assert "streams=0" in repr(queue)


streams = st.sampled_from(["jupiter/a", "jupiter/b", "micro/a", "free/a"])
pushes = st.lists(
    st.builds(
        lambda of, keys, urgent: Change(str(of), len(keys) + 1, dict.fromkeys(keys, 1), urgent),
        st.integers(0, 60),
        st.lists(streams, unique=True, max_size=3),
        st.booleans(),
    ),
    max_size=80,
)


@given(pushes)
def test_everything_goes_once_and_no_reader_is_overrun(changes: list[Change[str, str]]) -> None:
    batches = _drain(_queue(*changes))
    taken = [change for _, batch in batches for change in batch]
    assert {change.of: change for change in changes} == {change.of: change for change in taken}
    assert len({change.of for change in taken}) == len(taken)
    for name, limits in (("jupiter/a", JUPITER), ("jupiter/b", JUPITER), ("micro/a", MICRO), ("free/a", FREE)):
        counts = [(at, sum(change.keys.get(name, 0) for change in batch)) for at, batch in batches]
        events = [(at, count) for at, count in counts if count]
        assert all(count <= limits.keys_per_transaction for _, count in events)
        if limits.keys_per_second and events:
            least = sum(count for _, count in events[:-1]) / limits.keys_per_second
            assert events[-1][0] - events[0][0] >= least - 1e-9


def test_a_group_with_many_large_changes_lets_another_have_its_turn_with_them() -> None:
    """A tenant whose Pods back hundreds of services, changed on and on, beside one with a Pod and a service."""
    queue = Queue(lambda _: WriteLimits())
    for number in range(20):
        keys = {f"large-{number}-{key}": 1 for key in range(119)}
        queue.push(Change(f"pod-{number}", 119, keys, group="large"))
    queue.push(Change("small", 12, {"small": 12}, group="small"))
    assert {change.of for change in (*queue.take(1.0), *queue.take(1.0))} >= {"small"}


@given(st.lists(st.lists(st.integers(), max_size=4), max_size=4))
def test_what_is_interleaved_is_complete_and_in_turns(lists: list[list[int]]) -> None:
    found = list(interleave(iter([(number, item) for item in items]) for number, items in enumerate(lists)))
    assert sorted(found) == sorted((number, item) for number, items in enumerate(lists) for item in items)
    places = [sum(1 for each in found[:at] if each[0] == number) for at, (number, _) in enumerate(found)]
    assert places == sorted(places)

"""When leases are renewed: each three times in its time to live, spread evenly; and when silence means trouble."""

from hypothesis import given
from hypothesis import strategies as st

from grpc_etcd.etcd.messages import message
from grpc_etcd.etcd.model import LeaseId
from grpc_etcd.etcd.renewing import (
    ANSWER_SECONDS,
    PATIENCE_FACTOR,
    RENEWALS_PER_TTL,
    STEP_SECONDS,
    STEPS_PER_PERIOD,
    Renewals,
)


def asked(renewals: Renewals, now: float) -> list[LeaseId]:
    return [LeaseId(message("LeaseKeepAliveRequest").FromString(request).ID) for request in renewals.due(now)]


@given(st.integers(1, 50), st.sampled_from([0.0, 1.0, 3.0, 10.0, 300.0]), st.none() | st.floats(0.0, 400.0))
def test_every_lease_is_renewed_in_each_period_and_none_twice_at_once(
    count: int, ttl: float, remaining: float | None
) -> None:
    renewals, now, last = Renewals(), 0.0, dict.fromkeys(map(LeaseId, range(1, count + 1)), 0.0)
    for lease in last:
        renewals.add(lease, ttl, now, remaining)
    ttl = max(1.0, ttl)
    while now < 3 * ttl:
        for lease in asked(renewals, now):
            assert now == 0 or last[lease] < now
            last[lease] = now
            renewals.receive(lease, int(ttl), now)
        assert min(last.values()) >= now - ttl / RENEWALS_PER_TTL - 1e-9
        pause = renewals.pause_seconds(now)
        assert pause >= min(STEP_SECONDS, ttl / RENEWALS_PER_TTL / STEPS_PER_PERIOD)
        now += pause


def test_first_renewals_of_many_leases_are_a_trickle() -> None:
    renewals = Renewals()
    for number in range(3_000):
        renewals.add(LeaseId(number + 1), 300, 0.0)
    shares = [len(renewals.due(now)) for now in range(100)]
    assert max(shares) < 3_000 / (300 / RENEWALS_PER_TTL) * (1 + STEP_SECONDS) * 1.1


def test_leases_that_were_adopted_are_asked_for_soon_and_become_a_trickle() -> None:
    renewals, period = Renewals(), 300 / RENEWALS_PER_TTL
    for number in range(3_000):
        renewals.add(LeaseId(number + 1), 300, 0.0, remaining_seconds=9)
    assert sum(len(renewals.due(now)) for now in range(3)) == 3_000
    shares = [len(renewals.due(now)) for now in range(3, 3 * int(period))]
    assert max(shares[int(period) :]) < 3_000 / period * (1 + STEP_SECONDS) * 2


@given(st.integers(1, 50), st.integers(1, 300))
def test_a_lease_that_was_granted_for_a_shorter_time_than_supposed_is_renewed_in_time(count: int, granted: int) -> None:
    """Whoever takes leases over supposes its own setting; etcd's first answer says what each really has."""
    renewals, now, last = Renewals(), 0.0, dict[LeaseId, float]()
    for number in range(count):
        renewals.add(LeaseId(number + 1), 300, now, remaining_seconds=9)
    while now < 5 + 3 * granted:
        for lease in asked(renewals, now):
            last[lease] = now
            renewals.receive(lease, granted, now)
        period = granted / RENEWALS_PER_TTL
        assert all(now - at <= period + 1e-9 for at in last.values())
        now += min(renewals.pause_seconds(now), period / STEPS_PER_PERIOD)
    assert len(last) == count


def test_only_silence_is_trouble_not_answers_that_are_late() -> None:
    renewals = Renewals()
    for number in (1, 2, 3):
        renewals.add(LeaseId(number), 300, 0.0, remaining_seconds=0)
    assert len(renewals.due(0.0)) == 3
    late = 2 * ANSWER_SECONDS
    renewals.receive(LeaseId(1), 300, late)
    assert not renewals.is_stuck(late + 1)
    assert renewals.is_stuck(late + ANSWER_SECONDS + 1)
    renewals.receive(LeaseId(2), 300, late)
    renewals.receive(LeaseId(3), 300, late)
    assert not renewals.is_stuck(late + 1_000)  # nothing is asked


def test_leases_of_a_short_period_are_soon_taken_elsewhere() -> None:
    renewals = Renewals()
    renewals.add(LeaseId(1), 9, 0.0, remaining_seconds=0)
    assert len(renewals.due(0.0)) == 1
    assert not renewals.is_stuck(3.0)
    assert renewals.is_stuck(3.5), "its second renewal is due, and a third of its time is left after that"
    assert renewals.pause_seconds(0.0) <= 3.0


def test_what_a_stream_that_ended_left_unanswered_is_asked_again_at_once() -> None:
    renewals = Renewals()
    for number in (1, 2):
        renewals.add(LeaseId(number), 300, 0.0, remaining_seconds=0)
    renewals.due(0.0)
    renewals.receive(LeaseId(1), 300, 1.0)
    renewals.reopen(2.0)
    assert asked(renewals, 2.0) == [2]
    assert not renewals.is_stuck(3.0)


def test_a_lease_that_is_gone_or_removed_is_asked_for_no_more() -> None:
    renewals = Renewals()
    for number in (1, 2, 3):
        renewals.add(LeaseId(number), 3, 0.0, remaining_seconds=0)
    renewals.due(0.0)
    assert not renewals.receive(LeaseId(1), 0, 0.1)
    renewals.receive(LeaseId(2), 3, 0.1)
    renewals.receive(LeaseId(3), 3, 0.1)
    renewals.remove(LeaseId(3))
    assert len(renewals) == 1
    assert asked(renewals, 100.0) == [2]


def test_an_etcd_whose_answers_are_late_is_waited_for_the_second_time() -> None:
    renewals, period = Renewals(), 5 / RENEWALS_PER_TTL
    renewals.add(LeaseId(1), 5, 0.0, remaining_seconds=0)
    renewals.due(0.0)
    assert renewals.is_stuck(2.0)
    renewals.reopen(2.0)
    assert asked(renewals, 2.0) == [1]
    assert not renewals.is_stuck(4.0)
    assert renewals.is_stuck(2.0 + PATIENCE_FACTOR * period + 0.1), "it may be frozen all the same"
    renewals.receive(LeaseId(1), 5, 4.0)
    assert renewals.renewed_at(LeaseId(1)) == 2.0
    assert asked(renewals, 4.0) == [1]
    renewals.receive(LeaseId(1), 5, 4.1)
    assert asked(renewals, 6.0) == [1]
    assert renewals.is_stuck(8.0), "it was as quick as usual again"


def test_an_answer_that_is_late_renews_from_when_it_was_asked_for() -> None:
    renewals = Renewals()
    renewals.add(LeaseId(1), 6, 0.0, remaining_seconds=0)
    renewals.due(0.0)
    assert asked(renewals, 2.0) == [1], "the first is not answered yet"
    renewals.receive(LeaseId(1), 6, 2.5)
    assert renewals.renewed_at(LeaseId(1)) == 0.0
    assert asked(renewals, 4.0) == [1]
    renewals.receive(LeaseId(1), 6, 4.5)
    assert renewals.renewed_at(LeaseId(1)) == 2.0, "it answers the second, which the third says nothing of"


def test_whoever_begins_again_and_again_for_a_short_time_renews_all_leases_by_and_by() -> None:
    """As the replicas of an operator that crashes soon after each takeover: each adopts all, in the same order."""
    leases, renewed, now = [LeaseId(number) for number in range(1, 301)], set[bytes](), 1_000.0
    for _ in range(20):
        renewals = Renewals()
        for lease in leases:
            renewals.add(lease, 300, now, remaining_seconds=9.0)
        for step in range(10):
            renewed.update(renewals.due(now + step / 10 - STEP_SECONDS))
        now += 60.37
    assert len(renewed) == len(leases)

"""When leases are renewed: each three times in its time to live, spread evenly; and when silence means trouble."""

from hypothesis import given
from hypothesis import strategies as st

from grpc_etcd.etcd.messages import message
from grpc_etcd.etcd.model import LeaseId
from grpc_etcd.etcd.renewing import ANSWER_SECONDS, RENEWALS_PER_TTL, STEP_SECONDS, STEPS_PER_PERIOD, Renewals


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

"""What etcd refuses is tried again in turns."""

from grpc_etcd_operator.core.reasons import Reason
from grpc_etcd_operator.core.refusals import BACKOFF, MOST_AT_ONCE, MOST_REMEMBERED, ROUND_SECONDS, Refusals

LONGEST_SECONDS = BACKOFF.pauses[-1]


def test_of_thousands_that_are_refused_a_few_are_tried_at_once_and_each_has_its_turn() -> None:
    """Nothing else is written while they are tried, and a tenant may ask for any number of prefixes in vain."""
    refusals, keys = Refusals(), {b"%d/" % number for number in range(2_000)}
    for key in keys:
        refusals.note(key, Reason.PERMISSION_DENIED, "", 0.0)
    now, tried = LONGEST_SECONDS, list[bytes]()
    while len(tried) < len(keys):
        some = refusals.due(now)
        assert 0 < len(some) <= MOST_AT_ONCE
        for key in some:
            refusals.note(key, Reason.PERMISSION_DENIED, "", now)
        tried += some
        now += 1.0  # by then those that were tried first are due again
    assert set(tried) == keys


def test_what_is_refused_is_tried_a_few_times_a_second_however_much_it_is() -> None:
    refusals = Refusals()
    for number in range(200):
        refusals.note(b"%d/" % number, Reason.PERMISSION_DENIED, "", 0.0)
    tried, now = 0, LONGEST_SECONDS
    while now < LONGEST_SECONDS + 10.0:
        some = refusals.due(now)
        tried += len(some)
        for key in some:
            refusals.note(key, Reason.PERMISSION_DENIED, "", now)
        assert refusals.next_at() > now
        now = refusals.next_at()
    assert tried <= 11 * MOST_AT_ONCE


def test_of_very_many_that_are_refused_each_has_its_turn_within_a_minute() -> None:
    refusals, keys = Refusals(), {b"%d/" % number for number in range(4_000)}
    for key in keys:
        refusals.note(key, Reason.PERMISSION_DENIED, "", 0.0)
    tried, now = set[bytes](), LONGEST_SECONDS
    while tried != keys:
        for key in refusals.due(now):
            tried.add(key)
            refusals.note(key, Reason.PERMISSION_DENIED, "", now + ROUND_SECONDS)
        now = min(refusals.next_at(), now + 1.0)
    assert now <= LONGEST_SECONDS + ROUND_SECONDS + 1.0


def test_of_keys_that_are_never_refused_again_no_more_is_remembered_than_a_bound() -> None:
    refusals = Refusals()
    for number in range(MOST_REMEMBERED + 5):
        refusals.note(b"%d" % number, Reason.UNWRITABLE, "", 0.0)
        refusals.end(b"%d" % number, is_trial=True)
    assert len(refusals._failures) == MOST_REMEMBERED

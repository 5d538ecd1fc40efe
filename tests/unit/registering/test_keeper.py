"""The keeper's law, without etcd: one claim after another against what is there."""

import json

import pytest

from grpc_etcd.registering.claims import Claim, Group, Held, Leases, Verdict, make_claim, verdict
from grpc_etcd.registering.keeper import Grant, Keeper, Rest, Touch, Write
from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.layouts import make_layout

JUPITER = make_layout("jupiter")
OURS, FORMER, THEIRS = 7, 6, 9
LEASES = Leases(OURS, frozenset({FORMER}))


def claim(port: int = 9000, **attributes: object) -> Claim:
    made = make_claim(JUPITER, Endpoint(name="greeter", address=f"10.0.0.1:{port}", **attributes), "c")  # type: ignore[arg-type]
    assert isinstance(made, Claim)
    return made


WANTED = claim()
OLDER = claim(weight=1).value
EDITED = json.dumps(json.loads(WANTED.value) | {"enable": False, "labels": {"a": "b"}}).encode()


@pytest.mark.parametrize(
    ("held", "written", "judged", "enabled"),
    [
        (None, None, Verdict.PUT, True),
        (Held(WANTED.value, OURS, 1), WANTED.value, Verdict.KEEP, True),
        (Held(OLDER, OURS, 1), OLDER, Verdict.PUT, True),
        (Held(WANTED.value, FORMER, 1), WANTED.value, Verdict.PUT, True),
        (Held(WANTED.value, THEIRS, 1), None, Verdict.PUT, True),
        (Held(WANTED.value, THEIRS, 1), WANTED.value, Verdict.YIELD, True),
        (Held(WANTED.value, 0, 1), None, Verdict.PUT, True),
        (Held(EDITED, 0, 1), WANTED.value, Verdict.PUT, False),
        (Held(EDITED, OURS, 1), WANTED.value, Verdict.KEEP, False),
        (Held(b"not json", 0, 1), WANTED.value, Verdict.PUT, True),
    ],
)
def test_what_to_do_about_one_record(held: Held | None, written: bytes | None, judged: Verdict, enabled: bool) -> None:  # noqa: FBT001
    answer, kept = verdict(WANTED, held, LEASES, written)
    assert answer is judged
    assert kept.endpoint is not None
    assert kept.endpoint.enable is enabled


def test_nothing_is_asked_for_before_the_keys_are_listed() -> None:
    keeper = Keeper()
    keeper.claim([WANTED])
    assert keeper.next_step(0) == Rest()
    keeper.listed(keeper.keys, {})
    assert keeper.next_step(0) == Grant()
    keeper.granted(OURS)
    step = keeper.next_step(0)
    assert isinstance(step, Write)
    assert step.puts == {WANTED.key: WANTED.value}
    assert step.revisions == {WANTED.key: 0}


def registered(count: int, now: float = 100.0) -> Keeper:
    keeper = Keeper()
    keeper.claim([claim(9000 + number) for number in range(count)])
    keeper.listed(keeper.keys, {})
    keeper.granted(OURS)
    for revision in range(1, count + 1):
        step = keeper.next_step(now)
        while isinstance(step, Rest) and step.until is not None and not all(map(keeper.is_registered, keeper.keys)):
            now = step.until
            step = keeper.next_step(now)
        if not isinstance(step, Write):
            break
        assert len(step.puts) <= JUPITER.pace.keys_per_transaction
        keeper.wrote(step, revision, now)
    return keeper


def test_one_change_gets_no_touch_and_a_burst_gets_one() -> None:
    single = registered(1)
    assert single.next_step(1e6) == Rest()
    many = registered(20)
    step = many.next_step(1e6)
    assert isinstance(step, Touch)
    many.touched(step)
    assert many.next_step(1e6) == Rest()


def test_withdrawals_go_first_and_touch_only_what_is_ours() -> None:
    keeper = registered(2)
    leaving, other = sorted(keeper.keys)
    keeper.seen(other, None)
    keeper.release([leaving])
    step = keeper.next_step(1e6)
    assert isinstance(step, Write)
    assert step.deletes == {leaving}
    taken = registered(1)
    (key,) = taken.keys
    taken.seen(key, Held(b"theirs", THEIRS, 50))
    taken.release([key])
    assert taken.is_gone(key)


def test_a_lost_lease_is_replaced_before_anything_else_is_put() -> None:
    keeper = registered(1)
    keeper.lease_lost(OURS)
    (key,) = keeper.keys
    keeper.seen(key, None)
    assert keeper.next_step(1e6) == Grant()
    keeper.granted(OURS + 1)
    step = keeper.next_step(1e6)
    assert isinstance(step, Write)
    assert step.lease == OURS + 1


def test_groups_of_readers_are_told_apart_by_their_prefix() -> None:
    other = make_claim(JUPITER, Endpoint(name="other", address="10.0.0.1:1"), "c")
    assert isinstance(other, Claim)
    assert other.group != WANTED.group
    assert isinstance(WANTED.group, Group)

"""The keeper's law, without etcd: one claim after another against what is there."""

import json
from typing import Any

import pytest

from grpc_etcd.layouts.index import make_layout
from grpc_etcd.registration.processes import process_key, process_prefix
from grpc_etcd.registration.reconciler import RegistrationReconciler
from grpc_etcd.registration.records import Claim, Group, Held, Leases, Values, Verdict, make_claim, verdict
from grpc_etcd.registration.steps import Flush, Grant, Idle, Read, Write
from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.layout import FLUSHES, HEAL_SECONDS

JUPITER = make_layout("jupiter")
OURS, FORMER, THEIRS = 7, 6, 9
LEASES = Leases(OURS, frozenset({FORMER}))


def claim(port: int = 9000, **attributes: Any) -> Claim:
    made = make_claim(JUPITER, Endpoint(name="greeter", address=f"10.0.0.1:{port}", **attributes), "c")
    assert isinstance(made, Claim)
    return made


WANTED = claim()
OLDER = claim(weight=1).value
EDITED = json.dumps(json.loads(WANTED.value) | {"enable": False, "labels": {"a": "b"}}).encode()


@pytest.mark.parametrize(
    ("held", "had", "judged"),
    [
        (None, False, Verdict.PUT),
        (Held(WANTED.value, OURS, 1), True, Verdict.KEEP),
        (Held(OLDER, OURS, 1), True, Verdict.PUT),
        (Held(WANTED.value, FORMER, 1), True, Verdict.PUT),
        (Held(WANTED.value, THEIRS, 1), False, Verdict.PUT),
        (Held(WANTED.value, THEIRS, 1), True, Verdict.YIELD),
        (Held(WANTED.value, 0, 1), False, Verdict.PUT),
        (Held(b"not json", 0, 1), True, Verdict.PUT),
    ],
)
def test_what_to_do_about_one_record(held: Held | None, had: bool, judged: Verdict) -> None:  # noqa: FBT001
    assert verdict(WANTED, held, LEASES, had=had) is judged


@pytest.mark.parametrize(
    ("value", "lease", "enabled"),
    [
        (EDITED, OURS, False),
        (EDITED, 0, False),
        (EDITED, FORMER, True),
        (EDITED, THEIRS, True),
        (b"not json", OURS, True),
    ],
)
def test_what_an_admin_edits_becomes_the_claim(value: bytes, lease: int, enabled: bool) -> None:  # noqa: FBT001
    reconciler = registered(1)
    reconciler.leases = LEASES
    (key,) = reconciler.keys
    reconciler.seen(key, Held(value, lease, 50), 50)
    assert json.loads(reconciler.value(key))["enable"] is enabled


def test_of_a_value_that_an_admin_has_drained_only_that_is_the_edit() -> None:
    """The program has another weight in mind by now, and what is put with it comes too late."""
    reconciler, put = putting(claim(weight=1))
    reconciler.wrote(put, 2, 1)
    reconciler.claim([WANTED])
    drained = json.dumps(json.loads(OLDER) | {"enable": False}).encode()
    reconciler.seen(WANTED.key, Held(drained, OURS, 3), 3)
    wanted = json.loads(reconciler.value(WANTED.key))
    assert (wanted["weight"], wanted["enable"]) == (100, False)


def test_what_is_handed_over_of_a_drained_key_has_the_weight_that_its_heir_wants() -> None:
    reconciler = registered(1)
    key = WANTED.key
    reconciler.seen(key, Held(EDITED, OURS, 5), 5)
    reconciler.seen(process_key(key, THEIRS), Held(OLDER, THEIRS, 6), 6)
    reconciler.release([key])
    step = reconciler.next_step(1e6)
    assert isinstance(step, Write)
    (left,) = step.handovers.values()
    assert (json.loads(left.value)["weight"], json.loads(left.value)["enable"]) == (1, False)


def test_what_a_dump_left_there_without_a_lease_is_no_edit() -> None:
    reconciler = RegistrationReconciler()
    reconciler.claim([WANTED])
    reconciler.listed(reconciler.keys, {WANTED.key: Held(EDITED, 0, 1)}, 1)
    assert reconciler.value(WANTED.key) == WANTED.value


def test_nothing_is_asked_for_before_the_keys_are_listed() -> None:
    reconciler = RegistrationReconciler()
    reconciler.claim([WANTED])
    assert reconciler.next_step(0) == Idle()
    reconciler.listed(reconciler.keys, {}, 0)
    assert reconciler.next_step(0) == Grant()
    reconciler.granted(OURS)
    step = reconciler.next_step(0)
    assert isinstance(step, Write)
    assert step.puts == {WANTED.key: WANTED.value}
    assert step.revisions == {WANTED.key: 0}


def registered(count: int, now: float = 100.0) -> RegistrationReconciler:
    reconciler = RegistrationReconciler()
    reconciler.claim([claim(9000 + number) for number in range(count)])
    reconciler.listed(reconciler.keys, {}, 0)
    reconciler.granted(OURS)
    for revision in range(1, count + 1):
        step = reconciler.next_step(now)
        while (
            isinstance(step, Idle)
            and step.until is not None
            and not all(map(reconciler.is_registered, reconciler.keys))
        ):
            now = step.until
            step = reconciler.next_step(now)
        if not isinstance(step, Write):
            break
        assert len(step.puts) <= JUPITER.limits.keys_per_transaction
        reconciler.wrote(step, revision, now)
    return reconciler


def test_one_change_gets_no_touch_and_a_burst_gets_two() -> None:
    single = registered(1)
    assert single.next_step(1e6) == Idle()
    many = registered(20)
    now = 1e6
    for _ in range(FLUSHES):
        step = many.next_step(now)
        assert isinstance(step, Flush)
        many.flushed(step, now)
        assert many.next_step(now) == Idle(None if not many._histories else now + HEAL_SECONDS)
        now += HEAL_SECONDS
    assert many.next_step(now) == Idle()


def test_whoever_leaves_waits_for_the_first_touch_only() -> None:
    reconciler = registered(20)
    reconciler.release(list(reconciler.keys))
    now = 1e6
    while not isinstance(step := reconciler.next_step(now), Flush):
        assert isinstance(step, Write)
        reconciler.wrote(step, 100, now)
        now += 1
    assert not reconciler.is_done
    reconciler.flushed(step, now)
    assert reconciler.is_done


def test_deregistrations_go_first_and_touch_only_what_is_ours() -> None:
    reconciler = registered(2)
    leaving, other = sorted(reconciler.keys)
    reconciler.seen(other, None, 50)
    reconciler.release([leaving])
    step = reconciler.next_step(1e6)
    assert isinstance(step, Write)
    assert step.deletes == {leaving}
    taken = registered(1)
    (key,) = taken.keys
    taken.seen(key, Held(b"theirs", THEIRS, 50), 50)
    taken.release([key])
    assert not taken.is_gone(key), "others may still hand it over to us"
    step = taken.next_step(1e6)
    assert isinstance(step, Write)
    assert (step.deletes, step.retracted) == (frozenset(), frozenset({process_key(key, OURS)}))
    taken.wrote(step, 51, 1e6)
    assert taken.is_gone(key)


def test_a_lost_lease_is_replaced_before_anything_else_is_put() -> None:
    reconciler = registered(1)
    reconciler.lease_lost(OURS)
    (key,) = reconciler.keys
    reconciler.seen(key, None, 50)
    assert reconciler.next_step(1e6) == Grant()
    reconciler.granted(OURS + 1)
    step = reconciler.next_step(1e6)
    assert isinstance(step, Write)
    assert step.lease == OURS + 1


def test_groups_of_readers_are_told_apart_by_their_prefix() -> None:
    other = make_claim(JUPITER, Endpoint(name="other", address="10.0.0.1:1"), "c")
    assert isinstance(other, Claim)
    assert other.group != WANTED.group
    assert isinstance(WANTED.group, Group)


# What is known, and as of when


def putting(claimed: Claim) -> tuple[RegistrationReconciler, Write]:
    """Give a keeper whose first put is under way."""
    reconciler = RegistrationReconciler()
    reconciler.claim([claimed])
    reconciler.listed(reconciler.keys, {}, 0)
    reconciler.granted(OURS)
    put = reconciler.next_step(1)
    assert isinstance(put, Write)
    reconciler.begun(put)
    return reconciler, put


def put_and_deregistered_twice(reconciler: RegistrationReconciler) -> tuple[bytes, bytes]:
    """Put the key at revision 1, delete it at 2, put it at 3; nothing of that has been received by the watch."""
    (key,) = reconciler.keys
    reconciler.release([key])
    delete = reconciler.next_step(1e6)
    assert isinstance(delete, Write)
    assert delete.deletes == {key}
    reconciler.wrote(delete, 2, 1e6)
    assert reconciler.is_gone(key)
    reconciler.claim([WANTED])
    put = reconciler.next_step(2e6)
    assert isinstance(put, Write)
    reconciler.wrote(put, 3, 2e6)
    return key, process_key(key, OURS)


def test_news_from_before_an_answer_deregister_nothing_and_register_nothing() -> None:
    reconciler = registered(1)
    key, beside = put_and_deregistered_twice(reconciler)
    reconciler.release([key])
    for revision, held in ((1, Held(WANTED.value, OURS, 1)), (2, None)):
        reconciler.seen(key, held, revision)
        reconciler.seen(beside, held, revision)
        assert not reconciler.is_gone(key), "it was put again at revision 3"
    step = reconciler.next_step(3e6)
    assert isinstance(step, Write)
    assert step.deletes == {key}
    reconciler.wrote(step, 4, 3e6)
    reconciler.claim([WANTED])
    reconciler.seen(key, Held(WANTED.value, OURS, 3), 3)
    assert not reconciler.is_registered(key), "it was deleted at revision 4"


def test_what_is_released_while_it_is_being_put_is_deregistered() -> None:
    reconciler, put = putting(WANTED)
    reconciler.release([WANTED.key])
    assert not reconciler.is_gone(WANTED.key)
    reconciler.wrote(put, 1, 1)
    delete = reconciler.next_step(1e6)
    assert isinstance(delete, Write)
    assert delete.deletes == {WANTED.key}


def test_news_of_an_etcd_that_has_lost_its_data_since_make_nothing_gone() -> None:
    """They may come after the answers of the one that took its place, whose revisions are lower."""
    for there in (Held(WANTED.value, OURS, 1), None):
        reconciler = registered(1)
        (key,) = reconciler.keys
        reconciler.seen(key, None, 50)
        reconciler.seen(process_key(key, OURS), None, 50)
        reconciler.release([key])
        assert not reconciler.is_gone(key)
        step = reconciler.next_step(1e6)
        assert step == Read(frozenset({key}), frozenset({process_prefix(key)}))
        reconciler.read(step.keys, step.prefixes, {key: there} if there else {}, 2)
        assert reconciler.is_gone(key) is (there is None)


def test_what_was_put_before_the_latest_change_is_no_edit() -> None:
    reconciler, first = putting(claim(weight=1))
    reconciler.claim([WANTED])
    reconciler.read(first.revisions, first.alone, {WANTED.key: Held(OLDER, OURS, 1)}, 1)
    second = reconciler.next_step(1e6)
    assert isinstance(second, Write)
    reconciler.begun(second)
    reconciler.seen(WANTED.key, Held(OLDER, OURS, 1), 1)
    assert not reconciler.is_registered(WANTED.key)
    assert reconciler.value(WANTED.key) == WANTED.value


def test_a_former_value_that_news_tell_late_is_no_edit_and_one_that_comes_again_is() -> None:
    """News of an etcd that has lost its data hide which answers are newer than those that follow."""
    reconciler, first = putting(claim(weight=1))
    reconciler.leases = LEASES
    reconciler.wrote(first, 2, 1)
    reconciler.claim([WANTED])
    second = reconciler.next_step(1e6)
    assert isinstance(second, Write)
    reconciler.begun(second)
    reconciler.wrote(second, 3, 1e6)
    reconciler.seen(WANTED.key, Held(OLDER, FORMER, 18), 18)
    reconciler.seen(WANTED.key, Held(OLDER, OURS, 2), 2)
    assert reconciler.value(WANTED.key) == WANTED.value
    reconciler.seen(WANTED.key, Held(WANTED.value, OURS, 3), 3)
    reconciler.seen(WANTED.key, Held(OLDER, OURS, 4), 4)
    assert json.loads(reconciler.value(WANTED.key))["weight"] == 1


def test_a_value_between_two_that_are_the_same_is_no_edit_when_it_comes_late() -> None:
    values = Values()
    for value in (b"100", b"5", b"100"):
        values.expect(value)
    values.begin_with(b"100")
    for value in (b"100", b"5", b"100"):
        assert value in values
        values.reported(value)
    assert b"5" not in values


def test_what_others_hand_over_as_it_was_announced_is_no_edit() -> None:
    reconciler = registered(1)
    key = WANTED.key
    reconciler.seen(key, Held(WANTED.value, THEIRS, 2), 2)
    reconciler.claim([claim(weight=1)])
    announce = reconciler.next_step(1e6)
    assert isinstance(announce, Write)
    assert announce.announced == {process_key(key, OURS): OLDER}
    reconciler.begun(announce)
    reconciler.wrote(announce, 3, 1e6)
    reconciler.claim([WANTED])
    reconciler.seen(key, Held(OLDER, OURS, 4), 4)
    assert not reconciler.is_registered(key)
    assert reconciler.value(key) == WANTED.value


def test_what_comes_late_of_a_key_that_has_gone_is_handed_over_as_it_was_claimed() -> None:
    reconciler, put = putting(claim(weight=1))
    reconciler.claim([WANTED])
    reconciler.release([WANTED.key])
    reconciler.read(put.revisions, {process_prefix(WANTED.key): 0}, {}, 1)
    assert reconciler.is_gone(WANTED.key)
    heir = Held(WANTED.value, THEIRS, 2)
    reconciler.seen(process_key(WANTED.key, THEIRS), heir, 2)
    reconciler.seen(WANTED.key, Held(OLDER, OURS, 3), 3)
    step = reconciler.next_step(1e6)
    assert isinstance(step, Write)
    assert [left.value for left in step.handovers.values()] == [WANTED.value]


def test_what_became_of_a_write_without_an_answer_is_read() -> None:
    for there in (Held(WANTED.value, OURS, 1), None):
        reconciler, _ = putting(WANTED)
        reconciler.release([WANTED.key])
        read = reconciler.next_step(2)
        assert read == Read(frozenset({WANTED.key}), frozenset({process_prefix(WANTED.key)}))
        assert not reconciler.is_gone(WANTED.key)
        reconciler.read(read.keys, read.prefixes, {WANTED.key: there} if there else {}, 1)
        assert reconciler.is_gone(WANTED.key) == (there is None)


def test_a_refused_write_is_done_with_without_a_read() -> None:
    reconciler, put = putting(WANTED)
    reconciler.refused(put)
    reconciler.release([WANTED.key])
    assert reconciler.is_gone(WANTED.key)


def test_what_is_refused_together_is_tried_one_by_one_and_holds_up_no_other() -> None:
    fault = Exception("refused")
    good, bad, late = claim(), claim(9001), claim(9002)
    reconciler = RegistrationReconciler(shares=False)
    reconciler.claim([good, bad])
    reconciler.listed(frozenset({good.key, bad.key, late.key}), {}, 0)
    reconciler.granted(OURS)

    def step(now: float) -> set[bytes]:
        """Take the next write; what holds the bad record is refused."""
        write = reconciler.next_step(now)
        if not isinstance(write, Write):
            return set()
        if bad.key in write.puts:
            assert reconciler.put_off(write, fault, now)
        else:
            reconciler.wrote(write, 1, now)
        return {*write.puts, *write.deletes}

    assert [step(1), step(1), step(1.05)] == [{good.key, bad.key}, {good.key}, {bad.key}]
    assert (reconciler.refusal([good.key]), reconciler.refusal([bad.key])) == (None, fault)
    reconciler.claim([late])
    assert [step(1.1), step(1.2)] == [{late.key}, set()]
    assert step(1.3) == {bad.key}
    reconciler.release([good.key])
    assert [step(1.4), step(1.6), step(1.8)] == [{good.key}, set(), {bad.key}]
    reconciler.claim([bad])
    assert (reconciler.refusal([bad.key]), step(1.9)) == (None, {bad.key}), "it may be another value"


def test_a_write_that_is_carried_out_late_is_deregistered_again() -> None:
    reconciler = registered(1)
    (key,) = reconciler.keys
    reconciler.release([key])
    delete = reconciler.next_step(1e6)
    assert isinstance(delete, Write)
    reconciler.wrote(delete, 2, 1e6)
    assert reconciler.is_gone(key)
    reconciler.seen(key, Held(WANTED.value, OURS, 9), 9)
    assert not reconciler.is_gone(key)
    again = reconciler.next_step(1e7)
    assert isinstance(again, Write)
    assert again.deletes == {key}


def test_process_keys_that_an_answer_does_not_name_are_gone() -> None:
    reconciler = registered(1)
    (key,) = reconciler.keys
    reconciler.release([key])
    refused = reconciler.next_step(1e6)
    assert isinstance(refused, Write)
    assert refused.alone == {process_prefix(key): OURS}
    reconciler.read(refused.revisions, refused.alone, {key: Held(WANTED.value, OURS, 1)}, 5)
    again = reconciler.next_step(1e6)
    assert isinstance(again, Write)
    assert again.alone == {process_prefix(key): 0}
    assert not again.retracted


def test_a_listing_from_before_an_answer_is_settled_by_a_read() -> None:
    """It may have been late, or etcd has been restored: its revisions do not say which."""
    late, restored = registered(1), registered(1)
    for reconciler in (late, restored):
        (key,) = reconciler.keys
        reconciler.listed(reconciler.keys, {}, 0)
        assert reconciler.is_registered(key), "what an answer has said is believed meanwhile"
        assert isinstance(reconciler.next_step(1e6), Read)
    beside = process_key(key, OURS)
    late.read({key}, {process_prefix(key)}, {key: Held(WANTED.value, OURS, 1), beside: Held(WANTED.value, OURS, 1)}, 1)
    assert late.next_step(1e6) == Idle()
    restored.read({key}, {process_prefix(key)}, {}, 0)
    assert isinstance(restored.next_step(1e6), Write)


def test_what_is_gone_and_listed_again_is_deregistered_if_a_read_finds_it() -> None:
    """A restored etcd has it under the lease that the process keeps alive for what else it registers."""
    late, restored = registered(2), registered(2)
    for reconciler in (late, restored):
        keys = reconciler.keys
        reconciler.release([WANTED.key])
        delete = reconciler.next_step(1e6)
        assert isinstance(delete, Write)
        reconciler.wrote(delete, 9, 1e6)
        assert reconciler.is_gone(WANTED.key)
        reconciler.listed(keys, {WANTED.key: Held(WANTED.value, OURS, 1)}, 5)
        step = reconciler.next_step(1e7)
        assert isinstance(step, Read)
        assert WANTED.key in step.keys
    others = {key: Held(late.value(key), OURS, 2) for key in late.keys - {WANTED.key}}
    found = {WANTED.key: Held(WANTED.value, OURS, 1)}
    late.read(keys, map(process_prefix, keys), others, 9)
    assert late.is_gone(WANTED.key)
    restored.read(keys, map(process_prefix, keys), others | found, 5)
    again = restored.next_step(1e7)
    assert isinstance(again, Write)
    assert again.deletes == {WANTED.key}


@pytest.mark.parametrize("is_restored", [False, True])
def test_what_was_answered_without_a_stream_is_read_when_there_is_one(is_restored: bool) -> None:  # noqa: FBT001 - a case
    """An etcd that was restored to what the watch knows has neither what was put since nor what was deleted."""
    reconciler = registered(2)
    gone, kept = sorted(reconciler.keys)
    before = {key: Held(reconciler.value(key), OURS, 1) for key in (gone, kept)}
    reconciler.listed(reconciler.keys, before, 5)
    reconciler.resumed(5)
    assert not isinstance(reconciler.next_step(1e6), Read), "nothing was answered since"
    reconciler.release([gone])
    reconciler.wrote(Write(WANTED.group, OURS, deletes=frozenset({gone}), revisions={gone: 1}), 6, 1e6)
    reconciler.wrote(Write(WANTED.group, OURS, puts={kept: before[kept].value}, revisions={kept: 1}), 7, 1e6)
    assert reconciler.is_gone(gone)
    reconciler.resumed(5)
    step = reconciler.next_step(1e7)
    assert isinstance(step, Read)
    assert step.keys == {gone, kept}
    found = {gone: before[gone]} if is_restored else {kept: Held(before[kept].value, OURS, 7)}
    reconciler.read(step.keys, step.prefixes, found, 5 if is_restored else 7)
    assert reconciler.is_gone(gone) is not is_restored
    assert reconciler.is_registered(kept) is not is_restored
    after = reconciler.next_step(1e7)
    if is_restored:
        assert isinstance(after, Write)
        assert after.deletes == {gone}


def test_an_update_whose_answer_was_lost_is_no_edit_of_an_admin() -> None:
    reconciler = registered(1)
    (key,) = reconciler.keys
    reconciler.claim([claim(weight=5)])
    lost = reconciler.next_step(1e6)
    assert isinstance(lost, Write)
    reconciler.begun(lost)
    newest = claim(weight=7)
    reconciler.claim([newest])
    reconciler.read({key}, (), {key: Held(lost.puts[key], OURS, 2)}, 2)
    step = reconciler.next_step(1e6)
    assert isinstance(step, Write)
    assert step.puts == {key: newest.value}


def test_what_an_admin_edits_after_a_lost_answer_is_kept() -> None:
    reconciler = RegistrationReconciler()
    reconciler.claim([WANTED])
    reconciler.listed(reconciler.keys, {}, 0)
    reconciler.granted(OURS)
    lost = reconciler.next_step(1)
    assert isinstance(lost, Write)
    reconciler.begun(lost)
    reconciler.read({WANTED.key}, (), {WANTED.key: Held(EDITED, OURS, 3)}, 3)
    assert reconciler.is_registered(WANTED.key)
    assert b'"enable":false' in reconciler.value(WANTED.key).replace(b" ", b"")


def test_a_process_key_without_a_lease_holds_up_no_deregistration() -> None:
    reconciler = registered(1)
    (key,) = reconciler.keys
    stray = process_key(key, THEIRS)
    reconciler.seen(stray, Held(WANTED.value, 0, 4), 4)
    reconciler.release([key])
    first = reconciler.next_step(1e6)
    assert isinstance(first, Write)
    assert (first.retracted, first.revisions, first.alone) == (frozenset({stray}), {stray: 4}, {})
    reconciler.wrote(first, 5, 1e6)
    second = reconciler.next_step(1e6)
    assert isinstance(second, Write)
    assert second.deletes == {key}


def test_no_more_is_read_at_once_than_etcd_takes() -> None:
    reconciler = registered(100, now=1e9)
    reconciler.listed(reconciler.keys, {}, 0)
    step = reconciler.next_step(1e9)
    assert isinstance(step, Read)
    assert len(step.keys) + len(step.prefixes) <= 128

"""A status tells the owner what to do next, keeps its times, and is the same when nothing in it has changed."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpc_etcd_operator.core.cluster import ACCEPTED, ASKING, Verdict
from grpc_etcd_operator.core.conditions import (
    MOST_CONDITIONS,
    is_same_judgement,
    is_same_status,
    judge_registrations,
    make_status,
    renew_status,
    was_reported_vacant,
)
from grpc_etcd_operator.core.counts import Counts
from grpc_etcd_operator.core.desired import Fault
from grpc_etcd_operator.core.reasons import Reason
from grpc_etcd_operator.core.references import resolve
from grpc_etcd_operator.core.services import GrpcService, parse_service
from grpc_etcd_operator.core.targets import parse_target
from tests.unit.operator_core.conftest import make_raw_service

Make = Callable[..., GrpcService]
TAKEN = Fault("s1", Reason.KEY_TAKEN, "somebody has it")
DENIED = Fault("s1", Reason.PERMISSION_DENIED, "no right")
NO_PORT = Fault("s1", Reason.PORT_NOT_FOUND, "no such port; set spec.port")
EARLY, LATE = "2026-01-01T00:00:01Z", "2026-01-01T00:00:09Z"


def judged(status: dict[str, Any], kind: str) -> tuple[str, str]:
    found = next(each for each in status["conditions"] if each["type"] == kind)
    return found["status"], found["reason"]


@pytest.mark.parametrize(
    ("spec", "verdict", "counts", "down", "accepted", "programmed"),
    [
        ({}, ACCEPTED, Counts(3, 2, 2), {}, ("True", "Accepted"), ("True", "Programmed")),
        ({}, ACCEPTED, Counts(3, 2, 1), {}, ("True", "Accepted"), ("False", "Pending")),
        ({}, ACCEPTED, Counts(3, 0, 0), {}, ("True", "Accepted"), ("True", "NoReadyPods")),
        ({}, ACCEPTED, Counts(), {}, ("True", "Accepted"), ("False", "NoPods")),
        ({"enable": False}, ACCEPTED, Counts(), {}, ("True", "Accepted"), ("True", "Disabled")),
        ({"enable": False}, ACCEPTED, Counts(3, 3), {}, ("True", "Accepted"), ("True", "Disabled")),
        ({}, ACCEPTED, Counts(1, 1, 1), {"default": "down"}, ("True", "Accepted"), ("False", "RegistryUnavailable")),
        ({}, ACCEPTED, Counts(1, 1, 1), {"second": "down"}, ("True", "Accepted"), ("True", "Programmed")),
        (
            {},
            Verdict(accepted=False, reason=Reason.NAME_TAKEN, message="m"),
            Counts(1, 1),
            {},
            ("False", "NameTaken"),
            ("False", "NotAccepted"),
        ),
        (
            {},
            ACCEPTED,
            Counts(2, 2, 1, {("p1", "default"): (TAKEN,)}),
            {},
            ("True", "Accepted"),
            ("False", "KeyTaken"),
        ),
        (
            {},
            ACCEPTED,
            Counts(1, 1, 0, {("p1", "default"): (NO_PORT,)}),
            {},
            ("False", "PortNotFound"),
            ("False", "NotAccepted"),
        ),
        # One Pod of two lacks the port, as in the midst of a rollout: the GrpcService itself is fine.
        (
            {},
            ACCEPTED,
            Counts(2, 2, 1, {("p1", "default"): (NO_PORT,)}),
            {},
            ("True", "Accepted"),
            ("False", "PortNotFound"),
        ),
    ],
)
def test_conditions_say_what_is(
    service: Make,
    *,
    spec: dict[str, Any],
    verdict: Verdict,
    counts: Counts,
    down: dict[str, str],
    accepted: tuple[str, str],
    programmed: tuple[str, str],
) -> None:
    status = make_status(service(**spec), verdict, counts, down, EARLY)
    assert (judged(status, "Accepted"), judged(status, "Programmed")) == (accepted, programmed)


def test_conditions_of_others_stay_as_they_are(service: Make) -> None:
    foreign = [{"type": f"Audited{each}", "status": "True"} for each in range(9)]
    made = replace(service(), status={"conditions": [*foreign[:1], {"type": "Stalled", "status": "True"}]})
    status = make_status(made, ACCEPTED, Counts(1, 1, 1), {}, EARLY)
    assert [each["type"] for each in status["conditions"]] == ["Audited0", "Accepted", "Programmed", "Ready"]
    assert status["conditions"][:1] == foreign[:1]
    renewed = renew_status(status, replace(service(), status={"conditions": foreign}))
    assert [each["type"] for each in renewed["conditions"][-3:]] == ["Accepted", "Programmed", "Ready"]
    assert len(renewed["conditions"]) == MOST_CONDITIONS


def test_another_order_of_conditions_is_no_reason_to_write(service: Make) -> None:
    """Else the operator and a controller that sorts them would write in turn for ever."""
    status = make_status(service(), ACCEPTED, Counts(1, 1, 1), {}, EARLY)
    mixed = [{"type": "Audited", "status": "True"}, *reversed(status["conditions"])]
    sorted_by_another = {**status, "conditions": mixed}
    held = replace(service(), status=sorted_by_another)
    assert is_same_status(sorted_by_another, make_status(held, ACCEPTED, Counts(1, 1, 1), {}, LATE))


numbers = st.integers(0, 3)
all_counts = st.builds(
    Counts,
    numbers,
    numbers,
    numbers,
    st.dictionaries(
        st.tuples(st.sampled_from(["p1", "p2"]), st.just("default")), st.sampled_from([(TAKEN,), (NO_PORT,)])
    ),
)


@given(all_counts, all_counts)
def test_a_status_that_says_the_same_is_the_same_at_any_time(service: Make, first: Counts, second: Counts) -> None:
    one = make_status(service(), ACCEPTED, first, {}, EARLY)
    held = replace(service(), status=one)
    assert is_same_status(one, make_status(held, ACCEPTED, first, {}, LATE))
    other = make_status(held, ACCEPTED, second, {}, LATE)
    assert is_same_status(one, other) == ({**one} == {**other})
    before_of = {each["type"]: each for each in one["conditions"]}
    for before, after in ((before_of.get(each["type"], {"status": ""}), each) for each in other["conditions"]):
        same = before["status"] == after["status"]
        assert after["lastTransitionTime"] == (EARLY if same else LATE)


verdicts = st.one_of(
    st.just(ACCEPTED), st.builds(lambda why: Verdict(accepted=False, reason=why, message="m"), st.sampled_from(Reason))
)


@given(verdicts, all_counts, st.sampled_from([{}, {"default": "down"}]), st.sampled_from(["", "no right"]))
def test_ready_sums_up_the_others_and_stalled_is_there_only_where_it_is_not(
    service: Make, verdict: Verdict, counts: Counts, down: dict[str, str], unseen: str
) -> None:
    made = make_status(service(), verdict, counts, down, EARLY, unseen=unseen)
    found = {each["type"]: each for each in made["conditions"]}
    accepted, programmed, ready = (found[kind]["status"] for kind in ("Accepted", "Programmed", "Ready"))
    assert (ready == "True") == (accepted == programmed == "True")
    if "Stalled" in found:
        assert (found["Stalled"]["status"], ready) == ("True", "False")
        assert found["Stalled"]["reason"] == found["Ready"]["reason"]


@pytest.mark.parametrize(
    ("verdict", "counts", "down", "is_reported_vacant", "stalled"),
    [
        (ASKING, Counts(1, 1), {}, False, ""),
        (ACCEPTED, Counts(1, 1), {}, False, ""),
        (ACCEPTED, Counts(1, 1), {"default": "down"}, False, ""),
        (ACCEPTED, Counts(1, 1, 0, {("p1", "default"): (TAKEN,)}), {}, False, ""),
        (
            ACCEPTED,
            Counts(2, 2, 0, {("p1", "default"): (TAKEN,), ("p2", "default"): (DENIED,)}),
            {},
            False,
            DENIED.reason,
        ),
        (ACCEPTED, Counts(), {}, False, ""),
        (ACCEPTED, Counts(), {}, True, "NoPods"),
        (ACCEPTED, Counts(1, 1, 0, {("p1", "default"): (NO_PORT,)}), {}, False, "PortNotFound"),
        (Verdict(accepted=False, reason=Reason.NAME_TAKEN, message="m"), Counts(1, 1), {}, False, "NameTaken"),
    ],
)
def test_what_passes_by_itself_is_not_stalled(  # noqa: PLR0917  what a status is made of
    service: Make,
    verdict: Verdict,
    counts: Counts,
    down: dict[str, str],
    is_reported_vacant: bool,  # noqa: FBT001 - a parameter of the test
    stalled: str,
) -> None:
    made = make_status(service(), verdict, counts, down, EARLY, is_reported_vacant=is_reported_vacant)
    assert [each["reason"] for each in made["conditions"] if each["type"] == "Stalled"] == (
        [stalled] if stalled else []
    )


@given(all_counts, all_counts)
def test_counts_alone_are_no_other_judgement(service: Make, first: Counts, second: Counts) -> None:
    one, other = (make_status(service(), ACCEPTED, counts, {}, EARLY) for counts in (first, second))
    same = all(judged(one, kind) == judged(other, kind) for kind in ("Accepted", "Programmed"))
    assert is_same_judgement(one, other) == same
    assert not is_same_judgement(one, {**one, "observedGeneration": 2})
    assert not is_same_judgement({}, one)


def test_a_refusal_that_another_quotes_is_written_once(service: Make) -> None:
    """A missing grant was in the condition twice, once for the service and once for each Pod that waits for it."""
    refused = "etcd denies /x/: etcdctl role grant-permission ROLE --prefix=true readwrite /x/"
    faults = (Fault("s1", Reason.PERMISSION_DENIED, f"nothing is put: {refused}"),)
    counts = Counts(
        2, 2, 0, {("p1", "default"): faults, ("s1", "default"): (Fault("s1", Reason.PERMISSION_DENIED, refused),)}
    )
    assert (
        make_status(service(), ACCEPTED, counts, {}, EARLY)["conditions"][1]["message"] == f"nothing is put: {refused}"
    )


@given(st.permutations([("p1", "default"), ("p2", "default"), ("p3", "default"), ("p4", "default")]))
def test_the_message_does_not_depend_on_who_was_found_first(service: Make, order: list[tuple[str, str]]) -> None:
    counts = Counts(4, 4, 0, {unit: (Fault("s1", Reason.KEY_TAKEN, f"{unit[0]} has it"),) for unit in order})
    status = make_status(service(), ACCEPTED, counts, {}, EARLY)
    assert status["conditions"][1]["message"] == "p1 has it; p2 has it; p3 has it; and 1 more"


def test_a_selector_that_matches_nothing_is_no_success_and_a_gap_in_a_rollout_no_failure(service: Make) -> None:
    """Programmed, then without Pods: it stays for a while, then it is told; with the next Pods all is well."""
    held = service()
    for counts, is_long, said in (
        (Counts(), False, ("False", "NoPods")),
        (Counts(1, 1, 1), False, ("True", "Programmed")),
        (Counts(), False, ("True", "NoPods")),
        (Counts(2, 0, 0), False, ("True", "NoReadyPods")),
        (Counts(), False, ("True", "NoPods")),
        (Counts(), True, ("False", "NoPods")),
        (Counts(), False, ("False", "NoPods")),
        (Counts(1, 1, 1), False, ("True", "Programmed")),
    ):
        status = make_status(held, ACCEPTED, counts, {}, EARLY, is_long_vacant=is_long)
        assert judged(status, "Programmed") == said
        held = replace(held, status=status)
    edited = replace(held, generation=held.generation + 1)
    assert judged(make_status(edited, ACCEPTED, Counts(), {}, EARLY), "Programmed") == ("False", "NoPods")


REFUSED = "pods cannot be read (403 Forbidden)"
DOWN = {"default": "unavailable"}


@pytest.mark.parametrize(
    ("spec", "verdict", "counts", "down", "accepted", "programmed"),
    [
        ({}, ACCEPTED, Counts(), {}, ("True", "Accepted"), ("Unknown", "PodsUnreadable")),
        ({}, ACCEPTED, Counts(3, 3, 3), {}, ("True", "Accepted"), ("Unknown", "PodsUnreadable")),
        ({"enable": False}, ACCEPTED, Counts(), {}, ("True", "Accepted"), ("Unknown", "PodsUnreadable")),
        ({}, ACCEPTED, Counts(), DOWN, ("True", "Accepted"), ("False", "RegistryUnavailable")),
        ({}, ASKING, Counts(), {}, ("False", "Pending"), ("False", "Pending")),
        (
            {},
            ACCEPTED,
            Counts(1, 1, 0, {("p1", "default"): (NO_PORT,)}),
            {},
            ("True", "Accepted"),
            ("Unknown", "PodsUnreadable"),
        ),
        (
            {},
            Verdict(accepted=False, reason=Reason.NAME_TAKEN, message="m"),
            Counts(),
            {},
            ("False", "NameTaken"),
            ("False", "NotAccepted"),
        ),
    ],
)
def test_nothing_is_said_of_pods_that_may_not_be_read(
    service: Make,
    *,
    spec: dict[str, Any],
    verdict: Verdict,
    counts: Counts,
    down: dict[str, str],
    accepted: tuple[str, str],
    programmed: tuple[str, str],
) -> None:
    made = service(**spec)
    status = make_status(made, verdict, counts, down, EARLY, unseen=REFUSED)
    assert (judged(status, "Accepted"), judged(status, "Programmed")) == (accepted, programmed)
    assert status["endpoints"] is None
    message = status["conditions"][1]["message"]
    if programmed[1] in ("PodsUnreadable", "NotAccepted"):
        for part in (made.namespace, REFUSED, "get, list and watch pods", "--namespace", "stay"):
            assert part in message
    later = make_status(replace(made, status=status), verdict, counts, down, LATE, unseen=REFUSED)
    assert is_same_status({key: value for key, value in status.items() if value is not None}, later)
    seen = make_status(replace(made, status=status), verdict, counts, down, LATE)
    assert seen["endpoints"]["selected"] == counts.selected
    assert judged(seen, "Programmed")[0] != "Unknown"


def test_what_was_told_of_a_selector_that_matches_nothing_stands_in_the_condition(service: Make) -> None:
    held = service()
    for counts, long, told, is_told in (
        (Counts(), False, False, False),
        (Counts(), True, False, False),
        (Counts(), True, True, True),
        (Counts(2, 0, 0), False, False, False),
    ):
        made = make_status(held, ACCEPTED, counts, {}, EARLY, is_long_vacant=long, is_reported_vacant=told)
        held = replace(held, status=made)
        assert was_reported_vacant(held) == is_told
        assert not was_reported_vacant(replace(held, generation=held.generation + 1)), "of another selector"


def test_pods_that_the_operators_own_selector_leaves_out_are_not_said_to_be_absent(service: Make) -> None:
    status = make_status(service(), ACCEPTED, Counts(), {}, EARLY, pod_selector="tier=grpc")
    assert "among those that the operator's own podSelector (tier=grpc) finds" in status["conditions"][1]["message"]


def test_whoever_has_the_selector_of_a_service_is_not_sent_to_his_own() -> None:
    raw = {**make_raw_service(), "spec": {"serviceRef": {"name": "cart"}}}
    target = parse_target({"metadata": {"uid": "t", "name": "cart"}, "spec": {"selector": {"app": "none"}}})
    named = resolve(parse_service(raw), target)
    assert named.spec
    for is_reported in (False, True):
        status = make_status(named, ACCEPTED, Counts(), {}, EARLY, is_reported_vacant=is_reported)
        assert "; it is that of the Service cart; compare it with" in status["conditions"][1]["message"]
        assert was_reported_vacant(replace(named, status=status)) == is_reported


def test_names_from_etcd_cannot_steer_the_terminal_of_who_describes(service: Make) -> None:
    counts = Counts(1, 1, 0, {("p1", "default"): (Fault("s1", Reason.KEY_TAKEN, "held by \x1b]0;x\x07"),)})
    message = make_status(service(), ACCEPTED, counts, {}, EARLY)["conditions"][1]["message"]
    assert message == r"held by \x1b]0;x\x07"


def test_a_message_is_no_longer_than_the_api_server_takes_it(service: Make) -> None:
    made = make_status(
        service(), Verdict(accepted=False, reason=Reason.INVALID_SPEC, message="\x00" * 40_000), Counts(), {}, ""
    )
    assert {len(each["message"]) for each in made["conditions"] if each["type"] == "Accepted"} == {32_768}


@pytest.mark.parametrize(
    ("spec", "counts", "down", "told"),
    [
        ({}, Counts(1, 0, 0), {}, "none of 1 Pods is ready"),
        ({}, Counts(), {}, "the selector matches no Pod any more"),
        ({"enable": False}, Counts(1, 1, 0), {}, "spec.enable is false: all endpoints are deleted"),
        ({}, Counts(1, 1, 0), {}, None),  # its keys are being written
        ({}, Counts(1, 1, 0), {"default": "down"}, None),
        ({}, Counts(1, 1, 0, {("p1", "default"): (DENIED,)}), {}, None),  # in one layout of several, perhaps
        ({}, Counts(1, 1, 0, {("p1", "default"): (NO_PORT,)}, standing=1), {}, None),
    ],
)
def test_the_last_pod_is_called_gone_only_where_no_key_is_missing_for_another_reason(
    service: Make, spec: dict[str, Any], counts: Counts, down: dict[str, str], told: str | None
) -> None:
    before = make_status(service(**spec), ACCEPTED, Counts(1, 1, 1), {}, EARLY)
    after = make_status(replace(service(**spec), status=before), ACCEPTED, counts, down, LATE)
    change = judge_registrations(before, after)
    assert change == (told and (Reason.DEREGISTERED, f"no Pod is registered any more: {told}"))

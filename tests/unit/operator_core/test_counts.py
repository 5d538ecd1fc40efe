"""Counts that are kept change by change equal counts that are recreated from everything."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpc_etcd_operator.core.counts import EndpointCounts
from grpc_etcd_operator.core.desired import Fault
from grpc_etcd_operator.core.reasons import Reason
from grpc_etcd_operator.core.resync import ObjectRef, find_vanished, is_delivered, is_slip, needs_safeguard

SERVICES, PODS, REGISTRIES = ("s1", "s2"), ("p1", "p2", "p3"), ("default", "second")
steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("selected"), st.sampled_from(PODS), st.dictionaries(st.sampled_from(SERVICES), st.booleans())
        ),
        st.tuples(
            st.just("registered"),
            st.sampled_from(PODS),
            st.sampled_from(REGISTRIES),
            st.frozensets(st.sampled_from(SERVICES)),
        ),
        st.tuples(
            st.just("faults"),
            st.sampled_from(PODS),
            st.sampled_from(REGISTRIES),
            st.lists(st.sampled_from(SERVICES), max_size=2, unique=True),
        ),
    ),
    max_size=30,
)
WANTING = dict.fromkeys(SERVICES, REGISTRIES)


@given(steps)
def test_counts_are_those_of_the_last_word_on_each_pod(taken: list[tuple[Any, ...]]) -> None:
    endpoint_counts = EndpointCounts()
    selected: dict[str, dict[str, bool]] = {}
    registered: dict[tuple[str, str], frozenset[str]] = {}
    faulty: dict[tuple[str, str], list[str]] = {}
    for kind, pod, *rest in taken:
        if kind == "selected":
            selected[pod] = rest[0]
            endpoint_counts.note_selected(pod, rest[0])
        elif kind == "registered":
            registered[pod, rest[0]] = rest[1]
            endpoint_counts.note_registered(pod, rest[0], rest[1], WANTING)
        else:
            faulty[pod, rest[0]] = rest[1]
            endpoint_counts.note_faults(pod, rest[0], [Fault(each, Reason.KEY_TAKEN, "") for each in rest[1]], SERVICES)
    for service in SERVICES:
        counts = endpoint_counts.counts(service)
        assert counts.selected == sum(service in each for each in selected.values())
        assert counts.ready == sum(each.get(service, False) for each in selected.values())
        whole = [pod for pod in PODS if all(service in registered.get((pod, each), ()) for each in REGISTRIES)]
        assert counts.registered == len(whole)
        assert [pod for pod in PODS if endpoint_counts.is_registered(pod, service)] == whole
        assert set(counts.faults) == {unit for unit, found in faulty.items() if service in found}
    for registry in REGISTRIES:
        wanted = sum(len(found) for (_, where), found in faulty.items() if where == registry)
        assert endpoint_counts.count_faults(registry, Reason.KEY_TAKEN) == wanted
        for service in SERVICES:
            here = [pod for pod in PODS if service in registered.get((pod, registry), ())]
            ready = [pod for pod in here if selected.get(pod, {}).get(service)]
            assert endpoint_counts.count_written(registry)[service] == len(ready)


@pytest.mark.parametrize("reason", [Reason.KEY_SHARED, Reason.KEY_TAKEN, Reason.RATE_LIMITED])
def test_a_pod_that_is_not_written_for_no_fault_of_the_registry_is_not_missing(reason: Reason) -> None:
    endpoint_counts = EndpointCounts()
    for pod, written in (("whole", frozenset()), ("in part", frozenset({"s1"}))):
        endpoint_counts.note_selected(pod, {"s1": True})
        endpoint_counts.note_registered(pod, "default", written, {"s1": ("default",)})
        endpoint_counts.note_faults(pod, "default", [Fault("s1", reason, "")], ["s1"])
    assert (endpoint_counts.count_written("default")["s1"], endpoint_counts.count_excused("default")["s1"]) == (1, 1)


uids = st.frozensets(st.sampled_from("abcdef"))


@given(uids, uids)
def test_what_a_list_lacks_is_found(listed: frozenset[str], known: frozenset[str]) -> None:
    found = find_vanished(listed, {uid: ObjectRef(uid, "shop", uid) for uid in known})
    assert {each.uid for each in found} == known - listed


@pytest.mark.parametrize(
    ("before", "now", "delivered"),
    [
        (None, None, False),  # never told of
        (None, "7", True),  # told of meanwhile
        ("7", "7", True),
        ("5", "7", True),
        ("5", "9", True),  # changed since the list
        ("9", "6", True),  # told again, as by a watch that began with a list
        ("5", "5", False),  # a change was missed
        ("9", "9", False),  # of a history that is no more
        ("7", None, False),  # forgotten meanwhile
    ],
)
def test_what_is_remembered_in_another_version_than_a_list_has_it_was_missed_unless_it_has_changed_meanwhile(
    before: str | None, now: str | None, *, delivered: bool
) -> None:
    assert is_delivered(ObjectRef("u1", "shop", "u1", "7"), before, now) is delivered


@given(st.integers(0, 100), st.integers(0, 100))
def test_the_brake_holds_when_more_than_ten_and_more_than_half_would_go(deregistered: int, total: int) -> None:
    assert needs_safeguard(deregistered, total) == (deregistered > 10 and 2 * deregistered > total)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30))
def test_a_selector_that_leaves_out_most_or_all_of_several_pods_is_taken_for_a_slip(
    left_out: int, others: int, services: int
) -> None:
    pods = left_out + others
    most = left_out > 10 and 2 * left_out > pods + services
    assert is_slip(left_out, pods, pods + services) == (most or (left_out > 1 and others == 0))

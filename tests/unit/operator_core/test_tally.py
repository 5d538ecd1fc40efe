"""Counts that are kept change by change equal counts that are made anew from everything."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from grpc_etcd_operator.core.desired import Fault
from grpc_etcd_operator.core.sweeps import Seen, compare_with_list, needs_brake
from grpc_etcd_operator.core.tally import Tally

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
    tally = Tally()
    selected: dict[str, dict[str, bool]] = {}
    registered: dict[tuple[str, str], frozenset[str]] = {}
    faulty: dict[tuple[str, str], list[str]] = {}
    for kind, pod, *rest in taken:
        if kind == "selected":
            selected[pod] = rest[0]
            tally.note_selected(pod, rest[0])
        elif kind == "registered":
            registered[pod, rest[0]] = rest[1]
            tally.note_registered(pod, rest[0], rest[1], WANTING)
        else:
            faulty[pod, rest[0]] = rest[1]
            tally.note_faults(pod, rest[0], [Fault(each, "KeyTaken", "") for each in rest[1]], SERVICES)
    for service in SERVICES:
        counts = tally.counts(service)
        assert counts.selected == sum(service in each for each in selected.values())
        assert counts.ready == sum(each.get(service, False) for each in selected.values())
        whole = [pod for pod in PODS if all(service in registered.get((pod, each), ()) for each in REGISTRIES)]
        assert counts.registered == len(whole)
        assert [pod for pod in PODS if tally.is_registered(pod, service)] == whole
        assert set(counts.faults) == {unit for unit, found in faulty.items() if service in found}
    for registry in REGISTRIES:
        wanted = sum(len(found) for (_, where), found in faulty.items() if where == registry)
        assert tally.count_faults(registry, "KeyTaken") == wanted


uids = st.frozensets(st.sampled_from("abcdef"))


@given(uids, uids)
def test_a_list_is_compared_with_memory(listed: frozenset[str], known: frozenset[str]) -> None:
    found = compare_with_list(listed, {uid: Seen(uid, "shop", uid) for uid in known})
    assert set(found.unseen) == listed - known
    assert {each.uid for each in found.vanished} == known - listed


@given(st.integers(0, 100), st.integers(0, 100))
def test_the_brake_holds_when_more_than_ten_and_more_than_half_would_go(withdrawn: int, total: int) -> None:
    assert needs_brake(withdrawn, total) == (withdrawn > 10 and 2 * withdrawn > total)

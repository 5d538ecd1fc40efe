"""Ready means: condition Ready is True, no deletionTimestamp, phase Running, a podIP; our own gate does not count."""

import gc
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpc_etcd_operator.core.pods import GATE, MOST_PORTS, Pod, Port, find_port, take_out_of_scope

RawPod = Callable[..., dict[str, Any]]
ReadPod = Callable[..., Pod]
OTHER_GATE = "example.com/warm"
states = st.sampled_from(["True", "False", "Unknown", None])


def set_conditions(raw: dict[str, Any], found: dict[str, str | None]) -> None:
    raw["status"]["conditions"] = [{"type": kind, "status": state} for kind, state in found.items() if state]


@given(
    phase=st.sampled_from(["Pending", "Running", "Succeeded", "Failed", "Unknown", None]),
    ready=states,
    ip=st.sampled_from(["10.0.0.1", "fd00::1", "", None]),
    deleted=st.sampled_from([{"seconds": 1_767_225_609}, None]),
    publish=st.booleans(),
)
def test_a_pod_serves_only_when_all_say_so(
    raw_pod: RawPod,
    read_pod: ReadPod,
    *,
    phase: str | None,
    ready: str | None,
    ip: str | None,
    deleted: dict[str, int] | None,
    publish: bool,
) -> None:
    raw = raw_pod(ip=ip, deletionTimestamp=deleted)
    set_conditions(raw, {"Ready": ready, "ContainersReady": "True"})
    raw["status"]["phase"] = phase
    wanted = phase == "Running" and bool(ip) and not deleted and (publish or ready == "True")
    assert read_pod(raw).is_serving(publish_not_ready=publish) == wanted


@given(ready=states, containers=states, ours=states, other=states, has_other=st.booleans())
def test_our_own_gate_is_left_out_of_the_judgement(
    raw_pod: RawPod,
    read_pod: ReadPod,
    *,
    ready: str | None,
    containers: str | None,
    ours: str | None,
    other: str | None,
    has_other: bool,
) -> None:
    raw = raw_pod()
    raw["spec"]["readinessGates"] = [{"conditionType": each} for each in (GATE, *([OTHER_GATE] * has_other))]
    set_conditions(raw, {"Ready": ready, "ContainersReady": containers, GATE: ours, OTHER_GATE: other})
    pod = read_pod(raw)
    assert pod.is_serving() == (containers == "True" and (other == "True" or not has_other))
    assert pod.gate_open == (ours == "True")
    assert pod.gated


def test_a_pod_of_which_nothing_is_known_yet_is_not_ready(read_pod: ReadPod) -> None:
    pod = read_pod({"metadata": {"uid": "u", "namespace": "shop", "name": "new"}})
    assert not pod.is_serving()
    assert not pod.is_serving(publish_not_ready=True)


def test_changes_that_matter_to_nobody_leave_an_equal_pod(raw_pod: RawPod, read_pod: ReadPod) -> None:
    noisy = raw_pod(resourceVersion="9", managedFields=[{"manager": "kubelet"}], annotations={"other": "thing"})
    noisy["status"]["containerStatuses"] = [{"restartCount": 3}]
    noisy["status"]["conditions"].append({"type": "PodScheduled", "status": "True"})
    assert read_pod(noisy) == read_pod(raw_pod())
    assert read_pod(raw_pod(annotations={"grpc-etcd.dev/weight": "7"})) != read_pod(raw_pod())


@given(
    phases=st.tuples(st.sampled_from(["Pending", "Running"]), st.sampled_from(["Running", "Failed"])),
    ips=st.tuples(st.sampled_from(["", "10.0.0.1"]), st.sampled_from(["10.0.0.1", "10.0.0.2"])),
    readiness=st.tuples(states, states),
    versions=st.tuples(st.sampled_from(["1", "2"]), st.sampled_from(["1", "2"])),
    deleted=st.sampled_from([{"seconds": 1_767_225_609}, None]),
)
def test_what_is_known_of_a_pod_hides_no_change(
    raw_pod: RawPod,
    read_pod: ReadPod,
    *,
    phases: tuple[str, str],
    ips: tuple[str, str],
    readiness: tuple[str | None, str | None],
    versions: tuple[str, str],
    deleted: dict[str, int] | None,
) -> None:
    before, after = (
        raw_pod(ip=ip, labels={"app": "greeter", "version": version}, deletionTimestamp=at)
        for ip, version, at in zip(ips, versions, (None, deleted), strict=True)
    )
    for raw, phase, ready in zip((before, after), phases, readiness, strict=True):
        raw["status"]["phase"] = phase
        set_conditions(raw, {"Ready": ready, "ContainersReady": "True"})
    assert read_pod(after, read_pod(before)) == read_pod(after)


def test_a_pod_without_a_uid_is_refused(raw_pod: RawPod, read_pod: ReadPod) -> None:
    with pytest.raises(ValueError, match="shop/pod- has no UID"):
        read_pod(raw_pod(""))


@pytest.mark.parametrize(
    ("ports", "wanted", "found"),
    [
        ({"grpc": 1, "admin": 2}, None, 1),
        ({"web": 1}, None, 1),
        ({"web": 1, "admin": 2}, None, None),
        ({}, None, None),
        ({"grpc": 1, "admin": 2}, "admin", 2),
        ({"grpc": 1}, "admin", None),
        ({}, 9000, 9000),
    ],
)
def test_a_port_is_found_by_name_number_or_default(
    ports: dict[str, int], wanted: str | int | None, found: int | None
) -> None:
    assert find_port(tuple(Port(name, number) for name, number in ports.items()), wanted) == found


def test_ports_of_sidecars_count_and_those_of_other_init_containers_and_protocols_do_not(
    raw_pod: RawPod, read_pod: ReadPod
) -> None:
    raw = raw_pod(ports={"web": 1})
    raw["spec"]["containers"][0]["ports"].append({"name": "grpc", "containerPort": 2, "protocol": "UDP"})
    raw["spec"]["initContainers"] = [
        {"restartPolicy": "Always", "ports": [{"name": "grpc", "containerPort": 3}]},
        {"ports": [{"name": "admin", "containerPort": 4}]},
    ]
    pod = read_pod(raw)
    assert (find_port(pod.ports, None), find_port(pod.ports, "admin")) == (3, None)


def read_many_ports(raw_pod: RawPod, read_pod: ReadPod, count: int, first: int = 1) -> Pod:
    raw = raw_pod(f"many-{first}")
    raw["spec"]["containers"][0]["ports"] += [{"containerPort": number} for number in range(first, first + count)]
    return read_pod(raw)


def test_a_pod_takes_little_memory_however_many_ports_it_declares(raw_pod: RawPod, read_pod: ReadPod) -> None:
    pod = read_many_ports(raw_pod, read_pod, 100_000)
    assert (len(pod.ports), find_port(pod.ports, None)) == (MOST_PORTS, 9000)


def test_pods_with_many_ports_leave_nothing_behind(raw_pod: RawPod, read_pod: ReadPod) -> None:
    """A namespace may hold one Pod at a time, and each another list of ports."""
    read_many_ports(raw_pod, read_pod, MOST_PORTS, 0)
    tracemalloc.start()
    try:
        for first in range(1, 20):
            read_many_ports(raw_pod, read_pod, MOST_PORTS, first)
        gc.collect()
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 100_000


@pytest.mark.parametrize(
    ("ports", "probes", "found"),
    [
        ({}, {"readinessProbe": 8080}, 8080),
        ({}, {"livenessProbe": 8080}, 8080),
        ({}, {"startupProbe": 8080}, 8080),
        ({"web": 1, "api": 2}, {"readinessProbe": 2}, 2),
        ({"web": 1, "api": 2}, {"readinessProbe": 3}, 3),
        ({"web": 1, "api": 2}, {"readinessProbe": 3, "livenessProbe": 2}, 3),
        ({"web": 1}, {"readinessProbe": 3}, 1),  # the only one that is declared; health is served on a port of its own
        ({"grpc": 1, "api": 2}, {"readinessProbe": 2}, 1),
        ({"web": 1, "api": 2}, {}, None),
    ],
)
def test_the_port_of_a_grpc_probe_counts_where_the_declared_ports_leave_a_doubt(
    raw_pod: RawPod, read_pod: ReadPod, ports: dict[str, int], probes: dict[str, int], found: int | None
) -> None:
    raw = raw_pod()
    raw["spec"]["containers"][0]["ports"] = [{"name": name, "containerPort": port} for name, port in ports.items()]
    raw["spec"]["containers"][0] |= {name: {"handler": {"grpc": {"port": port}}} for name, port in probes.items()}
    assert find_port(read_pod(raw).ports, None) == found


def test_probes_of_several_containers_that_differ_leave_the_doubt(raw_pod: RawPod, read_pod: ReadPod) -> None:
    raw = raw_pod(ports={})
    raw["spec"]["containers"] = [{"readinessProbe": {"handler": {"grpc": {"port": port}}}} for port in (1, 2)]
    assert find_port(read_pod(raw).ports, None) is None
    raw["spec"]["containers"] = [{"readinessProbe": {"handler": {"grpc": {"port": 1}}}}, {"readinessProbe": {}}]
    assert find_port(read_pod(raw).ports, None) == 1


def gated(raw_pod: RawPod, *, gate_at: int | None, ready: str, ready_at: int, reason: str = "") -> dict[str, Any]:
    raw = raw_pod()
    raw["spec"]["readinessGates"] = [{"conditionType": GATE}]
    raw["status"]["conditions"] = [
        {"type": "ContainersReady", "status": "True", "lastTransitionTime": {"seconds": 1}},
        {"type": "Ready", "status": ready, "lastTransitionTime": {"seconds": ready_at}, "reason": reason},
    ]
    if gate_at is not None:
        opened = {"type": GATE, "status": "True", "lastTransitionTime": {"seconds": gate_at}}
        raw["status"]["conditions"].append(opened)
    return raw


WAITING = "ReadinessGatesNotReady"


@pytest.mark.parametrize(
    ("gate_at", "ready", "ready_at", "reason", "is_ready"),
    [
        (None, "False", 5, WAITING, True),  # waits for our gate
        (9, "False", 5, WAITING, True),  # the gate has opened, the kubelet has not looked yet
        (5, "False", 5, WAITING, True),  # all within a second
        (5, "False", 5, "", True),
        (5, "False", 9, WAITING, True),  # the kubelet's clock is ahead of ours
        (5, "True", 6, "", True),
        (5, "False", 50, "", False),  # the node died
        (5, "Unknown", 50, "", False),
        (5, "False", 50, "ContainersNotReady", False),
    ],
)
def test_of_a_pod_whose_gate_has_opened_a_later_false_counts(
    raw_pod: RawPod, read_pod: ReadPod, *, gate_at: int | None, ready: str, ready_at: int, reason: str, is_ready: bool
) -> None:
    raw = gated(raw_pod, gate_at=gate_at, ready=ready, ready_at=ready_at, reason=reason)
    assert read_pod(raw).ready == is_ready


@pytest.mark.parametrize("ready_at", [5, 4, 50])
def test_a_pod_that_was_ready_under_an_open_gate_is_judged_by_ready_whatever_the_clocks_say(
    raw_pod: RawPod, read_pod: ReadPod, ready_at: int
) -> None:
    known = read_pod(gated(raw_pod, gate_at=5, ready="True", ready_at=5))
    dead = read_pod(gated(raw_pod, gate_at=5, ready="False", ready_at=ready_at), known)
    assert not dead.ready
    again = gated(raw_pod, gate_at=5, ready="False", ready_at=ready_at)
    assert not read_pod(again, dead).ready, "and stays so"
    back = read_pod(gated(raw_pod, gate_at=5, ready="True", ready_at=60), dead)
    assert back.ready


def test_a_gate_that_closes_and_opens_again_waits_for_the_kubelet_anew(raw_pod: RawPod, read_pod: ReadPod) -> None:
    known = read_pod(gated(raw_pod, gate_at=5, ready="True", ready_at=6))
    closed = read_pod(gated(raw_pod, gate_at=None, ready="False", ready_at=7, reason=WAITING), known)
    assert closed.ready
    assert read_pod(gated(raw_pod, gate_at=9, ready="False", ready_at=7, reason=WAITING), closed).ready


def test_a_pod_out_of_scope_serves_nobody_and_comes_back_as_it_was(raw_pod: RawPod, read_pod: ReadPod) -> None:
    pod = read_pod(raw_pod())
    outside = take_out_of_scope(pod)
    assert not outside.is_serving(publish_not_ready=True)
    assert read_pod(raw_pod(), outside) == pod

"""What is wrong with GrpcServices and their Pods, from facts alone: selectors, ports, conditions, keys, gates."""

import socket
import time
from contextlib import ExitStack
from dataclasses import replace
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpc_etcd.cli.check import print_findings
from grpc_etcd.inspect.causes import REFUSED, put_causes_first
from grpc_etcd.inspect.cluster import (
    ClusterFacts,
    Condition,
    ContainerPort,
    Denied,
    Deployment,
    PodFacts,
    ServiceFacts,
    TargetFacts,
    matches,
)
from grpc_etcd.inspect.cluster_checks import find_cluster_faults
from grpc_etcd.inspect.codes import Code
from grpc_etcd.inspect.findings import Finding
from grpc_etcd.inspect.kubernetes import read_skew
from grpc_etcd.inspect.operators import Leader, OperatorFacts, Owned
from grpc_etcd.inspect.probes import KNOCK_SECONDS, knock
from grpc_etcd.inspect.registration_checks import find_registration_faults, settled, unregistered_pods
from grpc_etcd.inspect.service_checks import find_service_faults
from testbed.conditions import free_port

GRPC = ContainerPort("grpc", 50051)
POD = PodFacts(
    namespace="shop",
    name="p",
    uid="p",
    labels={"app": "greeter"},
    ports=(GRPC,),
    ip="10.0.0.1",
    running=True,
    ready=True,
)
SERVICE = ServiceFacts(
    namespace="shop",
    name="greeter",
    uid="s",
    observed=0,
    registry_name="greeter",
    selector={"matchLabels": {"app": "greeter"}},
)
READY = Deployment("grpc-etcd", "grpc-etcd-operator", 2, 2)
CLUSTER = ClusterFacts(namespace="shop", services=(SERVICE,), pods=(POD,), deployments=(READY,), uid="k")
OWNED = Owned("c1", "p", "shop", "p", ("shop/greeter",), (b"/jupiter/greeter/providers/grpc://10.0.0.1:50051",))
OPERATORS = OperatorFacts((Leader("c1", kube_system="k"),), (OWNED,), {"c1": "k"})


def find(cluster: ClusterFacts = CLUSTER, operators: OperatorFacts | None = OPERATORS) -> dict[Code, Finding]:
    found = [*find_service_faults(cluster), *find_registration_faults(cluster, operators)]
    return {each.code: each for each in found}


def of_service(pods: tuple[PodFacts, ...] = (POD,), **fields: Any) -> dict[Code, Finding]:
    cluster = replace(CLUSTER, services=(replace(SERVICE, **fields),), pods=pods)
    return {each.code: each for each in find_service_faults(cluster)}


def test_a_service_in_order_gives_nothing() -> None:
    assert find() == {}


def test_the_service_that_is_named_is_looked_at_instead_of_its_selector() -> None:
    missing = {"Accepted": Condition("False", "ServiceNotFound", "there is no Service cart")}
    lacking = replace(SERVICE, selector={}, service_ref="cart", conditions=missing)
    seen = replace(CLUSTER, services=(lacking,), targets=(TargetFacts("shop", "kart", {"app": "greeter"}),))
    (found,) = find_service_faults(seen)
    assert (found.code, "the closest is kart" in found.problem) == (Code.SERVICE_NOT_FOUND, True)
    (found,) = find_service_faults(replace(seen, targets=(), denied=(Denied("services", "shop"),)))
    assert "ServiceNotFound: there is no Service cart" in found.problem, "what the operator sees is taken over"
    resolved = of_service(selector={"matchLabels": {"app": "gretter"}}, service_ref="cart")
    assert resolved[Code.NO_PODS].remedy == "kubectl -n shop edit service cart"


@pytest.mark.parametrize(
    ("labels", "words", "remedy"),
    [
        ({"app": "gretter"}, "no Pod has the label app=gretter; the closest is app=greeter", '{"app": "greeter"}'),
        (
            {"ap": "greeter"},
            "no Pod has the label ap=greeter; the closest is app=greeter",
            '{"app": "greeter", "ap": null}',
        ),
        ({"x": "unlike"}, "or a similar one; Pods there have app=greeter", "get pods --show-labels"),
        ({"app": "greeter", "tier": "b"}, "no Pod has the label tier=b", "get pods --show-labels"),
    ],
)
def test_a_selector_that_finds_nothing(labels: dict[str, str], words: str, remedy: str) -> None:
    found = of_service(selector={"matchLabels": labels})[Code.NO_PODS]
    assert words in found.problem
    assert remedy in found.remedy


def test_labels_that_no_pod_has_at_once_and_a_namespace_without_pods() -> None:
    other = replace(POD, labels={"tier": "b"})
    wanted = {"matchLabels": {"app": "greeter", "tier": "b"}}
    assert "at once" in of_service((POD, other), selector=wanted)[Code.NO_PODS].problem
    assert "there is no Pod" in of_service(())[Code.NO_PODS].problem
    assert Code.NO_PODS not in of_service((), enable=False)


def test_ports() -> None:
    assert "has the port 'http'; they have grpc (50051)" in of_service(port="http")[Code.NO_PORT].problem
    assert '{"port": "grpc"}' in of_service(port="http")[Code.NO_PORT].remedy
    unnamed = replace(POD, ports=(ContainerPort("", 1), ContainerPort("", 2)))
    assert "has a port that can be chosen" in of_service((unnamed,))[Code.NO_PORT].problem
    assert "1 of 2 Pods" in of_service((POD, replace(POD, ports=())))[Code.SOME_WITHOUT_PORT].problem
    assert "they declare grpc (50051)" in of_service(port=9)[Code.UNDECLARED_PORT].problem


def test_pods_of_which_none_is_ready() -> None:
    unready = replace(POD, ready=False)
    assert of_service((unready,)).keys() == {Code.NO_READY_PODS}
    assert of_service((unready,), publish_not_ready=True) == {}


@pytest.mark.parametrize("status", ["False", "Unknown"])
def test_a_condition_has_its_code_its_words_and_a_command(status: str) -> None:
    words = "the name greeter belongs to the GrpcService other/greeter"
    found = of_service(conditions={"Accepted": Condition(status, "NameTaken", words)})[Code.NAME_TAKEN]
    assert words in found.problem
    assert '{"name": "shop-greeter"}' in found.remedy
    assert of_service(conditions={"Accepted": Condition("True", "Accepted", "")}) == {}


def test_a_reason_of_a_later_version_is_reported_all_the_same() -> None:
    found = of_service(conditions={"Programmed": Condition("False", "Novel", "words")})[Code.OTHER_REASON]
    assert "Novel: words" in found.problem


def test_what_a_tenant_wrote_is_no_command_to_type() -> None:
    words = "the metadata cannot be stored: etcdctl role grant-permission ROLE --prefix=true readwrite /"
    assert (
        "etcdctl"
        not in of_service(conditions={"Programmed": Condition("False", "Unwritable", words)})[Code.UNWRITABLE].remedy
    )


def test_a_status_of_an_older_spec_says_nothing() -> None:
    stale: dict[str, Any] = {
        "generation": 2,
        "observed": 1,
        "conditions": {"Accepted": Condition("False", "InvalidSpec", "x")},
    }
    assert of_service(**stale) == {}
    assert of_service(**stale, age_seconds=31.0).keys() == {Code.NOT_SEEN}


def test_a_ready_pod_without_keys_and_why() -> None:
    nothing = replace(OPERATORS, owned=())
    assert "no reason is recorded" in find(CLUSTER, nothing)[Code.NOT_REGISTERED].problem
    assert "the registry has no leader" in find(CLUSTER, OperatorFacts())[Code.NOT_REGISTERED].problem
    refused = replace(SERVICE, conditions={"Programmed": Condition("False", "KeyTaken", "by x")})
    assert (
        "(p): KeyTaken, see GE0305" in find(replace(CLUSTER, services=(refused,)), nothing)[Code.NOT_REGISTERED].problem
    )
    others: list[dict[str, Any]] = [{"enable": False}, {"registries": ("other",)}, {"port": "http"}]
    for fields in others:
        changed = replace(SERVICE, **fields)
        assert Code.NOT_REGISTERED not in find(replace(CLUSTER, services=(changed,)), nothing)


def test_pods_that_the_operator_does_not_see() -> None:
    selective = OperatorFacts((Leader("c1", kube_system="k", selector="grpc=yes"),))
    assert "watches only Pods with grpc=yes" in find(CLUSTER, selective)[Code.NOT_REGISTERED].problem


def test_pods_of_jobs_that_have_ended_need_no_port() -> None:
    ended = replace(POD, name="job", uid="j", ports=(), running=False, ready=False, ended=True)
    assert of_service((POD, ended)) == {}


def test_the_registry_is_called_as_the_leader_calls_it() -> None:
    main = replace(SERVICE, registries=("main",))
    led = OperatorFacts((Leader("c1", kube_system="k", registry="main"),))
    assert Code.NOT_REGISTERED in find(replace(CLUSTER, services=(main,)), led)


def test_keys_of_pods_that_ought_to_have_none() -> None:
    assert Code.REGISTERED_UNREADY in find(replace(CLUSTER, pods=(replace(POD, ready=False),)))
    assert Code.REGISTERED_GONE in find(replace(CLUSTER, pods=()))
    draining = replace(CLUSTER, services=(replace(SERVICE, drains=True),), pods=(replace(POD, terminating=True),))
    assert Code.REGISTERED_UNREADY not in find(draining)
    anothers = replace(OPERATORS, owned=(OWNED._replace(cluster="c2", uid="other"), OWNED))
    assert find(CLUSTER, anothers).keys() == {Code.LEFT_BEHIND}, "the keys of a Kubernetes cluster without an operator"
    led = replace(anothers, leaders=(*anothers.leaders, Leader("c2", kube_system="k2")))
    assert find(CLUSTER, led) == {}, "the keys of another Kubernetes cluster"
    unread = replace(CLUSTER, pods=(), denied=(Denied("pods", "shop"),))
    assert Code.REGISTERED_GONE not in find(unread)


def test_records_of_pods_whose_keys_are_gone() -> None:
    emptied = replace(OPERATORS, owned=(OWNED._replace(keys=()),))
    assert find(CLUSTER, emptied).keys() == {Code.NOT_REGISTERED}
    assert find(replace(CLUSTER, pods=()), emptied).keys() == {Code.NO_PODS}, "nothing is left over"


def test_of_a_spec_that_is_refused_nothing_is_missed() -> None:
    refused = replace(SERVICE, conditions={"Accepted": Condition("False", "NameTaken", "x")})
    found = find(replace(CLUSTER, services=(refused,)), replace(OPERATORS, owned=()))
    assert found.keys() == {Code.NAME_TAKEN}


def test_pods_of_other_namespaces_are_no_ones_business() -> None:
    foreign = replace(POD, namespace="team")
    assert "there is no Pod" in of_service((foreign,))[Code.NO_PODS].problem


def test_the_operators_word_counts_where_pods_may_not_be_read() -> None:
    said = replace(SERVICE, conditions={"Programmed": Condition("False", "NoPods", "words of the operator")})
    cluster = replace(CLUSTER, services=(said,), pods=(), denied=(Denied("pods", "shop"),))
    assert "words of the operator" in find(cluster)[Code.NO_PODS].problem
    seen = [each for each in find_service_faults(replace(CLUSTER, services=(said,))) if each.code is Code.NO_PODS]
    assert seen == [], "its word is of some time ago: now there are Pods"


def test_an_empty_selector_selects_nothing() -> None:
    assert not matches({}, {"app": "greeter"})
    assert not matches({"matchLabels": {}}, {})


def test_whose_leader_is_not_known() -> None:
    ours, theirs = Leader("c1"), Leader("c2", kube_system="z")
    unknown = OperatorFacts((ours, theirs))
    assert unknown.leaders_of(CLUSTER) == (ours,), "the other is another Kubernetes cluster's"
    assert unknown.leaders_of(replace(CLUSTER, uid="")) == (ours, theirs)


def test_what_concerns_many_grpcservices_alike_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    """With eight GrpcServices, an etcd that was full gave eight times the same lines before what else was wrong."""
    alike = [
        Finding(Code.REGISTRY_UNAVAILABLE, f"GrpcService shop/s{number}", "etcd is full", "x") for number in range(8)
    ]
    other = Finding(Code.REGISTRY_UNAVAILABLE, "GrpcService shop/t", "etcd is away", "y")
    print_findings([alike[0], other, *alike[1:]])
    first, _, second, *_ = capsys.readouterr().out.splitlines()
    assert first == "error GE0507: GrpcService shop/s0, shop/s1, shop/s2 and 5 more: etcd is full"
    assert second == "error GE0507: GrpcService shop/t: etcd is away"


def test_nobody_leads_or_not_this_namespace() -> None:
    assert find(CLUSTER, replace(OPERATORS, leaders=()))[Code.NO_LEADER].remedy.startswith("kubectl -n grpc-etcd logs")
    foreign = replace(OPERATORS, leaders=(Leader("c9", kube_system="z"),))
    assert "check that it is the etcd in the operator's settings" in find(CLUSTER, foreign)[Code.NO_LEADER].problem
    assert "there are leaders for c9" in find(replace(CLUSTER, deployments=()), foreign)[Code.NO_LEADER].problem
    elsewhere = replace(CLUSTER, services=(replace(SERVICE, registries=("other",)),))
    assert Code.NO_LEADER not in find(elsewhere, replace(OPERATORS, leaders=())), "it needs nobody in this registry"
    narrow = replace(OPERATORS, leaders=(Leader("c1", namespaces=("team",)),))
    assert find(CLUSTER, narrow)[Code.NOT_SERVED].remedy.endswith("'watchNamespaces={team,shop}'")
    two = replace(CLUSTER, services=(SERVICE, replace(SERVICE, namespace="bank")))
    remedies = {each.remedy for each in find_registration_faults(two, narrow) if each.code is Code.NOT_SERVED}
    assert [each.rpartition("=")[2] for each in remedies] == ["{team,shop,bank}'"], "the one command serves both"


def test_gates() -> None:
    waiting = replace(POD, gate=Condition("False", "PortNotFound", "no port"))
    cluster = replace(CLUSTER, pods=(waiting,))
    assert "its gate is closed: PortNotFound: no port" in find(cluster)[Code.GATE_WAITING].problem
    silent = replace(CLUSTER, pods=(replace(POD, gate=Condition("")),))
    can_patch = "kubectl -n shop auth can-i patch pods --subresource=status --as system:serviceaccount:"
    assert find(silent)[Code.GATE_WAITING].remedy == f"{can_patch}grpc-etcd:grpc-etcd-operator"
    elsewhere = replace(silent, deployments=(READY._replace(namespace="till", account="own"),))
    assert find(elsewhere)[Code.GATE_WAITING].remedy == f"{can_patch}till:own"
    unseen = replace(CLUSTER, pods=(replace(POD, gate=Condition("")),), services=())
    picky, narrow = (
        replace(OPERATORS, leaders=(leader,))
        for leader in (Leader("c1", selector="a=b"), Leader("c1", namespaces=("team",)))
    )
    assert "watches only Pods with a=b (its podSelector)" in find(unseen, picky)[Code.GATE_WAITING].problem
    assert "serves only team" in find(unseen, narrow)[Code.GATE_WAITING].problem
    assert find(unseen, narrow)[Code.GATE_WAITING].remedy.endswith("'watchNamespaces={team,shop}'")
    assert Code.GATE_WITHOUT_OPERATOR in find(cluster, replace(OPERATORS, leaders=()))
    down = replace(cluster, deployments=(READY._replace(ready=0),))
    assert {Code.GATE_WITHOUT_OPERATOR, Code.OPERATOR_DOWN} <= find(down, None).keys()
    assert Code.GATE_WAITING not in find(replace(CLUSTER, pods=(replace(waiting, gate=Condition("True")),)))


def test_of_ready_pods_without_keys_those_count_that_were_so_before() -> None:
    late = replace(POD, name="late", uid="late")
    cluster, nothing = replace(CLUSTER, pods=(POD, late)), replace(OPERATORS, owned=())
    assert unregistered_pods(CLUSTER, nothing) == {"p"}
    (found,) = find_registration_faults(cluster, nothing, frozenset({"p"}))
    assert found.problem.startswith("1 ready Pod is not registered (p):")
    assert list(find_registration_faults(cluster, nothing, frozenset({"gone"}))) == []
    (found,) = find_registration_faults(cluster, nothing)
    assert found.problem.startswith("2 ready Pods are not registered (p, late):")


def test_what_passes_counts_when_it_is_found_twice() -> None:
    passing = Finding(Code.NOT_REGISTERED, "a", "1 Pod", "x")
    lasting = Finding(Code.NO_PORT, "a", "p", "x")
    assert settled([passing, lasting], []) == [lasting]
    assert settled([passing], [replace(passing, problem="2 Pods")]) == [passing]


def test_the_cluster_itself() -> None:
    def codes(**fields: Any) -> list[Code]:
        return [each.code for each in find_cluster_faults(replace(CLUSTER, **fields), None, ())]

    assert codes() == []
    assert codes(has_crd=False) == [Code.NO_CRD]
    assert codes(skew_seconds=4.0) == []
    assert codes(skew_seconds=-61.0) == [Code.CLOCK_SKEW]
    assert codes(denied=(Denied("pods", ""), Denied("grpcservices", "shop"))) == [Code.MAY_NOT_READ] * 2


def test_a_name_that_is_in_another_namespace_is_named_with_it() -> None:
    elsewhere = replace(CLUSTER, others=(replace(SERVICE, namespace="team"),))
    (found,) = find_cluster_faults(elsewhere, "greeter", ())
    assert (found.code, found.remedy) == (Code.NO_SUCH_GRPCSERVICE, "grpc-etcd check greeter -n team")
    assert list(find_cluster_faults(elsewhere, "greeter", (SERVICE,))) == []


@given(st.floats(-100, 100), st.floats(0, 2))
def test_a_skew_is_never_reported_as_larger_than_it_is(skew: float, took: float) -> None:
    before = 1_800_000_000.25
    dated = int(before + took / 2 + skew)
    date = formatdate(dated, usegmt=True)
    found = read_skew(date, before, before + took)
    assert abs(found) <= abs(skew) + 1e-6
    assert abs(skew) - abs(found) <= took + 1.01
    assert read_skew(None, before, before + took) == read_skew("x", before, before + took) == 0


REFUSES = Finding(Code.NOT_FROM_HERE, "10.0.0.1:9", f"greeter does not answer this machine ({REFUSED})", "")
NO_RECORDS = Finding(Code.NO_RECORDS, "service 'greeter'", "there are no records", "Check the name.")
NOT_SYNCED = Finding(Code.NOT_SYNCED, "synced key", "there is none", "Check that the operator runs.")


def ordered(*in_etcd: Finding, name: str | None = "greeter", **fields: Any) -> list[Finding]:
    cluster = replace(CLUSTER, services=(replace(SERVICE, **fields),))
    return put_causes_first([*in_etcd, *find_service_faults(cluster)], cluster, name)


def test_a_port_at_which_nothing_listens_is_an_error() -> None:
    (found,) = ordered(REFUSES, port=9)
    assert (found.code, found.is_error) == (Code.NOTHING_LISTENS, True)
    assert "every ready Pod refuses a connection to it (10.0.0.1:9)" in found.problem
    assert '{"port": "grpc"}' in found.remedy


def test_a_port_that_does_not_answer_here_and_may_be_right_is_none() -> None:
    silent = replace(REFUSES, problem="timed out")
    assert [each.code for each in ordered(silent, port=9)] == [Code.NOT_FROM_HERE, Code.UNDECLARED_PORT]
    declared = replace(REFUSES, subject="10.0.0.1:50051")
    assert ordered(declared, port=50051) == [declared]


def test_a_port_that_is_refused_is_known_by_what_a_real_connection_says() -> None:
    address = f"127.0.0.1:{free_port()}"
    assert knock({address}) == {address: REFUSED}


def test_addresses_that_do_not_answer_are_tried_many_at_once() -> None:
    """From outside of a cluster no Pod answers: a registry of 10,000 endpoints took more than five minutes."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("", 0), backlog=0))
        port = listener.getsockname()[1]
        for _ in range(4):  # nobody accepts, and there is no place for more who wait
            waiting = stack.enter_context(socket.socket())
            waiting.settimeout(0)
            waiting.connect_ex(("127.0.0.1", port))
        silent = {f"127.0.{number // 250}.{number % 250 + 1}:{port}" for number in range(640)}
        begun = time.monotonic()
        assert knock(silent) == dict.fromkeys(silent, "timed out")
        assert time.monotonic() - begun < len(silent) / 64 * KNOCK_SECONDS


def test_a_grpcservice_that_finds_no_pod_is_named_before_what_is_missing_in_etcd() -> None:
    cause, effect = ordered(NO_RECORDS, selector={"matchLabels": {"app": "gretter"}})
    assert (cause.code, effect.code) == (Code.NO_PODS, Code.NO_RECORDS)
    assert effect.remedy == "First fix the GrpcService: GE0101."


def test_records_that_are_missing_since_no_pod_is_ready_say_so_at_once() -> None:
    cluster = replace(CLUSTER, services=(SERVICE,), pods=(replace(POD, ready=False),))
    warning, effect = put_causes_first([NO_RECORDS, *find_service_faults(cluster)], cluster, "greeter")
    assert (warning.code, effect.code) == (Code.NO_READY_PODS, Code.NO_RECORDS)
    assert effect.problem == f"there are no records, since {warning.problem}"
    assert effect.remedy == warning.remedy


def test_records_that_are_missing_have_no_cause_in_what_takes_none_away() -> None:
    cluster = replace(CLUSTER, services=(SERVICE,), pods=(POD, replace(POD, ports=())))
    warning, effect = put_causes_first([NO_RECORDS, *find_service_faults(cluster)], cluster, "greeter")
    assert warning.code is Code.SOME_WITHOUT_PORT
    assert "compare etcd's endpoints" in effect.remedy


def test_records_that_are_missing_though_all_is_well_are_elsewhere_and_not_misspelt() -> None:
    (found,) = ordered(NO_RECORDS)
    assert found.remedy.startswith("GrpcService shop/greeter exists: compare etcd's endpoints, prefix and layout")
    assert ordered(NO_RECORDS, name=None) == [NO_RECORDS]


def test_records_that_are_missing_on_purpose_are_no_fault() -> None:
    (found,) = ordered(NO_RECORDS, enable=False)
    assert (found.code, found.is_error) == (Code.DISABLED, False)
    assert '{"enable": true}' in found.remedy


def test_a_synced_key_that_is_missing_has_the_remedy_of_the_operator_that_is() -> None:
    away = Finding(Code.NO_LEADER, "registry default", "there is no leader", "kubectl scale")
    cause, effect = put_causes_first([NOT_SYNCED, away], CLUSTER, None)
    assert (cause, effect) == (away, replace(NOT_SYNCED, remedy="kubectl scale"))
    assert put_causes_first([NOT_SYNCED], CLUSTER, None) == [NOT_SYNCED]

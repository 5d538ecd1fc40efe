"""What `grpc-etcd check` concludes of Pods and reads of the operator is what the operator concludes and writes."""

from typing import Any, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from grpc_etcd.etcd import PermissionDenied
from grpc_etcd.inspect import cluster, conditions
from grpc_etcd.inspect.cluster import GATE, Condition, ServiceFacts, matches
from grpc_etcd.inspect.codes import Code
from grpc_etcd.inspect.conditions import CODES, SILENT
from grpc_etcd.inspect.operators import Leader, Owned, owned_keys, parse_operators
from grpc_etcd.inspect.targets import check_target, parse_target, resolve
from grpc_etcd.registry.own import OwnerRecord, cluster_key, leader_key, owner_key
from grpc_etcd_operator.core import pods, reasons, references, targets
from grpc_etcd_operator.core.scope import Candidate, Fingerprint, Scope, write_holder, write_leader
from grpc_etcd_operator.core.selector import OPERATORS, parse_selector
from grpc_etcd_operator.core.services import parse_service
from grpc_etcd_operator.registry.refusals import grant
from grpc_etcd_operator.sources.json_pods import read_pod
from testbed.examples import examples

KEYS, VALUES = st.sampled_from(["app", "tier", "zone"]), st.sampled_from(["a", "b", ""])
LABELS = st.dictionaries(KEYS, VALUES)
REQUIREMENTS = st.fixed_dictionaries(
    {"key": KEYS, "operator": st.sampled_from(OPERATORS)}, optional={"values": st.lists(VALUES, max_size=2)}
)
SELECTORS = st.fixed_dictionaries({}, optional={"matchLabels": LABELS, "matchExpressions": st.lists(REQUIREMENTS)})
NUMBERS = st.integers(1, 4)
PORTS = st.fixed_dictionaries(
    {"containerPort": NUMBERS, "protocol": st.sampled_from(["TCP", "UDP", ""])},
    optional={"name": st.sampled_from(["grpc", "http", ""])},
)
PROBES = st.one_of(st.builds(lambda port: {"grpc": {"port": port}}, NUMBERS), st.just({"httpGet": {"path": "/"}}))
CONTAINERS = st.fixed_dictionaries(
    {"name": st.just("c"), "ports": st.lists(PORTS, max_size=2)},
    optional={
        "readinessProbe": PROBES,
        "livenessProbe": PROBES,
        "restartPolicy": st.just("Always"),
    },
)
KINDS = ("Ready", "ContainersReady", GATE, "example.com/other")
CONDITIONS = st.lists(
    st.builds(
        lambda kind, status: {"type": kind, "status": status},
        st.sampled_from(KINDS),
        st.sampled_from(["True", "False"]),
    ),
    unique_by=lambda each: each["type"],
)
GATES = st.lists(st.sampled_from([GATE, "example.com/other"]), unique=True)
TIME = "2026-01-01T00:00:00Z"


@st.composite
def raw_pods(draw: st.DrawFn) -> dict[str, Any]:
    metadata = {"name": "p", "namespace": "shop", "uid": "u", "labels": draw(LABELS)}
    if draw(st.booleans()):
        metadata["deletionTimestamp"] = TIME
    gates = [{"conditionType": each} for each in draw(GATES)]
    containers, inits = draw(st.lists(CONTAINERS, max_size=3)), draw(st.lists(CONTAINERS, max_size=2))
    phase, ip = draw(st.sampled_from(["Running", "Pending", "Failed"])), draw(st.sampled_from(["", "10.0.0.1"]))
    return {
        "metadata": metadata,
        "spec": {"containers": containers, "initContainers": inits, "readinessGates": gates},
        "status": {"phase": phase, "podIP": ip, "conditions": draw(CONDITIONS)},
    }


@given(SELECTORS, LABELS)
def test_the_same_pods_are_selected(selector: dict[str, Any], labels: dict[str, str]) -> None:
    faults: list[str] = []
    parsed = parse_selector(selector, faults)
    if not faults:
        assert matches(selector, labels) == parsed.matches(labels)


@settings(max_examples=examples(300))
@given(raw_pods(), st.one_of(st.none(), NUMBERS, st.sampled_from(["grpc", "http"])))
def test_pods_have_the_same_facts(raw: dict[str, Any], wanted: str | int | None) -> None:
    mine, theirs = cluster.parse_pod(raw), pods.parse_pod(read_pod(raw))
    names = ("uid", "namespace", "name", "ip", "running", "terminating")
    assert [getattr(mine, each) for each in names] == [getattr(theirs, each) for each in names]
    assert mine.labels == theirs.labels
    assert [tuple(port) for port in mine.ports] == [
        (port.name, port.number, port.is_probed, port.is_declared) for port in theirs.ports
    ]
    assert cluster.find_port(mine.ports, wanted) == pods.find_port(theirs.ports, wanted)
    assert (mine.gate is not None) == theirs.gated
    if not theirs.gate_open:  # what Ready is worth right after the gate has opened is known to who has seen it before
        assert mine.ready == theirs.ready
        assert mine.is_serving() == theirs.is_serving()


SERVICE_PORTS = st.fixed_dictionaries(
    {"port": NUMBERS},
    optional={
        "targetPort": st.one_of(NUMBERS, st.sampled_from(["grpc", "web", "api"])),
        "name": st.sampled_from(["grpc", "a-grpc", "web", "grpc-web", ""]),
        "appProtocol": st.sampled_from(["kubernetes.io/h2c", "grpc", "http"]),
        "protocol": st.sampled_from(["TCP", "UDP"]),
    },
)
SERVICE_SPECS = st.fixed_dictionaries(
    {"ports": st.lists(SERVICE_PORTS, max_size=3)},
    optional={"selector": LABELS, "type": st.sampled_from(["ClusterIP", "ExternalName"])},
)


@settings(max_examples=examples(300))
@given(spec=SERVICE_SPECS, port=st.one_of(st.none(), NUMBERS), enable=st.booleans())
def test_the_same_is_taken_of_a_service(spec: dict[str, Any], port: int | None, *, enable: bool) -> None:
    service = {"metadata": {"uid": "t", "namespace": "shop", "name": "cart"}, "spec": spec}
    own = {"serviceRef": {"name": "cart"}, "enable": enable} | ({"port": port} if port else {})
    raw = {"metadata": {"uid": "s", "namespace": "shop", "name": "greeter"}, "spec": own}
    mine = parse_target(service)
    assert mine
    seen = resolve(cluster.parse_service(raw), [mine])
    theirs = references.resolve(parse_service(raw), targets.parse_target(service))
    assert (seen.is_resolved or not enable) == (theirs.spec is not None)
    if not seen.is_resolved and not enable:
        assert list(check_target(seen, [mine])) == []
    elif theirs.spec:
        assert (dict(theirs.spec.selector.labels), theirs.spec.wanted_port) == (seen.selector["matchLabels"], seen.port)
    else:
        (found,) = check_target(seen, [mine])
        assert found.code == CODES[theirs.reason]


def test_every_reason_of_a_condition_has_a_code_or_is_no_fault() -> None:
    of_conditions = {
        str(each) for each in reasons.Reason if each.place not in {"Event", "readiness gate", "readiness gate, Event"}
    }
    assert of_conditions == CODES.keys() | SILENT


class Record(NamedTuple):
    key: bytes
    value: bytes
    lease: int = 7


@given(st.lists(st.sampled_from(["shop", "team"]), unique=True), st.sampled_from(["", "uid"]))
def test_a_leader_is_read_as_it_is_written(namespaces: list[str], uid: str) -> None:
    scope = Scope(tuple(sorted(namespaces)), "app=x")
    candidate = Candidate("pod-uid", scope, "n", "i", Fingerprint(uid), "main")
    found = parse_operators([Record(leader_key("c1"), write_leader(candidate))], [], "default")
    assert found.leaders == (Leader("c1", "pod-uid", scope.namespaces, uid, "main", "app=x"),)


def test_a_leaders_key_that_was_copied_leads_nobody_and_keys_that_are_gone_are_left_out() -> None:
    owner = OwnerRecord(namespace="shop", pod="p", grpc_services=("shop/greeter",), keys=(b"/a", b"/b"))
    records = [
        Record(leader_key("c1"), write_leader(Candidate("x")), 0),
        Record(owner_key("c1", "uid"), owner.to_json()),
        Record(owner_key("c1", "bad"), b"{"),
        Record(cluster_key("c1"), write_holder(Fingerprint("k"), "main")),
    ]
    found = parse_operators(records, [b"/b"], "default")
    assert found.leaders == ()
    assert found.owned == (Owned("c1", "uid", "shop", "p", ("shop/greeter",), (b"/b",)),)
    assert found.holders == {"c1": "k"}
    assert owned_keys(records) == [b"/a", b"/b"]


@given(st.text(st.characters(exclude_categories=["Cs", "Cc", "Zs"], exclude_characters="/"), min_size=1, max_size=12))
def test_the_command_in_a_message_of_the_operator_is_found_whole(name: str) -> None:
    command = grant(f"/jupiter/{name}/".encode())
    for message in (
        f"etcd does not let it: {command}",
        f"etcd does not: {command}; existing keys stay: those of 2 Pods",
    ):
        assert conditions.find_grants(message) == command


def test_a_missing_leader_has_the_grant_that_lets_one_lead_as_its_remedy() -> None:
    """The general advice before it, which names no range, is no command that can be typed."""
    command = grant(b"/grpc-etcd/")
    message = f"no replica is leader there. etcdserver: permission denied. {PermissionDenied.remedy} Here: {command}"
    no_leader = {"Programmed": Condition("False", "NoLeader", message)}
    service = ServiceFacts(namespace="shop", name="greeter", registry_name="greeter", observed=0, conditions=no_leader)
    (found,) = conditions.condition_findings(service, ())
    assert (found.code, found.remedy) == (Code.NO_LEADER, command)

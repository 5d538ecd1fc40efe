"""The chart's role is exact: all of it is needed, nothing is spare, and no Pod is written to but for its gate.

The API server's own audit log is the witness: what the operator's ServiceAccount asked for, and what was refused.
"""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from grpc_etcd_operator.controller.status_writer import GATES_AT_ONCE
from testbed.apiserver import ApiServer
from testbed.conditions import wait_until
from testbed.etcd import EtcdServer
from testbed.helm import find, render
from testbed.kubelet import Pod
from testbed.kubernetes_api import Object, object_path
from testbed.replica import Replica
from tests.e2e.conftest import MakeScene, Scene
from tests.e2e.pod_watches import with_both

GATE = "grpc-etcd.dev/registered"
READS = {"get", "list", "watch"}
RBAC = "rbac.authorization.k8s.io"


class Right(NamedTuple):
    """One verb on one resource, "pods/status" for a subresource."""

    verb: str
    resource: str


RIGHTS = [
    *(Right(verb, resource) for resource in ("pods", "grpcservices") for verb in ("get", "list", "watch")),
    Right("list", "services"),
    Right("watch", "services"),
    Right("patch", "pods/status"),
    Right("patch", "grpcservices/status"),
    Right("create", "events"),
    Right("get", "namespaces"),
]
LIST_PODS = Right("list", "pods")
OPEN_GATES = Right("patch", "pods/status")
PODS = 20


def rights_of(rules: list[Object]) -> set[Right]:
    return {Right(verb, resource) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]}


def without(rules: list[Object], right: Right) -> list[Object]:
    """The rules, one for each resource, less one verb of one of them."""
    split = [{**rule, "resources": [resource]} for rule in rules for resource in rule["resources"]]
    left = [
        {**rule, "verbs": [verb for verb in rule["verbs"] if (verb, rule["resources"][0]) != right]} for rule in split
    ]
    return [rule for rule in left if rule["verbs"]]


@pytest.fixture
def chart_rules() -> list[Object]:
    rules: list[Object] = find(render({"etcd": {"endpoints": ["etcd:2379"]}}), "ClusterRole", "operator")["rules"]
    return rules


class Trial:
    """One run of the operator under an account of its own, through everything that it needs rights for."""

    def __init__(self, scene: Scene, account: str, rules: list[Object]) -> None:
        self.scene, self.account = scene, f"{account}-{scene.pod_watch}"
        client = scene.api.client
        metadata = {"name": self.account, "namespace": "default"}
        client.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})
        client.create({"apiVersion": f"{RBAC}/v1", "kind": "ClusterRole", "metadata": metadata, "rules": rules})
        client.create(
            {
                "apiVersion": f"{RBAC}/v1",
                "kind": "ClusterRoleBinding",
                "metadata": metadata,
                "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": self.account},
                "subjects": [{"kind": "ServiceAccount", **metadata}],
            }
        )
        kubeconfig = scene.api.service_account_kubeconfig("default", self.account)
        flags = ("--leader-ttl=3", f"--pod-watch={scene.pod_watch}")
        self.replica = Replica(scene.folder, kubeconfig, scene.etcd.endpoints, flags)

    def requests(self) -> list[Object]:
        user = f"system:serviceaccount:default:{self.account}"
        return [event for event in self.scene.api.audit_events() if event["user"]["username"] == user]

    def used(self, *, refused: bool) -> set[Right]:
        """The rights that it has made use of, or that it was refused."""
        return {
            right_of(each)
            for each in self.requests()
            if "objectRef" in each and (each.get("responseStatus", {}).get("code") == 403) == refused
        }

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait for a condition, or for a refusal, after which nothing else need happen."""
        wait_until(lambda: condition() or self.used(refused=True) or not self.replica.process.is_running, what)

    def run(self) -> tuple[Pod, Pod]:
        """Have a gated Pod served, a GrpcService reported, a Pod deleted while nobody looks, a GrpcService deleted."""
        scene, registry = self.scene, self.scene.registry
        scene.apply()
        scene.apply("broken", registries=["nowhere"], serviceRef={"name": "greeter"})
        gated, plain = scene.pod(gates=[GATE]), scene.pod()
        self.replica.start()
        self.until(lambda: registry.addresses() == sorted([gated.address, plain.address]), "both Pods are served")
        self.until(lambda: gated.gate_states.get(GATE), "the gate opens")
        self.until(scene.events, "an Event is posted")
        self.until(lambda: scene.condition("Programmed") == ("True", "Programmed"), "the status is written")
        self.replica.process.stop()
        scene.api.client.delete(plain.item, grace_seconds=0)
        self.replica.start()
        self.until(lambda: registry.addresses() == [gated.address], "the missed deletion is found")
        scene.delete()
        self.until(lambda: registry.addresses() == [], "its last keys are gone")
        return gated, plain


def right_of(event: Object) -> Right:
    reference = event["objectRef"]
    subresource = reference.get("subresource", "")
    return Right(event["verb"], reference["resource"] + (f"/{subresource}" if subresource else ""))


@pytest.fixture
def make_trial(
    audited: ApiServer, etcd: EtcdServer, make_scene: MakeScene
) -> Iterator[Callable[[str, list[Object]], Trial]]:
    trials: list[Trial] = []

    def make(account: str, rules: list[Object]) -> Trial:
        scene = trials[0].scene if trials else make_scene(audited, etcd)
        trials.append(Trial(scene, account, rules))
        return trials[-1]

    yield make
    for trial in trials:
        trial.replica.process.stop()
        for kind in ("GrpcService", "Pod", "Event"):
            api_version = "grpc-etcd.dev/v1alpha1" if kind == "GrpcService" else "v1"
            for item in audited.client.list(api_version, kind, trial.scene.namespace)["items"]:
                path = object_path(api_version, kind, trial.scene.namespace, item["metadata"]["name"])
                audited.client.call("DELETE", path, {"gracePeriodSeconds": 0})


@with_both
def test_every_right_is_used_and_none_is_missing(
    make_trial: Callable[[str, list[Object]], Trial], chart_rules: list[Object]
) -> None:
    trial = make_trial("whole", chart_rules)
    gated, _ = trial.run()
    assert trial.used(refused=True) == set()
    assert rights_of(chart_rules) == set(RIGHTS)
    wait_until(lambda: set(RIGHTS) <= trial.used(refused=False), "each right has been used")
    assert trial.used(refused=False) == set(RIGHTS)
    written = [each for each in trial.requests() if right_of_pod_write(each)]
    assert {(right_of(each), each["objectRef"]["name"]) for each in written} == {
        (Right("patch", "pods/status"), gated.name)
    }


def right_of_pod_write(event: Object) -> bool:
    return event.get("objectRef", {}).get("resource") == "pods" and event["verb"] not in READS


def test_whoever_may_not_list_pods_deregisters_nothing(
    make_trial: Callable[[str, list[Object]], Trial], chart_rules: list[Object]
) -> None:
    """What is absent, or not ready, means nothing before all Pods have been seen."""
    sighted, blind = make_trial("sighted", chart_rules), make_trial("blind", without(chart_rules, LIST_PODS))
    scene, registry = sighted.scene, sighted.scene.registry
    sighted.replica.start()
    scene.apply()
    stays, unready, goes = scene.pod(), scene.pod(), scene.pod()
    registry.wait_addresses(stays.address, unready.address, goes.address)
    before = registry.keys()
    sighted.replica.process.stop()
    scene.kubelet.unready(unready)
    scene.api.client.delete(goes.item, grace_seconds=0)
    blind.replica.start()
    wait_until(lambda: blind.replica.lines("leadership_acquired"), "it leads")
    tried = len(blind.requests())
    wait_until(lambda: len(blind.requests()) > tried + 10, "it has gone on for a while")
    assert registry.keys() == before
    assert blind.used(refused=True) == {LIST_PODS}


@pytest.mark.faults
def test_without_the_right_to_open_gates_all_else_goes_on_and_it_is_asked_for_rarely(
    make_trial: Callable[[str, list[Object]], Trial], chart_rules: list[Object]
) -> None:
    trial = make_trial("gateless", without(chart_rules, OPEN_GATES))
    scene, replica = trial.scene, trial.replica
    scene.apply()
    pods = [scene.pod(gates=[GATE]) for _ in range(PODS)]
    replica.start()
    scene.registry.wait_addresses(*(pod.address for pod in pods))
    wait_until(lambda: scene.condition("Programmed") == ("True", "Programmed"), "the status is written")
    tried_once = len([each for each in trial.requests() if right_of_pod_write(each)])
    began = time.monotonic()
    wait_until(lambda: time.monotonic() - began > 10, "it has had time to hammer")

    def tries() -> int:
        return len([each for each in trial.requests() if right_of_pod_write(each)])

    assert 1 <= tries() <= max(tried_once, GATES_AT_ONCE)
    (refused,) = replica.lines("gate_refused")
    assert "readinessGate.enabled" in refused["message"]
    wait_until(lambda: replica.metric("grpc_etcd_operator_denied_gates_total") == tries(), "each refusal is counted")
    cluster_role = {"apiVersion": f"{RBAC}/v1", "kind": "ClusterRole", "metadata": {"name": trial.account}}
    scene.api.client.patch(cluster_role, {"rules": chart_rules})
    wait_until(lambda: all(pod.gate_states.get(GATE) for pod in pods), "the gates open once the right is given", 120)


@pytest.mark.faults
@pytest.mark.parametrize("right", RIGHTS, ids=lambda right: f"{right.verb}-{right.resource.replace('/', '-')}")
def test_without_any_one_of_them_something_fails(
    make_trial: Callable[[str, list[Object]], Trial], chart_rules: list[Object], right: Right
) -> None:
    trial = make_trial(f"without-{right.verb}-{right.resource.replace('/', '-')}", without(chart_rules, right))
    trial.run()
    wait_until(lambda: right in trial.used(refused=True), f"it is refused {right}")

"""What the operator explains to people: statuses without noise, Events, one log line per change, and never a secret."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from testbed.apiserver import ApiServer
from testbed.conditions import wait_until
from testbed.etcd import EtcdServer
from testbed.process import whole_lines
from tests.e2e.conftest import MakeScene, Scene

SERVICE = "grpc-etcd.dev/v1alpha1"
WRITE_SPACING_SECONDS = 2.0


def resource_version(scene: Scene) -> str:
    return str(scene.api.client.get(SERVICE, "GrpcService", "greeter", scene.namespace)["metadata"]["resourceVersion"])


def written_statuses(api: ApiServer, namespace: str) -> list[dict[str, Any]]:
    """Every status that was written in a namespace, as the API server's audit log has it."""
    return [
        event
        for event in api.audit_events()
        if event.get("objectRef", {}).get("namespace") == namespace
        and (event["objectRef"]["resource"], event["objectRef"].get("subresource")) == ("grpcservices", "status")
    ]


def seconds_of(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


def test_a_status_is_written_at_most_once_in_two_seconds_and_ends_right(
    audited: ApiServer, etcd: EtcdServer, make_scene: MakeScene
) -> None:
    scene = make_scene(audited, etcd)
    scene.start().wait_leading()
    scene.apply()
    pods = [scene.pod() for _ in range(2)]
    for turn in range(40):  # some seconds of changes that each change the counts
        (scene.kubelet.unready if turn % 2 else scene.kubelet.ready)(pods[0])
        scene.registry.wait_addresses(*(pod.address for pod in (pods[1:] if turn % 2 else pods)))
    pods += [scene.pod(), scene.pod()]  # a count that no earlier status can have told
    wait_until(lambda: scene.status().get("endpoints", {}).get("summary") == "3/3", "the last word is told")
    times = [seconds_of(event["requestReceivedTimestamp"]) for event in written_statuses(audited, scene.namespace)]
    times = times[1:]  # the first grants the claim, and nothing may wait for that
    assert len(times) >= 2
    # The operator waits from its own clock's reading; the audit log has the moment at which the request arrived, which
    # may be late by itself. So what counts is how many came in all.
    assert times[-1] - times[0] > WRITE_SPACING_SECONDS * (len(times) - 2), times


def test_a_status_is_not_written_when_nothing_in_it_changes(scene: Scene) -> None:
    first = scene.start().wait_leading()
    scene.apply()
    pod = scene.pod()
    scene.wait_condition("Programmed", "True", "Programmed")
    before = resource_version(scene)
    scene.api.client.patch(pod.item, {"metadata": {"annotations": {"grpc-etcd.dev/weight": "7"}}})
    wait_until(lambda: [each["weight"] for each in scene.registry.values().values()] == [7], "it is obeyed")
    first.process.stop()
    scene.start().wait_leading()
    other = scene.pod(labels={"app": "other"})
    scene.apply("other", selector={"matchLabels": {"app": "other"}})
    scene.registry.wait_addresses(other.address, name="other")
    scene.wait_condition("Programmed", "True", "Programmed", "other")  # all that is due has been told
    assert resource_version(scene) == before


def test_each_change_is_one_line_of_json_with_its_keys(scene: Scene) -> None:
    replica = scene.start().wait_leading()
    scene.apply()
    pod = scene.pod("one")
    scene.registry.wait_addresses(pod.address)
    scene.kubelet.unready(pod)
    scene.registry.wait_addresses()
    key = f"/jupiter/greeter/providers/grpc://{pod.address}"
    wait_until(lambda: replica.lines("records_deleted"), "it is told")
    (put,), (deleted,) = replica.lines("records_written"), replica.lines("records_deleted")
    lease = f"{scene.lease(pod.uid):x}"
    for line in (put, deleted):
        assert {"time", "level", "logger"} <= line.keys()
        assert (line["registry"], line["namespace"], line["pod"], line["lease"]) == (
            "default",
            scene.namespace,
            "one",
            lease,
        )
    assert key in put["put"]
    assert key in deleted["deleted"]
    assert all(json.loads(line) for line in whole_lines(replica.log))


def test_no_secret_is_ever_printed(
    apiserver: ApiServer, own_etcd: EtcdServer, make_scene: MakeScene, tmp_path: Path
) -> None:
    scene = make_scene(apiserver, own_etcd)
    admin = own_etcd.enable_auth("admin")
    secret, wrong = "s3cret-of-etcd", "wr0ng-secret"
    own_etcd.add_user("operator", secret, ["/"], admin=admin)
    password = tmp_path / "password"
    password.write_text(wrong)
    flags = ("--etcd-user=operator", f"--etcd-password-file={password}", "--log-level=debug")
    replica = scene.start(*flags)
    wait_until(lambda: replica.lines("etcd_unavailable"), "the wrong one is refused")
    password.write_text(secret)
    scene.apply(metadata={"note": "value-of-a-key"})
    scene.pod()
    wait_until(lambda: replica.lines("records_written"), "the right one is taken")
    token = json.loads(scene.api.kubeconfig.read_text())["users"][0]["user"]["token"]
    for text in (replica.text(), replica.get("/metrics")[1], json.dumps(scene.status())):
        assert not [each for each in (secret, wrong, token, "value-of-a-key") if each in text]


@pytest.mark.faults
def test_when_most_pods_are_missing_each_is_looked_for_and_an_event_tells_it(
    audited: ApiServer, etcd: EtcdServer, make_scene: MakeScene
) -> None:
    scene = make_scene(audited, etcd)
    replica = scene.start().wait_leading()
    scene.apply()
    pods = [scene.pod() for _ in range(15)]
    scene.registry.wait_addresses(*(pod.address for pod in pods))
    gone, left = pods[:12], pods[12:]
    scene.let_vanish(gone)
    scene.registry.wait_addresses(*(pod.address for pod in left))
    wait_until(lambda: any(each["reason"] == "MassDeletion" for each in scene.events()), "an Event tells it")
    assert replica.metric("grpc_etcd_operator_mass_deletions_total") >= 1
    looked_for = {
        event["objectRef"]["name"]
        for event in audited.audit_events()
        if event["verb"] == "get" and event.get("objectRef", {}).get("namespace") == scene.namespace
    }
    assert {pod.name for pod in gone} <= looked_for


@pytest.mark.timeout(600)
@pytest.mark.parametrize("count", [3, 12])
def test_a_pod_selector_that_leaves_most_pods_out_deregisters_nothing_and_is_told_by_an_event(
    scene: Scene, count: int
) -> None:
    first = scene.start().wait_leading()
    scene.apply(weight=7)
    pods = [scene.pod() for _ in range(count)]
    scene.registry.wait_addresses(*(pod.address for pod in pods))
    before = {key: record.mod_revision for key, record in scene.registry.keys().items()}
    first.process.stop()
    replica = scene.start("--pod-selector=tier=slip").wait_leading()
    wait_until(lambda: any(each["reason"] == "MassDeletion" for each in scene.events()), "an Event tells it", 150)
    assert replica.metric("grpc_etcd_operator_mass_deletions_total") >= 1
    assert {key: record.mod_revision for key, record in scene.registry.keys().items()} == before
    scene.apply(weight=8)  # what its owner wishes is done, as ever
    wait_until(lambda: {each["weight"] for each in scene.registry.values().values()} in ({8}, {"8"}), "it is changed")
    scene.kubelet.unready(pods[0])
    scene.api.client.delete(pods[1].item, grace_seconds=0)
    left = sorted(pod.address for pod in pods[2:])
    wait_until(lambda: scene.registry.addresses() == left, "no watch tells of these Pods, so a sweep does", 150)
    replica.process.stop()
    scene.kubelet.ready(pods[0])
    scene.start().wait_leading()
    scene.registry.wait_addresses(pods[0].address, *left)


def test_pods_that_a_selector_leaves_out_go_with_their_grpcservice(scene: Scene) -> None:
    first = scene.start().wait_leading()
    scene.apply()
    pods = [scene.pod() for _ in range(2)]
    scene.registry.wait_addresses(*(pod.address for pod in pods))
    first.process.stop()
    scene.start("--pod-selector=tier=slip").wait_leading()
    scene.delete()
    scene.registry.wait_addresses()


def test_few_pods_that_a_selector_leaves_out_are_deregistered_at_once(scene: Scene) -> None:
    first = scene.start().wait_leading()
    scene.apply()
    stays, leaves = scene.pod(labels={"app": "greeter", "tier": "grpc"}), scene.pod()
    scene.registry.wait_addresses(stays.address, leaves.address)
    first.process.stop()
    scene.start("--pod-selector=tier=grpc")
    scene.registry.wait_addresses(stays.address)

"""What the operator tells people: statuses without noise, Events, one log line per change, and never a secret."""

import itertools
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from testbed.conditions import wait_until

SERVICE = "grpc-etcd.dev/v1alpha1"
SPACING_SECONDS = 2.0


def resource_version(scene: Any) -> str:
    return str(scene.api.client.get(SERVICE, "GrpcService", "greeter", scene.namespace)["metadata"]["resourceVersion"])


def written_statuses(api: Any, namespace: str) -> list[dict[str, Any]]:
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
    audited: Any, etcd: Any, make_scene: Callable[..., Any]
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
    assert len(times) >= 2
    # The operator waits from its own clock's reading; the audit log has the moment at which the request arrived.
    assert all(later - earlier > SPACING_SECONDS - 0.5 for earlier, later in itertools.pairwise(times)), times


def test_a_status_is_not_written_when_nothing_in_it_changes(scene: Any) -> None:
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


def test_each_change_is_one_line_of_json_with_its_keys(scene: Any) -> None:
    replica = scene.start().wait_leading()
    scene.apply()
    pod = scene.pod("one")
    scene.registry.wait_addresses(pod.address)
    scene.kubelet.unready(pod)
    scene.registry.wait_addresses()
    key = f"/jupiter/greeter/providers/grpc://{pod.address}"
    wait_until(lambda: replica.lines("withdrawn"), "it is told")
    (put,), (deleted,) = replica.lines("written"), replica.lines("withdrawn")
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
    assert all(json.loads(line) for line in replica.text().splitlines())


def test_no_secret_is_ever_printed(
    apiserver: Any, own_etcd: Any, make_scene: Callable[..., Any], tmp_path: Path
) -> None:
    scene = make_scene(apiserver, own_etcd)
    admin = own_etcd.enable_auth("admin")
    secret, wrong = "s3cret-of-etcd", "wr0ng-secret"
    own_etcd.add_user("operator", secret, ["/"], admin=admin)
    password = tmp_path / "password"
    password.write_text(wrong)
    flags = ("--etcd-user=operator", f"--etcd-password-file={password}", "--log-level=debug")
    replica = scene.start(*flags)
    wait_until(lambda: "etcd is out of reach" in replica.text(), "the wrong one is refused")
    password.write_text(secret)
    scene.apply(metadata={"note": "value-of-a-key"})
    scene.pod()
    wait_until(lambda: replica.lines("written"), "the right one is taken")
    token = json.loads(scene.api.kubeconfig.read_text())["users"][0]["user"]["token"]
    for text in (replica.text(), replica.get("/metrics")[1], json.dumps(scene.status())):
        assert not [each for each in (secret, wrong, token, "value-of-a-key") if each in text]


@pytest.mark.faults
def test_when_most_pods_are_missing_each_is_looked_for_and_an_event_tells_it(
    audited: Any, etcd: Any, make_scene: Callable[..., Any]
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
    assert replica.metric("grpc_etcd_mass_deletions_total", registry="default") >= 1
    looked_for = {
        event["objectRef"]["name"]
        for event in audited.audit_events()
        if event["verb"] == "get" and event.get("objectRef", {}).get("namespace") == scene.namespace
    }
    assert {pod.name for pod in gone} <= looked_for

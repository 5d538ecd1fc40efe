"""Events say what has happened to an object once, in the form of today's API, and under the operator's name."""

from functools import partial
from pathlib import Path
from typing import Any

import yaml

from testbed.conditions import free_port, wait_until
from tests.e2e.conftest import API_VERSION, Scene

GATE = "grpc-etcd.dev/registered"


def events(scene: Scene, reason: str) -> list[dict[str, Any]]:
    """Read the Events of one reason, as the API has them today."""
    found = scene.api.client.list("events.k8s.io/v1", "Event", scene.namespace)["items"]
    return [each for each in found if each["reason"] == reason]


def status_managers(item: dict[str, Any]) -> set[str]:
    """Return who has written to the status of an object."""
    return {each["manager"] for each in item["metadata"]["managedFields"] if each.get("subresource") == "status"}


def test_the_first_registration_and_the_last_deregistration_are_events_and_no_flap_in_between(scene: Scene) -> None:
    scene.start().wait_leading()
    scene.apply()
    pods = [scene.pod() for _ in range(3)]
    scene.registry.wait_addresses(*(pod.address for pod in pods))
    wait_until(lambda: events(scene, "Registered"), "the Event of the first registration")
    for _ in range(3):
        for pod in pods:
            scene.kubelet.unready(pod)
        scene.registry.wait_addresses()
        wait_until(lambda: scene.status()["endpoints"]["registered"] == 0, "the count is written")
        for pod in pods:
            scene.kubelet.ready(pod)
        scene.registry.wait_addresses(*(pod.address for pod in pods))
        wait_until(lambda: scene.status()["endpoints"]["registered"] == len(pods), "the count is written")
    wait_until(lambda: events(scene, "Deregistered"), "the Event of the last deregistration")
    for reason in ("Registered", "Deregistered"):
        assert {each["type"] for each in events(scene, reason)} == {"Normal"}
        assert len(events(scene, reason)) <= 2, "one, or two where ten minutes have just begun"
    event = events(scene, "Registered")[0]
    assert event["regarding"]["name"] == "greeter"
    assert (event["action"], event["reportingController"]) == ("Reconcile", "grpc-etcd.dev/operator")
    assert event["reportingInstance"]
    assert "Registered" in scene.api.kubectl("describe", "gsvc", "greeter", "-n", scene.namespace)


def test_what_the_operator_writes_bears_its_name(scene: Scene) -> None:
    scene.start().wait_leading()
    scene.apply()
    pod = scene.pod(gates=[GATE])
    scene.registry.wait_addresses(pod.address)
    for api_version, kind, name in ((API_VERSION, "GrpcService", "greeter"), ("v1", "Pod", pod.name)):
        read = partial(scene.api.client.get, api_version, kind, name, scene.namespace)
        # The gate is opened after the key is there.
        wait_until(
            lambda read=read: "grpc-etcd-operator" in status_managers(read()),
            f"the status of the {kind} bears the operator's name",
        )


def test_a_registry_that_is_added_and_away_makes_no_event_of_a_last_deregistration(
    scene: Scene, tmp_path: Path
) -> None:
    config = tmp_path / "registries.yaml"
    config.write_text(yaml.safe_dump({"registries": {"away": {"endpoints": f"127.0.0.1:{free_port()}"}}}))
    scene.start(f"--config={config}").wait_leading()
    scene.apply()
    pod = scene.pod()
    wait_until(lambda: events(scene, "Registered"), "the Event of the first registration")
    scene.apply(registries=["default", "away"])
    wait_until(lambda: scene.status()["endpoints"]["registered"] == 0, "the count is written")
    wait_until(lambda: events(scene, "RegistryUnavailable"), "the Event of the registry that is away")
    # What is posted after it comes in the order of what has happened.
    scene.apply("other", selector={"matchLabels": {"app": "other"}})
    scene.pod(labels={"app": "other"})
    wait_until(lambda: len(events(scene, "Registered")) > 1, "a later Event")
    assert not events(scene, "Deregistered")
    scene.registry.wait_addresses(pod.address)

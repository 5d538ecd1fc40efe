"""A selector that matches nothing is told of, where it is no gap in a rollout."""

from testbed.conditions import wait_until

from .conftest import Scene
from .pod_watches import with_one

PATIENCE_SECONDS = 60.0


def warnings(scene: Scene) -> list[str]:
    return [event["message"] for event in scene.events() if event["reason"] == "NoPods"]


@with_one()
def test_a_selector_that_matches_nothing_is_told_of_and_a_gap_in_a_rollout_is_not(scene: Scene) -> None:
    scene.start().wait_leading()
    scene.apply("wrong", selector={"matchLabels": {"app": "nobody"}})
    scene.wait_condition("Programmed", "False", "NoPods", "wrong")
    assert warnings(scene) == [], "a Deployment may be created a moment later"

    scene.apply()
    first = scene.pod()
    scene.wait_condition("Programmed", "True", "Programmed")
    scene.kubelet.terminate(first, grace_seconds=0)
    scene.wait_condition("Programmed", "True", "NoPods")
    scene.pod()
    scene.wait_condition("Programmed", "True", "Programmed")

    wait_until(lambda: warnings(scene), "the warning", PATIENCE_SECONDS)
    assert "kubectl get pods --show-labels" in warnings(scene)[0]
    assert {event["involvedObject"]["name"] for event in scene.events() if event["reason"] == "NoPods"} == {"wrong"}
    shown = scene.api.kubectl("get", "grpcservices", "-n", scene.namespace).splitlines()
    assert shown[0].split()[:5] == ["NAME", "SERVICE", "REGISTERED", "READY", "REASON"]
    assert ["wrong", "wrong", "0/0", "False", "NoPods"] in [line.split()[:5] for line in shown]

    scene.apply("wrong", selector={"matchLabels": {"app": "greeter"}})
    scene.wait_condition("Programmed", "True", "Programmed", "wrong")


@with_one()
def test_pods_that_were_relabelled_leave_no_success_behind(scene: Scene) -> None:
    """The rollout of a template whose labels have a slip: nobody edited the GrpcService."""
    scene.start().wait_leading()
    scene.apply()
    pod = scene.pod()
    scene.wait_condition("Programmed", "True", "Programmed")
    scene.kubelet.terminate(pod, grace_seconds=0)
    scene.pod(labels={"app": "greter"})
    wait_until(lambda: scene.condition("Programmed") == ("False", "NoPods"), "it", PATIENCE_SECONDS)
    wait_until(lambda: warnings(scene), "the warning", PATIENCE_SECONDS)

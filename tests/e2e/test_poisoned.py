"""One operator process goes through an unexpected exception at each of its edges in turn, and serves everybody else."""

import sys
from pathlib import Path

import pytest

from grpc_etcd_operator.core.pods import GATE
from grpc_etcd_operator.settings import KOPF
from testbed.conditions import wait_until
from tests.e2e.conftest import Scene
from tests.e2e.pod_watches import with_one

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]
PROGRAM = Path(__file__).with_name("poisoned.py")
# By the part that the metric names. Those of one object come first; the others fail for all, and only for a moment.
ONES_OWN = {
    "decoder of Pods": "pods",
    "decoder of GrpcServices": "grpcservices",
    "claims": "claims",
    "planner": "planner",
    "outcome": "outcome",
    "status writer": "statuses",
    "gate": "gates",
}
OF_ALL = {
    "writer": "writer",
    "lease": "writer",
    "watch of etcd": "watch",
    "watch of Pods": "watch of pods",
    "election": "election",
    "resync": "resync",
}


class Patient:
    """One process, which everything is done to."""

    def __init__(self, scene: Scene) -> None:
        self.scene, self.poison = scene, scene.folder / "poison"
        self.poison.write_text("")
        self.replica = scene.make(program=(sys.executable, PROGRAM, self.poison))
        self.replica.start().wait_leading()
        scene.apply("good")
        self.good = scene.pod("good-0")
        scene.registry.wait_addresses(self.good.address, name="good")

    def errors(self, part: str) -> float:
        """Count the unexpected errors of a part."""
        return self.replica.metric("grpc_etcd_operator_unexpected_errors_total", part=part)

    def is_told(self, name: str) -> bool:
        """Return whether an unexpected error is told on an object of that name: by an Event, or by a condition."""
        told = [each for each in self.scene.events() if each["involvedObject"]["name"] == name]
        conditions = self.scene.status(name).get("conditions", ())
        return any(each["reason"] == "InternalError" for each in told) or any(
            "unexpected error" in each["message"] for each in conditions
        )

    def addresses(self, name: str) -> list[str]:
        """Give the addresses of a service."""
        return list(self.scene.registry.addresses(name))

    def check_good(self, turn: int) -> None:
        """Let all that is well change, and see it followed: a Pod, a spec, a status, a new GrpcService with a gate."""
        scene, name = self.scene, f"good-{turn}"
        scene.kubelet.unready(self.good)
        scene.registry.wait_addresses(name="good")
        scene.kubelet.ready(self.good)
        scene.registry.wait_addresses(self.good.address, name="good")
        scene.apply(name, selector={"matchLabels": {"app": name}}, weight=turn)
        pod = scene.pod(name, labels={"app": name}, gates=(GATE,))
        scene.registry.wait_addresses(pod.address, name=name)
        scene.wait_condition("Programmed", "True", "Programmed", name)
        wait_until(lambda: pod.is_ready, f"the gate of {name} is open")

    def check_health(self) -> None:
        """See that the process has gone on, and is in order."""
        assert len(self.replica.lines("started")) == 1
        assert self.replica.process.is_running
        wait_until(lambda: self.replica.get("/readyz")[0] == 200, "it is ready")
        wait_until(self.scene.has_mark, "it is synced")


@with_one()
def test_an_unexpected_exception_at_each_edge_in_turn_disturbs_nobody_else(scene: Scene) -> None:
    patient, edges = Patient(scene), ONES_OWN | OF_ALL
    if scene.pod_watch == KOPF:
        del edges["watch of Pods"]  # Kopf's own
    for turn, (edge, part) in enumerate(edges.items(), 1):
        before, poison = patient.errors(part), f"poison-{turn}"
        patient.poison.write_text(edge)
        scene.apply(poison, selector={"matchLabels": {"app": poison}})
        pod = scene.pod(poison, labels={"app": poison}, gates=(GATE,))
        patient.check_good(turn)
        wait_until(lambda part=part, before=before: patient.errors(part) > before, f"{edge} has failed", 150)
        if edge in ONES_OWN:
            wait_until(lambda poison=poison: patient.is_told(poison), f"it is told on {poison} that {edge} has failed")
        patient.poison.write_text("")
        scene.registry.wait_addresses(pod.address, name=poison)
        scene.wait_condition("Programmed", "True", "Programmed", poison)
        wait_until(lambda pod=pod: pod.is_ready, "its gate is open")
        patient.check_health()

"""An admission policy refuses what the operator writes: that is the object's own affair, and over with the policy."""

from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from testbed.conditions import wait_until
from testbed.kubelet import Pod
from testbed.kubernetes_api import ApiError, Object
from tests.e2e.conftest import Scene
from tests.e2e.front import Front

GATE = "grpc-etcd.dev/registered"
ADMISSION = "admissionregistration.k8s.io/v1"
OPENS = f"object.status.conditions.exists(each, each.type == '{GATE}' && each.status == 'True')"


class Policy:
    """Refuses updates of a subresource in one namespace of which an expression of CEL is false."""

    def __init__(self, scene: Scene, group: str, resource: str, expression: str, reason: str) -> None:
        self._scene, metadata = scene, {"name": scene.namespace}
        rule = {"apiGroups": [group], "apiVersions": ["*"], "operations": ["UPDATE"], "resources": [resource]}
        spec: dict[str, Any] = {
            "matchConstraints": {"resourceRules": [rule]},
            "validations": [{"expression": expression, "reason": reason, "message": "not today"}],
        }
        self._made = [
            {"apiVersion": ADMISSION, "kind": "ValidatingAdmissionPolicy", "metadata": metadata, "spec": spec}
        ]
        selector = {"matchLabels": {"kubernetes.io/metadata.name": scene.namespace}}
        bound: Object = {"policyName": scene.namespace, "validationActions": ["Deny"]}
        bound["matchResources"] = {"namespaceSelector": selector}
        binding = {"apiVersion": ADMISSION, "kind": "ValidatingAdmissionPolicyBinding", "metadata": metadata}
        self._made.append({**binding, "spec": bound})
        for each in self._made:
            scene.api.client.create(each)

    def end(self) -> None:
        """Allow everything again."""
        while self._made:
            self._scene.api.client.delete(self._made.pop())


@pytest.fixture
def refuse(scene: Scene) -> Iterator[Callable[..., Policy]]:
    made: list[Policy] = []

    def make(*what: str) -> Policy:
        made.append(Policy(scene, *what))
        return made[-1]

    yield make
    for each in made:
        each.end()


def open_gate(scene: Scene, pod: Pod) -> bool:
    """Open a gate as somebody else, in order to see whether the policy is in force yet; it is shut again if not."""

    def write(status: str) -> None:
        condition = {"type": GATE, "status": status}
        scene.api.client.patch(
            pod.item, {"status": {"conditions": [condition]}}, "status", "application/strategic-merge-patch+json"
        )

    try:
        write("True")
    except ApiError:
        return False
    write("False")
    return True


@pytest.mark.parametrize("reason", ["Invalid", "Forbidden"])
def test_a_gate_that_a_policy_keeps_shut_opens_with_the_end_of_the_policy(
    scene: Scene, refuse: Callable[..., Policy], reason: str
) -> None:
    locked = "object.metadata.?labels['app'].orValue('') == 'locked'"
    policy = refuse("", "pods/status", f"!({locked} && {OPENS})", reason)
    scene.apply(selector={"matchExpressions": [{"key": "app", "operator": "Exists"}]})
    pod = scene.pod(labels={"app": "locked"}, gates=[GATE])
    wait_until(lambda: not open_gate(scene, pod), "the policy is in force")
    scene.start().wait_leading()
    scene.registry.wait_addresses(pod.address)
    others = [scene.pod(labels={"app": "free"}, gates=[GATE]) for _ in range(12)]
    for other in others:
        wait_until(lambda other=other: other.is_ready, "all others open at once")
    assert not pod.is_ready
    policy.end()
    wait_until(lambda: pod.is_ready, "it opens", 90)


def test_a_status_that_a_policy_refuses_is_written_with_the_end_of_the_policy(
    scene: Scene, refuse: Callable[..., Policy], tmp_path: Path
) -> None:
    with Front(scene.api, tmp_path) as front:
        scene.start(kubeconfig=front.kubeconfig).wait_leading()
        scene.apply()
        scene.wait_condition("Programmed", "False", "NoPods")
        counts = "object.?status.endpoints.selected.orValue(0)"
        policy = refuse("grpc-etcd.dev", "grpcservices/status", f"{counts} == 0", "Invalid")
        pods = [scene.pod()]

        def is_refused() -> bool:
            pods.append(scene.pod())
            return front.count(HTTPStatus.UNPROCESSABLE_ENTITY) > 0

        wait_until(is_refused, "the policy is in force")
        policy.end()
        wait_until(lambda: scene.status()["endpoints"]["registered"] == len(pods), "the status is written")
        scene.close()

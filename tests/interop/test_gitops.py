"""Real GitOps tools tell a new, a ready and a broken GrpcService apart: kstatus and Argo CD's health check in Lua."""

import json
import subprocess
from pathlib import Path

import pytest

from testbed.build import binary
from testbed.conditions import PATIENCE_SECONDS, wait_until
from tests.e2e.conftest import API_VERSION, Scene

pytestmark = pytest.mark.interop
HEALTH_CHECK = Path(__file__).resolve().parents[2] / "docs" / "argocd-health.lua"
IN_PROGRESS, READY, BROKEN = ("InProgress", "Progressing"), ("Current", "Healthy"), ("Failed", "Degraded")


def judge(scene: Scene, name: str = "greeter") -> tuple[str, str]:
    """Return what kstatus and Argo CD say of a GrpcService."""
    found = scene.api.client.get(API_VERSION, "GrpcService", name, scene.namespace)
    command = [binary("gitops"), HEALTH_CHECK]
    said = subprocess.run(
        command, input=json.dumps(found), capture_output=True, text=True, check=True, timeout=PATIENCE_SECONDS
    )
    verdict = json.loads(said.stdout)
    return verdict["kstatus"], verdict["argocd"]


def wait_judged(scene: Scene, expected: tuple[str, str], name: str = "greeter") -> None:
    wait_until(lambda: judge(scene, name) == expected, f"{name} to be {expected}")


def test_gitops_tools_tell_new_ready_and_broken_apart(scene: Scene) -> None:
    scene.apply(port="grpc")
    assert scene.status() == {"observedGeneration": -1}
    assert judge(scene) == IN_PROGRESS
    scene.pod(ports={"grpc": 1})
    operator = scene.start().wait_leading()
    wait_judged(scene, READY)
    scene.api.kubectl("wait", "--for=condition=Ready", "gsvc/greeter", "-n", scene.namespace, "--timeout=30s")
    operator.process.pause()
    scene.apply(port="http")
    assert judge(scene) == IN_PROGRESS
    operator.process.resume()
    wait_judged(scene, BROKEN)
    scene.apply(port="grpc")
    wait_judged(scene, READY)


@pytest.mark.parametrize("spec", [{"prefix": "not/allowed"}, {"registries": ["nowhere"]}])
def test_gitops_tools_call_a_spec_broken_that_is_not_accepted(scene: Scene, spec: dict[str, object]) -> None:
    scene.start().wait_leading()
    scene.apply("broken", **spec)
    wait_judged(scene, BROKEN, "broken")


def test_a_selector_that_matches_nothing_is_in_progress_and_then_broken(scene: Scene) -> None:
    scene.start().wait_leading()
    scene.apply(selector={"matchLabels": {"app": "greter"}})
    scene.wait_condition("Ready", "False", "NoPods")
    assert judge(scene) == IN_PROGRESS
    wait_judged(scene, BROKEN)


def test_a_registry_that_is_away_is_waited_for(scene: Scene) -> None:
    scene.apply()
    scene.pod()
    scene.start().wait_leading()
    wait_judged(scene, READY)
    scene.etcd.kill()
    scene.wait_condition("Ready", "False", "RegistryUnavailable")
    assert judge(scene) == IN_PROGRESS
    scene.etcd.restart()
    wait_judged(scene, READY)

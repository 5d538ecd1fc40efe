"""An admission webhook that does not answer holds up what it is asked about, and nobody else."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from testbed.conditions import wait_until
from tests.e2e.conftest import NEW, Scene
from tests.e2e.front import Front

pytestmark = pytest.mark.faults
GATE = "grpc-etcd.dev/registered"
MANY = 80  # each takes ten seconds to be given up: waited for a few at a time they take minutes
SELECTOR = {"selector": {"matchLabels": {"app": "theirs"}}}


@pytest.fixture
def front(scene: Scene, tmp_path: Path) -> Iterator[Front]:
    with Front(scene.api, tmp_path) as made:
        yield made
        scene.close()


@pytest.fixture
def other(scene: Scene) -> str:
    """The namespace whose webhook is out of order."""
    name = f"{scene.namespace}-other"
    scene.api.client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    return name


def writes_in(namespace: str) -> Callable[[web.Request], bool]:
    """Match what writes a status in a namespace."""
    return lambda request: request.method == "PATCH" and f"/namespaces/{namespace}/" in request.path


def apply_many(scene: Scene, namespace: str, **spec: Any) -> list[str]:
    """Create or change as many GrpcServices of a namespace; `name` gets the number of each."""
    names = [f"many-{number}" for number in range(MANY)]
    with ThreadPoolExecutor(8) as workers:
        list(
            workers.map(
                lambda name: scene.apply(
                    name, namespace, **SELECTOR, **{key: f"{value}-{name}" for key, value in spec.items()}
                ),
                names,
            )
        )
    return names


def assert_served(scene: Scene, name: str = "greeter") -> None:
    """Let a new GrpcService be claimed, its Pod registered, its gate opened and its status written."""
    scene.apply(name)
    pod = scene.pod(gates=[GATE])
    scene.registry.wait_addresses(pod.address, name=name)
    wait_until(lambda: pod.is_ready, "its gate opens")
    scene.wait_condition("Programmed", "True", "Programmed", name)


def count_programmed(scene: Scene, namespace: str, names: list[str]) -> int:
    return sum(scene.condition("Programmed", name, namespace) == ("True", "Programmed") for name in names)


def test_claims_that_hang_hold_up_no_other_namespace(scene: Scene, front: Front, other: str) -> None:
    scene.start(f"--namespace={other}", kubeconfig=front.kubeconfig).wait_leading()
    front.hangs = writes_in(other)
    apply_many(scene, other)
    assert_served(scene)
    assert [scene.status(name, other) for name in ("many-0", f"many-{MANY - 1}")] == [NEW, NEW]
    front.hangs = lambda _: False
    wait_until(lambda: scene.status(f"many-{MANY - 1}", other).get("claims"), "they are granted when it answers again")


def test_statuses_that_hang_hold_up_no_other_namespace(scene: Scene, front: Front, other: str) -> None:
    scene.start(f"--namespace={other}", kubeconfig=front.kubeconfig).wait_leading()
    names = apply_many(scene, other)
    wait_until(lambda: all(scene.condition("Programmed", name, other)[0] == "False" for name in names), "they are told")
    front.hangs = writes_in(other)
    pod = scene.pod(namespace=other, labels={"app": "theirs"})
    scene.registry.wait_addresses(pod.address, name=names[-1])
    assert_served(scene)
    front.hangs = lambda _: False
    wait_until(lambda: count_programmed(scene, other, names) == MANY, "all is told when it answers again", 120)


def test_gates_that_hang_hold_up_no_other_namespace(scene: Scene, front: Front, other: str) -> None:
    scene.start(f"--namespace={other}", kubeconfig=front.kubeconfig).wait_leading()
    front.hangs = writes_in(other)
    with ThreadPoolExecutor(8) as workers:
        theirs = list(
            workers.map(lambda _: scene.pod(namespace=other, labels={"app": "theirs"}, gates=[GATE]), range(MANY))
        )
    assert_served(scene)
    assert not any(pod.is_ready for pod in theirs)
    front.hangs = lambda _: False
    wait_until(lambda: all(pod.is_ready for pod in theirs), "they open when it answers again", 120)


def test_names_that_are_given_back_in_vain_hold_up_no_other_namespace(scene: Scene, front: Front, other: str) -> None:
    scene.start(f"--namespace={other}", kubeconfig=front.kubeconfig).wait_leading()
    names = apply_many(scene, other)
    wait_until(lambda: all(scene.status(name, other).get("claims") for name in names), "they are granted")
    apply_many(scene, other, name="new")

    def holds(name: str, prefix: str) -> bool:
        return prefix in {each["prefix"] for each in scene.status(name, other)["claims"]}

    wait_until(lambda: holds(names[-1], f"/jupiter/new-{names[-1]}/"), "the last new name is granted")
    front.hangs = writes_in(other)
    assert_served(scene)
    front.hangs = lambda _: False
    wait_until(lambda: not any(holds(name, f"/jupiter/{name}/") for name in names), "all old names are given back", 120)

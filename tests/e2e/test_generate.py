"""GrpcServices that are generated from manifests of the shapes of public projects register what those run."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from testbed.conditions import wait_until

from .conftest import Scene
from .pod_watches import with_one

GENERATE = [str(Path(sys.executable).with_name("grpc-etcd")), "generate", "-f", "-"]
BOUTIQUE = ["ads", "carts", "checkout", "currency", "mail", "payment", "catalog", "shipping", "advice", "stylist"]
Raw = dict[str, Any]


def manifests(name: str, port: Raw, container: Raw) -> list[Raw]:
    """Return a Service and its Deployment."""
    labels = {"app": name}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "server", **container}]}}
    return [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name},
            "spec": {"selector": {"matchLabels": labels}, "template": template},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name},
            "spec": {"selector": labels, "ports": [port]},
        },
    ]


def shop() -> list[Raw]:
    """Ten gRPC servers behind unnamed ports, half of them with the probes of before there were gRPC probes."""
    made: list[Raw] = []
    for number, name in enumerate(BOUTIQUE):
        listens = 7000 + number
        program = {"exec": {"command": ["/bin/grpc_health_probe", f"-addr=:{listens}"]}}
        probe = program if number % 2 else {"grpc": {"port": listens}}
        container = {"ports": [{"containerPort": listens}], "readinessProbe": probe}
        made += manifests(name, {"name": "grpc", "port": 5000, "targetPort": listens}, container)
    web = {"ports": [{"containerPort": 8080}], "readinessProbe": {"httpGet": {"path": "/", "port": 8080}}}
    return made + manifests("web", {"name": "http", "port": 80, "targetPort": 8080}, web)


def vote() -> list[Raw]:
    """Named ports, beside one for metrics."""
    ports = [{"containerPort": 8080, "name": "grpc"}, {"containerPort": 8801, "name": "prom"}]
    return manifests("voting", {"name": "grpc", "port": 8080, "targetPort": 8080}, {"ports": ports})


def telemetry() -> list[Raw]:
    """Names that say nothing, with an appProtocol in one place only."""
    container = {"ports": [{"containerPort": 9000, "name": "service"}]}
    said = {"name": "tcp-service", "port": 9000, "targetPort": "service", "appProtocol": "grpc"}
    unsaid = {"name": "tcp-service", "port": 9000, "targetPort": 9000}
    return manifests("quotes", said, container) + manifests("images", unsaid, container)


def generate(*objects: Raw) -> tuple[str, str]:
    """Return what the command prints, and what it reports as left out."""
    ended = subprocess.run(
        GENERATE, input=yaml.safe_dump_all(objects), capture_output=True, text=True, timeout=60, check=True
    )
    return ended.stdout, ended.stderr


@with_one()
def test_what_is_generated_from_manifests_registers_the_pods_of_those_manifests(scene: Scene) -> None:
    made, left_out = generate(*shop(), *vote(), *telemetry())
    assert sorted(line.split(": ")[1] for line in left_out.splitlines()) == ["Service images", "Service web"]
    scene.api.kubectl("apply", "-n", scene.namespace, "-f", "-", stdin=made)
    pods = {
        name: scene.pod(
            labels={"app": name}, ports={"": 7000 + number} if number % 2 else None, probed_port=7000 + number
        )
        for number, name in enumerate(BOUTIQUE)
    }
    pods["voting"] = scene.pod(labels={"app": "voting"}, ports={"grpc": 8080, "prom": 8801})
    pods["quotes"] = scene.pod(labels={"app": "quotes"}, ports={"service": 9000})
    scene.start()
    wanted = {f"/jupiter/{name}/providers/grpc://{pod.address}" for name, pod in pods.items()}
    wait_until(lambda: set(scene.registry.keys()) == wanted, "every Pod at its gRPC port")

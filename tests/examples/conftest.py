"""Fixtures for the examples: the modules that protoc makes, an operator, and Pods as a manifest describes them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from testbed.apiserver import ApiServer
from testbed.build import ROOT
from testbed.conditions import wait_until
from testbed.etcd import EtcdServer
from testbed.kubelet import Kubelet, Pod
from testbed.manifests import apply_crd
from testbed.process import Process
from testbed.replica import Replica

EXAMPLES = ROOT / "examples"
Object = dict[str, Any]


class Stage:
    """A namespace in which an example runs: its objects, its programs, and the operator."""

    def __init__(self, api: ApiServer, etcd: EtcdServer, kubelet: Kubelet, namespace: str, folder: Path) -> None:
        self.api, self.etcd, self.kubelet, self.namespace, self.folder = api, etcd, kubelet, namespace, folder
        self._stack = ExitStack()
        self._generate()

    def close(self) -> None:
        self._stack.close()

    def _generate(self) -> None:
        source = EXAMPLES / "greeter"
        command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={source}"]
        outputs = [f"--python_out={self.folder}", f"--grpc_python_out={self.folder}"]
        subprocess.run([*command, *outputs, "greeter.proto"], check=True)

    def start_operator(self) -> None:
        flags = (f"--namespace={self.namespace}", f"--cluster-id={self.namespace}")
        replica = Replica(self.folder, self.api.kubeconfig, self.etcd.endpoints, flags)
        self._stack.callback(replica.process.kill)
        replica.start().wait_leading()

    def apply(self, manifest: str) -> list[Object]:
        """Apply a manifest of the examples and return its objects."""
        items = list(yaml.safe_load_all((EXAMPLES / manifest).read_text()))
        for item in items:
            item["metadata"]["namespace"] = self.namespace
            self.api.client.apply(item)
        return items

    def run(self, program: str, name: str, **environment: str) -> Process:
        """Run a program of the example until the test ends."""
        more = environment | {"PYTHONPATH": str(self.folder), "GRPC_ETCD_ENDPOINTS": self.etcd.endpoints}
        command: list[str | Path] = [sys.executable, EXAMPLES / "greeter" / program]
        process = Process(name, command, self.folder / f"{name}.log", os.environ | more)
        self._stack.callback(process.kill)
        process.start()
        return process

    def start_pod(self, deployment: Object, name: str) -> Pod:
        """Play a Deployment's controller and kubelet: one Pod by its template, with the example's server in it."""
        template = deployment["spec"]["template"]
        ports = template["spec"]["containers"][0]["ports"]
        pod = self.kubelet.create_pod(
            name,
            self.namespace,
            labels=template["metadata"]["labels"],
            annotations=template["metadata"].get("annotations"),
            gates=[gate["conditionType"] for gate in template["spec"].get("readinessGates", ())],
            ports={port["name"]: port["containerPort"] for port in ports},
            ready=False,
            serve=False,
        )
        self.run("server.py", name, LISTEN=pod.address, HOSTNAME=name)
        wait_until(lambda: is_serving(pod.address), f"the readiness probe of {name}")
        self.kubelet.ready(pod)
        return pod

    def wait_registered(self, *pods: Pod) -> None:
        wanted = {f"/jupiter/greeter/providers/grpc://{pod.address}" for pod in pods}

        def keys() -> set[str]:
            found = self.etcd.etcdctl("get", "--prefix", "/jupiter/greeter/providers/", "--keys-only").split()
            return set(found)

        wait_until(lambda: keys() == wanted, f"{len(wanted)} keys")


def is_serving(address: str) -> bool:
    """Ask the health service, as the readiness probe of the example does."""
    with grpc.insecure_channel(address) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@pytest.fixture
def stage(apiserver: ApiServer, etcd: EtcdServer, namespace: str, tmp_path: Path) -> Iterator[Stage]:
    """A stage with the CRD installed."""
    apply_crd(apiserver.client)
    with Kubelet(apiserver) as kubelet:
        made = Stage(apiserver, etcd, kubelet, namespace, tmp_path)
        yield made
        made.close()

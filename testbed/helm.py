"""Render and install the chart, and play the kubelet for its Deployment: start what was rendered, as it was rendered.

The test bed has no nodes, so `OperatorPod` takes a Deployment from the API server and starts the operator with exactly
its arguments and environment, its ServiceAccount's rights, and the files of the Secrets and ConfigMaps that it mounts.
"""

import base64
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self

import urllib3
import yaml

from testbed.apiserver import ApiServer
from testbed.build import binary
from testbed.chart import CHART
from testbed.kubernetes_api import Object, object_path
from testbed.process import Process

Values = Mapping[str, Any]
MOUNTS = "/etc/grpc-etcd"


class HelmError(Exception):
    """Helm refused; the message is its own."""


def run_helm(*arguments: str | Path, values: Values | None = None) -> str:
    """Run helm with `values` as its values file and return what it prints."""
    given = ["--values", "-"] if values is not None else []
    command = [binary("helm"), *arguments, *given]
    answer = subprocess.run(command, input=json.dumps(values), capture_output=True, text=True, check=False)
    if answer.returncode:
        raise HelmError(answer.stderr + answer.stdout)
    return answer.stdout


def render(values: Values, *arguments: str, namespace: str = "default") -> list[Object]:
    """Render the chart, hooks included, without a cluster."""
    text = run_helm("template", "grpc-etcd-operator", CHART, "--namespace", namespace, *arguments, values=values)
    return [item for item in yaml.safe_load_all(text) if item]


def find(items: Sequence[Object], kind: str, suffix: str = "") -> Object:
    """Pick the only object of a kind whose name ends so."""
    found = [item for item in items if item["kind"] == kind and item["metadata"]["name"].endswith(suffix)]
    if len(found) != 1:
        names = [f"{item['kind']} {item['metadata']['name']}" for item in items]
        raise LookupError(f"{len(found)} objects of kind {kind} end with {suffix!r}; there are {', '.join(names)}")
    return found[0]


WORKLOADS = ("Deployment", "StatefulSet", "Job")


def pod_templates(items: Sequence[Object]) -> list[Object]:
    """Give metadata and spec of every Pod that the objects make, be it by a workload or as it is."""
    return [
        item["spec"]["template"] if item["kind"] in WORKLOADS else item
        for item in items
        if item["kind"] in (*WORKLOADS, "Pod")
    ]


class Release:
    """The chart, installed in one namespace of a real API server."""

    def __init__(self, api: ApiServer, namespace: str, name: str = "grpc-etcd-operator") -> None:
        self.api, self.namespace, self.name = api, namespace, name

    def helm(self, *arguments: str | Path, values: Values | None = None) -> str:
        """Run helm as the cluster's admin."""
        place = ("--kubeconfig", str(self.api.kubeconfig), "--namespace", self.namespace)
        return run_helm(*arguments, *place, values=values)

    def install(self, values: Values) -> str:
        """Install or upgrade; return the notes."""
        return self.helm("upgrade", "--install", self.name, CHART, values=values)

    def uninstall(self, *arguments: str) -> None:
        """Uninstall with everything that is not kept."""
        self.helm("uninstall", self.name, *arguments)


class OperatorPod:
    """The operator's process, as the kubelet would start one Pod of a rendered Deployment or Job, or a Pod."""

    def __init__(self, api: ApiServer, workload: Object, folder: Path) -> None:
        self.namespace = workload["metadata"]["namespace"]
        (template,) = pod_templates([workload])
        spec = template["spec"]
        container = spec["containers"][0]
        self._materialize(api, spec, container, folder)
        arguments = [argument.replace(MOUNTS, f"{folder}{MOUNTS}") for argument in container["args"]]
        kubeconfig = api.service_account_kubeconfig(self.namespace, spec["serviceAccountName"])
        # What it would be filled in with from the Pod is made up here.
        environment = {entry["name"]: entry.get("value", f"made-up-{id(self)}") for entry in container.get("env", ())}
        self.environment = {name: value.replace(MOUNTS, f"{folder}{MOUNTS}") for name, value in environment.items()}
        self.port = next((port["containerPort"] for port in container.get("ports", ())), 0)
        self.process = Process(
            container["name"],
            [sys.executable, "-m", "grpc_etcd_operator", *arguments],
            folder / "log",
            self.environment | {"KUBECONFIG": str(kubeconfig)},
        )

    def __enter__(self) -> Self:
        self.process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stop()

    def asks(self, path: str) -> tuple[int, str]:
        """Ask the Pod's port as the kubelet and Prometheus do: status and text; status 0 while nobody listens."""
        try:
            answer = urllib3.request("GET", f"http://127.0.0.1:{self.port}{path}", retries=False, timeout=30)
        except urllib3.exceptions.HTTPError:
            return 0, ""
        return answer.status, answer.data.decode()

    def wait_ready(self) -> Self:
        """Wait until the readiness probe passes."""
        self.process.wait_ready(lambda: self.asks("/readyz")[0] == HTTPStatus.OK)
        return self

    def _materialize(self, api: ApiServer, spec: Object, container: Object, folder: Path) -> None:
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        for mount in container["volumeMounts"]:
            files = self._files(api, volumes[mount["name"]])
            place = Path(f"{folder}{mount['mountPath']}")
            place.mkdir(parents=True, exist_ok=True)
            for name, content in files.items():
                # The settings file names mounted files, too.
                (place / name).write_bytes(content.replace(MOUNTS.encode(), f"{folder}{MOUNTS}".encode()))

    def _files(self, api: ApiServer, volume: Object) -> dict[str, bytes]:
        if secret := volume.get("secret"):
            path = object_path("v1", "Secret", self.namespace, secret["secretName"])
            data = api.client.call("GET", path)["data"]
            return {item["path"]: base64.b64decode(data[item["key"]]) for item in secret["items"]}
        if config := volume.get("configMap"):
            path = object_path("v1", "ConfigMap", self.namespace, config["name"])
            return {key: text.encode() for key, text in api.client.call("GET", path)["data"].items()}
        return {}

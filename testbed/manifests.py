"""Apply the repository's own manifests: the CRD, and examples."""

from pathlib import Path

import yaml

from testbed.build import ROOT
from testbed.conditions import wait_until
from testbed.kubernetes_api import KubernetesApi


def apply_manifest(client: KubernetesApi, path: Path, namespace: str = "") -> None:
    """Apply every object of a YAML file, as `kubectl apply --namespace` does."""
    for item in yaml.safe_load_all(path.read_text()):
        if namespace:
            item["metadata"]["namespace"] = namespace
        client.apply(item)


def apply_crd(client: KubernetesApi) -> None:
    """Apply the product's CRD and wait until the API server serves it."""
    apply_manifest(client, ROOT / "crds/grpcservices.yaml")
    wait_established(client)


def wait_established(client: KubernetesApi, name: str = "grpcservices.grpc-etcd.dev") -> None:
    """Wait until a CRD is served; `kubectl wait` fails at once where it has no status yet."""

    def is_established() -> bool:
        crd = client.find("apiextensions.k8s.io/v1", "CustomResourceDefinition", name) or {}
        states = crd.get("status", {}).get("conditions") or []
        return any(state["type"] == "Established" and state["status"] == "True" for state in states)

    wait_until(is_established, f"the CRD {name} is established")

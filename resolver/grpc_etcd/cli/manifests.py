"""Read manifests, and what they are judged by: the copy of the CRD's schema, and the Pods of their namespaces."""

import json
from collections.abc import Iterable
from importlib import resources
from typing import Any

from grpc_etcd.cli.files import UnreadableError, read_documents
from grpc_etcd.cli.sides import Look, Sides, look_at_cluster
from grpc_etcd.inspect.cluster import PodFacts, TargetFacts
from grpc_etcd.inspect.codes import Code
from grpc_etcd.inspect.findings import Finding
from grpc_etcd.inspect.kubernetes import KubernetesError, observe_pods, observe_targets
from grpc_etcd.inspect.manifest_checks import Manifest, find_manifest_faults, flatten, is_grpc_service


def check_manifests(sides: Sides, files: Iterable[str]) -> Look:
    """Report what is wrong with the GrpcServices of some files."""
    manifests, findings = [], []
    for file in dict.fromkeys(files):
        try:
            manifests += [each for name, documents in read_documents(file) for each in flatten(name, documents)]
        except UnreadableError as error:
            remedy = f"kubectl apply --dry-run=client -f {error.file}"
            findings.append(Finding(Code.BAD_FILE, error.file, str(error), remedy))
    if not findings and not any(is_grpc_service(each.item) for each in manifests):
        findings.append(Finding(Code.BAD_FILE, ", ".join(files), "it contains no GrpcService", "Pass another file."))
    cluster, faults = look_at_cluster(sides)
    services = (*cluster.services, *cluster.others) if cluster else ()
    pods, targets = (_pods(sides, manifests), _targets(sides, manifests)) if cluster else (None, None)
    found = find_manifest_faults(manifests, _schema(), sides.namespace or "default", pods, services, targets)
    return Look([*findings, *(each for each in faults if each.code in UNREAD), *found], was_read=True)


UNREAD = (Code.KUBERNETES_FAILED, Code.KUBERNETES_UNREACHABLE, Code.CLOCK_SKEW)


def _pods(sides: Sides, manifests: Iterable[Manifest]) -> list[PodFacts] | None:
    """Read the Pods of the manifests' namespaces; None where they cannot be read."""
    if sides.kubernetes is None:
        return None
    try:
        return [pod for each in _namespaces(sides, manifests) for pod in observe_pods(sides.kubernetes, each)]
    except KubernetesError:
        return None


def _targets(sides: Sides, manifests: Iterable[Manifest]) -> list[TargetFacts] | None:
    """Read the Services of the manifests' namespaces, if any is named; None where not all can be read."""
    specs = [each.item.get("spec") for each in manifests if is_grpc_service(each.item)]
    if sides.kubernetes is None or not any(isinstance(spec, dict) and "serviceRef" in spec for spec in specs):
        return None
    try:
        read = [observe_targets(sides.kubernetes, each) for each in _namespaces(sides, manifests)]
    except KubernetesError:
        return None
    return None if None in read else [each for targets in read for each in targets or ()]


def _namespaces(sides: Sides, manifests: Iterable[Manifest]) -> list[str]:
    own = (each.item.get("metadata") for each in manifests if is_grpc_service(each.item))
    named = (each.get("namespace") if isinstance(each, dict) else None for each in own)
    return sorted({str(each or sides.namespace or "default") for each in named})


def _schema() -> dict[str, Any]:
    file = resources.files("grpc_etcd.inspect") / "grpcservice.schema.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found

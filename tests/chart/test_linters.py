"""What other people's tools say of the rendered objects: Kubernetes' own schemas, old and new, and kube-score.

kube-linter's questions are asked by hand.
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from testbed.build import binary
from testbed.chart import CHART
from testbed.helm import pod_templates, render

OLDEST = "1.28"
NEWEST = "1.37"
PRODUCTION = {
    "etcd": {"endpoints": ["etcd:2379"], "tls": {"secretName": "etcd-tls"}},
    "clientConfig": {"ca": "-----BEGIN CERTIFICATE-----"},
    "networkPolicy": {"enabled": True},
    "serviceMonitor": {"enabled": True},
    "prometheusRule": {"enabled": True},
    "dashboard": {"enabled": True},
    "cleanup": {"enabled": True},
}
TRIAL = {"etcd": {"bundled": {"enabled": True}}, "networkPolicy": {"enabled": True}}
# Each check of kube-score's that we do not follow, with the reason.
ACCEPTED = {
    "container-image-pull-policy": "a release's tag never moves; Always would need the image registry for a restart",
    "container-resources": "no CPU limit on purpose: it would throttle exactly in a storm; memory is limited",
    "pod-networkpolicy": "only the cleanup Job, which runs after the uninstall, when no policy of the chart is left",
    "statefulset-has-servicename": "the trial etcd keeps a cluster IP, so that clients keep its address",
}
SERVED_BY_OTHERS = {"ServiceMonitor", "PrometheusRule", "CustomResourceDefinition"}


@pytest.mark.parametrize("values", [PRODUCTION, TRIAL], ids=["production", "trial"])
@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_object_fits_the_schemas_of_kubernetes(version: str, values: dict[str, Any]) -> None:
    for item in render(values):
        if item["kind"] not in SERVED_BY_OTHERS:
            kubernetes_validate.validate(item, version, strict=True)


def test_the_chart_names_the_oldest_kubernetes() -> None:
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["kubeVersion"] == f">={OLDEST}.0-0"


@pytest.mark.parametrize("values", [PRODUCTION, TRIAL], ids=["production", "trial"])
def test_kube_score_finds_nothing_without_a_written_reason(values: dict[str, Any], tmp_path: Path) -> None:
    manifest = tmp_path / "all.yaml"
    manifest.write_text(yaml.safe_dump_all(render(values)))
    command: list[str | Path] = [
        binary("kube-score"),
        "score",
        "--output-format",
        "json",
        "--kubernetes-version",
        "v1.28",
        manifest,
    ]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    findings = list(_findings(yaml.safe_load(answer.stdout)))
    assert findings == []


def _findings(scored: list[dict[str, Any]]) -> Iterator[str]:
    for item in scored:
        for check in item["checks"]:
            if check["grade"] < 10 and not check["skipped"] and check["check"]["id"] not in ACCEPTED:
                said = [comment["summary"] for comment in check["comments"] or ()]
                yield f"{item['object_name']}: {check['check']['id']}: {said}"


# kube-linter's module cannot be had where this is built, so its default checks are written out here, but for those that
# kube-score or tests/chart/test_rendering.py make already: probes, resources, root, capabilities.


def workloads(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [item for item in items if item["kind"] in ("Deployment", "StatefulSet", "Job")]


def pod(template: dict[str, Any]) -> dict[str, Any]:
    return dict(template["spec"])


@pytest.fixture(params=[PRODUCTION, TRIAL], ids=["production", "trial"])
def items(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return render(request.param)


def test_no_pod_shares_anything_of_its_node(items: list[dict[str, Any]]) -> None:
    for spec in map(pod, pod_templates(items)):
        assert not {"hostNetwork", "hostPID", "hostIPC", "serviceAccount"} & spec.keys()
        assert not [volume for volume in spec.get("volumes", ()) if "hostPath" in volume]
        assert "sysctls" not in spec["securityContext"]


def test_no_container_has_a_moving_tag_or_a_secret_in_its_environment(items: list[dict[str, Any]]) -> None:
    for spec in map(pod, pod_templates(items)):
        for container in spec["containers"]:
            assert container["image"].rpartition(":")[2] not in ("", "latest")
            names = [entry["name"] for entry in container.get("env", ())]
            assert len(names) == len(set(names))
            assert not [name for name in names if "PASSWORD" in name or "SECRET" in name]
            assert not [entry for entry in container.get("env", ()) if "secretKeyRef" in entry.get("valueFrom", {})]


def test_selectors_select_and_ports_exist(items: list[dict[str, Any]]) -> None:
    templates = pod_templates(items)
    for workload in workloads(items):
        if workload["kind"] != "Job":
            labels = workload["spec"]["template"]["metadata"]["labels"].items()
            assert workload["spec"]["selector"]["matchLabels"].items() <= labels
    for service in (item for item in items if item["kind"] == "Service"):
        chosen = [t for t in templates if service["spec"]["selector"].items() <= t["metadata"]["labels"].items()]
        ports = [port["name"] for t in chosen for c in t["spec"]["containers"] for port in c["ports"]]
        assert len(chosen) == 1, f"{service['metadata']['name']} selects {len(chosen)} workloads"
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= set(ports)
    for budget in (item for item in items if item["kind"] == "PodDisruptionBudget"):
        chosen = [
            t for t in templates if budget["spec"]["selector"]["matchLabels"].items() <= t["metadata"]["labels"].items()
        ]
        assert len(chosen) == 1
        assert budget["spec"]["maxUnavailable"] == 1


def test_every_service_account_is_the_charts_own_and_replicas_spread(items: list[dict[str, Any]]) -> None:
    accounts = {item["metadata"]["name"] for item in items if item["kind"] == "ServiceAccount"}
    for spec in map(pod, pod_templates(items)):
        assert spec.get("serviceAccountName") in accounts or not spec["automountServiceAccountToken"]
    for workload in workloads(items):
        if workload["kind"] == "Deployment":
            spec = pod(workload["spec"]["template"])
            assert spec["affinity"]["podAntiAffinity"]
            assert {each["topologyKey"] for each in spec["topologySpreadConstraints"]} >= {"kubernetes.io/hostname"}

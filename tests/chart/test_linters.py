"""What other people's tools say of the rendered objects: Kubernetes' own schemas, old and new, and kube-score."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from testbed.build import binary
from testbed.chart import CHART
from testbed.helm import render

OLDEST = "1.28"
NEWEST = "1.37"
PRODUCTION = {
    "etcd": {"endpoints": ["etcd:2379"], "tls": {"secretName": "etcd-tls"}},
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
    command = [binary("kube-score"), "score", "--output-format", "json", "--kubernetes-version", "v1.28", manifest]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    findings = list(_findings(yaml.safe_load(answer.stdout)))
    assert findings == []


def _findings(scored: list[dict[str, Any]]) -> Iterator[str]:
    for item in scored:
        for check in item["checks"]:
            if check["grade"] < 10 and not check["skipped"] and check["check"]["id"] not in ACCEPTED:
                said = [comment["summary"] for comment in check["comments"] or ()]
                yield f"{item['object_name']}: {check['check']['id']}: {said}"

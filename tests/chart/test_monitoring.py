"""Alerts and dashboard: each alert fires in the situation it is for, and none in health; each query can be answered.

promtool evaluates the rules that the chart renders. What is queried is held against the operator's table of metrics.
"""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from grpc_etcd_operator.metrics import COUNTERS, GAUGES, REGISTRATION
from testbed import chart
from testbed.build import binary
from testbed.helm import find, render

PLACE = 'namespace="ops", pod="op-0", job="grpc-etcd"'
HEALTHY = {
    "grpc_etcd_leader": "1x60",
    "grpc_etcd_synced": "1x60",
    "grpc_etcd_registry_up": "1x60",
    "grpc_etcd_conflicts": "0x60",
    "grpc_etcd_drift_total": "7x60",
    "grpc_etcd_mass_deletions_total": "1x60",
    'grpc_etcd_last_event_age_seconds{resource="pods"}': "20x60",
    'grpc_etcd_certificate_expiry_timestamp_seconds{file="tls.crt"}': "8640000x60",
    'grpc_etcd_registration_seconds_bucket{change="ready", le="0.1"}': "0+100x60",
    'grpc_etcd_registration_seconds_bucket{change="ready", le="10.0"}': "0+100x60",
    'grpc_etcd_registration_seconds_bucket{change="ready", le="+Inf"}': "0+100x60",
}
# What is otherwise than in health when each alert fires; None takes every series away.
SITUATIONS: dict[str, dict[str, str] | None] = {
    "GrpcEtcdOperatorDown": None,
    "GrpcEtcdRegistryUnreachable": {"grpc_etcd_registry_up": "1x10 0x50"},
    "GrpcEtcdNoLeader": {"grpc_etcd_leader": "1x10 0x50"},
    "GrpcEtcdNotSynced": {"grpc_etcd_synced": "1x10 0x50"},
    "GrpcEtcdEventStreamStale": {'grpc_etcd_last_event_age_seconds{resource="pods"}': "20x10 30+60x50"},
    "GrpcEtcdDriftFound": {"grpc_etcd_drift_total": "7x20 9x40"},
    "GrpcEtcdRegistrationSlow": {
        'grpc_etcd_registration_seconds_bucket{change="ready", le="0.1"}': "0+50x60",
    },
    "GrpcEtcdConflict": {"grpc_etcd_conflicts": "0x10 2x50"},
    "GrpcEtcdMassDeletion": {"grpc_etcd_mass_deletions_total": "1x20 2x40"},
    "GrpcEtcdCertificateExpiring": {
        'grpc_etcd_certificate_expiry_timestamp_seconds{file="tls.crt"}': "864000x60",
    },
}
NAMES = {REGISTRATION[0] + suffix for suffix in ("_bucket", "_count", "_sum")} | set(GAUGES)
NAMES |= {f"{name}_total" for name in COUNTERS}


@pytest.fixture(scope="module")
def rules() -> dict[str, Any]:
    items = render({"etcd": {"endpoints": ["etcd:2379"]}, "prometheusRule": {"enabled": True}})
    return dict(find(items, "PrometheusRule")["spec"])


def series(values: dict[str, str]) -> list[dict[str, str]]:
    labelled = []
    for name, samples in values.items():
        bare, _, labels = name.partition("{")
        inner = ", ".join(filter(None, [labels.rstrip("}"), PLACE, 'registry="default"']))
        labelled.append({"series": f"{bare}{{{inner}}}", "values": samples})
    return labelled


def firing(rules: dict[str, Any], values: dict[str, str], folder: Path) -> set[str]:
    """Ask promtool which alerts fire at 30 minutes: it says so when the test expects none."""
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
    names = [rule["alert"] for rule in rules["groups"][0]["rules"]]
    expected = [{"eval_time": "30m", "alertname": name, "exp_alerts": []} for name in names]
    tests = [{"interval": "1m", "input_series": series(values), "alert_rule_test": expected}]
    (folder / "test.yaml").write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": tests}))
    answer = subprocess.run(
        [binary("promtool"), "test", "rules", "test.yaml"], cwd=folder, capture_output=True, text=True, check=False
    )
    said = answer.stdout + answer.stderr
    assert answer.returncode == 0 or "alertname" in said, said
    return set(re.findall(r"alertname: (\w+),", said))


def test_promtool_accepts_the_rules(rules: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    answer = subprocess.run(
        [binary("promtool"), "check", "rules", "rules.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_no_alert_fires_in_health(rules: dict[str, Any], tmp_path: Path) -> None:
    assert firing(rules, HEALTHY, tmp_path) == set()


@pytest.mark.parametrize("alert", SITUATIONS)
def test_each_alert_fires_in_its_situation_and_alone(rules: dict[str, Any], alert: str, tmp_path: Path) -> None:
    change = SITUATIONS[alert]
    assert firing(rules, {} if change is None else HEALTHY | change, tmp_path) == {alert}


def test_every_alert_has_its_situation_its_runbook_and_its_section(rules: dict[str, Any]) -> None:
    names = {rule["alert"] for rule in rules["groups"][0]["rules"]}
    assert names == set(SITUATIONS)
    sections = re.findall(r"^### (\w+)$", (chart.ROOT / "docs/operations.md").read_text(), re.MULTILINE)
    assert names == {section for section in sections if section.startswith("GrpcEtcd")}
    for rule in rules["groups"][0]["rules"]:
        assert rule["annotations"]["runbook_url"] == f"docs/operations.md#{rule['alert'].lower()}"


def test_alerts_and_dashboard_ask_only_for_metrics_that_the_operator_has(rules: dict[str, Any]) -> None:
    dashboard = json.loads((chart.CHART / "files/dashboard.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    queries += [rule["expr"] for rule in rules["groups"][0]["rules"]]
    asked = {name for query in queries for name in re.findall(r"grpc_etcd_\w+", query)}
    assert asked <= NAMES
    # Nothing is measured that nobody looks at, but for what only explains another metric.
    assert NAMES - asked <= {"grpc_etcd_info", "grpc_etcd_registration_seconds_sum"}


def test_promtool_can_parse_every_query_of_the_dashboard(tmp_path: Path) -> None:
    dashboard = json.loads((chart.CHART / "files/dashboard.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    assert len(queries) > 10
    recorded = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries)]
    (tmp_path / "queries.yaml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recorded}]}))
    answer = subprocess.run(
        [binary("promtool"), "check", "rules", "queries.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr

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

from grpc_etcd import RegistryStats
from grpc_etcd_operator.telemetry.metrics import REGISTRATION
from grpc_etcd_operator.telemetry.samples import DECLARATIONS
from testbed import alerts, chart, promtool
from testbed.build import binary
from testbed.helm import find, render

PLACE = 'namespace="ops", pod="grpc-etcd-operator-6d5f7c9b8-x2k4z", job="grpc-etcd-operator-metrics"'
# Another release, in the same namespace of the same Prometheus.
OTHER_PLACE = PLACE.replace("grpc-etcd-operator-6d5f7c9b8", "grpc-etcd-operator-too-58c4d7f6b")
HEALTHY = {
    "grpc_etcd_operator_leader": "1x60",
    "grpc_etcd_operator_synced": "1x60",
    "grpc_etcd_operator_registry_up": "1x60",
    "grpc_etcd_operator_conflicts": "0x60",
    "grpc_etcd_operator_ready_not_registered": "0x60",
    "grpc_etcd_operator_rate_limited_objects": "0x60",
    'grpc_etcd_operator_not_accepted{reason="NameTaken"}': "1x60",
    "grpc_etcd_operator_waiting_gates": "0x60",
    "grpc_etcd_operator_foreign_cluster": "0x60",
    "grpc_etcd_operator_no_leader_seconds": "0x60",
    "grpc_etcd_operator_unreadable_namespaces": "0x60",
    "grpc_etcd_operator_denied_prefixes": "0x60",
    'grpc_etcd_operator_campaign_errors_total{code="Unavailable"}': "3x20 7x40",  # etcd was restarted
    'grpc_etcd_operator_unexpected_errors_total{part="resync"}': "1x60",  # long ago
    "grpc_etcd_operator_drift_total": "7x60",
    "grpc_etcd_operator_mass_deletions_total": "1x60",
    'grpc_etcd_operator_last_event_age_seconds{resource="pods"}': "20x60",
    'grpc_etcd_operator_certificate_expiry_timestamp_seconds{file="tls.crt"}': "8640000x60",
    'grpc_etcd_operator_registration_duration_seconds_bucket{change="ready", le="0.1"}': "0+100x60",
    'grpc_etcd_operator_registration_duration_seconds_bucket{change="ready", le="10.0"}': "0+100x60",
    'grpc_etcd_operator_registration_duration_seconds_bucket{change="ready", le="+Inf"}': "0+100x60",
}
# What is otherwise than in health when each alert fires; None takes every series away.
SITUATIONS: dict[str, dict[str, str] | None] = {
    "GrpcEtcdOperatorDown": None,
    "GrpcEtcdRegistryUnreachable": {"grpc_etcd_operator_registry_up": "1x10 0x50"},
    "GrpcEtcdNoLeader": {"grpc_etcd_operator_leader": "1x10 0x50"},
    "GrpcEtcdNotSynced": {"grpc_etcd_operator_synced": "1x10 0x50"},
    "GrpcEtcdEventStreamStale": {'grpc_etcd_operator_last_event_age_seconds{resource="pods"}': "20x10 30+60x50"},
    "GrpcEtcdDriftFound": {"grpc_etcd_operator_drift_total": "7x20 9x40"},
    "GrpcEtcdRegistrationSlow": {
        'grpc_etcd_operator_registration_duration_seconds_bucket{change="ready", le="0.1"}': "0+50x60",
    },
    "GrpcEtcdConflict": {"grpc_etcd_operator_conflicts": "0x10 2x50"},
    "GrpcEtcdMassDeletion": {"grpc_etcd_operator_mass_deletions_total": "1x20 2x40"},
    "GrpcEtcdReadyNotRegistered": {"grpc_etcd_operator_ready_not_registered": "0x10 3x50"},
    "GrpcEtcdRateLimited": {"grpc_etcd_operator_rate_limited_objects": "0x10 2x50"},
    "GrpcEtcdNotAccepted": {'grpc_etcd_operator_not_accepted{reason="InvalidSpec"}': "_x10 1x50"},
    "GrpcEtcdGatesWaiting": {"grpc_etcd_operator_waiting_gates": "0x20 4x40"},
    # A label's series appears with its first failure, and then a try is made each second or so.
    "GrpcEtcdCampaignFailing": {'grpc_etcd_operator_campaign_errors_total{code="PermissionDenied"}': "_x20 1+30x40"},
    "GrpcEtcdForeignCluster": {"grpc_etcd_operator_foreign_cluster": "0x25 1x35"},
    "GrpcEtcdUnexpectedErrors": {'grpc_etcd_operator_unexpected_errors_total{part="decoder"}': "_x25 1x35"},
    "GrpcEtcdNamespacesUnreadable": {"grpc_etcd_operator_unreadable_namespaces": "0x10 1x50"},
    "GrpcEtcdPrefixesRefused": {"grpc_etcd_operator_denied_prefixes": "0x20 1x40"},
    "GrpcEtcdCertificateExpiring": {
        'grpc_etcd_operator_certificate_expiry_timestamp_seconds{file="tls.crt"}': "864000x60",
    },
}
# What an application with a client and a server of its own exposes.
CLIENT_PLACE = 'namespace="shop", pod="app-7c9d5f6b8-k2x4z", registry="default", service="greeter"'
HEALTHY_CLIENT = {
    "grpc_etcd_client_callable_endpoints": "3x60",
    "grpc_etcd_client_connected": "1x20 0x3 1x37",  # etcd was restarted
    "grpc_etcd_client_stale": "0x60",
    "grpc_etcd_client_registrations": "1x60",
    "grpc_etcd_client_registered": "1x20 0x3 1x37",
}
CLIENT_SITUATIONS = {
    "GrpcEtcdClientNoEndpoints": {"grpc_etcd_client_callable_endpoints": "3x10 0x50"},
    "GrpcEtcdClientDisconnected": {"grpc_etcd_client_connected": "1x10 0x50"},
    "GrpcEtcdClientStale": {"grpc_etcd_client_stale": "0x10 1x50"},
    "GrpcEtcdRegistrationLost": {"grpc_etcd_client_registered": "1x10 0x50"},
}
LABELS = {each.name: each.labels for each in DECLARATIONS} | {REGISTRATION[0]: REGISTRATION[2]}
NAMES = {REGISTRATION[0] + suffix for suffix in ("_bucket", "_count", "_sum")}
NAMES |= {each.exposed for each in DECLARATIONS}

RUNBOOK = "https://wiki.example/operations#"


@pytest.fixture(scope="module")
def rules() -> dict[str, Any]:
    return make_rules()


def make_rules(**values: Any) -> dict[str, Any]:
    rule = {"enabled": True, "runbookBaseUrl": RUNBOOK, "clients": True}
    given = {"etcd": {"endpoints": ["etcd:2379"]}, "prometheusRule": rule} | values
    return dict(find(render(given, namespace="ops"), "PrometheusRule")["spec"])


def series(values: dict[str, str], place: str = PLACE) -> list[dict[str, str]]:
    labelled = []
    for name, samples in values.items():
        bare, _, labels = name.partition("{")
        of_registry = 'registry="default"' if "registry" in LABELS[re.sub("_(bucket|total)$", "", bare)] else ""
        inner = ", ".join(filter(None, [labels.rstrip("}"), place, of_registry]))
        labelled.append({"series": f"{bare}{{{inner}}}", "values": samples})
    return labelled


def firing(
    rules: dict[str, Any], values: dict[str, str], folder: Path, others: dict[str, str] | None = None
) -> set[str]:
    """Say which alerts fire after half an hour."""
    return promtool.firing(rules, series(values) + series(others or {}, OTHER_PLACE), folder, 30)


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


def test_that_no_replica_runs_is_told_before_keys_begin_to_expire(rules: dict[str, Any], tmp_path: Path) -> None:
    """Leases are renewed each third of their time to live, so the first may run out after two thirds of it."""
    lease_seconds = yaml.safe_load((chart.CHART / "values.yaml").read_text())["leaseTtlSeconds"]
    ended = dict.fromkeys(HEALTHY, "1x10 stale")  # a target that does not answer is marked so at once
    minutes = 10 + lease_seconds * 2 // 3 // 60
    assert promtool.firing(rules, series(ended), tmp_path, minutes) == {"GrpcEtcdOperatorDown"}
    told = next(rule for group in rules["groups"] for rule in group["rules"] if rule["alert"] == "GrpcEtcdOperatorDown")
    assert f"begin to expire {lease_seconds * 2 // 3} s after" in told["annotations"]["description"]


def plain_rules() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(alerts.FILE.read_text())
    return found


def of_cluster(name: str, values: dict[str, str]) -> list[dict[str, str]]:
    return series(values, f'{PLACE}, cluster="{name}"')


def test_the_plain_file_is_fresh(rules: dict[str, Any]) -> None:
    assert alerts.FILE.read_text() == alerts.text(), "run: python -m testbed.alerts"
    names, plain = (
        [rule["alert"] for group in each["groups"] for rule in group["rules"]] for each in (rules, plain_rules())
    )
    assert plain == names


@pytest.mark.parametrize("alert", SITUATIONS)
def test_each_alert_of_the_plain_file_fires_in_its_cluster_alone(alert: str, tmp_path: Path) -> None:
    """Another cluster, in whose operator's namespace and Pod nothing differs, neither hides it nor has it."""
    change = SITUATIONS[alert]
    sick = {"grpc_etcd_operator_leader": "1x10 stale"} if change is None else HEALTHY | change
    both = of_cluster("east", sick) + of_cluster("west", HEALTHY)
    assert promtool.firing(plain_rules(), both, tmp_path, 30) == {alert}
    (summary,) = promtool.summaries(plain_rules(), both, tmp_path, 30)
    assert summary.endswith(", cluster east")


def test_the_plain_file_is_silent_in_health(tmp_path: Path) -> None:
    both = of_cluster("east", HEALTHY) + of_cluster("west", HEALTHY)
    assert promtool.firing(plain_rules(), both, tmp_path, 30) == set()


def test_the_plain_file_misses_an_operator_in_one_of_several_clusters(tmp_path: Path) -> None:
    assert promtool.firing(plain_rules(), [], tmp_path, 30) == {"GrpcEtcdOperatorDown"}
    gone = of_cluster("east", {"grpc_etcd_operator_leader": "1x10 stale"})
    assert promtool.firing(plain_rules(), gone, tmp_path, 30) == {"GrpcEtcdOperatorDown"}
    long_gone = of_cluster("east", {"grpc_etcd_operator_leader": "1x10 stale"}) + of_cluster(
        "west", {name: values.replace("x60", "x1600") for name, values in HEALTHY.items() if "leader" in name}
    )
    assert promtool.firing(plain_rules(), long_gone, tmp_path, 26 * 60) == set()


def test_another_installation_neither_hides_a_fault_nor_is_taken_for_one(rules: dict[str, Any], tmp_path: Path) -> None:
    assert firing(rules, {}, tmp_path, others=HEALTHY) == {"GrpcEtcdOperatorDown"}
    for change in SITUATIONS.values():
        assert firing(rules, HEALTHY, tmp_path, others=HEALTHY | (change or {})) == set()


@pytest.mark.parametrize("alert", CLIENT_SITUATIONS)
def test_each_alert_of_clients_fires_in_its_situation_and_alone(
    rules: dict[str, Any], alert: str, tmp_path: Path
) -> None:
    def fire(values: dict[str, str], name: str) -> set[str]:
        clients = [{"series": f"{each}{{{CLIENT_PLACE}}}", "values": samples} for each, samples in values.items()]
        (folder := tmp_path / name).mkdir()
        return promtool.firing(rules, [*series(HEALTHY), *clients], folder, 30)

    assert fire(HEALTHY_CLIENT, "healthy") == set()
    assert fire(HEALTHY_CLIENT | CLIENT_SITUATIONS[alert], "not") == {alert}


@pytest.mark.parametrize(
    "labels",
    [
        'service="greeter"',
        'service="app-metrics", exported_service="greeter"',  # as a ServiceMonitor has it, for the Service app-metrics
        'service="app-metrics", grpc_etcd_client_service="greeter"',  # of OpenTelemetry's exporter
    ],
)
def test_alerts_of_clients_name_the_service_however_they_are_scraped(
    rules: dict[str, Any], labels: str, tmp_path: Path
) -> None:
    series = [{"series": f"grpc_etcd_client_callable_endpoints{{{labels}}}", "values": "0x60"}]
    said = promtool.summaries(rules, series, tmp_path, 30)
    assert "A client of greeter has no endpoint to call" in said


def test_alerts_of_clients_ask_only_for_metrics_that_the_library_has(rules: dict[str, Any]) -> None:
    asked = {name for rule in rules["groups"][1]["rules"] for name in re.findall(r"grpc_etcd_\w+", rule["expr"])}
    assert asked == {name for name in HEALTHY_CLIENT if name in asked}
    assert asked <= {metric.name for metric in RegistryStats("", ()).metrics()}


def test_a_dry_run_which_never_leads_raises_no_alert(tmp_path: Path) -> None:
    idle = {
        "grpc_etcd_operator_leader": "0x60",
        "grpc_etcd_operator_synced": "0x60",
        "grpc_etcd_operator_ready_not_registered": "5x60",
    }
    assert firing(make_rules(dryRun=True), HEALTHY | idle, tmp_path) == set()


def test_a_leader_that_only_its_own_replica_believes_in_is_none(rules: dict[str, Any], tmp_path: Path) -> None:
    assert firing(rules, HEALTHY | {"grpc_etcd_operator_no_leader_seconds": "0x10 10+60x50"}, tmp_path) == {
        "GrpcEtcdNoLeader"
    }


def test_a_replica_that_alone_does_not_reach_a_registry_raises_no_alert(rules: dict[str, Any], tmp_path: Path) -> None:
    """It fails each second, and one that has never reached it knows of no leader, and of no key."""
    alone = {
        "grpc_etcd_operator_leader": "0x60",
        "grpc_etcd_operator_synced": "0x60",
        "grpc_etcd_operator_registry_up": "0x60",
        "grpc_etcd_operator_ready_not_registered": "3x60",
        "grpc_etcd_operator_no_leader_seconds": "1+60x60",
        'grpc_etcd_operator_campaign_errors_total{code="Unavailable"}': "1+60x60",
        'grpc_etcd_operator_campaign_errors_total{code="DeadlineExceeded"}': "1+12x60",
    }
    both = series(HEALTHY) + series(alone, PLACE.replace("x2k4z", "b7f3q"))
    assert promtool.firing(rules, both, tmp_path, 30) == set()
    assert firing(rules, alone, tmp_path) >= {"GrpcEtcdReadyNotRegistered", "GrpcEtcdNoLeader"}


def test_every_alert_has_its_situation_its_runbook_and_its_section(rules: dict[str, Any]) -> None:
    all_rules = [rule for group in rules["groups"] for rule in group["rules"]]
    names = {rule["alert"] for rule in all_rules}
    assert names == {*SITUATIONS, *CLIENT_SITUATIONS}
    sections = re.findall(r"^### (\w+)$", (chart.ROOT / "docs/operations.md").read_text(), re.MULTILINE)
    assert names == {section for section in sections if section.startswith("GrpcEtcd")}
    for rule in all_rules:
        assert rule["annotations"]["runbook_url"] == f"{RUNBOOK}{rule['alert'].lower()}"


def test_alerts_and_dashboard_ask_only_for_metrics_that_the_operator_has(rules: dict[str, Any]) -> None:
    dashboard = json.loads((chart.CHART / "files/dashboard.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    queries += [rule["expr"] for rule in rules["groups"][0]["rules"]]
    asked = {name for query in queries for name in re.findall(r"grpc_etcd_\w+", query)}
    assert asked <= NAMES
    # Nothing is measured that nobody looks at, but for what only explains another metric.
    explaining = {
        "grpc_etcd_operator_info",
        "grpc_etcd_operator_registration_duration_seconds_sum",
        "grpc_etcd_operator_denied_gates_total",
    }
    assert NAMES - asked <= explaining


def test_the_dashboard_of_clients_shows_all_metrics_that_the_library_has_and_no_others() -> None:
    dashboard = json.loads((chart.CHART / "files/clients.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    asked = {name for query in queries for name in re.findall(r"grpc_etcd_\w+", query)}
    metrics = RegistryStats("", ()).metrics()
    assert asked == {f"{metric.name}_total" if metric.is_counter else metric.name for metric in metrics}


@pytest.mark.parametrize("file", ["dashboard.json", "clients.json"])
def test_promtool_can_parse_every_query_of_the_dashboard(tmp_path: Path, file: str) -> None:
    dashboard = json.loads((chart.CHART / "files" / file).read_text())
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

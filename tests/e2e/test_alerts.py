"""Alerts from what operators in trouble really expose: promtool judges their samples by the chart's rules.

Time is the only thing that is made: what a replica said once is taken as if it had said so for some minutes.
"""

import sys
import time
import urllib.error
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import pytest

from grpc_etcd.layouts.jupiter import Jupiter
from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.layout import KeyValue
from testbed.apiserver import ApiServer
from testbed.conditions import existing, wait_until
from testbed.etcd import EtcdServer
from testbed.helm import find, render
from testbed.promtool import firing, scraped
from testbed.replica import Replica
from tests.e2e.conftest import MakeScene, Scene
from tests.e2e.test_floods import LARGE, change
from tests.e2e.test_namespaces import make_account
from tests.e2e.test_poisoned import PROGRAM

GATE = "grpc-etcd.dev/registered"
MINUTES = 30
SLOW_SECONDS = 7  # more than the chart's objective
USER, ROOT_WORD = "operator", "root-password"


class Alerts(Protocol):
    """Says which alerts fire at the end of half an hour that is shared out among what the metrics port said."""

    def __call__(self, *texts: str) -> set[str]: ...


def reachable(replica: Replica) -> Replica:
    """Wait until a replica can be scraped."""
    wait_until(lambda: replica.lines("port_opened"), "its port is open")
    return replica


def metrics(replica: Replica) -> str:
    """Scrape a replica; nothing where nobody answers."""
    try:
        return str(replica.get("/metrics")[1])
    except urllib.error.URLError:
        return ""


def wait_alerts(alerts: Alerts, replica: Replica, *wanted: str, before: Sequence[str] = ()) -> None:
    """Wait until just these alerts fire where what a replica says now lasts: one look may meet a change half done."""
    fired: list[set[str]] = []

    def are_wanted() -> bool:
        fired.append(alerts(*before, metrics(replica)))
        return fired[-1] == set(wanted)

    try:
        wait_until(are_wanted, f"just these fire: {sorted(wanted)}")
    except TimeoutError as error:
        error.add_note(f"these do: {fired[-1]}")
        raise


@pytest.fixture(scope="module")
def rules() -> dict[str, Any]:
    values = {"etcd": {"endpoints": ["etcd:2379"]}, "prometheusRule": {"enabled": True}}
    return dict(find(render(values, namespace="ops"), "PrometheusRule")["spec"])


@pytest.fixture
def alerts(rules: dict[str, Any], tmp_path: Path) -> Alerts:
    def alerts(*texts: str) -> set[str]:
        series = scraped(*texts, each_minutes=MINUTES // len(texts))
        return firing(rules, series, tmp_path, MINUTES - 1)

    return alerts


@pytest.fixture
def doomed_etcd() -> Iterator[EtcdServer]:
    with EtcdServer.start() as server:
        yield server


def test_an_operator_in_health_raises_none(scene: Scene, alerts: Alerts) -> None:
    replica = scene.start().wait_leading()
    scene.apply()
    gated = scene.pod(gates=[GATE])
    wait_until(lambda: gated.gate_states.get(GATE), "the gate opens")
    scene.wait_condition("Programmed", "True", "Programmed")
    wait_alerts(alerts, replica)


def test_a_grpcservice_that_cannot_be_obeyed_raises_its_alert(scene: Scene, alerts: Alerts) -> None:
    replica = scene.start().wait_leading()
    scene.apply(registries=["nowhere"])
    scene.wait_condition("Accepted", "False", "UnknownRegistry")
    wait_alerts(alerts, replica, "GrpcEtcdNotAccepted")


@pytest.mark.faults
def test_an_etcd_that_is_gone_raises_its_alerts_and_those_of_the_gates_that_wait(
    scene: Scene, doomed_etcd: EtcdServer, alerts: Alerts
) -> None:
    replica = scene.start(etcd=doomed_etcd.endpoints).wait_leading()
    scene.apply()
    doomed_etcd.kill()
    scene.pod(gates=[GATE])
    wait_until(
        lambda: replica.metric("grpc_etcd_operator_waiting_gates") == 1, "the gate has waited for half a minute", 90
    )
    wait_until(lambda: not replica.metric("grpc_etcd_operator_registry_up"), "etcd is unavailable")
    wait_until(lambda: not replica.metric("grpc_etcd_operator_synced"), "nobody confirms it for it")
    assert alerts(metrics(replica)) >= {"GrpcEtcdRegistryUnreachable", "GrpcEtcdGatesWaiting", "GrpcEtcdNotSynced"}


def test_an_operator_that_is_gone_raises_its_alert_alone(scene: Scene, alerts: Alerts) -> None:
    replica = scene.start().wait_leading()
    before = metrics(replica)
    replica.process.kill()
    assert alerts(before, metrics(replica)) == {"GrpcEtcdOperatorDown"}


def start_restricted(scene: Scene, etcd: EtcdServer, folder: Path, *prefixes: str) -> Replica:
    """Start a replica whose etcd user may read the operator's own keys, and use these prefixes."""
    admin = etcd.enable_auth(ROOT_WORD)
    etcd.add_user(USER, "word", [*prefixes], admin=admin)
    if "/grpc-etcd/" not in prefixes:
        etcd.etcdctl("role", "grant-permission", "--prefix=true", USER, "read", "/grpc-etcd/", user=admin)
    password = folder / "password"
    password.write_text("word")
    return reachable(scene.start(f"--etcd-user={USER}", f"--etcd-password-file={password}"))


def test_an_operator_that_may_not_lead_raises_its_alerts(
    apiserver: ApiServer, own_etcd: EtcdServer, make_scene: MakeScene, tmp_path: Path, alerts: Alerts
) -> None:
    replica = start_restricted(make_scene(apiserver, own_etcd), own_etcd, tmp_path, "/jupiter/")
    tries = "grpc_etcd_operator_campaign_errors_total"
    texts, count = list[str](), 0.0
    for _ in range(6):  # once a minute it has tried again
        wait_until(lambda count=count: replica.metric(tries, code="PermissionDenied") > count, "it tries again")
        count = replica.metric(tries, code="PermissionDenied")
        texts.append(metrics(replica))
    fired = alerts(*texts[:1] * (MINUTES - len(texts)), *texts)
    assert fired >= {"GrpcEtcdCampaignFailing", "GrpcEtcdNoLeader"}
    assert fired <= {"GrpcEtcdCampaignFailing", "GrpcEtcdNoLeader", "GrpcEtcdRegistryUnreachable", "GrpcEtcdNotSynced"}


def test_a_key_that_a_stranger_holds_raises_its_alert(scene: Scene, alerts: Alerts) -> None:
    replica = scene.start().wait_leading()
    pod = scene.pod()
    own = Jupiter().encode("greeter", Endpoint(name="greeter", address=pod.address))
    assert isinstance(own, KeyValue)
    scene.client.put(own.key, own.value)  # as a server that registers itself
    scene.apply()
    wait_until(lambda: replica.metric("grpc_etcd_operator_conflicts"), "the conflict is counted")
    wait_until(
        lambda: not replica.metric("grpc_etcd_operator_ready_not_registered"), "it is registered, if by somebody else"
    )
    wait_alerts(alerts, replica, "GrpcEtcdConflict")


def test_a_namespace_that_writes_too_much_raises_its_alert_and_blames_no_registry(
    scene: Scene, alerts: Alerts, own_etcd: EtcdServer
) -> None:
    replica = scene.start(etcd=own_etcd.endpoints).wait_leading()
    for name in ("large-1", "large-2"):
        scene.apply(name, **LARGE)
    pod = scene.pod(labels={"app": "noisy"})
    weights, fired = count(1), set[str]()

    def is_raised() -> bool:
        change(scene, pod, weights)
        fired.clear()
        if replica.metric("grpc_etcd_operator_rate_limited_objects", registry="default"):
            fired.update(alerts(metrics(replica)))
        return "GrpcEtcdRateLimited" in fired

    wait_until(is_raised, "the alert fires")
    scene.pod(labels={"app": "noisy"})  # its first keys wait, too
    waiting = "grpc_etcd_operator_rate_limited_objects"
    wait_until(lambda: replica.metric(waiting, registry="default") > 1, "both wait")
    assert "GrpcEtcdReadyNotRegistered" not in alerts(metrics(replica))


def test_a_prefix_that_etcd_refuses_raises_its_alerts(
    apiserver: ApiServer, own_etcd: EtcdServer, make_scene: MakeScene, tmp_path: Path, alerts: Alerts
) -> None:
    scene = make_scene(apiserver, own_etcd)
    replica = start_restricted(scene, own_etcd, tmp_path, "/jupiter/", "/grpc-etcd/").wait_leading()
    scene.apply(layouts=["kratos"])
    scene.pod()
    wait_until(lambda: replica.metric("grpc_etcd_operator_denied_prefixes"), "the refusal is counted")
    wait_until(lambda: replica.metric("grpc_etcd_operator_ready_not_registered"), "the Pod is missed")
    wait_until(lambda: replica.metric("grpc_etcd_operator_synced"), "all else is written")
    wait_alerts(alerts, replica, "GrpcEtcdPrefixesRefused", "GrpcEtcdReadyNotRegistered")


@pytest.mark.faults
def test_another_cluster_under_the_same_id_raises_its_alert(
    scene: Scene, own_apiserver: ApiServer, alerts: Alerts
) -> None:
    own_apiserver.kubectl("apply", "-f", str(Path(__file__).resolve().parents[2] / "crds" / "grpcservices.yaml"))
    scene.start().wait_leading()
    scene.apply()
    scene.registry.wait_addresses(scene.pod().address)
    stranger = reachable(scene.start(kubeconfig=own_apiserver.kubeconfig))
    wait_until(lambda: stranger.metric("grpc_etcd_operator_foreign_cluster"), "it knows")
    assert "GrpcEtcdForeignCluster" in alerts(metrics(stranger))


@pytest.mark.faults
def test_a_namespace_that_may_not_be_read_raises_its_alert(scene: Scene, alerts: Alerts) -> None:
    kubeconfig = make_account(scene, scene.namespace)
    replica = scene.start("--namespace=not-there", kubeconfig=kubeconfig).wait_leading()
    wait_until(lambda: replica.metric("grpc_etcd_operator_unreadable_namespaces") == 1, "it is counted")
    wait_alerts(alerts, replica, "GrpcEtcdNamespacesUnreadable")


@pytest.mark.faults
def test_pods_that_vanish_in_a_gap_of_the_watch_raise_their_alerts(scene: Scene, alerts: Alerts) -> None:
    replica = scene.start().wait_leading()
    scene.apply()
    pods = [scene.pod() for _ in range(12)]
    scene.registry.wait_addresses(*(pod.address for pod in pods))
    before = metrics(replica)
    scene.let_vanish(pods)
    scene.registry.wait_addresses()
    wait_until(lambda: replica.metric("grpc_etcd_operator_drift_total"), "the sweep has found it", 90)
    wait_until(lambda: replica.metric("grpc_etcd_operator_mass_deletions_total"), "it is counted")
    wait_until(lambda: replica.metric("grpc_etcd_operator_synced"), "synced")
    wait_alerts(alerts, replica, "GrpcEtcdDriftFound", "GrpcEtcdMassDeletion", before=[before, before])


@pytest.mark.faults
def test_changes_that_come_late_raise_their_alert(
    apiserver: ApiServer, own_etcd: EtcdServer, make_scene: MakeScene, alerts: Alerts
) -> None:
    scene = make_scene(apiserver, own_etcd)
    replica = scene.start().wait_leading()
    scene.apply()
    pods = [scene.pod()]
    scene.registry.wait_addresses(pods[0].address)
    texts = [metrics(replica)]
    for _ in range(3):  # so often that the rate over ten minutes never ends
        own_etcd.pause()
        pods.append(scene.pod())
        ready_at = time.monotonic()
        wait_until(lambda ready_at=ready_at: time.monotonic() > ready_at + SLOW_SECONDS, "the change has waited")
        own_etcd.resume()
        scene.registry.wait_addresses(*(pod.address for pod in pods))
        wait_until(lambda: replica.metric("grpc_etcd_operator_synced"), "synced")
        texts.append(metrics(replica))
    assert "GrpcEtcdRegistrationSlow" in alerts(*texts)


@pytest.mark.faults
def test_an_api_server_that_says_nothing_raises_its_alert(
    own_apiserver: ApiServer, etcd: EtcdServer, make_scene: MakeScene, alerts: Alerts
) -> None:
    replica = make_scene(own_apiserver, etcd).start().wait_leading()
    own_apiserver.pause()
    age = "grpc_etcd_operator_last_event_age_seconds"
    wait_until(lambda: replica.metric(age, resource="pods") > 120, "two minutes of silence", 180)
    said = metrics(replica)
    own_apiserver.resume()
    assert "GrpcEtcdEventStreamStale" in alerts(said)


def test_a_certificate_that_runs_out_soon_raises_its_alert(scene: Scene, alerts: Alerts) -> None:
    with EtcdServer.start(client_certificates=True) as secured:
        mine = existing(secured.authority).issue("operator", not_after=datetime.now(UTC) + timedelta(days=7))
        flags = [f"--etcd-ca={mine.ca}", f"--etcd-cert={mine.cert}", f"--etcd-key={mine.key}"]
        replica = scene.start(*flags, etcd=secured.endpoints.replace("https://", "")).wait_leading()
        wait_until(
            lambda: replica.metric("grpc_etcd_operator_certificate_expiry_timestamp_seconds"), "it has read the file"
        )
        wait_alerts(alerts, replica, "GrpcEtcdCertificateExpiring")


def test_an_error_that_nobody_foresaw_raises_its_alert(scene: Scene, alerts: Alerts) -> None:
    poison = scene.folder / "poison"
    poison.write_text("")
    replica = scene.make(program=(sys.executable, PROGRAM, poison)).start().wait_leading()
    before = metrics(replica)
    poison.write_text("planner")
    scene.apply("poison", selector={"matchLabels": {"app": "poison"}})
    scene.pod("poison", labels={"app": "poison"})
    wait_until(lambda: replica.metric("grpc_etcd_operator_unexpected_errors_total", part="planner"), "it is counted")
    assert "GrpcEtcdUnexpectedErrors" in alerts(before, before, metrics(replica))


def test_no_alert_is_without_its_fault_here(rules: dict[str, Any]) -> None:
    text = Path(__file__).read_text()
    assert [name for rule in rules["groups"][0]["rules"] if f'"{(name := rule["alert"])}"' not in text] == []

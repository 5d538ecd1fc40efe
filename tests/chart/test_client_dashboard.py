"""The dashboard and the alerts for clients, on what a real client exposes before and after it is cut off from etcd."""

import json
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest

from grpc_etcd import Endpoint, Registry
from grpc_etcd.metrics.prometheus import RegistryCollector
from testbed.chart import CHART
from testbed.conditions import wait_until
from testbed.etcd import EtcdServer
from testbed.promtool import answered, firing, scraped
from testbed.proxy import TcpProxy

from .test_monitoring import make_rules

SERVICE = "greeter"


def panels(*, only: str = "") -> dict[str, str]:
    """Return the queries by title; `only` keeps those that find something other than 0."""
    dashboard = json.loads((CHART / "files/clients.json").read_text())
    queries = {}
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            query = target["expr"]
            for name in ("namespace", "registry", "service"):
                query = query.replace(f"${name}", ".*")
            queries[f"{panel['title']} {target['refId']}"] = f"({query}) {only}".rstrip()
    return queries


def test_a_client_that_is_cut_off_is_seen_on_the_dashboard_and_by_the_alerts(etcd: EtcdServer, tmp_path: Path) -> None:
    exposed = CollectorRegistry()
    with TcpProxy.start(etcd.endpoints) as proxy, Registry(proxy.address, lease_ttl_seconds=5) as registry:
        exposed.register(RegistryCollector(registry))
        with registry.registered(Endpoint(name=SERVICE, address="10.0.0.1:9000")) as registration:
            registration.wait(30)
            registry.wait_for_endpoints(SERVICE, 30)
            before = generate_latest(exposed).decode()
            proxy.black_hole()  # which keeps its port, so that nobody else's etcd is there
            wait_until(lambda: not registry.stats()[SERVICE].connected, "it is seen")
            wait_until(lambda: registered(exposed, registry.name) == 0, "the lease has run out")
            after = generate_latest(exposed).decode()
            proxy.heal()
    assert answered(panels(), scraped(before, after), tmp_path) == panels().keys()
    found = answered(panels(only="> 0"), scraped(before, after), tmp_path)
    assert {"Disconnected A", "Not registered A", "Without etcd for A", "Endpoints that accept calls A"} <= found
    assert not {"Without endpoints A", "Stale A", "Spread between processes A"} & found
    calm = answered(panels(only="> 0"), scraped(before), tmp_path)
    assert not {"Disconnected A", "Not registered A", "Without etcd for A"} & calm
    rules, series = make_rules(), scraped(before, after, each_minutes=20)
    clients = {"groups": [group for group in rules["groups"] if "client" in group["name"]]}
    assert firing(clients, series, tmp_path, 30) == {"GrpcEtcdClientDisconnected", "GrpcEtcdRegistrationLost"}


def registered(exposed: CollectorRegistry, registry: str) -> float | None:
    return exposed.get_sample_value("grpc_etcd_client_registered", {"registry": registry, "service": SERVICE})

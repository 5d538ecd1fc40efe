"""The ConfigMap for clients, as the chart copies it to their namespaces."""

from typing import Any

import pytest

from testbed.helm import find, render
from tests.chart.test_rendering import CA, ETCD, SECURED


def test_client_settings_can_be_copied_to_the_clients_namespaces() -> None:
    items = render(ETCD | {"clientConfig": {"namespaces": ["a", "b"], "extra": {"GRPC_ETCD_CA": "/ca"}}})
    copies = [item for item in items if item["metadata"]["name"].endswith("-client")]
    assert [copy["metadata"]["namespace"] for copy in copies] == ["a", "b"]
    assert copies[0]["data"]["GRPC_ETCD_CA"] == "/ca"


def client_data(values: dict[str, Any], place: str) -> dict[str, str]:
    """What clients of a namespace get from a release in the namespace `ops`."""
    items = render(values, namespace="ops")
    found = [item for item in items if item["kind"] == "ConfigMap" and item["metadata"]["name"].endswith("-client")]
    return dict(next(item["data"] for item in found if item["metadata"]["namespace"] == place))


@pytest.mark.parametrize(
    ("endpoint", "there"),
    [
        ("etcd:2379", "etcd.ops.svc.cluster.local:2379"),
        ("https://etcd:2379", "https://etcd.ops.svc.cluster.local:2379"),
        ("etcd-0.etcd:2379", "etcd-0.etcd.ops.svc.cluster.local:2379"),
        ("my-etcd-2.my-etcd-headless:2379", "my-etcd-2.my-etcd-headless.ops.svc.cluster.local:2379"),
        ("etcd.infra:2379", "etcd.infra:2379"),
        ("etcd-0.etcd.infra:2379", "etcd-0.etcd.infra:2379"),
        ("etcd.infra.svc.cluster.local:2379", "etcd.infra.svc.cluster.local:2379"),
        ("etcd.example.com:2379", "etcd.example.com:2379"),
        ("etcd.:2379", "etcd.:2379"),
        ("10.0.0.7:2379", "10.0.0.7:2379"),
        ("[fd00::7]:2379", "[fd00::7]:2379"),
    ],
)
def test_endpoints_resolve_in_the_namespaces_of_clients(endpoint: str, there: str) -> None:
    places = {"namespaces": ["ops", "shop"]}
    for values in (
        {"etcd": {"endpoints": [endpoint]}, "clientConfig": places},
        ETCD | {"clientConfig": places | {"endpoints": [endpoint]}},
    ):
        assert client_data(values, "shop")["GRPC_ETCD_ENDPOINTS"] == there
        assert client_data(values, "ops")["GRPC_ETCD_ENDPOINTS"] == endpoint
    domain = {"etcd": {"endpoints": ["etcd:1"]}, "clientConfig": places, "clusterDomain": "k8s.example"}
    assert client_data(domain, "shop")["GRPC_ETCD_ENDPOINTS"] == "etcd.ops.svc.k8s.example:1"


def test_clients_get_the_ca_and_their_user_and_never_a_password() -> None:
    items = render(SECURED)
    client = find(items, "ConfigMap", "-client")
    assert client["data"] == {"GRPC_ETCD_ENDPOINTS": "etcd:2379", "GRPC_ETCD_CA": CA, "GRPC_ETCD_USER": "reader"}
    assert client["metadata"]["annotations"] == {
        "grpc-etcd.dev/password-secret": "etcd-client",
        "grpc-etcd.dev/password-key": "password",
    }
    own = SECURED | {"clientConfig": {"extra": {"GRPC_ETCD_CA": "/ca.crt", "GRPC_ETCD_USER": "u"}}}
    assert find(render(own), "ConfigMap", "-client")["data"] == {
        "GRPC_ETCD_ENDPOINTS": "etcd:2379",
        "GRPC_ETCD_CA": "/ca.crt",
        "GRPC_ETCD_USER": "u",
    }


def test_clients_are_told_of_tls_that_trusts_public_authorities() -> None:
    tls = {"secretName": "s", "caKey": "", "certKey": "tls.crt", "keyKey": "tls.key"}
    assert client_data({"etcd": {"endpoints": ["a:1"], "tls": tls}}, "ops") == {"GRPC_ETCD_ENDPOINTS": "https://a:1"}

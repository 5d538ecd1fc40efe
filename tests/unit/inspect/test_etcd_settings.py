"""What the chart's objects say of etcd, what its names may be in a cluster, and which right a refusal is about."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpc_etcd.inspect.etcd_settings import (
    EtcdSettings,
    KeptIn,
    Place,
    choose_operators,
    explain_denial,
    find_places,
    is_forwardable,
    parse_client,
    parse_operator,
    parse_registry,
)

OPERATOR = "GRPC_ETCD_OPERATOR_"
AUTH = "/etc/grpc-etcd/default/auth/password"
MOUNTS = [
    {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108  as in the chart
    {"name": "tls", "mountPath": "/etc/grpc-etcd/default/tls/"},
    {"name": "auth", "mountPath": "/etc/grpc-etcd/default/auth"},
    {"name": "config", "mountPath": "/etc/grpc-etcd/config"},
]
VOLUMES = [
    {"name": "tmp", "emptyDir": {}},
    {"name": "tls", "secret": {"secretName": "etcd-tls", "items": [{"key": "authority", "path": "ca.crt"}]}},
    {"name": "auth", "secret": {"secretName": "etcd-auth"}},
    {"name": "config", "configMap": {"name": "settings"}},
]


def deployment(*arguments: str, **variables: str) -> dict[str, Any]:
    env = [{"name": f"{OPERATOR}{name}", "value": value} for name, value in variables.items()]
    other = {"name": "sidecar", "env": [{"name": f"{OPERATOR}ENDPOINTS", "value": "elsewhere:1"}]}
    container = {"name": "operator", "args": ["run", *arguments], "env": env, "volumeMounts": MOUNTS}
    template = {"spec": {"containers": [other, container], "volumes": VOLUMES}}
    return {"metadata": {"namespace": "infra", "name": "op"}, "spec": {"template": template}}


def parsed(*arguments: str, **variables: str) -> EtcdSettings:
    found = parse_operator(deployment(*arguments, **variables))
    assert found is not None
    return found


def test_a_deployment_names_the_secrets_that_its_files_are_made_of() -> None:
    found = parsed(
        "--namespace=shop",
        ENDPOINTS="etcd-0.etcd:2379, etcd-1.etcd:2379",
        CA="/etc/grpc-etcd/default/tls/ca.crt",
        USER="operator",
        PASSWORD_FILE=AUTH,
        PREFIX="shop",
    )
    assert found.endpoints == ("etcd-0.etcd:2379", "etcd-1.etcd:2379")
    assert found.texts == {"user": "operator", "prefix": "shop"}
    assert found.files == {
        "ca": KeptIn("Secret", "etcd-tls", "authority"),
        "password": KeptIn("Secret", "etcd-auth", "password"),
    }
    assert (found.serves, found.lacking) == (("shop",), ())


def test_a_deployment_without_endpoints_says_nothing() -> None:
    assert parse_operator(deployment()) is None
    assert parse_operator({"metadata": {"namespace": "infra", "name": "op"}}) is None


@pytest.mark.parametrize("path", ["/elsewhere/ca.crt", "/tmp/ca.crt"])  # noqa: S108  as in the chart
def test_a_file_that_is_in_no_secret_is_lacking_unless_it_is_given(path: str) -> None:
    found = parsed(ENDPOINTS="etcd:2379", CA=path)
    assert (found.lacking, found.files) == (("ca",), {})
    assert found.without({"ca"}).lacking == ()


def test_what_is_given_is_left_out_with_what_belongs_to_it() -> None:
    found = parsed(
        ENDPOINTS="etcd:2379",
        USER="operator",
        PASSWORD_FILE=AUTH,
        CERT="/etc/grpc-etcd/default/tls/tls.crt",
        KEY="/etc/grpc-etcd/default/tls/tls.key",
    )
    without_user = found.without({"password_file"})
    assert (dict(without_user.texts), set(without_user.files)) == ({}, {"cert", "key"})
    assert set(found.without({"key"}).files) == {"password"}
    assert found.without(()) == found


def test_another_registry_has_settings_of_its_own_and_the_operators_prefix() -> None:
    variables = {"ENDPOINTS": "etcd:2379", "USER": "operator", "PREFIX": "shop"}
    config = "/etc/grpc-etcd/config/config.yaml"
    found = parsed(**variables, CONFIG=config)
    assert found.config == KeptIn("ConfigMap", "settings", "config.yaml")
    settings = {"endpoints": "dr:2379", "ca": "/etc/grpc-etcd/default/tls/ca.crt", "server_name": "dr.example"}
    other = parse_registry(found, deployment(**variables), settings)
    assert (other.endpoints, other.texts) == (("dr:2379",), {"server_name": "dr.example", "prefix": "shop"})
    assert other.files == {"ca": KeptIn("Secret", "etcd-tls", "authority")}


PEM = "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----"


def client(annotations: dict[str, str] | None = None, **variables: str) -> EtcdSettings | None:
    data = {f"GRPC_ETCD_{name}": value for name, value in variables.items()}
    metadata = {"namespace": "shop", "name": "op-client", "annotations": annotations}
    return parse_client({"metadata": metadata, "data": data})


def test_a_config_map_for_clients_has_the_ca_and_names_the_secret_of_the_password() -> None:
    annotations = {"grpc-etcd.dev/password-secret": "reader", "grpc-etcd.dev/password-key": "word"}
    found = client(annotations, ENDPOINTS="etcd.infra:2379", CA=f"{PEM}\n", USER="reader", SERVER_NAME="etcd")
    assert found is not None
    assert found.texts == {"ca": PEM, "user": "reader", "server_name": "etcd"}
    assert found.files == {"password": KeptIn("Secret", "reader", "word")}
    assert found.lacking == ()


def test_a_config_map_for_clients_may_lack_what_is_in_their_pods() -> None:
    found = client(ENDPOINTS="etcd:2379", USER="reader", CERT="/etc/tls.crt", KEY="/etc/tls.key")
    assert found is not None
    assert found.lacking == ("cert", "key", "password")
    assert client(PREFIX="x") is None


@pytest.mark.parametrize(
    ("host", "places"),
    [
        ("etcd", [("Service", "infra", "etcd")]),
        ("etcd.shop", [("Service", "shop", "etcd")]),
        ("etcd.example.com", []),
        ("etcd-0.etcd", [("Service", "etcd", "etcd-0"), ("Pod", "infra", "etcd-0")]),
        ("etcd.shop.svc", [("Service", "shop", "etcd")]),
        ("etcd.shop.svc.cluster.local.", [("Service", "shop", "etcd")]),
        ("etcd-0.etcd.shop", [("Pod", "shop", "etcd-0")]),
        ("etcd-0.etcd.shop.svc.corp.example", [("Pod", "shop", "etcd-0")]),
        ("a.b.corp.example", []),
        ("10.0.0.1", []),
        ("::1", []),
        ("svc", [("Service", "infra", "svc")]),
        ("a..b", []),
    ],
)
def test_what_a_name_may_be(host: str, places: list[tuple[str, str, str]]) -> None:
    assert [tuple(each) for each in find_places(host, "infra")] == places


@given(st.lists(st.from_regex(r"[a-z]([-a-z0-9]{0,8}[a-z0-9])?", fullmatch=True), min_size=1, max_size=7))
def test_each_place_has_a_name_and_a_namespace(labels: list[str]) -> None:
    for place in find_places(".".join(labels), "infra"):
        assert place.name == labels[0]
        assert place.namespace in {"infra", *labels}


def test_a_place_is_written_for_kubectl_and_for_the_api_server() -> None:
    service, pod = Place("Service", "infra", "etcd"), Place("Pod", "infra", "etcd-0")
    assert (service.reference, service.path) == ("svc/etcd", "/api/v1/namespaces/infra/services/etcd")
    assert (pod.reference, pod.path) == ("pod/etcd-0", "/api/v1/namespaces/infra/pods/etcd-0")


def test_only_services_with_a_selector_can_be_forwarded_to() -> None:
    service, pod = Place("Service", "infra", "etcd"), Place("Pod", "infra", "etcd-0")
    assert is_forwardable(pod, {})
    assert is_forwardable(service, {"spec": {"selector": {"app": "etcd"}}})
    assert not is_forwardable(service, {"spec": {}})
    assert not is_forwardable(service, {"spec": {"type": "ExternalName", "selector": {"app": "etcd"}}})


def operator(name: str, *serves: str) -> EtcdSettings:
    return EtcdSettings(subject=name, namespace=name, serves=serves)


def test_the_operator_that_names_the_namespace_goes_before_one_for_all() -> None:
    one, everywhere, other = operator("one", "shop"), operator("everywhere"), operator("other", "else")
    assert choose_operators([everywhere, one, other], "shop") == [one]
    assert choose_operators([everywhere, one, other], "third") == [everywhere]
    assert choose_operators([other], "third") == [other]


@pytest.mark.parametrize(
    ("text", "problem", "commands"),
    [
        (
            (
                'Error from server (Forbidden): pods "etcd-0" is forbidden: User "anna" cannot create resource '
                '"pods/portforward" in API group "" in the namespace "infra"'
            ),
            "anna may not create pods/portforward in the namespace infra",
            (
                "kubectl -n infra create role create-pods-portforward --verb=create --resource=pods/portforward; "
                "kubectl -n infra create rolebinding create-pods-portforward --role=create-pods-portforward --user=anna"
            ),
        ),
        (
            (
                '403 deployments.apps is forbidden: User "a b" cannot list resource "deployments" in API group "apps" '
                "at the cluster scope"
            ),
            "a b may not list deployments in all namespaces",
            (
                "kubectl create clusterrole list-deployments --verb=list --resource=deployments.apps; kubectl create "
                "clusterrolebinding list-deployments --clusterrole=list-deployments '--user=a b'"
            ),
        ),
        (
            'User "x" cannot patch resource "deployments/scale" in API group "apps" in the namespace "infra"',
            "x may not patch deployments/scale in the namespace infra",
            (
                "kubectl -n infra create role patch-deployments-scale --verb=patch --resource=deployments.apps/scale; "
                "kubectl -n infra create rolebinding patch-deployments-scale --role=patch-deployments-scale --user=x"
            ),
        ),
    ],
)
def test_a_refusal_names_the_right_and_the_commands_that_give_it(text: str, problem: str, commands: str) -> None:
    assert explain_denial(text) == (problem, commands)


def test_what_is_no_refusal_is_not_explained() -> None:
    assert explain_denial("error: timed out waiting for the condition") is None

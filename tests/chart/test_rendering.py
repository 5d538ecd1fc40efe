"""What the chart renders: the statements that an admin relies on, over a matrix of values."""

import json
from typing import Any

import pytest
import yaml

from testbed import chart
from testbed.helm import HelmError, find, render, run_helm

ETCD = {"etcd": {"endpoints": ["etcd-0.etcd:2379", "etcd-1.etcd:2379"]}}
BUNDLED = {"etcd": {"bundled": {"enabled": True}}}
SECURED = {
    "etcd": {
        "endpoints": ["etcd:2379"],
        "tls": {"secretName": "etcd-tls", "caKey": "root.pem", "certKey": "tls.crt", "keyKey": "tls.key"},
        "auth": {"user": "operator", "secretName": "etcd-user"},
    }
}
SEVERAL = ETCD | {"registries": {"dr": {"endpoints": ["dr:2379"], "tls": {"secretName": "dr-tls"}}}}
NAMESPACED = ETCD | {"watchNamespaces": ["shop", "till"], "clusterId": "prod-1"}
ALL = ETCD | {
    name: {"enabled": True}
    for name in ("networkPolicy", "serviceMonitor", "prometheusRule", "dashboard", "cleanup", "podDisruptionBudget")
}
MATRIX = {
    "etcd": ETCD,
    "bundled": BUNDLED,
    "secured": SECURED,
    "several registries": SEVERAL | {"cleanup": {"enabled": True}},
    "namespaced": NAMESPACED | {"cleanup": {"enabled": True}},
    "everything": ALL,
    "extras": ETCD
    | {
        "imagePullSecrets": [{"name": "pull"}],
        "extraEnv": [{"name": "TZ", "value": "UTC"}],
        "extraVolumes": [{"name": "more", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
        "podAnnotations": {"a": "b"},
        "podLabels": {"team": "x"},
        "commonLabels": {"owner": "y"},
        "priorityClassName": "system-cluster-critical",
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "topologySpreadConstraints": [
            {"topologyKey": "kubernetes.io/hostname", "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule"}
        ],
        "dryRun": True,
        "allowSharedNames": True,
        "podSelector": "grpc in (yes)",
        "prefix": "wsd-reg",
    },
}


def container(items: list[dict[str, Any]], kind: str = "Deployment") -> dict[str, Any]:
    workload = find(items, kind)
    return dict(workload["spec"]["template"]["spec"]["containers"][0])


def rules(items: list[dict[str, Any]], kind: str) -> set[tuple[str, str]]:
    role = next(item for item in items if item["kind"] == kind and "aggregate" not in str(item["metadata"]["labels"]))
    return {(resource, verb) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]}


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX.keys())
def test_helm_lint_is_strict_and_silent(values: dict[str, Any]) -> None:
    assert "0 chart(s) failed" in run_helm("lint", "--strict", chart.CHART, values=values)


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX.keys())
def test_every_pod_is_hardened_and_bounded(values: dict[str, Any]) -> None:
    for item in render(values):
        if item["kind"] not in ("Deployment", "StatefulSet", "Job"):
            continue
        spec = item["spec"]["template"]["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        for one in spec["containers"]:
            assert one["securityContext"]["readOnlyRootFilesystem"] is True
            assert one["securityContext"]["allowPrivilegeEscalation"] is False
            assert one["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert one["resources"]["requests"]["memory"]
            assert one["resources"]["limits"]["memory"]


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX.keys())
def test_every_object_carries_the_release_labels(values: dict[str, Any]) -> None:
    for item in render(values):
        labels = item["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == "grpc-etcd-operator"
        assert labels["app.kubernetes.io/version"] == chart.version()


def test_the_operator_gets_its_etcd_as_flags() -> None:
    args = container(render(ETCD))["args"]
    assert args[0] == "run"
    assert "--etcd-endpoints=etcd-0.etcd:2379,etcd-1.etcd:2379" in args
    assert "--lease-ttl=300" in args
    assert not [flag for flag in args if flag.startswith(("--prefix", "--namespace", "--dry-run", "--config"))]


def test_credentials_come_from_secrets_as_files_and_never_as_text() -> None:
    items = render(SECURED)
    args, mounts = container(items)["args"], container(items)["volumeMounts"]
    assert "--etcd-ca=/etc/grpc-etcd/default/tls/root.pem" in args
    assert "--etcd-cert=/etc/grpc-etcd/default/tls/tls.crt" in args
    assert "--etcd-key=/etc/grpc-etcd/default/tls/tls.key" in args
    assert "--etcd-user=operator" in args
    assert "--etcd-password-file=/etc/grpc-etcd/default/auth/password" in args
    # A Secret that is mounted whole follows its changes; one with a subPath would not.
    assert not [mount for mount in mounts if "subPath" in mount]
    volumes = find(items, "Deployment")["spec"]["template"]["spec"]["volumes"]
    secrets = {volume["secret"]["secretName"]: volume["secret"]["items"] for volume in volumes if "secret" in volume}
    # A kubelet that misses a key says so in an Event and starts nothing; without names the operator would end at once.
    named = {secret: {item["key"] for item in items} for secret, items in secrets.items()}
    assert named == {"etcd-tls": {"root.pem", "tls.crt", "tls.key"}, "etcd-user": {"password"}}


def test_several_registries_come_from_a_file_whose_change_is_a_rollout() -> None:
    items = render(SEVERAL)
    assert "--config=/etc/grpc-etcd/config/config.yaml" in container(items)["args"]
    text = next(item["data"]["config.yaml"] for item in items if "config.yaml" in item.get("data", {}))
    assert "ca: /etc/grpc-etcd/dr/tls/ca.crt" in text
    assert "etcd-0.etcd:2379,etcd-1.etcd:2379" in text
    other = render(SEVERAL | {"registries": {"dr": {"endpoints": ["elsewhere:2379"]}}})
    checksums = {
        find(each, "Deployment")["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
        for each in (items, other)
    }
    assert len(checksums) == 2


def test_named_namespaces_need_no_right_in_the_cluster() -> None:
    items = render(NAMESPACED | {"rbac": {"aggregate": False}})
    assert not [item for item in items if item["kind"].startswith("ClusterRole")]
    roles = [item for item in items if item["kind"] == "Role"]
    assert {role["metadata"]["namespace"] for role in roles} == {"shop", "till"}
    assert {"--namespace=shop", "--namespace=till"} <= set(container(items)["args"])


def test_the_role_allows_exactly_what_the_operator_does() -> None:
    everywhere = rules(render(ETCD), "ClusterRole")
    assert everywhere == {
        ("pods", "get"), ("pods", "list"), ("pods", "watch"), ("pods/status", "patch"),
        ("grpcservices", "get"), ("grpcservices", "list"), ("grpcservices", "watch"), ("grpcservices/status", "patch"),
        ("events", "create"), ("namespaces", "get"),
    }  # fmt: skip
    assert rules(render(NAMESPACED), "Role") == everywhere - {("namespaces", "get")}
    assert ("namespaces", "get") not in rules(render(ETCD | {"clusterId": "prod-1"}), "ClusterRole")


def test_the_crd_is_the_projects_own_and_is_kept_unless_told_otherwise() -> None:
    rendered = find(render(ETCD), "CustomResourceDefinition")
    assert rendered["spec"] == yaml.safe_load(chart.CRD.read_text())["spec"]
    assert rendered["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    gone = find(render(ETCD | {"crds": {"keep": False}}), "CustomResourceDefinition")
    assert "annotations" not in gone["metadata"]
    assert not [item for item in render(ETCD | {"crds": {"enabled": False}}) if "Definition" in item["kind"]]


def test_the_bundled_etcd_is_what_operator_and_clients_use() -> None:
    items = render(BUNDLED)
    service = find(items, "Service", "-etcd")["metadata"]["name"]
    address = f"{service}.default:2379"
    assert f"--etcd-endpoints={address}" in container(items)["args"]
    assert find(items, "ConfigMap", "-client")["data"] == {"GRPC_ETCD_ENDPOINTS": address}
    assert "volumeClaimTemplates" not in find(items, "StatefulSet")["spec"], "a trial needs no storage class"
    kept = render({"etcd": {"bundled": {"enabled": True, "persistence": {"enabled": True}}}})
    assert find(kept, "StatefulSet")["spec"]["volumeClaimTemplates"]


def test_a_single_replica_has_no_disruption_budget_that_would_block_a_drain() -> None:
    assert find(render(ETCD), "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    assert not [item for item in render(ETCD | {"replicas": 1}) if item["kind"] == "PodDisruptionBudget"]


def test_the_network_policy_opens_the_ports_of_every_registry() -> None:
    values = SEVERAL | {"networkPolicy": {"enabled": True}, "registries": {"dr": {"endpoints": ["dr:12379"]}}}
    egress = find(render(values), "NetworkPolicy")["spec"]["egress"]
    assert {port["port"] for rule in egress for port in rule["ports"]} == {53, 443, 6443, 2379, 12379}


def test_client_settings_can_be_copied_to_the_clients_namespaces() -> None:
    items = render(ETCD | {"clientConfig": {"namespaces": ["a", "b"], "extra": {"GRPC_ETCD_CA": "/ca"}}})
    copies = [item for item in items if item["metadata"]["name"].endswith("-client")]
    assert [copy["metadata"]["namespace"] for copy in copies] == ["a", "b"]
    assert copies[0]["data"]["GRPC_ETCD_CA"] == "/ca"


def test_cleanup_runs_after_the_operator_is_gone_with_the_same_registry() -> None:
    items = render(ALL)
    job = find(items, "Job", "-cleanup")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "post-delete"
    run, cleanup = container(items)["args"], container(items, "Job")["args"]
    assert cleanup[0] == "cleanup"
    assert set(cleanup[1:]) < set(run)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown value": (ETCD | {"replicaCount": 3}, "replicaCount"),
    "unknown value deep inside": ({"etcd": {"endpoints": ["e:1"], "tls": {"secret": "x"}}}, "secret"),
    "no etcd": ({}, "etcd.endpoints is empty"),
    "etcd twice": ({"etcd": {"endpoints": ["e:1"], "bundled": {"enabled": True}}}, "exclude each other"),
    "a URL as endpoint": ({"etcd": {"endpoints": ["http://e:2379"]}}, "/etcd/endpoints/0"),
    "an endpoint without port": ({"etcd": {"endpoints": ["e"]}}, "/etcd/endpoints/0"),
    "lease too short": (ETCD | {"leaseTtlSeconds": 5}, "leaseTtlSeconds"),
    "a text as number": (ETCD | {"replicas": "2"}, "replicas"),
    "no replica": (ETCD | {"replicas": 0}, "replicas"),
    "namespaces without an id": (ETCD | {"watchNamespaces": ["a"]}, "clusterId is empty"),
    "user without Secret": ({"etcd": {"endpoints": ["e:1"], "auth": {"user": "u"}}}, "etcd.auth.secretName"),
    "half a certificate": (
        {"etcd": {"endpoints": ["e:1"], "tls": {"secretName": "s", "certKey": "c"}}},
        "etcd.tls.keyKey",
    ),
    "half a certificate elsewhere": (
        ETCD | {"registries": {"dr": {"endpoints": ["e:1"], "tls": {"secretName": "s", "keyKey": "c"}}}},
        "registries.dr.tls.certKey",
    ),
    "a registry called default": (ETCD | {"registries": {"default": {"endpoints": ["e:1"]}}}, "registries.default"),
    "cleanup of an etcd that goes as well": (
        BUNDLED | {"cleanup": {"enabled": True}},
        "cleanup.enabled makes no sense",
    ),
    "TLS for the bundled etcd": (
        {"etcd": {"bundled": {"enabled": True}, "tls": {"secretName": "s"}}},
        "do not apply to the bundled etcd",
    ),
}


@pytest.mark.parametrize(("values", "sentence"), WRONG.values(), ids=WRONG.keys())
def test_wrong_values_are_refused_by_name(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(HelmError) as refusal:
        render(values)
    assert sentence in str(refusal.value)


def test_every_value_is_documented_and_in_the_schema() -> None:
    values = yaml.safe_load((chart.CHART / "values.yaml").read_text())
    schema = json.loads((chart.CHART / "values.schema.json").read_text())
    documented = {path for path, _ in chart.documented_values()}
    for path in _leaves(values, schema):
        assert path in documented or path.rpartition(".")[0] in documented, f"{path} has no comment"


def _leaves(values: dict[str, Any], schema: dict[str, Any], at: str = "") -> list[str]:
    found = []
    for name, value in values.items():
        assert name in schema["properties"], f"{at}{name} is not in the schema"
        inner = schema["properties"][name]
        if isinstance(value, dict) and "properties" in inner:
            assert inner["additionalProperties"] is False
            found += _leaves(value, inner, f"{at}{name}.")
        else:
            found.append(f"{at}{name}")
    return found

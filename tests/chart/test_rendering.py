"""What the chart renders: the statements that an admin relies on, over a matrix of values."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from testbed import chart
from testbed.helm import find, pod_templates, render, run_helm

ETCD = {"etcd": {"endpoints": ["etcd-0.etcd:2379", "etcd-1.etcd:2379"]}}
BUNDLED = {"etcd": {"bundled": {"enabled": True}}}
CA = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
SECURED = {
    "clientConfig": {"ca": CA, "auth": {"user": "reader", "secretName": "etcd-client"}},
    "etcd": {
        "endpoints": ["etcd:2379"],
        "tls": {"secretName": "etcd-tls", "caKey": "root.pem", "certKey": "tls.crt", "keyKey": "tls.key"},
        "auth": {"user": "operator", "secretName": "etcd-user"},
    },
}
SEVERAL = ETCD | {"registries": {"dr": {"endpoints": ["dr:2379"], "tls": {"secretName": "dr-tls"}}}}
SEVERAL_CLEANED = {
    "registries": {"dr": {"endpoints": ["dr:2379"]}},
    "cleanup": {"enabled": True},
    "networkPolicy": {"enabled": True},
}
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
    "an injected gate": NAMESPACED | {"readinessGate": {"inject": True}},
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
        "dnsConfig": {"options": [{"name": "ndots", "value": "2"}]},
        "revisionHistoryLimit": 3,
        "global": {"imageRegistry": "mirror.example:5000/"},
        "namespaceOverride": "registry",
        "tolerations": [{"operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "topologySpreadConstraints": [
            {"topologyKey": "kubernetes.io/hostname", "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule"}
        ],
        "dryRun": True,
        "allowSharedNames": True,
        "allowedPrefixes": ["wsd-reg", "teams/a"],
        "podSelector": "grpc in (yes)",
        "podWatch": "direct",
        "prefix": "wsd-reg",
    },
}


def merge(values: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Merge values as Helm does."""
    nested = {name: merge(values.get(name) or {}, each) for name, each in more.items() if isinstance(each, dict)}
    return values | more | nested


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
    for template in pod_templates(render(values)):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == 65532
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
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


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX.keys())
def test_names_that_look_like_numbers_are_texts(values: dict[str, Any]) -> None:
    """As of a release in CI that is named after a commit: the API server takes no number for a label or a name."""
    names = {"fullnameOverride": "true", "nameOverride": "1", "clientConfig": {"name": "7"}}
    text = run_helm("template", "12345e67", chart.CHART, "--namespace", "1", values=merge(values, names))
    for item in filter(None, yaml.safe_load_all(text)):
        if item["kind"] != "CustomResourceDefinition":
            assert [each for each in _texts(item) if not isinstance(each[1], str)] == []


def _texts(value: Any) -> Iterator[tuple[str, Any]]:
    """Return what has to be a text in an object: names, namespaces and labels."""
    if isinstance(value, list):
        for each in value:
            yield from _texts(each)
    if isinstance(value, dict):
        for name, each in value.items():
            if name in {"name", "namespace", "serviceAccountName", "serviceName"}:
                yield name, each
            if name in {"labels", "matchLabels"}:
                yield from each.items()
            yield from _texts(each)


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
        ("services", "list"), ("services", "watch"), ("events", "create"), ("namespaces", "get"),
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
    egress = find(render(values), "NetworkPolicy", "etcd-operator")["spec"]["egress"]
    assert {port["port"] for rule in egress for port in rule["ports"]} == {53, 5353, 443, 6443, 2379, 12379}
    assert {port["protocol"] for port in egress[0]["ports"]} == {"UDP", "TCP"}
    asked = {"networkPolicy": {"enabled": True, "dnsPorts": [1053]}, "etcd": {"endpoints": ["https://e:1/", "[::1]:2"]}}
    egress = find(render(asked), "NetworkPolicy", "etcd-operator")["spec"]["egress"]
    assert {port["port"] for rule in egress for port in rule["ports"]} == {1053, 443, 6443, 1, 2}


def test_the_cleanup_job_may_connect_to_what_the_operator_may() -> None:
    """A policy of its own, a hook as the Job is: the release's own is gone by then."""
    items = render(ALL)
    own = find(items, "NetworkPolicy", "-cleanup")
    assert own["metadata"]["annotations"] == find(items, "ServiceAccount", "-cleanup")["metadata"]["annotations"]
    job = find(items, "Job", "-cleanup")["spec"]["template"]["metadata"]["labels"]
    assert own["spec"]["podSelector"]["matchLabels"].items() <= job.items()
    assert own["spec"]["egress"] == find(items, "NetworkPolicy", "etcd-operator")["spec"]["egress"]
    assert own["spec"]["ingress"] == []


def test_every_pod_of_the_chart_has_its_policy() -> None:
    """Where the namespace denies what no policy allows, and where others would allow more than is needed."""
    items = render(BUNDLED | SEVERAL_CLEANED)
    selected = [item["spec"]["podSelector"]["matchLabels"].items() for item in items if item["kind"] == "NetworkPolicy"]
    pods = [template["metadata"]["labels"].items() for template in pod_templates(items)]
    assert len(pods) == len(selected) == 4
    assert all(any(one <= labels for one in selected) for labels in pods)


def test_https_endpoints_and_a_server_name_reach_the_operator_and_its_clients() -> None:
    items = render({"etcd": {"endpoints": ["https://a:2379", "https://b:2379"], "tls": {"serverName": "etcd.example"}}})
    assert "--etcd-endpoints=https://a:2379,https://b:2379" in container(items)["args"]
    assert "--etcd-server-name=etcd.example" in container(items)["args"]
    assert not [arg for arg in container(items)["args"] if arg.startswith("--etcd-ca")]
    assert find(items, "ConfigMap", "-client")["data"] == {
        "GRPC_ETCD_ENDPOINTS": "https://a:2379,https://b:2379",
        "GRPC_ETCD_SERVER_NAME": "etcd.example",
    }
    text = find(
        render(SEVERAL | {"registries": {"dr": {"endpoints": ["https://e:1"], "tls": {"serverName": "x"}}}}),
        "ConfigMap",
        "etcd-operator",
    )
    assert yaml.safe_load(text["data"]["config.yaml"])["registries"]["dr"] == {
        "endpoints": "https://e:1",
        "serverName": "x",
    }


def test_a_client_certificate_goes_with_public_authorities() -> None:
    tls = {"secretName": "s", "caKey": "", "certKey": "tls.crt", "keyKey": "tls.key"}
    items = render({"etcd": {"endpoints": ["https://a:2379"], "tls": tls}})
    assert not [arg for arg in container(items)["args"] if arg.startswith("--etcd-ca")]
    volumes = find(items, "Deployment")["spec"]["template"]["spec"]["volumes"]
    assert [item["key"] for volume in volumes if "secret" in volume for item in volume["secret"]["items"]] == [
        "tls.crt",
        "tls.key",
    ]


def test_a_container_that_restarts_knows_its_pod_and_its_installation() -> None:
    env = {entry["name"]: entry for entry in container(render(ETCD))["env"]}
    assert env["GRPC_ETCD_OPERATOR_IDENTITY"]["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.uid"}}
    assert env["GRPC_ETCD_OPERATOR_INSTALLATION"]["value"] == "default/grpc-etcd-operator"


def test_the_operators_container_has_the_variables_of_the_command_line() -> None:
    found = {entry["name"]: entry.get("value") for entry in container(render(SECURED | {"prefix": "wsd-reg"}))["env"]}
    assert (
        found.items()
        >= {
            "GRPC_ETCD_OPERATOR_ENDPOINTS": "etcd:2379",
            "GRPC_ETCD_OPERATOR_CA": "/etc/grpc-etcd/default/tls/root.pem",
            "GRPC_ETCD_OPERATOR_CERT": "/etc/grpc-etcd/default/tls/tls.crt",
            "GRPC_ETCD_OPERATOR_KEY": "/etc/grpc-etcd/default/tls/tls.key",
            "GRPC_ETCD_OPERATOR_USER": "operator",
            "GRPC_ETCD_OPERATOR_PASSWORD_FILE": "/etc/grpc-etcd/default/auth/password",
            "GRPC_ETCD_OPERATOR_PREFIX": "wsd-reg",
        }.items()
    )
    names = {entry["name"] for entry in container(render(SEVERAL))["env"]}
    assert "GRPC_ETCD_OPERATOR_ENDPOINTS" in names


def test_gates_may_be_opened_only_where_the_values_say() -> None:
    gate = ("pods/status", "patch")
    assert gate not in rules(render(ETCD | {"readinessGate": {"enabled": False}}), "ClusterRole")
    assert gate not in rules(render(NAMESPACED | {"readinessGate": {"enabled": False}}), "Role")
    for base, names in ((ETCD, ["a", "b"]), (NAMESPACED, ["shop"])):
        items = render(base | {"readinessGate": {"namespaces": names}})
        roles = [item for item in items if "Role" in item["kind"] and "pods/status" in str(item.get("rules"))]
        assert [(role["kind"], role["metadata"]["namespace"]) for role in roles] == [("Role", name) for name in names]
        bindings = [
            item for item in items if item["kind"] == "RoleBinding" and item["metadata"]["name"].endswith("-gate")
        ]
        assert [binding["metadata"]["namespace"] for binding in bindings] == names
    assert not [
        item
        for item in render(ETCD | {"readinessGate": {"enabled": False, "namespaces": ["a"]}})
        if item["kind"] in ("Role", "RoleBinding")
    ]


def test_client_settings_can_outlive_the_release() -> None:
    assert "annotations" not in find(render(ETCD), "ConfigMap", "-client")["metadata"]
    kept = find(render(ETCD | {"clientConfig": {"keep": True}}), "ConfigMap", "-client")
    assert kept["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


def test_a_dry_run_leaves_no_cleanup_behind() -> None:
    values = ETCD | {"dryRun": True, "cleanup": {"enabled": True}}
    assert not [item for item in render(values) if item["kind"] == "Job"]


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_dry_run_which_opens_no_gate_has_none_injected(*, dry_run: bool) -> None:
    kinds = [item["kind"] for item in render(ETCD | {"dryRun": dry_run, "readinessGate": {"inject": True}})]
    policies = [kind for kind in kinds if kind.startswith("MutatingAdmissionPolicy")]
    assert policies == ([] if dry_run else ["MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding"])


@pytest.mark.parametrize(
    ("repository", "expected"),
    {
        "grpc-etcd-operator": "mirror.example:5000/grpc-etcd-operator",
        "team/grpc-etcd-operator": "mirror.example:5000/team/grpc-etcd-operator",
        "quay.example/team/grpc-etcd-operator": "mirror.example:5000/team/grpc-etcd-operator",
        "localhost:5000/grpc-etcd-operator": "mirror.example:5000/grpc-etcd-operator",
    }.items(),
)
def test_a_registry_for_all_images_takes_the_place_of_each_ones_own(repository: str, expected: str) -> None:
    given = BUNDLED | {"image": {"repository": repository, "tag": "1"}}
    items = render(given | {"global": {"imageRegistry": "mirror.example:5000"}})
    assert container(items)["image"] == f"{expected}:1"
    assert container(items, "StatefulSet")["image"].startswith("mirror.example:5000/coreos/etcd:")
    assert container(render(given))["image"] == f"{repository}:1"


def test_objects_can_be_put_into_another_namespace() -> None:
    everything = ALL | {"etcd": BUNDLED["etcd"], "cleanup": {"enabled": False}, "namespaceOverride": "registry"}
    items = render(everything, namespace="platform")
    assert {item["metadata"].get("namespace", "registry") for item in items} == {"registry"}
    assert "platform" not in json.dumps(items)


def test_further_objects_are_installed_as_they_are_given() -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "{{ .Release.Name }}-etcd"}}
    text = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {{ .Release.Name }}-more\n"
    items = render(ETCD | {"extraObjects": [secret, text]})
    names = {(item["kind"], item["metadata"]["name"]) for item in items}
    assert {("Secret", "grpc-etcd-operator-etcd"), ("ConfigMap", "grpc-etcd-operator-more")} <= names


def test_further_objects_may_have_long_templates_and_anything_else_that_yaml_has() -> None:
    """Helm's toYaml breaks lines after 80 characters, also between the quotes of a template."""
    words = " ".join(["word"] * 30)
    long = f'{{{{ printf "%s, %s" "{words}" .Release.Name }}}}'
    data = {"long": long, '{{ "key" }}': 'a: "b" # {{ 1 }}\n', "empty": ""}
    spec: dict[str, Any] = {
        "number": 8080,
        "none": None,
        "yes": True,
        "map": {},
        "list": [1, "{{ .Release.Name }}", {"a": ["{{ 2 }}"]}],
    }
    given = {"apiVersion": "example.com/v1", "kind": "Extra", "metadata": {"name": "x"}, "data": data, "spec": spec}
    (made,) = [item for item in render(ETCD | {"extraObjects": [given]}) if item["kind"] == "Extra"]
    assert made["data"] == {"long": f"{words}, grpc-etcd-operator", "key": 'a: "b" # 1\n', "empty": ""}
    assert made["spec"] == spec | {"list": [1, "grpc-etcd-operator", {"a": ["2"]}]}


def test_alerts_link_to_a_runbook_only_by_an_absolute_url() -> None:
    def links(**more: str) -> set[str]:
        items = render(ETCD | {"prometheusRule": {"enabled": True, **more}})
        groups = find(items, "PrometheusRule")["spec"]["groups"]
        return {rule["annotations"].get("runbook_url", "") for group in groups for rule in group["rules"]}

    assert links() == {""}
    assert "https://wiki.example/operations#grpcetcdnoleader" in links(
        runbookBaseUrl="https://wiki.example/operations#"
    )


def test_cleanup_runs_after_the_operator_is_gone_with_the_same_registry() -> None:
    items = render(ALL)
    job = find(items, "Job", "-cleanup")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "post-delete"
    run, cleanup = container(items)["args"], container(items, "Job")["args"]
    assert cleanup[0] == "cleanup"
    assert set(cleanup[1:]) < set(run)


def test_cleanup_leaves_a_bundled_etcd_out_that_goes_with_the_release() -> None:
    values = BUNDLED | {"cleanup": {"enabled": True}, "registries": {"dr": {"endpoints": ["e:1"]}}}
    items = render(values)
    configs = [yaml.safe_load(find(items, "ConfigMap", end)["data"]["config.yaml"]) for end in ("operator", "-cleanup")]
    assert [sorted(each["registries"]) for each in configs] == [["default", "dr"], ["dr"]]


def test_helm_test_asks_with_the_settings_and_the_account_of_the_operator() -> None:
    for values in (ALL, SECURED, SEVERAL, NAMESPACED, BUNDLED):
        items = render(values)
        pod, workload = find(items, "Pod"), find(items, "Deployment")["spec"]["template"]
        assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
        (asking,), (running,) = pod["spec"]["containers"], workload["spec"]["containers"]
        assert asking["args"][0] == "verify"
        assert set(asking["args"][1:]) < set(running["args"])
        assert asking["image"] == running["image"]
        assert asking["volumeMounts"] == running["volumeMounts"]
        assert [each for each in running["env"] if each["name"].endswith("_INSTALLATION")] == asking["env"]
        for shared in ("serviceAccountName", "volumes", "securityContext"):
            assert pod["spec"][shared] == workload["spec"][shared]
        # What the account is for is the cluster's identity alone.
        assert pod["spec"]["automountServiceAccountToken"] is not bool(values.get("clusterId"))


def test_the_pod_of_helm_test_may_connect_to_what_the_operator_may() -> None:
    items = render(ALL)
    own, pod = find(items, "NetworkPolicy", "-test"), find(items, "Pod")
    assert own["metadata"]["annotations"].items() >= pod["metadata"]["annotations"].items()
    # An uninstall deletes no hooks.
    assert "hook-succeeded" in pod["metadata"]["annotations"]["helm.sh/hook-delete-policy"]
    assert own["spec"]["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert own["spec"]["egress"] == find(items, "NetworkPolicy", "etcd-operator")["spec"]["egress"]


def test_the_trial_needs_no_storage_class() -> None:
    state = find(render(BUNDLED), "StatefulSet")["spec"]
    assert "volumeClaimTemplates" not in state
    assert state["template"]["spec"]["volumes"] == [{"name": "data", "emptyDir": {}}]
    kept = render(
        {"etcd": {"bundled": {"enabled": True, "persistence": {"enabled": True, "storageClassName": "fast"}}}}
    )
    (claim,) = find(kept, "StatefulSet")["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["storageClassName"] == "fast"


def test_the_cluster_may_choose_the_user_of_every_pod() -> None:
    """As OpenShift wants to: it refuses Pods that ask for a user outside of their namespace's range."""
    free = {"podSecurityContext": dict.fromkeys(("runAsUser", "runAsGroup", "fsGroup"))}
    for values in (ALL | free, BUNDLED | free):
        for template in pod_templates(render(values)):
            contexts = [template["spec"]["securityContext"]]
            contexts += [each["securityContext"] for each in template["spec"]["containers"]]
            assert not [each for each in contexts if {"runAsUser", "runAsGroup", "fsGroup"} & each.keys()]
            assert contexts[0]["runAsNonRoot"] is True


def test_a_dry_run_which_never_leads_has_no_test() -> None:
    assert not [item for item in render(ETCD | {"dryRun": True}) if item["kind"] == "Pod"]


def test_annotations_of_artifact_hub_name_what_the_chart_brings() -> None:
    annotations = yaml.safe_load((chart.CHART / "Chart.yaml").read_text())["annotations"]
    listed = {name.partition("/")[2]: yaml.safe_load(text) for name, text in annotations.items()}
    rendered = [*pod_templates(render(BUNDLED))]
    images = {container["image"] for template in rendered for container in template["spec"]["containers"]}
    assert {each["image"] for each in listed["images"]} == images
    (crd,) = [item for item in render(ETCD) if item["kind"] == "CustomResourceDefinition"]
    (shown,) = listed["crds"]
    assert (shown["name"], shown["kind"]) == (crd["metadata"]["name"], crd["spec"]["names"]["kind"])
    assert [shown["version"]] == [version["name"] for version in crd["spec"]["versions"]]
    assert {each["kind"] for each in listed["crdsExamples"]} == {shown["kind"]}

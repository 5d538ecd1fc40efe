"""The chart on a real API server: what it renders is accepted, and the operator works with exactly what it was given.

No kubelet runs on the test bed, so the tests start the operator's process themselves, from the Deployment that the API
server stores: its arguments, its environment, the rights of its ServiceAccount, the Secrets that it mounts.
"""

import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from testbed.apiserver import ApiServer
from testbed.certificates import Authority
from testbed.chart import CHART, CRD
from testbed.conditions import free_port, wait_until
from testbed.etcd import EtcdServer
from testbed.helm import HelmError, OperatorPod, Release, find, render
from testbed.kubelet import Kubelet, Pod
from testbed.manifests import wait_established
from testbed.promtool import answered, scraped

OPERATORS = "operators"
GATE, OTHER_GATE = "grpc-etcd.dev/registered", "example.com/other"
CLIENTS = {"auth": {"user": "reader", "secretName": "etcd-client"}}


@pytest.fixture
def release(cluster: ApiServer) -> Release:
    for name in (OPERATORS, "shop", "till"):
        cluster.kubectl("create", "namespace", name)
    return Release(cluster, OPERATORS)


@pytest.fixture
def kubelet(cluster: ApiServer) -> Iterator[Kubelet]:
    with Kubelet(cluster) as started:
        yield started


def values(etcd: EtcdServer, **more: Any) -> dict[str, Any]:
    return {"etcd": {"endpoints": etcd.endpoints.split(",")}, "metricsPort": free_port(), **more}


def deployment(release: Release) -> dict[str, Any]:
    return release.api.client.get("apps/v1", "Deployment", "grpc-etcd-operator", OPERATORS)


def greeter(api: ApiServer, namespace: str) -> None:
    item = {
        "apiVersion": "grpc-etcd.dev/v1alpha1",
        "kind": "GrpcService",
        "metadata": {"name": "greeter", "namespace": namespace},
        "spec": {"selector": {"matchLabels": {"app": "greeter"}}},
    }
    wait_established(api.client)
    api.kubectl("apply", "-f", "-", stdin=json.dumps(item))


def provider_key(pod: Pod) -> str:
    return f"/jupiter/greeter/providers/grpc://{pod.address}"


def mod_revision(etcd: EtcdServer, key: str) -> int:
    """The revision of the last write of a key, 0 when it is not there."""
    found = json.loads(etcd.etcdctl("get", key, "--write-out=json")).get("kvs", [])
    return int(found[0]["mod_revision"]) if found else 0


def wait_registered(etcd: EtcdServer, pod: Pod) -> int:
    return wait_until(lambda: mod_revision(etcd, provider_key(pod)), f"the key of {pod.name}")


def events(api: ApiServer) -> str:
    return api.kubectl("get", "events", "-n", "shop", "-o", "jsonpath={.items[*].message}")


@pytest.mark.parametrize(
    "more",
    [
        {name: {"enabled": True} for name in ("serviceMonitor", "prometheusRule", "dashboard", "cleanup")},
        {"watchNamespaces": ["shop", "till"], "clusterId": "prod-1", "registries": {"dr": {"endpoints": ["e:1"]}}},
        {"etcd": {"bundled": {"enabled": True}}, "networkPolicy": {"enabled": True}},
    ],
    ids=["watched", "namespaced", "trial"],
)
def test_the_api_server_accepts_every_rendered_object(release: Release, more: dict[str, Any]) -> None:
    items = render({"etcd": {"endpoints": ["etcd:2379"]}, **more}, namespace=OPERATORS)
    text = yaml.safe_dump_all(items)
    said = release.api.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", stdin=text)
    assert said.count("(server dry run)") == len(items)


def test_install_upgrade_roll_back_uninstall(
    release: Release, kubelet: Kubelet, etcd: EtcdServer, tmp_path: Path
) -> None:
    notes = release.install(values(etcd, cleanup={"enabled": True}))
    assert "kubectl get grpcservices" in notes
    greeter(release.api, "shop")
    pod = kubelet.create_pod(namespace="shop", labels={"app": "greeter"})
    with OperatorPod(release.api, deployment(release), tmp_path / "first") as operator:
        operator.wait_ready()
        written = wait_registered(etcd, pod)

    release.install(values(etcd, cleanup={"enabled": True}, leaseTtlSeconds=60, logLevel="debug"))
    assert "--lease-ttl=60" in deployment(release)["spec"]["template"]["spec"]["containers"][0]["args"]
    with OperatorPod(release.api, deployment(release), tmp_path / "second") as operator:
        operator.wait_ready()
        assert mod_revision(etcd, provider_key(pod)) == written, "an upgrade rewrote a key that had not changed"
        newcomer = kubelet.create_pod(namespace="shop", labels={"app": "greeter"})
        wait_registered(etcd, newcomer)

    release.helm("rollback", release.name, "1")
    with OperatorPod(release.api, deployment(release), tmp_path / "third") as operator:
        operator.wait_ready()
        kubelet.unready(newcomer)
        wait_until(lambda: not mod_revision(etcd, provider_key(newcomer)), "the deregistration after the rollback")
        assert mod_revision(etcd, provider_key(pod)) == written

    hooks = [item for item in yaml.safe_load_all(release.helm("get", "hooks", release.name)) if item]
    # No controller runs Jobs here, so Helm would wait for ever for its hook; the test plays the Job.
    release.uninstall("--no-hooks")
    assert release.api.client.find("apps/v1", "Deployment", "grpc-etcd-operator", OPERATORS) is None
    assert release.api.kubectl("get", "grpcservices", "-n", "shop", "-o", "name").strip(), "the CRD was not kept"
    assert mod_revision(etcd, provider_key(pod)) == written, "the uninstall alone deregistered a key"
    for item in hooks:
        release.api.client.create(item)
    with OperatorPod(release.api, find(hooks, "Job"), tmp_path / "cleanup") as cleanup:
        wait_until(lambda: not cleanup.process.is_running, "the end of the cleanup")
        assert cleanup.process.returncode == 0
    assert mod_revision(etcd, provider_key(pod)) == 0
    assert not etcd.etcdctl("get", "--prefix", "/grpc-etcd/owner/", "--keys-only").strip()


def test_helm_test_passes_on_what_the_chart_has_installed(
    release: Release, kubelet: Kubelet, etcd: EtcdServer, tmp_path: Path
) -> None:
    """Its Pod is played as the operator's is, with the rights of its ServiceAccount alone."""
    release.install(values(etcd))
    hooks = [item for item in yaml.safe_load_all(release.helm("get", "hooks", release.name)) if item]
    pod = find(hooks, "Pod")
    greeter(release.api, "shop")
    with OperatorPod(release.api, deployment(release), tmp_path / "operator") as operator:
        operator.wait_ready()
        wait_registered(etcd, kubelet.create_pod(namespace="shop", labels={"app": "greeter"}))
        with OperatorPod(release.api, pod, tmp_path / "test") as test:
            wait_until(lambda: not test.process.is_running, "the end of the test")
            assert test.process.returncode == 0, test.process.log.read_text()


def test_an_upgrade_restores_a_role_that_was_deleted_and_the_operator_goes_on(
    release: Release, kubelet: Kubelet, etcd: EtcdServer, tmp_path: Path
) -> None:
    given, client = values(etcd), release.api.client
    release.install(given)
    greeter(release.api, "shop")

    def registered() -> int:
        status = client.get("grpc-etcd.dev/v1alpha1", "GrpcService", "greeter", "shop").get("status", {})
        return int(status.get("endpoints", {}).get("registered", 0))

    with OperatorPod(release.api, deployment(release), tmp_path) as operator:
        operator.wait_ready()
        wait_registered(etcd, kubelet.create_pod(namespace="shop", labels={"app": "greeter"}))
        wait_until(lambda: registered() == 1, "the first Pod in the status")
        release.api.kubectl("delete", "clusterrole", "grpc-etcd-operator")
        kubelet.create_pod(namespace="shop", labels={"app": "greeter"})  # its watch may outlive the permission
        wait_until(lambda: "orbidden" in operator.process.log.read_text(), "a refusal")
        assert registered() == 1
        release.install(given)
        wait_until(lambda: registered() == 2, "both Pods in the status")
        assert operator.process.is_running


def test_a_role_that_was_changed_with_kubectl_is_restored_by_an_upgrade_that_forces_conflicts(
    release: Release, etcd: EtcdServer
) -> None:
    """What `grpc-etcd check` and the runbook name for permissions that are gone, run as it stands there."""
    given = values(etcd)
    release.install(given)
    read = ("get", "clusterrole", "grpc-etcd-operator", "-o", "jsonpath={.rules}")
    rules = release.api.kubectl(*read)
    release.api.kubectl("patch", "clusterrole", "grpc-etcd-operator", "--type=merge", "-p", '{"rules": []}')
    with pytest.raises(HelmError, match="conflict"):
        release.install(given)
    release.helm("upgrade", release.name, CHART, "--reset-then-reuse-values", "--force-conflicts")
    assert release.api.kubectl(*read) == rules


def test_the_api_server_adds_the_gate_where_the_namespace_asks_for_it_and_the_operator_opens_it(
    release: Release, kubelet: Kubelet, etcd: EtcdServer, tmp_path: Path
) -> None:
    release.install(values(etcd, readinessGate={"inject": True}))
    release.api.kubectl("label", "namespace", "shop", "grpc-etcd.dev/inject-readiness-gate=true")

    def read(pod: Pod) -> dict[str, Any]:
        return release.api.client.get("v1", "Pod", pod.name, pod.item["metadata"]["namespace"])

    def gates(pod: Pod) -> list[str]:
        return [each["conditionType"] for each in read(pod)["spec"].get("readinessGates", [])]

    def is_open(pod: Pod) -> bool:
        return (GATE, "True") in [(each["type"], each["status"]) for each in read(pod)["status"]["conditions"]]

    def make(namespace: str, *others: str) -> Pod:
        return kubelet.create_pod(namespace=namespace, labels={"app": "greeter"}, gates=others)

    # A policy takes effect some moments after it was created.
    wait_until(lambda: gates(make("shop")) == [GATE], "the API server to add the gate")
    assert gates(make("shop", OTHER_GATE)) == [OTHER_GATE, GATE]
    assert gates(make("shop", GATE)) == [GATE]
    assert gates(make("till")) == []
    greeter(release.api, "shop")
    with OperatorPod(release.api, deployment(release), tmp_path / "operator") as operator:
        operator.wait_ready()
        pod = make("shop")
        wait_registered(etcd, pod)
        wait_until(lambda: is_open(pod), "the operator to open the gate")


def test_what_the_notes_tell_to_type_works(release: Release, etcd: EtcdServer) -> None:
    notes = release.install(values(etcd))
    wait_established(release.api.client)
    manifest = notes.partition("<<EOF\n")[2].partition("   EOF")[0]
    release.api.kubectl("apply", "-f", "-", stdin=textwrap.dedent(manifest))
    assert "greeter" in release.api.kubectl("get", "grpcservices", "--all-namespaces")
    client = release.api.client.get("v1", "ConfigMap", "grpc-etcd-operator-client", OPERATORS)
    assert f"configMapRef: {{name: {client['metadata']['name']}}}" in notes
    assert client["data"] == {"GRPC_ETCD_ENDPOINTS": etcd.endpoints}


def test_named_namespaces_are_served_without_a_right_elsewhere(
    release: Release, kubelet: Kubelet, etcd: EtcdServer, tmp_path: Path
) -> None:
    release.install(
        values(etcd, watchNamespaces=["shop"], clusterId="prod-1", rbac={"aggregate": False}, crds={"keep": False})
    )
    greeter(release.api, "shop")
    greeter(release.api, "till")
    inside = kubelet.create_pod(namespace="shop", labels={"app": "greeter"})
    outside = kubelet.create_pod(namespace="till", labels={"app": "greeter"})
    account = f"system:serviceaccount:{OPERATORS}:grpc-etcd-operator"
    can_list = release.api.kubectl("auth", "can-i", "list", "pods", "-n", "till", "--as", account, check=False)
    assert can_list.strip() == "no"
    with OperatorPod(release.api, deployment(release), tmp_path) as operator:
        operator.wait_ready()
        wait_registered(etcd, inside)
        assert not mod_revision(etcd, provider_key(outside))


def test_tls_and_password_come_from_secrets_and_are_renewed_in_place(
    cluster: ApiServer, release: Release, kubelet: Kubelet, tmp_path: Path
) -> None:
    with EtcdServer.start(tls=True) as etcd:
        admin = etcd.enable_auth("rootpass")
        etcd.add_user("operator", "right", ["/jupiter/", "/grpc-etcd/"], admin=admin)
        assert etcd.authority
        authority = etcd.authority.ca.read_text()
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "etcd", "namespace": OPERATORS}}
        cluster.client.create(secret | {"stringData": {"ca.crt": authority, "password": "wrong"}})
        secured = {"tls": {"secretName": "etcd"}, "auth": {"user": "operator", "secretName": "etcd"}}
        given = values(etcd, clientConfig=CLIENTS)
        given["etcd"] |= secured
        release.install(given)
        greeter(cluster, "shop")
        pod = kubelet.create_pod(namespace="shop", labels={"app": "greeter"})
        with OperatorPod(cluster, deployment(release), tmp_path) as operator:
            # A wrong password: the process lives, the Pod is not ready, and the log says what to change.
            wait_until(lambda: operator.asks("/readyz")[0] == 503, "a refused readiness")
            wait_until(lambda: "etcd.auth.secretName" in operator.process.log.read_text(), "the value in the log")
            wait_until(lambda: "etcd.auth.secretName" in events(cluster), "the value in an Event")
            assert operator.asks("/healthz")[0] == 200
            assert "wrong" not in operator.process.log.read_text(), "the log holds the password"
            # What a kubelet does when the Secret changes.
            mounted = Path(f"{tmp_path}/etc/grpc-etcd/default/auth/password")
            mounted.with_suffix(".new").write_text("right")
            mounted.with_suffix(".new").replace(mounted)
            operator.wait_ready()
            wait_until(lambda: etcd.etcdctl("get", provider_key(pod), user=admin).strip(), "the key")


def test_the_ca_of_clients_comes_from_the_operators_secret(cluster: ApiServer, release: Release) -> None:
    """And with it, and the password of the Secret that the notes name, a client in another namespace gets in."""
    with EtcdServer.start(tls=True) as etcd:
        admin = etcd.enable_auth("rootpass")
        etcd.add_user("reader", "read-it", ["/jupiter/"], admin=admin)
        etcd.etcdctl("put", "/jupiter/greeter/providers/grpc://10.0.0.7:9000", ENDPOINT, user=admin)
        assert etcd.authority
        given = values(etcd, clientConfig=CLIENTS | {"namespaces": ["shop"]})
        given["etcd"] |= {"tls": {"secretName": "etcd"}, "auth": {"user": "operator", "secretName": "etcd"}}
        with pytest.raises(HelmError, match=r"clientConfig\.ca is empty"):
            release.install(given)
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "etcd", "namespace": OPERATORS}}
        cluster.client.create(secret | {"stringData": {"ca.crt": etcd.authority.ca.read_text(), "password": "x"}})
        notes = release.install(given)
        assert "secretKeyRef: {name: etcd-client, key: password}" in notes
        data = cluster.client.get("v1", "ConfigMap", "grpc-etcd-operator-client", "shop")["data"]
        assert "greeter" in execute(data | {"GRPC_ETCD_PASSWORD": "read-it"}, "ls")


def test_a_wrong_ca_leaves_the_pod_unready_and_log_and_event_name_the_value(
    cluster: ApiServer, release: Release, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path / "stranger")
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "etcd", "namespace": OPERATORS}}
    cluster.client.create(secret | {"stringData": {"ca.crt": stranger.ca.read_text()}})
    with EtcdServer.start(tls=True) as etcd:
        given = values(etcd)
        given["etcd"] |= {"tls": {"secretName": "etcd"}}
        release.install(given)
        greeter(cluster, "shop")
        with OperatorPod(cluster, deployment(release), tmp_path / "pod") as operator:
            wait_until(lambda: operator.asks("/readyz")[0] == 503, "a refused readiness")
            for text in ("CERTIFICATE_VERIFY_FAILED", "--etcd-ca", "etcd.tls.caKey"):
                wait_until(lambda: text in operator.process.log.read_text(), f"{text} in the log")  # noqa: B023
            wait_until(lambda: "etcd.tls.caKey" in events(cluster), "the value in an Event")
            wait_until(lambda: "etcd.tls.caKey" in operator.asks("/readyz")[1], "the value in the probe's answer")


def test_a_dry_run_is_ready_and_its_log_has_the_plan(
    release: Release, kubelet: Kubelet, etcd: EtcdServer, tmp_path: Path
) -> None:
    release.install(values(etcd, dryRun=True))
    greeter(release.api, "shop")
    pod = kubelet.create_pod(namespace="shop", labels={"app": "greeter"})
    with OperatorPod(release.api, deployment(release), tmp_path) as operator:
        operator.wait_ready()
        wait_until(lambda: provider_key(pod) in operator.process.log.read_text(), "the plan in the log")
        assert operator.asks("/healthz")[0] == 200
        assert not etcd.etcdctl("get", "--prefix", "/", "--keys-only").strip()


@pytest.mark.parametrize("several", [False, True], ids=["one registry", "several"])
def test_the_command_line_works_in_the_operators_container_as_it_is(
    cluster: ApiServer, release: Release, etcd: EtcdServer, tmp_path: Path, *, several: bool
) -> None:
    """With no more than the variables and files of the rendered Deployment: TLS, a user, a prefix."""
    with EtcdServer.start(tls=True) as secured:
        assert secured.authority
        admin = secured.enable_auth("rootpass")
        secured.add_user("operator", "right", ["/wsd-reg/", "/grpc-etcd/"], admin=admin)
        secured.etcdctl("put", "/wsd-reg/greeter/providers/grpc://10.0.0.7:9000", ENDPOINT, user=admin)
        etcd.etcdctl("put", "/wsd-reg/elsewhere/providers/grpc://10.0.0.7:9000", ENDPOINT)
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "etcd", "namespace": OPERATORS}}
        data = {"ca.crt": secured.authority.ca.read_text(), "password": "right"}
        cluster.client.create(secret | {"stringData": data})
        given = values(secured, prefix="wsd-reg", clientConfig=CLIENTS)
        given["etcd"] |= {"tls": {"secretName": "etcd"}, "auth": {"user": "operator", "secretName": "etcd"}}
        if several:
            given["registries"] = {"dr": {"endpoints": etcd.endpoints.split(",")}}
        release.install(given)
        environment = OperatorPod(cluster, deployment(release), tmp_path).environment
        assert "greeter" in execute(environment, "ls")
        if several:
            assert "elsewhere" in execute(environment, "ls", "--registry", "dr")


ENDPOINT = json.dumps({"name": "greeter", "scheme": "grpc", "address": "10.0.0.7:9000", "weight": 100, "enable": True})


def execute(environment: dict[str, str], *arguments: str) -> str:
    """Run `grpc-etcd` with these variables and no others."""
    command: list[str | Path] = [Path(sys.executable).with_name("grpc-etcd"), *arguments]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


def test_every_panel_of_the_dashboard_has_something_to_show(
    cluster: ApiServer, release: Release, kubelet: Kubelet, tmp_path: Path
) -> None:
    """Prometheus' own evaluator answers each query from what an operator on TLS, through an outage, really exposed."""
    with EtcdServer.start(tls=True) as etcd:
        assert etcd.authority
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "etcd", "namespace": OPERATORS}}
        cluster.client.create(secret | {"stringData": {"ca.crt": etcd.authority.ca.read_text()}})
        given = values(etcd)
        given["etcd"] |= {"tls": {"secretName": "etcd"}}
        release.install(given)
        greeter(cluster, "shop")
        pod = kubelet.create_pod(namespace="shop", labels={"app": "greeter"})
        with OperatorPod(cluster, deployment(release), tmp_path / "pod") as operator:
            operator.wait_ready()
            wait_registered(etcd, pod)
            before = operator.asks("/metrics")[1]
            etcd.kill()
            wait_until(
                lambda: "grpc_etcd_operator_etcd_errors_total{" in operator.asks("/metrics")[1], "a counted error"
            )
            after = operator.asks("/metrics")[1]
    dashboard = json.loads((CHART / "files/dashboard.json").read_text())
    queries = {
        f"{panel['title']} {target['expr']}": target["expr"].replace("$namespace", ".*").replace("$registry", ".*")
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    }
    assert len(queries) > 15
    assert queries.keys() - answered(queries, scraped(before, after), tmp_path) == set()


def test_an_older_crd_is_upgraded_in_place_with_its_objects(
    cluster: ApiServer, release: Release, etcd: EtcdServer
) -> None:
    older = yaml.safe_load(CRD.read_text())
    fields = older["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    del fields["metricsPort"]
    cluster.client.create(older)
    greeter(cluster, "shop")
    with pytest.raises(HelmError, match=r"cannot be imported|invalid ownership"):
        release.install(values(etcd))
    release.helm(
        "upgrade", "--install", release.name, CHART, "--take-ownership", "--force-conflicts",
        values=values(etcd),
    )  # fmt: skip
    now = cluster.client.get("apiextensions.k8s.io/v1", "CustomResourceDefinition", older["metadata"]["name"])
    assert "metricsPort" in json.dumps(now["spec"])
    assert cluster.kubectl("get", "gsvc", "greeter", "-n", "shop", "-o", "name").strip()

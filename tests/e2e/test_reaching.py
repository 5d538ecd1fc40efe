"""Without endpoints, commands that read reach the cluster's etcd through kubectl, as far as the caller's rights allow.

The API server, kubectl and etcd are real; a Node's streams are served by the code of real container runtimes.
"""

import base64
import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from grpc_etcd import Endpoint
from grpc_etcd.etcd import Etcd, Tls
from grpc_etcd.layouts.index import make_layout
from grpc_etcd.registry.layout import KeyValue
from testbed.conditions import PATIENCE_SECONDS, wait_until
from testbed.etcd import EtcdServer
from testbed.helm import find, render
from testbed.kubelet import Kubelet, condition
from testbed.kubernetes_api import STRATEGIC, Object
from testbed.node_streams import NodeStreams
from tests.e2e.conftest import Scene
from tests.e2e.test_check import BIN, Checker, Found

ADDRESS = "127.0.9.1:9000"
UNREACHED = {"GE0906", "GE0909"}
Install = Callable[..., list[Object]]


@pytest.fixture
def laptop(scene: Scene) -> Checker:
    """Somebody with a kubeconfig and kubectl, and without any setting of etcd."""
    checker = Checker(scene)
    del checker.environ["GRPC_ETCD_ENDPOINTS"]
    return checker


@pytest.fixture
def streams(scene: Scene, kubelet: Kubelet) -> Iterator[NodeStreams]:
    with NodeStreams(scene.api, kubelet, f"streams-{scene.namespace}") as node:
        yield node


@pytest.fixture
def install(scene: Scene) -> Iterator[Install]:
    """Create the chart's Deployment and its ConfigMap for clients, which other tests here are not to see."""

    def create(etcd: Object, **values: object) -> list[Object]:
        items = render({"etcd": etcd, "clusterId": "c", **values}, namespace=scene.namespace)
        chosen = [find(items, "Deployment"), *(each for each in items if each["kind"] == "ConfigMap")]
        return [scene.api.client.create(each) for each in chosen]

    yield create
    scene.api.kubectl("delete", "deployments", "-n", scene.namespace, "--all")


def create_secret(scene: Scene, name: str, **data: str) -> None:
    encoded = {key.replace("_", "."): base64.b64encode(text.encode()).decode() for key, text in data.items()}
    metadata = {"name": name, "namespace": scene.namespace}
    scene.api.client.create({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": encoded})


def create_service(scene: Scene, target: int, **spec: Any) -> None:
    """Make the Service `etcd` in front of Pods with the label app=etcd."""
    whole = {"selector": {"app": "etcd"}, "ports": [{"port": 2379, "targetPort": target}], **spec}
    metadata = {"name": "etcd", "namespace": scene.namespace}
    scene.api.client.create({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": whole})


def create_pod(scene: Scene, node: str, name: str, labels: dict[str, str], container: str) -> None:
    """Make a Pod that runs on a Node, without anything that reports it."""
    metadata = {"name": name, "namespace": scene.namespace, "labels": labels}
    spec = {"nodeName": node, "containers": [{"name": container, "image": "x"}]}
    item = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    scene.api.client.create(item)
    conditions = [condition(kind, value=True) for kind in ("Ready", "ContainersReady")]
    status = {"phase": "Running", "podIP": "127.0.0.1", "conditions": conditions}
    scene.api.client.patch(item, {"status": status}, "status", STRATEGIC)


def create_operator_pod(scene: Scene, node: str, deployment: Object) -> None:
    create_pod(scene, node, "operator-0", deployment["spec"]["template"]["metadata"]["labels"], "operator")


def port_of(server: EtcdServer) -> int:
    return int(server.members[0].endpoint.rpartition(":")[2])


def register(server: EtcdServer, address: str = ADDRESS, **login: Any) -> None:
    record = make_layout("jupiter").encode("greeter", Endpoint(name="greeter", address=address))
    assert isinstance(record, KeyValue)
    with Etcd(server.endpoints, timeout_seconds=PATIENCE_SECONDS, **login) as etcd:
        etcd.put(record.key, record.value)


def run(laptop: Checker, *arguments: str, code: int = 0, **environ: str) -> tuple[str, str]:
    """Run a command and return its output and its errors."""
    ended = subprocess.run(
        ["grpc-etcd", *arguments],
        env=laptop.environ | environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in ended.stderr
    assert ended.returncode == code, (ended.returncode, ended.stdout, ended.stderr)
    return ended.stdout, ended.stderr


def children(kubeconfig: str) -> list[str]:
    """Return the commands of all processes that work with a kubeconfig."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdecimal() and f"KUBECONFIG={kubeconfig}\0" in (process / "environ").read_text():
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except (OSError, UnicodeDecodeError):  # it has ended, or is somebody else's
            continue
    return found


@pytest.fixture
def own_kubeconfig(laptop: Checker, tmp_path: Path) -> str:
    """A copy of the admin's kubeconfig, by whose path this test's processes are known."""
    path = tmp_path / "laptop.kubeconfig"
    path.write_text(Path(laptop.environ["KUBECONFIG"]).read_text())
    laptop.environ["KUBECONFIG"] = str(path)
    return str(path)


def test_etcd_with_tls_and_users_is_reached_under_its_own_name(
    scene: Scene, laptop: Checker, streams: NodeStreams, install: Install, own_kubeconfig: str
) -> None:
    name = f"etcd.{scene.namespace}.svc.cluster.local"
    with EtcdServer.start(tls=True, names=(name,)) as server:
        assert server.authority is not None
        tls = Tls(ca=server.authority.ca, server_name=name)
        register(server, tls=tls)
        create_secret(scene, "etcd-tls", ca_crt=f"Some words.\n{server.authority.ca.read_text()}")
        create_service(scene, port_of(server))
        create_pod(scene, streams.node, "etcd-x", {"app": "etcd"}, "etcd")
        install({"endpoints": [f"{name}:2379"], "tls": {"secretName": "etcd-tls"}}, clientConfig={"enabled": False})
        output, errors = run(laptop, "ls", "-o", "json")
        assert [each["service"] for each in json.loads(output)] == ["greeter"]
        assert f"etcd ({name}:2379) is reached by kubectl -n {scene.namespace} port-forward svc/etcd" in errors
        assert UNREACHED.isdisjoint(laptop.look())
        assert children(own_kubeconfig) == []


def test_the_operators_user_logs_in_unless_another_is_given(  # noqa: PLR0917  all that the scene is made of
    scene: Scene, laptop: Checker, streams: NodeStreams, install: Install, own_etcd: EtcdServer, tmp_path: Path
) -> None:
    register(own_etcd)
    admin = own_etcd.enable_auth("root-secret")
    own_etcd.add_user("operator", "operator-secret", ["/jupiter/", "/grpc-etcd/"], admin=admin)
    own_etcd.add_user("blind", "blind-secret", ["/nothing/"], admin=admin)
    create_secret(scene, "etcd-auth", password="operator-secret\n")  # noqa: S106  for a test
    create_service(scene, port_of(own_etcd), clusterIP="None", ports=[{"port": port_of(own_etcd)}])
    create_pod(scene, streams.node, "etcd-0", {"app": "etcd"}, "etcd")
    auth = {"user": "operator", "secretName": "etcd-auth"}
    install({"endpoints": [f"etcd-0.etcd:{port_of(own_etcd)}"], "auth": auth}, clientConfig={"enabled": False})
    output, errors = run(laptop, "get", "greeter", "-o", "json")
    assert [each["address"] for each in json.loads(output)] == [ADDRESS]
    assert "port-forward pod/etcd-0" in errors
    own = tmp_path / "password"
    own.write_text("blind-secret")
    _, errors = run(laptop, "get", "greeter", "--user", "blind", "--password-file", str(own), code=1)
    assert "the user 'blind' is not allowed to read" in errors


def test_etcd_outside_of_the_cluster_is_reached_through_the_operators_pod(
    scene: Scene, laptop: Checker, streams: NodeStreams, install: Install, own_kubeconfig: str
) -> None:
    with EtcdServer.start(tls=True, names=("localhost",)) as server:
        assert server.authority is not None
        register(server, tls=Tls(ca=server.authority.ca, server_name="localhost"))
        create_secret(scene, "etcd-tls", ca_crt=server.authority.ca.read_text())
        tls = {"secretName": "etcd-tls"}
        etcd = {"endpoints": [f"localhost:{port_of(server)}"], "tls": tls}
        deployment, *_ = install(etcd, clientConfig={"enabled": False})
        create_operator_pod(scene, streams.node, deployment)
        output, errors = run(laptop, "get", "greeter", "-o", "json")
        assert [each["address"] for each in json.loads(output)] == [ADDRESS]
        assert "exec deploy/grpc-etcd-operator" in errors
        assert UNREACHED.isdisjoint(laptop.look())
        assert children(own_kubeconfig) == []


def test_a_registry_of_the_operators_settings_file(
    scene: Scene, laptop: Checker, streams: NodeStreams, install: Install, own_etcd: EtcdServer
) -> None:
    register(own_etcd)
    create_service(scene, port_of(own_etcd))
    create_pod(scene, streams.node, "etcd-x", {"app": "etcd"}, "etcd")
    install(
        {"endpoints": ["nowhere:2379"]},
        registries={"dr": {"endpoints": [f"etcd.{scene.namespace}:2379"]}},
        clientConfig={"enabled": False},
    )
    output, _ = run(laptop, "ls", "--registry", "dr", "-o", "json")
    assert [each["service"] for each in json.loads(output)] == ["greeter"]
    _, errors = run(laptop, "ls", "--registry", "else", code=2)
    assert "has no registry 'else'" in errors


def test_each_missing_right_is_named_with_the_commands_that_give_it(
    scene: Scene, laptop: Checker, streams: NodeStreams, install: Install, own_etcd: EtcdServer
) -> None:
    register(own_etcd)
    admin = own_etcd.enable_auth("root-secret")
    own_etcd.add_user("reader", "reader-secret", ["/"], admin=admin, access="read")
    create_service(scene, port_of(own_etcd))
    create_pod(scene, streams.node, "etcd-x", {"app": "etcd"}, "etcd")
    create_secret(scene, "reader", password="reader-secret")  # noqa: S106  for a test
    auth = {"user": "reader", "secretName": "reader"}
    install({"endpoints": ["etcd:2379"], "auth": auth}, clientConfig={"auth": auth})
    metadata = {"name": "nobody", "namespace": scene.namespace}
    scene.api.client.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})
    nobody = {"KUBECONFIG": str(scene.api.service_account_kubeconfig(scene.namespace, "nobody"))}
    named = []
    found = laptop.look(**nobody)
    while missing := next((found[code] for code in UNREACHED if code in found), None):
        named.append(right_of(missing))
        assert len(set(named)) == len(named), f"the commands of {named[-1]} do not give it"
        laptop.type(missing["remedy"].partition(". ")[0])
        found = laptop.look(**nobody)
    assert set(named) <= {
        "list deployments in all namespaces",
        f"get secrets in the namespace {scene.namespace}",
        f"get services in the namespace {scene.namespace}",
        f"list pods in the namespace {scene.namespace}",
        f"get pods in the namespace {scene.namespace}",
        f"create pods/portforward in the namespace {scene.namespace}",
    }
    assert {"list deployments in all namespaces", f"get secrets in the namespace {scene.namespace}"} <= set(named)
    output, _ = run(laptop, "ls", "-o", "json", KUBECONFIG=nobody["KUBECONFIG"])
    assert [each["service"] for each in json.loads(output)] == ["greeter"]


def right_of(found: Found) -> str:
    """Return the right that the first way lacks, which is the one that the commands give."""
    return found["problem"].partition(" may not ")[2].partition(";")[0]


def test_whoever_sees_his_own_namespace_alone_uses_the_settings_of_clients(
    scene: Scene, laptop: Checker, streams: NodeStreams, install: Install, own_etcd: EtcdServer
) -> None:
    other = f"{scene.namespace}-tenant"
    scene.api.client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": other}})
    register(own_etcd)
    create_service(scene, port_of(own_etcd))
    create_pod(scene, streams.node, "etcd-x", {"app": "etcd"}, "etcd")
    install({"endpoints": ["etcd:2379"]}, clientConfig={"namespaces": [other]})
    scene.api.client.create(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "tenant", "namespace": other}}
    )
    user = f"system:serviceaccount:{other}:tenant"
    for namespace, role, verb, resources in (
        (other, "own", "get,list", "configmaps,pods,grpcservices.grpc-etcd.dev"),
        (scene.namespace, "look", "get,list", "services,pods"),
        (scene.namespace, "forward", "create", "pods/portforward"),
    ):
        scene.api.kubectl("-n", namespace, "create", "role", role, f"--verb={verb}", f"--resource={resources}")
        scene.api.kubectl("-n", namespace, "create", "rolebinding", role, f"--role={role}", f"--user={user}")
    kubeconfig = str(scene.api.service_account_kubeconfig(other, "tenant"))
    output, errors = run(laptop, "get", "greeter", "-o", "json", KUBECONFIG=kubeconfig)
    assert [each["address"] for each in json.loads(output)] == [ADDRESS]
    assert f"ConfigMap {other}/grpc-etcd-operator-client" in errors


def start_watch(laptop: Checker) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [str(BIN / "grpc-etcd"), "watch", "greeter"],
        env=laptop.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def test_a_watch_goes_on_after_the_connection_was_lost_and_ends_with_its_kubectl(  # noqa: PLR0917  as above
    scene: Scene,
    laptop: Checker,
    streams: NodeStreams,
    install: Install,
    own_etcd: EtcdServer,
    own_kubeconfig: str,
) -> None:
    register(own_etcd)
    create_service(scene, port_of(own_etcd))
    create_pod(scene, streams.node, "etcd-x", {"app": "etcd"}, "etcd")
    install({"endpoints": ["etcd:2379"]}, clientConfig={"enabled": False})
    with start_watch(laptop) as watch:
        assert watch.stdout is not None
        assert ADDRESS in watch.stdout.readline()
        assert [each for each in children(own_kubeconfig) if "port-forward" in each]
        streams.process.kill()
        register(own_etcd, "127.0.9.2:9000")
        streams.process.start()
        assert "127.0.9.2:9000" in watch.stdout.readline()
        watch.send_signal(signal.SIGTERM)
        watch.wait(PATIENCE_SECONDS)
    wait_until(lambda: children(own_kubeconfig) == [], "kubectl has ended")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_command_with_its_kubectl(  # noqa: PLR0917  as above
    scene: Scene,
    laptop: Checker,
    streams: NodeStreams,
    install: Install,
    own_kubeconfig: str,
    number: signal.Signals,
) -> None:
    register(scene.etcd)
    create_service(scene, port_of(scene.etcd))
    create_pod(scene, streams.node, "etcd-x", {"app": "etcd"}, "etcd")
    install({"endpoints": ["etcd:2379"]}, clientConfig={"enabled": False})
    with start_watch(laptop) as watch:
        assert watch.stdout is not None
        assert ADDRESS in watch.stdout.readline()
        watch.send_signal(number)
        # As any command ends: by the signal itself, or with 1 where click takes Ctrl-C.
        assert watch.wait(PATIENCE_SECONDS) in {-number, 1}
    assert children(own_kubeconfig) == []


def test_where_no_kubectl_or_no_operator_is_there_it_is_said(laptop: Checker, install: Install) -> None:
    found = laptop.look()["GE0906"]
    assert "says where etcd is" in found["problem"]
    assert found["severity"] == "note"
    install({"endpoints": ["etcd:2379"]}, clientConfig={"enabled": False})
    found = laptop.look()["GE0909"]
    assert "etcd (etcd:2379) is not reached through kubectl" in found["problem"]
    assert "--endpoints" in found["remedy"]
    _, errors = run(laptop, "ls", code=2)
    assert "GRPC_ETCD_ENDPOINTS is not set" in errors
    _, errors = run(laptop, "ls", code=2, PATH=str(BIN))
    assert "kubectl is not in the PATH" in errors
    run(laptop, "ls", code=2, KUBECONFIG="no.kubeconfig")


def test_a_port_forward_that_no_etcd_answers_is_named(
    scene: Scene, laptop: Checker, streams: NodeStreams, install: Install
) -> None:
    create_service(scene, 1)
    create_pod(scene, streams.node, "etcd-x", {"app": "etcd"}, "etcd")
    install({"endpoints": ["etcd:2379"]}, clientConfig={"enabled": False})
    found = laptop.look()["GE0401"]
    assert f"etcd (etcd:2379) is reached by kubectl -n {scene.namespace} port-forward svc/etcd" in found["problem"]


def test_several_operators_are_to_be_chosen_from(laptop: Checker, install: Install) -> None:
    install({"endpoints": ["etcd:2379"]}, clientConfig={"enabled": False})
    install({"endpoints": ["other:2379"]}, clientConfig={"enabled": False}, fullnameOverride="other")
    _, errors = run(laptop, "ls", code=2)
    assert "several operators are there" in errors
    assert "--operator-namespace" in errors


def test_writing_commands_do_not_reach_a_cluster_by_themselves(laptop: Checker, install: Install) -> None:
    install({"endpoints": ["etcd:2379"]}, clientConfig={"enabled": False})
    _, errors = run(laptop, "drain", "greeter", ADDRESS, code=2)
    assert "kubectl" not in errors

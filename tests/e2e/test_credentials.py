"""Identities that stop working while the operator runs: it waits, deletes nothing, and goes on with the new ones."""

import json
import sys
from pathlib import Path

import pytest

from grpc_etcd.etcd import Etcd
from testbed.apiserver import ApiServer
from testbed.conditions import wait_until
from testbed.etcd import EtcdServer
from testbed.replica import RegistryView, Replica
from tests.e2e.conftest import MakeScene, Scene

pytestmark = pytest.mark.faults
TOKEN_SECONDS = 2  # for how long a client may keep what the plug-in gave it
PLUGIN = """
import datetime, json, pathlib, sys
until = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=float(sys.argv[2]))
status = {"token": pathlib.Path(sys.argv[1]).read_text(), "expirationTimestamp": until.strftime("%Y-%m-%dT%H:%M:%SZ")}
print(json.dumps({"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}))
"""


def revisions(scene: Scene) -> dict[str, int]:
    return {key: record.mod_revision for key, record in scene.registry.keys().items()}


def make_account(api: ApiServer, folder: Path) -> Path:
    """Make a ServiceAccount with all rights; return a kubeconfig whose plug-in gives the token of a file."""
    metadata = {"name": "operator", "namespace": "default"}
    api.client.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})
    group = "rbac.authorization.k8s.io"
    api.client.apply(
        {
            "apiVersion": f"{group}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": metadata,
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"kind": "ServiceAccount", **metadata}],
        }
    )
    (folder / "token").write_text(api.service_account_token("default", "operator"))
    config = json.loads(api.kubeconfig.read_text())
    arguments = ["-c", PLUGIN, str(folder / "token"), str(TOKEN_SECONDS)]
    plugin = {"apiVersion": "client.authentication.k8s.io/v1", "command": sys.executable, "args": arguments}
    config["users"][0]["user"] = {"exec": plugin | {"interactiveMode": "Never"}}
    path = folder / "kubeconfig"
    path.write_text(json.dumps(config))
    return path


def test_a_token_that_is_no_longer_valid_is_replaced_without_a_restart(
    own_apiserver: ApiServer, etcd: EtcdServer, make_scene: MakeScene, tmp_path: Path
) -> None:
    scene = make_scene(own_apiserver, etcd)
    kubeconfig = make_account(own_apiserver, tmp_path)
    replica = scene.start(kubeconfig=kubeconfig).wait_leading()
    scene.apply()
    pods = [scene.pod() for _ in range(2)]
    scene.registry.wait_addresses(*(pod.address for pod in pods))
    before = revisions(scene)
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "operator", "namespace": "default"}}
    own_apiserver.client.delete(account)  # a token is bound to its account's UID, so it is void from now on
    own_apiserver.restart()  # a watch that is open outlives its token
    wait_until(lambda: not scene.has_mark(), "readers are notified that nobody watches")
    assert revisions(scene) == before
    make_account(own_apiserver, tmp_path)
    scene.kubelet.unready(pods[0])
    scene.registry.wait_addresses(pods[1].address)
    wait_until(scene.has_mark, "synced again")
    assert replica.process.is_running


def test_an_etcd_password_that_changes_is_picked_up_and_nothing_is_lost(
    apiserver: ApiServer, own_etcd: EtcdServer, make_scene: MakeScene, tmp_path: Path
) -> None:
    scene = make_scene(apiserver, own_etcd)
    admin = own_etcd.enable_auth("admin")
    own_etcd.add_user("operator", "first", ["/"], admin=admin)
    password = tmp_path / "password"
    password.write_text("first")
    replica = scene.start("--etcd-user=operator", f"--etcd-password-file={password}").wait_leading()
    scene.apply()
    pod = scene.pod()

    def keys() -> set[str]:
        listed = own_etcd.etcdctl("get", "--prefix", "--keys-only", "/jupiter/greeter/providers/", user=admin)
        return {line.rpartition("://")[2] for line in listed.split()}

    wait_until(lambda: keys() == {pod.address}, "the Pod is registered")
    own_etcd.etcdctl("user", "passwd", "--interactive=false", "operator:second", user=admin, check=False)
    own_etcd.etcdctl("user", "delete", "operator", user=admin)
    own_etcd.etcdctl("user", "add", "operator:second", user=admin)
    own_etcd.etcdctl("user", "grant-role", "operator", "operator", user=admin)
    own_etcd.restart()  # it forgets the tokens that it gave for the old password
    late = scene.pod()
    wait_until(lambda: replica.metric("grpc_etcd_operator_registry_up", registry="default") == 0, "the metric says so")
    scene.wait_condition("Programmed", "False", "RegistryUnavailable")
    assert keys() == {pod.address}
    password.write_text("second")
    wait_until(lambda: keys() == {pod.address, late.address}, "it has logged in again")
    scene.wait_condition("Programmed", "True", "Programmed")


def test_a_standby_that_is_not_let_in_says_so_while_its_watch_lives(
    apiserver: ApiServer, own_etcd: EtcdServer, make_scene: MakeScene, tmp_path: Path
) -> None:
    scene = make_scene(apiserver, own_etcd)
    admin = own_etcd.enable_auth("admin")
    password = tmp_path / "password"
    password.write_text("secret")
    leader, standby = (make_replica(scene, own_etcd, name, admin, password) for name in ("first", "second"))
    leader.start().wait_leading()
    standby.start()
    wait_until(lambda: standby.lines("started") and standby.get("/readyz")[0] == 200, "it stands by")
    own_etcd.etcdctl("user", "delete", "second", user=admin)
    wait_until(lambda: standby.get("/readyz")[0] == 503, "the standby is not let in")
    assert standby.metric("grpc_etcd_operator_registry_up", registry="default") == 0
    assert leader.get("/readyz")[0] == 200
    own_etcd.etcdctl("user", "add", "second:secret", user=admin)
    own_etcd.etcdctl("user", "grant-role", "second", "second", user=admin)
    wait_until(lambda: standby.get("/readyz")[0] == 200, "it stands by again")


def make_replica(scene: Scene, etcd: EtcdServer, user: str, admin: str, password: Path) -> Replica:
    etcd.add_user(user, password.read_text(), ["/"], admin=admin)
    return scene.make(f"--etcd-user={user}", f"--etcd-password-file={password}")


def test_a_user_that_is_configured_before_etcd_asks_for_one_counts_from_then_on(
    apiserver: ApiServer, own_etcd: EtcdServer, make_scene: MakeScene, tmp_path: Path
) -> None:
    scene = make_scene(apiserver, own_etcd)
    password = tmp_path / "password"
    password.write_text("secret")
    replica = scene.start("--etcd-user=operator", f"--etcd-password-file={password}").wait_leading()
    scene.apply()
    pod = scene.pod()
    scene.registry.wait_addresses(pod.address)
    own_etcd.etcdctl("user", "add", "operator:secret")
    own_etcd.etcdctl("user", "grant-role", "operator", "root")
    own_etcd.enable_auth("admin")
    late = scene.pod()
    wait_until(lambda: scene.status().get("endpoints", {}).get("registered") == 2, "both are registered")
    with Etcd(own_etcd.endpoints, user="root", password="admin") as client:  # noqa: S106
        RegistryView(client).wait_addresses(pod.address, late.address)
    assert [line["message"] for line in replica.lines() if line["level"] != "info"] == []


def test_so_it_does_where_etcd_also_asks_for_client_certificates(
    apiserver: ApiServer, make_scene: MakeScene, tmp_path: Path
) -> None:
    """Then etcd does not ask for a token: it takes the certificate's common name for a user, who may do nothing."""
    (tmp_path / "password").write_text("admin")
    with EtcdServer.start(client_certificates=True) as secured:
        mine = secured.client_certificate
        assert mine
        scene = make_scene(apiserver, secured)
        user = ["--etcd-user=root", f"--etcd-password-file={tmp_path / 'password'}"]
        scene.start(f"--etcd-ca={mine.ca}", f"--etcd-cert={mine.cert}", f"--etcd-key={mine.key}", *user).wait_leading()
        scene.apply()
        pods = [scene.pod()]
        scene.wait_condition("Programmed", "True", "Programmed")
        admin = secured.enable_auth("admin")
        pods.append(scene.pod())
        wait_until(lambda: scene.status().get("endpoints", {}).get("registered") == 2, "both are registered")
        listed = secured.etcdctl("get", "--prefix", "--keys-only", "/jupiter/greeter/providers/", user=admin)
        assert {line.rpartition("://")[2] for line in listed.split()} == {pod.address for pod in pods}

"""The first minute of a new installation: what is logged is ours, and says what to do."""

from testbed.apiserver import ApiServer
from testbed.conditions import wait_until
from testbed.etcd import EtcdServer
from testbed.helm import find, render
from testbed.replica import Replica
from tests.e2e.conftest import MakeScene

ACCOUNT = {"name": "newcomer", "namespace": "default"}
RBAC = "rbac.authorization.k8s.io"


def loggers(replica: Replica) -> set[str]:
    """Name the packages that have said something above debug."""
    return {line["logger"].partition(".")[0] for line in replica.lines()}


def test_a_role_that_comes_after_the_operator_is_told_in_our_words(
    own_apiserver: ApiServer, etcd: EtcdServer, make_scene: MakeScene
) -> None:
    scene = make_scene(own_apiserver, etcd)
    client = own_apiserver.client
    client.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": ACCOUNT})
    kubeconfig = own_apiserver.service_account_kubeconfig("default", "newcomer")
    replica = scene.start(kubeconfig=kubeconfig)
    wait_until(lambda: replica.lines("watch_restarting"), "it is refused")
    rules = find(render({"etcd": {"endpoints": ["etcd:2379"]}}), "ClusterRole", "operator")["rules"]
    named = {"name": "newcomer"}
    client.create({"apiVersion": f"{RBAC}/v1", "kind": "ClusterRole", "metadata": named, "rules": rules})
    client.create(
        {
            "apiVersion": f"{RBAC}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": named,
            "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": "newcomer"},
            "subjects": [{"kind": "ServiceAccount", **ACCOUNT}],
        }
    )
    scene.apply()
    wait_until(lambda: scene.condition("Programmed")[0], "it is served")
    assert loggers(replica) == {"grpc_etcd_operator"}

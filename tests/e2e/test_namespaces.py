"""Several namespaces are watched: what is wrong with one of them is no fault of the others, also after a restart."""

from pathlib import Path
from typing import Any

import pytest

from testbed.conditions import wait_until
from testbed.kubelet import Pod
from testbed.proxy import TcpProxy
from testbed.replica import PROGRAM
from tests.e2e.conftest import Scene
from tests.e2e.pod_watches import with_both

pytestmark = [pytest.mark.faults, with_both]
RBAC = "rbac.authorization.k8s.io"
RULES = [
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]},
    {"apiGroups": ["grpc-etcd.dev"], "resources": ["grpcservices"], "verbs": ["get", "list", "watch"]},
    {"apiGroups": ["grpc-etcd.dev"], "resources": ["grpcservices/status"], "verbs": ["patch"]},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["create"]},
]


PODS_RULE, *OTHER_RULES = RULES


def make_account(scene: Scene, *namespaces: str, podless: str = "") -> Path:
    """Make an account that has a Role in each namespace, in one of them without Pods; return its kubeconfig."""
    client, name = scene.api.client, f"{scene.namespace}-operator"
    metadata = {"name": name, "namespace": "default"}
    client.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})
    for namespace in namespaces:
        inside, rules = {"name": "operator", "namespace": namespace}, OTHER_RULES if namespace == podless else RULES
        client.create({"apiVersion": f"{RBAC}/v1", "kind": "Role", "metadata": inside, "rules": rules})
        allow(scene, namespace)
    return scene.api.service_account_kubeconfig("default", name)


def binding(scene: Scene, namespace: str) -> dict[str, Any]:
    subject = {"kind": "ServiceAccount", "name": f"{scene.namespace}-operator", "namespace": "default"}
    return {
        "apiVersion": f"{RBAC}/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "operator", "namespace": namespace},
        "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": "operator"},
        "subjects": [subject],
    }


def allow(scene: Scene, namespace: str) -> None:
    scene.api.client.create(binding(scene, namespace))


def serve_both(scene: Scene, other: str) -> tuple[Pod, Pod]:
    """Have a registered Pod in each namespace."""
    scene.apply("mine")
    scene.apply("theirs", other)
    mine, theirs = scene.pod(), scene.pod(namespace=other)
    scene.registry.wait_addresses(mine.address, name="mine")
    scene.registry.wait_addresses(theirs.address, name="theirs")
    return mine, theirs


def test_a_namespace_that_may_no_longer_be_read_stays_as_it_is_and_holds_up_no_other(scene: Scene) -> None:
    other = make_other(scene)
    kubeconfig = make_account(scene, scene.namespace, other)
    replica = scene.start(f"--namespace={other}", kubeconfig=kubeconfig).wait_leading()
    mine, theirs = serve_both(scene, other)
    replica.process.stop()  # a watch that is open outlives the permission
    scene.api.client.delete(binding(scene, other))
    scene.kubelet.unready(theirs)
    replica = scene.start(f"--namespace={other}", kubeconfig=kubeconfig).wait_leading()
    late = scene.pod()
    scene.registry.wait_addresses(mine.address, late.address, name="mine")
    scene.apply("new", name="new")
    scene.registry.wait_addresses(mine.address, late.address, name="new")
    assert scene.registry.addresses("theirs") == [theirs.address], "unknown is not gone"
    assert replica.metric("grpc_etcd_operator_unreadable_namespaces") == 1
    assert replica.get("/readyz")[0] == 200
    allow(scene, other)
    scene.registry.wait_addresses(name="theirs")
    scene.kubelet.ready(theirs)
    scene.registry.wait_addresses(theirs.address, name="theirs")
    wait_until(lambda: replica.metric("grpc_etcd_operator_unreadable_namespaces") == 0, "all may be read")


def test_a_namespace_that_may_not_be_read_after_a_restart_loses_no_name(scene: Scene) -> None:
    """Its claims are unknown then, and its keys stay; so nobody else gets a name under which they stand."""
    other = make_other(scene)
    kubeconfig = make_account(scene, scene.namespace, other)
    replica = scene.start(f"--namespace={other}", kubeconfig=kubeconfig).wait_leading()
    scene.apply("theirs", other)
    theirs = scene.pod(namespace=other)
    scene.registry.wait_addresses(theirs.address, name="theirs")
    replica.process.stop()
    scene.api.client.delete(binding(scene, other))
    scene.apply("thief", name="theirs")
    scene.apply("later", name="later")  # where nobody's claim can be granted nothing would be synced
    replica = scene.start(f"--namespace={other}", kubeconfig=kubeconfig).wait_leading()
    mine = scene.pod()
    scene.registry.wait_addresses(mine.address, name="later")
    scene.wait_condition("Programmed", "True", "Programmed", "later")
    scene.wait_condition("Accepted", "False", "Pending", "thief")
    assert scene.registry.addresses("theirs") == [theirs.address]
    allow(scene, other)
    scene.wait_condition("Accepted", "False", "NameTaken", "thief")
    scene.kubelet.unready(theirs)
    scene.registry.wait_addresses(name="theirs")


def test_a_permission_that_goes_while_the_operator_runs_ends_nothing_elsewhere(scene: Scene) -> None:
    other = make_other(scene)
    kubeconfig = make_account(scene, scene.namespace, other)
    replica = scene.start(f"--namespace={other}", kubeconfig=kubeconfig).wait_leading()
    mine, theirs = serve_both(scene, other)
    scene.api.client.delete(binding(scene, other))
    wait_until(lambda: replica.metric("grpc_etcd_operator_unreadable_namespaces") == 1, "it is told")
    scene.apply("new", name="new")
    scene.registry.wait_addresses(mine.address, name="new")
    scene.delete("mine")
    scene.registry.wait_addresses(name="mine")
    scene.kubelet.unready(mine)
    scene.registry.wait_addresses(name="new")
    assert scene.registry.addresses("theirs") == [theirs.address]
    assert scene.has_mark()


def limit_files(soft: int, hard: int) -> list[str]:
    """Return a command that runs the operator with a limit of open files, as containerd or a unit file sets it."""
    return ["bash", "-c", f'ulimit -Sn {soft} && ulimit -Hn {hard} && exec "$0" "$@"', *map(str, PROGRAM)]


def test_many_namespaces_are_served_where_a_process_begins_with_few_open_files(scene: Scene) -> None:
    """Common nodes let a container open 1,024 files, and more only if it asks for them."""
    others = [f"{scene.namespace}-{number}" for number in range(40)]
    for name in others:
        scene.api.client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    watched = [f"--namespace={name}" for name in others]
    replica = scene.start(*watched, program=limit_files(128, 4096)).wait_leading()
    scene.apply("last", others[-1])
    pod = scene.pod(namespace=others[-1])
    scene.registry.wait_addresses(pod.address, name="last")
    assert replica.lines("file_limit_low") == []


def test_a_limit_of_open_files_that_may_be_too_low_is_reported(scene: Scene) -> None:
    replica = scene.start(program=limit_files(128, 192)).wait_leading()
    (line,) = replica.lines("file_limit_low")
    assert (line["limit"], line["namespaces"]) == (192, 1)
    assert line["needed"] > 192


def make_other(scene: Scene) -> str:
    other = f"{scene.namespace}-other"
    scene.api.client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": other}})
    return other


def set_rules(scene: Scene, namespace: str, rules: list[dict[str, Any]]) -> None:
    metadata = {"name": "operator", "namespace": namespace}
    scene.api.client.patch({"apiVersion": f"{RBAC}/v1", "kind": "Role", "metadata": metadata}, {"rules": rules})


def message(scene: Scene, name: str, namespace: str) -> str:
    conditions = scene.status(name, namespace).get("conditions", ())
    return str(next((each["message"] for each in conditions if each["type"] == "Programmed"), ""))


def test_where_pods_may_not_be_read_nothing_is_said_of_them_and_nothing_is_deregistered(scene: Scene) -> None:
    other = make_other(scene)
    kubeconfig = make_account(scene, scene.namespace, other, podless=other)
    first = scene.start(f"--namespace={other}").wait_leading()  # by an admin's account, which may read all
    _, theirs = serve_both(scene, other)
    scene.wait_condition("Programmed", "True", "Programmed", "theirs", other)
    first.process.stop()
    scene.start(f"--namespace={other}", kubeconfig=kubeconfig).wait_leading()
    scene.apply("new", other, selector={"matchLabels": {"app": "nobody"}})
    for name in ("theirs", "new"):
        scene.wait_condition("Programmed", "Unknown", "PodsUnreadable", name, other)
        assert scene.condition("Accepted", name, other) == ("True", "Accepted")
        assert "endpoints" not in scene.status(name, other)
        for part in (other, "cannot be read", "get, list and watch pods", "RoleBinding", "--namespace"):
            assert part in message(scene, name, other)
    scene.apply("theirs", other, enable=False)
    wait_until(lambda: scene.status("theirs", other)["observedGeneration"] == 2, "the change is seen")
    assert scene.condition("Programmed", "theirs", other) == ("Unknown", "PodsUnreadable")
    scene.wait_condition("Programmed", "True", "Programmed", "mine")
    assert scene.registry.addresses("theirs") == [theirs.address], "unknown is not gone"
    events = scene.api.client.list("v1", "Event", other)["items"]
    assert "NoPods" not in {each["reason"] for each in events}
    set_rules(scene, other, RULES)
    scene.registry.wait_addresses(name="theirs")
    scene.wait_condition("Programmed", "True", "Disabled", "theirs", other)
    scene.wait_condition("Programmed", "False", "NoPods", "new", other)
    assert scene.status("new", other)["endpoints"]["summary"] == "0/0"


def test_pods_that_may_be_listed_and_not_watched_are_said_to_be_unknown(scene: Scene) -> None:
    other = make_other(scene)
    kubeconfig = make_account(scene, scene.namespace, other)
    set_rules(scene, other, [PODS_RULE | {"verbs": ["get", "list"]}, *OTHER_RULES])
    replica = scene.start(f"--namespace={other}", kubeconfig=kubeconfig).wait_leading()
    scene.apply("mine")
    scene.apply("theirs", other)
    scene.registry.wait_addresses(scene.pod().address, name="mine")
    scene.wait_condition("Programmed", "Unknown", "PodsUnreadable", "theirs", other)
    assert "watch: 403" in message(scene, "theirs", other)
    wait_until(lambda: replica.metric("grpc_etcd_operator_unreadable_namespaces") == 1, "it is told")
    set_rules(scene, other, RULES)
    theirs = scene.pod(namespace=other)
    scene.registry.wait_addresses(theirs.address, name="theirs")
    scene.wait_condition("Programmed", "True", "Programmed", "theirs", other)


def test_pods_that_may_be_read_no_more_are_said_to_be_unknown(scene: Scene) -> None:
    """A watch that is open outlives the permission: until it ends they are seen."""
    other = make_other(scene)
    kubeconfig = make_account(scene, scene.namespace, other)
    with TcpProxy.start(scene.api.url.partition("://")[2]) as proxy:
        proxied = scene.folder / "proxied.kubeconfig"
        proxied.write_text(kubeconfig.read_text().replace(scene.api.url, f"https://{proxy.address}"))
        replica = scene.start(f"--namespace={other}", kubeconfig=proxied).wait_leading()
        scene.apply("theirs", other)
        theirs = scene.pod(namespace=other)
        scene.registry.wait_addresses(theirs.address, name="theirs")
        scene.wait_condition("Programmed", "True", "Programmed", "theirs", other)
        set_rules(scene, other, OTHER_RULES)
        proxy.cut()
        scene.kubelet.terminate(theirs, grace_seconds=0)
        wait_until(
            lambda: scene.condition("Programmed", "theirs", other) == ("Unknown", "PodsUnreadable"), "it is told", 300
        )
        assert scene.registry.addresses("theirs") == [theirs.address]
        set_rules(scene, other, RULES)
        scene.registry.wait_addresses(name="theirs")
        wait_until(lambda: scene.condition("Programmed", "theirs", other)[1] == "NoPods", "it is seen again")
        assert replica.process.is_running


def test_keys_of_a_namespace_that_is_no_longer_watched_expire_with_their_leases(scene: Scene) -> None:
    other = make_other(scene)
    replica = scene.start(f"--namespace={other}", "--lease-ttl=10").wait_leading()
    mine, _ = serve_both(scene, other)
    scene.wait_condition("Programmed", "True", "Programmed", "theirs", other)
    replica.process.stop()
    scene.start("--lease-ttl=10").wait_leading()
    scene.registry.wait_addresses(name="theirs")
    assert scene.registry.addresses("mine") == [mine.address]
    assert scene.condition("Programmed", "theirs", other)[1] == "Programmed", "nobody updates it any more"

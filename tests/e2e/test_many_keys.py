"""A Pod, or a GrpcService, with more keys than one transaction of etcd holds is written, and holds up nobody."""

from typing import Any

from grpc_etcd_operator.core.pods import GATE
from testbed.conditions import wait_until
from tests.e2e.conftest import Scene

ALL = ["jupiter", "jupiter-v2", "etcd-naming", "go-zero", "kratos", "kitex", "go-micro"]
MANY = 20  # times seven layouts are more than the 128 operations that etcd takes
ROUTES = 64  # as many as the CRD takes


def count_keys(scene: Scene, uid: str) -> int:
    lease = scene.client.time_to_live(scene.lease(uid), keys=True)
    return sum(not key.startswith(b"/grpc-etcd/") for key in lease.keys) if lease else 0


def test_a_pod_with_more_keys_than_a_transaction_holds_is_registered_and_deregistered(scene: Scene) -> None:
    replica = scene.start().wait_leading()
    names = [f"{scene.namespace}-{number}" for number in range(MANY)]
    for name in names:
        scene.apply(name, layouts=ALL)
    for name in names:
        scene.wait_condition("Accepted", "True", "Accepted", name)
    pod = scene.pod(gates=[GATE])
    wait_until(lambda: count_keys(scene, pod.uid) == MANY * len(ALL), "all keys of the Pod are there")
    wait_until(lambda: pod.is_ready, "the gate is open")
    for name in names:
        scene.wait_condition("Programmed", "True", "Programmed", name)
    assert replica.metric("grpc_etcd_operator_denied_prefixes") == 0
    assert replica.metric("grpc_etcd_operator_etcd_errors_total") == 0
    scene.kubelet.unready(pod)
    wait_until(lambda: count_keys(scene, pod.uid) == 0, "all keys of the Pod are gone")


def test_a_service_whose_records_all_change_at_once_is_written(scene: Scene) -> None:
    scene.start().wait_leading()

    def routes(kind: str) -> list[dict[str, Any]]:
        return [{"id": f"{kind}-{n}", "method": "/shop.Greeter/Hello", "groups": {"a": 1}} for n in range(ROUTES)]

    for kind in ("old", "new"):
        scene.apply(policy={"timeout": "5s"}, routes=routes(kind))

        def written(kind: str = kind) -> bool:
            keys = scene.registry.keys("/jupiter/greeter/configurators/")
            return len(keys) == ROUTES and all(f"/routes/{kind}-" in key for key in keys)

        wait_until(written, f"the {kind} routes are there, and no others")
    scene.wait_condition("Programmed", "False", "NoPods")

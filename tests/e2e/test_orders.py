"""Replicas whose settings list the same registries in different orders, as while a change of them is rolled out."""

from pathlib import Path

from grpc_etcd.etcd import Etcd
from testbed.etcd import EtcdServer
from testbed.replica import RegistryView
from tests.e2e.conftest import Scene
from tests.e2e.test_standing import start_apart, write_registries

NO_DEFAULT = "--etcd-endpoints="  # the registries of the file are all that there are


def test_one_of_two_replicas_reports_though_each_leads_what_the_other_lists_first(
    scene: Scene, own_etcd: EtcdServer, tmp_path: Path
) -> None:
    (folder := tmp_path / "other").mkdir()
    mine, others = scene.etcd.endpoints, own_etcd.endpoints
    flag, first_flag = write_registries(tmp_path, one=mine, two=others), write_registries(folder, two=others, one=mine)
    with Etcd(others) as second:
        start_apart(scene, flag, second, first_flag=first_flag, more=(NO_DEFAULT,))
        scene.apply(registries=["one", "two"])
        pod = scene.pod(gates=["grpc-etcd.dev/registered"])
        scene.wait_condition("Programmed", "True", "Programmed")
        scene.registry.wait_addresses(pod.address)
        RegistryView(second).wait_addresses(pod.address)

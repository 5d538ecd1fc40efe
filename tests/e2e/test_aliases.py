"""Two registries in the settings that are one etcd."""

from pathlib import Path

import yaml

from grpc_etcd.etcd import Etcd
from grpc_etcd_operator.core.scope import read_registry
from testbed.conditions import PATIENCE_SECONDS, wait_until
from testbed.etcd import EtcdServer
from testbed.proxy import TcpProxy
from testbed.replica import RegistryView, Replica
from tests.e2e.conftest import Scene

LONG_LEASES = "--lease-ttl=600"  # of which none runs out between two operators on a slow machine


def test_a_second_name_of_an_etcd_stands_for_the_first(scene: Scene) -> None:
    config = scene.folder / "settings.yaml"
    config.write_text(yaml.safe_dump({"registries": {"alias": {"endpoints": f"http://{scene.etcd.endpoints}"}}}))
    replica = scene.start(f"--config={config}").wait_leading()
    scene.apply("one", registries=["alias"], selector={"matchLabels": {"app": "greeter"}})
    scene.apply("both", registries=["default", "alias"], selector={"matchLabels": {"app": "greeter"}})
    pod = scene.pod()
    for name in ("one", "both"):
        scene.registry.wait_addresses(pod.address, name=name)
        scene.wait_condition("Programmed", "True", "Programmed", name)
    wait_until(scene.has_mark, "the registry is confirmed")
    assert replica.get("/readyz")[0] == 200
    assert replica.lines("registry_aliased")


def test_a_second_name_that_nobody_can_tell_takes_nothing_away(scene: Scene) -> None:
    """Two registries without a common endpoint are one etcd, as where one is named by its address."""
    port = scene.etcd.endpoints.rpartition(":")[2]
    config = scene.folder / "settings.yaml"
    config.write_text(yaml.safe_dump({"registries": {"second": {"endpoints": f"localhost:{port}"}}}))
    replicas = [scene.start(f"--config={config}", "--leader-ttl=5").wait_leading()]
    replicas.append(scene.start(f"--config={config}", "--leader-ttl=5"))
    wait_until(lambda: replicas[1].lines("port_opened"), "the standby answers")
    wait_until(lambda: replicas[1].get("/readyz")[0] == 200, "the standby is ready")
    scene.apply("one", selector={"matchLabels": {"app": "greeter"}})
    scene.apply("both", registries=["default", "second"], selector={"matchLabels": {"app": "greeter"}})
    pods = [scene.pod() for _ in range(3)]
    addresses = [pod.address for pod in pods]
    for name in ("one", "both"):
        scene.registry.wait_addresses(*addresses, name=name)
    scene.wait_condition("Programmed", "True", "Programmed", "one")
    scene.wait_condition("Programmed", "False", "ForeignLeader", "both")
    wait_until(scene.has_mark, "the registry is confirmed")
    before = scene.registry.keys("/jupiter/one/")
    scene.kubelet.unready(pods[0])
    scene.registry.wait_addresses(*addresses[1:], name="one")
    replicas[0].process.kill()
    wait_until(lambda: replicas[1].lines("leadership_acquired"), "the other takes over")
    scene.kubelet.ready(pods[0])
    scene.registry.wait_addresses(*addresses, name="one")
    wait_until(scene.has_mark, "the registry is confirmed again")
    after = scene.registry.keys("/jupiter/one/")
    kept = [f"/jupiter/one/providers/grpc://{address}" for address in addresses[1:]]
    assert [after[key].mod_revision for key in kept] == [before[key].mod_revision for key in kept]
    assert len(replicas[0].lines("leadership_acquired")) == 1
    assert any("also that of the registry default" in line["message"] for line in replicas[1].lines())


def test_where_the_first_of_two_names_comes_back_late_the_second_is_served_and_reported_on(scene: Scene) -> None:
    """Whoever leads the etcd by its second name writes claims and statuses, though the first name has no leader."""
    config = scene.folder / "settings.yaml"
    config.write_text(yaml.safe_dump({"registries": {"second": {"endpoints": f"http://{scene.etcd.endpoints}"}}}))
    with TcpProxy.start(scene.etcd.endpoints) as proxy:
        proxy.refuse()
        replica = scene.start(f"--config={config}", "--leader-ttl=5", etcd=proxy.address)
        wait_until(lambda: replica.lines("leadership_acquired"), "the etcd is led by its second name")
        proxy.heal()
        told = "also that of the registry second"
        wait_until(lambda: any(told in line["message"] for line in replica.lines()), "both are known to be one")
        scene.apply("late", registries=["second"], selector={"matchLabels": {"app": "greeter"}})
        scene.apply("apart", selector={"matchLabels": {"app": "greeter"}})
        pod = scene.pod()
        scene.registry.wait_addresses(pod.address, name="late")
        scene.wait_condition("Programmed", "True", "Programmed", "late")
        scene.wait_condition("Programmed", "False", "ForeignLeader", "apart")
        scene.close()  # before the proxy


def write_registries(scene: Scene, **registries: str) -> Path:
    """Write settings with these registries, in this order, and give the file."""
    config = scene.folder / "settings.yaml"
    config.write_text(yaml.safe_dump({"registries": {name: {"endpoints": at} for name, at in registries.items()}}))
    return config


def test_another_name_before_that_of_an_etcd_takes_nothing_away(scene: Scene, own_etcd: EtcdServer) -> None:
    """A name that is added may come first in the settings: what was written under the other one is not deregistered."""
    config, port = write_registries(scene, main=own_etcd.endpoints), own_etcd.endpoints.rpartition(":")[2]
    replica = scene.start(f"--config={config}", LONG_LEASES).wait_leading()
    scene.apply(registries=["main"])
    pod = scene.pod()
    with Etcd(own_etcd.endpoints, timeout_seconds=PATIENCE_SECONDS) as client:
        registry = RegistryView(client)
        registry.wait_addresses(pod.address)
        scene.wait_condition("Programmed", "True", "Programmed")
        before = registry.keys()
        replica.process.stop()
        write_registries(scene, east=f"localhost:{port}", main=own_etcd.endpoints)
        replica = scene.start(f"--config={config}", LONG_LEASES)
        wait_until(lambda: len(replica.lines("leadership_acquired")) == 2, "both etcds are led")
        scene.apply("later", registries=["main"])
        registry.wait_addresses(pod.address, name="later")
        scene.wait_condition("Programmed", "True", "Programmed")
        assert {key: registry.keys().get(key) for key in before} == before
    scene.apply("east", registries=["east"])
    scene.wait_condition("Programmed", "False", "ForeignLeader", "east")


def test_a_name_that_is_taken_away_and_put_back_finds_all_that_it_had(scene: Scene, own_etcd: EtcdServer) -> None:
    """Meanwhile the etcd is led by another name, whose GrpcServices find nothing of theirs once it is back."""
    port = own_etcd.endpoints.rpartition(":")[2]
    config = write_registries(scene, main=own_etcd.endpoints)
    cluster_key = f"/grpc-etcd/cluster/{scene.cluster}".encode()
    replica = scene.start(f"--config={config}", LONG_LEASES).wait_leading()
    scene.apply(registries=["main"])
    pod = scene.pod()
    with Etcd(own_etcd.endpoints, timeout_seconds=PATIENCE_SECONDS) as client:
        registry = RegistryView(client)

        def has_name(name: str) -> bool:
            record = client.get(cluster_key)
            return record is not None and read_registry(record.value) == name

        registry.wait_addresses(pod.address)
        before = registry.keys()
        replica.process.stop()
        write_registries(scene, other=f"localhost:{port}")
        replica = scene.start(f"--config={config}", LONG_LEASES)
        scene.wait_condition("Accepted", "False", "UnknownRegistry")
        scene.apply("other", registries=["other"])
        registry.wait_addresses(pod.address, name="other")
        assert has_name("main")
        replica.process.stop()
        write_registries(scene, other=f"localhost:{port}", main=own_etcd.endpoints)
        replica = scene.start(f"--config={config}", LONG_LEASES)
        registry.wait_addresses(name="other")
        scene.wait_condition("Programmed", "True", "Programmed")
        assert {key: registry.keys().get(key) for key in before} == before
        replica.process.stop()
        write_registries(scene, other=f"localhost:{port}")
        scene.start(f"--config={config}", LONG_LEASES)
        scene.apply(registries=["other"])
        wait_until(lambda: has_name("other"), "nobody asks for the old name")
        registry.wait_addresses(pod.address, name="other")
        registry.wait_addresses(pod.address)


def test_an_etcd_whose_endpoints_are_away_is_not_led_by_its_other_name(scene: Scene) -> None:
    """Neither while a process runs that led there, nor in one that starts meanwhile."""
    flags = ("--leader-ttl=3", LONG_LEASES)
    with TcpProxy.start(scene.etcd.endpoints) as proxy:
        config = write_registries(scene, default=proxy.address, second=f"http://{scene.etcd.endpoints}")
        replica = scene.start(f"--config={config}", *flags, etcd=proxy.address).wait_leading()
        scene.apply()
        pod = scene.pod()
        scene.registry.wait_addresses(pod.address)
        wait_until(scene.has_mark, "the registry is confirmed")
        before = scene.registry.keys()
        proxy.refuse()
        wait_until(lambda: replica.lines("registry_ambiguous"), "the second name waits")
        replica.process.stop()
        replica = scene.start(f"--config={config}", *flags, etcd=proxy.address)
        wait_until(lambda: replica.lines("registry_ambiguous"), "the second name waits again")
        assert not replica.lines("leadership_acquired")
        scene.kubelet.unready(pod)
        proxy.heal()
        replica.wait_leading()
        scene.registry.wait_addresses()
        scene.kubelet.ready(pod)
        scene.registry.wait_addresses(pod.address)
        wait_until(scene.has_mark, "the registry is confirmed again")
        assert set(scene.registry.keys()) == set(before)
        scene.close()  # before the proxy


def test_registries_that_have_changed_their_names_are_both_led(scene: Scene, own_etcd: EtcdServer) -> None:
    """Each of two etcds was led under the other's name last: they are two, and nobody waits for the other."""
    first, second = scene.etcd.endpoints, own_etcd.endpoints

    def start(one: str, other: str) -> Replica:
        config = write_registries(scene, one=one, other=other)
        return scene.start(f"--config={config}", etcd=one)

    replica = start(first, second)
    wait_until(lambda: len(replica.lines("leadership_acquired")) == 2, "both are led")
    replica.process.stop()
    replica = start(second, first)
    wait_until(lambda: len(replica.lines("leadership_acquired")) == 2, "both are led again")
    scene.apply(registries=["one", "other"])
    pod = scene.pod()
    scene.registry.wait_addresses(pod.address)
    scene.wait_condition("Programmed", "True", "Programmed")

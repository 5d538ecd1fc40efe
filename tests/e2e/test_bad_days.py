"""What a replica says and does once the network, etcd and the API server are well again after a bad day."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.apiserver import ApiServer
from testbed.conditions import wait_until
from testbed.etcd import EtcdServer
from testbed.proxy import TcpProxy
from testbed.replica import Replica
from tests.e2e.conftest import MakeScene, Scene
from tests.e2e.test_refusals import PREFIX, Guarded, guarded

__all__ = ["guarded"]

pytestmark = pytest.mark.faults


@pytest.fixture
def proxy(scene: Scene) -> Iterator[TcpProxy]:
    """Stands between one replica and etcd."""
    with TcpProxy.start(scene.etcd.endpoints) as made:
        yield made


def metric(replica: Replica, name: str) -> float:
    return float(replica.metric(f"grpc_etcd_operator_{name}", registry="default"))


def test_a_write_that_fails_after_the_leadership_was_lost_leaves_no_trouble_behind(
    scene: Scene, proxy: TcpProxy
) -> None:
    cut_off = scene.start(etcd=proxy.address).wait_leading()
    scene.apply()
    pod, other = scene.pod(), scene.pod()
    scene.registry.wait_addresses(pod.address, other.address)
    standby = scene.start()
    wait_until(lambda: standby.lines("started") and standby.get("/readyz")[0] == 200, "it stands by")
    proxy.black_hole()
    scene.kubelet.unready(pod)
    wait_until(lambda: metric(cut_off, "workqueue_in_flight"), "the deregistration is under way")
    scene.kubelet.ready(pod)  # so that nothing is left to do for whoever leads next
    wait_until(lambda: metric(standby, "leader"), "the standby leads")
    wait_until(lambda: cut_off.lines("write_failed"), "the deregistration has failed")
    proxy.heal()
    wait_until(lambda: cut_off.get("/readyz")[0] == 200, "it can do its part again")
    assert scene.registry.addresses() == sorted([pod.address, other.address])


def test_who_is_cut_off_from_etcd_leaves_the_word_to_whoever_leads_by_then(scene: Scene, proxy: TcpProxy) -> None:
    cut_off = scene.start(etcd=proxy.address).wait_leading()
    scene.apply()
    scene.registry.wait_addresses(scene.pod().address)
    standby = scene.start()
    wait_until(lambda: standby.lines("started") and standby.get("/readyz")[0] == 200, "it stands by")
    proxy.black_hole()
    scene.wait_condition("Programmed", "False", "RegistryUnavailable")
    wait_until(lambda: metric(standby, "leader"), "the standby leads")
    scene.wait_condition("Programmed", "True", "Programmed")
    late, told, began = scene.pod(), list[tuple[str, str]](), time.monotonic()

    def look() -> bool:
        now = scene.condition("Programmed")
        if told[-1:] != [now]:
            told.append(now)
        return time.monotonic() - began > 25

    wait_until(look, "it has had time to speak", 60)
    assert late.address in scene.registry.addresses()
    assert [each[1] for each in told].count("RegistryUnavailable") <= 1, "but for a status that was under way"
    assert told[-1] == ("True", "Programmed")
    assert cut_off.get("/readyz")[0] == 503
    proxy.heal()
    wait_until(lambda: cut_off.get("/readyz")[0] == 200, "it can do its part again")


def test_a_refusal_that_a_former_leader_has_met_is_no_longer_told_once_it_is_mended(guarded: Guarded) -> None:
    scene, name = guarded.scene, "grpc_etcd_operator_denied_prefixes"
    guarded.allow("read", PREFIX)
    former = guarded.start().wait_leading()
    scene.apply(layouts=["kratos"])
    pod = scene.pod()
    wait_until(lambda: former.metric(name, registry="default"), "the leader was refused")
    standby = guarded.start()
    wait_until(lambda: standby.lines("started") and standby.get("/readyz")[0] == 200, "it stands by")
    former.process.pause()
    wait_until(lambda: standby.lines("leadership_acquired"), "the standby leads")
    former.process.resume()
    guarded.allow("readwrite", PREFIX)
    wait_until(lambda: guarded.registry.keys(PREFIX), f"{pod} is registered")
    for replica in (standby, former):
        wait_until(lambda each=replica: not each.metric(name, registry="default"), "nothing is refused any more", 90)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("overtakes", [False, True], ids=["behind", "overtaken"])
def test_a_status_of_a_bad_day_that_a_backup_brings_back_is_mended(
    own_apiserver: ApiServer, own_etcd: EtcdServer, make_scene: MakeScene, tmp_path: Path, *, overtakes: bool
) -> None:
    scene = make_scene(own_apiserver, own_etcd)
    replica = scene.start().wait_leading()
    scene.apply()
    scene.pod()
    scene.wait_condition("Programmed", "True", "Programmed")
    own_etcd.kill()
    scene.wait_condition("Programmed", "False", "RegistryUnavailable")
    scene.api.kill()
    scene.api.etcd.save(tmp_path / "backup")
    scene.api.restart()
    scene.outrun_backup()
    own_etcd.restart()
    scene.wait_condition("Programmed", "True", "Programmed")
    scene.outrun_backup()
    scene.restore(tmp_path / "backup", replica, overtakes=overtakes)
    wait_until(lambda: scene.condition("Programmed")[0] == "True", "the status is true again", 150)


def test_a_status_that_somebody_else_has_written_is_mended(scene: Scene) -> None:
    scene.start().wait_leading()
    service = scene.apply()
    scene.pod()
    scene.wait_condition("Programmed", "True", "Programmed")
    conditions = [
        {**each, "status": "False", "reason": "Nonsense"} if each["type"] == "Programmed" else each
        for each in scene.status()["conditions"]
    ]
    written = scene.api.client.patch(service, {"status": {"conditions": conditions}}, "status")
    assert "Nonsense" in [each["reason"] for each in written["status"]["conditions"]]
    scene.wait_condition("Programmed", "True", "Programmed")


def test_a_key_that_could_not_be_read_by_itself_is_deregistered_once_the_right_is_back(guarded: Guarded) -> None:
    scene, prefix = guarded.scene, "/jupiter/"
    replica = guarded.start().wait_leading()
    scene.apply()
    scene.pod()
    wait_until(guarded.registry.keys, "the Pod is registered")
    replica.process.stop()
    scene.delete()  # so that no GrpcService names its prefix any more
    guarded.deny(prefix)
    replica = guarded.start()
    wait_until(lambda: replica.lines("started") and metric(replica, "denied_prefixes"), "it may not be read")
    guarded.allow("readwrite", prefix)
    wait_until(lambda: not guarded.registry.keys(), "it is deregistered")
    wait_until(lambda: not metric(replica, "denied_prefixes"), "nothing is refused any more")

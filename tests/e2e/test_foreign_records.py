"""Owner records that no operator of ours has written, or that are damaged, are nobody's trouble but their own."""

import pytest

from testbed.conditions import wait_until
from tests.e2e.conftest import Scene


@pytest.mark.parametrize(
    "record",
    [
        b'{"namespace":"NAMESPACE"}',
        b'{"namespace":"NAMESPACE","pod":"?","keys":[]}',
        b'{"namespace":"NAMESPACE","pod":"..","keys":[]}',
        b'{"namespace":"NAMESPACE","grpcServices":["?/?"],"keys":[]}',
        b'{"namespace":"NAMESPACE","pod":"a/b c%2f#","keys":[]}',
    ],
)
def test_an_odd_owner_record_keeps_no_keys_of_others_alive(scene: Scene, record: bytes) -> None:
    replica = scene.start().wait_leading()
    scene.apply()
    living, dead = scene.pod(), scene.pod()
    scene.registry.wait_addresses(living.address, dead.address)
    replica.process.stop()
    scene.client.put(
        f"/grpc-etcd/owner/{scene.cluster}/odd".encode(), record.replace(b"NAMESPACE", scene.namespace.encode())
    )
    scene.kubelet.finish(dead)
    scene.start().wait_leading()
    scene.registry.wait_addresses(living.address)
    wait_until(scene.has_mark, "the mark is put")

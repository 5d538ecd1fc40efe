"""Many leases kept alive over a few streams."""

import time

import pytest

from testbed.conditions import wait_until
from testbed.etcd import EtcdServer

from .conftest import Opened


def test_leases_live_while_kept_and_run_out_afterwards(etcd: EtcdServer, opened: Opened) -> None:
    client = opened(etcd.endpoints)
    leases = [client.lease(2) for _ in range(40)]
    for lease in leases:
        client.put(b"kept/%d" % lease, b"", lease=lease)
    lost = []
    keeper = client.keep_alive(lost.append)
    for lease in leases:
        keeper.add(lease, 2)
    end = time.monotonic() + 6
    wait_until(lambda: time.monotonic() > end, "three times the leases' life")
    assert len(client.get_prefix(b"kept/").records) == 40
    assert (len(keeper), lost) == (40, [])
    assert keeper.state.connected
    keeper.remove(leases[0])
    wait_until(lambda: client.time_to_live(leases[0]) is None, "the lease that is no longer kept has run out")
    keeper.close()
    wait_until(lambda: not client.get_prefix(b"kept/").records, "all leases have run out")


def test_a_lease_that_is_gone_is_reported_once(etcd: EtcdServer, opened: Opened) -> None:
    client = opened(etcd.endpoints)
    lease, other = client.lease(3), client.lease(3)
    lost = []
    keeper = client.keep_alive(lost.append)
    keeper.add(lease, 3)
    keeper.add(other, 3, remaining_seconds=0)
    client.revoke(lease)
    wait_until(lambda: lost, "the loss is reported")
    wait_until(lambda: client.time_to_live(other).remaining_seconds >= 1, "the other one lives")
    assert lost == [lease]
    assert len(keeper) == 1


@pytest.mark.faults
def test_leases_outlive_a_restart_of_etcd(own_etcd: EtcdServer, opened: Opened) -> None:
    client = opened(own_etcd.endpoints)
    lease = client.lease(8)
    client.put(b"kept", b"", lease=lease)
    lost = []
    keeper = client.keep_alive(lost.append)
    keeper.add(lease, 8, remaining_seconds=0)
    for _ in range(3):
        own_etcd.kill()
        wait_until(lambda: not keeper.state.connected, "the loss of the stream is visible")
        assert keeper.state.stale_since <= time.time()
        own_etcd.restart()
        wait_until(lambda: keeper.state.connected, "renewed again")
    end = time.monotonic() + 9
    wait_until(lambda: time.monotonic() > end, "longer than the lease's life")
    assert client.get(b"kept").lease == lease
    assert lost == []

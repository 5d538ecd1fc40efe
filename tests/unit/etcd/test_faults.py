"""Which errors of an outage are another one for whoever looks at it, and which are only the same one again."""

from grpc_etcd.etcd import Unavailable
from grpc_etcd.etcd.errors import make_error
from grpc_etcd.etcd.faults import Faults

REFUSED = "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:{}: Connection refused (111)"


def test_the_same_error_from_another_address_is_no_change_and_another_one_of_its_class_is() -> None:
    faults = Faults()
    assert faults.is_change(make_error("UNKNOWN", "Stream removed"))
    assert faults.is_change(make_error("UNAVAILABLE", REFUSED.format(2379)))
    assert not faults.is_change(make_error("UNAVAILABLE", REFUSED.format(22379)))
    assert faults.is_change(Unavailable("failed to connect to all addresses; last error: tcp handshaker shutdown"))
    faults.clear()
    assert faults.is_change(Unavailable("failed to connect to all addresses; last error: tcp handshaker shutdown"))

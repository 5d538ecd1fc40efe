"""A program that closes its own Etcd before the Registry that uses it is told so, wherever it looks."""

from collections.abc import Iterator

import grpc
import pytest

from grpc_etcd import Registry
from grpc_etcd.etcd import Closed, Etcd
from testbed.conditions import free_port, wait_until
from testbed.greeter import say_hello

WHY = "the Etcd that was given to this Registry has been closed"


@pytest.fixture
def etcd() -> Iterator[Etcd]:
    with Etcd(f"127.0.0.1:{free_port()}") as etcd:
        yield etcd


def test_what_is_followed_says_so(etcd: Etcd, caplog: pytest.LogCaptureFixture) -> None:
    with Registry(etcd, name="closed-etcd") as registry, registry.insecure_channel("greeter") as channel:
        wait_until(lambda: registry.stats()["greeter"].error, "etcd is known to be away")
        etcd.close()
        stats = registry.stats()["greeter"]
        assert WHY in stats.error
        assert WHY in stats.reason
        assert "Close the Registry first" in stats.reason
        assert not stats.connected
        assert "has been closed" in caplog.text
        with pytest.raises(TimeoutError, match=WHY):
            registry.wait_for_endpoints("greeter", 0.1)

        def call_details() -> str:
            with pytest.raises(grpc.RpcError) as refusal:
                say_hello(channel)("world", timeout=5)
            return str(refusal.value.details())

        wait_until(lambda: WHY in call_details(), "so does a failed call")
        with pytest.raises(TimeoutError, match=WHY):
            registry.wait_for_endpoints("another", 0.1)


def test_what_is_asked_for_only_then_says_so_at_once(etcd: Etcd) -> None:
    with Registry(etcd, name="closed-etcd-2") as registry:
        etcd.close()
        with pytest.raises(Closed, match=WHY):
            registry.insecure_channel("greeter")


def test_a_registry_that_is_closed_first_says_nothing_of_the_kind(etcd: Etcd, caplog: pytest.LogCaptureFixture) -> None:
    with Registry(etcd, name="closed-etcd-3") as registry:
        channel = registry.insecure_channel("greeter")
        wait_until(lambda: registry.stats()["greeter"].error, "etcd is known to be away")
    etcd.close()
    channel.close()
    assert WHY not in caplog.text

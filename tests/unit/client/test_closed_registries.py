"""What is left of registries that have been closed: nothing, once their channels are closed too."""

from typing import Any

import grpc
import pytest

from grpc_etcd.testing import MemoryRegistry
from grpc_etcd.xds.control_plane import this_process
from testbed.conditions import wait_until


def call(channel: grpc.Channel) -> None:
    method: Any = channel.unary_unary("/any.Service/Method")
    method(b"", timeout=30)


def open_and_close(*, calls: bool, registry_first: bool) -> str:
    """Open a registry and a channel, close both, and give the registry's name."""
    registry = MemoryRegistry()
    registry.set_endpoints("greeter", "127.0.0.1:1")
    channel = registry.insecure_channel("greeter")
    if calls:  # so that there is a stream, which ends a moment after its channel
        with pytest.raises(grpc.RpcError, match="UNAVAILABLE"):
            call(channel)
    for each in (registry, channel) if registry_first else (channel, registry):
        each.close()
    return registry.name


def needed() -> int:
    """Return how many descriptors the process is thought to need."""
    return this_process().control_plane.resource_cache.descriptors()


@pytest.mark.parametrize("registry_first", [False, True])
@pytest.mark.parametrize("calls", [False, True])
def test_registries_that_come_and_go_refuse_no_later_channel(*, calls: bool, registry_first: bool) -> None:
    """Each counted as two descriptors for ever: after 500 of them a channel was refused, with a dozen open."""
    before = needed()
    for _ in range(5):
        open_and_close(calls=calls, registry_first=registry_first)
    wait_until(lambda: needed() <= before, "nothing of the closed registries counts")


def test_an_open_channel_keeps_the_endpoints_of_a_closed_registry() -> None:
    with MemoryRegistry() as registry:
        registry.set_endpoints("greeter", "127.0.0.1:1")
        kept, other = registry.insecure_channel("greeter"), registry.insecure_channel("users")
        registry.wait_for_endpoints("greeter")
    other.close()
    needed()  # channels that are closed are counted out
    with kept, pytest.raises(grpc.RpcError, match=r"127\.0\.0\.1:1"):
        call(kept)


def test_a_channel_by_target_keeps_them_too_though_it_is_not_seen() -> None:
    with MemoryRegistry() as registry:
        registry.set_endpoints("greeter", "127.0.0.1:1")
        registry.wait_for_endpoints("greeter")
        target = registry.target("greeter")
    with (
        grpc.insecure_channel(target, [("grpc.enable_http_proxy", 0)]) as channel,
        pytest.raises(grpc.RpcError, match=r"127\.0\.0\.1:1"),
    ):
        call(channel)

"""`MemoryRegistry.set_endpoints` sets any number of endpoints, like the many processes that it stands for."""

from grpc_etcd.etcd import WatchEvents, WatchSnapshot
from grpc_etcd.testing import MemoryRegistry


def addresses(first: int, count: int) -> list[str]:
    return [f"10.0.{(first + number) // 250}.{(first + number) % 250 + 1}:9000" for number in range(count)]


def test_a_large_service_is_set_and_replaced_and_never_empty_in_between() -> None:
    """One transaction of etcd takes 128 changes."""
    with MemoryRegistry() as registry:
        before, after = addresses(0, 300), addresses(300, 200)
        registry.set_endpoints("greeter", *before)
        assert {each.address for each in registry.read_endpoints("greeter")} == set(before)
        watch = registry.memory.list_watch(b"/jupiter/greeter/")
        registry.set_endpoints("greeter", *after)
        assert {each.address for each in registry.read_endpoints("greeter")} == set(after)
        watch.close()
        there = set[bytes]()
        for news in watch:
            if isinstance(news, WatchSnapshot):
                there = {record.key for record in news.records}
            if isinstance(news, WatchEvents):
                there ^= {event.key for event in news.events}  # none is there twice
            assert there, "a client would be left without an endpoint"
        assert len(there) == len(after)

"""What `MemoryRegistry` adds to a registry: endpoints set in any number, and outages of its etcd."""

from grpc_etcd.etcd import Disconnected, EtcdError, WatchEvents, WatchSnapshot
from grpc_etcd.testing import MemoryEtcd, MemoryRegistry


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


def is_away(memory: MemoryEtcd) -> bool:
    try:
        memory.get(b"/any")
    except EtcdError:
        return True
    return False


def test_an_outage_within_an_outage_ends_with_the_outer_one() -> None:
    with MemoryRegistry() as registry:
        with registry.outage():
            with registry.outage():
                assert is_away(registry.memory)
            assert is_away(registry.memory)
        assert not is_away(registry.memory)


def test_outages_of_two_registries_on_one_etcd_last_until_both_have_ended() -> None:
    memory = MemoryEtcd()
    with MemoryRegistry(memory) as one, MemoryRegistry(memory) as other:
        first, second = one.outage(), other.outage()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert is_away(memory)
        second.__exit__(None, None, None)
        assert not is_away(memory)


def test_an_inner_outage_that_loses_the_data_loses_it_for_good() -> None:
    with MemoryRegistry() as registry:
        registry.set_endpoints("greeter", "10.0.0.1:1")
        with registry.outage():
            with registry.outage(loses_data=True):
                pass
            assert is_away(registry.memory)
        assert registry.read_endpoints("greeter") == ()


def test_an_outage_is_one_for_who_watches_however_many_blocks_there_are() -> None:
    memory = MemoryEtcd()
    watch = memory.list_watch(b"/")
    with memory.outage(), memory.outage():
        pass
    watch.close()
    assert [type(news) for news in watch] == [WatchSnapshot, Disconnected, WatchSnapshot]


def test_a_block_does_not_end_what_stop_began_and_start_ends_all() -> None:
    memory = MemoryEtcd()
    memory.stop()
    with memory.outage():
        assert is_away(memory)
    assert is_away(memory)
    with memory.outage():
        memory.start()
        assert not is_away(memory)
    assert not is_away(memory)

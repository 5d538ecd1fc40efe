"""A set never becomes empty by accident, and becomes empty at once when it is meant."""

import gc
import stat
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

import grpc_etcd
from grpc_etcd.etcd import Etcd, ops
from grpc_etcd.etcd.errors import Unavailable
from grpc_etcd.layouts.configurators import RouteConfig, encode_configurator
from grpc_etcd.layouts.index import make_layout
from grpc_etcd.registry.layout import KeyValue
from grpc_etcd.registry.own import synced_key
from grpc_etcd.testing import MemoryRegistry
from grpc_etcd.xds.bootstrap import merge_bootstrap
from testbed.conditions import free_port, wait_until
from testbed.greeter import say_hello
from testbed.proxy import TcpProxy

from .conftest import SERVICE, World, answers, follows

MARK = synced_key("c1")


def source(registry: grpc_etcd.Registry) -> str:
    return str(registry.stats()[SERVICE].source)


def is_empty(registry: grpc_etcd.Registry) -> bool:
    return registry.endpoints(SERVICE).endpoints == ()


def test_a_delete_under_the_mark_is_obeyed_at_once_down_to_empty(world: World) -> None:
    world.etcd.put(MARK, b"")
    server = world.serve(1)[0]
    registry = world.registry()
    follows(world.channel(registry), [server])
    world.delete(server.address)
    wait_until(lambda: is_empty(registry), "the empty set")
    assert source(registry) == "registry"


def test_without_any_operator_a_delete_is_obeyed(world: World) -> None:
    server = world.serve(1)[0]
    registry = world.registry()
    follows(world.channel(registry), [server])
    world.delete(server.address)
    wait_until(lambda: is_empty(registry), "the empty set")


def test_keys_that_expire_after_the_mark_has_gone_are_kept(world: World, caplog: pytest.LogCaptureFixture) -> None:
    mark_lease, provider_lease = world.etcd.lease(600), world.etcd.lease(600)
    world.etcd.put(MARK, b"", lease=mark_lease)
    servers = [world.greeter(), world.greeter()]
    for server in servers:
        world.put(server.address, lease=provider_lease)
    registry = world.registry()
    channel = world.channel(registry)
    follows(channel, servers)
    world.etcd.revoke(mark_lease)
    world.delete(servers[0].address)
    follows(channel, servers[1:])
    world.etcd.revoke(provider_lease)
    wait_until(lambda: source(registry) == "stale", "the last good set")
    follows(channel, servers)
    assert "c1" in registry.stats()[SERVICE].reason
    assert len([line for line in caplog.messages if "the last known endpoints stay in use" in line]) == 1
    world.etcd.put(MARK, b"")
    wait_until(lambda: is_empty(registry), "the empty set, once the operator confirms it")


def test_the_set_outlives_an_outage_of_etcd(own_world: World) -> None:
    world = own_world
    server = world.serve(1)[0]
    registry = world.registry()
    channel = world.channel(registry)
    follows(channel, [server])
    world.store.kill()
    wait_until(lambda: registry.stats()[SERVICE].error, "the loss to be noticed")
    assert set(answers(channel)) == {server.address}
    assert not registry.stats()[SERVICE].connected
    world.store.restart()
    added = world.greeter()
    wait_until(lambda: not registry.stats()[SERVICE].error, "etcd to be followed again")
    world.put(added.address)
    follows(channel, [server, added])


def test_an_etcd_that_comes_back_empty_takes_nothing_away(own_world: World) -> None:
    world = own_world
    servers = world.serve(2)
    for number in range(20):
        world.etcd.put(b"/other", str(number).encode())
    registry = world.registry()
    channel = world.channel(registry)
    follows(channel, servers)
    world.store.restart(fresh=True)
    wait_until(lambda: source(registry) == "stale", "the last good set", 90)
    assert set(answers(channel)) == {server.address for server in servers}
    world.put(servers[0].address)
    wait_until(lambda: "1 endpoints are kept" in registry.stats()[SERVICE].reason, "the first one to be confirmed")
    follows(channel, servers)
    world.put(servers[1].address)
    wait_until(lambda: source(registry) == "registry", "all to be confirmed")
    world.delete(servers[0].address)
    follows(channel, servers[1:])


def test_changes_behind_a_compaction_are_seen(own_etcd_world: World) -> None:
    world = own_etcd_world
    old, new = world.serve(1)[0], world.greeter()
    with TcpProxy.start(world.server.endpoints) as proxy, grpc_etcd.Registry(proxy.address) as registry:
        channel = world.channel(registry)
        follows(channel, [old])
        proxy.refuse()
        world.put(new.address)
        world.delete(old.address)
        assert isinstance(world.etcd, Etcd)
        world.etcd.compact(world.etcd.put(b"/other", b""))
        proxy.heal()
        follows(channel, [new])


def test_an_outage_with_a_compaction_is_not_taken_for_lost_data(own_etcd_world: World) -> None:
    """Without an operator what an etcd has lost is kept for 40 s."""
    world = own_etcd_world
    assert isinstance(world.etcd, Etcd)
    first, second, last = world.serve(3)
    with TcpProxy.start(world.server.endpoints) as proxy, grpc_etcd.Registry(proxy.address) as registry:
        channel = world.channel(registry)
        follows(channel, [first, second, last])
        world.delete(first.address)
        follows(channel, [second, last])
        proxy.refuse()
        world.delete(second.address)
        world.etcd.compact(world.etcd.put(b"/other", b""))
        proxy.heal()
        wait_until(lambda: set(answers(channel)) == {last.address}, "no calls to what was deleted", 25)


def test_a_client_that_may_read_its_service_alone_does_without_policy_and_mark(own_etcd_world: World) -> None:
    world = own_etcd_world
    server = world.serve(1)[0]
    world.server.etcdctl("role", "add", "reader")
    world.server.etcdctl("role", "grant-permission", "reader", "--prefix=true", "read", "/jupiter/greeter/")
    world.server.etcdctl("user", "add", "reader:secret")
    world.server.etcdctl("user", "grant-role", "reader", "reader")
    world.server.enable_auth("rootpw")
    registry = world.registry(user="reader", password="secret")  # noqa: S106 - of this test alone
    assert say_hello(world.channel(registry))("x", timeout=20) == server.address, "the first call needs no second try"


def test_a_password_that_was_changed_leaves_a_client_what_it_knows_when_etcd_has_restarted(
    own_etcd_world: World,
) -> None:
    """A password in a variable stays what it was when the process began."""
    world = own_etcd_world
    server = world.serve(1)[0]
    admin = world.server.enable_auth("rootpw")
    world.server.add_user("reader", "first", ["/jupiter/", "/grpc-etcd/"], admin=admin, access="read")
    registry = world.registry(user="reader", password="first")  # noqa: S106 - of this test alone
    channel = world.channel(registry)
    follows(channel, [server])
    world.server.etcdctl("user", "delete", "reader", user=admin)
    world.server.etcdctl("user", "add", "reader:second", user=admin)
    world.server.etcdctl("user", "grant-role", "reader", "reader", user=admin)
    world.server.kill()
    world.server.restart()  # it forgets the tokens that it gave for the old password
    wait_until(lambda: "password" in registry.stats()[SERVICE].reason, "the refusal")
    world.server.etcdctl("put", world.record("10.0.0.1:1").key.decode(), "{}", user=admin)
    assert say_hello(channel)("x", timeout=20) == server.address
    assert [each.address for each in registry.endpoints(SERVICE).endpoints] == [server.address]


def test_a_prefix_without_permission_is_said_and_nothing_is_invented(own_etcd_world: World) -> None:
    world = own_etcd_world
    world.serve(1)
    world.server.etcdctl("user", "add", "nobody:secret")
    world.server.enable_auth("rootpw")
    registry = world.registry(user="nobody", password="secret")  # noqa: S106 - of this test alone
    with registry.pinned(SERVICE):
        wait_until(lambda: "permission" in registry.stats()[SERVICE].reason, "the refusal")
        with pytest.raises(TimeoutError, match="permission"):
            registry.wait_for_endpoints(SERVICE, 0.1)


def test_a_service_is_unknown_not_empty_while_etcd_is_away(own_world: World) -> None:
    world = own_world
    world.store.kill()
    registry = world.registry()
    with pytest.raises(TimeoutError, match="cannot be watched"):
        registry.endpoints(SERVICE, 5)
    assert source(registry) == "unknown"


def outside(port: int, service: str = SERVICE) -> grpc.Channel:
    """Make a channel that knows nothing of this package, with an xDS client of its own."""
    options: list[tuple[str, Any]] = [
        ("grpc.enable_http_proxy", 0),
        ("grpc.TEST_ONLY_DO_NOT_USE_IN_PROD.xds_bootstrap_config", merge_bootstrap(None, f"127.0.0.1:{port}", "test")),
    ]
    return grpc.insecure_channel(f"xds:///{service}", options)


def test_a_stand_alone_server_that_starts_while_etcd_is_away_takes_nothing_from_who_had_it(own_world: World) -> None:
    """Neither endpoints nor routes; who comes for the first time is told that etcd is away."""
    world, port = own_world, free_port()
    blue, green = world.serve(1, group="blue")[0], world.serve(1, group="green")[0]
    record = encode_configurator("jupiter", SERVICE, RouteConfig(id="1", groups={"blue": 1}))
    assert isinstance(record, KeyValue)
    world.etcd.put(record.key, record.value)
    server = grpc_etcd.serve(f"127.0.0.1:{port}", world.registry())
    with outside(port) as earlier, outside(port) as new:
        follows(earlier, [blue])
        world.store.kill()
        server.stop()
        registry = world.registry()
        server = grpc_etcd.serve(f"127.0.0.1:{port}", registry)
        wait_until(lambda: SERVICE in registry.stats(), "the client that comes back")
        with pytest.raises(grpc.RpcError, match="etcd cannot be watched"):
            say_hello(new)("x", timeout=30)
        assert set(answers(earlier, 20)) == {blue.address}
        world.store.restart()
        changed = record.value.replace(b"blue", b"green")
        wait_until(lambda: is_put(world, record.key, changed), "etcd to be up again")
        follows(earlier, [green])
        follows(new, [green])
    server.stop()


def is_put(world: World, key: bytes, value: bytes) -> bool:
    """Put a record; return whether etcd is there for it."""
    try:
        world.etcd.put(key, value)
    except Unavailable:
        return False
    return True


def test_a_cold_start_without_etcd_uses_the_set_on_disk(own_world: World, tmp_path: Path) -> None:
    world = own_world
    folder = tmp_path / "cache"
    servers = world.serve(2)
    first = world.registry(cache_dir=folder)
    follows(world.channel(first), servers)
    (file,) = wait_until(lambda: list(folder.glob("*.json")), "the file")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    first.close()
    world.store.kill()
    second = world.registry(cache_dir=folder)
    channel = world.channel(second)
    follows(channel, servers)
    assert source(second) == "cache"
    world.store.restart()
    wait_until(lambda: source(second) == "registry", "etcd's word")
    file.write_bytes(b"garbage")
    world.store.kill()
    third = world.registry(cache_dir=folder)
    with pytest.raises(TimeoutError):
        third.endpoints(SERVICE, 2)


def test_the_cache_believes_an_empty_registry_no_more_than_memory_does(own_world: World, tmp_path: Path) -> None:
    world = own_world
    world.etcd.put(MARK, b"")
    server = world.serve(1)[0]
    first = world.registry(cache_dir=tmp_path)
    follows(world.channel(first), [server])
    wait_until(lambda: list(tmp_path.glob("*.json")), "the file")
    first.close()
    world.etcd.transaction([], [ops.delete(MARK), ops.delete(world.record(server.address).key)])
    second = world.registry(cache_dir=tmp_path)
    assert set(answers(world.channel(second))) == {server.address}
    wait_until(lambda: source(second) == "stale", "the set that was cached")


def test_registries_of_other_layouts_keep_their_own_sets_in_one_folder(own_world: World, tmp_path: Path) -> None:
    """They wrote one file, so that all but the last one found nothing of theirs at a cold start."""
    world = own_world
    world.put("10.0.0.1:1")
    record = make_layout("kratos").encode(SERVICE, grpc_etcd.Endpoint(name=SERVICE, address="10.0.0.2:1"))
    assert isinstance(record, KeyValue)
    world.etcd.put(*record)
    addresses = {"jupiter": "10.0.0.1:1", "kratos": "10.0.0.2:1"}
    for layout, address in addresses.items():
        with world.store.registry(cache_dir=tmp_path, layouts=layout) as first:
            assert [each.address for each in first.wait_for_endpoints(SERVICE).endpoints] == [address]
    world.store.kill()
    for layout, address in addresses.items():
        second = world.registry(cache_dir=tmp_path, layouts=layout)
        assert [each.address for each in second.endpoints(SERVICE, 60).endpoints] == [address]


def test_a_process_that_is_closed_at_once_has_written_its_cache(own_world: World, tmp_path: Path) -> None:
    world = own_world
    servers = world.serve(1)
    with world.store.registry(cache_dir=tmp_path) as first:
        follows(world.channel(first), servers)
    world.store.kill()
    second = world.registry(cache_dir=tmp_path)
    assert set(answers(world.channel(second))) == {servers[0].address}


def test_a_service_that_is_gone_is_gone_from_the_disk_too(own_world: World, tmp_path: Path) -> None:
    """Else a client that starts while etcd is away calls addresses that have belonged to others for long."""
    world = own_world
    (server,) = world.serve()
    with world.store.registry(cache_dir=tmp_path) as first:
        follows(world.channel(first), [server])
    world.delete(server.address)
    with world.store.registry(cache_dir=tmp_path) as second, second.pinned(SERVICE):
        wait_until(lambda: source(second) == "registry", "etcd's word")
    world.store.kill()
    third = world.registry(cache_dir=tmp_path)
    assert third.endpoints(SERVICE, 60).endpoints == ()


def test_what_nobody_vouches_for_is_not_written_to_the_cache(own_world: World, tmp_path: Path) -> None:
    world = own_world
    world.etcd.put(MARK, b"")
    world.put("10.0.0.1:1")
    world.put("10.0.0.2:1")
    with world.store.registry(cache_dir=tmp_path) as first, first.pinned(SERVICE):
        first.wait_for_endpoints(SERVICE, 60, at_least=2)
        world.etcd.delete(MARK)
        world.delete("10.0.0.1:1")
        wait_until(lambda: len(first.endpoints(SERVICE).endpoints) == 1, "the loss")
    world.store.kill()
    second = world.registry(cache_dir=tmp_path)
    assert len(second.endpoints(SERVICE, 60).endpoints) == 2


def test_a_service_is_followed_as_long_as_a_channel_to_it_is_open(world: World) -> None:
    server = world.serve(1)[0]
    registry = world.registry()
    channel = registry.insecure_channel(SERVICE)
    stub = say_hello(channel)
    registry.wait_for_endpoints(SERVICE, 60)
    followed = registry.follow(SERVICE)
    inside = registry._inside
    assert inside is not None
    inside.let_go(followed, 0.0)
    assert SERVICE in registry.stats()
    assert stub("x", timeout=60) == server.address
    channel.close()
    wait_until(lambda: not registry.stats()[SERVICE].wanted, "the streams to end")
    inside.let_go(followed, 0.0)
    assert SERVICE not in registry.stats()
    assert dict(registry.stats()) == {}


def test_a_service_is_followed_as_long_as_a_channel_to_its_target_may_be_open(world: World) -> None:
    """Which the registry does not see while gRPC lets that channel sleep."""
    (server,) = world.serve(1)
    registry = world.registry()
    with grpc.insecure_channel(registry.target(SERVICE)) as channel:
        registry.wait_for_endpoints(SERVICE, 60)
        followed = registry.follow(SERVICE)
        registry.target(SERVICE)
        assert followed.pins == 1, "however often it is asked for"
        inside = registry._inside
        assert inside is not None
        inside.let_go(followed, 0.0)
        assert SERVICE in registry.stats()
        assert say_hello(channel)("x", timeout=60) == server.address


def test_a_channel_that_is_dropped_without_being_closed_holds_no_service(world: World) -> None:
    world.serve(1)
    registry = world.registry()
    channel: object = registry.insecure_channel(SERVICE)
    assert registry.follow(SERVICE).pins == 1
    del channel
    gc.collect()
    assert registry.follow(SERVICE).pins == 0


@pytest.mark.faults
def test_a_channel_that_was_idle_for_long_still_has_its_set_when_etcd_goes_away(own_world: World) -> None:
    world = own_world
    server = world.serve(1)[0]
    registry, other = world.registry(), world.registry()
    with (
        grpc_etcd.CompoundRegistry([other]) as compound,
        compound.insecure_channel(SERVICE) as joined,
        grpc.insecure_channel(registry.target(SERVICE)) as own,
    ):
        channels = [world.channel(registry), joined, own]
        begun = time.monotonic()
        wait_until(lambda: time.monotonic() > begun + 75, "a service that nobody wants to be let go", 90)
        world.store.kill()
        wait_until(lambda: registry.stats()[SERVICE].error, "the loss to be noticed")
        assert [say_hello(each)("x", timeout=60) for each in channels] == [server.address] * 3


def test_nothing_is_left_of_a_closed_registry_when_another_takes_its_name(world: World) -> None:
    old, new = world.serve(1)[0], world.greeter()
    first = world.registry(name="same")
    kept_open = world.channel(first)
    follows(kept_open, [old])
    first.close()
    world.delete(old.address)
    world.put(new.address)
    second = world.registry(name="same")
    assert set(answers(world.channel(second), 20)) == {new.address}
    assert set(answers(kept_open, 20)) == {old.address}


def test_readiness_asks_for_a_callable_endpoint_of_every_service_with_a_channel(own_world: World) -> None:
    world = own_world
    registry = world.registry()
    assert registry.ready()
    world.channel(registry)
    wait_until(lambda: "0 endpoints" in registry.stats().unready.get(SERVICE, ""), "the reason")
    assert not registry.ready()
    with pytest.raises(TimeoutError):
        registry.wait_for_endpoints("nowhere", 0.3)
    assert "nowhere" not in registry.stats().unready
    world.put("10.0.0.1:1")
    wait_until(registry.ready, "the endpoint")
    world.store.kill()
    wait_until(lambda: registry.stats()[SERVICE].error, "the loss to be noticed")
    assert registry.ready()
    assert "the last known endpoints" in registry.stats()[SERVICE].reason


def test_a_name_that_is_nearly_right_is_named(world: World) -> None:
    world.put("10.0.0.1:1", "greeter")
    registry = world.registry()
    with registry.pinned("greeetr"):
        wait_until(lambda: "did you mean" in registry.stats()["greeetr"].reason, "the names to be known")
        with pytest.raises(TimeoutError, match="did you mean greeter") as failure:
            registry.wait_for_endpoints("greeetr", 0.1)
    assert "/jupiter/greeetr/" in str(failure.value)


def test_a_stand_alone_server_that_starts_without_the_right_to_a_service_takes_no_endpoint_of_it_from_who_had_it(
    own_etcd_world: World,
) -> None:
    """Nor does it keep anything else from that client; who comes for the first time is told what is denied."""
    world, port = own_etcd_world, free_port()
    server, other = world.serve(1)[0], world.serve(1, "other")[0]
    admin = world.server.enable_auth("secret")
    world.server.add_user("ads", "word", ["/"], admin=admin, access="read")
    options = {"user": "ads", "password": "word"}
    ads = grpc_etcd.serve(f"127.0.0.1:{port}", world.registry(**options))
    with outside(port) as earlier, outside(port) as new:
        follows(earlier, [server])
        ads.stop()
        world.server.etcdctl("role", "revoke-permission", "--prefix=true", "ads", "/", user=admin)
        for prefix in ("/jupiter/other/", "/grpc-etcd/"):
            world.server.etcdctl("role", "grant-permission", "--prefix=true", "ads", "read", prefix, user=admin)
        registry = world.registry(**options)
        ads = grpc_etcd.serve(f"127.0.0.1:{port}", registry)
        wait_until(lambda: SERVICE in registry.stats(), "the client that comes back")
        with pytest.raises(grpc.RpcError, match="etcd denies reading"):
            say_hello(new)("x", timeout=30)
        time.sleep(3)
        assert set(answers(earlier, 20)) == {server.address}
        with outside(port, "other") as more:
            follows(more, [other])
        world.server.etcdctl("role", "grant-permission", "--prefix=true", "ads", "read", "/", user=admin)
        follows(new, [server])
        follows(earlier, [server])
    ads.stop()


def test_a_stand_alone_server_that_starts_while_one_of_several_registries_is_away_takes_nothing_from_who_had_it(
    own_world: World,
) -> None:
    """Nor does it keep from that client what the others know; who comes for the first time is told what is away."""
    world, port = own_world, free_port()
    server, other = world.serve(1)[0], world.greeter()
    with (
        MemoryRegistry() as live,
        grpc_etcd.CompoundRegistry([live, world.registry()]) as before,
        grpc_etcd.CompoundRegistry([live, world.registry()]) as after,
        outside(port) as earlier,
        outside(port) as new,
        outside(port, "other") as more,
    ):
        live.set_endpoints("other", other.address)
        ads = grpc_etcd.serve(f"127.0.0.1:{port}", before)
        follows(earlier, [server])
        world.store.kill()
        ads.stop()
        ads = grpc_etcd.serve(f"127.0.0.1:{port}", after)
        with pytest.raises(grpc.RpcError, match="etcd cannot be watched"):
            say_hello(new)("x", timeout=30)
        assert set(answers(earlier, 20)) == {server.address}
        follows(more, [other])
        world.store.restart()
        follows(new, [server])
        follows(earlier, [server])
        ads.stop()

"""A set never becomes empty by accident, and becomes empty at once when it is meant."""

import stat
from pathlib import Path

import pytest

from grpc_etcd.etcd import ops
from grpc_etcd.registry.own import synced_key
from testbed.conditions import wait_until

from .conftest import SERVICE, World, answers, follows

MARK = synced_key("c1")


def source(registry: object) -> str:
    return str(registry.stats()[SERVICE].source)  # type: ignore[attr-defined]


def is_empty(registry: object) -> bool:
    return registry.endpoints(SERVICE).endpoints == ()  # type: ignore[attr-defined]


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
    mark_lease, provider_lease = world.etcd.lease(60), world.etcd.lease(60)
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
    wait_until(lambda: source(registry) == "kept", "the last good set")
    follows(channel, servers)
    assert "c1" in registry.stats()[SERVICE].reason
    assert len([line for line in caplog.messages if "the last good set is kept" in line]) == 1
    world.etcd.put(MARK, b"")
    wait_until(lambda: is_empty(registry), "the empty set, once the operator vouches for it")


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
    wait_until(lambda: source(registry) == "kept", "the last good set", 90)
    assert set(answers(channel)) == {server.address for server in servers}
    world.put(servers[0].address)
    follows(channel, servers[:1])
    assert source(registry) == "registry"


def test_changes_behind_a_compaction_are_seen(own_etcd_world: World) -> None:
    world = own_etcd_world
    old, new = world.serve(1)[0], world.greeter()
    registry = world.registry()
    channel = world.channel(registry)
    follows(channel, [old])
    followed = registry.follow(SERVICE)
    followed.feed.hang_up()
    assert followed.feed.wait_quiet(20)
    world.put(new.address)
    world.delete(old.address)
    world.etcd.compact(world.etcd.put(b"/other", b""))
    followed.feed.go_on()
    follows(channel, [new])


def test_a_client_that_may_read_its_service_alone_does_without_policy_and_mark(own_etcd_world: World) -> None:
    world = own_etcd_world
    server = world.serve(1)[0]
    world.server.etcdctl("role", "add", "reader")
    world.server.etcdctl("role", "grant-permission", "reader", "--prefix=true", "read", "/jupiter/greeter/")
    world.server.etcdctl("user", "add", "reader:secret")
    world.server.etcdctl("user", "grant-role", "reader", "reader")
    world.server.enable_auth("rootpw")
    registry = world.registry(user="reader", password="secret")  # noqa: S106 - of this test alone
    assert set(answers(world.channel(registry))) == {server.address}


def test_a_prefix_without_permission_is_said_and_nothing_is_invented(own_etcd_world: World) -> None:
    world = own_etcd_world
    world.serve(1)
    world.server.etcdctl("user", "add", "nobody:secret")
    world.server.enable_auth("rootpw")
    registry = world.registry(user="nobody", password="secret")  # noqa: S106 - of this test alone
    with pytest.raises(TimeoutError, match="permission"):
        registry.wait_for_endpoints(SERVICE, 3)


def test_a_service_is_unknown_not_empty_while_etcd_is_away(own_world: World) -> None:
    world = own_world
    world.store.kill()
    registry = world.registry()
    with pytest.raises(TimeoutError, match="cannot be followed"):
        registry.endpoints(SERVICE, 5)
    assert source(registry) == "unknown"


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
    wait_until(lambda: source(second) == "kept", "the set that was cached")

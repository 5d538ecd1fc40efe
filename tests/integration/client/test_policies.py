"""Weights, zones, routes, retry, ejection, stickiness and timeouts: from the registry, and from the program."""

import time
from dataclasses import replace

import grpc
import pytest

import grpc_etcd
from grpc_etcd import (
    Balancing,
    LoadBalancing,
    LocalityPreference,
    MethodRoute,
    OutlierDetection,
    Policy,
    Retry,
    SlowStart,
    ZonePreference,
)
from grpc_etcd.layouts.configurators import RouteConfig, encode_configurator
from grpc_etcd.registry.layout import KeyValue
from grpc_etcd.registry.own import policy_key
from grpc_etcd.registry.policy import write_policy
from grpc_etcd.xds.bootstrap import merge_bootstrap
from testbed.conditions import wait_until
from testbed.greeter import DELAY_HEADER, FAIL_HEADER, METHOD, GreeterServer, decode_text, encode_text, say_hello

from .conftest import SERVICE, Load, World, answers, follows

PREFER_ZONE = Policy(locality_preference=LocalityPreference(mode=ZonePreference.PREFER_ZONE))


def test_weights_are_obeyed(world: World) -> None:
    servers = [world.greeter() for _ in range(3)]
    for server, weight in zip(servers, (1, 3, 6), strict=True):
        world.put(server.address, weight=weight)
    channel = world.channel(world.registry())
    follows(channel, servers)
    counts = answers(channel, 2000)
    shares = [counts[server.address] / 2000 for server in servers]
    assert shares == pytest.approx([0.1, 0.3, 0.6], abs=0.05)


def test_weights_that_come_and_go_fail_no_call(world: World) -> None:
    servers = world.serve(3, zone="a")
    channel = world.channel(world.registry())
    follows(channel, servers)
    with Load(channel) as load:
        for weights in ((1, 3, 6), (5, 5, 5), (9, 1, 0)):
            for server, weight in zip(servers, weights, strict=True):
                world.put(server.address, weight=weight, zone="a")

            def as_wished(weights: tuple[int, ...] = weights) -> bool:
                counts = answers(channel, 500)
                shares = [counts[server.address] / 500 for server in servers]
                return shares == pytest.approx([weight / sum(weights) for weight in weights], abs=0.08)

            wait_until(as_wished, f"shares of {weights}")
    assert load.failures == []


def test_own_zone_is_preferred_and_spilled_over_when_it_is_down(world: World) -> None:
    near, far = world.greeter(), world.greeter()
    world.put(near.address, zone="a", region="eu")
    world.put(far.address, zone="b", region="eu")
    registry = world.registry(zone="a", region="eu")
    registry.configure(SERVICE, PREFER_ZONE)
    channel = world.channel(registry)
    follows(channel, [near])
    near.stop(0)
    follows(channel, [far])
    assert registry.endpoints(SERVICE).endpoints[0].address == near.address


def test_several_registries_are_where_one_of_them_is(world: World) -> None:
    near, far = world.greeter(), world.greeter()
    world.put(near.address, zone="a", region="eu")
    world.put(far.address, zone="b", region="eu")
    world.etcd.put(policy_key("jupiter", SERVICE), write_policy(PREFER_ZONE))
    parts = [world.registry(), world.registry(zone="a", region="eu")]
    with grpc_etcd.CompoundRegistry(parts) as compound, compound.insecure_channel(SERVICE) as channel:
        follows(channel, [near])
        world.delete(near.address)
        follows(channel, [far])


def test_a_subset_is_of_the_own_region(world: World) -> None:
    near, far = world.greeter(), world.greeter()
    world.put(near.address, zone="a", region="eu")
    world.put(far.address, zone="b", region="us")
    wish = Policy(locality_preference=LocalityPreference(mode=ZonePreference.PREFER_ZONE), subset=1)
    world.etcd.put(policy_key("jupiter", SERVICE), write_policy(wish))
    for number in range(4):  # whatever a client's share of all would be
        registry = world.registry(zone="c", region="eu", client_id=str(number))
        follows(world.channel(registry), [near])


def test_a_zone_with_too_few_endpoints_is_helped_before_the_last_one_dies(world: World) -> None:
    near, other, far = (world.greeter() for _ in range(3))
    world.put(near.address, zone="a", region="eu")
    world.put(other.address, zone="a", region="eu")
    world.put(far.address, zone="b", region="eu")
    wish = LocalityPreference(mode=ZonePreference.PREFER_ZONE, min_endpoints=2)
    world.etcd.put(policy_key("jupiter", SERVICE), write_policy(Policy(locality_preference=wish)))
    channel = world.channel(world.registry(zone="a", region="eu"))
    follows(channel, [near, other])
    with Load(channel) as load:
        world.delete(other.address)
        follows(channel, [near, far])
        assert answers(channel, 600)[far.address] / 600 == pytest.approx(0.5, abs=0.1)
        world.put(other.address, zone="a", region="eu")
        follows(channel, [near, other])
    assert load.failures == []


def test_the_own_cluster_is_preferred_and_the_other_is_the_way_out(world: World) -> None:
    here, there = world.greeter(), world.greeter()
    world.put(here.address, metadata={"cluster": "one"})
    world.put(there.address, metadata={"cluster": "two"})
    wish = LocalityPreference(mode=ZonePreference.PREFER_CLUSTER)
    world.etcd.put(policy_key("jupiter", SERVICE), write_policy(Policy(locality_preference=wish)))
    channel = world.channel(world.registry(cluster="one"))
    follows(channel, [here])
    follows(world.channel(world.registry(cluster="two")), [there])
    follows(world.channel(world.registry()), [here, there])
    with Load(channel) as load:
        world.delete(here.address)
        follows(channel, [there])
    assert load.failures == []


def test_all_calls_go_to_one_version_and_over_to_the_next_by_one_change(world: World) -> None:
    blue, green = world.greeter(), world.greeter()
    world.put(blue.address, metadata={"version": "v1"})
    world.put(green.address, metadata={"version": "v2"})
    key = policy_key("jupiter", SERVICE)
    world.etcd.put(key, write_policy(Policy(match_metadata={"version": "v1"})))
    channel = world.channel(world.registry())
    follows(channel, [blue])
    with Load(channel) as load:
        world.etcd.put(key, write_policy(Policy(match_metadata={"version": "v2"})))
        follows(channel, [green])
        world.etcd.put(key, write_policy(Policy(match_metadata={"version": "v3"})))
        follows(channel, [blue, green])
    assert load.failures == []


def test_a_new_endpoint_begins_with_few_calls_and_ends_with_its_share(world: World) -> None:
    warm = world.serve(2)
    wish = SlowStart(window_seconds=20, min_weight_percent=5)
    world.etcd.put(policy_key("jupiter", SERVICE), write_policy(Policy(slow_start=wish)))
    channel = world.channel(world.registry())
    follows(channel, warm)
    assert answers(channel, 600)[warm[0].address] / 600 == pytest.approx(0.5, abs=0.1), "the first set is warm"
    with Load(channel) as load:
        (cold,) = world.serve(1)
        wait_until(lambda: cold.calls, "the first call of the new one")
        assert answers(channel, 200)[cold.address] / 200 < 0.2  # as many as after half of the window
        wait_until(lambda: answers(channel, 600)[cold.address] > 600 * 0.29, "its whole share", 90)
    assert load.failures == []


def test_clients_of_the_stand_alone_server_are_led_by_the_same_wishes(world: World) -> None:
    """By counted calls of a channel that knows nothing of this package."""
    here, other, there = (world.greeter() for _ in range(3))
    world.put(here.address, zone="a", metadata={"cluster": "one", "version": "v1"})
    world.put(other.address, zone="b", metadata={"cluster": "one", "version": "v2"})
    world.put(there.address, zone="a", metadata={"cluster": "two", "version": "v2"})
    server = grpc_etcd.serve("127.0.0.1:0", world.registry(zone="a", cluster="one"))
    bootstrap = merge_bootstrap(None, f"127.0.0.1:{server.port}", "test")
    options = [
        ("grpc.enable_http_proxy", 0),
        ("grpc.TEST_ONLY_DO_NOT_USE_IN_PROD.xds_bootstrap_config", bootstrap),
    ]
    cluster, zone = ZonePreference.PREFER_CLUSTER, ZonePreference.PREFER_ZONE
    wishes = [
        (LocalityPreference(mode=cluster), [here]),
        (LocalityPreference(mode=cluster, min_endpoints=2), [here, other]),
        (LocalityPreference(mode=zone, min_percent=50), [here, there]),
    ]

    def wish(policy: Policy) -> None:
        world.etcd.put(policy_key("jupiter", SERVICE), write_policy(policy))

    with grpc.insecure_channel("xds:///greeter", options) as channel:
        follows(channel, [here, other, there])
        for preference, expected in wishes:
            wish(Policy(locality_preference=preference))
            follows(channel, expected)
        wish(Policy(match_metadata={"version": "v2"}))
        follows(channel, [other, there])
        wish(Policy(slow_start=SlowStart(window_seconds=20, min_weight_percent=5)))
        follows(channel, [here, other, there])
        (cold,) = world.serve(1)
        wait_until(lambda: answers(channel, 50)[cold.address], "the new one is called")
        assert answers(channel, 200)[cold.address] / 200 < 0.2  # as many as after half of the window
    server.stop()


def test_the_registrys_policy_is_obeyed_and_follows_changes(world: World) -> None:
    near, far = world.greeter(), world.greeter()
    world.put(near.address, zone="a")
    world.put(far.address, zone="b")
    key = policy_key("jupiter", SERVICE)
    world.etcd.put(key, write_policy(PREFER_ZONE))
    registry = world.registry(zone="a")
    channel = world.channel(registry)
    follows(channel, [near])
    world.etcd.delete(key)
    follows(channel, [near, far])
    world.etcd.put(key, b'{"subset":0,"retry":{"attempts":3}}')
    wait_until(lambda: registry.stats()[SERVICE].policy_faults, "the fault")
    assert registry.stats()[SERVICE].policy_faults == ("subset: 0 is not between 1 and 100000",)


def test_the_programs_policy_goes_before_the_registrys(world: World) -> None:
    near, far = world.greeter(), world.greeter()
    world.put(near.address, zone="a")
    world.put(far.address, zone="b")
    world.etcd.put(policy_key("jupiter", SERVICE), write_policy(PREFER_ZONE))
    registry = world.registry(zone="a")
    registry.configure(SERVICE, Policy(locality_preference=LocalityPreference(mode=ZonePreference.NONE)))
    follows(world.channel(registry), [near, far])


def test_a_canary_gets_its_share_of_one_method(world: World) -> None:
    blue, green = world.greeter(), world.greeter()
    world.put(blue.address, group="blue")
    world.put(green.address, group="green")
    route = RouteConfig(id="1", uri=METHOD, groups={"blue": 90, "green": 10})
    record = encode_configurator("jupiter", SERVICE, route)
    assert isinstance(record, KeyValue)
    world.etcd.put(record.key, record.value)
    channel = world.channel(world.registry())
    follows(channel, [blue, green])
    counts = answers(channel, 2000)
    assert counts[green.address] / 2000 == pytest.approx(0.1, abs=0.04)
    world.delete(green.address)
    follows(channel, [blue])
    world.put(green.address, group="green")
    world.etcd.delete(record.key)
    wait_until(lambda: answers(channel, 40)[green.address] == 20, "equal shares without the route")


def test_a_route_to_a_group_without_endpoints_fails_no_call(world: World) -> None:
    server = world.serve(1)[0]
    registry = world.registry()
    registry.configure(SERVICE, routes=[MethodRoute(METHOD, groups={"nobody": 1})])
    assert set(answers(world.channel(registry))) == {server.address}


def test_routes_that_lead_to_nobody_are_told(world: World) -> None:
    world.put("10.0.0.1:1", group="blue", enable=False)
    route = RouteConfig(id="1", uri="Get", groups={"blue": 1}, nodes={"10.0.0.2:1": 1, "10.0.0.3:1": 0})
    record = encode_configurator("jupiter", SERVICE, route)
    assert isinstance(record, KeyValue)
    world.etcd.put(record.key, record.value)
    registry = world.registry()
    with registry.pinned(SERVICE):
        registry.endpoints(SERVICE)

        def told(*faults: str) -> None:
            wait_until(lambda: registry.stats()[SERVICE].policy_faults == faults, str(faults))

        told(
            "the route of 'Get': no call can have such a method",
            "the route of 'Get': no endpoint has the address '10.0.0.2:1'",
        )
        registry.configure(SERVICE, routes=[MethodRoute(METHOD, groups={"canary": 1, "blue": 1, "green": 0})])
        told(f"the route of {METHOD!r}: no endpoint is in the group 'canary'")
        registry.configure(SERVICE, routes=[MethodRoute(groups={"g" * 5000: 1})])
        told(f"the route of all methods: no endpoint is in the group '{'g' * 100}'...")
        registry.configure(SERVICE, routes=[])
        told()


def test_a_route_by_address(world: World) -> None:
    chosen, _ = world.serve(2)
    registry = world.registry()
    registry.configure(SERVICE, routes=[MethodRoute(METHOD, addresses={chosen.address: 1})])
    follows(world.channel(registry), [chosen])


def test_retry_goes_to_another_endpoint(world: World) -> None:
    good = world.serve(1)[0]
    registry = world.registry()
    registry.configure(SERVICE, Policy(retry=Retry(attempts=3, base_interval_seconds=0.01)))
    channel = world.channel(registry)
    follows(channel, [good])
    bad = world.serve(1)[0]
    follows(channel, [good, bad])
    hello = channel.unary_unary(METHOD, encode_text, decode_text)
    before = good.calls + bad.calls
    with pytest.raises(grpc.RpcError) as failure:
        hello("x", timeout=20, metadata=((FAIL_HEADER, "UNAVAILABLE"),))
    assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
    assert good.calls + bad.calls == before + 3


def test_without_retry_a_failure_is_the_callers(world: World) -> None:
    server = world.serve(1)[0]
    channel = world.channel(world.registry())
    follows(channel, [server])
    before = server.calls
    with pytest.raises(grpc.RpcError):
        say_hello(channel)("x", timeout=20, metadata=((FAIL_HEADER, "UNAVAILABLE"),))
    assert server.calls == before + 1


def test_an_endpoint_that_fails_most_calls_is_ejected(world: World) -> None:
    good, bad = world.serve(2)
    registry = world.registry()
    wish = OutlierDetection(
        interval_seconds=0.5, failure_percentage=50, minimum_hosts=1, request_volume=5, max_ejection_percent=50
    )
    registry.configure(SERVICE, Policy(outlier_detection=wish))
    channel = world.channel(registry)
    follows(channel, [good, bad])
    bad.fail_with(grpc.StatusCode.INTERNAL)
    hello = say_hello(channel)

    def served() -> set[str]:
        found = set()
        for _ in range(20):
            try:
                found.add(hello("x", timeout=20))
            except grpc.RpcError as error:
                found.add(error.code().name)
        return found

    wait_until(lambda: served() == {good.address}, "the failing endpoint to be left out")


def test_a_metadata_key_sticks_to_its_endpoint(world: World) -> None:
    servers = world.serve(4)
    registry = world.registry()
    wish = LoadBalancing(type=Balancing.RING_HASH, hash_header="x-user")
    registry.configure(SERVICE, Policy(load_balancing=wish))
    channel = world.channel(registry)
    hello = say_hello(channel)

    def homes() -> dict[str, str]:
        users = [f"user-{number}" for number in range(40)]
        return {user: hello("x", timeout=20, wait_for_ready=True, metadata=(("x-user", user),)) for user in users}

    first = homes()
    assert homes() == first
    assert len(set(first.values())) == 4
    gone = servers[0]
    world.delete(gone.address)
    wait_until(lambda: gone.address not in homes().values(), "the removal")
    moved = {user for user, home in homes().items() if home != first[user] and first[user] != gone.address}
    assert len(moved) < 15


def test_calls_without_the_key_of_a_ring_go_to_all(world: World) -> None:
    servers = world.serve(4)
    registry = world.registry()
    registry.configure(SERVICE, Policy(load_balancing=LoadBalancing(type=Balancing.RING_HASH, hash_header="x-user")))
    channel = world.channel(registry)
    follows(channel, servers)
    assert min(answers(channel, 400)[server.address] for server in servers) > 20  # of 100 each, as rings have it


def test_retries_stay_at_the_endpoint_of_their_key_until_it_is_ejected(world: World) -> None:
    servers = {server.address: server for server in world.serve(3)}
    registry = world.registry()
    ring = LoadBalancing(type=Balancing.RING_HASH, hash_header="x-user")
    retrying = Policy(load_balancing=ring, retry=Retry(attempts=3, base_interval_seconds=0.01))
    registry.configure(SERVICE, retrying)
    channel = world.channel(registry)
    follows(channel, list(servers.values()))
    hello, key = say_hello(channel), (("x-user", "somebody"),)
    home = servers[hello("x", timeout=20, metadata=key)]
    home.fail_with(grpc.StatusCode.UNAVAILABLE)
    before = {address: server.calls for address, server in servers.items()}
    with pytest.raises(grpc.RpcError, match=home.address):
        hello("x", timeout=20, metadata=key)
    attempts = {address: server.calls - before[address] for address, server in servers.items()}
    assert attempts == dict.fromkeys(servers, 0) | {home.address: 3}
    ejection = OutlierDetection(
        interval_seconds=0.5, failure_percentage=50, minimum_hosts=1, request_volume=5, max_ejection_percent=50
    )
    registry.configure(SERVICE, replace(retrying, outlier_detection=ejection))

    def found() -> str:
        try:
            return hello("x", timeout=20, metadata=key)
        except grpc.RpcError:
            return home.address

    wait_until(lambda: {found() for _ in range(10)} < servers.keys() - {home.address}, "another home")


def hasten(world: World) -> tuple[GreeterServer, grpc_etcd.Registry, grpc.Channel]:
    """Serve, follow and call with a default timeout of 0.3 s."""
    server = world.serve(1)[0]
    world.etcd.put(policy_key("jupiter", SERVICE), b'{"timeout":"300ms"}')
    registry = world.registry()
    channel = world.channel(registry)
    follows(channel, [server])
    wait_until(lambda: registry.default_timeout(SERVICE) == 0.3, "the policy")
    return server, registry, channel


def test_the_default_timeout_of_a_policy_is_not_for_streams(world: World) -> None:
    server, _, channel = hasten(world)
    slow = ((DELAY_HEADER, "1"),)
    with pytest.raises(grpc.RpcError, match="Deadline Exceeded"):
        say_hello(channel)("x", metadata=slow)
    many: grpc.UnaryStreamMultiCallable[str, str] = channel.unary_stream(METHOD, encode_text, decode_text)
    assert list(many("x", metadata=slow)) == [server.address]
    both: grpc.StreamStreamMultiCallable[str, str] = channel.stream_stream(METHOD, encode_text, decode_text)
    assert list(both(iter(["x"]), metadata=slow)) == [server.address]


def test_the_default_timeout_of_a_channel_outlives_its_registry(world: World) -> None:
    _, registry, channel = hasten(world)
    registry.close()
    with pytest.raises(grpc.RpcError) as failure:
        say_hello(channel)("x", metadata=((DELAY_HEADER, "20"),))
    assert failure.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_default_timeout_is_exact_and_only_for_calls_without_one(world: World) -> None:
    server = world.serve(1)[0]
    registry = world.registry()
    channel = world.channel(registry)
    follows(channel, [server])
    hello = channel.unary_unary(METHOD, encode_text, decode_text)
    world.etcd.put(policy_key("jupiter", SERVICE), b'{"timeout":"2500ms"}')
    wait_until(lambda: registry.default_timeout(SERVICE) == 2.5, "the policy")
    slow = ((DELAY_HEADER, "4"),)
    begun = time.monotonic()
    with pytest.raises(grpc.RpcError) as failure:
        hello("x", metadata=slow)
    assert failure.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - begun >= 2.4
    assert hello("x", timeout=30, metadata=slow) == server.address
    assert hello.with_call("x")[0] == server.address
    assert hello.future("x").result() == server.address

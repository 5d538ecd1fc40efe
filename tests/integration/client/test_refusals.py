"""What gRPC refuses, or cannot be written, costs its own service that wish, and no other service anything."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.policy import Balancing, LoadBalancing, LocalityPreference, Policy, Retry, ZonePreference
from grpc_etcd.xds.control_plane import this_process
from grpc_etcd.xds.hosts import read_socket
from grpc_etcd.xds.localities import Dialable, Here
from grpc_etcd.xds.names import ResourceName, ServiceName
from grpc_etcd.xds.resources import Socket
from grpc_etcd.xds.service import ALL, MethodRoute, ServiceResources, make_service_resources
from testbed.conditions import wait_until
from testbed.examples import examples
from testbed.greeter import METHOD, GreeterServer, decode_text, encode_text, say_hello

NAME = "refusals"
# Each example takes the same board, and a busy machine is not slow code.
TOLERATED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


class Told:
    """A registry whose resources a test makes by hand."""

    def __init__(self) -> None:
        self.resource_cache = this_process().control_plane.resource_cache
        self.refusals: dict[str, str] = {}
        self.channels: list[grpc.Channel] = []
        self.resource_cache.add(NAME, self)

    def follow(self, service: str) -> object: ...

    def refused(self, service: str, reason: str) -> None:
        self.refusals[service] = reason

    def publish(self, service: str, resources: ServiceResources) -> None:
        self.resource_cache.publish(ServiceName(NAME, service), resources)

    def channel(self, service: str) -> grpc.Channel:
        lead = this_process().control_plane.lead(ServiceName(NAME, service), ())
        self.channels.append(grpc.insecure_channel(lead.target, lead.options))
        return self.channels[-1]

    def close(self) -> None:
        for channel in self.channels:
            channel.close()
        self.resource_cache.remove(NAME, self)


@pytest.fixture
def sent() -> Iterator[Told]:
    made = Told()
    yield made
    made.close()


@pytest.fixture(scope="module")
def server() -> Iterator[GreeterServer]:
    with GreeterServer("127.0.7.99:0") as made:
        yield made


def dialable(server: GreeterServer, **attributes: Any) -> Dialable:
    host, _, port = server.address.rpartition(":")
    return Dialable(Endpoint(name="x", address=server.address, **attributes), (Socket(host, int(port)),))


def sound(
    server: GreeterServer, *routes: MethodRoute, policy: Policy | None = None, **attributes: Any
) -> ServiceResources:
    return make_service_resources([dialable(server, **attributes)], policy or Policy(), routes, Here())


def heavy(found: ServiceResources) -> ServiceResources:
    """Weigh a route as gRPC does not take it."""
    shares = ((ALL, 2**32 - 1), (ALL, 2**32 - 1))
    return ServiceResources(found.policy, ((METHOD, shares),), found.clusters)


class Unwritable(ServiceResources):
    """Raises for whatever is asked of it but what is left without its wishes."""

    def virtual_host(self, name: ResourceName, domain: str) -> bytes:
        raise KeyError(name, domain)

    def answer(self, type_url: str, requested: str, name: ResourceName) -> bytes | None:
        raise KeyError(type_url, requested, name)


@pytest.mark.parametrize("kind", ["refused", "unwritable"])
def test_a_bad_service_takes_no_other_with_it(sent: Told, server: GreeterServer, kind: str) -> None:
    sent.publish("good", sound(server))
    good = say_hello(sent.channel("good"))
    assert good("x", timeout=30) == server.address
    found: ServiceResources = sound(server)
    sent.publish("bad", heavy(found) if kind == "refused" else Unwritable(clusters=found.clusters))
    bad = say_hello(sent.channel("bad"))
    assert bad("x", timeout=30, wait_for_ready=True) == server.address
    wait_until(lambda: "bad" in sent.refusals, "the refusal")
    sent.publish("later", sound(server))
    assert say_hello(sent.channel("later"))("x", timeout=30) == server.address
    assert good("x", timeout=30) == server.address
    assert set(sent.refusals) == {"bad"}


def test_a_service_that_is_mended_is_told_as_it_is(sent: Told, server: GreeterServer) -> None:
    sent.publish("mended", heavy(sound(server)))
    call = say_hello(sent.channel("mended"))
    wait_until(lambda: not is_unavailable(call), "a call without the wish that was refused")
    sent.publish("mended", ServiceResources(clusters={}))
    wait_until(lambda: is_unavailable(call), "the set that came after")


def is_unavailable(call: "grpc.UnaryUnaryMultiCallable[str, str]") -> bool:
    try:
        call("x", timeout=30)
    except grpc.RpcError as error:
        return error.code() is grpc.StatusCode.UNAVAILABLE
    return False


WORDS = st.text(max_size=6) | st.sampled_from(["", "canary", "a/b", "~1", "a%2Fb", "?q#f", "*", "\ud800", "b/", "/"])
METHODS = st.sampled_from(["", "*", METHOD, METHOD[:-2] + "*", "/", "/x", "x", "/a/b/c", "/grüße/x", METHOD + "\n"])
WEIGHTS = st.integers(-1, 2**64) | st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**32])
ROUTES = st.builds(MethodRoute, METHODS, st.dictionaries(WORDS, WEIGHTS, max_size=4))


@settings(max_examples=examples(40), suppress_health_check=TOLERATED)
@given(st.lists(ROUTES, max_size=4), WORDS, st.dictionaries(st.sampled_from(["zone", "region"]), WORDS))
def test_a_route_is_never_the_reason_for_a_failed_call(
    sent: Told, server: GreeterServer, routes: list[MethodRoute], group: str, place: Mapping[str, str]
) -> None:
    sent.refusals.clear()
    grouped = [MethodRoute(METHOD, {group: 1}), *routes]
    sent.publish(
        "fuzzed", sound(server, *grouped, group=group, zone=place.get("zone", ""), region=place.get("region", ""))
    )
    with_call = say_hello(sent.channel("fuzzed"))
    assert with_call("x", timeout=30, wait_for_ready=True) == server.address
    sent.channels.pop().close()
    assert sent.refusals == {}


ADDRESSES = st.sampled_from(
    ["127.0.0.1:1", "127.0.0.1:01", "[::1]:1", "[::ffff:127.0.0.1]:1", "[0:0:0:0:0:0:0:1]:1", "127.0.0.2:65535"]
)
ENDPOINTS = st.builds(
    Endpoint,
    name=st.just("x"),
    address=ADDRESSES,
    weight=st.sampled_from([0, 0.001, 1, 7.5, 100, 1e9, 1e300]),
    zone=WORDS,
    region=WORDS,
    group=WORDS,
    enable=st.booleans(),
)
POLICIES = st.builds(
    Policy,
    load_balancing=st.none() | st.builds(LoadBalancing, type=st.sampled_from(Balancing)),
    locality_preference=st.none() | st.just(LocalityPreference(mode=ZonePreference.PREFER_ZONE)),
    subset=st.none() | st.integers(1, 3),
    retry=st.none() | st.builds(Retry, attempts=st.integers(2, 5)),
)


@settings(max_examples=examples(40), suppress_health_check=TOLERATED)
@given(st.lists(ENDPOINTS, max_size=6), POLICIES, st.sampled_from(["", "a", "\ud800"]))
def test_no_set_of_endpoints_is_refused(
    sent: Told, server: GreeterServer, endpoints: list[Endpoint], policy: Policy, zone: str
) -> None:
    sent.refusals.clear()
    sockets = ((each, read_socket(each.address)) for each in endpoints)
    others = [Dialable(each, (socket,)) for each, socket in sockets if isinstance(socket, Socket)]
    found = make_service_resources([dialable(server), *others], policy, (), Here(zone, "r", "c"))
    channel = sent.channel("sets")
    sent.publish("sets", found)
    waiting = channel.unary_unary(METHOD, encode_text, decode_text).future("x", timeout=0.3, wait_for_ready=True)
    waiting.exception()
    sent.publish("sets", make_service_resources([dialable(server)], policy, (), Here(zone, "r", "c")))
    assert say_hello(channel)("x", timeout=30, wait_for_ready=True) == server.address
    sent.channels.pop().close()
    assert sent.refusals == {}


def test_a_group_whose_name_holds_a_slash_is_reached(sent: Told, server: GreeterServer) -> None:
    sent.publish("slash", sound(server, MethodRoute(METHOD, {"a/b~1%2F": 1}), group="a/b~1%2F"))
    call = say_hello(sent.channel("slash"))
    assert call("x", timeout=30) == server.address


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own target"])
def test_the_details_of_a_failed_call_name_the_reason(sent: Told, own: bool) -> None:  # noqa: FBT001 - drawn
    reason = 'nothing is registered under /jupiter/userz/ in etcd:2379 (did you mean "users"?)'
    sent.publish("userz", ServiceResources(clusters=MappingProxyType({}), reason=reason))
    options = [("grpc.default_authority", "x")] if own else []
    lead = this_process().control_plane.lead(ServiceName(NAME, "userz"), options)
    with grpc.insecure_channel(lead.target, lead.options) as channel, pytest.raises(grpc.RpcError) as failure:
        say_hello(channel)("x", timeout=30)
    assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
    assert reason in str(failure.value.details())

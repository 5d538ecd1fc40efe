"""Services that share a listener: where they stand, and that none has to do with what is wrong with another."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from envoy.service.discovery.v3 import discovery_pb2
from hypothesis import given
from hypothesis import strategies as st

from grpc_etcd.registry.policy import Policy, Retry
from grpc_etcd.xds.ads_stream import AdsStream, Refusal
from grpc_etcd.xds.names import ResourceName, Selection, ServiceName, format_target
from grpc_etcd.xds.resource_cache import ResourceCache
from grpc_etcd.xds.resources import ASSIGNMENT, CLUSTER, LISTENER, DiscoveryRequest
from grpc_etcd.xds.service import ALL, Gap, Part, ServiceResources
from grpc_etcd.xds.sharing import SharedListeners, can_share


def owner(service: str) -> ServiceName:
    return ServiceName("default", service)


class Follower:
    """A registry that publishes nothing by itself."""

    def __init__(self) -> None:
        self.refusals: dict[str, str] = {}

    def follow(self, service: str) -> object: ...

    def refused(self, service: str, reason: str) -> None:
        self.refusals[service] = reason


@pytest.fixture
def follower() -> Follower:
    return Follower()


@pytest.fixture
def resource_cache(follower: Follower) -> ResourceCache:
    made = ResourceCache()
    made.add("default", follower)
    return made


def hosts(body: bytes) -> dict[str, list[str]]:
    """Give the clusters of each virtual host of a listener."""
    manager = http_connection_manager_pb2.HttpConnectionManager()
    assert listener_pb2.Listener.FromString(body).api_listener.api_listener.Unpack(manager)
    return {
        host.domains[0]: [each.route.cluster for each in host.routes] for host in manager.route_config.virtual_hosts
    }


def told(conversation: AdsStream, type_url: str) -> list[bytes]:
    replies = [discovery_pb2.DiscoveryResponse.FromString(reply) for reply in conversation.replies()]
    return [each.value for reply in replies if reply.type_url == type_url for each in reply.resources]


def test_a_listener_has_a_virtual_host_for_each_service_and_one_where_others_wait(
    resource_cache: ResourceCache,
) -> None:
    listener = resource_cache.open_channel(owner("users"), shares=True)
    assert resource_cache.open_channel(owner("orders"), shares=True) == listener
    name = ResourceName(listener).format(LISTENER)
    conversation = AdsStream(resource_cache.look_up)
    conversation.receive(DiscoveryRequest(LISTENER, (name,)))
    (body,) = told(conversation, LISTENER)
    found = hosts(body)
    assert list(found) == ["users", "orders", "*"]
    assert found["users"] == [ResourceName(owner("users")).format(CLUSTER)]
    waiting = DiscoveryRequest(ASSIGNMENT, (ResourceName(listener).format(ASSIGNMENT),))
    conversation.receive(waiting)
    assert told(conversation, ASSIGNMENT) == []


def test_a_service_that_comes_later_is_told_to_who_has_the_listener(resource_cache: ResourceCache) -> None:
    listener = resource_cache.open_channel(owner("users"), shares=True)
    conversation = AdsStream(resource_cache.look_up)
    wanted = (ResourceName(listener).format(LISTENER),)
    conversation.receive(DiscoveryRequest(LISTENER, wanted))
    assert told(conversation, LISTENER)
    conversation.receive(DiscoveryRequest(LISTENER, wanted, nonce="1"))
    resource_cache.open_channel(owner("orders"), shares=True)
    (body,) = told(conversation, LISTENER)
    assert "orders" in hosts(body)


def test_what_is_unchanged_is_not_written_again() -> None:
    written: list[str] = []

    class Counted(ServiceResources):
        def answer(self, type_url: str, requested: str, name: ResourceName) -> bytes | None:  # noqa: ARG002
            written.append(requested)
            return b"x"

    found = {owner("users"): Counted(), owner("orders"): Counted()}
    conversation = AdsStream(found.__getitem__)
    conversation.receive(DiscoveryRequest(CLUSTER, ("users", "orders")))
    assert list(conversation.replies())
    conversation.receive(DiscoveryRequest(CLUSTER, ("users", "orders"), nonce="1"))
    found[owner("users")] = Counted()
    list(conversation.replies())
    assert written == ["users", "orders", "users"]


class Broken(ServiceResources):
    """Cannot be written."""

    def answer(self, type_url: str, requested: str, name: ResourceName) -> bytes | None:  # noqa: ARG002
        raise KeyError("U")

    def virtual_host(self, name: ResourceName, domain: str) -> bytes:  # noqa: ARG002
        raise KeyError("U")


def test_a_service_that_cannot_be_written_costs_the_others_nothing(
    resource_cache: ResourceCache, follower: Follower
) -> None:
    listener = resource_cache.open_channel(owner("users"), shares=True)
    resource_cache.open_channel(owner("orders"), shares=True)
    resource_cache.publish(owner("users"), Broken())
    assert "KeyError" in follower.refusals["users"]
    conversation = AdsStream(resource_cache.look_up)
    conversation.receive(DiscoveryRequest(LISTENER, (ResourceName(listener).format(LISTENER),)))
    (body,) = told(conversation, LISTENER)
    assert list(hosts(body)) == ["users", "orders", "*"]


def test_a_stream_survives_what_cannot_be_written() -> None:
    found = {owner("users"): Broken(), owner("orders"): ServiceResources()}
    conversation = AdsStream(found.__getitem__)
    conversation.receive(DiscoveryRequest(CLUSTER, ("users", "orders")))
    assert len(told(conversation, CLUSTER)) == 2
    ((blamed, type_url, reason, _),) = conversation.take_refusals()
    assert (blamed, type_url) == (owner("users"), CLUSTER)
    assert "KeyError" in reason


def test_a_refusal_is_of_the_service_that_it_names(resource_cache: ResourceCache) -> None:
    listener = resource_cache.open_channel(owner("users"), shares=True)
    resource_cache.open_channel(owner("user"), shares=True)
    conversation = AdsStream(resource_cache.look_up)
    name = ResourceName(listener).format(LISTENER)
    conversation.receive(DiscoveryRequest(LISTENER, (name,)))
    assert told(conversation, LISTENER)
    said = f"{name}: field:virtual_hosts[1].routes[0] bad"
    conversation.receive(DiscoveryRequest(LISTENER, (name,), "1", refusal=said))
    assert [refusal.member for refusal in conversation.take_refusals()] == [1]
    names = tuple(ResourceName(owner(each)).format(CLUSTER) for each in ("user", "users"))
    conversation.receive(DiscoveryRequest(CLUSTER, names))
    assert told(conversation, CLUSTER)
    said = f"resource index 0: {names[1]}: INVALID_ARGUMENT"
    conversation.receive(DiscoveryRequest(CLUSTER, names, "2", refusal=said))
    assert [refusal.owner for refusal in conversation.take_refusals()] == [owner("users")]


def test_what_was_refused_is_left_away_and_only_there(resource_cache: ResourceCache, follower: Follower) -> None:
    listener = resource_cache.open_channel(owner("users"), shares=True)
    resource_cache.open_channel(owner("orders"), shares=True)
    wish = Policy(retry=Retry(attempts=3))
    for service in ("users", "orders"):
        resource_cache.publish(owner(service), ServiceResources(wish, clusters={}))
    resource_cache.refused([Refusal(listener, LISTENER, "no", member=1)])
    assert follower.refusals == {"orders": "no"}
    users, orders = resource_cache.look_up(owner("users")), resource_cache.look_up(owner("orders"))
    assert isinstance(users, ServiceResources)
    assert isinstance(orders, ServiceResources)
    assert (users.policy, orders.policy) == (wish, Policy())


@dataclass(frozen=True, slots=True)
class Overtaken(ServiceResources):
    """What is put up while another set comes, whenever it is asked what is left of it."""

    overtake: Callable[[], None] = lambda: None

    def plain(self) -> ServiceResources:
        self.overtake()
        return ServiceResources(clusters=self.clusters)


def test_what_a_client_refuses_takes_no_newer_set_away(resource_cache: ResourceCache) -> None:
    """The thread that hears of the refusal is another than the one that publishes."""
    listener = resource_cache.open_channel(owner("users"), shares=True)
    newer = ServiceResources(Policy(retry=Retry(attempts=3)), clusters={ALL: ()}, reason="newer")
    wish = Policy(retry=Retry(attempts=2))
    older = Overtaken(wish, clusters={}, overtake=lambda: resource_cache.publish(owner("users"), newer))
    resource_cache.publish(owner("users"), older)
    resource_cache.refused([Refusal(listener, LISTENER, "no")])
    assert resource_cache.look_up(owner("users")) == newer
    resource_cache.refused([Refusal(listener, LISTENER, "no")])
    assert resource_cache.look_up(owner("users")) == newer.plain()


@pytest.mark.parametrize("gap", Gap)
def test_what_is_left_of_a_set_that_is_not_known_yet_is_not_known_either(
    resource_cache: ResourceCache, gap: Gap
) -> None:
    """A client that comes back to a server keeps its endpoints until they are, also where another's wish is refused."""
    listener = resource_cache.open_channel(owner("users"), shares=True)
    unknown = ServiceResources(Policy(retry=Retry(attempts=3)), clusters={}, gap=gap)
    resource_cache.publish(owner("users"), unknown)
    resource_cache.refused([Refusal(listener, LISTENER, "no")])
    found = resource_cache.look_up(owner("users"))
    assert isinstance(found, ServiceResources)
    assert (found.policy, found.is_known) == (Policy(), False)


def routed(routes: int) -> ServiceResources:
    """Give a service each of whose routes leads to a group of its own."""
    parts = [Part(Selection.GROUP, f"group-{number}") for number in range(routes)]
    shares = tuple((f"/a/b{number}", ((part, 1),)) for number, part in enumerate(parts))
    return ServiceResources(routes=shares, clusters=dict.fromkeys([ALL, *parts], ()))


def test_all_that_the_routes_of_many_services_lead_to_is_never_more_than_grpc_takes(
    resource_cache: ResourceCache, follower: Follower
) -> None:
    """It drops a message of 4 MB, and with it the news of all services on the stream."""
    services = [f"service-{number}" for number in range(40)]
    for service in (*services[:20], "calm"):
        listener = resource_cache.open_channel(owner(service), shares=True)
        resource_cache.publish(owner(service), routed(1 if service == "calm" else 400))
    for service in services[20:]:
        resource_cache.publish(owner(service), routed(400))
        assert resource_cache.open_channel(owner(service), shares=True) == listener
    conversation = AdsStream(resource_cache.look_up)
    wanted = (ResourceName(listener).format(LISTENER),)
    conversation.receive(DiscoveryRequest(LISTENER, wanted))
    found = hosts(told(conversation, LISTENER)[0])
    conversation.receive(DiscoveryRequest(LISTENER, wanted, nonce="1"))
    clusters = tuple(cluster for each in found.values() for cluster in each)
    conversation.receive(DiscoveryRequest(CLUSTER, clusters))
    (reply,) = conversation.replies()
    assert 2 << 20 < len(reply) < 4 << 20
    assert len(found["calm"]) == 2, "it has room for its route"
    left_out = {service for service in services if len(found[service]) == 1}
    assert left_out == set(follower.refusals)
    for service in services[::2]:
        resource_cache.publish(owner(service), routed(0))
    for service in services[1::2]:
        resource_cache.publish(owner(service), routed(100))
    found = hosts(told(conversation, LISTENER)[0])
    assert all(len(found[service]) == 101 for service in services[1::2]), "there is room again"


def test_an_open_channel_counts_as_a_follower_until_it_is_closed(resource_cache: ResourceCache) -> None:
    resource_cache.open_channel(owner("users"), shares=True)
    resource_cache.open_channel(owner("users"), shares=False)
    assert resource_cache.followers(owner("users")) == 2
    resource_cache.close_channel(owner("users"), shares=True)
    resource_cache.close_channel(owner("users"), shares=False)
    assert resource_cache.followers(owner("users")) == 0


def test_a_place_is_kept_until_it_is_needed() -> None:
    sharing = SharedListeners(largest=2)
    for service in ("a", "b", "c"):
        sharing.open(owner(service))
    assert sharing.join(owner("a")) == sharing.join(owner("b")) != sharing.join(owner("c"))
    sharing.close(owner("b"))
    assert sharing.place(owner("b")) == sharing.place(owner("a"))
    for service in ("d", "e"):
        sharing.open(owner(service))
    assert sharing.join(owner("d")) == sharing.join(owner("c"))  # where there is room
    assert sharing.join(owner("e")) == sharing.join(owner("a"))
    assert sharing.place(owner("b")) is None


def test_an_odd_name_has_a_target_of_its_own() -> None:
    assert can_share("shop.v1.Greeter-2")
    assert not any(map(can_share, ("*", "a*", "with%percent", "grüße", "a:b", "[::1]", "", "-")))


SERVICES = st.text("aAbB.-", min_size=1, max_size=3)


@given(st.lists(st.tuples(st.sampled_from(["open", "close", "forget"]), SERVICES), max_size=60))
def test_services_of_a_listener_never_differ_in_case_alone_and_stay_while_they_are_called(
    steps: list[tuple[str, str]],
) -> None:
    sharing = SharedListeners(largest=3)
    opened: dict[ServiceName, list[ServiceName]] = {}
    for step, service in steps:
        who = owner(service)
        if step == "open":
            sharing.open(who)
            opened.setdefault(who, []).append(sharing.join(who))
        elif step == "close" and opened.get(who):
            sharing.close(who)
            opened[who].pop()
        elif step == "forget":
            sharing.forget(who)
        for each, listeners in opened.items():
            if listeners:
                assert set(listeners) == {sharing.place(each)}
                members = [member.service.lower() for member in sharing.members(listeners[0])]
                assert len(members) == len(set(members)) <= 3


def test_a_forks_listeners_have_other_targets_than_its_parents() -> None:
    parent, child = SharedListeners(0), SharedListeners(1)
    targets = [format_target(each.join(owner("users"))) for each in (parent, child)]
    assert targets == ["xds://etcd/default/shared/0", "xds://etcd/default/shared/1.0"]
    assert all(re.fullmatch(r"xds://etcd/default/shared/[\d.]+", target) for target in targets)


class Stream:
    """Follows, and has taken all that it was sent."""

    def wake(self, owner: ServiceName | None = None) -> None: ...

    def has_answered(self) -> bool:
        return True


def test_a_closed_registry_is_forgotten_with_its_last_channel_and_stream(
    resource_cache: ResourceCache, follower: Follower
) -> None:
    stream, greeter = Stream(), owner("greeter")
    listener = resource_cache.open_channel(greeter, shares=True)
    resource_cache.join(listener, stream)
    known = ServiceResources(clusters={ALL: ()}, reason="known")
    resource_cache.publish(greeter, known)
    resource_cache.remove("default", follower)
    resource_cache.leave_behind("default")
    resource_cache.close_channel(greeter, shares=True)
    assert resource_cache.look_up(greeter) == known, "a stream is left"
    resource_cache.leave(listener, stream)
    resource_cache.leave(listener, stream)  # twice does no harm
    assert resource_cache.look_up(greeter) != known
    assert resource_cache.descriptors() == 0
    assert resource_cache.followers(greeter) == 0


def test_nothing_is_kept_of_registries_that_clients_have_asked_for_in_vain(resource_cache: ResourceCache) -> None:
    stream = Stream()
    for number in range(100):
        asked = ServiceName(f"registry-{number}", "greeter")
        resource_cache.join(asked, stream)
        resource_cache.leave(asked, stream)
    assert not resource_cache._followed  # which shows nowhere else

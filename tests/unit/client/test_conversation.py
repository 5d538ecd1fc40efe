"""What one xDS stream is told, and in which order."""

from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.service.discovery.v3 import discovery_pb2
from hypothesis import given
from hypothesis import strategies as st

from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.policy import Policy
from grpc_etcd.xds.conversation import Conversation
from grpc_etcd.xds.localities import Dialable, Here
from grpc_etcd.xds.names import ResourceName, Selection, ServiceName, format_target, parse_resource_name
from grpc_etcd.xds.resources import ASSIGNMENT, CLUSTER, LISTENER, DiscoveryRequest, Socket
from grpc_etcd.xds.service import MethodRoute, ServiceResources, make_service_resources

GREETER = ServiceName("default", "greeter")
LISTENER_NAME = "xdstp://etcd/envoy.config.listener.v3.Listener/default/greeter"
CLUSTER_NAME = "xdstp://etcd/envoy.config.cluster.v3.Cluster/default/greeter"
ASSIGNMENT_NAME = "xdstp://etcd/envoy.config.endpoint.v3.ClusterLoadAssignment/default/greeter"


def resources(*ips: str, group: str = "", routes: tuple[MethodRoute, ...] = ()) -> ServiceResources:
    dialables = [Dialable(Endpoint(name="greeter", address=f"{ip}:1", group=group), (Socket(ip, 1),)) for ip in ips]
    return make_service_resources(dialables, Policy(), routes, Here())


class Board(dict[ServiceName, ServiceResources]):
    def look_up(self, owner: ServiceName) -> ServiceResources:
        return self.get(owner, ServiceResources())


def told(conversation: Conversation) -> list[tuple[str, list[bytes]]]:
    replies = [discovery_pb2.DiscoveryResponse.FromString(reply) for reply in conversation.replies()]
    return [(reply.type_url, [each.value for each in reply.resources]) for reply in replies]


def ips(body: bytes) -> list[str]:
    read = endpoint_pb2.ClusterLoadAssignment.FromString(body)
    return [each.endpoint.address.socket_address.address for place in read.endpoints for each in place.lb_endpoints]


def ask(conversation: Conversation, type_url: str, *names: str, nonce: str = "", refusal: str = "") -> None:
    conversation.receive(DiscoveryRequest(type_url, names, nonce, refusal))


def test_everything_asked_for_is_answered_but_unknown_endpoints() -> None:
    board = Board()
    conversation = Conversation(board.look_up)
    ask(conversation, LISTENER, LISTENER_NAME)
    ask(conversation, CLUSTER, CLUSTER_NAME)
    ask(conversation, ASSIGNMENT, ASSIGNMENT_NAME)
    assert [type_url for type_url, _ in told(conversation)] == [LISTENER, CLUSTER]
    board[GREETER] = resources()
    ((type_url, (body,)),) = told(conversation)
    assert (type_url, ips(body)) == (ASSIGNMENT, [])


def test_an_accepted_answer_is_not_repeated_and_a_change_is_told_once() -> None:
    board = Board({GREETER: resources("10.0.0.1")})
    conversation = Conversation(board.look_up)
    ask(conversation, ASSIGNMENT, ASSIGNMENT_NAME)
    assert len(told(conversation)) == 1
    ask(conversation, ASSIGNMENT, ASSIGNMENT_NAME, nonce="1")
    assert told(conversation) == []
    board[GREETER] = resources("10.0.0.1", "10.0.0.2")
    ((_, (body,)),) = told(conversation)
    assert ips(body) == ["10.0.0.1", "10.0.0.2"]
    assert told(conversation) == []


def test_how_calls_are_balanced_is_told_anew_once_weights_differ() -> None:
    board = Board({GREETER: resources("10.0.0.1", "10.0.0.2")})
    conversation = Conversation(board.look_up)
    ask(conversation, CLUSTER, CLUSTER_NAME)
    ((_, (even,)),) = told(conversation)
    heavy = Dialable(Endpoint(name="greeter", address="10.0.0.3:1", weight=7), (Socket("10.0.0.3", 1),))
    light = Dialable(Endpoint(name="greeter", address="10.0.0.1:1", weight=2), (Socket("10.0.0.1", 1),))
    board[GREETER] = make_service_resources([heavy, light], Policy(), (), Here())
    ((_, (weighted,)),) = told(conversation)
    assert (b"WrrLocality" in even, b"WrrLocality" in weighted) == (False, True)


def test_a_refused_answer_is_not_sent_again() -> None:
    board = Board({GREETER: resources("10.0.0.1")})
    conversation = Conversation(board.look_up)
    ask(conversation, ASSIGNMENT, ASSIGNMENT_NAME)
    assert told(conversation)
    ask(conversation, ASSIGNMENT, ASSIGNMENT_NAME, nonce="1", refusal="no")
    assert told(conversation) == []


def test_an_answer_of_listeners_holds_all_of_them_and_one_of_endpoints_only_the_changed() -> None:
    other = ServiceName("default", "other")
    board = Board({GREETER: resources("10.0.0.1"), other: resources("10.0.0.2")})
    conversation = Conversation(board.look_up)
    ask(conversation, LISTENER, "greeter", "other")
    ask(conversation, ASSIGNMENT, "greeter", "other")
    assert [len(bodies) for _, bodies in told(conversation)] == [2, 2]
    route = MethodRoute("/a/b", addresses={"10.0.0.2:1": 1})
    board[other] = resources("10.0.0.2", "10.0.0.3", routes=(route,))
    assert [(type_url, len(bodies)) for type_url, bodies in told(conversation)] == [(LISTENER, 2), (ASSIGNMENT, 1)]


def test_a_service_that_is_no_longer_wanted_is_no_longer_followed() -> None:
    conversation = Conversation(Board().look_up)
    ask(conversation, LISTENER, LISTENER_NAME, "other")
    assert conversation.owners == {GREETER, ServiceName("default", "other")}
    ask(conversation, LISTENER, "other", nonce="1")
    assert conversation.owners == {ServiceName("default", "other")}
    ask(conversation, "type.googleapis.com/unknown", "x")
    assert conversation.owners == {ServiceName("default", "other")}


def test_a_route_whose_group_is_empty_falls_back_to_all() -> None:
    found = resources("10.0.0.1", routes=(MethodRoute("/a/b", groups={"nobody": 5}),))
    assert found.routes == ()


def test_the_most_special_route_comes_first() -> None:
    groups = {"g": 1}
    routes = tuple(MethodRoute(method, groups=groups) for method in ("", "/pkg.Svc/", "/pkg.Svc/Method", "/pkg*"))
    found = resources("10.0.0.1", group="g", routes=routes)
    assert [method for method, _ in found.routes] == ["/pkg.Svc/Method", "/pkg.Svc/", "/pkg*", ""]


names = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zs", "Zl", "Zp"], exclude_characters="/"), min_size=1)


@given(names, names, st.sampled_from(Selection), names, st.booleans())
def test_names_survive_being_written_and_read(
    registry: str,
    service: str,
    selection: Selection,
    selected: str,
    federated: bool,  # noqa: FBT001 - drawn
) -> None:
    name = ResourceName(
        ServiceName(registry, service), selection, selected if selection is not Selection.ALL else "", federated
    )
    if federated or not registry.startswith("xdstp:"):
        assert parse_resource_name(name.format(CLUSTER), CLUSTER) == name


def test_foreign_names_are_not_ours() -> None:
    assert parse_resource_name("xdstp://other/envoy.config.cluster.v3.Cluster/a/b", CLUSTER) is None
    assert parse_resource_name("xdstp://etcd/envoy.config.listener.v3.Listener/a/b", CLUSTER) is None
    assert parse_resource_name("a/b/c/d/e", CLUSTER) is None


def test_a_short_name_is_a_service_of_the_default_registry() -> None:
    assert parse_resource_name("greeter", LISTENER) == ResourceName(GREETER, federated=False)


def test_targets_are_escaped() -> None:
    assert format_target(ServiceName("default", "a?b")) == "xds://etcd/default/a%3Fb"

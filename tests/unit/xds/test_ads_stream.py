"""What one xDS stream is told, and in which order."""

from collections import deque

import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.service.discovery.v3 import discovery_pb2
from hypothesis import example, given
from hypothesis import strategies as st

from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.policy import Policy
from grpc_etcd.xds.ads_stream import AdsStream
from grpc_etcd.xds.localities import Dialable, Here
from grpc_etcd.xds.names import ResourceName, Selection, ServiceName, format_target, parse_resource_name
from grpc_etcd.xds.resources import ASSIGNMENT, CLUSTER, LISTENER, DiscoveryRequest, Socket
from grpc_etcd.xds.service import Gap, MethodRoute, ServiceResources, make_service_resources
from testbed.conditions import existing

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


def told(conversation: AdsStream) -> list[tuple[str, list[bytes]]]:
    replies = [discovery_pb2.DiscoveryResponse.FromString(reply) for reply in conversation.replies()]
    return [(reply.type_url, [each.value for each in reply.resources]) for reply in replies]


def ips(body: bytes) -> list[str]:
    read = endpoint_pb2.ClusterLoadAssignment.FromString(body)
    return [each.endpoint.address.socket_address.address for place in read.endpoints for each in place.lb_endpoints]


def ask(conversation: AdsStream, type_url: str, *names: str, nonce: str = "", refusal: str = "") -> None:
    conversation.receive(DiscoveryRequest(type_url, names, nonce, refusal))


def test_everything_asked_for_is_answered_but_unknown_endpoints() -> None:
    resource_cache = Board()
    conversation = AdsStream(resource_cache.look_up)
    ask(conversation, LISTENER, LISTENER_NAME)
    ask(conversation, CLUSTER, CLUSTER_NAME)
    ask(conversation, ASSIGNMENT, ASSIGNMENT_NAME)
    assert [type_url for type_url, _ in told(conversation)] == [LISTENER, CLUSTER]
    resource_cache[GREETER] = resources()
    ((type_url, (body,)),) = told(conversation)
    assert (type_url, ips(body)) == (ASSIGNMENT, [])


OTHER = ServiceName("default", "other")


def other(name: str) -> str:
    return name.replace("greeter", "other")


UNANSWERED = ServiceResources(clusters={}, reason="etcd cannot be watched", gap=Gap.OUTAGE)


@pytest.mark.parametrize("less", [ServiceResources(), UNANSWERED], ids=["unknown", "etcd is away"])
def test_a_client_that_comes_back_keeps_what_it_has_until_as_much_is_known(less: ServiceResources) -> None:
    board = Board({GREETER: resources("10.0.0.1"), OTHER: less})
    stream = AdsStream(board.look_up, spares_earlier=True)
    for type_url, name in ((LISTENER, LISTENER_NAME), (CLUSTER, CLUSTER_NAME), (ASSIGNMENT, ASSIGNMENT_NAME)):
        stream.receive(DiscoveryRequest(type_url, (name, other(name)), version="7"))
    ((type_url, (body,)),) = told(stream)  # an answer of the other types without the other service would delete it
    assert (type_url, ips(body)) == (ASSIGNMENT, ["10.0.0.1"])
    board[OTHER] = resources("10.0.0.2")
    assert [(type_url, len(bodies)) for type_url, bodies in told(stream)] == [
        (LISTENER, 2),
        (CLUSTER, 2),
        (ASSIGNMENT, 1),
    ]


def test_what_is_unknown_for_a_reason_of_its_own_leaves_a_client_its_endpoints_and_keeps_nothing_else_back() -> None:
    denied = ServiceResources(clusters={}, reason="etcd denies reading", gap=Gap.OWN)
    board = Board({GREETER: resources("10.0.0.1"), OTHER: denied})
    stream = AdsStream(board.look_up, spares_earlier=True)
    for type_url, name in ((LISTENER, LISTENER_NAME), (CLUSTER, CLUSTER_NAME), (ASSIGNMENT, ASSIGNMENT_NAME)):
        stream.receive(DiscoveryRequest(type_url, (name, other(name)), version="7"))
    (_, listeners), (_, clusters), (_, assignments) = told(stream)
    assert (len(listeners), len(clusters)) == (2, 2)
    assert not any(b"denies" in body for body in clusters)  # else the client would ask for other endpoints
    assert [ips(body) for body in assignments] == [["10.0.0.1"]]
    board[OTHER] = resources("10.0.0.2")
    assert [ips(body) for type_url, (body,) in told(stream) if type_url == ASSIGNMENT] == [["10.0.0.2"]]


def test_a_client_that_comes_back_and_wants_the_unknown_no_more_is_answered() -> None:
    board = Board({GREETER: resources("10.0.0.1"), OTHER: UNANSWERED})
    stream = AdsStream(board.look_up, spares_earlier=True)
    stream.receive(DiscoveryRequest(LISTENER, (LISTENER_NAME, other(LISTENER_NAME)), version="7"))
    assert told(stream) == []
    stream.receive(DiscoveryRequest(LISTENER, (LISTENER_NAME,), version="7"))
    assert [(type_url, len(bodies)) for type_url, bodies in told(stream)] == [(LISTENER, 1)]


def test_a_client_that_comes_for_the_first_time_is_told_that_etcd_is_away() -> None:
    stream = AdsStream(Board({GREETER: UNANSWERED}).look_up, spares_earlier=True)
    ask(stream, LISTENER, LISTENER_NAME)
    ask(stream, ASSIGNMENT, ASSIGNMENT_NAME)
    assert [type_url for type_url, _ in told(stream)] == [LISTENER, ASSIGNMENT]


def test_an_accepted_answer_is_not_repeated_and_a_change_is_told_once() -> None:
    resource_cache = Board({GREETER: resources("10.0.0.1")})
    conversation = AdsStream(resource_cache.look_up)
    ask(conversation, ASSIGNMENT, ASSIGNMENT_NAME)
    assert len(told(conversation)) == 1
    ask(conversation, ASSIGNMENT, ASSIGNMENT_NAME, nonce="1")
    assert told(conversation) == []
    resource_cache[GREETER] = resources("10.0.0.1", "10.0.0.2")
    ((_, (body,)),) = told(conversation)
    assert ips(body) == ["10.0.0.1", "10.0.0.2"]
    assert told(conversation) == []


def test_how_calls_are_balanced_is_told_anew_once_weights_differ() -> None:
    resource_cache = Board({GREETER: resources("10.0.0.1", "10.0.0.2")})
    conversation = AdsStream(resource_cache.look_up)
    ask(conversation, CLUSTER, CLUSTER_NAME)
    ((_, (even,)),) = told(conversation)
    ask(conversation, CLUSTER, CLUSTER_NAME, nonce="1")
    heavy = Dialable(Endpoint(name="greeter", address="10.0.0.3:1", weight=7), (Socket("10.0.0.3", 1),))
    light = Dialable(Endpoint(name="greeter", address="10.0.0.1:1", weight=2), (Socket("10.0.0.1", 1),))
    resource_cache[GREETER] = make_service_resources([heavy, light], Policy(), (), Here())
    ((_, (weighted,)),) = told(conversation)
    assert (b"WrrLocality" in even, b"WrrLocality" in weighted) == (False, True)


def test_a_refused_answer_is_not_sent_again() -> None:
    resource_cache = Board({GREETER: resources("10.0.0.1")})
    conversation = AdsStream(resource_cache.look_up)
    ask(conversation, ASSIGNMENT, ASSIGNMENT_NAME)
    assert told(conversation)
    ask(conversation, ASSIGNMENT, ASSIGNMENT_NAME, nonce="1", refusal="no")
    assert told(conversation) == []


@pytest.mark.parametrize("nonce", ["1", "2", "-1", "", "x", "9" * 5000])
def test_an_answer_is_refused_once_and_none_that_was_not_sent(nonce: str) -> None:
    """Each refusal is a line of the log: whoever repeats one would fill it."""
    conversation = AdsStream(Board({GREETER: resources("10.0.0.1")}).look_up)
    ask(conversation, ASSIGNMENT, ASSIGNMENT_NAME)
    assert told(conversation)
    ask(conversation, ASSIGNMENT, ASSIGNMENT_NAME, nonce="1", refusal="no")
    assert len(conversation.take_refusals()) == 1
    ask(conversation, ASSIGNMENT, ASSIGNMENT_NAME, nonce=nonce, refusal="no")
    assert conversation.take_refusals() == []


def test_each_of_several_answers_may_be_refused() -> None:
    other = ServiceName("default", "other")
    resource_cache = Board({GREETER: resources("10.0.0.1"), other: resources("10.0.0.2")})
    conversation = AdsStream(resource_cache.look_up)
    ask(conversation, ASSIGNMENT, ASSIGNMENT_NAME)
    assert told(conversation)
    ask(conversation, ASSIGNMENT, ASSIGNMENT_NAME, "other")
    assert told(conversation)
    for nonce in ("1", "2"):
        ask(conversation, ASSIGNMENT, ASSIGNMENT_NAME, "other", nonce=nonce, refusal=f"{ASSIGNMENT_NAME} is bad")
        assert len(conversation.take_refusals()) == 1


def test_an_answer_of_listeners_holds_all_of_them_and_one_of_endpoints_only_the_changed() -> None:
    other = ServiceName("default", "other")
    resource_cache = Board({GREETER: resources("10.0.0.1"), other: resources("10.0.0.2")})
    conversation = AdsStream(resource_cache.look_up)
    ask(conversation, LISTENER, "greeter", "other")
    ask(conversation, ASSIGNMENT, "greeter", "other")
    assert [len(bodies) for _, bodies in told(conversation)] == [2, 2]
    ask(conversation, LISTENER, "greeter", "other", nonce="1")
    route = MethodRoute("/a/b", addresses={"10.0.0.2:1": 1})
    resource_cache[other] = resources("10.0.0.2", "10.0.0.3", routes=(route,))
    assert [(type_url, len(bodies)) for type_url, bodies in told(conversation)] == [(LISTENER, 2), (ASSIGNMENT, 1)]


def test_a_service_that_is_no_longer_wanted_is_no_longer_followed() -> None:
    conversation = AdsStream(Board().look_up)
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


@given(names, names, st.sampled_from([each for each in Selection if each is not Selection.EMPTY]), names, st.booleans())
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


@pytest.mark.parametrize("after", [(), (MethodRoute("/a/b", groups={"canary": 1}),)], ids=["route", "endpoint"])
def test_calls_on_their_way_to_a_group_find_somebody_when_its_route_or_its_endpoints_go(
    after: tuple[MethodRoute, ...],
) -> None:
    routes = (MethodRoute("/a/b", groups={"canary": 1}),)
    resource_cache = Board({GREETER: resources("10.0.0.1", group="canary", routes=routes)})
    conversation = AdsStream(resource_cache.look_up)
    name = ResourceName(GREETER, Selection.GROUP, "canary")
    ask(conversation, ASSIGNMENT, name.format(ASSIGNMENT))
    assert [ips(body) for _, (body,) in told(conversation)] == [["10.0.0.1"]]
    resource_cache[GREETER] = resources("10.0.0.2", routes=after)
    assert [ips(body) for _, (body,) in told(conversation)] == [["10.0.0.2"]]


def test_targets_are_escaped() -> None:
    assert format_target(ServiceName("default", "a?b")) == "xds://etcd/default/a%3Fb"


def test_weights_of_a_route_that_gRPC_would_not_take_are_scaled() -> None:  # noqa: N802 - its name
    dialables = [
        Dialable(
            Endpoint(name="greeter", address=f"10.0.0.{number}:1", group=str(number)), (Socket("10.0.0.1", number),)
        )
        for number in range(1, 4)
    ]
    route = MethodRoute("/a/b", groups={"1": 2**63, "2": 2**62, "3": 1})
    ((_, shares),) = make_service_resources(dialables, Policy(), [route], Here()).routes
    weights = [weight for _, weight in shares]
    assert sum(weights) <= 2**32 - 1
    assert min(weights) == 1
    assert weights[0] / weights[1] == pytest.approx(2, rel=1e-6)


@pytest.mark.parametrize("method", ["/a\n/b", "/grüße/b", "a/b", "\ud800"])
def test_a_route_that_no_call_can_match_is_left_out(method: str) -> None:
    assert resources("10.0.0.1", group="g", routes=(MethodRoute(method, groups={"g": 1}),)).routes == ()


def test_an_empty_set_names_its_reason_where_gRPC_shows_it() -> None:  # noqa: N802 - its name
    reason = "nothing is registered under /jupiter/greeter/"
    cluster = {
        in_words: cluster_pb2.Cluster.FromString(
            ServiceResources(clusters={}, reason=reason, in_words=in_words).answer(
                CLUSTER, CLUSTER_NAME, ResourceName(GREETER)
            )
            or b""
        ).eds_cluster_config.service_name
        for in_words in (True, False)
    }
    assert cluster[True] == f"default/greeter: {reason}"
    assert cluster[False] == f"{ASSIGNMENT_NAME}/empty/nothing_is_registered_under_/jupiter/greeter/"
    for name in cluster.values():
        parsed = parse_resource_name(name, ASSIGNMENT)
        assert parsed
        assert (parsed.owner, parsed.selection) == (GREETER, Selection.EMPTY)
        assert ServiceResources(clusters={}).answer(ASSIGNMENT, name, parsed) is not None


@given(names, names, st.text(min_size=1), st.booleans())
def test_whatever_the_reason_the_name_is_the_services(registry: str, service: str, reason: str, in_words: bool) -> None:  # noqa: FBT001 - drawn
    owner = ServiceName(registry, service)
    name = ResourceName(owner).explain(ASSIGNMENT, reason, in_words=in_words)
    if not registry.startswith("xdstp:") and reason.split():
        parsed = parse_resource_name(name, ASSIGNMENT)
        assert parsed
        assert parsed.owner == owner


def test_a_change_of_one_service_costs_no_look_at_the_others() -> None:
    owners = [ServiceName("default", f"service-{number}") for number in range(500)]
    resource_cache, asked = Board({owner: resources("10.0.0.1") for owner in owners}), []

    def look_up(owner: ServiceName) -> ServiceResources:
        asked.append(owner)
        return resource_cache.look_up(owner)

    conversation = AdsStream(look_up)
    names = {type_url: [ResourceName(owner).format(type_url) for owner in owners] for type_url in (CLUSTER, ASSIGNMENT)}
    for type_url, wanted in names.items():
        ask(conversation, type_url, *wanted)
    assert [len(list(conversation.replies(())))] == [2], "what is new is looked up in any case"
    asked.clear()
    resource_cache[owners[7]] = resources("10.0.0.2")
    for type_url, wanted in names.items():
        ask(conversation, type_url, *wanted, nonce="1")
    (reply,) = conversation.replies({owners[7], ServiceName("default", "somebody-elses")})
    assert [ips(each.value) for each in discovery_pb2.DiscoveryResponse.FromString(reply).resources] == [["10.0.0.2"]]
    assert asked == [owners[7], owners[7]]
    assert list(conversation.replies(())) == []


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.sets(st.integers(0, 3))), max_size=30))
def test_what_is_told_is_the_same_whether_all_is_looked_up_or_what_has_changed(
    steps: list[tuple[int, int, set[int]]],
) -> None:
    owners = [ServiceName("default", f"service-{number}") for number in range(4)]
    resource_cache = Board()
    all_of_it, changes_alone = AdsStream(resource_cache.look_up), AdsStream(resource_cache.look_up)
    for changed, ip, wanted in steps:
        resource_cache[owners[changed]] = resources(f"10.0.0.{ip}") if ip else ServiceResources()
        for conversation in (all_of_it, changes_alone):
            for type_url in (CLUSTER, ASSIGNMENT):
                ask(conversation, type_url, *(ResourceName(owners[each]).format(type_url) for each in sorted(wanted)))
        assert set(all_of_it.replies()) == set(changes_alone.replies([owners[changed]]))


def test_no_answer_is_larger_than_gRPC_takes() -> None:  # noqa: N802 - its name
    addresses = [f"10.0.{number >> 8}.{number & 255}" for number in range(1000)]
    names = [f"{ASSIGNMENT_NAME}{number}" for number in range(200)]
    resource_cache = Board(
        {existing(parse_resource_name(name, ASSIGNMENT)).owner: resources(*addresses) for name in names}
    )
    conversation = AdsStream(resource_cache.look_up)
    ask(conversation, ASSIGNMENT, *names)
    replies = list(conversation.replies())
    assert max(map(len, replies)) < 4 << 20 < sum(map(len, replies))
    read = [discovery_pb2.DiscoveryResponse.FromString(reply) for reply in replies]
    assert len({each.value for reply in read for each in reply.resources}) == len(names)
    assert len({reply.nonce for reply in read}) == len(read)


def test_what_no_answer_could_hold_is_told_and_costs_no_other_its_news() -> None:
    class Huge(ServiceResources):
        def answer(self, *_: object) -> bytes:
            return bytes(5 << 20)

        def plain(self) -> ServiceResources:
            return self

    other = ServiceName("default", "other")
    resource_cache = Board({GREETER: Huge(), other: resources("10.0.0.1")})
    conversation = AdsStream(resource_cache.look_up)
    ask(conversation, ASSIGNMENT, ASSIGNMENT_NAME, ResourceName(other).format(ASSIGNMENT))
    ((_, (body,)),) = told(conversation)
    assert ips(body) == ["10.0.0.1"]
    (refusal,) = conversation.take_refusals()
    assert (refusal.owner, "5242880 bytes" in refusal.reason) == (GREETER, True)


class Client:
    """What gRPC's xDS client does about clusters; requests and answers are on their way until they are moved."""

    def __init__(self) -> None:
        self.conversation = AdsStream(Board().look_up)
        self.wanted: dict[str, bool] = {}  # whether there is one
        self.requests: deque[DiscoveryRequest] = deque()
        self.answers: deque[discovery_pb2.DiscoveryResponse] = deque()
        self.nonce = ""

    def take(self, step: str) -> None:
        if step == "serve":
            self.serve()
        elif step == "hear":
            self.hear()
        else:
            self.want_or_not(step)

    def want_or_not(self, name: str) -> None:
        if self.wanted.pop(name, None) is None:
            self.wanted[name] = False
        self.request()

    def request(self) -> None:
        self.requests.append(DiscoveryRequest(CLUSTER, tuple(self.wanted), self.nonce, ""))

    def serve(self) -> None:
        if self.requests:
            self.conversation.receive(self.requests.popleft())
            self.answers += map(discovery_pb2.DiscoveryResponse.FromString, self.conversation.replies())

    def hear(self) -> None:
        """Take an answer: one that is there and is not in it counts as deleted."""
        if not self.answers:
            return
        answer = self.answers.popleft()
        heard = {cluster_pb2.Cluster.FromString(each.value).name for each in answer.resources}
        assert {name for name, is_there in self.wanted.items() if is_there} <= heard
        self.wanted = {name: name in heard for name in self.wanted}
        self.nonce = answer.nonce
        self.request()


NAMES = [f"{CLUSTER_NAME}-{number}" for number in range(3)]


@given(st.lists(st.sampled_from(["serve", "hear", *NAMES]), max_size=60))
@example([NAMES[0], "serve", NAMES[0], NAMES[1], NAMES[0], "hear", "serve", "serve", "hear"])
def test_what_a_client_wants_again_is_never_taken_for_deleted(steps: list[str]) -> None:
    """A channel that is opened while another closes would fail its calls until the next answer."""
    client = Client()
    for step in steps:
        client.take(step)
    while client.requests or client.answers:
        client.serve()
        client.hear()
    assert all(client.wanted.values())
    assert client.conversation.is_answered


@pytest.mark.parametrize("refusal", ["", "no"])
@pytest.mark.parametrize("type_url", [LISTENER, CLUSTER])
def test_an_answer_waits_until_the_one_before_is_accepted_or_refused(type_url: str, refusal: str) -> None:
    conversation = AdsStream(Board().look_up)
    ask(conversation, type_url, "greeter")
    assert len(told(conversation)) == 1
    for wanted in (["greeter", "other"], ["other"], ["other", "third"]):
        ask(conversation, type_url, *wanted)
        assert told(conversation) == []
    ask(conversation, type_url, "other", "third", nonce="1", refusal=refusal)
    ((_, bodies),) = told(conversation)
    assert len(bodies) == 2

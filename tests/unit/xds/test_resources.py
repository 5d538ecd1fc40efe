"""The hand-written xDS messages, held against the generated classes of xds-protos."""

from dataclasses import replace

import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from envoy.extensions.load_balancing_policies.ring_hash.v3 import ring_hash_pb2
from envoy.extensions.load_balancing_policies.wrr_locality.v3 import wrr_locality_pb2
from envoy.service.discovery.v3 import discovery_pb2
from google.rpc import status_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from grpc_etcd.registry.policy import Balancing, LoadBalancing, OutlierDetection, Policy, Retry, RetryOn
from grpc_etcd.xds import resources, wire
from grpc_etcd.xds.resources import ClusterShare, Locality, Route, Socket, Target
from testbed.examples import examples

ALL = (Route("", is_prefix=True, shares=(ClusterShare("c", 1),)),)


def read_manager(data: bytes) -> http_connection_manager_pb2.HttpConnectionManager:
    listener = listener_pb2.Listener.FromString(data)
    manager = http_connection_manager_pb2.HttpConnectionManager()
    assert listener.api_listener.api_listener.Unpack(manager)
    return manager


def test_a_listener_routes_everything_to_its_cluster() -> None:
    data = resources.listener("greeter", [resources.virtual_host("*", ALL, Policy())])
    listener = listener_pb2.Listener.FromString(data)
    manager = read_manager(data)
    (host,) = manager.route_config.virtual_hosts
    (route,) = host.routes
    assert listener.name == manager.route_config.name == "greeter"
    assert list(host.domains) == ["*"]
    assert route.match.WhichOneof("path_specifier") == "prefix"
    assert route.match.prefix == ""
    assert route.route.cluster == "c"
    assert manager.http_filters[0].typed_config.type_url.endswith("router.v3.Router")


def test_a_canary_shares_the_calls_of_one_method() -> None:
    canary = Route("/shop.Greeter/Hi", is_prefix=False, shares=(ClusterShare("blue", 90), ClusterShare("green", 10)))
    host = resources.virtual_host("*", (canary, *ALL), Policy())
    (route, _) = read_manager(resources.listener("g", [host])).route_config.virtual_hosts[0].routes
    shares = [(share.name, share.weight.value) for share in route.route.weighted_clusters.clusters]
    assert route.match.path == "/shop.Greeter/Hi"
    assert shares == [("blue", 90), ("green", 10)]


def test_retry_and_hashing_stand_in_the_route() -> None:
    retry = Retry(attempts=4, retry_on=(RetryOn.UNAVAILABLE, RetryOn.CANCELLED))
    policy = Policy(
        load_balancing=LoadBalancing(type=Balancing.RING_HASH, hash_header="x-user"),
    )
    host = resources.virtual_host("*", [replace(route, retry=retry) for route in ALL], policy)
    action = read_manager(resources.listener("g", [host])).route_config.virtual_hosts[0].routes[0].route
    assert action.retry_policy.retry_on == "unavailable,cancelled"
    assert action.retry_policy.num_retries.value == 3
    assert action.retry_policy.retry_back_off.base_interval.ToTimedelta().total_seconds() == 0.025
    assert action.retry_policy.retry_back_off.max_interval.ToTimedelta().total_seconds() == 0.25
    assert [entry.header.header_name for entry in action.hash_policy] == ["x-user"]
    assert not action.HasField("max_stream_duration")
    assert not action.HasField("timeout")


def test_a_cluster_takes_its_endpoints_from_the_same_stream() -> None:
    cluster = cluster_pb2.Cluster.FromString(resources.cluster("c", "e", Policy(), weighted=True))
    assert (cluster.name, cluster.type) == ("c", cluster_pb2.Cluster.EDS)
    assert cluster.eds_cluster_config.service_name == "e"
    assert cluster.eds_cluster_config.eds_config.HasField("ads")
    assert not cluster.HasField("outlier_detection")
    wrr = wrr_locality_pb2.WrrLocality()
    assert cluster.load_balancing_policy.policies[0].typed_extension_config.typed_config.Unpack(wrr)
    child = wrr.endpoint_picking_policy.policies[0].typed_extension_config.typed_config
    assert child.type_url.endswith("round_robin.v3.RoundRobin")


def test_endpoints_of_one_weight_take_turns_without_a_choice_among_localities() -> None:
    cluster = cluster_pb2.Cluster.FromString(resources.cluster("c", "e", Policy(), weighted=False))
    (only,) = cluster.load_balancing_policy.policies
    assert only.typed_extension_config.typed_config.type_url.endswith("round_robin.v3.RoundRobin")


def test_ring_hash_names_the_one_hash_function_that_grpc_takes() -> None:
    policy = Policy(load_balancing=LoadBalancing(type=Balancing.RING_HASH))
    cluster = cluster_pb2.Cluster.FromString(resources.cluster("c", "e", policy, weighted=True))
    ring = ring_hash_pb2.RingHash()
    assert cluster.load_balancing_policy.policies[0].typed_extension_config.typed_config.Unpack(ring)
    assert ring.hash_function == ring_hash_pb2.RingHash.XX_HASH


def test_outlier_detection_judges_by_failure_percentage_alone() -> None:
    policy = Policy(outlier_detection=OutlierDetection(base_ejection_seconds=600))
    found = cluster_pb2.Cluster.FromString(resources.cluster("c", "e", policy, weighted=True)).outlier_detection
    assert found.enforcing_success_rate.value == 0
    assert found.HasField("enforcing_success_rate")
    assert (found.failure_percentage_threshold.value, found.enforcing_failure_percentage.value) == (85, 100)
    assert (found.failure_percentage_minimum_hosts.value, found.failure_percentage_request_volume.value) == (3, 20)
    assert found.interval.seconds == 10
    assert found.base_ejection_time.seconds == found.max_ejection_time.seconds == 600


sockets = st.builds(Socket, st.ip_addresses().map(str), st.integers(1, 65535))
targets = st.builds(Target, st.lists(sockets, min_size=1, max_size=3).map(tuple), st.integers(1, 2**32 - 1))
localities = st.builds(
    Locality,
    st.text(max_size=5),
    st.text(max_size=5),
    st.text(max_size=5),
    st.integers(1, 2**31),
    st.integers(0, 3),
    st.lists(targets, max_size=4).map(tuple),
)


@settings(max_examples=examples(30))  # each draws dozens of addresses
@given(name=st.text(max_size=10), chosen=st.lists(localities, max_size=4))
def test_an_assignment_says_what_was_chosen(name: str, chosen: list[Locality]) -> None:
    read = endpoint_pb2.ClusterLoadAssignment.FromString(resources.assignment(name, chosen))
    assert read.cluster_name == name
    assert [
        Locality(
            each.locality.region,
            each.locality.zone,
            each.locality.sub_zone,
            each.load_balancing_weight.value,
            each.priority,
            tuple(
                Target(
                    tuple(
                        Socket(address.socket_address.address, address.socket_address.port_value)
                        for address in (
                            endpoint.endpoint.address,
                            *(other.address for other in endpoint.endpoint.additional_addresses),
                        )
                    ),
                    endpoint.load_balancing_weight.value,
                )
                for endpoint in each.lb_endpoints
            ),
        )
        for each in read.endpoints
    ] == chosen


@given(names=st.lists(st.text(max_size=20), max_size=5), nonce=st.text(max_size=5), refusal=st.text(max_size=20))
def test_a_request_is_read_as_the_client_wrote_it(names: list[str], nonce: str, refusal: str) -> None:
    request = discovery_pb2.DiscoveryRequest(
        version_info="1",
        node={"id": "n"},
        type_url=resources.ASSIGNMENT,
        resource_names=names,
        response_nonce=nonce,
        error_detail=status_pb2.Status(code=3, message=refusal) if refusal else None,
    )
    read = resources.read_request(request.SerializeToString())
    assert read == resources.DiscoveryRequest(resources.ASSIGNMENT, tuple(names), nonce, refusal, "1")


def test_a_response_carries_its_resources() -> None:
    body = resources.assignment("e", ())
    read = discovery_pb2.DiscoveryResponse.FromString(resources.response(7, resources.ASSIGNMENT, "n", [body]))
    assert (read.version_info, read.nonce, read.type_url) == ("7", "n", resources.ASSIGNMENT)
    assert [packed.value for packed in read.resources] == [body]
    assert read.resources[0].type_url == resources.ASSIGNMENT


@pytest.mark.parametrize("broken", [b"\x0a\x05ab", b"\x0f", b"\x08\xff"])
def test_bytes_that_are_no_message_are_refused(broken: bytes) -> None:
    with pytest.raises(wire.MalformedMessageError):
        list(wire.read_fields(broken))


@given(st.integers(0, 2**63 - 1))
def test_numbers_survive_the_wire(number: int) -> None:
    assert list(wire.read_fields(wire.integer(5, number))) == ([(5, number)] if number else [])

"""An application with gRPC's own debug service shows what its channels were sent; grpcdebug prints that answer."""

from collections.abc import Iterator
from concurrent import futures

import grpc
import grpc_csds
import pytest
from envoy.admin.v3.config_dump_shared_pb2 import ClientResourceStatus
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.service.status.v3 import csds_pb2, csds_pb2_grpc

from testbed.conditions import wait_until

from .conftest import SERVICE, World


@pytest.fixture
def debug_port() -> Iterator[int]:
    server = grpc.server(futures.ThreadPoolExecutor(1))
    grpc_csds.add_csds_servicer(server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None).wait()


def endpoints_sent(port: int) -> dict[str, list[str]]:
    """Ask as `grpcdebug localhost:PORT xds status` does: by service, the addresses that gRPC has taken."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = csds_pb2_grpc.ClientStatusDiscoveryServiceStub(channel)
        answer = stub.FetchClientStatus(csds_pb2.ClientStatusRequest(), timeout=30)
    found = {}
    for each in (resource for config in answer.config for resource in config.generic_xds_configs):
        if each.type_url.endswith("ClusterLoadAssignment") and each.client_status == ClientResourceStatus.ACKED:
            sent = ClusterLoadAssignment.FromString(each.xds_config.value)
            addresses = [
                f"{found.endpoint.address.socket_address.address}:{found.endpoint.address.socket_address.port_value}"
                for locality in sent.endpoints
                for found in locality.lb_endpoints
            ]
            found[each.name.rpartition("/")[2]] = addresses
    return found


def test_grpcs_debug_service_shows_the_endpoints_of_each_service(world: World, debug_port: int) -> None:
    (first,) = world.serve()
    registry = world.registry()
    with registry.insecure_channel(SERVICE) as channel:
        grpc.channel_ready_future(channel).result(30)
        wait_until(lambda: endpoints_sent(debug_port) == {SERVICE: [first.address]}, "what is called")
        world.put("127.0.9.9:9")
        wait_until(lambda: len(endpoints_sent(debug_port)[SERVICE]) == 2, "each change")

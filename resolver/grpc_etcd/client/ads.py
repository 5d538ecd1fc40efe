"""The ADS server on a port of its own: a registry for anything that speaks xDS, in any language."""

import socket

from grpc_etcd.client.base import Following
from grpc_etcd.xds.admission import MOST_IN_ALL, MOST_PER_CLIENT, Limits
from grpc_etcd.xds.limits import check_gevent
from grpc_etcd.xds.names import DEFAULT_REGISTRY
from grpc_etcd.xds.resource_cache import ResourceCache
from grpc_etcd.xds.server import AdsServer

_UNIX = "unix:"
TAKEN_SECONDS = 1.0  # for which a server may take to accept somebody. Arbitrary


def serve(
    listen: str,
    registry: Following,
    *,
    max_services: int = MOST_IN_ALL,
    max_services_per_client: int = MOST_PER_CLIENT,
) -> AdsServer:
    """Run an xDS server (ADS) for the registry's services on `host:port` or `unix:/path`.

    A service is followed once a client requests it. Clients have the address as `server_uri` in their bootstrap; their
    target is `xds:///greeter`, or `xds://etcd/default/greeter` if the bootstrap has the authority `etcd`. With port 0,
    gRPC chooses a free port: see `port`. Neither the server nor its end affects channels of this process or other
    servers. When the server is started again, its clients keep their endpoints until it has read them from
    etcd, even during an etcd outage; of a `CompoundRegistry` with a part that does not respond, they keep those of
    services of which no other part has an endpoint that can be called.

    All clients together may follow `max_services` services, and those of one address `max_services_per_client`: calls
    to further ones fail with that reason until there is room.
    """
    check_gevent()
    if listen.startswith(_UNIX) and _is_taken(listen.removeprefix(_UNIX)):
        raise RuntimeError(f"another process listens on {listen}")
    resource_cache = ResourceCache()
    registry.serve_on(DEFAULT_REGISTRY, resource_cache)  # first, or clients find no registry

    def leave() -> None:
        registry.leave_resource_cache(resource_cache)

    try:
        return AdsServer(
            listen,
            resource_cache,
            serves_others=True,
            limits=Limits(max_services_per_client, max_services),
            on_left=lambda owner: registry.let_go_empty(owner.service),
            on_stop=leave,
        )
    except BaseException:
        leave()
        raise


def _is_taken(path: str) -> bool:
    """Return whether somebody listens there: gRPC would take the path, and lose it when either server ends."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(TAKEN_SECONDS)
        try:
            probe.connect(path.removeprefix("//"))
        except (TimeoutError, BlockingIOError):  # it listens, and accepts nobody just now
            return True
        except (OSError, ValueError):
            return False
    return True

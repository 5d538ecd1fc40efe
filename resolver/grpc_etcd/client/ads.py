"""The ADS server on a port of its own: a registry for anything that speaks xDS, in any language."""

from grpc_etcd.client.base import Following
from grpc_etcd.xds.limits import check_gevent
from grpc_etcd.xds.names import DEFAULT_REGISTRY
from grpc_etcd.xds.resource_cache import ResourceCache
from grpc_etcd.xds.server import AdsServer


def serve(listen: str, registry: Following) -> AdsServer:
    """Serve the registry's services on `host:port` or `unix:/path`; services are followed when they are asked for.

    A client's bootstrap names the address as its `server_uri`; `xds:///greeter` is then the service, and so is
    `xds://etcd/default/greeter` where the bootstrap has the authority `etcd`. Any port may be 0: see `port`.
    Channels of this process, and other servers, are not touched by it, nor by its end. Clients that come back after
    that keep what they have until the next server knows as much, however long etcd is away.
    """
    check_gevent()
    resource_cache = ResourceCache()
    registry.serve_on(DEFAULT_REGISTRY, resource_cache)  # first, or clients find no registry

    def leave() -> None:
        registry.leave_resource_cache(resource_cache)

    try:
        return AdsServer(listen, resource_cache, spares_earlier=True, on_stop=leave)
    except BaseException:
        leave()
        raise

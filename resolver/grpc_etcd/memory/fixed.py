"""A store that holds services at fixed addresses."""

from collections.abc import Mapping, Sequence

from grpc_etcd.layouts.jupiter import Jupiter
from grpc_etcd.memory.store import MemoryEtcd
from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.layout import Rejected


class StaticStore(MemoryEtcd):
    """A store in place of an etcd that there is not."""

    names: tuple[str, ...] = ()  # of the services that it was made with

    def __repr__(self) -> str:
        return "<static services>"


def static_store(services: Mapping[str, Sequence[str]]) -> StaticStore:
    """Make a store that holds these services."""
    store = StaticStore()
    store.names = tuple(services)
    for name, addresses in services.items():
        for address in addresses:
            written = Jupiter().encode(name, Endpoint(name=name, address=address))
            if isinstance(written, Rejected):
                raise ValueError(written.reason)  # noqa: TRY004 - the address is at fault, not its type
            store.put(written.key, written.value)
    return store

"""A store that holds services at fixed addresses."""

from collections.abc import Mapping, Sequence

from grpc_etcd.layouts.jupiter import Jupiter
from grpc_etcd.memory.store import MemoryEtcd
from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.layout import Rejected


def static_store(services: Mapping[str, Sequence[str]]) -> MemoryEtcd:
    """Make a store that holds these services."""
    store = MemoryEtcd()
    for name, addresses in services.items():
        for address in addresses:
            written = Jupiter().encode(name, Endpoint(name=name, address=address))
            if isinstance(written, Rejected):
                raise ValueError(written.reason)  # noqa: TRY004 - the address is at fault, not its type
            store.put(written.key, written.value)
    return store

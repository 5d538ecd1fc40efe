"""The registry that tests use: `grpc_etcd.Registry` on an etcd in memory."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Unpack

from grpc_etcd.client import default
from grpc_etcd.client.registry import Registry, RegistryOptions
from grpc_etcd.client.targets import service_name
from grpc_etcd.etcd import Op, ops
from grpc_etcd.memory.keyspace import MOST_OPERATIONS
from grpc_etcd.memory.store import MemoryEtcd
from grpc_etcd.options import taking
from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.layout import Rejected


class MemoryRegistry(Registry):
    """A registry in memory, without an etcd; takes the options of `Registry`, others raise a TypeError.

    Registries with the same `MemoryEtcd` have the same records, like processes that share an etcd.
    """

    @taking(RegistryOptions, "MemoryRegistry")
    def __init__(self, memory: MemoryEtcd | None = None, **options: Unpack[RegistryOptions]) -> None:
        if not isinstance(memory, MemoryEtcd | None):
            raise TypeError(
                f"MemoryRegistry takes a MemoryEtcd, or nothing, not {memory!r}; a Registry follows a real etcd, also "
                "one from the environment: Registry.from_environ()"
            )
        self.memory = memory or MemoryEtcd()
        super().__init__(self.memory, **options)

    def set_endpoints(self, service: str, *endpoints: Endpoint | str) -> None:
        """Set the endpoints of a service (`host:port` or `Endpoint`), in place of those that were set before.

        Open channels follow within milliseconds, as with etcd, so a call at once may still go to a previous endpoint.
        Without endpoints the service is empty. Endpoints that the code under test registers stay.
        """
        service = service_name(service)
        wanted = dict(self._encode(service, endpoint) for endpoint in endpoints)
        there = {record.key: record for record in self.memory.get_prefix(self.layouts[0].prefix(service)).records}
        gone = [ops.delete(key) for key, record in there.items() if key not in wanted and not record.lease]
        new = [ops.put(key, value) for key, value in wanted.items() if key not in there or there[key].value != value]
        changes: list[Op] = [*new, *gone]  # in this order, since a large service must not be empty in between
        for first in range(0, len(changes), MOST_OPERATIONS):
            self.memory.transaction((), changes[first : first + MOST_OPERATIONS])

    def _encode(self, service: str, endpoint: Endpoint | str) -> tuple[bytes, bytes]:
        if isinstance(endpoint, str):
            endpoint = Endpoint(name=service, address=endpoint)
        if not isinstance(endpoint, Endpoint):
            raise TypeError(f"{endpoint!r} is neither 'host:port' nor an Endpoint; pass several as separate arguments")
        encoded = self.layouts[0].encode(service, endpoint)
        if isinstance(encoded, Rejected):
            raise ValueError(encoded.reason)  # noqa: TRY004 - the endpoint is at fault, not its type
        return encoded.key, encoded.value

    @contextmanager
    def outage(self, *, loses_data: bool = False) -> Iterator[None]:
        """Simulate an etcd outage while the block runs; afterwards etcd may be empty.

        Blocks may be nested, and run at the same time in several threads: etcd is there again after the last of them.
        """
        with self.memory.outage(loses_data=loses_data):
            yield


def as_default(registry: Registry) -> AbstractContextManager[None]:
    """Make a registry the default registry, which `grpc_etcd.insecure_channel("etcd:///name")` uses, in the block.

    Meanwhile `Registry.from_environ()` returns a new registry on the same etcd, or the same memory, with the same
    options; closing the new registry does not close this one.
    """
    return default.standing_in(registry)

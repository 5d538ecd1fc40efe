"""The registry that tests use: `grpc_etcd.Registry` on an etcd in memory."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Unpack

from grpc_etcd.client import default
from grpc_etcd.client.registry import Registry, RegistryOptions
from grpc_etcd.client.targets import service_name
from grpc_etcd.etcd import ops
from grpc_etcd.memory.store import MemoryEtcd
from grpc_etcd.options import taking
from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.layout import Rejected


class MemoryRegistry(Registry):
    """A registry without an etcd; takes the options of `Registry`, anything else is a TypeError.

    Registries that are given the same `MemoryEtcd` see the same records, as processes do that share an etcd.
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
        """Let the service have these endpoints (`host:port`, or in full), in place of those that were set before.

        Channels follow within milliseconds, as they follow etcd: a call at once may still go by what was there before
        on a channel that is open already. Without endpoints the service is empty. What code under test registers stays.
        """
        service = service_name(service)
        wanted = dict(self._encode(service, endpoint) for endpoint in endpoints)
        there = {record.key: record for record in self.memory.get_prefix(self.layouts[0].prefix(service)).records}
        gone = [ops.delete(key) for key, record in there.items() if key not in wanted and not record.lease]
        new = [ops.put(key, value) for key, value in wanted.items() if key not in there or there[key].value != value]
        self.memory.transaction((), [*gone, *new])

    def _encode(self, service: str, endpoint: Endpoint | str) -> tuple[bytes, bytes]:
        if isinstance(endpoint, str):
            endpoint = Endpoint(name=service, address=endpoint)
        if not isinstance(endpoint, Endpoint):
            raise TypeError(f"{endpoint!r} is neither 'host:port' nor an Endpoint; several are given one by one")
        encoded = self.layouts[0].encode(service, endpoint)
        if isinstance(encoded, Rejected):
            raise ValueError(encoded.reason)  # noqa: TRY004 - the endpoint is at fault, not its type
        return encoded.key, encoded.value

    @contextmanager
    def outage(self, *, loses_data: bool = False) -> Iterator[None]:
        """Let etcd be away for as long as the block runs; it may come back empty."""
        self.memory.stop()
        try:
            yield
        finally:
            self.memory.start(fresh=loses_data)


def as_default(registry: Registry) -> AbstractContextManager[None]:
    """Make a registry what `grpc_etcd.insecure_channel("etcd:///name")` uses, for as long as the block runs.

    `Registry.from_environ()` meanwhile gives a new registry that follows the same etcd, or the same memory, with the
    same options; closing that one leaves this one open.
    """
    return default.standing_in(registry)

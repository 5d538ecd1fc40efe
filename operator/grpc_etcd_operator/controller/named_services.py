"""Which namespaces have GrpcServices that name Services, and whether the first list of these is still waited for."""

import asyncio
import time

from grpc_etcd_operator.core.references import References
from grpc_etcd_operator.core.services import GrpcService

# For so long nothing is taken to be complete while Services that are named were never listed. A list takes a second; if
# it takes longer something is wrong with it, which is to hold up no others than those who name them. Arbitrary.
PATIENCE_SECONDS = 15.0


class NamedServices:
    """Lets whoever watches Services wait until there is one that a GrpcService names."""

    def __init__(self, references: References, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._references, self._patience_seconds = references, patience_seconds
        self._waiting: dict[str, asyncio.Event] = {}
        self._since: float | None = None

    def note(self, service: GrpcService) -> None:
        """Take a GrpcService that is in the cache."""
        if service.service_ref:
            for namespace in self._waiting.keys() & {"", service.namespace}:
                self._waiting.pop(namespace).set()

    async def wait(self, namespace: str) -> None:
        """Wait until a Service of a namespace (empty: of any) is named."""
        if not self._references.are_in(namespace):
            await self._waiting.setdefault(namespace, asyncio.Event()).wait()

    def are_awaited(self) -> bool:
        """Return whether Services are named that were never listed, and that are worth waiting for."""
        if not self._references.pending:
            self._since = None
            return False
        self._since = self._since or time.monotonic()
        return time.monotonic() - self._since < self._patience_seconds

    def is_awaited(self, uid: str) -> bool:
        """Return whether it is worth waiting for the Service that a GrpcService names."""
        return uid in self._references.pending and self.are_awaited()

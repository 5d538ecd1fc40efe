"""What pytest finds when this package is installed: one fixture, and nothing that runs unless a test asks for it."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from grpc_etcd.testing.registry import MemoryRegistry


@pytest.fixture
def grpc_etcd_registry() -> "Iterator[MemoryRegistry]":
    """A new registry in memory, which is the default registry during the test."""
    from grpc_etcd.testing import MemoryRegistry, as_default  # noqa: PLC0415 - most tests do without gRPC

    with MemoryRegistry() as registry, as_default(registry):
        yield registry

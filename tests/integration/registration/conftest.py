"""Registries that register, and the eyes of an admin on the same etcd: a real one, and the one in memory."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from grpc_etcd import Endpoint, Registry
from grpc_etcd.etcd import Etcd, Record
from grpc_etcd.testing import MemoryEtcd, MemoryRegistry
from testbed.conditions import PATIENCE_SECONDS, wait_until
from testbed.etcd import EtcdServer

SERVICE = "greeter"
ADDRESS = "127.0.9.1:9000"
KEY = f"/jupiter/{SERVICE}/providers/grpc://{ADDRESS}".encode()
ENDPOINT = Endpoint(name=SERVICE, address=ADDRESS)


class Admin:
    """Looks at and meddles with one etcd; `server` is None for the one in memory."""

    def __init__(self, server: EtcdServer | None) -> None:
        self.server, self.memory = server, MemoryEtcd()
        self.etcd: Etcd | MemoryEtcd = self.memory
        if server:
            self.etcd = Etcd(server.endpoints, timeout_seconds=PATIENCE_SECONDS)

    def registry(self, **options: Any) -> Registry:
        """Give a registry on it."""
        return Registry(self.server.endpoints, **options) if self.server else MemoryRegistry(self.memory, **options)

    def close(self) -> None:
        if isinstance(self.etcd, Etcd):
            self.etcd.close()

    def records(self, prefix: bytes = b"/jupiter/") -> dict[bytes, Record]:
        """What is registered; the settling touch of a burst is left out."""
        records = self.etcd.get_prefix(prefix).records
        return {record.key: record for record in records if b"/settled/" not in record.key}

    def record(self, key: bytes) -> Record:
        """Read a record that must be there."""
        found = self.etcd.get(key)
        assert found, f"{key.decode()} is not there"
        return found

    def wait_for(self, is_so: Callable[[Record | None], object], key: bytes = KEY) -> Record | None:
        wait_until(lambda: is_so(self.etcd.get(key)), f"{key.decode()} as expected", 60)
        return self.etcd.get(key)


@pytest.fixture(params=["etcd", "memory"])
def admin(request: pytest.FixtureRequest) -> Iterator[Admin]:
    admin = Admin(request.getfixturevalue("etcd") if request.param == "etcd" else None)
    yield admin
    admin.close()


@pytest.fixture
def etcd_admin(etcd: EtcdServer) -> Iterator[Admin]:
    """The admin of a real etcd, for tests with processes of their own."""
    admin = Admin(etcd)
    yield admin
    admin.close()


@pytest.fixture
def registry(admin: Admin) -> Iterator[Registry]:
    with admin.registry() as registry:
        yield registry

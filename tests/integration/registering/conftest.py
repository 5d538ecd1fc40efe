"""Registries that register, and the eyes of an admin on the same etcd."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from grpc_etcd import Endpoint, Registry
from grpc_etcd.etcd import Etcd, Record
from testbed.conditions import wait_until
from testbed.etcd import EtcdServer

SERVICE = "greeter"
ADDRESS = "127.0.9.1:9000"
KEY = f"/jupiter/{SERVICE}/providers/grpc://{ADDRESS}".encode()
ENDPOINT = Endpoint(name=SERVICE, address=ADDRESS)


class Admin:
    """Looks at and meddles with one etcd."""

    def __init__(self, server: EtcdServer) -> None:
        self.server = server
        self.etcd = Etcd(server.endpoints)

    def records(self, prefix: bytes = b"/jupiter/") -> dict[bytes, Record]:
        """What is registered; the settling touch of a burst is left out."""
        records = self.etcd.get_prefix(prefix).records
        return {record.key: record for record in records if b"/settled/" not in record.key}

    def wait_for(self, is_so: Callable[[Record | None], Any], key: bytes = KEY) -> Record | None:
        wait_until(lambda: is_so(self.etcd.get(key)), f"{key.decode()} as expected", 60)
        return self.etcd.get(key)


@pytest.fixture
def admin(etcd: EtcdServer) -> Iterator[Admin]:
    admin = Admin(etcd)
    yield admin
    admin.etcd.close()


@pytest.fixture
def registry(etcd: EtcdServer) -> Iterator[Registry]:
    with Registry(etcd.endpoints) as registry:
        yield registry

"""`grpc-etcd ads` serves other languages: gRPC's own xDS client in Go follows a registry that it cannot read itself."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from grpc_etcd.etcd import Etcd
from grpc_etcd.layouts.index import make_layout
from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.layout import KeyValue
from testbed.conditions import wait_until
from testbed.etcd import EtcdServer
from testbed.interop_program import InteropProgram
from testbed.process import Process
from tests.interop.conftest import Backends

pytestmark = pytest.mark.interop

LAYOUT = make_layout("jupiter")
SERVICE = "greeter"
GRPC_ETCD = Path(sys.executable).with_name("grpc-etcd")


class Registered:
    """Providers of the service, as an operator or the servers themselves would put them."""

    def __init__(self, client: Etcd) -> None:
        self._client = client

    def put(self, address: str, *, enable: bool = True) -> None:
        record = LAYOUT.encode(SERVICE, Endpoint(name=SERVICE, address=address, enable=enable))
        assert isinstance(record, KeyValue)
        self._client.put(*record)

    def delete(self, address: str) -> None:
        record = LAYOUT.encode(SERVICE, Endpoint(name=SERVICE, address=address))
        assert isinstance(record, KeyValue)
        self._client.delete(record.key)


@pytest.fixture
def ads(etcd: EtcdServer, tmp_path: Path) -> Iterator[str]:
    """The command, serving the etcd's registry; gives the address at which it does."""
    command: list[str | Path] = [GRPC_ETCD, "ads", "--listen=127.0.0.1:0"]
    process = Process("grpc-etcd ads", command, tmp_path / "ads.log", {"GRPC_ETCD_ENDPOINTS": etcd.endpoints})
    with process.start():
        process.wait_ready(lambda: "serving on " in process.log_tail())
        yield process.log_tail().split()[-1]


def bootstrap_of_the_help(address: str) -> str:
    """Take the bootstrap that the command's help explains to people to use."""
    told = subprocess.run([GRPC_ETCD, "ads", "--help"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"\{.*\}", told, re.DOTALL)
    assert found
    return found[0].replace("127.0.0.1:18000", address)


@pytest.mark.parametrize("backends", [3], indirect=True)
def test_a_go_client_follows_the_registry(ads: str, client: Etcd, backends: Backends, tmp_path: Path) -> None:
    registered = Registered(client)
    first, second, third = backends.addresses
    registered.put(first)
    bootstrap = {"GRPC_XDS_BOOTSTRAP_CONFIG": bootstrap_of_the_help(ads)}
    with InteropProgram("xds", "call", tmp_path, environment=bootstrap).start() as calling:
        wait_until(lambda: calling.answering() == {first}, "calls to the only one")
        registered.put(second)
        registered.put(third)
        wait_until(lambda: calling.answering() == {first, second, third}, "calls to all three")
        registered.delete(first)
        registered.put(second, enable=False)
        wait_until(lambda: calling.answering() == {third}, "no more calls to the deleted and the disabled one")
        failures = [window["failed"] for window in calling.events("called") if window["failed"]]
        registered.delete(third)
        wait_until(calling.has_only_failed, "no calls to anybody")
    assert failures == []

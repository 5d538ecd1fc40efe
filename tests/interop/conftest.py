"""What the interop tests share: an etcd, our client of it, and the programs' common flags."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from grpc_etcd.etcd import Etcd
from grpc_etcd.layouts.index import make_layout
from grpc_etcd.registry.layout import Layout
from testbed.apiserver import ApiServer
from testbed.conditions import PATIENCE_SECONDS, free_port
from testbed.etcd import EtcdServer
from testbed.interop_program import InteropProgram
from testbed.kubelet import Kubelet
from testbed.process import Process
from tests.e2e.conftest import Scene, install_crd

# Program -> the layout that it reads and writes. kratos' registry is not to be had as a module: its bytes stand in
# (tests/unit/layouts/golden.json).
LAYOUTS = {
    "jupiter027": "jupiter",
    "jupiter011": "jupiter-v2",
    "naming": "etcd-naming",
    "gozero": "go-zero",
    "kitex": "kitex",
    "gomicro4": "go-micro",
    "gomicro5": "go-micro",
}


@pytest.fixture
def scene(apiserver: ApiServer, etcd: EtcdServer, kubelet: Kubelet, namespace: str, tmp_path: Path) -> Iterator[Scene]:
    """A namespace with the operator's custom resource, and an empty registry."""
    install_crd(apiserver)
    made = Scene(apiserver, etcd, kubelet, namespace, tmp_path)
    yield made
    made.close()


@dataclass(frozen=True)
class Interop:
    """One program, its layout, and the etcd where they meet."""

    program: str
    layout: Layout
    server: EtcdServer
    etcd: Etcd
    folder: Path

    def run(self, command: str, *flags: str) -> InteropProgram:
        """Prepare a command of the program against this etcd."""
        return InteropProgram(self.program, command, self.folder, f"--endpoints={self.server.endpoints}", *flags)


@pytest.fixture
def client(etcd: EtcdServer) -> Iterator[Etcd]:
    """Our own client of the etcd."""
    with Etcd(etcd.endpoints, timeout_seconds=PATIENCE_SECONDS) as client:
        yield client


@pytest.fixture
def interop(request: pytest.FixtureRequest, etcd: EtcdServer, client: Etcd, tmp_path: Path) -> Interop:
    """The program that the test's parameter names."""
    program: str = request.param
    return Interop(program, make_layout(LAYOUTS[program]), etcd, client, tmp_path)


@dataclass(frozen=True)
class Backends:
    """gRPC servers at many loopback addresses, in one process."""

    process: Process
    addresses: list[str]


@pytest.fixture
def backends(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backends]:
    """As many servers as the test's parameter says, each at an address of its own, all at one port."""
    program = InteropProgram("backends", f"--count={request.param}", tmp_path, f"--port={free_port('127.0.1.1')}")
    with program.start():
        yield Backends(program, program.wait_for("serving")["addresses"])

"""The tutorial in docs/client.md runs as it stands, block after block, against a real etcd and real servers."""

import os
import re
import subprocess
import sys
from pathlib import Path

from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.jupiter import Jupiter
from testbed.build import ROOT
from testbed.etcd import EtcdServer
from testbed.greeter import GreeterServer

TUTORIAL = ROOT / "docs/client.md"
SYNCED = ("/grpc-etcd/synced/tutorial", "1")


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def register(etcd: EtcdServer, address: str) -> None:
    written = Jupiter().encode("greeter", Endpoint(name="greeter", address=address))
    etcd.etcdctl("put", written.key.decode(), written.value.decode())


def test_every_block_of_the_tutorial_runs(etcd: EtcdServer, generated: Path) -> None:
    program = "\n".join(python_blocks(TUTORIAL)).replace("etcd:2379", etcd.endpoints)
    assert program.count("SayHello") >= 5
    environment = os.environ | {"GRPC_ETCD_ENDPOINTS": etcd.endpoints, "PYTHONPATH": str(generated)}
    with GreeterServer("127.0.0.1:0") as one, GreeterServer("127.0.0.1:0") as two:
        for server in (one, two):
            register(etcd, server.address)
        etcd.etcdctl("put", *SYNCED)
        answer = subprocess.run(
            [sys.executable, "-W", "error", "-c", program],
            env=environment, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    lines = answer.stdout.splitlines()
    assert lines[0] in (one.address, two.address)
    assert any(line.startswith("2 endpoints at revision") for line in lines)
    assert any("GRPC_ETCD_ENDPOINTS" in line for line in lines)
    assert any("jupyter" in line for line in lines)
    assert one.calls + two.calls >= 5

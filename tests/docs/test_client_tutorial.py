"""The tutorial in docs/client.md runs as it stands, block after block, against a real etcd and real servers."""

import os
import re
import subprocess
import sys
from pathlib import Path

from grpc_etcd.layouts.jupiter import Jupiter
from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.layout import KeyValue
from testbed.build import ROOT
from testbed.etcd import EtcdServer
from testbed.greeter import GreeterServer

TUTORIAL = ROOT / "docs/client.md"
SYNCED = ("/grpc-etcd/synced/tutorial", "1")


def python_blocks(page: Path, *, tests: bool) -> list[str]:
    """Give the blocks of a program, or those that pytest runs."""
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [block for block in blocks if ("def test_" in block) is tests]


def register(etcd: EtcdServer, address: str) -> None:
    written = Jupiter().encode("greeter", Endpoint(name="greeter", address=address))
    assert isinstance(written, KeyValue)
    etcd.etcdctl("put", written.key.decode(), written.value.decode())


def test_every_block_of_the_tutorial_runs(etcd: EtcdServer, generated: Path) -> None:
    program = "\n".join(python_blocks(TUTORIAL, tests=False))
    for name in ("etcd:2379", "etcd.infra.svc.cluster.local:2379"):
        program = program.replace(f'"{name}"', f'"{etcd.endpoints}"')
    assert program.count("SayHello") >= 5
    environment = os.environ | {"GRPC_ETCD_ENDPOINTS": etcd.endpoints, "PYTHONPATH": str(generated)}
    with GreeterServer("127.0.0.1:0") as one, GreeterServer("127.0.0.1:0") as two:
        for server in (one, two):
            register(etcd, server.address)
        etcd.etcdctl("put", *SYNCED)
        program = program.replace("localhost:50051", one.address)
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
    assert "True State.REGISTERED" in lines
    assert lines.count("127.0.0.1:50051") == 2
    assert one.calls + two.calls >= 5
    assert lines.count(f"local {one.address}") == 2
    assert any("did you mean 'prefix'?" in line for line in lines)
    assert "2 endpoints now" in lines
    assert "['greeter']" in lines
    assert "2" in lines  # callable endpoints, on asyncio


def test_the_tests_of_the_tutorial_pass(generated: Path, tmp_path: Path) -> None:
    (block,) = python_blocks(TUTORIAL, tests=True)
    program = tmp_path / "test_greet.py"
    program.write_text(block)
    others = ("-p", "no:asyncio", "-p", "no:cacheprovider")  # plugins of our own that its reader may not have
    answer = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", *others, str(program)],
        env=os.environ | {"PYTHONPATH": str(generated)}, cwd=tmp_path,
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "2 passed" in answer.stdout


def test_the_setting_for_ones_own_machine_leads_there(generated: Path) -> None:
    found = re.search(r'export GRPC_ETCD_STATIC="(.*)"', TUTORIAL.read_text())
    assert found
    (block,) = (block for block in python_blocks(TUTORIAL, tests=False) if 'grpc_etcd.insecure_channel("etcd:' in block)
    program = f"import grpc_etcd\nfrom greeter_pb2 import *\nfrom greeter_pb2_grpc import *\n{block}"
    with GreeterServer("127.0.0.1:0") as server:
        setting = found[1].replace("localhost:50051", server.address)
        answer = subprocess.run(
            [sys.executable, "-W", "error", "-c", program],
            env=os.environ | {"GRPC_ETCD_STATIC": setting, "PYTHONPATH": str(generated)},
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert answer.returncode == 0, answer.stderr
        assert server.calls == 1

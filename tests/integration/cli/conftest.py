"""The real command line, in a process of its own, beside an admin who makes mistakes."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from grpc_etcd import Endpoint
from grpc_etcd.etcd import Etcd
from grpc_etcd.layouts.index import make_layout
from grpc_etcd.registry.layout import KeyValue
from testbed.conditions import PATIENCE_SECONDS
from testbed.etcd import EtcdServer

COMMAND = [str(Path(sys.executable).with_name("grpc-etcd"))]


class CommandLine:
    """Runs commands on one etcd and puts records there."""

    def __init__(self, server: EtcdServer) -> None:
        self.endpoints = server.endpoints
        self.etcd = Etcd(server.endpoints, timeout_seconds=PATIENCE_SECONDS)
        self.started: list[subprocess.Popen[str]] = []

    def environ(self, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_ETCD_")}
        return kept | {"GRPC_ETCD_ENDPOINTS": self.endpoints, "KUBECONFIG": "no.kubeconfig"} | more

    def run(self, *arguments: str | bytes, code: int = 0, **environ: str) -> str:
        ended = subprocess.run(
            [*COMMAND, *arguments], env=self.environ(**environ), capture_output=True, text=True, timeout=60, check=False
        )
        assert ended.returncode == code, (ended.returncode, ended.stdout, ended.stderr)
        assert "Traceback" not in ended.stderr
        return ended.stdout + ended.stderr

    def run_json(self, *arguments: str, code: int = 0) -> Any:
        ended = subprocess.run(
            [*COMMAND, *arguments, "-o", "json"],
            env=self.environ(),
            stdout=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode == code, ended.stdout
        return json.loads(ended.stdout)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen([*COMMAND, *arguments], env=self.environ(), stdout=subprocess.PIPE, text=True)
        self.started.append(process)
        return process

    def put(self, address: str, service: str = "greeter", layout: str = "jupiter", **attributes: Any) -> bytes:
        lease = self.etcd.lease(600) if attributes.pop("leased", True) else 0
        prefix = attributes.pop("prefix", None)
        record = make_layout(layout, prefix).encode(service, Endpoint(name=service, address=address, **attributes))
        assert isinstance(record, KeyValue), record
        self.etcd.put(record.key, record.value, lease=lease)
        return record.key

    def close(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.communicate()
        self.etcd.close()


@pytest.fixture
def shell(etcd: EtcdServer) -> Iterator[CommandLine]:
    shell = CommandLine(etcd)
    yield shell
    shell.close()

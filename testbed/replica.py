"""A replica of the operator as a process of its own, and a view of a registry as any client has it."""

import itertools
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from grpc_etcd.etcd import Etcd
from grpc_etcd.etcd.model import Record
from testbed.conditions import wait_until
from testbed.process import Process

NUMBERS = itertools.count(1)


class Replica:
    """One replica of the operator; `start` it, `kill` it, `pause` it. `program` is how its command begins."""

    def __init__(
        self,
        folder: Path,
        kubeconfig: Path,
        etcd: str,
        flags: tuple[str, ...],
        program: Sequence[str | Path] = (sys.executable, "-m", "grpc_etcd_operator"),
    ) -> None:
        self.log = folder / f"operator-{next(NUMBERS)}.log"
        command = [*program, "run", f"--etcd-endpoints={etcd}", "--metrics-port=0", *flags]
        environment = {"KUBECONFIG": str(kubeconfig), "PYTHONWARNINGS": "default"}
        self.process = Process("operator", command, self.log, environment)

    def start(self) -> Self:
        """Start it; it is ready some time later."""
        self.process.start()
        return self

    def lines(self, message: str = "") -> list[dict[str, Any]]:
        """Give what it has logged, or the lines with one message."""
        text = self.log.read_text() if self.log.exists() else ""
        found = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        return [line for line in found if not message or line["message"] == message]

    def text(self) -> str:
        """Give all that it has printed."""
        return self.log.read_text()

    def get(self, path: str) -> tuple[int, str]:
        """Ask its health port."""
        port = self.lines("metrics and health are served")[-1]["port"]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, name: str, **labels: str) -> float:
        """Read one sample; 0 when there is none."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        for line in self.get("/metrics")[1].splitlines():
            head, _, value = line.rpartition(" ")
            if head.partition("{")[0] == name and all(each in head for each in wanted):
                return float(value)
        return 0.0

    def wait_leading(self) -> Self:
        """Wait until it leads and all it knows is written."""
        wait_until(lambda: self.lines("in step: the synced mark is put"), f"the operator is in step\n{self.process}")
        return self


class RegistryView:
    """Reads a registry as any client would."""

    def __init__(self, client: Etcd) -> None:
        self.client = client

    def keys(self, prefix: str = "/jupiter/") -> dict[str, Record]:
        """Give the records under a prefix, by key; settling touches are no one's business here."""
        records = self.client.get_prefix(prefix.encode()).records
        return {r.key.decode(): r for r in records if b"/settled/" not in r.key}

    def values(self, prefix: str = "/jupiter/") -> dict[str, Any]:
        """Give the decoded JSON values under a prefix."""
        return {key: json.loads(record.value) for key, record in self.keys(prefix).items()}

    def addresses(self, name: str = "greeter", prefix: str = "jupiter") -> list[str]:
        """Give the addresses that a service has, enabled or not."""
        return sorted(key.rpartition("://")[2] for key in self.keys(f"/{prefix}/{name}/providers/"))

    def wait_addresses(self, *addresses: str, name: str = "greeter", prefix: str = "jupiter") -> None:
        """Wait until a service has exactly these addresses."""
        wanted = sorted(addresses)
        wait_until(lambda: self.addresses(name, prefix) == wanted, f"{name} has exactly {wanted}")

    def revision(self) -> int:
        """Give etcd's revision."""
        return self.client.get_prefix(b"\x01nothing").revision

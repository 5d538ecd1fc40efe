"""A replica of the operator as a process of its own, and a view of a registry as any client has it."""

import contextlib
import itertools
import json
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from grpc_etcd.etcd import DeadlineExceeded, Etcd, Unavailable
from grpc_etcd.etcd.model import Record
from grpc_etcd.registry.own import CLOCK_PREFIX
from grpc_etcd_operator.telemetry.metrics import REGISTRATION
from grpc_etcd_operator.telemetry.samples import DECLARATIONS
from testbed.conditions import wait_until
from testbed.process import Process, whole_lines

METRICS = {REGISTRATION[0], *(each.exposed for each in DECLARATIONS)}

SERVED = "port_opened"
NUMBERS = itertools.count(1)
PROGRAM: Sequence[str | Path] = (sys.executable, "-m", "grpc_etcd_operator")


class Replica:
    """One replica of the operator; `start` it, `kill` it, `pause` it. `program` is how its command begins."""

    def __init__(
        self,
        folder: Path,
        kubeconfig: Path,
        etcd: str,
        flags: tuple[str, ...],
        program: Sequence[str | Path] = PROGRAM,
    ) -> None:
        self.log = folder / f"operator-{next(NUMBERS)}.log"
        command = [*program, "run", f"--etcd-endpoints={etcd}", "--metrics-port=0", *flags]
        environment = {"KUBECONFIG": str(kubeconfig), "PYTHONWARNINGS": "default"}
        self.process = Process("operator", command, self.log, environment)
        self._port = self._served_before = 0

    def start(self) -> Self:
        """Start it; it is ready some time later."""
        self._port, self._served_before = 0, len(self.lines(SERVED))
        self.process.start()
        return self

    def lines(self, event: str = "") -> list[dict[str, Any]]:
        """Return what it has logged, or the lines of one event."""
        found = [json.loads(line) for line in whole_lines(self.log) if line.startswith("{")]
        return [line for line in found if not event or line.get("event") == event]

    def text(self) -> str:
        """Give all that it has printed."""
        return self.log.read_text()

    def _served(self) -> list[dict[str, Any]]:
        """Give the lines that name its port since it was started last."""
        return self.lines(SERVED)[self._served_before :]

    def get(self, path: str) -> tuple[int, str]:
        """Ask its health port, as soon as it is open."""
        if not self._port:
            wait_until(lambda: self._served() or not self.process.is_running, f"its port is open\n{self.process}")
            self._port = self._served()[-1]["port"]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}{path}", timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def metric(self, name: str, **labels: str) -> float:
        """Read one sample; 0 when there is none; LookupError when no metric is called so."""
        if re.sub("_(bucket|count|sum)$", "", name) not in METRICS:
            raise LookupError(f"no metric is called {name}")
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        for line in self.get("/metrics")[1].splitlines():
            head, _, value = line.rpartition(" ")
            if head.partition("{")[0] == name and all(each in head for each in wanted):
                return float(value)
        return 0.0

    def wait_leading(self) -> Self:
        """Wait until it leads and all it knows is written."""
        wait_until(lambda: self.lines("synced_key_put"), f"the operator is synced\n{self.process}")
        return self


class RegistryView:
    """Reads a registry as any client would."""

    def __init__(self, client: Etcd) -> None:
        self.client = client

    def keys(self, prefix: str = "/jupiter/") -> dict[str, Record]:
        """Give the records under a prefix, by key; flush keys are no one's business here."""
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

        def has_them() -> bool:
            with contextlib.suppress(Unavailable, DeadlineExceeded):  # it may have come back only just now
                return self.addresses(name, prefix) == wanted
            return False

        wait_until(has_them, f"{name} has exactly {wanted}")

    def count_changes(self) -> int:
        """Count etcd's revisions, but those in which an operator only put its clock key."""
        listing = self.client.get_prefix(CLOCK_PREFIX)
        return listing.revision - sum(record.version for record in listing.records)

    def revision(self) -> int:
        """Give etcd's revision."""
        return self.client.get_prefix(b"\x01nothing").revision

"""Real etcd: one or three members on loopback, with TLS, users and quotas where a test asks for them.

    with EtcdServer.start() as etcd:
        etcd.etcdctl("put", "key", "value")
        etcd.kill(); etcd.restart()          # same ports, same data

Its data live in a temporary folder that close() removes. Every member can be killed, frozen and restarted by itself.
"""

import json
import os
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from testbed.build import binary
from testbed.certificates import LOOPBACK_NAMES, Authority, Certificate
from testbed.conditions import free_port, wait_until
from testbed.process import Process

PROBE_SECONDS = 2.0
# By default etcdctl gives up after 2 and 5 seconds, in which a busy machine may not even have started it.
ETCDCTL_LIMITS = ("--dial-timeout=60s", "--command-timeout=60s")
LOOPBACK = "127.0.0.1"
# What each of three members is called where each has a certificate for its own name only.
OWN_NAMES = ("localhost", "127.0.0.2", "127.0.0.3")


# Thrice etcd's own times: a busy machine keeps a leader waiting for longer than a second, and nobody else shall lead.
CALM_ELECTIONS = ("--heartbeat-interval=300", "--election-timeout=3000")


class Member:
    """One etcd process: its ports, its data and its log."""

    def __init__(self, name: str, folder: Path, scheme: str, host: str = LOOPBACK) -> None:
        self.name, self.host = name, host
        port = free_port()
        self.endpoint = f"{host}:{port}"
        self.client_url = f"{scheme}://{self.endpoint}"
        self.listen_url = f"{scheme}://{LOOPBACK if host == 'localhost' else host}:{port}"
        self.peer_url = f"http://127.0.0.1:{free_port()}"
        self.metrics_url = f"http://127.0.0.1:{free_port()}"
        self.data = folder / name
        self.log = folder / f"{name}.log"
        self.process: Process

    def configure(self, cluster: str, flags: Sequence[str]) -> None:
        """Fix the command line, once all members' addresses are known."""
        command: list[str | Path] = [
            binary("etcd"),
            f"--name={self.name}",
            f"--data-dir={self.data}",
            f"--listen-client-urls={self.listen_url}",
            f"--advertise-client-urls={self.client_url}",
            f"--listen-peer-urls={self.peer_url}",
            f"--initial-advertise-peer-urls={self.peer_url}",
            f"--initial-cluster={cluster}",
            f"--listen-metrics-urls={self.metrics_url}",
            "--unsafe-no-fsync",  # a killed process loses nothing by that, only a machine would
            *flags,
        ]
        self.process = Process(f"etcd {self.name}", command, self.log)

    def is_ready(self) -> bool:
        """Whether it answers linearizable reads, so has a leader."""
        try:
            with urllib.request.urlopen(f"{self.metrics_url}/readyz", timeout=PROBE_SECONDS) as answer:  # noqa: S310 (http)
                return bool(answer.status == 200)  # noqa: PLR2004 (OK)
        except urllib.error.HTTPError as error:
            error.close()
            return False
        except OSError:
            return False

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.process.kill()

    def stop(self) -> None:
        """End it in order, with SIGTERM."""
        self.process.stop()

    def restart(self) -> None:
        """Start it again on the same ports and data, and wait until it serves."""
        self.process.kill()
        self.process.start().wait_ready(self.is_ready)

    def pause(self) -> None:
        """Freeze it: connections stay open, nothing is answered."""
        self.process.pause()

    def resume(self) -> None:
        """Let it go on after pause()."""
        self.process.resume()


class EtcdServer:
    """An etcd of one or more members; `endpoints` is what clients are given, host:port separated by commas."""

    def __init__(
        self,
        members: int,
        flags: Sequence[str],
        *,
        tls: bool,
        client_certificates: bool,
        own_names: bool,
        names: tuple[str, ...],
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="grpc-etcd-"))
        self.authority = Authority(self.folder / "certificates") if tls or client_certificates else None
        self.client_certificate: Certificate | None = self.authority.issue("client") if self.authority else None
        scheme = "https" if self.authority else "http"
        hosts = OWN_NAMES if own_names else (LOOPBACK,) * members
        self.members = tuple(Member(f"m{number}", self.folder, scheme, host) for number, host in enumerate(hosts))
        elections = CALM_ELECTIONS if len(self.members) > 1 else ()
        self._cluster = ",".join(f"{member.name}={member.peer_url}" for member in self.members)
        for member in self.members:
            hosts = (member.host,) if own_names else names or LOOPBACK_NAMES
            security = self._security_flags(member.name, hosts, client_certificates=client_certificates)
            member.configure(self._cluster, [*security, *elections, *flags])

    @classmethod
    def start(
        cls,
        members: int = 1,
        flags: Sequence[str] = (),
        *,
        tls: bool = False,
        client_certificates: bool = False,
        own_names: bool = False,
        names: tuple[str, ...] = (),
    ) -> Self:
        """Start etcd and wait until every member serves; `client_certificates` demands them (mTLS).

        With `own_names` there are three members, each with a certificate for its own name alone. `names` are those in
        the certificate, instead of the ones of loopback.
        """
        server = cls(members, flags, tls=tls, client_certificates=client_certificates, own_names=own_names, names=names)
        try:
            server._start()
        except BaseException:
            server.close()
            raise
        return server

    def __repr__(self) -> str:
        return f"<EtcdServer {self.endpoints}>"

    def metric(self, name: str) -> float:
        """Read one of the first member's metrics, summed over its labels."""
        with urllib.request.urlopen(f"{self.members[0].metrics_url}/metrics") as answer:  # noqa: S310 (http)
            lines = answer.read().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.partition("{")[0].partition(" ")[0] == name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def endpoints(self) -> str:
        """Addresses of all members, host:port, separated by commas."""
        return ",".join(member.endpoint for member in self.members)

    def _security_flags(self, member: str, hosts: tuple[str, ...], *, client_certificates: bool) -> list[str]:
        if self.authority is None:
            return []
        server = self.authority.issue("server" if hosts == LOOPBACK_NAMES else member, hosts)
        flags = [f"--cert-file={server.cert}", f"--key-file={server.key}"]
        return [*flags, "--client-cert-auth", f"--trusted-ca-file={server.ca}"] if client_certificates else flags

    def _start(self) -> None:
        for member in self.members:
            member.process.start()
        for member in self.members:
            member.process.wait_ready(member.is_ready)

    def kill(self) -> None:
        """End every member with SIGKILL."""
        for member in self.members:
            member.kill()

    def restart(self, *, fresh: bool = False) -> None:
        """Start all members again on the same ports; `fresh` first throws away their data, so revisions begin again."""
        self.kill()
        if fresh:
            for member in self.members:
                shutil.rmtree(member.data, ignore_errors=True)
        self._start()

    def pause(self) -> None:
        """Freeze every member."""
        for member in self.members:
            member.pause()

    def resume(self) -> None:
        """Let every member go on."""
        for member in self.members:
            member.resume()

    def replace(self, member: Member) -> None:
        """Put a new member in the place and at the address of one that is lost: a learner, until it is promoted.

        It is for clusters without TLS, and of three members.
        """
        member.kill()
        shutil.rmtree(member.data)
        others = ",".join(each.client_url for each in self.members if each is not member)
        listed = json.loads(self._ask("member", "list", "--write-out=json", endpoints=others))["members"]
        old = next(each["ID"] for each in listed if each["name"] == member.name)
        self._ask("member", "remove", f"{old:x}", endpoints=others)
        # etcd takes no new member before it has received for a while that all others are well.
        added = ("member", "add", member.name, "--learner", f"--peer-urls={member.peer_url}")
        wait_until(lambda: self._ask(*added, endpoints=others, check=False), "the new member is taken")
        member.configure(self._cluster, ["--initial-cluster-state=existing"])
        member.process.start()
        wait_until(lambda: self._is_learner(member), "the learner answers")

    def promote(self, member: Member) -> None:
        """Make a learner a voter."""
        others = ",".join(each.client_url for each in self.members if each is not member)
        listed = json.loads(self._ask("member", "list", "--write-out=json", endpoints=others))["members"]
        number = next(each["ID"] for each in listed if each["name"] == member.name)
        promoted = ("member", "promote", f"{number:x}")
        wait_until(lambda: self._ask(*promoted, endpoints=others, check=False), "it is synced, and promoted")

    def _is_learner(self, member: Member) -> bool:
        found = self._ask("endpoint", "status", "--write-out=json", endpoints=member.client_url, check=False)
        return bool(found) and any(each["Status"].get("isLearner") for each in json.loads(found) or ())

    def save(self, folder: Path) -> None:
        """Stop, copy the data to a folder, and start again; together with load() this is a restored backup."""
        self.kill()
        for member in self.members:
            shutil.copytree(member.data, folder / member.name)
        self._start()

    def load(self, folder: Path) -> None:
        """Stop, put back the data that save() copied, and start: revisions go back, as after a restored backup."""
        self.kill()
        for member in self.members:
            shutil.rmtree(member.data)
            shutil.copytree(folder / member.name, member.data)
        self._start()

    def etcdctl(self, *arguments: str, user: str = "", check: bool = True) -> str:
        """Run etcdctl against this etcd and return its output; `user` is name:password."""
        return self._ask(*arguments, endpoints=self.urls, user=user, check=check)

    def _ask(self, *arguments: str, endpoints: str, user: str = "", check: bool = True) -> str:
        certificate = self.client_certificate
        security = (
            [f"--cacert={certificate.ca}", f"--cert={certificate.cert}", f"--key={certificate.key}"]
            if certificate
            else []
        )
        answer = subprocess.run(
            [
                binary("etcdctl"),
                f"--endpoints={endpoints}",
                *ETCDCTL_LIMITS,
                *security,
                *([f"--user={user}"] if user else []),
                *arguments,
            ],
            env={"PATH": os.environ.get("PATH", "")},
            capture_output=True,
            text=True,
            check=False,
        )
        if check and answer.returncode:
            raise RuntimeError(f"etcdctl {' '.join(arguments)} failed: {answer.stderr or answer.stdout}")
        return answer.stdout

    @property
    def urls(self) -> str:
        """Addresses of all members with their scheme, as etcdctl and kube-apiserver want them."""
        return ",".join(member.client_url for member in self.members)

    def clear(self) -> None:
        """Delete every key and so every record of an earlier test; leases of theirs run out by themselves."""
        self.etcdctl("del", "", "--from-key=true")

    def enable_auth(self, password: str) -> str:
        """Make the user root and switch authentication on; return "root:password"."""
        self.etcdctl("user", "add", f"root:{password}")
        self.etcdctl("user", "grant-role", "root", "root")
        self.etcdctl("auth", "enable")
        return f"root:{password}"

    def add_user(
        self, name: str, password: str, prefixes: Sequence[str], *, admin: str, access: str = "readwrite"
    ) -> None:
        """Make a user who may only use keys below the prefixes; `admin` is what enable_auth() returned."""
        self.etcdctl("user", "add", f"{name}:{password}", user=admin)
        self.etcdctl("role", "add", name, user=admin)
        for prefix in prefixes:
            self.etcdctl("role", "grant-permission", "--prefix=true", name, access, prefix, user=admin)
        self.etcdctl("user", "grant-role", name, name, user=admin)

    def close(self) -> None:
        """End every member and remove the data."""
        for member in self.members:
            member.process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

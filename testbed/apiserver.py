"""A real kube-apiserver on loopback, with an etcd of its own: RBAC on, one admin token, no controllers.

    with ApiServer.start() as api:
        api.kubectl("get", "nodes")
        api.client.create({...})             # fast, without a process
        api.kill(); api.restart()            # same port, same objects

Nothing runs Pods or deletes what belongs to a deleted object; testbed/kubelet.py plays the Node's part.
"""

import json
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from testbed.build import binary
from testbed.certificates import Authority, write_signing_key
from testbed.conditions import free_port, wait_until
from testbed.etcd import EtcdServer
from testbed.kubernetes_api import KubernetesApi, make_kubeconfig
from testbed.process import Process, whole_lines

# It takes some ten seconds of one core's time, of which a busy machine has little.
START_SECONDS = 200.0
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}


class ApiServer:
    """One kube-apiserver and its etcd; `kubeconfig`, `token` and `client` have an admin's rights."""

    def __init__(self, etcd: EtcdServer, flags: Sequence[str], *, audit: bool) -> None:
        self.etcd = etcd
        self.folder = Path(tempfile.mkdtemp(prefix="grpc-etcd-"))
        self.port = free_port()
        self.url = f"https://127.0.0.1:{self.port}"
        self.token = secrets.token_hex(16)
        self.authority = Authority(self.folder / "pki")
        self.audit_log = self.folder / "audit.log"
        self.client = KubernetesApi(self.url, self.token, str(self.authority.ca))
        self.kubeconfig = self._write_kubeconfig("admin", self.token)
        audit_flags = self._audit_flags() if audit else []
        log = self.folder / "kube-apiserver.log"
        self.process = Process("kube-apiserver", [binary("kube-apiserver"), *self._flags(), *audit_flags, *flags], log)

    @classmethod
    def start(cls, flags: Sequence[str] = (), *, audit: bool = False) -> Self:
        """Start etcd and the API server and wait until it serves; `audit` writes a line a request to `audit_log`."""
        etcd = EtcdServer.start()
        server = cls(etcd, flags, audit=audit)
        try:
            server.process.start()
            server.wait_ready()
        except BaseException:
            server.close()
            raise
        return server

    def __repr__(self) -> str:
        return f"<ApiServer {self.url}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _flags(self) -> list[str]:
        private, public = self.folder / "sa.key", self.folder / "sa.pub"
        write_signing_key(private, public)
        certificate = self.authority.issue("kube-apiserver")
        tokens = self.folder / "tokens.csv"
        tokens.write_text(f'{self.token},admin,1,"system:masters"\n')
        return [
            f"--etcd-servers={self.etcd.urls}",
            f"--cert-dir={self.folder / 'pki'}",
            f"--tls-cert-file={certificate.cert}",
            f"--tls-private-key-file={certificate.key}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={self.port}",
            # The reconciler of the kubernetes Service refuses loopback addresses and would end the server.
            "--endpoint-reconciler-type=none",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={public}",
            f"--service-account-signing-key-file={private}",
            f"--token-auth-file={tokens}",
            "--authorization-mode=RBAC",
            "--disable-admission-plugins=ServiceAccount",  # no controller makes the default account
            "--allow-privileged=true",
        ]

    def _audit_flags(self) -> list[str]:
        policy = self.folder / "audit-policy.json"
        policy.write_text(json.dumps(AUDIT_POLICY))
        return [f"--audit-policy-file={policy}", f"--audit-log-path={self.audit_log}"]

    def _write_kubeconfig(self, name: str, token: str, namespace: str = "default") -> Path:
        path = self.folder / f"{name}.kubeconfig"
        path.write_text(json.dumps(make_kubeconfig(self.url, str(self.authority.ca), token, namespace), indent=2))
        path.chmod(0o600)
        return path

    def wait_ready(self) -> None:
        """Wait until it serves and has made its own namespaces."""
        self.process.wait_ready(self.client.is_ready, START_SECONDS)
        wait_until(lambda: self.client.find("v1", "Namespace", "kube-system"), "the namespace kube-system")
        wait_until(lambda: self.client.find("v1", "Namespace", "default"), "the namespace default")

    def kill(self) -> None:
        """End the API server with SIGKILL; its etcd goes on."""
        self.process.kill()

    def restart(self) -> None:
        """Start it again on the same port, with the same objects, and wait until it serves."""
        self.process.kill()
        self.process.start()
        self.wait_ready()

    def pause(self) -> None:
        """Freeze it: connections stay open, nothing is answered."""
        self.process.pause()

    def resume(self) -> None:
        """Let it go on after pause()."""
        self.process.resume()

    def kubectl(self, *arguments: str, check: bool = True, stdin: str = "") -> str:
        """Run kubectl as admin and return its output."""
        answer = subprocess.run(
            [binary("kubectl"), f"--kubeconfig={self.kubeconfig}", *arguments],
            input=stdin,
            env={"PATH": os.environ.get("PATH", ""), "HOME": str(self.folder)},
            capture_output=True,
            text=True,
            check=False,
        )
        if check and answer.returncode:
            raise RuntimeError(f"kubectl {' '.join(arguments)} failed: {answer.stderr or answer.stdout}")
        return answer.stdout

    def service_account_token(self, namespace: str, name: str) -> str:
        """Ask for a token of a ServiceAccount that exists, as a kubelet does for a Pod."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        answer = self.client.call("POST", path, {"spec": {"expirationSeconds": 3600}})
        return str(answer["status"]["token"])

    def service_account_kubeconfig(self, namespace: str, name: str) -> Path:
        """Write a kubeconfig with the rights of a ServiceAccount."""
        token = self.service_account_token(namespace, name)
        return self._write_kubeconfig(f"{namespace}-{name}", token, namespace)

    def audit_events(self) -> list[dict[str, Any]]:
        """Every request so far, as the audit log has it."""
        return [json.loads(line) for line in whole_lines(self.audit_log)]

    def close(self) -> None:
        """End the API server and its etcd and remove their data."""
        self.client.close()
        self.process.kill()
        self.etcd.close()
        shutil.rmtree(self.folder, ignore_errors=True)

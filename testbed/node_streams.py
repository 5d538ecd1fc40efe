"""A Node whose kubelet serves `kubectl port-forward` and `exec` for the Pods on it, with the code of real runtimes.

Ports are those of this machine's loopback, and commands run on this machine; see testbed/go/node-streams.
"""

import socket
from types import TracebackType
from typing import Self

from testbed.apiserver import ApiServer
from testbed.build import binary
from testbed.conditions import free_port
from testbed.kubelet import Kubelet
from testbed.kubernetes_api import STRATEGIC
from testbed.process import Process


class NodeStreams:
    """One such Node; the Pods that a test binds to `node` can be forwarded to and entered."""

    def __init__(self, api: ApiServer, kubelet: Kubelet, node: str) -> None:
        self.node = node
        self._port = free_port()
        certificate = api.authority.issue(node)
        flags = [f"-listen=127.0.0.1:{self._port}", f"-cert={certificate.cert}", f"-key={certificate.key}"]
        self.process = Process("node-streams", [binary("node-streams"), *flags], api.folder / f"{node}.log")
        kubelet.create_node(node)
        status = {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self._port}},
        }
        item = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}}
        api.client.patch(item, {"status": status}, "status", STRATEGIC)

    def __enter__(self) -> Self:
        self.process.start()
        self.process.wait_ready(self._is_listening)
        return self

    def _is_listening(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self._port)).close()
        except ConnectionRefusedError:
            return False
        return True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()

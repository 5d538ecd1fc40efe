"""Kubernetes' own controllers, of which the benchmark runs the one for EndpointSlices as its yardstick."""

from collections.abc import Sequence
from typing import Self

from testbed.apiserver import ApiServer
from testbed.build import binary
from testbed.conditions import free_port
from testbed.process import Process

ENDPOINT_SLICES = ("endpointslice-controller",)


class ControllerManager:
    """One kube-controller-manager that runs only the named controllers, against one API server.

    The EndpointSlice controller skips Pods whose Node is missing and refuses loopback addresses: give such Pods a Node
    and an address of 10.244.0.0/16, to which nothing is ever sent.
    """

    def __init__(self, api: ApiServer, controllers: Sequence[str]) -> None:
        command = [
            str(binary("kube-controller-manager")),
            f"--kubeconfig={api.kubeconfig}",
            f"--controllers={','.join(controllers)}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            f"--secure-port={free_port()}",
            f"--cert-dir={api.folder / 'controller-manager'}",
        ]
        self.process = Process("kube-controller-manager", command, api.folder / "kube-controller-manager.log")

    @classmethod
    def start(cls, api: ApiServer, controllers: Sequence[str] = ENDPOINT_SLICES) -> Self:
        """Start it; it is at work once its log says so."""
        manager = cls(api, controllers)
        manager.process.start()
        manager.process.wait_ready(lambda: "Caches are synced" in manager.process.log_tail())
        return manager

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it."""
        self.process.stop()

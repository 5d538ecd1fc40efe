"""Who is measured: our operator with either source of Pods, the EndpointSlice controller, and a Go writer.

The Go program only writes the same keys. Each makes its services, starts its process, waits until it is synced, and
takes all away again. `services` is 50 or 1: the same Pods, spread over 50 services or all in one.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

from bench.measuring import Visibility, ready_in_provider, ready_in_slice
from bench.rig import NAMESPACE, PORT, SERVICES, Rig
from grpc_etcd_operator.settings import DIRECT, KOPF
from testbed.build import binary
from testbed.conditions import free_port, wait_until
from testbed.etcd import EtcdServer
from testbed.kubernetes_api import Object
from testbed.process import Process
from testbed.replica import Replica

CLUSTER = "bench"
SLICES = b"/registry/endpointslices/"
SYNCED = '"event": "synced_key_put"'


@dataclass
class Running:
    """A contestant at work: its process, what it makes visible, and its registry if it writes to one of its own."""

    process: Process
    visibility: Visibility
    etcd: str


@dataclass(frozen=True)
class Contestant:
    """One kind of contestant; `open` is a context in which it has a place to write to and may start."""

    name: str
    open: Callable[[Rig, int], AbstractContextManager[Running]]


def selectors(services: int) -> dict[str, dict[str, str]]:
    """The services and the labels of their Pods."""
    if services == 1:
        return {"everything": {"fleet": "everything"}}
    return {f"app-{number:02d}": {"app": f"app-{number:02d}"} for number in range(SERVICES)}


@contextmanager
def installed(rig: Rig, items: list[Object]) -> Iterator[None]:
    """Have some objects for a while."""
    for item in items:
        rig.api.client.apply(item)
    yield
    for item in items:
        rig.api.client.delete(item)


@contextmanager
def open_operator(rig: Rig, services: int, pod_watch: str = KOPF) -> Iterator[Running]:
    """Our operator as `grpc-etcd-operator run`; Pods come from one of its two sources."""
    items: list[Object] = [
        {
            "apiVersion": "grpc-etcd.dev/v1alpha1",
            "kind": "GrpcService",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {"selector": {"matchLabels": labels}},
        }
        for name, labels in selectors(services).items()
    ]
    with ExitStack() as stack:
        stack.enter_context(installed(rig, items))
        etcd = stack.enter_context(EtcdServer.start())
        visibility = stack.enter_context(Visibility(etcd.endpoints, b"/jupiter/", ready_in_provider))
        replica = make_replica(rig, etcd.endpoints, f"--pod-watch={pod_watch}")
        stack.callback(replica.process.stop)
        yield Running(replica.process, visibility, etcd.endpoints)


def make_replica(rig: Rig, etcd: str, *flags: str) -> Replica:
    """One replica of the operator, not started yet; out of the image where that can be built."""
    arguments = (rig.api.folder, rig.api.kubeconfig, etcd, (f"--cluster-id={CLUSTER}", *flags))
    if rig.image_root is None:
        return Replica(*arguments)
    return Replica(*arguments, program=("chroot", rig.image_root, "/opt/grpc-etcd/bin/grpc-etcd-operator"))


@contextmanager
def open_go(rig: Rig, services: int) -> Iterator[Running]:
    """The Go program of bench/go-writer."""
    label = "fleet" if services == 1 else "app"
    with ExitStack() as stack:
        etcd = stack.enter_context(EtcdServer.start())
        visibility = stack.enter_context(Visibility(etcd.endpoints, b"/jupiter/", ready_in_provider))
        command = [
            str(binary("go-writer")),
            f"--kubeconfig={rig.api.kubeconfig}",
            f"--endpoints={etcd.endpoints}",
            f"--name-label={label}",
            f"--port={PORT}",
        ]
        process = Process("go-writer", command, etcd.folder / "go-writer.log")
        stack.callback(process.stop)
        yield Running(process, visibility, etcd.endpoints)


@contextmanager
def open_slices(rig: Rig, services: int) -> Iterator[Running]:
    """kube-controller-manager with only the EndpointSlice controller."""
    items: list[Object] = [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {"selector": labels, "ports": [{"port": PORT}]},
        }
        for name, labels in selectors(services).items()
    ]
    with ExitStack() as stack:
        stack.callback(rig.stored.delete_prefix, SLICES)
        stack.enter_context(installed(rig, items))
        visibility = stack.enter_context(Visibility(rig.api.etcd.endpoints, SLICES, ready_in_slice))
        command = [
            str(binary("kube-controller-manager")),
            f"--kubeconfig={rig.api.kubeconfig}",
            "--controllers=endpointslice-controller",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            f"--secure-port={free_port()}",
            f"--cert-dir={rig.api.folder / 'controller-manager'}",
            # The default of 20 requests a second would only show its own limit.
            "--kube-api-qps=1000",
            "--kube-api-burst=1000",
        ]
        process = Process("kube-controller-manager", command, rig.api.folder / "kube-controller-manager.log")
        stack.callback(process.stop)
        yield Running(process, visibility, "")


def wait_settled(running: Running, count: int) -> None:
    """Wait until all ready Pods are visible, and a replica has put its mark."""
    wait_until(lambda: len(running.visibility.visible) == count, f"{count} addresses visible", 120)
    if running.process.name == "operator":
        wait_until(lambda: SYNCED in running.process.log.read_text(), "the synced key")


OPERATOR = Contestant("operator", open_operator)
OPERATOR_DIRECT = Contestant("operator, direct", partial(open_operator, pod_watch=DIRECT))
GO = Contestant("go", open_go)
ENDPOINT_SLICE_CONTROLLER = Contestant("slices", open_slices)
OPERATORS = (OPERATOR, OPERATOR_DIRECT)
YARDSTICKS = (GO, ENDPOINT_SLICE_CONTROLLER)
ALL = (*OPERATORS, *YARDSTICKS)

"""A rolling restart of every backend under load, through the real operator: what a caller notices of it.

Real parts: API server, etcd, the operator and each backend as processes of their own; the kubelet is played, with the
surge of one and the preStop pause that a Deployment has. The callers use no retry, no wait_for_ready and no pause.
"""

import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Self

import grpc

import grpc_etcd
from grpc_etcd.etcd import Etcd
from testbed.apiserver import ApiServer
from testbed.conditions import wait_until
from testbed.etcd import EtcdServer
from testbed.greeter import say_hello
from testbed.kubelet import Kubelet, Pod
from testbed.manifests import apply_crd
from testbed.replica import RegistryView, Replica

SERVICE = "greeter"
BACKENDS = 4
THREADS = 8
LEAST_CALLS = 50_000


class Callers:
    """Threads that call one after the other, without a break, and keep what failed."""

    def __init__(self, channel: grpc.Channel, threads: int) -> None:
        self.failures: list[str] = []
        self._channel = channel
        self._answers: list[Counter[str]] = [Counter() for _ in range(threads)]
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(each,)) for each in self._answers]

    def _call(self, answers: Counter[str]) -> None:
        hello = say_hello(self._channel)
        while not self._stopping.is_set():
            try:
                answers[hello("x", timeout=10)] += 1
            except grpc.RpcError as error:
                self.failures.append(str(error))

    @property
    def calls(self) -> int:
        """How many have been made, answered or not."""
        return sum(sum(each.values()) for each in self._answers) + len(self.failures)

    def have_reached(self, address: str) -> bool:
        """Tell whether an address has answered any."""
        return any(each[address] for each in self._answers)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()


@dataclass(slots=True)
class Deployment:
    """Backends that are replaced one after the other, oldest first."""

    kubelet: Kubelet
    registry: RegistryView
    pods: list[Pod] = field(default_factory=list)
    replaced: int = 0

    def add(self) -> Pod:
        """Start one more, and wait until callers can know of it."""
        pod = self.kubelet.create_pod(isolated=True, pre_stop_seconds=1)
        self.pods.append(pod)
        wait_until(lambda: pod.address in self.registry.addresses(SERVICE), "the key of a new Pod")
        return pod

    def replace_oldest(self, callers: Callers) -> None:
        """Start one more, wait until it is called, and delete the oldest."""
        added = self.add()
        wait_until(lambda: callers.have_reached(added.address), "calls to a new Pod")
        self.kubelet.terminate(self.pods.pop(0))
        self.replaced += 1


@contextmanager
def deployment() -> Iterator[tuple[Deployment, str]]:
    """Bring up a cluster with an operator and its backends; give etcd's endpoints too."""
    with ExitStack() as closing:
        api, etcd = closing.enter_context(ApiServer.start()), closing.enter_context(EtcdServer.start())
        apply_crd(api.client)
        spec = {"selector": {"matchLabels": {"app": SERVICE}}}
        metadata = {"name": SERVICE, "namespace": "default"}
        api.client.apply(
            {"apiVersion": "grpc-etcd.dev/v1alpha1", "kind": "GrpcService", "metadata": metadata, "spec": spec}
        )
        operator = Replica(api.folder, api.kubeconfig, etcd.endpoints, ())
        closing.callback(operator.process.stop)
        operator.start().wait_leading()
        kubelet = closing.enter_context(Kubelet(api))
        view = RegistryView(closing.enter_context(Etcd(etcd.endpoints)))
        made = Deployment(kubelet, view)
        for _ in range(BACKENDS):
            made.add()
        yield made, etcd.endpoints


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the callers noticed."""

    calls: int
    failures: tuple[str, ...]
    replaced: int


def rolling_restart(least_calls: int = LEAST_CALLS) -> Outcome:
    """Replace every backend at least once, and go on until so many calls have been made."""
    with (
        deployment() as (backends, endpoints),
        grpc_etcd.Registry(endpoints) as registry,
        registry.insecure_channel(SERVICE) as channel,
    ):
        registry.wait_for_endpoints(SERVICE, 60, at_least=BACKENDS)
        say_hello(channel)("x", timeout=30, wait_for_ready=True)
        with Callers(channel, THREADS) as callers:
            while backends.replaced < BACKENDS or callers.calls < least_calls:
                backends.replace_oldest(callers)
        return Outcome(callers.calls, tuple(callers.failures), backends.replaced)


if __name__ == "__main__":
    outcome = rolling_restart()
    print(f"{len(outcome.failures)} of {outcome.calls} calls failed, {outcome.replaced} backends replaced")
    print("\n".join(outcome.failures[:10]))
    sys.exit(bool(outcome.failures))

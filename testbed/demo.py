"""The main job on screen: `make demo`. A client calls `greeter` by name while its Pods, and the operator, come and go.

Real parts: etcd, the Kubernetes API server, the operator as a process, gRPC servers behind the Pods' addresses, the
client library. Each step waits until the change is in etcd and until the client has followed. Exit code 1 when a step
did not happen or a call failed, 130 after Ctrl-C. `--keep` stays up; `--cluster` uses the API server of KUBECONFIG, not
its own.
"""

import argparse
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from testbed.apiserver import ApiServer
from testbed.build import ROOT, BuildError, binary
from testbed.demo_screen import PodLine, Screen, StepResult, format_milliseconds, result_table
from testbed.demo_traffic import Caller, KeyWatcher
from testbed.etcd import EtcdServer
from testbed.kubelet import Kubelet, Pod
from testbed.kubernetes_api import KubernetesApi, Object
from testbed.manifests import apply_crd, apply_manifest
from testbed.process import Process, ProcessFailedError

SERVICE = "greeter"
NAMESPACE = "grpc-etcd-demo"
STEP_SECONDS = 60.0
INTERRUPTED = 130  # what shells give for a program that Ctrl-C ended
# Long enough to see that nothing happens to calls while the operator is dead.
WITHOUT_OPERATOR_SECONDS = 3.0


class StepFailedError(Exception):
    """A step did not happen in time."""


@dataclass(frozen=True, slots=True)
class GivenCluster:
    """The API server of KUBECONFIG, reached through `kubectl proxy`, which knows every way to log in."""

    client: KubernetesApi
    kubeconfig: Path
    folder: Path


@contextmanager
def own_cluster() -> Iterator[ApiServer | GivenCluster]:
    """Start an API server."""
    with ApiServer.start() as cluster:
        yield cluster


@contextmanager
def given_cluster(namespace: str) -> Iterator[ApiServer | GivenCluster]:
    """Open the cluster that KUBECONFIG names; `kubectl proxy` prints the port that it got."""
    kubeconfig = os.environ.get("KUBECONFIG")
    if not kubeconfig or not Path(kubeconfig).exists():
        sys.exit("CLUSTER=1 uses the cluster of KUBECONFIG: set it to a kubeconfig file that exists")
    folder = Path(tempfile.mkdtemp(prefix="grpc-etcd-"))
    kubectl = shutil.which("kubectl") or binary("kubectl")
    command = [kubectl, f"--kubeconfig={kubeconfig}", "proxy", "--port=0"]
    try:
        with Process("kubectl proxy", command, folder / "proxy.log").start() as proxy:
            proxy.wait_ready(lambda: "Starting to serve on" in proxy.log_tail())
            client = KubernetesApi("http://" + proxy.log_tail().split()[-1])
            try:
                yield GivenCluster(client, Path(kubeconfig), folder)
            finally:
                clean_up(client, namespace)
                client.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def clean_up(client: KubernetesApi, namespace: str) -> None:
    """Remove what the demo made; the CRD stays, since others may use it by now."""
    for pod in client.list("v1", "Pod", namespace)["items"]:
        client.delete({"apiVersion": "v1", "kind": "Pod", **pod}, grace_seconds=0)
    service = {"name": SERVICE, "namespace": namespace}
    client.delete({"apiVersion": "grpc-etcd.dev/v1alpha1", "kind": "GrpcService", "metadata": service})
    client.delete({"apiVersion": "v1", "kind": "Node", "metadata": {"name": namespace}})
    client.delete({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})


def operator_process(kubeconfig: Path, endpoints: str, folder: Path) -> Process:
    """The operator with a kubeconfig, etcd's address, and an identity that stays, as the chart gives its Pod's UID."""
    flags = [f"--etcd-endpoints={endpoints}", "--metrics-port=0", "--identity=demo"]
    command = [sys.executable, "-m", "grpc_etcd_operator", "run", *flags]
    return Process("operator", command, folder / "operator.log", {"KUBECONFIG": str(kubeconfig)})


class Demo:
    """The parts and the steps; each step returns what it measured."""

    def __init__(self, cluster: ApiServer | GivenCluster, etcd: EtcdServer, stack: ExitStack, namespace: str) -> None:
        self.cluster = cluster
        self.namespace = namespace  # also the name of the Node that its Pods are on
        self.etcd = etcd
        self.pods: list[Pod] = []
        self.screen = Screen(self._title, self._pod_lines)
        self.results: list[StepResult] = []
        self._prepare_cluster()
        self.kubelet = stack.enter_context(Kubelet(cluster, heartbeat=True))
        self.kubelet.create_node(self.namespace, zone="zone-a", region="region-1")
        self.operator = stack.enter_context(operator_process(cluster.kubeconfig, etcd.endpoints, cluster.folder))
        self.keys = stack.enter_context(KeyWatcher(etcd.endpoints, SERVICE))
        self.caller: Caller | None = None
        self._stack = stack

    def _prepare_cluster(self) -> None:
        client = self.cluster.client
        apply_crd(client)
        client.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}})
        # A Pod needs its namespace's default account, which a cluster's controllers make a moment later.
        account: Object = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
        account["metadata"]["namespace"] = self.namespace
        client.apply(account)

    def _title(self) -> str:
        made, failed = (len(self.caller.answers), len(self.caller.failures)) if self.caller else (0, 0)
        state = "running" if self.operator.is_running else "dead"
        return f"operator {state} · calls made {made} · calls failed {failed}"

    def _pod_lines(self) -> list[PodLine]:
        return [self._pod_line(pod) for pod in self.pods]

    def _pod_line(self, pod: Pod) -> PodLine:
        """Count the calls of the last second, for a Pod that has lost its key those since then."""
        is_registered, since = pod.address in self.keys.addresses, time.monotonic() - 1
        if not is_registered:
            since = max(since, self.keys.deleted_since(pod.address, since) or since)
        calls = self.caller.calls_each(since).get(pod.address, 0) if self.caller else 0
        return PodLine(pod.name, pod.address, pod.containers_ready, is_registered, calls)

    def new_pod(self, name: str) -> Pod:
        """Make one more greeter; its container drains for a second when it is deleted, as real ones should."""
        pod = self.kubelet.create_pod(
            name, self.namespace, labels={"app": SERVICE}, node=self.namespace, pre_stop_seconds=1
        )
        self.pods.append(pod)
        return pod

    def begin(self) -> None:
        """Bring up operator, Pods, GrpcService and client, and wait until all three endpoints get calls."""
        began = time.monotonic()
        self.operator.start()
        self.screen.say("the operator starts")
        for number in range(1, 4):
            pod = self.new_pod(f"greeter-{number}")
            self.screen.say(f"Pod {pod.name} is ready at {pod.address}")
        apply_manifest(self.cluster.client, ROOT / "examples/greeter/grpcservice.yaml", self.namespace)
        self.screen.say("kubectl apply -f examples/greeter/grpcservice.yaml")
        self._await(lambda: len(self.keys.addresses) == len(self.pods), "every Pod has its key")
        key_seconds = time.monotonic() - began
        self.screen.say("every Pod has its key; a client begins to call greeter by name")
        caller = self.caller = self._stack.enter_context(Caller(self.etcd.endpoints, SERVICE))
        arrived = self._await(lambda: self._all_arrived(caller, began), "every Pod gets calls")
        self._note("operator, 3 Pods, GrpcService and client start", key_seconds, arrived - began)

    def _all_arrived(self, caller: Caller, since: float) -> float | None:
        times = [caller.arrived(pod.address, since) for pod in self.pods]
        return None if None in times else max(when for when in times if when)

    def pod_unready(self) -> None:
        """One Pod's readiness probe fails."""
        pod, began = self.pods[1], time.monotonic()
        self.screen.say(f"Pod {pod.name} becomes unready")
        self.kubelet.unready(pod)
        self._gone(f"{pod.name} becomes unready", pod, began)

    def pod_ready_again(self) -> None:
        """It recovers."""
        pod, began = self.pods[1], time.monotonic()
        self.screen.say(f"Pod {pod.name} becomes ready again")
        self.kubelet.ready(pod)
        self._there(f"{pod.name} becomes ready again", pod, began)

    def pod_deleted(self) -> None:
        """One Pod is deleted and drains."""
        pod, began = self.pods[0], time.monotonic()
        self.screen.say(f"kubectl delete pod {pod.name}")
        self.kubelet.terminate(pod)
        self._gone(f"{pod.name} is deleted", pod, began)
        self.pods.remove(pod)

    def pod_appears(self) -> None:
        """A new Pod takes its place."""
        began = time.monotonic()
        pod = self.new_pod("greeter-4")
        self.screen.say(f"Pod {pod.name} appears at {pod.address}")
        self._there(f"{pod.name} appears", pod, began)

    def operator_killed(self) -> None:
        """The operator is killed; keys and calls must not notice."""
        before = self.keys.addresses
        self.screen.say("kill -9 of the operator: keys and calls must not notice")
        self.operator.kill()
        time.sleep(WITHOUT_OPERATOR_SECONDS)
        if self.keys.addresses != before:
            raise StepFailedError("keys changed while the operator was dead")
        self._note("the operator is killed: nothing changes", None, None)

    def operator_restarted(self) -> None:
        """It starts again and finds what happened while it was dead."""
        pod = self.pods[0]
        self.kubelet.unready(pod)
        self.screen.say(f"Pod {pod.name} becomes unready while nobody watches")
        began = time.monotonic()
        self.operator.start()
        self.screen.say(
            "the operator starts again and takes over from the killed one, whose lease as leader still runs"
        )
        self._gone(f"the operator restarts, finds {pod.name} unready", pod, began)

    def _gone(self, title: str, pod: Pod, began: float) -> None:
        deleted = self._await(lambda: self.keys.deleted_since(pod.address, began), f"the key of {pod.name} is gone")
        assert self.caller  # noqa: S101 (begin() made it)
        caller = self.caller
        left = self._await(lambda: caller.left(pod.address, began), f"the client leaves {pod.name}")
        # Calls go round, so the last one that it got may lie before the change.
        self._note(title, deleted - began, max(left, deleted) - began)

    def _there(self, title: str, pod: Pod, began: float) -> None:
        put = self._await(lambda: self.keys.put_since(pod.address, began), f"{pod.name} has its key")
        assert self.caller  # noqa: S101 (begin() made it)
        caller = self.caller
        arrived = self._await(lambda: caller.arrived(pod.address, began), f"the client calls {pod.name}")
        self._note(title, put - began, arrived - began)

    def _await(self, condition: Callable[[], float | None], what: str) -> float:
        deadline = time.monotonic() + STEP_SECONDS
        while not (value := condition()):
            if not self.operator.is_running:
                raise StepFailedError("the operator has ended")
            if time.monotonic() > deadline:
                raise StepFailedError(f"{what}: not within {STEP_SECONDS:g} s")
            time.sleep(0.005)
        return value

    def _note(self, title: str, key_seconds: float | None, client_seconds: float | None) -> None:
        self.results.append(StepResult(title, key_seconds, client_seconds))
        took = f"key {format_milliseconds(key_seconds)}, client {format_milliseconds(client_seconds)}"
        self.screen.say(f"  -> {took}" if key_seconds is not None else "  -> nothing has changed")

    def run(self) -> None:
        """Take every step in turn; the first that does not happen ends it."""
        steps = (
            self.begin,
            self.pod_unready,
            self.pod_ready_again,
            self.pod_deleted,
            self.pod_appears,
            self.operator_killed,
            self.operator_restarted,
        )
        with self.screen.live():
            for step in steps:
                try:
                    step()
                    self.screen.pause()
                except (StepFailedError, ProcessFailedError, TimeoutError) as error:
                    self.results.append(StepResult((step.__doc__ or "").rstrip("."), None, None, str(error)))
                    break
            if self.caller:
                self.caller.stop()

    @property
    def failed(self) -> bool:
        """Whether a step did not happen or a call failed."""
        return any(result.fault for result in self.results) or not self.caller or bool(self.caller.failures)

    def report(self) -> None:
        """Print the summary: times, calls, and what to try next."""
        console = self.screen.console
        self.screen.show_pods()
        console.print(result_table(self.results))
        answers, failures = (self.caller.answers, self.caller.failures) if self.caller else ([], [])
        console.print(f"calls made: {len(answers)}   calls failed: {len(failures)}")
        for failure in failures[:5]:
            console.print(failure.error, style="red", soft_wrap=True, markup=False)
        if self.failed:
            for fault in self._conditions():
                console.print(fault, style="red", soft_wrap=True, markup=False)
            console.print("the operator's last words:", style="red")
            console.print(self.operator.log_tail(), soft_wrap=True, markup=False)

    def _conditions(self) -> list[str]:
        """What the GrpcService's status says is wrong."""
        service = self.cluster.client.find("grpc-etcd.dev/v1alpha1", "GrpcService", SERVICE, self.namespace) or {}
        states = service.get("status", {}).get("conditions", [])
        return [f"{s['type']}={s['status']} {s['reason']}: {s['message']}" for s in states if s["status"] != "True"]

    def stay(self) -> None:
        """Keep everything up until Ctrl-C, and say how to look around."""
        self.screen.console.print(
            try_next(self.cluster.kubeconfig, self.etcd, self.namespace), soft_wrap=True, markup=False
        )
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            self.screen.console.print("ending")


def try_next(kubeconfig: Path, etcd: EtcdServer, namespace: str) -> str:
    """Commands to look around with, ready to paste."""
    bin_folder = Path(sys.executable).parent
    return f"""
Everything stays up; Ctrl-C ends it. In another terminal, in this folder:
  export KUBECONFIG={kubeconfig} GRPC_ETCD_ENDPOINTS={etcd.endpoints}
  {binary("kubectl")} --namespace {namespace} get grpcservices,pods
  {binary("kubectl")} --namespace {namespace} delete pod greeter-3
  {binary("etcdctl")} --endpoints={etcd.endpoints} get --prefix /jupiter/
  {bin_folder / "grpc-etcd"} watch {SERVICE}
  {bin_folder / "python"} -c 'import grpc_etcd, testbed.greeter as g; r = grpc_etcd.Registry.from_environ(); \\
    print([g.say_hello(c)("me", timeout=10) for c in [r.insecure_channel("{SERVICE}")] for _ in range(6)]); r.close()'
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m testbed.demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="stay up at the end, and say how to look around")
    parser.add_argument("--cluster", action="store_true", help="use the API server of KUBECONFIG")
    parser.add_argument("--picture", type=Path, help="write what the terminal shows at the end to this SVG file")
    chosen = parser.parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell in the background has set it to be ignored
        signal.signal(number, signal.default_int_handler)
    try:
        # One of its own for each run on a given cluster: the last run's may still be on its way out.
        namespace = f"{NAMESPACE}-{secrets.token_hex(2)}" if chosen.cluster else NAMESPACE
        with ExitStack() as stack:
            etcd = stack.enter_context(EtcdServer.start())
            cluster = stack.enter_context(given_cluster(namespace) if chosen.cluster else own_cluster())
            demo = Demo(cluster, etcd, stack, namespace)
            demo.run()
            demo.report()
            if chosen.picture and not demo.failed:
                chosen.picture.write_text(demo.screen.picture())
            if chosen.keep:
                demo.stay()
            elif not demo.failed:
                demo.screen.console.print(
                    "Next: `make demo KEEP=1` stays up for you to look around; README.md has more."
                )
            return int(demo.failed)
    except (BuildError, ProcessFailedError, subprocess.SubprocessError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        print("interrupted; everything that the demo started has ended", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())

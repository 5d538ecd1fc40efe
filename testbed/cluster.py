"""The whole product on a real cluster, with real kubelets, probes and network: `make test-cluster`.

It takes the cluster of KUBECONFIG and `kubectl` and `helm` from PATH (or builds them), installs chart and image, and
rolls, scales, crashes and evicts everything while two clients call by name. No call may fail. It makes two namespaces
and two releases and removes them at the end. IMAGE names an operator image that the cluster can pull or already has,
ETCD_IMAGE (name:tag) the one of the bundled etcd; KEEP=1 leaves everything in place.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from testbed.build import ROOT, binary
from testbed.conditions import wait_until

NAMESPACE = "grpc-etcd-test"
OTHER = "grpc-etcd-other"
CHART = ROOT / "charts/grpc-etcd-operator"
FOLDER = ROOT / "testbed/incluster"
REPLICAS = 3
STEP_SECONDS = 180
GATE = "grpc-etcd.dev/registered"
COUNT_KEYS = """
import json, os
from grpc_etcd.etcd import Etcd
with Etcd(os.environ["GRPC_ETCD_ENDPOINTS"]) as etcd:
    print(json.dumps([record.key.decode() for record in etcd.get_prefix(b"/", keys_only=True).records]))
"""


class ClusterTestError(Exception):
    """A step did not end as it should."""


def run(program: str, *arguments: str | Path, stdin: str = "", check: bool = True) -> str:
    """Run kubectl or helm and return its output; raise with its words when it fails."""
    command = [shutil.which(program) or binary(program), *arguments]
    answer = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if check and answer.returncode:
        raise ClusterTestError(f"{program} {' '.join(map(str, arguments))}: {answer.stderr or answer.stdout}")
    return answer.stdout


def kubectl(*arguments: str, stdin: str = "", namespace: str = NAMESPACE, check: bool = True) -> str:
    """Run kubectl in the test's namespace."""
    return run("kubectl", f"--namespace={namespace}", *arguments, stdin=stdin, check=check)


def objects(kind: str, selector: str = "") -> list[Any]:
    """List objects of the test's namespace."""
    chosen = [f"--selector={selector}"] if selector else []
    found: list[Any] = json.loads(kubectl("get", kind, *chosen, "-o", "json"))["items"]
    return found


def image_parts(image: str) -> tuple[str, str]:
    """Split name:tag."""
    name, _, tag = image.rpartition(":")
    return name, tag


class Clients:
    """The clients' logs: how many calls they made and which failed."""

    def __init__(self) -> None:
        self._forgiven = 0

    def lines(self, app: str) -> list[dict[str, Any]]:
        """Every line that a client has logged."""
        log = kubectl("logs", f"deployment/{app}", "--tail=-1")
        return [json.loads(line) for line in log.splitlines() if line.startswith("{")]

    def failures(self, app: str) -> list[str]:
        """What went wrong in each failed call."""
        return [line["failed_call"] for line in self.lines(app) if "failed_call" in line]

    def forgive(self) -> None:
        """Do not count what the client that never waits has failed so far: there was nobody to call."""
        self._forgiven = len(self.failures("client"))

    def check(self) -> None:
        """Raise when a call has failed."""
        failed = self.failures("client")[self._forgiven :] + self.failures("waiting-client")
        if failed:
            raise ClusterTestError(f"{len(failed)} calls failed; the first: {failed[0]}")

    def made(self) -> int:
        """How many calls they have made."""
        return sum(
            max((line.get("made", 0) for line in self.lines(app)), default=0) for app in ("client", "waiting-client")
        )

    def wait_answered_by(self, pods: Sequence[str]) -> None:
        """Wait until the last second's answers came from exactly these Pods."""

        def answered() -> bool:
            return all(
                [line for line in self.lines(app) if "answered" in line][-1:]
                and [line for line in self.lines(app) if "answered" in line][-1]["answered"] == sorted(pods)
                for app in ("client", "waiting-client")
            )

        wait_until(answered, f"both clients are answered by {sorted(pods)}", STEP_SECONDS)


def server_pods() -> list[str]:
    """The servers' Pods that are not terminating."""
    return sorted(
        pod["metadata"]["name"] for pod in objects("pods", "app=greeter") if "deletionTimestamp" not in pod["metadata"]
    )


def wait_registered(count: int) -> None:
    """Wait until the GrpcService says that so many endpoints are registered."""

    def registered() -> bool:
        status = json.loads(kubectl("get", "grpcservice", "greeter", "-o", "json")).get("status", {})
        return bool(status.get("endpoints", {}).get("registered", -1) == count)

    wait_until(registered, f"{count} endpoints are registered", STEP_SECONDS)


def registry_keys() -> list[str]:
    """Every key in the bundled etcd, read from inside the cluster."""
    keys: list[str] = json.loads(kubectl("exec", "deployment/client", "--", "python", "-c", COUNT_KEYS))
    return keys


def is_others(key: str) -> bool:
    """Whether a key belongs to the second release: its prefix, or its cluster id, is `other`."""
    return key.startswith("/other/") or key.split("/")[3:4] == ["other"]


def provider_keys(prefix: str) -> list[str]:
    """The keys of endpoints below a prefix."""
    return [key for key in registry_keys() if key.startswith(prefix) and "/providers/" in key]


def manifest(name: str) -> str:
    """A manifest of the test with the image in its place."""
    return (FOLDER / name).read_text().replace("IMAGE", operator_image())


def apply_servers(namespace: str, name: str) -> None:
    """Run servers in a namespace, registered under a name."""
    files = {path.name: path.read_text() for path in FOLDER.glob("*.py")}
    code = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "code"}, "data": files}
    kubectl("apply", "-f", "-", stdin=json.dumps(code), namespace=namespace)
    kubectl("apply", "-f", "-", stdin=manifest("servers.yaml").replace("NAME", name), namespace=namespace)


def operator_image() -> str:
    """The image to test: IMAGE, else what `make image` calls it."""
    return os.environ.get("IMAGE") or f"grpc-etcd-operator:{version('grpc-etcd')}"


def chart_values() -> list[str]:
    """The images as options for helm."""
    repository, tag = image_parts(operator_image())
    options = [f"--set=image.repository={repository}", f"--set=image.tag={tag}"]
    if etcd := os.environ.get("ETCD_IMAGE"):
        repository, tag = image_parts(etcd)
        options += [f"--set=etcd.bundled.image.repository={repository}", f"--set=etcd.bundled.image.tag={tag}"]
    return options


def helm(*arguments: str | Path, namespace: str = NAMESPACE) -> str:
    """Run helm in a namespace, waiting for what it changes."""
    return run("helm", f"--namespace={namespace}", *arguments, f"--timeout={STEP_SECONDS}s", "--wait")


def rollout(deployment: str) -> None:
    """Replace every Pod of a Deployment, one after the other."""
    kubectl("rollout", "restart", f"deployment/{deployment}")
    kubectl("rollout", "status", f"deployment/{deployment}", f"--timeout={STEP_SECONDS}s")


def wait_event(words: str) -> None:
    """Wait until an Event in the second namespace says so."""

    def said() -> bool:
        return words in kubectl("get", "events", "-o", "jsonpath={.items[*].message}", namespace=OTHER)

    wait_until(said, f"an Event says {words!r}", STEP_SECONDS)


def beside(release: str) -> list[str]:
    """Options for one more release, with a namespace, a cluster id and a prefix of its own, on the first one's etcd."""
    values = {
        "fullnameOverride": release,
        "etcd.endpoints": f"{{grpc-etcd-etcd.{NAMESPACE}:2379}}",
        "clusterId": release,
        "prefix": release,
        "watchNamespaces": f"{{{OTHER}}}",
        "crds.enabled": "false",
    }
    options = [f"--set={name}={value}" for name, value in values.items()]
    return [f"--namespace={OTHER}", "--create-namespace", *options]


class ClusterTest:
    """The steps, in order."""

    def __init__(self) -> None:
        self.clients = Clients()

    def install(self) -> None:
        """Install the chart with helm: two replicas and the bundled etcd."""
        chosen = {"fullnameOverride": "grpc-etcd", "replicas": 2, "crds.keep": "false", "etcd.bundled.enabled": "true"}
        options = [f"--set={name}={value}" for name, value in chosen.items()]
        helm("install", "grpc-etcd", CHART, "--create-namespace", *options, *chart_values())

    def first_call(self) -> None:
        """Apply servers with a readiness gate, a GrpcService, and clients."""
        apply_servers(NAMESPACE, "greeter")
        kubectl("apply", "-f", "-", stdin=manifest("clients.yaml"))
        for deployment in ("greeter", "client", "waiting-client"):
            kubectl("rollout", "status", f"deployment/{deployment}", f"--timeout={STEP_SECONDS}s")
        wait_registered(REPLICAS)
        self.clients.wait_answered_by(server_pods())
        # The clients may have been there before the first endpoint was.
        self.clients.forgive()

    def gate(self) -> None:
        """No Pod became ready before it was registered."""
        for pod in objects("pods", "app=greeter"):
            changed = {c["type"]: (c["status"], c["lastTransitionTime"]) for c in pod["status"]["conditions"]}
            if changed[GATE][0] != "True" or changed["Ready"][1] < changed[GATE][1]:
                raise ClusterTestError(f"{pod['metadata']['name']} was ready before it was registered: {changed}")

    def rolling_update(self) -> None:
        """A rolling update of the servers."""
        rollout("greeter")
        self.gate()

    def scale(self) -> None:
        """Scale to 0 and back."""
        kubectl("scale", "deployment/greeter", "--replicas=0")
        wait_registered(0)
        wait_until(lambda: not server_pods(), "every server is gone", STEP_SECONDS)
        kubectl("scale", "deployment/greeter", f"--replicas={REPLICAS}")
        kubectl("rollout", "status", "deployment/greeter", f"--timeout={STEP_SECONDS}s")
        wait_registered(REPLICAS)
        self.clients.wait_answered_by(server_pods())
        self.clients.forgive()

    def crash(self) -> None:
        """A container crashes."""
        kubectl(
            "exec", server_pods()[0], "--", "python", "-c", "import os, signal; os.kill(1, signal.SIGUSR1)", check=False
        )
        wait_until(
            lambda: any(
                pod["status"]["containerStatuses"][0]["restartCount"] for pod in objects("pods", "app=greeter")
            ),
            "the kubelet has restarted the container",
            STEP_SECONDS,
        )

    def evict(self) -> None:
        """A Pod is evicted."""
        pod = server_pods()[0]
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": NAMESPACE}}
        path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}/eviction"
        kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))
        wait_until(lambda: pod not in server_pods() and len(server_pods()) == REPLICAS, "it is replaced", STEP_SECONDS)

    def operator_update(self) -> None:
        """A rolling update of the operator."""
        rollout("grpc-etcd")

    def upgrade(self) -> None:
        """Upgrade and roll back with helm."""
        helm("upgrade", "grpc-etcd", CHART, "--reuse-values", "--set=logLevel=debug")
        helm("rollback", "grpc-etcd")

    def missing_secret(self) -> None:
        """A Secret that is not there, then one without its key: no replica is ready, and an Event names what misses."""
        values = ("--set=etcd.tls.secretName=absent", "--set=clientConfig.enabled=false")  # which else needs its CA now
        run("helm", "install", "faulty", CHART, *beside("faulty"), *values, *chart_values())
        wait_event('secret "absent" not found')
        kubectl("create", "secret", "generic", "absent", "--from-literal=other=x", namespace=OTHER)
        wait_event("references non-existent secret key: ca.crt")
        if ready := kubectl("get", "deployment", "faulty", "-o", "jsonpath={.status.readyReplicas}", namespace=OTHER):
            raise ClusterTestError(f"{ready} replicas are ready without their Secret")
        helm("uninstall", "faulty", namespace=OTHER)

    def uninstall(self) -> None:
        """A second release in the same etcd is uninstalled with cleanup: its keys go, the first one's stay."""
        helm(
            "install", "other", CHART, *beside("other"), "--set=cleanup.enabled=true", *chart_values(), namespace=OTHER
        )
        apply_servers(OTHER, "other")
        wait_until(lambda: len(provider_keys("/other/")) == REPLICAS, "the second release registers", STEP_SECONDS)
        before = {key for key in registry_keys() if not is_others(key)}
        helm("uninstall", "other", namespace=OTHER)
        # The last leader's key may outlive it by its short lease.
        wait_until(lambda: set(registry_keys()) == before, f"of all keys only these stay: {sorted(before)}")

    def steps(self) -> tuple[Callable[[], None], ...]:
        """What is done to a running service, with clients calling."""
        return (
            self.gate,
            self.rolling_update,
            self.scale,
            self.crash,
            self.evict,
            self.operator_update,
            self.upgrade,
            self.missing_secret,
            self.uninstall,
        )

    def run(self) -> None:
        """Take every step; after each, every server is registered and called, and no call has failed."""
        timed(self.install)
        timed(self.first_call)
        for step in self.steps():
            timed(step)
            wait_registered(REPLICAS)
            self.clients.wait_answered_by(server_pods())
            self.clients.check()
        print(f"calls made: {self.clients.made()}   calls failed: 0")

    def clean_up(self) -> None:
        """Remove everything that install() and the steps made, the CRD too: kept, it would belong to this release."""
        run("helm", f"--namespace={OTHER}", "uninstall", "other", "faulty", "--ignore-not-found", check=False)
        run("helm", f"--namespace={NAMESPACE}", "uninstall", "grpc-etcd", "--ignore-not-found", check=False)
        kubectl("delete", "namespace", NAMESPACE, OTHER, "--ignore-not-found", namespace="default")


def timed(step: Callable[[], None]) -> None:
    """Take a step and say how long it took."""
    started = time.monotonic()
    step()
    print(f"{time.monotonic() - started:6.1f} s  {step.__doc__}", flush=True)


def main() -> None:
    """Run the test on the cluster of KUBECONFIG; exit with 1 when a step or a call failed."""
    if not os.environ.get("KUBECONFIG"):
        sys.exit("make test-cluster uses the cluster of KUBECONFIG: set it; IMAGE names the operator's image there")
    test = ClusterTest()
    try:
        test.run()
    except (ClusterTestError, TimeoutError) as error:
        print(kubectl("get", "pods,grpcservices", "-o", "wide", check=False))
        print(kubectl("logs", "--selector=app.kubernetes.io/name=grpc-etcd-operator", "--tail=20", check=False))
        sys.exit(f"FAILED: {error}")
    finally:
        if not os.environ.get("KEEP"):
            test.clean_up()


if __name__ == "__main__":
    main()

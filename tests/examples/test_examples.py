"""Every example does what its page says: its own programs, on a real API server and a real etcd."""

import json
import re
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import yaml

import grpc_etcd
from testbed.build import binary
from testbed.conditions import existing, wait_until
from testbed.greeter import say_hello

from .conftest import EXAMPLES, Stage


def test_the_client_ends_on_sigterm_while_it_waits_for_endpoints(stage: Stage) -> None:
    client = stage.run("client.py", "client")
    wait_until(lambda: is_catching(client.pid, signal.SIGTERM), "its handler is set")
    client.signal(signal.SIGTERM)
    assert client.wait(60) == 0, client.log.read_text()[-2000:]


def is_catching(pid: int, number: int) -> bool:
    """Say whether a process has a handler of its own for a signal (proc(5), SigCgt)."""
    caught = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def test_the_client_takes_its_password_as_the_pages_say() -> None:
    """From the Secret of operations.md, as the chart's notes have it; without users there is none."""
    container = yaml.safe_load((EXAMPLES / "greeter/client.yaml").read_text())["spec"]["template"]["spec"]["containers"]
    (given,) = container[0]["env"]
    page = (EXAMPLES.parent / "docs/operations.md").read_text()
    (documented,) = yaml.safe_load(existing(re.search(r"env: (\[\{name: GRPC_ETCD_PASSWORD.*\])", page))[1])
    assert given["valueFrom"]["secretKeyRef"].pop("optional") is True
    assert given == documented


def test_the_client_calls_every_server_by_name_through_a_rollout(stage: Stage) -> None:
    stage.start_operator()
    stage.apply("greeter/grpcservice.yaml")
    (deployment,) = stage.apply("greeter/server.yaml")
    stage.apply("greeter/client.yaml")
    old = [stage.start_pod(deployment, f"old-{number}") for number in range(2)]
    stage.wait_registered(*old)
    client = stage.run("client.py", "client")

    def said(name: str) -> bool:
        return name in client.log.read_text()

    wait_until(lambda: said("last: Hello world, this is old-"), "calls to the old Pods")
    new = stage.start_pod(deployment, "new-0")
    stage.wait_registered(*old, new)
    for pod in old:
        stage.kubelet.terminate(pod)
    stage.wait_registered(new)
    wait_until(lambda: said("last: Hello world, this is new-0"), "calls to the new Pod")
    client.signal(signal.SIGTERM)
    assert client.wait(60) == 0, client.log.read_text()[-2000:]
    assert client.log.read_text().splitlines()[-1].endswith(" 0 failed")


def test_the_canary_has_a_tenth_of_the_weight(stage: Stage) -> None:
    stage.start_operator()
    _, stable, canary = stage.apply("canary/canary.yaml")
    pods = [stage.start_pod(stable, "stable"), stage.start_pod(canary, "canary")]
    stage.wait_registered(*pods)
    values = [
        json.loads(stage.etcd.etcdctl("get", "--print-value-only", f"/jupiter/greeter/providers/grpc://{pod.address}"))
        for pod in pods
    ]
    assert [value["weight"] for value in values] == [90, 10]
    assert [value["metadata"]["version"] for value in values] == ["stable", "canary"]
    shares = Counter[str]()
    with grpc_etcd.Registry(stage.etcd.endpoints) as registry, registry.insecure_channel("greeter") as channel:
        registry.wait_for_endpoints("greeter", 60, at_least=2)
        hello = say_hello(channel)
        # Until both connections stand, one endpoint has all calls.
        wait_until(lambda: "canary" in hello("world", timeout=30), "the first call to the canary")
        for _ in range(1000):
            shares[hello("world", timeout=30).rpartition(" ")[2]] += 1
    # 100 expected; five standard deviations of a binomial distribution to each side.
    assert 52 <= shares["canary"] <= 148, shares


@pytest.mark.interop
def test_a_jupiter_client_calls_the_same_pods(stage: Stage) -> None:
    stage.start_operator()
    stage.apply("greeter/grpcservice.yaml")
    (deployment,) = stage.apply("greeter/server.yaml")
    pods = [stage.start_pod(deployment, f"server-{number}") for number in range(2)]
    stage.wait_registered(*pods)
    command: list[str | Path] = [binary("jupiter-client"), "-etcd", stage.etcd.endpoints, "-calls", "20"]

    def heard() -> set[str]:
        answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert answer.returncode == 0, answer.stderr
        return {line for line in answer.stdout.splitlines() if line.startswith("Hello Jupiter")}

    both = {f"Hello Jupiter, this is server-{number}" for number in range(2)}
    # 20 calls may be over before a busy machine has made the second connection.
    wait_until(lambda: heard() == both, "the client calls both Pods")

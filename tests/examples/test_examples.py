"""Every example does what its page says: its own programs, on a real API server and a real etcd."""

import json
import signal
import subprocess
from collections import Counter
from typing import Any

import pytest

import grpc_etcd
from testbed.build import binary
from testbed.conditions import wait_until
from testbed.greeter import say_hello


def test_the_client_calls_every_server_by_name_through_a_rollout(stage: Any) -> None:
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
    assert client.wait(30) == 0, client.log.read_text()[-2000:]
    assert client.log.read_text().splitlines()[-1].endswith(" 0 failed")


def test_the_canary_has_a_tenth_of_the_weight(stage: Any) -> None:
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
        registry.wait_for_endpoints("greeter", 30, at_least=2)
        hello = say_hello(channel)
        # Until both connections stand, one endpoint has all calls.
        wait_until(lambda: "canary" in hello("world", timeout=5), "the first call to the canary")
        for _ in range(1000):
            shares[hello("world", timeout=5).rpartition(" ")[2]] += 1
    # 100 expected; five standard deviations of a binomial distribution to each side.
    assert 52 <= shares["canary"] <= 148, shares


@pytest.mark.interop
def test_a_jupiter_client_calls_the_same_pods(stage: Any) -> None:
    stage.start_operator()
    stage.apply("greeter/grpcservice.yaml")
    (deployment,) = stage.apply("greeter/server.yaml")
    pods = [stage.start_pod(deployment, f"server-{number}") for number in range(2)]
    stage.wait_registered(*pods)
    command = [binary("jupiter-client"), "-etcd", stage.etcd.endpoints, "-calls", "20"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert answer.returncode == 0, answer.stderr
    lines = answer.stdout.splitlines()
    assert {line for line in lines if line.startswith("Hello Jupiter")} == {
        f"Hello Jupiter, this is server-{number}" for number in range(2)
    }

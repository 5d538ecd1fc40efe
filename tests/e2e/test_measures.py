"""What the operator measures of itself is what happened: late is late, and a Pod's age is no delay."""

import time

import pytest

from testbed.conditions import wait_until
from tests.e2e.conftest import Scene

LATE_SECONDS = 5.0
NAME = "grpc_etcd_operator_registration_duration_seconds"


def wait_for(seconds: float) -> None:
    until = time.time() + seconds
    wait_until(lambda: time.time() > until, "time has passed")


@pytest.mark.parametrize("grace_seconds", [30, 0])  # by 0 the end is all that is heard of it
def test_a_deregistration_that_comes_late_is_measured_late_whatever_the_grace_period(
    scene: Scene, grace_seconds: int
) -> None:
    replica = scene.start("--leader-ttl=60").wait_leading()
    scene.apply()
    pod = scene.pod()
    scene.registry.wait_addresses(pod.address)
    replica.process.pause()
    scene.kubelet.terminate(pod, grace_seconds)
    wait_for(LATE_SECONDS)
    replica.process.resume()
    scene.registry.wait_addresses()
    wait_until(lambda: replica.metric(f"{NAME}_count", change="gone"), "it is measured")
    assert replica.metric(f"{NAME}_sum", change="gone") > LATE_SECONDS - 2


def test_a_registration_that_comes_late_is_measured_late(scene: Scene) -> None:
    replica = scene.start("--leader-ttl=60").wait_leading()
    scene.apply()
    pod = scene.pod(ready=False)
    wait_until(lambda: replica.metric("grpc_etcd_operator_cached_pods"), "the Pod is known")
    replica.process.pause()
    scene.kubelet.ready(pod)
    wait_for(LATE_SECONDS)
    replica.process.resume()
    scene.registry.wait_addresses(pod.address)
    wait_until(lambda: replica.metric(f"{NAME}_count", change="ready"), "it is measured")
    assert replica.metric(f"{NAME}_sum", change="ready") > LATE_SECONDS - 2


def test_the_age_of_a_pod_is_no_delay_of_a_new_grpcservice(scene: Scene) -> None:
    replica = scene.start().wait_leading()
    pod = scene.pod()
    wait_until(lambda: replica.metric("grpc_etcd_operator_cached_pods"), "the Pod is known")
    wait_for(LATE_SECONDS)
    began = time.time()
    scene.apply()
    scene.registry.wait_addresses(pod.address)
    wait_until(lambda: replica.metric(f"{NAME}_count", change="ready"), "it is measured")
    # Times of creation are whole seconds.
    assert replica.metric(f"{NAME}_sum", change="ready") < time.time() - began + 2

"""What happened to a service, told by `grpc-etcd history`: each Pod that came and went, and when."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from grpc_etcd.registry.own import ClockReading, clock_key
from testbed.conditions import wait_until
from tests.e2e.conftest import Scene

PROGRAM = Path(sys.executable).with_name("grpc-etcd")
STORM = 40


def history(scene: Scene, *arguments: str) -> Any:
    """Return what is said of the service; other tests have used its name here before."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_ETCD_")}
    command = [str(PROGRAM), "history", "greeter", "-o", "json", *arguments]
    environ = kept | {"GRPC_ETCD_ENDPOINTS": scene.etcd.endpoints}
    return json.loads(subprocess.run(command, env=environ, capture_output=True, timeout=60, check=True).stdout)


def reading(scene: Scene) -> ClockReading | None:
    record = scene.client.get(clock_key(scene.cluster))
    read = record and ClockReading.from_json(record.value)
    return read if isinstance(read, ClockReading) else None


def is_recorded(scene: Scene) -> bool:
    """Return whether the last revision that put a key of an endpoint, or a flush key, has a time."""
    put = (record for key, record in scene.registry.keys("/").items() if not key.startswith("/grpc-etcd/"))
    found = reading(scene)
    return found is not None and found.revision >= max(record.mod_revision for record in put)


def test_a_rollout_is_told_with_times_and_pods_and_what_there_was_in_between(scene: Scene) -> None:
    scene.start().wait_leading()
    scene.apply()
    old = scene.pod()
    scene.registry.wait_addresses(old.address)
    between: list[float] = []
    for _ in range(2):
        wait_until(lambda: is_recorded(scene), "the last change has its time")
        between.append(time.time())
        new = scene.pod()
        scene.registry.wait_addresses(old.address, new.address)
        scene.kubelet.terminate(old)
        scene.registry.wait_addresses(new.address)
        old = new
    wait_until(lambda: history(scene)[-1]["time"] is not None, "the last change has its time")
    between.append(time.time())
    told = [each for each in history(scene) if (each["pod"] or "").startswith(f"{scene.namespace}/")]
    name = f"{scene.namespace}/pod-{{}}"
    assert [(each["change"], each["pod"], each["endpoints"]) for each in told] == [
        ("added", name.format(0), 1),
        ("added", name.format(1), 2),
        ("removed", name.format(0), 1),
        ("added", name.format(2), 2),
        ("removed", name.format(1), 1),
    ]
    assert told[0]["time"] < between[0] < told[1]["time"] <= told[2]["time"] < between[1] < told[3]["time"]
    assert told[4]["time"] < between[2]
    then = history(scene, "--at", f"{int(time.time() - between[1]) + 1}s")
    assert len(then["endpoints"]) in {1, 2}
    (exactly,) = history(scene, "--at", str(told[2]["revision"]))["endpoints"]
    assert exactly["owner"]["pod"] == "pod-1"


def test_times_are_recorded_once_a_second_in_a_storm_and_by_nobody_in_quiet(scene: Scene) -> None:
    scene.start().wait_leading()
    scene.apply()
    began, before = time.monotonic(), version(scene)
    pods = [scene.pod() for _ in range(STORM)]
    scene.registry.wait_addresses(*(pod.address for pod in pods))
    wait_until(lambda: is_recorded(scene), "the last change has its time")
    assert version(scene) - before <= time.monotonic() - began + 2
    changes, readings = scene.registry.count_changes(), version(scene)
    scene.apply("other", selector={"matchLabels": {"app": "nobody"}})
    scene.wait_condition("Accepted", "True", "Accepted", "other")
    assert version(scene) - readings <= scene.registry.count_changes() - changes  # a flush key may still come


def version(scene: Scene) -> int:
    record = scene.client.get(clock_key(scene.cluster))
    return record.version if record else 0

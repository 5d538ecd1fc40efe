"""docs/migration.md, step by step: a fleet that registers itself comes under the operator, and changes its layout."""

import json

from testbed.conditions import existing, wait_until
from tests.e2e.conftest import Scene

LATER = "grpc:greeter:v1:unknown-mode/"


def test_a_fleet_that_registers_itself_comes_under_the_operator(scene: Scene) -> None:
    # Step 1: a Pod whose server has registered itself, without a lease, as Jupiter 0.2 does by default.
    old = scene.pod("old", labels={"app": "greeter"})
    own_key = f"/jupiter/greeter/providers/grpc://{old.address}"
    own_value = json.dumps({"name": "greeter", "scheme": "grpc", "address": old.address, "enable": True})
    scene.client.put(own_key.encode(), own_value.encode())
    # Step 2: the GrpcService changes nothing, and says so.
    scene.start().wait_leading()
    scene.apply()
    wait_until(lambda: any(event["reason"] == "KeyTaken" for event in scene.events()), "the Event")
    scene.wait_condition("Ready", "False", "KeyTaken")
    scene.wait_condition("Accepted", "True", "Accepted")
    assert scene.condition("Stalled") == ("", ""), "it is in progress"
    assert existing(scene.client.get(own_key.encode())).value == own_value.encode()
    # Step 3: a new Pod is registered by the operator before it is ready; the old one unregisters and ends.
    new = scene.pod("new", labels={"app": "greeter"}, gates=["grpc-etcd.dev/registered"])
    scene.registry.wait_addresses(old.address, new.address)
    scene.kubelet.terminate(old, grace_seconds=0)
    scene.client.delete(own_key.encode())
    scene.registry.wait_addresses(new.address)
    scene.wait_condition("Programmed", "True", "Programmed")
    # Back: without the GrpcService the operator's keys go, and a key of the server's own stays.
    scene.client.put(own_key.encode(), own_value.encode())
    scene.delete()
    scene.registry.wait_addresses(old.address)


def test_two_layouts_are_written_while_clients_move_and_the_old_one_is_dropped_alone(scene: Scene) -> None:
    pod = scene.pod(labels={"app": "greeter"})
    scene.start().wait_leading()
    scene.apply()
    scene.registry.wait_addresses(pod.address)
    before = scene.registry.keys()
    scene.apply(layouts=["jupiter", "jupiter-v2"])
    wait_until(lambda: list(scene.registry.keys(LATER)) == [LATER + pod.address], "the new layout's key")
    assert scene.registry.keys() == before, "the old layout's record was written again"
    added = scene.registry.keys(LATER)
    scene.apply(layouts=["jupiter-v2"])
    scene.registry.wait_addresses()
    assert scene.registry.keys(LATER) == added, "the new layout's record was written again"

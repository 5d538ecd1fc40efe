"""GrpcServices that take selector and port from a Service: what a Service does to keys, and that it takes none away."""

import json
from pathlib import Path
from typing import Any

import pytest

from testbed.conditions import wait_until
from testbed.kubelet import Pod
from testbed.replica import Replica
from tests.e2e.conftest import API_VERSION, Scene
from tests.e2e.front import Front
from tests.e2e.test_namespaces import RULES, make_account, make_other, set_rules

REF = {"serviceRef": {"name": "cart"}}
SERVICES_RULE = {"apiGroups": [""], "resources": ["services"], "verbs": ["list", "watch"]}


def serve(scene: Scene, app: str = "greeter", **spec: Any) -> dict[str, Any]:
    """Create or change the Service."""
    whole = {"selector": {"app": app}, "ports": [{"name": "grpc", "port": 80, "targetPort": "grpc"}], **spec}
    metadata = {"name": "cart", "namespace": scene.namespace}
    given = {name: value for name, value in whole.items() if value is not None}
    return scene.api.client.apply({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": given})


def delete(scene: Scene) -> None:
    metadata = {"name": "cart", "namespace": scene.namespace}
    scene.api.client.delete({"apiVersion": "v1", "kind": "Service", "metadata": metadata})


def births(scene: Scene) -> dict[bytes, int]:
    """Return when each key of the service was created: one that was gone in between is another by then."""
    prefix = b"/jupiter/greeter/providers/"
    return {each.key: each.create_revision for each in scene.client.get_prefix(prefix).records}


def serve_two(scene: Scene) -> tuple[Replica, list[Pod]]:
    replica = scene.start().wait_leading()
    serve(scene)
    scene.apply(**REF)
    pods = [scene.pod(), scene.pod()]
    scene.registry.wait_addresses(*(pod.address for pod in pods))
    scene.wait_condition("Programmed", "True", "Programmed")
    return replica, pods


def test_a_service_is_followed(scene: Scene) -> None:
    _, pods = serve_two(scene)
    other = scene.pod(labels={"app": "other"}, ports={"admin": 9001, "grpc": 9000})
    serve(scene, "other")
    scene.registry.wait_addresses(f"{other.ip}:9000")
    serve(scene, "other", ports=[{"name": "grpc", "port": 80, "targetPort": "admin"}])
    scene.registry.wait_addresses(f"{other.ip}:9001")
    scene.apply(**REF, port=9002)
    scene.registry.wait_addresses(f"{other.ip}:9002")
    serve(scene)
    scene.apply(**REF)
    scene.registry.wait_addresses(*(pod.address for pod in pods))
    scene.apply()  # a selector of its own, which is the same
    scene.wait_condition("Programmed", "True", "Programmed")
    delete(scene)
    late = scene.pod()
    scene.registry.wait_addresses(*(pod.address for pod in (*pods, late)))


def test_a_service_that_is_deleted_and_created_again_costs_no_key(scene: Scene) -> None:
    replica, pods = serve_two(scene)
    before = births(scene)
    delete(scene)
    scene.wait_condition("Accepted", "False", "ServiceNotFound")
    late = scene.pod()
    scene.registry.wait_addresses(*(pod.address for pod in (*pods, late)))
    assert replica.metric("grpc_etcd_operator_not_accepted", reason="ServiceNotFound") == 1
    serve(scene)
    scene.wait_condition("Accepted", "True", "Accepted")
    scene.wait_condition("Programmed", "True", "Programmed")
    assert before.items() <= births(scene).items()


def test_a_service_that_is_missing_when_the_operator_starts_costs_no_key(scene: Scene) -> None:
    replica, pods = serve_two(scene)
    before = births(scene)
    replica.process.stop()
    delete(scene)
    scene.start().wait_leading()
    scene.wait_condition("Accepted", "False", "ServiceNotFound")
    wait_until(scene.has_mark, "the registry is complete for all that")
    assert births(scene) == before
    scene.kubelet.unready(pods[0])
    scene.registry.wait_addresses(pods[1].address)
    scene.kubelet.ready(pods[0])
    serve(scene)
    scene.registry.wait_addresses(*(pod.address for pod in pods))
    delete(scene)
    scene.wait_condition("Accepted", "False", "ServiceNotFound")
    scene.apply(**REF, enable=False)  # the owner's word needs no Service
    scene.registry.wait_addresses()
    scene.wait_condition("Programmed", "True", "Disabled")


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"type": "ExternalName", "externalName": "example.com", "selector": None}, "ServiceUnusable"),
        ({"clusterIP": "None", "selector": None}, "ServiceUnusable"),
        ({"ports": [{"name": "a", "port": 80}, {"name": "b", "port": 81}]}, "PortNotFound"),
    ],
)
def test_a_service_that_cannot_be_used_costs_no_key(scene: Scene, spec: dict[str, Any], reason: str) -> None:
    serve_two(scene)
    before = births(scene)
    if "ports" not in spec:
        delete(scene)  # a Service that has an address keeps it
    serve(scene, **spec)
    scene.wait_condition("Accepted", "False", reason)
    assert births(scene) == before
    delete(scene)
    serve(scene, clusterIP="None")
    scene.wait_condition("Programmed", "True", "Programmed")
    assert births(scene) == before


def test_a_named_target_port_is_another_number_in_each_pod(scene: Scene) -> None:
    scene.start().wait_leading()
    serve(scene)
    scene.apply(**REF)
    old, new = scene.pod(ports={"grpc": 9000}), scene.pod(ports={"web": 9000, "grpc": 9100})
    scene.registry.wait_addresses(f"{old.ip}:9000", f"{new.ip}:9100")


def start_with(scene: Scene, kubeconfig: Path) -> Replica:
    return scene.start(kubeconfig=kubeconfig).wait_leading()


def test_who_names_no_service_needs_no_right_to_read_any(scene: Scene) -> None:
    kubeconfig = make_account(scene, scene.namespace)
    with Front(scene.api, scene.folder) as front:
        clusters = json.loads(front.kubeconfig.read_text())["clusters"]
        kubeconfig.write_text(json.dumps(json.loads(kubeconfig.read_text()) | {"clusters": clusters}))
        start_with(scene, kubeconfig)
        serve(scene)
        scene.apply()
        scene.registry.wait_addresses(scene.pod().address)
        scene.wait_condition("Programmed", "True", "Programmed")
        wait_until(scene.has_mark, "the registry is synced")
        assert [path for path, _, _ in front.requests if path.endswith("/services")] == []
        scene.apply(**REF)
        scene.wait_condition("Accepted", "Unknown", "ServicesUnreadable")


def test_a_right_to_services_that_goes_and_comes_back_costs_no_key(scene: Scene) -> None:
    kubeconfig = make_account(scene, scene.namespace)
    set_rules(scene, scene.namespace, [*RULES, SERVICES_RULE])
    replica = start_with(scene, kubeconfig)
    serve(scene)
    scene.apply(**REF)
    scene.apply("plain", name="plain")
    pods = [scene.pod(), scene.pod()]
    for name in ("greeter", "plain"):
        scene.registry.wait_addresses(*(pod.address for pod in pods), name=name)
    before = births(scene)
    replica.process.stop()
    set_rules(scene, scene.namespace, RULES)
    replica = start_with(scene, kubeconfig)
    scene.wait_condition("Accepted", "Unknown", "ServicesUnreadable")
    assert replica.get("/readyz")[0] == 200
    wait_until(scene.has_mark, "the registry is synced: nobody else is concerned")
    late = scene.pod()
    scene.registry.wait_addresses(*(pod.address for pod in (*pods, late)), name="plain")
    assert births(scene) == before
    set_rules(scene, scene.namespace, [*RULES, SERVICES_RULE])
    scene.registry.wait_addresses(*(pod.address for pod in (*pods, late)))
    scene.wait_condition("Accepted", "True", "Accepted")
    assert before.items() <= births(scene).items()


def test_services_that_may_not_be_read_in_one_namespace_are_followed_in_the_other(scene: Scene) -> None:
    other = make_other(scene)
    kubeconfig = make_account(scene, scene.namespace, other)
    set_rules(scene, scene.namespace, [*RULES, SERVICES_RULE])
    scene.start(f"--namespace={other}", kubeconfig=kubeconfig).wait_leading()
    serve(scene)
    scene.apply(**REF)
    scene.apply("theirs", other, **REF)
    scene.wait_condition("Accepted", "Unknown", "ServicesUnreadable", "theirs", other)
    pod = scene.pod()
    scene.registry.wait_addresses(pod.address)
    delete(scene)
    scene.wait_condition("Accepted", "False", "ServiceNotFound")
    assert scene.registry.addresses() == [pod.address]


def test_services_that_never_answer_hold_up_nobody(scene: Scene) -> None:
    replica, pods = serve_two(scene)
    before = births(scene)
    replica.process.stop()
    with Front(scene.api, scene.folder) as front:
        front.hangs = lambda request: request.path.endswith("/services")
        replica = scene.start(kubeconfig=front.kubeconfig).wait_leading()
        scene.apply("plain", name="plain")
        scene.registry.wait_addresses(*(pod.address for pod in pods), name="plain")
        scene.wait_condition("Programmed", "True", "Programmed", "plain")
        wait_until(scene.has_mark, "the registry is synced after a while")
        assert replica.get("/readyz")[0] == 200
        assert births(scene) == before
        scene.wait_condition("Accepted", "Unknown", "ServicesUnreadable")
        (accepted,) = (each for each in scene.status()["conditions"] if each["type"] == "Accepted")
        assert "no complete list of them has come" in accepted["message"]
        front.hangs = lambda _: False
        serve(scene, "other")
        scene.registry.wait_addresses()
        scene.wait_condition("Accepted", "True", "Accepted")


def test_a_deletion_that_no_watch_reports_is_found(scene: Scene) -> None:
    serve_two(scene)
    before = births(scene)
    scene.api.kill()
    with scene_store(scene) as stored:
        assert stored.delete(f"/registry/services/specs/{scene.namespace}/cart".encode())
    scene.api.restart()
    scene.wait_condition("Accepted", "False", "ServiceNotFound")
    assert births(scene) == before


def scene_store(scene: Scene) -> Any:
    """Connect to the API server's own etcd."""
    return type(scene.client)(scene.api.etcd.endpoints)


def test_the_api_server_takes_exactly_one_of_both(scene: Scene) -> None:
    for spec, is_taken in (({**REF, "selector": {"matchLabels": {"app": "a"}}}, False), ({}, False), (REF, True)):
        metadata = {"name": "tried", "namespace": scene.namespace}
        item = {"apiVersion": API_VERSION, "kind": "GrpcService", "metadata": metadata, "spec": spec}
        if is_taken:
            assert scene.api.client.create(item)["spec"]["serviceRef"] == {"name": "cart"}
        else:
            with pytest.raises(Exception, match="give exactly one of selector and serviceRef"):
                scene.api.client.create(item)

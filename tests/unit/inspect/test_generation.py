"""Which GrpcServices are made for manifests, in the shapes that public projects give them."""

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from grpc_etcd.inspect.generation import API_VERSION, generate

Raw = dict[str, Any]


def service(name: str = "cart", ports: list[Raw] | None = None, **more: Any) -> Raw:
    spec = {"selector": {"app": "cart"}, "ports": ports if ports is not None else [{"port": 7070}], **more}
    return {"kind": "Service", "metadata": {"name": name}, "spec": spec}


def deployment(name: str = "cart", ports: list[Raw] | None = None, app: str = "cart", **container: Any) -> Raw:
    containers = [{"name": "server", "ports": ports if ports is not None else [{"containerPort": 7070}], **container}]
    template = {"metadata": {"labels": {"app": app, "tier": "back"}}, "spec": {"containers": containers}}
    spec = {"selector": {"matchLabels": {"app": app}}, "template": template}
    return {"kind": "Deployment", "metadata": {"name": name}, "spec": spec}


def port_of(*objects: Raw) -> object:
    """Return the port of the only GrpcService that is made; None: none is."""
    made = generate(objects).manifests
    assert len(made) < 2
    return made[0]["spec"]["port"] if made else None


PROBE: Raw = {"readinessProbe": {"grpc": {"port": 7070}}}
PROGRAM: Raw = {"livenessProbe": {"exec": {"command": ["/bin/grpc_health_probe", "-addr=:7070", "-rpc-timeout=5s"]}}}
APART: Raw = {"livenessProbe": {"exec": {"command": ["grpc_health_probe", "--addr", "localhost:7070"]}}}
NAMED = [{"containerPort": 7070, "name": "grpc"}]
TWO = [{"port": 7070, "name": "grpc"}, {"port": 9000, "name": "http-metrics"}]


@pytest.mark.parametrize(
    ("ports", "container", "port"),
    [
        pytest.param([{"port": 80, "name": "grpc", "targetPort": 7070}], {}, 7070, id="named by the Service"),
        pytest.param([{"port": 80, "targetPort": "grpc"}], {"ports": NAMED}, "grpc", id="named by the container"),
        pytest.param([{"port": 7070}], {"ports": NAMED}, "grpc", id="named by the container, targeted by number"),
        pytest.param([{"port": 7070, "appProtocol": "kubernetes.io/h2c"}], {}, 7070, id="by its appProtocol"),
        pytest.param([{"port": 7070}], PROBE, 7070, id="by a probe"),
        pytest.param([{"port": 7070}], {**PROBE, "ports": []}, 7070, id="by a probe alone"),
        pytest.param([{"port": 7070}], PROGRAM, 7070, id="by the program of before there were probes"),
        pytest.param([{"port": 7070}], APART, 7070, id="by that, in two words"),
        pytest.param(TWO, {}, 7070, id="one of two"),
        pytest.param([{"port": 7070, "name": "otlp-grpc"}], {}, 7070, id="a name of several words"),
        pytest.param([{"port": 80, "name": "http"}], {}, None, id="none"),
        pytest.param([{"port": 80, "name": "grpc-web"}], {}, None, id="not for gRPC clients"),
        pytest.param([{"port": 1, "name": "a-grpc"}, {"port": 2, "name": "b-grpc"}], {}, None, id="nobody can know"),
        pytest.param(
            [{"port": 1, "name": "a-grpc", "targetPort": "a"}, {"port": 2, "name": "b-grpc", "targetPort": "b"}],
            {},
            None,
            id="nobody can know, by name",
        ),
        pytest.param([{"port": 53, "name": "grpc", "protocol": "UDP"}], {}, None, id="not of TCP"),
        pytest.param([{"port": 1, "name": "a-grpc"}, {"port": 2, "name": "grpc"}], {}, 2, id="the one named grpc"),
    ],
)
def test_the_port_of_a_service_is_found_by_what_is_said_of_it(ports: list[Raw], container: Raw, port: object) -> None:
    assert port_of(service(ports=ports), deployment(**container)) == port


def test_a_grpcservice_is_complete() -> None:
    made = generate([service(), deployment(**PROBE)], "shop", ("kratos",)).manifests
    spec = {"selector": {"matchLabels": {"app": "cart"}}, "port": 7070, "layouts": ["kratos"]}
    metadata = {"name": "cart", "namespace": "shop"}
    assert made == [{"apiVersion": API_VERSION, "kind": "GrpcService", "metadata": metadata, "spec": spec}]


def test_a_grpcservice_may_follow_its_service() -> None:
    ports = [{"port": 80, "name": "web"}, {"port": 81, "name": "grpc", "targetPort": 7070}]
    worker = deployment("worker", app="worker", **PROBE)
    made = generate([service(ports=ports), deployment(), worker], by_reference=True).manifests
    ref = {"serviceRef": {"name": "cart"}}
    assert [each["spec"] for each in made] == [ref, {"selector": {"matchLabels": {"app": "worker"}}, "port": 7070}]
    (one,) = generate([service(ports=[*ports[:1], {"port": 7070}]), deployment(**PROBE)], by_reference=True).manifests
    assert one["spec"] == {**ref, "port": 7070}, "only the Pods know which port it is"


def test_a_workload_without_a_service_gets_one_of_its_own() -> None:
    worker = deployment("worker", app="worker", **PROBE)
    made = generate([service(), deployment(**PROBE), worker, deployment("web", app="web")]).manifests
    assert [each["metadata"]["name"] for each in made] == ["cart", "worker"]
    assert made[1]["spec"]["selector"] == {"matchLabels": {"app": "worker"}}


def test_what_is_left_out_has_a_reason() -> None:
    made = generate(
        [
            service(ports=[{"port": 7070, "name": "grpc"}]),
            service("cart-headless", ports=[{"port": 7070, "name": "grpc"}], clusterIP="None"),
            service("web", ports=[{"port": 80}]),
            service("outside", type="ExternalName"),
            service("both", ports=[{"port": 1, "name": "a-grpc"}, {"port": 2, "name": "b-grpc"}]),
            service("mine", ports=[{"port": 7071, "name": "grpc"}]),
            {"kind": "GrpcService", "metadata": {"name": "mine"}},
        ]
    )
    assert [each["metadata"]["name"] for each in made.manifests] == ["cart"]
    reasons = {what: why.partition(":")[0] for what, why in made.left_out.items()}
    assert reasons == {
        "Service cart-headless": "it selects the same Pods at the same port as Service cart",
        "Service web": "none of its ports is known to serve gRPC",
        "Service outside": "it has no selector",
        "Service both": "several ports may serve gRPC (1, 2)",
        "Service mine": "there is already a GrpcService of this name",
    }


def test_a_name_is_one_namespaces() -> None:
    here, there = service(), service()
    here["metadata"]["namespace"], there["metadata"]["namespace"] = "here", "there"
    ports = [{"port": 7070, "name": "grpc"}]
    here["spec"]["ports"] = there["spec"]["ports"] = ports
    made = generate([here, there])
    assert [each["metadata"]["namespace"] for each in made.manifests] == ["here"]
    assert "cart is already the name of a service of here" in made.left_out["Service there/cart"]


WORDS = st.sampled_from(["kind", "metadata", "spec", "name", "Service", "Deployment", "List", "items", "ports", "grpc"])
LEAVES = st.none() | st.booleans() | st.integers(-1, 70_000) | WORDS | st.text(max_size=3)
ANYTHING = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=5))


@given(st.lists(ANYTHING, max_size=3), st.dictionaries(st.sampled_from(["ports", "selector", "type"]), ANYTHING))
def test_manifests_may_hold_anything(objects: list[object], spec: Raw) -> None:
    good = [service("good", ports=[{"port": 7070, "name": "grpc"}], selector={"app": "good"})]
    bad = {"kind": "Service", "metadata": {"name": "bad"}, "spec": spec}
    made = generate([*good, *objects, bad, {**deployment(), "spec": spec}])
    assert "good" in [each["metadata"]["name"] for each in made.manifests]
    yaml.safe_dump_all(made.manifests)

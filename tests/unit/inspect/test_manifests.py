"""What is wrong with manifests, by the copy of the CRD's schema; tests/e2e/test_check.py asks the API server, too."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from grpc_etcd.inspect.cluster import ContainerPort, PodFacts, ServiceFacts, TargetFacts
from grpc_etcd.inspect.codes import Code
from grpc_etcd.inspect.findings import Finding
from grpc_etcd.inspect.manifest_checks import METADATA, Manifest, find_manifest_faults, flatten
from grpc_etcd.inspect.rules import RULES
from grpc_etcd.inspect.schema import PATTERNS, find_mistakes
from testbed.build import ROOT
from testbed.references import SCHEMA

SCHEMA_OF_CRD = json.loads(SCHEMA.read_text())
SELECTOR = {"matchLabels": {"app": "greeter"}}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = sorted(SCHEMA_OF_CRD["properties"]["spec"]["properties"])


def service(**spec: Any) -> dict[str, Any]:
    metadata = {"name": "greeter"}
    return {
        "apiVersion": "grpc-etcd.dev/v1alpha1",
        "kind": "GrpcService",
        "metadata": metadata,
        "spec": {"selector": SELECTOR, **spec},
    }


def check(
    *items: Any,
    pods: list[PodFacts] | None = None,
    services: tuple[ServiceFacts, ...] = (),
    targets: list[TargetFacts] | None = None,
) -> list[Finding]:
    manifests = [Manifest("x.yaml", each) for each in items]
    return list(find_manifest_faults(manifests, SCHEMA_OF_CRD, "shop", pods, services, targets))


@pytest.mark.parametrize("path", sorted((ROOT / "examples").rglob("*.yaml")), ids=lambda path: path.name)
def test_every_example_is_without_fault(path: Any) -> None:
    assert check(*(each.item for each in flatten("x.yaml", yaml.safe_load_all(path.read_text())))) == []


@pytest.mark.parametrize(
    ("spec", "words", "remedy"),
    [
        ({"wieght": 1}, "spec.wieght: there is no such field; did you mean weight?", "write weight for wieght"),
        ({"layouts": ["jupitr"]}, "did you mean jupiter?", "write jupiter"),
        ({"weight": True}, "True is not of type integer", "kubectl explain grpcservice.spec"),
        ({"weight": 10_001}, "10001 is more than 10000", "kubectl explain"),
        ({"port": "80"}, "a port is a number from 1 to 65535", "kubectl explain"),
        ({"port": 0}, "0: a port is a number", "kubectl explain"),
        ({"selector": {}}, "an empty selector", "kubectl explain"),
        ({"registries": ["a", "a"]}, "an entry is duplicated", "kubectl explain"),
        ({"metadata": {"a": 1}}, "1 is not of type string", "kubectl explain grpcservice.spec.metadata"),
        ({"x; touch y": 1}, "there is no such field", "kubectl explain grpcservice.spec"),
        (
            {"policy": {"retry": {"x; touch y": {"z": 1}}}},
            "no such field",
            "kubectl explain grpcservice.spec.policy.retry",
        ),
    ],
)
def test_mistakes(spec: dict[str, Any], words: str, remedy: str) -> None:
    (found,) = check(service(**spec))
    assert words in found.problem
    assert remedy in found.remedy


CART: dict[str, Any] = {
    "kind": "Service",
    "metadata": {"name": "cart"},
    "spec": {"selector": {"app": "cart"}, "ports": [{"port": 1}, {"port": 2, "name": "grpc", "targetPort": "api"}]},
}


def referring(ref: str = "cart", **spec: Any) -> dict[str, Any]:
    item = service(serviceRef={"name": ref}, **spec)
    del item["spec"]["selector"]
    return item


def test_a_service_of_the_same_files_says_whom_it_selects() -> None:
    pod = PodFacts(namespace="shop", name="p", labels={"app": "cart"}, ports=(ContainerPort("api", 9000),))
    assert check(CART, referring(), pods=[pod], targets=[]) == []
    (found,) = check(CART, referring(), pods=[replace(pod, labels={"app": "kart"})])
    assert (found.code, found.remedy) == (
        Code.NO_PODS,
        "In the Service cart: set spec.selector.app to kart",
    )
    (found,) = check(CART, referring(), pods=[replace(pod, ports=(ContainerPort("rpc", 9000),))])
    assert (found.code, found.remedy) == (Code.NO_PORT, "In x.yaml: set spec.port to rpc")


def test_a_service_that_is_nowhere_is_reported() -> None:
    (found,) = check(CART, referring("kart"), pods=[])
    assert (found.code, found.is_error) == (Code.SERVICE_UNSEEN, False), "it may be in the cluster"
    assert "in none of the files; the closest there is cart" in found.problem
    (found,) = check(CART, referring("kart"), pods=[], targets=[])
    assert (found.code, found.subject) == (Code.SERVICE_NOT_FOUND, "x.yaml: GrpcService greeter")
    assert "the closest is cart" in found.problem


def faulty(**spec: Any) -> dict[str, Any]:
    return {**CART, "spec": spec}


@pytest.mark.parametrize(
    ("of_files", "code"),
    [
        (faulty(type="ExternalName", externalName="x", ports=[{"port": 1}]), Code.SERVICE_UNUSABLE),
        (faulty(ports=[{"port": 1}]), Code.SERVICE_UNUSABLE),
        (faulty(selector={"app": "cart"}, ports=[{"port": 1, "name": "a"}, {"port": 2, "name": "b"}]), Code.NO_PORT),
    ],
)
def test_a_service_of_the_files_is_judged_without_a_cluster(of_files: dict[str, Any], code: Code) -> None:
    (found,) = check(of_files, referring())
    assert (found.code, found.remedy.startswith("In x.yaml: change the Service cart")) == (code, True)


def test_a_version_and_a_kind_that_do_not_exist() -> None:
    (found,) = check({**service(), "apiVersion": "grpc-etcd.dev/v1"})
    assert (found.code, "v1alpha1" in found.remedy) == (Code.BAD_FIELD, True)
    (found,) = check({**service(), "kind": "GRPCService"})
    assert found.remedy == "In x.yaml: write GrpcService for GRPCService (kind)"


def test_a_port_of_the_service_in_place_of_the_containers() -> None:
    pod = PodFacts(namespace="shop", name="p", labels={"app": "greeter"}, ports=(ContainerPort("", 8080),))
    ports = [{"name": "grpc", "port": 5000, "targetPort": 8080}]
    of_files = {"kind": "Service", "metadata": {"name": "g"}, "spec": {"selector": {"app": "greeter"}, "ports": ports}}
    (found,) = check(service(port=5000), of_files, pods=[pod])
    assert (found.code, found.remedy) == (Code.SERVICE_PORT, "In x.yaml: set spec.port to 8080")
    assert [each.code for each in check(service(port=6000), of_files, pods=[pod])] == [Code.UNDECLARED_PORT]
    assert check(service(port=8080), of_files, pods=[pod]) == []


def workload(gate: str = "", pause: Any = None, grace: int | None = None) -> dict[str, Any]:
    container = {"name": "c", "ports": [{"name": "grpc", "containerPort": 1}], "lifecycle": {"preStop": pause}}
    spec: dict[str, Any] = {"containers": [container], "readinessGates": [{"conditionType": gate}] if gate else []}
    if grace is not None:
        spec["terminationGracePeriodSeconds"] = grace
    template = {"metadata": {"labels": {"app": "greeter"}}, "spec": spec}
    return {"kind": "Deployment", "metadata": {"name": "d"}, "spec": {"template": template}}


@pytest.mark.parametrize("gate", ["grpc-etcd.dev/registred", "grpc-etcd.dev/ready", "grpc_etcd.dev/registered"])
def test_a_misspelt_readiness_gate(gate: str) -> None:
    (found,) = check(workload(gate))
    assert (found.code, found.remedy) == (Code.WRONG_GATE, f"In x.yaml: write grpc-etcd.dev/registered for {gate}")


@pytest.mark.parametrize(
    "gate", ["grpc-etcd.dev/registered", "target-health.elbv2.k8s.aws/greeter", "example.com/registered"]
)
def test_a_gate_that_somebody_opens(gate: str) -> None:
    assert check(workload(gate)) == []


SLEEPS: list[Any] = [
    {"sleep": {"seconds": 5}},
    {"exec": {"command": ["sleep", "5"]}},
    {"exec": {"command": ["/bin/sh", "-c", "/bin/sleep 5 && true"]}},
]


@pytest.mark.parametrize("pause", SLEEPS)
def test_a_pause_that_takes_all_of_the_grace_period(pause: Any) -> None:
    (found,) = check(service(), workload(pause=pause, grace=5))
    assert (found.code, "(5 s)" in found.problem) == (Code.SHORT_GRACE, True)
    assert check(service(), workload(pause=pause, grace=6)) == []
    assert check(service(), workload(pause=pause)) == [], "the default is 30"
    assert check(workload(pause=pause, grace=5)) == [], "nothing is registered of it"


def test_a_name_that_two_namespaces_of_the_files_use() -> None:
    one, other = ({**service(name="same"), "metadata": {"name": each, "namespace": each}} for each in "xy")
    (found,) = check(one, other)
    assert (found.code, "GrpcService x/x" in found.problem) == (Code.NAME_IN_USE, True)


def test_a_value_that_is_wrong_is_named_with_the_right_one() -> None:
    (found,) = check(service(policy={"localityPreference": {"mode": "preferZone"}}))
    assert "write PreferZone for preferZone (spec.policy.localityPreference.mode)" in found.remedy
    (found,) = check(service(policy={"slowStart": {"window": 30}}))
    assert 'write "30s" for 30 (spec.policy.slowStart.window)' in found.remedy


def patterns(schema: Any) -> Iterator[str]:
    for each in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from patterns(each)
    if isinstance(schema, dict) and isinstance(schema.get("pattern"), str):
        yield schema["pattern"]


def test_every_pattern_is_explained_in_words() -> None:
    assert {*patterns(SCHEMA_OF_CRD), *patterns(METADATA)} == PATTERNS.keys()


def test_what_is_required() -> None:
    item = service()
    del item["spec"]["selector"]
    assert "give exactly one of selector and serviceRef" in check(item)[0].problem
    assert "metadata.name" in check({**service(), "metadata": {}})[0].problem


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"name": "My_Greeter"}, "metadata.name: 'My_Greeter' does not match"),
        ({"name": 5}, "metadata.name: 5 is not of type string"),
        ({"name": "greeter", "namespace": "a.b"}, "metadata.namespace: 'a.b' does not match"),
        ({"name": "greeter", "labels": {"on": True}}, "metadata.labels.on: True is not of type string"),
        ({"name": "greeter", "labels": {"team": "a b"}}, "metadata.labels.team: 'a b' does not match"),
        ({"name": "greeter", "annotations": {"since": 1}}, "metadata.annotations.since: 1 is not of type string"),
    ],
)
def test_mistakes_in_metadata(metadata: dict[str, Any], words: str) -> None:
    (found,) = check({**service(), "metadata": metadata})
    assert (found.code, words in found.problem) == (Code.BAD_FIELD, True), found
    assert check({**service(), "metadata": {"name": "a.b-c", "labels": {"a": "", "b": "B_1.c"}, "uid": "u"}}) == []


def messages(schema: Any) -> Iterator[str]:
    for each in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from messages(each)
    if isinstance(schema, dict):
        yield from (rule["message"] for rule in schema.get("x-kubernetes-validations", ()))


def test_every_rule_of_the_crd_has_a_function() -> None:
    assert set(messages(SCHEMA_OF_CRD)) == RULES.keys()


@given(st.sampled_from(FIELDS), JSON)
def test_whatever_stands_in_a_field_there_is_an_answer(field: str, value: Any) -> None:
    item = service(**{field: value})
    check(item, pods=[PodFacts(namespace="shop", name="p", labels={"app": "greeter"})])
    list(find_mistakes(SCHEMA_OF_CRD, item))


@given(JSON, JSON)
@example("x", None)
def test_whatever_the_api_server_is_to_write_there_is_an_answer(generation: Any, seen: Any) -> None:
    """A manifest that was printed by a cluster has them, and anybody may write anything there."""
    item = service()
    item["metadata"]["generation"] = generation
    check({**item, "status": {"observedGeneration": seen}}, pods=[])
    check({**item, "status": seen})


def test_a_port_of_more_digits_than_python_takes_is_no_port() -> None:
    (found,) = check(service(port="9" * 5000))
    assert found.code is Code.BAD_FIELD


@given(JSON)
def test_whatever_a_document_is_there_is_an_answer(value: Any) -> None:
    check(*(each.item for each in flatten("x.yaml", [value])))
    check({"apiVersion": "grpc-etcd.dev/v1alpha1", "kind": "GrpcService", "metadata": value, "spec": value})


def test_templates_of_the_same_files_count_as_pods() -> None:
    container = {"name": "c", "ports": [{"name": "rpc", "containerPort": 1}]}
    template = {"metadata": {"labels": {"app": "greeter"}}, "spec": {"containers": [container]}}
    workload = {"kind": "Deployment", "metadata": {"name": "d"}, "spec": {"template": template}}
    (found,) = check(service(port="grpc"), workload)
    assert (found.code, found.remedy) == (Code.NO_PORT, "In x.yaml: set spec.port to rpc")
    assert check(service(port="rpc"), workload) == []
    assert check(service(port="any")) == [], "no Pods are known"
    assert check(service(), pods=[])[0].code is Code.NO_PODS


def test_a_name_that_another_namespace_uses() -> None:
    other = ServiceFacts(namespace="team", name="x", registry_name="greeter")
    assert [each.code for each in check(service(), services=(other,))] == [Code.NAME_IN_USE]
    assert check(service(layouts=["kratos"]), services=(other,)) == []
    assert check(service(), services=(replace(other, namespace="shop"),)) == [], "it may be the one that is changed"


def test_objects_in_lists_are_found() -> None:
    assert [each.item["kind"] for each in flatten("x", [{"kind": "List", "items": [service()]}, None, "text"])] == [
        "GrpcService"
    ]

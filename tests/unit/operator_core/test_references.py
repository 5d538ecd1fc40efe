"""What a GrpcService takes of a Service, and that a Service which cannot be used takes nothing from anybody."""

import json
import tracemalloc
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpc_etcd_operator.core.reasons import Reason
from grpc_etcd_operator.core.references import Lack, References, resolve
from grpc_etcd_operator.core.selector import NOBODY
from grpc_etcd_operator.core.services import GrpcService, parse_service
from grpc_etcd_operator.core.targets import MOST_LABELS, Target, parse_target
from testbed.examples import examples
from tests.unit.operator_core.conftest import make_raw_service

GRPC = [{"name": "grpc", "port": 80, "targetPort": "grpc"}]


def raw_target(uid: str = "t1", name: str = "cart", namespace: str = "shop", **spec: Any) -> dict[str, Any]:
    metadata = {"uid": uid, "namespace": namespace, "name": name}
    return {"metadata": metadata, "spec": {"selector": {"app": "greeter"}, "ports": GRPC, **spec}}


def naming(uid: str = "s1", *, ref: str = "cart", **spec: Any) -> GrpcService:
    """Parse a GrpcService that names a Service."""
    raw = make_raw_service(uid, **spec)
    del raw["spec"]["selector"]
    raw["spec"]["serviceRef"] = {"name": ref}
    return parse_service(raw)


def with_target(target: Mapping[str, Any], **spec: Any) -> GrpcService:
    return resolve(naming(**spec), parse_target(target))


ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-1, 70_000), st.text(max_size=5), st.sampled_from(["grpc", "TCP"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["selector", "ports", "port", "targetPort", "name", "app", "protocol", "type"]), inner
        ),
    ),
    max_leaves=12,
)
LACKS = st.sampled_from([Reason.PENDING, Reason.SERVICE_NOT_FOUND, Reason.SERVICES_UNREADABLE])


@settings(max_examples=examples(300))
@given(spec=ANYTHING, port=st.sampled_from([None, "grpc", 9000]), enable=st.booleans())
def test_whatever_a_service_is_there_is_a_spec_or_why_there_is_none(spec: object, port: Any, *, enable: bool) -> None:
    target = parse_target({"metadata": {"uid": "t1", "namespace": "shop", "name": "cart"}, "spec": spec})
    found = resolve(naming(port=port, enable=enable), target)
    assert (found.spec is None) == bool(found.faults)
    if found.spec is None:
        assert found.reason in {Reason.SERVICE_UNUSABLE, Reason.PORT_NOT_FOUND}
        assert len(found.faults[0]) < 2000
    elif found.spec.selector != NOBODY:
        assert found.spec.selector.labels
        assert not found.spec.selector.requirements


@given(
    st.dictionaries(st.sampled_from(["app", "tier"]), st.sampled_from(["a", "b"]), min_size=1),
    st.sampled_from([None, "rpc", 9000]),
    st.sampled_from([8080, "web"]),
)
def test_it_is_as_if_selector_and_port_stood_in_the_spec(labels: dict[str, str], port: Any, target: Any) -> None:
    found = with_target(raw_target(selector=labels, ports=[{"port": 80, "targetPort": target}]), port=port)
    written = parse_service(make_raw_service(selector={"matchLabels": labels}, port=port or target))
    assert found.spec
    assert written.spec
    assert found.spec.selector == written.spec.selector
    assert found.spec.wanted_port == written.spec.wanted_port


@given(reason=LACKS, enable=st.booleans())
def test_what_lacks_a_service_is_obeyed_only_in_having_nothing(reason: Reason, *, enable: bool) -> None:
    found = resolve(naming(enable=enable), Lack(reason, "for a reason"))
    if enable:
        assert (found.spec, found.faults, found.reason) == (None, ("for a reason",), reason)
        assert found.claimed == naming().claimed
        assert found.asked
        assert found.asked.selector.matches({"any": "Pod"})
    else:
        assert found.spec
        assert not found.spec.selector.matches({"app": "greeter"})


def test_until_it_is_resolved_nothing_of_it_is_obeyed() -> None:
    service = naming()
    assert service.spec is None
    assert service.reason is Reason.PENDING
    resolved = resolve(service, parse_target(raw_target()))
    assert resolve(resolved, parse_target(raw_target())) == resolved
    assert resolve(resolved, Lack(Reason.PENDING, "its Service is not known yet")) == service


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ({"selector": {"matchLabels": {"app": "a"}}, "serviceRef": {"name": "cart"}}, "exactly one"),
        ({"serviceRef": {"name": "Cart"}}, "no name of a Service"),
        ({"serviceRef": {"name": "c" * 64}}, "no name of a Service"),
        ({"serviceRef": {}}, "no name of a Service"),
        ({"serviceRef": "cart"}, "cannot be read"),
        ({}, "spec.selector is empty"),
    ],
)
def test_a_spec_that_names_no_service_and_no_pods_is_invalid(spec: dict[str, Any], named: str) -> None:
    raw = make_raw_service()
    raw["spec"] = spec
    service = parse_service(raw)
    assert service.spec is None
    assert service.claimed is None
    assert service.reason is Reason.INVALID_SPEC
    assert named in service.faults[0]
    assert resolve(service, parse_target(raw_target())) is service


@pytest.mark.parametrize(
    ("spec", "reason", "named"),
    [
        ({"type": "ExternalName", "externalName": "example.com"}, Reason.SERVICE_UNUSABLE, "leads out of the cluster"),
        ({"selector": None}, Reason.SERVICE_UNUSABLE, "no selector"),
        ({"selector": {}, "clusterIP": "None"}, Reason.SERVICE_UNUSABLE, "no selector"),
        ({"selector": {"app": "no label!"}}, Reason.SERVICE_UNUSABLE, "no Pod can have"),
        ({"selector": {f"l{n}": "" for n in range(MOST_LABELS + 1)}}, Reason.SERVICE_UNUSABLE, "more than"),
        ({"ports": [{"port": 80}, {"port": 81, "name": "web"}]}, Reason.PORT_NOT_FOUND, "(no name)=80, web=81"),
        ({"ports": [{"port": 80, "name": "grpc-a"}, {"port": 81, "name": "grpc-b"}]}, Reason.PORT_NOT_FOUND, "grpc-a"),
    ],
)
def test_a_service_that_cannot_be_used_says_why(spec: dict[str, Any], reason: Reason, named: str) -> None:
    found = with_target(raw_target(**spec))
    assert found.spec is None
    assert found.reason is reason
    assert named in found.faults[0]
    assert "existing keys stay" in found.faults[0]


@pytest.mark.parametrize(
    ("ports", "expected"),
    [
        (None, None),
        ([], None),
        ([{"port": 80}], 80),
        ([{"port": 80, "targetPort": 9000}], 9000),
        ([{"port": 80, "targetPort": "api"}], "api"),
        ([{"port": 80, "targetPort": 9000}, {"port": 53, "protocol": "UDP"}], 9000),
        ([{"port": 80, "name": "web"}, {"port": 81, "name": "grpc"}], 81),
        ([{"port": 80, "name": "web"}, {"port": 81, "targetPort": "grpc"}], "grpc"),
        ([{"port": 80, "name": "web"}, {"port": 81, "appProtocol": "kubernetes.io/h2c"}], 81),
        ([{"port": 80, "name": "grpc-admin"}, {"port": 81, "name": "grpc"}], 81),
        ([{"port": 80, "targetPort": 9000}, {"port": 81, "targetPort": 9000}], 9000),
        ([{"port": 80, "name": "web"}, {"port": 81, "name": "grpc-web"}, {"port": 82, "name": "x-grpc"}], 82),
    ],
)
def test_the_port_of_grpc_is_chosen(ports: Any, expected: str | int | None) -> None:
    found = with_target(raw_target(ports=ports))
    assert found.spec
    assert found.spec.wanted_port == expected


def test_a_port_of_its_own_word_goes_before_any_of_the_service() -> None:
    found = with_target(raw_target(ports=[{"port": 80}, {"port": 81}]), port="rpc")
    assert found.spec
    assert found.spec.wanted_port == "rpc"


# -- who is concerned -------------------------------------------------------------------------------------------------


def target(uid: str = "t1", name: str = "cart", namespace: str = "shop", **spec: Any) -> Target:
    return parse_target(raw_target(uid, name, namespace, **spec))


def test_only_those_are_concerned_that_name_a_service_which_has_changed() -> None:
    known = References()
    for uid, ref in (("s1", "cart"), ("s2", "cart"), ("s3", "till")):
        known.resolve(naming(uid, ref=ref))
    assert known.pending.keys() == {"s1", "s2", "s3"}
    assert set(known.note(target())) == {"s1", "s2"}
    assert known.note(target()) == ()
    assert known.note(target(namespace="else")) == ()
    assert known.resolve(naming("s1")).spec
    assert known.pending.keys() == {"s2", "s3"}
    assert set(known.note(target(selector={"app": "b"}))) == {"s1", "s2"}
    known.resolve(parse_service(make_raw_service("s2")))
    assert known.note(target()) == ("s1",)
    known.forget_service("s1")
    assert known.note(target(selector={"app": "b"})) == ()
    assert repr(known) == "<References services=2 named=1>"


def test_a_list_ends_the_waiting_and_finds_what_went_unseen() -> None:
    known = References()
    known.note(target())
    assert known.resolve(naming()).spec
    assert known.resolve(naming("s2", ref="till")).reason is Reason.PENDING
    assert set(known.take_list("shop", {"t1"})) == {"s2"}
    assert known.resolve(naming("s2", ref="till")).reason is Reason.SERVICE_NOT_FOUND
    assert known.take_list("else", ()) == ()
    assert set(known.take_list("", ())) == {"s1"}
    assert known.resolve(naming()).reason is Reason.SERVICE_NOT_FOUND


LARGEST = {f"{number:03}{'d' * 250}/{'k' * 63}": "v" * 63 for number in range(MOST_LABELS)}


def test_what_nobody_names_takes_little_memory_however_large_it_is() -> None:
    known, count = References(), 300
    known.resolve(naming())
    tracemalloc.start()
    try:
        for number in range(count):
            known.note(target(f"t{number}", f"other-{number}", selector=dict(json.loads(json.dumps(LARGEST)))))
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used / count < 2000


def test_a_large_service_that_is_named_late_is_taken_of_the_next_list() -> None:
    known, large = References(), target(selector=LARGEST)
    known.note(large)
    assert not known.wants_list("")
    found = known.resolve(naming())
    assert found.reason is Reason.PENDING
    assert "very large" in found.faults[0]
    assert not known.pending, "nobody else waits for it"
    assert [known.wants_list(namespace) for namespace in ("", "shop", "else")] == [True, True, False]
    assert known.note(large) == ("s1",)
    assert not known.wants_list("")
    for _ in range(2):  # also when it is judged again
        spec = known.resolve(naming()).spec
        assert spec
        assert spec.selector == large.selector
    known.resolve(naming(ref="till"))
    assert known.resolve(naming()).reason is Reason.PENDING
    assert known.forget(large) == ("s1",)
    assert not known.wants_list("")


@pytest.mark.parametrize("leaves", [lambda known: known.forget_service("s1"), lambda known: known.take_list("", ())])
def test_no_list_is_wanted_for_what_is_named_or_there_no_more(leaves: Callable[[References], object]) -> None:
    known = References()
    known.note(target(selector=LARGEST))
    known.resolve(naming())
    assert known.wants_list("")
    leaves(known)
    assert not known.wants_list("")


def test_a_late_deletion_is_of_no_service_that_came_in_its_place() -> None:
    known = References()
    known.resolve(naming())
    known.note(target("old"))
    known.note(target("new"))
    assert known.forget(target("old")) == ()
    assert known.resolve(naming()).spec
    assert known.forget(target("new")) == ("s1",)
    known.forget_service("s1")
    assert repr(known) == "<References services=0 named=0>"


@pytest.mark.parametrize("namespace", ["", "shop"])
def test_a_first_list_that_does_not_come_is_reported_until_it_does(namespace: str) -> None:
    known = References()
    known.resolve(naming())
    assert known.note_unanswered("else", 15.0) == ()
    assert known.resolve(naming()).reason is Reason.PENDING
    assert known.note_unanswered(namespace, 15.2) == ("s1",)
    assert known.note_unanswered(namespace, 16.2) == ()
    found = known.resolve(naming())
    assert found.reason is Reason.SERVICES_UNREADABLE
    assert "for more than 15 seconds no complete list" in found.faults[0]
    assert known.take_list(namespace, ()) == ("s1",)
    assert known.resolve(naming()).reason is Reason.SERVICE_NOT_FOUND
    assert known.note_unanswered(namespace, 60.0) == ()


def test_what_may_not_be_read_is_judged_no_more_until_it_may() -> None:
    known = References()
    known.note(target())
    known.resolve(naming())
    assert known.note_fault("shop", "403") == ("s1",)
    assert known.note_fault("shop", "403") == ()
    assert known.resolve(naming()).reason is Reason.SERVICES_UNREADABLE
    assert known.note_fault("shop", "") == ("s1",)
    assert known.resolve(naming()).spec
    assert known.note_fault("", "403") == ("s1",)
    assert known.resolve(naming()).reason is Reason.SERVICES_UNREADABLE

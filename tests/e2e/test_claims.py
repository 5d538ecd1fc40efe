"""A name belongs to whoever claimed it first; nothing that another namespace applies reaches what stands below it."""

import json
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from aiohttp import web

from grpc_etcd.layouts.index import LAYOUT_NAMES
from testbed.apiserver import ApiServer
from testbed.conditions import wait_until
from testbed.etcd import EtcdServer
from testbed.kubelet import Pod
from testbed.replica import Replica
from tests.e2e.conftest import MakeScene, Scene
from tests.e2e.front import Front, is_watch

LEADER_TTL_SECONDS = 3
MOST_CLAIMS = 512  # that the CRD has room for
POLICY = b"/grpc-etcd/policy/jupiter/payments"


@pytest.fixture
def evil(scene: Scene) -> str:
    """Another namespace, whose tenant means no good."""
    name = f"{scene.namespace}-evil"
    scene.api.client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    return name


def provider_keys(scene: Scene) -> dict[str, int]:
    return {key: record.lease for key, record in scene.registry.keys("/jupiter/payments/").items()}


def claims(scene: Scene, name: str, namespace: str = "") -> dict[str, str]:
    return {each["prefix"]: each["since"] for each in scene.status(name, namespace).get("claims", [])}


def let_evil_rename(scene: Scene, evil: str, *flags: str) -> tuple[Replica, Pod]:
    """Give evil the older object and shop the older claim; then let evil edit its name to shop's."""
    replica = scene.start(f"--namespace={evil}", *flags).wait_leading()
    scene.apply("parked", evil)
    theirs = scene.pod(namespace=evil)
    scene.registry.wait_addresses(theirs.address, name="parked")
    scene.apply("payments")
    mine = scene.pod()
    scene.registry.wait_addresses(mine.address, name="payments")
    scene.apply("parked", evil, name="payments")
    scene.wait_condition("Accepted", "False", "NameTaken", "parked", evil)
    return replica, mine


def assert_still_shops(scene: Scene, mine: Pod) -> None:
    """Let a change of shop's go all the way, so that whatever else was to happen has happened."""
    late = scene.pod()
    scene.registry.wait_addresses(mine.address, late.address, name="payments")
    scene.kubelet.unready(late)
    scene.registry.wait_addresses(mine.address, name="payments")
    assert scene.condition("Accepted", "payments") == ("True", "Accepted")


def test_an_old_object_that_is_renamed_does_not_take_a_name(scene: Scene, evil: str) -> None:
    _, mine = let_evil_rename(scene, evil)
    assert_still_shops(scene, mine)
    message = next(each["message"] for each in scene.status("parked", evil)["conditions"] if each["type"] == "Accepted")
    assert f"{scene.namespace}/payments" in message


def test_a_claim_outlives_a_restart(scene: Scene, evil: str) -> None:
    replica, mine = let_evil_rename(scene, evil)
    before = claims(scene, "payments")
    replica.process.stop()
    scene.start(f"--namespace={evil}").wait_leading()
    assert_still_shops(scene, mine)
    assert claims(scene, "payments") == before
    scene.wait_condition("Accepted", "False", "NameTaken", "parked", evil)


@pytest.mark.faults
def test_a_claim_outlives_a_takeover(scene: Scene, evil: str) -> None:
    flags = (f"--leader-ttl={LEADER_TTL_SECONDS}",)
    replica, mine = let_evil_rename(scene, evil, *flags)
    standby = scene.start(f"--namespace={evil}", *flags)
    wait_until(lambda: len(standby.lines("listed")) == 2, "the standby is warm")
    replica.process.kill()
    standby.wait_leading()
    assert_still_shops(scene, mine)


@pytest.mark.faults
def test_a_claim_outlives_the_registry(apiserver: ApiServer, own_etcd: EtcdServer, make_scene: MakeScene) -> None:
    scene = make_scene(apiserver, own_etcd)
    evil = f"{scene.namespace}-evil"
    scene.api.client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": evil}})
    replica, mine = let_evil_rename(scene, evil)
    replica.process.stop()
    own_etcd.etcdctl("del", "--prefix", "/")
    scene.start(f"--namespace={evil}").wait_leading()
    assert_still_shops(scene, mine)
    assert list(provider_keys(scene)) == [f"/jupiter/payments/providers/grpc://{mine.address}"]


@pytest.mark.faults
def test_a_claim_whose_answer_is_lost_is_nobody_elses(scene: Scene, evil: str, tmp_path: Path) -> None:
    """The API server writes it, and neither its answers nor the watch say so to whoever has asked for it."""
    is_written = Event()
    granted: list[str] = []

    def loses(request: web.Request, body: bytes) -> bool:
        if b'"prefix"' in body:
            granted.append(request.path)
        is_shops = request.method == "PATCH" and f"/{scene.namespace}/" in request.path
        if is_shops:
            is_written.set()
        return is_shops

    with Front(scene.api, tmp_path) as front:
        front.loses = loses
        watched = f"/namespaces/{scene.namespace}/grpcservices"
        front.withholds = lambda request: is_written.is_set() and is_watch(request) and request.path.endswith(watched)
        scene.start(f"--namespace={evil}", kubeconfig=front.kubeconfig).wait_leading()
        scene.apply("payments")
        wait_until(lambda: claims(scene, "payments"), "the claim is written")
        scene.apply("parked", evil, name="payments")
        scene.wait_condition("Accepted", "False", "NameTaken", "parked", evil)
        scene.wait_condition("Accepted", "True", "Accepted", "payments")
        scene.close()
    assert not [path for path in granted if f"/{evil}/" in path]


@pytest.mark.parametrize(
    ("shops", "evils"),
    [
        ({}, {"name": "x", "prefix": "jupiter/payments/providers/grpc://x"}),
        ({"layouts": ["go-zero"]}, {"name": "x", "prefix": "payments", "layouts": ["go-zero"]}),
        ({"layouts": ["go-zero"]}, {"name": "x", "prefix": "payments", "layouts": ["etcd-naming"]}),
        ({"layouts": ["etcd-naming"]}, {"layouts": ["go-zero"]}),
        ({"layouts": ["jupiter-v2"]}, {"name": "grpc:payments:v1:unknown-mode", "layouts": ["etcd-naming"]}),
        (
            {"layouts": ["jupiter-v2"], "scheme": "http"},
            {"name": "http:payments:v1:unknown-mode", "layouts": ["go-zero"]},
        ),
        ({"layouts": ["kratos"]}, {"name": "x", "prefix": "/microservices/payments", "layouts": ["kratos"]}),
        ({"layouts": ["kitex"]}, {"name": "payments", "prefix": "kitex/registry-etcd", "layouts": ["go-zero"]}),
        ({"layouts": ["kitex"]}, {"name": "registry-etcd", "prefix": "kitex", "layouts": ["etcd-naming"]}),
    ],
)
def test_keys_of_another_namespace_come_from_no_name_layout_or_prefix(
    scene: Scene, evil: str, shops: dict[str, Any], evils: dict[str, Any]
) -> None:
    allowed = ("jupiter", "microservices", "kitex")
    scene.start(f"--namespace={evil}", *(f"--allowed-prefix={each}" for each in allowed)).wait_leading()
    scene.apply("payments", **shops)
    mine = scene.pod()
    scene.wait_condition("Programmed", "True", "Programmed", "payments")
    before = everything(scene)
    assert any(mine.address.encode() in value or mine.address in key for key, (value, _) in before.items())
    scene.apply("evil", evil, **{"name": "payments", **evils})
    scene.pod(namespace=evil)
    wait_until(lambda: scene.condition("Accepted", "evil", evil)[0] == "False", "it is refused")
    assert everything(scene) == before


def everything(scene: Scene) -> dict[str, tuple[bytes, int]]:
    found = {**scene.registry.keys("/"), **scene.registry.keys("0")}
    found |= {
        key: record for start in "abcdefghijklmnopqrstuvwxyz" for key, record in scene.registry.keys(start).items()
    }
    mine = ("payments", "kitex", "registry-etcd")
    return {
        key: (record.value, record.lease)
        for key, record in found.items()
        if not key.startswith("/grpc-etcd/") and any(each in key for each in mine)
    }


def test_policy_routes_and_targets_come_from_the_holder_alone(scene: Scene, evil: str) -> None:
    scene.start(f"--namespace={evil}").wait_leading()
    scene.apply("payments")
    mine = scene.pod()
    scene.registry.wait_addresses(mine.address, name="payments")
    theirs = scene.pod(namespace=evil)
    policy = {"timeout": "50ms"}
    routes = [{"id": "to-evil", "method": "/shop.Payments/Pay", "addresses": {theirs.address: 1}}]
    for layout in LAYOUT_NAMES:
        wish = {"layouts": [layout], "policy": policy, "metricsPort": 9100}
        wish |= {"routes": routes} if layout == "jupiter" else {}  # the CRD takes routes with no other
        scene.apply(f"evil-{layout}", evil, name="payments", **wish)
        scene.wait_condition("Accepted", "False", "NameTaken", f"evil-{layout}", evil)
    assert_still_shops(scene, mine)
    assert scene.client.get(POLICY) is None
    assert not scene.registry.keys("/prometheus/job/payments/")
    assert not scene.registry.keys("/jupiter/payments/configurators/")
    scene.apply("payments", policy=policy, routes=[{**routes[0], "addresses": {mine.address: 1}}], metricsPort=9100)
    wait_until(lambda: scene.client.get(POLICY), "its own policy is written")
    wait_until(lambda: scene.registry.keys("/prometheus/job/payments/"), "and its target")
    wait_until(lambda: scene.registry.keys("/jupiter/payments/configurators/"), "and its route, where theirs was to be")


@pytest.mark.parametrize("allowed", [(), ("/",), ("/grpc-etcd",)])
@pytest.mark.parametrize("prefix", ["/grpc-etcd", "grpc-etcd", "/grpc-etcd/owner", "/grpc-etcd/", "//grpc-etcd"])
def test_nothing_is_written_below_the_operators_own_keys(scene: Scene, prefix: str, allowed: tuple[str, ...]) -> None:
    if allowed:
        replica = scene.make(*(f"--allowed-prefix={each}" for each in allowed)).start()
        wait_until(lambda: "allowed-prefix" in replica.text(), "the setting is refused with its name")
        return
    scene.start().wait_leading()
    layouts = ["jupiter", "go-zero", "etcd-naming", "kratos", "kitex"]
    for layout in layouts:
        scene.apply(layout, "", name="synced", layouts=[layout], prefix=prefix, policy={"timeout": "5s"})
    scene.pod()
    for layout in layouts:
        scene.wait_condition("Accepted", "False", "PrefixNotAllowed", layout)
    found = scene.registry.keys("/grpc-etcd/synced/") | scene.registry.keys(f"/grpc-etcd/owner/{scene.cluster}/")
    assert list(found) == [f"/grpc-etcd/synced/{scene.cluster}"]
    assert not scene.registry.keys("//grpc-etcd/")
    assert not scene.registry.keys("grpc-etcd/")


def test_no_name_shadows_a_whole_layout(scene: Scene, evil: str) -> None:
    scene.start(f"--namespace={evil}").wait_leading()
    scene.apply("kitex", evil, layouts=["etcd-naming", "go-zero"])
    scene.wait_condition("Accepted", "False", "NameReserved", "kitex", evil)
    scene.apply("greeter", layouts=["kitex"])
    pod = scene.pod()
    wait_until(lambda: scene.registry.keys(f"kitex/registry-etcd/greeter/{pod.address}"), "the layout is free")


def test_prefixes_are_those_that_an_admin_allows(scene: Scene) -> None:
    scene.start("--allowed-prefix=wsd-reg").wait_leading()
    scene.apply("other", prefix="elsewhere")
    scene.wait_condition("Accepted", "False", "PrefixNotAllowed", "other")
    message = next(each["message"] for each in scene.status("other")["conditions"] if each["type"] == "Accepted")
    assert "--allowed-prefix" in message
    assert "allowedPrefixes" in message
    scene.apply("near", prefix="wsd-register")
    scene.wait_condition("Accepted", "False", "PrefixNotAllowed", "near")
    for name, prefix in (("own", "jupiter"), ("allowed", "wsd-reg"), ("below", "wsd-reg/team")):
        scene.apply(name, prefix=prefix)
        scene.wait_condition("Accepted", "True", "Accepted", name)


def test_a_renamed_service_gives_its_old_name_back_once_its_keys_are_gone(scene: Scene, evil: str) -> None:
    scene.start(f"--namespace={evil}").wait_leading()
    scene.apply("payments")
    mine = scene.pod()
    scene.registry.wait_addresses(mine.address, name="payments")
    scene.apply("waiting", evil, name="payments")
    theirs = scene.pod(namespace=evil)
    scene.wait_condition("Accepted", "False", "NameTaken", "waiting", evil)
    scene.apply("payments", name="renamed")
    scene.registry.wait_addresses(mine.address, name="renamed")
    scene.registry.wait_addresses(theirs.address, name="payments")
    assert "/jupiter/payments/" not in claims(scene, "payments")


def test_a_registry_that_is_renamed_gives_nobodys_name_away(scene: Scene, own_etcd: EtcdServer, evil: str) -> None:
    def start(name: str) -> Replica:
        config = scene.folder / f"{name}.json"
        config.write_text(json.dumps({"registries": {name: {"endpoints": [own_etcd.endpoints]}}}))
        return scene.start(f"--namespace={evil}", f"--config={config}").wait_leading()

    def keys() -> list[str]:
        found = own_etcd.etcdctl("get", "--keys-only", "--prefix", "/jupiter/payments/")
        return [line.rpartition("/")[2] for line in found.splitlines() if line]

    replica = start("old")
    scene.apply("payments", registries=["old"])
    mine = scene.pod()
    wait_until(lambda: keys() == [mine.address], "it is registered")
    scene.apply("payments", evil, registries=["new"])
    scene.pod(namespace=evil)
    scene.wait_condition("Accepted", "False", "UnknownRegistry", "payments", evil)
    replica.process.stop()
    start("new")
    scene.wait_condition("Accepted", "False", "NameTaken", "payments", evil)
    scene.wait_condition("Accepted", "False", "UnknownRegistry", "payments")
    scene.apply("payments", registries=["new"])
    late = scene.pod()
    wait_until(lambda: set(keys()) == {mine.address, late.address}, "its owner goes on under the new name")
    wait_until(
        lambda: {each["registry"] for each in scene.status("payments")["claims"]} == {"new"}, "the old claims end"
    )
    assert scene.condition("Accepted", "payments", evil) == ("False", "NameTaken")
    scene.delete("payments")
    scene.wait_condition("Accepted", "True", "Accepted", "payments", evil)


def test_a_deleted_service_gives_its_name_back(scene: Scene, evil: str) -> None:
    scene.start(f"--namespace={evil}").wait_leading()
    scene.apply("payments")
    scene.wait_condition("Accepted", "True", "Accepted", "payments")
    scene.apply("waiting", evil, name="payments")
    theirs = scene.pod(namespace=evil)
    scene.wait_condition("Accepted", "False", "NameTaken", "waiting", evil)
    scene.delete("payments")
    scene.registry.wait_addresses(theirs.address, name="payments")


def test_a_name_is_granted_though_there_is_no_room_for_another_claim(scene: Scene) -> None:
    """Whoever renames a GrpcService on and on holds, in the end, as many names as its status has room for."""
    replica = scene.start("--leader-ttl=60").wait_leading()
    service = scene.apply("payments")
    pod = scene.pod()
    scene.registry.wait_addresses(pod.address, name="payments")
    replica.process.pause()
    held = scene.status("payments")["claims"]
    more = [{**held[0], "prefix": f"/jupiter/before-{number}/"} for number in range(MOST_CLAIMS - len(held))]
    scene.api.client.patch(service, {"status": {"claims": held + more}}, "status")
    scene.api.client.patch(service, {"spec": {"name": "renamed"}})
    replica.process.resume()
    scene.registry.wait_addresses(pod.address, name="renamed")
    scene.registry.wait_addresses(name="payments")
    wait_until(lambda: len(claims(scene, "payments")) == len(held), "it holds what it asks for, and no more")


def test_a_changed_prefix_gives_nobodys_name_away(scene: Scene) -> None:
    """Who was refused a name before is not the first to ask for it below the new prefix."""
    evil = f"{scene.namespace}-evil"
    scene.api.client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": evil}})
    replica = scene.start(f"--namespace={evil}").wait_leading()
    scene.apply()
    mine, theirs = scene.pod(), scene.pod(namespace=evil)
    scene.registry.wait_addresses(mine.address)
    scene.wait_condition("Accepted", "True", "Accepted")
    scene.apply("parked", evil, name="greeter")
    scene.apply("renamed", evil)
    scene.wait_condition("Accepted", "True", "Accepted", "renamed", evil)
    scene.apply("renamed", evil, name="greeter")
    for name in ("parked", "renamed"):
        scene.wait_condition("Accepted", "False", "NameTaken", name, evil)
    replica.process.stop()
    scene.start(f"--namespace={evil}", "--prefix=wsd").wait_leading()
    scene.registry.wait_addresses(mine.address, prefix="wsd")
    for name in ("parked", "renamed"):
        scene.wait_condition("Accepted", "False", "NameTaken", name, evil)
    scene.registry.wait_addresses()
    assert theirs.address not in scene.registry.addresses(prefix="wsd")

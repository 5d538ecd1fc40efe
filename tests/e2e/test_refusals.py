"""What etcd refuses is the fault of the GrpcService that wants it, which is told the way out; all others go on."""

import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from grpc_etcd.etcd import Etcd
from testbed.apiserver import ApiServer
from testbed.conditions import PATIENCE_SECONDS, wait_until
from testbed.etcd import EtcdServer
from testbed.replica import RegistryView, Replica
from tests.e2e.conftest import MakeScene, Scene
from tests.e2e.test_commands import run
from tests.e2e.test_gates import GATE, wait_gate

pytestmark = pytest.mark.faults
USER, ROOT_WORD = "operator", "root-password"
PREFIX = "/microservices/"
PODS, MANY = 160, 45
OWN = ("leader", "standby", "synced", "cluster", "policy")


class Guarded:
    """A scene whose etcd asks for a password, and whose operator has the role of docs/operations.md."""

    def __init__(self, scene: Scene, etcd: EtcdServer, folder: Path) -> None:
        self.scene, self.etcd = scene, etcd
        self.admin = etcd.enable_auth(ROOT_WORD)
        etcd.add_user(USER, "word", ["/jupiter/", "/grpc-etcd/"], admin=self.admin)
        password = folder / "password"
        password.write_text("word")
        self.flags = (f"--etcd-user={USER}", f"--etcd-password-file={password}")
        self.client = Etcd(etcd.endpoints, user="root", password=ROOT_WORD, timeout_seconds=PATIENCE_SECONDS)
        self.registry = RegistryView(self.client)

    def start(self, *flags: str) -> Replica:
        """Start a replica."""
        return self.scene.start(*self.flags, *flags)

    def allow(self, access: str, prefix: str) -> None:
        """Give the operator a right."""
        self.etcd.etcdctl("role", "grant-permission", "--prefix=true", USER, access, prefix, user=self.admin)

    def deny(self, prefix: str) -> None:
        """Take a right away."""
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        self.etcd.etcdctl("role", "revoke-permission", USER, prefix, end, user=self.admin)

    def message(self, name: str) -> str:
        """Read what Programmed says."""
        return next(
            str(each["message"]) for each in self.scene.status(name)["conditions"] if each["type"] == "Programmed"
        )

    def has_mark(self) -> bool:
        """Say whether the synced key stands."""
        return self.client.get(f"/grpc-etcd/synced/{self.scene.cluster}".encode()) is not None


@pytest.fixture
def guarded(apiserver: ApiServer, own_etcd: EtcdServer, make_scene: MakeScene, tmp_path: Path) -> Iterator[Guarded]:
    made = Guarded(make_scene(apiserver, own_etcd), own_etcd, tmp_path)
    yield made
    made.client.close()


def test_a_prefix_that_may_not_be_read_concerns_one_grpcservice_and_heals(guarded: Guarded) -> None:
    scene = guarded.scene
    replica = guarded.start().wait_leading()
    scene.apply()
    pod = scene.pod()
    guarded.registry.wait_addresses(pod.address)
    scene.apply("moved", layouts=["kratos", "jupiter"])  # the same Pod, and one layout that may be written
    scene.wait_condition("Programmed", "False", "PermissionDenied", "moved")
    assert "etcdctl role grant-permission ROLE --prefix=true readwrite /microservices/moved/" in guarded.message(
        "moved"
    )
    guarded.registry.wait_addresses(pod.address, name="moved")
    scene.wait_condition("Programmed", "True", "Programmed")
    assert replica.get("/readyz")[0] == 200
    wait_until(guarded.has_mark, "synced")
    replica.process.kill()
    again = guarded.start().wait_leading()
    other = scene.pod()
    guarded.registry.wait_addresses(pod.address, other.address)
    scene.wait_condition("Programmed", "True", "Programmed")
    scene.wait_condition("Programmed", "False", "PermissionDenied", "moved")
    guarded.allow("readwrite", PREFIX)
    scene.wait_condition("Programmed", "True", "Programmed", "moved")
    assert len(guarded.registry.keys("/microservices/moved/")) == 2
    assert again.get("/readyz")[0] == 200


@pytest.mark.parametrize(
    "wish",
    [{"metricsPort": 9100}, {"prefix": "elsewhere"}, {"layouts": ["go-zero"]}, {"layouts": ["jupiter-v2"]}],
    ids=["a target", "a prefix of its own", "a name alone", "a layout with colons"],
)
def test_whatever_may_not_be_written_concerns_its_grpcservice_alone_and_its_grant_heals(
    guarded: Guarded, wish: dict[str, Any]
) -> None:
    scene, flag = guarded.scene, "--allowed-prefix=elsewhere"
    replica = guarded.start(flag).wait_leading()
    scene.apply()
    scene.wait_condition("Accepted", "True", "Accepted")
    scene.apply("moved", **wish)
    scene.apply("alone", selector={"matchLabels": {"app": "alone"}}, **wish)
    scene.wait_condition("Accepted", "True", "Accepted", "alone")
    both, alone = (scene.pod(labels={"app": app}, gates=[GATE]) for app in ("greeter", "alone"))
    guarded.registry.wait_addresses(both.address)
    wait_gate(scene, both, "True", "Registered")
    wait_gate(scene, alone, "False", "PermissionDenied")
    replica.process.kill()
    replica = guarded.start(flag).wait_leading()
    late = scene.pod()
    guarded.registry.wait_addresses(both.address, late.address)
    scene.wait_condition("Programmed", "True", "Programmed")
    assert replica.get("/readyz")[0] == 200
    for name in ("moved", "alone"):
        scene.wait_condition("Programmed", "False", "PermissionDenied", name)
        access, prefix = guarded.message(name).partition("--prefix=true ")[2].split()[:2]
        guarded.allow(access, prefix)
        scene.wait_condition("Programmed", "True", "Programmed", name)
    wait_gate(scene, alone, "True", "Registered")


def test_a_refused_grpcservice_that_is_deleted_leaves_nothing_behind(guarded: Guarded) -> None:
    scene = guarded.scene
    replica = guarded.start().wait_leading()
    scene.apply("moved", layouts=["kratos"])
    scene.pod()
    scene.wait_condition("Programmed", "False", "PermissionDenied", "moved")
    wait_until(lambda: replica.metric("grpc_etcd_operator_denied_prefixes", registry="default") == 1, "it is measured")
    scene.delete("moved")
    wait_until(
        lambda: replica.metric("grpc_etcd_operator_denied_prefixes", registry="default") == 0,
        "nothing is refused any more",
    )
    wait_until(guarded.has_mark, "synced")
    assert replica.get("/readyz")[0] == 200


def test_a_prefix_that_may_be_read_and_not_written_concerns_one_grpcservice_and_heals(guarded: Guarded) -> None:
    scene = guarded.scene
    guarded.allow("read", PREFIX)
    replica = guarded.start().wait_leading()
    scene.apply()
    scene.apply("moved", layouts=["kratos"])
    pods = [scene.pod() for _ in range(20)]
    guarded.registry.wait_addresses(*(pod.address for pod in pods))
    scene.wait_condition("Programmed", "False", "PermissionDenied", "moved")
    scene.wait_condition("Programmed", "True", "Programmed")
    assert "readwrite /microservices/moved/" in guarded.message("moved")
    assert replica.get("/readyz")[0] == 200
    wait_until(guarded.has_mark, "synced")
    guarded.allow("readwrite", PREFIX)
    wait_until(lambda: len(guarded.registry.keys("/microservices/moved/")) == len(pods), "all are written")
    scene.wait_condition("Programmed", "True", "Programmed", "moved")


def test_a_right_that_is_taken_away_keeps_what_stands(guarded: Guarded) -> None:
    scene = guarded.scene
    guarded.allow("readwrite", PREFIX)
    guarded.start().wait_leading()
    scene.apply()
    scene.apply("moved", layouts=["kratos"])
    pod = scene.pod()
    guarded.registry.wait_addresses(pod.address)
    wait_until(lambda: guarded.registry.keys("/microservices/moved/"), "it is written")
    guarded.deny(PREFIX)
    other = scene.pod()
    guarded.registry.wait_addresses(pod.address, other.address)
    scene.wait_condition("Programmed", "False", "PermissionDenied", "moved")
    assert len(guarded.registry.keys("/microservices/moved/")) == 1
    scene.kubelet.unready(other)
    guarded.registry.wait_addresses(pod.address)


def test_a_pod_with_keys_where_a_right_was_taken_away_is_deregistered_elsewhere(guarded: Guarded) -> None:
    """No put is taken under a lease with a key that the role may not write, also none of the owner record."""
    scene = guarded.scene
    guarded.allow("readwrite", PREFIX)
    replica = guarded.start().wait_leading()
    scene.apply()
    scene.apply("moved", layouts=["kratos"])
    pods = [scene.pod() for _ in range(2)]
    addresses = [pod.address for pod in pods]
    guarded.registry.wait_addresses(*addresses)
    wait_until(lambda: len(guarded.registry.keys("/microservices/moved/")) == len(pods), "both are written")
    scene.wait_condition("Programmed", "True", "Programmed")
    guarded.deny(PREFIX)
    scene.kubelet.unready(pods[0])
    guarded.registry.wait_addresses(addresses[1])
    scene.wait_condition("Programmed", "False", "PermissionDenied", "moved")
    scene.wait_condition("Programmed", "True", "Programmed")
    wait_until(guarded.has_mark, "synced")
    scene.apply(weight=7)  # what cannot be put is told
    scene.wait_condition("Programmed", "False", "PermissionDenied")
    assert PREFIX in guarded.message("greeter")
    late = scene.pod(labels={"app": "late"})
    scene.apply("late", selector={"matchLabels": {"app": "late"}})
    guarded.registry.wait_addresses(late.address, name="late")
    scene.wait_condition("Programmed", "True", "Programmed", "late")
    wait_until(guarded.has_mark, "synced")
    assert replica.get("/readyz")[0] == 200
    guarded.allow("readwrite", PREFIX)
    wait_until(lambda: len(guarded.registry.keys("/microservices/moved/")) == 1, "the other key goes as well")
    for name in ("greeter", "moved"):
        scene.wait_condition("Programmed", "True", "Programmed", name)


def test_a_key_that_no_owner_record_names_and_etcd_does_not_let_go_is_tried_now_and_then(guarded: Guarded) -> None:
    scene = guarded.scene
    guarded.allow("readwrite", PREFIX)
    replica = guarded.start().wait_leading()
    scene.apply("moved", layouts=["kratos"])
    pod = scene.pod()
    scene.wait_condition("Programmed", "True", "Programmed", "moved")
    guarded.deny(PREFIX)
    assert guarded.client.delete(f"/grpc-etcd/owner/{scene.cluster}/{pod.uid}".encode())
    scene.kubelet.unready(pod)
    scene.wait_condition("Programmed", "False", "PermissionDenied", "moved")
    wait_until(lambda: replica.metric("grpc_etcd_operator_workqueue_in_flight", registry="default") == 0, "it rests")
    wait_until(guarded.has_mark, "synced")
    guarded.allow("readwrite", PREFIX)
    wait_until(lambda: not guarded.registry.keys("/microservices/moved/"), "it is deregistered")
    wait_until(
        lambda: not guarded.client.get_prefix(f"/grpc-etcd/owner/{scene.cluster}/".encode()).records, "all of it"
    )


def test_a_right_that_is_taken_away_keeps_no_settling_touch_from_other_readers(guarded: Guarded) -> None:
    """No put is taken under the lease of all touches any more, with one of them where the role may not write."""
    scene, prefix = guarded.scene, "grpc:moved:"
    guarded.allow("readwrite", prefix)
    guarded.start().wait_leading()
    scene.apply("moved", layouts=["jupiter-v2"], selector={"matchLabels": {"app": "moved"}})
    scene.apply()
    scene.wait_condition("Accepted", "True", "Accepted", "moved")
    pods = [scene.pod(labels={"app": "moved"}, ready=False) for _ in range(4)]
    for pod in pods:
        scene.kubelet.ready(pod)
    wait_until(lambda: any("/settled" in key for key in guarded.registry.keys(prefix)), "it has been touched")
    guarded.deny(prefix)
    for pod in [scene.pod(ready=False) for _ in range(4)]:
        scene.kubelet.ready(pod)
    touch = f"/jupiter/greeter/settled/{scene.cluster}".encode()
    wait_until(lambda: guarded.client.get(touch), "the other is touched too")


def restrict_own_records(guarded: Guarded) -> None:
    """Let the operator read its owner records and not write them, and leave it every other right."""
    for part in OWN:
        guarded.allow("readwrite", f"/grpc-etcd/{part}/")
    guarded.allow("read", "/grpc-etcd/owner/")
    guarded.deny("/grpc-etcd/")


def warnings_of(replica: Replica) -> list[str]:
    return [str(line) for line in replica.lines() if line["level"] == "warning"]


def test_own_records_that_may_not_be_written_are_told_as_such_and_keep_nobody_from_being_deregistered(
    guarded: Guarded,
) -> None:
    scene = guarded.scene
    replica = guarded.start().wait_leading()
    scene.apply()
    pods = [scene.pod() for _ in range(20)]
    guarded.registry.wait_addresses(*(pod.address for pod in pods))
    scene.wait_condition("Programmed", "True", "Programmed")
    restrict_own_records(guarded)
    told = len(warnings_of(replica))
    late = [scene.pod() for _ in range(5)]
    scene.apply(weight=7)
    scene.wait_condition("Programmed", "False", "RegistryUnavailable")
    scene.kubelet.unready(pods[0])
    guarded.registry.wait_addresses(*(pod.address for pod in pods[1:]))
    before, began = replica.metric("grpc_etcd_operator_etcd_errors_total", code="PermissionDenied"), time.monotonic()
    wait_until(lambda: time.monotonic() - began > 5, "it has had time to hammer")
    assert replica.metric("grpc_etcd_operator_etcd_errors_total", code="PermissionDenied") - before <= 5
    assert "its own records under /grpc-etcd/owner/" in guarded.message("greeter")
    assert "readwrite /grpc-etcd/" in guarded.message("greeter")
    assert {event["reason"] for event in scene.events() if event["type"] == "Warning"} == {"RegistryUnavailable"}
    assert replica.metric("grpc_etcd_operator_denied_prefixes") == 0
    assert replica.get("/readyz")[0] == 503
    new = warnings_of(replica)[told:]
    assert len(new) == 1
    assert "readwrite /grpc-etcd/" in new[0]
    guarded.allow("readwrite", "/grpc-etcd/")
    guarded.registry.wait_addresses(*(pod.address for pod in (*pods[1:], *late)))
    scene.wait_condition("Programmed", "True", "Programmed")
    wait_until(guarded.has_mark, "synced")


def test_an_operator_that_may_not_even_read_its_own_records_blames_no_service(guarded: Guarded) -> None:
    """Each try compares the leader's key, so that etcd refuses it whatever it is about."""
    scene = guarded.scene
    replica = guarded.start().wait_leading()
    scene.apply()
    pod = scene.pod()
    guarded.registry.wait_addresses(pod.address)
    guarded.deny("/grpc-etcd/")
    late = scene.pod()
    scene.wait_condition("Programmed", "False", "NoLeader")
    assert "readwrite /grpc-etcd/" in guarded.message("greeter")
    assert "PermissionDenied" not in {event["reason"] for event in scene.events()}
    assert replica.metric("grpc_etcd_operator_denied_prefixes") == 0
    assert not [line for line in replica.lines() if "/jupiter/" in str(line.get("refused", ""))]
    guarded.allow("readwrite", "/grpc-etcd/")
    guarded.registry.wait_addresses(pod.address, late.address)
    scene.wait_condition("Programmed", "True", "Programmed")


def test_pods_with_keys_where_a_right_was_taken_away_are_not_tried_one_by_one_for_ever(guarded: Guarded) -> None:
    scene = guarded.scene
    guarded.allow("readwrite", PREFIX)
    replica = guarded.start().wait_leading()
    scene.apply()
    scene.apply("moved", layouts=["kratos"])
    with ThreadPoolExecutor(8) as workers:
        list(workers.map(lambda _: scene.pod(), range(MANY)))
    wait_until(lambda: len(guarded.registry.keys("/microservices/moved/")) == MANY, "all are written")
    guarded.deny(PREFIX)
    told = len(warnings_of(replica))
    scene.apply(weight=7)
    scene.wait_condition("Programmed", "False", "PermissionDenied")
    wait_until(lambda: replica.metric("grpc_etcd_operator_workqueue_in_flight", registry="default") == 0, "it rests")

    def count() -> float:
        return replica.metric("grpc_etcd_operator_etcd_errors_total", code="PermissionDenied")

    before, began = count(), time.monotonic()
    wait_until(lambda: time.monotonic() - began > 8, "it has had time to hammer")
    assert count() - before <= 8
    assert len(warnings_of(replica)) - told <= 3
    assert PREFIX in guarded.message("greeter")
    guarded.allow("readwrite", PREFIX)
    for name in ("greeter", "moved"):
        scene.wait_condition("Programmed", "True", "Programmed", name)


def test_a_settling_touch_that_is_refused_stays_owed_until_the_right_is_given(guarded: Guarded) -> None:
    scene = guarded.scene
    guarded.allow("read", "/jupiter/")
    guarded.allow("readwrite", "/jupiter/greeter/providers/")
    replica = guarded.start().wait_leading()
    scene.apply()
    scene.wait_condition("Accepted", "True", "Accepted")
    pods = [scene.pod(ready=False) for _ in range(4)]
    for pod in pods:
        scene.kubelet.ready(pod)
    guarded.registry.wait_addresses(*(pod.address for pod in pods))
    wait_until(lambda: replica.lines("flush_key_refused"), "it is logged")
    assert "readwrite /jupiter/greeter/" in replica.lines("flush_key_refused")[0]["remedy"]
    scene.wait_condition("Programmed", "True", "Programmed")
    wait_until(guarded.has_mark, "synced")
    guarded.allow("readwrite", "/jupiter/")
    touch = f"/jupiter/greeter/settled/{scene.cluster}".encode()
    wait_until(lambda: guarded.client.get(touch), "its readers are notified all", 90)
    assert len(replica.lines("flush_key_refused")) == 1


def test_a_cleanup_deregisters_all_but_what_may_not_be_written_and_names_the_right(guarded: Guarded) -> None:
    scene = guarded.scene
    guarded.allow("readwrite", PREFIX)
    replica = guarded.start().wait_leading()
    scene.apply()
    scene.apply("moved", layouts=["kratos"], selector={"matchLabels": {"app": "moved"}})
    moved = [scene.pod(labels={"app": "moved"}) for _ in range(3)]
    pods = [scene.pod() for _ in range(5)]
    guarded.registry.wait_addresses(*(pod.address for pod in pods))
    wait_until(lambda: len(guarded.registry.keys("/microservices/moved/")) == len(moved), "they are written")
    replica.process.stop()
    guarded.deny(PREFIX)
    flags = [f"--cluster-id={scene.cluster}", f"--etcd-endpoints={scene.etcd.endpoints}", *guarded.flags]
    answer = run("cleanup", *flags, "--leader-ttl=3")
    assert answer.returncode == 2
    assert "readwrite /microservices/moved/" in answer.stderr + answer.stdout
    assert guarded.registry.addresses() == []
    left = guarded.client.get_prefix(f"/grpc-etcd/owner/{scene.cluster}/".encode()).records
    assert {record.key.decode().rpartition("/")[2] for record in left} == {pod.uid for pod in moved}
    assert not guarded.has_mark()
    guarded.allow("readwrite", PREFIX)
    wait_until(lambda: not guarded.registry.keys("/grpc-etcd/leader/"), "no replica leads")
    assert run("cleanup", *flags).returncode == 0
    assert set(guarded.registry.keys("/")) <= {f"/grpc-etcd/leader/{scene.cluster}"}


def test_a_deregistration_that_is_refused_is_told(guarded: Guarded) -> None:
    scene = guarded.scene
    guarded.allow("readwrite", PREFIX)
    guarded.start().wait_leading()
    scene.apply("moved", layouts=["kratos"])
    pods = [scene.pod() for _ in range(2)]
    wait_until(lambda: len(guarded.registry.keys("/microservices/moved/")) == len(pods), "they are written")
    scene.wait_condition("Programmed", "True", "Programmed", "moved")
    guarded.deny(PREFIX)
    scene.kubelet.unready(pods[0])
    scene.wait_condition("Programmed", "False", "PermissionDenied", "moved")
    assert PREFIX in guarded.message("moved")
    guarded.allow("readwrite", PREFIX)
    wait_until(lambda: len(guarded.registry.keys("/microservices/moved/")) == 1, "it is deregistered")
    scene.wait_condition("Programmed", "True", "Programmed", "moved")


def test_a_record_that_etcd_finds_too_large_is_alone_with_its_fault(
    apiserver: ApiServer, make_scene: MakeScene
) -> None:
    with EtcdServer.start(flags=["--max-request-bytes=6000"]) as small:
        scene = make_scene(apiserver, small)
        replica = scene.start().wait_leading()
        scene.apply()
        scene.apply("large", metadata={f"text-{number}": "x" * 1000 for number in range(8)})
        pods = [scene.pod() for _ in range(5)]
        scene.registry.wait_addresses(*(pod.address for pod in pods))
        scene.wait_condition("Programmed", "False", "Unwritable", "large")
        scene.wait_condition("Programmed", "True", "Programmed")
        wait_until(scene.has_mark, "synced")
        assert replica.get("/readyz")[0] == 200
        scene.apply("large", metadata={"text": "x"})
        scene.registry.wait_addresses(*(pod.address for pod in pods), name="large")


@pytest.mark.parametrize("too_large", [False, True])
def test_records_that_are_too_large_together_are_written_in_parts_and_only_one_too_large_itself_is_blamed(
    apiserver: ApiServer, make_scene: MakeScene, *, too_large: bool
) -> None:
    with EtcdServer.start(flags=["--max-request-bytes=6000"]) as small:
        scene = make_scene(apiserver, small)
        replica = scene.start("--leader-ttl=60").wait_leading()
        routes = [{"id": f"r-{number:02}", "method": "/shop.Greeter/Hello", "groups": {"a": 1}} for number in range(30)]
        large = {f"{'x' * 200}{number}": 1 for number in range(40)}
        culprit = {"id": "r-15-large", "method": "/shop.Greeter/Hello", "groups": large}
        scene.apply(policy={"timeout": "5s"}, routes=routes + [culprit] * too_large)
        pod = scene.pod()
        wait_until(lambda: len(scene.registry.keys("/jupiter/greeter/configurators/")) == len(routes), "all routes")
        scene.registry.wait_addresses(pod.address)
        if too_large:
            scene.wait_condition("Programmed", "False", "Unwritable")
        else:
            scene.wait_condition("Programmed", "True", "Programmed")
        blamed = {line["refused"].partition(": ")[0] for line in replica.lines("key_refused")}
        assert all("r-15-large" in each for each in blamed), blamed
        assert bool(blamed) == too_large
        tries = replica.metric("grpc_etcd_operator_etcd_errors_total", code="RequestTooLarge")
        # What is too large by itself is tried again and again.
        assert 0 < tries <= (math.inf if too_large else 2 * math.log2(len(routes))), tries


def test_an_etcd_that_takes_few_operations_at_a_time_is_written_to_all_the_same(
    apiserver: ApiServer, make_scene: MakeScene
) -> None:
    with EtcdServer.start(flags=["--max-txn-ops=10"]) as small:
        scene = make_scene(apiserver, small)
        scene.apply()
        pods = [scene.pod() for _ in range(12)]
        scene.start().wait_leading()
        scene.registry.wait_addresses(*(pod.address for pod in pods))
        scene.wait_condition("Programmed", "True", "Programmed")


def keys_of_many(scene: Scene) -> list[str]:
    return [key for key in scene.registry.keys("/microservices/") if "/many-" in key]


def has_any(scene: Scene) -> bool:
    return bool(keys_of_many(scene))


def has_all(scene: Scene) -> bool:
    return len(keys_of_many(scene)) == MANY


@pytest.mark.parametrize("pod_watch", ["direct"], indirect=True)  # Kopf delivers Pod after Pod, so few at once
def test_a_pod_with_more_keys_than_a_transaction_holds_makes_no_others_smaller(scene: Scene) -> None:
    # Nobody else shall lead while it is frozen, so that it plans many Pods at once.
    replica = scene.start("--leader-ttl=60").wait_leading()
    layouts = ["kratos", "go-zero", "etcd-naming"]
    for number in range(MANY):
        scene.apply(f"many-{number}", selector={"matchLabels": {"app": "large"}}, layouts=layouts)
    scene.apply(layouts=["kratos"])
    wait_until(lambda: scene.condition("Accepted", f"many-{MANY - 1}")[0] == "True", "all are there")
    large = scene.pod(labels={"app": "large"})
    wait_until(lambda: has_all(scene), "it is written for all")
    for _ in range(2):
        scene.kubelet.unready(large)
        wait_until(lambda: not has_any(scene), "it is deregistered from all")
        scene.kubelet.ready(large)
        wait_until(lambda: has_all(scene), "it is written for all")
    replica.process.pause()
    with ThreadPoolExecutor(8) as workers:
        list(workers.map(lambda _: scene.pod(), range(PODS)))
    before = scene.registry.revision()
    replica.process.resume()
    wait_until(lambda: len(scene.registry.keys("/microservices/greeter/")) == PODS, "all are written")
    assert scene.registry.revision() - before < PODS / 8, "four Pods are all that a small one holds"

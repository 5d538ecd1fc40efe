"""Random sequences of everything that happens to Pods, GrpcServices, etcd, the API server and the operator.

After each round the world is healed, and the registry must become what the oracle says. All the while, a watch proves
that no key of a Pod that is ready the whole time is ever missing. MODEL_SEED repeats a run, MODEL_SECONDS lengthens it.
"""

import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import urllib3

from grpc_etcd.etcd import Changed, Deleted, Etcd, EtcdError, Listed
from grpc_etcd.etcd.errors import LeaseNotFound
from grpc_etcd_operator.core.leases import lease_id
from testbed.conditions import wait_until
from testbed.kubelet import Pod
from testbed.kubernetes_api import ApiError
from testbed.proxy import TcpProxy
from tests.e2e.model.oracle import expected

SERVICES = ("alpha", "beta")
STEPS_A_ROUND = 12
QUIET_SECONDS = 60.0


class Guardian:
    """Watches etcd itself, not through the proxy, and notes each moment when a guarded key was missing."""

    def __init__(self, endpoints: str, guarded: set[bytes]) -> None:
        self.missing: list[str] = []
        self._guarded = guarded
        self._etcd = Etcd(endpoints)
        self._watch = self._etcd.list_watch(b"/jupiter/")
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        for news in self._watch:
            gone: set[bytes] = set()
            match news:
                case Listed(records=records):
                    gone = self._guarded - {record.key for record in records}
                case Changed(events=events):
                    gone = self._guarded & {event.key for event in events if isinstance(event, Deleted)}
            self.missing += [f"{key.decode()} at {news}" for key in gone]

    def close(self) -> None:
        self._watch.close()
        self._thread.join()
        self._etcd.close()


class Model:
    """The world, and what may happen to it. Each method whose name begins with an area is one possible event."""

    def __init__(self, scene: Any, etcd: Any, proxy: TcpProxy, chance: random.Random) -> None:
        self.scene, self.etcd, self.proxy, self.chance = scene, etcd, proxy, chance
        self.pods: list[Pod] = []
        self.strangers: set[int] = set()  # leases
        self.replicas = [scene.start("--leader-ttl=3", etcd=proxy.address) for _ in range(2)]
        self.spec: dict[str, dict[str, Any]] = {}
        for name in SERVICES:
            scene.apply(name, selector={"matchLabels": {"app": name}})
        self.steady = [scene.pod(labels={"app": name}) for name in SERVICES for _ in range(2)]

    def wait_steady(self) -> set[bytes]:
        keys = {
            f"/jupiter/{pod.item['metadata']['labels']['app']}/providers/grpc://{pod.address}" for pod in self.steady
        }
        wait_until(lambda: keys <= self.scene.registry.keys().keys(), "the steady Pods are registered")
        return {key.encode() for key in keys}

    def _any(self) -> Pod | None:
        return self.chance.choice(self.pods) if self.pods else None

    def _key(self) -> bytes | None:
        """A key that is there and belongs to no steady Pod."""
        steady = {pod.address for pod in self.steady}
        records = self.scene.registry.keys()
        found = [key for key in records if key.rpartition("://")[2] not in steady]
        return self.chance.choice(sorted(found)).encode() if found else None

    def pod_comes(self) -> None:
        labels = {"app": self.chance.choice((*SERVICES, "moody"))}
        self.pods.append(self.scene.pod(labels=labels, ready=self.chance.random() < 0.8))

    def pod_turns_ready(self) -> None:
        if pod := self._any():
            self.scene.kubelet.ready(pod)

    def pod_turns_not_ready(self) -> None:
        if pod := self._any():
            self.scene.kubelet.unready(pod)

    def pod_is_deleted(self) -> None:
        if pod := self._any():
            self.pods.remove(pod)
            self.scene.kubelet.terminate(pod, self.chance.choice((0, 1)))

    def pod_vanishes_and_its_address_is_used_again(self) -> None:
        if pod := self._any():
            self.pods.remove(pod)
            self.scene.api.client.delete(pod.item, grace_seconds=0)
            self.pods.append(self.scene.pod(labels=pod.item["metadata"]["labels"], ip=pod.ip))

    def pod_gets_a_weight(self) -> None:
        if pod := self._any():
            weight = str(self.chance.randrange(1, 1000))
            self.scene.api.client.patch(pod.item, {"metadata": {"annotations": {"grpc-etcd.dev/weight": weight}}})

    def service_changes(self) -> None:
        spec = {"enable": self.chance.random() < 0.8, "metadata": {"turn": str(self.chance.randrange(9))}}
        self.scene.apply("moody", selector={"matchLabels": {"app": "moody"}}, **spec)

    def service_is_deleted(self) -> None:
        self.scene.delete("moody")

    def operator_is_killed(self) -> None:
        self.chance.choice(self.replicas).process.kill()

    def operator_is_stopped(self) -> None:
        self.chance.choice(self.replicas).process.stop()

    def operator_freezes(self) -> None:
        self.chance.choice(self.replicas).process.pause()

    def operator_starts(self) -> None:
        for replica in self.replicas:
            replica.process.resume()
            if not replica.process.is_running:
                replica.start()

    def etcd_is_killed_and_starts(self) -> None:
        self.etcd.kill()
        time.sleep(self.chance.uniform(0.0, 1.5))
        self.etcd.restart()

    def etcd_is_compacted(self) -> None:
        self.etcdctl("compact", str(self.scene.registry.revision()))

    def etcdctl(self, *arguments: str) -> None:
        self.etcd.etcdctl(*arguments, check=False)  # the same revision may be compacted twice

    def network_is_cut(self) -> None:
        self.proxy.cut()

    def network_refuses(self) -> None:
        self.proxy.refuse()

    def network_swallows(self) -> None:
        self.proxy.black_hole()

    def network_heals(self) -> None:
        self.proxy.heal()

    def stranger_overwrites(self) -> None:
        if key := self._key():
            lease = self.scene.client.lease(600)
            self.strangers.add(lease)
            self.scene.client.put(key, b'{"enable": "nonsense', lease=lease)

    def stranger_deletes(self) -> None:
        if key := self._key():
            self.scene.client.delete(key)

    def stranger_revokes(self) -> None:
        if pod := self._any():
            self.scene.client.revoke(lease_id(self.scene.cluster, pod.uid))

    def apiserver_restarts(self) -> None:
        if self.chance.random() < 0.3:
            self.scene.api.restart()

    def events(self) -> list[Callable[[], None]]:
        areas = ("pod_", "service_", "operator_", "etcd_", "network_", "stranger_", "apiserver_")
        weights = {"pod_": 3, "service_": 2}
        names = [name for name in sorted(dir(self)) if name.startswith(areas)]
        return [getattr(self, name) for name in names for _ in range(weights.get(name.partition("_")[0] + "_", 1))]

    def heal(self) -> None:
        self.proxy.heal()
        self.operator_starts()

    def _expected(self) -> dict[str, tuple[dict[str, Any], str]]:
        client = self.scene.api.client
        services = client.list("grpc-etcd.dev/v1alpha1", "GrpcService", self.scene.namespace)["items"]
        return expected(services, client.list("v1", "Pod", self.scene.namespace)["items"])

    def difference(self) -> dict[str, Any]:
        """Each key for which the registry and the oracle disagree, in value or lease; owner records included."""
        wanted = {key: (value, lease_id(self.scene.cluster, uid)) for key, (value, uid) in self._expected().items()}
        held = {key: (parse(r.value), r.lease) for key, r in self.scene.registry.keys().items()}
        owners = self.scene.registry.keys(f"/grpc-etcd/owner/{self.scene.cluster}/")
        unknown = {record.lease for record in owners.values()} ^ {lease for _, lease in wanted.values()}
        wrong = {key: (wanted.get(key), held.get(key)) for key in wanted.keys() | held.keys()}
        return {key: pair for key, pair in wrong.items() if pair[0] != pair[1]} | dict.fromkeys(map(hex, unknown))

    def _dismiss_strangers(self) -> None:
        """Let the strangers' leases end: what they put where nobody wanted anything just then would be respected."""
        while self.strangers:
            lease = next(iter(self.strangers))
            with suppress(LeaseNotFound):
                self.scene.client.revoke(lease)
            self.strangers.discard(lease)

    def is_right(self) -> bool:
        """Whether both agree; not yet while a server that has just come back refuses the test itself."""
        try:
            self._dismiss_strangers()
            return not self.difference()
        except (ApiError, EtcdError):
            return False


def parse(value: bytes) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


@contextmanager
def guarding(endpoints: str, guarded: set[bytes]) -> Iterator[Guardian]:
    guardian = Guardian(endpoints, guarded)
    try:
        yield guardian
    finally:
        guardian.close()


def run(model: Model, seconds: float) -> int:
    """Let things happen until the time is over; return the number of rounds."""
    guarded, rounds, until = model.wait_steady(), 0, time.monotonic() + seconds
    with guarding(model.etcd.endpoints, guarded) as guardian:
        while time.monotonic() < until:
            history = []
            for event in model.chance.choices(model.events(), k=STEPS_A_ROUND):
                history.append(event.__name__)
                try:
                    event()
                except (ApiError, EtcdError, urllib3.exceptions.HTTPError) as error:  # it was away just then
                    history[-1] += f" ({type(error).__name__})"
                time.sleep(model.chance.uniform(0.0, 0.3))
            model.heal()
            try:
                wait_until(model.is_right, "the registry is as the oracle says", QUIET_SECONDS)
            except TimeoutError:
                pytest.fail(
                    f"round {rounds}: {' -> '.join(history)}\n{json.dumps(model.difference(), default=str, indent=1)}"
                )
            assert not guardian.missing, f"round {rounds}: {' -> '.join(history)}\n{guardian.missing}"
            rounds += 1
    return rounds


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(40, marks=pytest.mark.timeout(300), id="short"),
        pytest.param(240, marks=[pytest.mark.faults, pytest.mark.timeout(900)], id="long"),
    ],
)
def test_the_registry_becomes_what_the_oracle_says_whatever_happens(
    own_apiserver: Any, own_etcd: Any, make_scene: Callable[..., Any], seconds: int
) -> None:
    seed = int(os.environ.get("MODEL_SEED") or random.SystemRandom().randrange(1_000_000))
    print(f"MODEL_SEED={seed}")  # noqa: T201  shown when the test fails
    scene = make_scene(own_apiserver, own_etcd)
    with TcpProxy.start(own_etcd.endpoints) as proxy:
        model = Model(scene, own_etcd, proxy, random.Random(seed))  # noqa: S311 (no secret)
        assert run(model, float(os.environ.get("MODEL_SECONDS") or seconds)) > 0

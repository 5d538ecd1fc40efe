"""Random sequences of everything that happens to Pods, GrpcServices, registries, Kubernetes and the operator.

After each round the world is healed, and registries, statuses, gates, synced keys and readiness must become what the
oracle says. All the while, a watch proves that no key of a Pod that is ready the whole time is ever missing, and that
no Pod of the hostile tenant ever stands under a name of others. MODEL_SEED repeats a run, MODEL_SECONDS lengthens it.
"""

import json
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
import urllib3

from grpc_etcd.etcd import Deleted, Etcd, EtcdError, Put, WatchEvents, WatchSnapshot
from testbed.apiserver import ApiServer
from testbed.conditions import wait_until
from testbed.etcd import EtcdServer
from testbed.kubernetes_api import ApiError
from tests.e2e.conftest import MakeScene
from tests.e2e.model.world import World

STEPS_A_ROUND = 12
QUIET_SECONDS = 150.0  # a backup that has overtaken is found by the sweep of each minute


class Guardian:
    """Watches etcd itself, not through the proxy, and notes each moment when a guarded key was missing."""

    def __init__(self, world: World, guarded: set[bytes]) -> None:
        self.wrong: list[str] = []
        self._cluster_cache, self._guarded = world, guarded
        self._evil = world.evil_address.encode()
        self._etcd = Etcd(world.etcd.endpoints, user="root", password="root")  # noqa: S106 (a test's)
        self._watch = self._etcd.list_watch(b"/jupiter/")
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        for news in self._watch:
            gone: set[bytes] = set()
            put: set[bytes] = set()
            match news:
                case WatchSnapshot(records=records):
                    put = {record.key for record in records}
                    gone = self._guarded - put
                case WatchEvents(events=events):
                    gone = self._guarded & {event.key for event in events if isinstance(event, Deleted)}
                    put = {event.key for event in events if isinstance(event, Put)}
            if not self._cluster_cache.is_excused:
                self.wrong += [f"{key.decode()} is missing at {news}" for key in gone]
            self.wrong += [f"{key.decode()} was put" for key in put if self._is_stolen(key)]

    def _is_stolen(self, key: bytes) -> bool:
        return self._evil in key and not key.startswith(b"/jupiter/parked/")

    def close(self) -> None:
        self._watch.close()
        self._thread.join()
        self._etcd.close()


@contextmanager
def guarding(world: World, guarded: set[bytes]) -> Iterator[Guardian]:
    guardian = Guardian(world, guarded)
    try:
        yield guardian
    finally:
        guardian.close()


def play(world: World) -> list[str]:
    """Let a round of things happen; return what it was."""
    history = []
    for event in world.chance.choices(world.events(), k=STEPS_A_ROUND):
        history.append(event.__name__)
        try:
            event()
        except (ApiError, EtcdError, urllib3.exceptions.HTTPError) as error:  # it was away just then
            history[-1] += f" ({type(error).__name__})"
        time.sleep(world.chance.uniform(0.0, 0.3))
    return history


def run(world: World, seconds: float) -> int:
    """Let things happen until the time is over; return the number of rounds."""
    guarded, rounds, until = world.wait_steady(), 0, time.monotonic() + seconds
    with guarding(world, guarded) as guardian:
        while time.monotonic() < until:
            history = " -> ".join(play(world))
            world.heal()
            try:
                wait_until(world.is_right, "the world is as the oracle says", QUIET_SECONDS)
            except TimeoutError:
                told = json.dumps(world.difference(), default=str, indent=1)
                pytest.fail(f"round {rounds}: {history}\n{told}\n{world.describe_replicas()}")
            assert not guardian.wrong, f"round {rounds}: {history}\n{guardian.wrong}"
            world.is_excused = False
            rounds += 1
    return rounds


@pytest.fixture
def second_etcd() -> Iterator[EtcdServer]:
    with EtcdServer.start() as server:
        yield server


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(40, marks=pytest.mark.timeout(400), id="short"),
        pytest.param(300, marks=[pytest.mark.faults, pytest.mark.timeout(900)], id="long"),
    ],
)
def test_the_registry_becomes_what_the_oracle_says_whatever_happens(
    own_apiserver: ApiServer,
    own_etcd: EtcdServer,
    second_etcd: EtcdServer,
    make_scene: MakeScene,
    seconds: int,
) -> None:
    seed = int(os.environ.get("MODEL_SEED") or random.SystemRandom().randrange(1_000_000))
    print(f"MODEL_SEED={seed}")  # noqa: T201  shown when the test fails
    scene = make_scene(own_apiserver, own_etcd)
    with ExitStack() as stack:
        world = World(scene, own_etcd, second_etcd, random.Random(seed), stack)  # noqa: S311 (no secret)
        assert run(world, float(os.environ.get("MODEL_SECONDS") or seconds)) > 0

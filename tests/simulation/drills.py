"""Drills: faults that come together, at the worst moment, where all was well before; chance alone brings them seldom.

A drill is what opens a round now and then. As it begins all has settled and both replicas are ready, so that it can
demand more than the checks of whatever may happen: that keys are right soon after.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from grpc_etcd_operator.core.leases import lease_id
from testbed.models.api_server import PODS, SERVICES
from testbed.models.etcd_server import renews_all
from tests.simulation.players import NAMESPACE, Pod, Replica

if TYPE_CHECKING:
    from tests.simulation.world import World

SOON_SECONDS = 15.0  # within which keys are right after a short fault of etcd; it is asked again each second
BLIND_SECONDS = 20.0  # more than until a replica knows that it sees nothing
STEADY_SECONDS = 50.0  # more than what a Pod's readiness may be older than a deletion of its key (checks.py)
TAKEOVER_SECONDS = 60.0  # far more than until a replica leads that sees nothing: others come first
CUT_OFF_SECONDS = 100.0  # far more than until a leader resigns and another has done its work
# Longer than the leases' time to live: without a renewal in all that time they have run out.
RENEWAL_SECONDS = 420.0
APART_SECONDS = 20.0  # between two renewals that fail: what is tried again at once succeeds


class Drills:
    """The drills of a world, by name."""

    def __init__(self, world: "World", cluster: str) -> None:
        self._world, self._cluster = world, cluster

    @property
    def events(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """Give all drills by name."""
        return {name: getattr(self, name) for name in sorted(dir(self)) if name.startswith("drill_")}

    def _add_pod(self, *, seconds: float) -> Pod | None:
        """Let a Pod come for a service that is switched on."""
        services = [item for item in self._world.api.all(SERVICES) if item["spec"].get("enable", True)]
        if not services:
            return None
        name = self._world.chance.choice(services)["metadata"]["name"]
        return self._world.kubelet.add(name, seconds=seconds)

    def _find_leader(self) -> Replica | None:
        name = self._world.checks.leader
        return next((each for each in self._world.replicas if each.name == name), None)

    async def drill_leader_is_blind(self) -> None:
        """Cut the leader off from Kubernetes, and let a Pod come and another go; the standby sees both."""
        if not (leader := self._find_leader()):
            return
        self._world.chance.choice([leader.kube_wire.silence, leader.kube_wire.refuse])()
        if pod := self._add_pod(seconds=1.0):
            self._world.kubelet.turn(pod, 50.0, is_ready=False)
        self._world.pod_turns_unready()
        self._world.pod_vanishes()
        await asyncio.sleep(CUT_OFF_SECONDS)
        leader.kube_wire.heal()

    async def drill_takes_over_blind(self) -> None:
        """Let nobody be left but one that sees nothing of Kubernetes, and has missed a part of what was done."""
        leader = self._find_leader()
        blind = next((each for each in self._world.replicas if each is not leader and each.is_running), None)
        if leader is None or blind is None:
            return
        for _ in range(2):  # which it knows, and not that they become ready
            self._add_pod(seconds=BLIND_SECONDS + 5.0)
        await asyncio.sleep(2.0)
        self._world.chance.choice([blind.kube_wire.silence, blind.kube_wire.refuse])()
        await asyncio.sleep(BLIND_SECONDS)
        self._world.pod_vanishes()
        await asyncio.sleep(STEADY_SECONDS)
        await leader.kill()
        await asyncio.sleep(TAKEOVER_SECONDS)
        blind.kube_wire.heal()
        await asyncio.sleep(SOON_SECONDS)
        leader.start()

    async def drill_stranger_is_first(self) -> None:
        """Let a process register itself at a Pod's address just before that is ready; the leader hears of it late."""
        if not (leader := self._find_leader()):
            return
        leader.etcd_wire.stream_delay = 5.0
        address = self._world.kubelet.next_ip
        if pod := self._add_pod(seconds=self._world.chance.uniform(0.0, 2.0)):
            self._world.register_stranger(address, pod.app)
        await asyncio.sleep(8.0)
        leader.etcd_wire.heal()

    async def drill_write_fails_once(self) -> None:
        """Let etcd be without space just while a Pod is to be written; nothing else calls for a second try."""
        self._world.etcd.space.is_full = True
        self._add_pod(seconds=0.5)
        await asyncio.sleep(self._world.chance.choice([2.0, 25.0]))  # in which statuses have been written, too
        self._world.etcd.space.is_full = False
        await asyncio.sleep(SOON_SECONDS)
        self._world.checks.demand_keys(f"{SOON_SECONDS:g} s after etcd was without space")

    async def drill_renewals_fail(self) -> None:
        """Let the stream end with each renewal of one Pod's lease, but for those that are tried again at once."""
        pods = [pod for pod in self._world.kubelet.pods.values() if pod.is_ready and not pod.is_terminating]
        item = self._world.api.find(PODS, NAMESPACE, self._world.chance.choice(pods).name) if pods else None
        if item is None:
            return
        lease, failed_at = lease_id(self._cluster, item["metadata"]["uid"]), 0.0

        def fails(renewed: int) -> bool:
            nonlocal failed_at
            now = self._world.etcd.now()
            if renewed != lease or now - failed_at < APART_SECONDS:
                return False
            failed_at = now
            return True

        self._world.etcd.fails_renewal = fails
        await asyncio.sleep(RENEWAL_SECONDS)
        self._world.etcd.fails_renewal = renews_all

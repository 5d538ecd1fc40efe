"""What may happen to a world by chance: to Pods, their owners, the operator, the network, etcd, a client, Kubernetes.

Each method whose name begins with an area is one possible event; what it is called is what the timeline says.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from grpc_etcd_operator.core.leases import lease_id
from testbed.models.api_server import PODS, SERVICES, Object, timestamp
from testbed.models.wires import Wire
from tests.e2e.model.oracle import GATE, condition
from tests.simulation.checks import SLIPS, SPARE_REGISTRY
from tests.simulation.players import NAMESPACE, Pod, Replica
from tests.simulation.readers import OPERATOR, READER, RIGHTS
from tests.simulation.virtual_time import VirtualLoop

if TYPE_CHECKING:
    from tests.simulation.world import World

CLUSTER = "simulated"
SERVICE_NAMES = ("alpha", "beta", "gamma")
MOST_PODS = 20
LEASE_SECONDS = 300.0  # the operator's default
AREAS = ("pod_", "service_", "operator_", "etcd_", "api_", "network_", "clock_", "stranger_", "reader_")
Event = Callable[[], Awaitable[None] | None]


class Incidents:
    """The incidents of a world, by name."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._backups: dict[str, Any] = {}

    @property
    def events(self) -> dict[str, Event]:
        """Give all incidents by name."""
        areas = (*AREAS, "spare_") if self._world.spare else AREAS
        return {name: getattr(self, name) for name in sorted(dir(self)) if name.startswith(areas)}

    # -- Pods -----------------------------------------------------------------------------------------------------

    def _any(self) -> Pod | None:
        pods = [
            pod for pod in self._world.kubelet.pods.values() if not pod.is_terminating and pod.namespace == NAMESPACE
        ]
        return self._world.chance.choice(pods) if pods else None

    def pod_comes(self) -> None:
        if len(self._world.kubelet.pods) < MOST_PODS:
            name = self._world.chance.choice(SERVICE_NAMES)
            self._world.kubelet.add(
                name, is_gated=self._world.chance.random() < 0.4, seconds=self._world.chance.uniform(0, 5)
            )

    def pod_storm(self) -> None:
        for _ in range(6):
            self.pod_comes()

    def pod_turns_unready(self) -> None:
        if pod := self._any():
            self._world.kubelet.turn(pod, 0.0, is_ready=False)
            self._world.kubelet.turn(pod, self._world.chance.choice([0.01, 0.3, 5.0, 60.0]), is_ready=True)

    def pod_flaps(self) -> None:
        if pod := self._any():
            for number in range(6):
                self._world.kubelet.turn(pod, number * self._world.chance.uniform(0.01, 0.5), is_ready=number % 2 == 1)
            self._world.kubelet.turn(pod, 4.0, is_ready=True)

    def pod_is_terminated(self) -> None:
        if pod := self._any():
            self._world.kubelet.terminate(pod, self._world.chance.choice([0.1, 3.0, 30.0]))

    def pod_vanishes(self) -> None:
        if pod := self._any():
            self._world.kubelet.vanish(pod)

    def pod_loses_its_node(self) -> None:
        """Let one be given up that has been ready: times are in whole seconds, so not in its first one."""
        pod = self._any()
        item = self._world.api.find(PODS, NAMESPACE, pod.name) if pod else None
        if pod is None or item is None or condition(item, "Ready") != "True":
            return
        times = [each["lastTransitionTime"] for each in item["status"]["conditions"]]
        if max(times) < timestamp() and (not pod.is_gated or condition(item, GATE) == "True"):
            self._world.kubelet.give_up(pod, self._world.chance.choice([20.0, 300.0]))

    async def pod_leaves_the_scope(self) -> None:
        if pod := self._any():
            self._world.kubelet.label(pod, is_in_scope=False)
            await asyncio.sleep(self._world.chance.choice([0.001, 3.0, 30.0]))
            self._world.kubelet.label(pod, is_in_scope=True)

    def pods_swap_addresses(self) -> None:
        first, second = self._any(), self._any()
        if first and second and first is not second:
            self._world.kubelet.vanish(first)
            self._world.kubelet.vanish(second)
            self._world.kubelet.add(first.app, ip=second.ip, seconds=0.1)
            self._world.kubelet.add(second.app, ip=first.ip, seconds=0.1)

    # -- owners ---------------------------------------------------------------------------------------------------

    def _change_service(self, change: Callable[[Object], None]) -> None:
        names = [item["metadata"]["name"] for item in self._world.services]
        if names:
            self._world.api.update(
                SERVICES, NAMESPACE, self._world.chance.choice(names), lambda item: change(item["spec"])
            )

    def service_comes_or_goes(self) -> None:
        if not self._world.api.is_crd_served:
            return
        name = self._world.chance.choice(SERVICE_NAMES)
        if self._world.api.find(SERVICES, NAMESPACE, name):
            self._world.api.delete(SERVICES, NAMESPACE, name)
        else:
            self._world.create_service(name)

    def service_is_replaced(self) -> None:
        name = self._world.chance.choice(SERVICE_NAMES)
        if self._world.api.find(SERVICES, NAMESPACE, name):
            self._world.api.delete(SERVICES, NAMESPACE, name)
            self._world.create_service(name)

    def service_changes_weight(self) -> None:
        weight = self._world.chance.randrange(1, 200)
        self._change_service(lambda spec: spec.update(weight=weight))

    def service_is_switched(self) -> None:
        self._change_service(lambda spec: spec.update(enable=not spec.get("enable", True)))

    def service_has_a_slip(self) -> None:
        slip = self._world.chance.choice(SLIPS)
        self._change_service(lambda spec: spec.update(slip))

    def stranger_is_before_a_pod(self) -> None:
        """Let a process register itself at the address that the next Pod will have."""
        self._world.register_stranger(self._world.kubelet.next_ip)
        self._world.kubelet.add(SERVICE_NAMES[0], seconds=self._world.chance.uniform(0, 3))

    # -- the operator ---------------------------------------------------------------------------------------------

    def _replica(self) -> Replica:
        return self._world.chance.choice(self._world.replicas)

    async def operator_is_killed(self) -> None:
        replica = self._replica()
        self._world.timeline.note("world", f"{replica.name} is killed")
        await replica.kill()
        if self._world.chance.random() < 0.7:
            replica.start()

    async def operator_is_restarted(self) -> None:
        replica = self._replica()
        self._world.timeline.note("world", f"{replica.name} is ended")
        await replica.end()
        replica.start()

    async def operator_is_frozen(self) -> None:
        replica, loop = self._replica(), asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self._world.timeline.note("world", f"{replica.name} is frozen")
        loop.freeze(replica.name)
        await asyncio.sleep(self._world.chance.choice([0.5, 4.0, 9.0, 30.0]))
        loop.thaw(replica.name)

    def clock_jumps(self) -> None:
        """Let the wall clock jump, of all at once: it is one."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        loop.clock.skew = self._world.chance.choice([-3600.0, -5.0, 0.0, 5.0, 3600.0])

    def _break(self, wire: Wire) -> None:
        match self._world.chance.randrange(4):
            case 0:
                wire.silence()
            case 1:
                wire.refuse()
            case 2:
                wire.cut()
            case _:
                # Slower than a leader's time to live: what it sent arrives when another leads.
                wire.fastest, wire.slowest = self._world.chance.choice([(0.2, 0.5), (0.2, 2.0), (1.0, 6.0), (4.0, 9.0)])
        self._world.timeline.note("world", f"{wire!r} {wire.slowest}")

    def network_to_etcd(self) -> None:
        self._break(self._replica().etcd_wire)

    def network_to_kubernetes(self) -> None:
        self._break(self._replica().kube_wire)

    def network_loses_answers(self) -> None:
        self._replica().etcd_wire.lost_answers = self._world.chance.choice([0.1, 0.5])

    def network_loses_kubernetes_answers(self) -> None:
        self._replica().kube_wire.lost_answers = self._world.chance.choice([0.1, 0.5])

    def network_delays_watches(self) -> None:
        replica = self._replica()
        self._world.chance.choice([replica.kube_wire, replica.etcd_wire]).stream_delay = self._world.chance.choice(
            [1.0, 5.0, 20.0]
        )

    def network_is_well(self) -> None:
        self._replica().heal_wires()

    # -- etcd -----------------------------------------------------------------------------------------------------

    async def etcd_restarts(self) -> None:
        self._world.etcd.stop()
        await asyncio.sleep(self._world.chance.choice([0.1, 2.0, 20.0, 90.0]))
        self._world.etcd.start()

    async def etcd_freezes(self) -> None:
        self._world.etcd.freeze()
        await asyncio.sleep(self._world.chance.choice([1.0, 4.0, 12.0, 40.0]))
        self._world.etcd.resume()

    async def etcd_loses_quorum(self) -> None:
        self._world.etcd.lose_quorum()
        await asyncio.sleep(self._world.chance.choice([1.0, 6.0, 30.0]))
        self._world.etcd.regain_quorum()

    def etcd_loses_all(self) -> None:
        self._world.excuse()
        self._world.etcd.wipe()
        self._world.begin_history()

    def etcd_is_backed_up(self) -> None:
        self._backups["etcd"] = self._world.etcd.space.copy()

    def etcd_is_restored(self) -> None:
        if backup := self._backups.get("etcd"):
            self._world.excuse()
            self._world.etcd.restore(backup)
            self._world.begin_history()

    def etcd_is_compacted(self) -> None:
        self._world.etcd.compact()

    async def etcd_is_full(self) -> None:
        self._world.etcd.space.is_full = True
        await asyncio.sleep(self._world.chance.choice([1.0, 20.0]))
        self._world.etcd.space.is_full = False

    def etcd_takes_a_right(self) -> None:
        """Take a right; leases whose keys may not be written cannot be renewed either, and run out."""
        if OPERATOR in self._world.etcd.users:
            self._world.checks.excuse(LEASE_SECONDS + 100.0)
            self._world.etcd.deregister(
                OPERATOR, self._world.chance.choice(RIGHTS), write_only=self._world.chance.random() < 0.5
            )

    def etcd_loses_a_lease(self) -> None:
        if pod := self._any():
            item = self._world.api.find(PODS, NAMESPACE, pod.name)
            assert item
            self._world.excuse()
            self._world.etcd.revoke(lease_id(CLUSTER, item["metadata"]["uid"]))

    def etcd_loses_a_key(self) -> None:
        records = self._world.etcd.space.range(b"/jupiter/", b"/jupiter0").records
        keys = [record.key for record in records if record.key not in self._world.checks.strangers]
        if keys:
            self._world.excuse()
            self._world.etcd.delete(self._world.chance.choice(keys))

    # -- a client -------------------------------------------------------------------------------------------------

    def reader_is_cut_off(self) -> None:
        self._break(self._world.reader.wire)

    def reader_is_updated_late(self) -> None:
        self._world.reader.wire.stream_delay = self._world.chance.choice([1.0, 5.0, 20.0])

    async def reader_loses_a_right(self) -> None:
        self._world.refuse_reader(self._world.chance.choice(RIGHTS))
        await asyncio.sleep(self._world.chance.choice([1.0, 20.0, 90.0]))
        self._world.grant_all(READER)

    async def reader_is_restarted(self) -> None:
        await self._world.reader.end()
        self._world.reader.start()

    # -- the second registry --------------------------------------------------------------------------------------

    async def spare_restarts(self) -> None:
        assert self._world.spare
        self._world.spare.stop()
        await asyncio.sleep(self._world.chance.choice([0.1, 5.0, 30.0, 90.0]))
        self._world.spare.start()

    def spare_loses_all(self) -> None:
        assert self._world.spare
        self._world.excuse()
        self._world.spare.wipe()

    def spare_is_cut_off(self) -> None:
        self._break(self._replica().etcd_wires[SPARE_REGISTRY])

    # -- Kubernetes -----------------------------------------------------------------------------------------------

    def api_ends_watches(self) -> None:
        self._world.api.end_watches()

    def api_forgets_versions(self) -> None:
        self._world.api.compact()

    async def api_is_away(self) -> None:
        self._world.api.wire.refuse()
        await asyncio.sleep(self._world.chance.choice([0.5, 5.0, 30.0, 120.0]))
        self._world.api.wire.heal()

    async def api_hangs(self) -> None:
        self._world.api.wire.silence()
        await asyncio.sleep(self._world.chance.choice([2.0, 9.0, 30.0]))
        self._world.api.wire.heal()

    def api_is_busy(self) -> None:
        self._world.api.overload = 5

    def api_meets_conflicts(self) -> None:
        self._world.api.conflicts = 3

    def api_answers_no_watch(self) -> None:
        self._world.api.unanswered = 3
        self._world.api.end_watches()

    async def api_loses_the_crd(self) -> None:
        """Take the CRD away; an admin brings it back, and with it what there was."""
        self._world.excuse()
        held = [(item["metadata"], item["spec"]) for item in self._world.api.all(SERVICES)]
        self._world.note_crd_lost()
        self._world.api.delete_crd()
        await asyncio.sleep(self._world.chance.choice([0.5, 20.0]))
        self._world.api.create_crd()
        for metadata, spec in held:
            self._world.create_service(metadata["name"], spec, metadata["namespace"])

    def api_takes_a_right(self) -> None:
        replica = self._replica()
        resource = self._world.chance.choice([PODS, SERVICES, f"{SERVICES}/status", f"{PODS}/status", "events"])
        for verb in ("list", "watch") if "/" not in resource else ("patch",):
            self._world.api.forbid(replica.name, verb, resource)

    def api_is_backed_up(self) -> None:
        self._backups["api"] = self._world.api.backup()

    def api_is_restored(self) -> None:
        if backup := self._backups.get("api"):
            self._world.excuse()
            self._world.api.restore(backup)
            self._world.kubelet.reconcile()

"""The world: an API server, an etcd, two replicas, Pods and their owners; and everything that may happen to them.

Each method whose name begins with an area is one possible event; what it is called is what the timeline says. `heal`
undoes what is not meant to last.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from grpc_etcd_operator.core.leases import lease_id
from grpc_etcd_operator.settings import RegistrySettings, Settings
from testbed.models.api_server import PODS, SERVICES, ApiServerModel, Object
from testbed.models.etcd_server import EtcdModel
from testbed.models.wires import Way, Wire
from tests.e2e.model.oracle import SCOPE_LABEL
from tests.simulation.checks import Checks
from tests.simulation.drills import Drills
from tests.simulation.players import NAMESPACE, Kubelet, Pod, Replica
from tests.simulation.timeline import Timeline
from tests.simulation.virtual_time import VirtualLoop

SERVICE_NAMES = ("alpha", "beta", "gamma")
MOST_PODS = 20
CLUSTER = "simulated"
REPLICAS = ("one", "two")
OPERATOR = "operator"
STRANGER = b"{}"  # the value of a key that nobody of ours has put
LEASE_SECONDS = 300.0  # the operator's default
RIGHTS = (b"/jupiter/", b"/grpc-etcd/")
Event = Callable[[], Awaitable[None] | None]


def make_settings(name: str, *, pod_watch: str, user: str = "", leader_ttl_seconds: int = 5) -> Settings:
    """Return the settings of a replica."""
    registry = RegistrySettings(name="default", endpoints=("etcd:2379",), user=user)
    return Settings(
        registries=(registry,),
        cluster_id=CLUSTER,
        pod_selector=SCOPE_LABEL,
        pod_watch=pod_watch,
        identity=name,
        leader_ttl_seconds=leader_ttl_seconds,
    )


class World:
    """All players. Made within the event loop."""

    def __init__(self, seed: int, timeline: Timeline, checks: type[Checks]) -> None:
        self.chance = random.Random(f"world {seed}")
        self.timeline = timeline
        self.api, self.etcd = ApiServerModel(), EtcdModel()
        self.kubelet = Kubelet(self.api)
        self.checks = checks(self.api, self.etcd, timeline)
        self._watched_by = self.chance.choice(["direct", "kopf"])
        self.likely = self._draw_likely()
        self.drills = Drills(self, CLUSTER)
        self.happened: Counter[str] = Counter()
        self.replicas = [Replica(name, self.api, self.etcd, self._settings) for name in REPLICAS]
        self._backups: dict[str, Any] = {}
        self.api.on_change = self._take
        self.etcd.on_change = self.checks.take
        self._user = self.chance.choice(["", OPERATOR])
        if self._user:
            self.etcd.add_user(OPERATOR, OPERATOR, RIGHTS)
            self.etcd.enable_auth("root")
        timeline.note(
            "world", f"Pods are watched by {self._watched_by}, etcd asks {self._user or 'nobody'} for a password"
        )

    def _settings(self, name: str) -> Settings:
        return make_settings(name, pod_watch=self._watched_by, user=self._user)

    def _take(self, change: Any) -> None:
        self.kubelet.take(change)
        self.checks.take_change(change)

    # -- how it begins and ends -----------------------------------------------------------------------------------

    def begin(self) -> None:
        """Let there be some services, Pods and both replicas."""
        for name in SERVICE_NAMES[:2]:
            self._create_service(name)
            for number in range(3):
                self.kubelet.add(name, is_gated=number == 0)
        self.register_stranger("10.99.0.1")
        for replica in self.replicas:
            replica.start()

    async def end(self) -> None:
        """End the replicas; nothing may be left of them."""
        for replica in self.replicas:
            await replica.end()

    @property
    def events(self) -> dict[str, Event]:
        """Everything that may happen, by name."""
        areas = ("pod_", "service_", "operator_", "etcd_", "api_", "network_", "clock_", "stranger_")
        return {name: getattr(self, name) for name in sorted(dir(self)) if name.startswith(areas)}

    def _draw_likely(self) -> list[str]:
        """Draw what may happen here: few kinds of events that meet often find more than many that seldom do."""
        names = list(self.events)
        drawn = self.chance.sample(names, self.chance.choice([5, 10, 20, len(names)]))
        return sorted([*drawn, "pod_comes", "pod_flaps"])

    @property
    def can_be_kept(self) -> bool:
        """Say whether a replica is well and reaches all, whatever has become of the other: so all must be kept true."""
        servers = self.api.wire.is_well and not self.api.overload and self.etcd.wire.is_well and self.etcd.has_quorum
        rights = not (self.api.forbidden or self.api.strangers) and self._has_rights and self.api.is_crd_served
        wires = [(each.kube_wire, each.etcd_wire) for each in self.replicas]
        is_slow = any(not wire.is_well and wire.way is Way.OPEN for pair in wires for wire in pair)
        well = [each for each in self.replicas if each.is_running and each.kube_wire.is_well and each.etcd_wire.is_well]
        return servers and rights and not self.etcd.space.is_full and bool(well) and not is_slow

    @property
    def _has_rights(self) -> bool:
        user = self.etcd.users.get(OPERATOR)
        return user is None or len(user.writable) == len(user.readable) == len(RIGHTS)

    async def happen(self, name: str) -> None:
        """Let something happen."""
        self.timeline.note("world", name.replace("_", " "))
        self.happened[name] += 1
        result = (self.events | self.drills.events)[name]()
        if result is not None:
            await result

    def heal(self) -> None:
        """Let everything be well again."""
        self.timeline.note("world", "all is healed")
        self._end_strangers()
        self.etcd.space.is_full = False
        if OPERATOR in self.etcd.users:
            self.etcd.users[OPERATOR].readable.clear()
            self.etcd.users[OPERATOR].writable.clear()
            for prefix in RIGHTS:
                self.etcd.grant(OPERATOR, prefix)
        if not self.etcd.has_quorum:
            self.etcd.regain_quorum()
        self.etcd.wire.heal()
        self.api.wire.heal()
        self.api.overload = 0
        self.api.forbidden.clear()
        for replica in self.replicas:
            replica.kube_wire.heal()
            replica.etcd_wire.heal()
            if not replica.is_running:
                replica.start()

    # -- Pods -----------------------------------------------------------------------------------------------------

    def _any(self) -> Pod | None:
        pods = [pod for pod in self.kubelet.pods.values() if not pod.is_terminating]
        return self.chance.choice(pods) if pods else None

    def pod_comes(self) -> None:
        if len(self.kubelet.pods) < MOST_PODS:
            name = self.chance.choice(SERVICE_NAMES)
            self.kubelet.add(name, is_gated=self.chance.random() < 0.4, seconds=self.chance.uniform(0, 5))

    def pod_storm(self) -> None:
        for _ in range(6):
            self.pod_comes()

    def pod_turns_unready(self) -> None:
        if pod := self._any():
            self.kubelet.turn(pod, 0.0, is_ready=False)
            self.kubelet.turn(pod, self.chance.choice([0.01, 0.3, 5.0, 60.0]), is_ready=True)

    def pod_flaps(self) -> None:
        if pod := self._any():
            for number in range(6):
                self.kubelet.turn(pod, number * self.chance.uniform(0.01, 0.5), is_ready=number % 2 == 1)
            self.kubelet.turn(pod, 4.0, is_ready=True)

    def pod_is_terminated(self) -> None:
        if pod := self._any():
            self.kubelet.terminate(pod, self.chance.choice([0.1, 3.0, 30.0]))

    def pod_vanishes(self) -> None:
        if pod := self._any():
            self.kubelet.vanish(pod)

    def pods_swap_addresses(self) -> None:
        first, second = self._any(), self._any()
        if first and second and first is not second:
            self.kubelet.vanish(first)
            self.kubelet.vanish(second)
            self.kubelet.add(first.app, ip=second.ip, seconds=0.1)
            self.kubelet.add(second.app, ip=first.ip, seconds=0.1)

    # -- owners ---------------------------------------------------------------------------------------------------

    def _create_service(self, name: str, **spec: Any) -> None:
        metadata = {"name": name, "namespace": NAMESPACE}
        wanted = {"selector": {"matchLabels": {"app": name}}, **spec}
        self.api.create(SERVICES, {"metadata": metadata, "spec": wanted})

    def _change_service(self, change: Callable[[Object], None]) -> None:
        names = [item["metadata"]["name"] for item in self.api.all(SERVICES)]
        if names:
            self.api.update(SERVICES, NAMESPACE, self.chance.choice(names), lambda item: change(item["spec"]))

    def service_comes_or_goes(self) -> None:
        if not self.api.is_crd_served:
            return
        name = self.chance.choice(SERVICE_NAMES)
        if self.api.find(SERVICES, NAMESPACE, name):
            self.api.delete(SERVICES, NAMESPACE, name)
        else:
            self._create_service(name)

    def service_is_replaced(self) -> None:
        name = self.chance.choice(SERVICE_NAMES)
        if self.api.find(SERVICES, NAMESPACE, name):
            self.api.delete(SERVICES, NAMESPACE, name)
            self._create_service(name)

    def service_changes_weight(self) -> None:
        weight = self.chance.randrange(1, 200)
        self._change_service(lambda spec: spec.update(weight=weight))

    def service_is_switched(self) -> None:
        self._change_service(lambda spec: spec.update(enable=not spec.get("enable", True)))

    def register_stranger(self, ip: str, name: str = SERVICE_NAMES[0]) -> None:
        """Let a process of nobody's register itself."""
        key = f"/jupiter/{name}/providers/grpc://{ip}:9000".encode()
        if self.etcd.space.get(key) is None:
            self.checks.strangers.add(key)
            self.etcd.put(key, STRANGER)

    def stranger_is_before_a_pod(self) -> None:
        """Let a process register itself at the address that the next Pod will have."""
        self.register_stranger(self.kubelet.next_ip)
        self.kubelet.add(SERVICE_NAMES[0], seconds=self.chance.uniform(0, 3))

    def _find_strangers(self) -> None:
        """Take it that etcd holds other data now."""
        records = self.etcd.space.range(b"/jupiter/", b"/jupiter0").records
        self.checks.strangers = {record.key for record in records if record.value == STRANGER}

    def _end_strangers(self) -> None:
        for key in sorted(self.checks.strangers):
            self.etcd.delete(key)

    # -- the operator ---------------------------------------------------------------------------------------------

    def _replica(self) -> Replica:
        return self.chance.choice(self.replicas)

    async def operator_is_killed(self) -> None:
        replica = self._replica()
        self.timeline.note("world", f"{replica.name} is killed")
        await replica.kill()
        if self.chance.random() < 0.7:
            replica.start()

    async def operator_is_restarted(self) -> None:
        replica = self._replica()
        self.timeline.note("world", f"{replica.name} is ended")
        await replica.end()
        replica.start()

    async def operator_is_frozen(self) -> None:
        replica, loop = self._replica(), asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.timeline.note("world", f"{replica.name} is frozen")
        loop.freeze(replica.name)
        await asyncio.sleep(self.chance.choice([0.5, 4.0, 9.0, 30.0]))
        loop.thaw(replica.name)

    def clock_jumps(self) -> None:
        """Let the wall clock jump, of all at once: it is one."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        loop.clock.skew = self.chance.choice([-3600.0, -5.0, 0.0, 5.0, 3600.0])

    def _break(self, wire: Wire) -> None:
        match self.chance.randrange(4):
            case 0:
                wire.silence()
            case 1:
                wire.refuse()
            case 2:
                wire.cut()
            case _:
                # Slower than a leader's time to live: what it sent arrives when another leads.
                wire.fastest, wire.slowest = self.chance.choice([(0.2, 0.5), (0.2, 2.0), (1.0, 6.0), (4.0, 9.0)])
        self.timeline.note("world", f"{wire!r} {wire.slowest}")

    def network_to_etcd(self) -> None:
        self._break(self._replica().etcd_wire)

    def network_to_kubernetes(self) -> None:
        self._break(self._replica().kube_wire)

    def network_loses_answers(self) -> None:
        self._replica().etcd_wire.lost_answers = self.chance.choice([0.1, 0.5])

    def network_loses_kubernetes_answers(self) -> None:
        self._replica().kube_wire.lost_answers = self.chance.choice([0.1, 0.5])

    def network_delays_watches(self) -> None:
        replica = self._replica()
        self.chance.choice([replica.kube_wire, replica.etcd_wire]).stream_delay = self.chance.choice([1.0, 5.0, 20.0])

    def network_is_well(self) -> None:
        replica = self._replica()
        replica.kube_wire.heal()
        replica.etcd_wire.heal()

    # -- etcd -----------------------------------------------------------------------------------------------------

    async def etcd_restarts(self) -> None:
        self.etcd.stop()
        await asyncio.sleep(self.chance.choice([0.1, 2.0, 20.0, 90.0]))
        self.etcd.start()

    async def etcd_freezes(self) -> None:
        self.etcd.freeze()
        await asyncio.sleep(self.chance.choice([1.0, 4.0, 12.0, 40.0]))
        self.etcd.resume()

    async def etcd_loses_quorum(self) -> None:
        self.etcd.lose_quorum()
        await asyncio.sleep(self.chance.choice([1.0, 6.0, 30.0]))
        self.etcd.regain_quorum()

    def etcd_loses_all(self) -> None:
        self.checks.excuse()
        self.etcd.wipe()
        self._find_strangers()

    def etcd_is_backed_up(self) -> None:
        self._backups["etcd"] = self.etcd.space.copy()

    def etcd_is_restored(self) -> None:
        if backup := self._backups.get("etcd"):
            self.checks.excuse()
            self.etcd.restore(backup)
            self._find_strangers()

    def etcd_is_compacted(self) -> None:
        self.etcd.compact()

    async def etcd_is_full(self) -> None:
        self.etcd.space.is_full = True
        await asyncio.sleep(self.chance.choice([1.0, 20.0]))
        self.etcd.space.is_full = False

    def etcd_takes_a_right(self) -> None:
        """Take a right; leases whose keys may not be written cannot be renewed either, and run out."""
        if OPERATOR in self.etcd.users:
            self.checks.excuse(LEASE_SECONDS + 100.0)
            self.etcd.deregister(OPERATOR, self.chance.choice(RIGHTS), write_only=self.chance.random() < 0.5)

    def etcd_loses_a_lease(self) -> None:
        if pod := self._any():
            item = self.api.find(PODS, NAMESPACE, pod.name)
            assert item
            self.checks.excuse()
            self.etcd.revoke(lease_id(CLUSTER, item["metadata"]["uid"]))

    def etcd_loses_a_key(self) -> None:
        records = self.etcd.space.range(b"/jupiter/", b"/jupiter0").records
        keys = [record.key for record in records if record.key not in self.checks.strangers]
        if keys:
            self.checks.excuse()
            self.etcd.delete(self.chance.choice(keys))

    # -- Kubernetes -----------------------------------------------------------------------------------------------

    def api_ends_watches(self) -> None:
        self.api.end_watches()

    def api_forgets_versions(self) -> None:
        self.api.compact()

    async def api_is_away(self) -> None:
        self.api.wire.refuse()
        await asyncio.sleep(self.chance.choice([0.5, 5.0, 30.0, 120.0]))
        self.api.wire.heal()

    async def api_hangs(self) -> None:
        self.api.wire.silence()
        await asyncio.sleep(self.chance.choice([2.0, 9.0, 30.0]))
        self.api.wire.heal()

    def api_is_busy(self) -> None:
        self.api.overload = 5

    async def api_loses_the_crd(self) -> None:
        """Take the CRD away; an admin brings it back, and with it what there was."""
        self.checks.excuse()
        held = [(item["metadata"]["name"], item["spec"]) for item in self.api.all(SERVICES)]
        self.api.delete_crd()
        await asyncio.sleep(self.chance.choice([0.5, 20.0]))
        self.api.create_crd()
        for name, spec in held:
            self._create_service(name, **spec)

    def api_takes_a_right(self) -> None:
        replica = self._replica()
        resource = self.chance.choice([PODS, SERVICES, f"{SERVICES}/status", f"{PODS}/status", "events"])
        for verb in ("list", "watch") if "/" not in resource else ("patch",):
            self.api.forbid(replica.name, verb, resource)

    def api_is_backed_up(self) -> None:
        self._backups["api"] = self.api.backup()

    def api_is_restored(self) -> None:
        if backup := self._backups.get("api"):
            self.checks.excuse()
            self.api.restore(backup)
            self.kubelet.reconcile()

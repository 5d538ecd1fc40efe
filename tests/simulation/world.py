"""The world: an API server, an etcd, two replicas, Pods and their owners; and everything that may happen to them.

Each method whose name begins with an area is one possible event; what it is called is what the timeline says. `heal`
undoes what is not meant to last.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from grpc_etcd.etcd import Event as KeyEvent
from grpc_etcd_operator.core.leases import lease_id
from grpc_etcd_operator.settings import RegistrySettings, Settings
from testbed.models.api_server import PODS, SERVICES, ApiServerModel, Object, timestamp
from testbed.models.etcd_server import EtcdModel
from testbed.models.wires import Way, Wire
from tests.e2e.model.oracle import EVIL, GATE, SCOPE_LABEL, condition
from tests.simulation.checks import DEFAULT_REGISTRY, SLIPS, SPARE_REGISTRY, Checks
from tests.simulation.drills import Drills
from tests.simulation.players import NAMESPACE, Kubelet, Pod, Replica
from tests.simulation.readers import READER, RIGHTS, History, ServiceReader
from tests.simulation.tenant import ALLOWED, Tenant
from tests.simulation.timeline import Timeline
from tests.simulation.virtual_time import VirtualLoop

SERVICE_NAMES = ("alpha", "beta", "gamma")
MOST_PODS = 20
CLUSTER = "simulated"
REPLICAS = ("one", "two")
OPERATOR = "operator"
STRANGER = b"{}"  # the value of a key that nobody of ours has put
LEASE_SECONDS = 300.0  # the operator's default
SPARES = 0.3  # the share of worlds with a second registry. Arbitrary
REGISTRIES = {"beta": [DEFAULT_REGISTRY, SPARE_REGISTRY], "gamma": [SPARE_REGISTRY]}
Event = Callable[[], Awaitable[None] | None]


def make_settings(name: str, *, pod_watch: str, user: str = "", has_spare: bool = False) -> Settings:
    """Return the settings of a replica."""
    first = RegistrySettings(name=DEFAULT_REGISTRY, endpoints=("etcd:2379",), user=user)
    second = RegistrySettings(name=SPARE_REGISTRY, endpoints=("spare:2379",))
    return Settings(
        registries=(first, second) if has_spare else (first,),
        cluster_id=CLUSTER,
        pod_selector=SCOPE_LABEL,
        pod_watch=pod_watch,
        allowed_prefixes=(ALLOWED,),
        identity=name,
        leader_ttl_seconds=5,
    )


class World:
    """All players. Made within the event loop."""

    def __init__(self, seed: int, timeline: Timeline, checks: type[Checks]) -> None:
        self.chance = random.Random(f"world {seed}")
        self.timeline = timeline
        self.api, self.etcd = ApiServerModel(), EtcdModel()
        self.spare = EtcdModel(SPARE_REGISTRY) if self.chance.random() < SPARES else None
        self.kubelet = Kubelet(self.api)
        self.checks = checks(self.api, self.etcd, timeline)
        self.tenant = Tenant(self)
        self._watched_by = self.chance.choice(["direct", "kopf"])
        self.likely = self._draw_likely()
        self.drills = Drills(self, CLUSTER)
        self.happened: Counter[str] = Counter()
        etcds = {DEFAULT_REGISTRY: self.etcd, **({SPARE_REGISTRY: self.spare} if self.spare else {})}
        self.replicas = [Replica(name, self.api, etcds, self._settings) for name in REPLICAS]
        self._backups: dict[str, Any] = {}
        self._faults: list[str] = []
        self.api.on_change = self._take
        self.etcd.on_change = self._take_events
        self._checked = [(self.etcd, self.checks)]
        self._history = History(self.etcd)
        if self.spare:
            others = checks(self.api, self.spare, timeline, SPARE_REGISTRY)
            self.spare.on_change = others.take
            self._checked.append((self.spare, others))
        self._user = self.chance.choice(["", OPERATOR])
        if self._user:
            self.etcd.add_user(OPERATOR, OPERATOR, RIGHTS)
            self.etcd.add_user(READER, READER, RIGHTS, write=False)
            self.etcd.enable_auth("root")
        reader = READER if self._user else ""
        seen = (self._history, timeline, self._note_fault)
        self.reader = ServiceReader(READER, self.etcd, SERVICE_NAMES, *seen, reader)
        timeline.note(
            "world", f"Pods are watched by {self._watched_by}, etcd asks {self._user or 'nobody'} for a password"
        )

    def _settings(self, name: str) -> Settings:
        return make_settings(name, pod_watch=self._watched_by, user=self._user, has_spare=self.spare is not None)

    def _take_events(self, events: Sequence[KeyEvent]) -> None:
        self._history.take(events)
        self._history.look(SERVICE_NAMES)
        self.checks.take(events)

    def _note_fault(self, text: str) -> None:
        self.timeline.note("FAULT", text)
        self._faults.append(text)

    def _take(self, change: Any) -> None:
        self.kubelet.take(change)
        for _, checks in self._checked:
            checks.take_change(change)

    @property
    def faults(self) -> list[str]:
        """Say what has been that must never be."""
        return [*self._faults, *(fault for _, checks in self._checked for fault in checks.faults)]

    def unsettled(self) -> dict[str, Any]:
        """Say what is not yet as it ought to be."""
        found = self.checks.unsettled()
        others = {
            f"{etcd.name}: {what}": each
            for etcd, checks in self._checked[1:]
            for what, each in checks.unsettled().items()
        }
        return found | others | self.reader.unsettled()

    def keys_of(self, name: str) -> dict[bytes, bytes]:
        """Give the endpoints of a service in the first registry."""
        start = f"/jupiter/{name}/providers/grpc://".encode()
        records = self.etcd.space.range(start, start[:-1] + b"0").records
        return {each.key: each.value for each in records if each.key not in self.checks.strangers}

    def excuse(self) -> None:
        """Take it that keys may be missing for a while, and nobody of ours is to blame."""
        for _, checks in self._checked:
            checks.excuse()

    def look(self) -> None:
        """Look whether each registry is as it ought to be; to be called every few seconds."""
        self._history.look(SERVICE_NAMES)
        self.reader.look()
        for etcd, checks in self._checked:
            checks.look()
            checks.look_at_keys(can_be_kept=self._can_be_kept_in(etcd))

    # -- how it begins and ends -----------------------------------------------------------------------------------

    def begin(self) -> None:
        """Let there be some services, Pods and both replicas."""
        self.tenant.begin()
        for name in SERVICE_NAMES[:2]:
            self.create_service(name)
            for number in range(3):
                self.kubelet.add(name, is_gated=number == 0)
        self.register_stranger("10.99.0.1")
        for replica in self.replicas:
            replica.start()
        self.reader.start()

    async def end(self) -> None:
        """End the replicas and the reader; nothing may be left of them."""
        await self.reader.end()
        for replica in self.replicas:
            await replica.end()

    @property
    def events(self) -> dict[str, Event]:
        """Everything that may happen, by name."""
        spare = ("spare_",) if self.spare else ()
        areas = (*spare, "pod_", "service_", "operator_", "etcd_", "api_", "network_", "clock_", "stranger_", "reader_")
        mine = {name: getattr(self, name) for name in sorted(dir(self)) if name.startswith(areas)}
        return mine | self.tenant.events

    def _draw_likely(self) -> list[str]:
        """Draw what may happen here: few kinds of events that meet often find more than many that seldom do."""
        names = list(self.events)
        drawn = self.chance.sample(names, self.chance.choice([5, 10, 20, len(names)]))
        return sorted([*drawn, "pod_comes", "pod_flaps"])

    def _can_be_kept_in(self, etcd: EtcdModel) -> bool:
        """Say whether a replica is well and reaches all, whatever has become of the other: so all must be kept true."""
        servers = (
            self.api.wire.is_well and not self.api.overload and all(self._is_well(each) for each, _ in self._checked)
        )
        rights = not (self.api.forbidden or self.api.strangers) and self._has_rights and self.api.is_crd_served
        del etcd
        wires = [(each.kube_wire, *each.etcd_wires.values()) for each in self.replicas]
        is_slow = any(not wire.is_well and wire.way is Way.OPEN for some in wires for wire in some)
        well = [
            each
            for each, some in zip(self.replicas, wires, strict=True)
            if each.is_running and all(wire.is_well for wire in some)
        ]
        return servers and rights and bool(well) and not is_slow

    @staticmethod
    def _is_well(etcd: EtcdModel) -> bool:
        return etcd.wire.is_well and etcd.has_quorum and not etcd.space.is_full

    @property
    def _has_rights(self) -> bool:
        user = self.etcd.users.get(OPERATOR)
        return user is None or len(user.writable) == len(user.readable) == len(RIGHTS)

    @property
    def asks_for_users(self) -> bool:
        """Say whether etcd knows the operator as a user."""
        return OPERATOR in self.etcd.users

    def grant_reading(self, prefix: bytes) -> None:
        """Let the operator read below a prefix, and not write."""
        self.etcd.grant(OPERATOR, prefix, write=False)

    def revoke_reading(self, prefix: bytes) -> None:
        """Take that back."""
        if self.asks_for_users:  # etcd may have lost its data
            self.etcd.deregister(OPERATOR, prefix)

    def grant_all(self, name: str) -> None:
        """Let a user do all that it has to do, if etcd knows it."""
        if user := self.etcd.users.get(name):
            user.readable.clear()
            user.writable.clear()
            for prefix in RIGHTS:
                self.etcd.grant(name, prefix, write=name == OPERATOR)

    def refuse_reader(self, *prefixes: bytes) -> None:
        """Take rights from the reader, which learns of it with its next request."""
        if READER in self.etcd.users:
            for prefix in prefixes:
                self.etcd.deregister(READER, prefix)
            self.reader.wire.cut()

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
        self.tenant.heal()
        self.reader.wire.heal()
        for service in self.services:
            self.api.update(SERVICES, NAMESPACE, service["metadata"]["name"], self._mend)
        if self.spare:
            self.spare.wire.heal()
        self.etcd.space.is_full = False
        self.grant_all(OPERATOR)
        self.grant_all(READER)
        if not self.etcd.has_quorum:
            self.etcd.regain_quorum()
        self.etcd.wire.heal()
        self.api.wire.heal()
        self.api.overload = self.api.conflicts = self.api.unanswered = 0
        self.api.forbidden.clear()
        for replica in self.replicas:
            replica.heal_wires()
            if not replica.is_running:
                replica.start()

    # -- Pods -----------------------------------------------------------------------------------------------------

    def _any(self) -> Pod | None:
        pods = [pod for pod in self.kubelet.pods.values() if not pod.is_terminating and pod.namespace == NAMESPACE]
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

    def pod_loses_its_node(self) -> None:
        """Let one be given up that has been ready: times are in whole seconds, so not in its first one."""
        pod = self._any()
        item = self.api.find(PODS, NAMESPACE, pod.name) if pod else None
        if pod is None or item is None or condition(item, "Ready") != "True":
            return
        times = [each["lastTransitionTime"] for each in item["status"]["conditions"]]
        if max(times) < timestamp() and (not pod.is_gated or condition(item, GATE) == "True"):
            self.kubelet.give_up(pod, self.chance.choice([20.0, 300.0]))

    async def pod_leaves_the_scope(self) -> None:
        if pod := self._any():
            self.kubelet.label(pod, is_in_scope=False)
            await asyncio.sleep(self.chance.choice([0.001, 3.0, 30.0]))
            self.kubelet.label(pod, is_in_scope=True)

    def pods_swap_addresses(self) -> None:
        first, second = self._any(), self._any()
        if first and second and first is not second:
            self.kubelet.vanish(first)
            self.kubelet.vanish(second)
            self.kubelet.add(first.app, ip=second.ip, seconds=0.1)
            self.kubelet.add(second.app, ip=first.ip, seconds=0.1)

    # -- owners ---------------------------------------------------------------------------------------------------

    @property
    def services(self) -> list[Object]:
        """Give all GrpcServices but the hostile tenant's."""
        return [item for item in self.api.all(SERVICES) if item["metadata"]["namespace"] != EVIL]

    def create_service(self, name: str, spec: Object | None = None, namespace: str = NAMESPACE) -> None:
        """Create a GrpcService that selects the Pods of its name, if nothing else is said."""
        metadata = {"name": name, "namespace": namespace}
        wanted = {"selector": {"matchLabels": {"app": name}}, "registries": self._registries_of(name), **(spec or {})}
        self.api.create(SERVICES, {"metadata": metadata, "spec": wanted})

    def _registries_of(self, name: str) -> list[str]:
        return REGISTRIES.get(name, [DEFAULT_REGISTRY]) if self.spare else [DEFAULT_REGISTRY]

    def _mend(self, item: Object) -> None:
        """Take slips out of a GrpcService."""
        for field in ("port", "prefix", "policy"):
            item["spec"].pop(field, None)
        item["spec"] |= {"registries": self._registries_of(item["metadata"]["name"]), "layouts": ["jupiter"]}

    def _change_service(self, change: Callable[[Object], None]) -> None:
        names = [item["metadata"]["name"] for item in self.services]
        if names:
            self.api.update(SERVICES, NAMESPACE, self.chance.choice(names), lambda item: change(item["spec"]))

    def service_comes_or_goes(self) -> None:
        if not self.api.is_crd_served:
            return
        name = self.chance.choice(SERVICE_NAMES)
        if self.api.find(SERVICES, NAMESPACE, name):
            self.api.delete(SERVICES, NAMESPACE, name)
        else:
            self.create_service(name)

    def service_is_replaced(self) -> None:
        name = self.chance.choice(SERVICE_NAMES)
        if self.api.find(SERVICES, NAMESPACE, name):
            self.api.delete(SERVICES, NAMESPACE, name)
            self.create_service(name)

    def service_changes_weight(self) -> None:
        weight = self.chance.randrange(1, 200)
        self._change_service(lambda spec: spec.update(weight=weight))

    def service_is_switched(self) -> None:
        self._change_service(lambda spec: spec.update(enable=not spec.get("enable", True)))

    def service_has_a_slip(self) -> None:
        slip = self.chance.choice(SLIPS)
        self._change_service(lambda spec: spec.update(slip))

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
        self._replica().heal_wires()

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
        self.excuse()
        self.etcd.wipe()
        self._history.begin_anew()
        self._find_strangers()

    def etcd_is_backed_up(self) -> None:
        self._backups["etcd"] = self.etcd.space.copy()

    def etcd_is_restored(self) -> None:
        if backup := self._backups.get("etcd"):
            self.excuse()
            self.etcd.restore(backup)
            self._history.begin_anew()
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
            self.excuse()
            self.etcd.revoke(lease_id(CLUSTER, item["metadata"]["uid"]))

    def etcd_loses_a_key(self) -> None:
        records = self.etcd.space.range(b"/jupiter/", b"/jupiter0").records
        keys = [record.key for record in records if record.key not in self.checks.strangers]
        if keys:
            self.excuse()
            self.etcd.delete(self.chance.choice(keys))

    # -- a client -------------------------------------------------------------------------------------------------

    def reader_is_cut_off(self) -> None:
        self._break(self.reader.wire)

    def reader_is_updated_late(self) -> None:
        self.reader.wire.stream_delay = self.chance.choice([1.0, 5.0, 20.0])

    async def reader_loses_a_right(self) -> None:
        self.refuse_reader(self.chance.choice(RIGHTS))
        await asyncio.sleep(self.chance.choice([1.0, 20.0, 90.0]))
        self.grant_all(READER)

    async def reader_is_restarted(self) -> None:
        await self.reader.end()
        self.reader.start()

    # -- the second registry --------------------------------------------------------------------------------------

    async def spare_restarts(self) -> None:
        assert self.spare
        self.spare.stop()
        await asyncio.sleep(self.chance.choice([0.1, 5.0, 30.0, 90.0]))
        self.spare.start()

    def spare_loses_all(self) -> None:
        assert self.spare
        self.excuse()
        self.spare.wipe()

    def spare_is_cut_off(self) -> None:
        self._break(self._replica().etcd_wires[SPARE_REGISTRY])

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

    def api_meets_conflicts(self) -> None:
        self.api.conflicts = 3

    def api_answers_no_watch(self) -> None:
        self.api.unanswered = 3
        self.api.end_watches()

    async def api_loses_the_crd(self) -> None:
        """Take the CRD away; an admin brings it back, and with it what there was."""
        self.excuse()
        held = [(item["metadata"], item["spec"]) for item in self.api.all(SERVICES)]
        for _, checks in self._checked:
            checks.note_crd_lost()
        self.api.delete_crd()
        await asyncio.sleep(self.chance.choice([0.5, 20.0]))
        self.api.create_crd()
        for metadata, spec in held:
            self.create_service(metadata["name"], spec, metadata["namespace"])

    def api_takes_a_right(self) -> None:
        replica = self._replica()
        resource = self.chance.choice([PODS, SERVICES, f"{SERVICES}/status", f"{PODS}/status", "events"])
        for verb in ("list", "watch") if "/" not in resource else ("patch",):
            self.api.forbid(replica.name, verb, resource)

    def api_is_backed_up(self) -> None:
        self._backups["api"] = self.api.backup()

    def api_is_restored(self) -> None:
        if backup := self._backups.get("api"):
            self.excuse()
            self.api.restore(backup)
            self.kubelet.reconcile()

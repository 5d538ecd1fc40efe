"""The world: an API server, an etcd, two replicas, Pods and their owners; how it begins, is judged, heals and ends.

`heal` undoes what is not meant to last of what has happened (`incidents.py`, `drills.py`, `tenant.py`).
"""

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

from grpc_etcd.etcd import Event as KeyEvent
from grpc_etcd_operator.settings import RegistrySettings, Settings
from testbed.models.api_server import SERVICES, ApiServerModel, Object
from testbed.models.etcd_server import EtcdModel
from testbed.models.wires import Way
from tests.e2e.model.oracle import EVIL, SCOPE_LABEL
from tests.simulation.checks import DEFAULT_REGISTRY, SPARE_REGISTRY, Checks
from tests.simulation.drills import Drills
from tests.simulation.incidents import CLUSTER, SERVICE_NAMES, Event, Incidents
from tests.simulation.players import NAMESPACE, Kubelet, Replica
from tests.simulation.readers import OPERATOR, READER, RIGHTS, STRANGER, History, ServiceReader
from tests.simulation.targets import Targets
from tests.simulation.tenant import ALLOWED, Tenant
from tests.simulation.timeline import Timeline

REPLICAS = ("one", "two")
SPARES = 0.3  # the share of worlds with a second registry. Arbitrary
REFERS = 0.5  # the share of GrpcServices that name a Service. Arbitrary
REGISTRIES = {"beta": [DEFAULT_REGISTRY, SPARE_REGISTRY], "gamma": [SPARE_REGISTRY]}


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
        self.tenant, self.incidents = Tenant(self), Incidents(self)
        own = random.Random(f"references {seed}")
        self.targets = Targets(self, [name for name in SERVICE_NAMES if own.random() < REFERS])
        self._watched_by = self.chance.choice(["direct", "kopf"])
        self.likely = self._draw_likely()
        self.drills = Drills(self, CLUSTER)
        self.happened: Counter[str] = Counter()
        etcds = {DEFAULT_REGISTRY: self.etcd, **({SPARE_REGISTRY: self.spare} if self.spare else {})}
        self.replicas = [Replica(name, self.api, etcds, self._settings) for name in REPLICAS]
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

    def note_crd_lost(self) -> None:
        """Take it that an admin has deleted the CRD."""
        for _, checks in self._checked:
            checks.note_crd_lost()

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
        self.targets.heal()
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
        return self.incidents.events | self.tenant.events | (self.targets.events if self.targets.names else {})

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
        self.targets.heal()
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

    # -- owners ---------------------------------------------------------------------------------------------------

    @property
    def services(self) -> list[Object]:
        """Give all GrpcServices but the hostile tenant's."""
        return [item for item in self.api.all(SERVICES) if item["metadata"]["namespace"] != EVIL]

    def create_service(self, name: str, spec: Object | None = None, namespace: str = NAMESPACE) -> None:
        """Create a GrpcService that selects the Pods of its name, if nothing else is said."""
        metadata = {"name": name, "namespace": namespace}
        refers = name in self.targets.names and namespace == NAMESPACE
        selection = {"serviceRef": {"name": name}} if refers else {"selector": {"matchLabels": {"app": name}}}
        wanted = {**selection, "registries": self._registries_of(name), **(spec or {})}
        self.api.create(SERVICES, {"metadata": metadata, "spec": wanted})

    def _registries_of(self, name: str) -> list[str]:
        return REGISTRIES.get(name, [DEFAULT_REGISTRY]) if self.spare else [DEFAULT_REGISTRY]

    def _mend(self, item: Object) -> None:
        """Take slips out of a GrpcService."""
        for field in ("port", "prefix", "policy"):
            item["spec"].pop(field, None)
        item["spec"] |= {"registries": self._registries_of(item["metadata"]["name"]), "layouts": ["jupiter"]}

    def register_stranger(self, ip: str, name: str = SERVICE_NAMES[0]) -> None:
        """Let a process of nobody's register itself."""
        key = f"/jupiter/{name}/providers/grpc://{ip}:9000".encode()
        if self.etcd.space.get(key) is None:
            self.checks.strangers.add(key)
            self.etcd.put(key, STRANGER)

    def begin_history(self) -> None:
        """Take it that etcd holds other data now."""
        self._history.begin_anew()
        records = self.etcd.space.range(b"/jupiter/", b"/jupiter0").records
        self.checks.strangers = {record.key for record in records if record.value == STRANGER}

    def _end_strangers(self) -> None:
        for key in sorted(self.checks.strangers):
            self.etcd.delete(key)

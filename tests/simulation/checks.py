"""What must never happen, looked at after each change, and what must come true once all is well.

The oracle, tests/e2e/model/oracle.py, works out from the API server alone what the registry ought to hold.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from grpc_etcd.etcd import Deleted, Event, Put
from grpc_etcd_operator.core.leases import lease_id
from testbed.models.api_server import PODS, SERVICES, ApiServerModel, Change, Object
from testbed.models.etcd_server import EtcdModel
from tests.e2e.model.oracle import EVIL, GATE, expected, gates_due, reason_of, statuses
from tests.simulation import claims
from tests.simulation.targets import LACKING, Selections
from tests.simulation.tenant import ADDRESS, PARKED
from tests.simulation.timeline import Timeline

DEFAULT_REGISTRY, SPARE_REGISTRY = "default", "spare"
PREFIX = b"/jupiter/"
ENDPOINTS = b"/providers/grpc://"
LEADER = b"/grpc-etcd/leader/simulated"
SYNCED = b"/grpc-etcd/synced/simulated"
CLUSTER = "simulated"
OWN = b"/grpc-etcd/"
OWN_KEYS = (LEADER, SYNCED, b"/grpc-etcd/cluster/simulated", b"/grpc-etcd/clock/simulated")
OWN_PREFIXES = (b"/grpc-etcd/owner/simulated/", b"/grpc-etcd/standby/simulated/", b"/grpc-etcd/policy/")
UNKNOWN_PORT, UNKNOWN_REGISTRY, REFUSED_PREFIX = "no-such-port", "no-such-registry", "somebody/elses"
SLIPS: tuple[Object, ...] = (
    {"port": UNKNOWN_PORT},
    {"registries": ["default", UNKNOWN_REGISTRY]},
    {"prefix": REFUSED_PREFIX},
)
# For so long a Pod must have been wanted until to remove its key is a fault: what was seen before may be acted on late,
# by a leader that has been cut off from Kubernetes and does not know yet.
STEADY_SECONDS = 40.0
# For so long the synced key may be there while the registry is not as it ought to be: a watch that has fallen silent is
# taken for good for 100 s, and what is overdue for 30 s.
MARKED_SECONDS = 180.0
# Within which keys are right while one of the replicas is well: a leader that is cut off resigns within 15 s or its key
# runs out, and whoever follows has all in its memory.
KEPT_SECONDS = 60.0
DUE_SECONDS = 5.0  # within which what is wanted is written where nothing is wrong. Arbitrary
# For so long after a CRD came back a GrpcService that is not there may have gone with it, and its keys stay.
CRD_SECONDS = 300.0 + 90.0  # and until the next resync
EXCUSED_SECONDS = 60.0  # in which keys may go after etcd or Kubernetes has lost data, or an admin has removed some


class Checks:
    """Looks at each change, and says what is wrong with one registry; of the first one also with all that is one."""

    def __init__(
        self, api: ApiServerModel, etcd: EtcdModel, timeline: Timeline, registry: str = DEFAULT_REGISTRY
    ) -> None:
        self._api, self._etcd, self._timeline, self._registry = api, etcd, timeline, registry
        self._is_first = registry == DEFAULT_REGISTRY
        self.faults: list[str] = []
        self._wanted_since: dict[str, float] = {}
        self._changed_at = 0.0
        self._selections = Selections(api)
        self.strangers: set[bytes] = set()  # keys that nobody of ours has put
        self._excused_until = 0.0
        self._crd_until = 0.0
        self._lies_since: float | None = None
        self._late_since: float | None = None
        self._namespaces: dict[int, str] = {}  # of those who put something under a lease

    def excuse(self, seconds: float = EXCUSED_SECONDS) -> None:
        """Take it that keys may be missing for a while, and nobody of ours is to blame."""
        self._excused_until = max(self._excused_until, self._etcd.now() + seconds)

    def note_crd_lost(self) -> None:
        """Take it that the CRD goes now, and comes again within a minute."""
        self._crd_until = self._etcd.now() + CRD_SECONDS

    # After each change

    def take_change(self, change: Change) -> None:
        """Take what has happened in Kubernetes: work out since when each key is wanted."""
        if change.now is not None and change.before is None:
            metadata = change.now["metadata"]
            self._namespaces[lease_id(CLUSTER, metadata["uid"])] = metadata["namespace"]
        if self._is_first and change.resource == SERVICES and change.now is not None:
            self._judge_claims(change.now, change.before)
        now, wanted = self._etcd.now(), self.wanted()
        if wanted.keys() != self._wanted_since.keys():
            self._changed_at = now
        self._wanted_since = {key: self._wanted_since.get(key, now) for key in wanted}

    def take(self, events: Sequence[Event]) -> None:
        """Take what has happened in etcd."""
        for event in events:
            is_put = isinstance(event, Put)
            self._timeline.note(
                self._etcd.name, f"{self._etcd.writer or 'admin'}: {'put' if is_put else 'delete'} {event.key.decode()}"
            )
            if isinstance(event, Put) and self._etcd.writer:
                self._judge_place(event.key, event.record.lease)
            if event.key in self.strangers:
                self._judge_stranger(event)
            elif event.key.startswith(PREFIX) and ENDPOINTS in event.key:
                if isinstance(event, Deleted):
                    self._judge_removal(event.key.decode())
                self._judge_writer(event)

    def look_at_keys(self, *, can_be_kept: bool) -> None:
        """Look whether the keys are right while a replica is well; to be called every few seconds."""
        now = self._etcd.now()
        if not can_be_kept or self.strangers_in_the_way() or not self._different():
            self._late_since = None
        elif self._late_since is None:
            self._late_since = now
        elif now - self._late_since > KEPT_SECONDS and now > self._excused_until:
            waited, different = now - self._late_since, self._different()
            self._fault(f"a replica is well, and for {waited:.0f} s not as it ought to be: {different}")

    def demand_keys(self, when: str) -> None:
        """Take it for a fault that keys are not right now, unless others have just begun to be wanted."""
        if self._etcd.now() - self._changed_at < DUE_SECONDS or self.strangers_in_the_way():
            return
        if different := self._different():
            self._fault(f"{when} keys are not as they ought to be: {different}")

    def demand_gates(self, when: str, but_for: str) -> None:
        """Take it for a fault that a gate waits now, whatever is wrong with one GrpcService."""
        services = [each for each in self._services() if each["metadata"]["name"] != but_for]
        if gates := gates_due(services, self._api.all(PODS), GATE):
            self._fault(f"{when} gates are closed: {gates}")

    def demand_reason(self, when: str, name: str, reason: str) -> None:
        """Take it for a fault that a GrpcService is not said to be refused for a reason."""
        found = next(each for each in self._services() if each["metadata"]["name"] == name)
        if (said := reason_of(found, "Accepted")) != reason:
            self._fault(f"{when} {name} is {said}, not {reason}")

    def demand_synced(self, when: str) -> None:
        """Take it for a fault that the synced key is not there now."""
        if self._etcd.space.get(SYNCED) is None:
            self._fault(f"{when} the synced key is not there")

    def _different(self) -> list[str]:
        """Name the keys that are missing or too many; those of a GrpcService with a slip in it may be as they were."""
        slips = tuple(f"/jupiter/{each['metadata']['name']}/" for each in self._services() if has_slip(each))
        different = self.wanted().keys() ^ self._held_for_good().keys()
        return sorted(key for key in different if not key.startswith(slips))

    def _held_for_good(self) -> dict[str, dict[str, Any]]:
        """Give what the registry holds, but for keys that may have lost their GrpcService with the CRD."""
        held = self.held()
        if self._etcd.now() > self._crd_until:
            return held
        names = {each["spec"].get("name") or each["metadata"]["name"] for each in self._services()}
        return {key: value for key, value in held.items() if key.split("/")[2] in names}

    def strangers_in_the_way(self) -> bool:
        """Say whether a Pod's key is a stranger's."""
        return bool(self.strangers & {key.encode() for key in self.wanted()})

    def _judge_stranger(self, event: Event) -> None:
        if self._etcd.writer:
            self._fault(f"{self._etcd.writer} has changed a stranger's key, {event.key.decode()}")
        elif isinstance(event, Deleted):
            self.strangers.discard(event.key)

    def look(self) -> None:
        """Look whether the synced key tells the truth; to be called every few seconds."""
        now = self._etcd.now()
        ours = [key for key in self._different() if key.encode() not in self.strangers]  # conditions say who has theirs
        lies = self._etcd.space.get(SYNCED) is not None and bool(ours)
        if not lies:
            self._lies_since = None
        elif self._lies_since is None:
            self._lies_since = now
        elif now - self._lies_since > MARKED_SECONDS and now > self._excused_until:
            self._fault(f"the synced key is there, and the registry differs for {now - self._lies_since:.0f} s")

    def _judge_removal(self, key: str) -> None:
        now = self._etcd.now()
        since = self._wanted_since.get(key)
        if since is not None and now - since > STEADY_SECONDS and now > self._excused_until:
            self._fault(f"{key} has been removed, though its Pod has been ready for {now - since:.1f} s")

    def _judge_writer(self, event: Event) -> None:
        """Whoever writes leads at that moment: the fence sees to it."""
        writer = self._etcd.writer
        if not writer:
            return  # a lease that ran out, or an admin
        if self.leader != writer:
            self._fault(f"{writer} has written {event.key.decode()}, and {self.leader} leads")

    def _judge_claims(self, now: Object, before: Object | None) -> None:
        if self._etcd.now() > self._excused_until:
            for fault in claims.find_wrong_grants(now, before, self._api.all(SERVICES)):
                self._fault(fault)

    def _judge_place(self, key: bytes, lease: int) -> None:
        """Whoever writes a key has the place, and nobody but the operator's own parts writes below its own."""
        if key.startswith(OWN) and key not in OWN_KEYS and not key.startswith(OWN_PREFIXES):
            self._fault(f"{key.decode()} has been put, which is a key of the operator's own")
        namespace = self._namespaces.get(lease)
        if self._is_first and namespace and self._etcd.now() > self._excused_until:
            owners = claims.find_owners(key.decode(), self._api.all(SERVICES))
            if owners and namespace not in owners:
                self._fault(f"{key.decode()} has been put for {namespace}, and {owners} holds the place")

    @property
    def leader(self) -> str:
        """Give who leads."""
        record = self._etcd.space.get(LEADER)
        return str(json.loads(record.value)["identity"]) if record else "nobody"

    def revoke_leader(self) -> None:
        """Revoke the lease of whoever leads, as an admin does."""
        if record := self._etcd.space.get(LEADER):
            self._etcd.revoke(record.lease)

    def _fault(self, text: str) -> None:
        self._timeline.note("FAULT", text)
        self.faults.append(text)

    # Once all is well

    def wanted(self) -> dict[str, tuple[dict[str, Any], str]]:
        """Give what the registry ought to hold."""
        return expected(self._services(), self._api.all(PODS), self._registry)

    def _services(self) -> list[Object]:
        """Give the GrpcServices that are to be written: not the hostile tenant's, nor those that it keeps out."""
        held = self._api.all(SERVICES)
        mine = [each for each in held if claims.namespace_of(each) != EVIL]
        return self._selections.resolve(each for each in mine if not claims.is_kept_out(each, held))

    def _evil_keys(self) -> list[str]:
        """Give all keys that lead to the hostile tenant."""
        records = self._etcd.space.range(b"\0", b"\0").records
        found = (each for each in records if not each.key.startswith(OWN_PREFIXES[0]))
        return [each.key.decode() for each in found if ADDRESS.encode() in each.key + each.value]

    def held(self) -> dict[str, dict[str, Any]]:
        """Give what it holds."""
        records = self._etcd.space.range(PREFIX, PREFIX[:-1] + b"0").records
        return {record.key.decode(): json.loads(record.value) for record in records if self._is_ours(record.key)}

    def unsettled(self) -> dict[str, Any]:
        """Say what is not yet as it ought to be."""
        wanted, held = {key: value for key, (value, _) in self.wanted().items()}, self._held_for_good()
        found: dict[str, Any] = {}
        if wanted != held:
            found["missing keys"] = sorted(wanted.keys() - held.keys())
            found["keys too many"] = sorted(held.keys() - wanted.keys())
            found["other values"] = sorted(key for key in wanted.keys() & held.keys() if wanted[key] != held[key])
        if self._etcd.space.get(SYNCED) is None:
            found["synced key"] = "absent"
        parked = [f"/jupiter/{PARKED}/providers/grpc://{ADDRESS}:9000"] if self._is_first else []
        if (evil := self._evil_keys()) != parked:
            found["the tenant's keys"] = evil
        return found | self._untold() if self._is_first else found

    def _untold(self) -> dict[str, Any]:
        """Say which gates and statuses are not yet as they ought to be."""
        found: dict[str, Any] = {}
        services, pods = self._selections.resolve(self._api.all(SERVICES)), self._api.all(PODS)
        if gates := gates_due(services, pods, GATE):
            found["gates"] = gates
        return found | statuses(services, pods)

    def _is_ours(self, key: bytes) -> bool:
        is_evil = key.endswith(f"://{ADDRESS}:9000".encode())
        return ENDPOINTS in key and key not in self.strangers and not is_evil


def has_slip(service: Object) -> bool:
    """Say whether a spec cannot be obeyed: what there was stays then."""
    spec = service["spec"]
    return any(_slips(spec))


def _slips(spec: Object) -> Iterable[bool]:
    yield spec.get("port") == UNKNOWN_PORT
    yield UNKNOWN_REGISTRY in spec["registries"]
    yield spec.get("prefix") == REFUSED_PREFIX
    yield spec.get(LACKING, False)

"""What must never happen, looked at after each change, and what must come true once all is well.

The oracle, tests/e2e/model/oracle.py, works out from the API server alone what the registry ought to hold.
"""

import json
from collections.abc import Sequence
from typing import Any

from grpc_etcd.etcd import Deleted, Event, Put
from testbed.models.api_server import PODS, SERVICES, ApiServerModel, Change
from testbed.models.etcd_server import EtcdModel
from tests.e2e.model.oracle import expected, gates_due, statuses
from tests.simulation.timeline import Timeline

PREFIX = b"/jupiter/"
LEADER = b"/grpc-etcd/leader/simulated"
SYNCED = b"/grpc-etcd/synced/simulated"
GATE = "grpc-etcd.dev/registered"
# For so long a Pod must have been wanted until to remove its key is a fault: what was seen before may be acted on late,
# by a leader that has been cut off from Kubernetes and does not know yet.
STEADY_SECONDS = 40.0
# For so long the synced key may be there while the registry is not as it ought to be: a watch that has fallen silent is
# taken for good for 100 s, and what is overdue for 30 s.
MARKED_SECONDS = 180.0
# Within which keys are right while one of the replicas is well: a leader that is cut off resigns within 15 s or its key
# runs out, and whoever follows has all in its memory.
KEPT_SECONDS = 60.0
EXCUSED_SECONDS = 60.0  # in which keys may go after etcd or Kubernetes has lost data, or an admin has removed some


class Checks:
    """Looks at each change, and says what is wrong with the state of the world."""

    def __init__(self, api: ApiServerModel, etcd: EtcdModel, timeline: Timeline) -> None:
        self._api, self._etcd, self._timeline = api, etcd, timeline
        self.faults: list[str] = []
        self._wanted_since: dict[str, float] = {}
        self.strangers: set[bytes] = set()  # keys that nobody of ours has put
        self._excused_until = 0.0
        self._lies_since: float | None = None
        self._late_since: float | None = None

    def excuse(self, seconds: float = EXCUSED_SECONDS) -> None:
        """Take it that keys may be missing for a while, and nobody of ours is to blame."""
        self._excused_until = max(self._excused_until, self._etcd.now() + seconds)

    # After each change

    def take_change(self, change: Change) -> None:
        """Take what has happened in Kubernetes: work out since when each key is wanted."""
        del change
        now, wanted = self._etcd.now(), self.wanted()
        self._wanted_since = {key: self._wanted_since.get(key, now) for key in wanted}

    def take(self, events: Sequence[Event]) -> None:
        """Take what has happened in etcd."""
        for event in events:
            is_put = isinstance(event, Put)
            self._timeline.note(
                "etcd", f"{self._etcd.writer or 'admin'}: {'put' if is_put else 'delete'} {event.key.decode()}"
            )
            if event.key in self.strangers:
                self._judge_stranger(event)
            elif event.key.startswith(PREFIX) and b"/providers/" in event.key:
                if isinstance(event, Deleted):
                    self._judge_removal(event.key.decode())
                self._judge_writer(event)

    def look_at_keys(self, *, can_be_kept: bool) -> None:
        """Look whether the keys are right while a replica is well; to be called every few seconds."""
        now = self._etcd.now()
        if not can_be_kept or self.strangers_in_the_way() or self.wanted().keys() == self.held().keys():
            self._late_since = None
        elif self._late_since is None:
            self._late_since = now
        elif now - self._late_since > KEPT_SECONDS and now > self._excused_until:
            different = sorted(self.wanted().keys() ^ self.held().keys())
            self._fault(f"a replica is well, and for {now - self._late_since:.0f} s not as it ought to be: {different}")

    def demand_keys(self, when: str) -> None:
        """Take it for a fault that keys are not right now."""
        if not self.strangers_in_the_way() and self.wanted().keys() != self.held().keys():
            different = sorted(self.wanted().keys() ^ self.held().keys())
            self._fault(f"{when} keys are not as they ought to be: {different}")

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
        lies = self._etcd.space.get(SYNCED) is not None and self.wanted().keys() != self.held().keys()
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

    @property
    def leader(self) -> str:
        """Give who leads."""
        record = self._etcd.space.get(LEADER)
        return str(json.loads(record.value)["identity"]) if record else "nobody"

    def _fault(self, text: str) -> None:
        self._timeline.note("FAULT", text)
        self.faults.append(text)

    # Once all is well

    def wanted(self) -> dict[str, tuple[dict[str, Any], str]]:
        """Give what the registry ought to hold."""
        return expected(self._api.all(SERVICES), self._api.all(PODS), "default")

    def held(self) -> dict[str, dict[str, Any]]:
        """Give what it holds."""
        records = self._etcd.space.range(PREFIX, PREFIX[:-1] + b"0").records
        return {record.key.decode(): json.loads(record.value) for record in records if self._is_ours(record.key)}

    def unsettled(self) -> dict[str, Any]:
        """Say what is not yet as it ought to be."""
        wanted, held = {key: value for key, (value, _) in self.wanted().items()}, self.held()
        found: dict[str, Any] = {}
        if wanted != held:
            found["missing keys"] = sorted(wanted.keys() - held.keys())
            found["keys too many"] = sorted(held.keys() - wanted.keys())
            found["other values"] = sorted(key for key in wanted.keys() & held.keys() if wanted[key] != held[key])
        if self._etcd.space.get(SYNCED) is None:
            found["synced key"] = "absent"
        services, pods = self._api.all(SERVICES), self._api.all(PODS)
        if gates := gates_due(services, pods, GATE):
            found["gates"] = gates
        return found | statuses(services, pods)

    def _is_ours(self, key: bytes) -> bool:
        return b"/providers/" in key and key not in self.strangers

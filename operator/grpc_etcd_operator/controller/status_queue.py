"""Which statuses and gates are to be looked at, and when: event handlers fill it, the status writer takes from it."""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from grpc_etcd.layouts.rate_limits import choose_in_turns
from grpc_etcd_operator.core.cluster import ClusterCache
from grpc_etcd_operator.core.conditions import is_same_judgement
from grpc_etcd_operator.core.gates import Gate
from grpc_etcd_operator.core.services import GrpcService
from grpc_etcd_operator.core.status_schedule import StatusSchedule
from grpc_etcd_operator.core.vacancies import VACANT_SECONDS, Vacancies


@dataclass(slots=True)
class WrittenGate:
    """What was last said of a Pod's gate, and when (monotonic seconds); `since` is how long it has been waiting.

    `tries` counts how often it was opened, in vain if it is more than one.
    """

    since: float
    gate: Gate | None = None
    written_at: float = -math.inf
    tries: int = 0


class StatusQueue:
    """What waits, and what is remembered of it until it has been written. `wake` is set when something may be due."""

    def __init__(self, cluster_cache: ClusterCache, vacant_seconds: float = VACANT_SECONDS) -> None:
        self._cluster_cache = cluster_cache
        self.failures: Counter[str] = Counter()
        self.schedule, self.vacancies = StatusSchedule(), Vacancies(vacant_seconds)
        self.gates: dict[str, float] = {}
        self.reported_gates: dict[str, WrittenGate] = {}
        self.writing: dict[str, dict[str, Any]] = {}  # statuses that are under way
        self.next_look = math.inf
        self.wake = asyncio.Event()

    def look_at(self, services: Collection[str]) -> None:
        """Look at these GrpcServices' statuses soon."""
        known = self._cluster_cache.services
        living = [uid for uid in services if uid in known]
        if len(living) < len(services):  # a standby would keep all that it ever learned of
            self.forget(uid for uid in services if uid not in known)
        if living and self.schedule.note(living, time.monotonic()) < self.next_look:
            self.wake.set()

    def is_writing(self, service: GrpcService) -> bool:
        """Return whether a status that a watch reports may be the one that is just being written."""
        under_way = self.writing.get(service.uid)
        return under_way is not None and is_same_judgement(under_way, service.status)

    def look_at_gate(self, pod: str) -> None:
        """Look at a Pod's gate now."""
        if pod in self._cluster_cache.pods:
            self._want_gate(pod)
            self.wake.set()
        else:
            self._forget_gate(pod)

    def _forget_gate(self, pod: str) -> None:
        for waiting in (self.gates, self.reported_gates, self.failures):
            waiting.pop(pod, None)

    def _want_gate(self, pod: str) -> None:
        """Let a gate be due: news ends the wait until there is something to say, but not the pause after a failure."""
        if pod in self.failures:
            self.gates.setdefault(pod, 0.0)
        else:
            self.gates[pod] = 0.0

    def count_due_gates(self, now: float) -> int:
        """Count the gates that are due."""
        return sum(at <= now for at in self.gates.values())

    def take_gates(self, now: float, most: int) -> list[str]:
        """Take out some of the gates that are due, in turns of their namespaces: one may have thousands at once."""
        known = self._cluster_cache.pods
        due = (pod for pod, at in self.gates.items() if at <= now)
        some = choose_in_turns(due, lambda pod: known[pod].namespace if pod in known else "", most)
        for pod in some:
            del self.gates[pod]
        return some

    def take_statuses(self, now: float, most: int) -> list[str]:
        """Take out some of the GrpcServices whose statuses are due, in turns of their namespaces."""
        known = self._cluster_cache.services
        return self.schedule.take(now, most, lambda uid: known[uid].namespace if uid in known else "")

    def look_at_all(self) -> None:
        """Look at everything: leadership or a registry's state has changed."""
        self.look_at(self._cluster_cache.services)
        for uid, pod in self._cluster_cache.pods.items():
            if pod.gated and not pod.gate_open:
                self._want_gate(uid)
        self.wake.set()

    def forget(self, services: Iterable[str]) -> None:
        """Keep nothing of GrpcServices that are gone."""
        for uid in services:
            self.schedule.forget(uid)
            self.vacancies.forget(uid)
            self.failures.pop(uid, None)

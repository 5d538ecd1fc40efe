"""Which statuses and gates are to be looked at, and when: event handlers fill it, the status writer takes from it."""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from grpc_etcd_operator.core.cluster import ClusterCache
from grpc_etcd_operator.core.conditions import is_same_judgement
from grpc_etcd_operator.core.gates import Gate
from grpc_etcd_operator.core.services import GrpcService
from grpc_etcd_operator.core.status_schedule import StatusSchedule
from grpc_etcd_operator.core.vacancies import VACANT_SECONDS, Vacancies
from grpc_etcd_operator.core.waiting import Turns


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
        self.schedule, self.vacancies = StatusSchedule(self._namespace_of), Vacancies(vacant_seconds)
        self.gates = Turns(self._namespace_of)
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
        self.gates.forget(pod)
        for waiting in (self.reported_gates, self.failures):
            waiting.pop(pod, None)

    def _want_gate(self, pod: str) -> None:
        """Let a gate be due: news ends the wait until there is something to say, but not the pause after a failure."""
        if pod not in self.failures or pod not in self.gates:
            self.gates.advance(pod, -math.inf)

    def _namespace_of(self, uid: str) -> str:
        known = self._cluster_cache.services.get(uid) or self._cluster_cache.pods.get(uid)
        return known.namespace if known else ""

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

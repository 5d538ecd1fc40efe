"""Writes the status of GrpcServices and opens Pods' gates: what the operator tells Kubernetes. Leaders only.

A status is written at most once in two seconds, and never when nothing in it has changed. Where only counts have
changed it takes its time, since each write costs as much as the registration that it counts. A condition that turns
bad also becomes a Kubernetes Event. Whatever fails is tried again after a pause.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import aiohttp

from grpc_etcd_operator.core.conditions import is_same_judgement, is_same_status, make_status
from grpc_etcd_operator.core.pods import GATE
from grpc_etcd_operator.core.services import GrpcService
from grpc_etcd_operator.kube.client import GROUP, VERSION, ApiError, Client
from grpc_etcd_operator.reconciling import Reconciler

log = logging.getLogger(__name__)
SPACING_SECONDS = 2.0
SETTLE_SECONDS = 0.1  # arbitrary: a commit takes a few milliseconds, and "pending" would be news of yesterday
COUNTS_SPACING_SECONDS = 10.0  # arbitrary: people read counts, and 50 services that flap cost half a core at 2 s
RETRY_SECONDS = 2.0
AT_ONCE = 8
HTTP_GONE = (404, 409, 422)  # the object, or the one with this UID, is no longer there


class Reporter:
    """Brings statuses and gates up to date. `may_report` says whether this replica is the one to do it."""

    def __init__(
        self,
        client: Client,
        reconciler: Reconciler,
        may_report: Callable[[], bool],
        down: Callable[[], Mapping[str, str]],
    ) -> None:
        self._client, self._reconciler = client, reconciler
        self._may_report, self._down = may_report, down
        self._services: set[str] = set()
        self._gates: set[str] = set()
        self._warnings: dict[tuple[str, str], tuple[GrpcService, str, str]] = {}
        self._not_before: dict[str, float] = {}
        self._written_at: dict[str, float] = {}
        self._next_look = math.inf
        self._wake = asyncio.Event()

    def look_at(self, services: Iterable[str]) -> None:
        """Look at these GrpcServices' statuses soon, but not before what has just been noted can have been written."""
        new = [uid for uid in services if uid not in self._services]
        if not new:
            return
        at = time.monotonic() + SETTLE_SECONDS
        for uid in new:
            self._not_before[uid] = max(at, self._not_before.get(uid, 0.0))
        self._services.update(new)
        if at < self._next_look:
            self._wake.set()

    def look_at_gate(self, pod: str) -> None:
        """Look at a Pod's gate now."""
        self._gates.add(pod)
        self._wake.set()

    def warn(self, services: Iterable[GrpcService], reason: str, message: str) -> None:
        """Post a warning on GrpcServices, whose status does not say it; of several of a kind the last one."""
        self._warnings.update({(service.uid, reason): (service, reason, message) for service in services})
        self._wake.set()

    def look_at_all(self) -> None:
        """Look at everything: leadership or a registry's state has changed."""
        self.look_at(self._reconciler.world.services)
        self._gates.update(uid for uid, pod in self._reconciler.world.pods.items() if pod.gated and not pod.gate_open)
        self._wake.set()

    async def run(self) -> None:
        """Report until cancelled."""
        while True:
            self._wake.clear()
            if self._may_report():
                await self._open_gates()
                await self._write_statuses()
                await self._post_warnings()
            self._next_look = self._find_next_look()
            pause = None if self._next_look == math.inf else max(0.01, self._next_look - time.monotonic())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()

    def _find_next_look(self) -> float:
        """Say when the first of what waits is due (monotonic seconds); never, unless somebody calls."""
        if not self._may_report():
            return math.inf
        return min((self._not_before.get(uid, 0.0) for uid in (*self._services, *self._gates)), default=math.inf)

    def _due(self, waiting: set[str]) -> list[str]:
        now = time.monotonic()
        due = [uid for uid in waiting if self._not_before.get(uid, 0.0) <= now]
        waiting.difference_update(due)
        return due

    async def _write_statuses(self) -> None:
        due = self._due(self._services) if self._reconciler.may_write() else []
        for start in range(0, len(due), AT_ONCE):
            await asyncio.gather(*(self._write_status(uid) for uid in due[start : start + AT_ONCE]))

    async def _write_status(self, uid: str) -> None:
        service = self._reconciler.world.services.get(uid)
        if service is None:
            self._not_before.pop(uid, None)
            self._written_at.pop(uid, None)
            return
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        verdict = self._reconciler.world.verdict(uid)
        status = make_status(service, verdict, self._reconciler.tally.counts(uid), self._down(), now)
        if is_same_status(service.status, status):
            return
        at = time.monotonic()
        self._not_before[uid] = at + SPACING_SECONDS
        is_counts_only = is_same_judgement(service.status, status)
        if is_counts_only and at < self._written_at.get(uid, -COUNTS_SPACING_SECONDS) + COUNTS_SPACING_SECONDS:
            self._services.add(uid)
            return
        self._written_at[uid] = at
        try:
            written = await self._client.patch_service_status(service.namespace, service.name, uid, status)
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            self._failed(self._services, uid, error)
            return
        self._reconciler.note_service("MODIFIED", written)
        await self._post_events(service, status)

    async def _open_gates(self) -> None:
        due = self._due(self._gates)
        for start in range(0, len(due), AT_ONCE):
            await asyncio.gather(*(self._open_gate(uid) for uid in due[start : start + AT_ONCE]))

    async def _open_gate(self, uid: str) -> None:
        pod = self._reconciler.world.pods.get(uid)
        if pod is None or pod.gate_open or not self._reconciler.is_gate_due(pod):
            return
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        condition = {"type": GATE, "status": "True", "reason": "Registered", "lastTransitionTime": now}
        try:
            await self._client.open_gate(pod.namespace, pod.name, uid, condition)
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            self._failed(self._gates, uid, error)
        else:
            self._not_before.pop(uid, None)
            log.info("gate opened", extra={"fields": {"namespace": pod.namespace, "pod": pod.name}})

    def _failed(self, waiting: set[str], uid: str, error: Exception) -> None:
        if isinstance(error, ApiError) and error.status in HTTP_GONE:
            self._not_before.pop(uid, None)
            return
        self._not_before[uid] = time.monotonic() + RETRY_SECONDS
        waiting.add(uid)
        log.warning("Kubernetes did not take a report; it is tried again", extra={"fields": {"error": str(error)}})

    async def _post_events(self, service: GrpcService, status: Mapping[str, Any]) -> None:
        """Tell of each condition that has turned bad, or is bad for a new reason."""
        old = {each.get("type"): each for each in service.status.get("conditions") or ()}
        for condition in status["conditions"]:
            was = old.get(condition["type"], {})
            same = (was.get("status"), was.get("reason")) == (condition["status"], condition["reason"])
            if condition["status"] == "False" and not same and condition["reason"] not in ("NotAccepted", "Pending"):
                await self._post_event(service, condition["reason"], condition["message"])

    async def _post_warnings(self) -> None:
        while self._warnings:
            _, warning = self._warnings.popitem()
            await self._post_event(*warning)

    async def _post_event(self, service: GrpcService, reason: str, message: str) -> None:
        """Post a warning on a GrpcService; nothing depends on it, so a failure is only logged."""
        now = datetime.now(UTC)
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": f"{service.name}.", "namespace": service.namespace},
            "involvedObject": {
                "apiVersion": f"{GROUP}/{VERSION}",
                "kind": "GrpcService",
                "namespace": service.namespace,
                "name": service.name,
                "uid": service.uid,
            },
            "type": "Warning",
            "reason": reason,
            "message": message[:1024],
            "source": {"component": "grpc-etcd-operator"},
            "firstTimestamp": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "lastTimestamp": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "count": 1,
        }
        try:
            await self._client.post_event(service.namespace, event)
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            log.warning("an Event could not be posted", extra={"fields": {"error": str(error)}})

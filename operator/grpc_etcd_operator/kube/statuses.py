"""Writes the status of GrpcServices and opens Pods' gates: what the operator tells Kubernetes. Leaders only.

A status is written at most once in two seconds, and never when nothing in it has changed. Where only counts have
changed it takes its time, since each write costs as much as the registration that it counts. A condition that turns
bad also becomes a Kubernetes Event. Whatever fails is tried again after a pause.
"""

import asyncio
import contextlib
import itertools
import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import aiohttp

from grpc_etcd_operator.core.conditions import is_same_judgement, is_same_status, make_status
from grpc_etcd_operator.core.pods import GATE
from grpc_etcd_operator.core.services import GrpcService
from grpc_etcd_operator.core.spacing import RETRY_SECONDS, Spacing
from grpc_etcd_operator.kube.client import GROUP, VERSION, ApiError, Client
from grpc_etcd_operator.reconciling import Reconciler

log = logging.getLogger(__name__)
STATUSES_AT_ONCE = 2  # each takes milliseconds away from the registrations of that moment
GATES_AT_ONCE = 8
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
        self._spacing = Spacing()
        self._gates: dict[str, float] = {}
        self._warnings: dict[tuple[str, str], tuple[GrpcService, str, str]] = {}
        self._next_look = math.inf
        self._wake = asyncio.Event()

    def look_at(self, services: Collection[str]) -> None:
        """Look at these GrpcServices' statuses soon."""
        if services and self._spacing.note(services, time.monotonic()) < self._next_look:
            self._wake.set()

    def look_at_gate(self, pod: str) -> None:
        """Look at a Pod's gate now."""
        self._gates.setdefault(pod, 0.0)
        self._wake.set()

    def warn(self, services: Iterable[GrpcService], reason: str, message: str) -> None:
        """Post a warning on GrpcServices, whose status does not say it; of several of a kind the last one."""
        self._warnings.update({(service.uid, reason): (service, reason, message) for service in services})
        self._wake.set()

    def look_at_all(self) -> None:
        """Look at everything: leadership or a registry's state has changed."""
        self.look_at(self._reconciler.world.services)
        for uid, pod in self._reconciler.world.pods.items():
            if pod.gated and not pod.gate_open:
                self._gates.setdefault(uid, 0.0)
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
        return min(self._spacing.next_pass_at(), min(self._gates.values(), default=math.inf))

    async def _write_statuses(self) -> None:
        due = self._spacing.take(time.monotonic()) if self._reconciler.may_write() else []
        # Worked out only when their turn comes: of a thousand the last would be old news, and no gate waits for them.
        statuses = ((self._reconciler.world.services[uid], made) for uid in due if (made := self._make_status(uid)))
        while some := list(itertools.islice(statuses, STATUSES_AT_ONCE)):
            await asyncio.gather(self._open_gates(), *(self._write_status(*each) for each in some))

    def _make_status(self, uid: str) -> dict[str, Any] | None:
        """Work out a status that is to be written now; None where nothing is new, or only counts that can wait."""
        service = self._reconciler.world.services.get(uid)
        if service is None:
            self._spacing.forget(uid)
            return None
        verdict = self._reconciler.world.verdict(uid)
        status = make_status(service, verdict, self._reconciler.tally.counts(uid), self._down(), _rfc3339())
        if is_same_status(service.status, status):
            self._spacing.is_true(uid)
            return None
        is_urgent = not is_same_judgement(service.status, status)
        return status if is_urgent or self._spacing.may_write_counts(uid, time.monotonic()) else None

    async def _write_status(self, service: GrpcService, status: dict[str, Any]) -> None:
        self._spacing.wrote(service.uid, time.monotonic())
        try:
            written = await self._client.patch_service_status(service.namespace, service.name, service.uid, status)
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            if _is_worth_trying_again(error):
                self._spacing.failed(service.uid, time.monotonic())
            return
        self._reconciler.note_service("MODIFIED", written)
        await self._post_events(service, status)

    async def _open_gates(self) -> None:
        now = time.monotonic()
        due = [uid for uid, at in self._gates.items() if at <= now]
        for uid in due:
            del self._gates[uid]
        for start in range(0, len(due), GATES_AT_ONCE):
            await asyncio.gather(*(self._open_gate(uid) for uid in due[start : start + GATES_AT_ONCE]))

    async def _open_gate(self, uid: str) -> None:
        pod = self._reconciler.world.pods.get(uid)
        if pod is None or pod.gate_open or not self._reconciler.is_gate_due(pod):
            return
        condition = {"type": GATE, "status": "True", "reason": "Registered", "lastTransitionTime": _rfc3339()}
        try:
            await self._client.open_gate(pod.namespace, pod.name, uid, condition)
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            if _is_worth_trying_again(error):
                self._gates[uid] = time.monotonic() + RETRY_SECONDS
        else:
            log.info("gate opened", extra={"fields": {"namespace": pod.namespace, "pod": pod.name}})

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


def _rfc3339() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _is_worth_trying_again(error: Exception) -> bool:
    """Say whether a report that was not taken is to be tried again, and log that it is."""
    if isinstance(error, ApiError) and error.status in HTTP_GONE:
        return False
    log.warning("Kubernetes did not take a report; it is tried again", extra={"fields": {"error": str(error)}})
    return True

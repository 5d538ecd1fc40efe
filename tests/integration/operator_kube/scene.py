"""An API server over real HTTP that answers what a test says, and the parts that write to it."""

import asyncio
import logging
from typing import Any

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from grpc_etcd_operator.controller.claim_granter import Granter
from grpc_etcd_operator.controller.event_handlers import PODS, SERVICES, EventHandlers
from grpc_etcd_operator.controller.status_queue import StatusQueue
from grpc_etcd_operator.controller.status_writer import StatusWriter
from grpc_etcd_operator.core.claims import claims_of, write_claims
from grpc_etcd_operator.core.cluster import ClusterCache
from grpc_etcd_operator.core.services import parse_service
from grpc_etcd_operator.core.vacancies import VACANT_SECONDS
from grpc_etcd_operator.isolation import Isolation
from grpc_etcd_operator.kube.client import Client
from grpc_etcd_operator.telemetry.metrics import Timings
from testbed.conditions import Condition, until

Raw = dict[str, Any]


class ApiServer:
    """Answers what the test says, over real HTTP: `answers` holds status codes by path, each used once."""

    def __init__(self) -> None:
        self.answers: dict[str, list[int]] = {}
        self.requests: list[tuple[str, str, Raw]] = []
        self.objects: dict[str, Raw] = {}
        self.after_a_read: dict[str, Raw] = {}
        self.events: set[str] = set()
        self.refused_parts: set[str] = set()
        self.held: asyncio.Event | None = None
        self.late: asyncio.Event | None = None  # when the next write takes effect, whose answer is lost before that
        self.has_been_late = asyncio.Event()
        self.held_events = asyncio.Event()
        self.held_events.set()

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.json() if request.can_read_body else {}
        self.requests.append((request.method, request.path, body))
        late, transport = self.late, request.transport
        if late is None or transport is None or request.method != "PATCH":
            return await self._answer(request, body)
        self.late = None
        transport.abort()
        await late.wait()
        answer = await self._answer(request, body)
        self.has_been_late.set()
        return answer

    async def _answer(self, request: web.Request, body: Raw) -> web.Response:
        if self.held:
            await self.held.wait()
        if codes := self.answers.get(request.path):
            return web.json_response({"kind": "Status", "message": "as told"}, status=codes.pop(0))
        if self.refused_parts.intersection(body.get("status", ())):
            return web.json_response({"kind": "Status", "message": "not today"}, status=403)
        if request.path.endswith("/events"):
            await self.held_events.wait()
            return self._post_event(body["metadata"]["name"])
        if request.method == "GET":
            name = request.path.split("/")[-1]
            answer = web.json_response(self.objects.get(name, {"metadata": {"uid": ""}}))
            self.objects.update(self.after_a_read)
            return answer
        name = request.path.split("/")[-2]
        found = self.objects.get(name, {"metadata": {}})
        asked, is_version = body["metadata"].get("resourceVersion"), found["metadata"].get("resourceVersion")
        if asked and is_version and asked != is_version:
            return web.json_response({"kind": "Status", "message": "the object has been modified"}, status=409)
        found["status"] = {**found.get("status", {}), **body.get("status", {})}
        version = int(found["metadata"].get("resourceVersion", "0")) + 1
        found["metadata"]["resourceVersion"] = str(version)
        return web.json_response(found)

    def _post_event(self, name: str) -> web.Response:
        if name in self.events:
            return web.json_response({"message": "already exists"}, status=409)
        self.events.add(name)
        return web.json_response({})

    def patches(self, name: str) -> list[Raw]:
        return [body for method, path, body in self.requests if method == "PATCH" and f"/{name}/" in path]


def make_reconciler(vacant_seconds: float = VACANT_SECONDS) -> EventHandlers:
    cluster_cache, timings = ClusterCache(["default"]), Timings(CollectorRegistry())
    reconciler = EventHandlers(
        cluster_cache, {"default": None}, timings, statuses=StatusQueue(cluster_cache, vacant_seconds)
    )
    reconciler.mark_complete(PODS)
    reconciler.mark_complete(SERVICES)
    return reconciler


async def run(part: StatusWriter | Granter, condition: Condition[object]) -> None:
    running = asyncio.create_task(part.run())
    await until(condition)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def granted(raw: Raw) -> Raw:
    """Give a GrpcService as it is once its claim has been granted."""
    spec = parse_service(raw).spec
    assert spec
    claims = write_claims(dict.fromkeys(claims_of(spec, ["default"]), "2026-01-01T00:00:00.000000Z"))
    return {**raw, "status": {**raw.get("status", {}), "claims": claims}}


def versioned(raw: Raw, version: int) -> Raw:
    raw["metadata"]["resourceVersion"] = str(version)
    return raw


def posts(server: ApiServer) -> list[str]:
    return [body["reason"] for _, path, body in server.requests if path.endswith("/events")]


def count_lines(caplog: pytest.LogCaptureFixture, event: str) -> int:
    """Count the lines of an event that everybody sees."""
    return sum(getattr(each, "event", "") == event for each in caplog.records if each.levelno >= logging.WARNING)


def make_reporter(client: Client, reconciler: EventHandlers, isolation: Isolation | None = None) -> StatusWriter:
    """Make the status writer of a replica that leads."""
    return StatusWriter(client, reconciler, reconciler.statuses, lambda: True, dict, isolation)


def make_granter(client: Client, reconciler: EventHandlers, isolation: Isolation | None = None) -> Granter:
    """Make the claim granter of a replica that leads."""
    return Granter(client, reconciler, reconciler.claims, lambda: True, isolation or Isolation())

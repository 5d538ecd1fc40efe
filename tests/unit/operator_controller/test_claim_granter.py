"""Claims whose writes nobody answers: they are written again, but by nobody who may grant no longer.

Nor do they keep others of their namespace from getting theirs.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from grpc_etcd_operator.controller.claim_granter import Granter
from grpc_etcd_operator.controller.event_handlers import PODS, SERVICES, EventHandlers
from grpc_etcd_operator.core.cluster import ASKING, ClusterCache
from grpc_etcd_operator.core.reasons import Reason
from grpc_etcd_operator.core.services import GrpcService
from grpc_etcd_operator.isolation import MOST_LATE, Isolation
from grpc_etcd_operator.kube.client import ApiError, Client
from grpc_etcd_operator.telemetry.metrics import Timings
from testbed.conditions import until
from tests.unit.operator_core.conftest import make_raw_service


class ApiServer(Client):
    """An API server that holds one GrpcService, and loses the first write to it."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self.raw, self.is_lost, self.reads = raw, False, 0

    async def patch_service_status(
        self,
        service: GrpcService,
        status: Mapping[str, Any],
        renew: Callable[[GrpcService], Mapping[str, Any] | None] | None = None,
    ) -> Mapping[str, Any]:
        """Write a status; the first time nobody answers."""
        del service, renew
        if not self.is_lost:
            self.is_lost = True
            raise TimeoutError
        self.raw = {**self.raw, "status": dict(status)}
        return self.raw

    async def read(self, plural: str, namespace: str, name: str) -> Mapping[str, Any] | None:
        """Read the GrpcService."""
        del plural, namespace, name
        self.reads += 1
        return self.raw


def make_handlers() -> EventHandlers:
    registries = {"default": None}
    handlers = EventHandlers(ClusterCache(registries), registries, Timings(CollectorRegistry()))
    handlers.complete |= {PODS, SERVICES}
    return handlers


async def test_a_write_without_an_answer_is_made_again() -> None:
    handlers, server = make_handlers(), ApiServer(make_raw_service())
    handlers.note_service("ADDED", server.raw)
    granter = Granter(server, handlers, handlers.claims, lambda: True, Isolation())
    running = asyncio.create_task(granter.run())
    await until(lambda: "status" in server.raw and server.raw["status"].get("claims"))
    running.cancel()


async def test_who_may_grant_no_longer_makes_no_write_again() -> None:
    """Whoever leads now may have granted the name to somebody else meanwhile, and the earlier claim would win."""
    handlers, server = make_handlers(), ApiServer(make_raw_service())
    rival = make_raw_service(uid="s2", namespace="other")
    handlers.note_service("ADDED", server.raw)
    leads = True
    granter = Granter(server, handlers, handlers.claims, lambda: leads, Isolation())
    running = asyncio.create_task(granter.run())
    await until(lambda: server.reads)
    handlers.note_service("ADDED", rival)
    assert handlers.cluster_cache.verdict("s2").reason == Reason.NAME_TAKEN
    leads = False
    await until(lambda: server.raw.get("status", {}).get("claims") or handlers.cluster_cache.verdict("s2") is ASKING)
    running.cancel()
    assert not server.raw.get("status", {}).get("claims")


class Deleting(ApiServer):
    """An API server on which an object is deleted while its status is written, in an answer that nobody foresaw."""

    def __init__(self, raw: dict[str, Any], handlers: EventHandlers) -> None:
        super().__init__(raw)
        self._handlers = handlers

    async def patch_service_status(
        self,
        service: GrpcService,
        status: Mapping[str, Any],
        renew: Callable[[GrpcService], Mapping[str, Any] | None] | None = None,
    ) -> Mapping[str, Any]:
        """Delete the GrpcService, and fail."""
        del status, renew
        self._handlers.forget_service(service.uid)
        self.is_lost = True
        raise RuntimeError


async def test_nothing_is_kept_of_what_is_deleted_while_its_claim_is_written() -> None:
    handlers, raw = make_handlers(), make_raw_service()
    server, isolation = Deleting(raw, handlers), Isolation()
    handlers.note_service("ADDED", raw)
    granter = Granter(server, handlers, handlers.claims, lambda: True, isolation)
    running = asyncio.create_task(granter.run())
    await until(lambda: server.is_lost and not granter._writing)
    running.cancel()
    assert handlers.open_claims._refused == {}
    assert not granter._failures
    assert not granter._later


class PartlySilent(Client):
    """An API server that answers writes to some GrpcServices with nothing but a lost connection."""

    def __init__(self, silent: set[str]) -> None:
        self.silent, self.objects, self.in_progress, self.most, self.hangs = silent, dict[str, Any](), 0, 0, False

    async def patch_service_status(
        self,
        service: GrpcService,
        status: Mapping[str, Any],
        renew: Callable[[GrpcService], Mapping[str, Any] | None] | None = None,
    ) -> Mapping[str, Any]:
        """Write a status, or lose the answer; count how many do so at a time."""
        del renew
        if service.name in self.silent:
            self.in_progress += 1
            self.most = max(self.most, self.in_progress)
            try:
                await (asyncio.Event().wait() if self.hangs else asyncio.sleep(0.05))
            finally:
                self.in_progress -= 1
            raise TimeoutError
        self.objects[service.name] = {**self.objects[service.name], "status": dict(status)}
        written: Mapping[str, Any] = self.objects[service.name]
        return written

    async def read(self, plural: str, namespace: str, name: str) -> Mapping[str, Any] | None:
        """Read a GrpcService."""
        del plural, namespace
        found: Mapping[str, Any] = self.objects[name]
        return found

    def apply(self, handlers: EventHandlers, name: str) -> None:
        """Create a GrpcService."""
        self.objects[name] = make_raw_service(uid=f"uid-{name}", name=name)
        handlers.note_service("ADDED", self.objects[name])


async def test_claims_that_nobody_ever_answers_hold_up_no_other_of_their_namespace() -> None:
    silent = [f"silent-{number}" for number in range(2 * MOST_LATE)]
    handlers, server = make_handlers(), PartlySilent(set(silent))
    granter = Granter(server, handlers, handlers.claims, lambda: True, Isolation())
    for name in silent:
        server.apply(handlers, name)
    running = asyncio.create_task(granter.run())
    await until(lambda: server.most)
    await until(lambda: not server.in_progress)
    handlers.claims.set()
    server.apply(handlers, "well")
    await until(lambda: handlers.cluster_cache.verdict("uid-well").accepted)
    rivals = [make_raw_service(uid=f"rival-{name}", name=name, namespace="other") for name in silent]
    for rival in rivals:
        handlers.note_service("ADDED", rival)
    verdicts = {handlers.cluster_cache.verdict(rival["metadata"]["uid"]).reason for rival in rivals}
    assert verdicts == {Reason.NAME_TAKEN}, "what may yet be written stays reserved"
    server.most, server.hangs = 0, True
    await until(lambda: server.in_progress == MOST_LATE)
    handlers.claims.set()
    server.apply(handlers, "late")
    await until(lambda: handlers.cluster_cache.verdict("uid-late").accepted)
    assert server.most == MOST_LATE, "nor are all of them asked about at once"
    running.cancel()
    await asyncio.wait([running])
    assert not server.in_progress


class Answering(ApiServer):
    """An API server whose answers to writes are what the test says, one after the other; then it writes."""

    def __init__(self, raw: dict[str, Any], *answers: Exception) -> None:
        super().__init__(raw)
        self.is_lost, self.answers, self.writes = True, list(answers), 0

    async def patch_service_status(
        self,
        service: GrpcService,
        status: Mapping[str, Any],
        renew: Callable[[GrpcService], Mapping[str, Any] | None] | None = None,
    ) -> Mapping[str, Any]:
        """Write a status, unless there is another answer."""
        self.writes += 1
        if self.answers:
            raise self.answers.pop(0)
        return await super().patch_service_status(service, status, renew)


async def is_reserved_after(*answers: Exception) -> bool:
    """Return whether a claim is still reserved when writes to it have been answered, before it is written again."""
    handlers, server = make_handlers(), Answering(make_raw_service(), *answers)
    handlers.note_service("ADDED", server.raw)
    granter = Granter(server, handlers, handlers.claims, lambda: True, Isolation())
    running = asyncio.create_task(granter.run())
    await until(lambda: server.reads == len(answers))
    handlers.note_service("ADDED", make_raw_service(uid="s2", namespace="other"))
    is_reserved = handlers.cluster_cache.verdict("s2").reason == Reason.NAME_TAKEN
    running.cancel()
    await asyncio.wait([running])
    return is_reserved


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
async def test_an_error_that_may_hide_a_write_is_no_answer(status: int) -> None:
    assert await is_reserved_after(ApiError(status, "etcdserver: request timed out"))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422])
async def test_a_refusal_is_one(status: int) -> None:
    assert not await is_reserved_after(ApiError(status, "no"))


@pytest.mark.parametrize("status", [401, 403, 422])
async def test_a_refusal_of_a_second_write_says_nothing_of_the_first(status: int) -> None:
    """The first may yet take effect: what it names is the version that the object still has."""
    assert await is_reserved_after(TimeoutError(), ApiError(status, "no"))


async def test_a_conflict_shows_that_no_earlier_write_can_take_effect() -> None:
    assert not await is_reserved_after(TimeoutError(), ApiError(409, "the object has been modified"))


async def test_a_failure_that_nobody_foresaw_is_no_answer() -> None:
    assert await is_reserved_after(OSError("reset"))


class Overloaded(Client):
    """An API server that answers neither writes nor reads with anything but an error; it counts reads at a time."""

    def __init__(self) -> None:
        self.reading, self.read_names, self.most = 0, set[str](), 0

    async def patch_service_status(self, *_: object) -> Mapping[str, Any]:
        """Fail."""
        raise ApiError(500, "etcdserver: request timed out")

    async def read(self, plural: str, namespace: str, name: str) -> Mapping[str, Any] | None:
        """Fail after a moment."""
        del plural, namespace
        self.reading += 1
        self.most = max(self.most, self.reading)
        try:
            await asyncio.sleep(0.001)
        finally:
            self.reading -= 1
        self.read_names.add(name)
        raise ApiError(500, "etcdserver: request timed out")


async def test_an_overloaded_api_server_is_not_asked_about_all_claims_at_once() -> None:
    handlers, server, names = make_handlers(), Overloaded(), {f"s{number}" for number in range(20 * MOST_LATE)}
    granter = Granter(server, handlers, handlers.claims, lambda: True, Isolation())
    for name in names:
        handlers.note_service("ADDED", make_raw_service(uid=f"uid-{name}", name=name))
    running = asyncio.create_task(granter.run())
    await until(lambda: server.read_names == names)
    running.cancel()
    await asyncio.wait([running])
    assert server.most == MOST_LATE

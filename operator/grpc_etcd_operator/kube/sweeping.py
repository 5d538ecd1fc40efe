"""Finds what the watches have missed: after each (re)start of a watch, and once a minute.

Kopf reports no deletion that happened in a gap of the watch. A sweep lists metadata, compares it with memory and with
the owner records, and confirms each absence by a read of its own before anything is withdrawn for it.

Kopf takes a while to deliver thousands of Pods. So at the start, once all GrpcServices are known, a look ahead finds
the few Pods that went while no operator ran, and have left records of addresses that nobody has now.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Container, Iterable, Sequence

import aiohttp

from grpc_etcd_operator.core.scope import Scope
from grpc_etcd_operator.core.services import GrpcService
from grpc_etcd_operator.core.sweeps import BRAKE_COUNT, Seen, compare_with_list, is_abandoned, needs_brake
from grpc_etcd_operator.kube.client import ApiError, Client
from grpc_etcd_operator.reconciling import PODS, SERVICES, Reconciler
from grpc_etcd_operator.writer.station import Station

log = logging.getLogger(__name__)
EVERY_SECONDS = 60.0
RETRY_SECONDS = 2.0
DELIVERY_SECONDS = 3.0  # for how long Kopf may still deliver what a list has already shown
AT_ONCE = 16
DELETION_DELAY_SECONDS = 1.0
# How long GrpcServices are held that went with their CRD: time to apply them again once it is back. Arbitrary.
CRD_GRACE_SECONDS = 300.0
OWNERS, OWNERS_DELAY_SECONDS = "owners", 1.0


class Sweeper:
    """Sweeps both resources. `on_brake` is told when most of a registry would go at once."""

    def __init__(
        self, client: Client, reconciler: Reconciler, scope: Scope, on_brake: Callable[[Sequence[Seen], int], None]
    ) -> None:
        self._client, self._reconciler, self._scope, self._on_brake = client, reconciler, scope, on_brake
        self._due: dict[str, float] = {}
        self._deleted: dict[str, tuple[float, GrpcService]] = {}
        self._crd_gone_at: float | None = None
        self._wake = asyncio.Event()
        self.drift = 0
        self._has_looked_ahead = False
        self.has_checked_owners = False

    def sweep_soon(self, resource: str) -> None:
        """Sweep a resource now: its watch has begun."""
        self._due[resource] = 0.0
        self._wake.set()

    def check_deleted(self, service: GrpcService) -> None:
        """Find out whether a GrpcService was deleted on purpose."""
        self._deleted.setdefault(service.uid, (time.monotonic() + DELETION_DELAY_SECONDS, service))
        self._wake.set()

    def check_owners(self) -> None:
        """Compare the owner records with memory soon: a registry has been listed, or its state has changed."""
        self._due[OWNERS] = min(self._due.get(OWNERS, math.inf), time.monotonic() + OWNERS_DELAY_SECONDS)
        self._wake.set()

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            self._wake.clear()
            for task, at in sorted(self._due.items()):
                if at <= time.monotonic():
                    self._due[task] = math.inf
                    pause = EVERY_SECONDS if await self._try(task) else RETRY_SECONDS
                    self._due[task] = min(self._due[task], time.monotonic() + pause)  # it may be due again by now
            await self._judge_deleted()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause_seconds()):
                    await self._wake.wait()

    def _pause_seconds(self) -> float | None:
        times = [*self._due.values(), *(at for at, _ in self._deleted.values())]
        return max(0.05, min(times) - time.monotonic()) if times else None

    async def _try(self, task: str) -> bool:
        try:
            if task == OWNERS:
                await self._sweep_owners()
            else:
                await self._sweep(task)
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            log.warning("a sweep failed; it is tried again", extra={"fields": {"of": task, "error": str(error)}})
            return False
        return True

    async def _list(self, resource: str) -> dict[str, Seen]:
        found = self._client.list_seen(resource, self._scope.namespaces, self._selector(resource))
        return {seen.uid: seen async for seen in found}

    async def _sweep(self, resource: str) -> None:
        listed = await self._list(resource)
        await self._await_delivery(listed)
        known = self._known(resource)
        suspicions = compare_with_list(listed, known)
        for uid in suspicions.unseen:
            await self._fetch(resource, listed[uid])
        gone = await self._confirm(resource, suspicions.vanished, len(known))
        self.drift += len(gone) + len(suspicions.unseen)
        for seen in gone:
            log.warning(
                "a deletion was missed by the watch",
                extra={"fields": {"of": resource, "object": f"{seen.namespace}/{seen.name}"}},
            )
            self._gone(resource, seen)
        self._reconciler.mark_complete(resource)
        await self._sweep_owners()

    def _selector(self, resource: str) -> str:
        return self._scope.selector if resource == PODS else ""

    def _known(self, resource: str) -> dict[str, Seen]:
        world = self._reconciler.world
        objects = world.pods.values() if resource == PODS else world.services.values()
        return {each.uid: Seen(each.uid, each.namespace, each.name) for each in objects}

    def _gone(self, resource: str, seen: Seen) -> None:
        if resource == PODS:
            self._reconciler.forget_pod(seen.uid)
        elif service := self._reconciler.world.services.get(seen.uid):
            self.check_deleted(service)

    async def _await_delivery(self, listed: Iterable[str]) -> None:
        """Give Kopf a moment: it delivers one by one what its own list has shown."""
        world = self._reconciler.world
        known = (world.pods, world.services, world.gone)
        waiting = list(listed)
        until = time.monotonic() + DELIVERY_SECONDS
        while waiting and time.monotonic() < until:
            before = len(waiting)
            waiting = [uid for uid in waiting if not any(uid in some for some in known)]
            if len(waiting) != before:
                until = time.monotonic() + DELIVERY_SECONDS
            # Looking costs time that the delivery needs, so it is done seldom while much is missing.
            await asyncio.sleep(0.02 + len(waiting) / 50_000)

    async def _fetch(self, resource: str, seen: Seen) -> None:
        """Read an object that the watch has not delivered."""
        if seen.uid in self._reconciler.world.gone:
            return
        raw = await self._client.read(resource, seen.namespace, seen.name)
        if raw is not None:
            note = self._reconciler.note_pod if resource == PODS else self._reconciler.note_service
            note(None, raw)

    async def _confirm(self, resource: str, vanished: Iterable[Seen], total: int) -> list[Seen]:
        """Return those that are gone for certain. Many at once are first looked for in a second list."""
        suspects = list(vanished)
        if len(suspects) > BRAKE_COUNT:
            present = {seen.uid async for seen in self._client.list_seen(resource, self._scope.namespaces)}
            suspects = [seen for seen in suspects if seen.uid not in present]
            if needs_brake(len(suspects), total):
                self._on_brake(suspects, total)
        gone: list[Seen] = []
        for start in range(0, len(suspects), AT_ONCE):
            some = suspects[start : start + AT_ONCE]
            found = await asyncio.gather(*(self._client.uid_of(resource, each.namespace, each.name) for each in some))
            gone += [seen for seen, uid in zip(some, found, strict=True) if uid != seen.uid]
        return gone

    async def _sweep_owners(self) -> None:
        """Look for owner records of units that nobody has seen: they went while no operator was running."""
        if not self._reconciler.has_seen_all():
            await self._look_ahead()
            return
        for station in self._reconciler.stations.values():
            pods, services = self._strangers(station, ())
            total = len(station.mirror.owners)
            for seen in await self._confirm(PODS, pods, total) + await self._confirm(SERVICES, services, total):
                self._reconciler.forget_owner(seen, station)
        self._prune_gone()
        self.has_checked_owners = True

    async def _look_ahead(self) -> None:
        """Do so once for a few Pods before all others are delivered; where many went, those that came go first."""
        stations = [station for station in self._reconciler.stations.values() if station.is_listed]
        if self._has_looked_ahead or not self._reconciler.may_write():
            return
        if any(self._strangers(station, ())[0] for station in stations):
            listed = await self._list(PODS)
            used = await self._client.list_addresses(self._scope.namespaces, self._scope.selector)
            for station in stations:
                await self._forget_abandoned(station, listed, used)
        self._has_looked_ahead = len(stations) == len(self._reconciler.stations)

    async def _forget_abandoned(self, station: Station, listed: Iterable[str], used: Container[str]) -> None:
        pods, _ = self._strangers(station, listed)
        if len(pods) > BRAKE_COUNT:
            return
        for seen in await self._confirm(PODS, pods, len(station.mirror.owners)):
            if is_abandoned(station.mirror.texts(seen.uid), used):
                self._reconciler.forget_owner(seen, station)

    def _strangers(self, station: Station, listed: Iterable[str]) -> tuple[list[Seen], list[Seen]]:
        """Give the Pods and the GrpcServices that have owner records and are neither known nor listed."""
        world = self._reconciler.world
        known = world.pods.keys() | world.services.keys() | world.gone.keys() | set(listed)
        pods, services = [], []
        for uid, owner in station.mirror.owners.items():
            if uid in known or not self._scope.covers(owner.namespace):
                continue
            if owner.pod:
                pods.append(Seen(uid, owner.namespace, owner.pod))
            else:
                services.append(Seen(uid, owner.namespace, _name_of(owner.grpc_services)))
        return pods, services

    def _prune_gone(self) -> None:
        """Forget the dead whom no registry remembers."""
        world, stations = self._reconciler.world, self._reconciler.stations.values()
        if all(station.is_listed for station in stations):
            for uid in [uid for uid in world.gone if not any(uid in station.mirror.owners for station in stations)]:
                del world.gone[uid]

    async def _judge_deleted(self) -> None:
        """Decide on GrpcServices that were reported deleted: on purpose, or with their CRD."""
        now = time.monotonic()
        due = [service for at, service in self._deleted.values() if at <= now]
        if not due:
            return
        try:
            state = await self._client.crd_state()
            is_held = self._hold(served=state.served and not state.terminating)
            gone = (
                []
                if is_held
                else await self._confirm(
                    SERVICES, [Seen(s.uid, s.namespace, s.name) for s in due], len(self._reconciler.world.services)
                )
            )
        except (ApiError, aiohttp.ClientError, TimeoutError):
            is_held, gone = True, []
        for service in due:
            self._deleted.pop(service.uid)
            if is_held and service.uid in self._reconciler.world.services:
                self._deleted[service.uid] = (now + RETRY_SECONDS, service)
        for seen in gone:
            self._reconciler.forget_service(seen.uid)

    def _hold(self, *, served: bool) -> bool:
        """Say whether deletions are the CRD's doing: it is away, or has not been back for long."""
        now = time.monotonic()
        if not served:
            if self._crd_gone_at is None:
                log.error("the CRD is being taken away; its GrpcServices stay in force until they are applied again")
            self._crd_gone_at = now
        elif self._crd_gone_at is not None and now - self._crd_gone_at > CRD_GRACE_SECONDS:
            self._crd_gone_at = None
        return self._crd_gone_at is not None


def _name_of(references: tuple[str, ...]) -> str:
    return references[0].partition("/")[2] if references else ""

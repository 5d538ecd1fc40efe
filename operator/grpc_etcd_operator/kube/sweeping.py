"""Finds what the watches have missed: after each list that a watch began with, and once a minute.

No watch reports a deletion that happened in its gap. A sweep compares a list with memory and with the owner records,
and confirms each absence by a read of its own before anything is withdrawn for it. The list is that which the watch on
Pods has made, else one of metadata.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence

import aiohttp

from grpc_etcd_operator.core.scope import Scope
from grpc_etcd_operator.core.services import GrpcService
from grpc_etcd_operator.core.sweeps import BRAKE_COUNT, Seen, compare_with_list, needs_brake
from grpc_etcd_operator.kube.client import ApiError, Client
from grpc_etcd_operator.reconciling import PODS, SERVICES, Reconciler
from grpc_etcd_operator.writer.station import Station

log = logging.getLogger(__name__)
EVERY_SECONDS = 60.0
RETRY_SECONDS = 2.0
DELIVERY_SECONDS = 3.0  # for how long a watch may still deliver what a list has already shown
AT_ONCE = 16
DELETION_DELAY_SECONDS = 1.0
# How long GrpcServices are held that went with their CRD: time to apply them again once it is back. Arbitrary.
CRD_GRACE_SECONDS = 300.0
OWNERS, OWNERS_DELAY_SECONDS = "owners", 1.0
LISTED = "listed Pods"


class Sweeper:
    """Sweeps both resources. `on_brake` is told when most of a registry would go at once."""

    def __init__(
        self, client: Client, reconciler: Reconciler, scope: Scope, on_brake: Callable[[Sequence[Seen], int], None]
    ) -> None:
        self._client, self._reconciler, self._scope, self._on_brake = client, reconciler, scope, on_brake
        self._due: dict[str, float] = {}
        self._lists: dict[str, frozenset[str]] = {}
        self._unlisted = set(scope.namespaces or ("",))
        self._deleted: dict[str, tuple[float, GrpcService]] = {}
        self._crd_gone_at: float | None = None
        self._wake = asyncio.Event()
        self.drift = 0
        self.has_checked_owners = False

    def sweep_soon(self, resource: str) -> None:
        """Sweep a resource now: its watch has begun."""
        self._due[resource] = 0.0
        self._wake.set()

    def take_list(self, namespace: str, listed: frozenset[str]) -> None:
        """Take the UIDs of a complete list of Pods in a namespace (empty: in all), each of which has been noted."""
        self._lists[namespace] = listed
        self._due[LISTED] = 0.0
        self._due[PODS] = time.monotonic() + EVERY_SECONDS
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
            elif task == LISTED:
                await self._compare_lists()
            else:
                await self._sweep(task)
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            log.warning("a sweep failed; it is tried again", extra={"fields": {"of": task, "error": str(error)}})
            return False
        return True

    async def _sweep(self, resource: str) -> None:
        found = self._client.list_seen(resource, self._scope.namespaces, self._selector(resource))
        listed = {seen.uid: seen async for seen in found}
        await self._await_delivery(listed)
        known = self._known(resource)
        unseen = compare_with_list(listed, known).unseen
        for uid in unseen:
            await self._fetch(resource, listed[uid])
        self.drift += len(unseen)
        await self._withdraw_missing(resource, listed, known)
        if resource == SERVICES:
            self._reconciler.mark_complete(resource)
        await self._sweep_owners()

    async def _compare_lists(self) -> None:
        for namespace, listed in tuple(self._lists.items()):
            known = {uid: seen for uid, seen in self._known(PODS).items() if namespace in {"", seen.namespace}}
            await self._withdraw_missing(PODS, listed, known)
            if self._lists[namespace] is listed:
                del self._lists[namespace]
            self._unlisted.discard(namespace)
        if not self._unlisted:
            self._reconciler.mark_complete(PODS)
        await self._sweep_owners()

    async def _withdraw_missing(self, resource: str, listed: Iterable[str], known: dict[str, Seen]) -> None:
        gone = await self._confirm(resource, compare_with_list(listed, known).vanished, len(known))
        self.drift += len(gone)
        for seen in gone:
            log.warning(
                "a deletion was missed by the watch",
                extra={"fields": {"of": resource, "object": f"{seen.namespace}/{seen.name}"}},
            )
            self._gone(resource, seen)

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
        """Give the watch a moment: it delivers one by one what this list has shown."""
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
            return
        for station in self._reconciler.stations.values():
            pods, services = self._strangers(station)
            total = len(station.mirror.owners)
            for seen in await self._confirm(PODS, pods, total) + await self._confirm(SERVICES, services, total):
                self._reconciler.forget_owner(seen, station)
        self._prune_gone()
        self.has_checked_owners = True

    def _strangers(self, station: Station) -> tuple[list[Seen], list[Seen]]:
        """Give the Pods and the GrpcServices that have owner records and were never seen."""
        world = self._reconciler.world
        known = world.pods.keys() | world.services.keys() | world.gone.keys()
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

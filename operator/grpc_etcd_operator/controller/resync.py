"""Finds what the watches have missed: after each list that a watch began with, and once a minute.

No watch reports a deletion that happened in its gap. A resync compares a list with memory and with the owner records,
and confirms each absence by a read of its own before anything is deregistered for it. The list is that which the watch
on Pods has made, else one of metadata. That one has versions too: what is remembered in another, and of which no watch
has reported since, is read again. So an API server that was restored from a backup is caught up with though its
versions have passed the old ones.

Each namespace is swept by itself. What may not be read is unknown: nothing is concluded about it, and what else there
is does not wait for it. An object that makes unexpected trouble is left for the next resync, which begins with what is
left of the news of such.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus

import aiohttp

from grpc_etcd_operator.controller.deletions import Deletions
from grpc_etcd_operator.controller.event_handlers import PODS, SERVICES, EventHandlers
from grpc_etcd_operator.controller.left_out import LeftOut
from grpc_etcd_operator.controller.registry_controller import RegistryController
from grpc_etcd_operator.core.pods import Pod, PodMessage
from grpc_etcd_operator.core.resync import SAFEGUARD_COUNT, ObjectRef, find_vanished, is_delivered, needs_safeguard
from grpc_etcd_operator.core.scope import Scope
from grpc_etcd_operator.core.services import GrpcService
from grpc_etcd_operator.isolation import BACKOFF, Isolation, Subject
from grpc_etcd_operator.kube.client import ApiError, Client

log = logging.getLogger(__name__)
EVERY_SECONDS = 60.0
RETRY_SECONDS = 2.0
DELIVERY_SECONDS = 3.0  # for how long a watch may still deliver what a list has already shown
AT_ONCE = 16
JUDGED_AT_ONCE = 4 * AT_ONCE  # deletions, until it is looked who else has come. Arbitrary
# So often it is asked during that delay whether the CRD is there: `kubectl replace --force` puts it back in less.
CRD_LOOK_SECONDS = 0.05
# How long GrpcServices are held that went with their CRD: time to apply them again once it is back. Arbitrary.
CRD_GRACE_SECONDS = 300.0
OWNERS, OWNERS_DELAY_SECONDS = "owners", 1.0
OUTSIDE = "Pods out of scope"
LISTED = "listed Pods"
# Of those that are gone so many are remembered while a registry has not been listed, which may have records of them;
# what it turns out to have of others is confirmed by a read each. Arbitrary.
MOST_GONE = 10_000
PART = "resync"
Task = tuple[str, str]  # what to do, and in which namespace (empty: in all)
_EXPECTED = (ApiError, aiohttp.ClientError, TimeoutError)


class ResyncController:
    """Resyncs both resources.

    `on_safeguard` is called when most of a registry would go at once, `on_left_out` with each resync which Pods stay
    though the selector does not find them; `unreadable` names the namespaces in which a resource may not be read now.
    """

    def __init__(  # noqa: PLR0913, PLR0917  all that it stands between
        self,
        client: Client,
        reconciler: EventHandlers,
        scope: Scope,
        on_safeguard: Callable[[Sequence[ObjectRef], int], None],
        unreadable: Callable[[str], Mapping[str, str]],
        isolation: Isolation,
        on_left_out: Callable[[Sequence[ObjectRef]], None] = lambda _: None,
        deletions: Deletions | None = None,
    ) -> None:
        self._client, self._reconciler, self._scope, self._on_safeguard = client, reconciler, scope, on_safeguard
        self._unreadable, self._isolation, self._on_left_out = unreadable, isolation, on_left_out
        self._namespaces = scope.namespaces or ("",)
        self._due: dict[Task, float] = {}
        self._failures: dict[Task, int] = {}
        self._lists: dict[str, frozenset[str]] = {}
        self._listed: dict[str, set[str]] = {PODS: set(), SERVICES: set()}
        self._outside: dict[str, ObjectRef] = {}
        self._left_out = LeftOut(reconciler)
        self._deletions = deletions or Deletions()
        self._crd_gone_at: float | None = None
        self._went_with_crd: set[str] = set()
        self._wake = asyncio.Event()
        self.drift = 0
        self.has_checked_owners = False

    def resync_soon(self, resource: str, namespace: str) -> None:
        """Sweep a resource now: its watch has begun."""
        self._due[resource, namespace] = 0.0
        self._wake.set()

    def take_list(self, namespace: str, listed: frozenset[str]) -> None:
        """Take the UIDs of a complete list of Pods in a namespace (empty: in all), each of which has been noted."""
        self._lists[namespace] = listed
        self._due[LISTED, namespace] = 0.0
        self._due[PODS, namespace] = time.monotonic() + EVERY_SECONDS
        self._wake.set()

    def note_pod(self, kind: str | None, message: PodMessage) -> None:
        """Take a Pod's watch event. That a watch with a selector reports a deletion may mean another label only.

        Perhaps an earlier one, which a late watch reports of a Pod that has been found again since.
        """
        if kind != "DELETED" or not self._scope.selector:
            self._reconciler.note_pod(kind, message)
            return
        metadata = message.metadata
        if self._reconciler.has_newer_pod(metadata.uid, metadata.resourceVersion):
            return
        self._reconciler.note_out_of_scope(message)
        self._outside[metadata.uid] = ObjectRef(metadata.uid, metadata.namespace, metadata.name)
        self._due[OUTSIDE, ""] = 0.0
        self._wake.set()

    def note_crd_away(self) -> None:
        """Record that the CRD is not served, or not for long: whatever was there goes with it, by nobody's wish."""
        known = self._reconciler.cluster_cache.services
        if known and self._crd_gone_at is None:
            log.error(
                "CRD deleted; its GrpcServices stay in effect until they are applied again",
                extra={"event": "crd_deleted"},
            )
        self._crd_gone_at = time.monotonic()
        self._went_with_crd.update(known)
        self._reconciler.await_return()

    async def look_at_crd(self) -> None:
        """While it is not decided on deletions, ask again and again whether the CRD is there. Until cancelled."""
        while True:
            self._deletions.has_some.clear()
            while time.monotonic() < self._deletions.look_until:
                with contextlib.suppress(*_EXPECTED):
                    await self._ask_for_crd()
                await asyncio.sleep(CRD_LOOK_SECONDS)
            await self._deletions.has_some.wait()

    async def _ask_for_crd(self) -> None:
        state = await self._client.crd_state()
        if not state.served or state.terminating:
            self.note_crd_away()

    def check_owners(self) -> None:
        """Compare the owner records with memory soon: a registry has been listed, or its state has changed."""
        task = OWNERS, ""
        self._due[task] = min(self._due.get(task, math.inf), time.monotonic() + OWNERS_DELAY_SECONDS)
        self._wake.set()

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            self._wake.clear()
            for task, at in sorted(self._due.items()):
                if at <= time.monotonic():
                    self._due[task] = math.inf
                    pause = await self._try(task)
                    self._due[task] = min(self._due[task], time.monotonic() + pause)  # it may be due again by now
            self._end_grace()
            for resource in (PODS, SERVICES):
                self._judge_completeness(resource)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause_seconds()):
                    await self._wake.wait()

    def _pause_seconds(self) -> float | None:
        times = list(self._due.values())
        if self._reconciler.has_seen_all() and not times:
            return None
        # Until all is known, a namespace that turns out to be unreadable reports nobody here.
        latest = time.monotonic() + (EVERY_SECONDS if self._reconciler.has_seen_all() else RETRY_SECONDS)
        return max(0.05, min([*times, latest]) - time.monotonic())

    async def _try(self, task: Task) -> float:
        """Do what is due; return in how many seconds it is due again."""
        try:
            await self._do(task)
        except _EXPECTED as error:
            fields = {"of": task[0], "namespace": task[1], "error": str(error)}
            log.warning("Resync failed, retrying", extra={"event": "resync_failed", "fields": fields})
            return RETRY_SECONDS
        except Exception as error:  # noqa: BLE001  the loop goes on, whatever it is
            self._isolation.caught(PART, " ".join(task), error)
            self._failures[task] = self._failures.get(task, 0) + 1
            return max(RETRY_SECONDS, BACKOFF.after(self._failures[task]))
        self._failures.pop(task, None)
        return EVERY_SECONDS

    async def _do(self, task: Task) -> None:
        for uid in self._reconciler.unfinished:
            with self._isolated(*self._find(uid)):
                self._reconciler.finish(uid)
        what, namespace = task
        if what == OWNERS:
            await self._resync_owners()
        elif what == LISTED:
            await self._compare_list(namespace)
        elif what == OUTSIDE:
            await self._look_for_outside()
        else:
            await self._resync(what, namespace)

    async def _resync(self, resource: str, namespace: str) -> None:
        before, gone = self._known(resource, namespace), frozenset(self._reconciler.cluster_cache.gone)
        found = self._client.list_seen(resource, (namespace,), self._selector(resource))
        listed = {seen.uid: seen async for seen in found}
        missed = await self._await_delivery(resource, listed.values(), before, gone)
        for start in range(0, len(missed), AT_ONCE):
            some = missed[start : start + AT_ONCE]
            self.drift += sum(await asyncio.gather(*(self._fetch(resource, seen) for seen in some)))
        await self._deregister_missing(resource, namespace, listed)
        if resource == SERVICES:
            self._note_listed(resource, namespace)
        await self._resync_owners()

    async def _compare_list(self, namespace: str) -> None:
        listed = self._lists.get(namespace)
        if listed is not None:
            await self._deregister_missing(PODS, namespace, listed)
            if self._lists[namespace] is listed:
                del self._lists[namespace]
            self._note_listed(PODS, namespace)
        await self._resync_owners()

    def _note_listed(self, resource: str, namespace: str) -> None:
        self._listed[resource].add(namespace)
        self._judge_completeness(resource)

    def _judge_completeness(self, resource: str) -> None:
        """Take a resource for completely seen once it has been wherever it may be read, and that is somewhere."""
        listed = self._listed[resource]
        missing = [namespace for namespace in self._namespaces if namespace not in listed]
        if listed and self._unreadable(resource).keys() >= set(missing):
            self._reconciler.mark_complete(resource, missing)

    def _may_judge(self, resource: str, namespace: str) -> bool:
        """Return whether absence means anything: all of a resource has been seen once, and it may be read now."""
        if not self._scope.namespaces:
            return True
        return namespace in self._listed[resource] and namespace not in self._unreadable(resource)

    async def _deregister_missing(self, resource: str, namespace: str, listed: Iterable[str]) -> None:
        known = self._known(resource, namespace)
        missing = {seen.uid: seen for seen in find_vanished(listed, known)}
        held = self._left_out.keep(namespace, missing) if resource == PODS else []
        for seen in await self._confirm_each(PODS, held):
            self._reconciler.forget_pod(missing.pop(seen.uid).uid)
        if held:
            self._on_left_out(held)
        left_out = self._left_out.held
        suspects = [seen for uid, seen in missing.items() if resource != PODS or uid not in left_out]
        gone = await self._confirm(resource, suspects, len(known))
        self.drift += len(gone)
        for seen in gone:
            log.warning(
                "Watch missed a deletion",
                extra={
                    "event": "deletion_missed",
                    "fields": {"of": resource, "object": f"{seen.namespace}/{seen.name}"},
                },
            )
            self._gone(resource, seen)

    def _selector(self, resource: str) -> str:
        return self._scope.selector if resource == PODS else ""

    def _known(self, resource: str, namespace: str) -> dict[str, ObjectRef]:
        """Return what is in memory of a namespace (empty: of all)."""
        return {
            each.uid: ObjectRef(each.uid, each.namespace, each.name, each.resource_version)
            for each in self._objects(resource).values()
            if not namespace or each.namespace == namespace
        }

    def _objects(self, resource: str) -> Mapping[str, Pod | GrpcService]:
        cluster_cache = self._reconciler.cluster_cache
        return cluster_cache.pods if resource == PODS else cluster_cache.services

    def _gone(self, resource: str, seen: ObjectRef) -> None:
        if resource == PODS:
            self._reconciler.forget_pod(seen.uid)
        elif service := self._reconciler.cluster_cache.services.get(seen.uid):
            self._deletions.note(service)

    async def _await_delivery(
        self, resource: str, listed: Iterable[ObjectRef], before: Mapping[str, ObjectRef], gone: Collection[str]
    ) -> list[ObjectRef]:
        """Return the watch a moment: it delivers one by one what this list has shown.

        Return what it has not reported of.

        `before` was in memory, and `gone` was taken to be deleted, when the list was asked for.
        """
        waiting = list(listed)
        until = time.monotonic() + DELIVERY_SECONDS
        while waiting:
            count = len(waiting)
            waiting = [seen for seen in waiting if not self._is_delivered(resource, seen, before, gone)]
            if len(waiting) != count:
                until = time.monotonic() + DELIVERY_SECONDS
            if time.monotonic() >= until:
                break
            # Looking costs time that the delivery needs, so it is done seldom while much is missing.
            await asyncio.sleep(0.02 + len(waiting) / 50_000)
        return waiting

    def _is_delivered(
        self, resource: str, seen: ObjectRef, before: Mapping[str, ObjectRef], gone: Collection[str]
    ) -> bool:
        was, now = before.get(seen.uid), self._objects(resource).get(seen.uid)
        if now is None:  # what was taken to be deleted before the list, and is in it, has come back with a backup
            return seen.uid in self._reconciler.cluster_cache.gone and seen.uid not in gone
        return is_delivered(seen, was.version if was else None, now.resource_version)

    async def _fetch(self, resource: str, seen: ObjectRef) -> bool:
        """Read an object that the watch has not delivered, and note it; return whether memory was wrong."""
        known = self._objects(resource).get(seen.uid)
        if resource == PODS:
            self._reconciler.cluster_cache.gone.pop(seen.uid, None)
            await self._look_up_pod(seen)
            return self._objects(resource).get(seen.uid) is not known
        raw = await self._client.read(resource, seen.namespace, seen.name)
        is_current = raw is not None and raw["metadata"]["uid"] == seen.uid
        if raw is None or not is_current or self._objects(resource).get(seen.uid) is not known:
            return False  # gone, or the watch has reported something newer meanwhile
        with self._isolated(seen, SERVICES):
            self._reconciler.note_service(None, raw)
        return self._objects(resource).get(seen.uid) is not known

    def _find(self, uid: str) -> tuple[ObjectRef, str]:
        """Return an object that is known, and its resource; the latter is empty for what is gone."""
        cache = self._reconciler.cluster_cache
        if known := cache.pods.get(uid) or cache.services.get(uid):
            return ObjectRef(uid, known.namespace, known.name), PODS if uid in cache.pods else SERVICES
        return ObjectRef(uid, self._reconciler.namespace_of(uid), ""), ""

    @contextlib.contextmanager
    def _isolated(self, seen: ObjectRef, resource: str) -> Iterator[None]:
        """Let nothing unexpected about one object end what is done for the others; the next resync tries again."""
        try:
            yield
        except _EXPECTED:
            raise  # what the API server cannot answer now concerns the whole resync
        except Exception as error:  # noqa: BLE001  one object's trouble
            subject = Subject(seen.uid if resource else "", resource, seen.namespace, seen.name)
            self._isolation.caught(PART, subject, error)

    async def _look_up_pod(self, seen: ObjectRef) -> bool:
        """Read a Pod that a list or an event has left in doubt, and note it; return whether it is gone for good."""
        known = self._reconciler.cluster_cache.pods.get(seen.uid)
        message = await self._client.read_pod(seen.namespace, seen.name)
        if message is None or message.metadata.uid != seen.uid:
            return True
        selector = self._scope.selector
        is_selected = not selector or await self._client.is_selected(seen.namespace, seen.name, seen.uid, selector)
        if (
            self._reconciler.cluster_cache.pods.get(seen.uid) is known
        ):  # else the watch has reported something newer meanwhile
            with self._isolated(seen, PODS):
                note = self._reconciler.note_listed_pod if is_selected else self._left_out.note
                note(message)
        return False

    async def _look_for_outside(self) -> None:
        """Find out which of the Pods that left the selector are gone for good."""
        suspects, self._outside = self._outside, {}
        try:
            for seen in await self._confirm_each(PODS, list(suspects.values())):
                self._reconciler.forget_pod(seen.uid)
        except Exception:  # whatever it is, they are looked at again
            self._outside = suspects | self._outside
            raise

    async def _confirm(self, resource: str, vanished: Iterable[ObjectRef], total: int) -> list[ObjectRef]:
        """Return those that are gone for certain. Many at once are first looked for in a second list."""
        suspects = list(vanished)
        if len(suspects) > SAFEGUARD_COUNT:
            namespaces = sorted({seen.namespace for seen in suspects}) if self._scope.namespaces else ()
            present = {seen.uid async for seen in self._client.list_seen(resource, namespaces)}
            suspects = [seen for seen in suspects if seen.uid not in present or self._is_in_doubt(resource, seen)]
            if needs_safeguard(len(suspects), total):  # those too that are there, but not for our selector
                self._on_safeguard(suspects, total)
        return await self._confirm_each(resource, suspects)

    async def _confirm_each(self, resource: str, suspects: Sequence[ObjectRef]) -> list[ObjectRef]:
        gone: list[ObjectRef] = []
        for start in range(0, len(suspects), AT_ONCE):
            some = suspects[start : start + AT_ONCE]
            found = await asyncio.gather(*(self._try_confirming(resource, each) for each in some))
            gone += [seen for seen, is_gone in zip(some, found, strict=True) if is_gone]
        return gone

    async def _try_confirming(self, resource: str, seen: ObjectRef) -> bool:
        """Return whether an object is gone; not so where that cannot be found out for a reason that is its own."""
        with self._isolated(seen, resource):
            if await self._is_gone(resource, seen):
                return True
        return False

    def _is_in_doubt(self, resource: str, seen: ObjectRef) -> bool:
        """Return whether a Pod may have left the selector and that is not known yet."""
        pod = self._reconciler.cluster_cache.pods.get(seen.uid)
        return resource == PODS and bool(self._scope.selector) and (pod is None or not pod.outside)

    async def _is_gone(self, resource: str, seen: ObjectRef) -> bool:
        if self._is_in_doubt(resource, seen):
            return await self._look_up_pod(seen)
        return await self._client.uid_of(resource, seen.namespace, seen.name) != seen.uid

    async def _resync_owners(self) -> None:
        """Look for owner records of units that nobody has seen: they went while no operator was running."""
        if not self._reconciler.has_seen_all():
            return
        controllers = self._reconciler.controllers.values()
        has_all = all(controller.is_listed for controller in controllers)
        for controller in controllers:
            pods, services = self._strangers(controller)
            total = len(controller.registry_cache.owners)
            self._left_out.begin(pods)
            for seen in await self._confirm(PODS, pods, total) + await self._confirm(SERVICES, services, total):
                with self._isolated(seen, ""):  # on what is gone nothing is reported
                    self._reconciler.forget_owner(seen, controller)
            self._judge_left_out(sum(bool(owner.pod) for owner in controller.registry_cache.owners.values()), total)
        self._prune_gone()
        self.has_checked_owners |= has_all

    def _judge_left_out(self, pods: int, total: int) -> None:
        found = self._left_out.judge(pods, total)
        if found and self._left_out.held:
            self._on_left_out(list(self._left_out.held.values()))
        for message in found:
            metadata = message.metadata
            with self._isolated(ObjectRef(metadata.uid, metadata.namespace, metadata.name), PODS):
                self._left_out.note(message)

    def _strangers(self, controller: RegistryController) -> tuple[list[ObjectRef], list[ObjectRef]]:
        """Return the Pods and the GrpcServices that have owner records and were never seen."""
        cluster_cache = self._reconciler.cluster_cache
        known = cluster_cache.pods.keys() | cluster_cache.services.keys() | cluster_cache.gone.keys()
        pods: list[ObjectRef] = []
        services: list[ObjectRef] = []
        for uid, owner in controller.registry_cache.owners.items():
            if uid in known or not self._scope.covers(owner.namespace):
                continue
            if not self._may_judge(PODS if owner.pod else SERVICES, owner.namespace):
                continue
            if not owner.pod and self._reconciler.crd_return.is_awaited:
                continue
            seen = ObjectRef(uid, owner.namespace, owner.pod or _name_of(owner.grpc_services))
            if seen.is_nameable:  # else nobody can be asked about it, and what is not confirmed is not gone
                (pods if owner.pod else services).append(seen)
        return pods, services

    def _prune_gone(self) -> None:
        """Forget the dead whom no registry remembers, nor has still to learn of, except for the latest.

        What was said of them is taken back.
        """
        gone, controllers = self._reconciler.cluster_cache.gone, self._reconciler.controllers.values()
        spare = 0 if all(controller.is_listed for controller in controllers) else MOST_GONE
        if len(gone) <= spare:
            return
        forgettable = [uid for uid in gone if not any(controller.remembers(uid) for controller in controllers)]
        for uid in forgettable[: max(0, len(forgettable) - spare)]:
            del gone[uid]

    async def judge_deletions(self) -> None:
        """Judge GrpcServices that were reported deleted, whatever a sweep waits for. Until cancelled."""
        while True:
            self._deletions.wake.clear()
            await self._try_judging_deleted()
            due = min((at for at, _ in self._deletions.waiting.values()), default=None)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if due is None else max(0.05, due - time.monotonic())):
                    await self._deletions.wake.wait()

    async def _try_judging_deleted(self) -> None:
        try:
            await self._judge_deleted()
        except Exception as error:  # noqa: BLE001  the loop goes on, whatever it is
            self._isolation.caught(PART, "deleted GrpcServices", error)
            later = time.monotonic() + EVERY_SECONDS
            self._deletions.waiting = {uid: (later, service) for uid, (_, service) in self._deletions.waiting.items()}

    async def _judge_deleted(self) -> None:
        """Decide on GrpcServices that were reported deleted: on purpose, or with their CRD."""
        while due := self._deletions.find_due(time.monotonic(), JUDGED_AT_ONCE):
            await self._judge_some(due)

    async def _judge_some(self, due: Sequence[GrpcService]) -> None:
        try:
            await self._ask_for_crd()
            is_known = True
        except _EXPECTED:
            is_known = False
        for start in range(0, len(due), AT_ONCE):
            some = due[start : start + AT_ONCE]
            judging = (self._judge_deletion(each, is_known=is_known) for each in some)
            found = await asyncio.gather(*judging, return_exceptions=True)
            for service, is_gone in zip(some, found, strict=True):
                if isinstance(is_gone, Exception):  # the other GrpcServices go on, whatever it is
                    self._isolation.caught(PART, service.reference, is_gone)
                    self._deletions.waiting[service.uid] = time.monotonic() + EVERY_SECONDS, service
                elif isinstance(is_gone, BaseException):
                    raise is_gone
                else:
                    self._take_judgement(service, is_gone=is_gone)

    async def _judge_deletion(self, service: GrpcService, *, is_known: bool) -> bool | None:
        """Return whether a GrpcService is gone and not with its CRD; None where that cannot be known now."""
        if not is_known or self._is_held(service):
            return None
        is_gone = await self._is_deleted(service)
        return None if self._is_held(service) else is_gone  # its CRD may have begun to go meanwhile

    def _take_judgement(self, service: GrpcService, *, is_gone: bool | None) -> None:
        self._deletions.waiting.pop(service.uid)
        if is_gone:
            with self._isolated(ObjectRef(service.uid, service.namespace, service.name), ""):
                self._reconciler.forget_service(service.uid)
        elif is_gone is None and service.uid in self._reconciler.cluster_cache.services:
            self._deletions.waiting[service.uid] = (time.monotonic() + RETRY_SECONDS, service)

    async def _is_deleted(self, service: GrpcService) -> bool | None:
        """Return whether a GrpcService is gone; None where that cannot be known now."""
        try:
            return await self._client.uid_of(SERVICES, service.namespace, service.name) != service.uid
        except ApiError as error:
            # Its namespace goes, and the permission to read it has gone before: the watch's own word has to do.
            return True if error.status == HTTPStatus.FORBIDDEN and self._scope.namespaces else None
        except _EXPECTED:
            return None

    def _is_held(self, service: GrpcService) -> bool:
        """Return whether a GrpcService went with its CRD, which is missing or has not been back for long."""
        self._end_grace()
        return service.uid in self._went_with_crd

    def _end_grace(self) -> None:
        """Wait no longer for GrpcServices to be applied again, once their CRD has been back for long."""
        if self._crd_gone_at is None or time.monotonic() - self._crd_gone_at <= CRD_GRACE_SECONDS:
            return
        self._crd_gone_at = None
        self._went_with_crd.clear()
        if self._reconciler.crd_return.is_awaited:
            self._reconciler.end_return()
            self.check_owners()


def _name_of(references: tuple[str, ...]) -> str:
    return references[0].partition("/")[2] if references else ""

"""Prints what would be written, and writes nothing: once (`plan`), or again whenever it changes (`--dry-run`).

`run` waits without an end for what is still to be read, because waiting can help it. Whoever calls `plan` wants to
receive what is wrong.
"""

import asyncio
import contextlib
import json
import logging
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from grpc_etcd.etcd.errors import Unavailable
from grpc_etcd.registry.escaping import escape_json
from grpc_etcd_operator.controller.event_handlers import PODS, SERVICES, EventHandlers
from grpc_etcd_operator.controller.resync import ResyncController
from grpc_etcd_operator.core.plan import Plan
from grpc_etcd_operator.kube.freshness import Freshness
from grpc_etcd_operator.settings import RegistrySettings, UnusableError
from grpc_etcd_operator.telemetry.remedies import remedy

log = logging.getLogger(__name__)
# Several tries at etcd, each of which takes 5 s at most, and two at the API server. Arbitrary; operations.md names it.
PLAN_SECONDS = 60.0
CRD_MISSING = "the CRD grpcservices.grpc-etcd.dev is not installed: kubectl apply -f crds/grpcservices.yaml"
LOOK_SECONDS = 0.1
PREVIEW_SHARE = 20  # a dry run works out its plans again for so small a part of the time. Arbitrary
RIGHTS = "grant the operator's ServiceAccount the permissions of the chart's role there"


class Standstill:
    """Reports when something that is missing has come no further for too long."""

    def __init__(self, seconds: float = PLAN_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._since: dict[str, tuple[Hashable, float]] = {}

    def lasts(self, missing: Mapping[str, Hashable]) -> bool:
        """Take what is missing now, each with how far it has come; return whether one has stood still for too long."""
        now, before = self._clock(), self._since
        self._since = {
            part: before[part] if part in before and before[part][0] == state else (state, now)
            for part, state in missing.items()
        }
        return any(now - since > self._seconds for _, since in self._since.values())


@dataclass(frozen=True, slots=True)
class Reading:
    """What a plan is made of, as far as it has been read. `is_crd_missing` and `server` are about the API server."""

    reconciler: EventHandlers
    freshness: Freshness
    registries: Sequence[RegistrySettings]
    server: str
    is_crd_missing: Callable[[], bool]

    def find_missing(self) -> dict[str, Hashable]:
        """Return what is still to be read or judged, each with how far that is."""
        cluster_cache, complete = self.reconciler.cluster_cache, self.reconciler.complete
        known = {PODS: len(cluster_cache.pods), SERVICES: len(cluster_cache.services)}
        missing: dict[str, Hashable] = {what: count for what, count in known.items() if what not in complete}
        for name, controller in self.reconciler.controllers.items():
            if not controller.is_listed:
                missing[f"registry {name}"] = "unread"
            elif not controller.writer.has_judged_all:
                missing[f"registry {name}"] = controller.writer.depth
        return missing or {"the owner records": "unchecked"}

    def explain(self) -> str:
        """Return why there is no plan, and what to do about it."""
        unseen = [self._explain_unseen(each) for each in (PODS, SERVICES) if each not in self.reconciler.complete]
        return (
            "; ".join([*unseen, *self._explain_registries()])
            or "the comparison with etcd is not complete yet: try again"
        )

    def _explain_registries(self) -> Iterator[str]:
        for registry in self.registries:
            controller = self.reconciler.controllers[registry.name]
            silence = Unavailable("it has not responded")
            if complaint := controller.complaint:
                yield f"registry {registry.name} at {','.join(registry.endpoints)}: {complaint}"
            elif not controller.is_listed:
                said = f"{silence}. {remedy(silence, registry)}"
                yield f"registry {registry.name} at {','.join(registry.endpoints)}: {said}"

    def _explain_unseen(self, resource: str) -> str:
        what = f"not all {resource} have been listed"
        if resource == SERVICES and self.is_crd_missing():
            return f"{what}: {CRD_MISSING}"
        refused = "; ".join(f"{where or 'all namespaces'}: {said}" for where, said in self._unreadable(resource))
        return f"{what}: {refused}; {RIGHTS}" if refused else f"{what}: check the API server at {self.server}"

    def _unreadable(self, resource: str) -> list[tuple[str, str]]:
        return sorted(self.freshness.unreadable(resource).items())

    def warn(self) -> None:
        """Warn of what a plan leaves out; of that nothing would be written or deregistered."""
        for resource in (PODS, SERVICES):
            for namespace, said in self._unreadable(resource):
                fields = {"namespace": namespace, "of": resource, "error": said, "remedy": RIGHTS}
                message = "Namespace omitted from the plan: the operator is not allowed to read all of it"
                log.warning(message, extra={"event": "plan_incomplete", "fields": fields})


class DryRun:
    """Prints plans. `read` is a context in which all that reads and plans runs, and nothing that writes."""

    def __init__(
        self,
        reading: Reading,
        resync: ResyncController,
        read: Callable[[], AbstractAsyncContextManager[None]],
        cluster: str,
    ) -> None:
        self._reading, self._resync, self._read, self._cluster = reading, resync, read, cluster
        self._reconciler = reading.reconciler
        self._printed: list[str] | None = None

    async def preview(self, stop: asyncio.Event) -> None:
        """Print once what would be written, as JSON lines on standard output, and write nothing."""
        async with self._read():
            waiting, reading = Standstill(), self._reading
            while not (self._is_judged() or stop.is_set()):
                if waiting.lasts(reading.find_missing()):
                    raise UnusableError(f"no plan: no progress for {PLAN_SECONDS:g} s: {reading.explain()}")
                await asyncio.sleep(LOOK_SECONDS)
            if self._is_judged():  # else it was interrupted, and half a plan is none
                reading.warn()
                _print(self._plans())

    async def rehearse(self, stop: asyncio.Event) -> None:
        """Do as `run` does, but print what would be written, again whenever it changes, and write nothing."""
        log.info("Dry run: writing nothing", extra={"event": "dry_run_started", "fields": {"cluster": self._cluster}})
        async with self._read():
            await self._print_changes(stop)

    async def _print_changes(self, stop: asyncio.Event) -> None:
        """Print the plans whenever they have become others, until `stop` is set."""
        while not stop.is_set():
            began = time.monotonic()
            if self._is_judged() and (lines := self._plans()) != self._printed:
                _print(lines)
                self._printed = lines
                log.info(
                    "Dry run: waiting for changes", extra={"event": "dry_run_waiting", "fields": {"plans": len(lines)}}
                )
            pause = max(LOOK_SECONDS, PREVIEW_SHARE * (time.monotonic() - began))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await stop.wait()

    def _plans(self) -> list[str]:
        controllers = self._reconciler.controllers
        return [
            describe(name, plan) for name, controller in controllers.items() for plan in controller.writer.preview()
        ]

    def _is_judged(self) -> bool:
        controllers = self._reconciler.controllers.values()
        listed = all(controller.is_listed and controller.writer.has_judged_all for controller in controllers)
        if not (listed and self._reconciler.has_seen_all() and self._resync.has_checked_owners):
            return False
        if self._reconciler.awaits_services():
            return False
        return all(controller.writer.has_read_all for controller in controllers)

    def fault(self) -> str | None:
        """Return why nothing is printed yet, or why changes of a registry may be missing in it."""
        if missing := {PODS, SERVICES} - self._reconciler.complete:
            return f"not all {' and '.join(sorted(missing))} have been listed yet"
        controllers = self._reconciler.controllers.items()
        faults = (f"registry {name}: {each.complaint}" for name, each in controllers if each.complaint)
        return next(faults, "the comparison with etcd is not complete yet" if self._printed is None else None)


def describe(registry: str, plan: Plan) -> str:
    """Write a plan as one line of JSON."""
    puts = {put.key.decode(errors="replace"): put.value.decode(errors="replace") for put in plan.puts}
    deletes = [delete.key.decode(errors="replace") for delete in plan.deletes]
    found = {"registry": registry, "uid": plan.uid, "put": puts, "delete": deletes}
    return escape_json(json.dumps(found, ensure_ascii=False))


def _print(lines: Iterable[str]) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()

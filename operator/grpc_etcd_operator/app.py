"""The composition root: makes all parts of the operator, connects them, runs them, and ends them in order.

Exit codes: 0 ended as asked, 1 failed while running, 2 the settings or the cluster must be fixed first.
"""

import asyncio
import contextlib
import gc
import logging
import os
import resource
import socket
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from itertools import product
from typing import Any

import uvloop
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

from grpc_etcd.etcd.aio import Etcd
from grpc_etcd_operator.controller.claim_granter import Granter
from grpc_etcd_operator.controller.cleanup import clean_up
from grpc_etcd_operator.controller.deletions import Deletions
from grpc_etcd_operator.controller.dry_run import PLAN_SECONDS, DryRun, Reading
from grpc_etcd_operator.controller.event_handlers import PODS, SERVICES, EventHandlers
from grpc_etcd_operator.controller.events import EventPoster
from grpc_etcd_operator.controller.gates import Gates
from grpc_etcd_operator.controller.registry_controller import RegistryController, Views
from grpc_etcd_operator.controller.resync import ResyncController
from grpc_etcd_operator.controller.safeguard import Safeguard
from grpc_etcd_operator.controller.status_leader import StatusLeader
from grpc_etcd_operator.controller.status_queue import StatusQueue
from grpc_etcd_operator.controller.status_writer import StatusWriter
from grpc_etcd_operator.controller.targets import TargetWatch
from grpc_etcd_operator.controller.verify import wait_synced
from grpc_etcd_operator.controller.watches import Watches
from grpc_etcd_operator.core.claims import Rules, parse_etcds
from grpc_etcd_operator.core.cluster import ClusterCache
from grpc_etcd_operator.core.scope import Candidate, Fingerprint, Scope, make_identity
from grpc_etcd_operator.core.standing import Store, find_unready
from grpc_etcd_operator.isolation import Isolation, supervise
from grpc_etcd_operator.kube.client import TARGETS, Client
from grpc_etcd_operator.kube.cluster import find_cluster
from grpc_etcd_operator.kube.connecting import Connection, NoClusterError
from grpc_etcd_operator.kube.freshness import Freshness
from grpc_etcd_operator.registry.connect import distinct, open_etcd
from grpc_etcd_operator.registry.turns import Turns
from grpc_etcd_operator.settings import RegistrySettings, Settings, UnusableError
from grpc_etcd_operator.sources.kopf_source import take_signals
from grpc_etcd_operator.telemetry import logs
from grpc_etcd_operator.telemetry.certificates import expiries
from grpc_etcd_operator.telemetry.health import serve
from grpc_etcd_operator.telemetry.metrics import Timings
from grpc_etcd_operator.telemetry.remedies import remedy
from grpc_etcd_operator.telemetry.samples import Figures, Sample, Samples, TlsFigures, read_samples

log = logging.getLogger(__name__)
EXIT_UNUSABLE = 2
GRANT_SECONDS = 0.5  # for which a replica that hands over waits for claims that it is writing. Arbitrary
CLUSTER_SECONDS = 30.0  # a file of certificates is read so often
# Open files: some for etcd and the health port, and for each namespace watches, lists and probes, of which those of
# before an outage of the API server may still be open (3,700 with 300 namespaces), and half as many again where
# GrpcServices name Services.
FILES, FILES_PER_NAMESPACE = 200, 19
MOST_FILES = 1 << 20  # what containers commonly may have. Arbitrary


def run(settings: Settings) -> int:
    """Run the operator until a signal ends it; return the exit code."""
    logs.set_up(settings.log_level)
    raise_file_limit(len(settings.namespaces))
    gc.set_threshold(50_000, 50, 100)  # many small objects that live: the default looks at them far too often
    return _until_ended(_run(settings))


def plan(settings: Settings) -> int:
    """Print once what would be written; return the exit code."""
    logs.set_up(settings.log_level)
    raise_file_limit(len(settings.namespaces))
    return _until_ended(_run(settings, is_plan=True))


def cleanup(settings: Settings) -> int:
    """Deregister all that this cluster id owns; return the exit code."""
    logs.set_up(settings.log_level)
    return _until_ended(clean_up(settings))


def verify(settings: Settings) -> int:
    """Wait until every registry has a leader and is synced; return the exit code."""
    logs.set_up(settings.log_level)
    return _until_ended(wait_synced(settings))


def raise_file_limit(namespaces: int) -> None:
    """Take as many open files as this process may have, and report where that is too few for so many namespaces.

    Many systems begin with 1,024 and allow far more: beyond a hundred namespaces the process would end without a word.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    may_open = max(soft, min(hard, MOST_FILES))
    resource.setrlimit(resource.RLIMIT_NOFILE, (may_open, hard))
    needed = FILES + FILES_PER_NAMESPACE * namespaces
    if may_open < needed:
        text = "The limit of open files may be too low for so many namespaces: raise it, or watch all namespaces"
        fields = {"namespaces": namespaces, "needed": needed, "limit": may_open}
        log.warning(text, extra={"event": "file_limit_low", "fields": fields})


def _until_ended(work: Coroutine[Any, Any, None]) -> int:
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # a sixth less CPU than asyncio's own loop
            runner.run(work)
    except (UnusableError, NoClusterError) as error:
        log.error(str(error), extra={"event": "unusable"})  # noqa: TRY400  the sentence is for an admin; a traceback would hide it
        return EXIT_UNUSABLE
    return 0


async def _run(settings: Settings, *, is_plan: bool = False) -> None:
    stop = asyncio.Event()
    take_signals(stop.set)
    connection = Connection()
    client = Client(connection.server, connection.session())
    health = Health()
    runner = None
    try:
        if not is_plan:  # asked from the first second, also while the API server is down
            runner = await serve(settings.metrics_port, health.life_fault, health.readiness_fault, health.exposition)
        starting = asyncio.create_task(find_cluster(settings, client))
        if await _first(starting, stop, PLAN_SECONDS if is_plan else None):
            return
        operator = Operator(settings, *starting.result(), connection, client, stop.set)
        health.operator = operator
        if is_plan:
            await operator.dry_run.preview(stop)
        else:
            await (operator.dry_run.rehearse(stop) if settings.dry_run else operator.run(stop))
    finally:
        if runner:
            await runner.cleanup()
        await client.close()


class Health:
    """Answers the health port: for the operator, once there is one."""

    def __init__(self) -> None:
        self.operator: Operator | None = None

    def life_fault(self) -> str | None:
        """Waiting is no fault: to be started again would not help."""
        return self.operator.life_fault() if self.operator else None

    def readiness_fault(self) -> str | None:
        """Return what is missing."""
        waiting = "waiting for the API server: check the network and KUBECONFIG; the log has its last error"
        return self.operator.readiness_fault() if self.operator else waiting

    def exposition(self) -> bytes:
        """Return the metrics that there are."""
        return self.operator.exposition() if self.operator else generate_latest(CollectorRegistry())


async def _first(task: "asyncio.Task[tuple[str, str]]", stop: asyncio.Event, limit_seconds: float | None) -> bool:
    """Wait for a task or for the signal to stop; return whether it was the signal.

    A limit that is reached is a fault.
    """
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait([task, stopping], return_when=asyncio.FIRST_COMPLETED, timeout=limit_seconds)
    stopping.cancel()
    if task.done():
        return False
    task.cancel()
    if not stop.is_set():
        raise UnusableError(f"no plan: the API server (see above) has not answered for {limit_seconds:g} s")
    return True


class Operator:
    """All parts of one operator process, connected; `open_registry` says how a registry's etcd is reached."""

    def __init__(  # noqa: PLR0913, PLR0917  what was found out before there is an operator
        self,
        settings: Settings,
        cluster: str,
        kube_system: str,
        connection: Connection,
        client: Client,
        on_signal: Callable[[], None],
        open_registry: Callable[[RegistrySettings], Etcd] = open_etcd,
    ) -> None:
        self._settings, self._cluster, self._connection, self._client = settings, cluster, connection, client
        self._open_registry = open_registry
        self._collector = CollectorRegistry(auto_describe=False)
        scope = Scope(settings.namespaces, settings.pod_selector)
        nonce = uuid.uuid4().hex
        self._candidate = Candidate(
            make_identity(settings.identity, socket.gethostname(), os.getpid(), nonce),
            scope,
            nonce,
            settings.installation,
            Fingerprint(kube_system, connection.authorities()),
        )
        prefixes = {registry.name: settings.prefix for registry in settings.registries}
        etcds = parse_etcds({registry.name: registry.endpoints for registry in settings.registries})
        rules = Rules(settings.prefix, settings.allowed_prefixes)
        cluster_cache = ClusterCache(etcds, shared_names=settings.shared_names, rules=rules)
        expected = product((PODS, SERVICES), settings.namespaces or ("",))
        self._freshness = Freshness(self._watch_opened, expected, self._not_found)
        self._registries = distinct(settings)
        self._controllers: dict[str, RegistryController] = {}
        self._statuses, self._claims, self._deletions = StatusQueue(cluster_cache), asyncio.Event(), Deletions()
        self._isolation = Isolation(self._statuses.wake.set)
        self._reconciler = EventHandlers(
            cluster_cache,
            prefixes,
            Timings(self._collector),
            etcds,
            controllers=self._controllers,
            blindness=self._freshness.blindness,
            statuses=self._statuses,
            claims=self._claims,
            deletions=self._deletions,
        )
        self._turns = Turns(self._controllers, etcds)
        self._controllers.update({each.name: self._make_controller(each) for each in self._registries})
        self._log_aliases(etcds)
        self._leader = leader = StatusLeader(tuple(self._controllers.values()))
        parts = (client, self._reconciler)
        selector, isolation = settings.pod_selector, self._isolation
        events = EventPoster(client, self._candidate.identity)
        self._reporter = StatusWriter(
            *parts, self._statuses, leader.may_report, leader.down, isolation, pod_selector=selector, events=events
        )
        self._granter = Granter(*parts, self._claims, leader.may_grant, isolation)
        self._safeguard = safeguard = Safeguard(self._reconciler.services_behind, self._reporter.warn)
        unreadable, left_out = self._freshness.unreadable, safeguard.note_left_out
        self._resync = ResyncController(
            *parts, scope, safeguard.note_missing, unreadable, isolation, left_out, self._deletions
        )
        self._watches = Watches(settings, connection, *parts, self._freshness, self._resync, isolation, on_signal)
        self._target_watch = TargetWatch(settings.namespaces, connection, self._reconciler, isolation, on_signal)
        is_crd_missing = self._watches.is_crd_missing
        reading = Reading(self._reconciler, self._freshness, self._registries, client.server, is_crd_missing)
        self.dry_run = DryRun(reading, self._resync, self._read, cluster)
        self._gates = Gates(self._reconciler)
        self._collector.register(Samples(self._samples))
        ProcessCollector(registry=self._collector)

    def _make_controller(self, registry: RegistrySettings) -> RegistryController:
        ttl = self._settings.lease_ttl_seconds
        views = Views(
            self._reconciler,
            self._freshness.is_fresh,
            self._freshness.blind_seconds,
            self._freshness.is_behind,
            partial(remedy, registry=registry),
            self._reconciler.take_outcome,
            self._controller_changed,
            partial(self._turns.is_turn, registry.name),
            self._reconciler.may_ask_for,
            self._reconciler.units,
            self._find_unreached,
            self._find_lost,
        )
        return RegistryController(
            registry.name,
            self._cluster,
            self._open_registry(registry),
            replace(self._candidate, registry=registry.name),
            views,
            self._isolation,
            lease_ttl_seconds=ttl,
            # Leases of Pods are renewed each third of their time: a takeover must fit into the rest of it.
            leader_ttl_seconds=min(self._settings.leader_ttl_seconds, max(3, ttl // 3)),
        )

    def _log_aliases(self, etcds: Mapping[str, str]) -> None:
        for name, first in etcds.items():
            if name != first:
                log.warning(
                    "Two registries are the same etcd: the second name is an alias of the first",
                    extra={"event": "registry_aliased", "fields": {"registry": name, "same as": first}},
                )

    async def run(self, stop: asyncio.Event) -> None:
        """Run all parts until `stop` is set, then hand over; a part that fails is started again alone."""
        log.info(
            "started",
            extra={"event": "started", "fields": {"cluster": self._cluster, "registries": list(self._controllers)}},
        )
        try:
            async with asyncio.TaskGroup() as group:
                runs = {f"registry {controller.name}": controller.run for controller in self._controllers.values()}
                runs |= {"resync": self._resync.run, "status": self._reporter.run}
                runs |= {"Pods": self._watches.watch_pods, "GrpcServices": self._watches.watch_services}
                runs |= {"Services": self._target_watch.run, "probe": self._watches.probe}
                runs |= {
                    "sight": self._reporter.look_at_sight,
                    "claims": self._granter.run,
                    "cluster": self._follow_cluster,
                    "CRD": self._resync.look_at_crd,
                    "deletions": self._resync.judge_deletions,
                }
                parts = [group.create_task(supervise(part, run, self._isolation)) for part, run in runs.items()]
                await stop.wait()
                await self._granter.end(GRANT_SECONDS)
                await asyncio.gather(*(controller.hand_over() for controller in self._controllers.values()))
                for part in parts:
                    part.cancel()
        finally:
            for controller in self._controllers.values():
                await controller.close()
            log.info("ended", extra={"event": "stopped"})

    async def _follow_cluster(self) -> None:
        """Keep up with what distinguishes this cluster from others: its CA may be renewed."""
        while True:
            await asyncio.sleep(CLUSTER_SECONDS)
            found = replace(self._candidate.fingerprint, authorities=self._connection.authorities())
            if found.authorities and found != self._candidate.fingerprint:  # none: the file is just being replaced
                self._candidate = replace(self._candidate, fingerprint=found)
                for controller in self._controllers.values():
                    controller.election.candidate = replace(self._candidate, registry=controller.name)

    @contextlib.asynccontextmanager
    async def _read(self) -> AsyncIterator[None]:
        """Run the parts that read and plan, and none that writes."""
        runs: dict[str, Callable[[], Awaitable[None]]] = {
            f"registry {name}": controller.run_dry for name, controller in self._controllers.items()
        }
        self._reconciler.grants_in_memory = True
        runs |= {"resync": self._resync.run, "deletions": self._resync.judge_deletions, "probe": self._watches.probe}
        runs |= {"Pods": self._watches.watch_pods, "GrpcServices": self._watches.watch_services}
        runs |= {"Services": self._target_watch.run}
        parts = [asyncio.create_task(supervise(part, run, self._isolation)) for part, run in runs.items()]
        try:
            yield
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
            for controller in self._controllers.values():
                await controller.close()

    # -- who is notified of what ---------------------------------------------------------------------------------------

    def _watch_opened(self, resource: str, namespace: str) -> None:
        if resource == SERVICES:
            self._resync.resync_soon(resource, namespace)

    def _not_found(self, resource: str) -> None:
        if resource == SERVICES:
            self._resync.note_crd_away()

    def _find_unreached(self) -> frozenset[str]:
        """Name the registries that this replica could not lead just now."""
        return frozenset(each.name for each in self._controllers.values() if each.store is not Store.LISTED)

    def _find_lost(self) -> frozenset[str]:
        """Name the registries that this replica has lost for long: whoever reaches them had better lead all."""
        return frozenset(each.name for each in self._controllers.values() if each.is_lost)

    def _controller_changed(self) -> None:
        self._resync.check_owners()
        self._statuses.look_at_all()
        self._claims.set()

    # -- health -------------------------------------------------------------------------------------------------------

    def life_fault(self) -> str | None:
        """Return why the process is of no use; None when it is."""
        return "a watch is silent and is not being reopened" if self._freshness.is_deaf() else None

    def readiness_fault(self) -> str | None:
        """Return what is missing to do its part."""
        if self._settings.dry_run:
            return self.dry_run.fault()
        controllers = tuple(self._controllers.values())
        sight = controllers[0].sight
        fault = find_unready(sight, [each.lead for each in controllers], [each.standing for each in controllers])
        reported = [
            *self._freshness.unreadable().values(),
            *(f"{name}: {text}" for name, text in self._leader.down().items()),
        ]
        return "; ".join([fault, *reported]) if fault else None

    def exposition(self) -> bytes:
        """Write all metrics."""
        return generate_latest(self._collector)

    def _samples(self) -> Iterator[Sample]:
        yield from read_samples(self._figures())
        for registry in self._registries:
            name = registry.name
            unregistered, conflicts = self._reconciler.count_unregistered(name), self._reconciler.conflicts(name)
            yield from read_samples(self._controllers[name].figures(unregistered, conflicts), name)
            expiry = TlsFigures(certificate_expiry_timestamp_seconds=dict(expiries(registry.ca, registry.cert)))
            yield from read_samples(expiry, name)

    def _targets_age(self) -> dict[str, float]:
        """Return the age of the last event of Services, where they are watched."""
        freshness = self._target_watch.freshness
        return {TARGETS: freshness.event_age(TARGETS)} if freshness.streams else {}

    def _figures(self) -> Figures:
        reconciler, freshness = self._reconciler, self._freshness
        return Figures(
            info={(version("grpc-etcd"), self._cluster): 1},
            cached_pods=len(reconciler.cluster_cache.pods),
            cached_grpcservices=len(reconciler.cluster_cache.services),
            invalid_objects=reconciler.broken_objects,
            drift=self._resync.drift,  # a resync compares Kubernetes with memory, whatever registries there are
            mass_deletions=self._safeguard.count,
            denied_gates=self._reporter.refusals.count,
            waiting_gates=self._gates.count_waiting(time.time()),
            not_accepted=reconciler.count_refusals(),
            unexpected_errors=self._isolation.counts,
            last_event_age_seconds={each: freshness.event_age(each) for each in (PODS, SERVICES)} | self._targets_age(),
            kubernetes_unavailable_seconds=freshness.blind_seconds(),
            unreadable_namespaces=len(freshness.unreadable()),
        )

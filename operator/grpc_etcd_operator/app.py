"""The composition root: makes all parts of the operator, connects them, runs them, and ends them in order.

Exit codes: 0 ended as asked, 1 failed while running, 2 the settings or the cluster must be mended first.
"""

import asyncio
import contextlib
import gc
import json
import logging
import os
import socket
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from importlib.metadata import version
from itertools import product
from typing import Any, TypeVar

import aiohttp
import uvloop
from prometheus_client import CollectorRegistry, ProcessCollector

from grpc_etcd.etcd.aio import Etcd
from grpc_etcd.etcd.endpoints import Tls
from grpc_etcd.etcd.errors import EtcdError
from grpc_etcd.registry.escaping import escape_json
from grpc_etcd_operator import logs, withdrawing
from grpc_etcd_operator.certificates import expiries
from grpc_etcd_operator.core.claims import Rules, parse_etcds
from grpc_etcd_operator.core.plan import Plan
from grpc_etcd_operator.core.pods import Pod, PodMessage
from grpc_etcd_operator.core.scope import Candidate, Fingerprint, Scope, make_identity
from grpc_etcd_operator.core.services import GrpcService
from grpc_etcd_operator.core.standing import find_unready
from grpc_etcd_operator.core.sweeps import Seen
from grpc_etcd_operator.core.world import World
from grpc_etcd_operator.health import serve
from grpc_etcd_operator.isolation import Isolation, supervise
from grpc_etcd_operator.kube.client import GROUP, VERSION, ApiError, Client
from grpc_etcd_operator.kube.connecting import Connection, NoClusterError
from grpc_etcd_operator.kube.freshness import Freshness
from grpc_etcd_operator.kube.granting import Granter
from grpc_etcd_operator.kube.noting import Noting, identify_pod, identify_service
from grpc_etcd_operator.kube.probing import Prober
from grpc_etcd_operator.kube.statuses import Reporter
from grpc_etcd_operator.kube.sweeping import Sweeper
from grpc_etcd_operator.metrics import Sample, Samples, Timings, exposition
from grpc_etcd_operator.previewing import CRD_MISSING, PLAN_SECONDS, Reading, Standstill
from grpc_etcd_operator.reconciling import PODS, SERVICES, Reconciler
from grpc_etcd_operator.remedies import remedy
from grpc_etcd_operator.settings import DIRECT, RegistrySettings, Settings
from grpc_etcd_operator.sources.json_pods import read_pod
from grpc_etcd_operator.sources.kopf_source import Kind, KopfSource, take_signals
from grpc_etcd_operator.sources.reflector import Reflector
from grpc_etcd_operator.sources.source import Receiver, Source
from grpc_etcd_operator.writer.station import Station, Views
from grpc_etcd_operator.writer.turns import Turns

T = TypeVar("T")
log = logging.getLogger(__name__)
EXIT_UNUSABLE = 2
RETRY_SECONDS = 2.0
LOOK_SECONDS = 0.1
GRANT_SECONDS = 0.5  # for which a replica that hands over waits for claims that it is writing. Arbitrary
GATE_SECONDS = 30.0  # for which a Pod may be ready but for our gate before the metric counts it. Arbitrary
PREVIEW_SHARE = 20  # a dry run works out its plans anew for so small a part of the time. Arbitrary
CALL_SECONDS = 5.0
CLUSTER_SECONDS = 30.0  # a file of certificates is read so often


class UnusableError(Exception):
    """Something that waiting cannot help; the text says what to mend."""


def run(settings: Settings) -> int:
    """Run the operator until a signal ends it; return the exit code."""
    logs.set_up(settings.log_level)
    gc.set_threshold(50_000, 50, 100)  # many small objects that live: the default looks at them far too often
    return _until_ended(_run(settings))


def plan(settings: Settings) -> int:
    """Print once what would be written; return the exit code."""
    logs.set_up(settings.log_level)
    return _until_ended(_run(settings, is_plan=True))


def cleanup(settings: Settings) -> int:
    """Withdraw all that this cluster id owns; return the exit code."""
    logs.set_up(settings.log_level)
    return _until_ended(_cleanup(settings))


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
        if not is_plan:  # asked from the first second, also while the API server is away
            runner = await serve(settings.metrics_port, health.life_fault, health.readiness_fault, health.exposition)
        starting = asyncio.create_task(_find_cluster(settings, client))
        if await _first(starting, stop, PLAN_SECONDS if is_plan else None):
            return
        operator = Operator(settings, *starting.result(), connection, client)
        health.operator = operator
        if is_plan:
            await operator.preview(stop)
        else:
            await (operator.rehearse(stop) if settings.dry_run else operator.run(stop))
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
        """Say what is missing."""
        waiting = "waiting for the API server: check the network and KUBECONFIG; the log has its last error"
        return self.operator.readiness_fault() if self.operator else waiting

    def exposition(self) -> bytes:
        """Give the metrics that there are."""
        return self.operator.exposition() if self.operator else exposition(CollectorRegistry())


async def _first(task: "asyncio.Task[tuple[str, str]]", stop: asyncio.Event, limit_seconds: float | None) -> bool:
    """Wait for a task or for the signal to stop; say whether it was the signal. A limit that is reached is a fault."""
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait([task, stopping], return_when=asyncio.FIRST_COMPLETED, timeout=limit_seconds)
    stopping.cancel()
    if task.done():
        return False
    task.cancel()
    if not stop.is_set():
        raise UnusableError(f"no plan: the API server (see above) has not answered for {limit_seconds:g} s")
    return True


async def _find_cluster(settings: Settings, client: Client) -> tuple[str, str]:
    """Give the cluster id, and kube-system's UID where it may be read; wait for the API server, and for our CRD."""
    while True:
        try:
            state = await client.crd_state()
            if state.other_versions and VERSION not in state.other_versions:
                versions = ", ".join(state.other_versions)
                raise UnusableError(
                    f"the CRD grpcservices.grpc-etcd.dev is installed in version {versions}, this operator needs "
                    f"{VERSION}: install the CRD of this release (crds/grpcservices.yaml)"
                )
            uid = await _find_uid(settings, client)
        except ApiError as error:
            if error.status == HTTPStatus.FORBIDDEN and not settings.cluster_id:
                raise UnusableError(
                    f"--cluster-id is not set and the namespace kube-system may not be read ({error}): set "
                    "--cluster-id to a name of this cluster, or allow `get` on that namespace"
                ) from error
            _complain(client, error)
        except (aiohttp.ClientError, TimeoutError) as error:
            _complain(client, error)
        else:
            return settings.cluster_id or uid, uid
        await asyncio.sleep(RETRY_SECONDS)


async def _find_uid(settings: Settings, client: Client) -> str:
    try:
        return await client.cluster_uid()
    except ApiError as error:
        if error.status == HTTPStatus.FORBIDDEN and settings.cluster_id:
            return ""  # the CA tells clusters apart as well, if less surely
        raise


def _complain(client: Client, error: Exception) -> None:
    log.error(
        "the API server at %s cannot be reached: check KUBECONFIG and the network; it is tried again",
        client.server,
        extra={"event": "api_server_unreachable", "fields": {"error": f"{type(error).__name__}: {error}"}},
    )


def open_etcd(registry: RegistrySettings) -> Etcd:
    """Open a client of a registry; nothing is sent yet."""
    secure = registry.ca or registry.cert or any(each.startswith("https://") for each in registry.endpoints)
    tls = Tls(registry.ca, registry.cert, registry.key, registry.server_name) if secure else None
    password = registry.password_file or ""
    return Etcd(registry.endpoints, user=registry.user, password=password, tls=tls, timeout_seconds=CALL_SECONDS)


def describe(registry: str, plan: Plan) -> str:
    """Write a plan as one line of JSON."""
    puts = {put.key.decode(errors="replace"): put.value.decode(errors="replace") for put in plan.puts}
    deletes = [delete.key.decode(errors="replace") for delete in plan.deletes]
    found = {"registry": registry, "uid": plan.uid, "put": puts, "delete": deletes}
    return escape_json(json.dumps(found, ensure_ascii=False))


def count_waiting_gates(pods: Iterable[Pod], now: float) -> int:
    """Count the Pods that have been ready but for our readiness gate for longer than any registration takes."""
    waiting = (pod for pod in pods if pod.gated and pod.ready and not (pod.gate_open or pod.terminating))
    return sum(now - pod.since > GATE_SECONDS for pod in waiting)


def _pass_over(_: str, __: frozenset[str]) -> None:
    """Take no list: after those of GrpcServices a sweep makes one of its own."""


def _print(lines: Iterable[str]) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


class Operator:
    """All parts of one operator process, connected; `open_registry` says how a registry's etcd is reached."""

    def __init__(  # noqa: PLR0913, PLR0917  what all parts hang on
        self,
        settings: Settings,
        cluster: str,
        kube_system: str,
        connection: Connection,
        client: Client,
        open_registry: Callable[[RegistrySettings], Etcd] = open_etcd,
    ) -> None:
        self._settings, self._cluster, self._connection, self._client = settings, cluster, connection, client
        self._open_registry = open_registry
        self._isolation = Isolation()
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
        world = World(etcds, shared_names=settings.shared_names, rules=rules)
        self._reconciler = Reconciler(world, prefixes, Timings(self._collector), etcds)
        self._freshness = Freshness(self._watch_opened, product((PODS, SERVICES), settings.namespaces or ("",)))
        unreadable = self._freshness.unreadable
        told = (self._braked, unreadable, self._isolation, self._tell_left_out)
        self._sweeper = Sweeper(client, self._reconciler, scope, *told)
        may_report, selector = self._may_report, settings.pod_selector
        self._reporter = Reporter(
            client, self._reconciler, may_report, self._down, self._isolation, pod_selector=selector
        )
        self._granter = Granter(client, self._reconciler, self._may_grant, self._isolation)
        self._registries = _distinct(settings)
        self._stations: dict[str, Station] = {}
        self._turns = Turns(self._stations, etcds)
        self._stations.update({each.name: self._make_station(each) for each in self._registries})
        self._tell_aliases(etcds)
        self._brakes = 0
        self._complained = False
        self._printed: list[str] | None = None
        self._reconciler.stations.update(self._stations)
        self._reconciler.on_status = self._reporter.look_at
        self._reconciler.on_other_status = self._note_other_status
        self._reconciler.on_gate = self._reporter.look_at_gate
        self._reconciler.on_claims = self._granter.look
        self._reconciler.on_service_deleted = self._sweeper.check_deleted
        self._reconciler.blindness = self._freshness.blindness
        self._freshness.on_not_found = self._not_found
        self._collector.register(Samples(self._samples))
        ProcessCollector(registry=self._collector)

    def _make_station(self, registry: RegistrySettings) -> Station:
        ttl = self._settings.lease_ttl_seconds
        views = Views(
            self._reconciler,
            self._freshness.is_fresh,
            self._freshness.blind_seconds,
            partial(remedy, registry=registry),
            self._reconciler.take_outcome,
            self._station_changed,
            partial(self._turns.is_turn, registry.name),
            self._reconciler.may_ask_for,
            self._reconciler.units,
        )
        return Station(
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

    def _tell_aliases(self, etcds: Mapping[str, str]) -> None:
        for name, first in etcds.items():
            if name != first:
                log.warning(
                    "two registries are one etcd: the second name stands for the first",
                    extra={"event": "registry_aliased", "fields": {"registry": name, "same as": first}},
                )

    async def run(self, stop: asyncio.Event) -> None:
        """Run all parts until `stop` is set, then hand over; a part that fails is started again alone."""
        log.info(
            "started",
            extra={"event": "started", "fields": {"cluster": self._cluster, "registries": list(self._stations)}},
        )
        try:
            async with asyncio.TaskGroup() as group:
                runs = {f"station {station.name}": station.run for station in self._stations.values()}
                runs |= {"sweep": self._sweeper.run, "status": self._reporter.run}
                runs |= {"Pods": partial(self._watch_pods, stop), "probe": self._probe}
                runs |= {"GrpcServices": partial(self._watch_services, stop)}
                runs |= {
                    "sight": self._reporter.look_at_sight,
                    "claims": self._granter.run,
                    "cluster": self._follow_cluster,
                    "CRD": self._sweeper.look_at_crd,
                }
                parts = [group.create_task(supervise(part, run, self._isolation)) for part, run in runs.items()]
                await stop.wait()
                await self._granter.end(GRANT_SECONDS)
                await asyncio.gather(*(station.hand_over() for station in self._stations.values()))
                for part in parts:
                    part.cancel()
        finally:
            for station in self._stations.values():
                await station.close()
            log.info("ended", extra={"event": "stopped"})

    async def _follow_cluster(self) -> None:
        """Keep up with what tells this cluster from others: its CA may be renewed."""
        while True:
            await asyncio.sleep(CLUSTER_SECONDS)
            found = replace(self._candidate.fingerprint, authorities=self._connection.authorities())
            if found.authorities and found != self._candidate.fingerprint:  # none: the file is just being replaced
                self._candidate = replace(self._candidate, fingerprint=found)
                for station in self._stations.values():
                    station.election.candidate = replace(self._candidate, registry=station.name)

    async def preview(self, stop: asyncio.Event) -> None:
        """Print once what would be written, as JSON lines on standard output, and write nothing."""
        async with self._reading(stop):
            waiting, reading = Standstill(), self._make_reading()
            while not (self._is_judged() or stop.is_set()):
                if waiting.lasts(reading.find_missing()):
                    raise UnusableError(f"no plan, since nothing has come for {PLAN_SECONDS:g} s: {reading.explain()}")
                await asyncio.sleep(LOOK_SECONDS)
            if self._is_judged():  # else it was interrupted, and half a plan is none
                reading.warn()
                _print(self._plans())

    def _make_reading(self) -> Reading:
        server = self._client.server
        return Reading(self._reconciler, self._freshness, self._registries, server, lambda: self._complained)

    async def rehearse(self, stop: asyncio.Event) -> None:
        """Do as `run` does, but print what would be written, again whenever it changes, and write nothing."""
        log.info(
            "dry run: nothing is written", extra={"event": "dry_run_started", "fields": {"cluster": self._cluster}}
        )
        async with self._reading(stop):
            await self._print_changes(stop)

    async def _print_changes(self, stop: asyncio.Event) -> None:
        """Print the plans whenever they have become others, until `stop` is set."""
        while not stop.is_set():
            began = time.monotonic()
            if self._is_judged() and (lines := self._plans()) != self._printed:
                _print(lines)
                self._printed = lines
                log.info(
                    "dry run: waiting for changes", extra={"event": "dry_run_waiting", "fields": {"plans": len(lines)}}
                )
            pause = max(LOOK_SECONDS, PREVIEW_SHARE * (time.monotonic() - began))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await stop.wait()

    @contextlib.asynccontextmanager
    async def _reading(self, stop: asyncio.Event) -> AsyncIterator[None]:
        """Run the parts that read and plan, and none that writes."""
        runs: dict[str, Callable[[], Awaitable[None]]] = {
            f"station {name}": station.run_dry for name, station in self._stations.items()
        }
        self._reconciler.grants_in_memory = True
        runs |= {"sweep": self._sweeper.run, "Pods": partial(self._watch_pods, stop), "probe": self._probe}
        runs |= {"GrpcServices": partial(self._watch_services, stop)}
        parts = [asyncio.create_task(supervise(part, run, self._isolation)) for part, run in runs.items()]
        try:
            yield
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
            for station in self._stations.values():
                await station.close()

    def _plans(self) -> list[str]:
        return [describe(name, plan) for name, station in self._stations.items() for plan in station.writer.preview()]

    def _rehearsal_fault(self) -> str | None:
        """Say why nothing is printed yet, or why changes of a registry may be missing in it."""
        if missing := {PODS, SERVICES} - self._reconciler.complete:
            return f"not all {' and '.join(sorted(missing))} have been seen yet"
        faults = (f"registry {name}: {each.complaint}" for name, each in self._stations.items() if each.complaint)
        return next(faults, "not everything has been compared yet" if self._printed is None else None)

    def _is_judged(self) -> bool:
        stations = self._stations.values()
        listed = all(station.is_listed and station.writer.has_judged_all for station in stations)
        return listed and self._reconciler.has_seen_all() and self._sweeper.has_checked_owners

    async def _watch_pods(self, stop: asyncio.Event) -> None:
        note = Noting(PODS, self._sweeper.note_pod, identify_pod, self._isolation)
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(note.close)
            sources = []
            for namespace in self._settings.namespaces or ("",):
                # So that Retry-After, told to one of them, holds for our list and for Kopf's watch.
                session = self._connection.session(self._freshness.trace(), purpose=f"{PODS}/{namespace}")
                client = Client(self._connection.server, session)
                stack.push_async_callback(client.close)
                sources.append(self._make_pod_source(client, namespace, stop))
            await self._run_sources(sources, Receiver(note, self._sweeper.take_list))

    def _make_pod_source(self, client: Client, namespace: str, stop: asyncio.Event) -> Source[PodMessage]:
        stream, selector = self._freshness.stream(PODS, namespace), self._settings.pod_selector
        reflector, has_pod = Reflector(client, stream, selector), self._reconciler.has_pod
        if self._settings.pod_watch == DIRECT:
            return reflector
        how = Kind(
            names=("", "v1", PODS),
            parse=read_pod,
            is_known=lambda kind, uid, version: kind != "DELETED" and has_pod(uid, version),
            selector=selector,
        )
        return KopfSource(how, stream, self._connection, self._freshness, self._isolation, reflector.list_all, stop.set)

    async def _run_sources(self, sources: Iterable[Source[T]], receiver: Receiver[T]) -> None:
        async with asyncio.TaskGroup() as group:
            for each in sources:
                group.create_task(supervise(f"watch of {each.kind}", partial(each.run, receiver), self._isolation))

    async def _probe(self) -> None:
        client = Client(self._connection.server, self._connection.session())
        try:
            await supervise("probe", Prober(client, self._freshness).run, self._isolation)
        finally:
            await client.close()

    async def _watch_services(self, stop: asyncio.Event) -> None:
        note = Noting(SERVICES, self._reconciler.take_service, identify_service, self._isolation)
        try:
            sources = [self._make_service_source(namespace, stop) for namespace in self._settings.namespaces or ("",)]
            await self._run_sources(sources, Receiver(note, _pass_over))
        finally:
            note.close()

    def _make_service_source(self, namespace: str, stop: asyncio.Event) -> Source[GrpcService]:
        has_service = self._reconciler.has_service
        how = Kind(
            names=(GROUP, VERSION, SERVICES),
            parse=self._reconciler.read_service,
            # What a list tells counts in any case: others of its kind may have come back with it.
            is_known=lambda kind, uid, version: kind not in (None, "DELETED") and has_service(uid, version),
        )
        stream, connection = self._freshness.stream(SERVICES, namespace), self._connection
        return KopfSource(how, stream, connection, self._freshness, self._isolation, self._wait_until_served, stop.set)

    async def _wait_until_served(self, _: Receiver[GrpcService]) -> str:
        """Wait for the API server and our CRD: waiting can help, so nothing else is done about it. Kopf lists."""
        while True:
            self._freshness.note_attempt(SERVICES)
            try:
                state = await self._client.crd_state()
            except (ApiError, aiohttp.ClientError, TimeoutError) as error:
                _complain(self._client, error)
            else:
                if state.served:
                    self._complained = False
                    return ""
                self._sweeper.note_crd_away()
                if not self._complained:
                    self._complained = True
                    log.error("%s; the operator waits for it", CRD_MISSING, extra={"event": "crd_missing"})
            await asyncio.sleep(RETRY_SECONDS / 2)

    # -- who is told of what ------------------------------------------------------------------------------------------

    def _watch_opened(self, resource: str, namespace: str) -> None:
        if resource == SERVICES:
            self._sweeper.sweep_soon(resource, namespace)

    def _not_found(self, resource: str) -> None:
        if resource == SERVICES:
            self._sweeper.note_crd_away()

    def _station_changed(self) -> None:
        self._sweeper.check_owners()
        self._reporter.look_at_all()
        self._granter.look()

    def _braked(self, missing: Sequence[Seen], total: int) -> None:
        """Tell that most of what is known has gone: perhaps it was not meant to."""
        self._brakes += 1
        message = f"{len(missing)} of {total} objects are missing from a list; each is looked for before its keys go"
        log.error(message, extra={"event": "deletion_safeguard", "fields": {"missing": len(missing), "of": total}})
        services = self._reconciler.services_behind(seen.uid for seen in missing)
        self._reporter.warn(services, "MassDeletion", message)

    def _tell_left_out(self, held: Sequence[Seen]) -> None:
        """Tell, as long as it lasts, that keys stay of Pods that our selector does not find."""
        self._brakes += 1
        message = (
            f"{len(held)} registered Pods are not selected by the operator's podSelector; their keys stay until they "
            "are replaced: set podSelector back, or replace these Pods if they are to go"
        )
        self._reporter.warn(self._reconciler.services_behind(seen.uid for seen in held), "MassDeletion", message)

    def _may_report(self) -> bool:
        """Let one replica report for all registries, once what it knows of each is worth telling."""
        return all(station.can_report for station in self._stations.values()) and self._speaks()

    def _may_grant(self) -> bool:
        """Let the same replica write claims, which nothing has to be written for before."""
        return self._speaks()

    def _speaks(self) -> bool:
        """Say whether this replica is the last that led the first of the registries of which a leader is known.

        Who led a registry whose etcd has been out of reach for long may be gone: the next registry's leader speaks.
        Where nobody is, or nobody who could speak for our GrpcServices, any replica does.
        """
        led = [each for each in self._stations.values() if each.election.is_leader_known]
        led = [station for station in led if not station.election.is_leader_apart]
        if led:
            return next((each for each in led if not each.is_long_lost), led[0]).election.may_speak
        return all(station.standing.reason for station in self._stations.values())

    def _note_other_status(self, service: GrpcService) -> None:
        """Take it that a status has been written that this replica did not write: it may speak no longer."""
        if not self._reporter.is_writing(service):
            for station in self._stations.values():
                station.election.note_other_speaker()

    def _down(self) -> Mapping[str, str]:
        return {name: text for name, station in self._stations.items() if (text := station.complaint)}

    # -- health -------------------------------------------------------------------------------------------------------

    def life_fault(self) -> str | None:
        """Say why the process is of no use; None when it is."""
        return "a watch is silent and nobody tries to open it again" if self._freshness.is_deaf() else None

    def readiness_fault(self) -> str | None:
        """Say what is missing to do its part."""
        if self._settings.dry_run:
            return self._rehearsal_fault()
        stations = tuple(self._stations.values())
        sight = stations[0].sight
        fault = find_unready(sight, [each.lead for each in stations], [each.standing for each in stations])
        told = [*self._freshness.unreadable().values(), *(f"{name}: {text}" for name, text in self._down().items())]
        return "; ".join([fault, *told]) if fault else None

    def exposition(self) -> bytes:
        """Write all metrics."""
        return exposition(self._collector)

    def _samples(self) -> Iterator[Sample]:
        world = self._reconciler.world
        yield "grpc_etcd_info", (version("grpc-etcd"), self._cluster), 1
        yield "grpc_etcd_pods", (), len(world.pods)
        yield "grpc_etcd_grpcservices", (), len(world.services)
        yield "grpc_etcd_broken_objects", (), self._reconciler.broken_objects
        # A sweep compares Kubernetes with memory, whatever registries there are.
        yield "grpc_etcd_drift", (), self._sweeper.drift
        yield "grpc_etcd_mass_deletions", (), self._brakes
        yield "grpc_etcd_gates_refused", (), self._reporter.refusals.count
        yield "grpc_etcd_gates_waiting", (), count_waiting_gates(world.pods.values(), time.time())
        for reason, count in sorted(self._reconciler.count_refusals().items()):
            yield "grpc_etcd_not_accepted", (reason,), count
        for part, count in sorted(self._isolation.counts.items()):
            yield "grpc_etcd_unexpected_errors", (part,), count
        for resource in (PODS, SERVICES):
            yield "grpc_etcd_last_event_age_seconds", (resource,), self._freshness.event_age(resource)
        yield "grpc_etcd_kubernetes_unseen_seconds", (), self._freshness.blind_seconds()
        yield "grpc_etcd_namespaces_unreadable", (), len(self._freshness.unreadable())
        for registry in self._registries:
            yield from self._station_samples(self._stations[registry.name], registry)

    def _station_samples(self, station: Station, registry: RegistrySettings) -> Iterable[Sample]:
        label, writer, election = (station.name,), station.writer, station.election
        yield "grpc_etcd_queue_depth", label, writer.depth
        yield "grpc_etcd_in_flight", label, writer.in_flight
        yield "grpc_etcd_overdue_seconds", label, writer.overdue_seconds()
        yield "grpc_etcd_leases", label, len(station.leases)
        yield "grpc_etcd_records", label, len(station.mirror.owners)
        yield "grpc_etcd_leader", label, election.is_leading
        yield "grpc_etcd_foreign_cluster", label, election.is_foreign
        yield "grpc_etcd_prefixes_refused", label, station.refusing.count
        yield "grpc_etcd_no_leader_seconds", label, election.vacant_seconds
        # Where another leads, it counts: a standby may remember a wish that a restart has made the leader forget.
        stands_by = election.is_leader_known and not election.is_leading
        unregistered = 0 if stands_by else self._reconciler.count_unregistered(station.name)
        yield "grpc_etcd_ready_not_registered", label, unregistered
        yield "grpc_etcd_missed_changes", label, station.audit.missed
        yield "grpc_etcd_synced", label, station.mark.is_put
        yield "grpc_etcd_registry_up", label, station.standing.reason is None and station.is_listed
        yield "grpc_etcd_conflicts", label, self._reconciler.conflicts(station.name)
        for code, count in sorted(election.failures.items()):
            yield "grpc_etcd_campaign_errors", (station.name, code), count
        for code, count in sorted(writer.trouble.counts.items()):
            yield "grpc_etcd_etcd_errors", (station.name, code), count
        for file, expiry in expiries(registry.ca, registry.cert):
            yield "grpc_etcd_certificate_expiry_timestamp_seconds", (station.name, file), expiry


async def _cleanup(settings: Settings) -> None:
    if settings.dry_run:
        log.info("dry run: nothing is withdrawn", extra={"event": "cleanup_skipped"})
        return
    fingerprint = await _look_at_cluster()
    cluster = settings.cluster_id or fingerprint.kube_system
    if not cluster:
        raise UnusableError("--cluster-id is not set and the namespace kube-system cannot be read: set --cluster-id")
    withdrawals = (_withdraw_from(registry, cluster, fingerprint, settings) for registry in _distinct(settings))
    # Side by side: one that is out of reach, or gone for good, keeps nothing in another.
    if faults := list(filter(None, await asyncio.gather(*withdrawals))):
        raise UnusableError("; ".join(faults))


async def _withdraw_from(
    registry: RegistrySettings, cluster: str, fingerprint: Fingerprint, settings: Settings
) -> str | None:
    """Withdraw all from one registry; say what is wrong if that cannot be done."""
    etcd, where = open_etcd(registry), f"registry {registry.name} at {','.join(registry.endpoints)}"
    try:
        await withdrawing.withdraw_all(etcd, cluster, fingerprint, settings.leader_ttl_seconds)
    except (withdrawing.ForeignClusterError, withdrawing.RefusedError) as error:
        return f"{where}: {error}"
    except (TimeoutError, withdrawing.LeadLostError):
        return (
            f"{where}: an operator still leads for cluster id {cluster}, or etcd is out of reach; "
            "end the operator first (kubectl scale deployment --replicas=0), then run cleanup again"
        )
    except EtcdError as error:
        return f"{where}: {error}. {remedy(error, registry)}"
    finally:
        await etcd.close()
    return None


def _distinct(settings: Settings) -> list[RegistrySettings]:
    """List the registries without those that are another name of an earlier one's etcd."""
    etcds = parse_etcds({registry.name: registry.endpoints for registry in settings.registries})
    return [each for each in settings.registries if etcds[each.name] == each.name]


async def _look_at_cluster() -> Fingerprint:
    """Tell what is known of the Kubernetes cluster that we are in; a cleanup needs none."""
    try:
        connection = Connection()
    except NoClusterError:
        return Fingerprint()
    client = Client(connection.server, connection.session())
    try:
        uid = await client.cluster_uid()
    except (ApiError, aiohttp.ClientError, TimeoutError):
        uid = ""
    finally:
        await client.close()
    return Fingerprint(uid, connection.authorities())

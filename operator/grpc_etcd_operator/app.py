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
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from importlib.metadata import version
from typing import Any

import aiohttp
import uvloop
from prometheus_client import CollectorRegistry, ProcessCollector

from grpc_etcd.etcd.aio import Etcd
from grpc_etcd.etcd.endpoints import Tls
from grpc_etcd.etcd.errors import EtcdError
from grpc_etcd_operator import logs, withdrawing
from grpc_etcd_operator.certificates import expiries
from grpc_etcd_operator.core.plan import Plan
from grpc_etcd_operator.core.scope import Scope
from grpc_etcd_operator.core.sweeps import Seen
from grpc_etcd_operator.core.world import World
from grpc_etcd_operator.health import serve
from grpc_etcd_operator.kube.client import VERSION, ApiError, Client
from grpc_etcd_operator.kube.connecting import Connection, NoClusterError
from grpc_etcd_operator.kube.freshness import Freshness
from grpc_etcd_operator.kube.list_watch import ListWatch
from grpc_etcd_operator.kube.statuses import Reporter
from grpc_etcd_operator.kube.sweeping import Sweeper
from grpc_etcd_operator.kube.watching import make_registry, take_signals, watch_for_ever
from grpc_etcd_operator.metrics import Sample, Samples, Timings, exposition
from grpc_etcd_operator.reconciling import PODS, SERVICES, Reconciler
from grpc_etcd_operator.remedies import remedy
from grpc_etcd_operator.settings import RegistrySettings, Settings
from grpc_etcd_operator.writer.station import Station

log = logging.getLogger(__name__)
EXIT_UNUSABLE = 2
RETRY_SECONDS = 2.0
LOOK_SECONDS = 0.1
CALL_SECONDS = 5.0


class UnusableError(Exception):
    """Something that waiting cannot help; the text says what to mend."""


def run(settings: Settings) -> int:
    """Run the operator until a signal ends it; return the exit code."""
    logs.set_up(settings.log_level)
    gc.set_threshold(50_000, 50, 100)  # many small objects that live: the default looks at them far too often
    return _until_ended(_run(settings))


def cleanup(settings: Settings) -> int:
    """Withdraw all that this cluster id owns; return the exit code."""
    logs.set_up(settings.log_level)
    return _until_ended(_cleanup(settings))


def _until_ended(work: Coroutine[Any, Any, None]) -> int:
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # a sixth less CPU than asyncio's own loop
            runner.run(work)
    except (UnusableError, NoClusterError) as error:
        log.error(str(error))  # noqa: TRY400  the sentence is for an admin; a traceback would hide it
        return EXIT_UNUSABLE
    return 0


async def _run(settings: Settings) -> None:
    stop = asyncio.Event()
    take_signals(stop.set)
    connection = Connection()
    client = Client(connection.server, connection.session())
    try:
        starting = asyncio.create_task(_find_cluster(settings, client))
        if await _first(starting, stop):
            return
        operator = Operator(settings, starting.result(), connection, client)
        await (operator.preview(stop) if settings.dry_run else operator.run(stop))
    finally:
        await client.close()


async def _first(task: "asyncio.Task[str]", stop: asyncio.Event) -> bool:
    """Wait for a task or for the signal to stop; say whether it was the signal."""
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait([task, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not task.done():
        task.cancel()
        return True
    return False


async def _find_cluster(settings: Settings, client: Client) -> str:
    """Give the cluster id; wait for the API server if it must be asked, and for our CRD."""
    while True:
        try:
            state = await client.crd_state()
            if state.other_versions and VERSION not in state.other_versions:
                versions = ", ".join(state.other_versions)
                raise UnusableError(
                    f"the CRD grpcservices.grpc-etcd.dev is installed in version {versions}, this operator needs "
                    f"{VERSION}: install the CRD of this release (crds/grpcservices.yaml)"
                )
            return settings.cluster_id or await client.cluster_uid()
        except ApiError as error:
            if error.status == HTTPStatus.FORBIDDEN and not settings.cluster_id:
                raise UnusableError(
                    f"--cluster-id is not set and the namespace kube-system may not be read ({error}): set "
                    "--cluster-id to a name of this cluster, or allow `get` on that namespace"
                ) from error
            _complain(client, error)
        except (aiohttp.ClientError, TimeoutError) as error:
            _complain(client, error)
        await asyncio.sleep(RETRY_SECONDS)


def _complain(client: Client, error: Exception) -> None:
    log.error(
        "the API server at %s cannot be reached: check KUBECONFIG and the network; it is tried again",
        client.server,
        extra={"fields": {"error": f"{type(error).__name__}: {error}"}},
    )


def open_etcd(registry: RegistrySettings) -> Etcd:
    """Open a client of a registry; nothing is sent yet."""
    secure = registry.ca or registry.cert or registry.endpoints[0].startswith("https://")
    tls = Tls(registry.ca, registry.cert, registry.key) if secure else None
    password = registry.password_file or ""
    return Etcd(registry.endpoints, user=registry.user, password=password, tls=tls, timeout_seconds=CALL_SECONDS)


def describe(registry: str, plan: Plan) -> str:
    """Write a plan as one line of JSON."""
    puts = {put.key.decode(errors="replace"): put.value.decode(errors="replace") for put in plan.puts}
    deletes = [delete.key.decode(errors="replace") for delete in plan.deletes]
    return json.dumps({"registry": registry, "uid": plan.uid, "put": puts, "delete": deletes}, ensure_ascii=False)


class Operator:
    """All parts of one operator process, connected."""

    def __init__(self, settings: Settings, cluster: str, connection: Connection, client: Client) -> None:
        self._settings, self._cluster, self._connection, self._client = settings, cluster, connection, client
        self._collector = CollectorRegistry(auto_describe=False)
        scope = Scope(settings.namespaces, settings.pod_selector)
        prefixes = {registry.name: settings.prefix for registry in settings.registries}
        world = World(prefixes, shared_names=settings.shared_names)
        self._reconciler = Reconciler(world, prefixes, Timings(self._collector))
        self._freshness = Freshness(self._watch_opened)
        self._sweeper = Sweeper(client, self._reconciler, scope, self._braked)
        self._reporter = Reporter(client, self._reconciler, self._may_report, self._down)
        self._stations = {each.name: self._make_station(each, scope) for each in settings.registries}
        self._brakes = 0
        self._complained = False
        self._reconciler.stations.update(self._stations)
        self._reconciler.on_status = self._reporter.look_at
        self._reconciler.on_gate = self._reporter.look_at_gate
        self._reconciler.on_service_deleted = self._sweeper.check_deleted
        self._collector.register(Samples(self._samples))
        ProcessCollector(registry=self._collector)

    def _make_station(self, registry: RegistrySettings, scope: Scope) -> Station:
        ttl = self._settings.lease_ttl_seconds
        return Station(
            registry.name,
            self._cluster,
            open_etcd(registry),
            identity=f"{socket.gethostname()}/{os.getpid()}",
            scope=scope,
            lease_ttl_seconds=ttl,
            # Leases of Pods are renewed each third of their time: a takeover must fit into the rest of it.
            leader_ttl_seconds=min(self._settings.leader_ttl_seconds, max(3, ttl // 3)),
            facts=self._reconciler,
            is_fresh=self._freshness.is_fresh,
            advise=partial(remedy, registry=registry),
            on_outcome=self._reconciler.take_outcome,
            on_change=self._station_changed,
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Run all parts until `stop` is set, then hand over; a part that fails ends all."""
        runner = await serve(self._settings.metrics_port, self._life_fault, self._readiness_fault, self._exposition)
        log.info("started", extra={"fields": {"cluster": self._cluster, "registries": list(self._stations)}})
        try:
            async with asyncio.TaskGroup() as group:
                runs = [station.run() for station in self._stations.values()]
                runs += [self._sweeper.run(), self._reporter.run(), self._watch_pods(), self._watch_services(stop)]
                parts = [group.create_task(run) for run in runs]
                await stop.wait()
                await asyncio.gather(*(station.hand_over() for station in self._stations.values()))
                for part in parts:
                    part.cancel()
        finally:
            await runner.cleanup()
            for station in self._stations.values():
                await station.close()
            log.info("ended")

    async def preview(self, stop: asyncio.Event) -> None:
        """Print what would be written, as JSON lines on standard output, and write nothing."""
        runs = [station.run_dry() for station in self._stations.values()]
        runs += [self._sweeper.run(), self._watch_pods(), self._watch_services(stop)]
        parts = [asyncio.create_task(run) for run in runs]
        try:
            while not (self._is_judged() or stop.is_set()):  # noqa: ASYNC110  many parts have to agree
                await asyncio.sleep(LOOK_SECONDS)
            for station in self._stations.values():
                for plan in station.writer.preview():
                    sys.stdout.write(describe(station.name, plan) + "\n")
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
            for station in self._stations.values():
                await station.close()

    def _is_judged(self) -> bool:
        stations = self._stations.values()
        listed = all(station.is_listed and station.writer.has_judged_all for station in stations)
        return listed and self._reconciler.has_seen_all() and self._sweeper.has_checked_owners

    async def _watch_pods(self) -> None:
        client = Client(self._connection.server, self._connection.session(self._freshness.trace()))
        selector, note, take = self._settings.pod_selector, self._reconciler.note_pod, self._sweeper.take_list
        try:
            async with asyncio.TaskGroup() as group:
                for namespace in self._settings.namespaces or ("",):
                    group.create_task(ListWatch(client, namespace, selector, note, take).run())
        finally:
            await client.close()

    async def _watch_services(self, stop: asyncio.Event) -> None:
        await watch_for_ever(
            lambda: make_registry(self._reconciler.note_service, self._connection, self._freshness),
            self._wait_until_served,
            self._settings.namespaces,
            stop.set,
        )

    async def _wait_until_served(self) -> None:
        """Wait for the API server and our CRD: waiting can help, so nothing else is done about it."""
        while True:
            try:
                state = await self._client.crd_state()
            except (ApiError, aiohttp.ClientError, TimeoutError) as error:
                _complain(self._client, error)
            else:
                if state.served:
                    self._complained = False
                    return
                if not self._complained:
                    self._complained = True
                    log.error(
                        "the CRD grpcservices.grpc-etcd.dev is not installed: kubectl apply -f crds/grpcservices.yaml; "
                        "the operator waits for it"
                    )
            await asyncio.sleep(RETRY_SECONDS / 2)

    # -- who is told of what ------------------------------------------------------------------------------------------

    def _watch_opened(self, resource: str) -> None:
        if resource == SERVICES:
            self._sweeper.sweep_soon(resource)

    def _station_changed(self) -> None:
        self._sweeper.check_owners()
        self._reporter.look_at_all()

    def _braked(self, missing: Sequence[Seen], total: int) -> None:
        """Tell that most of what is known has gone: perhaps it was not meant to."""
        self._brakes += 1
        message = f"{len(missing)} of {total} objects are missing from a list; each is looked for before its keys go"
        log.error(message, extra={"fields": {"missing": len(missing), "of": total}})
        services = self._reconciler.services_behind(seen.uid for seen in missing)
        self._reporter.warn(services, "MassDeletion", message)

    def _primary(self) -> Station:
        return next(iter(self._stations.values()))

    def _may_report(self) -> bool:
        """Let the leader of the first registry report; where none can be known, any replica."""
        primary = self._primary()
        if not all(station.can_report for station in self._stations.values()):
            return False
        return primary.election.is_leading or (primary.error is not None and not primary.election.is_leader_known)

    def _down(self) -> Mapping[str, str]:
        return {name: text for name, station in self._stations.items() if (text := station.complaint)}

    # -- health -------------------------------------------------------------------------------------------------------

    def _life_fault(self) -> str | None:
        return "a watch is silent and nobody tries to open it again" if self._freshness.is_deaf() else None

    def _readiness_fault(self) -> str | None:
        missing = {PODS, SERVICES} - self._reconciler.complete
        if missing:
            return f"not all {' and '.join(sorted(missing))} have been seen yet"
        for name, station in self._stations.items():
            if station.error or not station.is_listed:
                return f"registry {name} is out of reach: {station.complaint}"
        return None

    def _exposition(self) -> bytes:
        return exposition(self._collector)

    def _samples(self) -> Iterator[Sample]:
        world = self._reconciler.world
        yield "grpc_etcd_info", (version("grpc-etcd"), self._cluster), 1
        yield "grpc_etcd_pods", (), len(world.pods)
        yield "grpc_etcd_grpcservices", (), len(world.services)
        yield "grpc_etcd_broken_objects", (), self._reconciler.broken_objects
        for resource in (PODS, SERVICES):
            yield "grpc_etcd_last_event_age_seconds", (resource,), self._freshness.event_age(resource)
        for registry in self._settings.registries:
            yield from self._station_samples(self._stations[registry.name], registry)

    def _station_samples(self, station: Station, registry: RegistrySettings) -> Iterable[Sample]:
        label, writer = (station.name,), station.writer
        yield "grpc_etcd_queue_depth", label, writer.depth
        yield "grpc_etcd_in_flight", label, writer.in_flight
        yield "grpc_etcd_overdue_seconds", label, writer.overdue_seconds()
        yield "grpc_etcd_leases", label, len(station.leases)
        yield "grpc_etcd_records", label, len(station.mirror.owners)
        yield "grpc_etcd_leader", label, station.election.is_leading
        yield "grpc_etcd_synced", label, station.mark.is_put
        yield "grpc_etcd_registry_up", label, station.error is None and station.is_listed
        yield "grpc_etcd_conflicts", label, self._reconciler.conflicts(station.name)
        yield "grpc_etcd_drift", label, self._sweeper.drift
        yield "grpc_etcd_mass_deletions", label, self._brakes
        for code, count in sorted(writer.trouble.counts.items()):
            yield "grpc_etcd_etcd_errors", (station.name, code), count
        for file, expiry in expiries(registry.ca, registry.cert):
            yield "grpc_etcd_certificate_expiry_timestamp_seconds", (station.name, file), expiry


async def _cleanup(settings: Settings) -> None:
    cluster = settings.cluster_id
    if not cluster:
        connection = Connection()
        client = Client(connection.server, connection.session())
        with contextlib.suppress(Exception):
            cluster = await client.cluster_uid()
        await client.close()
    if not cluster:
        raise UnusableError("--cluster-id is not set and the namespace kube-system cannot be read: set --cluster-id")
    for registry in settings.registries:
        etcd = open_etcd(registry)
        try:
            await withdrawing.withdraw_all(etcd, cluster, settings.leader_ttl_seconds)
        except TimeoutError as error:
            raise UnusableError(
                f"registry {registry.name}: an operator still leads for cluster id {cluster}, or etcd is out of reach; "
                "end the operator first (kubectl scale deployment --replicas=0), then run cleanup again"
            ) from error
        except EtcdError as error:
            raise UnusableError(f"registry {registry.name}: {error}. {remedy(error, registry)}") from error
        finally:
            await etcd.close()

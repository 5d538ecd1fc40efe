"""Runs the sources of Pods and GrpcServices, one of each for each namespace, and the probe beside them."""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeVar

import aiohttp

from grpc_etcd_operator.controller.dry_run import CRD_MISSING
from grpc_etcd_operator.controller.event_handlers import PODS, SERVICES, EventHandlers
from grpc_etcd_operator.controller.resync import ResyncController
from grpc_etcd_operator.core.pods import PodMessage
from grpc_etcd_operator.core.services import GrpcService
from grpc_etcd_operator.isolation import Isolation, supervise
from grpc_etcd_operator.kube.client import GROUP, VERSION, ApiError, Client
from grpc_etcd_operator.kube.cluster import log_unreachable
from grpc_etcd_operator.kube.connecting import Connection
from grpc_etcd_operator.kube.freshness import Freshness, Stream
from grpc_etcd_operator.kube.probing import Prober
from grpc_etcd_operator.settings import DIRECT, Settings
from grpc_etcd_operator.sources.json_pods import read_pod
from grpc_etcd_operator.sources.kopf_source import Kind, KopfSource
from grpc_etcd_operator.sources.noting import Noting, identify_pod, identify_service
from grpc_etcd_operator.sources.reflector import Reflector
from grpc_etcd_operator.sources.source import Receiver, Source

T = TypeVar("T")
log = logging.getLogger(__name__)
CRD_SECONDS = 1.0  # between two looks at whether the CRD is there. Arbitrary
UNREACHABLE_ATTEMPTS = 30  # of these looks one is logged when it fails. Arbitrary


class Watches:
    """The sources of one process, and what they deliver to. `on_signal` is called for SIGTERM and SIGINT."""

    def __init__(  # noqa: PLR0913, PLR0917  whom to ask, whom to deliver to, and how
        self,
        settings: Settings,
        connection: Connection,
        client: Client,
        reconciler: EventHandlers,
        freshness: Freshness,
        resync: ResyncController,
        isolation: Isolation,
        on_signal: Callable[[], None],
    ) -> None:
        self._settings, self._connection, self._client, self._freshness = settings, connection, client, freshness
        self._reconciler, self._resync, self._isolation, self._on_signal = reconciler, resync, isolation, on_signal
        self._is_crd_missing = False

    def is_crd_missing(self) -> bool:
        """Return whether the CRD was missing at the last look."""
        return self._is_crd_missing

    @property
    def _namespaces(self) -> tuple[str, ...]:
        return self._settings.namespaces or ("",)

    async def watch_pods(self) -> None:
        """Deliver Pods until cancelled."""
        note = Noting(PODS, self._resync.note_pod, identify_pod, self._isolation)
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(note.close)
            sources = []
            for namespace in self._namespaces:
                # So that Retry-After, reported to one of them, holds for our list and for Kopf's watch.
                session = self._connection.session(self._freshness.trace(), purpose=f"{PODS}/{namespace}")
                client = Client(self._connection.server, session)
                stack.push_async_callback(client.close)
                sources.append(self._make_pod_source(client, namespace))
            await self._run(sources, Receiver(note, self._resync.take_list))

    def _make_pod_source(self, client: Client, namespace: str) -> Source[PodMessage]:
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
        prepare, connection = reflector.list_all, self._connection
        return KopfSource(how, stream, connection, self._freshness, self._isolation, prepare, self._on_signal)

    async def _run(self, sources: Iterable[Source[T]], receiver: Receiver[T]) -> None:
        async with asyncio.TaskGroup() as group:
            for each in sources:
                group.create_task(supervise(f"watch of {each.kind}", partial(each.run, receiver), self._isolation))

    async def probe(self) -> None:
        """Ask the API server now and then whether it is there, until cancelled."""
        client = Client(self._connection.server, self._connection.session())
        try:
            await supervise("probe", Prober(client, self._freshness).run, self._isolation)
        finally:
            await client.close()

    async def watch_services(self) -> None:
        """Deliver GrpcServices until cancelled."""
        note = Noting(SERVICES, self._reconciler.take_service, identify_service, self._isolation)
        try:
            sources = [self._make_service_source(namespace) for namespace in self._namespaces]
            await self._run(sources, Receiver(note, _pass_over))
        finally:
            note.close()

    def _make_service_source(self, namespace: str) -> Source[GrpcService]:
        has_service = self._reconciler.has_service
        how = Kind(
            names=(GROUP, VERSION, SERVICES),
            parse=self._reconciler.read_service,
            # What a list reports counts in any case: others of its kind may have come back with it.
            is_known=lambda kind, uid, version: kind not in (None, "DELETED") and has_service(uid, version),
            rests=True,
        )
        stream, connection = self._freshness.stream(SERVICES, namespace), self._connection
        prepare, isolation = partial(self._wait_until_served, stream), self._isolation
        return KopfSource(how, stream, connection, self._freshness, isolation, prepare, self._on_signal)

    async def _wait_until_served(self, stream: Stream, _: Receiver[GrpcService]) -> str:
        """Wait for the API server and our CRD: waiting can help, so nothing else is done about it. Kopf lists."""
        for attempt in itertools.count():
            stream.note_attempt()  # that one: it says nothing of another namespace's
            try:
                state = await self._client.crd_state()
            except (ApiError, aiohttp.ClientError, TimeoutError) as error:
                if attempt % UNREACHABLE_ATTEMPTS == 0:
                    log_unreachable(self._client, error)
            else:
                if state.served:
                    self._is_crd_missing = False
                    return ""
                self._resync.note_crd_away()
                if not self._is_crd_missing:
                    self._is_crd_missing = True
                    log.error("%s; waiting for it", CRD_MISSING, extra={"event": "crd_missing"})
            await asyncio.sleep(CRD_SECONDS)
        raise AssertionError  # it counts forever


def _pass_over(_: str, __: frozenset[str]) -> None:
    """Take no list: after those of GrpcServices a resync makes one of its own."""

"""Watches Services where GrpcServices name some, and has those judged again whose Service changes.

Whoever names none needs no permission to read them, and has no list of them. What becomes of these watches is followed
apart from those of Pods and GrpcServices: that Services are not seen is the trouble of those who name them, and makes
no replica blind, unready or overdue.

A change of one Service may concern thousands of GrpcServices of its namespace. They are judged one after the other, and
the namespace rests in between, so that it holds up no other.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Any

from grpc_etcd_operator.controller.event_handlers import EventHandlers
from grpc_etcd_operator.core.targets import Target, parse_target
from grpc_etcd_operator.isolation import Isolation, Subject, supervise
from grpc_etcd_operator.kube.client import TARGETS, Client
from grpc_etcd_operator.kube.connecting import Connection
from grpc_etcd_operator.kube.freshness import Freshness, Stream
from grpc_etcd_operator.kube.probing import Prober
from grpc_etcd_operator.sources.kopf_source import Kind, KopfSource
from grpc_etcd_operator.sources.noting import Noting, Resting, identify_raw
from grpc_etcd_operator.sources.reflector import Lister
from grpc_etcd_operator.sources.source import Receiver

LOOK_SECONDS = 1.0  # how soon it is noticed that Services may not be read, or may again. Arbitrary
# A watch may go on over what it has missed, as when an API server is restored from a backup and its versions pass the
# old ones. Pods and GrpcServices are compared once a minute; a Service changes rarely. Arbitrary.
RELIST_SECONDS = 120.0
UNANSWERED_SECONDS = 15.0  # without the first list, until those who wait for it have that in a condition. Arbitrary
# Where one is named of which too little was kept. A tenant may have thousands listed by naming such. Arbitrary.
EARLY_RELIST_SECONDS = 30.0


class Targets:
    """Takes what is known of Services."""

    def __init__(self, handlers: EventHandlers, isolation: Isolation) -> None:
        self._handlers, self._references = handlers, handlers.cluster_cache.references
        self._noting = Noting("grpcservices", self._judge, identify_raw, isolation)
        self._resting = Resting(self._noting, short_seconds=0.0)

    def note(self, kind: str | None, target: Target) -> None:
        """Take a Service's watch event, or (no kind) one that was listed."""
        self._judge_soon((self._references.forget if kind == "DELETED" else self._references.note)(target))

    def take_list(self, namespace: str, listed: frozenset[str]) -> None:
        """Take the UIDs of a complete list in a namespace (empty: in all), each of which has been noted."""
        self._judge_soon(self._references.take_list(namespace, listed))

    def note_fault(self, namespace: str, fault: str | None) -> None:
        """Take why the Services of a namespace (empty: of all) may not be read; None: they may. Empty: it may pass."""
        if fault != "":
            self._judge_soon(self._references.note_fault(namespace, fault or ""))

    def note_unanswered(self, namespace: str, seconds: float) -> None:
        """Take for how long the first list of a namespace (empty: of all) has been waited for."""
        if seconds >= UNANSWERED_SECONDS:
            self._judge_soon(self._references.note_unanswered(namespace, seconds))

    def want_list(self, namespace: str) -> bool:
        """Return whether a Service of a namespace (empty: of any) is named of which only a list shows enough."""
        return self._references.wants_list(namespace)

    def close(self) -> None:
        """Judge nothing any more."""
        self._resting.close()
        self._noting.close()

    def _judge_soon(self, uids: Collection[str]) -> None:
        for service in filter(None, map(self._handlers.cluster_cache.services.get, uids)):
            metadata = {"uid": service.uid, "namespace": service.namespace, "name": service.name}
            self._resting("MODIFIED", {"metadata": metadata})

    def _judge(self, _: str | None, raw: Mapping[str, Any]) -> None:
        self._handlers.follow_reference(raw["metadata"]["uid"])


class TargetWatch:
    """The watches of Services in some namespaces (none: in all). `on_signal` is called for SIGTERM and SIGINT."""

    def __init__(
        self,
        namespaces: Iterable[str],
        connection: Connection,
        handlers: EventHandlers,
        isolation: Isolation,
        on_signal: Callable[[], None],
    ) -> None:
        self._namespaces, self._connection, self._isolation = tuple(namespaces) or ("",), connection, isolation
        self._named, self._on_signal = handlers.named_services, on_signal
        self._targets = Targets(handlers, isolation)
        self.freshness = Freshness(lambda _resource, _namespace: None)

    async def run(self) -> None:
        """Deliver Services until cancelled."""
        note = Noting(TARGETS, self._targets.note, _identify, self._isolation)
        receiver = Receiver(note, self._targets.take_list)
        try:
            async with asyncio.TaskGroup() as group:
                for namespace in self._namespaces:
                    group.create_task(self._watch(namespace, receiver))
                group.create_task(self._probe())
        finally:
            note.close()
            self._targets.close()

    async def _watch(self, namespace: str, receiver: Receiver[Target]) -> None:
        await self._named.wait(namespace)
        run = partial(self._deliver, namespace, receiver)
        async with asyncio.TaskGroup() as group:
            group.create_task(supervise(f"watch of {TARGETS}", run, self._isolation))
            group.create_task(self._look(namespace))

    async def _deliver(self, namespace: str, receiver: Receiver[Target]) -> None:
        stream = self.freshness.stream(TARGETS, namespace)
        session = self._connection.session(self.freshness.trace(), purpose=f"{TARGETS}/{namespace}")
        client = Client(self._connection.server, session)
        lister = Lister(stream, partial(client.list_services, namespace), lambda target: target.uid)
        how = Kind(names=("", "v1", TARGETS), parse=parse_target, is_known=lambda *_: False, rests=True)
        arguments = (self._connection, self.freshness, self._isolation, lister.list_all, self._on_signal)
        relisting = asyncio.create_task(_relist(stream, partial(self._targets.want_list, namespace)))
        try:
            await KopfSource(how, stream, *arguments).run(receiver)
        finally:
            relisting.cancel()
            await client.close()

    async def _look(self, namespace: str) -> None:
        """Look again and again whether Services may be read, and whether they were ever listed."""
        began_at = time.monotonic()
        while True:
            self._targets.note_unanswered(namespace, time.monotonic() - began_at)
            self._targets.note_fault(namespace, self.freshness.blindness(TARGETS, namespace))
            await asyncio.sleep(LOOK_SECONDS)

    async def _probe(self) -> None:
        await self._named.wait("")
        client = Client(self._connection.server, self._connection.session())
        try:
            await supervise("probe", Prober(client, self.freshness).run, self._isolation)
        finally:
            await client.close()


async def _relist(stream: Stream, is_wanted: Callable[[], bool]) -> None:
    """Have a stream begin with a list again and again, earlier where one is wanted."""
    listed_at = time.monotonic()
    while True:
        await asyncio.sleep(EARLY_RELIST_SECONDS)
        if is_wanted() or time.monotonic() - listed_at >= RELIST_SECONDS:
            stream.relist()
            listed_at = time.monotonic()


def _identify(target: Target) -> Subject:
    return Subject(target.uid, namespace=target.namespace, name=target.name)

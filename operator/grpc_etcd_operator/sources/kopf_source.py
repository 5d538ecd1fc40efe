"""A source that is Kopf's handlers: each passes on what it is given and returns, nothing else.

Only `on.event` is used: Kopf then writes nothing to the objects. Kopf ends when a watch fails for good (the CRD is
gone, permission was taken away); the loop here starts it again, forever, while all facts stay in memory. A Kopf that
was started again lists everything again, as it does after a gap in the watch. Each namespace has a Kopf of its own:
what is wrong with one of them ends no other's.

Kopf works through a list one object after the other, each with a task of its own. So whoever has thousands lists them
before Kopf starts (`prepare`); Kopf then watches from that list's version on. What is known all the same is dropped
before it is read.
"""

import asyncio
import logging
import random
import signal
import time
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import aiohttp
import kopf
from aiohttp import ClientResponse

from grpc_etcd_operator.core.backoff import Backoff
from grpc_etcd_operator.isolation import Isolation
from grpc_etcd_operator.kube.connecting import Connection
from grpc_etcd_operator.kube.freshness import SILENCE_SECONDS, Freshness, Stream
from grpc_etcd_operator.kube.paging import LIST_SECONDS
from grpc_etcd_operator.sources.noting import Noting, Resting, identify_raw
from grpc_etcd_operator.sources.source import Receiver

T = TypeVar("T")
log = logging.getLogger(__name__)
RESTARTS = Backoff((1.0, 2.0, 5.0, 10.0), jitter=0.5)
CALM_SECONDS = 60.0  # whatever ran for so long is started again after the shortest pause. Arbitrary
BACKOFFS = (0.2, 0.5, 1.0, 2.0, 2.0, 2.0)
NOBODY = "metadata.name=_"  # no name of an object may be that
FIRST_REQUEST_SECONDS = 60.0  # within which a Kopf that has started lists or watches. Arbitrary
CHUNK = 250  # objects in a page of a list: the head of an answer must come in time


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind(Generic[T]):
    """How one kind of object is watched and read.

    `names` are its group, version and plural. `is_known` says of an event's kind,
    UID and resourceVersion whether there is nothing new in it; `parse` may fail as it likes.
    """

    names: tuple[str, str, str]
    parse: Callable[[Mapping[str, Any]], T]
    is_known: Callable[[str | None, str, str], bool]
    selector: str = ""
    rests: bool = False  # its changes may take long, so that a namespace rests after each


class _NoDiffBase(kopf.DiffBaseStorage):
    """Keeps no last-seen state: Kopf would deep-copy every object for a diff that event handlers never use."""

    def build(self, *, body: kopf.Body, extra_fields: Any = None) -> kopf.BodyEssence:  # noqa: ARG002
        return kopf.BodyEssence({})

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:  # noqa: ARG002
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        pass


class _NoProgress(kopf.ProgressStorage):
    """Keeps no handler progress: event handlers have none."""

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        pass

    def purge(self, **_: Any) -> None:
        pass

    def touch(self, **_: Any) -> None:
        pass

    def clear(self, *, essence: kopf.BodyEssence) -> kopf.BodyEssence:
        return essence


def make_settings(names: tuple[str, str, str], selector: str) -> kopf.OperatorSettings:
    """Trim Kopf to what event handlers need; it halves its CPU and memory."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.queueing.idle_timeout = 0.1
    settings.queueing.exit_timeout = 0.1
    settings.persistence.diffbase_storage = _NoDiffBase()
    settings.persistence.progress_storage = _NoProgress()
    settings.watching.server_timeout = 290
    settings.watching.connect_timeout = 5
    settings.watching.chunk_size = CHUNK
    if selector:
        settings.watching.label_selectors[names] = selector
    # Kopf would go on at the same version, which may be one that never comes; the prober ends it before that.
    settings.watching.inactivity_timeout = 2 * SILENCE_SECONDS
    settings.networking.request_timeout = LIST_SECONDS  # of a list's page; each head has a limit of its own
    settings.networking.connect_timeout = 5
    settings.networking.error_backoffs = BACKOFFS
    settings.process.ultimate_exiting_timeout = None
    return settings


class KopfSource(Generic[T]):
    """Delivers the objects of one kind in one namespace (empty: in all), a stream's, by handlers of Kopf.

    `prepare` is awaited before each start of Kopf. It may wait until there is something to watch, or list all and
    return the list's version (empty: Kopf lists). `on_signal` is called for SIGTERM and SIGINT, which Kopf takes for
    itself.
    """

    def __init__(  # noqa: PLR0913, PLR0917  what to read and how, and all that it stands between
        self,
        how: Kind[T],
        stream: Stream,
        connection: Connection,
        freshness: Freshness,
        isolation: Isolation,
        prepare: Callable[[Receiver[T]], Awaitable[str]],
        on_signal: Callable[[], None],
    ) -> None:
        self._how, self._stream, self._connection, self._freshness = how, stream, connection, freshness
        self._isolation, self._prepare, self._on_signal = isolation, prepare, on_signal

    @property
    def kind(self) -> str:
        """Name the kind as Kubernetes' URLs do."""
        return self._stream.resource

    async def run(self, receiver: Receiver[T]) -> None:
        """Run Kopf, and run it again whenever it ends, once all is prepared; until cancelled."""
        failures = 1
        while True:
            version = await self._prepare(receiver)
            began = time.monotonic()
            try:
                is_asked = await self._run_kopf(receiver, version)
            except Exception as error:  # noqa: BLE001  the loop that retries: whatever ended Kopf, it is started again
                fields = {"of": self.kind, "namespace": self._stream.namespace, "error": _first_line(error)}
                log.warning("Watches ended, restarting them", extra={"event": "watch_restarting", "fields": fields})
                is_asked = False
            is_calm = is_asked or time.monotonic() - began > CALM_SECONDS
            failures = 1 if is_calm else failures + 1
            await asyncio.sleep(0 if is_asked else RESTARTS.after(failures, random.random()))  # noqa: S311  no secret

    async def _run_kopf(self, receiver: Receiver[T], version: str) -> bool:
        """Run Kopf until one of its tasks ends, or the watch must begin with a list; return whether it was that.

        Not `kopf.run_tasks`: at its end that cancels every task of the event loop, ours included.
        """
        asked, listed, askers = asyncio.Event(), Listed(self._stream, version), Askers()
        self._stream.relist = asked.set
        note = Noting(self.kind, make_note(self._how, self._stream, receiver), identify_raw, self._isolation)
        resting = Resting(note)
        tasks = await kopf.spawn_tasks(
            registry=self._make_registry(
                resting if self._how.rests else note, [askers, listed] if version else [askers]
            ),
            settings=make_settings(self._how.names, self._how.selector),
            standalone=True,
            # Unused without peering, but else Kopf looks up the user's name, which a container's user does not have.
            identity="grpc-etcd-operator",  # type: ignore[arg-type]  # its NewType is not public
            clusterwide=not self._stream.namespace,
            namespaces=(self._stream.namespace,) if self._stream.namespace else (),
        )
        take_signals(self._on_signal)  # Kopf has just taken them for itself
        ends = (asked.wait(), listed.is_over.wait(), self._wait_in_vain(time.monotonic()))
        waiting = [asyncio.create_task(each) for each in ends]
        try:
            done, _ = await asyncio.wait([*tasks, *waiting], return_when=asyncio.FIRST_COMPLETED)
            for task in done.difference(waiting):
                task.result()
        finally:
            for each in waiting:
                each.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=5)  # to be cancelled meanwhile is to end: it is not to be swallowed
            askers.cancel()
            resting.close()
            note.close()
        return asked.is_set()

    async def _wait_in_vain(self, began: float) -> None:
        """Return if Kopf, once started, asks for nothing; else never.

        It looks only once what the API server serves. A CRD that was missing just then, for any reason, would not be
        watched when it comes back.
        """
        await asyncio.sleep(FIRST_REQUEST_SECONDS)
        if self._stream.attempted_at >= began:
            await asyncio.Event().wait()
        fields = {"of": self.kind, "namespace": self._stream.namespace, "error": "nothing is watched"}
        log.warning("Watches ended, restarting them", extra={"event": "watch_restarting", "fields": fields})

    def _make_registry(
        self,
        note: Callable[[str | None, Mapping[str, Any]], None],
        middlewares: Sequence[aiohttp.ClientMiddlewareType],
    ) -> kopf.OperatorRegistry:
        """Register the event handler and the login."""
        registry, stream, connection = kopf.OperatorRegistry(), self._stream, self._connection

        async def take_event(event: kopf.RawEvent, **_: Any) -> None:
            version = str(event["object"].get("metadata", {}).get("resourceVersion", ""))
            (stream.note_event if event["type"] else stream.note_version)(version)
            note(event["type"], event["object"])

        async def log_in(**_: Any) -> kopf.AiohttpSession:
            purpose = f"{self.kind}/{stream.namespace}"
            session = connection.session(self._freshness.trace(), purpose=purpose, middlewares=middlewares)
            return kopf.AiohttpSession(server=connection.server, aiohttp_session=session)

        kopf.on.event(*self._how.names, registry=registry, id=self.kind)(take_event)
        kopf.on.login(registry=registry, id="login")(log_in)
        return registry


class Askers:
    """Knows the tasks that send requests, so that none is left when Kopf ends.

    Kopf asks what the API server serves in tasks that it does not end itself. Without an answer they would wait for
    ever, for a login that nobody makes any more.
    """

    def __init__(self) -> None:
        self._tasks: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()

    async def __call__(self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> ClientResponse:
        """Send a request."""
        if task := asyncio.current_task():
            self._tasks.add(task)
        return await handler(request)

    def cancel(self) -> None:
        """End whoever has ever sent one and is still there."""
        for task in self._tasks:
            task.cancel()


class Listed:
    """Answers a list of Kopf's with nothing but the version of the list that has been made before it.

    The API server gives that: a list as of just that version, of objects with a name that none can have. So Kopf
    watches from there, and nothing falls between the two lists. When it wants to list once more (its watch has been
    reported 410, say), `is_over` is set: it is to be started again, after a list of our own.
    """

    def __init__(self, stream: Stream, version: str) -> None:
        self._stream, self._has_answered, self.is_over = stream, False, asyncio.Event()
        self._query = {"resourceVersion": version, "resourceVersionMatch": "Exact", "fieldSelector": NOBODY}

    async def __call__(self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> ClientResponse:
        """Send a request, a list as another one."""
        if not request.url.path.endswith(f"/{self._stream.resource}") or "watch" in request.url.query:
            return await handler(request)
        if self._has_answered:
            fields = {"of": self._stream.resource, "namespace": self._stream.namespace}
            log.warning("Watch expired, relisting", extra={"event": "relisting", "fields": fields})
            self.is_over.set()
            await asyncio.Event().wait()  # until cancelled, with all of Kopf
        request.url = request.url.update_query(self._query)
        response = await handler(request)
        self._has_answered = response.ok
        return response


def make_note(how: Kind[T], stream: Stream, receiver: Receiver[T]) -> Callable[[str | None, Mapping[str, Any]], None]:
    """Make what takes each event as Kopf has it: what is known is dropped, all else is read and passed on."""

    def note(kind: str | None, raw: Mapping[str, Any]) -> None:
        if kind is not None and stream.is_lost:
            return  # it may be of long ago, and a list follows
        metadata = raw["metadata"]
        if not how.is_known(kind, metadata["uid"], metadata.get("resourceVersion", "")):
            receiver.note(kind, how.parse(raw))

    return note


def take_signals(on_signal: Callable[[], None]) -> None:
    """Let SIGTERM and SIGINT end the operator."""
    loop = asyncio.get_running_loop()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, on_signal)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0][:300]

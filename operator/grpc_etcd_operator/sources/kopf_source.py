"""The watch on GrpcServices, through Kopf: the handler notes a fact and returns, nothing else.

Only `on.event` is used: Kopf then writes nothing to the objects. Kopf ends when a watch fails for good (the CRD is
gone, permission was taken away); the loop here starts it anew, for ever, while all facts stay in memory. A Kopf that
was started anew lists everything again, as it does after a gap in the watch. Each namespace has a Kopf of its own: what
is wrong with one of them ends no other's.
"""

import asyncio
import logging
import random
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import kopf

from grpc_etcd_operator.kube.client import GROUP, PLURAL, VERSION
from grpc_etcd_operator.kube.connecting import Connection
from grpc_etcd_operator.kube.freshness import SILENCE_SECONDS, Freshness, Stream

log = logging.getLogger(__name__)
RESTARTS = (1.0, 2.0, 5.0, 10.0)  # seconds; each with up to half of it in addition
CALM_SECONDS = 60.0  # whatever ran for so long is started again after the shortest pause. Arbitrary
BACKOFFS = (0.2, 0.5, 1.0, 2.0, 2.0, 2.0)
CHUNK = 250  # GrpcServices in a page of a list: the head of an answer must come in time


Note = Callable[[str | None, Mapping[str, Any]], None]


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


def make_registry(note: Note, connection: Connection, freshness: Freshness, stream: Stream) -> kopf.OperatorRegistry:
    """Register the event handler and the log-in. `note` takes an event's kind and object, quickly."""
    registry = kopf.OperatorRegistry()

    async def service_event(event: kopf.RawEvent, **_: Any) -> None:
        stream.note_version(str(event["object"].get("metadata", {}).get("resourceVersion", "")))
        note(event["type"], event["object"])

    async def log_in(**_: Any) -> kopf.AiohttpSession:
        session = connection.session(freshness.trace(), purpose=f"{PLURAL}/{stream.namespace}")
        return kopf.AiohttpSession(server=connection.server, aiohttp_session=session)

    kopf.on.event(GROUP, VERSION, PLURAL, registry=registry, id=PLURAL)(service_event)
    kopf.on.login(registry=registry, id="login")(log_in)
    return registry


def make_settings() -> kopf.OperatorSettings:
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
    # Kopf would go on at the same version, which may be one that never comes; the prober ends it before that.
    settings.watching.inactivity_timeout = 2 * SILENCE_SECONDS
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    settings.networking.error_backoffs = BACKOFFS
    settings.process.ultimate_exiting_timeout = None
    return settings


async def watch_for_ever(
    make: Callable[[], kopf.OperatorRegistry],
    wait_until_served: Callable[[], Awaitable[None]],
    stream: Stream,
    on_signal: Callable[[], None],
) -> None:
    """Run Kopf for one namespace, and run it again whenever it ends, once the resources are served."""
    failures = 0
    while True:
        await wait_until_served()
        began = time.monotonic()
        try:
            is_asked = await _run_kopf(make(), stream, on_signal)
        except Exception as error:  # noqa: BLE001  the loop that retries: whatever ended Kopf, it is started anew
            fields = {"namespace": stream.namespace, "error": _first_line(error)}
            log.warning("the watches ended; they start anew", extra={"fields": fields})
            is_asked = False
        is_calm = is_asked or time.monotonic() - began > CALM_SECONDS
        failures = 0 if is_calm else min(failures + 1, len(RESTARTS) - 1)
        await asyncio.sleep(0 if is_asked else RESTARTS[failures] * random.uniform(1.0, 1.5))  # noqa: S311  no secret


async def _run_kopf(registry: kopf.OperatorRegistry, stream: Stream, on_signal: Callable[[], None]) -> bool:
    """Run Kopf until one of its tasks ends, or the watch shall begin with a list; say whether it was that.

    Not `kopf.run_tasks`: at its end that cancels every task of the event loop, ours included.
    """
    asked = asyncio.Event()
    stream.list_anew = asked.set
    tasks = await kopf.spawn_tasks(
        registry=registry,
        settings=make_settings(),
        standalone=True,
        # Unused without peering, but else Kopf looks up the user's name, which a container's user does not have.
        identity="grpc-etcd-operator",  # type: ignore[arg-type]  # its NewType is not public
        clusterwide=not stream.namespace,
        namespaces=(stream.namespace,) if stream.namespace else (),
    )
    take_signals(on_signal)  # Kopf has just taken them for itself
    waiting = asyncio.create_task(asked.wait())
    try:
        done, _ = await asyncio.wait([*tasks, waiting], return_when=asyncio.FIRST_COMPLETED)
        for task in done - {waiting}:
            task.result()
    finally:
        waiting.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=5)  # to be cancelled meanwhile is to end: it is not to be swallowed
    return asked.is_set()


def take_signals(on_signal: Callable[[], None]) -> None:
    """Let SIGTERM and SIGINT end the operator."""
    loop = asyncio.get_running_loop()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, on_signal)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0][:300]

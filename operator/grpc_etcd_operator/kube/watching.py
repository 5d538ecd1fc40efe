"""The watch on GrpcServices, through Kopf: the handler notes a fact and returns, nothing else.

Only `on.event` is used: Kopf then writes nothing to the objects. Kopf ends when a watch fails for good (the CRD is
gone, permission was taken away); the loop here starts it anew, for ever, while all facts stay in memory. A Kopf that
was started anew lists everything again, as it does after a gap in the watch.
"""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

import kopf

from grpc_etcd_operator.kube.client import GROUP, PLURAL, VERSION
from grpc_etcd_operator.kube.connecting import Connection
from grpc_etcd_operator.kube.freshness import Freshness

log = logging.getLogger(__name__)
RESTART_SECONDS = 1.0
BACKOFFS = (0.2, 0.5, 1.0, 2.0, 2.0, 2.0)


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


def make_registry(note: Note, connection: Connection, freshness: Freshness) -> kopf.OperatorRegistry:
    """Register the event handler and the log-in. `note` takes an event's kind and object, quickly."""
    registry = kopf.OperatorRegistry()

    async def service_event(event: kopf.RawEvent, **_: Any) -> None:
        note(event["type"], event["object"])

    async def log_in(**_: Any) -> kopf.AiohttpSession:
        return kopf.AiohttpSession(server=connection.server, aiohttp_session=connection.session(freshness.trace()))

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
    settings.networking.request_timeout = 60
    settings.networking.connect_timeout = 5
    settings.networking.error_backoffs = BACKOFFS
    settings.process.ultimate_exiting_timeout = None
    return settings


async def watch_for_ever(
    make: Callable[[], kopf.OperatorRegistry],
    wait_until_served: Callable[[], Awaitable[None]],
    namespaces: Collection[str],
    on_signal: Callable[[], None],
) -> None:
    """Run Kopf, and run it again whenever it ends, once the resources are served."""
    while True:
        await wait_until_served()
        try:
            await _run_kopf(make(), make_settings(), namespaces, on_signal)
        except Exception as error:  # noqa: BLE001  the loop that retries: whatever ended Kopf, it is started anew
            log.warning("the watches ended; they start anew", extra={"fields": {"error": _first_line(error)}})
        await asyncio.sleep(RESTART_SECONDS)


async def _run_kopf(
    registry: kopf.OperatorRegistry,
    settings: kopf.OperatorSettings,
    namespaces: Collection[str],
    on_signal: Callable[[], None],
) -> None:
    """Run Kopf until one of its tasks ends.

    Not `kopf.run_tasks`: at its end that cancels every task of the event loop, ours included.
    """
    tasks = await kopf.spawn_tasks(
        registry=registry,
        settings=settings,
        standalone=True,
        # Unused without peering, but else Kopf looks up the user's name, which a container's user does not have.
        identity="grpc-etcd-operator",  # type: ignore[arg-type]  # its NewType is not public
        clusterwide=not namespaces,
        namespaces=tuple(namespaces),
    )
    take_signals(on_signal)  # Kopf has just taken them for itself
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait(tasks, timeout=5)


def take_signals(on_signal: Callable[[], None]) -> None:
    """Let SIGTERM and SIGINT end the operator."""
    loop = asyncio.get_running_loop()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, on_signal)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0][:300]

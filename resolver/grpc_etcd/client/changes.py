"""Callbacks about changes of a service: `Registry.on_change`.

They run in one thread per registry, one after the other, so a slow one holds up other callbacks and nothing else; one
that raises is logged and goes on being called. What changes too fast is left out, never the newest. A forked child
inherits none: what calls back there must have been asked for there.
"""

import inspect
import logging
import queue
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Self

from grpc_etcd.registry.snapshot import Snapshot
from grpc_etcd.threads import start_thread

if TYPE_CHECKING:
    from grpc_etcd.discovery.publisher import FollowedService

_LOG = logging.getLogger("grpc_etcd")
Callback = Callable[[Snapshot], object]


class ChangeSubscription:
    """A subscription of `on_change`; `close()`, or the end of a `with` block, ends it. Thread-safe."""

    def __init__(self, callback: Callback, due: "queue.SimpleQueue[ChangeSubscription | None]") -> None:
        self._callback = callback
        self._due = due
        self._stack = ExitStack()
        self._last: Snapshot | None = None
        self._followed: FollowedService | None = None
        self.closed = False

    def __repr__(self) -> str:
        return f"<ChangeSubscription{' closed' if self.closed else ''}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the subscription; does not wait for a callback that is running."""
        self.closed = True
        self._stack.close()

    def start(self, pinned: "AbstractContextManager[FollowedService]") -> None:
        """Begin the subscription with the current snapshot, if it is known."""
        self._followed = self._stack.enter_context(pinned)
        self._stack.enter_context(self._followed.feed.notifying(self._wake))
        self._wake()

    def _wake(self) -> None:
        self._due.put(self)

    def report(self) -> None:
        """Call the callback if there is a newer snapshot."""
        snapshot = self._followed.feed.view.snapshot if self._followed and not self.closed else None
        if snapshot is None or snapshot == self._last:
            return
        self._last = snapshot
        try:
            self._callback(snapshot)
        except BaseException:  # noqa: BLE001  a callback's fault, `sys.exit()` too, concerns that callback
            _LOG.exception("%s: a callback of on_change failed", snapshot.service, extra={"event": "callback_failed"})


class Changes:
    """All callbacks of a registry in one process. Starts its thread with the first one."""

    def __init__(self) -> None:
        self._due: queue.SimpleQueue[ChangeSubscription | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def subscribe(self, pinned: "AbstractContextManager[FollowedService]", callback: Callback) -> ChangeSubscription:
        """Call back from now on."""
        if not callable(callback):
            raise TypeError(f"{callback!r} cannot be called; on_change takes a function of a Snapshot")
        if inspect.iscoroutinefunction(callback):
            raise TypeError(f"{callback!r} is a coroutine function; on asyncio iterate over registry.aio.watch(...)")
        with self._lock:
            if self._thread is None:
                self._thread = start_thread(self._run, name="grpc-etcd-changes")
        subscription = ChangeSubscription(callback, self._due)
        subscription.start(pinned)
        return subscription

    def close(self) -> None:
        """End the thread."""
        self._due.put(None)

    def _run(self) -> None:
        while subscription := self._due.get():
            subscription.report()

"""Messages of a gRPC server's streams without a thread for each. The only place that reaches into grpc's own server.

`grpc.server` runs a stream's handler in a thread until it ends, and reading needs a second one. A handler may be marked
`experimental_non_blocking`: it returns at once, and gets a function that sends. That one waits until a message is out,
and nothing like it is there for reading; so both are done here by batches with a callback, as grpc's own server does
(grpc/_server.py, the same names from 1.66 to 1.85). Callbacks come from the server's thread and must return at once.
Where a future grpc lacks one of these names, `can_do_without_threads` says so, and the server takes threads again.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import grpc
from grpc import _server
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # the stubs leave it out

from grpc_etcd.threads import NO_THREAD, start_thread

_NAMES = (
    "_is_rpc_state_active",
    "_receive_message",
    "_send_message",
    "_RECEIVE_MESSAGE_TOKEN",
    "_SEND_MESSAGE_TOKEN",
)
_NO_FLAGS = 0


def can_do_without_threads() -> bool:
    """Return whether this grpc has what is needed."""
    is_there = all(hasattr(_server, name) for name in _NAMES)
    return is_there and hasattr(cygrpc, "ReceiveMessageOperation") and hasattr(cygrpc, "SendMessageOperation")


def start_server(server: grpc.Server) -> None:
    """Start a server. One that could start no thread is ended: for that thread grpc waits when it frees the server."""
    try:
        server.start()
    except RuntimeError as error:
        _serve_to_the_end(server)
        raise RuntimeError(NO_THREAD.format(name="that of a gRPC server", error=error)) from error


def _serve_to_the_end(server: Any) -> None:
    """Do here what the thread of a server would do while it stops; nothing where this grpc is another one."""
    state = getattr(server, "_state", None)
    names = ("_begin_shutdown_once", "_serve", "_ServerStage")
    if state and all(hasattr(_server, name) for name in names) and state.stage is _server._ServerStage.STARTED:  # noqa: SLF001
        _server._begin_shutdown_once(state)  # noqa: SLF001
        _server._serve(state)  # noqa: SLF001


class Talker(Protocol):
    """Who a stream belongs to. All are called by a thread of grpc, and must return at once."""

    def on_message(self, message: bytes) -> None:
        """Take a request."""

    def on_sent(self) -> None:
        """Record that all that was written is out."""

    def on_end(self) -> None:
        """Record that nothing more will come; may be called twice."""


class Messages(Protocol):
    """One stream's messages. Its methods return at once."""

    def read(self) -> None:
        """Ask for the next request."""

    def write(self, message: bytes) -> None:
        """Send a message, once those before it are out."""

    def is_sending(self) -> bool:
        """Return whether something that was written is not out yet: the client is slow, or does not read."""

    def finish(self, exhausted: str = "") -> None:
        """End the stream from this side; with RESOURCE_EXHAUSTED where the client asks for too much, which is given."""


def _note_exhausted(context: grpc.ServicerContext, exhausted: str) -> None:
    if exhausted:
        context.set_code(grpc.StatusCode.RESOURCE_EXHAUSTED)
        context.set_details(exhausted)


class BatchedMessages:
    """A stream without a thread, of a handler that is marked `experimental_non_blocking`."""

    def __init__(
        self, requests: Any, context: grpc.ServicerContext, send: Callable[[bytes | None], None], talker: Talker
    ) -> None:
        self._state: Any = requests._state  # noqa: SLF001 - see the module's docstring
        self._call: Any = requests._call  # noqa: SLF001
        self._send = send
        self._context = context
        self._talker = talker
        self._outbox: deque[bytes] = deque()
        self._is_writing = False
        context.send_initial_metadata(())
        if not context.add_callback(talker.on_end):
            talker.on_end()

    def read(self) -> None:
        """Ask for the next request."""
        with self._state.condition:
            if self._is_active():
                self._start(cygrpc.ReceiveMessageOperation(_NO_FLAGS), self._received, _server._RECEIVE_MESSAGE_TOKEN)  # noqa: SLF001

    def write(self, message: bytes) -> None:
        """Send a message, once those before it are out."""
        with self._state.condition:
            self._outbox.append(message)
            self._write_next()

    def is_sending(self) -> bool:
        """Return whether something that was written is not out yet."""
        with self._state.condition:
            return self._is_writing or bool(self._outbox)

    def finish(self, exhausted: str = "") -> None:
        """End the stream from this side."""
        _note_exhausted(self._context, exhausted)
        with self._state.condition:
            if self._is_active():
                self._send(None)

    def _is_active(self) -> bool:
        return bool(_server._is_rpc_state_active(self._state))  # noqa: SLF001

    def _start(self, operation: Any, tag: Callable[[Any], Any], token: str) -> None:
        self._call.start_server_batch((operation,), tag)
        self._state.due.add(token)

    def _write_next(self) -> None:
        if self._outbox and not self._is_writing and self._is_active():
            self._is_writing = True
            operation = cygrpc.SendMessageOperation(self._outbox.popleft(), _NO_FLAGS)
            self._start(operation, self._sent, _server._SEND_MESSAGE_TOKEN)  # noqa: SLF001

    def _sent(self, event: Any) -> Any:
        with self._state.condition:
            self._is_writing = False
            done = _server._send_message(self._state, _server._SEND_MESSAGE_TOKEN)(event)  # noqa: SLF001
            self._write_next()
            is_sending = self._is_writing
        if not is_sending:
            self._talker.on_sent()
        return done

    def _received(self, event: Any) -> Any:
        with self._state.condition:
            done = _server._receive_message(self._state, self._call, None)(event)  # noqa: SLF001
            request, self._state.request = self._state.request, None
        if request is None:
            self._talker.on_end()
        else:
            self._talker.on_message(request)
        return done


class ThreadedMessages:
    """A stream with a thread that reads; the handler's own sends what `sent` gives."""

    def __init__(self, requests: Iterator[bytes], context: grpc.ServicerContext, talker: Talker) -> None:
        self._requests = requests
        self._context = context
        self._talker = talker
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._may_read = threading.Semaphore(0)
        start_thread(self._run, name="grpc-etcd-ads-read")

    def read(self) -> None:
        """Ask for the next request."""
        self._may_read.release()

    def write(self, message: bytes) -> None:
        """Send a message, once those before it are out."""
        self._outbox.put(message)

    def is_sending(self) -> bool:
        """Return whether something that was written is not taken yet."""
        return not self._outbox.empty()

    def finish(self, exhausted: str = "") -> None:
        """End the stream from this side."""
        _note_exhausted(self._context, exhausted)
        self._outbox.put(None)

    def sent(self) -> Iterator[bytes]:
        """Return the messages to send, until the stream is over."""
        while True:
            if self._outbox.empty():
                self._talker.on_sent()
            message = self._outbox.get()
            if message is None:
                return
            yield message

    def _run(self) -> None:
        try:
            while self._may_read.acquire():
                self._talker.on_message(next(self._requests))
        except StopIteration:
            pass
        except Exception as error:  # grpc raises a bare Exception when the stream is cancelled
            if not isinstance(error, grpc.RpcError) and type(error) is not Exception:
                raise
        finally:
            self._talker.on_end()

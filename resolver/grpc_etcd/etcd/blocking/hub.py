"""The watch hub for threads: all watches of a client over one stream. A thin driver of `etcd.hub`, without decisions.

One thread owns the core and calls all consumers; what it must not wait for has threads of its own: the replies of the
stream, and the unary calls. They hand on what they find through the inbox.
"""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import grpc

from grpc_etcd.etcd import errors
from grpc_etcd.etcd.blocking.connection import Connection
from grpc_etcd.etcd.blocking.streams import STREAM_ENDED, Requests
from grpc_etcd.etcd.hub import commands
from grpc_etcd.etcd.hub.core import Core
from grpc_etcd.etcd.hub.driver import HubDriver
from grpc_etcd.etcd.hub.subscription import Subscription
from grpc_etcd.etcd.list_watch import watch_method
from grpc_etcd.etcd.model import WatchUpdate
from grpc_etcd.etcd.translating import translate
from grpc_etcd.threads import contain, start_thread

CALLERS = 2  # threads for unary calls, so as many listings at a time
LONGEST_SLEEP_SECONDS = 3600.0  # arbitrary; a wait may not be endless

Note: TypeAlias = Callable[[], None]


class Session:
    """One watch stream, from its opening to its end; read by a thread of its own, hung up by any."""

    def __init__(self, number: int, connection: Connection, requests: Requests) -> None:
        self.number, self._connection, self._requests = number, connection, requests
        self.stream: Any = None
        self._is_over = False

    def read(self, on_reply: Callable[[Any], None]) -> errors.EtcdError:
        """Open the stream and read it to its end; return why it ended."""
        try:
            self.stream = self._connection.stream(watch_method(), self._requests)
            if not self.stream.add_callback(self._requests.close):
                self._requests.close()  # grpcio calls nobody back for a call that has ended already
            if self._is_over:
                self._connection.hang_up(self.stream)
            for reply in self.stream:
                on_reply(reply)
        except errors.EtcdError as error:
            self._requests.close()
            return error
        except grpc.RpcError as error:
            return translate(error)
        return errors.Unavailable(STREAM_ENDED)

    def hang_up(self) -> None:
        """End the stream, and with it the reading."""
        self._is_over = True
        if self.stream is not None:
            self._connection.hang_up(self.stream)


class WatchHub(HubDriver[Connection]):
    """Follows ranges of keys, each for its own consumer, over one stream. All methods may be called from any thread.

    `on_update` is called from one thread of this object; while it lasts no other consumer receives anything. When it
    fails, `on_error` is called with it (without one it is logged), and that range is listed again after a pause.
    """

    def __init__(
        self,
        connection: Connection,
        progress_seconds: float,
        on_error: Callable[[bytes, Exception], None] | None = None,
    ) -> None:
        super().__init__(connection, progress_seconds, on_error, CALLERS)
        self._inbox: queue.SimpleQueue[Note] = queue.SimpleQueue()
        self._calls: queue.SimpleQueue[commands.Ask | None] = queue.SimpleQueue()
        self._requests = Requests(())
        self._session: Session | None = None
        self._readers: set[threading.Thread] = set()
        self._start_lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._callers: list[threading.Thread] = []
        self._is_quiet = threading.Event()
        self._none_calls = threading.Condition()
        self._may_call = True
        self._calling = 0

    def note(self, note: Callable[[Core, float], None]) -> None:
        """Let the core note something: for the subscriptions."""
        self._inbox.put(lambda: note(self._core, time.monotonic()))

    def ask_keys(self, prefix: bytes, limit: int, on_keys: Callable[[Sequence[bytes]], None]) -> None:
        """Read the first keys of a prefix once, for the thread that calls the consumers; none where that fails."""
        self._inbox.put(lambda: self._core.ask_keys(prefix, limit, on_keys))

    def run(self, work: Callable[[], object]) -> None:
        """Have `work` done by the thread that calls the consumers; a fault in it is delivered to `on_error`."""

        def guarded() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001  whatever it is, all watches go on
                self._on_error(b"", contain(error))

        self._start()
        self._inbox.put(guarded)

    def hang_up(self) -> None:
        """Begin to leave the network, as before a fork; `wait_quiet` waits for it."""
        self._is_quiet.clear()
        self._inbox.put(self._leave)

    def wait_quiet(self, timeout_seconds: float) -> bool:
        """Wait until no thread is in gRPC any more; False when time is up first."""
        return self._thread is None or self._is_quiet.wait(timeout_seconds)

    def go_on(self) -> None:
        """Enter the network again; each range goes on where it was."""
        self._inbox.put(self._enter)

    def close(self) -> None:
        """End the stream and the threads. May be called twice, and from within a callback."""
        self.begin_close()
        thread = self._thread
        if thread and thread is not threading.current_thread():
            thread.join()

    def begin_close(self) -> None:
        """End the stream and the threads, and wait for nobody. No news begin after this."""
        with self._start_lock:
            self._is_closed = True
        with self._none_calls:
            self._none_calls.notify_all()
        self._inbox.put(lambda: None)
        if self._thread is None:
            self._end_callers()

    def _end_callers(self) -> None:
        for _ in self._callers:
            self._calls.put(None)

    def _leave(self) -> None:
        self._core.suspend()
        self._end_stream()
        with self._none_calls:
            self._may_call = False
        for reader in self._readers:
            reader.join()
        with self._none_calls:
            self._none_calls.wait_for(lambda: not self._calling)
        self._is_quiet.set()

    def _enter(self) -> None:
        with self._none_calls:
            self._may_call = True
            self._none_calls.notify_all()
        self._core.resume()

    def _follow(self, key: bytes, end: bytes, on_update: Callable[[WatchUpdate], None]) -> Subscription:
        watch = self._core.follow(key, end, on_update)
        self._start()
        self._inbox.put(lambda: self._core.add(watch))
        return Subscription(watch, self)

    def _start(self) -> None:
        with self._start_lock:
            if self._is_closed:
                raise errors.Closed("this watch hub has been closed")
            while len(self._callers) < CALLERS:  # some may have been started when no further thread might be
                self._callers.append(self._spawn(self._make_calls))
            if self._thread is None:
                self._thread = self._spawn(self._run)

    def _spawn(self, run: Callable[[], None]) -> threading.Thread:
        return start_thread(run, name="grpc-etcd-watch-hub")

    def _run(self) -> None:
        try:
            while not self._is_closed:
                self._take(self._next_note())
        finally:
            self._end_stream()
            self._end_callers()
            for reader in self._readers:
                reader.join()

    def _next_note(self) -> Note:
        left = min(self._core.wake_at() - time.monotonic(), LONGEST_SLEEP_SECONDS)
        try:
            return self._inbox.get(timeout=left) if left > 0 else self._inbox.get_nowait()
        except queue.Empty:
            return lambda: None

    def _take(self, note: Note) -> None:
        """Let the core note something, and do what follows. A fault in here must not end the hub."""
        try:
            note()
            self._advance()
        except BaseException as error:  # noqa: BLE001  whatever it is, all other watches go on
            self._abandon(contain(error))

    def _write(self, request: Any) -> None:
        self._requests.put(request)

    def _begin_to_ask(self, ask: commands.Ask) -> None:
        self._calls.put(ask)

    def _open(self, number: int) -> None:
        session = self._session = Session(number, self._connection, self._requests)
        self._readers = {reader for reader in self._readers if reader.is_alive()}
        try:
            self._readers.add(self._spawn(lambda: self._read(session)))
        except RuntimeError as error:  # no further thread may be started; the core has more commands than this one
            failure = errors.Unavailable(str(error))
            self._inbox.put(lambda: self._core.broken(number, failure, time.monotonic()))

    def _end_stream(self, fault: errors.EtcdError | None = None) -> None:
        if self._session and fault:
            self._connection.report(self._session.stream, fault)
        if self._session:
            self._session.hang_up()
        self._session, self._requests = None, Requests(())

    def _read(self, session: Session) -> None:
        number = session.number
        try:
            error = session.read(lambda reply: self._receive(number, reply))
        except Exception as unexpected:  # noqa: BLE001  a reply that cannot be read
            self._on_error(b"", unexpected)
            error = errors.EtcdError(f"unexpected: {unexpected}")
            session.hang_up()
        self._connection.report(session.stream, error)
        self._inbox.put(lambda: self._core.broken(number, error, time.monotonic()))

    def _receive(self, number: int, reply: Any) -> None:
        self._inbox.put(lambda: self._core.received(number, reply, time.monotonic()))

    def _make_calls(self) -> None:
        while (ask := self._calls.get()) is not None:
            with self._none_calls:
                self._none_calls.wait_for(lambda: self._may_call or self._is_closed)
                self._calling += 1
            try:
                self._inbox.put(self._ask(ask))
            finally:
                with self._none_calls:
                    self._calling -= 1
                    self._none_calls.notify_all()

    def _ask(self, ask: commands.Ask) -> Note:
        try:
            answer = self._connection.run(ask.steps)
        except errors.EtcdError as error:
            failure = error
        except Exception as unexpected:  # noqa: BLE001  a reply that cannot be read concerns whoever asked
            self._on_error(b"", unexpected)
            failure = errors.EtcdError(f"unexpected: {unexpected}")
        else:
            return lambda: ask.answered(answer, time.monotonic())
        return lambda: ask.failed(failure, time.monotonic())

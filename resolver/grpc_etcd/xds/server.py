"""The ADS server: one bidirectional stream per client, bytes in and bytes out, and one thread for all of them.

It must be the synchronous `grpc.server`: a second asyncio loop beside an application's own meets grpc/grpc#25364, and
would be woken by each of its calls. What to say is decided by `AdsStream`; this module moves bytes, and reports the
resource cache who follows what.
"""

import itertools
import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Protocol

import grpc

from grpc_etcd.threads import start_thread
from grpc_etcd.xds import resources, streams
from grpc_etcd.xds.admission import MOST_NAMES, Admission, Limits, client_of
from grpc_etcd.xds.ads_stream import AdsStream, Refusal, Resources
from grpc_etcd.xds.daemons import DaemonExecutor
from grpc_etcd.xds.names import ServiceName
from grpc_etcd.xds.resources import DiscoveryRequest
from grpc_etcd.xds.service import Gap, ServiceResources
from grpc_etcd.xds.wire import MalformedMessageError

_LOG = logging.getLogger("grpc_etcd")
_SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"
_METHOD = "StreamAggregatedResources"
_LARGEST_REQUEST_BYTES = 64 << 20  # a client that follows 10,000 services names them all in each request
_OTHERS_LARGEST_REQUEST_BYTES = 16 << 20  # of a client that may not follow as many
_REPORT_SECONDS = 60.0  # between two lines about clients that ask for too much. Arbitrary
# Arbitrary: for how long a stream begins to follow services before the others have their turn. Anybody may name any
# number of them, and each takes a millisecond or more.
_TURN_SECONDS = 0.01
# Arbitrary: of how many services one of many clients awaits the first news: what others follow waits for all of that.
_MOST_AWAITED = 50
_STOP_SECONDS = 5.0  # arbitrary: how long a thread may take to end what it is at


class TooMuchError(Exception):
    """A client names more than any needs."""


class SharedCache(Protocol):
    """Where the resources of services hang, and who is notified when they change. Thread-safe."""

    def look_up(self, owner: ServiceName) -> Resources:
        """Return the present resources; those of an unknown service are empty."""

    def join(self, owner: ServiceName, listener: "Listener") -> bool:
        """Report `listener` from now on when the service changes; return whether nothing is known of it yet.

        The listener is woken then, soon, whatever becomes of the service.
        """

    def leave(self, owner: ServiceName, listener: "Listener") -> None:
        """Undo `join`."""

    def refused(self, refusals: Iterable[Refusal]) -> None:
        """Record that a client refused what it was sent."""


class Listener(Protocol):
    """What is sent that something has changed; it asks for the news itself."""

    def wake(self, owner: ServiceName | None = None) -> None:
        """Record that what is said of a service (None: of any) may have changed. Returns at once."""

    def has_answered(self) -> bool:
        """Return whether it has taken, or refused, all that there is to say; any thread may ask."""


class AdsServer:
    """A listening ADS server; `address` is a gRPC address such as `unix:/path` or `127.0.0.1:0`.

    `threads`: give each stream threads of its own, as must be where grpc does not allow anything better.
    `serves_others`: clients are other processes. They keep what an earlier server has sent them until as much is known
    here, and each awaits the first news of a few services at a time; it asks for the others then. They may follow as
    many services as `limits` says; `on_left` is called, by the server's thread, when a stream follows one no more.
    """

    def __init__(  # noqa: PLR0913 - each is decided by whoever serves
        self,
        address: str,
        resource_cache: SharedCache,
        *,
        threads: bool | None = None,
        serves_others: bool = False,
        limits: Limits = Limits(),  # noqa: B008 - a constant
        on_left: Callable[[ServiceName], None] = lambda _: None,
        on_stop: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_stop = on_stop
        self._sender = _Sender()
        self._largest_bytes = _OTHERS_LARGEST_REQUEST_BYTES if serves_others else _LARGEST_REQUEST_BYTES
        gate = _Gate(self._sender, Admission(limits), on_left) if serves_others else None
        self._make_stream = partial(_Stream, resource_cache, self._sender, gate)
        try:
            self._server = self._make_server(
                threads=not streams.can_do_without_threads() if threads is None else threads
            )
            self.port = self._server.add_insecure_port(address)
            streams.start_server(self._server)
        except BaseException:
            self._sender.stop()
            raise

    def _make_server(self, *, threads: bool) -> grpc.Server:
        server = grpc.server(
            DaemonExecutor("grpc-etcd-ads"),  # type: ignore[arg-type] # any Executor will do
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", self._largest_bytes),
                ("grpc.max_send_message_length", -1),
            ],
        )
        behavior: Any = self._talk_in_threads if threads else self._talker()
        handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(behavior)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, {_METHOD: handler}),))
        return server

    def stop(self) -> None:
        """End all streams and close the port."""
        self._server.stop(None).wait()
        self._sender.stop()
        self._on_stop()

    def wait(self) -> None:
        """Block until the server is stopped."""
        self._server.wait_for_termination()

    def _talker(self) -> Callable[..., None]:
        def talk(requests: Any, context: grpc.ServicerContext, send: Callable[[bytes | None], None]) -> None:
            stream = self._make_stream(context.peer())
            stream.begin(streams.BatchedMessages(requests, context, send, stream))

        talk.experimental_non_blocking = True  # type: ignore[attr-defined]  # grpcio reads it
        return talk

    def _talk_in_threads(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        stream = self._make_stream(context.peer())
        messages = streams.ThreadedMessages(requests, context, stream)
        stream.begin(messages)
        return messages.sent()


class _Gate:
    """Lets streams of other processes follow as many services as there may be. For the speaker's thread.

    What a stream may not follow is answered as a service without endpoints, with the reason, so that all else that the
    client follows goes on; it is followed as soon as there is room.
    """

    def __init__(self, sender: "_Sender", admission: Admission, on_left: Callable[[ServiceName], None]) -> None:
        self._sender, self._admission, self._on_left = sender, admission, on_left
        self.waiting: set[_Stream] = set()
        self._report_at = 0.0
        per_client, in_all = admission.limits
        reason = f"this xDS server lets a client follow {per_client} services, and all of them {in_all}"
        self.nothing = ServiceResources(clusters={}, reason=reason, gap=Gap.OWN)

    def admits(self, stream: "_Stream", owner: ServiceName) -> bool:
        if self._admission.admit(stream.client, owner):
            return True
        self.waiting.add(stream)
        self._report(stream.client, owner)
        return False

    def left(self, stream: "_Stream", owner: ServiceName) -> None:
        self._admission.release(stream.client, owner)
        self._on_left(owner)
        for each in self.waiting:
            self._sender.give(each)

    def room(self, stream: "_Stream") -> int:
        return self._admission.room(stream.client)

    def _report(self, client: str, owner: ServiceName) -> None:
        if (now := time.monotonic()) < self._report_at:
            return
        self._report_at = now + _REPORT_SECONDS
        _LOG.warning(
            "Clients ask for more services than are followed, such as %s for %s; %s (--max-services-per-client, "
            "--max-services). %s are followed now",
            client,
            owner.service,
            self.nothing.reason,
            len(self._admission),
            extra={"event": "services_limited"},
        )


class _Stream:
    """One client. Everything but `wake`, `on_message`, `on_sent` and `on_end` is called by the speaker."""

    def __init__(self, resource_cache: SharedCache, sender: "_Sender", gate: _Gate | None, peer: str) -> None:
        self._resource_cache = resource_cache
        self._sender = sender
        self._gate = gate
        self.client = client_of(peer, self)
        self._turned_away: set[ServiceName] = set()  # those that may not be followed for now
        serves_others = gate is not None
        self._state = AdsStream(self._look_up, spares_earlier=serves_others)
        self._inbox: deque[bytes] = deque()
        self._messages: streams.Messages | None = None
        self._ended = False
        self._woken: deque[ServiceName | None] = deque()
        self._changed: set[ServiceName] | None = set()  # None: any service
        self._is_held_back = False
        self.is_speaking = False
        self._owners: frozenset[ServiceName] = frozenset()
        self._to_join: set[ServiceName] = set()  # those of them that are to be followed yet
        self._most_awaited = _MOST_AWAITED if serves_others else math.inf
        self._awaited: set[ServiceName] = set()  # those of them that are followed, and nothing was put up yet
        self.is_due = False

    def begin(self, messages: streams.Messages) -> None:
        self._messages = messages
        messages.read()
        self._sender.give(self)  # for an end that came before

    def wake(self, owner: ServiceName | None = None) -> None:
        self._woken.append(owner)
        self._sender.give(self)

    def has_answered(self) -> bool:
        if self.is_due or self.is_speaking:
            return False
        is_reported = not (self._is_held_back or self._changed is None or self._changed)
        return self._ended or (is_reported and self._state.is_answered)

    def on_message(self, message: bytes) -> None:
        self._inbox.append(message)
        self._sender.give(self)

    def on_sent(self) -> None:
        if self._is_held_back:
            self._sender.give(self)

    def on_end(self) -> None:
        self._ended = True
        self._sender.give(self)

    def send_all(self) -> None:
        """Take what has come in, and answer; what is new before the last answer is out, is sent with the next."""
        if self._ended or self._messages is None:
            self._leave()
            return
        while self._inbox:
            self._receive(resources.read_request(self._inbox.popleft()))
            self._messages.read()
        self._follow(self._state.owners)
        self._take_changes()
        self._join_for_a_turn()
        self._is_held_back = True  # before the look: what gets out in between wakes us
        if not self._messages.is_sending():
            self._is_held_back = False
            changed, self._changed = self._changed, set()
            for reply in self._state.replies(changed):
                self._messages.write(reply)
        if refusals := self._state.take_refusals():
            self._resource_cache.refused(refusals)

    def _receive(self, request: DiscoveryRequest) -> None:
        if self._gate and len(request.names) > MOST_NAMES:
            raise TooMuchError(f"a request names {len(request.names)} resources; at most {MOST_NAMES} may be named")
        self._state.receive(request)

    def _look_up(self, owner: ServiceName) -> Resources:
        if self._gate and owner in self._turned_away:
            return self._gate.nothing
        return self._resource_cache.look_up(owner)

    def _take_changes(self) -> None:
        while self._woken:
            owner = self._woken.popleft()
            if owner is None:
                self._awaited.clear()
                self._changed = None
                continue
            self._awaited.discard(owner)
            if self._changed is not None:
                self._changed.add(owner)

    def fail(self, exhausted: str = "") -> None:
        """End after an error: the client comes back and asks for everything again."""
        self._ended = True
        self._leave(exhausted)

    def _leave(self, exhausted: str = "") -> None:
        self._follow(frozenset())
        if self._messages:
            self._messages.finish(exhausted)

    def _follow(self, owners: frozenset[ServiceName]) -> None:
        """Record what the client follows now; what is new is followed in turns."""
        if owners is self._owners:  # what a client follows seldom changes, and may be thousands of services
            return
        gone, new = self._owners - owners, owners - self._owners
        self._owners = owners
        joined = gone - self._to_join - self._turned_away
        self._to_join = self._to_join - gone | new
        self._awaited -= gone
        self._turned_away -= gone
        if self._gate and not self._turned_away:
            self._gate.waiting.discard(self)
        for owner in joined:
            self._resource_cache.leave(owner, self)
            if self._gate:
                self._gate.left(self, owner)

    def _join_for_a_turn(self) -> None:
        """Begin to follow what is new, a part at a time: the rest waits for news, or behind the other streams."""
        if self._gate and self._turned_away:
            some = set(itertools.islice(self._turned_away, self._gate.room(self)))
            self._turned_away -= some
            self._to_join |= some
            if not self._turned_away:
                self._gate.waiting.discard(self)
        turn_ends_at = time.monotonic() + _TURN_SECONDS
        while self._to_join and len(self._awaited) < self._most_awaited:
            if time.monotonic() > turn_ends_at:
                self._sender.give(self)
                return
            owner = self._to_join.pop()
            if self._gate and not self._gate.admits(self, owner):
                self._turned_away.add(owner)
            elif self._resource_cache.join(owner, self):
                self._awaited.add(owner)
            if self._changed is not None:
                self._changed.add(owner)  # nobody woke us for what has become of it since it was looked up


class _Sender:
    """The thread that speaks for all streams of a server, one after the other.

    It starts ahead of the server: what is given to it comes from gRPC's own thread, which serves nobody any more once
    an exception has ended it, such as that no further thread may be started.
    """

    def __init__(self) -> None:
        self._due: queue.SimpleQueue[_Stream | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread = start_thread(self._run, name="grpc-etcd-ads")

    def give(self, stream: _Stream) -> None:
        """Have a stream speak soon; any thread may call it."""
        with self._lock:
            if stream.is_due:
                return
            stream.is_due = True
        self._due.put(stream)

    def stop(self) -> None:
        """End the thread."""
        self._due.put(None)
        if self._thread is not threading.current_thread():
            self._thread.join(_STOP_SECONDS)

    def _run(self) -> None:
        while stream := self._due.get():
            stream.is_speaking = True  # before it is no longer due: whoever asks finds one or the other
            stream.is_due = False
            try:
                stream.send_all()
            except (MalformedMessageError, UnicodeDecodeError):
                self._end(stream)  # whoever this is speaks no xDS
            except TooMuchError as error:
                self._end(stream, str(error))
            except Exception:  # noqa: BLE001 - logged; an error of one stream ends that stream
                _LOG.exception("Closing an xDS stream after an error", extra={"event": "unexpected_error"})
                self._end(stream)
            finally:
                stream.is_speaking = False

    def _end(self, stream: _Stream, exhausted: str = "") -> None:
        try:
            stream.fail(exhausted)
        except Exception:  # noqa: BLE001 - logged; the thread speaks for the other streams too
            _LOG.exception("An xDS stream did not close cleanly", extra={"event": "unexpected_error"})

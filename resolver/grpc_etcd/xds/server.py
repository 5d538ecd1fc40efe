"""The ADS server: one bidirectional stream per client, bytes in and bytes out.

It must be the synchronous `grpc.server`: a second asyncio loop beside an application's own meets grpc/grpc#25364. What
to say is decided by `Conversation`; this module moves bytes, and tells the board who follows what.
"""

import queue
import threading
from collections.abc import Iterator
from typing import Protocol

import grpc

from grpc_etcd.xds import resources
from grpc_etcd.xds.conversation import Conversation
from grpc_etcd.xds.daemons import DaemonExecutor
from grpc_etcd.xds.names import ServiceName
from grpc_etcd.xds.service import ServiceResources
from grpc_etcd.xds.wire import MalformedMessageError

_SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"
_METHOD = "StreamAggregatedResources"
_LARGEST_REQUEST_BYTES = 64 << 20  # a client that follows 10,000 services names them all in each request


class Board(Protocol):
    """Where the resources of services hang, and who is told when they change. Thread-safe."""

    def look_up(self, owner: ServiceName) -> ServiceResources:
        """Give the present resources; those of an unknown service are empty."""

    def join(self, owner: ServiceName, listener: "Listener") -> None:
        """Tell `listener` from now on when the service changes."""

    def leave(self, owner: ServiceName, listener: "Listener") -> None:
        """Undo `join`."""

    def refused(self, owners: frozenset[ServiceName], reason: str) -> None:
        """Take note that a client refused what it was told."""


class Listener(Protocol):
    """What is told that something has changed; it asks for the news itself."""

    def wake(self) -> None:
        """Return at once."""


class AdsServer:
    """A listening ADS server; `address` is a gRPC address such as `unix:/path` or `127.0.0.1:0`."""

    def __init__(self, address: str, board: Board) -> None:
        self._board = board
        self._server = grpc.server(
            DaemonExecutor("grpc-etcd-ads"),  # type: ignore[arg-type] # any Executor will do
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", _LARGEST_REQUEST_BYTES),
                ("grpc.max_send_message_length", -1),
            ],
        )
        handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(self._talk)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, {_METHOD: handler}),))
        self.port = self._server.add_insecure_port(address)
        self._server.start()

    def stop(self) -> None:
        """End all streams and close the port."""
        self._server.stop(None).wait()

    def wait(self) -> None:
        """Block until the server is stopped."""
        self._server.wait_for_termination()

    def _talk(self, requests: Iterator[bytes], _: grpc.ServicerContext) -> Iterator[bytes]:
        stream = _Stream(self._board)
        threading.Thread(target=stream.read, args=(requests,), name="grpc-etcd-ads-read", daemon=True).start()
        return stream.replies()


class _Stream:
    """One client: a thread reads its requests, another sends what the conversation says."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._conversation = Conversation(board.look_up)
        self._inbox: queue.SimpleQueue[resources.DiscoveryRequest | None] = queue.SimpleQueue()
        self._ended = False
        self._joined: frozenset[ServiceName] = frozenset()

    def wake(self) -> None:
        self._inbox.put(None)

    def read(self, requests: Iterator[bytes]) -> None:
        try:
            for data in requests:
                self._inbox.put(resources.read_request(data))
        except (grpc.RpcError, MalformedMessageError, UnicodeDecodeError):
            pass  # the client is gone, or is none: either way this stream is over
        except Exception as error:  # grpc raises a bare Exception when the stream is cancelled
            if type(error) is not Exception:
                raise
        finally:
            self._ended = True
            self.wake()

    def replies(self) -> Iterator[bytes]:
        try:
            while self._receive():
                self._follow()
                yield from self._conversation.replies()
        finally:
            self._ended = True
            for owner in self._joined:
                self._board.leave(owner, self)

    def _receive(self) -> bool:
        """Wait for news and take all that is there; False when the stream is over."""
        request = self._inbox.get()
        while True:
            if request is not None:
                self._take(request)
            try:
                request = self._inbox.get_nowait()
            except queue.Empty:
                return not self._ended

    def _take(self, request: resources.DiscoveryRequest) -> None:
        if request.refusal:
            self._board.refused(self._conversation.owners, request.refusal)
        self._conversation.receive(request)

    def _follow(self) -> None:
        owners = self._conversation.owners
        for owner in owners - self._joined:
            self._board.join(owner, self)
        for owner in self._joined - owners:
            self._board.leave(owner, self)
        self._joined = owners

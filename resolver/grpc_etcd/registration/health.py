"""Register a server only while its own health service (grpc.health.v1) says SERVING.

The health service is asked over the wire, as a load balancer would ask it: so any implementation will do, the server
may be a sync or an asyncio one, and TLS on its ports is no matter, for the way there is a private socket of its own.
"""

import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Any

import grpc

from grpc_etcd.threads import check_threads, start_thread
from grpc_etcd.xds.sockets import choose_address

_LOG = logging.getLogger("grpc_etcd")

WATCH = "/grpc.health.v1.Health/Watch"
# HealthCheckResponse: field 1, a varint.
SERVING = b"\x08\x01"
SERVICE_UNKNOWN = b"\x08\x03"
RETRY_SECONDS = 1.0
STREAM_THREADS = 1  # of grpcio, for a channel's first stream
NO_HEALTH_SERVICE = (
    "%s: the server has no health service for %r, so it is not registered; "
    "add one (grpc_health.v1, HealthServicer.Watch) before start(), or bind without health="
)

REFUSED = (
    "%s: the server rejects the call to its own health service (%s: %s), so it stays registered or unregistered as it "
    "is: allow " + WATCH + ", for example in an interceptor that authenticates callers"
)
# How a stream ends that the server ends, or that is ended here: it says nothing of the health.
PASSING = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


def encode_request(service: str) -> bytes:
    """Encode a HealthCheckRequest: field 1, a string."""
    data = service.encode()
    length, size = len(data), bytearray()
    while length >= 0x80:  # noqa: PLR2004 (base 128 varint)
        size.append(length & 0x7F | 0x80)
        length >>= 7
    return b"\x0a" + bytes([*size, length]) + data if data else b""


class HealthSocket:
    """A private socket on which the server can be asked."""

    def __init__(self) -> None:
        self._folder, self.address = choose_address("health.sock")

    def close(self) -> None:
        """Remove the socket."""
        if self._folder:
            self._folder.remove()


class HealthWatch:
    """Follows a health service from `start` to `close`; `on_change` is called from a thread of this object."""

    def __init__(self, name: str, address: str, service: str, on_change: Callable[[bool], None]) -> None:
        self._name = name
        self._service = service
        self._on_change = on_change
        self._closed = threading.Event()
        self._channel = grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)])
        self._is_reported = self._is_refused = False

    def start(self) -> None:
        """Begin to follow."""
        start_thread(self._run, name="grpc-etcd-health")

    def close(self) -> None:
        """Follow no more. May be called twice."""
        self._closed.set()
        self._channel.close()

    def _run(self) -> None:
        while not self._closed.is_set():
            with contextlib.suppress(ValueError):  # grpcio's answer on a channel that was closed meanwhile
                self._follow()
            self._closed.wait(RETRY_SECONDS)

    def _follow(self) -> None:
        try:
            for status in self._open():
                if self._closed.is_set():
                    return
                if status == SERVICE_UNKNOWN:
                    self._report()
                self._is_refused = False
                self._on_change(status == SERVING)
        except grpc.RpcError as error:
            rpc: Any = error
            if rpc.code() is grpc.StatusCode.UNIMPLEMENTED:
                self._report()
            elif rpc.code() not in PASSING:
                self._report_refused(rpc)
        except Exception:  # noqa: BLE001  the server serves on as it was registered last
            if not self._closed.is_set():
                _LOG.exception(
                    "%s: cannot watch its health, retrying",
                    self._name,
                    extra={"event": "health_check_failed"},
                )

    def _open(self) -> Any:
        """Open the stream; the codec is the identity: the two messages have one field each."""
        check_threads(STREAM_THREADS)
        watch: Any = self._channel.unary_stream(WATCH)
        return watch(encode_request(self._service), wait_for_ready=True)

    def _report(self) -> None:
        if not self._is_reported:
            self._is_reported = True
            _LOG.warning(NO_HEALTH_SERVICE, self._name, self._service, extra={"event": "health_service_missing"})

    def _report_refused(self, rpc: Any) -> None:
        if not self._is_refused and not self._closed.is_set():
            self._is_refused = True
            _LOG.warning(REFUSED, self._name, rpc.code().name, rpc.details(), extra={"event": "health_check_refused"})

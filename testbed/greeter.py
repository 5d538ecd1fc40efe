"""A gRPC server that answers every call with its own address, and the call that asks it.

The service is the `helloworld.Greeter` of gRPC's own examples, so any such client can call it; its two one-field
messages are encoded by hand, which spares generated code. `python -m testbed.greeter ADDRESS` runs one as a process,
which ends in order on SIGTERM; GreeterProcess starts that.
"""

import argparse
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self, overload

import grpc

from testbed.build import ROOT
from testbed.process import Process

METHOD = "/helloworld.Greeter/SayHello"
# A caller may ask for a slow answer or a failure with these headers.
DELAY_HEADER = "x-delay-seconds"
FAIL_HEADER = "x-fail"
NAME_TAG = b"\x0a"  # field 1, length-delimited: `name` in HelloRequest, `message` in HelloReply


def encode_text(text: str) -> bytes:
    """Encode HelloRequest or HelloReply: one string field."""
    data = text.encode()
    length, size = len(data), bytearray()
    while length >= 0x80:  # noqa: PLR2004 (base 128 varint)
        size.append(length & 0x7F | 0x80)
        length >>= 7
    return NAME_TAG + bytes([*size, length]) + data if data else b""


def decode_text(message: bytes) -> str:
    """Decode what encode_text() made."""
    start = 1
    while start < len(message) and message[start] & 0x80:
        start += 1
    return message[start + 1 :].decode()


@overload
def say_hello(channel: grpc.Channel) -> "grpc.UnaryUnaryMultiCallable[str, str]": ...


@overload
def say_hello(channel: grpc.aio.Channel) -> "grpc.aio.UnaryUnaryMultiCallable[str, str]": ...


def say_hello(
    channel: grpc.Channel | grpc.aio.Channel,
) -> "grpc.UnaryUnaryMultiCallable[str, str] | grpc.aio.UnaryUnaryMultiCallable[str, str]":
    """Return the callable of the method on a sync or aio channel: `say_hello(channel)("world", timeout=1)`."""
    return channel.unary_unary(METHOD, request_serializer=encode_text, response_deserializer=decode_text)


class GreeterServer:
    """One gRPC server in this process; it starts when made and refuses an address that is taken."""

    def __init__(self, address: str, *, credentials: grpc.ServerCredentials | None = None, threads: int = 8) -> None:
        self.calls = 0
        self._failure: grpc.StatusCode | None = None
        # Without so_reuseport=0 a second server on the same address would start and get half of the calls.
        self._server = grpc.server(ThreadPoolExecutor(threads), options=[("grpc.so_reuseport", 0)])
        service, method = METHOD.strip("/").split("/")
        handler = grpc.unary_unary_rpc_method_handler(self._answer, decode_text, encode_text)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        add = self._server.add_insecure_port if credentials is None else self._add_secure(credentials)
        self.address = f"{address.rpartition(':')[0]}:{add(address)}"
        self._server.start()

    def _add_secure(self, credentials: grpc.ServerCredentials) -> Any:
        return lambda address: self._server.add_secure_port(address, credentials)

    def __repr__(self) -> str:
        return f"<GreeterServer {self.address}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(0)

    def _answer(self, _name: str, context: grpc.ServicerContext) -> str:
        self.calls += 1
        if self._failure:
            context.abort(self._failure, f"{self.address} fails every call")
        headers = {str(key): str(value) for key, value in context.invocation_metadata()}
        time.sleep(float(headers.get(DELAY_HEADER, 0)))
        if failure := headers.get(FAIL_HEADER):
            context.abort(grpc.StatusCode[failure], f"{self.address} fails as asked")
        return self.address

    def fail_with(self, code: grpc.StatusCode | None) -> None:
        """Fail every call from now on; None answers again."""
        self._failure = code

    def stop(self, grace_seconds: float = 5.0) -> None:
        """Refuse new calls, let running ones end within the grace period, and wait for that."""
        self._server.stop(grace_seconds).wait()


class GreeterProcess:
    """The same server in a process of its own, which can be killed and frozen."""

    def __init__(self, address: str, log: Path) -> None:
        self.address = address
        command = [sys.executable, "-m", "testbed.greeter", address]
        self.process = Process(f"greeter {address}", command, log, {"PYTHONPATH": str(ROOT)})
        self.process.start().wait_ready(lambda: "serving on" in self.process.log_tail())

    def stop(self, grace_seconds: float = 5.0) -> None:
        """End it in order, by force after the grace period."""
        self.process.stop(grace_seconds)


def main() -> None:
    """Serve until SIGTERM or SIGINT, then stop in order."""
    parser = argparse.ArgumentParser(prog="python -m testbed.greeter", description="Answer calls with an address.")
    parser.add_argument("address", help="host:port to listen on")
    signal.pthread_sigmask(signal.SIG_BLOCK, ending := {signal.SIGTERM, signal.SIGINT})
    server = GreeterServer(parser.parse_args().address)
    print(f"serving on {server.address}", flush=True)
    signal.sigwait(ending)
    server.stop()


if __name__ == "__main__":
    main()

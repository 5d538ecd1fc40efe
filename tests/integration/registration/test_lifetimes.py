"""Bound servers at the edges of their lives: stopped before they start or while they do, dropped, asked in vain."""

import asyncio
import gc
import logging
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from grpc_etcd import Registry
from testbed.conditions import PATIENCE_SECONDS, until, wait_until
from testbed.etcd import EtcdServer
from testbed.greeter import METHOD, encode_text, say_hello

from .conftest import SERVICE, Admin

HOST = "127.0.9.7"
SERVICE_NAME, METHOD_NAME = METHOD.strip("/").split("/")


def greeter() -> grpc.Server:
    method: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(
        lambda _request, _context: encode_text("hello")
    )
    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE_NAME, {METHOD_NAME: method})])
    return server


# Stopped before it has started


def test_a_server_that_was_stopped_before_is_not_started(
    admin: Admin, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "grpc_etcd")
    server = registry.bind(greeter(), SERVICE, drain_seconds=0, allow_unroutable=True)
    server.add_insecure_port(f"{HOST}:0")
    server.stop(0).wait(PATIENCE_SECONDS)
    server.start()
    assert server.wait_for_termination(PATIENCE_SECONDS) is False
    assert "it was stopped before" in caplog.text
    assert admin.records() == {}


async def test_an_aio_server_that_was_stopped_before_is_not_started(admin: Admin, registry: Registry) -> None:
    server = registry.aio.bind(aio.server(), SERVICE, drain_seconds=0, allow_unroutable=True)
    server.add_insecure_port(f"{HOST}:0")
    await server.stop(0)
    await server.start()
    assert await server.wait_for_termination(PATIENCE_SECONDS) is False
    assert admin.records() == {}


class StoppedMeanwhile:
    """A gRPC server; the one that is bound to it is stopped just before this one would serve."""

    def __init__(self) -> None:
        self.native = greeter()
        self.stop_bound: Callable[[], Any] = lambda: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.native, name)

    def start(self) -> None:
        self.stop_bound()
        self.native.start()


def test_a_stop_that_comes_while_the_server_starts_ends_it(admin: Admin, registry: Registry) -> None:
    native: Any = StoppedMeanwhile()
    server = registry.bind(native, SERVICE, drain_seconds=0, allow_unroutable=True)
    native.stop_bound = lambda: server.stop(0).wait(1)  # time enough for a stop that does not wait for the start
    server.add_insecure_port(f"{HOST}:0")
    server.start()
    assert server.wait_for_termination(PATIENCE_SECONDS) is False
    assert admin.records() == {}


PROGRAM = """
import signal, sys
from concurrent import futures
import grpc, grpc_etcd
registry = grpc_etcd.Registry(sys.argv[1])
server = grpc.server(futures.ThreadPoolExecutor(1))
if sys.argv[2] == "bound":
    server = registry.bind(server, "greeter", drain_seconds=0, allow_unroutable=True)
grpc_etcd.stop_on_sigterm(server, 1)
server.add_insecure_port("127.0.9.7:0")
signal.raise_signal(signal.SIGTERM)  # a Pod that is deleted while its program still prepares
server.start()
server.wait_for_termination()
print("over", flush=True)
"""


AIO_PROGRAM = """
import asyncio, signal, sys
import grpc, grpc_etcd
async def main():
    async with grpc_etcd.Registry(sys.argv[1]).aio as registry:
        server = grpc.aio.server()
        if sys.argv[2] == "bound":
            server = registry.bind(server, "greeter", drain_seconds=0, allow_unroutable=True)
        grpc_etcd.stop_aio_on_sigterm(server, 1)
        server.add_insecure_port("127.0.9.7:0")
        signal.raise_signal(signal.SIGTERM)
        await asyncio.to_thread(int)  # the loop hears of it meanwhile
        await server.start()
        await server.wait_for_termination()
    print("over", flush=True)
asyncio.run(main())
"""


@pytest.mark.parametrize("program", [PROGRAM, AIO_PROGRAM], ids=["sync", "aio"])
@pytest.mark.parametrize("kind", ["bound", "gRPC's own"])
def test_a_sigterm_before_the_start_ends_the_program(
    etcd_admin: Admin, etcd: EtcdServer, program: str, kind: str
) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", program, etcd.endpoints, kind],
        capture_output=True, text=True, cwd=Path.cwd(), timeout=PATIENCE_SECONDS, check=False,
    )  # fmt: skip
    assert (ended.stdout.strip(), ended.returncode) == ("over", 0), ended.stderr
    assert etcd_admin.records() == {}


# Started twice


def test_a_server_that_is_started_again_serves_on(admin: Admin, registry: Registry) -> None:
    server = registry.bind(greeter(), SERVICE, drain_seconds=0, allow_unroutable=True)
    port = server.add_insecure_port(f"{HOST}:0")
    server.start()
    assert server.registrations[0].wait(PATIENCE_SECONDS)
    with pytest.raises(ValueError, match="already"):
        server.start()
    with grpc.insecure_channel(f"{HOST}:{port}") as channel:
        assert say_hello(channel)("you", timeout=PATIENCE_SECONDS) == "hello"
    assert (len(server.registrations), len(admin.records())) == (1, 1)
    server.stop(0).wait()


# Dropped


def start_and_forget(registry: Registry) -> Callable[[], grpc.Server | None]:
    """Serve as a function does that returns, and leaves nobody a reference."""
    native = greeter()
    server = registry.bind(native, SERVICE, drain_seconds=0, allow_unroutable=True)
    server.add_insecure_port(f"{HOST}:0")
    server.start()
    return weakref.ref(native)


def test_a_server_that_nobody_refers_to_serves_for_as_long_as_it_is_registered(admin: Admin) -> None:
    with admin.registry() as registry:
        native = start_and_forget(registry)
        gc.collect()
        wait_until(admin.records, "it is registered")
        assert native() is not None, "gRPC ends a server that nobody refers to, and its key would stay"
        with registry.insecure_channel(SERVICE) as channel:
            assert say_hello(channel)("you", timeout=PATIENCE_SECONDS, wait_for_ready=True) == "hello"
    del registry
    wait_until(lambda: gc.collect() is not None and native() is None, "it goes with its registration")


def test_a_server_that_has_been_stopped_is_kept_by_nobody(registry: Registry) -> None:
    native = greeter()
    server = registry.bind(native, SERVICE, drain_seconds=0, allow_unroutable=True)
    server.add_insecure_port(f"{HOST}:0")
    server.start()
    server.stop(0).wait(PATIENCE_SECONDS)
    gone = weakref.ref(native)
    del server, native
    wait_until(lambda: gc.collect() is not None and gone() is None, "nobody refers to it")


# Left by its event loop


async def serve(registry: Registry) -> aio.Server:
    server = registry.aio.bind(aio.server(), SERVICE, drain_seconds=0, allow_unroutable=True)
    server.add_insecure_port(f"{HOST}:0")
    await server.start()
    assert await server.registrations[0].wait_async(PATIENCE_SECONDS)
    return server


def test_a_server_whose_event_loop_has_ended_is_deregistered(admin: Admin, registry: Registry) -> None:
    async def main() -> None:
        server = await serve(registry)
        assert isinstance(server, aio.Server)

    for _ in range(2):
        asyncio.run(main())
        wait_until(lambda: not admin.records(), "nobody serves there any more")


async def test_an_aio_server_that_nobody_refers_to_is_deregistered(admin: Admin, registry: Registry) -> None:
    """GRPC ends it, and has to while its loop runs."""
    await serve(registry)
    await until(lambda: gc.collect() is not None and not admin.records())


LOOPS = """
import asyncio, sys
import grpc, grpc_etcd
kept, ports = [], []
def bind(registry):
    server = registry.aio.bind(grpc.aio.server(), "greeter", drain_seconds=0, allow_unroutable=True)
    ports.append(server.add_insecure_port("127.0.9.7:0"))
    return server
async def dropped(registry):
    await bind(registry).start()
async def referred_to(registry):
    kept.append(bind(registry))
    await kept[-1].start()
async def cancelled_in_start(registry):
    starting = asyncio.create_task(bind(registry).start())
    for _ in range(len(ports) % 8):
        await asyncio.sleep(0)
async def cancelled_in_stop(registry):
    server = bind(registry)
    await server.start()
    stopping = asyncio.create_task(server.stop(5))
    for _ in range(len(ports) % 8):
        await asyncio.sleep(0)
async def waited_for(registry):
    server = bind(registry)
    await server.start()
    waiting = asyncio.create_task(server.wait_for_termination())
    await asyncio.sleep(0)
async def in_a_call(registry):
    begun = asyncio.Event()
    async def answer(request, context):
        begun.set()
        await asyncio.sleep(60)
    handlers = {"Hello": grpc.unary_unary_rpc_method_handler(answer)}
    server = bind(registry)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Slow", handlers)])
    await server.start()
    channel = grpc.aio.insecure_channel(f"127.0.9.7:{ports[-1]}")
    call = channel.unary_unary("/test.Slow/Hello")(b"")
    await begun.wait()
async def all_cancelled_twice(registry):
    server = bind(registry)
    await server.start()
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await asyncio.sleep(0)
async def factory_set_later(registry):
    async def answer(request, context):
        return b"hello"
    handlers = {"Hello": grpc.unary_unary_rpc_method_handler(answer)}
    server = bind(registry)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Fast", handlers)])
    await server.start()
    asyncio.get_running_loop().set_task_factory(lambda loop, coro, **more: asyncio.Task(coro, loop=loop, **more))
    channel = grpc.aio.insecure_channel(f"127.0.9.7:{ports[-1]}")
    assert await channel.unary_unary("/test.Fast/Hello")(b"") == b"hello"
    await channel.close()
    while any("_schedule_rpc_coro" in repr(task) for task in asyncio.all_tasks()):
        await asyncio.sleep(0)
def find_listening():  # at this very address: any other process may listen at the same port of all addresses
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in open(table).read().splitlines()[1:]:
            host, port = line.split()[1].split(":")
            if host.endswith("0709007F") and line.split()[3] == "0A":
                found.add(int(port, 16))
    return found & set(ports)
with grpc_etcd.Registry(sys.argv[1]) as registry:
    for _ in range(300):
        asyncio.run(globals()[sys.argv[2]](registry))
print(sorted(find_listening()), flush=True)
"""


@pytest.mark.parametrize(
    "how",
    [
        "dropped",
        "referred_to",
        "cancelled_in_start",
        "cancelled_in_stop",
        "waited_for",
        "in_a_call",
        "all_cancelled_twice",
        "factory_set_later",
    ],
)
def test_event_loops_that_end_leave_the_process_alive_and_no_server(
    etcd_admin: Admin, etcd: EtcdServer, how: str
) -> None:
    """As those of tests do: what gRPC's own tasks hold must not be freed before its core has let go of it."""
    ended = subprocess.run(
        [sys.executable, "-c", LOOPS, etcd.endpoints, how],
        capture_output=True, text=True, cwd=Path.cwd(), timeout=PATIENCE_SECONDS, check=False,
        env=os.environ | {"GRPC_VERBOSITY": "ERROR"},  # else it tells of connections that the server has ended
    )  # fmt: skip
    assert (ended.stdout.strip(), ended.returncode, ended.stderr) == ("[]", 0, "")
    assert etcd_admin.records() == {}


CLOSED = """
import asyncio, sys
import grpc, grpc_etcd
kept = []
async def serve(registry):
    server = registry.aio.bind(grpc.aio.server(), "greeter", drain_seconds=0, allow_unroutable=True)
    server.add_insecure_port("127.0.9.7:0")
    await server.start()
    assert await server.registrations[0].wait_async(60)
    waiting = asyncio.create_task(server.wait_for_termination())
    kept.extend([server, waiting])
    await asyncio.sleep(0)
registry = grpc_etcd.Registry(sys.argv[1])
loop = asyncio.new_event_loop()
loop.run_until_complete(serve(registry))
loop.close()
print("closed", flush=True)
sys.stdin.read()
"""


def test_a_server_whose_loop_is_closed_is_deregistered_though_nobody_cancels_its_tasks(
    etcd_admin: Admin, etcd: EtcdServer
) -> None:
    """The port stays open, for gRPC cannot close it any more, and nobody answers there."""
    command = [sys.executable, "-c", CLOSED, etcd.endpoints]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "closed\n"
        wait_until(lambda: not etcd_admin.records(), "the deregistration", 30)
        process.communicate("", PATIENCE_SECONDS)


# Asked in vain


class Doorkeeper(grpc.ServerInterceptor):  # type: ignore[misc, unused-ignore]  # of no type where stubs are away
    """Lets nobody in who does not say who they are, as interceptors do that know nothing of health checks."""

    def __init__(self) -> None:
        self.is_strict = True

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        if not self.is_strict:
            return continuation(handler_call_details)
        return grpc.unary_stream_rpc_method_handler(
            lambda _request, context: context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token")
        )


def test_a_server_that_refuses_to_tell_its_health_says_so(
    admin: Admin, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    doorkeeper = Doorkeeper()
    native = grpc.server(futures.ThreadPoolExecutor(2), interceptors=[doorkeeper])
    servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, native)
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    server = registry.bind(native, SERVICE, drain_seconds=0, health=True, allow_unroutable=True)
    server.add_insecure_port(f"{HOST}:0")
    server.start()
    wait_until(lambda: "UNAUTHENTICATED: no token" in caplog.text, "the refusal is told")
    assert admin.records() == {}
    doorkeeper.is_strict = False
    wait_until(admin.records, "it is asked again")
    assert caplog.text.count("no token") == 1
    server.stop(0).wait()

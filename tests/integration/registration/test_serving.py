"""Servers that are registered exactly while they serve, and processes that end in every way."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from grpc import aio

import grpc_etcd
from grpc_etcd import Endpoint, Registry
from grpc_etcd.etcd import Etcd, Record
from grpc_etcd.registration.registrar import State
from grpc_etcd.testing import MemoryRegistry
from testbed.conditions import until, wait_until
from testbed.etcd import EtcdServer
from testbed.greeter import METHOD, encode_text, say_hello
from testbed.proxy import TcpProxy

from .conftest import SERVICE, Admin

SERVICE_NAME, METHOD_NAME = METHOD.strip("/").split("/")


def handlers(answer: str) -> grpc.GenericRpcHandler:
    method: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(
        lambda _request, _context: encode_text(answer)
    )
    return grpc.method_handlers_generic_handler(SERVICE_NAME, {METHOD_NAME: method})


@pytest.fixture
def patient(admin: Admin) -> Iterator[Registry]:
    """A registry that has time enough for a deregistration and for a long drain."""
    with admin.registry(stop_seconds=60) as registry:
        yield registry


def test_a_bound_server_is_registered_from_start_to_stop_and_drains_before_it_stops(
    admin: Admin, patient: Registry
) -> None:
    registry, native = patient, grpc.server(futures.ThreadPoolExecutor(4))
    native.add_generic_rpc_handlers([handlers("hello")])
    # So long that a busy machine sees the deregistration before it is over, and so does the client that calls.
    server = registry.bind(native, SERVICE, drain_seconds=4, allow_unroutable=True)
    port = server.add_insecure_port("127.0.9.2:0")
    assert admin.records() == {}
    server.start()
    assert [each.endpoint.address for each in server.registrations] == [f"127.0.9.2:{port}"]
    assert server.registrations[0].wait(30)
    channel = registry.insecure_channel(SERVICE)
    failures: list[grpc.StatusCode] = []
    calls = 0
    ended = threading.Event()

    def call() -> None:
        nonlocal calls
        hello = say_hello(channel)
        while not ended.is_set():
            try:
                hello("you", timeout=30)
                calls += 1
            except grpc.RpcError as error:
                if not registry.endpoints(SERVICE).endpoints:
                    return
                failures.append(error.code())

    registry.wait_for_endpoints(SERVICE, 30)
    caller = threading.Thread(target=call)
    caller.start()
    wait_until(lambda: calls > 50, "calls are answered")
    stopped = server.stop(5)
    wait_until(lambda: not admin.records(), "the deregistration comes first")
    assert not stopped.is_set()
    assert stopped.wait(30)
    ended.set()
    caller.join(30)
    channel.close()
    assert failures == []
    assert server.wait_for_termination(0) is False


def test_a_bound_server_that_may_not_be_registered_does_not_start(registry: Registry) -> None:
    server = registry.bind(grpc.server(futures.ThreadPoolExecutor(1)), SERVICE)
    server.add_insecure_port("127.0.9.2:0")
    with pytest.raises(ValueError, match="loopback"):
        server.start()


async def test_a_bound_aio_server(admin: Admin, registry: Registry) -> None:
    native = aio.server()
    server = registry.aio.bind(native, SERVICE, drain_seconds=0.1, allow_unroutable=True)

    async def answer(_request: bytes, _context: object) -> bytes:
        return encode_text("hello")

    method: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(answer)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE_NAME, {METHOD_NAME: method})])
    server.add_insecure_port("127.0.9.3:0")
    await server.start()
    assert await server.registrations[0].wait_async(30)
    async with registry.aio.insecure_channel(SERVICE) as channel:
        assert await say_hello(channel)("you", timeout=30, wait_for_ready=True) == "hello"
    await server.stop(1)
    assert admin.records() == {}


PROGRAM = """
import sys, time
from concurrent import futures
import grpc, grpc_etcd
how, endpoints = sys.argv[1:]
registry = grpc_etcd.Registry(endpoints, stop_seconds=60 if how == "forks" else 5)
server = registry.bind(grpc.server(futures.ThreadPoolExecutor(1)), "greeter", drain_seconds=0.2, allow_unroutable=True)
server.add_insecure_port("127.0.9.4:0")
server.start()
assert server.registrations[0].wait(60)
print("registered", flush=True)
if how == "sigterm":
    grpc_etcd.stop_on_sigterm(server, 1)
    print("ready", flush=True)
    server.wait_for_termination()
    print("over", flush=True)
elif how == "killed":
    time.sleep(600)
elif how == "forks":
    import os
    if os.fork() == 0:
        sys.exit()
    begun = time.monotonic()
    os.wait()
    print(time.monotonic() - begun, flush=True)
    sys.stdin.read()
"""


AIO_PROGRAM = """
import asyncio, sys
import grpc, grpc_etcd
async def main():
    registry = grpc_etcd.Registry(sys.argv[2])
    server = registry.aio.bind(grpc.aio.server(), "greeter", drain_seconds=0.2, allow_unroutable=True)
    server.add_insecure_port("127.0.9.4:0")
    await server.start()
    assert await server.registrations[0].wait_async(60)
    print("registered", flush=True)
    grpc_etcd.stop_aio_on_sigterm(server, 1)
    print("ready", flush=True)
    await server.wait_for_termination()
    print("over", flush=True)
asyncio.run(main())
"""


def run_program(how: str, etcd: EtcdServer, program: str = PROGRAM) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", program, how, etcd.endpoints],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path.cwd(),
    )
    assert process.stdout
    assert process.stdout.readline().strip() == "registered"
    return process


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=60)
    return output


@pytest.mark.parametrize("program", [PROGRAM, AIO_PROGRAM], ids=["sync", "aio"])
def test_sigterm_deregisters_before_the_server_stops(etcd_admin: Admin, etcd: EtcdServer, program: str) -> None:
    admin = etcd_admin
    process = run_program("sigterm", etcd, program)
    assert process.stdout
    assert process.stdout.readline().strip() == "ready"
    assert len(admin.records()) == 1
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: not admin.records(), "the deregistration")
    assert finish(process).strip() == "over"
    assert process.returncode == 0


async def test_no_signal_is_given_to_a_server_that_it_could_not_stop(registry: Registry) -> None:
    before = signal.getsignal(signal.SIGTERM)
    for server in (aio.server(), registry.aio.bind(aio.server(), SERVICE)):
        with pytest.raises(TypeError, match="use stop_aio_on_sigterm"):
            grpc_etcd.stop_on_sigterm(server)  # type: ignore[arg-type]  # a mistake, as is tested
    native = grpc.server(futures.ThreadPoolExecutor(1))
    for blocking in (native, registry.bind(native, SERVICE)):
        with pytest.raises(TypeError, match="use stop_on_sigterm"):
            grpc_etcd.stop_aio_on_sigterm(blocking)  # type: ignore[arg-type]  # a mistake, as is tested
        with pytest.raises(ValueError, match="grace_seconds is '20'"):
            grpc_etcd.stop_on_sigterm(blocking, "20")  # type: ignore[arg-type]  # a mistake, as is tested
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_script_that_just_ends_leaves_nothing_behind(etcd_admin: Admin, etcd: EtcdServer) -> None:
    admin = etcd_admin
    process = run_program("forgets to close", etcd)
    finish(process)
    assert admin.records() == {}


def test_a_killed_process_disappears_with_its_lease(etcd_admin: Admin, etcd: EtcdServer) -> None:
    admin = etcd_admin
    process = run_program("killed", etcd)
    (record,) = admin.records().values()
    process.kill()
    finish(process)
    assert admin.etcd.time_to_live(record.lease)
    wait_until(lambda: not admin.records(), "the lease runs out", 90)


def test_a_fork_neither_crashes_nor_deregisters_what_its_parent_registered(admin: Admin, registry: Registry) -> None:
    registration = registry.register(
        endpoint := Endpoint(name=SERVICE, address="127.0.9.5:9000"), allow_unroutable=True
    )
    assert registration.wait(30)
    for _ in range(5):
        child = os.fork()
        if child == 0:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    (record,) = admin.records().values()
    admin.etcd.delete(record.key)
    wait_until(admin.records, "the parent goes on keeping it")
    assert endpoint.address in record.key.decode()


def test_a_child_that_ends_leaves_its_parents_registration_alone_and_is_not_held_up(
    etcd_admin: Admin, etcd: EtcdServer
) -> None:
    process = run_program("forks", etcd)
    assert process.stdout
    assert float(process.stdout.readline()) < 30, "half of what deregistering might take"
    assert len(etcd_admin.records()) == 1
    finish(process)
    assert etcd_admin.records() == {}


@pytest.mark.faults
def test_etcd_killed_and_brought_back_empty_or_with_its_data(own_etcd: EtcdServer) -> None:
    def stored() -> tuple[Record, ...]:
        with Etcd(own_etcd.endpoints) as client:  # a new one each time: an old one may still wait to connect again
            return client.get_prefix(b"/jupiter/").records

    with Registry(own_etcd.endpoints) as registry:
        registration = registry.register(Endpoint(name=SERVICE, address="127.0.9.6:9000"), allow_unroutable=True)
        assert registration.wait(30)
        (record,) = stored()
        own_etcd.kill()
        wait_until(lambda: registration.status.fault, "the outage is told")
        own_etcd.restart()
        wait_until(lambda: registration.status.fault is None and registration.wait(0), "it goes on")
        assert stored() == (record,), "nothing was rewritten"
        own_etcd.kill()
        own_etcd.restart(fresh=True)
        wait_until(stored, "it is registered again", 60)
        assert [(again.key, again.value) for again in stored()] == [(record.key, record.value)]
    assert stored() == ()


@pytest.mark.faults
@pytest.mark.parametrize("shares", [False, True])
def test_what_is_registered_is_pending_once_its_lease_may_have_run_out_and_registered_again_after_it(
    etcd: EtcdServer,
    shares: bool,  # noqa: FBT001  pytest's
) -> None:
    """A process that is cut off for longer than its lease lives: etcd deletes its keys, which nobody can tell it."""
    endpoint = Endpoint(name=SERVICE, address="127.0.9.6:9000")
    with ExitStack() as stack:
        proxy = stack.enter_context(TcpProxy.start(etcd.endpoints))
        mine = stack.enter_context(Registry(proxy.address, lease_ttl_seconds=3)).register(
            endpoint, allow_unroutable=True
        )
        assert mine.wait(30)
        if shares:
            other = stack.enter_context(Registry(proxy.address, lease_ttl_seconds=3))
            assert other.register(endpoint, allow_unroutable=True).wait(30)
        proxy.black_hole()
        wait_until(lambda: mine.status.state is State.PENDING, "nobody knows whether it is there")
        proxy.heal()
        wait_until(lambda: mine.status.state is State.REGISTERED, "it is there again")
        with Etcd(etcd.endpoints) as client:
            assert client.get_prefix(b"/jupiter/").records


class Unhurried:
    """A method that takes as long as it is let, and a server that has it."""

    def __init__(self) -> None:
        self.called, self.over = threading.Event(), threading.Event()

    def handlers(self) -> grpc.GenericRpcHandler:
        method: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(self._answer)
        return grpc.method_handlers_generic_handler(SERVICE_NAME, {METHOD_NAME: method})

    def _answer(self, _request: object, _context: object) -> bytes:
        self.called.set()
        self.over.wait(120)
        return b""


def test_a_second_stop_shortens_the_grace_of_the_first() -> None:
    unhurried = Unhurried()
    with MemoryRegistry() as registry:
        native = grpc.server(futures.ThreadPoolExecutor(2))
        native.add_generic_rpc_handlers([unhurried.handlers()])
        server = registry.bind(native, SERVICE, drain_seconds=0, allow_unroutable=True)
        port = server.add_insecure_port("127.0.9.2:0")
        server.start()
        with grpc.insecure_channel(f"127.0.9.2:{port}") as channel:
            call = say_hello(channel).future("you")
            assert unhurried.called.wait(30)
            first = server.stop(600)
            wait_until(lambda: not server.registrations, "the first stop has begun")
            assert server.stop(0).wait(30)
            assert first.wait(30)
            assert call.exception() is not None
        unhurried.over.set()


async def test_a_second_stop_shortens_the_grace_of_the_first_on_asyncio() -> None:
    unhurried = Unhurried()
    async with MemoryRegistry().aio as registry:
        native = aio.server(futures.ThreadPoolExecutor(2))
        native.add_generic_rpc_handlers([unhurried.handlers()])
        server = registry.bind(native, SERVICE, drain_seconds=0, allow_unroutable=True)
        port = server.add_insecure_port("127.0.9.2:0")
        await server.start()
        async with aio.insecure_channel(f"127.0.9.2:{port}") as channel:
            call = asyncio.ensure_future(say_hello(channel)("you"))
            await until(unhurried.called.is_set)
            first = asyncio.create_task(server.stop(600))
            await until(lambda: not server.registrations)
            await asyncio.wait_for(server.stop(0), 30)
            await asyncio.wait_for(first, 30)
            with pytest.raises(aio.AioRpcError):
                await call
        unhurried.over.set()

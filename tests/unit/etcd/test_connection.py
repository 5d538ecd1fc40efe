"""The ways to etcd: a call has one time in all, whatever others wait for."""

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from grpc_etcd.etcd import DeadlineExceeded, Etcd, EtcdError, Unavailable, aio
from grpc_etcd.etcd.list_watch import watch_method
from testbed.conditions import wait_until


def test_a_log_in_that_hangs_holds_up_no_call_for_longer_than_its_time() -> None:
    asked, over = threading.Event(), threading.Event()

    def password() -> str:
        asked.set()
        over.wait(120)
        return "secret"

    with Etcd("127.0.0.1:9", user="app", password=password, timeout_seconds=0.2) as etcd, ThreadPoolExecutor(2) as pool:
        first = pool.submit(etcd.get, b"/a")
        assert asked.wait(30)
        second = pool.submit(etcd.get, b"/b")
        try:
            with pytest.raises(DeadlineExceeded, match="login"):
                second.result(30)
        finally:
            over.set()
        with pytest.raises(EtcdError):
            first.result(30)


def test_closing_waits_for_no_password() -> None:
    asked, over = threading.Event(), threading.Event()

    def password() -> str:
        asked.set()
        over.wait(120)
        return "secret"

    try:
        etcd = Etcd("127.0.0.1:9", user="app", password=password, timeout_seconds=3600)
        etcd.watch_hub().follow(b"a/", print)
        watch = etcd.list_watch(b"b/")
        watching = threading.Thread(target=lambda: list(watch), daemon=True)
        watching.start()
        assert asked.wait(30)
        closing = threading.Thread(target=etcd.close, daemon=True)
        closing.start()
        closing.join(30)
        assert not closing.is_alive()
        watching.join(30)
        assert not watching.is_alive()
    finally:
        over.set()


def test_what_a_password_s_function_raises_is_told_and_it_is_asked_again() -> None:
    raised = iter([RuntimeError("sealed"), TimeoutError("its own")])

    def password() -> str:
        raise next(raised)

    with Etcd("127.0.0.1:9", user="app", password=password, timeout_seconds=30) as etcd:
        with pytest.raises(RuntimeError, match="sealed"):
            etcd.get(b"/a")
        with pytest.raises(TimeoutError, match="its own"):
            etcd.get(b"/a")


def test_a_password_that_comes_late_is_taken_and_not_asked_for_twice() -> None:
    asked: list[int] = []
    over = threading.Event()

    def password() -> str:
        asked.append(1)
        over.wait(120)
        raise RuntimeError("it was received")

    with Etcd("127.0.0.1:9", user="app", password=password, timeout_seconds=0.05) as etcd:
        try:
            for _ in range(3):
                with pytest.raises(DeadlineExceeded, match="password"):
                    etcd.get(b"/a")
        finally:
            over.set()
        wait_until(lambda: heard(etcd), "what it gave at last")
    assert len(asked) == 1


def heard(etcd: Etcd) -> bool:
    try:
        etcd.get(b"/a")
    except DeadlineExceeded:
        return False
    except RuntimeError as error:
        return "it was received" in str(error)
    return False


async def test_on_asyncio_all_that_wait_for_one_log_in_wait_no_longer_than_their_time() -> None:
    """They waited one after the other: of twenty calls the last failed after twenty times as long."""
    over = threading.Event()
    server = grpc.server(ThreadPoolExecutor(32), [_Silent(over)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    etcd = aio.Etcd(f"127.0.0.1:{port}", user="app", password=lambda: "secret", timeout_seconds=2)
    try:
        async with asyncio.timeout(20):
            ended = await asyncio.gather(*(etcd.get(b"/a") for _ in range(20)), return_exceptions=True)
        assert {type(each) for each in ended} == {DeadlineExceeded}
    finally:
        over.set()
        await etcd.close()
        server.stop(None)


class _Silent(grpc.GenericRpcHandler):
    """Answers nothing."""

    def __init__(self, over: threading.Event) -> None:
        self._over = over

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:  # noqa: ARG002
        return grpc.unary_unary_rpc_method_handler(self._wait)

    def _wait(self, _request: bytes, _context: grpc.ServicerContext) -> bytes:
        self._over.wait(60)
        return b""


FORKED = """
import os, threading
from grpc_etcd.etcd import Etcd, EtcdError

parent, asked, over = os.getpid(), threading.Event(), threading.Event()

def password():
    if os.getpid() == parent:
        asked.set()
        over.wait(60)
    return "secret"

etcd = Etcd("127.0.0.1:9", user="app", password=password, timeout_seconds=5)

def call():
    try:
        etcd.get(b"/a")
    except EtcdError as error:
        return type(error).__name__

thread = threading.Thread(target=call)
thread.start()
asked.wait(60)
child = os.fork()
if not child:
    print(call(), flush=True)
    os._exit(0)
os.waitpid(child, 0)
over.set()
thread.join()
etcd.close()
"""


def test_a_child_that_is_forked_while_another_thread_logs_in_can_log_in() -> None:
    """The child had the lock of a thread that it does not have: each of its calls waited, and failed."""
    run = [sys.executable, "-W", "ignore", "-c", FORKED]
    ended = subprocess.run(run, capture_output=True, text=True, timeout=90, check=True)
    assert ended.stdout == "Unavailable\n"


def test_of_each_stream_one_failure_counts_and_none_of_one_that_is_hung_up() -> None:
    """A member that is blamed twice hands on to a dead one that it had just taken over from."""
    with Etcd("127.0.0.1:9,127.0.0.2:9") as etcd:
        way = etcd._connection
        streams = [way.stream(watch_method(), iter(())) for _ in range(2)]
        way.hang_up(streams[0])
        way.report(streams[0], Unavailable("hung up"))
        assert way._rotation.current == 0
        way.report(streams[1], Unavailable("lost"))
        assert way._rotation.current == 1
        other = way.stream(watch_method(), iter(()))
        way.report(other, Unavailable("lost too"))
        assert way._rotation.current == 0
        way.report(streams[1], Unavailable("still lost"))
        assert way._rotation.current == 0
        way.hang_up(streams[1])
        way.report(None, Unavailable("never opened"))
        assert way._rotation.current == 0

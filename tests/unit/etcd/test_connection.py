"""The way to etcd for threads: a call has one time in all."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from grpc_etcd.etcd import DeadlineExceeded, Etcd, EtcdError
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

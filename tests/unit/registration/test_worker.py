"""The driver: whatever etcd makes it wait for, who registers or asks does not wait for that."""

import gc
import math
import threading
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import FunctionType, ModuleType
from typing import Any

import pytest

from grpc_etcd.etcd import Compare, DeadlineExceeded, Op, Record, TransactionResult, WatchUpdate
from grpc_etcd.layouts.jupiter import Jupiter
from grpc_etcd.registration.processes import process_key
from grpc_etcd.registration.registrar import Registrar, State
from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.testing import MemoryEtcd
from testbed.conditions import wait_until


class SlowWatch:
    """A watch whose end takes as long as the call to etcd that it is in."""

    def __init__(self, watch: Any, etcd: "SlowToClose") -> None:
        self._watch, self._etcd = watch, etcd

    def __iter__(self) -> Iterator[WatchUpdate]:
        return iter(self._watch)

    def close(self) -> None:
        self._watch.close()
        self._etcd.closing.set()
        self._etcd.may_close.wait(120)


class SlowToClose(MemoryEtcd):
    """An etcd that answers, and whose watches end late."""

    def __init__(self) -> None:
        super().__init__()
        self.closing, self.may_close = threading.Event(), threading.Event()

    def list_watch(self, *prefixes: bytes) -> Any:
        return SlowWatch(super().list_watch(*prefixes), self)


def test_registering_and_asking_do_not_wait_for_a_watch_that_ends_late() -> None:
    etcd = SlowToClose()
    registrar = Registrar(etcd, [Jupiter()])
    first = registrar.register(Endpoint(name="greeter", address="10.0.0.1:1"))
    assert first.wait(30)
    second = registrar.register(Endpoint(name="greeter", address="10.0.0.2:1"))  # another key: another watch
    assert etcd.closing.wait(30)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(lambda: first.status.state)
        try:
            assert asked.result(30) is State.REGISTERED
        finally:
            etcd.may_close.set()
    assert second.wait(30)
    wait_until(lambda: len(etcd.get_prefix(b"/jupiter/greeter/").records) >= 2, "both keys")
    assert registrar.close()


GREETER = Endpoint(name="greeter", address="10.0.0.1:1")
PREFIX = b"/jupiter/greeter/providers/"


class HeldBack(MemoryEtcd):
    """An etcd that carries transactions out, and whose answers to writes can be held back, or lost."""

    def __init__(self) -> None:
        super().__init__()
        self.may_answer, self.loses = threading.Event(), False
        self.may_answer.set()

    def transaction(
        self, compare: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op] = ()
    ) -> TransactionResult:
        result = super().transaction(compare, success, failure)
        if compare:
            self.may_answer.wait(120)
            if self.loses:
                raise DeadlineExceeded("no answer has come")
        return result

    def registered(self) -> tuple[Record, ...]:
        return super().get_prefix(PREFIX).records


def test_what_is_released_before_the_answer_to_its_put_is_deregistered() -> None:
    etcd = HeldBack()
    registrar = Registrar(etcd, [Jupiter()])
    etcd.may_answer.clear()
    registration = registrar.register(GREETER)
    wait_until(etcd.registered, "it is there", 60)
    with ThreadPoolExecutor(1) as pool:
        deregistered = pool.submit(registration.unregister, 60)
        wait_until(lambda: not registrar.registrations, "it is being deregistered", 60)
        assert registration.status.state is not State.REGISTERED
        etcd.may_answer.set()
        assert deregistered.result(120)
    assert not etcd.registered()
    assert registrar.close()


def test_what_is_released_after_a_lost_answer_is_deregistered() -> None:
    etcd = HeldBack()
    registrar = Registrar(etcd, [Jupiter()])
    etcd.loses = True
    registration = registrar.register(GREETER)
    wait_until(lambda: etcd.registered() and registration.status.fault, "it is there, and nobody has said so", 60)
    etcd.loses = False
    assert registration.unregister(60)
    assert not etcd.registered()
    assert registrar.close()


def test_a_process_key_that_has_lost_its_lease_holds_up_no_deregistration() -> None:
    etcd = MemoryEtcd()
    registrar = Registrar(etcd, [Jupiter()])
    registration = registrar.register(GREETER)
    assert registration.wait(60)
    etcd.put(process_key(registration.keys[0], 99), b"from a dump")
    assert registration.unregister(60)
    assert not etcd.get_prefix(b"/").records
    assert registrar.close()


class Stubborn(MemoryEtcd):
    """An etcd that refuses every write whatever is there."""

    def __init__(self) -> None:
        super().__init__()
        self.refusals = 0

    def transaction(
        self, compare: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op] = ()
    ) -> TransactionResult:
        if not compare:
            return super().transaction(compare, success, failure)
        self.refusals += 1
        return super().transaction([Compare(b"nothing", "version", "==", 7)], success, failure)


def test_a_write_that_is_refused_for_no_reason_is_told_and_floods_nobody() -> None:
    etcd = Stubborn()
    registrar = Registrar(etcd, [Jupiter()], stop_seconds=0.1)
    registration = registrar.register(GREETER)
    wait_until(lambda: registration.status.fault, "it is told", 60)
    assert "keeps rejecting" in str(registration.status.fault)
    before = etcd.refusals
    assert not registration.wait(2)
    assert etcd.refusals - before < 12, "0.2 s, 0.4 s, 0.8 s, ... lie between"
    registrar.close()


def test_what_comes_and_goes_at_ever_other_addresses_leaves_nothing_behind() -> None:
    registrar = Registrar(MemoryEtcd(), (Jupiter(),))
    gone = []
    for number in range(1, 4):
        registration = registrar.register(Endpoint(name="greeter", address=f"10.0.0.{number}:9000"))
        assert registration.wait(30)
        assert registration.unregister(30)
        assert registration.status.state is State.DEREGISTERED
        gone.append(weakref.ref(registration))
    before = registration
    assert registrar.register(Endpoint(name="greeter", address="10.0.0.9:9000")).wait(30)
    assert before.status.state is State.DEREGISTERED, "it is forgotten, and can be asked all the same"
    del registration, before
    gc.collect()
    assert [each() for each in gone] == [None] * 3
    registrar.close()


def texts_within(root: object) -> Iterator[str]:
    """Give all texts that an object holds, but for those of etcd and of what every object refers to."""
    seen, left = set[int](), [root]
    while left:
        each = left.pop()
        if id(each) in seen or isinstance(each, type | MemoryEtcd | ModuleType | FunctionType | threading.Thread):
            continue
        seen.add(id(each))
        if isinstance(each, str | bytes):
            yield each if isinstance(each, str) else each.decode(errors="replace")
        left += gc.get_referents(each)


def test_nothing_names_an_address_that_was_deregistered_long_ago() -> None:
    registrar = Registrar(MemoryEtcd(), (Jupiter(),))
    addresses = [f"10.0.0.{number}:9000" for number in range(1, 5)]
    for address in addresses:
        registration = registrar.register(Endpoint(name="greeter", address=address))
        assert registration.wait(30)
        assert registration.unregister(30)
    assert registrar.register(Endpoint(name="greeter", address="10.0.0.9:9000")).wait(30)
    found = {address for text in texts_within(registrar) for address in addresses[:2] if address in text}
    registrar.close()
    assert not found


def test_whoever_waits_may_wait_for_as_long_as_they_like() -> None:
    registrar = Registrar(MemoryEtcd(), (Jupiter(),), stop_seconds=1e12)
    registration = registrar.register(Endpoint(name="greeter", address="10.0.0.1:9000"))
    assert registration.wait(math.inf)
    assert registration.wait(1e12)
    assert registrar.close()


class InACall:
    """A watch that is in a call to etcd, which its end does not end."""

    def __init__(self, watch: Any, etcd: "SlowToAnswer") -> None:
        self._watch, self._etcd = watch, etcd
        self.close = watch.close

    def __iter__(self) -> Iterator[WatchUpdate]:
        self._etcd.asked.set()
        self._etcd.may_answer.wait(120)
        yield from self._watch


class SlowToAnswer(MemoryEtcd):
    """An etcd that carries all out, and whose watches are listed late."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.may_answer = threading.Event(), threading.Event()

    def list_watch(self, *prefixes: bytes) -> Any:
        return InACall(super().list_watch(*prefixes), self)


def test_a_fork_waits_for_who_listens_to_a_watch() -> None:
    """Who is in gRPC while the process forks makes the child crash."""
    etcd = SlowToAnswer()
    registrar = Registrar(etcd, [Jupiter()])
    registrar.register(GREETER)
    assert etcd.asked.wait(60)
    wait = registrar.worker.before_fork()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait, 120)
        try:
            with pytest.raises(TimeoutError):
                waiting.result(0.5)
        finally:
            etcd.may_answer.set()
        waiting.result(60)
    registrar.worker.after_fork_in_parent()
    assert registrar.close()


def test_a_fork_waits_for_no_watch_that_ends_later_than_it_may_wait() -> None:
    etcd = SlowToClose()
    registrar = Registrar(etcd, [Jupiter()])
    assert registrar.register(GREETER).wait(60)
    wait = registrar.worker.before_fork()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait, 0.1)
        try:
            waiting.result(60)
        finally:
            etcd.may_close.set()
    registrar.worker.after_fork_in_parent()
    assert registrar.close()

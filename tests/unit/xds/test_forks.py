"""Forks: what is taken out of gRPC for one stays out until that is over, and comes back whatever fails."""

import gc
import threading
import weakref
from collections.abc import Callable

import pytest

from grpc_etcd.xds.control_plane import Process
from testbed.conditions import wait_until


class Part:
    """What is taken out for forks."""

    def __init__(self, *, fails: bool = False) -> None:
        self.taken_out = self.let_in = 0
        self._fails = fails

    def before_fork(self) -> None:
        self.taken_out += 1

    def after_fork_in_parent(self) -> None:
        self.let_in += 1
        if self._fails:
            raise RuntimeError("no way back")

    def after_fork_in_child(self) -> None:
        pass


def test_a_second_thread_forks_after_the_first_and_not_amid_it() -> None:
    process, part = Process(), Part()
    process.take_along(part)
    process.before_fork()

    def fork() -> None:
        process.before_fork()
        process.after_fork_in_parent()

    other = threading.Thread(target=fork)
    other.start()
    other.join(0.3)
    assert (part.taken_out, part.let_in) == (1, 0)
    process.after_fork_in_parent()
    other.join(30)
    wait_until(lambda: (part.taken_out, part.let_in) == (2, 2), "the second fork")


def test_one_that_cannot_go_on_keeps_no_other_from_it(caplog: pytest.LogCaptureFixture) -> None:
    process = Process()
    parts = [Part(fails=True), Part(fails=True), Part()]
    for part in parts:
        process.take_along(part)
    process.before_fork()
    process.after_fork_in_parent()
    assert [part.let_in for part in parts] == [1, 1, 1]
    assert "no way back" in caplog.text


class Slow(Part):
    """What never gets its threads out in time."""

    def __init__(self, log: list[float | str]) -> None:
        super().__init__()
        self._log = log

    def before_fork(self) -> Callable[[float], object]:  # type: ignore[override]  # a Forkable may return one
        self._log.append("told")
        return self._wait

    def _wait(self, seconds: float) -> None:
        self._log.append(seconds)
        threading.Event().wait(seconds)


def test_a_fork_waits_once_for_all_and_not_for_each(caplog: pytest.LogCaptureFixture) -> None:
    process, log = Process(), list[float | str]()
    parts = [Slow(log) for _ in range(4)]
    for part in parts:
        process.take_along(part)
    process.before_fork()
    process.after_fork_in_parent()
    assert log[:4] == ["told"] * 4, "each begins to leave at once"
    waits = [each for each in log[4:] if isinstance(each, float)]
    assert waits[0] > 0.5
    assert max(waits[1:]) < 0.1, "the time of all was over with the first"
    assert [part.let_in for part in parts] == [1] * 4
    assert not caplog.records


class Failing(Part):
    """What fails at leaving."""

    def before_fork(self) -> None:
        raise RuntimeError("no way out")


def test_one_that_cannot_leave_keeps_no_other_from_it(caplog: pytest.LogCaptureFixture) -> None:
    process, parts = Process(), [Failing(), Part(), Failing()]
    for part in parts:
        process.take_along(part)
    process.before_fork()
    process.after_fork_in_parent()
    assert [part.taken_out for part in parts] == [0, 1, 0]
    assert [part.let_in for part in parts] == [1, 1, 1]
    assert "no way out" in caplog.text


def test_what_was_taken_out_is_not_kept_until_the_next_fork() -> None:
    """Closed registries were, with all that they had known."""
    process, part = Process(), Part()
    process.take_along(part)
    process.before_fork()
    process.after_fork_in_parent()
    gone = weakref.ref(part)
    del part
    gc.collect()
    assert gone() is None

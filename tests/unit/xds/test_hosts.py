"""Host names among the addresses: looked up, looked up again, and never lost to a name server that is away."""

import threading
from collections.abc import Iterator

import pytest

from grpc_etcd.xds.hosts import HostNames
from grpc_etcd.xds.resources import Socket
from testbed.conditions import wait_until


class Names:
    """A zone that changes while it is asked."""

    def __init__(self) -> None:
        self.zone: dict[str, tuple[str, ...] | str] = {}
        self.changed = threading.Semaphore(0)
        self.resolved = HostNames(self.changed.release, self.zone.__getitem__, refresh_seconds=0.01)

    def answer(self, host: str, found: tuple[str, ...] | str) -> None:
        """Change what a name stands for, and wait until that has been noticed."""
        self.zone[host] = found
        assert self.changed.acquire(timeout=30)


@pytest.fixture
def names() -> Iterator[Names]:
    made = Names()
    made.zone["greeter"] = ("10.0.0.1",)
    yield made
    made.resolved.close()


def test_a_name_is_pending_until_it_is_looked_up_for_the_first_time(names: Names) -> None:
    assert names.resolved.is_pending("greeter")
    names.resolved.use(["greeter"])
    assert names.changed.acquire(timeout=30)
    assert not names.resolved.is_pending("greeter")
    assert names.resolved.sockets("greeter", 80) == (Socket("10.0.0.1", 80),)


def test_a_name_that_stands_for_something_else_is_noticed(names: Names) -> None:
    names.resolved.use(["greeter"])
    assert names.changed.acquire(timeout=30)
    names.answer("greeter", ("10.0.0.2", "10.0.0.3"))
    assert names.resolved.sockets("greeter", 80) == (Socket("10.0.0.2", 80), Socket("10.0.0.3", 80))


def test_a_name_server_that_is_away_takes_no_endpoint_away(names: Names) -> None:
    names.resolved.use(["greeter"])
    assert names.changed.acquire(timeout=30)
    names.answer("greeter", "no DNS server responds")
    assert names.resolved.fault("greeter") == "no DNS server responds"
    assert names.resolved.sockets("greeter", 80) == (Socket("10.0.0.1", 80),)
    names.answer("greeter", ("10.0.0.2",))
    assert names.resolved.fault("greeter") is None
    assert names.resolved.sockets("greeter", 80) == (Socket("10.0.0.2", 80),)


def test_a_name_that_is_no_longer_in_use_is_forgotten(names: Names) -> None:
    names.resolved.use(["greeter"])
    assert names.changed.acquire(timeout=30)
    names.resolved.use([])
    assert names.resolved.sockets("greeter", 80) == ()


def test_a_silent_name_server_holds_up_no_other_name() -> None:
    silent = threading.Event()
    changed = threading.Semaphore(0)

    def ask(host: str) -> tuple[str, ...]:
        if host.startswith("silent"):
            silent.wait(60)
        return ("10.0.0.1",)

    names = HostNames(changed.release, ask, look_up_seconds=0.2)
    names.use([f"silent-{number}" for number in range(40)] + ["greeter"])
    wait_until(lambda: names.sockets("greeter", 80) == (Socket("10.0.0.1", 80),), "the name that is answered")
    wait_until(lambda: names.fault("silent-0") is not None, "the deadline of the others")
    assert "no DNS server responds" in str(names.fault("silent-0"))
    assert not names.is_pending("silent-0")
    silent.set()
    wait_until(lambda: names.sockets("silent-0", 80) == (Socket("10.0.0.1", 80),), "the late answer")
    assert names.fault("silent-0") is None
    names.close()


def test_a_name_that_breaks_the_look_up_breaks_nothing_else() -> None:
    def ask(host: str) -> tuple[str, ...]:
        if host == "broken":
            raise ZeroDivisionError
        return ("10.0.0.1",)

    names = HostNames(lambda: None, ask)
    names.use(["broken", "greeter"])
    wait_until(lambda: names.sockets("greeter", 80) != (), "the other name")
    wait_until(lambda: names.fault("broken") is not None, "the fault")
    names.close()


def test_a_name_that_stands_for_no_address_is_a_fault_and_not_asked_for_without_end() -> None:
    asked: list[str] = []

    def ask(host: str) -> tuple[str, ...]:
        asked.append(host)
        return () if host == "link-local" else ("10.0.0.1",)

    names = HostNames(lambda: None, ask)
    names.use(["link-local"])
    wait_until(lambda: names.fault("link-local"), "the fault")
    assert not names.is_pending("link-local")
    names.use(["link-local", "greeter"])
    wait_until(lambda: names.sockets("greeter", 80), "another name")
    assert asked.count("link-local") == 1
    names.close()

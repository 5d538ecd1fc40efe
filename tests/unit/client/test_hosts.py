"""Host names among the addresses: looked up, looked up again, and never lost to a name server that is away."""

import threading
from collections.abc import Iterator

import pytest

from grpc_etcd.xds.hosts import HostNames
from grpc_etcd.xds.resources import Socket


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
    names.answer("greeter", "no name server answers")
    assert names.resolved.fault("greeter") == "no name server answers"
    assert names.resolved.sockets("greeter", 80) == (Socket("10.0.0.1", 80),)
    names.answer("greeter", ("10.0.0.2",))
    assert names.resolved.fault("greeter") is None
    assert names.resolved.sockets("greeter", 80) == (Socket("10.0.0.2", 80),)


def test_a_name_that_is_no_longer_in_use_is_forgotten(names: Names) -> None:
    names.resolved.use(["greeter"])
    assert names.changed.acquire(timeout=30)
    names.resolved.use([])
    assert not names.resolved.in_use
    assert names.resolved.sockets("greeter", 80) == ()

"""We read what the frameworks' own writers put: while they run, when they are killed, when they leave."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

import pytest

from grpc_etcd.etcd import Deleted, Put, WatchEvents, WatchSnapshot
from grpc_etcd.registry.endpoint import Endpoint, Kind
from grpc_etcd.registry.snapshot import Snapshot, SnapshotBuilder
from testbed.conditions import wait_until
from tests.interop.conftest import LAYOUTS, Interop

pytestmark = pytest.mark.interop

GREETER = "greeter"
ADDRESS = "127.0.1.5:9000"
FLAGS = (f"--address={ADDRESS}", "--metadata=team=shop,version=v2", "--weight=7", "--id=4242")
# How long a dead writer's key stays: its lease. Jupiter 0.2.7 puts none by default, its keys stay for ever.
SHORT_LEASES = ["naming", "gozero"]

every_program = pytest.mark.parametrize("interop", LAYOUTS, indirect=True)


class Following:
    """Our own reader of the service: what it last published."""

    def __init__(self, interop: Interop) -> None:
        self._builder = SnapshotBuilder(GREETER, [interop.layout])
        self._watch = interop.etcd.list_watch(*self._builder.prefixes)
        self.snapshot: Snapshot | None = None
        self._thread = Thread(target=self._follow)
        self._thread.start()

    def _follow(self) -> None:
        for news in self._watch:
            match news:
                case WatchSnapshot(records, revision):
                    self._builder.replace(((record.key, record.value) for record in records), revision)
                case WatchEvents(events, revision):
                    self._builder.apply((_change(event) for event in events), revision)
                case _:
                    continue
            self.snapshot = self._builder.snapshot()

    def addresses(self) -> list[str] | None:
        return None if self.snapshot is None else [endpoint.address for endpoint in self.snapshot.endpoints]

    def close(self) -> None:
        self._watch.close()
        self._thread.join()


def _change(event: Put | Deleted) -> tuple[bytes, bytes | None]:
    return (event.record.key, event.record.value) if isinstance(event, Put) else (event.key, None)


@contextmanager
def following(interop: Interop) -> Iterator[Following]:
    reader = Following(interop)
    try:
        yield reader
    finally:
        reader.close()


def _only_endpoint(interop: Interop) -> Endpoint:
    listing = interop.etcd.get_prefix(interop.layout.prefix(GREETER))
    read = [interop.layout.decode(GREETER, record.key, record.value) for record in listing.records]
    assert len(read) == 1
    assert isinstance(read[0], Endpoint), read
    return read[0]


@every_program
def test_what_it_registers_is_read_while_it_runs_and_after_it_was_killed(interop: Interop) -> None:
    with following(interop) as reader, interop.run("register", *FLAGS).start() as writer:
        writer.wait_for("registered")
        wait_until(lambda: reader.addresses() == [ADDRESS], "our reader to see it")
        running = _only_endpoint(interop)
        if interop.program != "gozero":
            assert {"team": "shop", "version": "v2"}.items() <= running.metadata.items()
        if interop.program in {"jupiter027", "jupiter011", "kitex"}:
            assert running.weight == 7
        writer.kill()
        assert _only_endpoint(interop) == running
        assert reader.addresses() == [ADDRESS]


@pytest.mark.parametrize("interop", SHORT_LEASES, indirect=True)
def test_a_killed_writer_is_gone_with_its_lease(interop: Interop) -> None:
    with following(interop) as reader, interop.run("register", *FLAGS).start() as writer:
        writer.wait_for("registered")
        wait_until(lambda: reader.addresses() == [ADDRESS], "our reader to see it")
        writer.kill()
        wait_until(lambda: reader.addresses() == [], "its lease to run out")


@every_program
def test_a_writer_that_leaves_is_gone(interop: Interop) -> None:
    with following(interop) as reader, interop.run("register", *FLAGS).start() as writer:
        writer.wait_for("registered")
        wait_until(lambda: reader.addresses() == [ADDRESS], "our reader to see it")
        writer.terminate()
        wait_until(lambda: reader.addresses() == [], "our reader to see it gone")


@pytest.mark.parametrize("interop", ["jupiter027", "jupiter011"], indirect=True)
def test_a_disabled_endpoint_is_read_as_disabled(interop: Interop) -> None:
    with interop.run("register", *FLAGS, "--disabled").start() as writer:
        writer.wait_for("registered")
        assert not _only_endpoint(interop).enable


@pytest.mark.parametrize(
    ("interop", "key"),
    [
        ("jupiter027", b"/jupiter/greeter/governors/http://127.0.1.5:9000"),
        ("jupiter011", b"govern:greeter:v1:unknown-mode/127.0.1.5:9000"),
    ],
    indirect=["interop"],
)
def test_a_governor_is_read_as_one(interop: Interop, key: bytes) -> None:
    with interop.run("register", *FLAGS, "--governor").start() as writer:
        writer.wait_for("registered")
        record = interop.etcd.get(key)
        assert record is not None
        governor = interop.layout.decode(GREETER, key, record.value)
    assert isinstance(governor, Endpoint)
    assert (governor.kind, governor.address) == (Kind.GOVERNOR, ADDRESS)

"""What etcd refuses of one registration concerns it alone: others are written, and all can be deregistered."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from grpc_etcd import Registry
from grpc_etcd.etcd import Etcd, NoSpace, PermissionDenied
from grpc_etcd.etcd.errors import RequestTooLarge
from testbed.conditions import wait_until
from testbed.etcd import EtcdServer

from .conftest import ENDPOINT, KEY

PASSWORD = "secret"  # noqa: S105 - of an etcd that lasts for one test
OTHER = replace(ENDPOINT, name="other")
SECOND = replace(ENDPOINT, address="127.0.9.2:9000")
THIRD = replace(ENDPOINT, address="127.0.9.3:9000")
HUGE = replace(SECOND, metadata={"much": "x" * 3_000_000})
SOON_SECONDS = 3  # a lot for one write, and less than the pauses between the tries that are refused


@pytest.fixture
def admin(own_etcd: EtcdServer) -> str:
    """An etcd with a user who may write one service."""
    admin = own_etcd.enable_auth(PASSWORD)
    own_etcd.add_user("narrow", PASSWORD, [f"/jupiter/{ENDPOINT.name}/", "/grpc-etcd/registered-by/"], admin=admin)
    return admin


@pytest.fixture
def narrow(own_etcd: EtcdServer, admin: str) -> Iterator[Registry]:
    assert admin
    with Registry(own_etcd.endpoints, user="narrow", password=PASSWORD) as registry:
        yield registry


def test_a_service_that_may_not_be_written_holds_up_no_other(
    own_etcd: EtcdServer, admin: str, narrow: Registry
) -> None:
    own_etcd.etcdctl("role", "grant-permission", "--prefix=true", "narrow", "read", "/jupiter/", user=admin)
    denied = narrow.register(OTHER, allow_unroutable=True)
    wait_until(lambda: isinstance(denied.status.fault, PermissionDenied), "it is refused")
    allowed = narrow.register(ENDPOINT, allow_unroutable=True)
    assert allowed.wait(30)
    assert allowed.status.fault is None
    assert isinstance(denied.status.fault, PermissionDenied)


def test_a_service_that_may_not_be_read_holds_up_no_other(own_etcd: EtcdServer, admin: str, narrow: Registry) -> None:
    first = narrow.register(ENDPOINT, allow_unroutable=True)
    assert first.wait(30)
    denied = narrow.register(OTHER, allow_unroutable=True)
    wait_until(lambda: isinstance(denied.status.fault, PermissionDenied), "it is refused")
    assert narrow.register(SECOND, allow_unroutable=True).wait(30)
    own_etcd.etcdctl("del", KEY.decode(), user=admin)
    wait_until(lambda: own_etcd.etcdctl("get", KEY.decode(), user=admin), "what is deleted is put back")
    assert first.status.fault is None
    own_etcd.etcdctl("role", "grant-permission", "--prefix=true", "narrow", "readwrite", "/jupiter/", user=admin)
    assert denied.wait(30), "it is tried again"
    assert denied.status.fault is None


def test_a_service_that_may_not_be_read_is_deregistered_at_once(narrow: Registry) -> None:
    assert narrow.register(ENDPOINT, allow_unroutable=True).wait(30)
    denied = narrow.register(OTHER, allow_unroutable=True)
    wait_until(lambda: isinstance(denied.status.fault, PermissionDenied), "it is refused")
    assert denied.unregister(30), "nothing of it was ever written"


def test_a_record_that_is_too_large_holds_up_none_of_its_service(etcd: EtcdServer) -> None:
    with Registry(etcd.endpoints) as registry:
        huge = registry.register(HUGE, allow_unroutable=True)
        wait_until(lambda: isinstance(huge.status.fault, RequestTooLarge), "it is refused")
        assert registry.register(ENDPOINT, allow_unroutable=True).wait(30)
        assert isinstance(huge.status.fault, RequestTooLarge)
        huge.update(metadata={"much": "less"})
        assert huge.wait(SOON_SECONDS), "what is changed is tried at once"
        assert huge.status.fault is None


@pytest.fixture
def small() -> Iterator[EtcdServer]:
    with EtcdServer.start(flags=["--quota-backend-bytes=6000000"]) as server:
        yield server


def fill(server: EtcdServer, client: Etcd) -> None:
    """Write until etcd has no space left."""
    number = 0
    while "NOSPACE" not in server.etcdctl("alarm", "list", check=False):
        with contextlib.suppress(NoSpace):
            client.put(f"filler-{number}".encode(), b"x" * 500_000)
        number += 1


def make_room(server: EtcdServer, client: Etcd) -> None:
    server.etcdctl("del", "--prefix", "filler-")
    server.etcdctl("compact", str(client.get_prefix(b"/").revision))
    server.etcdctl("defrag")
    server.etcdctl("alarm", "disarm")


def test_an_etcd_without_space_deregisters_beside_what_waits_for_space(small: EtcdServer) -> None:
    """A transaction with a put is refused there, one that only deletes is not."""
    with Etcd(small.endpoints) as client, Registry(small.endpoints) as registry:
        first = registry.register(ENDPOINT, allow_unroutable=True)
        second = registry.register(SECOND, allow_unroutable=True)
        assert first.wait(30)
        assert second.wait(30)
        wait_until(lambda: client.get_prefix(b"/jupiter/greeter/settled/").records, "the burst is over")
        fill(small, client)
        late = registry.register(THIRD, allow_unroutable=True)
        second.update(weight=7)
        wait_until(lambda: late.status.fault and second.status.fault, "both wait for space")
        begun = time.monotonic()
        assert first.unregister(SOON_SECONDS)
        assert time.monotonic() - begun < SOON_SECONDS
        assert client.get(KEY) is None
        make_room(small, client)
        assert late.wait(30)
        assert second.wait(30)
        found = {each.address: each.weight for each in registry.read_endpoints(ENDPOINT.name)}
        assert found == {SECOND.address: 7, THIRD.address: 100}


def log_of(registry: Registry, caplog: pytest.LogCaptureFixture) -> str:
    """Return what the log has of a registration that is refused until its registry is closed."""
    caplog.set_level("INFO", "grpc_etcd")
    with registry:
        registry.register(OTHER, allow_unroutable=True)
        wait_until(lambda: "Registration delayed" in caplog.text, "it is refused")
    assert "again after" not in caplog.text, "etcd was there all the time, and has changed its mind about nothing"
    assert "deregistered" not in caplog.text, "it never was registered"
    return caplog.text


def test_what_is_refused_is_logged_with_the_grant_that_is_missing(
    own_etcd: EtcdServer, admin: str, caplog: pytest.LogCaptureFixture
) -> None:
    own_etcd.add_user("reader", PASSWORD, ["/jupiter/", "/grpc-etcd/"], admin=admin, access="read")
    said = log_of(Registry(own_etcd.endpoints, user="reader", password=PASSWORD), caplog)
    assert "--prefix=true readwrite /jupiter/other/" in said


def test_a_login_that_is_refused_is_logged_with_what_to_do(
    own_etcd: EtcdServer, admin: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert admin
    said = log_of(Registry(own_etcd.endpoints, user="narrow", password="wrong"), caplog)  # noqa: S106  as is tested
    assert "Set the correct user and password" in said
    assert "Without etcd" not in said

"""What a server may register with the role of docs/operations.md, and with less than that."""

import logging
import re
from collections.abc import Iterator

import pytest

from grpc_etcd import Registry
from grpc_etcd.etcd import Etcd
from testbed.build import ROOT
from testbed.conditions import wait_until
from testbed.etcd import EtcdServer

from .conftest import ENDPOINT, KEY

PAGE = ROOT / "docs/operations.md"
GRANT = re.compile(r"^etcdctl role grant-permission --prefix=true grpc-server readwrite (\S+)$", re.MULTILINE)
PASSWORD = "secret"  # noqa: S105 - of an etcd that lasts for one test


@pytest.fixture
def root(own_etcd: EtcdServer) -> Iterator[Etcd]:
    admin = own_etcd.enable_auth(PASSWORD)
    prefixes = GRANT.findall(PAGE.read_text(encoding="utf-8"))
    assert len(prefixes) == 2
    own_etcd.add_user("server", PASSWORD, prefixes, admin=admin)
    own_etcd.add_user("narrow", PASSWORD, ["/jupiter/"], admin=admin)
    with Etcd(own_etcd.endpoints, user="root", password=PASSWORD) as client:
        yield client


def registry(etcd: EtcdServer, user: str) -> Registry:
    return Registry(etcd.endpoints, user=user, password=PASSWORD)


def test_the_documented_server_hands_its_address_on(own_etcd: EtcdServer, root: Etcd) -> None:
    with registry(own_etcd, "server") as first, registry(own_etcd, "server") as second:
        assert first.register(ENDPOINT, allow_unroutable=True).wait(60)
        leaving = second.register(ENDPOINT, allow_unroutable=True)
        assert leaving.wait(60)
        created = root.get(KEY)
        assert created
        assert leaving.unregister(60)
        kept = root.get(KEY)
        assert kept
        assert kept.create_revision == created.create_revision, "it was never away"
    assert root.get(KEY) is None
    assert root.get_prefix(b"/grpc-etcd/registered-by").records == ()


def test_a_server_without_the_right_to_process_keys_is_registered_all_the_same(
    own_etcd: EtcdServer, root: Etcd, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "grpc_etcd")
    with registry(own_etcd, "narrow") as first, registry(own_etcd, "narrow") as second:
        survivor = first.register(ENDPOINT, allow_unroutable=True)
        assert survivor.wait(60)
        assert survivor.status.fault is None
        assert "not allowed to write the process keys" in caplog.text
        leaving = second.register(ENDPOINT, allow_unroutable=True)
        assert leaving.wait(60)
        assert leaving.unregister(60)
        wait_until(lambda: root.get(KEY), "the other puts it back")
        assert survivor.wait(60)
    assert root.get(KEY) is None


def test_a_password_that_cannot_be_had_for_a_while_is_an_outage_like_any_other(
    own_etcd: EtcdServer, root: Etcd
) -> None:
    tries: list[None] = []

    def password() -> str:
        tries.append(None)
        if len(tries) <= 4:
            raise RuntimeError("the vault is sealed")
        return PASSWORD

    with Registry(own_etcd.endpoints, user="server", password=password) as registry:
        registration = registry.register(ENDPOINT, allow_unroutable=True)
        wait_until(lambda: registration.status.fault, "the reason is told")
        assert registration.wait(60)
    assert root.get(KEY) is None

"""TLS and mutual TLS, and files that are replaced while a client runs."""

import contextlib
import shutil
from pathlib import Path

import pytest

from grpc_etcd.etcd import Tls, Unavailable
from testbed.certificates import Authority, Certificate
from testbed.conditions import wait_until
from testbed.etcd import EtcdServer
from testbed.proxy import TcpProxy

from .conftest import Client, Opened


def copied(certificate: Certificate | None, folder: Path) -> Tls:
    """Copy a certificate's files to where a client reads them; done again, that is a rotation."""
    assert certificate
    folder.mkdir(exist_ok=True)
    for source, name in ((certificate.ca, "ca.pem"), (certificate.cert, "tls.crt"), (certificate.key, "tls.key")):
        shutil.copy(source, folder / name)
    return Tls(folder / "ca.pem", folder / "tls.crt", folder / "tls.key")


def test_tls_without_a_client_certificate(closing: contextlib.ExitStack, opened: Opened) -> None:
    server = closing.enter_context(EtcdServer.start(tls=True))
    client = opened(server.endpoints, tls=Tls(ca=server.authority.ca))
    client.put(b"k", b"v")
    assert client.get(b"k").value == b"v"


def test_an_authority_that_is_not_trusted_is_refused(
    closing: contextlib.ExitStack, opened: Opened, tmp_path: Path
) -> None:
    server = closing.enter_context(EtcdServer.start(tls=True))
    stranger = Authority(tmp_path / "stranger")
    with pytest.raises(Unavailable):
        opened(server.endpoints, tls=Tls(ca=stranger.ca)).get(b"k")


@pytest.mark.faults
def test_mutual_tls_over_three_members_of_which_one_dies(closing: contextlib.ExitStack, opened: Opened) -> None:
    server = closing.enter_context(EtcdServer.start(members=3, client_certificates=True))
    certificate = server.client_certificate
    client = opened(server.urls, tls=Tls(certificate.ca, certificate.cert, certificate.key, "localhost"))
    follower = client.follow(b"k/")
    follower.wait_listed()
    client.put(b"k/1", b"")
    server.members[0].kill()
    wait_until(lambda: works(client), "another member answers")
    client.put(b"k/2", b"")
    follower.wait(lambda: set(follower.view()) == {b"k/1", b"k/2"}, "both")


@pytest.mark.faults
def test_replaced_client_files_are_picked_up(closing: contextlib.ExitStack, opened: Opened, tmp_path: Path) -> None:
    server = closing.enter_context(EtcdServer.start(client_certificates=True))
    stranger = Authority(tmp_path / "stranger").issue("client")
    client = opened(server.endpoints, tls=copied(stranger, tmp_path / "files"))
    follower = client.follow(b"k/")
    follower.wait_lost(Unavailable)
    copied(server.client_certificate, tmp_path / "files")
    follower.wait_listed()
    wait_until(lambda: works(client), "calls use the new files too")


@pytest.mark.faults
def test_server_and_client_certificates_replaced_under_a_running_watch(
    closing: contextlib.ExitStack, opened: Opened, tmp_path: Path
) -> None:
    server = closing.enter_context(EtcdServer.start(client_certificates=True))
    proxy = closing.enter_context(TcpProxy.start(server.members[0].endpoint))
    client = opened(proxy.address, tls=copied(server.client_certificate, tmp_path / "files"))
    follower = client.follow(b"k/")
    follower.wait_listed()
    server.authority.issue("server")  # etcd reads its files anew for each connection
    copied(server.authority.issue("client"), tmp_path / "files")
    proxy.cut()
    follower.wait_lost()
    follower.wait_connected()
    client.put(b"k/1", b"")
    follower.wait_events(1)


def works(client: Client) -> bool:
    try:
        client.get(b"k")
    except Unavailable:
        return False
    return True

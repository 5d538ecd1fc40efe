"""TLS and mutual TLS, and files that are replaced while a client runs."""

import contextlib
import gc
import os
import shutil
import subprocess
import sys
from pathlib import Path

import grpc
import grpc.aio
import pytest

from grpc_etcd import Registry
from grpc_etcd.etcd import DeadlineExceeded, Tls, Unavailable
from testbed.certificates import Authority, Certificate
from testbed.conditions import existing, wait_until
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
    client = opened(server.endpoints, tls=Tls(ca=existing(server.authority).ca))
    client.put(b"k", b"v")
    assert existing(client.get(b"k")).value == b"v"


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
    certificate = existing(server.client_certificate)
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
    client.put(b"k/0", b"")
    follower.wait_events(1)  # so there is a watch to be cut
    existing(server.authority).issue("server")  # etcd reads its files again for each connection
    copied(existing(server.authority).issue("client"), tmp_path / "files")
    proxy.cut()
    follower.wait_lost()
    follower.wait_connected()
    client.put(b"k/1", b"")
    follower.wait_events(2)


def test_an_outage_is_called_by_what_keeps_it_up_not_by_how_it_began(
    closing: contextlib.ExitStack, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = closing.enter_context(EtcdServer.start(tls=True))
    proxy = closing.enter_context(TcpProxy.start(server.endpoints))
    ca = tmp_path / "ca.pem"
    shutil.copy(existing(server.authority).ca, ca)
    registry = closing.enter_context(Registry(f"https://{proxy.address}", ca=str(ca)))
    closing.enter_context(registry.on_change("greeter", lambda _: None))
    wait_until(lambda: registry.stats()["greeter"].cause == "no such service", "it is followed")
    trust(server, Authority(tmp_path / "other"))  # etcd reads its files again for each connection
    proxy.cut()
    wait_until(lambda: "CERTIFICATE_VERIFY_FAILED" in registry.stats()["greeter"].error, "it is named")
    assert registry.stats()["greeter"].cause == "TLS to etcd failed"
    reported = [each.getMessage() for each in caplog.records if getattr(each, "event", "") == "etcd_unavailable"]
    assert any("Set the CA that signed etcd's certificate" in each for each in reported)
    assert len(reported) == len(set(reported)), "each once"
    shutil.copy(existing(server.authority).ca, ca)
    wait_until(lambda: registry.stats()["greeter"].connected, "it is followed again")


def test_whoever_keeps_errors_keeps_no_channel_with_files_of_before(
    closing: contextlib.ExitStack, opened: Opened, tmp_path: Path
) -> None:
    """It would dial for ever, and be refused each time. The operator all but never collects garbage."""
    server = closing.enter_context(EtcdServer.start(client_certificates=True))
    client = opened(server.endpoints, tls=copied(server.client_certificate, tmp_path / "files"))
    client.put(b"k", b"")
    gc.collect()
    closing.callback(gc.enable)
    gc.disable()
    before, kept = open_channels(), []
    for number in range(2):
        server.kill()
        with pytest.raises((Unavailable, DeadlineExceeded)) as caught:
            client.put(b"k", b"")
        kept.append(caught.value)
        trust(server, Authority(tmp_path / f"other{number}"))
        copied(existing(server.authority).issue("client"), tmp_path / "files")
        server.restart()
        wait_until(lambda: works(client), "it is connected again")
    wait_until(lambda: works(client) and open_channels() == before, "the channels of before have ended")
    assert len(kept) == 2


def trust(server: EtcdServer, authority: Authority) -> None:
    """Give etcd a certificate of another authority, and that alone to trust, for its next start."""
    assert server.authority
    assert server.client_certificate
    folder = server.client_certificate.ca.parent
    made = authority.issue("server")
    for source, name in ((made.ca, "ca.pem"), (made.cert, "server.pem"), (made.key, "server.key")):
        shutil.copy(source, folder / name)
    server.authority = authority


def open_channels() -> int:
    return sum(isinstance(each, grpc.Channel | grpc.aio.Channel) for each in gc.get_objects())


def works(client: Client) -> bool:
    try:
        client.get(b"k")
    except (Unavailable, DeadlineExceeded):
        return False
    return True


def test_https_without_a_ca_trusts_public_authorities_and_needs_no_files(closing: contextlib.ExitStack) -> None:
    server = closing.enter_context(EtcdServer.start(tls=True))
    program = "import sys; from grpc_etcd.etcd import Etcd; print(Etcd(sys.argv[1]).put(b'k', b'v'))"
    # In a process of its own, to which the test's authority is a public one.
    environment = {**os.environ, "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(existing(server.authority).ca)}
    command = [sys.executable, "-c", program, server.urls]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 1

"""Users, passwords and permissions, and what becomes of them while a client runs."""

import contextlib
import threading
import time
from pathlib import Path

import pytest

from grpc_etcd.etcd import AuthFailed, Etcd, EtcdError, Listed, Lost, PermissionDenied, Tls, TokenRefused
from testbed.conditions import existing, wait_until
from testbed.etcd import EtcdServer

from .conftest import Client, Opened, wait_renewed

ADMIN = "root:secret"


@pytest.fixture
def guarded(closing: contextlib.ExitStack) -> EtcdServer:
    """An etcd with authentication; the user app may use app/ only."""
    server = closing.enter_context(EtcdServer.start())
    assert server.enable_auth("secret") == ADMIN
    server.add_user("app", "first", ["app/"], admin=ADMIN)
    return server


def test_a_user_may_do_what_its_role_grants_and_no_more(guarded: EtcdServer, opened: Opened) -> None:
    client = opened(guarded.endpoints, user="app", password="first")  # noqa: S106
    client.put(b"app/1", b"x")
    assert len(client.get_prefix(b"app/").records) == 1
    with pytest.raises(PermissionDenied) as caught:
        client.put(b"else", b"x")
    assert "grant-permission" in caught.value.remedy
    follower = client.follow(b"app/")
    follower.wait_listed()
    client.put(b"app/2", b"y")
    follower.wait_events(1)


def test_wrong_and_missing_passwords_are_told_apart(guarded: EtcdServer, opened: Opened) -> None:
    with pytest.raises(AuthFailed) as caught:
        opened(guarded.endpoints, user="app", password="wrong").get(b"app/1")  # noqa: S106
    assert not isinstance(caught.value, TokenRefused)
    with pytest.raises(AuthFailed):
        opened(guarded.endpoints).get(b"app/1")


def test_a_refused_list_watch_says_so_and_starts_when_permission_comes(guarded: EtcdServer, opened: Opened) -> None:
    follower = opened(guarded.endpoints, user="app", password="first").follow(b"other/")  # noqa: S106
    lost = follower.wait_lost(PermissionDenied)
    assert "grant-permission" in lost.error.remedy
    assert not follower.state.connected
    assert isinstance(follower.state.error, PermissionDenied)
    guarded.etcdctl("role", "grant-permission", "--prefix=true", "app", "readwrite", "other/", user=ADMIN)
    follower.wait_listed()
    assert follower.state.connected


def test_a_user_for_an_etcd_that_asks_for_none(etcd: EtcdServer, opened: Opened) -> None:
    client = opened(etcd.endpoints, user="app", password="first")  # noqa: S106
    client.put(b"k", b"v")
    assert existing(client.get(b"k")).value == b"v"


def test_authentication_enabled_while_connected(own_etcd: EtcdServer, opened: Opened) -> None:
    client = opened(own_etcd.endpoints, user="root", password="secret")  # noqa: S106
    client.put(b"k", b"1")
    follower = client.follow(b"k")
    follower.wait_listed()
    own_etcd.enable_auth("secret")
    client.put(b"k", b"2")
    follower.wait_events(1)


@pytest.fixture
def certified(closing: contextlib.ExitStack) -> EtcdServer:
    """An etcd that asks for client certificates: without a token one is the user that the certificate names."""
    return closing.enter_context(EtcdServer.start(client_certificates=True))


def open_certified(server: EtcdServer, opened: Opened) -> Client:
    mine = server.client_certificate
    assert mine
    return opened(server.endpoints, tls=Tls(mine.ca, mine.cert, mine.key), user="root", password="secret")  # noqa: S106


def test_authentication_enabled_where_clients_show_certificates(certified: EtcdServer, opened: Opened) -> None:
    client = open_certified(certified, opened)
    client.put(b"k", b"1")
    certified.enable_auth("secret")
    client.put(b"k", b"2")
    assert existing(client.get(b"k")).value == b"2"


@pytest.mark.faults
def test_a_list_watch_alone_outlives_that(certified: EtcdServer, opened: Opened) -> None:
    follower = open_certified(certified, opened).follow(b"k")
    follower.wait_listed()
    certified.enable_auth("secret")
    certified.etcdctl("put", "k", "1", user=ADMIN)
    follower.wait_events(1)
    certified.restart()
    certified.etcdctl("put", "k", "2", user=ADMIN)
    follower.wait(lambda: follower.view() == {b"k": b"2"}, "the list-watch goes on")


@pytest.mark.faults
def test_leases_alone_outlive_that(certified: EtcdServer, opened: Opened) -> None:
    client, judge = open_certified(certified, opened), open_certified(certified, opened)
    keeper = client.keep_alive(print)
    lease = client.lease(15)
    client.put(b"k", b"", lease=lease)
    keeper.add(lease, 15, remaining_seconds=0)
    wait_until(lambda: keeper.state.connected, "the stream is open")
    certified.enable_auth("secret")
    wait_renewed(judge, lease)
    wait_renewed(judge, lease)  # once may be what was asked before


@pytest.mark.faults
def test_a_token_that_ran_out_is_renewed(closing: contextlib.ExitStack, opened: Opened) -> None:
    server = closing.enter_context(EtcdServer.start(flags=["--auth-token-ttl=1"]))
    admin = server.enable_auth("secret")
    assert admin
    client = opened(server.endpoints, user="root", password="secret")  # noqa: S106
    follower = client.follow(b"k")
    follower.wait_listed()
    with Etcd(server.endpoints, user="root", password="secret") as bystander:  # noqa: S106
        stale = bystander._link._log_in(time.monotonic() + 60)
        wait_until(lambda: is_refused(server, stale), "the token has run out", 60)
    client.put(b"k", b"2")
    assert existing(client.get(b"k")).value == b"2"
    follower.wait_events(1)


@pytest.mark.faults
def test_a_token_that_runs_out_under_the_stream_is_no_outage(closing: contextlib.ExitStack, opened: Opened) -> None:
    """Each does in the end, a JWT at a fixed time: whoever follows a further range then is no news for the others."""
    server = closing.enter_context(EtcdServer.start(flags=["--auth-token-ttl=1"]))
    server.enable_auth("secret")
    client = opened(server.endpoints, user="root", password="secret")  # noqa: S106
    hub = client.hub()
    first = hub.follow(b"a/")
    first.wait_listed()
    wait_until(lambda: hub.state.connected, "the stream is open")
    with Etcd(server.endpoints, user="root", password="secret") as bystander:  # noqa: S106
        younger = bystander._link._log_in(time.monotonic() + 60)
        wait_until(lambda: is_refused(server, younger), "the stream's token has run out too", 60)
    second = hub.follow(b"b/")
    second.wait_listed()
    for follower, key in ((first, b"a/1"), (second, b"b/1")):
        client.put(key, b"")
        follower.wait(lambda f=follower, k=key: k in f.view(), "its event")
    assert not first.of(Lost) + second.of(Lost)


def is_refused(server: EtcdServer, token: tuple[tuple[str, str], ...]) -> bool:
    """Whether etcd takes a token no more; asking does prolong it, so ask seldom."""
    wait_seconds(2.5)
    with Etcd(server.endpoints) as client:
        client._link._credentials.token = token
        try:
            client.get(b"k")
        except TokenRefused:
            return True
        return False


def wait_seconds(seconds: float) -> None:
    """Let real time pass: tokens run out by the server's own clock."""
    threading.Event().wait(seconds)


@pytest.mark.faults
def test_a_password_that_was_changed_is_read_anew(guarded: EtcdServer, opened: Opened, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("first\n")
    client = opened(guarded.endpoints, user="app", password=file)
    follower = client.follow(b"app/")
    follower.wait_listed()
    change_password(guarded, "second")
    with pytest.raises(AuthFailed):
        client.put(b"app/1", b"x")
    file.write_text("second\n")
    client.put(b"app/1", b"x")
    follower.wait(lambda: follower.view() == {b"app/1": b"x"}, "the list-watch goes on")


def change_password(server: EtcdServer, password: str) -> None:
    """Remove and add the user: etcdctl's passwd asks at a terminal."""
    server.etcdctl("user", "delete", "app", user=ADMIN)
    server.etcdctl("user", "add", f"app:{password}", user=ADMIN)
    server.etcdctl("user", "grant-role", "app", "app", user=ADMIN)


@pytest.mark.faults
def test_a_restart_voids_tokens_and_nothing_is_lost(guarded: EtcdServer, opened: Opened) -> None:
    client = opened(guarded.endpoints, user="app", password="first")  # noqa: S106
    follower = client.follow(b"app/")
    follower.wait_listed()
    owed = [(b"app/0", b"", client.put(b"app/0", b""))]
    guarded.kill()
    follower.wait_lost()
    guarded.restart()
    follower.wait_connected()
    owed += [(b"app/%d" % number, b"", client.put(b"app/%d" % number, b"")) for number in range(1, 11)]
    follower.wait_events(11)
    assert follower.events() == owed
    assert len(follower.of(Listed)) == 1
    assert not [lost for lost in follower.of(Lost) if isinstance(lost.error, PermissionDenied)]


def test_an_etcd_that_lost_its_data_does_not_wait_for_ever_for_a_token_of_before(
    guarded: EtcdServer, opened: Opened
) -> None:
    for number in range(40):  # so that the token is of an index that the new store will not reach by itself
        guarded.etcdctl("put", f"app/{number}", "x", user=ADMIN)
    client = opened(guarded.endpoints, user="app", password="first")  # noqa: S106
    client.put(b"app/1", b"x")
    guarded.restart(fresh=True)
    assert guarded.enable_auth("secret") == ADMIN
    guarded.add_user("app", "first", ["app/"], admin=ADMIN)

    def is_taken() -> bool:
        with contextlib.suppress(EtcdError):
            client.put(b"app/2", b"y")
            return True
        return False

    wait_until(is_taken, "a new token is used")

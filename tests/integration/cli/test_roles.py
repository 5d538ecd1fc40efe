"""What the command line says to users with exactly the roles of docs/operations.md: nothing that it cannot know."""

import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from grpc_etcd.registry.own import OwnerRecord, leader_key, owner_key, synced_key
from testbed.build import ROOT
from testbed.etcd import EtcdServer

from .conftest import COMMAND, CommandLine

PAGE = ROOT / "docs/operations.md"
FALSE_IF_UNKNOWN = ("self-registered", "registered itself", "no operator owns", "no operator maintains")


@pytest.fixture
def owned(own_etcd: EtcdServer) -> Iterator[tuple[CommandLine, str]]:
    """A registry with users, synced, and the key of an endpoint in it that the operator has written."""
    shell = CommandLine(own_etcd)
    key = shell.put("127.0.9.1:9000")
    owner = OwnerRecord(namespace="shop", pod="greeter-0", grpc_services=("shop/greeter",), keys=(key,))
    lease = shell.etcd.lease(600)
    shell.etcd.put(owner_key("c1", "uid"), owner.to_json(), lease=lease)
    for record in (synced_key("c1"), leader_key("c1")):
        shell.etcd.put(record, b"", lease=lease)
    for line in re.findall(r"^etcdctl (role .*)$", PAGE.read_text(), re.MULTILINE):
        own_etcd.etcdctl(*line.split())
    own_etcd.etcdctl("user", "add", "nobody:secret")
    for role in ("grpc-client", "grpc-viewer"):
        own_etcd.etcdctl("user", "add", f"{role}-user:secret")
        own_etcd.etcdctl("user", "grant-role", f"{role}-user", role)
    own_etcd.enable_auth("rootpass")
    yield shell, key.decode()
    shell.close()


@pytest.fixture
def run(owned: tuple[CommandLine, str], tmp_path: Path) -> Callable[..., str]:
    """Run a command as a user."""
    password = tmp_path / "password"
    password.write_text("secret")

    def run(user: str, *arguments: str, code: int = 0) -> str:
        return owned[0].run(*arguments, "--user", user, "--password-file", str(password), code=code)

    return run


def test_the_documented_client_may_read_endpoints_and_is_told_what_it_may_not(
    owned: tuple[CommandLine, str], run: Callable[..., str]
) -> None:
    _, key = owned
    user = "grpc-client-user"
    assert "greeter" in run(user, "ls")
    got = run(user, "get", "greeter")
    assert "unknown" in got
    assert "is not allowed to read /grpc-etcd/owner/" in got
    assert '"ownerKnown": false' in run(user, "get", "greeter", "-o", "json")
    past = run(user, "history", "greeter")
    assert "is not allowed to read /grpc-etcd/owner/" in past
    assert "this user cannot read" in run(user, "history", "greeter", "--at", "1s", code=1)
    asked = run(user, "owner", key, code=1)
    assert "unknown: this user is not allowed to read /grpc-etcd/owner/" in asked
    assert "grant-permission" in asked
    # A loopback address is a fault, so `check` ends with 1 whatever it may read.
    checked = run(user, "check", "greeter", code=1)
    assert "unknown: this user is not allowed to read /grpc-etcd/owner/" in checked
    assert "an outage" not in checked, "it may read the synced key, and so may its clients"
    for text in (got, past, asked, checked):
        assert not [words for words in FALSE_IF_UNKNOWN if words in text]


def test_without_a_synced_mark_nobody_claims_to_know_whether_there_is_an_operator(
    own_etcd: EtcdServer, run: Callable[..., str]
) -> None:
    own_etcd.etcdctl("del", synced_key("c1").decode(), user="root:rootpass")
    checked = run("grpc-client-user", "check", "greeter", code=1)
    assert "no operator has synced this registry; unknown whether one should" in checked
    assert "no operator maintains" not in checked
    assert "no synced key" in run("grpc-viewer-user", "check", "greeter", code=1)


def test_the_documented_viewer_may_use_every_command_that_reads(
    owned: tuple[CommandLine, str], run: Callable[..., str]
) -> None:
    _, key = owned
    user = "grpc-viewer-user"
    assert "greeter" in run(user, "ls")
    assert "shop/greeter-0" in run(user, "get", "greeter")
    assert "shop" in run(user, "owner", key)
    assert "not allowed to read" not in run(user, "check", "greeter", code=1)
    assert "no operator owns" in run(user, "owner", "/jupiter/greeter/nobody", code=1)
    assert "greeter" in run(user, "watch", "greeter", "--changes", "1", "-o", "json")
    assert "added" in run(user, "history", "greeter")


def test_what_may_not_be_read_is_told_with_user_prefix_and_no_more_than_is_needed(
    run: Callable[..., str],
) -> None:
    for arguments in (("ls",), ("get", "greeter"), ("watch", "greeter"), ("watch",), ("history", "greeter")):
        denied = run("grpc-client-user", *arguments, "--prefix", "other", code=1)
        assert "the user 'grpc-client-user' is not allowed to read /other/" in denied, arguments
        assert "role grant-permission ROLE --prefix=true read /other/" in denied
        assert "readwrite" not in denied


GRANT = "etcdctl role grant-permission ROLE --prefix=true"


def test_a_user_without_any_right_learns_from_each_command_what_to_grant(
    owned: tuple[CommandLine, str], run: Callable[..., str]
) -> None:
    _, key = owned
    edits = (("drain", "greeter", "127.0.9.1:9000"), ("set-weight", "greeter", "127.0.9.1:9000", "5"))
    reads = (("ls",), ("get", "greeter"), ("watch",), ("watch", "greeter"), ("history", "greeter"), ("check",))
    for arguments in (("owner", key), *reads, *edits, ("history", "greeter", "--at", "1s"), ("check", "greeter")):
        denied = run("nobody", *arguments, code=1)
        assert "the user 'nobody' is not allowed to read /jupiter/" in denied, arguments
        assert f"{GRANT} read /jupiter/\n" in denied
        assert "PREFIX" not in denied


def test_whose_key_it_is_needs_the_key_and_the_owner_records_and_no_more(
    owned: tuple[CommandLine, str], run: Callable[..., str]
) -> None:
    _, key = owned
    denied = run("nobody", "owner", key, code=1)
    assert f"is not allowed to read {key}: " in denied
    assert f"{GRANT} read /grpc-etcd/\n" in denied
    elsewhere = run("grpc-viewer-user", "owner", "/other/key", code=1)
    assert "the user 'grpc-viewer-user' is not allowed to read /other/key: " in elsewhere
    assert f"{GRANT} read /other/key\n" in elsewhere
    assert "/grpc-etcd/" not in elsewhere, "it may read these"


def test_times_that_may_not_be_read_are_told_with_the_right(run: Callable[..., str]) -> None:
    assert f"{GRANT} read /grpc-etcd/\n" in run("grpc-client-user", "history", "greeter", "--at", "1s", code=1)


def test_who_may_read_and_not_write_learns_what_to_grant_for_an_edit(
    owned: tuple[CommandLine, str], own_etcd: EtcdServer, run: Callable[..., str]
) -> None:
    own_etcd.etcdctl("del", "--prefix", "/grpc-etcd/owner/", user="root:rootpass")  # now it has registered itself
    denied = run("grpc-viewer-user", "drain", "greeter", "127.0.9.1:9000", code=1)
    assert f"the user 'grpc-viewer-user' is not allowed to write {owned[1]}: " in denied
    assert f"{GRANT} readwrite /jupiter/\n" in denied
    assert "/grpc-etcd/" not in run("grpc-viewer-user", "owner", "/other/key", code=1), "it may read those"


def test_who_gives_no_user_is_told_that_etcd_asks_for_one(owned: tuple[CommandLine, str]) -> None:
    shell, _ = owned
    for arguments, code in ((("ls",), 1), (("check",), 3), (("watch", "greeter"), 1)):
        asked = shell.run(*arguments, code=code)
        assert "authentication enabled and requires them" in asked, arguments
        assert "--user and --password-file" in asked
        assert "clocks" not in asked


def test_registering_without_the_right_is_told_once_with_the_right(
    owned: tuple[CommandLine, str], tmp_path: Path
) -> None:
    shell, _ = owned
    password = tmp_path / "password"
    password.write_text("secret")
    arguments = ("register", "greeter", "127.0.9.1:9", "--allow-unroutable", "--user", "grpc-client-user")
    process = subprocess.Popen(
        [*COMMAND, *arguments, "--password-file", str(password)],
        env=shell.environ(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    shell.started.append(process)
    assert process.stderr
    line = process.stderr.readline()
    while "retrying" not in line:
        assert line.startswith("not yet registered")
        line = process.stderr.readline()
    assert "the user 'grpc-client-user'" in line
    assert "role grant-permission ROLE --prefix=true readwrite /jupiter/" in line
    process.send_signal(signal.SIGTERM)
    _, more = process.communicate(timeout=60)
    assert "while registering" not in more
    assert more.count("retrying") == 0


def test_files_that_cannot_be_read_and_a_plain_client_at_a_tls_etcd(shell: CommandLine) -> None:
    output = shell.run("ls", code=1, GRPC_ETCD_CA="nosuch.crt")
    assert "a TLS file cannot be read" in output
    assert "--ca" in output
    assert "password; etcdctl user list" not in output
    with EtcdServer.start(tls=True) as secure:
        output = shell.run("ls", "--endpoints", secure.endpoints.replace("https://", ""), code=1)
        assert "If it uses TLS" in output
        assert "--ca" in output
        assert secure.authority
        pem = secure.authority.ca.read_text()
        assert "There are no services here" in shell.run("ls", GRPC_ETCD_ENDPOINTS=secure.endpoints, GRPC_ETCD_CA=pem)

"""`grpc-etcd check` names the cause of each common mistake, made for real on a real etcd."""

import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from grpc_etcd.registry.own import OwnerRecord, owner_key, synced_key
from testbed.conditions import existing, free_port, wait_until
from testbed.etcd import EtcdServer

from .conftest import CommandLine

UNREACHABLE = "203.0.113.1:9000"  # a documentation address: never dialled here, see `problems`


def problems(shell: CommandLine, *arguments: str, code: int = 1) -> str:
    findings = shell.run_json("check", *arguments, code=code)
    return "\n".join(
        f"{each['severity']} {each['code']}: {each['subject']}: {each['problem']} -> {each['remedy']}"
        for each in findings
    )


def test_the_wrong_prefix(shell: CommandLine) -> None:
    shell.put("127.0.9.1:9000", prefix="wsd-reg")
    assert "there is 1 record with --layout jupiter --prefix wsd-reg" in problems(shell, "greeter")
    assert "there is 1 record with --layout jupiter --prefix wsd-reg" in problems(shell)
    shell.etcd.delete_prefix(b"/wsd-reg/")
    shell.put("127.0.9.1:9000", prefix="quite-another")
    assert "there is 1 record with --layout jupiter --prefix quite-another" in problems(shell, "greeter")


@pytest.mark.faults
def test_a_cluster_that_has_lost_its_majority() -> None:
    with EtcdServer.start(members=3) as server:
        shell = CommandLine(server)
        for member in server.members[1:]:
            member.kill()
        wait_until(lambda: "no leader" in str(shell.etcd.status().errors), "the last member has learned of it")
        found = problems(shell, "greeter", code=3)
        shell.close()
    alone, *dead = (member.endpoint for member in server.members)
    assert f"{alone}: etcd has no leader, as where too few of its members run -> Restore a majority" in found
    for each in dead:
        assert f"{each}: nothing responds there: Connection refused -> Check that etcd runs" in found


def test_the_wrong_layout(shell: CommandLine) -> None:
    shell.put("127.0.9.1:9000", layout="kratos")
    assert "there is 1 record with --layout kratos --prefix /microservices" in problems(shell, "greeter")


@pytest.mark.parametrize(
    ("layout", "prefix", "asked"),
    [
        ("jupiter", None, ("--prefix", "jup")),
        ("jupiter", "teams/a", ("--layout", "kratos")),
        ("kratos", "shop", ("--prefix", "shop")),
        ("kratos", None, ("--prefix", "shop", "--layout", "jupiter")),
        ("etcd-naming", None, ("--prefix", "shop")),
        ("go-micro", None, ("--prefix", "shop")),
    ],
)
def test_the_advice_is_to_type_all_that_finds_it(
    shell: CommandLine, layout: str, prefix: str | None, asked: tuple[str, ...]
) -> None:
    """Whoever has set another prefix or layout finds nothing with the half of the advice."""
    shell.put("127.0.9.1:9000", layout=layout, prefix=prefix)
    finding = next(
        each
        for each in shell.run_json("check", "greeter", *asked, code=1)
        if each["remedy"].startswith(f"Use --layout {layout}")
    )
    options = finding["remedy"].removeprefix("Use ").removesuffix(".").partition(" and no prefix")[0]
    assert [each["address"] for each in shell.run_json("get", "greeter", *shlex.split(options))] == ["127.0.9.1:9000"]


def test_a_name_in_another_spelling(shell: CommandLine) -> None:
    shell.put("127.0.9.1:9000", service="Greeter")
    assert "there is no such name, but there is 'Greeter'" in problems(shell, "greeter")


def test_a_name_that_is_misspelt(shell: CommandLine) -> None:
    shell.put("127.0.9.1:9000", service="greeter")
    assert "did you mean 'greeter'?" in problems(shell, "gretter")
    assert "did you mean" not in problems(shell, "orders")


def test_nothing_at_all(shell: CommandLine) -> None:
    assert "there are no records at" in problems(shell, "greeter")


def test_a_key_without_lease_and_a_loopback_address(shell: CommandLine) -> None:
    shell.put("127.0.9.1:9000", leased=False)
    found = problems(shell, "greeter")
    assert "the key has no lease" in found
    assert "a loopback address, which only its own machine can dial" in found


def test_a_broken_value_and_a_key_that_says_another_address(shell: CommandLine) -> None:
    key = shell.put("127.0.9.1:9000")
    value = existing(shell.etcd.get(key)).value
    shell.etcd.put(key, b"[]")
    assert "the value cannot be used" in problems(shell, "greeter")
    shell.etcd.put(key, value.replace(b"127.0.9.1:9000", b"127.0.9.2:9000"))
    found = problems(shell, "greeter")
    assert "127.0.9.2:9000" in found
    assert "127.0.9.1:9000" in found


def test_an_address_where_nobody_answers(shell: CommandLine) -> None:
    shell.put(f"{socket.gethostname()}:{free_port()}")
    found = problems(shell, "greeter")
    assert "does not answer there" in found


def test_everything_disabled(shell: CommandLine) -> None:
    shell.put("127.0.9.1:9000", enable=False)
    shell.put("127.0.9.1:9001", weight=0)
    assert "all 2 endpoints are disabled, not healthy or have weight 0" in problems(shell, "greeter")


def test_an_operator_that_is_not_in_step_and_a_key_that_it_misses(shell: CommandLine) -> None:
    key = shell.put("127.0.9.1:9000")
    missing = b"/jupiter/greeter/providers/grpc://127.0.9.9:9000"
    owner = OwnerRecord(namespace="shop", pod="p", keys=(key, missing))
    shell.etcd.put(owner_key("c1", "uid"), owner.to_json(), lease=shell.etcd.lease(600))
    found = problems(shell, "greeter")
    assert "no synced key" in found
    assert f"{missing.decode()}: it is in the operator's records, but does not exist" in found
    shell.etcd.put(synced_key("c1"), b"", lease=shell.etcd.lease(600))
    assert "synced" not in problems(shell, "greeter")


def test_a_registry_in_order_is_said_to_be(shell: CommandLine) -> None:
    with socket.create_server((socket.gethostname(), 0)) as server:
        shell.put(f"{socket.gethostname()}:{server.getsockname()[1]}")
        assert "no operator maintains this registry" in problems(shell, "greeter", code=0)
        assert "No error found." in shell.run("check", "greeter")


def test_an_endpoint_of_etcd_where_nobody_answers(shell: CommandLine) -> None:
    found = problems(shell, "--endpoints", f"127.0.0.1:{free_port()}", code=3)
    assert "nothing responds there" in found


def test_tls_on_one_side_only(shell: CommandLine) -> None:
    with EtcdServer.start(tls=True) as secure:
        plain = secure.endpoints.replace("https://", "")
        assert "the server speaks TLS, the client does not" in problems(shell, "--endpoints", plain, code=3)
        assert secure.authority
        authority = str(secure.authority.ca)
        assert "the client speaks TLS, the server does not" in problems(shell, "--ca", authority, code=3)
        assert "there are no records" in problems(shell, "--endpoints", plain, "--ca", authority)


def test_a_client_certificate_that_is_missing(shell: CommandLine) -> None:
    with EtcdServer.start(client_certificates=True) as secure:
        assert secure.authority
        where = ("--endpoints", secure.endpoints, "--ca", str(secure.authority.ca))
        assert "If etcd requires client certificates" in problems(shell, *where, code=3)
        assert "The options are --cert and --key" in shell.run("ls", *where, code=1)


def test_a_user_without_permission_and_a_wrong_password(own_etcd: EtcdServer, tmp_path: Path) -> None:
    shell = CommandLine(own_etcd)
    key = shell.put("127.0.9.1:9000")
    admin = own_etcd.enable_auth("root-secret")
    own_etcd.add_user("app", "secret", ["/jupiter/"], admin=admin)
    password = tmp_path / "password"
    password.write_text("secret")
    options = ("--user", "app", "--password-file", str(password))
    assert "is not allowed to read /grpc-etcd/" in problems(shell, "greeter", *options)
    denied = problems(shell, "greeter", "--prefix", "other", *options)
    assert "the user 'app' is not allowed to read /other/greeter/" in denied
    assert "--prefix=true read /other/" in denied
    password.write_text("wrong")
    assert "password" in problems(shell, "greeter", *options, code=3)
    assert key
    shell.close()


def test_a_user_who_may_read_one_service_is_told_of_that_one(own_etcd: EtcdServer, tmp_path: Path) -> None:
    shell = CommandLine(own_etcd)
    shell.put("127.0.9.1:9000", leased=False)
    own_etcd.add_user("narrow", "secret", ["/jupiter/greeter/"], admin=own_etcd.enable_auth("root-secret"))
    password = tmp_path / "password"
    password.write_text("secret")
    found = problems(shell, "greeter", "--user", "narrow", "--password-file", str(password))
    assert "the key has no lease" in found
    assert "is not allowed to read /grpc-etcd/" in found
    shell.close()


def test_without_the_extra_the_command_says_what_to_install() -> None:
    hide = (
        "import sys, importlib.abc\n"
        "class Hide(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name.partition('.')[0] in ('click', 'rich', 'yaml'): raise ModuleNotFoundError(name)\n"
        "import importlib.util\n"
        "sys.path[:] = [p for p in sys.path if 'site-packages' not in p] + ['resolver']\n"
        "import grpc_etcd.cli\n"
        "grpc_etcd.cli.main()\n"
    )
    ended = subprocess.run([sys.executable, "-S", "-c", hide], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "pip install '.[cli]'" in ended.stderr

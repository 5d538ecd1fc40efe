"""What the commands print, and how they exit."""

import json
import os
import signal
import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from grpc_etcd.registry.endpoint import Kind
from grpc_etcd.registry.own import OwnerRecord, owner_key, synced_key
from testbed.build import binary
from testbed.conditions import existing, free_port, wait_until

from .conftest import COMMAND, CommandLine

ADDRESS = "10.0.0.7:9000"


def read_line(process: subprocess.Popen[str]) -> str:
    return existing(process.stdout).readline().strip()


def test_ls_lists_services_of_the_chosen_layouts(shell: CommandLine) -> None:
    shell.put(ADDRESS)
    shell.put("10.0.0.8:9000", enable=False)
    shell.put(ADDRESS, service="other", layout="kratos")
    assert shell.run_json("ls") == [
        {"service": "greeter", "layout": "jupiter", "endpoints": 2, "enabled": 1, "rejected": 0}
    ]
    both = shell.run("ls", "--layout", "jupiter", "--layout", "kratos").splitlines()
    assert both[0].split() == ["SERVICE", "LAYOUT", "ENDPOINTS", "ENABLED", "REJECTED"]
    assert [line.split()[:2] for line in both[1:]] == [["greeter", "jupiter"], ["other", "kratos"]]
    assert "wrong" not in shell.run("ls", "--prefix", "nothing")


def test_get_shows_endpoints_with_leases_and_owners(shell: CommandLine) -> None:
    key = shell.put(ADDRESS, weight=50, zone="z1")
    lease = existing(shell.etcd.get(key)).lease
    owner = OwnerRecord(namespace="shop", pod="greeter-0", node="n1", grpc_services=("shop/greeter",), keys=(key,))
    shell.etcd.put(owner_key("c1", "uid-1"), owner.to_json(), lease=lease)
    (found,) = shell.run_json("get", "greeter")
    assert (found["address"], found["weight"], found["zone"], found["lease"]) == (ADDRESS, 50, "z1", f"{lease:x}")
    assert found["owner"] == {"namespace": "shop", "pod": "greeter-0", "node": "n1"}
    assert yaml.safe_load(shell.run("get", "greeter", "-o", "yaml")) == [found]
    table = shell.run("get", "greeter").splitlines()
    assert table[1].split() == [ADDRESS, "50", "enabled", "z1", "-", "jupiter", f"{lease:x}", "shop/greeter-0"]
    assert "shop" in shell.run("owner", key.decode())
    assert shell.run_json("owner", key.decode())["grpcServices"] == ["shop/greeter"]


def test_what_no_client_calls_counts_for_no_endpoint(shell: CommandLine) -> None:
    """Jupiter registers an application's governor beside its servers."""
    key = shell.put(ADDRESS, kind=Kind.GOVERNOR)
    assert "/governors/" in key.decode()
    assert shell.run_json("ls")[0]["endpoints"] == 0
    assert "governor, not called" in shell.run("get", "greeter", code=1)
    shell.put("10.0.0.8:9000")
    assert shell.run_json("ls")[0]["endpoints"] == 1
    assert "enabled" in shell.run("get", "greeter")


def test_a_service_may_be_named_by_its_target(shell: CommandLine) -> None:
    shell.put(ADDRESS)
    assert [each["address"] for each in shell.run_json("get", "etcd:///greeter")] == [ADDRESS]
    assert "behind the name" in shell.run("get", "etcd:///greeter?zone=a", code=2)


def test_static_services_are_none_of_the_commands_affair(shell: CommandLine) -> None:
    told = shell.run("ls", code=2, GRPC_ETCD_ENDPOINTS="", GRPC_ETCD_STATIC="greeter=127.0.0.1:1")
    assert "GRPC_ETCD_ENDPOINTS is not set" in told


def test_an_endpoint_that_is_not_healthy_is_told(shell: CommandLine) -> None:
    shell.put(ADDRESS, healthy=False)
    assert shell.run("get", "greeter").splitlines()[1].split()[2] == "unhealthy"
    assert "not healthy" in shell.run("check", "greeter", code=1)


def test_what_is_not_there_is_a_failure_with_advice(shell: CommandLine) -> None:
    assert "grpc-etcd check greeter" in shell.run("get", "greeter", code=1)
    assert "no such key" in shell.run("owner", "/jupiter/x", code=1)
    key = shell.put(ADDRESS)
    assert "registered itself" in shell.run("owner", key.decode(), code=1)


def test_mistakes_on_the_command_line_are_one_sentence_and_exit_code_2(shell: CommandLine) -> None:
    assert "GRPC_ETCD_ENDPOINTS is not set" in shell.run("ls", code=2, GRPC_ETCD_ENDPOINTS="")
    assert "there is no layout 'nosuch'" in shell.run("ls", code=2, GRPC_ETCD_LAYOUTS="nosuch")
    assert "'/'" in shell.run("get", "a/b", code=2)
    assert "KEY=VALUE" in shell.run("register", "greeter", ADDRESS, "--metadata", "x", code=2)
    refused = shell.run("register", "greeter", "127.0.0.1:9000", code=2)
    assert "loopback" in refused
    assert "pass --allow-unroutable" in refused
    assert "neither host:port nor" in shell.run("register", "greeter", "nonsense", code=2)
    assert "finite number" in shell.run("register", "greeter", ADDRESS, "--weight", "inf", code=2)
    user = shell.run("ls", "--user", "app", code=2)
    assert "GRPC_ETCD_USER is set, but no password" in user
    assert "--password-file" in user


def test_an_etcd_that_is_away_is_one_sentence_with_a_remedy_and_exit_code_1(shell: CommandLine) -> None:
    output = shell.run("get", "greeter", "--endpoints", f"127.0.0.1:{free_port()}", code=1)
    assert output.startswith("Error: ")
    assert "Check that etcd runs" in output


def test_help_has_examples_and_shells_complete(shell: CommandLine) -> None:
    assert "grpc-etcd get greeter -o json" in shell.run("--help")
    for command in ("ls", "get", "watch", "owner", "register", "check", "ads", "completion"):
        assert f"grpc-etcd {command}" in shell.run(command, "--help")
    assert "_GRPC_ETCD_COMPLETE" in shell.run("completion", "bash")
    completed = shell.run(_GRPC_ETCD_COMPLETE="bash_complete", COMP_WORDS="grpc-etcd wa", COMP_CWORD="1")
    assert "watch" in completed


def complete(*words: str) -> list[str]:
    """Return what kubectl's completion offers for the last word of `kubectl grpc-etcd`."""
    programs = (Path(COMMAND[0]).parent, binary("kubectl").parent)
    ended = subprocess.run(
        [binary("kubectl"), "__complete", "grpc-etcd", *words],
        env={"PATH": os.pathsep.join(map(str, programs)), "HOME": os.devnull},
        capture_output=True,
        text=True,
        check=True,
    )
    return ended.stdout.splitlines()


def test_kubectl_completes_its_plugin() -> None:
    assert complete("wa") == ["watch\tPrint the changes of one service, or of...", ":4"]
    assert "--namespace\tNamespace of the GrpcServices. Default: that of the context." in complete("check", "--na")
    assert complete("check", "-o", "j") == ["json", ":4"]
    assert complete("check", "-f", "")[-1] == ":0", "the shell offers files"
    assert complete("nothing", "x")[-1].startswith(":")


def test_watch_tells_each_change(shell: CommandLine) -> None:
    shell.put(ADDRESS)
    process = shell.start("watch", "greeter")
    assert read_line(process).split()[1:] == ["+", ADDRESS, "weight", "100"]
    key = shell.put("10.0.0.8:9000")
    assert read_line(process).split()[1:3] == ["+", "10.0.0.8:9000"]
    shell.put(ADDRESS, weight=1)
    assert read_line(process).split()[1:] == ["~", ADDRESS, "weight", "1"]
    shell.etcd.delete(key)
    assert read_line(process).split()[1:3] == ["-", "10.0.0.8:9000"]
    line = json.loads(shell.run("watch", "greeter", "-o", "json", "--changes", "1"))
    assert [each["address"] for each in line["endpoints"]] == [ADDRESS]


def test_options_may_stand_before_the_command(shell: CommandLine) -> None:
    shell.put(ADDRESS, prefix="shop")
    before = ("--endpoints", shell.endpoints, "--prefix", "shop", "--layout", "jupiter", "-o", "json")
    assert ADDRESS in json.loads(shell.run(*before, "get", "greeter", GRPC_ETCD_ENDPOINTS=""))[0]["address"]
    assert "greeter" in shell.run(*before, "ls", "-o", "table", GRPC_ETCD_ENDPOINTS="").splitlines()[1]
    assert shell.run_json("--prefix", "other", "ls", "--prefix", "shop"), "the command's own option wins"


def test_watch_in_json_has_all_that_get_has(shell: CommandLine) -> None:
    shell.put(ADDRESS, weight=7, zone="z1", metadata={"team": "shop"})
    got = shell.run_json("get", "greeter")[0]
    (endpoint,) = json.loads(shell.run("watch", "greeter", "-o", "json", "--changes", "1"))["endpoints"]
    assert endpoint == {name: got[name] for name in endpoint}
    assert endpoint.keys() == got.keys() - {"service", "layout", "key", "lease", "owner", "ownerKnown"}


def test_watch_without_a_name_follows_all_services(shell: CommandLine) -> None:
    key = shell.put(ADDRESS)
    process = shell.start("watch", "--layout", "jupiter", "--layout", "kratos")
    assert read_line(process).split()[1:] == ["greeter", "+", ADDRESS, "weight", "100"]
    shell.put("10.0.0.8:9000", service="late", layout="kratos", enable=True)
    assert read_line(process).split()[1:4] == ["late", "+", "10.0.0.8:9000"]
    shell.put(ADDRESS, enable=False)
    assert read_line(process).split()[1:] == ["greeter", "~", ADDRESS, "weight", "100", "disabled"]
    shell.etcd.put(key, b"[]")
    assert read_line(process).split()[1:4] == ["greeter", "!", key.decode()]
    shell.etcd.delete(key)
    assert read_line(process).split()[1:4] == ["greeter", "-", ADDRESS]
    assert read_line(process).split()[1:] == ["greeter", "no", "endpoints"]
    lines = shell.run("watch", "-o", "json", "--layout", "kratos", "--changes", "1").splitlines()
    assert [json.loads(line)["service"] for line in lines] == ["late"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("set-weight", "greeter", ADDRESS, "nan"), "nan is no finite number from 0 on"),
        (("set-weight", "greeter", ADDRESS, "inf"), "inf is no finite number from 0 on"),
        (("set-weight", "greeter", ADDRESS, "--", "-1"), "-1.0 is no finite number from 0 on"),
        (("ads", "--listen", "127.0.0.1:99999"), "is neither HOST:PORT, with a port up to 65535, nor unix:PATH"),
        (("ads", "--listen", "127.0.0.1"), "is neither HOST:PORT"),
    ],
)
def test_what_can_be_no_weight_or_address_is_refused(shell: CommandLine, arguments: tuple[str, ...], said: str) -> None:
    assert said in " ".join(shell.run(*arguments, code=2).split())


def test_where_nothing_is_it_is_said_where_there_is_something(shell: CommandLine) -> None:
    shell.put("10.0.0.9:9000", prefix="shop")
    for arguments in (["get", "greeter"], ["ls"]):
        said = shell.run("--prefix", "shpo", *arguments, code=1 if "get" in arguments else 0)
        assert "nothing is registered under /shpo/" in said
        assert "--layout jupiter --prefix shop" in said
    for name in ([], ["greeter"]):
        process = subprocess.Popen(
            [*COMMAND, "--prefix", "shpo", "watch", *name], env=shell.environ(), stderr=subprocess.PIPE, text=True
        )
        shell.started.append(process)
        assert process.stderr
        said = process.stderr.readline()
        assert said.startswith("nothing is registered under /shpo/")
        assert "--layout jupiter --prefix shop; waiting for the first" in said
        process.kill()


def test_register_keeps_an_endpoint_until_sigterm(shell: CommandLine) -> None:
    process = shell.start(
        "register", "greeter", "127.0.9.1:9000", "--allow-unroutable", "--weight", "5", "--metadata", "team=shop"
    )
    assert read_line(process) == "registered greeter at 127.0.9.1:9000"
    (found,) = shell.run_json("get", "greeter")
    assert (found["weight"], found["metadata"]["team"]) == (5, "shop")
    assert found["lease"]
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: not shell.etcd.get(found["key"].encode()), "the deregistration")
    assert process.wait(30) == 0


def test_a_registry_in_order_has_no_fault(shell: CommandLine) -> None:
    shell.etcd.put(synced_key("c1"), b"", lease=shell.etcd.lease(600))
    process = shell.start("ads", "--listen", "127.0.0.1:0")
    assert read_line(process).startswith("serving on 127.0.0.1:")
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0


def test_a_unix_socket_is_one_servers_until_it_ends(shell: CommandLine, tmp_path: Path) -> None:
    """The second one took it, and when it ended, nobody reached the first one any more."""
    path = tmp_path / "ads"
    listen = f"unix:{path}"
    first = shell.start("ads", "--listen", listen)
    assert read_line(first) == f"serving on {listen}"
    said = shell.run("ads", "--listen", listen, code=1)
    assert f"cannot listen on {listen}: another process listens on" in " ".join(said.split())
    assert path.is_socket()
    first.kill()
    first.wait(30)
    again = shell.start("ads", "--listen", listen)
    assert read_line(again) == f"serving on {listen}"
    again.send_signal(signal.SIGTERM)
    assert again.wait(30) == 0


def test_a_unix_socket_of_a_server_that_accepts_nobody_is_taken_too(shell: CommandLine, tmp_path: Path) -> None:
    """It is stopped, say, and others wait for it already: to ask whether it is there takes no longer than a moment."""
    path = tmp_path / "ads"
    with socket.socket(socket.AF_UNIX) as frozen, ExitStack() as waiting:
        frozen.bind(str(path))
        frozen.listen(0)
        while True:
            probe = waiting.enter_context(socket.socket(socket.AF_UNIX))
            probe.settimeout(0)
            try:
                probe.connect(str(path))
            except BlockingIOError:
                break
        said = shell.run("ads", "--listen", f"unix:{path}", code=1)
        assert "another process listens on" in " ".join(said.split())


def test_the_operators_settings_file_says_where_the_registry_is(shell: CommandLine, tmp_path: Path) -> None:
    """So in the operator's container, where the chart sets a variable for the file."""
    file = tmp_path / "config.yaml"
    away = f"127.0.0.1:{free_port()}"
    file.write_text(
        json.dumps(
            {
                "prefix": "fleet",
                "registries": {"default": {"endpoints": [shell.endpoints]}, "dr": {"endpoints": away}},
            }
        )
    )
    shell.put(ADDRESS, prefix="fleet")
    assert "greeter" in shell.run("ls", GRPC_ETCD_ENDPOINTS="", GRPC_ETCD_OPERATOR_CONFIG=str(file))
    assert "greeter" in shell.run("ls", "--config", str(file), GRPC_ETCD_ENDPOINTS="")
    assert "greeter" in shell.run("ls", "--config", str(file), "--registry", "default", GRPC_ETCD_ENDPOINTS=away)
    assert "Check that etcd runs" in shell.run("ls", "--config", str(file), "--registry", "dr", code=1)
    assert "has no registry 'other'" in shell.run("ls", "--config", str(file), "--registry", "other", code=2)
    assert "--config" in shell.run("ls", "--registry", "dr", code=2)


def test_in_the_operators_container_its_variables_name_the_registry(shell: CommandLine, tmp_path: Path) -> None:
    file, away = tmp_path / "config.yaml", f"127.0.0.1:{free_port()}"
    file.write_text(json.dumps({"registries": {"default": {"endpoints": [away]}}}))
    operators: dict[str, Any] = {"GRPC_ETCD_OPERATOR_ENDPOINTS": shell.endpoints, "GRPC_ETCD_OPERATOR_PREFIX": "fleet"}
    shell.put(ADDRESS, prefix="fleet")
    assert "greeter" in shell.run("ls", GRPC_ETCD_ENDPOINTS="", **operators)
    assert "greeter" in shell.run("ls", GRPC_ETCD_ENDPOINTS="", GRPC_ETCD_OPERATOR_CONFIG=str(file), **operators)
    assert "greeter" not in shell.run("ls", **operators), "the client's own variables win"

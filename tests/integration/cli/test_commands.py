"""What the commands print, and how they exit."""

import json
import signal

import yaml

from grpc_etcd.registry.own import OwnerRecord, owner_key, synced_key
from testbed.conditions import free_port, wait_until

from .conftest import CommandLine

ADDRESS = "10.0.0.7:9000"


def read_line(process: object) -> str:
    return process.stdout.readline().strip()  # type: ignore[attr-defined, no-any-return]


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
    lease = shell.etcd.get(key).lease
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
    assert "loopback" in shell.run("register", "greeter", "127.0.0.1:9000", code=2)


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


def test_register_keeps_an_endpoint_until_sigterm(shell: CommandLine) -> None:
    process = shell.start(
        "register", "greeter", "127.0.9.1:9000", "--allow-unroutable", "--weight", "5", "--metadata", "team=shop"
    )
    assert read_line(process) == "registered greeter at 127.0.9.1:9000"
    (found,) = shell.run_json("get", "greeter")
    assert (found["weight"], found["metadata"]["team"]) == (5, "shop")
    assert found["lease"]
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: not shell.etcd.get(found["key"].encode()), "the withdrawal")
    assert process.wait(30) == 0


def test_a_registry_in_order_has_no_fault(shell: CommandLine) -> None:
    shell.etcd.put(synced_key("c1"), b"", lease=shell.etcd.lease(60))
    process = shell.start("ads", "--listen", "127.0.0.1:0")
    assert read_line(process).startswith("serving on 127.0.0.1:")
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0

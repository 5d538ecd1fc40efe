"""When whoever reads the output leaves, commands end in silence."""

import shlex
import subprocess
import time
from collections.abc import Sequence

import pytest

from grpc_etcd.registry.own import ClockReading, OwnerRecord, clock_key, owner_key

from .conftest import COMMAND, CommandLine


def pipe(shell: CommandLine, reader: str, *arguments: str) -> tuple[int, str]:
    """Run `grpc-etcd ... | reader`; return how grpc-etcd ended and all that was said on standard error."""
    line = f"{shlex.join([*COMMAND, *arguments])} | {reader} > /dev/null; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(
        ["bash", "-c", line], env=shell.environ(), capture_output=True, text=True, timeout=60, check=False
    )
    return ended.returncode, ended.stderr


def fill(shell: CommandLine, count: int) -> bytes:
    """Register so much that no pipe takes it at once."""
    shell.etcd.put(clock_key("c"), ClockReading(shell.etcd.status().revision, time.time()).to_json())
    for number in range(count):
        shell.put(f"127.0.9.1:{number + 1}", leased=False, zone="z" * 2000)
    key = shell.put("127.0.9.2:1")
    record = OwnerRecord(namespace="n" * 200_000, keys=(key,))
    shell.etcd.put(owner_key("c", "u"), record.to_json())
    return key


@pytest.mark.parametrize("output", ["table", "json", "yaml"])
@pytest.mark.parametrize("reader", ["head -1", "true"])
@pytest.mark.parametrize(
    "command", [("ls",), ("get", "greeter"), ("check", "greeter"), ("owner",), ("history", "greeter", "--since", "0s")]
)
def test_a_reader_that_leaves_is_no_fault(shell: CommandLine, command: Sequence[str], reader: str, output: str) -> None:
    key = fill(shell, 60)
    arguments = (*command, key.decode()) if command == ("owner",) else command
    code, said = pipe(shell, reader, *arguments, "-o", output)
    assert said == ""
    assert code in (0, 1)  # `check` may have said all before the reader left


@pytest.mark.parametrize("arguments", [("watch", "greeter"), ("watch", "greeter", "-o", "json"), ("watch",)])
def test_a_watch_ends_with_its_reader_without_waiting_for_a_change(
    shell: CommandLine, arguments: Sequence[str]
) -> None:
    shell.put("127.0.9.1:9000")
    assert pipe(shell, "head -1", *arguments) == (0, "")


@pytest.mark.parametrize("arguments", [("--help",), ("get", "--help"), ("completion", "bash")])
def test_help_may_be_cut_short(shell: CommandLine, arguments: Sequence[str]) -> None:
    assert pipe(shell, "true", *arguments) == (0, "")


@pytest.mark.parametrize(
    "arguments", [("--help",), ("--version",), ("completion", "bash"), ("ls",), ("check",), ("check", "-o", "json")]
)
def test_an_output_that_takes_nothing_is_one_sentence(shell: CommandLine, arguments: Sequence[str]) -> None:
    shell.put("127.0.9.1:9000")
    ended = subprocess.run(
        ["bash", "-c", f"{shlex.join([*COMMAND, *arguments])} > /dev/full"],
        env=shell.environ(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr == "Error: the output cannot be written: No space left on device\n"

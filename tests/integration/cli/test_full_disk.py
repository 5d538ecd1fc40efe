"""Where the output cannot be written, commands say so in a sentence, and do not end as if all were well."""

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from .conftest import COMMAND, CommandLine

MANIFEST = """
kind: Service
metadata: {name: greeter}
spec:
  selector: {app: greeter}
  ports: [{name: grpc, port: 9000}]
"""
FULL = "Error: the output cannot be written: No space left on device\n"


def write_to(where: str, arguments: Sequence[str], environ: dict[str, str]) -> tuple[int, str]:
    """Run `grpc-etcd ... > where`; return how it ended and what it said on standard error."""
    line = f"{shlex.join([*COMMAND, *arguments])} {where}"
    ended = subprocess.run(["sh", "-c", line], env=environ, capture_output=True, text=True, timeout=60, check=False)
    return ended.returncode, ended.stderr


@pytest.fixture
def manifest(tmp_path: Path) -> str:
    path = tmp_path / "service.yaml"
    path.write_text(MANIFEST)
    return str(path)


@pytest.mark.parametrize(
    "command", [("--help",), ("completion", "bash"), ("generate", "-f"), ("check", "--no-kubernetes", "-f")]
)
def test_a_full_disk_is_told_in_a_sentence(command: Sequence[str], manifest: str) -> None:
    arguments = (*command, manifest) if command[-1] == "-f" else command
    assert write_to("> /dev/full", arguments, {"KUBECONFIG": "no.kubeconfig"}) == (1, FULL)


@pytest.mark.parametrize("output", ["table", "json", "yaml"])
def test_so_it_is_by_commands_that_read_etcd(shell: CommandLine, output: str) -> None:
    shell.put("127.0.9.1:9000")
    assert write_to("> /dev/full", ("get", "greeter", "-o", output), shell.environ()) == (1, FULL)


OTHER_FILE = """
import click
from grpc_etcd.cli.printing import guarded_output

@click.command()
def command():
    with guarded_output(), open("/dev/full", "w") as file:
        click.echo("as much as there is")
        file.write("x")
command()
"""


def test_another_file_that_cannot_be_written_is_not_called_the_output() -> None:
    ended = subprocess.run([sys.executable, "-c", OTHER_FILE], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert ended.stderr == "Error: a file, not the output, cannot be read or written: No space left on device\n"


def test_a_closed_standard_output_is_no_fault(manifest: str) -> None:
    assert write_to(">&-", ("generate", "-f", manifest), {"KUBECONFIG": "no.kubeconfig"}) == (0, "")

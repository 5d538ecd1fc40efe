"""A signal ends a command at once and in silence, however early it comes; shells report 130 and 143."""

import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from testbed.conditions import PATIENCE_SECONDS, wait_until

from .conftest import COMMAND, CommandLine

OPERATOR = [str(Path(sys.executable).with_name("grpc-etcd-operator"))]
MODULE = [sys.executable, "-m", "grpc_etcd_operator"]
BOTH = (signal.SIGINT, signal.SIGTERM)
# Python imports this before it runs a command: it sends a signal just when a module is about to be imported. That it
# does not ignore SIGINT, as what a shell starts in the background does, is part of what a terminal gives.
INTERRUPTING = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), {number})
sys.meta_path.insert(0, Interrupting())
"""
IMPORTED = [
    *((COMMAND, module) for module in ("grpc_etcd", "logging", "click", "grpc", "grpc_etcd.cli.commands", "rich")),
    *((OPERATOR, module) for module in ("grpc_etcd_operator.cli", "click", "grpc_etcd_operator.app", "kopf")),
    *((MODULE, module) for module in ("grpc_etcd_operator.cli", "uvloop")),
]


def interrupted(folder: Path, module: str, number: int, command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    (folder / "sitecustomize.py").write_text(INTERRUPTING.format(module=module, number=int(number)))
    environ = {"PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1", "KUBECONFIG": "no.kubeconfig"}
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("number", BOTH)
@pytest.mark.parametrize(("command", "module"), IMPORTED, ids=lambda each: str(each)[-30:])
def test_a_command_that_still_imports_ends_in_silence(
    tmp_path: Path, command: list[str], module: str, number: signal.Signals
) -> None:
    arguments = ["ls", "--endpoints=127.0.0.1:1"] if command is COMMAND else ["run", "--etcd-endpoints=127.0.0.1:1"]
    ended = interrupted(tmp_path, module, number, [*command, *arguments])
    assert (ended.returncode, ended.stdout, ended.stderr) == (-number, "", "")


def test_a_shell_sees_that_ctrl_c_ended_a_command(tmp_path: Path) -> None:
    ended = interrupted(tmp_path, "click", signal.SIGINT, ["sh", "-c", f"{shlex.join([*COMMAND, 'ls'])}; echo $?"])
    assert (ended.stdout, ended.stderr) == ("130\n", "")


@pytest.mark.parametrize("number", BOTH)
@pytest.mark.parametrize("command", [COMMAND, OPERATOR])
def test_the_first_process_of_a_container_ends_too(tmp_path: Path, command: list[str], number: signal.Signals) -> None:
    """The kernel lets no signal end it that it does not handle: it would import on, and be killed 30 seconds later."""
    contained = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", *command, "--version"]
    ended = interrupted(tmp_path, "click", number, contained)
    if "unshare:" in ended.stderr:
        pytest.skip(f"no namespaces here: {ended.stderr.strip()}")
    assert (ended.returncode, ended.stdout, ended.stderr) == (128 + number, "", "")


@pytest.fixture
def watching(shell: CommandLine) -> "subprocess.Popen[str]":
    """A command that waits, and has printed what there is."""
    shell.put("127.0.9.1:9000")
    process = subprocess.Popen(
        ["env", "--default-signal=INT", *COMMAND, "watch", "greeter"],
        env=shell.environ(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    shell.started.append(process)
    assert process.stdout
    assert "127.0.9.1:9000" in process.stdout.readline()
    return process


@pytest.mark.parametrize("number", BOTH)
def test_a_command_that_runs_ends_in_silence(watching: "subprocess.Popen[str]", number: signal.Signals) -> None:
    watching.send_signal(number)
    assert watching.communicate(timeout=PATIENCE_SECONDS) == ("", "")
    assert watching.returncode == -number


CLUSTER = """
apiVersion: v1
kind: Config
clusters: [{name: away, cluster: {server: "http://127.0.0.1:1"}}]
contexts: [{name: away, context: {cluster: away, user: ""}}]
current-context: away
"""


@pytest.mark.parametrize("number", BOTH)
def test_a_cleanup_that_waits_for_etcd_ends_in_silence(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "kubeconfig").write_text(CLUSTER)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        etcd = f"--etcd-endpoints=127.0.0.1:{silent.getsockname()[1]}"
        process = subprocess.Popen(
            ["env", "--default-signal=INT", *OPERATOR, "cleanup", "--cluster-id=c", etcd],
            env={"KUBECONFIG": str(tmp_path / "kubeconfig"), "PATH": os.environ["PATH"]},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        silent.settimeout(PATIENCE_SECONDS)
        silent.accept()[0].close()
        process.send_signal(number)
        assert process.communicate(timeout=PATIENCE_SECONDS) == ("", "")
    assert process.returncode == -number


def test_what_is_started_to_ignore_ctrl_c_ignores_it() -> None:
    """As `nohup` and shells in the background do."""
    kept = "import signal; from grpc_etcd_entry.signals import end_on_signals; signal.signal(2, signal.SIG_IGN)"
    code = f"{kept}; end_on_signals(); signal.raise_signal(2); print('goes on')"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout == "goes on\n"


def ticks(pid: int) -> int:
    """Return the processor time that a process has taken, in hundredths of a second (proc(5), utime)."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])


@pytest.mark.parametrize("number", BOTH)
def test_what_runs_no_python_for_a_while_ends_at_once_too(number: signal.Signals) -> None:
    """As the look-up of a name that no server answers."""
    code = "from grpc_etcd_entry.signals import end_on_signals; end_on_signals(); print('begun', flush=True)"
    command = ["env", "--default-signal=INT", sys.executable, "-c", f"{code}; sum(range(10**12))"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        assert process.stdout.readline() == "begun\n"
        begun = ticks(process.pid)
        wait_until(lambda: ticks(process.pid) > begun + 5, "it is in the midst of it")
        process.send_signal(number)
        assert process.communicate(timeout=PATIENCE_SECONDS) == ("", "")
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -number


@pytest.mark.parametrize("number", [*BOTH, signal.SIGHUP])
def test_no_signal_leaves_the_private_key_of_a_kubeconfig_behind(number: signal.Signals, tmp_path: Path) -> None:
    """A signal that comes while OpenSSL reads the key from a file."""
    code = f"""
import os, signal, ssl
from grpc_etcd_entry.signals import end_on_signals
end_on_signals()
from grpc_etcd.cli.kubeconfig import _load_certificate
class Context(ssl.SSLContext):
    def load_cert_chain(self, cert, key):
        print(open(key).read(), flush=True)
        os.kill(os.getpid(), {int(number)})
data = {{"client-certificate-data": "Yw==", "client-key-data": "a2V5"}}
_load_certificate(Context(ssl.PROTOCOL_TLS_CLIENT), data)
"""
    command = ["env", "--default-signal=INT,HUP", f"TMPDIR={tmp_path}", sys.executable, "-c", code]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (-number, "key\n", "")
    assert list(tmp_path.iterdir()) == []

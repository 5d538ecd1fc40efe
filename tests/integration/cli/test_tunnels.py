"""What is called kubectl may be a script that starts it: all of it ends with the tunnel, and the command goes on."""

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from grpc_etcd.cli.tunnels import END_SECONDS, ExecRelay, PortForward, TunnelError
from testbed.conditions import wait_until
from tests.unit.client.test_threads import no_threads

REAL = """
import pathlib, os, sys, threading
is_hanging = pathlib.Path(__file__).with_name("hangs").exists()
if "exec" in sys.argv and not is_hanging and not sys.stdin.buffer.read(1):
    sys.exit()  # the attempt
pathlib.Path(__file__).with_name("pid").write_text(str(os.getpid()))
print("Forwarding from 127.0.0.1:45999 -> 2379", flush=True)
threading.Event().wait()
"""


@pytest.fixture
def kubectl(tmp_path: Path) -> Iterator[Path]:
    """Write a script that runs another program and waits for it, as those of companies do."""
    real, script = tmp_path / "real.py", tmp_path / "kubectl"
    real.write_text(REAL)
    script.write_text(f'#!/bin/sh\n{sys.executable} {real} "$@"\nexit $?\n')
    script.chmod(0o755)
    yield script
    if is_running(tmp_path):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def is_running(folder: Path) -> bool:
    pid = (folder / "pid").read_text() if (folder / "pid").exists() else ""
    command = Path("/proc", pid, "cmdline")
    return bool(pid) and command.exists() and bool(command.read_bytes())  # what has ended and is not reaped has none


def test_a_port_forward_by_a_script_ends_as_a_whole_and_at_once(kubectl: Path) -> None:
    tunnel = PortForward([str(kubectl)], "svc/etcd", 2379)
    assert is_running(kubectl.parent)
    begun = time.monotonic()
    tunnel.close()
    assert time.monotonic() - begun < END_SECONDS
    wait_until(lambda: not is_running(kubectl.parent), "the program has ended too")


def test_a_relay_by_a_script_ends_as_a_whole_and_at_once(kubectl: Path) -> None:
    tunnel = ExecRelay([str(kubectl)], "operator", ("etcd", 2379))
    with socket.create_connection(("127.0.0.1", tunnel.port)) as connection:
        connection.sendall(b"x")
        wait_until(lambda: is_running(kubectl.parent), "the program runs")
        begun = time.monotonic()
        tunnel.close()
        assert time.monotonic() - begun < END_SECONDS
    wait_until(lambda: not is_running(kubectl.parent), "the program has ended too")


def test_a_relay_whose_pod_does_not_answer_leaves_no_program_behind(kubectl: Path) -> None:
    kubectl.with_name("hangs").touch()
    with pytest.raises(TunnelError, match="it has not answered within 2 s"):
        ExecRelay([str(kubectl)], "operator", ("etcd", 2379), open_seconds=2.0)
    wait_until(lambda: not is_running(kubectl.parent), "the program has ended too")


def test_a_relay_closes_a_connection_for_which_kubectl_does_not_start_and_takes_the_next(kubectl: Path) -> None:
    tunnel = ExecRelay([str(kubectl)], "operator", ("etcd", 2379))
    away = kubectl.rename(kubectl.with_name("away"))
    with socket.create_connection(("127.0.0.1", tunnel.port), timeout=20) as connection:
        assert not connection.recv(1)
    away.rename(kubectl)
    with socket.create_connection(("127.0.0.1", tunnel.port)) as connection:
        connection.sendall(b"x")
        wait_until(lambda: is_running(kubectl.parent), "the program runs")
        tunnel.close()


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """Let this process open nothing more meanwhile."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("scarcity", [no_threads, no_descriptors])
def test_a_relay_accepts_again_once_it_may_start_what_it_needs(
    kubectl: Path, scarcity: Callable[[], contextlib.AbstractContextManager[None]]
) -> None:
    tunnel = ExecRelay([str(kubectl)], "operator", ("etcd", 2379))
    with socket.socket() as connection:
        connection.settimeout(2)  # who was about to accept when this began does so, others only afterwards
        with scarcity(), contextlib.suppress(TimeoutError):
            connection.connect(("127.0.0.1", tunnel.port))
            assert not connection.recv(1)
    with socket.create_connection(("127.0.0.1", tunnel.port)) as connection:
        connection.sendall(b"x")
        wait_until(lambda: is_running(kubectl.parent), "the program runs")
        tunnel.close()


STUBBORN = """#!/bin/sh
trap '' TERM
printf %s $$ > {folder}/pid
echo 'Forwarding from 127.0.0.1:45999 -> 2379'
while :; do sleep 1; done
"""
COMMAND = """
import sys, threading
from grpc_etcd.cli.reaching import ended_by_signals
from grpc_etcd.cli.tunnels import Children, PortForward

children = Children()
with ended_by_signals(children.kill):
    tunnel = PortForward([sys.argv[1]], "svc/etcd", 2379, children=children)
    try:
        print("open", flush=True)
        threading.Event().wait()
    finally:
        print("closing", flush=True)
        tunnel.close()
"""


def test_a_second_signal_ends_the_command_at_once_and_leaves_no_program_behind(tmp_path: Path) -> None:
    """Who presses Ctrl-C again, because kubectl takes its time to end, ended the command alone, and later nothing."""
    script = tmp_path / "kubectl"
    script.write_text(STUBBORN.format(folder=tmp_path))
    script.chmod(0o755)
    run = ["env", "--default-signal=INT", sys.executable, "-c", COMMAND, str(script)]
    with subprocess.Popen(run, stdout=subprocess.PIPE, text=True) as command:
        try:
            assert command.stdout is not None
            assert command.stdout.readline() == "open\n"
            command.send_signal(signal.SIGINT)
            assert command.stdout.readline() == "closing\n"
            begun = time.monotonic()
            command.send_signal(signal.SIGINT)
            assert command.wait(60) == -signal.SIGINT
            assert time.monotonic() - begun < END_SECONDS
            assert not is_running(tmp_path)
        finally:
            command.kill()
            if is_running(tmp_path):
                os.killpg(int((tmp_path / "pid").read_text()), signal.SIGKILL)

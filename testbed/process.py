"""One external program, started in a process group of its own, whose end is certain.

`Process` starts, waits for readiness, kills, freezes, and starts again; it keeps the log and shows its tail in every
error. `testbed/guard.py` kills what is left when this program dies, so nothing survives Ctrl-C, a failed test or
SIGKILL.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from testbed.conditions import PATIENCE_SECONDS, POLL_SECONDS, wait_until

GUARD = Path(__file__).with_name("guard.py")
LOG_TAIL_LINES = 30
STOP_SECONDS = 30.0  # a Pod's grace period by default


class ProcessFailedError(Exception):
    """A program ended, or did not become ready in time; the message holds the tail of its log."""


class Guard:
    """The pipe to this program's guard process, made when the first process is started."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pipe = -1
        self._starter = 0

    def tell(self, line: str) -> None:
        """Send one line to the guard; a forked child starts a guard of its own."""
        with self._lock:
            if self._starter != os.getpid():
                self._pipe, self._starter = start_guard(), os.getpid()
            os.write(self._pipe, line.encode() + b"\n")


def start_guard() -> int:
    """Start a guard and return the file descriptor of its input, which nobody inherits."""
    read, write = os.pipe()
    null = os.open(os.devnull, os.O_RDWR)
    streams = [(os.POSIX_SPAWN_DUP2, source, target) for source, target in ((read, 0), (null, 1), (null, 2))]
    command = [sys.executable, "-I", str(GUARD)]
    os.posix_spawn(sys.executable, command, os.environ, file_actions=streams, setsid=True)
    os.close(read)
    os.close(null)
    return write


def whole_lines(file: Path) -> list[str]:
    """Read the lines of a file that another program is writing, without the last one as long as it has no end."""
    text = file.read_text(errors="replace") if file.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()


def is_stopped(pid: int) -> bool:
    """Whether every thread of a process has obeyed SIGSTOP; on a busy machine some go on for a while."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # threads come and go
        stats = [(task / "stat").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
        return all(stat.rpartition(")")[2].split()[0] in "Tt" for stat in stats)
    return False


GUARD_OF_THIS_PROGRAM = Guard()
RUNNING: set["Process"] = set()


class Process:
    """A program with a fixed command, environment and log; it may be started again after it ended."""

    def __init__(
        self, name: str, command: Sequence[str | Path], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.command = [str(part) for part in command]
        self.log = log
        self.environment = os.environ | environment if environment else None
        self._popen: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        state = f"pid {self.pid}" if self.is_running else f"ended with {self.returncode}"
        return f"<Process {self.name}: {state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process id; also the id of its process group."""
        if self._popen is None:
            raise ProcessFailedError(f"{self.name} was never started")
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None while it runs or before it was started."""
        return self._popen.poll() if self._popen else None

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._popen is not None and self._popen.poll() is None

    def start(self) -> Self:
        """Start it; its output is appended to the log."""
        if self.is_running:
            raise ProcessFailedError(f"{self.name} is running already")
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                start_new_session=True,
            )
        GUARD_OF_THIS_PROGRAM.tell(f"+{self._popen.pid}")
        RUNNING.add(self)
        return self

    def wait_ready(self, is_ready: Callable[[], bool], timeout_seconds: float = PATIENCE_SECONDS) -> Self:
        """Wait for a condition; kill the program and raise when it ends first or takes too long."""
        deadline = time.monotonic() + timeout_seconds
        while not is_ready():
            if not self.is_running:
                self._fail(f"ended with code {self.returncode} before it was ready")
            if time.monotonic() > deadline:
                self._fail(f"was not ready after {timeout_seconds:g} s")
            time.sleep(POLL_SECONDS)
        return self

    def _fail(self, what: str) -> None:
        self.kill()
        raise ProcessFailedError(f"{self.name} {what}\n$ {' '.join(self.command)}\n{self.log_tail()}")

    def log_tail(self, lines: int = LOG_TAIL_LINES) -> str:
        """The last lines of the log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def signal(self, number: int) -> None:
        """Send a signal to its process group; nothing happens when that is gone."""
        if self.is_running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def pause(self) -> None:
        """Freeze it with SIGSTOP: it keeps its sockets. Returns once all threads stand still."""
        self.signal(signal.SIGSTOP)
        wait_until(lambda: not self.is_running or is_stopped(self.pid), f"{self.name} stands still")

    def resume(self) -> None:
        """Let a frozen process go on."""
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it at once with SIGKILL, frozen or not."""
        self.signal(signal.SIGKILL)
        self.wait()

    def stop(self, grace_seconds: float = STOP_SECONDS) -> int | None:
        """Ask it to end with SIGTERM, kill it after the grace period, and return the exit code."""
        self.signal(signal.SIGTERM)
        self.resume()
        try:
            return self.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.returncode

    def wait(self, timeout_seconds: float | None = None) -> int | None:
        """Wait for its end and return the exit code; raise subprocess.TimeoutExpired when it goes on."""
        if self._popen is None:
            return None
        code = self._popen.wait(timeout_seconds)
        if self in RUNNING:
            with contextlib.suppress(ProcessLookupError):  # what it started itself, if that is still there
                os.killpg(self.pid, signal.SIGKILL)
            RUNNING.discard(self)
            GUARD_OF_THIS_PROGRAM.tell(f"-{self.pid}")
        return code


def running_processes() -> list[Process]:
    """Every process that this program started and has not seen end, by name."""
    return sorted((process for process in RUNNING if process.is_running), key=lambda process: process.name)

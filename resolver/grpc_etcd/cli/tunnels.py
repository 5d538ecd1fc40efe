"""Ways into a cluster through kubectl, each a port of this machine's loopback: `port-forward`, or a relay by `exec`.

Both are child processes that end with the command, by their own ids: with `close()`, and where the command is ended by
a signal too. Each leads a session of its own, which ends as a whole: what is called kubectl may be a script that starts
it. Whoever is logged in to this machine can connect to such a port, as with `kubectl port-forward`
by hand; etcd still asks for what it asks for.
"""

import contextlib
import io
import os
import re
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Protocol

LOOPBACK = "127.0.0.1"
OPEN_SECONDS = 30.0  # until kubectl has logged in and is connected. Arbitrary
AGAIN_SECONDS = 1.0  # after which a forward that has ended is opened again. Arbitrary
END_SECONDS = 5.0
CHUNK_BYTES = 1 << 16
OPENED = re.compile(rf"Forwarding from {re.escape(LOOPBACK)}:(\d+) ")
# What runs in the operator's Pod: it connects, and copies both ways. With nothing to send it ends at once.
RELAY = """
import os, socket, sys, threading
peer = socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)
peer.settimeout(None)
def send():
    while data := os.read(0, 65536):
        peer.sendall(data)
    peer.shutdown(socket.SHUT_WR)
threading.Thread(target=send, daemon=True).start()
while data := peer.recv(65536):
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
"""


class TunnelError(Exception):
    """A way into the cluster does not open; the text is kubectl's own."""


class Tunnel(Protocol):
    """A way to one address inside of the cluster."""

    port: int

    def complaint(self) -> str:
        """Return what kubectl last complained about; empty where it did not."""

    def close(self) -> None:
        """End it, with all of its processes."""


class Children:
    """The processes that tunnels have started, to be killed where nobody wants to wait for their end.

    Takes no lock, since `kill` may be called by the handler of a signal.
    """

    def __init__(self) -> None:
        self._all: set[subprocess.Popen[str] | subprocess.Popen[bytes]] = set()

    def add(self, child: "subprocess.Popen[str] | subprocess.Popen[bytes]") -> None:
        """Take one more; those that have ended are forgotten."""
        for each in tuple(self._all):
            if each.poll() is not None:
                self._all.discard(each)
        self._all.add(child)

    def kill(self) -> None:
        """Kill all, and what they have started."""
        for child in tuple(self._all):
            _send_signal(child, "SIGKILL")


class PortForward:
    """`kubectl port-forward`, which is started again on the same port when it ends, as with its Pod.

    Raises TunnelError when it does not open.
    """

    def __init__(self, kubectl: Sequence[str], reference: str, port: int, *, children: Children | None = None) -> None:
        self._kubectl, self._target = (*kubectl, "port-forward", "--address", LOOPBACK, reference), port
        self._children = children or Children()
        self.port = 0
        self._errors = tempfile.NamedTemporaryFile()  # noqa: SIM115  it is closed with the tunnel
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._is_decided = threading.Event()
        self._process = self._start()
        self._follower = threading.Thread(target=self._follow, name="port-forward", daemon=True)
        self._follower.start()
        try:
            self._wait_until_open()
        except BaseException:  # a signal too
            self.close()
            raise

    def _wait_until_open(self) -> None:
        self._is_decided.wait(OPEN_SECONDS)
        if not self.port:
            raise TunnelError(self.complaint() or f"it has not opened within {OPEN_SECONDS:g} s")

    def _start(self) -> "subprocess.Popen[str]":
        ports = f"{self.port or ''}:{self._target}"
        child = subprocess.Popen(  # noqa: S603  no shell; what is named is from the caller's own cluster
            [*self._kubectl, ports],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._children.add(child)
        return child

    def _follow(self) -> None:
        """Read what kubectl prints, lest it waits for a reader, and start it again when it has ended."""
        while True:
            with self._process as process:
                for line in process.stdout or ():
                    self._note(line)
            if not self.port or self._closing.wait(AGAIN_SECONDS):
                self._is_decided.set()
                return
            with self._lock:
                if self._closing.is_set():
                    return
                self._process = self._start()

    def _note(self, line: str) -> None:
        if found := OPENED.match(line):
            self.port = int(found[1])
            self._is_decided.set()

    def complaint(self) -> str:
        """Return kubectl's last line on standard error."""
        return _last_line(self._errors)

    def close(self) -> None:
        """End kubectl."""
        with self._lock:
            self._closing.set()
            _end(self._process)
        self._follower.join(END_SECONDS)
        self._errors.close()


class ExecRelay:
    """A port of this machine; each connection to it goes through a `kubectl exec` of its own into the operator's Pod.

    Raises TunnelError when the Pod cannot be entered, or does not reach the address.
    """

    def __init__(
        self,
        kubectl: Sequence[str],
        deployment: str,
        address: tuple[str, int],
        open_seconds: float = OPEN_SECONDS,
        *,
        children: Children | None = None,
    ) -> None:
        self._started = children or Children()
        relay = ("python3", "-c", RELAY, address[0], str(address[1]))
        self._command = (*kubectl, "exec", "-i", f"deploy/{deployment}", "-c", "operator", "--", *relay)
        self._errors = tempfile.NamedTemporaryFile()  # noqa: SIM115  it is closed with the tunnel
        try:
            self._try(open_seconds)
        except BaseException:  # a signal too
            self._errors.close()
            raise
        self._lock = threading.Lock()
        self._children: set[subprocess.Popen[bytes]] = set()
        self._threads: list[threading.Thread] = []
        self._closing = threading.Event()
        self._listener = socket.create_server((LOOPBACK, 0))
        self.port: int = self._listener.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept, name="exec relay", daemon=True)
        self._accepting.start()

    def _start(self, errors: int | IO[bytes]) -> "subprocess.Popen[bytes]":
        child = subprocess.Popen(  # noqa: S603  as above
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
        self._started.add(child)
        return child

    def _try(self, open_seconds: float) -> None:
        """Connect once, with nothing to send."""
        with self._start(subprocess.PIPE) as child:
            try:
                _, errors = child.communicate(timeout=open_seconds)
            except subprocess.TimeoutExpired as error:
                raise TunnelError(f"it has not answered within {open_seconds:g} s") from error
            finally:
                _end(child)
        if child.returncode:
            raise TunnelError(_explain(errors))

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                if self._closing.wait(AGAIN_SECONDS):
                    return
                continue  # no descriptor was left, or whoever came has gone
            with self._lock:
                if self._closing.is_set():
                    connection.close()
                    return
                self._relay(connection)

    def _relay(self, connection: socket.socket) -> None:
        """Begin to copy both ways; where that does not begin, the connection is closed and the next one tries it."""
        try:
            child = self._start(self._errors)
        except OSError:
            connection.close()
            return
        self._children = {each for each in self._children if each.poll() is None} | {child}
        self._threads = [each for each in self._threads if each.is_alive()]
        try:
            for work in (_receive, _send):
                thread = threading.Thread(target=work, args=(connection, child), daemon=True)
                thread.start()
                self._threads.append(thread)
        except RuntimeError:  # no thread may be started
            with child:  # at its end the pipes are closed
                _send_signal(child, "SIGKILL")
            connection.close()

    def complaint(self) -> str:
        """Return the last line that a relay printed on standard error."""
        return _last_line(self._errors)

    def close(self) -> None:
        """End every connection."""
        with self._lock:
            self._closing.set()
            children, threads = tuple(self._children), tuple(self._threads)
        with contextlib.suppress(OSError):  # whoever accepts wakes up
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for child in children:
            _send_signal(child, "SIGTERM")  # all at once: each may take its time
        for child in children:
            _end(child)
        for thread in (self._accepting, *threads):
            thread.join(END_SECONDS)
        self._errors.close()


def _send(connection: socket.socket, child: "subprocess.Popen[bytes]") -> None:
    """Copy what the client sends; its end is the end of the child's input."""
    with contextlib.suppress(OSError, ValueError), contextlib.closing(child.stdin or io.BytesIO()) as pipe:
        while data := connection.recv(CHUNK_BYTES):
            pipe.write(data)
            pipe.flush()


def _receive(connection: socket.socket, child: "subprocess.Popen[bytes]") -> None:
    """Copy what comes back; with the child ends the connection."""
    with contextlib.suppress(OSError, ValueError), contextlib.closing(child.stdout or io.BytesIO()) as pipe:
        while data := os.read(pipe.fileno(), CHUNK_BYTES):  # a buffered read would wait for the whole chunk
            connection.sendall(data)
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
    child.wait()


def _end(process: "subprocess.Popen[str] | subprocess.Popen[bytes]") -> None:
    """End a child and what it has started; what does not end is killed."""
    _send_signal(process, "SIGTERM")
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        _send_signal(process, "SIGKILL")
        process.wait()


def _send_signal(process: "subprocess.Popen[str] | subprocess.Popen[bytes]", name: str) -> None:
    """Send a signal to the session that a child leads; where there are none, end the child."""
    if process.poll() is not None:
        return  # whose id may be another one's by now
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, getattr(signal, name))
    else:
        process.kill()


def _last_line(errors: "tempfile._TemporaryFileWrapper[bytes]") -> str:
    """Return what says most in a file to which children still write, and whose position is theirs too."""
    path = Path(errors.name)
    return _explain(path.read_bytes()) if path.exists() else ""


def _explain(errors: bytes) -> str:
    """Return the line that says most: kubectl's own refusal or error, else the last one."""
    lines = [each.strip() for each in errors.decode(errors="replace").splitlines() if each.strip()]
    own = [each for each in lines if each.lower().startswith("error")]
    return (own or lines or [""])[-1]

"""This process's own ADS server, its socket and its place in gRPC's bootstrap.

gRPC reads one bootstrap per process, so there is one plane per process, shared by all registries and started with the
first channel, never at import. Forks: gRPC skips its own fork handlers while a server lives in the process, and the
child then crashes; so the server is stopped before a fork and started again in the parent, on the same socket. The
child inherits a bootstrap that names the parent's socket; its own channels bring theirs along as a channel argument.
"""

import atexit
import itertools
import logging
import os
import shutil
import tempfile
import threading
import weakref
from pathlib import Path
from typing import Protocol

import grpc

from grpc_etcd import settings
from grpc_etcd.xds.board import ServiceBoard
from grpc_etcd.xds.bootstrap import merge_bootstrap
from grpc_etcd.xds.names import ServiceName, format_target
from grpc_etcd.xds.server import AdsServer

_LOG = logging.getLogger("grpc_etcd")
_LONGEST_SOCKET_PATH = 100  # bytes; sockaddr_un holds 108
_PROBE = ServiceName(".probe", "bootstrap")
_PROBE_SECONDS = 2.0
_TOO_LATE = (
    "gRPC has read the application's xDS bootstrap before grpc_etcd could add its authority; channels made by a "
    "Registry work all the same, but targets from Registry.target() do not. Remedy: make the first Registry channel "
    "before the first xds: channel of the application."
)


class Plane:
    """A board, and the server that speaks for it once it is started."""

    def __init__(self, *, inherited: bool) -> None:
        self.board = ServiceBoard()
        self._inherited = inherited
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._server: AdsServer | None = None
        self._folder: Path | None = None
        self._address = ""
        self._bootstrap: str | None = None

    def __repr__(self) -> str:
        return f"<Plane pid={self._pid} address={self._address or 'not started'}>"

    def channel_options(self) -> list[tuple[str, str | int]]:
        """Start the server if need be; give the channel arguments that lead an `xds://etcd/` target to it."""
        with self._lock:
            if self._server is None:
                self._start()
        options: list[tuple[str, str | int]] = [("grpc.enable_http_proxy", 0)]  # a proxy cannot know an xds: target
        if self._bootstrap:
            options.append(("grpc.TEST_ONLY_DO_NOT_USE_IN_PROD.xds_bootstrap_config", self._bootstrap))
        return options

    def _start(self) -> None:
        self._folder, self._address = _choose_address()
        self._listen()
        atexit.register(self._clean_up)
        own = merge_bootstrap(None, self._address, f"grpc-etcd/{self._pid}")
        if self._inherited:
            self._bootstrap = own
            return
        existing = settings.read_xds_bootstrap()
        settings.write_xds_bootstrap(merge_bootstrap(existing, self._address, f"grpc-etcd/{self._pid}"))
        if existing and not self._is_read():
            _LOG.warning(_TOO_LATE)
            self._bootstrap = own

    def _listen(self) -> None:
        self._server = AdsServer(self._address, self.board)
        if self._address.endswith(":0"):
            self._address = self._address[:-1] + str(self._server.port)

    def _is_read(self) -> bool:
        """Find out whether gRPC knows our authority, by asking for something and seeing whether we are asked."""
        probe = _Probe()
        self.board.join(_PROBE, probe)
        options = [("grpc.enable_http_proxy", 0)]
        with grpc.insecure_channel(format_target(_PROBE), options) as channel:
            channel.subscribe(probe.notice, try_to_connect=True)
            probe.decided.wait(_PROBE_SECONDS)
            arrived = self.board.followers(_PROBE) > 1
            channel.unsubscribe(probe.notice)
        self.board.leave(_PROBE, probe)
        return arrived

    def before_fork(self) -> None:
        """Leave no server in the process that is about to be copied."""
        self._lock.acquire()
        if self._server:
            self._server.stop()

    def after_fork_in_parent(self) -> None:
        """Serve again; clients come back by themselves within about a second."""
        try:
            if self._server:
                self._listen()
        finally:
            self._lock.release()

    def _clean_up(self) -> None:
        if self._folder and self._pid == os.getpid():
            shutil.rmtree(self._folder, ignore_errors=True)


class _Probe:
    """Waits for a channel to say that it found no way."""

    def __init__(self) -> None:
        self.decided = threading.Event()

    def wake(self) -> None:
        """Nothing is published about the probe."""

    def notice(self, state: grpc.ChannelConnectivity) -> None:
        if state in (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.READY):
            self.decided.set()


def _choose_address() -> tuple[Path | None, str]:
    """Make a socket path that only this user can reach; where none can be made, take a port on loopback."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="grpc-etcd-"))
    except OSError:
        return None, "127.0.0.1:0"
    path = folder / "ads.sock"
    if len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH:
        return folder, f"unix:{path}"
    folder.rmdir()
    return None, "127.0.0.1:0"


class Forkable(Protocol):
    """What has threads in gRPC, and takes them out of it for a fork."""

    def before_fork(self) -> None:
        """Take the threads out."""

    def after_fork_in_parent(self) -> None:
        """Let them in again; a child has none of them."""

    def after_fork_in_child(self) -> None:
        """Let go of locks that such a thread may have held."""


class Process:
    """The plane of the running process, and how often it is a fork of the one that was started."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.plane = Plane(inherited=False)
        self.forks = 0
        self._held: list[Forkable] = []
        self._forkable: weakref.WeakSet[Forkable] = weakref.WeakSet()
        self._is_hooked = False
        self._names = itertools.count(2)
        self._default_is_free = True
        os.register_at_fork(after_in_child=self._begin_anew)

    def take_along(self, forkable: Forkable) -> None:
        """Have something take its threads out of gRPC for each fork from now on.

        Hooks before a fork run newest first. gRPC hooks in with its first channel (GRPC_ENABLE_FORK_SUPPORT=1), and its
        hook stops the very threads that ours wait for; so ours must be the newer one.
        """
        with self.lock:
            if not self._is_hooked:
                grpc.insecure_channel("unix:/dev/null").close()
                os.register_at_fork(before=self._before, after_in_parent=self._after_in_parent)
                self._is_hooked = True
            self._forkable.add(forkable)

    def free_name(self, name: str) -> str:
        """Give `name` to the first who asks, `name-2` to the next, and so on.

        None is given twice, so that an open channel never comes under another registry.
        """
        with self.lock:
            if self._default_is_free:
                self._default_is_free = False
                return name
            return f"{name}-{next(self._names)}"

    def _before(self) -> None:
        self._held = list(self._forkable)
        for each in self._held:
            each.before_fork()
        self.plane.before_fork()

    def _after_in_parent(self) -> None:
        self.plane.after_fork_in_parent()
        for each in self._held:
            each.after_fork_in_parent()

    def _begin_anew(self) -> None:
        self.lock = threading.Lock()
        self._forkable = weakref.WeakSet()
        self.plane = Plane(inherited=True)
        self.forks += 1
        for each in self._held:
            each.after_fork_in_child()


_process: Process | None = None
_process_lock = threading.Lock()


def this_process() -> Process:
    """Give the process's plane, and hook into forks when it is asked for first."""
    global _process  # noqa: PLW0603 - gRPC's bootstrap is a global of the process, and this is its other end
    if _process:
        return _process
    with _process_lock:
        if _process is None:
            _process = Process()
        return _process

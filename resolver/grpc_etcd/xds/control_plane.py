"""This process's own ADS server, its socket and its place in gRPC's bootstrap.

gRPC reads one bootstrap per process, so there is one plane per process, shared by all registries and started with the
first channel, never at import. Forks: gRPC skips its own fork handlers while a server lives in the process, and the
child then crashes; so the server is stopped before a fork and started again in the parent, on the same socket. A child
whose parent had a server inherits a bootstrap that names the parent's socket; its own channels bring theirs along as a
channel argument, at the price of an xDS client for each.
"""

import atexit
import itertools
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar
from urllib.parse import quote

import grpc

from grpc_etcd import settings
from grpc_etcd.xds.bootstrap import merge_bootstrap
from grpc_etcd.xds.limits import check_descriptors, open_descriptors
from grpc_etcd.xds.names import Selection, ServiceName, format_target
from grpc_etcd.xds.resource_cache import ResourceCache
from grpc_etcd.xds.retries import MethodRetries, write_retries
from grpc_etcd.xds.server import AdsServer
from grpc_etcd.xds.sharing import can_share
from grpc_etcd.xds.sockets import SocketFolder, choose_address

Options = Sequence[tuple[str, Any]]
T = TypeVar("T")
_LOG = logging.getLogger("grpc_etcd")
_PROBE_SECONDS = 2.0
FORK_SECONDS = 1.0  # arbitrary: how long a fork waits for threads that are in a call, however many registries there are
# gRPC's own threads close in the background what ours have left; while they do, it skips its fork handlers, and the
# child crashes: so it was in 4 of 100 forks, and in none of 160 with 20 ms.
SETTLE_SECONDS = 0.05
_BOOTSTRAP_OPTION = "grpc.TEST_ONLY_DO_NOT_USE_IN_PROD.xds_bootstrap_config"
_TOO_LATE = (
    "gRPC has read the application's xDS bootstrap before grpc_etcd could add its authority; channels of a "
    "Registry work all the same, but targets from Registry.target() do not. Remedy: create the first Registry channel "
    "before the first xds: channel of the application."
)


class Lead(NamedTuple):
    """What leads a native channel to its service: `release` is called when the channel is closed."""

    target: str
    options: Options
    release: Callable[[], None]


class ControlPlane:
    """A board, and the server that speaks for it once it is started."""

    def __init__(self, *, forks: int = 0, inherited: bool = False) -> None:
        self.resource_cache = ResourceCache(forks)
        self._probe = ServiceName(".probe", f"bootstrap-{forks}")
        self._inherited = inherited
        self._descriptors = 0
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._server: AdsServer | None = None
        self._is_down = False  # since a fork, after which the server could not be started again
        self._folder: SocketFolder | None = None
        self._address = ""
        self._bootstrap: str | None = None

    def __repr__(self) -> str:
        return f"<ControlPlane pid={self._pid} address={self._address or 'not started'}>"

    @property
    def is_known(self) -> bool:
        """Return whether gRPC may have read of a server here, or in a process that this one is a fork of."""
        return self._server is not None or self._inherited

    def lead(self, owner: ServiceName, options: Options, retries: MethodRetries = ()) -> Lead:
        """Start the server if need be; return how a channel with such options gets to a service.

        A channel shares its target with those of other services, unless it has an authority of its own, which would
        not find the service there, or a bootstrap of its own, with which gRPC shares nothing, or retries of its own.
        """
        ours = self.channel_options()
        check_descriptors(self._descriptors + self.resource_cache.descriptors() + 1)
        names = {name for name, _ in [*ours, *options]}
        has_own = bool(retries) or bool(names & {"grpc.default_authority", _BOOTSTRAP_OPTION})
        shares = can_share(owner.service) and not has_own
        tail = f"/{Selection.RETRIES}/{write_retries(retries)}" if retries else ""
        target = format_target(self.resource_cache.open_channel(owner, shares=shares)) + tail
        authority = ("grpc.default_authority", quote(owner.service, safe=""))  # else it would be the path's last part
        return Lead(
            target, [*ours, authority, *options], lambda: self.resource_cache.close_channel(owner, shares=shares)
        )

    def channel_options(self) -> list[tuple[str, Any]]:
        """Start the server if need be; return the channel arguments that lead an `xds://etcd/` target to it."""
        with self._lock:
            if self._server is None:
                self._start()
            self.look_after()
            self.keep_socket()
        options: list[tuple[str, Any]] = [("grpc.enable_http_proxy", 0)]  # a proxy cannot know an xds: target
        if self._bootstrap:
            options.append((_BOOTSTRAP_OPTION, self._bootstrap))
        return options

    def _start(self) -> None:
        self._descriptors = open_descriptors()
        self._folder, self._address = choose_address("ads.sock")
        try:
            self._listen()
        except BaseException:
            self._clean_up()
            raise
        atexit.register(self._clean_up)
        node = f"grpc-etcd/{self._pid}"
        own = merge_bootstrap(None, self._address, node)
        existing = None
        if self._inherited:
            self._bootstrap = own
        else:
            existing = settings.read_xds_bootstrap()
            settings.write_xds_bootstrap(merge_bootstrap(existing, self._address, node))
        if existing and not self._is_read():
            _LOG.warning(_TOO_LATE, extra={"event": "bootstrap_too_late"})
            self._bootstrap = own
        if self._bootstrap or not existing:
            self.resource_cache.use_words()

    def _listen(self) -> None:
        if self._folder:
            self._folder.keep()  # a cleaner of temporary folders may have been here
        self._server, self._is_down = AdsServer(self._address, self.resource_cache), False
        if self._address.endswith(":0"):
            self._address = self._address[:-1] + str(self._server.port)

    def keep_socket(self) -> None:
        """Listen again where a cleaner of temporary folders has taken the socket away.

        Streams that are open would go on, but no other could begin: neither that of a new channel, nor of one at rest.
        OSError: somebody else has made the folder meanwhile, and may listen there.
        """
        with self._lock:
            if self._server is None or self._folder is None:
                return
            self._folder.keep()
            if Path(self._address.removeprefix("unix:")).exists():
                return
            _LOG.warning(
                "The socket %s was removed, creating it again",
                self._address,
                extra={"event": "socket_removed"},
            )
            self._server.stop()
            self._listen()

    def _is_read(self) -> bool:
        """Find out whether gRPC knows our authority, by asking for something and seeing whether we are asked."""
        probe = _Probe()
        self.resource_cache.join(self._probe, probe)
        options = [("grpc.enable_http_proxy", 0)]
        with grpc.insecure_channel(format_target(self._probe), options) as channel:
            channel.subscribe(probe.notice, try_to_connect=True)
            probe.decided.wait(_PROBE_SECONDS)
            arrived = self.resource_cache.followers(self._probe) > 1
            channel.unsubscribe(probe.notice)
        self.resource_cache.leave(self._probe, probe)
        return arrived

    def before_fork(self) -> None:
        """Leave no server in the process that is about to be copied."""
        self._lock.acquire()
        if self._server and not self._is_down:
            self._is_down = True
            self._server.stop()

    def after_fork_in_parent(self) -> None:
        """Serve again; clients come back by themselves within about a second."""
        try:
            self.look_after()
        finally:
            self._lock.release()

    def look_after(self) -> None:
        """Start the server again where that has failed after a fork: its clients come back to it by themselves."""
        with self._lock:
            if self._is_down:
                self._listen()

    def _clean_up(self) -> None:
        if self._folder and self._pid == os.getpid():
            folder, self._folder = self._folder, None  # so that nobody misses the socket and makes it again
            folder.remove()


class _Probe:
    """Waits for a channel to say that it found no way."""

    def __init__(self) -> None:
        self.decided = threading.Event()

    def wake(self, owner: ServiceName | None = None) -> None:
        """Nothing is published about the probe."""

    def has_answered(self) -> bool:
        return True

    def notice(self, state: grpc.ChannelConnectivity) -> None:
        if state in (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.READY):
            self.decided.set()


class Forkable(Protocol):
    """What has threads in gRPC, and takes them out of it for a fork."""

    def before_fork(self) -> Callable[[float], object] | None:
        """Have the threads leave; what is given back waits until they have, for at most so many seconds."""

    def after_fork_in_parent(self) -> None:
        """Let them in again; a child has none of them."""

    def after_fork_in_child(self) -> None:
        """Let go of locks that such a thread may have held."""


class Inheritable(Protocol):
    """What forked children go on with, and has locks that another thread may hold during a fork."""

    def forked(self) -> None:
        """Be a forked child's: take other locks."""


class Process:
    """The plane of the running process, and how often it is a fork of the one that was started."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.channels_lock = threading.RLock()
        self.control_plane = ControlPlane()
        self.forks = 0
        self._held: list[Forkable] = []
        self._forkable: weakref.WeakSet[Forkable] = weakref.WeakSet()
        self._inheritable: weakref.WeakSet[Inheritable] = weakref.WeakSet()
        self._is_hooked = False
        self._forking = threading.RLock()
        self._wanted: set[str] = set()  # names of registries that somebody has chosen
        self._numbers = itertools.count(1)
        os.register_at_fork(after_in_child=self._begin_again)

    def take_along(self, forkable: Forkable) -> None:
        """Have something take its threads out of gRPC for each fork from now on.

        Hooks before a fork run newest first. gRPC hooks in with its first channel (GRPC_ENABLE_FORK_SUPPORT=1), and its
        hook stops the very threads that ours wait for; so ours must be the newer one.
        """
        with self.lock:
            if not self._is_hooked:
                grpc.insecure_channel("unix:/dev/null").close()
                os.register_at_fork(before=self.before_fork, after_in_parent=self.after_fork_in_parent)
                self._is_hooked = True
            self._forkable.add(forkable)

    def hand_down(self, inheritable: Inheritable) -> None:
        """Have something renew its locks in each forked child, also before it has started anything."""
        with self.lock:
            self._inheritable.add(inheritable)

    def choose_name(self, wanted: str | None, default: str) -> str:
        """Return what a registry is called: as is wanted, or else `default` the first one, `default-2` the next.

        None that is chosen here is chosen twice, so that an open channel never comes under another registry, nor was it
        wanted by an earlier registry, which may be open.
        """
        with self.lock:
            if wanted:
                self._wanted.add(wanted)
                return wanted
            names = (default if number == 1 else f"{default}-{number}" for number in self._numbers)
            return next(name for name in names if name not in self._wanted)

    def before_fork(self) -> None:
        """Take everything that has threads in gRPC out of it."""
        self._forking.acquire()  # two threads that fork at once: one must not let in what the other has taken out
        with self.lock:  # whoever begins meanwhile would change the set under the copying
            self._held = list(self._forkable)
        waits = [_tried(each.before_fork) for each in self._held]  # all are sent before any is waited for
        deadline = time.monotonic() + FORK_SECONDS
        for wait in filter(None, waits):
            _tried(partial(wait, max(0.0, deadline - time.monotonic())))
        self.control_plane.before_fork()
        if self._held:
            time.sleep(SETTLE_SECONDS)

    def after_fork_in_parent(self) -> None:
        """Let all in again; one that cannot go on must not keep the others, and their leases, from it."""
        held, self._held = self._held, []  # else what is closed later would be kept until the next fork
        for go_on in (self.control_plane.after_fork_in_parent, *(each.after_fork_in_parent for each in held)):
            _tried(go_on)
        self._forking.release()

    def _begin_again(self) -> None:
        self.lock = threading.Lock()
        self.channels_lock = threading.RLock()
        self._forking = threading.RLock()
        self._forkable = weakref.WeakSet()
        self.forks += 1
        self.control_plane = ControlPlane(forks=self.forks, inherited=self.control_plane.is_known)
        for each in self._held:
            each.after_fork_in_child()
        for inheritable in tuple(self._inheritable):
            inheritable.forked()


def _tried(hook: Callable[[], T]) -> T | None:
    """Call a part of a hook; python would only print what it fails of, and the other parts must be called too."""
    try:
        return hook()
    except Exception:  # noqa: BLE001 - logged
        _LOG.exception("%r failed", hook, extra={"event": "fork_hook_failed"})
        return None


_process: Process | None = None
_process_lock = threading.Lock()


def this_process() -> Process:
    """Return the process's plane, and hook into forks when it is asked for first."""
    global _process  # noqa: PLW0603 - gRPC's bootstrap is a global of the process, and this is its other end
    if _process:
        return _process
    with _process_lock:
        if _process is None:
            _process = Process()
        return _process

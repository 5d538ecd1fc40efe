"""Host names instead of IP addresses: xDS takes none, so they are resolved here, and again every while.

An answer is kept until a newer one comes: a DNS server that is down takes no endpoint away. Looking a name up blocks
for as long as its name server is silent, so each has a thread for that while, and names do not wait for each other. One
that is not answered by its deadline counts as not found; its thread goes on, and its answer is taken when it comes.
"""

import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Iterable
from functools import lru_cache

from grpc_etcd.registry.endpoint import split_address
from grpc_etcd.threads import start_thread
from grpc_etcd.xds.resources import Socket

LOOK_UP_SECONDS = 5.0  # what resolv.conf(5) gives one try of one name server
_SIDE_BY_SIDE = 32  # arbitrary: look-ups that are waited for at once
REFRESH_SECONDS = 30.0  # the usual time to live of a record in a cluster's DNS


@lru_cache(maxsize=20_000)
def read_socket(address: str) -> Socket | tuple[str, int] | None:
    """Read `host:port`: a socket, or a host name and port to look up; None when it is neither."""
    parts = split_address(address)
    if parts is None:
        return None
    host, port = parts
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return None if ":" in host else parts
    return None if getattr(ip, "scope_id", None) else Socket(str(ip), port)


def look_up(host: str) -> tuple[str, ...] | str:
    """Ask the system for a name's addresses, preferred first (RFC 6724); a string says why there are none."""
    try:
        answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        return f"the host name {host!r} cannot be resolved: {error}"
    except UnicodeError as error:  # a label that is empty or too long
        return f"{host!r} is not a host name: {error}"
    found = tuple(dict.fromkeys(str(address[0]) for *_, address in answers if "%" not in str(address[0])))
    return found or _no_address(host)


def _no_address(host: str) -> str:
    return f"the host name {host!r} resolves to no address that other hosts can dial"


class HostNames:
    """What the host names in use stand for. Thread-safe; `on_change` is called by the thread that looks names up."""

    def __init__(
        self,
        on_change: Callable[[], None],
        ask: Callable[[str], tuple[str, ...] | str] = look_up,
        refresh_seconds: float = REFRESH_SECONDS,
        look_up_seconds: float = LOOK_UP_SECONDS,
    ) -> None:
        self._on_change = on_change
        self._ask = ask
        self._refresh_seconds = refresh_seconds
        self._look_up_seconds = look_up_seconds
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._found: dict[str, tuple[str, ...]] = {}
        self._faults: dict[str, str] = {}
        self._asked: dict[str, float] = {}  # when each look-up that is under way was begun
        self._waiting: list[str] = []
        self._thread: threading.Thread | None = None
        self._closed = False

    def use(self, hosts: Iterable[str]) -> None:
        """Return which names are in use: others are forgotten, new ones are looked up soon."""
        with self._lock:
            wanted = set(hosts)
            self._found = {host: self._found.get(host, ()) for host in wanted}
            self._faults = {host: fault for host, fault in self._faults.items() if host in wanted}
            new = [host for host in wanted if not self._found[host] and host not in self._faults]
            if wanted and self._thread is None and not self._closed:
                self._thread = start_thread(self._run, name="grpc-etcd-dns")
        if new:
            self._wake.set()

    def sockets(self, host: str, port: int) -> tuple[Socket, ...]:
        """Return what the name stands for, the preferred address first; nothing while it is unknown."""
        return tuple(Socket(ip, port) for ip in self._found.get(host, ()))

    def fault(self, host: str) -> str | None:
        """Return why a name could not be looked up the last time."""
        return self._faults.get(host)

    def is_pending(self, host: str) -> bool:
        """Return whether the first answer for a name in use is still to come."""
        return not self._found.get(host) and host not in self._faults

    def close(self) -> None:
        """Stop looking names up."""
        self._closed = True
        self._wake.set()

    def _run(self) -> None:
        refresh_at = 0.0
        while not self._closed:
            self._wake.clear()
            now = time.monotonic()
            is_due = now >= refresh_at
            refresh_at = now + self._refresh_seconds if is_due else refresh_at
            if self._begin(now, is_due=is_due):
                self._on_change()
            self._wake.wait(max(0.0, self._next(refresh_at) - time.monotonic()))

    def _begin(self, now: float, *, is_due: bool) -> bool:
        """Drop the look-ups whose deadline is over and begin those that are due; report whether one was given up."""
        with self._lock:
            late = [host for host, begun in self._asked.items() if now - begun >= self._look_up_seconds]
            given_up = [self._fail(host) for host in late if host in self._found and not self._faults.get(host)]
            self._waiting = [host for host in self._found if host not in self._asked and (is_due or self._is_new(host))]
            free = max(0, _SIDE_BY_SIDE - len(self._asked) + len(late))
            begun, self._waiting = self._waiting[:free], self._waiting[free:]
            self._asked |= dict.fromkeys(begun, now)
        for host in begun:
            try:
                start_thread(self._look_up, host, name="grpc-etcd-dns-ask")
            except RuntimeError as error:  # no further thread may be started: it is looked up again, as any fault is
                self._note_answer(host, f"the host name {host!r} cannot be looked up: {error}")
        return bool(given_up)

    def _is_new(self, host: str) -> bool:
        return (not self._found[host] and host not in self._faults) or host in self._waiting

    def _fail(self, host: str) -> str:
        fault = f"the host name {host!r} was not resolved within {self._look_up_seconds:g} s: no DNS server responds"
        self._faults = self._faults | {host: fault}
        return fault

    def _next(self, refresh_at: float) -> float:
        with self._lock:
            now = time.monotonic()
            deadlines = (begun + self._look_up_seconds for begun in self._asked.values())
            return min([refresh_at, *(deadline for deadline in deadlines if deadline > now)])

    def _look_up(self, host: str) -> None:
        try:
            found = self._ask(host)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one name is sent, and looked up again
            found = f"the host name {host!r} cannot be resolved: {error!r}"
        self._note_answer(host, found)

    def _note_answer(self, host: str, found: tuple[str, ...] | str) -> None:
        with self._lock:
            before = self._found.get(host), self._faults.get(host)
            self._asked.pop(host, None)
            if host in self._found:
                self._take(host, found)
            changed = before != (self._found.get(host), self._faults.get(host))
        self._wake.set()
        if changed and not self._closed:
            self._on_change()

    def _take(self, host: str, found: tuple[str, ...] | str) -> None:
        if not found:
            found = _no_address(host)  # an empty answer that is no fault would be asked for at once again
        if isinstance(found, str):
            self._faults = self._faults | {host: found}
        else:
            self._faults = {name: fault for name, fault in self._faults.items() if name != host}
            self._found = self._found | {host: tuple(found)}

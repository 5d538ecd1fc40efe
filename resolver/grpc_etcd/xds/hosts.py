"""Host names instead of IP addresses: xDS takes none, so they are resolved here, and again every while.

An answer is kept until a newer one comes: a name server that is away takes no endpoint away. Looking names up blocks,
so it has a thread of its own, started with the first name.
"""

import ipaddress
import socket
import threading
from collections.abc import Callable, Iterable
from functools import lru_cache

from grpc_etcd.registry.endpoint import split_address
from grpc_etcd.xds.resources import Socket

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
        return f"{host!r} is no host name: {error}"
    return tuple(dict.fromkeys(str(address[0]) for *_, address in answers if "%" not in str(address[0])))


class HostNames:
    """What the host names in use stand for. Thread-safe; `on_change` is called by the thread that looks names up."""

    def __init__(
        self,
        on_change: Callable[[], None],
        ask: Callable[[str], tuple[str, ...] | str] = look_up,
        refresh_seconds: float = REFRESH_SECONDS,
    ) -> None:
        self._on_change = on_change
        self._ask = ask
        self._refresh_seconds = refresh_seconds
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._found: dict[str, tuple[str, ...]] = {}
        self._faults: dict[str, str] = {}
        self._thread: threading.Thread | None = None
        self._closed = False

    def use(self, hosts: Iterable[str]) -> None:
        """Say which names are in use: others are forgotten, new ones are looked up soon."""
        with self._lock:
            wanted = set(hosts)
            self._found = {host: self._found.get(host, ()) for host in wanted}
            self._faults = {host: fault for host, fault in self._faults.items() if host in wanted}
            new = [host for host in wanted if not self._found[host] and host not in self._faults]
            if wanted and self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="grpc-etcd-dns", daemon=True)
                self._thread.start()
        if new:
            self._wake.set()

    @property
    def in_use(self) -> bool:
        """Tell whether there are any names."""
        return bool(self._found)

    def sockets(self, host: str, port: int) -> tuple[Socket, ...]:
        """Give what the name stands for, the preferred address first; nothing while it is unknown."""
        return tuple(Socket(ip, port) for ip in self._found.get(host, ()))

    def fault(self, host: str) -> str | None:
        """Say why a name could not be looked up the last time."""
        return self._faults.get(host)

    def is_pending(self, host: str) -> bool:
        """Tell whether the first answer for a name in use is still to come."""
        return not self._found.get(host) and host not in self._faults

    def close(self) -> None:
        """Stop looking names up."""
        self._closed = True
        self._wake.set()

    def _run(self) -> None:
        while not self._closed:
            self._wake.clear()
            if self._refresh():
                self._on_change()
            self._wake.wait(self._refresh_seconds)

    def _refresh(self) -> bool:
        before = self._found, self._faults
        for host in list(self._found):
            found = self._ask(host)
            with self._lock:
                if host in self._found and isinstance(found, str):
                    self._faults = self._faults | {host: found}
                elif host in self._found:
                    self._faults = {name: fault for name, fault in self._faults.items() if name != host}
                    self._found = self._found | {host: tuple(found)}
        return (self._found, self._faults) != before

"""Wait for conditions and find free ports: what every part of the test bed needs, and what replaces sleeping."""

import asyncio
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
# Generous, for a machine that is busy with other things; a condition that holds sooner ends the wait at once.
PATIENCE_SECONDS = 60.0
POLL_SECONDS = 0.01
LOWEST_PORT = 10_000
# Arbitrary: a suite asks for some hundreds, and there are blocks for two hundred programs at a time.
BLOCK_PORTS = 100


class Condition(Protocol[T_co]):
    """A function without arguments. A Callable would not do: mypy cannot infer a lambda for one that binds a value."""

    def __call__(self) -> T_co:
        """Return something true when it holds."""


def existing(found: T | None) -> T:
    """Return what must be there."""
    if found is None:
        raise LookupError("nothing is there")
    return found


def wait_until(condition: Condition[T], what: str, timeout_seconds: float = PATIENCE_SECONDS) -> T:
    """Poll until the condition is true and return its value; raise TimeoutError that says what was waited for."""
    deadline = time.monotonic() + timeout_seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_seconds:g} s in vain: {what} (last seen: {value!r})")
        time.sleep(POLL_SECONDS)
    return value


async def until(condition: Condition[object], timeout_seconds: float = PATIENCE_SECONDS) -> None:
    """Let the event loop work until the condition is true; raise TimeoutError when that lasts too long."""
    async with asyncio.timeout(timeout_seconds):
        while not condition():  # noqa: ASYNC110  threads, servers and time itself change it
            await asyncio.sleep(POLL_SECONDS)


class PortBlocks:
    """Ports that belong to this program alone, of all that take theirs from here, until it ends.

    A port that is only found free may be found free by another test run as well, before either server listens, or
    while a server that will be started again is down. So whole blocks are reserved, each by an abstract Unix socket:
    like ports it belongs to the network namespace, and the kernel frees it however this program ends.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ports: Iterator[int] = iter(())
        self._owner = 0

    def next(self) -> int:
        """Return one that was never returned before."""
        with self._lock:
            if self._owner != os.getpid():  # a forked child has blocks of its own
                self._ports, self._owner = iter(()), os.getpid()
            if (port := next(self._ports, None)) is None:
                self._ports = self._reserve()
                port = next(self._ports)
            return port

    def _reserve(self) -> Iterator[int]:
        lowest_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        blocks = [*range(LOWEST_PORT, max(lowest_ephemeral, LOWEST_PORT + 10_000) - BLOCK_PORTS + 1, BLOCK_PORTS)]
        random.shuffle(blocks)
        for first in blocks:
            lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                lock.bind(f"\0grpc-etcd-ports-{first}")
            except OSError:
                lock.close()
                continue
            lock.detach()  # it stays open, and nobody is to close it
            return iter(range(first, first + BLOCK_PORTS))
        raise RuntimeError("other test runs have reserved all ports; wait for their end")


PORTS = PortBlocks()


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that nobody listens on, that was never returned before, and that no outgoing connection takes.

    So a server that is killed finds its port free when it is started again, and two servers never get the same one,
    in this program or in one beside it.
    """
    while True:
        port = PORTS.next()
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port

"""Wait for conditions and find free ports: what every part of the test bed needs, and what replaces sleeping."""

import asyncio
import random
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
# Generous, for a machine that is busy with other things; a condition that holds sooner ends the wait at once.
PATIENCE_SECONDS = 60.0
POLL_SECONDS = 0.01
LOWEST_PORT = 10_000
RETURNED_PORTS: set[int] = set()


def wait_until(condition: Callable[[], T], what: str, timeout_seconds: float = PATIENCE_SECONDS) -> T:
    """Poll until the condition is true and return its value; raise TimeoutError that says what was waited for."""
    deadline = time.monotonic() + timeout_seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_seconds:g} s in vain: {what} (last seen: {value!r})")
        time.sleep(POLL_SECONDS)
    return value


async def until(condition: Callable[[], object], timeout_seconds: float = PATIENCE_SECONDS) -> None:
    """Let the event loop work until the condition is true; raise TimeoutError when that lasts too long."""
    async with asyncio.timeout(timeout_seconds):
        while not condition():  # noqa: ASYNC110  threads, servers and time itself change it
            await asyncio.sleep(POLL_SECONDS)


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that nobody listens on, that was never returned before, and that no outgoing connection takes.

    So a server that is killed finds its port free when it is started again, and two servers never get the same one.
    """
    lowest_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(LOWEST_PORT, max(lowest_ephemeral, LOWEST_PORT + 1000))  # noqa: S311 (no secret)
        if port in RETURNED_PORTS:
            continue
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            RETURNED_PORTS.add(port)
            return port

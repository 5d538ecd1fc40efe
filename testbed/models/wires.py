"""The network of a model: who is cut off from whom, how long things take, and whose answers get lost.

A `Wire` is one client's way to a server; several hang on the server's own, which is what all of them share. Channels
and connections look at it whenever they send. What is sent while packets vanish arrives when they come through again,
as TCP sees to it, unless the connection has been given up by then.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import Context
from enum import IntEnum, auto
from typing import Any, Protocol

FASTEST_SECONDS, SLOWEST_SECONDS = 0.0003, 0.003  # one way, within a cluster. Arbitrary

APART_SECONDS = 1e-6  # timers of one and the same time fire in any order
# What servers and networks do belongs to no client, also where a client's request is what began it.
OUTSIDE = Context()


class Way(IntEnum):
    """What becomes of what is sent; the worse the greater."""

    OPEN = auto()
    SILENT = auto()  # packets vanish: connections stay open and say nothing
    REFUSED = auto()  # nobody listens: connections end at once


class Connects(Protocol):
    """A connection, as its wire sees it."""

    def on_broken(self) -> None:
        """End: the wire was cut."""

    def on_silent(self) -> None:
        """Take it that nothing comes through from now on."""


class Wire:
    """The way of one client. `lost_answers` is the share of requests whose answers never come."""

    def __init__(self, above: "Wire | None" = None, *, name: str = "") -> None:
        self.name = name
        self.fastest, self.slowest = FASTEST_SECONDS, SLOWEST_SECONDS
        self.lost_answers = 0.0
        self.stream_delay = 0.0  # by so much longer takes what streams and watches tell
        self._way, self._above = Way.OPEN, above
        self._below: list[Wire] = []
        self._held: deque[tuple[Callable[..., None], tuple[object, ...]]] = deque()
        self._connections: dict[Connects, None] = {}
        if above:
            above._below.append(self)  # noqa: SLF001  its own kind

    def __repr__(self) -> str:
        return f"<Wire {self.name} {self.way.name}>"

    @property
    def way(self) -> Way:
        """How it is with this client now."""
        return max(self._way, self._above.way) if self._above else self._way

    @property
    def is_well(self) -> bool:
        """Say whether nothing is wrong with it."""
        is_slow = self.slowest > SLOWEST_SECONDS or self.stream_delay > 0
        return self._way is Way.OPEN and not is_slow and self.lost_answers == 0

    @property
    def is_cut_off(self) -> bool:
        """Say whether it is this way alone that nothing comes through."""
        return self._way is Way.SILENT

    def delay(self) -> float:
        """Return how long the next message takes."""
        return random.uniform(self.fastest, self.slowest)  # noqa: S311  no secret

    def loses_answer(self) -> bool:
        """Say whether the next answer gets lost."""
        return self.lost_answers > 0 and random.random() < self.lost_answers  # noqa: S311  no secret

    # What goes wrong

    def refuse(self) -> None:
        """Let all connections end, and no new one begin."""
        self._way = Way.REFUSED
        self.cut()

    def silence(self) -> None:
        """Let packets vanish, until `heal`."""
        self._way = Way.SILENT
        for connection in tuple(self.all()):
            connection.on_silent()

    def heal(self) -> None:
        """Let everything through again."""
        self._way, self.lost_answers, self.stream_delay = Way.OPEN, 0.0, 0.0
        self.fastest, self.slowest = FASTEST_SECONDS, SLOWEST_SECONDS
        self._release()

    def remove(self) -> None:
        """Take the way of a client that is no more out of the server's."""
        self.refuse()
        if self._above:
            self._above._below.remove(self)  # noqa: SLF001  its own kind

    def cut(self) -> None:
        """End all connections that are open now."""
        for connection in tuple(self.all()):
            connection.on_broken()

    # For connections

    def all(self) -> Iterator[Connects]:
        """List all connections that are open."""
        yield from self._connections
        for each in self._below:
            yield from each.all()

    def join(self, connection: Connects) -> None:
        """Take note of a connection."""
        self._connections[connection] = None

    def leave(self, connection: Connects) -> None:
        """Take it that a connection has ended."""
        self._connections.pop(connection, None)

    def arrive(self, deliver: Callable[..., None], message: tuple[object, ...]) -> None:
        """Deliver a message that has been under way for long enough, or hold it while packets vanish."""
        if self._held or self.way is Way.SILENT:
            self._held.append((deliver, message))
        else:
            deliver(*message)

    def _release(self) -> None:
        while self._held and self.way is not Way.SILENT:
            deliver, message = self._held.popleft()
            deliver(*message)
        for each in self._below:
            each._release()  # noqa: SLF001  its own kind


class Pipe:
    """Delivers messages one way: each after a while, and none before those that were sent earlier."""

    __slots__ = ("_deliver", "_is_closed", "_last", "_loop", "_wire")

    def __init__(self, wire: Wire, deliver: Callable[..., Any]) -> None:
        self._wire, self._deliver, self._is_closed = wire, deliver, False
        self._loop = asyncio.get_running_loop()
        self._last = 0.0

    def send(self, *message: object, extra: float = 0.0) -> None:
        """Send a message."""
        self._last = max(self._last + APART_SECONDS, self._loop.time() + self._wire.delay() + extra)
        self._loop.call_at(self._last, self._wire.arrive, self._take, message, context=OUTSIDE)

    def close(self) -> None:
        """Deliver nothing more."""
        self._is_closed = True

    def _take(self, *message: object) -> None:
        if not self._is_closed:
            self._deliver(*message)

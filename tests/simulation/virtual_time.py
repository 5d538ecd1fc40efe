"""An asyncio event loop whose clock jumps to the next timer, and a process whose clocks and chance follow it.

    with virtual_time(seed=7) as clock:
        run(main(), clock)

Nothing real happens in it: no sockets, no threads, no executors, no children. Two runs with one seed do the same, step
by step, whatever the machine does meanwhile: tasks and futures hash by their number, so that sets of them are iterated
in the same order. (Sets of strings are too where PYTHONHASHSEED is set.) Where nothing is due any more, and where time
no longer passes, the loop says so instead of hanging.
"""

import asyncio
import contextlib
import itertools
import os
import random
import sys
import time
import types
from collections.abc import Coroutine, Iterable, Iterator
from contextvars import ContextVar
from heapq import heappop, heappush
from typing import Any, Never, TypeVar

T = TypeVar("T")
START_SECONDS = 10_000.0  # monotonic; some code takes 0 for "never". Arbitrary
START_UNIX = 1_800_000_000.0  # arbitrary
MOST_TURNS = 200_000  # of the loop at one time: far more than a storm needs. Arbitrary
RESOLUTION_SECONDS = 1e-6
_REAL_AS_COMPLETED = asyncio.as_completed
OWNER: ContextVar[str] = ContextVar("owner", default="world")  # whose task or log line it is


class RealWorldError(RuntimeError):
    """Something has asked for what is not in the simulation: a socket, a thread, a child process."""


class StandstillError(RuntimeError):
    """Nothing is due any more and what is waited for has not happened, or time no longer passes."""


class Clock:
    """The time of a simulation, in seconds; `skew` is how far the wall clock is off."""

    def __init__(self) -> None:
        self.now = START_SECONDS
        self.skew = 0.0

    def monotonic(self) -> float:
        """Return what `time.monotonic` does."""
        return self.now

    def unix(self) -> float:
        """Return what `time.time` does."""
        return START_UNIX - START_SECONDS + self.now + self.skew

    @property
    def elapsed(self) -> float:
        """Seconds since the simulation began."""
        return self.now - START_SECONDS


class _NumberedTask(asyncio.Task[Any]):
    """A task that hashes by its number."""

    def __init__(self, *arguments: Any, loop: "VirtualLoop", **named: Any) -> None:
        self._number = loop.next_number()
        self.owner = OWNER.get()
        super().__init__(*arguments, loop=loop, **named)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class _NumberedFuture(asyncio.Future[Any]):
    """A future that hashes by its number."""

    def __init__(self, *arguments: Any, loop: "VirtualLoop", **named: Any) -> None:
        self._number = loop.next_number()
        super().__init__(*arguments, loop=loop, **named)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


def _make_task(loop: Any, work: Any, **named: Any) -> _NumberedTask:
    return _NumberedTask(work, loop=loop, **named)


def _refuse(*_: Any, **__: Any) -> Never:
    raise RealWorldError("a simulation opens no sockets, starts no threads and no processes")


class VirtualLoop(asyncio.BaseEventLoop):
    """The loop. What asks for I/O gets a RealWorldError."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.next_number = itertools.count().__next__
        self.faults: list[dict[str, Any]] = []  # what nobody caught
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._turns = 0
        self._frozen: dict[str, list[asyncio.Handle]] = {}
        self.set_task_factory(_make_task)
        self.set_exception_handler(lambda _, context: self.faults.append(context))

    def time(self) -> float:
        """Return the simulation's time."""
        return self.clock.now

    def freeze(self, owner: str) -> None:
        """Let a player do nothing until `thaw`, as a process that is stopped."""
        self._frozen.setdefault(owner, [])

    def thaw(self, owner: str) -> None:
        """Let it go on with all that has fallen due."""
        self._ready.extend(self._frozen.pop(owner, []))  # type: ignore[attr-defined]  # of the base class

    def create_future(self) -> asyncio.Future[Any]:
        """Make a future that hashes by its number."""
        return _NumberedFuture(loop=self)

    def add_signal_handler(self, sig: int, callback: Any, *args: Any) -> None:  # type: ignore[override]  # no TypeVarTuple
        """Take no signal: nobody sends one in here."""

    def remove_signal_handler(self, sig: int) -> bool:
        """Take none, so there is none to remove."""
        del sig
        return False

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:  # type: ignore[override]  # no TypeVarTuple
        """Call something at a time; what is due at one time is called in the order in which it was asked for."""
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        heappush(self._timers, (when, self.next_number(), timer))
        return timer

    def _timer_handle_cancelled(self, handle: object) -> None:
        """Leave it where it is; it is passed over when it is due."""

    def _run_once(self) -> None:
        ready: Any = self._ready  # type: ignore[attr-defined]  # of the base class
        if not ready and not self._stopping:  # type: ignore[attr-defined]  # of the base class
            self._jump()
        timers, now = self._timers, self.clock.now + RESOLUTION_SECONDS
        while timers and timers[0][0] <= now:
            ready.append(heappop(timers)[2])
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle.cancelled():
                continue
            if self._frozen and (owner := handle._context.get(OWNER, "")) in self._frozen:
                self._frozen[owner].append(handle)
            else:
                handle._run()
        self._turns += 1
        if self._turns > MOST_TURNS:
            self._turns = 0
            raise StandstillError(f"time stands still after {self.clock.elapsed:.3f} s: something goes in circles")

    def _jump(self) -> None:
        """Set the clock to the next timer."""
        timers = self._timers
        while timers and timers[0][2].cancelled():
            heappop(timers)
        if not timers:
            raise StandstillError("nothing is due any more, and what is waited for has not happened")
        if timers[0][0] > self.clock.now:
            self.clock.now, self._turns = timers[0][0], 0

    def _write_to_self(self) -> None:
        """Nobody is waiting in another thread."""


for refused in ("run_in_executor", "add_reader", "add_writer", "create_connection", "create_server", "getaddrinfo"):
    setattr(VirtualLoop, refused, _refuse)
for refused in ("create_datagram_endpoint", "sock_connect", "subprocess_exec", "subprocess_shell"):
    setattr(VirtualLoop, refused, _refuse)


def tasks_of(owner: str) -> "list[asyncio.Task[Any]]":
    """List the tasks that a player has begun and that have not ended."""
    mine = asyncio.current_task()
    found = [each for each in asyncio.all_tasks() if getattr(each, "owner", "") == owner and each is not mine]
    return sorted(found, key=hash)


def run(work: Coroutine[Any, Any, T], clock: Clock) -> T:
    """Run a coroutine in a loop of its own, and end what it has left behind."""
    loop = VirtualLoop(clock)
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(work)
    finally:
        try:
            _cancel_all(loop)
        finally:
            asyncio.set_event_loop(None)
            loop.close()


def _cancel_all(loop: VirtualLoop) -> None:
    left = sorted(asyncio.all_tasks(loop), key=hash)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    loop.run_until_complete(loop.shutdown_asyncgens())


@contextlib.contextmanager
def virtual_time(seed: int) -> Iterator[Clock]:
    """Let the clocks and the chance of this process be those of a simulation, until the block ends."""
    clock, chance = Clock(), random.Random(seed)
    state = random.getstate()

    class Seeded(random.Random):
        """Draws its seed from the simulation where it is given none."""

        def __init__(self, x: Any = None) -> None:
            super().__init__(chance.getrandbits(64) if x is None else x)

    replaced: dict[Any, Any] = {
        time.monotonic: clock.monotonic,
        time.time: clock.unix,
        time.sleep: _never_sleep,
        os.urandom: chance.randbytes,
        random.Random: Seeded,
        asyncio.as_completed: _as_completed,
    }
    places = list(_places(tuple(replaced)))
    for module, name, value in places:
        setattr(module, name, replaced[value])
    random.seed(chance.getrandbits(64))
    try:
        yield clock
    finally:
        for module, name, value in places:
            setattr(module, name, value)
        random.setstate(state)


def _as_completed(works: Iterable[Any], **named: Any) -> Iterator[Any]:
    """Begin coroutines in the order of what they are about; a set of them, as Kopf makes, has any order."""
    return _REAL_AS_COMPLETED([asyncio.ensure_future(each) for each in sorted(works, key=_describe)], **named)


def _describe(work: Any) -> str:
    frame = getattr(work, "cr_frame", None)
    return f"{getattr(work, '__qualname__', '')} {frame.f_locals.get('url', '') if frame else ''}"


def _never_sleep(seconds: float) -> Never:
    raise RealWorldError(f"something sleeps for {seconds} s and would stop the simulation")


def _places(wanted: tuple[Any, ...]) -> Iterator[tuple[types.ModuleType, str, Any]]:
    """Find all names in modules that stand for these functions; `from time import monotonic` makes such."""
    for module in list(sys.modules.values()):
        if not isinstance(module, types.ModuleType) or module.__name__.partition(".")[0] in (
            "_pytest",
            "pytest_timeout",
            "tests",
        ):
            continue
        for name, value in list(vars(module).items()):
            if any(value is each for each in wanted):
                yield module, name, value

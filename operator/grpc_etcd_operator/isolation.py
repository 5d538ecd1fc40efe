"""Keeps one object's trouble from becoming another's, and one part's from becoming the process's.

An exception that nobody foresaw is logged with its traceback and counted under the part that it happened in; whoever
caught it goes on with the next object and looks at this one again after a pause. What is about one object is reported
on that object, too. A part whose own loop fails is started again by `supervise`, after a pause that grows while it
keeps failing. For a request that hangs nobody waits for long.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from grpc_etcd_operator.core.backoff import Backoff

log = logging.getLogger(__name__)
BACKOFF = Backoff((0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0))
CALM_SECONDS = 60.0  # a part that ran for so long starts with the shortest pause again. Arbitrary
PATIENCE_SECONDS = 1.0  # so long is waited for requests before others overtake them. Arbitrary
EVERY_SECONDS = 60.0  # between two lines of one kind in the log. Arbitrary
REPORT_SECONDS = 600.0  # between two reports of one object's unexpected errors. Arbitrary
MOST_LATE = 4  # of one namespace; a hundred that hang would else be waited for one after the other. Arbitrary

UNEXPECTED = "the operator hit an unexpected error with this object: {}; its log has the traceback"


class Subject(NamedTuple):
    """The object that an exception is about, as far as it is known: all but its UID may be empty.

    `resource` is as Kubernetes' URLs have it ("pods").
    """

    uid: str
    resource: str = ""
    namespace: str = ""
    name: str = ""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.name else self.uid


class ObjectFaults:
    """What nobody foresaw about single objects, until it is taken to be reported on them. Times are monotonic seconds.

    Whoever catches it tries again, every half minute at last, and catches it again: of each object one is taken in ten
    minutes.
    """

    def __init__(self) -> None:
        self._waiting: dict[Subject, str] = {}
        self._taken: dict[Subject, float] = {}  # the earliest first

    def __len__(self) -> int:
        return len(self._waiting) + len(self._taken)

    def note(self, subject: Subject, error: BaseException) -> None:
        """Take an exception about an object."""
        self._waiting[subject] = UNEXPECTED.format(type(error).__name__)

    def take(self, now: float) -> list[tuple[Subject, str]]:
        """Return what is to be reported now, and on which objects."""
        while self._taken and now - self._taken[first := next(iter(self._taken))] >= REPORT_SECONDS:
            del self._taken[first]
        waiting, self._waiting = self._waiting, {}
        found = [(subject, words) for subject, words in waiting.items() if subject not in self._taken]
        self._taken |= {subject: now for subject, _ in found}
        return found

    def clear(self) -> None:
        """Keep nothing: another replica reports, which catches the same."""
        self._waiting.clear()
        self._taken.clear()


class Isolation:
    """Counts unexpected exceptions by part; `counts` is what the metric shows.

    `faults` are those about one object, which are to be reported on it; `wake` is called when there is another.
    """

    def __init__(self, wake: Callable[[], None] = lambda: None) -> None:
        self.counts: Counter[str] = Counter()
        self.faults, self._wake = ObjectFaults(), wake

    def caught(self, part: str, of: str | Subject, error: BaseException) -> None:
        """Log and count an exception that nobody foresaw, and report it on the object that it is about (`of`), if any.

        A text is only logged: that object does not exist any more, or whoever caught the exception reports it there.
        """
        self.counts[part] += 1
        fields = {"part": part, "of": str(of), "error": f"{type(error).__name__}: {error}"}
        log.error(
            "Unexpected error, everything else continues",
            exc_info=error,
            extra={"event": "unexpected_error", "fields": fields},
        )
        if isinstance(of, Subject) and of.uid:
            self.faults.note(of, error)
            self._wake()


class Sparing:
    """Logs the first line of a kind, and then one in a while, with how many were left out; the rest is for debugging.

    Kinds that have not come for a while are forgotten.
    """

    def __init__(self, log: logging.Logger, every_seconds: float = EVERY_SECONDS) -> None:
        self._log, self._every_seconds = log, every_seconds
        self._until: dict[Hashable, float] = {}
        self._left_out: dict[Hashable, int] = {}

    def write(
        self, kind: Hashable, message: str, event: str, fields: Mapping[str, object], level: int = logging.WARNING
    ) -> None:
        """Log a line of a kind, or leave it out."""
        now, known = time.monotonic(), (kind, event)
        if now < self._until.get(known, 0.0):
            self._left_out[known] = self._left_out.get(known, 0) + 1
            self._log.debug(message, extra={"event": event, "fields": fields})
            return
        left_out = self._left_out.pop(known, 0)
        self._forget(now)
        self._until[known] = now + self._every_seconds
        said = {**fields, "similar_lines_omitted": left_out} if left_out else fields
        self._log.log(level, message, extra={"event": event, "fields": said})

    def _forget(self, now: float) -> None:
        for kind in [kind for kind, until in self._until.items() if until <= now - self._every_seconds]:
            del self._until[kind]
            self._left_out.pop(kind, None)


async def supervise(part: str, run: Callable[[], Awaitable[None]], isolation: Isolation) -> None:
    """Run a part until cancelled; start it again whenever it fails or ends."""
    failures = 0
    while True:
        began = time.monotonic()
        try:
            await run()
        except Exception as error:  # noqa: BLE001  the one place where a part's own failure ends
            isolation.caught(part, "", error)
        if time.monotonic() - began > CALM_SECONDS:
            failures = 0
        failures += 1
        await asyncio.sleep(BACKOFF.after(failures))


class Request(NamedTuple):
    """What is asked of the API server about one object."""

    uid: str
    namespace: str
    make: Callable[[], Coroutine[Any, Any, object]]


class Overtaking:
    """Lets requests about other objects overtake those that hang.

    An admission webhook that does not answer holds up what it is asked about, and nobody else. What hangs goes on, and
    is not asked for a second time meanwhile; `on_late` is called when it has ended, or has released its place.
    """

    def __init__(
        self,
        part: str,
        isolation: Isolation,
        on_late: Callable[[], None],
        *,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._part, self._isolation, self._on_late = part, isolation, on_late
        self._patience_seconds = patience_seconds
        self._under_way: dict[asyncio.Task[object], Request] = {}
        self._places: dict[asyncio.Task[object], asyncio.Future[None]] = {}  # done when the place is free again
        self._late: set[asyncio.Task[object]] = set()
        self._of_object: Counter[str] = Counter()
        self._of_namespace: Counter[str] = Counter()
        # For whoever has released a place and goes on; each is kept for as long as somebody uses it.
        self._later_places: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    def holds_up(self, uid: str, namespace: str) -> bool:
        """Return whether an object has to wait.

        Something is under way that is asked about it, or too much of its namespace hangs.
        """
        return uid in self._of_object or self._of_namespace[namespace] >= MOST_LATE

    def give_way(self) -> None:
        """Release the place of the request that calls this, whose object still waits for its end.

        For one that goes on, but not with what it was made for: nobody waits for it, and of its namespace others come.
        """
        if (task := asyncio.current_task()) and self._leave_place(task):
            self._on_late()

    def later_place(self, namespace: str) -> asyncio.Semaphore:
        """Return what those that have released their places ask in, a few of a namespace at a time."""
        return self._later_places.setdefault(namespace, asyncio.Semaphore(MOST_LATE))

    async def run(self, requests: Sequence[Request]) -> None:
        """Make some requests, and wait for them unless they hang or release their places."""
        tasks = [self._start(request) for request in requests]
        if not tasks:
            return
        await asyncio.wait([self._places[task] for task in tasks], timeout=self._patience_seconds)
        done = [task for task in tasks if task.done()]
        self._late.update(task for task in tasks if not task.done())
        for task in done:
            task.result()

    def _start(self, request: Request) -> "asyncio.Task[object]":
        task = asyncio.create_task(request.make())
        self._under_way[task], self._places[task] = request, asyncio.get_running_loop().create_future()
        self._of_object[request.uid] += 1
        self._of_namespace[request.namespace] += 1
        task.add_done_callback(self._end)
        return task

    def _leave_place(self, task: "asyncio.Task[object]") -> bool:
        """Free the place of a request; return whether it had one."""
        place = self._places.pop(task, None)
        if place is None:
            return False
        _subtract(self._of_namespace, self._under_way[task].namespace)
        if not place.done():  # whoever waited for it has been cancelled
            place.set_result(None)
        return True

    def _end(self, task: "asyncio.Task[object]") -> None:
        self._leave_place(task)
        request = self._under_way.pop(task)
        _subtract(self._of_object, request.uid)
        if task not in self._late:
            return
        self._late.remove(task)
        if task.cancelled():
            return
        if error := task.exception():
            self._isolation.caught(self._part, request.uid, error)
        self._on_late()

    async def close(self) -> None:
        """End what is under way."""
        tasks = list(self._under_way)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


def _subtract(counts: "Counter[str]", of: str) -> None:
    counts[of] -= 1
    if not counts[of]:
        del counts[of]

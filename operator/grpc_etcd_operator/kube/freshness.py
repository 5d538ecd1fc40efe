"""How fresh what is known of Kubernetes is. Kopf delivers no bookmarks, so this looks at the bytes that arrive.

Two questions, two answers. *Blind*: nothing at all has come from the API server for seconds, neither from a watch nor
in answer to a probe (probing.py); who is blind should not lead. *Deaf*: a watch neither delivers nor is retried any
more; then the process is of no use and liveness fails. Refused and failed requests are no deafness: an API server that
is down will come back. That a watch was opened proves nothing, only bytes of a list or of a watch's events do.

A watch that goes on after blindness would report what was long ago, state after state, and whoever acts on each takes
keys of Pods that have long been ready again. So a stream that was not seen for long is *lost*: its watch ends at
once, begins with a list, and nothing but that makes it seen again. So is one that could not be opened for so long,
though lists and probes were answered, and one that is so far behind what probes have shown, as on a slow connection.
"""

import logging
import math
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from types import SimpleNamespace

import aiohttp
from yarl import URL

DEAF_SECONDS = 180.0  # bookmarks come once a minute
SILENT_SECONDS = 100.0  # a watch that is silent for longer than SILENCE_SECONDS has been listed again by then
SILENCE_SECONDS = 90.0  # bookmarks come once a minute, and half a minute is enough for the slowest of them
GAP_SECONDS = 30.0
BLIND_SECONDS = 9.0  # a probe's interval, and an answer that comes late
LOST_SECONDS = 13.0  # a probe's interval and its time-out, a look, and a second for a busy process
NOTED_SECONDS = 1.0  # until all of a list is noted: Kopf watches on before its tasks have passed on the last objects
MOST_MARKS = 8  # answers of probes, which come every few seconds: more than LOST_SECONDS of them. Arbitrary
REFUSALS = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
LIST, WATCH = "list", "watch"  # verbs of a role
log = logging.getLogger(__name__)
_PATH = re.compile(r"(?:/namespaces/([^/]+))?/(pods|grpcservices|services)$")


def _ignore() -> None:
    """Substitute until whoever watches says how to begin with a list."""


@dataclass(slots=True, kw_only=True)
class Stream:
    """What is known of the watch of one resource in one namespace (empty: in all).

    `seen_at` is when the API server last said anything about it, `last_event_at` when the watch or the list before it
    did, both monotonic seconds. `version` is the highest resourceVersion met, `fault` why it may not be read
    (`fault_at`: since when, `fault_verb`: what is refused). `relist` ends the watch, which then begins with a list;
    while `is_lost` that list is still to come, at `found_at` it has. `is_refused`: a watch was asked for in vain since
    the last list. `marks` are the versions that probes have shown since the watch was opened, and when.
    """

    resource: str
    namespace: str
    attempted_at: float
    seen_at: float
    last_event_at: float = 0.0
    asked_at: float = 0.0
    open_at: float = 0.0
    is_listed: bool = False
    response: aiohttp.ClientResponse | None = None
    received_bytes: int = 0
    version: int = 0
    fault: str = ""
    fault_at: float = 0.0
    fault_verb: str = LIST
    relist: Callable[[], None] = _ignore
    is_lost: bool = False
    found_at: float = -math.inf
    is_refused: bool = False
    marks: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=MOST_MARKS))

    @property
    def is_open(self) -> bool:
        """Return whether a watch is open."""
        return self.response is not None and not self.response.closed

    def note_attempt(self) -> None:
        """Record that whoever watches is alive: it has asked, or waits for its turn, as while the CRD is missing."""
        self.attempted_at = time.monotonic()

    def note_seen(self, verb: str = LIST) -> None:
        """Record that the API server has answered, and allows this: who may watch may list, and not the reverse."""
        self.note_answer()
        self.note_allowed(verb)

    def note_answer(self) -> None:
        """Record that the API server has answered, whatever it allows; of what was lost that says nothing."""
        if not self.is_lost:
            self.seen_at = time.monotonic()

    def lose(self) -> None:
        """End a watch that was open once: it was not seen for too long to go on where it was."""
        if self.response is not None and not (self.is_lost or self.is_listed):
            self.begin_with_list()

    def begin_with_list(self) -> None:
        """End the watch, which then begins with a list."""
        self.is_lost, self.is_listed = True, False
        self.relist()

    def find(self) -> None:
        """Record that all is known again: a list is complete, or there is nothing that could be listed."""
        if self.is_lost:
            self.is_lost, self.found_at = False, time.monotonic()
        self.note_seen()

    def note_allowed(self, verb: str) -> None:
        """Record that this may be done; a role that lets list and not watch shows nothing of what changes."""
        if verb in (WATCH, self.fault_verb):
            self.fault = ""

    def note_fault(self, text: str, verb: str = LIST) -> None:
        """Record that it may not be read; what was said of that first stands."""
        if not self.fault:
            self.fault, self.fault_at, self.fault_verb = text, time.monotonic(), verb

    def note_version(self, text: str) -> None:
        """Take a resourceVersion; those that are not numbers cannot be compared and are left out."""
        if text.isascii() and text.isdigit():
            self.version = max(self.version, int(text))

    def note_event(self, text: str) -> None:
        """Take the version of a change that a watch reports; one of long ago ends the watch, which begins with a list.

        What is older than an answer to a probe happened before that. Of bookmarks this is not so: theirs may be old.
        """
        self.note_version(text)
        if not (text.isascii() and text.isdigit()):
            return
        while self.marks and self.marks[0][1] <= int(text):
            self.marks.popleft()
        if self.marks and time.monotonic() - self.marks[0][0] > LOST_SECONDS and not self.is_lost:
            fields = {"of": self.resource, "namespace": self.namespace}
            log.warning("Watch is late, relisting", extra={"event": "relisting", "fields": fields})
            self.begin_with_list()

    def look(self) -> None:
        """Record of bytes that have come since the last look."""
        if self.response is None:
            return
        now = time.monotonic()
        received = self.response.content.total_bytes
        if received != self.received_bytes:
            self.received_bytes, self.last_event_at = received, now
            self.note_seen(WATCH)
        if not self.response.closed:
            self.open_at = now


class Freshness:
    """Follows the watch requests of a session.

    `on_opened` is called with resource and namespace each time one of its watches begins after a list. One that goes on
    where it was cut off has missed nothing. `on_not_found` is called with which resource is not served. `expected`
    names the watches that there must be: (resource, namespace).
    """

    def __init__(  # noqa: PLR0913  whom to notify, what to expect, and limits that tests shorten
        self,
        on_opened: Callable[[str, str], None],
        expected: Iterable[tuple[str, str]] = (),
        on_not_found: Callable[[str], None] = lambda _resource: None,
        *,
        deaf_seconds: float = DEAF_SECONDS,
        silent_seconds: float = SILENT_SECONDS,
        gap_seconds: float = GAP_SECONDS,
        blind_seconds: float = BLIND_SECONDS,
    ) -> None:
        self._on_opened = on_opened
        self._deaf_seconds, self._silent_seconds = deaf_seconds, silent_seconds
        self._gap_seconds, self._blind_seconds = gap_seconds, blind_seconds
        self._started = time.monotonic()
        self._on_not_found = on_not_found
        self._streams: dict[tuple[str, str], Stream] = {}
        for resource, namespace in expected:
            self.stream(resource, namespace)

    def stream(self, resource: str, namespace: str) -> Stream:
        """Return what is known of a watch."""
        key = (resource, namespace)
        if key not in self._streams:
            started = self._started
            self._streams[key] = Stream(resource=resource, namespace=namespace, attempted_at=started, seen_at=started)
        return self._streams[key]

    @property
    def streams(self) -> Iterable[Stream]:
        """Return all watches, looked at just now."""
        for stream in self._streams.values():
            stream.look()
        return tuple(self._streams.values())

    # -- what requests report -----------------------------------------------------------------------------------------

    def trace(self) -> aiohttp.TraceConfig:
        """Return the trace that a session must carry."""
        trace = aiohttp.TraceConfig()
        trace.on_request_end.append(self._ended)
        trace.on_request_exception.append(self._failed)
        return trace

    async def _ended(
        self, _: aiohttp.ClientSession, __: SimpleNamespace, params: aiohttp.TraceRequestEndParams
    ) -> None:
        stream = self._note(params.url)
        if stream is None:
            return
        verb = _read_verb(params.url)
        if not params.response.ok:
            stream.is_refused |= verb == WATCH
            _note_refusal(stream, params.response, verb)
            if params.response.status == HTTPStatus.NOT_FOUND:
                self._on_not_found(stream.resource)
            return
        if verb == LIST:
            stream.is_listed, stream.last_event_at, stream.is_refused = True, time.monotonic(), False
            stream.note_seen()
            return
        self._opened(stream, params.response)

    def _opened(self, stream: Stream, response: aiohttp.ClientResponse) -> None:
        stream.note_allowed(WATCH)
        stream.look()  # at what came last on the one before
        is_late = time.monotonic() - max(stream.last_event_at, stream.open_at) > self._blind_seconds
        is_refused, stream.is_refused = stream.is_refused, False
        stream.response, stream.received_bytes = response, 0
        stream.marks.clear()
        if is_late and is_refused:
            stream.begin_with_list()
        elif stream.is_listed:
            stream.is_listed = False
            stream.find()
            self._on_opened(stream.resource, stream.namespace)

    async def _failed(
        self, _: aiohttp.ClientSession, __: SimpleNamespace, params: aiohttp.TraceRequestExceptionParams
    ) -> None:
        stream = self._note(params.url)
        if stream is not None:
            stream.is_refused |= _read_verb(params.url) == WATCH

    def _note(self, url: URL) -> Stream | None:
        found = _PATH.search(url.path)
        if not found:
            return None
        stream = self.stream(found[2], found[1] or "")
        stream.note_attempt()
        return stream

    # -- what is concluded from it ----------------------------------------------------------------------------------

    def blind_seconds(self) -> float:
        """Return for how many seconds nothing of Kubernetes has been seen; 0 while it is being seen.

        A namespace is seen when both resources are; one of several suffices, since a lost permission in one of them is
        a fault of that one alone.
        """
        oldest: dict[str, float] = {}
        for stream in self.streams:
            oldest[stream.namespace] = min(stream.seen_at, oldest.get(stream.namespace, stream.seen_at))
        seconds = time.monotonic() - max(oldest.values(), default=self._started)
        return seconds if seconds > self._blind_seconds else 0.0

    def lose_unseen(self, slept_seconds: float = 0.0) -> None:
        """End the watches that were not seen for so long that no probe can have been answered.

        All, if this process itself stood still for so long: what was missed meanwhile may have come already, unread, so
        that they look as if they were seen just now.
        """
        now = time.monotonic()
        for stream in self._streams.values():
            if max(now - stream.seen_at, slept_seconds) > LOST_SECONDS:
                stream.lose()

    def is_behind(self) -> bool:
        """Return whether something was missed that may be read, and the list that has it all is not noted yet."""
        noted = time.monotonic() - NOTED_SECONDS
        return any((each.is_lost or each.found_at > noted) and not each.fault for each in self._streams.values())

    def unreadable(self, resource: str = "") -> Mapping[str, str]:
        """Return the namespaces that may not be read now (empty: all of them), and what the API server said.

        With a resource: in which that one may not be read.
        """
        streams = (each for each in self._streams.values() if resource in ("", each.resource))
        return {stream.namespace: stream.fault for stream in streams if stream.fault}

    def blindness(self, resource: str, namespace: str) -> str | None:
        """Return why a resource of a namespace is not seen now; None: it is.

        Empty where that may pass: nobody refuses it.

        An API server that has just started refuses for a moment what it allows: that a refusal lasts makes it one.
        """
        stream = self._streams.get((resource, namespace)) or self._streams.get((resource, ""))
        if stream is None:
            return None
        stream.look()
        if self._is_current(stream) and not stream.is_listed:  # else the pages of a list are being read
            return None
        lasts = not stream.last_event_at or time.monotonic() - stream.fault_at > self._gap_seconds
        return stream.fault if lasts else ""

    def event_age(self, resource: str) -> float:
        """Return the seconds since the last event of the quietest readable watch of a resource."""
        streams = [stream for stream in self.streams if stream.resource == resource]
        judged = [stream for stream in streams if not stream.fault] or streams
        note_event = [stream.last_event_at or self._started for stream in judged]
        return time.monotonic() - min(note_event, default=self._started)

    def is_fresh(self) -> bool:
        """Return whether every watch that may be read is open, or was until a moment ago, and not silent."""
        streams, unreadable = self.streams, self.unreadable()
        judged = [stream for stream in streams if stream.namespace not in unreadable] or list(streams)
        return bool(judged) and self.blind_seconds() <= self._gap_seconds and all(map(self._is_current, judged))

    def _is_current(self, stream: Stream) -> bool:
        now = time.monotonic()
        if stream.is_open:
            return now - stream.last_event_at <= self._silent_seconds
        return now - stream.last_event_at <= self._silent_seconds and (
            now - max(stream.last_event_at, stream.open_at) <= self._gap_seconds
        )

    def is_deaf(self) -> bool:
        """Return whether a watch neither delivers nor is retried any more."""
        latest = [max(stream.attempted_at, stream.last_event_at) for stream in self.streams]
        return time.monotonic() - min(latest, default=self._started) > self._deaf_seconds


def _read_verb(url: URL) -> str:
    return WATCH if url.query.get("watch") == "true" else LIST


def _note_refusal(stream: Stream, response: aiohttp.ClientResponse, verb: str) -> None:
    if response.status in REFUSALS:
        what = f"{verb}: " if verb == WATCH else ""
        stream.note_fault(f"{stream.resource} cannot be read ({what}{response.status} {response.reason})", verb)

"""Stands between a watch and whoever notes its events, so that an event that cannot be noted ends nothing.

What is unexpected about one object is logged, counted and reported on it, and its latest event is tried again with a
growing pause, while all others go on. Nothing is kept of objects that make no trouble.

Nor is a namespace to hold up others. A change of a GrpcService takes as long as it has Pods, and whoever may edit it
may do so a hundred times a second: so after a change the namespace rests for some times as long as that took.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from grpc_etcd_operator.core.pods import PodMessage
from grpc_etcd_operator.core.services import GrpcService
from grpc_etcd_operator.isolation import BACKOFF, Isolation, Subject

T = TypeVar("T")
REST_FACTOR = 4  # a namespace takes a fifth of the time at most. Arbitrary
SHORT_SECONDS = 0.001  # what is over so soon holds up nobody. Arbitrary
LONGEST_REST_SECONDS = 5.0  # arbitrary: how long a change may wait for the one before
AT_ONCE = (None, "DELETED")  # what a list reports, and what nothing long follows at once


def identify_pod(pod: PodMessage) -> Subject:
    """Report which Pod it is."""
    return Subject(pod.metadata.uid, namespace=pod.metadata.namespace, name=pod.metadata.name)


def identify_service(service: GrpcService) -> Subject:
    """Report which GrpcService it is."""
    return Subject(service.uid, namespace=service.namespace, name=service.name)


def identify_raw(raw: Mapping[str, Any]) -> Subject:
    """Report which object it is that has not been read yet."""
    metadata = raw["metadata"]
    namespace, name = str(metadata.get("namespace", "")), str(metadata.get("name", ""))
    return Subject(str(metadata["uid"]), namespace=namespace, name=name)


class Noting(Generic[T]):
    """Passes events (kind and object) to `note`; `name_of` reports what an event is about."""

    def __init__(
        self,
        resource: str,
        note: Callable[[str | None, T], None],
        name_of: Callable[[T], Subject],
        isolation: Isolation,
    ) -> None:
        self._resource, self._note, self._name_of, self._isolation = resource, note, name_of, isolation
        self._waiting: dict[str, tuple[int, asyncio.TimerHandle]] = {}

    def __call__(self, kind: str | None, item: T) -> None:
        """Record an event; whatever happens, it is over."""
        try:
            self._note(kind, item)
        except Exception as error:  # noqa: BLE001  one object's trouble
            self._fail(kind, item, error)
        else:
            if self._waiting:
                self._forget(self._name_of(item).uid)

    def _forget(self, uid: str) -> int:
        """Stop waiting for an object; return how often it has failed."""
        failures, timer = self._waiting.pop(uid, (0, None))
        if timer:
            timer.cancel()
        return failures

    def _fail(self, kind: str | None, item: T, error: Exception) -> None:
        subject = self._name(item)
        failures = self._forget(subject.uid) + 1
        self._isolation.caught(self._resource, subject, error)
        # A list counts whatever is known, but only when it is made: what has been found out since counts more by then.
        timer = asyncio.get_running_loop().call_later(BACKOFF.after(failures), self, kind or "MODIFIED", item)
        self._waiting[subject.uid] = failures, timer

    def _name(self, item: T) -> Subject:
        try:
            return self._name_of(item)._replace(resource=self._resource)
        except Exception:  # noqa: BLE001  not even that can be read
            return Subject("", name="?")

    @property
    def waiting(self) -> set[str]:
        """Return the UIDs of objects that are tried again."""
        return set(self._waiting)

    def close(self) -> None:
        """Try nothing again any more."""
        for uid in tuple(self._waiting):
            self._forget(uid)


class Resting:
    """Passes events (kind and object) to `note`, of a namespace that rests later, and of each object the latest.

    It rests after what took more than `short_seconds`. `clock` gives the CPU time of this thread: that the machine is
    busy with other things is no namespace's doing.
    """

    def __init__(
        self,
        note: Callable[[str | None, Mapping[str, Any]], None],
        clock: Callable[[], float] = time.thread_time,
        short_seconds: float = SHORT_SECONDS,
    ) -> None:
        self._note, self._clock, self._short_seconds = note, clock, short_seconds
        self._waiting: dict[str, dict[str, tuple[str | None, Mapping[str, Any]]]] = {}  # by namespaces that rest
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def __call__(self, kind: str | None, raw: Mapping[str, Any]) -> None:
        """Pass an event on, now or when its namespace has rested."""
        namespace, uid = str(raw["metadata"].get("namespace", "")), str(raw["metadata"]["uid"])
        waiting = self._waiting.get(namespace)
        if kind in AT_ONCE:
            if waiting:
                waiting.pop(uid, None)
            self._note(kind, raw)
        elif waiting is None:
            self._pass(namespace, kind, raw)
        else:
            waiting[uid] = kind, raw

    @property
    def namespaces(self) -> frozenset[str]:
        """Return the namespaces that rest."""
        return frozenset(self._waiting)

    def _pass(self, namespace: str, kind: str | None, raw: Mapping[str, Any]) -> None:
        began = self._clock()
        self._note(kind, raw)
        took = self._clock() - began
        if took > self._short_seconds or namespace in self._waiting:
            self._waiting.setdefault(namespace, {})
            rest = min(LONGEST_REST_SECONDS, REST_FACTOR * took)
            self._timers[namespace] = asyncio.get_running_loop().call_later(rest, self._go_on, namespace)

    def _go_on(self, namespace: str) -> None:
        waiting = self._waiting[namespace]
        if waiting:
            self._pass(namespace, *waiting.pop(next(iter(waiting))))
        else:
            del self._waiting[namespace], self._timers[namespace]

    def close(self) -> None:
        """Pass on nothing more: whoever goes on begins with a list."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._waiting.clear()

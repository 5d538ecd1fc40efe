"""Stands between a watch and whoever notes its events, so that an event that cannot be noted ends nothing.

What is unexpected about one object is logged and counted, and its latest event is tried again with a growing pause,
while all others go on. Nothing is kept of objects that make no trouble.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from grpc_etcd_operator.core.pods import PodMessage
from grpc_etcd_operator.core.services import GrpcService
from grpc_etcd_operator.isolation import BACKOFF, Isolation

T = TypeVar("T")


def identify_pod(pod: PodMessage) -> tuple[str, str]:
    """Tell a Pod's UID and name."""
    return pod.metadata.uid, f"{pod.metadata.namespace}/{pod.metadata.name}"


def identify_service(service: GrpcService) -> tuple[str, str]:
    """Tell a GrpcService's UID and name."""
    return service.uid, service.reference


def identify_raw(raw: Mapping[str, Any]) -> tuple[str, str]:
    """Tell UID and name of an object that has not been read yet."""
    metadata = raw["metadata"]
    return str(metadata["uid"]), f"{metadata.get('namespace')}/{metadata.get('name')}"


class Noting(Generic[T]):
    """Passes events (kind and object) to `note`; `name_of` tells UID and name of an event's object."""

    def __init__(
        self,
        part: str,
        note: Callable[[str | None, T], None],
        name_of: Callable[[T], tuple[str, str]],
        isolation: Isolation,
    ) -> None:
        self._part, self._note, self._name_of, self._isolation = part, note, name_of, isolation
        self._waiting: dict[str, tuple[int, asyncio.TimerHandle]] = {}

    def __call__(self, kind: str | None, item: T) -> None:
        """Note an event; whatever happens, it is over."""
        try:
            self._note(kind, item)
        except Exception as error:  # noqa: BLE001  one object's trouble
            self._fail(kind, item, error)
        else:
            if self._waiting:
                self._forget(self._name_of(item)[0])

    def _forget(self, uid: str) -> int:
        """Give up waiting for an object; return how often it has failed."""
        failures, timer = self._waiting.pop(uid, (0, None))
        if timer:
            timer.cancel()
        return failures

    def _fail(self, kind: str | None, item: T, error: Exception) -> None:
        uid, name = self._name(item)
        failures = self._forget(uid) + 1
        self._isolation.caught(self._part, name, error)
        timer = asyncio.get_running_loop().call_later(BACKOFF.after(failures), self, kind, item)
        self._waiting[uid] = failures, timer

    def _name(self, item: T) -> tuple[str, str]:
        try:
            return self._name_of(item)
        except Exception:  # noqa: BLE001  not even that can be read
            return "", "?"

    @property
    def waiting(self) -> set[str]:
        """Give the UIDs of objects that are tried again."""
        return set(self._waiting)

    def close(self) -> None:
        """Try nothing again any more."""
        for uid in tuple(self._waiting):
            self._forget(uid)

"""A source that lists and watches Pods itself: all that there are, then each change, forever, in protobuf.

It lists in pages and watches from the list's version on. A watch that ends goes on where it was; where the API server
has forgotten that version, or the watch was silent beyond its bookmarks, it begins with a list, and who is notified of
the list finds what went in the gap. The list alone is also for whoever watches by other means.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from http import HTTPStatus
from typing import Generic, TypeVar

import aiohttp

from grpc_etcd_operator.core.backoff import Backoff
from grpc_etcd_operator.core.pods import PodMessage
from grpc_etcd_operator.kube.client import ApiError, Client
from grpc_etcd_operator.kube.freshness import SILENCE_SECONDS, Stream
from grpc_etcd_operator.kube.pages import Page
from grpc_etcd_operator.sources.source import Receiver

T = TypeVar("T")
log = logging.getLogger(__name__)
FORGOTTEN = (HTTPStatus.GONE, HTTPStatus.BAD_REQUEST)  # of a version: too old, or none of this API server's
SELECTOR_REMEDY = (
    "If the API server cannot read the label selector {!r}, fix --pod-selector (podSelector in the chart's values): "
    "`kubectl get pods --selector` accepts the same syntax."
)
JITTER = 0.5  # so that many replicas do not come at once
AGAIN, BACKOFF = Backoff((0.1,), JITTER), Backoff((0.2, 0.5, 1.0, 2.0), JITTER)


class Lister(Generic[T]):
    """Delivers all objects of a stream, in the pages that `list_pages` gives; `uid_of` one is what the list names.

    The stream is reported the list's version.
    """

    def __init__(
        self, stream: Stream, list_pages: Callable[[], AsyncIterator[Page[T]]], uid_of: Callable[[T], str]
    ) -> None:
        self._stream, self._list_pages, self._uid_of = stream, list_pages, uid_of
        self._version = self._remedy = ""
        self._failures = 0

    async def list_all(self, receiver: Receiver[T]) -> str:
        """Deliver all that there are, once; whatever fails is tried again. Return the list's version."""
        self._version = ""
        while True:
            await self._try(self._list, receiver)
            if self._version:
                return self._version
            await self._pause()

    async def _try(self, deliver: Callable[[Receiver[T]], Awaitable[None]], receiver: Receiver[T]) -> None:
        self._failures += 1  # until something is reported
        try:
            await deliver(receiver)
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            self._fail(error)

    async def _pause(self) -> None:
        backoff = BACKOFF if self._failures else AGAIN
        await asyncio.sleep(backoff.after(max(1, self._failures), random.random()))  # noqa: S311  no secret

    async def _list(self, receiver: Receiver[T]) -> None:
        version, listed = "", set()
        async for page in self._list_pages():
            version = page.version
            for item in page.items:
                receiver.note(None, item)
                listed.add(self._uid_of(item))
        self._version, self._failures = version, 0
        self._stream.note_version(version)
        receiver.take_list(self._stream.namespace, frozenset(listed))

    def _fail(self, error: Exception) -> None:
        stream = self._stream
        fields = {"of": stream.resource, "namespace": stream.namespace, "error": f"{type(error).__name__}: {error}"}
        if isinstance(error, ApiError) and error.status in FORGOTTEN:
            # A list names no version: what is bad about it is the selector.
            if self._remedy and not self._version and error.status == HTTPStatus.BAD_REQUEST:
                fields["remedy"] = self._remedy
            self._version = ""
        if self._version:
            log.warning("Watch interrupted, resuming", extra={"event": "watch_resuming", "fields": fields})
        else:
            log.warning("Watch or list failed, relisting", extra={"event": "relisting", "fields": fields})


class Reflector(Lister[PodMessage]):
    """Delivers the Pods of one namespace (empty: of all), a stream's. The stream is reported each version."""

    def __init__(
        self, client: Client, stream: Stream, selector: str, *, silence_seconds: float = SILENCE_SECONDS
    ) -> None:
        super().__init__(stream, partial(client.list_pods, stream.namespace, selector), lambda pod: pod.metadata.uid)
        self._client, self._selector = client, selector
        self._remedy = SELECTOR_REMEDY.format(selector) if selector else ""
        self._silence_seconds = silence_seconds
        self._limit: asyncio.Timeout | None = None

    @property
    def kind(self) -> str:
        """Name the kind as Kubernetes' URLs do."""
        return self._stream.resource

    def relist(self) -> None:
        """Begin with a list: the watch is not to be trusted."""
        self._version = ""
        if self._limit is not None and not self._limit.expired():  # else it ends by itself, and takes no other time
            self._limit.reschedule(0.0)

    async def run(self, receiver: Receiver[PodMessage]) -> None:
        """Deliver until cancelled."""
        self._stream.relist = self.relist
        while True:
            await self._try(self._follow, receiver)
            await self._pause()

    async def _follow(self, receiver: Receiver[PodMessage]) -> None:
        if not self._version:
            await self._list(receiver)
        await self._watch(receiver)

    async def _watch(self, receiver: Receiver[PodMessage]) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._silence_seconds) as self._limit:
                async for event in self._client.watch_pods(self._stream.namespace, self._selector, self._version):
                    is_bookmark = event.kind == "BOOKMARK"
                    (self._stream.note_version if is_bookmark else self._stream.note_event)(event.version)
                    if not self._version:
                        return  # it must begin with a list, and this may be of long ago
                    if is_bookmark:
                        self._limit.reschedule(loop.time() + self._silence_seconds)
                    else:
                        receiver.note(event.kind, event.pod)
                    self._version = event.version
                    self._failures = 0
        except TimeoutError:
            if self._limit is not None and self._limit.expired():
                self._version = ""
            raise
        finally:
            self._limit = None

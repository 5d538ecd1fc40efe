"""The list-watch on Pods: all that there are, then each change, for ever. Each is noted, and nothing else is done.

It lists in pages and watches from the list's version on. A watch that ends goes on where it was; where the API server
has forgotten that version, or the watch was silent beyond its bookmarks, it begins with a list, and who is told of the
list finds what went in the gap. Not Kopf's, which keeps a task with queue and timers for each object (docs/decisions).
"""

import asyncio
import logging
import random
from collections.abc import Callable
from http import HTTPStatus

import aiohttp

from grpc_etcd_operator.core.pods import PodMessage
from grpc_etcd_operator.kube.client import ApiError, Client
from grpc_etcd_operator.kube.freshness import SILENCE_SECONDS, Stream

log = logging.getLogger(__name__)
PAUSE_SECONDS = 0.1
FORGOTTEN = (HTTPStatus.GONE, HTTPStatus.BAD_REQUEST)  # of a version: too old, or none of this API server's
SELECTOR_REMEDY = (
    "If the API server cannot read the label selector {!r}, mend --pod-selector (podSelector in the chart's values): "
    "`kubectl get pods --selector` takes the same."
)
BACKOFFS = (0.2, 0.5, 1.0, 2.0)
JITTER = 0.5  # of a pause, so that many replicas do not come at once


class Reflector:
    """Follows the Pods of one namespace (empty: of all).

    `note` takes an event's kind (None: listed) and Pod, `on_listed` the UIDs of a list after all its Pods. `stream` is
    told each version, and gets to know how to begin with a list.
    """

    def __init__(  # noqa: PLR0913  whom to follow, whom to tell, and a limit that tests shorten
        self,
        client: Client,
        stream: Stream,
        selector: str,
        note: Callable[[str | None, PodMessage], None],
        on_listed: Callable[[str, frozenset[str]], None],
        *,
        silence_seconds: float = SILENCE_SECONDS,
    ) -> None:
        self._client, self._stream, self._selector = client, stream, selector
        self._note, self._on_listed, self._silence_seconds = note, on_listed, silence_seconds
        self._limit: asyncio.Timeout | None = None
        self._version = ""
        self._failures = 0
        stream.list_anew = self.list_anew

    def list_anew(self) -> None:
        """Begin with a list: the watch is not to be trusted."""
        self._version = ""
        if self._limit is not None:
            self._limit.reschedule(0.0)

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            self._failures += 1  # until something is told
            try:
                if not self._version:
                    await self._list()
                await self._watch()
            except (ApiError, aiohttp.ClientError, TimeoutError) as error:
                self._fail(error)
            pause = BACKOFFS[min(self._failures, len(BACKOFFS)) - 1] if self._failures else PAUSE_SECONDS
            await asyncio.sleep(pause * (1 + JITTER * random.random()))  # noqa: S311  no secret

    async def _list(self) -> None:
        version, listed = "", set()
        async for page in self._client.list_pods(self._stream.namespace, self._selector):
            version = page.version
            for pod in page.items:
                self._note(None, pod)
                listed.add(pod.metadata.uid)
        self._version, self._failures = version, 0
        self._stream.note_version(version)
        self._on_listed(self._stream.namespace, frozenset(listed))

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._silence_seconds) as self._limit:
                async for event in self._client.watch_pods(self._stream.namespace, self._selector, self._version):
                    if event.kind == "BOOKMARK":
                        self._limit.reschedule(loop.time() + self._silence_seconds)
                        self._stream.note_version(event.version)
                    else:
                        self._note(event.kind, event.pod)
                    self._version = event.version
                    self._failures = 0
        except TimeoutError:
            if self._limit is not None and self._limit.expired():
                self._version = ""
            raise
        finally:
            self._limit = None

    def _fail(self, error: Exception) -> None:
        stream = self._stream
        fields = {"of": stream.resource, "namespace": stream.namespace, "error": f"{type(error).__name__}: {error}"}
        if isinstance(error, ApiError) and error.status in FORGOTTEN:
            if self._selector and not self._version:  # a list names no version: what is bad about it is the selector
                fields["remedy"] = SELECTOR_REMEDY.format(self._selector)
            self._version = ""
        if self._version:
            log.warning("the watch failed; it goes on where it was", extra={"fields": fields})
        else:
            log.warning("the watch starts anew with a list", extra={"fields": fields})

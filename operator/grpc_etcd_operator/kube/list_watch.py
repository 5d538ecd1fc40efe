"""The list-watch on Pods: all that there are, then each change, for ever. Each is noted, and nothing else is done.

It lists in pages and watches from the list's version on. A watch that ends goes on where it was; where the API server
has forgotten that version, it begins with a list, and who is told of the list finds what went in the gap. Not Kopf's,
which keeps a task with queue and timers for each object (docs/decisions).
"""

import asyncio
import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import aiohttp

from grpc_etcd_operator.kube.client import ApiError, Client
from grpc_etcd_operator.reconciling import PODS

log = logging.getLogger(__name__)
PAUSE_SECONDS = 0.1
SILENCE_SECONDS = 150.0  # bookmarks come once a minute, whatever else comes
FORGOTTEN = (HTTPStatus.GONE, HTTPStatus.BAD_REQUEST)  # of a version: too old, or none of this API server's
BACKOFFS = (0.2, 0.5, 1.0, 2.0)


class ListWatch:
    """Follows the Pods of one namespace (empty: of all).

    `note` takes an event's kind (None: listed) and Pod (a message), `on_listed` the UIDs of a list after all its Pods.
    """

    def __init__(  # noqa: PLR0913  whom to follow, whom to tell, and a limit that tests shorten
        self,
        client: Client,
        namespace: str,
        selector: str,
        note: Callable[[str | None, Any], None],
        on_listed: Callable[[str, frozenset[str]], None],
        *,
        silence_seconds: float = SILENCE_SECONDS,
    ) -> None:
        self._client, self._namespace, self._selector = client, namespace, selector
        self._note, self._on_listed, self._silence_seconds = note, on_listed, silence_seconds
        self._version = ""
        self._failures = 0

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
            await asyncio.sleep(BACKOFFS[min(self._failures, len(BACKOFFS)) - 1] if self._failures else PAUSE_SECONDS)

    async def _list(self) -> None:
        version, listed = "", set()
        async for page in self._client.list_pods(self._namespace, self._selector):
            version = page.version
            for pod in page.items:
                self._note(None, pod)
                listed.add(pod.metadata.uid)
        self._version, self._failures = version, 0
        self._on_listed(self._namespace, frozenset(listed))

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._silence_seconds) as limit:
            async for event in self._client.watch_pods(self._namespace, self._selector, self._version):
                if event.kind == "BOOKMARK":
                    limit.reschedule(loop.time() + self._silence_seconds)
                else:
                    self._note(event.kind, event.pod)
                self._version = event.version
                self._failures = 0

    def _fail(self, error: Exception) -> None:
        fields = {"of": PODS, "namespace": self._namespace, "error": f"{type(error).__name__}: {error}"}
        if isinstance(error, ApiError) and error.status in FORGOTTEN:
            log.warning("the watch starts anew with a list", extra={"fields": fields})
            self._version = ""
        else:
            log.warning("the watch failed; it goes on where it was", extra={"fields": fields})

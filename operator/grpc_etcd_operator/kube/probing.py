"""Asks the API server a small question about each watch every few seconds, and draws conclusions from the answer.

A watch may be silent because nothing happens, because the network is cut, or because it waits for a version of the
future: the API server's etcd was restored from a backup, and resourceVersions went back. The answer distinguishes
these: its version is compared with the highest one met before (of one resource they may be compared as numbers,
Kubernetes documents that since 1.35). A watch that is silent beyond its bookmarks begins with a list, whatever the
answer. Nor does a watch that reports something show that it is not late: that is measured by the answers' versions.
"""

import asyncio
import logging
import time
from http import HTTPStatus

import aiohttp

from grpc_etcd_operator.kube.client import ApiError, Client
from grpc_etcd_operator.kube.freshness import REFUSALS, SILENCE_SECONDS, SILENT_SECONDS, Freshness, Stream

log = logging.getLogger(__name__)
LOOK_SECONDS = 1.0
PROBE_SECONDS = 5.0  # between two questions
AGAIN_SECONDS = 3.0  # the same where nothing has been received for longer
ANSWER_SECONDS = 6.0  # an API server with much to do answers late, while its watches go on


class Prober:
    """Probes each watch of a `Freshness`, through a client of its own."""

    def __init__(self, client: Client, freshness: Freshness, *, silence_seconds: float = SILENCE_SECONDS) -> None:
        self._client, self._freshness, self._silence_seconds = client, freshness, silence_seconds

    async def run(self) -> None:
        """Probe until cancelled."""
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            while True:
                for stream in filter(_is_due, self._freshness.streams):
                    group.create_task(self._probe(stream))  # nothing waits for an answer that comes late
                for stream in self._freshness.streams:
                    self._end_silence(stream)
                await asyncio.sleep(LOOK_SECONDS)
                self._freshness.lose_unseen(time.monotonic() - began)
                began = time.monotonic()

    async def _probe(self, stream: Stream) -> None:
        stream.asked_at = time.monotonic()
        version = stream.version  # as it was before the question: whatever is reported meanwhile may be newer
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                found = await self._client.probe(stream.resource, stream.namespace)
        except ApiError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                stream.find()  # the CRD is missing, and the API server says so
            elif error.status == HTTPStatus.TOO_MANY_REQUESTS:
                stream.note_answer()  # it has much to do, and the watches that are open go on
            elif error.status in REFUSALS:
                stream.note_fault(f"{stream.resource} cannot be read ({error})")
        except (aiohttp.ClientError, TimeoutError):
            return
        else:
            stream.note_seen()
            _compare(stream, version, found)

    def _end_silence(self, stream: Stream) -> None:
        now = time.monotonic()
        is_silent = now - max(stream.last_event_at, stream.attempted_at) >= self._silence_seconds
        # After a long outage a watch may go on where it was, and say nothing before its next bookmark; a list does.
        is_stale = now - stream.last_event_at > SILENT_SECONDS
        if not stream.is_open or not (is_silent or is_stale):
            return
        _relist(stream, "Watch is silent, relisting")


def _is_due(stream: Stream) -> bool:
    now = time.monotonic()
    return now - stream.asked_at > (AGAIN_SECONDS if now - stream.seen_at > PROBE_SECONDS else PROBE_SECONDS)


def _compare(stream: Stream, version: int, found: str) -> None:
    if not (found.isascii() and found.isdigit()):
        return
    if int(found) < version:
        stream.version = int(found)
        _relist(stream, "Resource versions went backwards, as after restoring a backup; relisting")
    else:
        stream.note_version(found)
        stream.marks.append((time.monotonic(), int(found)))


def _relist(stream: Stream, message: str) -> None:
    log.warning(message, extra={"event": "relisting", "fields": {"of": stream.resource, "namespace": stream.namespace}})
    stream.relist()

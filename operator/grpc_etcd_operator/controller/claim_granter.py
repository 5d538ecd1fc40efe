"""Writes claims into the status of GrpcServices, ahead of any key: what is there is what everybody goes by.

Leaders only. The oldest GrpcService is served first. Each write holds the resource version that was judged; one that
asks for something else meanwhile is judged again. A claim is dropped when nothing of it has been seen in etcd for a
while.

Clocks of replicas differ. Who holds a claim is safe from that: nobody who knows of it grants another that conflicts,
and no grant is given an earlier time than one that is known. Who hands over waits for what it is writing. Where it is
not known whether a claim was written, as when the answer is lost, it is written again until it is known, and what it
asks for stays reserved: what a late write finds is another version then.
"""

import asyncio
import contextlib
import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from functools import partial
from http import HTTPStatus
from typing import Any
from weakref import WeakValueDictionary

import aiohttp

from grpc_etcd_operator.controller.event_handlers import SERVICES, EventHandlers
from grpc_etcd_operator.core.claims import read_claims
from grpc_etcd_operator.core.services import GrpcService
from grpc_etcd_operator.isolation import BACKOFF, MOST_LATE, Isolation, Overtaking, Request, Sparing
from grpc_etcd_operator.kube.client import ApiError, Client, kind_of

log = logging.getLogger(__name__)
PART = "claims"
TIME = "%Y-%m-%dT%H:%M:%S.%fZ"
EARLIEST, LAST_YEAR = datetime.min.replace(tzinfo=UTC), 9999
AT_ONCE = 8
# So many answers in a row that are none, and nobody waits for this object any more; nor is that as it should be: a CRD
# without the status subresource answers as if the object were gone. Arbitrary
REFUSALS = 3
LONGEST_PAUSE = 5.0  # seconds; a new GrpcService waits for it. Arbitrary
HELD_UP_SECONDS = 1.0  # until it is looked again whether a claim has still to wait for others that hang. Arbitrary
RELEASE_SECONDS = 1.0  # between two looks at whether keys still stand; two in a row must find none. Arbitrary
OLD_CRD = (
    "the API server drops status.claims, so nothing can be written: its CRD is from an older release. Install the "
    "CRD of this release (kubectl apply -f crds/grpcservices.yaml, or the chart with crds.enabled)"
)
UNWRITTEN = "Claim not written, evaluating it again"
REFUSED = "the API server rejects the claim in the status, retrying: {}"
UNEXPECTED = "the operator hit an unexpected error with this claim, retrying: {}; its log has the traceback"
IN_DOUBT = (
    "a namespace whose GrpcServices the operator cannot read may have claimed the name: it has keys. Restore the "
    "operator's Role and RoleBinding there, or remove that namespace from watchNamespaces"
)


class Outcome(Enum):
    """What has become of a write."""

    STANDS = auto()
    REFUSED = auto()  # it was not made; one before it may still take effect
    SHUT_OUT = auto()  # nor can one before it take effect any more: the object has another version
    UNKNOWN = auto()  # it may have been made, or be made yet


class Granter:
    """Grants claims and drops those that are over. `may_grant` says whether this replica is the one to do it."""

    def __init__(
        self,
        client: Client,
        reconciler: EventHandlers,
        wake: asyncio.Event,
        may_grant: Callable[[], bool],
        isolation: Isolation,
    ) -> None:
        self._client, self._reconciler, self._may_grant = client, reconciler, may_grant
        self._isolation, self._is_ending, self._writing = isolation, False, 0
        self._wake = wake
        self._requests = Overtaking(PART, isolation, self._free)
        self._held_up: set[str] = set()
        # For those that find out what has become of a write, of whom there may be thousands; kept while they do.
        self._readers: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._last = EARLIEST
        self._failures: Counter[str] = Counter()
        self._later: dict[str, float] = {}
        self._empty: dict[str, list[dict[str, str]]] = {}
        self._sparing = Sparing(log)
        self._next_release = 0.0

    async def end(self, seconds: float) -> None:
        """Write no more claims, and wait for those that are being written, but not longer than this."""
        self._is_ending = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._writing:  # noqa: ASYNC110  it happens once, at the end
                    await asyncio.sleep(0.005)

    def _free(self) -> None:
        """Look again now at those that wait for a place."""
        self._later.update(dict.fromkeys(self._held_up, time.monotonic()))
        self._held_up.clear()
        self._wake.set()

    def _is_to_grant(self) -> bool:
        return not self._is_ending and self._may_grant()

    async def run(self) -> None:
        """Grant and release until cancelled."""
        try:
            while True:
                self._wake.clear()
                if self._is_to_grant() and self._reconciler.may_write():
                    await self._grant_all()
                    await self._release_some()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._pause_seconds()):
                        await self._wake.wait()
        finally:
            await self._requests.close()

    def _pause_seconds(self) -> float | None:
        """Return for how long nothing can be done unless somebody calls.

        Whoever may not grant is called when it may.
        """
        if not self._is_to_grant():
            return None
        if not self._reconciler.may_write():
            return HELD_UP_SECONDS  # nobody calls when the GrpcServices are known
        due = min(self._later.values(), default=None)
        if self._reconciler.cluster_cache.releasing:
            due = min(self._next_release, due or self._next_release)
        return None if due is None else max(0.01, due - time.monotonic())

    async def _grant_all(self) -> None:
        cluster_cache, now = self._reconciler.cluster_cache, time.monotonic()
        for uid in [uid for uid, at in self._later.items() if at <= now]:
            del self._later[uid]
            self._held_up.discard(uid)
            cluster_cache.asking.wait_again(uid)
            if uid not in cluster_cache.services:
                self._failures.pop(uid, None)
        while self._is_to_grant() and (some := self._next_some()):
            await self._requests.run(some)

    def _next_some(self) -> list[Request]:
        """Take the next that ask, and reserve what they ask for, one after the other."""
        found: list[Request] = []
        while len(found) < AT_ONCE and (uid := self._reconciler.cluster_cache.asking.next()):
            service = self._reconciler.cluster_cache.services[uid]
            if self._requests.holds_up(uid, service.namespace):
                self._later[uid] = time.monotonic() + HELD_UP_SECONDS
                self._held_up.add(uid)
                continue
            try:
                claims = None if self._is_in_doubt(uid) else self._reconciler.begin_grant(uid, self._now())
            except Exception as error:  # noqa: BLE001  whatever it is, the other GrpcServices go on
                self._isolate(service, error)
                self._come_again(uid)
                continue
            if claims:
                found.append(Request(uid, service.namespace, partial(self._grant, service, claims)))
        return found

    def _isolate(self, service: GrpcService, error: Exception) -> None:
        """Report what nobody foresaw on the GrpcService that it is about."""
        self._isolation.caught(PART, service.reference, error)
        self._note_refused(service.uid, UNEXPECTED.format(type(error).__name__))

    def _is_in_doubt(self, uid: str) -> bool:
        """Return whether somebody who may not be read may hold what is asked for; then it is asked for again later."""
        open_claims, unread = self._reconciler.open_claims, self._reconciler.unlisted.get(SERVICES, ())
        if not open_claims.is_in_doubt(uid, unread):
            return False
        self._later[uid] = time.monotonic() + LONGEST_PAUSE
        self._note_refused(uid, IN_DOUBT)  # nor is the synced key to wait for what an admin has to fix
        return True

    def _note_refused(self, uid: str, why: str) -> None:
        """Record why a claim is not granted though nobody holds it, which its condition says then.

        Of a GrpcService that has been deleted while its claim was written that would stay for good.
        """
        if uid in self._reconciler.cluster_cache.services and self._reconciler.open_claims.note_refused(uid, why):
            self._reconciler.statuses.look_at([uid])

    def _now(self) -> str:
        """Return the time, later than that of any claim that is known: RFC 3339 with microseconds."""
        known = _parse_time(self._reconciler.cluster_cache.latest_claim)
        self._last = max(datetime.fromtimestamp(time.time(), UTC), max(self._last, known) + timedelta(microseconds=1))
        return self._last.strftime(TIME)

    async def _grant(self, service: GrpcService, claims: list[dict[str, str]]) -> None:
        stands = False
        try:
            stands = await self._write_for_certain(service, claims)
        finally:
            stands = self._end(service) and stands
        if stands:
            self._failures.pop(service.uid, None)
            self._reconciler.open_claims.forget_refusal(service.uid)
        else:
            self._come_again(service.uid)

    def _end(self, service: GrpcService) -> bool:
        """Release what was reserved; return whether nothing unexpected came of it."""
        try:
            self._reconciler.end_grant(service.uid)
        except Exception as error:  # noqa: BLE001  the same
            self._isolate(service, error)
            return False
        return True

    def _come_again(self, uid: str) -> None:
        """Let one that was taken out of the queue be taken again, after a pause that grows."""
        if uid not in self._reconciler.cluster_cache.services:
            self._failures.pop(uid, None)
            return
        self._failures[uid] += 1
        self._later[uid] = time.monotonic() + min(BACKOFF.after(self._failures[uid]), LONGEST_PAUSE)

    async def _write_for_certain(self, service: GrpcService, claims: list[dict[str, str]]) -> bool:
        """Write claims until it is known whether they stand; return whether they do.

        A write without an answer may take effect after a read that shows nothing of it, and after a later one that is
        refused. Each try names the version that was judged, so that only one of them can. Who may grant no longer, by
        the end of the pause, writes no more: it may be another's by then.
        """
        outcome, is_in_doubt = await self._write(service, claims), False
        if outcome is not Outcome.STANDS:
            self._requests.give_way()
        while outcome is not Outcome.STANDS:
            await self._find_out(service)
            is_in_doubt = outcome is Outcome.UNKNOWN or (is_in_doubt and outcome is not Outcome.SHUT_OUT)
            if not is_in_doubt or not self._may_write_again(service):
                return False
            self._failures[service.uid] += 1
            await asyncio.sleep(min(BACKOFF.after(self._failures[service.uid]), LONGEST_PAUSE))
            async with self._requests.later_place(service.namespace):
                if not self._may_write_again(service):
                    return False
                outcome = await self._write(service, claims)
        return True

    def _may_write_again(self, service: GrpcService) -> bool:
        """Return whether claims may be written as they were judged, as far as anybody knows."""
        known = self._reconciler.cluster_cache.services.get(service.uid)
        return known is not None and self._renew(service, {}, known) is not None

    async def _write(self, service: GrpcService, claims: list[dict[str, str]]) -> Outcome:
        """Write claims; return what has become of that.

        What is unexpected about one object is that object's alone.
        """
        self._writing += 1
        try:
            renew = partial(self._renew, service, {"claims": claims})
            written = await self._client.patch_service_status(service, {"claims": claims}, renew)
            self._reconciler.note_written(written)
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            fields = {"of": service.reference, "error": str(error)}
            if _is_expected(error) and self._failures[service.uid] < REFUSALS:
                log.debug(UNWRITTEN, extra={"event": "claim_refused", "fields": fields})
            else:
                self._sparing.write(kind_of(service.namespace, error), UNWRITTEN, "claim_refused", fields)
            if isinstance(error, ApiError) and self._failures[service.uid] >= REFUSALS:
                self._note_refused(service.uid, REFUSED.format(error))
            return _outcome_of(error)
        except Exception as error:  # noqa: BLE001  whatever it is, the other GrpcServices go on
            self._isolate(service, error)
            return Outcome.UNKNOWN
        finally:
            self._writing -= 1
        if len(read_claims(written.get("status") or {})) == len(claims):
            return Outcome.STANDS
        self._sparing.write("", OLD_CRD, "crd_outdated", {}, logging.ERROR)
        return Outcome.SHUT_OUT

    async def _find_out(self, service: GrpcService) -> None:
        """Read what has become of a GrpcService to which claims could not be written, as far as anybody can answer.

        They may have been written all the same, or others before them, of which the watch has yet to report. Of a
        namespace a few are read at a time: thousands may have been refused at once.
        """
        for failures in itertools.count(1):
            if service.uid not in self._reconciler.cluster_cache.services or not self._is_to_grant():
                return
            try:
                async with self._readers.setdefault(service.namespace, asyncio.Semaphore(MOST_LATE)):
                    found = await self._client.read(SERVICES, service.namespace, service.name)
                if found and found["metadata"]["uid"] == service.uid:
                    self._reconciler.note_service("MODIFIED", found)
            except (ApiError, aiohttp.ClientError, TimeoutError) as error:
                if isinstance(error, ApiError) and error.status == HTTPStatus.FORBIDDEN:
                    return
                await asyncio.sleep(min(BACKOFF.after(failures), LONGEST_PAUSE))
            except Exception as error:  # noqa: BLE001  whatever it is, the other GrpcServices go on
                self._isolation.caught(PART, service.reference, error)
                return
            else:
                return

    def _renew(self, service: GrpcService, status: Mapping[str, Any], found: GrpcService) -> Mapping[str, Any] | None:
        """Return the claims again if what has changed of a GrpcService is nothing that they were judged by."""
        is_same = found.generation == service.generation and read_claims(found.status) == read_claims(service.status)
        return status if is_same and self._is_to_grant() else None

    async def _release_some(self) -> None:
        """Drop claims of which nothing was left at the last look, nor is now."""
        now, cluster_cache = time.monotonic(), self._reconciler.cluster_cache
        if now < self._next_release or not cluster_cache.releasing:
            return
        self._next_release, before, self._empty = now + RELEASE_SECONDS, self._empty, {}
        writes = (write for uid in list(cluster_cache.releasing) if (write := self._release(uid, before.get(uid))))
        while self._is_to_grant() and (some := list(itertools.islice(writes, AT_ONCE))):
            await self._requests.run(some)
            await self._grant_all()  # whoever asks is not to wait until thousands have given back what they had

    def _release(self, uid: str, before: list[dict[str, str]] | None) -> Request | None:
        """Make the request that writes what is left of one's claims; None: there is nothing to drop, or not yet."""
        cluster_cache = self._reconciler.cluster_cache
        try:
            rest = cluster_cache.find_spare(uid, self._reconciler.open_claims.has_keys)
        except Exception as error:  # noqa: BLE001  the same; the next look tries again
            self._isolation.caught(PART, uid, error)
            return None
        if rest is None:
            return None
        service = cluster_cache.services[uid]
        if rest != before or self._requests.holds_up(uid, service.namespace):
            self._empty[uid] = rest
            return None
        return Request(uid, service.namespace, partial(self._write, service, rest))


def _parse_time(text: str) -> datetime:
    """Read the time of a claim; what is none, or too late to be followed by another, says nothing."""
    try:
        found = datetime.strptime(text, TIME).replace(tzinfo=UTC)
    except ValueError:
        return EARLIEST
    return found if found.year < LAST_YEAR else EARLIEST


def _is_expected(error: Exception) -> bool:
    """Return whether a refusal is as it should be: the object has changed meanwhile, or is gone."""
    return isinstance(error, ApiError) and error.status in {404, 409}


def _outcome_of(error: Exception) -> Outcome:
    """Return what has become of a write that failed.

    Where nobody has answered it may yet take effect, or has. So it may after a status of 500 and more, which also
    stands for an etcd that has not answered the API server, after 408, and after 429, which whatever is in front of an
    API server answers too. All others are given before anything is written.
    """
    if not isinstance(error, ApiError) or error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return Outcome.UNKNOWN
    if error.status in {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}:
        return Outcome.UNKNOWN
    return Outcome.SHUT_OUT if error.status == HTTPStatus.CONFLICT else Outcome.REFUSED

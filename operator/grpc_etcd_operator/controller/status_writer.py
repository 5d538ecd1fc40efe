"""Writes the status of GrpcServices and opens Pods' gates: what the operator reports Kubernetes. Leaders only.

A status is written at most once in two seconds, and never when nothing in it has changed. Where only counts have
changed it takes its time, since each write costs as much as the registration that it counts. A condition that turns
bad also becomes a Kubernetes Event, whose name two replicas make alike. Whatever fails is tried again after a pause,
and what is unexpected about one object is that object's alone.
"""

import asyncio
import contextlib
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from typing import Any

import aiohttp

from grpc_etcd_operator.controller.event_handlers import PODS, SERVICES, EventHandlers
from grpc_etcd_operator.controller.events import EventPoster, News, shorten
from grpc_etcd_operator.controller.gate_refusals import GateRefusals
from grpc_etcd_operator.controller.gates import Gates
from grpc_etcd_operator.controller.status_queue import StatusQueue, WrittenGate
from grpc_etcd_operator.core.conditions import (
    has_condition,
    is_same_judgement,
    is_same_status,
    is_vacant,
    judge_registrations,
    make_status,
    programmed_since,
    renew_status,
    was_reported_vacant,
    write_vacancy,
)
from grpc_etcd_operator.core.pods import GATE, Pod
from grpc_etcd_operator.core.reasons import WITHOUT_EVENT, Reason
from grpc_etcd_operator.core.services import GrpcService
from grpc_etcd_operator.core.status_schedule import RETRY_SECONDS
from grpc_etcd_operator.isolation import BACKOFF, UNEXPECTED, Isolation, Overtaking, Request, Sparing, Subject
from grpc_etcd_operator.kube.client import ApiError, Client, kind_of

log = logging.getLogger(__name__)
STATUSES_AT_ONCE = 2  # each takes milliseconds away from the registrations of that moment
GATES_AT_ONCE = 8
TURNS = 32  # gates or statuses, until it is looked who else has come. Arbitrary
UNTAKEN = (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY)  # there is something wrong with what was sent
# What is no fault of the network or the API server: of an object that is another by now (its UID), or an admission
# policy's. In the first case the watch ends it; in the second it is over when the policy is.
REFUSED = (HTTPStatus.FORBIDDEN, HTTPStatus.UNPROCESSABLE_ENTITY)
EVENT_RETRY_SECONDS = 10.0  # until an Event is posted again that Kubernetes did not take. Arbitrary
SIGHT_SECONDS = 1.0  # how soon it is reported that Pods may not be read, or may again. Arbitrary
LACKS_RIGHT = "cannot patch resource"  # the API server's words (apiserver's responsewriters), whoever authorizes
GATE_PATIENCE_SECONDS = 2.0  # a gate that waits for so long says why; usually it opens within milliseconds
HELD_UP_SECONDS = 0.5  # until it is looked again whether a gate has still to wait for others that hang. Arbitrary
GATE_CHANGED = (
    "Readiness gate written, but its condition differs now, retrying: an admission policy or webhook changes it"
)
NOT_FOUND_TRIES = 3  # after which it is not because a watch is late. Arbitrary
GATE_SPACING_SECONDS = 10.0  # between two messages of one gate for the same reason. Arbitrary


class StatusWriter:
    """Brings statuses and gates up to date. `may_report` says whether this replica is the one to do it."""

    def __init__(  # noqa: PLR0913, PLR0917  what it reports, to whom, and when
        self,
        client: Client,
        reconciler: EventHandlers,
        queue: StatusQueue,
        may_report: Callable[[], bool],
        down: Callable[[], Mapping[str, str]],
        isolation: Isolation | None = None,
        *,
        patience_seconds: float = GATE_PATIENCE_SECONDS,
        pod_selector: str = "",
        gates: Gates | None = None,
        events: EventPoster | None = None,
    ) -> None:
        self._client, self._reconciler, self._patience_seconds = client, reconciler, patience_seconds
        self._may_report, self._down = may_report, down
        self._isolation = isolation or Isolation()
        self._queue, self._pod_selector = queue, pod_selector
        self._vacancies = queue.vacancies
        self.refusals = GateRefusals()
        self._judge_gate = (gates or Gates(reconciler)).judge
        self._events = events or EventPoster(client)
        self._news: dict[tuple[str, str], News] = {}
        self._sparing = Sparing(log)
        self._requests = Overtaking("statuses", self._isolation, self._queue.wake.set)
        self._gate_requests = Overtaking("gates", self._isolation, self._queue.wake.set)

    def warn(self, services: Iterable[GrpcService], reason: Reason, message: str) -> None:
        """Post a warning on GrpcServices, whose status does not say it; of several of a kind the last one."""
        for each in services:
            self._report_soon(News(each, reason, message, time.time()))
        self._queue.wake.set()

    def _report_soon(self, news: News) -> None:
        self._news[news.about.uid, news.reason] = news

    async def run(self) -> None:
        """Report until cancelled."""
        try:
            while True:
                self._queue.wake.clear()
                await self._report()
                self._queue.next_look = self._find_next_look()
                pause = (
                    None if self._queue.next_look == math.inf else max(0.01, self._queue.next_look - time.monotonic())
                )
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._queue.wake.wait()
        finally:
            await asyncio.gather(self._requests.close(), self._gate_requests.close())

    async def _report(self) -> None:
        if not self._may_report():
            self._vacancies.clear()
            self._queue.reported_gates.clear()  # another says now what a gate waits for, perhaps something else
            self._isolation.faults.clear()
            self._news = {key: news for key, news in self._news.items() if not news.is_old}
            return
        await self._report_vacancies()
        await self._open_gates()
        await self._write_statuses()
        await self._post_news()

    def _find_next_look(self) -> float:
        """Return when the first of what waits is due (monotonic seconds); never, unless somebody calls."""
        if not self._may_report():
            return math.inf
        next_pass = self._queue.schedule.next_pass_at()
        if not self._reconciler.may_write():  # whoever waits for a status waits for that, too
            next_pass = max(next_pass, time.monotonic() + RETRY_SECONDS)
        return min(next_pass, self._queue.gates.next_at(), self._vacancies.next_at())

    async def _report_vacancies(self) -> None:
        """Warn on GrpcServices that have had no Pod for long, and look at their statuses again, which then say so.

        The Event comes first: should this replica end in between, the next leader posts it again, under the same name.
        """
        due = [service for uid in self._vacancies.take(time.monotonic()) if (service := self._find(uid))]
        for service in due:
            if not self._is_vacant(service):
                self._vacancies.forget(service.uid)
                self._queue.schedule.note(
                    [service.uid], time.monotonic()
                )  # perhaps its Pods are just not seen for a moment
        vacant = [service for service in due if self._vacancies.is_long(service.uid)]
        tellings = (
            Request(each.uid, each.namespace, partial(self._report_vacancy, each))
            for each in vacant
            if not self._is_vacancy_held_up(each)
        )
        while some := list(itertools.islice(tellings, STATUSES_AT_ONCE)):
            await asyncio.gather(self._open_gates(), self._requests.run(some))

    def _is_vacancy_held_up(self, service: GrpcService) -> bool:
        is_held_up = self._requests.holds_up(service.uid, service.namespace)
        if is_held_up:
            self._vacancies.report_again(service.uid, time.monotonic() + HELD_UP_SECONDS)
        return is_held_up

    async def _report_vacancy(self, service: GrpcService) -> None:
        is_reported, words = False, write_vacancy(service, self._pod_selector)
        try:
            news = News(service, Reason.NO_PODS, words, time.time(), since=programmed_since(service))
            is_reported = await self._events.post(news)
        except Exception as error:  # noqa: BLE001  whatever it is, the other GrpcServices go on
            self._isolation.caught("statuses", service.reference, error)
        if is_reported:
            self._vacancies.note_reported(service.uid)
        else:
            self._vacancies.report_again(service.uid, time.monotonic() + EVENT_RETRY_SECONDS)
        self._queue.schedule.note([service.uid], time.monotonic())

    def _is_vacant(self, service: GrpcService) -> bool:
        cluster_cache, endpoint_counts = self._reconciler.cluster_cache, self._reconciler.endpoint_counts
        is_seen = self._reconciler.why_unseen(PODS, service.namespace) is None
        return is_seen and is_vacant(service, cluster_cache.verdict(service.uid), endpoint_counts.counts(service.uid))

    async def look_at_sight(self) -> None:
        """Look at everything again whenever something is not seen any more, or again. Until cancelled."""
        before = self._find_unseen()
        while True:
            await asyncio.sleep(SIGHT_SECONDS)
            now = self._find_unseen()
            if now != before:
                self._queue.look_at_all()
            before = now

    def _find_unseen(self) -> dict[tuple[str, str], str]:
        """Return why the resources of which namespaces are not seen."""
        if not self._reconciler.has_seen_all():
            return {}
        cluster_cache, why = self._reconciler.cluster_cache, self._reconciler.why_unseen
        places = {each.namespace for known in (cluster_cache.services, cluster_cache.pods) for each in known.values()}
        found = {(what, place): why(what, place) for what in (PODS, SERVICES) for place in places}
        return {where: reason for where, reason in found.items() if reason is not None}

    async def _write_statuses(self) -> None:
        left = self._queue.schedule.count_due(time.monotonic()) if self._reconciler.may_write() else 0
        while left > 0 and (due := self._queue.schedule.take(time.monotonic(), min(left, TURNS))):
            left -= len(due)
            await self._write_some_statuses(due)

    async def _write_some_statuses(self, due: Iterable[str]) -> None:
        # Worked out only when their turn comes: of a thousand the last would be old news, and no gate waits for them.
        writes = (
            Request(uid, service.namespace, partial(self._write_status, service, made))
            for uid in due
            if (service := self._find(uid)) and not self._is_held_up(service) and (made := self._try_status(service))
        )
        while some := list(itertools.islice(writes, STATUSES_AT_ONCE)):
            await asyncio.gather(self._open_gates(), self._requests.run(some))

    def _is_held_up(self, service: GrpcService) -> bool:
        """Return whether a status has to wait for one that hangs; then it is looked at again after a pause."""
        is_held_up = self._requests.holds_up(service.uid, service.namespace)
        if is_held_up:
            self._queue.schedule.failed(service.uid, time.monotonic())
        return is_held_up

    def _find(self, uid: str) -> GrpcService | None:
        service = self._reconciler.cluster_cache.services.get(uid)
        if service is None:
            self._queue.forget([uid])
        return service

    def _try_status(self, service: GrpcService) -> dict[str, Any] | None:
        """Work out a status; what is unexpected about one GrpcService is reported on it, and tried again."""
        try:
            return self._make_status(service)
        except Exception as error:  # noqa: BLE001  whatever it is, the other GrpcServices go on
            self._failed(service, error)
            return None

    def _failed(self, service: GrpcService, error: Exception) -> None:
        self._isolation.caught("statuses", service.reference, error)
        self._queue.failures[service.uid] += 1
        pause = BACKOFF.after(self._queue.failures[service.uid])
        self._queue.schedule.failed(service.uid, time.monotonic(), max(RETRY_SECONDS, pause))
        self._report_failure(service, error, "status, perhaps because this release's CRD is not installed")

    def _report_failure(self, about: GrpcService | Pod, error: Exception, what: str) -> None:
        """Report what nobody foresaw on the object that it is about; `what` of it the API server does not take."""
        refusal = f"the API server rejects this object's {what}: {error}"
        message = refusal if isinstance(error, ApiError) else UNEXPECTED.format(type(error).__name__)
        self._report_soon(News(about, Reason.INTERNAL_ERROR, message, time.time()))

    def _make_status(self, service: GrpcService) -> dict[str, Any] | None:
        """Work out a status that is to be written now; None where nothing is new, or only counts that can wait."""
        uid, cluster_cache = service.uid, self._reconciler.cluster_cache
        verdict, counts = self._reconciler.open_claims.judge(uid), self._reconciler.endpoint_counts.counts(uid)
        unseen = self._reconciler.why_unseen(PODS, service.namespace)
        self._note_vacancy(service)
        is_passing = unseen is not None and not unseen and is_vacant(service, verdict, counts)
        if is_passing or self._reconciler.named_services.is_awaited(uid):
            # That no Pod is known may mean nothing now, and be over before `look_at_sight` notices.
            self._queue.schedule.failed(uid, time.monotonic())
            return None
        status = make_status(
            service,
            verdict,
            counts,
            self._down(),
            _rfc3339(),
            cluster_cache.registries_of(uid),
            is_long_vacant=self._vacancies.is_long(uid),
            is_reported_vacant=self._vacancies.is_reported(uid),
            pod_selector=self._pod_selector,
            unseen=unseen or "",
        )
        if is_same_status(service.status, status):
            self._queue.schedule.is_true(uid)
            return None
        is_urgent = not is_same_judgement(service.status, status)
        return status if is_urgent or self._queue.schedule.may_write_counts(uid, time.monotonic()) else None

    def _note_vacancy(self, service: GrpcService) -> None:
        if service.status.get("observedGeneration") != service.generation:
            self._vacancies.forget(service.uid)  # of another selector, perhaps
        is_now, was_reported = self._is_vacant(service), was_reported_vacant(service)
        self._vacancies.note(service.uid, time.monotonic(), is_vacant=is_now, was_reported=was_reported)

    async def _write_status(self, service: GrpcService, status: dict[str, Any]) -> None:
        self._queue.schedule.wrote(service.uid, time.monotonic())
        self._queue.writing[service.uid] = status
        try:
            written = await self._client.patch_service_status(service, status, partial(renew_status, status))
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            if await self._is_refused(error, SERVICES, service):
                self._failed(service, error)
            elif self._is_worth_trying_again(service.uid, service.namespace, error):
                self._queue.schedule.failed(service.uid, time.monotonic(), self._pause_after(service.uid, error))
            return
        except Exception as error:  # noqa: BLE001  whatever it is, the other GrpcServices go on
            self._failed(service, error)
            return
        finally:
            self._queue.writing.pop(service.uid, None)
        try:
            self._reconciler.note_written(written)
            await self._post_events(service, status)
        except Exception as error:  # noqa: BLE001  the same
            self._failed(service, error)
        else:
            self._queue.failures.pop(service.uid, None)

    async def _is_refused(self, error: Exception, resource: str, of: Pod | GrpcService) -> bool:
        """Return whether the API server rejects what was sent for another reason than a conflict."""
        if not isinstance(error, ApiError) or error.status not in UNTAKEN:
            return False
        try:
            return await self._client.uid_of(resource, of.namespace, of.name) == of.uid
        except (ApiError, aiohttp.ClientError, TimeoutError):
            return False

    async def _open_gates(self) -> None:
        left = self._queue.gates.count_due(time.monotonic())
        while left > 0 and (due := self._queue.gates.take(time.monotonic(), min(left, TURNS))):
            left -= len(due)
            await self._open_some_gates(due)

    async def _open_some_gates(self, due: Iterable[str]) -> None:
        gates = (
            Request(uid, pod.namespace if pod else "", partial(self._try_gate, uid))
            for uid in due
            if not self._is_gate_held_up(uid, pod := self._reconciler.cluster_cache.pods.get(uid))
        )
        while some := list(itertools.islice(gates, GATES_AT_ONCE)):
            await self._gate_requests.run(some)

    def _is_gate_held_up(self, uid: str, pod: Pod | None) -> bool:
        """Report the same of a gate."""
        is_held_up = pod is not None and self._gate_requests.holds_up(uid, pod.namespace)
        if is_held_up:
            self._queue.gates.advance(uid, time.monotonic() + HELD_UP_SECONDS)
        return is_held_up

    async def _try_gate(self, uid: str) -> None:
        pod = self._reconciler.cluster_cache.pods.get(uid)
        if pod is None or pod.gate_open or pod.terminating or not pod.gated:
            self._queue.reported_gates.pop(uid, None)
            self._queue.failures.pop(uid, None)
            return
        if (until := self.refusals.until(pod.namespace)) > time.monotonic():
            self._queue.gates.add(uid, until)
            return
        try:
            await self._bring_gate(pod)
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            if _lacks_right(error):
                self._queue.gates.add(uid, self.refusals.note(pod.namespace, time.monotonic()))
            elif await self._is_refused(error, PODS, pod):
                self._gate_failed(pod, error)
            elif self._is_worth_trying_again(uid, pod.namespace, error):
                self._queue.gates.add(uid, time.monotonic() + self._pause_after(uid, error))
        except Exception as error:  # noqa: BLE001  whatever it is, the other Pods go on
            self._gate_failed(pod, error)
        else:
            self._queue.failures.pop(uid, None)

    def _gate_failed(self, pod: Pod, error: Exception) -> None:
        self._isolation.caught("gates", f"{pod.namespace}/{pod.name}", error)
        self._queue.failures[pod.uid] += 1
        self._queue.gates.add(pod.uid, time.monotonic() + BACKOFF.after(self._queue.failures[pod.uid]))
        self._report_failure(pod, error, "readiness gate")

    def _pause_after(self, uid: str, error: Exception) -> float:
        """Return when to try again: what is refused about one object is asked for less and less often."""
        if not (isinstance(error, ApiError) and error.status in {*REFUSED, HTTPStatus.NOT_FOUND}):
            return RETRY_SECONDS
        self._queue.failures[uid] += 1
        return max(RETRY_SECONDS, BACKOFF.after(self._queue.failures[uid]))

    async def _bring_gate(self, pod: Pod) -> None:
        """Write what a gate's condition ought to say, if it does not say so yet."""
        gate = self._judge_gate(pod, self._down())
        if gate is None:
            self._queue.reported_gates.pop(pod.uid, None)
            return
        now, reported = time.monotonic(), self._queue.reported_gates.setdefault(pod.uid, WrittenGate(time.monotonic()))
        if not gate.is_open:
            if gate == reported.gate:
                return
            due = reported.since + self._patience_seconds if gate.is_waiting else now
            if reported.gate and reported.gate.reason == gate.reason:
                due = max(due, reported.written_at + GATE_SPACING_SECONDS)
            if due > now:
                self._queue.gates.add(pod.uid, due)
                return
        status = "True" if gate.is_open else "False"
        condition = {"type": GATE, "status": status, "reason": gate.reason, "lastTransitionTime": _rfc3339()}
        condition["message"] = shorten(gate.message)
        if not await self._is_written(pod, condition, reported):
            written = await self._client.open_gate(pod.namespace, pod.name, pod.uid, condition)
            self.refusals.end(pod.namespace)
            fields = {"namespace": pod.namespace, "pod": pod.name, "reason": gate.reason, "why": gate.message}
            self._log_gate(fields, is_open=gate.is_open, has_stood=has_condition(written, condition))
            if not gate.is_open:  # `kubectl describe pod` shows no condition's message
                is_warning = gate.reason != Reason.REGISTERING
                self._report_soon(News(pod, gate.reason, gate.message, time.time(), is_warning))
        reported.gate, reported.written_at = gate, time.monotonic()
        if gate.is_open:  # until it is seen to be open: others may have changed it on its way, or since
            reported.tries += 1
            self._queue.gates.add(pod.uid, time.monotonic() + max(RETRY_SECONDS, BACKOFF.after(reported.tries)))

    async def _is_written(self, pod: Pod, condition: Mapping[str, str], reported: WrittenGate) -> bool:
        """Return whether a Pod has a condition already, where that may be so: else nobody is asked."""
        if condition["status"] == "True":  # then a watch is late that reports what was written at an earlier try
            return reported.tries > 0 and await self._says_already(pod, condition, ("type", "status"))
        return reported.gate is None and await self._says_already(pod, condition)

    def _log_gate(self, fields: Mapping[str, str], *, is_open: bool, has_stood: bool) -> None:
        if not has_stood:
            self._sparing.write(fields["namespace"], GATE_CHANGED, "gate_changed", fields)
            return
        words = "gate opened" if is_open else "Readiness gate not opened yet"
        log.info(words, extra={"event": "gate_written", "fields": fields})

    async def _says_already(
        self, pod: Pod, condition: Mapping[str, str], parts: Sequence[str] = ("type", "status", "reason", "message")
    ) -> bool:
        """Return whether another replica, or we before a restart, have said just this."""
        found = await self._client.read("pods", pod.namespace, pod.name) or {}
        return has_condition(found, condition, parts)

    def _is_worth_trying_again(self, uid: str, namespace: str, error: Exception) -> bool:
        """Return whether a report that was not taken is to be tried again, and log that it is."""
        if isinstance(error, ApiError) and error.status == HTTPStatus.NOT_FOUND:
            # Deleted, most likely, which a watch reports soon. But a CRD without the subresource answers the same.
            is_known = any(
                uid in each for each in (self._reconciler.cluster_cache.services, self._reconciler.cluster_cache.pods)
            )
            if not is_known or self._queue.failures[uid] < NOT_FOUND_TRIES:
                return is_known
        if isinstance(error, ApiError) and error.status == HTTPStatus.CONFLICT:
            return True  # it has changed meanwhile: its event comes, and what is reported then is of what it is then
        words, fields = "Status or condition not written, retrying", {"error": str(error)}
        self._sparing.write(kind_of(namespace, error), words, "status_refused", fields)
        return True

    async def _post_events(self, service: GrpcService, status: Mapping[str, Any]) -> None:
        """Report of each condition that has turned bad, or is bad for a new reason; others only sum them up."""
        old = {each.get("type"): each for each in service.status.get("conditions") or ()}
        for condition in (each for each in status["conditions"] if each["type"] in {"Accepted", "Programmed"}):
            was = old.get(condition["type"], {})
            same = (was.get("status"), was.get("reason")) == (condition["status"], condition["reason"])
            if condition["status"] != "True" and not same and condition["reason"] not in WITHOUT_EVENT:
                await self._events.post(News(service, condition["reason"], condition["message"], time.time()))
        if change := judge_registrations(service.status, status):
            self._report_soon(News(service, *change, time.time(), is_warning=False))

    async def _post_news(self) -> None:
        """Post the Events that have to wait for nothing that hangs; neither gates nor statuses wait for them."""
        for subject, words in self._isolation.faults.take(time.monotonic()):
            for about in self._find_subjects(subject):
                self._report_soon(News(about, Reason.INTERNAL_ERROR, words, time.time()))
        posts = self._take_news()
        while some := list(itertools.islice(posts, STATUSES_AT_ONCE)):
            await asyncio.gather(self._open_gates(), self._requests.run(some))
            if self._news and self._queue.schedule.next_pass_at() <= time.monotonic():
                self._queue.wake.set()
                return

    def _find_subjects(self, subject: Subject) -> list[Subject | GrpcService]:
        """Find whom an unexpected error is reported on: where keys of a Pod are concerned, also its GrpcServices."""
        uid, cluster_cache = subject.uid, self._reconciler.cluster_cache
        if subject.name:  # perhaps it could not be read, so that nothing else is known of it
            return [subject]
        if pod := cluster_cache.pods.get(uid):
            return [Subject(uid, PODS, pod.namespace, pod.name), *cluster_cache.selecting(pod)]
        return [cluster_cache.services[uid]] if uid in cluster_cache.services else []

    def _take_news(self) -> Iterator[Request]:
        for key, news in list(self._news.items()):
            about = news.about
            if news.is_old or self._is_over(news):
                del self._news[key]
            elif not self._requests.holds_up(about.uid, about.namespace):
                del self._news[key]
                yield Request(about.uid, about.namespace, partial(self._try_post, news))

    def _is_over(self, news: News) -> bool:
        """Return whether the gate that an Event is about has been opened meanwhile, or its Pod is gone."""
        if not isinstance(news.about, Pod):
            return False
        pod = self._reconciler.cluster_cache.pods.get(news.about.uid)
        return pod is None or pod.gate_open

    async def _try_post(self, news: News) -> None:
        try:
            await self._events.post(news)
        except Exception as error:  # noqa: BLE001  whatever it is, the others go on
            self._isolation.caught("statuses", f"{news.about.namespace}/{news.about.name}", error)


def _rfc3339() -> str:
    """Return the time by the clock that everything else asks."""
    return datetime.fromtimestamp(time.time(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _lacks_right(error: Exception) -> bool:
    """Return whether the operator may not do this at all, and not just to one object, as an admission policy has it."""
    return isinstance(error, ApiError) and error.status == HTTPStatus.FORBIDDEN and LACKS_RIGHT in str(error)

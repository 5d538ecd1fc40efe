"""Reports how far each owner is, and what went wrong with it that nobody foresaw."""

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from grpc_etcd_operator.controller.parts import Parts
from grpc_etcd_operator.core.desired import DesiredRecord, Fault
from grpc_etcd_operator.core.plan import Plan
from grpc_etcd_operator.core.reasons import Reason
from grpc_etcd_operator.core.work import Work
from grpc_etcd_operator.isolation import Sparing, Subject

log = logging.getLogger(__name__)
RATE_LIMITED = (
    "namespace {} has written too much to etcd in a short time, so its changes wait, and only deletions are written at "
    "once: find out what changes all the time, such as an annotation or the readiness of Pods"
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How far a unit is in one registry: the GrpcServices (by UID) that have all their keys, and what is wrong.

    `plan` is what has just been committed; None when there was nothing to do, or nothing could be done. It had been due
    for `waited_seconds`.
    """

    uid: str
    written: frozenset[str]
    faults: tuple[Fault, ...] = ()
    plan: Plan | None = None
    waited_seconds: float = 0.0


class Outcomes:
    """Reports `on_outcome`.

    What fails on the way is that owner's own affair: it is logged, counted, reported on it, and tried again.
    """

    def __init__(
        self,
        parts: Parts,
        work: Work,
        on_outcome: Callable[[Outcome], None],
        wake: Callable[[], None],
    ) -> None:
        self._registry, self._facts, self._isolation, self._work = parts.registry, parts.facts, parts.isolation, work
        self._on_outcome, self._wake = on_outcome, wake
        self._sparing = Sparing(log)

    def isolate(self, uid: str, part: str, error: Exception) -> None:
        """Report an exception that nobody foresaw on the owner that it is about; look at that again after a pause."""
        self._isolation.caught(part, uid, error)
        self._work.postpone(uid, time.monotonic())
        text = f"internal error, retrying; the operator's log has the traceback: {type(error).__name__}: {error}"
        try:
            sources = tuple(self._facts.sources(uid))
        except Exception as another:  # noqa: BLE001  what fails for the unit may fail here as well
            self._isolation.caught(part, Subject(uid), another)
            return
        self.report(Outcome(uid, frozenset(), tuple(Fault(source, Reason.INTERNAL_ERROR, text) for source in sources)))

    def report_rate_limited(self, plan: Plan, wanted: Iterable[DesiredRecord]) -> None:
        """Report an owner whose puts wait because its namespace has written too much; old values count as written.

        `wanted` is what was planned. GrpcServices of which nothing waits are not concerned.
        """
        namespace = self._facts.namespace_of(plan.uid)
        fields = {"registry": self._registry, "namespace": namespace, "uid": plan.uid}
        self._sparing.write(namespace, "Writes of a namespace are rate-limited", "writes_rate_limited", fields)
        text = RATE_LIMITED.format(namespace)
        sources = {each.key: each.source for each in wanted}
        waiting = [put for put in plan.puts if put.key in sources]  # all but the owner record
        late = set(sources.values()) - plan.written if plan.is_part else ()
        faulty = dict.fromkeys((*(sources[put.key] for put in waiting), *sorted(late)))
        written = plan.written - {sources[put.key] for put in waiting if not put.mod_revision}
        faults = [Fault(source, Reason.RATE_LIMITED, text) for source in faulty]
        self.report(Outcome(plan.uid, written, (*plan.faults, *faults)))

    def report(self, outcome: Outcome) -> None:
        """Return how far an owner is. Where that fails it is looked at again: what was written is to be reported."""
        uid = outcome.uid
        try:
            self._on_outcome(outcome)
        except Exception as error:  # noqa: BLE001  what was written is written
            self._isolation.caught("outcome", Subject(uid), error)
            self._work.postpone_reporting(uid, time.monotonic())
            self._wake()
        else:
            self._work.end_reporting(uid)

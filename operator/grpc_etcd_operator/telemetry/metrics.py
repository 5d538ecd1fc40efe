"""The one metric that is observed on the way: how long changes take. All others are read when somebody asks."""

import functools
import math
import time
from collections.abc import Callable
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Histogram

from grpc_etcd_operator.core.plan import Plan
from grpc_etcd_operator.core.pods import Pod

BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
TIMESTAMP_SECONDS = 1.0  # the resolution of Kubernetes' timestamps, which are cut off and not rounded
SAME_CALL_SECONDS = 0.05  # between noting news and enqueueing the unit, which happen in one call. Arbitrary
MOST_LATE = 10_000  # Pods of which it is remembered that news of them came late. Arbitrary

PREFIX = "grpc_etcd_operator_"
REGISTRATION = (
    f"{PREFIX}registration_duration_seconds",
    "Time from a change (its watch event, or the Pod's timestamps if earlier) to its commit in etcd.",
    ("registry", "change"),
)


class Late(NamedTuple):
    """News that came late: when it came (monotonic), and how late it was at least."""

    came: float
    seconds: float


class Timings:
    """Observes how long changes take from when they could be known to their commit.

    What the operator itself takes is known exactly. How long news of a Pod was on its way is known only from the Pod's
    timestamps, in whole seconds: what they prove is added, so that an operator that receives late does not look fast. A
    change of another origin (a new GrpcService) has nothing to do with the Pod's age.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        name, meaning, labels = REGISTRATION
        self._labelled = functools.cache(Histogram(name, meaning, labels, buckets=BUCKETS, registry=registry).labels)
        self._clock, self._monotonic = clock, monotonic
        self._began = math.inf
        self._late: dict[str, Late] = {}

    def begin(self) -> None:
        """Record that all Pods have been seen: what happened before could not be known earlier."""
        self._began = self._clock()

    def observe(self, known: Pod | None, pod: Pod) -> None:
        """Take news of a Pod; `known` is what it was."""
        if known and (known.ready, known.terminating) == (pod.ready, pod.terminating):
            return
        self._late.pop(pod.uid, None)
        happened = pod.terminating_since if pod.terminating else pod.since
        late = self._clock() - max(happened, self._began) - TIMESTAMP_SECONDS
        if happened and late > 0:
            self._late[pod.uid] = Late(self._monotonic(), late)
            if len(self._late) > MOST_LATE:
                del self._late[next(iter(self._late))]

    def note(self, registry: str, uid: str, plan: Plan, waited_seconds: float, *, gone: bool) -> None:
        """Take a commit that has been due for so long."""
        late = self._late.get(uid)
        is_that_news = late is not None and self._monotonic() - waited_seconds <= late.came + SAME_CALL_SECONDS
        waited = waited_seconds + (late.seconds if late and is_that_news else 0.0)
        self._labelled(registry, "gone" if plan.deletes or gone else "ready").observe(waited)

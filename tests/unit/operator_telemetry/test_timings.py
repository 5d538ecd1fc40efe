"""What the histogram of registrations observes, on clocks of the test's own."""

from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry

from grpc_etcd_operator.core.plan import Plan
from grpc_etcd_operator.core.pods import Pod
from grpc_etcd_operator.telemetry.metrics import MOST_LATE, Timings

NAME = "grpc_etcd_registration_seconds"
READY = Pod(uid="u1", namespace="shop", name="greeter", labels={}, running=True, ip="10.0.0.1", ready=True, since=1000)
UNREADY = replace(READY, ready=False, since=900)
PUT = Plan(uid="u1", lease=1)


class Measured:
    """Timings, the two clocks that they look at, and what they have observed."""

    def __init__(self, began: float = 800.0) -> None:
        self.now = began
        self.registry = CollectorRegistry()
        self.timings = Timings(self.registry, lambda: self.now, lambda: self.now + 5000)
        self.timings.begin()

    def observed(self, change: str) -> float | None:
        return self.registry.get_sample_value(f"{NAME}_sum", {"registry": "default", "change": change})

    def commit(self, waited: float, *, gone: bool = False) -> None:
        self.timings.note("default", "u1", PUT, waited, gone=gone)


def test_what_the_operator_takes_is_measured_exactly() -> None:
    measured = Measured()
    measured.now = 1000.4
    measured.timings.hear(UNREADY, READY)
    measured.now += 0.02
    measured.commit(0.02)
    assert measured.observed("ready") == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("known", "pod", "change"),
    [
        (UNREADY, READY, "ready"),
        (None, READY, "ready"),
        (READY, replace(UNREADY, since=1000), "gone"),
        (READY, replace(READY, since=700, terminating=True, terminating_since=1000), "gone"),
    ],
)
def test_news_that_comes_eight_seconds_late_counts_for_it(known: Pod | None, pod: Pod, change: str) -> None:
    measured = Measured()
    measured.now = 1008.5
    measured.timings.hear(known, pod)
    measured.now += 0.1
    measured.commit(0.1, gone=change == "gone")
    assert measured.observed(change) == pytest.approx(7.6)


def test_a_new_grpcservice_and_an_opened_gate_do_not_count_the_pods_age() -> None:
    measured = Measured()
    measured.now = 1008.5
    measured.timings.hear(UNREADY, READY)
    measured.now = 2000.0
    measured.timings.hear(READY, replace(READY, gate_open=True))
    measured.commit(0.05)
    assert measured.observed("ready") == pytest.approx(0.05)


def test_what_happened_before_the_start_could_not_be_known() -> None:
    measured = Measured(began=1500.0)
    measured.now = 1500.2
    measured.timings.hear(None, READY)
    measured.commit(0.0)
    assert measured.observed("ready") == pytest.approx(0.0)


def test_pods_of_the_first_list_are_not_late() -> None:
    registry = CollectorRegistry()
    timings = Timings(registry, lambda: 5000.0, lambda: 1.0)
    timings.hear(None, READY)
    timings.note("default", "u1", PUT, 0.0, gone=False)
    assert registry.get_sample_value(f"{NAME}_sum", {"registry": "default", "change": "ready"}) == pytest.approx(0.0)


def test_what_is_remembered_of_late_news_is_bounded() -> None:
    measured = Measured()
    measured.now = 1009.0
    for number in range(MOST_LATE + 10):
        measured.timings.hear(None, replace(READY, uid=f"u{number}"))
    assert len(measured.timings._late) == MOST_LATE

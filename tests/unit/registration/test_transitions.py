"""What the log says of registering, change by change."""

import logging

from grpc_etcd.etcd import PermissionDenied, Unavailable
from grpc_etcd.registration.reconciler import KeyState
from grpc_etcd.registration.transitions import Fact, Transitions

KEY = b"/k"


def tell(transitions: Transitions, standing: KeyState, now: float, value: bytes = b"v") -> list[str]:
    return [line.text for line in transitions.observe({KEY: Fact("greeter", standing, value)}, now)]


def test_each_change_is_one_line_and_what_stays_is_none() -> None:
    transitions = Transitions()
    assert tell(transitions, KeyState.PENDING, 0) == []
    assert tell(transitions, KeyState.REGISTERED, 1) == ["greeter: registered"]
    assert tell(transitions, KeyState.REGISTERED, 2) == []
    assert tell(transitions, KeyState.PENDING, 3) == []
    assert tell(transitions, KeyState.REGISTERED, 4.5) == ["greeter: restored after 1.5 s"]
    assert tell(transitions, KeyState.PENDING, 5, b"w") == []
    assert tell(transitions, KeyState.REGISTERED, 6, b"w") == ["greeter: changed"]
    assert tell(transitions, KeyState.GONE, 7) == ["greeter: deregistered"]
    assert tell(transitions, KeyState.GONE, 8) == []
    assert transitions.keys == frozenset()


def test_a_key_is_called_taken_only_when_it_has_been_for_a_second() -> None:
    transitions = Transitions()
    tell(transitions, KeyState.REGISTERED, 0)
    assert tell(transitions, KeyState.TAKEN, 1) == []
    assert tell(transitions, KeyState.SHARED, 1.1) == [], "its process key came a moment later"
    assert (tell(transitions, KeyState.TAKEN, 2), transitions.due) == ([], 3)
    reported = ["greeter: taken by another process; it is restored when that process ends"]
    assert (tell(transitions, KeyState.TAKEN, 3), transitions.due) == (reported, None)
    assert tell(transitions, KeyState.TAKEN, 4) == []
    assert tell(transitions, KeyState.REGISTERED, 5) == ["greeter: restored after 3.0 s"]


def test_an_outage_is_a_warning_when_it_begins_or_becomes_another_and_a_line_when_it_ends() -> None:
    transitions = Transitions()

    def levels(fault: Exception | None, now: float) -> list[int]:
        return [line.level for line in transitions.observe_fault(fault, 30, now)]

    assert levels(None, 0) == []
    assert levels(Unavailable("away"), 1) == [logging.WARNING]
    assert levels(Unavailable("still away"), 2) == []
    assert levels(PermissionDenied("no"), 3) == [logging.WARNING]
    assert levels(None, 4) == [logging.INFO]
    assert levels(None, 5) == []

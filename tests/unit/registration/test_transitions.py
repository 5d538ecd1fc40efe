"""What the log says of registering, change by change."""

import logging

from grpc_etcd.etcd import PermissionDenied, Unavailable
from grpc_etcd.registration.reconciler import KeyState
from grpc_etcd.registration.transitions import Fact, Fault, Transitions

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

    def levels(error: Exception | None, now: float) -> list[int]:
        fault = Fault(error) if error else None
        return [line.level for line in transitions.observe_fault(fault, 30, now)]

    assert levels(None, 0) == []
    assert levels(Unavailable("away"), 1) == [logging.WARNING]
    assert levels(Unavailable("still away"), 2) == []
    assert levels(PermissionDenied("no"), 3) == [logging.WARNING]
    assert levels(None, 4) == [logging.INFO]
    assert levels(None, 5) == []


def test_a_refusal_says_what_to_do_and_ends_without_a_line_where_nobody_wants_the_key_any_more() -> None:
    transitions = Transitions()
    fault = Fault(PermissionDenied("no"), "Grant it.", is_refusal=True, spares_leases=True)
    (line,) = transitions.observe_fault(fault, 30, 1)
    assert line.text == "Registration delayed, retrying: no. Grant it"
    (line,) = transitions.observe_fault(None, 30, 3)
    assert line.text == "etcd accepts registrations again after 2.0 s"
    transitions.observe_fault(fault, 30, 4)
    assert transitions.observe_fault(None, 30, 5, is_wanted=False) == []
    (line,) = transitions.observe_fault(Fault(Unavailable("away"), "Check it."), 30, 6)
    assert line.text.startswith("Registration delayed, retrying: away. Check it. Until then, keys that are there")


def test_what_never_was_registered_is_not_called_deregistered() -> None:
    transitions = Transitions()
    assert tell(transitions, KeyState.PENDING, 0) == []
    assert tell(transitions, KeyState.GONE, 1) == []
    assert transitions.keys == frozenset()

"""Each row of the table that says when a Pod's gate is open."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpc_etcd_operator.core.gates import Claimant, judge_gate
from grpc_etcd_operator.core.reasons import Reason

WRITTEN, WAITING = Claimant("shop/a", is_registered=True), Claimant("shop/b")
FAULTY = Claimant("shop/c", Reason.PORT_NOT_FOUND, "no such port")


@pytest.mark.parametrize(
    ("claimants", "is_open", "reason"),
    [
        ([], True, "Registered"),
        ([WRITTEN], True, "Registered"),
        ([WRITTEN, FAULTY], True, "Registered"),
        ([WRITTEN, WAITING], False, "Registering"),
        ([WAITING, FAULTY], False, "Registering"),
        ([FAULTY], False, "PortNotFound"),
    ],
)
def test_a_gate_waits_for_what_can_be_written(claimants: list[Claimant], *, is_open: bool, reason: str) -> None:
    gate = judge_gate(claimants)
    assert (gate.is_open, gate.reason) == (is_open, reason)


def test_a_gate_says_what_it_waits_for() -> None:
    gate = judge_gate([WAITING], "default: unavailable")
    assert gate.reason == "RegistryUnavailable"
    assert "shop/b" in gate.message
    assert "default: unavailable" in gate.message


@given(st.lists(st.sampled_from([WRITTEN, WAITING, FAULTY])))
def test_a_closed_gate_is_never_silent(claimants: list[Claimant]) -> None:
    gate = judge_gate(claimants)
    assert gate.is_open or (gate.reason and gate.message)

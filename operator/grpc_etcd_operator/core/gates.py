"""Whether a Pod's readiness gate is open, and if not, what is said in its condition. Pure.

the enabled GrpcServices that select the Pod        | gate
----------------------------------------------------+----------------------------------------------------------
there are none                                      | open: no Pod is ever stuck for us
some can be written for it and are not yet          | waits: after a while it says what for
all that can be written are written                 | open, whatever is wrong with the others
none can be written                                 | closed, with the first fault
"""

from collections.abc import Sequence
from dataclasses import dataclass

from grpc_etcd_operator.core.reasons import Reason


@dataclass(frozen=True, slots=True)
class Claimant:
    """One enabled GrpcService that selects the Pod. `reason` is there if something keeps it from being written."""

    reference: str
    reason: Reason | None = None
    message: str = ""
    is_registered: bool = False


@dataclass(frozen=True, slots=True)
class Gate:
    """What a gate's condition ought to be. `is_waiting`: said only after a while, for it may be over at once."""

    is_open: bool
    reason: Reason
    message: str = ""
    is_waiting: bool = False


OPEN = Gate(is_open=True, reason=Reason.REGISTERED)


def judge_gate(claimants: Sequence[Claimant], unavailable: str = "") -> Gate:
    """Judge a Pod's gate; `unavailable` says why a registry that is waited for cannot be written, if that is so."""
    waiting = [each.reference for each in claimants if not each.is_registered and not each.reason]
    if waiting:
        reason = Reason.REGISTRY_UNAVAILABLE if unavailable else Reason.REGISTERING
        message = f"waits until the keys of GrpcService {', '.join(waiting)} are in etcd"
        return Gate(
            is_open=False,
            reason=reason,
            message=f"{message}: {unavailable}" if unavailable else message,
            is_waiting=True,
        )
    faulty = [each for each in claimants if not each.is_registered]
    if not faulty or len(faulty) < len(claimants):
        return OPEN
    first = faulty[0]
    reason = first.reason or Reason.REGISTERING
    return Gate(is_open=False, reason=reason, message=f"GrpcService {first.reference}: {first.message}")

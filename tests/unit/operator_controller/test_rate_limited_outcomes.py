"""What is reported of a Pod whose namespace has written too much."""

from types import SimpleNamespace

from grpc_etcd.layouts.rate_limits import RateLimitedQueue
from grpc_etcd.registry.layout import WriteLimits
from grpc_etcd_operator.controller.outcomes import Outcome, Outcomes
from grpc_etcd_operator.core.backoff import Backoff
from grpc_etcd_operator.core.desired import DesiredRecord
from grpc_etcd_operator.core.plan import Plan, PutEdit
from grpc_etcd_operator.core.reasons import Reason
from grpc_etcd_operator.core.work import Work
from grpc_etcd_operator.isolation import Isolation


def report(plan: Plan) -> Outcome:
    """Return what is reported of a Pod that three GrpcServices select, each with a key of its own."""
    wanted = tuple(DesiredRecord(key.encode(), b"", source=key) for key in ("same", "changed", "new"))
    facts = SimpleNamespace(
        namespace_of=lambda _uid: "shop",
        sources=lambda _uid: ["same", "changed", "new"],
    )
    parts = SimpleNamespace(registry="default", facts=facts, isolation=Isolation())
    found: list[Outcome] = []
    work = Work(RateLimitedQueue(lambda _: WriteLimits()), Backoff((5.0,)))
    outcomes = Outcomes(parts, work, found.append, lambda: None)  # type: ignore[arg-type]  # all that is asked of them
    outcomes.report_rate_limited(plan, wanted)
    return found[0]


def test_what_waits_is_reported_on_whose_it_is_alone() -> None:
    puts = PutEdit(b"changed", b"2", 7), PutEdit(b"new", b"1", 0), PutEdit(b"owner", b"{}", 7)
    found = report(Plan("p1", 1, puts, written=frozenset({"same", "changed", "new"})))
    assert found.written == {"same", "changed"}
    assert [(fault.source, fault.reason) for fault in found.faults] == [
        ("changed", Reason.RATE_LIMITED),
        ("new", Reason.RATE_LIMITED),
    ]


def test_what_is_left_for_another_transaction_waits_as_well() -> None:
    found = report(Plan("p1", 1, (PutEdit(b"new", b"1", 0),), written=frozenset({"same", "new"}), is_part=True))
    assert found.written == {"same"}
    assert {fault.source for fault in found.faults} == {"changed", "new"}

"""What of a plan an etcd without space takes: deregistrations, unless something is to come in place of what goes."""

from grpc_etcd.registry.own import owner_key, owner_prefix
from grpc_etcd_operator.core.plan import DeleteEdit, Plan, PutEdit, Release
from grpc_etcd_operator.registry.transactions import deregistration_of

OWNERS, OWNER = owner_prefix("c1"), owner_key("c1", "p1")
GOES, COMES, RECORD = DeleteEdit(b"/goes", 7), PutEdit(b"/comes", b"v", 0), PutEdit(OWNER, b"r", 3)


def test_a_deregistration_needs_no_owner_record() -> None:
    whole = Plan("p1", 7, (RECORD,), (GOES,), releases=(Release(b"/gone", 7),), written=frozenset(["s2"]))
    found = deregistration_of(whole, OWNERS)
    assert found == Plan("p1", 7, (), (GOES,), written=frozenset(["s2"]), is_part=True)


def test_what_only_deletes_goes_as_it_is() -> None:
    plan = Plan("p1", 7, (), (GOES, DeleteEdit(OWNER, 7, 3)), gone=True)
    assert deregistration_of(plan, OWNERS) is plan


def test_nothing_goes_before_what_may_come_in_its_place() -> None:
    assert deregistration_of(Plan("p1", 7, (COMES, RECORD), (GOES,)), OWNERS) is None
    assert deregistration_of(Plan("p1", 7, (RECORD,)), OWNERS) is None

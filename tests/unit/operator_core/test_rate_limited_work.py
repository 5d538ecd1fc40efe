"""Work of a namespace that has written too much: nothing of it is lost, deletions go at once, and nobody else waits."""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from grpc_etcd.layouts.rate_limits import RateLimitedQueue
from grpc_etcd.registry.layout import WriteLimits
from grpc_etcd_operator.core.backoff import Backoff
from grpc_etcd_operator.core.plan import OVERHEAD_BYTES, DeleteEdit, Plan, PutEdit, Requirement
from grpc_etcd_operator.core.work import Work
from grpc_etcd_operator.core.write_budget import Bucket, WriteBudget
from testbed.examples import examples

SMALL = Bucket(1000.0, 10.0)
SIZE = 500
NOISY, QUIET = ("noisy-1", "noisy-2", "noisy-3"), "quiet-1"
UNITS = (*NOISY, QUIET)


def make_work() -> Work:
    budget = WriteBudget(SMALL, SMALL)
    return Work(RateLimitedQueue(lambda _: WriteLimits()), Backoff((5.0,)), lambda uid: uid.split("-")[0], budget)


def make_plan(uid: str, *, puts: bool = True, deletes: bool = False, size: int = SIZE) -> Plan:
    value = b"v" * (size - OVERHEAD_BYTES - len(uid))
    key = uid.encode()
    return Plan(
        uid,
        1,
        (PutEdit(key, value, 7),) if puts else (),
        (DeleteEdit(b"old-" + key, 1),) if deletes else (),
        requires=(Requirement(b"owner", 3),) if puts else (),
        written=frozenset({"shop/greeter"}),
    )


@dataclass
class Writer:
    """Does with the work what the reconciler does; each change of a unit is a version of it."""

    work: Work = field(default_factory=make_work)
    now: float = 100.0
    versions: dict[str, int] = field(default_factory=lambda: dict.fromkeys(UNITS, 0))
    written: dict[str, int] = field(default_factory=lambda: dict.fromkeys(UNITS, 0))
    limited: list[str] = field(default_factory=list)

    def change(self, uid: str) -> None:
        self.versions[uid] += 1
        self.work.mark([uid], self.now)

    def run(self, *, succeeds: bool = True) -> None:
        """Judge and write all that may be written now."""
        self.work.release_postponed(self.now)
        for uid, since in list(self.work.take_due(100, urgent=False)):
            if self.written[uid] == self.versions[uid]:
                self.work.forget_plan(uid)
                self.work.settle(uid, self.now)
            elif admitted := self.work.admit(make_plan(uid), self.now):
                self.work.plan(admitted, since, {})
            else:
                self.limited.append(uid)
        plans = self.work.take(self.now, 100)
        for plan in plans:
            if succeeds:
                self.work.commit(plan, self.now)
                self.written[plan.uid] = self.versions[plan.uid]
            else:
                self.work.come_again([plan.uid], self.now)
        self.work.end(plans)


happenings = st.lists(
    st.tuples(
        st.floats(0.0, 100.0), st.sampled_from(NOISY), st.sampled_from(["written", "written", "in vain", "leads anew"])
    ),
    max_size=80,
)


@settings(max_examples=examples(300))
@given(happenings=happenings)
def test_nothing_is_lost_and_nobody_else_waits(happenings: list[tuple[float, str, str]]) -> None:
    writer, quiet_until = Writer(), 0.0
    for pause, uid, ending in happenings:
        writer.now += pause
        writer.change(uid)
        writer.run(succeeds=ending == "written")
        if ending == "leads anew":
            writer.work.drop_plans(writer.now)
        if writer.now >= quiet_until:  # it writes no more than it may
            quiet_until = writer.now + SIZE / SMALL.bytes_per_second
            writer.change(QUIET)
            writer.run()
        assert writer.written[QUIET] == writer.versions[QUIET]
        assert all(uid in writer.work or writer.written[uid] == writer.versions[uid] for uid in UNITS)
    for _ in range(2 * len(NOISY)):
        writer.now = max(writer.now, min(writer.work.next_at(), writer.now + 1e6))
        writer.run()
    assert writer.written == writer.versions
    assert not any(uid in writer.work for uid in UNITS)
    assert writer.work.count_rate_limited(writer.now) == 0
    assert QUIET not in writer.limited


def flood(writer: Writer, uid: str = NOISY[0]) -> None:
    """Let a unit change until it has to wait."""
    for _ in range(10):
        writer.change(uid)
        writer.run()
    assert writer.limited


def test_a_namespace_that_waits_for_bytes_keeps_nobody_from_being_synced() -> None:
    writer = Writer()
    flood(writer)
    assert writer.work.count_rate_limited(writer.now) == 1
    assert writer.work.has_caught_up(writer.now)
    assert writer.work.overdue_seconds(writer.now + 10.0) == 0.0
    assert (writer.work.due, writer.work.planned, writer.work.held_back) == (0, 0, [])


def test_what_an_etcd_has_lost_is_written_again_at_once() -> None:
    writer = Writer()
    flood(writer)
    for uid in NOISY:
        writer.change(uid)
    writer.run()
    assert writer.work.count_rate_limited(writer.now) == len(NOISY)
    writer.work.begin_history(writer.now)
    writer.run()
    assert writer.written == writer.versions
    assert writer.work.count_rate_limited(writer.now) == 0
    assert not any(uid in writer.work for uid in UNITS)


def test_a_unit_that_changes_on_and_on_is_not_written_before_its_turn() -> None:
    writer = Writer()
    flood(writer)
    before, due_at = writer.written[NOISY[0]], writer.work.next_at()
    while writer.now + 1.0 < due_at:
        writer.now += 1.0
        writer.change(NOISY[0])
        writer.run()
    assert writer.written[NOISY[0]] == before
    writer.now = due_at
    writer.run()
    assert writer.written[NOISY[0]] == writer.versions[NOISY[0]]


def test_one_unit_that_changes_on_and_on_keeps_no_other_of_its_namespace_waiting_for_long() -> None:
    writer = Writer()
    flood(writer)
    writer.change(NOISY[1])
    for _ in range(round(3 * SIZE / SMALL.bytes_per_second)):
        writer.now += 1.0
        writer.change(NOISY[0])
        writer.run()
    assert writer.written[NOISY[1]] == 1


def test_what_is_deleted_goes_at_once_and_alone() -> None:
    writer = Writer()
    flood(writer)
    plan = make_plan(NOISY[1], deletes=True)
    admitted = writer.work.admit(plan, writer.now)
    assert admitted
    assert (admitted.puts, admitted.deletes, admitted.requires) == ((), plan.deletes, ())
    assert admitted.is_part
    assert not admitted.written
    assert writer.work.admit(make_plan(NOISY[2], puts=False, deletes=True), writer.now)


def test_what_was_deleted_alone_is_followed_by_what_it_was_to_put() -> None:
    writer = Writer()
    flood(writer)
    writer.change(NOISY[1])
    ((uid, since),) = writer.work.take_due(1, urgent=False)
    admitted = writer.work.admit(make_plan(uid, deletes=True), writer.now)
    assert admitted
    writer.work.plan(admitted, since, {})
    (plan,) = writer.work.take(writer.now, 10)
    writer.work.commit(plan, writer.now)
    writer.work.end([plan])
    assert uid in writer.work
    for _ in range(2):
        writer.now = writer.work.next_at()
        writer.run()
    assert writer.written[uid] == 1


def test_an_earlier_plan_is_not_written_in_place_of_one_that_waits() -> None:
    writer = Writer()
    writer.work.plan(make_plan(NOISY[0], puts=False, deletes=True), writer.now, {})
    flood(writer, NOISY[1])
    assert writer.work.admit(make_plan(NOISY[0]), writer.now) is None
    assert writer.work.take(writer.now, 10) == []


def test_of_a_unit_that_goes_while_it_waits_nothing_waits_any_more() -> None:
    writer = Writer()
    flood(writer)
    before = writer.work.next_at()
    for number in range(10):
        uid = f"noisy-p{number}"
        writer.work.mark([uid], writer.now)
        ((_, since),) = writer.work.take_due(1, urgent=False)
        assert writer.work.admit(make_plan(uid), writer.now) is None
        assert uid in writer.work
        if number % 2:  # something of it had been written before
            writer.work.plan(make_plan(uid, puts=False, deletes=True), since, {})
            (plan,) = writer.work.take(writer.now, 10)
            writer.work.commit(plan, writer.now)
            writer.work.end([plan])
        else:
            writer.work.settle(uid, writer.now)
        assert uid not in writer.work
    assert writer.work.next_at() == before
    assert writer.work.count_rate_limited(writer.now) == 1
    late = make_plan("noisy-late")
    assert writer.work.admit(late, writer.now) is None
    assert writer.work.admit(late, before + SIZE / SMALL.bytes_per_second), "nobody else is before it any more"


def test_who_waits_behind_many_that_go_is_written_as_soon_as_there_are_bytes() -> None:
    writer, ghosts, late = (
        Writer(),
        [f"noisy-ghost-{number}" for number in range(100)],
        [f"noisy-late-{n}" for n in "abc"],
    )
    for uid in (*ghosts, *late):
        writer.work.admit(make_plan(uid), writer.now)
    assert writer.work.next_at() > writer.now
    for uid in ghosts:
        writer.work.settle(uid, writer.now)
    written = dict[str, float]()
    while len(written) < len(late):
        writer.now = writer.work.next_at()
        writer.work.release_postponed(writer.now)
        for uid, since in list(writer.work.take_due(10, urgent=False)):
            assert since == writer.now, "nor does it seem to have been due for long"
            if writer.work.admit(make_plan(uid), writer.now):
                written[uid] = writer.now
    assert list(written) == late, "in their order"
    # Two of those that went might have been written at once, and one more was needed to empty the bucket.
    assert max(written.values()) <= 100.0 + (2 + len(late)) * SIZE / SMALL.bytes_per_second

"""The work queue under any order of events: nothing is lost, nothing runs twice at once, nobody is judged too early."""

import math
from collections import Counter
from dataclasses import dataclass

from hypothesis import event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from grpc_etcd.layouts.rate_limits import RateLimitedQueue
from grpc_etcd.registry.layout import WriteLimits
from grpc_etcd_operator.core.backoff import Backoff
from grpc_etcd_operator.core.plan import DeleteEdit, Plan, PutEdit
from grpc_etcd_operator.core.work import Work
from testbed.examples import examples

UNITS = ("p1", "p2", "p3", "p4")
STREAM = b"/jupiter/greeter/"
PAUSE_SECONDS = 5.0
ROUNDING_SECONDS = 1e-6
MOST_ROUNDS = 50  # until all must be written. Arbitrary: a run leaves a plan or two of each unit behind
units = st.sampled_from(UNITS)
seconds = st.floats(0.0, 10.0)
judgements = st.sampled_from(["puts", "deletes", "puts", "deletes", "held back", "nothing", "fails"])
endings = st.sampled_from(["written", "part", "in vain", "fails"])


def make_plan(uid: str, *, deletes: bool, is_part: bool = False) -> Plan:
    key = STREAM + uid.encode()
    puts = () if deletes else (PutEdit(key, b"value", 0),)
    return Plan(uid, 1, puts, (DeleteEdit(key, 1),) if deletes else (), is_part=is_part)


def make_work(limits: WriteLimits) -> Work:
    return Work(
        RateLimitedQueue(lambda _: limits),
        Backoff(tuple(PAUSE_SECONDS * failures for failures in range(1, 100))),
        lambda uid: "even" if uid[-1] in "02468" else "odd",
    )


@dataclass
class Waiting:
    """A plan of a unit: the unit's version that it was made from, and since when it waits."""

    plan: Plan
    version: int
    since: float


class AnyOrder(RuleBasedStateMachine):
    """Each change of a unit is a version of it; a version is owed until it, or a later one, is judged and written."""

    @initialize(is_paced=st.booleans())
    def begin(self, *, is_paced: bool) -> None:
        self.work = make_work(WriteLimits(2, 10) if is_paced else WriteLimits())
        self.now = 100.0
        self.changed: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.marked: dict[str, float] = {}
        self.is_urgent: set[str] = set()
        self.held_back: dict[str, float] = {}
        self.postponed: dict[str, float] = {}
        self.failures: Counter[str] = Counter()
        self.planned: dict[str, Waiting] = {}
        self.sent: list[dict[str, Waiting]] = []
        self.tried_in_vain: dict[str, float] = {}  # since when
        for uid in UNITS:
            self.somebody_marks(uid, urgent=False, is_change=True)

    def under_way(self) -> set[str]:
        return {uid for each in self.sent for uid in each}

    def mark(self, uid: str, since: float) -> None:
        self.marked[uid] = min(since, self.marked.get(uid, since))

    @precondition(lambda self: self.postponed)
    @rule(after=seconds)
    def time_passes(self, after: float) -> None:
        self.now += after
        self.work.release_postponed(self.now)
        for uid in [uid for uid, at in self.postponed.items() if at <= self.now]:
            self.mark(uid, self.postponed.pop(uid))

    @rule(uid=units, urgent=st.booleans(), is_change=st.booleans(), after=seconds)
    def somebody_marks_later(self, uid: str, *, urgent: bool, is_change: bool, after: float) -> None:
        self.time_passes(after)
        self.somebody_marks(uid, urgent=urgent, is_change=is_change)

    def somebody_marks(self, uid: str, *, urgent: bool, is_change: bool) -> None:
        self.changed[uid] += is_change
        self.work.mark([uid], self.now, urgent=urgent)
        self.mark(uid, self.now)
        if urgent:
            self.is_urgent.add(uid)

    @precondition(lambda self: self.held_back)
    @rule()
    def something_outside_changes(self) -> None:
        self.work.release()
        self.nothing_is_held_back()

    def nothing_is_held_back(self) -> None:
        while self.held_back:
            self.mark(*self.held_back.popitem())

    @precondition(lambda self: self.marked)
    @rule(most=st.integers(1, 4), data=st.data())
    def judge(self, most: int, data: st.DataObject) -> None:
        for urgent in (True, False):
            for uid, since in self.work.take_due(most, urgent=urgent):
                assert uid in self.marked, "held back or postponed, and nobody has marked it"
                assert uid not in self.under_way()
                assert not urgent or uid in self.is_urgent
                self.is_urgent.discard(uid)
                expected = min(self.marked.pop(uid), self.held_back.pop(uid, math.inf))
                assert since == expected
                judgement = data.draw(judgements, f"judgement of {uid}")
                self.conclude(uid, since, judgement)
                if judgement != "fails":
                    self.end_failures(uid)
                if another := data.draw(st.none() | units, "another that is marked meanwhile"):
                    self.somebody_marks(another, urgent=True, is_change=True)

    def end_failures(self, uid: str) -> None:
        self.work.end_failures(uid)
        if uid not in self.planned:
            self.failures[uid] = 0

    def conclude(self, uid: str, since: float, judgement: str) -> None:
        """Do with a unit what the writer does."""
        if judgement == "held back":
            self.work.hold_back(uid, since)
            self.held_back[uid] = since
        elif judgement == "fails":
            self.postpone(uid)
        elif judgement == "nothing":
            self.work.forget_plan(uid)
            self.work.settle(uid, self.now)
            self.tried_in_vain.pop(uid, None)
            self.planned.pop(uid, None)
            self.postponed.pop(uid, None)
            self.done[uid] = self.changed[uid]
        else:
            self.plan(make_plan(uid, deletes=judgement == "deletes"), since)

    def plan(self, plan: Plan, since: float) -> None:
        before = self.planned.get(plan.uid)
        if before and bool(before.plan.deletes) == bool(plan.deletes):
            since = min(since, before.since)
        assert self.work.waits_since(plan, since) == since
        self.work.plan(plan, since, {STREAM: 1})
        self.planned[plan.uid] = Waiting(plan, self.changed[plan.uid], since)

    def postpone(self, uid: str) -> None:
        self.work.postpone(uid, self.now)
        self.planned.pop(uid, None)
        self.tried_in_vain.pop(uid, None)
        self.failures[uid] += 1
        self.postponed[uid] = self.now + PAUSE_SECONDS * self.failures[uid]

    @precondition(lambda self: self.planned)
    @rule(operations=st.integers(1, 4), data=st.data())
    def send(self, operations: int, data: st.DataObject) -> None:
        before = self.under_way()
        plans = self.work.take(self.now, operations)
        assert sum(plan.size for plan in plans) <= operations
        assert not before & {plan.uid for plan in plans}
        taken = {plan.uid: self.planned.pop(plan.uid) for plan in plans}
        assert all(taken[plan.uid].plan is plan for plan in plans)
        for uid in data.draw(st.sets(st.sampled_from(sorted(taken))), "those that wait for another") if taken else ():
            each = taken.pop(uid)
            self.work.put_off(each.plan)
            self.mark(uid, each.since)
        if taken:
            self.sent.append(taken)

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def a_transaction_ends(self, data: st.DataObject) -> None:
        ended = self.sent.pop(data.draw(st.integers(0, len(self.sent) - 1), "the transaction"))
        for uid, each in ended.items():
            ending = data.draw(endings, f"what becomes of {uid}")
            event(ending)
            if ending == "in vain":
                self.work.come_again([uid], self.now)
                self.tried_in_vain.setdefault(uid, self.now)
                self.mark(uid, each.since)
            elif ending == "fails":
                self.postpone(uid)
            else:
                self.commit(uid, each, is_part=ending == "part")
        self.work.end(each.plan for each in ended.values())

    def commit(self, uid: str, each: Waiting, *, is_part: bool) -> None:
        plan = make_plan(uid, deletes=bool(each.plan.deletes), is_part=is_part)
        assert self.work.commit(plan, self.now) == self.now - each.since
        self.failures[uid] = 0
        self.tried_in_vain.pop(uid, None)
        if is_part:
            self.mark(uid, each.since)
        else:
            self.postponed.pop(uid, None)
            self.done[uid] = max(self.done[uid], each.version)

    @precondition(lambda self: self.planned)
    @rule()
    def another_leads(self) -> None:
        self.work.drop_plans(self.now)
        self.plans_are_dropped()

    def plans_are_dropped(self) -> None:
        for uid, each in self.planned.items():
            self.mark(uid, each.since)
        self.planned.clear()
        self.tried_in_vain.clear()
        self.nothing_is_held_back()

    @precondition(lambda self: self.sent)
    @rule()
    def the_sender_fails(self) -> None:
        self.work.end_all(self.now)
        for sent in self.sent:
            for uid, each in sent.items():
                self.mark(uid, each.since)
        self.sent.clear()
        self.plans_are_dropped()

    @invariant()
    def nothing_is_lost(self) -> None:
        for uid in UNITS:
            assert uid in self.work or self.done[uid] == self.changed[uid]

    @invariant()
    def it_says_what_waits(self) -> None:
        assert (self.work.due, self.work.planned) == (len(self.marked), len(self.planned))
        assert self.work.held_back == sorted(self.held_back)
        assert self.work.next_at() == min(self.postponed.values(), default=math.inf)
        assert self.work.in_flight == len(self.under_way())
        since = self.waits()
        assert self.work.has_caught_up(min(since, default=self.now) - 0.001)
        assert not since or not self.work.has_caught_up(min(since))

    def waits(self) -> list[float]:
        sent = [each.since for group in self.sent for each in group.values()]
        planned = [each.since for each in self.planned.values()]
        return [*self.marked.values(), *self.held_back.values(), *planned, *sent]

    @invariant()
    def nobody_is_overdue_for_longer_than_it_waits(self) -> None:
        overdue = self.work.overdue_seconds(self.now)
        since = min([*self.waits(), *self.tried_in_vain.values()], default=self.now)
        assert 0 <= overdue <= self.now - since + ROUNDING_SECONDS

    def teardown(self) -> None:
        if not hasattr(self, "work"):
            return
        rounds = 0
        while any(uid in self.work for uid in UNITS) and (rounds := rounds + 1) < MOST_ROUNDS:
            self.time_passes(PAUSE_SECONDS * len(UNITS) * MOST_ROUNDS)
            self.something_outside_changes()
            for urgent in (True, False):
                for uid, since in self.work.take_due(len(UNITS), urgent=urgent):
                    self.marked.pop(uid)
                    self.conclude(uid, since, "puts")
            for plan in self.work.take(self.now, len(UNITS)):
                self.commit(plan.uid, self.planned.pop(plan.uid), is_part=False)
                self.work.end([plan])
            while self.sent:
                for uid, each in self.sent.pop().items():
                    self.commit(uid, each, is_part=False)
                    self.work.end([each.plan])
        assert not any(uid in self.work for uid in UNITS)
        assert self.done == self.changed
        assert self.work.overdue_seconds(self.now) == 0
        assert self.work.next_at() == math.inf


AnyOrder.TestCase.settings = settings(max_examples=examples(300), stateful_step_count=60)
TestAnyOrder = AnyOrder.TestCase


def test_urgent_units_are_judged_first_however_many_others_wait() -> None:
    work = make_work(WriteLimits())
    work.mark((f"p{number}" for number in range(1_000)), 1.0)
    work.mark(["gone"], 2.0, urgent=True)
    assert next(work.take_due(1, urgent=True)) == ("gone", 2.0)


def test_units_that_are_under_way_keep_no_others_waiting() -> None:
    work = make_work(WriteLimits())
    for number in range(10):
        work.plan(make_plan(f"p{number}", deletes=False), 1.0, {})
    assert len(work.take(1.0, 10)) == 10
    work.mark((f"p{number}" for number in range(10)), 2.0)
    work.mark(["another"], 3.0)
    assert list(work.take_due(5, urgent=False)) == [("another", 3.0)]


def test_a_unit_that_fails_again_and_again_is_judged_more_and_more_rarely() -> None:
    work = make_work(WriteLimits())
    pauses = []
    for _ in range(3):
        work.postpone("p1", 0.0)
        pauses.append(work.next_at())
    assert pauses == [5.0, 10.0, 15.0]
    work.end_failures("p1")
    work.postpone("p1", 0.0)
    assert work.next_at() == 5.0


def test_what_was_written_has_no_failures_behind_it() -> None:
    work = make_work(WriteLimits())
    work.postpone("p1", 0.0)
    work.plan(make_plan("p1", deletes=False), 1.0, {})
    (plan,) = work.take(1.0, 10)
    work.commit(plan, 2.0)
    work.end([plan])
    work.postpone("p1", 6.0)
    assert work.next_at() == 11.0


def write_part(work: Work, now: float, keys: int, left: int) -> None:
    """Write a part of a unit, of which all changes once more meanwhile."""
    puts = tuple(PutEdit(STREAM + b"%d" % number, b"value", 0) for number in range(keys + 1))  # with the owner record
    ((uid, since),) = work.take_due(1, urgent=False)
    work.plan(Plan(uid, 1, puts, is_part=left > 0, left=left), since, {})
    (plan,) = work.take(now, 120)
    work.mark([uid], now)
    work.commit(plan, now)
    work.end([plan])


def test_a_unit_that_changes_faster_than_its_parts_are_written_catches_up() -> None:
    work = make_work(WriteLimits())
    work.mark(["p1"], 1.0)
    for now in (2.0, 3.0):
        write_part(work, now, 40, 80)
        assert not work.has_caught_up(1.0)
    write_part(work, 4.0, 40, 80)
    assert work.has_caught_up(1.0)
    assert not work.has_caught_up(4.0)


def test_a_unit_whose_parts_were_written_begins_to_count_anew() -> None:
    work = make_work(WriteLimits())
    work.mark(["p1"], 1.0)
    write_part(work, 2.0, 40, 80)
    write_part(work, 3.0, 80, 0)
    write_part(work, 4.0, 80, 40)
    assert not work.has_caught_up(3.0)

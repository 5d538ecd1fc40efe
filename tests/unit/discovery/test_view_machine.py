"""The law of views, held against an etcd whose events, listings, refusals and losses of data come in any order.

Each range learns of what the store did at a pace of its own. Whatever the order: a set that calls could use is emptied
only by a state of the store that somebody confirms, or that nobody ever confirmed; when data are lost, no endpoint goes
before it was there again, or somebody confirms the new history; an endpoint comes only if the store has held it since
its range was watched again; and once all is delivered and confirmed, the view is what the store
holds. Of progress a range tells only what it is asked for: what is awaited when etcd loses its data is asked for again
in the new history, as `Feed` does, or it would be waited for in vain.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from grpc_etcd.discovery.positions import Position
from grpc_etcd.discovery.state import SYNCED, Range, Reader, Source
from grpc_etcd.layouts.index import make_layout
from grpc_etcd.layouts.jupiter import Jupiter
from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.layout import KeyValue
from grpc_etcd.registry.own import policy_key, synced_key
from grpc_etcd.registry.policy import Policy, write_policy
from grpc_etcd.xds.localities import is_callable
from testbed.examples import examples

LAYOUTS = (Jupiter(), make_layout("jupiter", "other"))
MARKS = (synced_key("c1"), synced_key("c2"))
POLICY = (policy_key("jupiter", "greeter"), write_policy(Policy(timeout_seconds=2)))
Edit = tuple[bytes, bytes | None]

numbers = st.integers(1, 3)
layouts = st.integers(0, 1)
marks = st.sampled_from(MARKS)


def record(number: int, layout: int, *, enable: bool = True) -> tuple[bytes, bytes]:
    made = LAYOUTS[layout].encode("greeter", Endpoint(name="greeter", address=f"10.0.0.{number}:1", enable=enable))
    assert isinstance(made, KeyValue)
    return made.key, made.value


def both(number: int) -> list[bytes]:
    """Return the keys of an endpoint in both layouts."""
    return [record(number, layout)[0] for layout in (0, 1)]


def number_at(address: str) -> int:
    return int(address.split(":", maxsplit=1)[0].split(".")[3])


CALLABLE = frozenset(record(number, layout) for number in range(1, 4) for layout in (0, 1))


@dataclass
class Store:
    """etcd's key space at every revision."""

    revision: int = 1
    states: list[Mapping[bytes, bytes]] = field(default_factory=lambda: [{}, {}])
    log: list[tuple[int, Edit]] = field(default_factory=list)

    def write(self, *edits: Edit) -> None:
        state = dict(self.states[-1])
        effective = [(key, value) for key, value in edits if value is not None or key in state]
        if not effective:
            return
        self.revision += 1
        for key, value in effective:
            self.log.append((self.revision, (key, value)))
            if value is None:
                state.pop(key, None)
            else:
                state[key] = value
        self.states.append(state)

    def copy(self) -> "Store":
        return Store(self.revision, list(self.states), list(self.log))

    def callables(self, revision: int) -> int:
        """Count the addresses that may be called; where layouts differ about one, the first layout is believed."""
        state = self.states[revision]
        records = [[each for each in (record(n, 0), record(n, 1)) if each[0] in state] for n in range(1, 4)]
        return sum(1 for found in records if found and (found[0][0], state[found[0][0]]) in CALLABLE)


class ViewMachine(RuleBasedStateMachine):
    """The world: a store with its history, and how far each range was told."""

    def __init__(self) -> None:
        super().__init__()
        self.store = Store()
        self.backup = self.store.copy()
        self.history = 0
        self.histories = {0: self.store}
        self.reader = Reader("greeter", LAYOUTS, "jupiter")
        self.told: dict[Range, int] = dict.fromkeys(self.reader.ranges, 0)  # 0: to be listed
        self.refused: set[Range] = set()
        self.asked: dict[Range, int] = {}  # up to which revision a range is awaited, as Feed remembers it
        self.marks_told: set[bytes] = set()
        self.was_callable = False
        self.resumed: dict[Range, int] = {}  # where the store was when a range was watched again
        self.shown: set[str] = set()
        self.owed: set[str] = set()  # what was shown when data were lost, and nothing has been told of since

    # What happens in etcd.

    @rule(number=numbers, layout=layouts, enable=st.booleans())
    def put(self, number: int, layout: int, *, enable: bool) -> None:
        self.store.write(record(number, layout, enable=enable))

    @rule(number=numbers, layout=layouts)
    def delete(self, number: int, layout: int) -> None:
        self.store.write((record(number, layout)[0], None))

    @rule(source=layouts)
    def move_all(self, source: int) -> None:
        """Move all keys to the other layout in one transaction."""
        held = self.store.states[-1]
        there = [number for number in range(1, 4) if record(number, source)[0] in held]
        edits = [(record(number, source)[0], None) for number in there]
        self.store.write(*edits, *(record(number, 1 - source) for number in there))

    @rule(key=marks)
    def vouch(self, key: bytes) -> None:
        self.store.write((key, b""))

    @rule(key=marks)
    def cease_to_vouch(self, key: bytes) -> None:
        self.store.write((key, None))

    @rule(is_there=st.booleans())
    def wish(self, *, is_there: bool) -> None:
        self.store.write((POLICY[0], POLICY[1] if is_there else None))

    @rule()
    def back_up(self) -> None:
        self.backup = self.store.copy()

    @rule(is_restored=st.booleans(), more=st.integers(0, 30))
    def lose_data(self, *, is_restored: bool, more: int) -> None:
        """Begin another history, empty or from the backup, which may have overtaken the one before."""
        self.store = self.backup.copy() if is_restored else Store()
        for _ in range(more):
            self.store.write((b"/elsewhere", b"%d" % self.store.revision))
        self.history += 1
        self.histories[self.history] = self.store
        self.told = dict.fromkeys(self.told, 0)
        self.resumed.clear()
        self.owed = set(self.shown)

    # What is told.

    @rule(steps=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), min_size=1, max_size=6))
    def deliver(self, steps: list[tuple[int, int]]) -> None:
        """Tell some ranges their listings, or their next events, in any order."""
        for place, count in steps:
            self.deliver_to(self.reader.ranges[place % len(self.reader.ranges)], count)
            self.ask()
            self.never_empty_by_accident()

    @rule(edits=st.lists(st.tuples(numbers, layouts, st.booleans()), max_size=6), left=st.sets(st.integers(0, 3)))
    def resume(self, edits: list[tuple[int, int, bool]], left: set[int]) -> None:
        """Let keys come and go unseen, and watch ranges again; their events are told later."""
        for number, layout, is_there in edits:
            key, value = record(number, layout)
            self.store.write((key, value if is_there else None))
        for place, which in enumerate(self.reader.ranges):
            if self.told[which] and place not in left and which not in self.refused:
                self.resumed[which] = self.store.revision
                self.reader.take_progress(which, self.told[which], self.store.revision)

    def ask(self) -> None:
        """Ask for what is awaited; of a range that is asked for as much already, nothing is asked again."""
        self.asked |= dict(self.reader.awaited())

    @rule()
    def answer(self) -> None:
        """Tell each range that is awaited its events and its progress up to there, and no other."""
        for which, revision in tuple(self.asked.items()):
            if which in self.refused or not self.told[which]:
                continue
            del self.asked[which]
            assert revision <= self.store.revision, "it was asked for in this history"
            if self.told[which] < revision:
                self.tell_up_to(which, revision)
            self.ask()
            self.never_empty_by_accident()

    def tell_up_to(self, which: Range, revision: int) -> None:
        log = [each for each in self.store.log if self.told[which] < each[0] <= revision]
        events = [each for each in log if which.holds(each[1][0])]
        self.told[which] = revision
        self.note_told(which, (key for _, (key, value) in events if value is not None), revision)
        if events:
            self.reader.take_changes(which, events, events[-1][0])
        self.reader.take_progress(which, revision)

    def deliver_to(self, which: Range, count: int) -> None:
        if which in self.refused:
            return
        if not self.told[which]:
            self.list_one(which)
            return
        events = [each for each in self.store.log if each[0] > self.told[which] and which.holds(each[1][0])][:count]
        # events of one revision come together
        events = [each for each in self.store.log if each in events or (events and each[0] == events[-1][0])]
        events = [each for each in events if which.holds(each[1][0])]
        if events:
            self.told[which] = events[-1][0]
            self.note_told(which, (key for _, (key, value) in events if value is not None), events[-1][0])
            self.reader.take_changes(which, events, events[-1][0])

    @rule(lists=st.booleans())
    def report_progress(self, *, lists: bool) -> None:
        """Tell all ranges their events, and that there are no more."""
        for which in self.reader.ranges:
            if lists and not self.told[which] and which not in self.refused:
                self.list_one(which)
                self.never_empty_by_accident()
            if which in self.refused or not self.told[which]:
                continue
            events = [each for each in self.store.log if each[0] > self.told[which] and which.holds(each[1][0])]
            self.told[which] = self.store.revision
            self.note_told(which, (key for _, (key, value) in events if value is not None), self.store.revision)
            if events:
                self.reader.take_changes(which, events, events[-1][0])
            self.reader.take_progress(which, self.store.revision)
            self.never_empty_by_accident()

    @rule(data=st.data())
    def compact(self, data: st.DataObject) -> None:
        self.told[data.draw(st.sampled_from(self.reader.ranges))] = 0

    @rule(data=st.data())
    def refuse(self, data: st.DataObject) -> None:
        which = data.draw(st.sampled_from(self.reader.ranges))
        self.refused.add(which)
        self.reader.take_refusal(which, "permission denied")

    @precondition(lambda self: self.refused)
    @rule()
    def grant(self) -> None:
        self.told |= dict.fromkeys(self.refused, 0)
        self.refused.clear()

    @rule()
    def wait_long(self) -> None:
        self.reader.settle()

    @initialize()
    def start(self) -> None:
        self.store.write(record(1, 0), (MARKS[0], b""))
        for which in self.reader.ranges:
            self.list_one(which)

    def list_one(self, which: Range) -> None:
        pairs = [(key, value) for key, value in self.store.states[-1].items() if which.holds(key)]
        self.told[which] = self.store.revision
        self.resumed.pop(which, None)
        self.asked.pop(which, None)  # whatever was asked of a listing's history before is answered by it
        self.note_told(which, (key for key, _ in pairs), self.store.revision)
        self.reader.take_listing(which, pairs, Position(self.history, self.store.revision))
        self.ask()

    def note_told(self, which: Range, keys: Iterable[bytes], revision: int) -> None:
        """Note marks that were seen, and what was told of this history."""
        keys = set(keys)
        self.marks_told |= keys & set(MARKS)
        self.owed = {each for each in self.owed if keys.isdisjoint(both(number_at(each)))}
        if which == SYNCED and self.marks_told <= self.store.states[revision].keys():
            self.owed.clear()

    # What must be so.

    @invariant()
    def never_empty_by_accident(self) -> None:
        view = self.reader.view
        is_callable_now = view.snapshot is not None and any(map(is_callable, view.snapshot.endpoints))
        if self.was_callable and not is_callable_now and not (self.refused or view.refused):
            judged = self.reader._judged
            assert judged is not None
            store = self.histories[judged.history]
            assert not store.callables(judged.revision), "a moment that never was"
            there = set(store.states[judged.revision])
            disabled = {record(number, layout)[0] for number in range(1, 4) for layout in (0, 1)} & there
            assert self.marks_told & there == self.marks_told or disabled or not self.marks_told
        self.was_callable = is_callable_now

        self.never_long_gone()
        assert self.owed <= self.shown, "dropped, and nobody has vouched for that since the data were lost"

    def never_long_gone(self) -> None:
        """An endpoint comes only if the store holds it where its range was watched again, or later."""
        view, before = self.reader.view, self.shown
        callables = filter(is_callable, view.snapshot.endpoints) if view.snapshot else ()
        self.shown = {each.address for each in callables}
        if view.source is not Source.REGISTRY or any(log.known is None for log in self.reader._logs.values()):
            return
        if any(log.known and log.known.history != self.history for log in self.reader._logs.values()):
            return
        for each in self.shown - before:
            keys = both(number_at(each))
            since = {key: next(self.resumed.get(which, 0) for which in self.told if which.holds(key)) for key in keys}
            assert any(key in state for key in keys for state in self.store.states[since[key] :]), "long gone"

    @invariant()
    def whatever_is_awaited_can_be_had(self) -> None:
        for which, revision in self.reader.awaited():
            assert revision <= self.store.revision or which in self.refused or not self.told[which]

    @invariant()
    def whatever_is_held_back_is_awaited(self) -> None:
        logs = self.reader._logs.values()
        is_followed = all(self.told.values()) and not self.refused and not self.reader.view.refused
        if is_followed and all(log.known and log.known.history == self.history for log in logs):
            assert list(self.reader.awaited()) or not any(log.held_until for log in logs)

    def teardown(self) -> None:
        """Deliver every event, with everybody vouching, and of progress what is asked for."""
        self.refused.clear()
        self.told = {which: told if which != SYNCED else 0 for which, told in self.told.items()}
        self.store.write(*((key, b"") for key in MARKS))
        for which in self.reader.ranges:
            if which in self.reader.ranges and (not self.told[which] or self.reader.view.refused):
                self.list_one(which)
        for which in self.reader.ranges:
            if self.told[which]:
                self.deliver_to(which, len(self.store.log))
            self.ask()
        for _ in range(10):
            self.answer()
        view = self.reader.view
        assert view.source is Source.REGISTRY
        assert view.snapshot is not None
        held = self.store.states[-1].items()
        there = {number for number in range(1, 4) for layout in (0, 1) if record(number, layout) in held}
        found = {number_at(each.address) for each in view.snapshot.endpoints if is_callable(each)}
        # where layouts differ about an address, the one given first is believed
        hidden = {number for number in there if record(number, 0, enable=False) in held}
        assert found == there - hidden
        assert (view.policy.timeout_seconds == 2) is (POLICY in held)
        assert not list(self.reader.awaited())
        super().teardown()


ViewMachine.TestCase.settings = settings(max_examples=examples(100), stateful_step_count=30)
TestViews = ViewMachine.TestCase


# What longer runs of the machine have found, step by step.


def begun() -> tuple[ViewMachine, Range]:
    """Give a machine whose policy is not known any further, so that whatever takes something away is held back."""
    machine = ViewMachine()
    machine.start()
    machine.put(2, 1, enable=True)
    machine.report_progress(lists=False)
    policy, first = machine.reader.ranges[:2]
    assert (policy.start, first.holds(record(2, 0)[0])) == (POLICY[0], True)
    machine.told[policy] = 0
    return machine, first


def test_a_disabled_record_that_was_held_back_takes_nothing_away_when_a_listing_has_it_no_more() -> None:
    machine, first = begun()
    machine.put(2, 0, enable=False)
    machine.report_progress(lists=False)
    machine.delete(2, 0)
    machine.told[first] = 0
    machine.teardown()
    assert machine.reader.view.callables == 2


def test_a_disabled_record_that_was_held_back_when_etcd_lost_its_data_empties_nothing() -> None:
    machine, _ = begun()
    machine.put(1, 1, enable=False)
    machine.report_progress(lists=False)
    machine.lose_data(is_restored=False, more=0)
    machine.report_progress(lists=True)
    machine.never_empty_by_accident()
    assert machine.reader.view.source is Source.STALE
    assert machine.reader.view.callables == 2


def test_data_that_were_lost_while_provider_keys_were_refused_take_nothing_away_once_they_are_readable() -> None:
    machine = ViewMachine()
    machine.start()
    machine.put(2, 0, enable=True)
    machine.report_progress(lists=False)
    providers = next(each for each in machine.reader.ranges if each.holds(record(1, 0)[0]))
    machine.refused.add(providers)
    machine.reader.take_refusal(providers, "permission denied")
    machine.lose_data(is_restored=False, more=0)
    machine.put(1, 0, enable=True)
    machine.report_progress(lists=True)
    machine.grant()
    machine.report_progress(lists=True)
    assert machine.reader.view.source is Source.STALE
    assert machine.reader.view.callables == 2

"""Several keepers at one address, in an etcd that is a dict: whatever the order, the key goes with the last of them.

Answers come late or never, requests are carried out late, news of the watch are older than answers, keys and leases
vanish, and etcd is restored to an older history. The key and the process keys are watched by themselves: of what
changed at one revision, or at several, a process may receive the one long before the other.
"""

import itertools
import json
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from grpc_etcd.layouts.index import make_layout
from grpc_etcd.registration.processes import process_key, process_prefix, registered_key
from grpc_etcd.registration.reconciler import KeyState, RegistrationReconciler
from grpc_etcd.registration.records import Claim, Held, make_claim
from grpc_etcd.registration.steps import Flush, Grant, Idle, Read, Write
from grpc_etcd.registry.endpoint import Endpoint
from testbed.examples import examples

PROCESSES = 3
which = st.integers(0, PROCESSES - 1)


def claim(weight: float = 100, *, enable: bool = True) -> Claim:
    endpoint = Endpoint(name="greeter", address="10.0.0.1:1", weight=weight, enable=enable)
    made = make_claim(make_layout("jupiter"), endpoint, "c")
    assert isinstance(made, Claim)
    return made


KEY = claim().key
DISTURBANCES = (
    "crash",
    "delete_the_key",
    "delete_the_process_keys",
    "edit_the_key",
    "lose_all_data",
    "lose_lease",
    "relist",
    "restore_a_process_key_without_a_lease",
)
STRAY = process_key(KEY, 0xFFFF)  # a process key that has lost its lease, as in a restored dump


class Heard(Enum):
    """Of which watch the next news are."""

    NEXT = auto()  # of either, as it happened
    KEY = auto()
    PROCESS_KEYS = auto()


class Happened(NamedTuple):
    """An event on its way to a process."""

    key: bytes
    held: Held | None
    revision: int


class Listing(NamedTuple):
    """A complete listing on its way to a process."""

    records: dict[bytes, Held]
    revision: int


class LeaseGone(NamedTuple):
    """The news that a lease was not renewed, on its way to a process."""

    lease: int


@dataclass(slots=True)
class Answer:
    """What etcd made of a request: `records` are what it read for a read and for a refused write."""

    revision: int
    records: dict[bytes, Held] | None = None
    is_lease_unknown: bool = False


@dataclass(eq=False)
class Process:
    """A keeper, the news that it has not learned of yet, and the request that it waits for."""

    reconciler: RegistrationReconciler = field(default_factory=RegistrationReconciler)
    pending: deque[Happened | Listing | LeaseGone] = field(default_factory=deque)
    lease: int = 0
    wants: float = 0
    is_watching: bool = False
    request: Read | Write | None = None
    answer: Answer | None = None

    def take(self, heard: Heard) -> Happened | Listing | LeaseGone:
        """Take out what responds next; what one watch tells comes in order, and nothing after a listing before it."""
        ahead = list(itertools.takewhile(lambda news: not isinstance(news, Listing), self.pending))
        of_watch = [news for news in ahead if isinstance(news, Happened) and (news.key == KEY) is (heard is Heard.KEY)]
        found = of_watch[0] if of_watch and heard is not Heard.NEXT else self.pending[0]
        self.pending.remove(found)
        return found


class SharedAddress(RuleBasedStateMachine):
    """Claim, release, crash, ask and answer in any order."""

    @initialize(count=st.integers(1, PROCESSES))
    def begin(self, count: int) -> None:
        self.store: dict[bytes, Held] = {}
        self.revision = 1
        self.leases: set[int] = set()
        self.granted = 0
        self.now = 1.0
        self.late: list[Write] = []
        self.had_late = self.had_edit = False
        self.processes = [Process() for _ in range(count)]

    def of(self, number: int) -> Process:
        return self.processes[number % len(self.processes)]

    def change(self, puts: dict[bytes, tuple[bytes, int]], deletes: Iterable[bytes]) -> None:
        deletes = [key for key in deletes if key in self.store]
        if not puts and not deletes:
            return
        self.revision += 1
        for key, (value, lease) in puts.items():
            self.store[key] = Held(value, lease, self.revision)
        for key in deletes:
            self.store.pop(key, None)
        for process in self.processes:
            if process.is_watching:
                process.pending.extend(Happened(key, self.store.get(key), self.revision) for key in (*puts, *deletes))

    # What programs do

    @rule(number=which, weight=st.sampled_from([100.0, 5.0, 7.0]))
    def claim(self, number: int, weight: float) -> None:
        process = self.of(number)
        process.reconciler.claim([claim(weight)])
        process.wants = weight
        if not process.is_watching:
            process.is_watching = True
            self.relist(number)

    @rule(number=which)
    def release(self, number: int) -> None:
        self.of(number).reconciler.release([KEY])
        self.of(number).wants = 0

    def crash(self, number: int) -> None:
        """The process is gone, and its lease has run out."""
        process = self.of(number)
        self.processes[self.processes.index(process)] = Process()
        self.run_out(process.lease)

    # What becomes of etcd

    @rule(number=which, disturb=st.sampled_from(DISTURBANCES))
    def disturb(self, number: int, disturb: str) -> None:
        """Rarely, so that there is something to be disturbed."""
        getattr(self, disturb)(number)

    def run_out(self, lease: int) -> None:
        self.leases.discard(lease)
        self.change({}, [key for key, held in self.store.items() if held.lease == lease and lease])

    def lose_lease(self, number: int) -> None:
        process = self.of(number)
        if process.lease in self.leases:
            self.run_out(process.lease)
            process.pending.append(LeaseGone(process.lease))

    def delete_the_key(self, _number: int) -> None:
        self.change({}, [KEY])

    def delete_the_process_keys(self, _number: int) -> None:
        self.change({}, [key for key in self.store if key != KEY])

    def edit_the_key(self, number: int) -> None:
        """An admin drains the address, or ends that, and keeps the lease."""
        if held := self.store.get(KEY):
            weight = json.loads(held.value)["weight"]
            self.had_edit = True
            self.change({KEY: (claim(weight, enable=bool(number)).value, held.lease)}, [])

    def restore_a_process_key_without_a_lease(self, _number: int) -> None:
        self.change({STRAY: (claim().value, 0)}, [])

    def lose_all_data(self, _number: int) -> None:
        self.store, self.revision, self.leases = {}, 1, set()
        for number, process in enumerate(self.processes):
            process.pending.append(LeaseGone(process.lease))
            if process.is_watching:
                self.relist(number)

    # What the network does

    @rule(number=which, times=st.integers(1, 6), hears=st.sampled_from([None, *Heard]))
    def go_on(self, number: int, times: int, hears: Heard | None) -> None:
        """Let whatever is next for a process happen, several times; or without any news."""
        for _ in range(times):
            process = self.of(number)
            if process.request:
                (self.answer if process.answer else self.carry_out)(number)
            elif process.pending and hears:
                self.hear(number, hears)
            else:
                self.step(number)

    def relist(self, number: int) -> None:
        if self.of(number).is_watching:
            self.of(number).pending.append(Listing(dict(self.store), self.revision))

    @rule(number=which, heard=st.sampled_from(Heard))
    def hear(self, number: int, heard: Heard) -> None:
        process = self.of(number)
        if not process.pending or process.request:
            return
        match process.take(heard):
            case Happened(key, held, revision):
                process.reconciler.seen(key, held, revision)
            case Listing(records, revision):
                process.reconciler.listed(frozenset({KEY}), records, revision)
            case LeaseGone(lease):
                process.reconciler.lease_lost(lease)

    def step(self, number: int) -> None:
        process, self.now = self.of(number), self.now + 1
        if process.request:
            return
        match process.reconciler.next_step(self.now):
            case Grant():
                self.granted += 1
                process.lease = self.granted
                self.leases.add(process.lease)
                process.reconciler.granted(process.lease)
            case Write() as write:
                process.reconciler.begun(write)
                process.request, process.answer = write, None
            case Read() as read:
                process.request, process.answer = read, None
            case Flush() as flush:
                process.reconciler.flushed(flush, self.now)
            case Idle():
                pass

    def carry_out(self, number: int) -> None:
        process = self.of(number)
        if process.request and not process.answer:
            process.answer = self.answer_to(process.request)

    def answer(self, number: int) -> None:
        process = self.of(number)
        request, answer = process.request, process.answer
        if not request or not answer:
            return
        process.request = process.answer = None
        if answer.is_lease_unknown:
            assert isinstance(request, Write)
            process.reconciler.lease_lost(request.lease)
            process.reconciler.refused(request)
        elif isinstance(request, Read):
            process.reconciler.read(request.keys, request.prefixes, answer.records or {}, answer.revision)
        elif answer.records is not None:
            process.reconciler.read(request.revisions, request.alone, answer.records, answer.revision)
        else:
            process.reconciler.wrote(request, answer.revision, self.now)

    @rule(number=which, comes_late=st.booleans())
    def give_up(self, number: int, comes_late: bool) -> None:  # noqa: FBT001 - drawn
        """The answer does not come; what was not carried out may yet be."""
        process = self.of(number)
        if isinstance(process.request, Write) and not process.answer and comes_late:
            self.late.append(process.request)
            self.had_late = True
        process.request = process.answer = None

    @precondition(lambda self: bool(getattr(self, "late", None)))
    @rule()
    def carry_out_late(self) -> None:
        self.answer_to(self.late.pop(0))

    # etcd

    def answer_to(self, request: Read | Write) -> Answer:
        if isinstance(request, Read):
            return Answer(self.revision, self.read(request.keys, request.prefixes))
        now = {key: held.revision if (held := self.store.get(key)) else 0 for key in request.revisions}
        if now != dict(request.revisions) or not all(map(self.is_alone, request.alone.items())):
            return Answer(self.revision, self.read(request.revisions, request.alone))
        puts = {key: (value, request.lease) for key, value in (*request.puts.items(), *request.announced.items())}
        puts |= {key: (left.value, left.lease) for key, left in request.handovers.items()}
        if not {lease for _, lease in puts.values()} <= self.leases:
            return Answer(self.revision, is_lease_unknown=True)
        deletes = request.deletes | request.retracted
        if KEY in deletes:
            others = {key for key, held in self.store.items() if key not in (KEY, STRAY) and key not in deletes}
            assert not others, "a key that another process registers is never deleted"
        self.change(puts, deletes)
        return Answer(self.revision)

    def is_alone(self, condition: tuple[bytes, int]) -> bool:
        prefix, lease = condition
        found = {held.lease for key, held in self.store.items() if key.startswith(prefix)}
        return found in ({lease} if lease else set(), {lease})

    def read(self, keys: Iterable[bytes], prefixes: Iterable[bytes]) -> dict[bytes, Held]:
        within = tuple(prefixes)
        return {key: held for key, held in self.store.items() if key in keys or (within and key.startswith(within))}

    # What holds

    @invariant()
    def process_keys_are_under_their_own_lease(self) -> None:
        for key, held in getattr(self, "store", {}).items():
            if registered_key(key) is not None and key != STRAY:
                assert key == process_key(KEY, held.lease)

    @invariant()
    def what_is_said_to_be_gone_is_gone(self) -> None:
        for process in getattr(self, "processes", ()):
            if process.reconciler.standing(KEY) is KeyState.GONE and KEY in self.store and not self.had_late:
                assert self.store[KEY].lease not in process.reconciler.leases

    def teardown(self) -> None:
        for write in getattr(self, "late", []):
            self.answer_to(write)
        for _ in range(100):
            for number in range(len(getattr(self, "processes", []))):
                self.carry_out(number)
                self.answer(number)
                while self.of(number).pending:
                    self.hear(number, Heard.NEXT)
                self.step(number)
        wanting = {each.lease: each.wants for each in self.processes if each.wants}
        assert (KEY in self.store) == bool(wanting)
        process_keys = {key for key in self.store if key not in (KEY, STRAY)}
        assert process_keys == {process_key(KEY, lease) for lease in wanting}
        if wanting:
            assert self.store[KEY].lease in wanting
            wanted = [claim(wanting[self.store[KEY].lease], enable=enable).value for enable in (True, False)]
            assert self.store[KEY].value in wanted[: 2 if self.had_edit else 1]
        there = {KeyState.REGISTERED, KeyState.SHARED} | ({KeyState.TAKEN} if len(set(wanting.values())) > 1 else set())
        for process in getattr(self, "processes", []):
            assert process.reconciler.standing(KEY) in (there if process.wants else {KeyState.GONE})


TestSharedAddress = SharedAddress.TestCase
TestSharedAddress.settings = settings(max_examples=examples(150), stateful_step_count=60)


def test_process_keys_of_keys_with_and_without_a_slash_are_told_apart() -> None:
    for key in (b"/a/b", b"a/b", b"grpc:greeter:v1:m/10.0.0.1:1"):
        assert registered_key(process_key(key, 7)) == key
    assert process_prefix(b"/a") != process_prefix(b"a")
    assert registered_key(b"/jupiter/greeter/providers/grpc://10.0.0.1:1") is None

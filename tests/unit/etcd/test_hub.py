"""The hub's core against a model of etcd that loses connections, data and patience: every range ends up synced."""

import itertools
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from grpc_etcd.etcd import errors, model
from grpc_etcd.etcd.hub import commands
from grpc_etcd.etcd.hub.core import Core
from grpc_etcd.etcd.hub.watch import Stage, Watch
from grpc_etcd.etcd.messages import message
from grpc_etcd.etcd.model import Deleted, Disconnected, Progress, WatchEvents, WatchSnapshot, WatchUpdate

PREFIXES = (b"a/", b"b/", b"c/")
KEYS = tuple(prefix + name for prefix in PREFIXES for name in (b"1", b"2"))
LISTINGS = 2


@dataclass
class Store:
    """etcd's key space with its whole history; a copy of it is a backup."""

    revision: int = 1
    compacted: int = 0
    log: list[tuple[int, bytes, bytes | None]] = field(default_factory=list)

    def write(self, key: bytes, value: bytes | None) -> None:
        if value is None and key not in self.at(self.revision):
            return
        self.revision += 1
        self.log.append((self.revision, key, value))

    def at(self, revision: int) -> dict[bytes, Any]:
        held: dict[bytes, Any] = {}
        for number, key, value in self.log:
            if number > revision:
                break
            if value is None:
                held.pop(key, None)
            else:
                held[key] = message("KeyValue")(key=key, value=value, mod_revision=number, create_revision=1, version=1)
        return held

    def copy(self) -> "Store":
        return Store(self.revision, self.compacted, list(self.log))


class Replies:
    """etcd's two queues of replies on one stream, which overtake one another: what it does itself, and what happens.

    Events of a watch of whose creation nothing was sent yet wait for that; an answer about progress does not.
    """

    def __init__(self) -> None:
        self._own: deque[Any] = deque()
        self._happened: deque[Any] = deque()
        self._early: dict[int, list[Any]] = {}
        self._created: set[int] = set()
        self._sent: deque[Any] = deque()

    def __len__(self) -> int:
        return len(self._own) + len(self._happened) + len(self._sent)

    def clear(self) -> None:
        self.__init__()  # type: ignore[misc]  # nothing inherits from this

    def under_way(self) -> list[Any]:
        return [*self._own, *self._happened, *self._sent]

    def append(self, reply: Any) -> None:
        is_own = reply.created or (reply.canceled and not reply.compact_revision)
        (self._own if is_own else self._happened).append(reply)

    def next(self, *, own_first: bool) -> Any | None:
        """Send what is next; None where that has to wait."""
        if not self._sent and self._own and (own_first or not self._happened):
            reply = self._own.popleft()
            self._sent += [reply, *self._early.pop(reply.watch_id, ())]
            self._created.add(reply.watch_id)
        elif not self._sent and self._happened:
            reply = self._happened.popleft()
            if reply.watch_id >= 0 and reply.watch_id not in self._created:
                self._early.setdefault(reply.watch_id, []).append(reply)
            else:
                self._sent.append(reply)
        return self._sent.popleft() if self._sent else None


class World:
    """A driver whose every step is the test's choice, etcd, and the consumers."""

    def __init__(self) -> None:
        self.now = 0.0
        self.core = Core(lambda: self.now, lambda: 1.0, 5.0, LISTINGS)
        self.store = Store()
        self.backup = self.store.copy()
        self.denied: set[bytes] = set()
        self.values = itertools.count()
        self.asks: deque[commands.Ask] = deque()
        self.number = 0
        self.is_open = False
        self.requests: deque[Any] = deque()
        self.watches: dict[int, tuple[bytes, bytes, int]] = {}
        self.begun: dict[int, int] = {}
        self.behind: set[int] = set()  # watches that are yet to catch up
        self.ended: set[int] = set()  # watches that were compacted: etcd keeps them until they are cancelled
        self.awaited: dict[Watch, int] = {}
        self.read_ahead: dict[int, Any] = {}
        self.was_restored = False
        self.replies = Replies()
        self.consumers: dict[Watch, list[WatchUpdate]] = {}
        self.failing: set[Watch] = set()

    # etcd.

    def may_read(self, key: bytes) -> bool:
        return not any(key.startswith(prefix) for prefix in self.denied)

    def header(self) -> Any:
        return message("ResponseHeader")(revision=self.store.revision, cluster_id=7)

    def serve_call(self, request: Any) -> Any:
        if request.DESCRIPTOR.name != "TxnRequest":
            return self.read(request)
        pages = [self.read(operation.request_range) for operation in request.success]
        responses = [message("ResponseOp")(response_range=page) for page in pages]
        return message("TxnResponse")(header=self.header(), succeeded=True, responses=responses)

    def read(self, request: Any) -> Any:
        if not self.may_read(request.key):
            raise errors.PermissionDenied("etcdserver: permission denied")
        if request.revision > self.store.revision:
            raise errors.FutureRevision("etcdserver: mvcc: required revision is a future revision")
        if request.revision and request.revision < self.store.compacted:
            raise errors.Compacted("etcdserver: mvcc: required revision has been compacted")
        held = self.store.at(request.revision or self.store.revision)
        keys = [key for key in sorted(held) if within(key, request.key, request.range_end)]
        return message("RangeResponse")(header=self.header(), kvs=[held[key] for key in keys])

    def write(self, key: bytes, value: bytes | None) -> None:
        before = self.store.revision
        self.store.write(key, value)
        if self.store.revision > before:
            self.send_events()

    def send_events(self) -> None:
        for watch_id, (key, end, start) in self.watches.items():
            if watch_id in self.behind:
                continue
            events = [event for event in self.store.log if event[0] >= start and within(event[1], key, end)]
            if events:
                self.reply(watch_id=watch_id, events=[make_event(*event) for event in events])
            self.watches[watch_id] = (key, end, max(start, self.store.revision + 1))

    def catch_up(self) -> None:
        """Do what etcd does every 100 ms for watches that began in the past."""
        self.behind.clear()
        self.send_events()

    def reply(self, **fields: Any) -> None:
        self.replies.append(message("WatchResponse")(header=self.header(), **fields))

    def serve(self) -> None:
        """Take the requests on the stream."""
        while self.is_open and self.requests:
            request = self.requests.popleft()
            if request.HasField("create_request"):
                self.create(request.create_request)
            elif request.HasField("cancel_request"):
                self.begun.pop(request.cancel_request.watch_id, None)
                self.behind.discard(request.cancel_request.watch_id)
                is_ended = request.cancel_request.watch_id in self.ended
                self.ended.discard(request.cancel_request.watch_id)
                if self.watches.pop(request.cancel_request.watch_id, None) or is_ended:
                    self.reply(watch_id=request.cancel_request.watch_id, canceled=True)
            elif self.says_progress():
                self.reply(watch_id=-1)

    def says_progress(self) -> bool:
        """Tell whether etcd answers: not while a watch begins in the future, catches up, or is compacted away."""
        may = self.watches and not self.behind and not self.ended
        return bool(may) and max(self.begun.values()) <= self.store.revision

    def create(self, wanted: Any) -> None:
        if not self.may_read(wanted.key):
            self.reply(watch_id=-1, created=True, canceled=True, cancel_reason="etcdserver: permission denied")
            return
        self.reply(watch_id=wanted.watch_id, created=True)
        if wanted.start_revision < self.store.compacted:
            self.reply(watch_id=wanted.watch_id, canceled=True, compact_revision=self.store.compacted)
            self.ended.add(wanted.watch_id)
            return
        self.watches[wanted.watch_id] = (wanted.key, wanted.range_end, wanted.start_revision)
        self.begun[wanted.watch_id] = wanted.start_revision
        if wanted.start_revision <= self.store.revision:
            self.behind.add(wanted.watch_id)

    # The driver.

    def pump(self) -> None:
        while due := self.core.advance(self.now):
            for command in due:
                self.carry_out(command)
        self.serve()

    def carry_out(self, command: commands.Command) -> None:
        match command:
            case commands.Ask():
                self.asks.append(command)
            case commands.Open(number):
                self.number, self.is_open = number, True
            case commands.Write(request):
                self.requests.append(request)
            case commands.HangUp():
                self.drop_stream()
            case commands.Deliver(watch, news):
                self.tell(watch, news)

    def tell(self, watch: Watch, news: WatchUpdate) -> None:
        assert not watch.is_closed or watch.stage is Stage.CLOSED
        if watch.is_closed:
            return
        if watch in self.failing:
            self.failing.discard(watch)
            self.core.fault(watch, self.now)
        else:
            self.consumers[watch].append(news)
            if not self.was_restored:
                self.check_told(watch)

    def check_told(self, watch: Watch) -> None:
        """What a consumer has been told is what etcd held at the revision that it was notified of."""
        told = [news for news in self.consumers[watch] if isinstance(news, WatchSnapshot | WatchEvents | Progress)]
        if told:
            assert view(told) == self.held(watch, told[-1].revision), (watch, told)

    def held(self, watch: Watch, revision: int) -> dict[bytes, tuple[bytes, int]]:
        found = {key: (kv.value, kv.mod_revision) for key, kv in self.store.at(revision).items()}
        return {key: value for key, value in found.items() if within(key, watch.key, watch.end)}

    def drop_stream(self) -> None:
        self.is_open = False
        self.watches.clear()
        self.begun.clear()
        self.behind.clear()
        self.ended.clear()
        self.requests.clear()
        self.replies.clear()

    def answer(self, failure: errors.EtcdError | None = None) -> None:
        ask = self.asks.popleft()
        early = self.read_ahead.pop(id(ask), None)
        try:
            if failure:
                raise failure
            if isinstance(early, errors.EtcdError):
                raise early
            ask.steps.send(early or self.call(ask))
        except StopIteration as stop:
            ask.answered(stop.value, self.now)
        except errors.EtcdError as error:
            ask.failed(error, self.now)

    def call(self, ask: commands.Ask) -> Any:
        call = next(ask.steps)
        return call.read(self.serve_call(call.request))

    # What a test may choose.

    def do(self, step: tuple[str, int]) -> None:
        name, number = step
        getattr(self, f"do_{name}")(number)
        self.pump()

    def do_all(self, steps: Iterable[tuple[str, int]]) -> None:
        for each in steps:
            self.do(each)

    def do_put(self, number: int) -> None:
        self.write(KEYS[number % len(KEYS)], b"%d" % next(self.values))

    def do_delete(self, number: int) -> None:
        self.write(KEYS[number % len(KEYS)], None)

    def do_follow(self, number: int) -> None:
        prefix = PREFIXES[number % len(PREFIXES)]
        watch = self.core.follow(prefix, model.prefix_end(prefix), lambda _: None)
        self.consumers[watch] = []
        self.core.add(watch)

    def do_await(self, number: int) -> None:
        if self.consumers:
            watch = tuple(self.consumers)[number % len(self.consumers)]
            self.awaited[watch] = self.store.revision
            self.core.await_revision(watch, self.store.revision, self.now)

    def do_suspend(self, _: int) -> None:
        self.core.suspend()
        self.pump()
        assert not self.is_open
        self.core.resume()

    def do_close(self, number: int) -> None:
        if self.consumers:
            watch = tuple(self.consumers)[number % len(self.consumers)]
            watch.is_closed = True
            self.core.close(watch)
            del self.consumers[watch]

    def do_fail(self, number: int) -> None:
        if self.consumers:
            self.failing.add(tuple(self.consumers)[number % len(self.consumers)])

    def do_answer(self, number: int) -> None:
        for _ in range(min(number, len(self.asks))):
            self.answer()
            self.pump()

    def do_read(self, number: int) -> None:
        """Let etcd serve a call whose answer stays under way."""
        if number < len(self.asks) and id(self.asks[number]) not in self.read_ahead:
            try:
                early = self.call(self.asks[number])
            except errors.EtcdError as error:
                early = error
            self.read_ahead[id(self.asks[number])] = early

    def do_refuse(self, _: int) -> None:
        if self.asks:
            self.answer(errors.Unavailable("Socket closed"))

    def do_receive(self, number: int) -> None:
        self.receive(number, own_first=False)

    def do_receive_own(self, number: int) -> None:
        self.receive(number, own_first=True)

    def receive(self, number: int, *, own_first: bool) -> None:
        for _ in range(min(number, len(self.replies))):
            reply = self.replies.next(own_first=own_first)
            if reply is not None:
                self.core.received(self.number, reply, self.now)
                self.pump()

    def do_break(self, _: int) -> None:
        if self.is_open:
            self.drop_stream()
            self.core.broken(self.number, errors.Unavailable("Socket closed"), self.now)

    def do_wait(self, number: int) -> None:
        self.go_on_to(self.now + number)

    def do_linger(self, number: int) -> None:
        """Wait for less than it takes etcd to let watches catch up."""
        self.now += number * 0.06

    def go_on_to(self, now: float) -> None:
        self.now = now
        self.catch_up()

    def do_deny(self, number: int) -> None:
        self.denied.add(PREFIXES[number % len(PREFIXES)])

    def do_grant(self, number: int) -> None:
        self.denied.discard(PREFIXES[number % len(PREFIXES)])

    def do_compact(self, _: int) -> None:
        self.store.compacted = self.store.revision

    def do_back_up(self, _: int) -> None:
        self.backup = self.store.copy()

    def do_restore(self, _: int) -> None:
        self.store = self.backup.copy()
        self.was_restored = True
        self.do_break(0)

    def settle(self) -> None:
        """Let all that is under way come to its end, with all faults gone."""
        self.denied.clear()
        self.failing.clear()
        for _ in range(200):
            self.pump()
            self.do_answer(len(self.asks))
            self.do_receive(len(self.replies))
            if not (self.asks or self.replies or self.requests):
                self.go_on_to(max(self.now, min(self.core.wake_at(), self.now + 40)))


def within(key: bytes, start: bytes, end: bytes) -> bool:
    return start <= key < end if end else key == start


def make_event(revision: int, key: bytes, value: bytes | None) -> Any:
    kv = message("KeyValue")(key=key, value=value or b"", mod_revision=revision)
    if value is None:
        return message("Event")(type=1, kv=kv)
    kv.create_revision = kv.version = 1
    return message("Event")(kv=kv)


def view(told: Sequence[WatchUpdate]) -> dict[bytes, tuple[bytes, int]]:
    """What a consumer that obeys the news holds; each event is told once, in order."""
    held: dict[bytes, tuple[bytes, int]] = {}
    revision = 0
    for news in told:
        match news:
            case WatchSnapshot(records=records):
                held = {record.key: (record.value, record.mod_revision) for record in records}
                revision = news.revision
            case WatchEvents(events=events):
                for event in events:
                    assert event.revision > revision
                    if isinstance(event, Deleted):
                        held.pop(event.key, None)
                    else:
                        held[event.key] = (event.record.value, event.record.mod_revision)
                revision = news.revision
            case Progress():
                assert news.revision >= revision
                revision = news.revision
    return held


def step(name: str, most: int = 5) -> st.SearchStrategy[tuple[str, int]]:
    return st.tuples(st.just(name), st.integers(0, most))


ordinary = st.one_of(
    step("put"), step("put"), step("delete"), step("follow"), step("close"), step("answer"), step("answer"),
    step("receive"), step("receive"), step("break"), step("wait", 12), step("refuse"), step("fail"),
    step("deny"), step("grant"), step("compact"), step("await"), step("suspend"), step("receive_own"), step("read"),
    step("linger"),
)  # fmt: skip


def check(world: World) -> None:
    world.settle()
    for watch, told in world.consumers.items():
        assert view(told) == world.held(watch, world.store.revision), (watch, told)
        assert watch.state.connected
    assert world.core.state.connected or not world.consumers
    assert len(world.watches) == len(world.consumers), "etcd keeps no watch that nobody follows"
    assert not world.ended, "nor one that has been compacted away"


@given(st.lists(ordinary, max_size=60))
def test_whatever_happens_every_range_ends_up_in_step(steps: list[tuple[str, int]]) -> None:
    world = World()
    world.do_all(steps)
    check(world)
    assert world.core.history == 0 or any(name == "compact" for name, _ in steps)


# A consumer that fails at news forgets what it has seen: with news of progress ("await") no proof at all may be left.
readable = ordinary.filter(lambda step: step[0] not in ("deny", "close", "await"))


@given(st.lists(st.one_of(ordinary, step("back_up")), max_size=40), st.lists(readable, max_size=40))
def test_a_store_that_lost_a_record_that_was_seen_is_noticed_and_followed(
    before: list[tuple[str, int]], after: list[tuple[str, int]]
) -> None:
    world = World()
    world.do_all(before)
    world.do(("follow", 0))
    world.settle()
    world.do(("put", 0))
    world.settle()
    world.do_all([("restore", 0), *after])
    check(world)
    assert world.core.history


def test_a_listing_that_was_under_way_when_the_history_changed_is_not_believed() -> None:
    world = World()
    world.do_all([("put", 0), ("put", 2), ("follow", 0), ("answer", 1), ("receive", 9), ("answer", 9)])
    world.do(("follow", 1))
    world.do(("restore", 0))  # an empty store
    world.do(("follow", 2))
    check(world)
    assert world.core.history == 1
    last = [[news for news in told if isinstance(news, WatchSnapshot)][-1] for told in world.consumers.values()]
    assert {listed.history for listed in last} == {1}


@given(st.lists(readable.filter(lambda step: step[0] not in ("compact", "fail")), max_size=30))
def test_a_store_that_lost_what_only_a_listing_has_seen_is_noticed_too(after: list[tuple[str, int]]) -> None:
    world = World()
    world.do_all([("put", 2), ("put", 0), ("follow", 0), ("answer", 9)])
    assert not any(watch.is_proven for watch in world.consumers), "the stream has not answered yet"
    world.do_all([("restore", 0), ("put", 1), ("put", 2), ("put", 2), *after])  # it has overtaken what was seen
    check(world)
    assert world.core.history


@given(st.lists(ordinary, max_size=30))
def test_an_awaited_range_is_soon_known_so_far_however_quiet_it_is(steps: list[tuple[str, int]]) -> None:
    world = World()
    for prefix in PREFIXES:
        world.do_follow(PREFIXES.index(prefix))
    world.do_all(steps)
    world.settle()
    world.do_put(0)
    world.pump()
    for watch in world.consumers:
        world.core.await_revision(watch, world.store.revision, world.now)
    world.do_receive(len(world.replies))
    for _ in range(40):
        world.pump()
        world.do_answer(len(world.asks))
        world.do_receive(len(world.replies))
        if not (world.asks or world.replies or world.requests):
            world.go_on_to(max(world.now, min(world.core.wake_at(), world.now + 0.1)))
    for watch, told in world.consumers.items():
        assert watch.revision >= world.store.revision
        last = told[-1]
        assert not isinstance(last, Disconnected)
        assert last.revision >= world.store.revision


def test_an_answer_that_comes_late_counts_for_no_watch_that_is_newer_than_its_request() -> None:
    world = following(1)
    world.pump()
    world.do_all([("answer", 9), ("put", 0), ("receive", 9), ("put", 4), ("await", 0)])
    assert len(world.replies) == 1, "the request is answered, and the answer is under way"
    world.do_all([("follow", 1), ("read", 0), ("put", 2), ("linger", 1), ("answer", 1)])
    assert len(world.replies) == 3, "asked once more it has answered; then it created a watch, which is to catch up"
    world.do_all([("receive", 1), ("receive_own", 1), ("await", 1), ("receive", 1)])
    check(world)


def test_a_watch_that_begins_beside_a_request_for_progress_keeps_etcd_from_no_answer() -> None:
    world = following(1)
    world.pump()
    world.do_all([("answer", 9), ("put", 0), ("receive", 9), ("put", 4), ("wait", 6)])
    world.behind.update(world.watches)  # it was slow, so etcd will not say at once how far it is
    world.do_all([("answer", 1), ("follow", 1), ("answer", 1)])
    stream = world.number
    for _ in range(40):
        world.receive(len(world.replies), own_first=True)
        world.go_on_to(world.now + 1.0)
        world.pump()
        world.do_answer(len(world.asks))
    assert world.number == stream, "nothing was wrong with it"
    check(world)


def test_a_stream_without_a_watch_owes_no_answer() -> None:
    world = following(1)
    world.pump()
    world.do_all([("answer", 9), ("put", 0), ("receive", 9), ("put", 4), ("wait", 6)])
    world.behind.update(world.watches)
    world.do_answer(1)
    (watch,) = world.consumers
    for _ in range(8):  # the pauses grow
        world.core.fault(watch, world.now)
        world.pump()
    world.receive(len(world.replies), own_first=True)
    for _ in range(14):
        world.go_on_to(world.now + 1.0)
        world.pump()
    assert not world.watches, "the pause lasts on"
    assert world.is_open, "nothing was wrong with the stream"
    check(world)


def following(count: int) -> World:
    """Make a world in which so many ranges are followed, and all is well."""
    world = World()
    for number in range(count):
        world.do_follow(number)
    world.settle()
    return world


def quick(world: World, seconds: float) -> None:
    """Let time pass in steps of etcd's catching up, everybody answering at once."""
    end = world.now + seconds
    while world.now < end:
        world.pump()
        while world.asks or world.replies:
            world.do_answer(len(world.asks))
            world.do_receive(len(world.replies))
        world.now += 0.01
        world.pump()
        world.go_on_to(world.now + 0.09)


def test_who_follows_a_range_that_is_watched_again_learns_how_far_etcd_was_by_then() -> None:
    world = following(1)
    world.do_all([("break", 0), ("put", 0), ("delete", 0)])
    world.settle()
    world.do_break(0)
    world.settle()
    told = [news for each in world.consumers.values() for news in each if isinstance(news, Progress) and news.store]
    assert [(news.store - news.revision) for news in told] == [2]
    assert told[0].store == world.store.revision


def test_a_deletion_that_was_compacted_away_is_no_other_history_where_the_newest_record_is_still_there() -> None:
    world = following(2)
    world.do_all([("put", 2), ("put", 0), ("put", 1), ("receive", 9), ("delete", 1), ("receive", 9), ("break", 0)])
    world.do_all([("delete", 2), ("compact", 0)])  # missed
    check(world)
    assert world.core.history == 0


def test_a_deletion_that_was_compacted_away_proves_nothing_where_the_newest_record_is_another() -> None:
    world = following(2)
    world.do_all([("put", 2), ("put", 0), ("put", 1), ("receive", 9), ("delete", 1), ("receive", 9), ("break", 0)])
    world.do_all([("put", 0), ("compact", 0)])
    check(world)
    assert world.core.history == 1


def test_a_watch_that_was_compacted_away_keeps_etcd_from_no_answer() -> None:
    world = following(2)
    world.do_all([("put", 0), ("put", 0), ("receive", 9), ("put", 4), ("compact", 0), ("break", 0)])
    quick(world, 1.0)
    quiet, stream = tuple(world.consumers)[1], world.number
    assert any(isinstance(news, model.Disconnected) for news in world.consumers[quiet]), (
        "it was behind, and is listed again"
    )
    world.do_put(0)
    world.core.await_revision(quiet, world.store.revision, world.now)
    quick(world, 1.0)
    assert quiet.revision >= world.store.revision
    assert world.number == stream
    check(world)


def test_who_awaits_a_range_is_asked_for_soon_however_often_etcd_has_said_nothing() -> None:
    world = following(2)
    for turn in range(16):  # somebody is always waiting, and etcd is slow at first each time
        world.do_put(4)
        world.behind.update(world.watches)
        watch = tuple(world.consumers)[turn % 2]
        world.core.await_revision(watch, world.store.revision, world.now)
        begun = world.now
        world.do_receive(len(world.replies))  # the answer to who waited before
        world.do_linger(1)
        world.pump()
        while not any(reply.watch_id < 0 for reply in world.replies.under_way()):
            world.do_receive(len(world.replies))
            world.go_on_to(world.now + 0.1)
            world.pump()
            assert world.now < begun + 2.5, f"turn {turn}"
    check(world)


def test_who_awaited_a_range_when_etcd_froze_is_not_kept_waiting_when_it_is_back() -> None:
    world = following(2)
    world.do_all([("put", 0), ("receive", 9), ("put", 0), ("receive", 9)])
    world.core.await_revision(tuple(world.consumers)[1], world.store.revision, world.now)
    stream = world.number
    while world.number == stream:  # until it is given up as stuck, nothing is served
        world.requests.clear()
        world.now += 0.1
        world.pump()
    quick(world, 2.0)
    assert world.number == stream + 2, "hung up and opened again, and not stuck again"  # each of them counts
    assert all(watch.revision >= world.store.revision for watch in world.consumers)
    check(world)


def test_who_asks_for_keys_that_cannot_be_read_is_told_of_none() -> None:
    """A first call waits for the names that are like its own."""
    world, told = World(), list[Sequence[bytes]]()
    world.core.ask_keys(b"/jupiter/gr", 5, told.append)
    (ask,) = (command for command in world.core.advance(world.now) if isinstance(command, commands.Ask))
    ask.failed(errors.PermissionDenied("permission denied"), world.now)
    assert told == [()]

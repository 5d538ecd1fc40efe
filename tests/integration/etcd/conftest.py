"""One contract suite for both drivers: every test that takes `opened` runs with the client for threads and for asyncio.

The asyncio client runs in an event loop of its own in a thread; `Client` gives both the same blocking face.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import pytest

from grpc_etcd.etcd import (
    DeadlineExceeded,
    Deleted,
    Disconnected,
    Etcd,
    LeaseId,
    Progress,
    State,
    Unavailable,
    WatchEvents,
    WatchHub,
    WatchSnapshot,
    WatchUpdate,
    aio,
)
from grpc_etcd.etcd.aio.hub import WatchHub as AioWatchHub
from grpc_etcd.etcd.aio.streams import KeepAlive
from testbed.conditions import Condition, wait_until

WAIT_SECONDS = 60.0
N = TypeVar("N", WatchSnapshot, WatchEvents, Disconnected, Progress)
T = TypeVar("T")


class Follower:
    """Collects the news of a list-watch in the background."""

    def __init__(self, watch: Any) -> None:
        self.watch = watch
        self.news: list[WatchUpdate] = []

    @property
    def state(self) -> State:
        state: State = self.watch.state
        return state

    def events(self) -> list[tuple[bytes, bytes | None, int]]:
        """Every event so far: key, value (None: deleted), revision."""
        changed = [each for each in tuple(self.news) if isinstance(each, WatchEvents)]
        return [
            (event.key, None if isinstance(event, Deleted) else event.record.value, event.revision)
            for change in changed
            for event in change.events
        ]

    def of(self, kind: type[N]) -> list[N]:
        return [each for each in tuple(self.news) if isinstance(each, kind)]

    def view(self) -> dict[bytes, bytes]:
        """What a consumer that obeys the news holds now."""
        held: dict[bytes, bytes] = {}
        for each in tuple(self.news):
            if isinstance(each, WatchSnapshot):
                held = {record.key: record.value for record in each.records}
            elif isinstance(each, WatchEvents):
                for event in each.events:
                    if isinstance(event, Deleted):
                        held.pop(event.key, None)
                    else:
                        held[event.key] = event.record.value
        return held

    def wait(self, condition: Condition[object], what: str, seconds: float = WAIT_SECONDS) -> None:
        try:
            wait_until(condition, what, seconds)
        except TimeoutError as error:
            error.add_note(f"now: {self.state}, news so far: {self.news[-3:]}")
            raise

    def wait_listed(self, times: int = 1) -> None:
        self.wait(lambda: len(self.of(WatchSnapshot)) >= times, f"{times} listings")

    def wait_events(self, count: int) -> None:
        self.wait(lambda: len(self.events()) >= count, f"{count} events")

    def wait_lost(self, kind: type[Exception] = Exception, seconds: float = WAIT_SECONDS) -> Disconnected:
        self.wait(
            lambda: [lost for lost in self.of(Disconnected) if isinstance(lost.error, kind)], f"Lost {kind}", seconds
        )
        return next(lost for lost in self.of(Disconnected) if isinstance(lost.error, kind))

    def wait_connected(self, seconds: float = WAIT_SECONDS) -> None:
        self.wait(lambda: self.state.connected, "connected", seconds)


class Hub:
    """The blocking face of a watch hub of either kind; each subscription becomes a follower."""

    def __init__(self, hub: WatchHub | AioWatchHub, run: Callable[[Callable[[], Any]], Any]) -> None:
        self.hub, self._run = hub, run

    @property
    def state(self) -> State:
        return self.hub.state

    def follow(self, prefix: bytes, on_update: Callable[[WatchUpdate], None] | None = None) -> Follower:
        return self._follow(lambda note: self.hub.follow(prefix, note), on_update)

    def follow_key(self, key: bytes) -> Follower:
        return self._follow(lambda note: self.hub.follow_key(key, note), None)

    def unfollow(self, follower: Follower) -> None:
        self._run(follower.watch.close)

    def await_revision(self, follower: Follower, revision: int) -> None:
        self._run(lambda: follower.watch.await_revision(revision))

    def _follow(self, subscribe: Callable[[Any], Any], on_update: Callable[[WatchUpdate], None] | None) -> Follower:
        follower = Follower(None)

        def note(news: WatchUpdate) -> None:
            follower.news.append(news)
            if on_update:
                on_update(news)

        follower.watch = self._run(lambda: subscribe(note))
        return follower


class Client(Etcd):
    """The blocking client, with a follower and a hub; an AioClient stands in for one."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._threads: list[threading.Thread] = []

    def follow(self, *prefixes: bytes, **named: Any) -> Follower:
        follower = Follower(self.list_watch(*prefixes, **named))
        thread = threading.Thread(target=lambda: follower.news.extend(follower.watch))
        thread.start()
        self._threads.append(thread)
        return follower

    def unfollow(self, follower: Follower) -> None:
        follower.watch.close()

    def hub(self, **named: Any) -> Hub:
        return Hub(self.watch_hub(**named), lambda work: work())

    def close(self) -> None:
        super().close()
        for thread in self._threads:
            thread.join(WAIT_SECONDS)
            assert not thread.is_alive()


class AioClient:
    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._tasks: list[asyncio.Task[None]] = []
        self._etcd = self._run(self._open(*arguments, **named))

    async def _open(self, *arguments: Any, **named: Any) -> aio.Etcd:
        return aio.Etcd(*arguments, **named)

    def _run(self, work: Coroutine[object, object, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(WAIT_SECONDS)

    def __getattr__(self, name: str) -> Any:
        if name == "keep_alive":
            return self._keep_alive
        return lambda *arguments, **named: self._run(getattr(self._etcd, name)(*arguments, **named))

    def _keep_alive(self, *arguments: Any, **named: Any) -> Any:
        return AioKeepAlive(self._loop, self._etcd.keep_alive(*arguments, **named))

    def follow(self, *prefixes: bytes, **named: Any) -> Follower:
        return self._run(self._follow(*prefixes, **named))

    async def _follow(self, *prefixes: bytes, **named: Any) -> Follower:
        follower = Follower(self._etcd.list_watch(*prefixes, **named))

        async def collect() -> None:
            async for news in follower.watch:
                follower.news.append(news)

        self._tasks.append(asyncio.create_task(collect()))
        return follower

    def unfollow(self, follower: Follower) -> None:
        self._run(follower.watch.close())

    def hub(self, **named: Any) -> Hub:
        async def run(work: Callable[[], Any]) -> Any:
            return work()

        return Hub(self._etcd.watch_hub(**named), lambda work: self._run(run(work)))

    async def _close(self) -> None:
        await self._etcd.close()
        await asyncio.gather(*self._tasks)
        # grpcio's own tasks of ended calls may need some turns of the loop, or what the core takes to end them.
        end = self._loop.time() + WAIT_SECONDS / 2
        while (left := asyncio.all_tasks() - {asyncio.current_task()}) and self._loop.time() < end:
            await asyncio.wait(left, timeout=0.1)
        assert not left, left

    def close(self) -> None:
        try:
            self._run(self._close())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


class AioKeepAlive:
    def __init__(self, loop: asyncio.AbstractEventLoop, keeper: KeepAlive) -> None:
        self._loop = loop
        self._keeper = keeper

    def __len__(self) -> int:
        return len(self._keeper)

    @property
    def state(self) -> State:
        return self._keeper.state

    def add(self, *arguments: Any, **named: Any) -> None:
        self._call(lambda: self._keeper.add(*arguments, **named))

    def remove(self, lease_id: LeaseId) -> None:
        self._call(lambda: self._keeper.remove(lease_id))

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._keeper.close(), self._loop).result(WAIT_SECONDS)

    def _call(self, function: Callable[[], None]) -> None:
        async def run() -> None:
            function()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(WAIT_SECONDS)


def wait_renewed(client: Client | Etcd, lease: int) -> None:
    """Wait until a lease that lives now has been renewed from now on; a call may fail while a member is away."""
    seen: list[int] = []

    def has_risen() -> bool:
        with contextlib.suppress(Unavailable, DeadlineExceeded):
            found = client.time_to_live(lease)
            assert found is not None, "the lease has run out"
            seen.append(found.remaining_seconds)
        return bool(seen) and seen[-1] > min(seen)

    wait_until(has_risen, "the lease is renewed")


Opened = Callable[..., Client]


@pytest.fixture(params=[Client, AioClient], ids=["threads", "asyncio"])
def opened(request: pytest.FixtureRequest) -> Iterator[Opened]:
    """Open clients of one kind; all are closed at the end, and leave neither thread nor task behind."""
    with contextlib.ExitStack() as stack:

        def open_client(*arguments: Any, **named: Any) -> Client:
            client: Client = request.param(*arguments, **named)
            stack.callback(client.close)
            return client

        yield open_client


@pytest.fixture
def closing() -> Iterator[contextlib.ExitStack]:
    """Close what a test opens by itself."""
    with contextlib.ExitStack() as stack:
        yield stack

"""The keeper's hands: one daemon thread with the clock, the lease, the watch and etcd.

All state is behind one lock, which is never held during a call to etcd. News of the watch is applied between steps
only, so that what a write did and what the watch then says of it come in this order. A step that fails is decided anew
after a pause, for ever: a registration that gives up is the fault that this package exists to end.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, assert_never

from grpc_etcd.etcd import (
    Changed,
    Compare,
    EtcdError,
    LeaseId,
    LeaseNotFound,
    Listed,
    Listing,
    Lost,
    News,
    Op,
    Put,
    Record,
    TransactionResult,
    compare,
    ops,
)
from grpc_etcd.registering.claims import Claim, Held
from grpc_etcd.registering.keeper import Grant, Keeper, Rest, Step, Touch, Write
from grpc_etcd.xds.plane import this_process

_LOG = logging.getLogger("grpc_etcd")

# Arbitrary: soon enough not to be noticed after a blip, seldom enough for a fleet and an etcd that is away.
FIRST_RETRY_SECONDS = 0.2
LAST_RETRY_SECONDS = 5.0
FORK_SECONDS = 1.0


class WritableEtcd(Protocol):
    """What is needed of an etcd client to register."""

    def list_watch(self, *prefixes: bytes) -> Any:
        """Give an iterator of news that another thread may close."""

    def keep_alive(self, on_lost: Callable[[LeaseId], object], *, streams: int = 1) -> Any:
        """Give an object that keeps leases alive."""

    def lease(self, ttl_seconds: int) -> LeaseId:
        """Grant a lease."""

    def revoke(self, lease_id: int) -> None:
        """Revoke a lease."""

    def put(self, key: bytes, value: bytes, *, lease: int = 0) -> Any:
        """Put one key."""

    def transaction(
        self, compare: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op] = ()
    ) -> TransactionResult:
        """Run `success` when all comparisons hold, else `failure`."""


class Driver:
    """Runs a keeper on an etcd from the first claim until `stop`. Thread-safe."""

    def __init__(self, etcd: WritableEtcd, ttl_seconds: int) -> None:
        self._etcd = etcd
        self._ttl_seconds = ttl_seconds
        self._keeper = Keeper()
        self._changed = threading.Condition()
        self._inbox: list[Callable[[], None]] = []
        self._retry_seconds = 0.0
        self._not_before = 0.0
        self._busy = self._paused = self._ending = False
        self._thread: threading.Thread | None = None
        self._watched: frozenset[bytes] = frozenset()
        self._watch: Any = None
        self._keep_alive: Any = None
        self._kept = LeaseId(0)
        self.fault: EtcdError | None = None

    def claim(self, claims: Iterable[Claim]) -> None:
        """Keep these records from now on."""
        with self._changed:
            self._keeper.claim(claims)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="grpc-etcd-registrar", daemon=True)
                self._thread.start()
                this_process().take_along(self)
            self._changed.notify_all()

    def release(self, keys: Iterable[bytes]) -> None:
        """Withdraw these records."""
        with self._changed:
            self._keeper.release(keys)
            self._changed.notify_all()

    def ask(self, question: Callable[[Keeper], bool]) -> bool:
        """Ask the keeper something."""
        with self._changed:
            return question(self._keeper)

    def wait_until(self, question: Callable[[Keeper], bool], timeout_seconds: float | None) -> bool:
        """Wait until the keeper's answer is yes; False when the time is up first, or everything has been stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._ending or question(self._keeper), timeout_seconds)
            return question(self._keeper)

    def stop(self, timeout_seconds: float) -> bool:
        """Withdraw everything, give the lease back, and end the thread; False when etcd did not confirm it in time."""
        deadline = time.monotonic() + timeout_seconds
        self.release(self.ask_keys())
        gone = self._thread is None or self.wait_until(lambda keeper: keeper.is_done, timeout_seconds)
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        if self._thread:
            self._thread.join(max(0.1, deadline - time.monotonic()))
        return gone

    def ask_keys(self) -> frozenset[bytes]:
        """Give all keys that are claimed or being withdrawn."""
        with self._changed:
            return self._keeper.keys

    # Forks: while a thread is in gRPC, gRPC skips its fork handlers, and the child crashes.

    def before_fork(self) -> None:
        """Leave gRPC."""
        with self._changed:
            self._paused = True
            self._changed.notify_all()
        self._hang_up()
        with self._changed:
            self._changed.wait_for(lambda: not self._busy, FORK_SECONDS)

    def after_fork_in_parent(self) -> None:
        """Go on."""
        with self._changed:
            self._paused = False
            self._changed.notify_all()

    def after_fork_in_child(self) -> None:
        """Leave what is registered to the parent, also when the child ends."""
        self._changed = threading.Condition()
        self._thread = None

    # The thread

    def _run(self) -> None:
        while step := self._next_step():
            try:
                self._carry_out(step)
                self._succeeded()
            except EtcdError as error:
                self._failed(error)
            finally:
                with self._changed:
                    self._busy = False
        self._hang_up()
        self._give_lease_back()

    def _next_step(self) -> Step | None:
        """Wait for something to do; None when all is over."""
        with self._changed:
            while not self._ending:
                for news in self._inbox:
                    news()
                self._inbox.clear()
                now = time.monotonic()
                step: Step = Rest(self._not_before) if now < self._not_before else self._keeper.next_step(now)
                self._changed.notify_all()
                if not self._paused:
                    self._follow()
                    if not isinstance(step, Rest):
                        self._busy = True
                        return step
                until = step.until if isinstance(step, Rest) else None
                self._changed.wait(None if until is None else max(0.0, until - now))
            return None

    def _carry_out(self, step: Step) -> None:
        match step:
            case Grant():
                lease = self._etcd.lease(self._ttl_seconds)
                with self._changed:
                    self._keeper.granted(lease)
            case Write():
                self._write(step)
            case Touch(_, record, lease):
                self._with_lease(lease, lambda: self._etcd.put(record.key, record.value, lease=lease))
                with self._changed:
                    self._keeper.touched(step)
            case Rest():
                raise AssertionError(step)
            case _:
                assert_never(step)

    def _write(self, write: Write) -> None:
        """Carry out a transaction; where it is refused, take note of what is there instead."""
        keys = sorted(write.revisions)
        edits: list[Op] = [ops.delete(key) for key in sorted(write.deletes)]
        edits += [ops.put(key, value, lease=write.lease) for key, value in write.puts.items()]
        guards = [compare.mod_revision(key, "==", write.revisions[key]) for key in keys]
        result = self._with_lease(
            write.lease, lambda: self._etcd.transaction(guards, edits, [ops.get(key) for key in keys])
        )
        with self._changed:
            if result is not None and result.succeeded:
                self._keeper.wrote(write, result.revision, time.monotonic())
            elif result is not None:
                for key, listing in zip(keys, result.responses, strict=True):
                    assert isinstance(listing, Listing)  # noqa: S101 - the answer to a get
                    self._keeper.seen(key, make_held(listing.records[0]) if listing.records else None)

    def _with_lease(self, lease: int, call: Callable[[], Any]) -> Any:
        """Call etcd; a lease that it does not know is lost, and no failure."""
        try:
            return call()
        except LeaseNotFound:
            with self._changed:
                self._keeper.lease_lost(lease)
            return None

    def _succeeded(self) -> None:
        with self._changed:
            self.fault = None
            self._retry_seconds = 0.0

    def _failed(self, error: EtcdError) -> None:
        with self._changed:
            self.fault = error
            self._retry_seconds = min(max(self._retry_seconds * 2, FIRST_RETRY_SECONDS), LAST_RETRY_SECONDS)
            self._not_before = time.monotonic() + self._retry_seconds
        _LOG.warning("registering failed, trying again in %.1f s: %s", self._retry_seconds, error)

    # The streams

    def _follow(self) -> None:
        """See to it that every key is watched and the lease kept alive."""
        if self._watch is None or not self._keeper.keys <= self._watched:
            if self._watch is not None:
                self._watch.close()
            self._watched = self._keeper.keys
            self._watch = self._etcd.list_watch(*sorted(self._watched))
            threading.Thread(
                target=self._listen, args=(self._watch, self._watched), name="grpc-etcd-registrar-watch", daemon=True
            ).start()
        lease = LeaseId(self._keeper.leases.current)
        if lease and lease != self._kept:
            if self._keep_alive is None:
                self._keep_alive = self._etcd.keep_alive(self._lose, streams=1)
            self._keep_alive.add(lease, self._ttl_seconds, remaining_seconds=0)
            self._kept = lease

    def _hang_up(self) -> None:
        with self._changed:
            watch, self._watch = self._watch, None
            keep_alive, self._keep_alive, self._kept = self._keep_alive, None, LeaseId(0)
        for stream in (watch, keep_alive):
            if stream is not None:
                stream.close()

    def _lose(self, lease: LeaseId) -> None:
        with self._changed:
            self._inbox.append(lambda: self._keeper.lease_lost(lease))
            self._changed.notify_all()

    def _listen(self, watch: Iterator[News], keys: frozenset[bytes]) -> None:
        for news in watch:
            with self._changed:
                if watch is not self._watch:
                    return
                self._inbox.append(lambda news=news: self._hear(news, keys))  # type: ignore[misc]
                self._changed.notify_all()

    def _hear(self, news: News, keys: frozenset[bytes]) -> None:
        match news:
            case Listed(records, _):
                self._keeper.listed(keys, {record.key: make_held(record) for record in records})
            case Changed(events, _):
                for event in events:
                    self._keeper.seen(event.key, make_held(event.record) if isinstance(event, Put) else None)
            case Lost(error, _):
                self.fault = error
                return
        self.fault = None

    def _give_lease_back(self) -> None:
        if lease := self._keeper.leases.current:
            try:
                self._etcd.revoke(lease)
            except EtcdError as error:
                _LOG.info("lease %x was not revoked and will run out: %s", lease, error)


def make_held(record: Record) -> Held:
    """Give what the keeper needs to know of a record."""
    return Held(record.value, record.lease, record.mod_revision)

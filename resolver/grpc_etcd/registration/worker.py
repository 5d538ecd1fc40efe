"""The reconciler's driver: one daemon thread with the clock, the lease, the watch and etcd.

All state is behind one lock, which is never held during a call to etcd. News of the watch is applied between steps
only, so that what a write did and what the watch then says of it come in this order. A step that fails is decided again
after a pause, forever, whatever it failed of: a registration that gives up is the fault that this package exists to
end.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar, assert_never

from grpc_etcd.etcd import (
    AuthFailed,
    Compare,
    Disconnected,
    EtcdError,
    InvalidRequest,
    LeaseId,
    LeaseNotFound,
    Listing,
    NoSpace,
    Op,
    PermissionDenied,
    Progress,
    Put,
    Record,
    TooManyRequests,
    TransactionResult,
    WatchEvents,
    WatchSnapshot,
    WatchUpdate,
    compare,
    ops,
)
from grpc_etcd.registration.reconciler import FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS, RegistrationReconciler
from grpc_etcd.registration.records import Claim, Held
from grpc_etcd.registration.steps import Flush, Grant, Idle, Probe, Read, Step, Write
from grpc_etcd.registration.transitions import Fact, Fault, Transitions
from grpc_etcd.threads import contain, start_thread, wait_for
from grpc_etcd.xds.control_plane import this_process

_LOG = logging.getLogger("grpc_etcd")

NO_SHARING = (
    "this user is not allowed to write the process keys under /grpc-etcd/registered-by, so if several processes serve "
    "at one address, calls may fail for a moment when one of them ends (docs/operations.md has the role): %s"
)

OF_THE_PARENT = (
    "this registration belongs to the parent process, from which this process was forked: "
    "register the endpoint here with the same registry, and change that registration"
)

REOPEN_SECONDS = 1.0  # arbitrary
PROBE_SECONDS = 5.0  # arbitrary: how often it is asked whether keys may be read meanwhile
SHARE_SECONDS = 300.0  # how often it is tried whether process keys may be written meanwhile


# Answers that say of a write that it has not been carried out; after any other one it may have been.
NOT_CARRIED_OUT = (AuthFailed, InvalidRequest, LeaseNotFound, NoSpace, PermissionDenied, TooManyRequests)
# Those of them that concern what is written: another record may be written, or deleted, all the same.
OF_THE_RECORDS = (InvalidRequest, NoSpace, PermissionDenied)

T = TypeVar("T")


class WritableEtcd(Protocol):
    """What is needed of an etcd client to register."""

    def list_watch(self, *prefixes: bytes) -> Any:
        """Return an iterator of news that another thread may close."""

    def keep_alive(self, on_lost: Callable[[LeaseId], object], *, streams: int = 1) -> Any:
        """Return an object that keeps leases alive."""

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


class Worker:
    """Runs a keeper on an etcd from the first claim until `stop`. Thread-safe."""

    def __init__(self, etcd: WritableEtcd, ttl_seconds: int) -> None:
        self._etcd = etcd
        self._ttl_seconds = ttl_seconds
        self._reconciler = RegistrationReconciler()
        self._transitions = Transitions()
        self._labels: dict[bytes, str] = {}
        self._prefixes: dict[bytes, bytes] = {}  # what a role has to be granted for each key
        self._changed = threading.Condition()
        self._inbox: list[Callable[[], None]] = []
        self._retry_seconds = 0.0
        self._not_before = self._reopen_at = self._share_at = 0.0
        self._probe_at: float | None = None
        self._leave_by: dict[bytes, float] = {}
        self._busy = self._paused = self._ending = False
        self.is_inherited = False  # by a forked child, whose parent keeps what is registered
        self._thread: threading.Thread | None = None
        self._watched: frozenset[bytes] = frozenset()
        self._watch: Any = None
        self._left: list[Any] = []  # streams to be closed, which may take as long as a call to etcd
        self._listening = 0  # threads that listen to a watch, and may be in a call to etcd for it
        self._keep_alive: Any = None
        self._kept = LeaseId(0)
        self._lives_at = 0.0
        self._watch_fault: EtcdError | None = None
        self._write_fault: EtcdError | None = None
        self._refused: Write | None = None  # the last step, if etcd has refused it

    @property
    def fault(self) -> EtcdError | None:
        """What etcd answered last; None while nothing is wrong."""
        return self.fault_of(self.ask(lambda reconciler: reconciler.keys))

    def fault_of(self, keys: Collection[bytes]) -> EtcdError | None:
        """What etcd answered last that concerns these keys."""
        with self._changed:
            refusal = self._reconciler.refusal(keys)
        return self._write_fault or (refusal if isinstance(refusal, EtcdError) else None) or self._watch_fault

    @property
    def may_have_expired(self) -> bool:
        """Whether the lease has not been renewed for its time to live, by this process's own clock."""
        with self._changed:
            lease = self._reconciler.leases.current
            return bool(lease) and time.monotonic() > self._find_renewed_at() + self._ttl_seconds

    def _find_renewed_at(self) -> float:
        """Return when (monotonic) the lease was last known to live."""
        renewed_at = self._keep_alive.renewed_at(self._kept) if self._keep_alive is not None else 0.0
        return max(self._lives_at, float(renewed_at))

    def claim(self, claims: Iterable[Claim]) -> None:
        """Keep these records from now on."""
        with self._changed:
            if self.is_inherited:
                raise ValueError(OF_THE_PARENT)
            if self._thread is None:
                self._thread = start_thread(self._run, name="grpc-etcd-registrar")
                this_process().take_along(self)
            for claim in claims:
                self._labels[claim.key] = make_label(claim)  # first: Ctrl-C may come in between
                self._prefixes[claim.key] = claim.group.prefix
                self._leave_by.pop(claim.key, None)
                self._reconciler.claim((claim,))
            self._not_before = 0.0  # an earlier failure is no reason for this to wait
            self._changed.notify_all()

    def release(self, keys: Iterable[bytes], within_seconds: float) -> None:
        """Deregister these records; `within_seconds` is for how long `stop` would wait for that, from now on."""
        if self.is_inherited:
            return
        with self._changed:
            by = time.monotonic() + within_seconds
            for key in keys:
                self._reconciler.release((key,))
                self._leave_by.setdefault(key, by)
            self._not_before = 0.0
            self._changed.notify_all()

    def ask(self, question: Callable[[RegistrationReconciler], T]) -> T:
        """Ask the reconciler something."""
        with self._changed:
            return question(self._reconciler)

    def wait_until(
        self,
        question: Callable[[RegistrationReconciler], bool],
        timeout_seconds: float | None,
        is_given_up: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Wait until the reconciler's answer is yes.

        False when the time is up first, or everything has been stopped.
        """
        with self._changed:
            wait_for(
                self._changed,
                lambda: self._ending or self.is_inherited or is_given_up() or question(self._reconciler),
                timeout_seconds,
            )
            return question(self._reconciler)

    def wake(self) -> None:
        """Let all who wait ask again."""
        with self._changed:
            self._changed.notify_all()

    def stop(self, timeout_seconds: float) -> bool:
        """Deregister everything, give the lease back, and end the thread; False when etcd did not confirm it in time.

        What is being deregistered already has no second time: this waits no longer than that began to.
        """
        with self._changed:
            begun = [self._leave_by[key] for key in self._reconciler.leaving if key in self._leave_by]
            deadline = min((time.monotonic() + timeout_seconds, *begun))
            self.release(self._reconciler.keys, timeout_seconds)
            gone = self._thread is None or self.wait_until(self._is_done, deadline - time.monotonic())
            self._ending = True
            self._changed.notify_all()
        if self._thread:
            self._thread.join(min(max(0.1, deadline - time.monotonic()), threading.TIMEOUT_MAX))
        return gone

    def _is_done(self, reconciler: RegistrationReconciler) -> bool:
        return reconciler.is_done or (not reconciler.keys and self.fault is not None)

    # Forks: while a thread is in gRPC, gRPC skips its fork handlers, and the child crashes.

    def before_fork(self) -> Callable[[float], object]:
        """Leave gRPC."""
        with self._changed:
            self._paused = True
            self._leave_streams()
            streams = list(self._left)
            self._changed.notify_all()
        for stream in streams:
            getattr(stream, "begin_close", lambda: None)()
        return self._wait_quiet

    def _wait_quiet(self, seconds: float) -> None:
        """Wait until the thread is in no call and has closed the streams, and nobody listens to these any more."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._busy or self._left or self._listening), seconds)

    def after_fork_in_parent(self) -> None:
        """Go on."""
        with self._changed:
            self._paused = False
            self._changed.notify_all()

    def after_fork_in_child(self) -> None:
        """Leave what is registered to the parent, also when the child ends."""
        self._changed = threading.Condition()
        self._thread = None
        self.is_inherited = True

    # The thread

    def _run(self) -> None:
        while not self._ending:
            step: Step | None = None
            try:
                if step := self._next_step():
                    self._carry_out(step)
                    self._succeeded(step)
                self._close_left()
            except EtcdError as error:
                self._failed(error, step)
            except BaseException as error:  # noqa: BLE001  whatever it is: registrations that nobody keeps expire
                _LOG.exception("Unexpected error while registering, retrying", extra={"event": "unexpected_error"})
                self._failed(EtcdError(f"unexpected: {contain(error)!r}"), step)
            finally:
                self._rest_from_work()
        self._end()

    def _end(self) -> None:
        with self._changed:
            self._busy = True
            self._leave_streams()
        self._close_left()
        self._rest_from_work()
        with self._changed:
            self._changed.wait_for(lambda: not self._paused)
            self._busy = True
        self._give_lease_back()
        self._rest_from_work()

    def _rest_from_work(self) -> None:
        with self._changed:
            self._busy = False
            self._changed.notify_all()

    def _next_step(self) -> Step | None:
        """Wait for something to do; None when all is over, or there are streams to close."""
        with self._changed:
            while not self._ending:
                while self._inbox:
                    self._inbox.pop(0)()
                now = time.monotonic()
                step: Step = Idle(self._not_before) if now < self._not_before else self._reconciler.next_step(now)
                if self._probe_at is not None and now >= max(self._probe_at, self._not_before):
                    step = Probe(self._reconciler.keys)
                if isinstance(step, Idle) and now >= self._not_before:
                    self._write_fault, self._retry_seconds = None, 0.0
                self._report(now)
                self._changed.notify_all()
                if not self._paused:
                    self._follow(now)
                    if not isinstance(step, Idle):
                        self._busy = True
                        if isinstance(step, Write):
                            self._reconciler.begun(step)
                        return step
                if self._left:
                    self._busy = True
                    return None
                self._rest(step.until if isinstance(step, Idle) else None, now)
            return None

    def _rest(self, until: float | None, now: float) -> None:
        """Wait for news, or for whatever is due first."""
        share_at = None if self._reconciler.shares else self._share_at
        times = (until, self._transitions.due, self._reopen_at, self._probe_at, share_at)
        due = min((each for each in times if each is not None and each > now), default=None)
        self._changed.wait(None if due is None else due - now)

    def _report(self, now: float) -> None:
        """Log what has become different."""
        reconciler = self._reconciler
        facts = {
            key: Fact(self._labels[key], reconciler.standing(key), reconciler.value(key))
            for key in (*self._transitions.keys, *reconciler.keys)
        }
        lines = self._transitions.observe(facts, now)
        fault, is_wanted = make_fault(self.fault), bool(reconciler.keys)
        outages = self._transitions.observe_fault(fault, self._ttl_seconds, now, is_wanted=is_wanted)
        for line in (*outages, *lines):
            _LOG.log(line.level, "%s", line.text, extra={"event": "registration_changed"})

    def _carry_out(self, step: Step) -> None:
        match step:
            case Grant():
                asked_at = time.monotonic()
                lease = self._etcd.lease(self._ttl_seconds)
                with self._changed:
                    self._lives_at = asked_at
                    self._reconciler.granted(lease)
            case Write():
                self._write(step)
            case Read():
                self._read(step)
            case Probe(keys):
                self._probe(keys)
            case Flush(_, record, lease):
                self._with_lease(lease, lambda: self._etcd.put(record.key, record.value, lease=lease))
                with self._changed:
                    self._reconciler.flushed(step, time.monotonic())
            case Idle():
                raise AssertionError(step)
            case _:
                assert_never(step)

    def _write(self, write: Write) -> None:
        """Carry out a transaction; where it is refused, take note of what is there instead."""
        keys = sorted(write.revisions)
        guards = [compare.mod_revision(key, "==", write.revisions[key]) for key in keys]
        guards += [compare.leases(prefix, "==", lease) for prefix, lease in sorted(write.alone.items())]
        reads = make_reads(keys, write.alone)
        result = self._with_lease(write.lease, lambda: self._etcd.transaction(guards, make_edits(write), reads))
        with self._changed:
            if result is None:
                self._reconciler.refused(write)
            elif result.succeeded:
                self._reconciler.wrote(write, result.revision, time.monotonic())
            else:
                self._learn(keys, write.alone, result)
        self._note_refusal(write, is_refused=result is not None and not result.succeeded)

    def _read(self, step: Read) -> None:
        result = self._etcd.transaction((), make_reads(step.keys, step.prefixes))
        with self._changed:
            self._learn(step.keys, step.prefixes, result)

    def _probe(self, keys: Iterable[bytes]) -> None:
        """Go on without the keys that may not be read, for as long as that is so."""
        denied = {key: error for key in sorted(keys) if (error := self._ask_for(key))}
        with self._changed:
            for key, error in denied.items():
                self._name_grant(error, [key])
            is_other = self._reconciler.deny(denied)
            self._probe_at = time.monotonic() + PROBE_SECONDS if self._reconciler.is_anything_denied else None
            if is_other:
                self._reopen(self._watch, None)

    def _ask_for(self, key: bytes) -> PermissionDenied | None:
        """Return why a key may not be read as it is followed; None: it may be."""
        try:
            self._etcd.transaction((), make_reads((), [key]))
        except PermissionDenied as error:
            return error
        return None

    def _learn(self, keys: Iterable[bytes], prefixes: Iterable[bytes], result: TransactionResult) -> None:
        """Record of what the answer says of all that was asked, also of what is not there."""
        records = [record for listing in result.responses if isinstance(listing, Listing) for record in listing.records]
        self._reconciler.read(keys, prefixes, {record.key: make_held(record) for record in records}, result.revision)

    def _note_refusal(self, write: Write, *, is_refused: bool) -> None:
        """Refuse to repeat a transaction at once whose refusal has taught nothing: etcd is not to be flooded by it."""
        before, self._refused = self._refused, write if is_refused else None
        if is_refused and before == write:
            raise EtcdError("etcd keeps rejecting a transaction although its conditions match what was read")

    def _with_lease(self, lease: int, call: Callable[[], Any]) -> Any:
        """Call etcd; a lease that it does not know is lost, and no failure."""
        try:
            return call()
        except LeaseNotFound:
            with self._changed:
                self._reconciler.lease_lost(lease)
            return None

    def _succeeded(self, step: Step) -> None:
        if isinstance(step, Read | Probe):
            return  # what failed was a write
        with self._changed:
            self._write_fault = None
            self._retry_seconds = 0.0

    def _failed(self, error: EtcdError, step: Step | None) -> None:
        with self._changed:
            if isinstance(step, Write) and isinstance(error, NOT_CARRIED_OUT):
                self._reconciler.refused(step)
            if isinstance(step, Write) and isinstance(error, PermissionDenied):
                self._name_grant(error, step.revisions)
            if touches_process_keys(step) and self._stops_sharing(error):
                return
            if isinstance(error, OF_THE_RECORDS) and self._puts_off(error, step):
                return
            self._write_fault = error
            self._retry_seconds = min(max(self._retry_seconds * 2, FIRST_RETRY_SECONDS), LAST_RETRY_SECONDS)
            self._not_before = time.monotonic() + self._retry_seconds

    def _puts_off(self, error: EtcdError, step: Step | None) -> bool:
        """Leave a refused record aside for a while, rather than all that there is to do."""
        return isinstance(step, Write) and self._reconciler.put_off(step, error, time.monotonic())

    def _name_grant(self, error: PermissionDenied, keys: Iterable[bytes]) -> None:
        """Have an error say which right is missing to register these keys."""
        if prefixes := sorted({self._prefixes[key] for key in keys if key in self._prefixes}):
            error.name_grant("readwrite", *prefixes)

    def _stops_sharing(self, error: EtcdError) -> bool:
        """Do without process keys where they are what is refused; it is not known before that was tried."""
        if not isinstance(error, PermissionDenied) or not self._reconciler.shares:
            return False
        _LOG.info("%s", NO_SHARING % error, extra={"event": "registration_unshared"})
        self._share_at = time.monotonic() + SHARE_SECONDS
        self._reconciler.share(shares=False)
        return True

    # The streams

    def _follow(self, now: float) -> None:
        """See to it that every key is watched and the lease kept alive."""
        if not self._reconciler.shares and now >= self._share_at:
            self._reconciler.share(shares=True)
        wanted = self._reconciler.prefixes
        if now >= self._reopen_at and (self._watch is None or not wanted <= self._watched):
            self._open_watch(wanted)
        lease = LeaseId(self._reconciler.leases.current)
        if lease and lease != self._kept:
            if self._keep_alive is None:
                self._keep_alive = self._etcd.keep_alive(self._lose, streams=1)
            self._keep_alive.add(lease, self._ttl_seconds, remaining_seconds=0)
            self._kept = lease

    def _open_watch(self, wanted: frozenset[bytes]) -> None:
        """Follow these from now on; the watch before is kept while there is no thread to listen to another."""
        watch = self._etcd.list_watch(*sorted(wanted))
        try:
            start_thread(self._listen, watch, self._reconciler.readable, name="grpc-etcd-registrar-watch")
            self._listening += 1
        except RuntimeError:
            self._reopen_at = time.monotonic() + REOPEN_SECONDS
            self._left.append(watch)
            raise
        if self._watch is not None:
            self._left.append(self._watch)
        self._watch, self._watched = watch, wanted

    def _leave_streams(self) -> None:
        self._lives_at = self._find_renewed_at()  # the next keep-alive knows nothing of this one's
        self._left += [stream for stream in (self._watch, self._keep_alive) if stream is not None]
        self._watch = self._keep_alive = None
        self._kept = LeaseId(0)

    def _close_left(self) -> None:
        """Close what is needed no longer; never under the lock, since it waits for who is in a call to etcd."""
        with self._changed:
            left, self._left = self._left, []
        for stream in left:
            stream.close()

    def _lose(self, lease: LeaseId) -> None:
        with self._changed:
            self._inbox.append(lambda: self._reconciler.lease_lost(lease))
            self._changed.notify_all()

    def _listen(self, watch: Iterator[WatchUpdate], keys: frozenset[bytes]) -> None:
        try:
            for news in watch:
                with self._changed:
                    if watch is not self._watch:
                        return
                    self._inbox.append(lambda news=news: self._receive(watch, news, keys))  # type: ignore[misc]  # it binds a value
                    self._changed.notify_all()
        except Exception as error:  # noqa: BLE001  whatever it is, the keys are to be followed
            _LOG.exception(
                "Unexpected error in the watch of registered keys, reopening it",
                extra={"event": "unexpected_error"},
            )
            with self._changed:
                self._reopen(watch, EtcdError(f"unexpected: {error!r}"))
        finally:
            with self._changed:
                self._listening -= 1
                self._changed.notify_all()

    def _reopen(self, watch: Any, fault: EtcdError | None) -> None:
        if watch is self._watch:
            self._watch, self._watch_fault = None, fault
            self._reopen_at = time.monotonic() + (REOPEN_SECONDS if fault else 0.0)
            self._left.append(watch)
            self._changed.notify_all()

    def _receive(self, watch: Any, news: WatchUpdate, keys: frozenset[bytes]) -> None:
        if watch is not self._watch:
            return
        match news:
            case WatchSnapshot(records, revision):
                self._reconciler.listed(keys, {record.key: make_held(record) for record in records}, revision)
                self._forget_past()
            case WatchEvents(events, _):
                for event in events:
                    held = make_held(event.record) if isinstance(event, Put) else None
                    self._reconciler.seen(event.key, held, event.revision)
                self._reconciler.follow_edits()  # before the holder and its key may be gone, as the next news may say
            case Progress(revision):
                self._reconciler.resumed(revision)
            case Disconnected(error, _):
                if self._stops_sharing(error):
                    self._reopen(watch, None)
                else:
                    self._watch_fault = error
                    if isinstance(error, PermissionDenied):
                        self._name_grant(error, keys)
                        self._probe_at = time.monotonic()
                return
        self._watch_fault = None

    def _forget_past(self) -> None:
        """Forget keys that are gone for good; those that are not may come again."""
        known = self._reconciler.known_keys | self._transitions.keys
        self._labels = {key: label for key, label in self._labels.items() if key in known}
        self._prefixes = {key: prefix for key, prefix in self._prefixes.items() if key in known}
        self._leave_by = {key: by for key, by in self._leave_by.items() if key in known}

    def _give_lease_back(self) -> None:
        if lease := self._reconciler.leases.current:
            try:
                self._etcd.revoke(lease)
            except EtcdError as error:
                _LOG.info(
                    "lease %x was not revoked and will expire: %s", lease, error, extra={"event": "lease_not_revoked"}
                )


def make_edits(write: Write) -> list[Op]:
    """Return a write's operations: what goes first."""
    edits: list[Op] = [ops.delete(key) for key in sorted(write.deletes | write.retracted)]
    edits += [ops.put(key, left.value, lease=left.lease) for key, left in write.handovers.items()]
    edits += [ops.put(key, value, lease=write.lease) for key, value in write.puts.items()]
    return edits + [ops.put(key, value, lease=write.lease) for key, value in write.announced.items()]


def make_reads(keys: Iterable[bytes], prefixes: Iterable[bytes]) -> list[Op]:
    """Return the operations that read all this."""
    return [*map(ops.get, sorted(keys)), *map(ops.get_prefix, sorted(prefixes))]


def touches_process_keys(step: Step | None) -> bool:
    """Return whether a step needs access to process keys."""
    if isinstance(step, Read):
        return bool(step.prefixes)
    return isinstance(step, Write) and bool(step.announced or step.retracted or step.alone)


def make_held(record: Record) -> Held:
    """Return what the reconciler needs to know of a record."""
    return Held(record.value, record.lease, record.mod_revision)


def make_fault(error: EtcdError | None) -> Fault | None:
    """Return what the log is to say of an error."""
    if error is None:
        return None
    return Fault(error, error.remedy, isinstance(error, NOT_CARRIED_OUT), isinstance(error, OF_THE_RECORDS))


def make_label(claim: Claim) -> str:
    """Name a claim for the log."""
    if claim.endpoint is None or claim.layout is None:
        return f"metric target {claim.value.decode(errors='replace')}"
    return f"{claim.endpoint.name} at {claim.endpoint.address} ({claim.layout.name})"

"""A model of an etcd cluster: its key space, its watches, its users, and all that can go wrong with it.

It takes the request messages of etcd's API and gives the replies that etcd 3.6 gives; etcd_channel.py stands in for the
gRPC channel. The contract suite, tests/simulation/test_etcd_contract.py, runs against it and against a real etcd.
"""

import abc
import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count, groupby
from typing import Any

from grpc_etcd.etcd.calls import RESULTS, TARGETS
from grpc_etcd.etcd.compare import Compare
from grpc_etcd.etcd.errors import EtcdError
from grpc_etcd.etcd.messages import message
from grpc_etcd.etcd.model import Event, Listing, Put, Record
from grpc_etcd.etcd.ops import DeleteOp, GetOp, Op, PutOp
from grpc_etcd.memory.keyspace import Keyspace, is_within, refuse
from testbed.models.wires import OUTSIDE, Way, Wire

LEASE_CHECK_SECONDS = 0.5  # etcd looks for leases that have run out so often
SYNC_SECONDS = 0.1  # ... and brings watches up to date that begin in the past (syncWatchersLoop)
SYNC_REVISIONS = 1000  # ... with so many revisions at a time, in one reply (watchBatchMaxRevs)
NO_LEADER_SECONDS = 3.0  # until streams of a member without a quorum are ended. About three election time-outs
PROPOSAL_SECONDS = 7.0  # until etcd gives up on a proposal that finds no quorum
LARGEST_REQUEST = 1_572_864  # bytes, --max-request-bytes
NOBODY = -1  # watch id of a reply that speaks of no watch
ROOT = "root"
OPERATORS = {number: words for words, number in RESULTS.items()}
TARGET_NAMES = {number: name for name, number in TARGETS.items()}
Reply = Callable[[Any], None]
Range = tuple[bytes, bytes]


@dataclass(slots=True)
class User:
    """A user: its password, and the ranges that it may read and write."""

    password: str
    readable: list[Range] = field(default_factory=list)
    writable: list[Range] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class ServedWatch:
    """One watch of a stream; `next` is the first revision that it has not been told of."""

    key: bytes
    end: bytes
    next: int
    start: int
    is_synced: bool


def renews_all(_: int) -> bool:
    """Let no renewal fail."""
    return False


class EtcdModel:
    """One cluster, seen as one member. Belongs to the event loop in which it is made."""

    def __init__(self, name: str = "etcd") -> None:
        self.name = name
        self.wire = Wire(name=name)
        self.users: dict[str, User] = {}
        self.asks_for_users = False
        self.has_quorum = True
        self._loop = asyncio.get_running_loop()
        self._terms, self._lease_ids, self._token_numbers = count(2), count(0x1000), count(1)
        self._streams: dict[Served, None] = {}
        self._waiting: list[Callable[[], None]] = []
        self._expiry: asyncio.TimerHandle | None = None
        self.on_change: Callable[[Sequence[Event]], None] | None = None  # an observer who is no client
        self._methods: dict[str, Callable[[Any, str], Any]] = {
            "Range": self._range,
            "Put": self._put,
            "DeleteRange": self._delete_range,
            "Txn": self._transaction,
            "Compact": self._compact_before,
            "LeaseGrant": self._grant_lease,
            "LeaseRevoke": self._revoke_lease,
            "LeaseTimeToLive": self._time_to_live,
            "LeaseLeases": self._list_leases,
            "Status": self._status,
            "Authenticate": self._authenticate,
        }
        self.fails_renewal: Callable[[int], bool] = renews_all  # whether the stream ends with the renewal of a lease
        self.writer = ""  # whose call is being answered: the name of its wire
        self._begin(Keyspace())

    def __repr__(self) -> str:
        return f"<EtcdModel {self.name} {self.space}>"

    def _begin(self, space: Keyspace) -> None:
        """Start on some data: no token of before is known, and leases have all of their time again."""
        self.space, self._tokens = space, dict[str, str]()
        self._cluster_id = getattr(self, "_cluster_id", 0x1000)
        self._term = next(self._terms)
        self.space.renew_all(self._loop.time())
        self._watch_leases()

    # What goes wrong

    def stop(self) -> None:
        """Kill it: connections end, and nobody answers until `start`."""
        self.wire.refuse()
        self._streams.clear()
        self._stop_expiry()

    def start(self, space: Keyspace | None = None) -> None:
        """Start it again, with the data that it had, or with others."""
        if space is not None:
            self._cluster_id += 1
        self._begin(self.space if space is None else space)
        self.wire.heal()
        self._watch_leases()  # not before: while nobody is let in no lease runs out

    def wipe(self) -> None:
        """Restart it without its data: keys, leases and users are gone."""
        self.stop()
        self.users, self.asks_for_users = {}, False
        self.start(Keyspace())

    def restore(self, backup: Keyspace) -> None:
        """Restart it from a backup."""
        self.stop()
        self.start(backup.copy())

    def freeze(self) -> None:
        """Let it answer nobody, its connections open; its clock goes on."""
        self.wire.silence()

    def resume(self) -> None:
        """Let it go on."""
        self.wire.heal()

    def lose_quorum(self) -> None:
        """Let two of three members go: nothing is decided any more, and streams that ask for a leader end."""
        self.has_quorum = False
        self._stop_expiry()
        self._loop.call_later(NO_LEADER_SECONDS, self._end_streams_without_leader, context=OUTSIDE)

    def regain_quorum(self) -> None:
        """Let them come back. A new leader lets all leases live on."""
        self.has_quorum = True
        self._term = next(self._terms)
        self.space.renew_all(self._loop.time())
        self._watch_leases()
        waiting, self._waiting = self._waiting, []
        for proceed in waiting:
            proceed()

    def compact(self, revision: int = 0) -> None:
        """Forget the history before a revision (0: all)."""
        revision = revision or self.space.revision
        if revision > self.space.compacted:
            self.space.compact(revision)

    def add_user(self, name: str, password: str, prefixes: Iterable[bytes] = (), *, write: bool = True) -> None:
        """Add a user who may use some prefixes."""
        self.users[name] = User(password)
        for prefix in prefixes:
            self.grant(name, prefix, write=write)

    def grant(self, name: str, prefix: bytes, *, write: bool = True) -> None:
        """Allow a user a prefix."""
        user, allowed = self.users[name], (prefix, prefix[:-1] + bytes([prefix[-1] + 1]))
        user.readable.append(allowed)
        if write:
            user.writable.append(allowed)

    def deregister(self, name: str, prefix: bytes, *, write_only: bool = False) -> None:
        """Allow it no longer."""
        user = self.users[name]
        user.writable[:] = [each for each in user.writable if each[0] != prefix]
        if not write_only:
            user.readable[:] = [each for each in user.readable if each[0] != prefix]

    def enable_auth(self, password: str) -> None:
        """Ask everybody for a user from now on; watches that are open go on."""
        self.users.setdefault(ROOT, User(password))
        self.asks_for_users = True

    def revoke(self, lease: int) -> None:
        """Revoke a lease, if it is there, as an admin does."""
        known = self.space.revision
        if lease in self.space.leases:
            self.space.revoke(lease)
            self._publish(known)

    def put(self, key: bytes, value: bytes) -> None:
        """Put a key, as an admin does."""
        known = self.space.revision
        self.space.transaction((), [PutOp(key, value, 0)])
        self._publish(known)

    def delete(self, key: bytes) -> None:
        """Delete a key, as an admin does."""
        known = self.space.revision
        self.space.transaction((), [DeleteOp(key, b"")])
        self._publish(known)

    def _end_streams_without_leader(self) -> None:
        if not self.has_quorum:
            for stream in tuple(self._streams):
                self.forget(stream)
                stream.end("UNAVAILABLE", "etcdserver: no leader")

    # Leases

    def _stop_expiry(self) -> None:
        if self._expiry:
            self._expiry.cancel()
            self._expiry = None

    def _watch_leases(self) -> None:
        """Wake up when the next lease runs out. Renewals only make that later, so the timer may come too early."""
        ends = min((lease.ends_at for lease in self.space.leases.values()), default=None)
        if ends is None or self._expiry or not self.has_quorum or self.wire.way is Way.REFUSED:
            return
        self._expiry = self._loop.call_at(
            max(ends, self._loop.time()) + LEASE_CHECK_SECONDS / 2, self._expire, context=OUTSIDE
        )

    def _expire(self) -> None:
        self._expiry = None
        known = self.space.revision
        self.space.expire(self._loop.time())
        self._publish(known)
        self._watch_leases()

    # Calls

    def call(  # noqa: PLR0917  what a call consists of
        self,
        path: str,
        request: Any,
        token: str,
        answer: Reply,
        fail: Callable[[EtcdError], None],
        client: str = "",
    ) -> None:
        """Take a unary call; exactly one of `answer` and `fail` is called, or none if nobody decides."""

        def proceed() -> None:
            self.writer = client
            try:
                reply = self._answer(path.rpartition("/")[2], request, token)
            except EtcdError as error:
                fail(error)
            else:
                answer(reply)
            finally:
                self.writer = ""

        if self.has_quorum or path.endswith(("/Status", "/Authenticate")):
            proceed()
        else:
            self._wait_for_quorum(proceed, fail)

    def _wait_for_quorum(self, proceed: Callable[[], None], fail: Callable[[EtcdError], None]) -> None:
        def give_up() -> None:
            if proceed in self._waiting:
                self._waiting.remove(proceed)
                fail(refuse("UNAVAILABLE", "request timed out"))

        self._waiting.append(proceed)
        self._loop.call_later(PROPOSAL_SECONDS, give_up, context=OUTSIDE)

    def _answer(self, method: str, request: Any, token: str) -> Any:
        if request.ByteSize() > LARGEST_REQUEST:
            raise refuse("INVALID_ARGUMENT", "request is too large")
        known = self.space.revision
        reply = self._methods[method](request, token)
        reply.header.CopyFrom(self.header())
        self._publish(known)
        return reply

    def now(self) -> float:
        """Return the cluster's time."""
        return self._loop.time()

    def header(self) -> Any:
        """Return the header of a reply of now."""
        return message("ResponseHeader")(
            cluster_id=self._cluster_id, member_id=1, revision=self.space.revision, raft_term=self._term
        )

    def _range(self, request: Any, token: str) -> Any:
        self.permit(token, reads=[(request.key, request.range_end)])
        _demand_key(request.key)
        found = self.space.range(
            request.key, request.range_end, revision=request.revision, limit=0 if request.count_only else request.limit
        )
        records = () if request.count_only else found.records
        reply = message("RangeResponse")(count=found.total, more=len(records) < found.total and not request.count_only)
        for record in records:
            _write(record, reply.kvs.add(), keys_only=request.keys_only)
        return reply

    def _put(self, request: Any, token: str) -> Any:
        _demand_key(request.key)
        self._run(token, (), [PutOp(request.key, request.value, request.lease)], ())
        return message("PutResponse")()

    def _delete_range(self, request: Any, token: str) -> Any:
        _demand_key(request.key)
        found = self._run(token, (), [DeleteOp(request.key, request.range_end)], ())
        return message("DeleteRangeResponse")(deleted=found.responses[0])

    def _transaction(self, request: Any, token: str) -> Any:
        success, failure = _read_ops(request.success), _read_ops(request.failure)
        result = self._run(token, [_read_compare(each) for each in request.compare], success, failure)
        reply = message("TxnResponse")(succeeded=result.succeeded)
        asked = request.success if result.succeeded else request.failure
        for op, response in zip(asked, result.responses, strict=True):
            _write_response(op, response, reply.responses.add(), self.header())
        return reply

    def _run(self, token: str, compare: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op]) -> Any:
        ops = (*success, *failure)
        reads = [(each.key, each.range_end) for each in compare]
        reads += [(op.key, op.end) for op in ops if isinstance(op, GetOp)]
        writes = [(op.key, op.end if isinstance(op, DeleteOp) else b"") for op in ops if not isinstance(op, GetOp)]
        leases = {op.lease for op in ops if isinstance(op, PutOp) and op.lease in self.space.leases}
        self.permit(token, reads, [*writes, *self.keys_of(leases)])
        return self.space.transaction(compare, success, failure)

    def keys_of(self, leases: Iterable[int]) -> list[Range]:
        """List the keys of some leases, as ranges."""
        return [(key, b"") for lease in sorted(leases) for key in sorted(self.space.leases[lease].keys)]

    def _compact_before(self, request: Any, token: str) -> Any:
        self.permit(token, writes=[(b"\0", b"\0")])
        self.space.compact(request.revision)
        return message("CompactionResponse")()

    def _grant_lease(self, request: Any, token: str) -> Any:
        self.permit(token)
        lease = request.ID or next(self._lease_ids)
        ttl = self.space.grant(request.TTL, lease, self._loop.time())
        self._hurry()
        return message("LeaseGrantResponse")(ID=lease, TTL=ttl)

    def _hurry(self) -> None:
        """Look at the leases again: the new one may be the first to run out."""
        self._stop_expiry()
        self._watch_leases()

    def _revoke_lease(self, request: Any, token: str) -> Any:
        self.permit(token, writes=self.keys_of({request.ID} & self.space.leases.keys()))
        self.space.revoke(request.ID)
        return message("LeaseRevokeResponse")()

    def _time_to_live(self, request: Any, token: str) -> Any:
        self.permit(token, reads=self.keys_of({request.ID} & self.space.leases.keys()) if request.keys else ())
        lease = self.space.leases.get(request.ID)
        if lease is None:
            return message("LeaseTimeToLiveResponse")(ID=request.ID, TTL=-1)
        left = max(0, int(lease.ends_at - self._loop.time()))
        keys = sorted(lease.keys) if request.keys else ()
        return message("LeaseTimeToLiveResponse")(ID=request.ID, TTL=left, grantedTTL=lease.ttl_seconds, keys=keys)

    def _list_leases(self, _: Any, token: str) -> Any:
        self.permit(token)
        status = message("LeaseStatus")
        return message("LeaseLeasesResponse")(leases=[status(ID=each) for each in self.space.leases])

    def _status(self, _: Any, __: str) -> Any:
        alarms = ["NOSPACE"] if self.space.is_full else []
        leader = 1 if self.has_quorum else 0
        return message("StatusResponse")(version="3.6.0", dbSize=1 << 20, leader=leader, errors=alarms)

    def _authenticate(self, request: Any, _: str) -> Any:
        if not self.asks_for_users:
            raise refuse("FAILED_PRECONDITION", "authentication is not enabled")
        user = self.users.get(request.name)
        if user is None or user.password != request.password:
            raise refuse("INVALID_ARGUMENT", "authentication failed, invalid user ID or password")
        token = f"token-{self._term}.{next(self._token_numbers)}"
        self._tokens[token] = request.name
        return message("AuthenticateResponse")(token=token)

    def permit(self, token: str, reads: Sequence[Range] = (), writes: Sequence[Range] = ()) -> None:
        """Refuse what the token's user may not do."""
        if not self.asks_for_users:
            return
        if not token:
            raise refuse("INVALID_ARGUMENT", "user name is empty")
        name = self._tokens.get(token)
        user = self.users.get(name or "")
        if user is None:
            raise refuse("UNAUTHENTICATED", "invalid auth token")
        if name == ROOT:
            return
        if not (_covers(user.readable, reads) and _covers(user.writable, writes)):
            raise refuse("PERMISSION_DENIED", "permission denied")

    # Streams

    def open(self, path: str, token: str, reply: Reply, end: Callable[[str, str], None]) -> "Served | None":
        """Take a stream; None where it has been ended at once, because there is no leader."""
        if not self.has_quorum:
            end("UNAVAILABLE", "etcdserver: no leader")
            return None
        kind = ServedWatches if path.endswith("/Watch") else ServedRenewals
        stream = kind(self, token, reply, end)
        self._streams[stream] = None
        return stream

    def forget(self, stream: "Served") -> None:
        """Take it that a stream has ended."""
        self._streams.pop(stream, None)

    def _publish(self, known: int) -> None:
        if self.space.revision == known:
            return
        events = self.space.events_since(known + 1, b"\0", b"\0")
        for stream in tuple(self._streams):
            stream.publish(events)
        if self.on_change:
            self.on_change(events)


class Served(abc.ABC):
    """A stream, as the server sees it."""

    def __init__(self, server: EtcdModel, token: str, reply: Reply, end: Callable[[str, str], None]) -> None:
        self._server, self._token, self._reply, self.end = server, token, reply, end

    @abc.abstractmethod
    def receive(self, request: Any) -> None:
        """Take a request."""

    def publish(self, events: Sequence[Event]) -> None:  # noqa: B027  renewals have no use for it
        """Take what has just happened."""


class ServedRenewals(Served):
    """A keep-alive stream."""

    def receive(self, request: Any) -> None:
        """Renew a lease; what may not be renewed ends the stream."""
        server, request = self._server, message("LeaseKeepAliveRequest").FromString(request)
        try:
            server.permit(self._token, writes=server.keys_of({request.ID} & server.space.leases.keys()))
        except EtcdError as error:
            server.forget(self)
            self.end(error.code, error.details)
            return
        if server.fails_renewal(request.ID):
            server.forget(self)
            self.end("UNAVAILABLE", "etcdserver: server stopped")
        elif server.has_quorum:
            ttl = server.space.renew(request.ID, server.now())
            self._reply(message("LeaseKeepAliveResponse")(header=server.header(), ID=request.ID, TTL=ttl))


class ServedWatches(Served):
    """A watch stream with all its watches."""

    def __init__(self, server: EtcdModel, token: str, reply: Reply, end: Callable[[str, str], None]) -> None:
        super().__init__(server, token, reply, end)
        self._watches: dict[int, ServedWatch] = {}
        self._syncing: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def receive(self, request: Any) -> None:
        """Take what the client asks for."""
        match request.WhichOneof("request_union"):
            case "create_request":
                self._create(request.create_request)
            case "cancel_request":
                if self._watches.pop(request.cancel_request.watch_id, None):
                    self._say(request.cancel_request.watch_id, canceled=True)
            case "progress_request":
                self._tell_progress()

    def publish(self, events: Sequence[Event]) -> None:
        """Tell each watch that is up to date what is new."""
        for number, watch in self._watches.items():
            if watch.is_synced:
                self._tell(number, watch, [each for each in events if is_within(each.key, watch.key, watch.end)])
                watch.next = max(watch.next, events[-1].revision + 1)

    def _create(self, create: Any) -> None:
        server = self._server
        try:
            server.permit(self._token, reads=[(create.key, create.range_end)])
        except EtcdError as error:
            words = f"rpc error: code = {error.code} desc = {error.details}"
            self._say(NOBODY, created=True, canceled=True, cancel_reason=words)
            return
        number, revision = create.watch_id, server.space.revision
        start = create.start_revision
        following = start or revision + 1
        watch = ServedWatch(create.key, create.range_end, following, start, is_synced=following > revision)
        self._watches[number] = watch
        self._say(number, created=True)
        if not watch.is_synced and not self._syncing:
            self._sync_in(random.uniform(0, SYNC_SECONDS))  # noqa: S311  no secret

    def _sync_in(self, seconds: float) -> None:
        self._syncing = self._loop.call_later(seconds, self._sync, context=OUTSIDE)

    def _sync(self) -> None:
        """Bring those up to date that began in the past."""
        self._syncing = None
        space = self._server.space
        for number, watch in tuple(self._watches.items()):
            if watch.is_synced:
                continue
            if watch.next <= space.compacted:
                del self._watches[number]
                self._say(number, canceled=True, compact_revision=space.compacted)
                continue
            missed = space.events_since(watch.next, watch.key, watch.end)
            told, later = _divide(missed, SYNC_REVISIONS)
            if told:
                self._say(number, events=told)
            watch.next, watch.is_synced = later[0].revision if later else space.revision + 1, not later
        if not all(watch.is_synced for watch in self._watches.values()):
            self._sync_in(SYNC_SECONDS)

    def _tell(self, number: int, watch: ServedWatch, events: Sequence[Event]) -> None:
        told = [event for event in events if event.revision >= watch.next]
        for _, batch in groupby(told, key=lambda event: event.revision):
            self._say(number, events=list(batch))

    def _tell_progress(self) -> None:
        """Answer how far all watches are, unless one of them is not up to date, or waits for the future."""
        revision = self._server.space.revision
        watches = self._watches.values()
        if watches and all(watch.is_synced and watch.start <= revision for watch in watches):
            self._say(NOBODY)

    def _say(self, number: int, *, events: Sequence[Event] = (), **named: Any) -> None:
        reply = message("WatchResponse")(header=self._server.header(), watch_id=number, **named)
        for event in events:
            _write_event(event, reply.events.add())
        self._reply(reply)


def _divide(events: Sequence[Event], revisions: int) -> tuple[Sequence[Event], Sequence[Event]]:
    """Give the events of the first so many revisions, and the others."""
    each = list(dict.fromkeys(event.revision for event in events))
    if len(each) <= revisions:
        return events, ()
    return [event for event in events if event.revision < each[revisions]], [
        event for event in events if event.revision >= each[revisions]
    ]


def _demand_key(key: bytes) -> None:
    if not key:
        raise refuse("INVALID_ARGUMENT", "key is not provided")


def _covers(allowed: Sequence[Range], wanted: Iterable[Range]) -> bool:
    return all(any(_is_range_within(each, one) for one in allowed) for each in wanted)


def _is_range_within(wanted: Range, allowed: Range) -> bool:
    (key, end), (first, last) = wanted, allowed
    if not end:
        return is_within(key, first, last)
    return first <= key and end <= last and end != b"\0"


def _read_compare(compare: Any) -> Compare:
    target: Any = TARGET_NAMES[compare.target]
    result: Any = OPERATORS[compare.result]
    return Compare(compare.key, target, result, getattr(compare, target), compare.range_end)


def _read_ops(requests: Iterable[Any]) -> list[Op]:
    return [_read_op(each) for each in requests]


def _read_op(request: Any) -> Op:
    match request.WhichOneof("request"):
        case "request_put":
            put = request.request_put
            return PutOp(put.key, put.value, put.lease)
        case "request_delete_range":
            return DeleteOp(request.request_delete_range.key, request.request_delete_range.range_end)
    return GetOp(request.request_range.key, request.request_range.range_end)


def _write_response(op: Any, response: Any, into: Any, header: Any) -> None:
    match op.WhichOneof("request"):
        case "request_put":
            into.response_put.header.CopyFrom(header)
        case "request_delete_range":
            into.response_delete_range.deleted = response
        case _:
            _write_page(op.request_range, response, into.response_range)


def _write_page(asked: Any, listing: Listing, into: Any) -> None:
    records = listing.records[: asked.limit] if asked.limit else listing.records
    into.count, into.more = len(listing.records), len(records) < len(listing.records)
    for record in records:
        _write(record, into.kvs.add())


def _write(record: Record, into: Any, *, keys_only: bool = False) -> None:
    into.key, into.lease, into.version = record.key, record.lease, record.version
    into.create_revision, into.mod_revision = record.create_revision, record.mod_revision
    if not keys_only:
        into.value = record.value


def _write_event(event: Event, into: Any) -> None:
    if isinstance(event, Put):
        _write(event.record, into.kv)
    else:
        into.type, into.kv.key, into.kv.mod_revision = 1, event.key, event.revision

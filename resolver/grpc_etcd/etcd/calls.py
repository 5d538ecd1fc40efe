"""Every unary call as a value: method, request, and how its reply is read. No I/O; the drivers send them.

A `Steps` is a generator that yields calls and is sent their read replies: what takes several calls is decided here once
for both drivers.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

from grpc_etcd.etcd import model
from grpc_etcd.etcd.compare import Compare
from grpc_etcd.etcd.messages import message
from grpc_etcd.etcd.model import Event, LeaseId, Listing, Record, Revision
from grpc_etcd.etcd.ops import GetOp, Op, PutOp

T = TypeVar("T")

# A page of a listing aims at so many bytes. For each page etcd counts all keys that are left, and a page's reply weighs
# a few times its bytes. Measured with 100,000 keys: 512 KiB took 0.55 s and 78 MB at the peak, this 0.47 s and 79 MB,
# 1 MiB 0.50 s and 83 MB.
PAGE_BYTES = 7 << 17
FIRST_PAGE_KEYS = 1_000
MOST_PAGE_KEYS = 10_000
# By how much pages become smaller each time that one has not come in time, and how often. An etcd that was down for all
# looks alike, so the smallest must not make a listing much slower: 62 keys at first, then 56 KiB. Arbitrary.
SMALLER_PAGE = 4
MOST_SHRINKING = 2

TARGETS = {"version": 0, "create_revision": 1, "mod_revision": 2, "value": 3, "lease": 4}
RESULTS = {"==": 0, ">": 1, "<": 2, "!=": 3}


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC of etcd and the functions that turn its messages into bytes and back."""

    path: str
    serialize: Callable[[Any], bytes]
    parse: Callable[[bytes], Any]


class Call(NamedTuple, Generic[T]):
    """One unary call. `meanwhile` is work that may be done while the reply is on its way, twice without harm."""

    method: Method
    request: Any
    read: Callable[[Any], T]
    meanwhile: Callable[[], None] | None = None


Steps: TypeAlias = Generator[Call[Any], Any, T]


@cache
def method(path: str, request: str, response: str) -> Method:
    """Return an RPC by its path and the names of its messages."""
    return Method(f"/etcdserverpb.{path}", message(request).SerializeToString, message(response).FromString)


def range_method() -> Method:
    """KV/Range."""
    return method("KV/Range", "RangeRequest", "RangeResponse")


def put(key: bytes, value: bytes, lease: int) -> Call[Revision]:
    """Put a key; the reply is the revision."""
    request = message("PutRequest")(key=key, value=value, lease=lease)
    return Call(method("KV/Put", "PutRequest", "PutResponse"), request, read_revision)


def get(key: bytes, revision: int) -> Call[Record | None]:
    """Read one key."""
    request = message("RangeRequest")(key=key, revision=revision)
    return Call(range_method(), request, lambda reply: make_record(reply.kvs[0]) if reply.kvs else None)


def revision(key: bytes) -> Call[Revision]:
    """Ask for the store's revision, by a key that may be read."""
    request = message("RangeRequest")(key=key, count_only=True)
    return Call(range_method(), request, read_revision)


def probe(key: bytes, revision: int) -> Call[tuple[Record | None, Revision]]:
    """Read one key as it was at a revision; the reply has the store's revision of now too."""
    request = message("RangeRequest")(key=key, revision=revision)
    return Call(
        range_method(), request, lambda reply: (make_record(reply.kvs[0]) if reply.kvs else None, read_revision(reply))
    )


def delete(key: bytes, end: bytes = b"") -> Call[int]:
    """Delete a key or a range; the reply is how many were there."""
    request = message("DeleteRangeRequest")(key=key, range_end=end)
    wire = method("KV/DeleteRange", "DeleteRangeRequest", "DeleteRangeResponse")
    return Call(wire, request, lambda reply: int(reply.deleted))


def delete_prefix(prefix: bytes) -> Call[int]:
    """Delete all keys of a prefix."""
    return delete(model.range_start(prefix), model.prefix_end(prefix))


def compact(revision: int) -> Call[None]:
    """Forget the history before a revision."""
    request = message("CompactionRequest")(revision=revision)
    return Call(method("KV/Compact", "CompactionRequest", "CompactionResponse"), request, lambda _: None)


def transaction(
    compare: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op]
) -> Call[model.TransactionResult]:
    """Run the operations of `success` when all comparisons hold, else those of `failure`."""
    request = message("TxnRequest")()
    success, failure = tuple(success), tuple(failure)  # the caller may use its lists again before the reply is read
    for each in compare:
        write_compare(each, request.compare.add())
    for target, operations in ((request.success, success), (request.failure, failure)):
        for op in operations:
            write_op(op, target.add())
    return Call(
        method("KV/Txn", "TxnRequest", "TxnResponse"),
        request,
        lambda reply: read_transaction(reply, success if reply.succeeded else failure),
    )


# Filled in place: messages that are made first and passed on are copied, which takes three times as long (measured).
def write_compare(compare: Compare, into: Any) -> None:
    """Fill a comparison's message."""
    into.key, into.range_end = compare.key, compare.range_end
    into.target = TARGETS[compare.target]
    into.result = RESULTS[compare.operator]
    setattr(into, compare.target, compare.operand)


def write_op(op: Op, into: Any) -> None:
    """Fill an operation's message."""
    if isinstance(op, PutOp):
        key, value, lease = op
        put = into.request_put
        put.key, put.value = key, value
        if lease:
            put.lease = lease
        return
    wanted = into.request_range if isinstance(op, GetOp) else into.request_delete_range
    wanted.key, wanted.range_end = op


def read_transaction(reply: Any, operations: Sequence[Op]) -> model.TransactionResult:
    """Read a transaction's reply to the operations that were run."""
    revision, replies = read_revision(reply), reply.responses
    responses = tuple(
        # What puts are answered is known: the messages, which cost more than all else here, are not even looked at.
        revision if isinstance(op, PutOp) else read_response(op, replies[place], revision)
        for place, op in enumerate(operations)
    )
    return model.TransactionResult(reply.succeeded, revision, responses)


def read_response(op: Op, response: Any, revision: Revision) -> Listing | int:
    """Read the answer to a read or a deletion of a transaction."""
    if isinstance(op, GetOp):
        return Listing(tuple(make_records(response.response_range.kvs)), revision)
    return int(response.response_delete_range.deleted)


def grant(ttl_seconds: int, lease_id: int) -> Call[LeaseId]:
    """Grant a lease; id 0 lets etcd choose one."""
    request = message("LeaseGrantRequest")(TTL=ttl_seconds, ID=lease_id)
    wire = method("Lease/LeaseGrant", "LeaseGrantRequest", "LeaseGrantResponse")
    return Call(wire, request, lambda reply: LeaseId(reply.ID))


def revoke(lease_id: int) -> Call[None]:
    """Revoke a lease with all its keys."""
    request = message("LeaseRevokeRequest")(ID=lease_id)
    return Call(method("Lease/LeaseRevoke", "LeaseRevokeRequest", "LeaseRevokeResponse"), request, lambda _: None)


def leases() -> Call[tuple[LeaseId, ...]]:
    """List the ids of all leases."""
    wire = method("Lease/LeaseLeases", "LeaseLeasesRequest", "LeaseLeasesResponse")
    return Call(wire, message("LeaseLeasesRequest")(), lambda reply: tuple(LeaseId(lease.ID) for lease in reply.leases))


def time_to_live(lease_id: int, *, keys: bool) -> Call[model.TimeToLive | None]:
    """Ask how long a lease has left; None when there is no such lease."""
    request = message("LeaseTimeToLiveRequest")(ID=lease_id, keys=keys)
    wire = method("Lease/LeaseTimeToLive", "LeaseTimeToLiveRequest", "LeaseTimeToLiveResponse")
    return Call(wire, request, read_time_to_live)


def read_time_to_live(reply: Any) -> model.TimeToLive | None:
    """Read a lease's remaining time; etcd says -1 for a lease that it does not know."""
    return None if reply.TTL < 0 else model.TimeToLive(reply.TTL, reply.grantedTTL, tuple(reply.keys))


def authenticate(user: str, password: str) -> Call[str]:
    """Log in; the reply is a token."""
    request = message("AuthenticateRequest")(name=user, password=password)
    wire = method("Auth/Authenticate", "AuthenticateRequest", "AuthenticateResponse")
    return Call(wire, request, lambda reply: str(reply.token))


def status() -> Call[model.ServerStatus]:
    """Ask a member about itself."""
    return Call(
        method("Maintenance/Status", "StatusRequest", "StatusResponse"), message("StatusRequest")(), read_status
    )


def read_status(reply: Any) -> model.ServerStatus:
    """Read what a member says of itself."""
    return model.ServerStatus(
        version=reply.version,
        cluster_id=reply.header.cluster_id,
        member_id=reply.header.member_id,
        leader_id=reply.leader,
        revision=read_revision(reply),
        database_bytes=reply.dbSize,
        errors=tuple(reply.errors),
    )


def read_revision(reply: Any) -> Revision:
    """Return the store's revision at the time of a reply."""
    return Revision(reply.header.revision)


def make_record(kv: Any) -> Record:
    """Return a record from its message."""
    return Record(kv.key, kv.value, kv.lease, kv.create_revision, kv.mod_revision, kv.version)


def make_records(kvs: Any) -> list[Record]:
    """Return records from their messages. Neighbours mostly share revisions, which are then one object: less memory."""
    records = []
    last = 0
    for kv in kvs:
        created, modified = kv.create_revision, kv.mod_revision
        if created == last:
            created = last
        last = modified = created if modified == created else modified
        records.append(Record(kv.key, kv.value, kv.lease, created, modified, kv.version))
    return records


def make_event(event: Any) -> Event:
    """Return an event from its message."""
    kv = event.kv
    return model.Deleted(kv.key, kv.mod_revision) if event.type else model.Put(make_record(kv))


def get_ranges(ranges: Sequence[tuple[bytes, bytes]]) -> Call[tuple[Listing | None, ...]]:
    """Read several ranges at one revision; of one that has more than its share of a page there is None.

    One call for many small ranges costs less than one for each: 400 services (800 ranges) are known after 1.3 s
    instead of 5.3 s (measured on 2 cores, with watches and all).
    """
    request = message("TxnRequest")()
    share = max(1, FIRST_PAGE_KEYS // len(ranges))
    for key, end in ranges:
        wanted = request.success.add().request_range
        wanted.key, wanted.range_end, wanted.limit = key, end, share

    def read(reply: Any) -> tuple[Listing | None, ...]:
        revision = read_revision(reply)
        pages = [response.response_range for response in reply.responses]
        return tuple(None if page.more else Listing(tuple(make_records(page.kvs)), revision) for page in pages)

    return Call(method("KV/Txn", "TxnRequest", "TxnResponse"), request, read)


def some_keys(prefix: bytes, limit: int) -> Call[tuple[bytes, ...]]:
    """Read the first keys of a prefix."""
    start, end = model.range_start(prefix), model.prefix_end(prefix)
    request = message("RangeRequest")(key=start, range_end=end, limit=limit, keys_only=True)
    return Call(range_method(), request, lambda reply: tuple(kv.key for kv in reply.kvs))


def get_prefix(prefix: bytes, *, revision: int = 0, keys_only: bool = False, late: int = 0) -> Steps[Listing]:
    """Read a prefix, as get_range() does."""
    start, end = model.range_start(prefix), model.prefix_end(prefix)
    return get_range(start, end, revision=revision, keys_only=keys_only, late=late)


def get_range(key: bytes, end: bytes, *, revision: int = 0, keys_only: bool = False, late: int = 0) -> Steps[Listing]:
    """Read a range in pages, all at the first page's revision; records are made while the next page is on its way.

    Without an `end` the range is one key. `late` (up to MOST_SHRINKING) is how often in a row a page has not come
    in time: where the values are large, or the way is slow, smaller ones may.
    """
    records: list[Record] = []
    pages: list[Any] = []

    def catch_up() -> None:
        while pages:
            records.extend(make_records(pages.pop().kvs))

    smaller = SMALLER_PAGE**late
    limit = FIRST_PAGE_KEYS // smaller
    while True:
        request = message("RangeRequest")(key=key, range_end=end, revision=revision, limit=limit, keys_only=keys_only)
        page = yield Call(range_method(), request, read_reply, catch_up if pages else None)
        catch_up()
        revision = revision or read_revision(page)
        pages.append(page)
        if not page.more:
            catch_up()
            return Listing(tuple(records), Revision(revision))
        key = page.kvs[-1].key + b"\x00"
        limit = next_limit(limit, page.ByteSize(), PAGE_BYTES // smaller)


def one(call: Call[T]) -> Steps[T]:
    """Take a single call as steps."""
    reply: T = yield call
    return reply


def read_reply(reply: Any) -> Any:
    """Take a reply as it is."""
    return reply


def next_limit(limit: int, page_bytes: int, wanted_bytes: int) -> int:
    """Return how many keys to ask for next, from what the last page of `limit` keys weighed."""
    return max(1, min(MOST_PAGE_KEYS, limit * wanted_bytes // max(1, page_bytes)))

"""What the model of etcd promises, shown on the model and on a real etcd alike, so that the model is honest."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any, Protocol

import pytest

from grpc_etcd.etcd import (
    AuthFailed,
    Compacted,
    Compare,
    DeadlineExceeded,
    Deleted,
    Disconnected,
    DuplicateKey,
    FutureRevision,
    InvalidRequest,
    LeaseExists,
    LeaseId,
    LeaseNotFound,
    Listing,
    NoLeader,
    NoSpace,
    PermissionDenied,
    RequestTooLarge,
    TooManyOperations,
    Unavailable,
    WatchEvents,
    WatchSnapshot,
    WatchUpdate,
    compare,
    ops,
)
from grpc_etcd.etcd.aio import Etcd
from grpc_etcd.etcd.list_watch import progress_request, watch_method
from grpc_etcd.etcd.messages import message
from testbed.conditions import existing, until
from testbed.etcd import EtcdServer
from testbed.models.etcd_channel import open_etcd
from testbed.models.etcd_server import EtcdModel

WORD = "first"
ADMIN = "root:secret"


class Cluster(Protocol):
    """An etcd of either kind, and what its admin does."""

    def open(self, user: str = "", password: str = "") -> Etcd: ...
    def stop(self) -> None: ...
    def start(self) -> None: ...
    def wipe(self) -> None: ...
    def enable_auth(self) -> None: ...
    def add_user(self, prefix: bytes) -> None: ...
    def grant(self, prefix: bytes) -> None: ...
    def deregister(self, prefix: bytes) -> None: ...
    def fill(self) -> None: ...
    def freeze(self) -> None: ...
    def resume(self) -> None: ...
    def lose_quorum(self) -> None: ...
    def regain_quorum(self) -> None: ...


class RealCluster:
    def __init__(self, server: EtcdServer) -> None:
        self._server = server

    def open(self, user: str = "", password: str = "") -> Etcd:
        return Etcd(self._server.members[0].endpoint, user=user, password=password)

    def stop(self) -> None:
        self._server.kill()

    def start(self) -> None:
        self._server.restart()

    def wipe(self) -> None:
        self._server.restart(fresh=True)

    def enable_auth(self) -> None:
        assert self._server.enable_auth("secret") == ADMIN

    def add_user(self, prefix: bytes) -> None:
        self._server.add_user("app", WORD, [prefix.decode()], admin=ADMIN)

    def grant(self, prefix: bytes) -> None:
        self._role("grant-permission", "--prefix=true", "app", "readwrite", prefix.decode())

    def deregister(self, prefix: bytes) -> None:
        self._role("revoke-permission", "--prefix=true", "app", prefix.decode())

    def _role(self, *words: str) -> None:
        self._server.etcdctl("role", *words, user=ADMIN)

    def fill(self) -> None:
        size = 100_000
        with contextlib.suppress(Exception):
            for number in range(400):
                self._server.etcdctl("put", f"fill/{number}", "x" * size)

    def freeze(self) -> None:
        self._server.pause()

    def resume(self) -> None:
        self._server.resume()

    def lose_quorum(self) -> None:
        for member in self._server.members[1:]:
            member.kill()

    def regain_quorum(self) -> None:
        for member in self._server.members[1:]:
            member.process.start()


class ModelCluster:
    def __init__(self) -> None:
        self._model = EtcdModel()

    def open(self, user: str = "", password: str = "") -> Etcd:
        return open_etcd(self._model, user=user, password=password)

    def stop(self) -> None:
        self._model.stop()

    def start(self) -> None:
        self._model.start()

    def wipe(self) -> None:
        self._model.wipe()

    def enable_auth(self) -> None:
        self._model.enable_auth("secret")

    def add_user(self, prefix: bytes) -> None:
        self._model.add_user("app", WORD, [prefix])

    def grant(self, prefix: bytes) -> None:
        self._model.grant("app", prefix)

    def deregister(self, prefix: bytes) -> None:
        self._model.deregister("app", prefix)

    def fill(self) -> None:
        self._model.space.is_full = True

    def freeze(self) -> None:
        self._model.freeze()

    def resume(self) -> None:
        self._model.resume()

    def lose_quorum(self) -> None:
        self._model.lose_quorum()

    def regain_quorum(self) -> None:
        self._model.regain_quorum()


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdServer]:
    with EtcdServer.start(flags=["--quota-backend-bytes=16777216"]) as server:
        yield server


@pytest.fixture(params=["model", "etcd"])
async def cluster(request: pytest.FixtureRequest) -> Cluster:
    if request.param == "model":
        return ModelCluster()
    server: EtcdServer = request.getfixturevalue("etcd")
    server.restart(fresh=True)
    return RealCluster(server)


@pytest.fixture(params=["model", "etcd"])
async def three(request: pytest.FixtureRequest) -> AsyncIterator[Cluster]:
    """A cluster of three members, of which clients know the first."""
    if request.param == "model":
        yield ModelCluster()
        return
    with EtcdServer.start(members=3) as server:
        yield RealCluster(server)


@pytest.fixture
async def client(cluster: Cluster) -> AsyncIterator[Etcd]:
    async with cluster.open() as opened:
        yield opened


@contextlib.asynccontextmanager
async def following(client: Etcd, *prefixes: bytes, **named: Any) -> AsyncIterator[list[WatchUpdate]]:
    """Collect the news of a list-watch."""
    news: list[WatchUpdate] = []

    async def collect() -> None:
        async for each in client.list_watch(*prefixes, **named):
            news.append(each)  # noqa: PERF401  they come one by one

    task = asyncio.create_task(collect())
    try:
        yield news
    finally:
        task.cancel()
        await asyncio.wait([task])


def events(news: list[WatchUpdate]) -> list[tuple[bytes, bytes | None, int]]:
    """List the events among news: key, value (None: deleted), revision."""
    return [
        (event.key, None if isinstance(event, Deleted) else event.record.value, event.revision)
        for each in news
        if isinstance(each, WatchEvents)
        for event in each.events
    ]


def listings(news: list[WatchUpdate]) -> list[dict[bytes, bytes]]:
    return [{record.key: record.value for record in each.records} for each in news if isinstance(each, WatchSnapshot)]


async def test_records_count_their_revisions(client: Etcd) -> None:
    first = await client.put(b"k", b"1")
    await client.put(b"other", b"")
    second = await client.put(b"k", b"2")
    assert second == first + 2
    record = existing(await client.get(b"k"))
    assert (record.create_revision, record.mod_revision, record.version) == (first, second, 2)
    assert existing(await client.get(b"k", revision=first)).value == b"1"
    assert await client.delete(b"k")
    assert not await client.delete(b"k")
    third = await client.put(b"k", b"3")
    assert third == second + 2  # a delete of nothing is no revision
    assert existing(await client.get(b"k")).create_revision == third


@pytest.mark.parametrize("prefix", [b"p/", b"\xff", b"", b"a\xff\xff"])
async def test_prefixes(client: Etcd, prefix: bytes) -> None:
    keys = [b"a", b"a\xff\xff", b"a\xff\xff1", b"b", b"p/", b"p/1", b"p/2", b"p0", b"\xff", b"\xff\xff", b"\xff1"]
    for key in keys:
        await client.put(key, b"v" + key)
    listing = await client.get_prefix(prefix)
    assert [record.key for record in listing.records] == sorted(key for key in keys if key.startswith(prefix))
    assert await client.delete_prefix(prefix) == len(listing.records)
    assert (await client.get_prefix(prefix, revision=listing.revision)) == listing
    assert (await client.get_prefix(prefix)).records == ()


async def test_a_long_listing_is_of_one_revision(client: Etcd) -> None:
    for start in range(0, 2500, 100):
        await client.transaction([], [ops.put(b"many/%05d" % each, b"x") for each in range(start, start + 100)])
    listing = await client.get_prefix(b"many/", keys_only=True)
    assert [record.key for record in listing.records] == [b"many/%05d" % each for each in range(2500)]
    assert {record.value for record in listing.records} == {b""}


async def test_a_transaction_is_one_revision_and_reads_its_own_writes(client: Etcd) -> None:
    before = await client.put(b"old", b"")
    lease = await client.lease(60)
    absent = compare.version(b"t", "==", 0)
    done = await client.transaction([absent], [ops.put(b"t", b"1", lease), ops.delete(b"old"), ops.get(b"t")])
    assert (done.succeeded, done.revision, done.responses[:2]) == (True, before + 1, (before + 1, 1))
    read = done.responses[2]
    assert isinstance(read, Listing)
    assert (read.records[0].value, read.records[0].lease) == (b"1", lease)
    assert existing(await client.get(b"t")).mod_revision == done.revision
    otherwise = await client.transaction([absent], [ops.put(b"t", b"2")], [ops.get_prefix(b"t"), ops.get(b"none")])
    assert (otherwise.succeeded, otherwise.revision) == (False, done.revision)
    empty = await client.transaction([], [])
    assert (empty.succeeded, empty.revision) == (True, done.revision)


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        (compare.version(b"c", ">", 0), True),
        (compare.version(b"c", "<", 1), False),
        (compare.create_revision(b"c", "==", 0), False),
        (compare.create_revision(b"none", "==", 0), True),
        (compare.mod_revision(b"c", "!=", 0), True),
        (compare.value(b"c", "==", b"v"), True),
        (compare.value(b"none", "!=", b"v"), False),
        (compare.lease(b"c", "==", 0), True),
        (compare.leases(b"c", "==", 0), True),
        (compare.leases(b"none", "==", 0), True),
        (compare.leases(b"none", ">", 0), False),
    ],
)
async def test_comparisons(client: Etcd, condition: Compare, *, holds: bool) -> None:
    await client.put(b"c", b"v")
    await client.put(b"c2", b"v")
    assert (await client.transaction([condition], [])).succeeded is holds


async def test_refusals(client: Etcd) -> None:
    with pytest.raises(RequestTooLarge):
        await client.put(b"big", b"x" * 2_000_000)
    with pytest.raises(TooManyOperations):
        await client.transaction([], [ops.put(b"%d" % each, b"") for each in range(129)])
    with pytest.raises(DuplicateKey):
        await client.transaction([], [ops.put(b"twice", b""), ops.put(b"twice", b"")])
    with pytest.raises(DuplicateKey):
        await client.transaction([], [ops.put(b"twice", b""), ops.delete_prefix(b"tw")])
    with pytest.raises(InvalidRequest):
        await client.put(b"", b"v")
    with pytest.raises(LeaseNotFound):
        await client.put(b"k", b"v", lease=99)
    with pytest.raises(LeaseNotFound):
        await client.transaction([], [ops.put(b"fine", b""), ops.put(b"k", b"v", 99)])
    assert await client.get(b"fine") is None


async def test_history_is_forgotten_before_a_compaction(client: Etcd) -> None:
    old = await client.put(b"k", b"1")
    gone = await client.put(b"gone", b"1")
    await client.delete(b"gone")
    new = await client.put(b"k", b"2")
    await client.compact(new)
    with pytest.raises(Compacted):
        await client.get(b"k", revision=old)
    with pytest.raises(Compacted):
        await client.get(b"gone", revision=gone)
    assert existing(await client.get(b"k", revision=new)).value == b"2"
    with pytest.raises(Compacted):
        await client.compact(new)
    with pytest.raises(FutureRevision):
        await client.get(b"k", revision=new + 1)
    with pytest.raises(FutureRevision):
        await client.compact(new + 1)


async def test_leases(client: Etcd) -> None:
    lease = await client.lease(60, 4711)
    with pytest.raises(LeaseExists):
        await client.lease(60, 4711)
    await client.put(b"l/2", b"v", lease=lease)
    before = await client.put(b"l/1", b"v", lease=lease)
    assert set(existing(await client.time_to_live(lease, keys=True)).keys) == {b"l/1", b"l/2"}
    await client.put(b"l/2", b"v")  # which takes it from the lease
    assert existing(await client.time_to_live(lease, keys=True)).keys == (b"l/1",)
    async with following(client, b"l/") as news:
        await until(lambda: bool(listings(news)))
        await client.revoke(lease)
        await until(lambda: bool(events(news)))
    assert events(news) == [(b"l/1", None, before + 2)]
    assert await client.time_to_live(lease) is None
    with pytest.raises(LeaseNotFound):
        await client.revoke(lease)
    empty = await client.lease(60)
    await client.revoke(empty)
    assert await client.put(b"k", b"") == before + 3  # a revoke without keys is no revision


async def test_a_lease_that_nobody_renews_runs_out(client: Etcd) -> None:
    loop = asyncio.get_running_loop()
    lease = await client.lease(2)
    began = loop.time()
    await client.put(b"l/1", b"v", lease=lease)
    async with following(client, b"l/") as news:
        await until(lambda: bool(events(news)))
    assert loop.time() - began > 1.5
    assert await client.time_to_live(lease) is None


async def test_a_lease_that_is_kept_alive_stays(client: Etcd) -> None:
    lost: list[LeaseId] = []
    async with client.keep_alive(lost.append) as keeper:
        kept, revoked = await client.lease(2), await client.lease(2)
        keeper.add(kept, 2)
        keeper.add(revoked, 2)
        await client.put(b"k", b"", lease=kept)
        await client.revoke(revoked)
        await until(lambda: bool(lost))
        await asyncio.sleep(4)
        assert lost == [revoked]
        assert await client.get(b"k")


async def test_a_list_watch_lists_and_tells_each_event_once(client: Etcd) -> None:
    await client.put(b"w/old", b"1")
    async with following(client, b"w/") as news:
        await until(lambda: bool(listings(news)))
        await client.put(b"else", b"")
        first = await client.put(b"w/1", b"a")
        await client.transaction([], [ops.put(b"w/2", b"b"), ops.delete(b"w/old"), ops.delete(b"w/none")])
        await until(lambda: len(events(news)) == 3)
    assert listings(news) == [{b"w/old": b"1"}]
    assert events(news)[0] == (b"w/1", b"a", first)
    assert sorted(events(news)[1:]) == [(b"w/2", b"b", first + 1), (b"w/old", None, first + 1)]


async def test_a_watch_goes_on_where_it_was_after_a_restart(cluster: Cluster, client: Etcd) -> None:
    async with following(client, b"w/") as news:
        await until(lambda: bool(listings(news)))
        first = await client.put(b"w/1", b"")
        await until(lambda: len(events(news)) == 1)
        cluster.stop()
        await until(lambda: isinstance(news[-1], Disconnected))
        with pytest.raises(Unavailable):
            await client.get(b"w/1")
        cluster.start()
        await until_done(client.put, b"w/2", b"")
        await until(lambda: len(events(news)) == 2)
    assert events(news)[0][2] == first
    assert len(listings(news)) == 1


async def until_done(call: Any, *arguments: Any) -> Any:
    """Call until etcd takes it."""
    while True:
        try:
            return await call(*arguments)
        except (Unavailable, DeadlineExceeded):
            await asyncio.sleep(0.1)


async def test_lost_data_are_another_history(cluster: Cluster, client: Etcd) -> None:
    for _ in range(5):
        await client.put(b"w/old", b"")
    async with following(client, b"w/") as news:
        await until(lambda: bool(listings(news)))
        cluster.wipe()
        await until_done(client.put, b"w/new", b"")
        await until(lambda: len(listings(news)) > 1 and not listings(news)[-1].keys() & {b"w/old"})
        await until(lambda: set(listings(news)[-1]) | {key for key, _, _ in events(news)} == {b"w/new"})


class RawWatch:
    """A watch stream, spoken by hand."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    async def create(self, number: int, key: bytes, start: int = 0) -> None:
        request = message("WatchCreateRequest")(key=key, start_revision=start, watch_id=number)
        await self.stream.write(message("WatchRequest")(create_request=request))

    async def cancel(self, number: int) -> None:
        request = message("WatchCancelRequest")(watch_id=number)
        await self.stream.write(message("WatchRequest")(cancel_request=request))

    async def read(self) -> Any:
        async with asyncio.timeout(30):
            return await self.stream.read()

    async def progress(self) -> tuple[int, int]:
        """Ask until it is answered: etcd says nothing while a watch catches up."""
        while True:
            await self.stream.write(progress_request())
            reading = asyncio.ensure_future(self.stream.read())
            done, _ = await asyncio.wait({reading}, timeout=1.0)
            if done:
                reply = reading.result()
                return reply.watch_id, reply.header.revision
            reading.cancel()
            await asyncio.wait({reading})


@pytest.fixture
async def raw(client: Etcd) -> AsyncIterator[RawWatch]:
    stream = await client._connection.stream(watch_method())
    yield RawWatch(stream)
    stream.cancel()


def seen(reply: Any) -> tuple[int, bool, bool, int, list[bytes]]:
    return (
        reply.watch_id,
        reply.created,
        reply.canceled,
        reply.compact_revision,
        [each.kv.key for each in reply.events],
    )


async def test_watches_of_one_stream_are_told_apart_by_their_ids(client: Etcd, raw: RawWatch) -> None:
    await raw.create(7, b"a")
    await raw.create(9, b"b")
    assert [seen(await raw.read()), seen(await raw.read())] == [(7, True, False, 0, []), (9, True, False, 0, [])]
    await client.put(b"b", b"")
    assert seen(await raw.read()) == (9, False, False, 0, [b"b"])
    await raw.cancel(9)
    assert seen(await raw.read()) == (9, False, True, 0, [])
    await client.put(b"b", b"")
    await client.put(b"a", b"")
    assert seen(await raw.read()) == (7, False, False, 0, [b"a"])


async def test_a_watch_from_the_past_is_told_all_since(client: Etcd, raw: RawWatch) -> None:
    first = await client.put(b"a", b"1")
    await client.delete(b"a")
    last = await client.put(b"a", b"2")
    await raw.create(1, b"a", first)
    assert seen(await raw.read()) == (1, True, False, 0, [])
    told: list[int] = []
    while not told or told[-1] < last:
        told += [event.kv.mod_revision for event in (await raw.read()).events]
    assert told == [first, first + 1, last]


async def test_a_watch_from_the_past_is_told_a_thousand_revisions_at_a_time(client: Etcd, raw: RawWatch) -> None:
    first = await client.put(b"a", b"")
    for _ in range(1_001):
        last = await client.put(b"a", b"")
    await raw.create(1, b"a", first)
    created = await raw.read()
    assert (created.created, created.header.revision) == (True, last)
    assert [len((await raw.read()).events) for _ in range(2)] == [1_000, 2]


async def test_a_watch_from_before_a_compaction_is_ended(client: Etcd, raw: RawWatch) -> None:
    first = await client.put(b"a", b"1")
    last = await client.put(b"a", b"2")
    await client.compact(last)
    await raw.create(1, b"a", first)
    assert seen(await raw.read()) == (1, True, False, 0, [])
    assert seen(await raw.read()) == (1, False, True, last, [])


async def test_progress_speaks_for_all_watches_of_the_stream(client: Etcd, raw: RawWatch) -> None:
    first = await client.put(b"a", b"1")
    await raw.create(1, b"a", first)
    await raw.create(2, b"b")
    kinds = [seen(await raw.read()) for _ in range(3)]
    assert sorted(each[0] for each in kinds) == [1, 1, 2]
    revision = await client.put(b"else", b"")
    assert await raw.progress() == (-1, revision)


async def test_a_watch_from_the_future_keeps_progress_back(client: Etcd, raw: RawWatch) -> None:
    revision = await client.put(b"a", b"1")
    await raw.create(1, b"a", revision + 1)
    assert seen(await raw.read())[1]
    await raw.stream.write(progress_request())
    await asyncio.sleep(0.5)
    assert await client.put(b"else", b"") == revision + 1
    assert await raw.progress() == (-1, revision + 1)  # the first answer: the request before got none


async def test_users(cluster: Cluster) -> None:
    cluster.enable_auth()
    cluster.add_user(b"app/")
    async with cluster.open() as nobody, cluster.open("app", "wrong") as wrong, cluster.open("app", WORD) as app:
        for client in (nobody, wrong):
            with pytest.raises(AuthFailed):
                await client.get(b"app/1")
        await app.put(b"app/1", b"")
        with pytest.raises(PermissionDenied):
            await app.put(b"else", b"")
        with pytest.raises(PermissionDenied):
            await app.get_prefix(b"")
        with pytest.raises(PermissionDenied):
            await app.transaction([compare.version(b"else", "==", 0)], [ops.put(b"app/1", b"")])
        with pytest.raises(PermissionDenied):
            await app.transaction([compare.version(b"app/1", ">", 0)], [], [ops.get(b"else")])
        lease = await app.lease(60)
        async with cluster.open("root", "secret") as root:
            await root.put(b"else", b"", lease=lease)
            with pytest.raises(PermissionDenied):
                await app.revoke(lease)
            with pytest.raises(PermissionDenied):
                await app.put(b"app/2", b"", lease=lease)
            await root.revoke(lease)


async def test_a_refused_watch_is_tried_again_until_it_is_granted(cluster: Cluster) -> None:
    cluster.enable_auth()
    cluster.add_user(b"app/")
    async with cluster.open("app", WORD) as app:
        hub, refused, allowed = app.watch_hub(), list[WatchUpdate](), list[WatchUpdate]()
        hub.follow(b"other/", refused.append)
        hub.follow(b"app/", allowed.append)
        await until(lambda: bool(refused and allowed))
        assert isinstance(refused[0], Disconnected)
        assert isinstance(refused[0].error, PermissionDenied)
        cluster.grant(b"other/")
        await until(lambda: bool(listings(refused)))
        await app.put(b"other/1", b"")
        await until(lambda: bool(events(refused)))
        assert not [each for each in allowed if isinstance(each, Disconnected)]
        cluster.deregister(b"other/")
        with pytest.raises(PermissionDenied):
            await app.put(b"other/1", b"")
        await hub.close()


async def test_without_space_nothing_is_put_and_everything_may_be_deleted(cluster: Cluster, client: Etcd) -> None:
    lease = await client.lease(60)
    await client.put(b"k", b"", lease=lease)
    cluster.fill()
    with pytest.raises(NoSpace):
        await client.put(b"k", b"")
    with pytest.raises(NoSpace):
        await client.lease(60)
    with pytest.raises(NoSpace):
        await client.transaction([compare.version(b"k", "==", 0)], [ops.put(b"k", b"")], [ops.delete(b"k")])
    assert (await client.transaction([], [ops.delete(b"k")])).succeeded
    assert "NOSPACE" in str((await client.status()).errors)
    await client.revoke(lease)


async def test_a_frozen_etcd_lets_calls_wait_and_tells_the_rest_later(cluster: Cluster) -> None:
    async with cluster.open() as client, following(client, b"k") as news:
        await until(lambda: bool(listings(news)))
        cluster.freeze()
        with pytest.raises((DeadlineExceeded, Unavailable)):
            await client.put(b"k", b"1")
        cluster.resume()
        await until_done(client.put, b"k", b"2")
        await until(lambda: any(value == b"2" for _, value, _ in events(news)))  # the first may come after it


async def test_without_a_quorum_nothing_is_read_and_streams_end(three: Cluster) -> None:
    async with three.open() as client, following(client, b"k") as news:
        await until_done(client.put, b"k", b"1")
        await until(lambda: bool(listings(news)))
        three.lose_quorum()
        await until(lambda: isinstance(news[-1], Disconnected) and isinstance(news[-1].error, NoLeader))
        with pytest.raises((DeadlineExceeded, Unavailable)):
            await client.get(b"k")
        with pytest.raises((DeadlineExceeded, Unavailable)):
            await client.put(b"k", b"2")
        three.regain_quorum()
        await until_done(client.put, b"k", b"3")
        await until(lambda: events(news)[-1:] and events(news)[-1][1] == b"3")

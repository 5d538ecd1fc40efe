"""Transactions of several keys reach different watches one after another: whoever plans in between ends with all keys.

The planner is the real one. It plans from what the mirror knows at that moment, and only those units that the mirror
has named; once all is told and written, a mirror that has listed everything at once must find nothing left to do.
"""

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from grpc_etcd.etcd.model import Deleted, Event, LeaseId, Put, Record, Revision
from grpc_etcd.registry.own import OwnerRecord, owner_key, owner_prefix
from grpc_etcd_operator.core.desired import Desired, Unit, Wanted
from grpc_etcd_operator.core.leases import lease_id
from grpc_etcd_operator.core.plan import Contest, Plan, make_plan
from grpc_etcd_operator.registry.cache import Announcement, Mirror
from testbed.examples import examples

CLUSTER = "c1"
OWNERS = owner_prefix(CLUSTER)
UNITS = ("p1", "p2", "p3")  # each outranks those after it
PREFIXES = (OWNERS, b"/jupiter/greeter/providers/", b"/jupiter/payments/providers/")
KEYS = (PREFIXES[1] + b"a", PREFIXES[1] + b"b", PREFIXES[2] + b"a")
STRANGER = LeaseId(77)
MOST_LOOKS = 200  # until all must be at rest. Arbitrary: a run leaves a few dozen changes behind
units, keys, prefixes = st.sampled_from(UNITS), st.sampled_from(KEYS), st.sampled_from(PREFIXES)
wishes = st.sets(keys)


def lease_of(uid: str) -> LeaseId:
    return LeaseId(lease_id(CLUSTER, uid))


def prefix_of(key: bytes) -> bytes:
    return next(prefix for prefix in PREFIXES if key.startswith(prefix))


@dataclass
class Sent:
    """A transaction of ours. `revision` is that of etcd's answer, `reads` what it has read where it refused."""

    plan: Plan
    announcement: Announcement = field(init=False)
    revision: Revision | None = None
    reads: dict[bytes, Record | None] | None = None

    def __post_init__(self) -> None:
        plan = self.plan
        puts = {put.key: (plan.lease, put.value) for put in plan.puts}
        self.announcement = Announcement(puts, self.keys, [each.key for each in plan.deletes])

    @property
    def keys(self) -> list[bytes]:
        plan = self.plan
        return [*plan.keys, *(each.key for each in plan.requires), *(each.key for each in plan.releases)]


class InPieces(RuleBasedStateMachine):
    """etcd, a watch for each prefix that lags behind the others, and an operator that plans whenever it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.store: dict[bytes, Record] = {}
        self.revision = Revision(1)
        self.wanted: dict[str, set[bytes]] = {uid: set() for uid in UNITS}
        self.under_way: list[Sent] = []
        self.start()

    def start(self) -> None:
        self.mirror = Mirror(CLUSTER)
        self.unseen: dict[bytes, list[Event]] = {prefix: [] for prefix in PREFIXES}
        self.unlisted = set(PREFIXES)
        self.dirty = set(UNITS)

    # -- etcd ---------------------------------------------------------------------------------------------------------

    def commit(self, puts: dict[bytes, tuple[bytes, LeaseId]], deletes: set[bytes]) -> None:
        """Make one revision of it all; each watch has its part of the events for itself."""
        gone = sorted(deletes & self.store.keys())
        if not (puts or gone):
            return
        self.revision = now = Revision(self.revision + 1)
        events: list[Event] = []
        for key in gone:
            del self.store[key]
            events.append(Deleted(key, now))
        for key, (value, lease) in puts.items():
            self.store[key] = Record(key, value, lease, now, now, 1)
            events.append(Put(self.store[key]))
        for event in events:
            self.unseen[prefix_of(event.key)].append(event)

    def holds(self, plan: Plan) -> bool:
        at = {key: record.mod_revision for key, record in self.store.items()}
        under = {key: record.lease for key, record in self.store.items()}
        return (
            all(at.get(each.key, 0) == each.mod_revision for each in plan.puts)
            and all(at.get(each.key, 0) == each.mod_revision for each in plan.requires)
            and all(under.get(each.key) == each.lease for each in plan.deletes if not each.mod_revision)
            and all(at.get(each.key, 0) == each.mod_revision for each in plan.deletes if each.mod_revision)
            and all(under.get(each.key, 0) != each.lease for each in plan.releases)
        )

    # -- what others do -----------------------------------------------------------------------------------------------

    @initialize(some=st.fixed_dictionaries(dict.fromkeys(UNITS, wishes)), named=st.dictionaries(units, wishes))
    def all_that_is_found(self, some: dict[str, set[bytes]], named: dict[str, set[bytes]]) -> None:
        """Owner records of before may name the same key: an address has moved, and not all is written yet."""
        self.wanted.update(some)
        for uid, theirs in named.items():
            puts = {key: (b"0", lease_of(uid)) for key in theirs}
            self.commit({**puts, owner_key(CLUSTER, uid): (self.owned(theirs), lease_of(uid))}, set())
        self.start()

    @staticmethod
    def owned(theirs: set[bytes]) -> bytes:
        return OwnerRecord(namespace="shop", pod="pod", keys=tuple(sorted(theirs))).to_json()

    @rule(uid=units, theirs=wishes)
    def somebody_wishes(self, uid: str, theirs: set[bytes]) -> None:
        self.wanted[uid] = theirs
        self.dirty.add(uid)

    @rule(uid=units)
    def a_lease_ends(self, uid: str) -> None:
        """All that is under it goes at one revision."""
        self.commit({}, {key for key, record in self.store.items() if record.lease == lease_of(uid)})

    @rule(gone=st.sets(st.sampled_from((*KEYS, *(owner_key(CLUSTER, uid) for uid in UNITS))), min_size=1))
    def an_admin_deletes(self, gone: set[bytes]) -> None:
        self.commit({}, gone)

    @rule(key=keys, lease=st.sampled_from([STRANGER, LeaseId(0), None]))
    def a_stranger_writes(self, key: bytes, lease: LeaseId | None) -> None:
        """Without a word on the lease it stays (`--ignore-lease`)."""
        held = self.store.get(key)
        self.commit({key: (b"x", (held.lease if held else STRANGER) if lease is None else lease)}, set())

    # -- what we hear and do ------------------------------------------------------------------------------------------

    @rule(prefix=prefixes, count=st.integers(1, 3))
    def a_watch_delivers(self, prefix: bytes, count: int) -> None:
        if prefix in self.unlisted:
            self.a_prefix_is_listed(prefix)
        some, self.unseen[prefix] = self.unseen[prefix][:count], self.unseen[prefix][count:]
        self.dirty |= self.mirror.apply(some)

    @rule(prefix=prefixes)
    def a_prefix_is_listed(self, prefix: bytes) -> None:
        self.unlisted.discard(prefix)
        self.unseen[prefix].clear()
        held = [record for key, record in sorted(self.store.items()) if key.startswith(prefix)]
        self.dirty |= self.mirror.replace([prefix], held, self.revision)

    @precondition(lambda self: not self.under_way)
    @rule()
    def the_operator_starts_again(self) -> None:
        self.start()

    def desired(self, uid: str, without: frozenset[bytes] = frozenset()) -> Desired:
        wanted = tuple(Wanted(key, uid.encode(), "service") for key in sorted(self.wanted[uid] - without))
        return Desired(Unit(uid, "shop", "pod"), wanted)

    def contest(self, uid: str, mirror: Mirror) -> Contest:
        def wins(key: bytes, lease: int) -> bool | None:
            rival = mirror.unit_of_lease(lease)
            return None if rival is None else key not in self.wanted[rival] or uid < rival

        return wins

    def plan(self, uid: str, mirror: Mirror, without: frozenset[bytes] = frozenset()) -> Plan:
        return make_plan(self.desired(uid, without), CLUSTER, mirror, self.contest(uid, mirror), 100)

    def nobodys(self, uid: str) -> frozenset[bytes]:
        """Give the keys under others' leases that their owner records do not name, since an admin deleted those."""
        of = {lease_of(each): self.mirror.owner(each) for each in UNITS if each != uid}
        found = ((key, of[record.lease]) for key, record in self.store.items() if record.lease in of)
        return frozenset(key for key, owner in found if owner is None or key not in owner.keys)

    @rule(uid=units)
    def we_go_on(self, uid: str) -> None:
        """One rule for a transaction's whole way: of three, a run that leaves out some would hardly see an answer."""
        mine = next((each for each in self.under_way if each.plan.uid == uid), None)
        if mine is None:
            self.we_send(uid)
        elif mine.revision is None:
            self.etcd_decides(mine)
        else:
            self.the_answer_comes(mine)

    def we_send(self, uid: str) -> None:
        if uid not in self.dirty or self.unlisted:
            return
        self.dirty.discard(uid)
        plan = self.plan(uid, self.mirror)
        self.mirror.contest(uid, plan.contested)
        if not plan.is_empty:
            self.under_way.append(Sent(plan))
            self.mirror.expect(self.under_way[-1].announcement)

    def etcd_decides(self, mine: Sent) -> None:
        plan = mine.plan
        if self.holds(plan):
            puts = {put.key: (put.value, LeaseId(plan.lease)) for put in plan.puts}
            self.commit(puts, {each.key for each in plan.deletes})
        else:
            mine.reads = {key: self.store.get(key) for key in mine.keys}
        mine.revision = self.revision

    @precondition(lambda self: self.under_way)
    @rule()
    def an_answer_is_lost(self) -> None:
        mine = self.under_way.pop()
        self.dirty |= self.mirror.expect_no_more(mine.announcement) | {mine.plan.uid}

    def the_answer_comes(self, mine: Sent) -> None:
        assert mine.revision
        self.under_way.remove(mine)
        plan, now = mine.plan, mine.revision
        if mine.reads is not None:
            for key, record in mine.reads.items():
                self.dirty |= self.mirror.note_seen(key, record, now)
            self.dirty.add(plan.uid)
        else:
            for put in plan.puts:
                record = Record(put.key, put.value, LeaseId(plan.lease), now, now, 1)
                self.dirty |= self.mirror.note_put(plan.uid, record)
            for each in plan.deletes:
                self.dirty |= self.mirror.note_deleted(each.key, now)
        self.dirty |= self.mirror.expect_no_more(mine.announcement)

    @rule()
    def all_comes_to_rest(self) -> None:
        for _ in range(MOST_LOOKS):
            for prefix in PREFIXES:
                self.a_watch_delivers(prefix, 1)
            for uid in UNITS:
                self.we_go_on(uid)
            if not (self.dirty or self.under_way or any(self.unseen.values())):
                break
        else:
            raise AssertionError("it never comes to rest")
        assert self.mirror.records == self.store
        fresh = Mirror(CLUSTER)
        fresh.replace([b""], self.store.values(), self.revision)
        for uid in UNITS:
            left = self.plan(uid, fresh, self.nobodys(uid))
            assert left.is_empty, left

    def teardown(self) -> None:
        self.all_comes_to_rest()


TestInPieces = InPieces.TestCase
TestInPieces.settings = settings(max_examples=examples(300), stateful_step_count=40)

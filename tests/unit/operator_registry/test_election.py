"""Two elections of one process: as which registry their etcds were led last, and whether they are known to be two."""

from grpc_etcd.etcd.aio import Etcd
from grpc_etcd.etcd.model import Changed, Deleted, LeaseId, Listed, Record, Revision
from grpc_etcd_operator.core.scope import Candidate, Fingerprint, write_holder, write_leader
from grpc_etcd_operator.registry.election import Election

TTL_SECONDS = 3600


def make_election(etcd: Etcd, registry: str) -> Election:
    return Election(etcd, "c1", Candidate("pod-1", nonce="n1", registry=registry), TTL_SECONDS, lambda: None)


def show(election: Election, *, leader: str = "", holder: str = "", revision: int = 5) -> None:
    """Let an election hear who leads, and who led last: another replica, by the name that it has for the etcd."""
    key, cluster_key, standby_prefix = election.prefixes
    leaders = [write_leader(Candidate("pod-2", nonce="n2", registry=leader))] if leader else []
    holders = [write_holder(Fingerprint("uid"), holder)] if holder else []
    for each, values in ((key, leaders), (cluster_key, holders), (standby_prefix, [])):
        at = Revision(revision)
        election.take(each, Listed(tuple(Record(each, value, LeaseId(0), at, at, 1) for value in values), at))


def show_end(election: Election) -> None:
    election.take(election.prefixes[0], Changed((Deleted(election.prefixes[0], Revision(6)),), Revision(6)))


async def test_an_etcd_keeps_the_name_by_which_it_was_led() -> None:
    async with Etcd("127.0.0.1:1") as etcd:
        election = make_election(etcd, "mine")
        assert election.last_registry == ""
        show(election)
        assert election.last_registry == ""
        show(election, leader="older")  # whoever leads there is of a version that writes no name beside the cluster's
        show_end(election)
        assert election.last_registry == "older"
        show(election, holder="first", revision=7)
        assert election.last_registry == "first"


async def test_two_etcds_are_known_to_be_two_by_what_outlives_all_leaders() -> None:
    async with Etcd("127.0.0.1:1") as etcd:
        mine, same, apart, fresh, unread = (make_election(etcd, name) for name in ("m", "s", "a", "f", "u"))
        show(mine, holder="s")
        show(same, holder="s")
        show(apart, holder="m", revision=9)
        show(fresh)
        assert not mine.is_apart_from(same, 0)
        assert not mine.is_apart_from(unread, 0)
        assert mine.is_apart_from(apart, TTL_SECONDS)
        assert mine.is_apart_from(fresh, TTL_SECONDS)


async def test_a_copy_of_an_etcd_is_apart_once_nobody_has_led_there_for_long_beside_a_leader() -> None:
    """Until then somebody may have led whose end the one has heard of before the other."""
    async with Etcd("127.0.0.1:1") as etcd:
        mine, other = (make_election(etcd, name) for name in ("second", "first"))
        for each in (mine, other):
            show(each, leader="first", holder="first")
        assert not mine.is_apart_from(other, 0)
        show_end(mine)
        assert not mine.is_apart_from(other, TTL_SECONDS)
        show(mine, revision=7)  # etcd has lost its data, which the other has yet to hear
        assert not mine.is_apart_from(other, TTL_SECONDS)
        assert mine.is_apart_from(other, 0)
        show_end(other)
        assert not mine.is_apart_from(other, 0)

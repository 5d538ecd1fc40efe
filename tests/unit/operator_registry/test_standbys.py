"""Which standby had better lead than a leader that has lost some registries."""

import pytest

from grpc_etcd.etcd.aio import Etcd
from grpc_etcd.etcd.model import LeaseId, Record, Revision
from grpc_etcd_operator.core.scope import Candidate, reaches_more, read_leader, write_leader, write_standby
from grpc_etcd_operator.registry.standbys import Standbys

PREFIX = b"/grpc-etcd/standby/test/"
OTHER = Candidate("other")


async def has_better(lost: set[str], value: bytes, *, name: str = "other", lease: int = 7) -> bool:
    """Return whether somebody reaches more than who has lost some registries, where one key has this value."""
    async with Etcd("127.0.0.1:1") as etcd:
        standbys, one = Standbys(etcd, PREFIX, "mine"), Revision(1)
        standbys.take_listing([Record(PREFIX + name.encode(), value, LeaseId(lease), one, one, 1)])
        return any(reaches_more(each, frozenset(lost)) for each in standbys.others)


@pytest.mark.parametrize(
    ("lost", "others", "expected"),
    [
        ({"second"}, set(), True),
        ({"second", "third"}, {"third"}, True),
        ({"second"}, {"second"}, False),  # it is away for everybody
        ({"second"}, {"third"}, False),  # it would hand over again
        ({"second"}, {"second", "third"}, False),
        (set(), set(), False),
    ],
)
async def test_only_who_reaches_more_and_lacks_nothing_else_is_better(
    lost: set[str], others: set[str], *, expected: bool
) -> None:
    assert await has_better(lost, write_standby(OTHER, frozenset(others))) == expected


@pytest.mark.parametrize(
    "value", [write_leader(OTHER), b"", b"\xff", b"null", b"[]", b'{"lost": "second"}', b'{"lost": {}}', b"[" * 9999]
)
async def test_who_does_not_say_what_it_has_lost_is_not_better(value: bytes) -> None:
    assert not await has_better({"second"}, value)


async def test_neither_a_key_of_ones_own_nor_one_without_a_lease_counts() -> None:
    value = write_standby(OTHER, frozenset())
    assert not await has_better({"second"}, value, name="mine")
    assert not await has_better({"second"}, value, lease=0)


def test_older_releases_read_a_standbys_key_as_before() -> None:
    assert read_leader(write_standby(OTHER, frozenset({"second"}))) == OTHER

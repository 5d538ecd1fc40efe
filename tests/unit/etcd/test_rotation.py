"""Which member is asked: the one that works, and after a failure the one whose own is the longest ago."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpc_etcd.etcd.errors import (
    DeadlineExceeded,
    EtcdError,
    NoLeader,
    PermissionDenied,
    Unavailable,
    is_unsent,
    make_error,
)
from grpc_etcd.etcd.rotation import MOST_TRIES, Rotation

UNSENT = Unavailable("connections to all backends failing; last error: UNKNOWN: Connection refused", "UNAVAILABLE")
FAULTS = (UNSENT, Unavailable("Socket closed"), NoLeader("no leader"), DeadlineExceeded("late"))


def test_one_member_is_used_as_long_as_it_works() -> None:
    rotation = Rotation(3)
    rotation.failed(0, PermissionDenied("no"))
    assert rotation.current == 0


@given(st.integers(1, 5), st.lists(st.sampled_from(FAULTS), max_size=20))
def test_each_failure_of_the_current_member_leads_to_the_one_that_failed_the_longest_ago(
    members: int, faults: list[EtcdError]
) -> None:
    rotation = Rotation(members)
    visited = []
    for fault in faults:
        visited.append(rotation.current)
        rotation.failed(rotation.current, fault)
    assert visited == [number % members for number in range(len(faults))]


def test_late_news_of_a_member_that_was_left_change_nothing() -> None:
    rotation = Rotation(3)
    rotation.failed(0, UNSENT)
    rotation.failed(0, UNSENT)
    assert rotation.current == 1


def test_a_call_goes_on_only_when_it_was_certainly_not_sent_and_to_each_member_once() -> None:
    rotation = Rotation(3)
    rotation.failed(0, UNSENT)
    assert rotation.next({0}, UNSENT) == 1
    rotation.failed(1, UNSENT)
    assert rotation.next({0, 1}, UNSENT) == 2
    assert rotation.next({0, 1, 2}, UNSENT) is None
    for fault in FAULTS[1:]:
        assert rotation.next({0}, fault) is None
        assert not is_unsent(fault)


@pytest.mark.parametrize(
    ("code", "details", "goes_on"),
    [
        ("FAILED_PRECONDITION", "etcdserver: rpc not supported for learner", True),
        ("UNIMPLEMENTED", "unknown service etcdserverpb.KV", True),
        ("DATA_LOSS", "etcdserver: corrupt cluster", False),
        ("FAILED_PRECONDITION", "etcdserver: lease already exists", None),
    ],
)
def test_a_member_that_serves_no_clients_is_left(code: str, details: str, *, goes_on: bool | None) -> None:
    rotation, fault = Rotation(3), make_error(code, details)
    rotation.failed(0, fault)
    assert rotation.current == (0 if goes_on is None else 1)
    assert rotation.next({0}, fault) == (1 if goes_on else None)


def test_behind_one_name_a_call_is_sent_a_few_times_by_new_connections() -> None:
    rotation, fault = Rotation(1), make_error("FAILED_PRECONDITION", "etcdserver: rpc not supported for learner")
    assert rotation.is_to_be_dialled_anew(fault)
    assert rotation.is_to_be_dialled_anew(NoLeader("no leader"))
    assert not rotation.is_to_be_dialled_anew(UNSENT)
    assert [rotation.next([0] * tries, fault) for tries in range(1, MOST_TRIES + 1)] == [0] * (MOST_TRIES - 1) + [None]


def test_a_silent_member_is_given_up_when_another_one_answers() -> None:
    rotation = Rotation(3)
    rotation.failed(0, DeadlineExceeded("late"))
    rotation.failed(1, DeadlineExceeded("late"))
    assert rotation.answered(1) == {0}
    assert rotation.answered(2) == frozenset()


def test_a_member_that_stands_alone_is_never_given_up() -> None:
    rotation = Rotation(1)
    rotation.failed(0, DeadlineExceeded("late"))
    assert rotation.answered(0) == frozenset()
    assert rotation.current == 0

"""Who may follow how many services of an ADS server."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from grpc_etcd.xds.admission import Admission, Limits, client_of
from grpc_etcd.xds.names import ServiceName

CLIENTS = ("a", "b", "c")
SERVICES = [ServiceName("default", str(number)) for number in range(8)]
steps = st.lists(st.tuples(st.booleans(), st.sampled_from(CLIENTS), st.sampled_from(SERVICES)), max_size=60)


@given(steps=steps)
def test_no_more_are_followed_than_may_be_and_nothing_is_kept_of_who_has_left(
    steps: list[tuple[bool, str, ServiceName]],
) -> None:
    admission, followed = Admission(Limits(3, 5)), Counter[tuple[str, ServiceName]]()
    for comes, client, owner in steps:
        if not comes and followed[client, owner]:
            admission.release(client, owner)
            followed[client, owner] -= 1
        elif comes:
            mine = {each for (of, each), count in followed.items() if count and of == client}
            everybody = {each for (_, each), count in followed.items() if count}
            may = (owner in mine or len(mine) < 3) and (owner in everybody or len(everybody) < 5)
            assert admission.room(client) == max(0, min(3 - len(mine), 5 - len(everybody)))
            assert admission.admit(client, owner) == may
            followed[client, owner] += may
    for (client, owner), count in followed.items():
        for _ in range(count):
            admission.release(client, owner)
    assert len(admission) == 0
    assert all(admission.room(client) == 3 for client in CLIENTS)


def test_what_a_client_leaves_makes_room_for_others() -> None:
    admission = Admission(Limits(10, 1))
    first, second = SERVICES[:2]
    assert admission.admit("a", first)
    assert not admission.admit("b", second)
    admission.release("a", first)
    assert admission.admit("b", second)


def test_a_client_is_an_address_and_behind_a_socket_a_stream() -> None:
    one, other = object(), object()
    assert client_of("ipv4:10.0.0.1:4711", one) == client_of("ipv4:10.0.0.1:4712", other) == "10.0.0.1"
    assert client_of("ipv6:%5B::1%5D:4711", one) == client_of("ipv6:%5B::1%5D:1", other)
    assert client_of("unix:", one) != client_of("unix:", other)

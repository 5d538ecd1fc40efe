"""How endpoints are grouped for gRPC: weights, zones, subsets, and nothing that gRPC would refuse."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.policy import Balancing, LoadBalancing, LocalityPreference, Policy, ZonePreference
from grpc_etcd.xds.hosts import read_socket
from grpc_etcd.xds.localities import Dialable, Here, choose_localities
from grpc_etcd.xds.resources import Locality, Socket, Target

PREFER_ZONE = Policy(locality_preference=LocalityPreference(mode=ZonePreference.PREFER_ZONE))
HERE = Here(zone="a", region="eu", client_id="c1")


def make_dialable(number: int, **attributes: object) -> Dialable:
    address = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}:9000"
    endpoint = Endpoint(name="g", address=address, **attributes)  # type: ignore[arg-type]
    socket = read_socket(address)
    assert isinstance(socket, Socket)
    return Dialable(endpoint, (socket,))


def choose(dialables: list[Dialable], policy: Policy | None = None, here: Here = HERE) -> tuple[Locality, ...]:
    return choose_localities(dialables, policy or Policy(), here)


def share(localities: tuple[Locality, ...]) -> dict[str, float]:
    """Give each address's share of the calls, as wrr_locality with round robin spreads them."""
    total = sum(locality.weight for locality in localities)
    return {
        target.sockets[0].ip: locality.weight / total / len(locality.targets)
        for locality in localities
        for target in locality.targets
    }


def test_equal_weights_make_one_locality_per_zone() -> None:
    zones = ["a", "a", "b"]
    chosen = choose([make_dialable(number, zone=zone, weight=7) for number, zone in enumerate(zones)])
    found = [(locality.zone, locality.weight, len(locality.targets)) for locality in chosen]
    assert found == [("a", 2, 2), ("b", 1, 1)]


def test_different_weights_are_exact() -> None:
    chosen = choose([make_dialable(number, weight=weight) for number, weight in enumerate([100, 200, 700])])
    assert list(share(chosen).values()) == [0.1, 0.2, 0.7]


def test_broken_weights_keep_their_proportion() -> None:
    chosen = choose([make_dialable(number, weight=weight) for number, weight in enumerate([0.25, 0.75])])
    assert list(share(chosen).values()) == pytest.approx([0.25, 0.75], rel=1e-3)


def test_round_robin_ignores_weights() -> None:
    policy = Policy(load_balancing=LoadBalancing(type=Balancing.ROUND_ROBIN))
    chosen = choose([make_dialable(number, weight=weight) for number, weight in enumerate([1, 9])], policy)
    assert list(share(chosen).values()) == [0.5, 0.5]


def test_a_change_of_weight_leaves_every_endpoint_in_its_locality() -> None:
    before = choose([make_dialable(number, weight=weight) for number, weight in enumerate([1, 2, 3])])
    after = choose([make_dialable(number, weight=weight) for number, weight in enumerate([1, 5, 3])])
    assert [locality.targets for locality in before] == [locality.targets for locality in after]
    assert [locality[:3] for locality in before] == [locality[:3] for locality in after]


@settings(max_examples=15)  # each draws hundreds of numbers
@given(st.lists(st.floats(0.01, 1e6), min_size=101, max_size=300))
def test_many_weights_are_put_into_few_classes_that_come_close(weights: list[float]) -> None:
    chosen = choose([make_dialable(number, weight=weight) for number, weight in enumerate(weights)])
    assert len(chosen) <= 16
    heaviest = max(weights)
    for locality in chosen:
        each = locality.weight / len(locality.targets)
        for target in locality.targets:
            wished = max(1.0, weights[int.from_bytes(map(int, target.sockets[0].ip.split(".")[1:]))] / heaviest * 1e4)
            assert 0.6 < each / wished < 1.6 or heaviest <= 1e4


def test_other_classes_have_other_names() -> None:
    """Else a live endpoint could come under a name whose endpoints have all failed, and fail with them for a while."""

    def names(heaviest: int) -> set[str]:
        weights = [1 + (heaviest - 1) * number // 199 for number in range(200)]
        chosen = choose([make_dialable(number, weight=weight) for number, weight in enumerate(weights)])
        return {locality.sub_zone for locality in chosen}

    assert not names(100) & names(10_000)


def test_ring_hash_reads_the_endpoints_own_weights() -> None:
    policy = Policy(load_balancing=LoadBalancing(type=Balancing.RING_HASH))
    (locality,) = choose([make_dialable(number, weight=weight) for number, weight in enumerate([1, 9])], policy)
    assert [target.weight for target in locality.targets] == [1, 9]


def test_own_zone_first_then_own_region_then_the_rest() -> None:
    places = [("us", "a"), ("eu", "b"), ("eu", "a"), ("us", "z")]
    dialables = [make_dialable(number, region=region, zone=zone) for number, (region, zone) in enumerate(places)]
    by_priority = {(each.region, each.zone): each.priority for each in choose(dialables, PREFER_ZONE)}
    assert by_priority == {("eu", "a"): 0, ("eu", "b"): 1, ("us", "a"): 2, ("us", "z"): 2}


def test_priorities_have_no_gap_when_the_own_zone_is_empty() -> None:
    chosen = choose([make_dialable(1, zone="z", region="us")], PREFER_ZONE)
    assert [locality.priority for locality in chosen] == [0]


def test_without_a_zone_of_its_own_a_client_prefers_none() -> None:
    chosen = choose([make_dialable(1, zone="a"), make_dialable(2, zone="b")], PREFER_ZONE, Here())
    assert {locality.priority for locality in chosen} == {0}


@pytest.mark.parametrize("drained", [{"weight": 0}, {"enable": False}, {"healthy": False}, {"weight": float("nan")}])
def test_what_must_not_be_called_is_left_out(drained: dict[str, object]) -> None:
    chosen = choose([make_dialable(1), make_dialable(2, **drained)])
    assert list(share(chosen)) == ["10.0.0.1"]


def test_one_socket_is_told_once() -> None:
    first, other = make_dialable(1), make_dialable(2)
    chosen = choose([first, Dialable(other.endpoint, (*first.sockets, *other.sockets))])
    assert [target.sockets[0].ip for each in chosen for target in each.targets] == ["10.0.0.1", "10.0.0.2"]


def test_a_subset_is_deterministic_and_differs_between_clients() -> None:
    dialables = [make_dialable(number) for number in range(1000)]
    policy = Policy(subset=50)
    one = share(choose(dialables, policy, Here(client_id="one")))
    assert one == share(choose(dialables[::-1], policy, Here(client_id="one")))
    assert len(one) == 50
    assert one != share(choose(dialables, policy, Here(client_id="two")))


def test_subsets_of_many_clients_cover_the_set_evenly() -> None:
    dialables = [make_dialable(number) for number in range(100)]
    taken: Counter[str] = Counter()
    for number in range(200):
        taken.update(share(choose(dialables, Policy(subset=10), Here(client_id=f"client-{number}"))))
    assert len(taken) == 100
    assert max(taken.values()) < 3 * 200 * 10 / 100


def test_a_change_of_the_set_changes_a_subset_by_one_at_most() -> None:
    dialables = [make_dialable(number) for number in range(200)]
    policy = Policy(subset=20)
    before = set(share(choose(dialables, policy)))
    for gone in range(0, 200, 7):
        after = set(share(choose(dialables[:gone] + dialables[gone + 1 :], policy)))
        assert len(before - after) <= 1


def test_a_subset_prefers_the_own_zone_but_can_spill_over() -> None:
    dialables = [make_dialable(number, zone="a" if number < 50 else "b") for number in range(100)]
    policy = Policy(locality_preference=PREFER_ZONE.locality_preference, subset=20)
    sizes = {each.zone: len(each.targets) for each in choose(dialables, policy)}
    assert sizes == {"a": 15, "b": 5}


def test_very_large_sets_are_cut_without_being_asked() -> None:
    assert len(share(choose([make_dialable(number) for number in range(10_000)]))) == 1000


endpoints = st.builds(
    make_dialable,
    st.integers(0, 40),
    weight=st.one_of(st.integers(-1, 5), st.floats(allow_nan=True, allow_infinity=True)),
    zone=st.sampled_from(["", "a", "b"]),
    region=st.sampled_from(["", "eu", "us"]),
    enable=st.booleans(),
    healthy=st.booleans(),
)


@given(
    st.lists(endpoints, max_size=130),
    st.sampled_from(Balancing),
    st.sampled_from(ZonePreference),
    st.one_of(st.none(), st.integers(1, 20)),
)
def test_grpc_never_gets_a_set_that_it_refuses(
    dialables: list[Dialable], balancing: Balancing, preference: ZonePreference, subset: int | None
) -> None:
    policy = Policy(
        load_balancing=LoadBalancing(type=balancing),
        locality_preference=LocalityPreference(mode=preference),
        subset=subset,
    )
    chosen = choose(dialables, policy)
    targets: list[Target] = [target for locality in chosen for target in locality.targets]
    assert len({target.sockets for target in targets}) == len(targets)
    assert len({(*locality[:3], locality.priority) for locality in chosen}) == len(chosen)
    assert {locality.priority for locality in chosen} == set(range(len({each.priority for each in chosen})))
    assert all(0 < locality.weight < 2**32 and locality.targets for locality in chosen)
    assert all(target.weight > 0 for target in targets)
    assert subset is None or len(targets) <= subset
    assert bool(targets) == any(d.endpoint.enable and d.endpoint.healthy and d.endpoint.weight > 0 for d in dialables)

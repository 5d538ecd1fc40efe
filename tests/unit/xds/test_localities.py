"""How endpoints are grouped for gRPC: weights, zones, subsets, and nothing that gRPC would refuse."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.policy import Balancing, LoadBalancing, LocalityPreference, Policy, ZonePreference
from grpc_etcd.xds.hosts import read_socket
from grpc_etcd.xds.localities import NO_PAST, Dialable, Here, Past, choose_localities
from grpc_etcd.xds.resources import Locality, Socket, Target
from testbed.examples import examples

PREFER_ZONE = Policy(locality_preference=LocalityPreference(mode=ZonePreference.PREFER_ZONE))
HERE = Here(zone="a", region="eu", client_id="c1")


def make_dialable(number: int, **attributes: Any) -> Dialable:
    address = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}:9000"
    endpoint = Endpoint(name="g", address=address, **attributes)
    socket = read_socket(address)
    assert isinstance(socket, Socket)
    return Dialable(endpoint, (socket,))


def choose(
    dialables: list[Dialable], policy: Policy | None = None, here: Here = HERE, past: Past = NO_PAST
) -> tuple[Locality, ...]:
    return choose_localities(dialables, policy or Policy(), here, past)


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


@settings(max_examples=examples(15))  # each draws hundreds of numbers
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


def test_a_ring_is_never_changed_but_replaced_in_every_zone() -> None:
    """The core of gRPC 1.85.3 corrupts its memory when it changes a ring; one that shares a name is changed."""
    policy = Policy(load_balancing=LoadBalancing(type=Balancing.RING_HASH))
    before, after, again = (
        {locality[:3] for locality in choose([make_dialable(each, zone="ab"[each % 2]) for each in numbers], policy)}
        for numbers in ([0, 1, 2], [0, 1, 2, 3], [2, 0, 1])
    )
    assert len(before) == len(after) == 2
    assert not before & after
    assert before == again, "the same set is the same ring, in whatever order"


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


@pytest.mark.parametrize("drained", [{"weight": 0}, {"enable": False}, {"healthy": False}])
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
    weight=st.one_of(st.integers(0, 5), st.floats(0, allow_nan=False, allow_infinity=False)),
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


@pytest.mark.parametrize("most", [4, 7, 20, 100])
def test_a_subset_takes_its_own_region_before_the_rest(most: int) -> None:
    places = [("a", "eu"), ("b", "eu"), ("c", "us")]
    dialables = [
        make_dialable(number, zone=zone, region=region)
        for number, (zone, region) in enumerate(place for place in places for _ in range(200))
    ]
    chosen = choose(dialables, replace(PREFER_ZONE, subset=most))
    count = Counter({(each.zone, each.region): len(each.targets) for each in chosen})
    assert count.total() == most
    assert count["a", "eu"] > count["b", "eu"] > count["c", "us"] or (most < 16 and count["b", "eu"])


def test_what_is_not_needed_for_farther_ones_is_taken_of_the_own_zone() -> None:
    dialables = [make_dialable(number, zone="a") for number in range(100)] + [make_dialable(200, zone="b")]
    chosen = choose(dialables, replace(PREFER_ZONE, subset=40))
    assert [(each.zone, len(each.targets)) for each in chosen] == [("a", 39), ("b", 1)]


def test_a_client_that_knows_only_its_region_prefers_that() -> None:
    dialables = [make_dialable(1, region="us", zone="x"), make_dialable(2, region="eu", zone="y")]
    chosen = choose(dialables, PREFER_ZONE, Here(region="eu"))
    assert [(each.region, each.priority) for each in chosen] == [("eu", 0), ("us", 1)]


def test_text_that_is_no_unicode_is_written_visibly() -> None:
    (locality,) = choose([make_dialable(1, zone="\ud800")])
    assert locality.zone == "\\ud800"


def zones_first(localities: tuple[Locality, ...]) -> set[str]:
    return {locality.zone for locality in localities if locality.priority == 0}


@pytest.mark.parametrize(
    ("wish", "first"),
    [
        ({}, {"a"}),
        ({"min_endpoints": 2}, {"a"}),
        ({"min_endpoints": 3}, {"a", "b"}),  # own zone and own region are five
        ({"min_endpoints": 6}, {"a", "b", "z"}),
        ({"min_endpoints": 99}, {"a", "b", "z"}),
        ({"min_percent": 20}, {"a"}),
        ({"min_percent": 21}, {"a", "b"}),
        ({"min_percent": 50}, {"a", "b"}),
        ({"min_percent": 51}, {"a", "b", "z"}),
    ],
)
def test_a_zone_with_too_few_endpoints_shares_with_the_next_nearest(wish: dict[str, int], first: set[str]) -> None:
    places = [("eu", "a")] * 2 + [("eu", "b")] * 3 + [("us", "z")] * 5
    dialables = [make_dialable(number, region=region, zone=zone) for number, (region, zone) in enumerate(places)]
    preference = LocalityPreference(mode=ZonePreference.PREFER_ZONE, **wish)
    chosen = choose(dialables, Policy(locality_preference=preference))
    assert zones_first(chosen) == first
    shares = share(tuple(locality for locality in chosen if locality.priority == 0))
    assert list(shares.values()) == pytest.approx([1 / len(shares)] * len(shares)), "all that are called get the same"


def test_the_own_cluster_comes_first_and_the_own_zone_within_it() -> None:
    places = [("b", "zone-a"), ("here", "zone-z"), ("here", "a"), ("", "a")]
    dialables = [
        make_dialable(number, zone=zone, region="eu", metadata={"cluster": cluster} if cluster else {})
        for number, (cluster, zone) in enumerate(places)
    ]
    policy = Policy(locality_preference=LocalityPreference(mode=ZonePreference.PREFER_CLUSTER))
    chosen = choose(dialables, policy, Here(zone="a", region="eu", cluster="here"))
    order = [locality.targets[0].sockets[0].ip for locality in sorted(chosen, key=lambda each: each.priority)]
    assert order == ["10.0.0.2", "10.0.0.1", "10.0.0.3", "10.0.0.0"]
    assert [locality.priority for locality in choose(dialables, policy, Here(cluster="here"))] == [0, 0, 1, 1]
    assert zones_first(choose(dialables, policy, Here(zone="a", region="eu"))) == {"a"}, "as PreferZone"


def test_only_endpoints_with_the_wished_metadata_are_called_while_there_are_some() -> None:
    old, new = make_dialable(1, metadata={"version": "v1"}), make_dialable(2, metadata={"version": "v2", "team": "x"})
    policy = Policy(match_metadata={"version": "v2"})
    assert share(choose([old, new], policy)) == {"10.0.0.2": 1.0}
    assert share(choose([old], policy)) == {"10.0.0.1": 1.0}
    drained = make_dialable(2, metadata={"version": "v2"}, enable=False)
    assert share(choose([old, drained], policy)) == {"10.0.0.1": 1.0}


@pytest.mark.parametrize("weights", [(7, 7, 7), (1, 2, 3)])
def test_a_new_endpoint_has_a_share_of_its_weight(weights: tuple[int, ...]) -> None:
    dialables = [make_dialable(number, weight=weight) for number, weight in enumerate(weights)]
    new = dialables[2].endpoint.address
    before, during = choose(dialables[:2]), choose(dialables, past=Past(warming={new: 0.1}))
    shares = share(during)
    assert shares["10.0.0.2"] / shares["10.0.0.0"] == pytest.approx(0.1 * weights[2] / weights[0], rel=0.02)
    assert shares["10.0.0.1"] / shares["10.0.0.0"] == pytest.approx(weights[1] / weights[0], rel=0.02)
    kept = {locality[:3]: locality.targets for locality in during}
    assert all(kept[locality[:3]] == locality.targets for locality in before), "warm ones stay where they are"


def test_new_endpoints_of_a_ring_have_a_share_of_their_weight() -> None:
    policy = Policy(load_balancing=LoadBalancing(type=Balancing.RING_HASH))
    dialables = [make_dialable(number) for number in range(2)]
    (locality,) = choose(dialables, policy, past=Past(warming={dialables[1].endpoint.address: 0.25}))
    assert [target.weight for target in locality.targets] == [100, 25]


@pytest.mark.parametrize("balancing", [Balancing.WEIGHTED, Balancing.RING_HASH])
def test_new_endpoints_of_a_very_large_set_make_no_sum_that_grpc_refuses(balancing: Balancing) -> None:
    policy = Policy(subset=100_000, load_balancing=LoadBalancing(type=balancing))
    dialables = [make_dialable(number, weight=10_000 - number % 2) for number in range(6_000)]
    new = dialables[0].endpoint.address
    chosen = choose(dialables, policy, past=Past(warming={new: 0.5}))
    weights = [target.weight for locality in chosen for target in locality.targets]
    assert sum(locality.weight for locality in chosen) < 2**32
    assert sum(weights) < 2**32
    if balancing is Balancing.RING_HASH:
        assert weights[0] / weights[2] == pytest.approx(0.5, rel=0.02)


def test_many_new_endpoints_take_few_localities() -> None:
    dialables = [make_dialable(number) for number in range(900)]
    warming = {each.endpoint.address: (number % 10 + 1) / 11 for number, each in enumerate(dialables[100:])}
    assert len(choose(dialables, past=Past(warming=warming))) == 11


def test_a_zone_is_told_by_a_short_name_however_long_it_is() -> None:
    zones = [f"{'z' * 1_000_000}{number}" for number in range(3)]
    chosen = choose([make_dialable(number, zone=zones[number % 3], region=zones[0]) for number in range(6)])
    assert sorted(len(locality.targets) for locality in chosen) == [2, 2, 2]
    assert all(len(text) <= 120 for locality in chosen for text in (locality.region, locality.zone))

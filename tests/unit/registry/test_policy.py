"""Policies: JSON both ways, a sentence per fault, the program before the registry."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpc_etcd.registry.policy import (
    Balancing,
    LoadBalancing,
    LocalityPreference,
    OutlierDetection,
    Policy,
    Retry,
    RetryOn,
    SlowStart,
    ZonePreference,
    format_duration,
    format_policy,
    parse_duration,
    parse_policy,
    read_policy,
    write_policy,
)
from testbed.examples import examples

seconds = st.integers(10, 60_000).map(lambda milliseconds: milliseconds / 1000)
balancings = st.one_of(
    st.builds(LoadBalancing, type=st.sampled_from([Balancing.ROUND_ROBIN, Balancing.WEIGHTED])),
    st.builds(LoadBalancing, type=st.just(Balancing.RING_HASH), hash_header=st.sampled_from(["", "x-user", "a.b_c"])),
)
retries = st.builds(
    Retry,
    attempts=st.integers(2, 5),
    retry_on=st.lists(st.sampled_from(RetryOn), min_size=1, unique=True).map(tuple),
    base_interval_seconds=seconds,
    max_interval_seconds=seconds,
)
ejections = st.builds(
    OutlierDetection,
    interval_seconds=st.integers(1, 100),
    max_ejection_percent=st.integers(0, 100),
    failure_percentage=st.integers(1, 100),
    minimum_hosts=st.integers(1, 50),
    request_volume=st.integers(1, 50),
)
policies = st.builds(
    Policy,
    load_balancing=st.none() | balancings,
    retry=st.none() | retries,
    outlier_detection=st.none() | ejections,
    locality_preference=st.none()
    | st.builds(
        LocalityPreference,
        mode=st.sampled_from(ZonePreference),
        min_endpoints=st.integers(1, 100),
        min_percent=st.integers(0, 100),
    ),
    slow_start=st.none()
    | st.builds(SlowStart, window_seconds=st.integers(1, 60), min_weight_percent=st.integers(1, 100)),
    match_metadata=st.none() | st.dictionaries(st.text(min_size=1, max_size=5), st.text(max_size=5), max_size=3),
    timeout_seconds=st.none() | seconds,
    subset=st.none() | st.integers(1, 1000),
)


@given(policies)
def test_a_policy_survives_being_written_and_read(policy: Policy) -> None:
    assert read_policy(write_policy(policy)) == (policy, ())
    assert parse_policy(json.loads(json.dumps(format_policy(policy)))).policy == policy


@given(policies, policies)
def test_the_first_policy_wins_field_by_field(first: Policy, second: Policy) -> None:
    merged = first.over(second)
    assert merged.over(second) == merged
    assert merged.retry == (first.retry or second.retry)
    assert Policy().over(second) == second
    assert first.over(Policy()) == first


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        ({"retry": {"attempts": 9}}, "retry.attempts: 9 is not between 1 and 5"),
        ({"retry": {"attempts": True}}, "retry.attempts: True is not a whole number"),
        ({"retry": {"retryOn": ["Nope"]}}, "retry.retryOn: 'Nope' is not one of Unavailable"),
        ({"retry": {"retryOn": []}}, "retry.retryOn: [] is not a list"),
        ({"retry": {"baseInterval": "1ms"}}, "retry.baseInterval: 1ms is not between 10ms and 60s"),
        ({"retry": 3}, "retry: 3 is not an object"),
        ({"slowStart": {"window": "1ms"}}, "slowStart.window: 1ms is not between 1s and 3600s"),
        ({"slowStart": {"minWeightPercent": 0}}, "slowStart.minWeightPercent: 0 is not between 1 and 100"),
        ({"localityPreference": {"minPercent": 101}}, "localityPreference.minPercent: 101 is not between 0 and 100"),
        ({"matchMetadata": {"version": 2}}, "matchMetadata: 'version': 2 is not a string under a name"),
        ({"matchMetadata": "v2"}, "matchMetadata: 'v2' is not an object of strings"),
        ({"timeout": 5}, "timeout: 5 is not a duration such as 250ms or 10s"),
        ({"timeout": "5"}, "timeout: '5' is not a duration"),
        ({"subset": 0}, "subset: 0 is not between"),
        ({"nonsense": 1}, "nonsense: unknown field"),
        ({"loadBalancing": {"type": "LeastRequest"}}, "loadBalancing.type: 'LeastRequest' is not one of RoundRobin"),
        ({"loadBalancing": {"hashHeader": "x"}}, "loadBalancing.hashHeader: only RingHash hashes"),
        ({"loadBalancing": {"type": "RingHash", "hashHeader": "X-User"}}, "loadBalancing.hashHeader: 'X-User' is not"),
        ({"loadBalancing": {"type": "RingHash", "hashHeader": "x-bin"}}, "loadBalancing.hashHeader: 'x-bin' is a bin"),
        ([], "[] is not an object"),
    ],
)
def test_each_fault_is_said_with_its_path(raw: object, fault: str) -> None:
    (found,) = parse_policy(raw).faults
    assert found.startswith(fault)


def test_what_is_good_is_taken_beside_a_fault() -> None:
    policy, faults = parse_policy({"timeout": "2s", "subset": -1, "retry": {"attempts": 4, "retryOn": ["X"]}})
    assert len(faults) == 2
    assert (policy.timeout_seconds, policy.subset, policy.retry) == (2.0, None, Retry(attempts=4))


def test_garbage_in_etcd_is_a_fault_and_no_policy() -> None:
    policy, faults = read_policy(b"\xff{")
    assert policy == Policy()
    assert len(faults) == 1


@given(st.binary(max_size=40))
def test_reading_never_raises(value: bytes) -> None:
    read_policy(value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["retry", "attempts", "timeout", "type", "loadBalancing"]), inner)
    ),
)


@settings(max_examples=examples(50))
@given(json_values)
def test_parsing_never_raises(raw: object) -> None:
    parse_policy(raw)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("250ms", 0.25), ("10s", 10), ("1m30s", 90), ("2h", 7200), ("1.5s", 1.5), ("", None), ("5", None)],
)
def test_durations(text: str, expected: float | None) -> None:
    assert parse_duration(text) == expected
    if expected:
        assert parse_duration(format_duration(expected)) == expected

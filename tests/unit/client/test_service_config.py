"""What is taken of a channel's own `grpc.service_config`, what is refused, and how retries become routes."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpc_etcd.client.service_config import ChannelConfig, MethodConfig, parse_service_config, split_options
from grpc_etcd.registry.policy import Retry, RetryOn
from grpc_etcd.xds.resources import ClusterShare, Route
from grpc_etcd.xds.retries import apply_retries, read_retries, write_retries

RETRY = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE", 8],
}


def parse(*configs: dict[str, Any], **others: Any) -> ChannelConfig:
    return parse_service_config(json.dumps({"methodConfig": list(configs)} | others))


def test_a_method_has_its_own_configuration_or_its_services_or_that_of_all() -> None:
    config = parse(
        {"name": [{}], "timeout": "9s"},
        {"name": [{"service": "shop.Greeter"}], "timeout": "2.5s", "waitForReady": True},
        {"name": [{"service": "shop.Greeter", "method": "Hi"}], "retryPolicy": RETRY},
    )
    retry = Retry(
        attempts=4,
        retry_on=(RetryOn.UNAVAILABLE, RetryOn.RESOURCE_EXHAUSTED),
        base_interval_seconds=0.1,
        max_interval_seconds=1,
    )
    assert config.of("/shop.Greeter/Hi") == MethodConfig(retry=retry)
    assert config.of("/shop.Greeter/Bye") == MethodConfig(timeout_seconds=2.5, wait_for_ready=True)
    assert config.of("/shop.Other/Hi") == MethodConfig(timeout_seconds=9)
    assert config.retries == (("", None), ("/shop.Greeter/", None), ("/shop.Greeter/Hi", retry))


def test_waits_that_no_policy_may_have_are_brought_near() -> None:
    config = parse({"name": [{}], "retryPolicy": RETRY | {"initialBackoff": "0.0001s", "maxBackoff": "9999s"}})
    retry = config.of("/a/b").retry
    assert retry
    assert (retry.base_interval_seconds, retry.max_interval_seconds) == (0.01, 600)


def test_without_a_retry_policy_there_is_no_wish() -> None:
    assert parse({"name": [{}], "timeout": "1s"}).retries == ()
    assert parse_service_config("{}").of("/a/b") == MethodConfig()


def test_the_option_is_taken_out_and_the_last_one_counts() -> None:
    options = [("a", 1), ("grpc.service_config", "nonsense"), ("grpc.service_config", "{}")]
    assert split_options(options) == (ChannelConfig(), [("a", 1)])


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"loadBalancingConfig": [{"round_robin": {}}]}, "loadBalancingConfig"),
        ({"loadBalancingPolicy": "round_robin"}, "loadBalancingPolicy"),
        ({"retryThrottling": {}}, "retryThrottling"),
        ({"healthCheckConfig": {"serviceName": ""}}, "healthCheckConfig"),
        ({"methodConfigs": []}, "methodConfigs"),
        ({"methodConfig": {}}, "methodConfig"),
        ({"methodConfig": [{"name": [{}], "hedgingPolicy": {}}]}, "hedgingPolicy"),
        ({"methodConfig": [{"name": [{}], "maxRequestMessageBytes": 1}]}, "maxRequestMessageBytes"),
        ({"methodConfig": [{"name": [{}], "timeout": 1}]}, "timeout"),
        ({"methodConfig": [{"name": [{}], "timeout": "0s"}]}, "timeout"),
        ({"methodConfig": [{"name": [{}], "waitForReady": "yes"}]}, "waitForReady"),
        ({"methodConfig": [{"name": [{"method": "Hi"}]}]}, "name"),
        ({"methodConfig": [{"name": [{}]}, {"name": [{}]}]}, "name"),
        ({"methodConfig": [{"name": [{}], "retryPolicy": RETRY | {"maxAttempts": 1}}]}, "maxAttempts"),
        ({"methodConfig": [{"name": [{}], "retryPolicy": RETRY | {"backoffMultiplier": 0}}]}, "backoffMultiplier"),
        ({"methodConfig": [{"name": [{}], "retryPolicy": RETRY | {"retryableStatusCodes": []}}]}, "retryableStatus"),
        ({"methodConfig": [{"name": [{}], "retryPolicy": RETRY | {"retryableStatusCodes": ["ABORTED"]}}]}, "ABORTED"),
        ({"methodConfig": [{"name": [{}], "retryPolicy": {"maxAttempts": 2}}]}, "initialBackoff"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(config: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        parse_service_config(json.dumps(config))


@pytest.mark.parametrize("text", ["", "[]", "{", b"\xff", "[" * 100_000])
def test_what_is_no_service_config_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"grpc\.service_config"):
        parse_service_config(text)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda each: st.lists(each) | st.dictionaries(st.text(), each),
    )
)
def test_no_text_does_anything_but_raise_a_value_error(raw: object) -> None:
    for text in (json.dumps(raw), json.dumps({"methodConfig": raw}), json.dumps({"methodConfig": [{"name": raw}]})):
        try:
            parse_service_config(text)
        except ValueError as error:
            assert "grpc.service_config" in str(error)  # noqa: PT017 - any fault will do


@given(st.text())
def test_a_name_of_somebody_else_holds_no_retries(segment: str) -> None:
    found = read_retries(segment)
    assert found is None or isinstance(found, tuple)


METHODS = st.sampled_from(["", "/a/", "/a/x", "/a/y", "/b/", "/b/x"])
RETRIES = st.none() | st.builds(Retry, attempts=st.integers(2, 5))
PATHS = st.sampled_from(["/a/x", "/a/y", "/a/z", "/b/x", "/c/x", "/ax"])


@given(
    st.lists(st.tuples(st.sampled_from(["/a/", "/a/x", "/a/xy", "/b", "/a"]), st.booleans()), unique=True),
    st.dictionaries(METHODS, RETRIES),
    PATHS,
)
def test_a_call_has_the_retry_of_its_method_and_the_clusters_of_its_route(
    patterns: list[tuple[str, bool]], by_method: dict[str, Retry | None], path: str
) -> None:
    default = Retry(attempts=5, base_interval_seconds=7, max_interval_seconds=7)
    patterns.sort(key=lambda each: (not each[1], len(each[0])), reverse=True)
    routes = [Route(text, is_prefix, (ClusterShare(text, 1),), default) for text, is_prefix in [*patterns, ("", True)]]
    retries = tuple(sorted(by_method.items()))
    assert read_retries(write_retries(retries)) == retries
    before, after = first_match(routes, path), first_match(apply_retries(routes, retries), path)
    assert after.shares == before.shares
    service = path.rpartition("/")[0] + "/"
    wanted = next((by_method[each] for each in (path, service, "") if each in by_method), default)
    assert after.retry == wanted


def first_match(routes: list[Route], path: str) -> Route:
    return next(each for each in routes if path == each.path or (each.is_prefix and path.startswith(each.path)))

"""Configurators and metric targets, by the keys and bytes of Jupiter v0.2.7's own test data."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpc_etcd.layouts.configurators import (
    Configurator,
    ConsumerConfig,
    ProviderConfig,
    RouteConfig,
    decode_configurator,
    encode_configurator,
    metric_target,
)
from grpc_etcd.registry.layout import KeyValue, Rejected

ROUTE_KEY = b"/jupiter/service_1/configurators/grpc:///routes/1"
ROUTE_VALUE = (
    b'{"id":"1","scheme":"grpc","host":"","deployment":"openapi","uri":"/hello",'
    b'"upstream":{"nodes":{"10.10.10.1:9091":1,"10.10.10.1:9092":10},"groups":null}}'
)
ROUTE = RouteConfig(
    id="1", deployment="openapi", uri="/hello", nodes={"10.10.10.1:9091": 1, "10.10.10.1:9092": 10}, groups=None
)


def _decode(key: bytes, value: bytes) -> Configurator | Rejected | None:
    return decode_configurator("jupiter", "service_1", key, value)


def test_a_route_is_written_as_go_writes_it_and_read_back() -> None:
    assert encode_configurator("jupiter", "service_1", ROUTE) == KeyValue(ROUTE_KEY, ROUTE_VALUE)
    assert _decode(ROUTE_KEY, ROUTE_VALUE) == ROUTE


@pytest.mark.parametrize(
    ("configurator", "record"),
    [
        (
            ProviderConfig(id="2", host="10.0.0.1:1", enable=True, metadata={"b": "<", "a": "1"}),
            KeyValue(
                b"/jupiter/service_1/configurators/grpc://10.0.0.1:1/providers/2",
                b'{"id":"2","scheme":"grpc","host":"10.0.0.1:1","region":"","zone":"","deployment":"",'
                b'"metadata":{"a":"1","b":"\\u003c"},"enable":true}',
            ),
        ),
        (
            ConsumerConfig(id="3"),
            KeyValue(b"/jupiter/service_1/configurators/grpc:///consumers/3", b'{"id":"3","scheme":"grpc","host":""}'),
        ),
    ],
)
def test_the_other_kinds_are_written_and_read_back(configurator: Configurator, record: KeyValue) -> None:
    assert encode_configurator("jupiter", "service_1", configurator) == record
    assert _decode(*record) == configurator


@pytest.mark.parametrize(
    ("tail", "identity", "host"),
    [
        ("grpc:///routes/1", "1", ""),
        ("grpc://127.0.0.1:1980/routes/2", "2", "127.0.0.1:1980"),
        ("grpc:///routes/a%2Fb", "a/b", ""),
        ("grpc:///routes/a/b", "a/b", ""),
        ("grpc:///routes/\u4f60\u597d", "\u4f60\u597d", ""),
        ("grpc:/routes/1", "1", ""),
    ],
)
def test_the_key_decides_on_id_scheme_and_host(tail: str, identity: str, host: str) -> None:
    key = f"/jupiter/service_1/configurators/{tail}".encode()
    route = _decode(key, b'{"id":"other","scheme":"http","host":"h"}')
    assert isinstance(route, RouteConfig)
    assert (route.id, route.scheme, route.host) == (identity, "grpc", host)


@pytest.mark.parametrize("tail", ["configurators/grpc:///?host=10.0.0.1:59230", "configurator/grpc:///routes/1", "x"])
def test_keys_that_jupiter_ignores_are_none(tail: str) -> None:
    assert _decode(f"/jupiter/service_1/{tail}".encode(), ROUTE_VALUE) is None


@pytest.mark.parametrize(
    "value", [b"", b"[]", b'{"upstream":{"nodes":{"a:1":1.5}}}', b'{"upstream":{"groups":{"a":"1"}}}', b'{"uri":1}']
)
def test_values_that_go_drops_are_rejected(value: bytes) -> None:
    assert isinstance(_decode(ROUTE_KEY, value), Rejected)


@pytest.mark.parametrize("identity", ["", "a/b", "a%b", "a?b", "a#b", "a b"])
def test_ids_that_break_the_key_are_refused(identity: str) -> None:
    assert isinstance(encode_configurator("jupiter", "service_1", RouteConfig(id=identity)), Rejected)


@given(st.binary(max_size=40), st.binary(max_size=40) | st.just(ROUTE_VALUE))
def test_decoding_bears_any_bytes(tail: bytes, value: bytes) -> None:
    _decode(b"/jupiter/service_1/configurators/" + tail, value)
    _decode(ROUTE_KEY, value)


def test_a_target_that_no_key_can_hold_is_an_error() -> None:
    with pytest.raises(ValueError, match="'/'"):
        metric_target("a/b", "pod-1", "10.0.0.1:9990")

"""Jupiter's own tolerance: which keys and values its v0.2.7 readers take (run with Go on the same structs)."""

import json

import pytest

from grpc_etcd.layouts.jupiter import Jupiter
from grpc_etcd.layouts.jupiter_v2 import JupiterV2
from grpc_etcd.registry.endpoint import Endpoint, Kind, ServiceDescription
from grpc_etcd.registry.layout import KeyValue, Rejected

JUPITER = Jupiter()
GOOD = b'{"address":"10.0.0.1:9090","enable":true}'


def _decode(tail: str, value: bytes = GOOD) -> Endpoint | Rejected | None:
    return JUPITER.decode("main", f"/jupiter/main/{tail}".encode(), value)


@pytest.mark.parametrize(
    ("tail", "scheme", "kind"),
    [
        ("providers/grpc://10.0.0.1:9090", "grpc", Kind.PROVIDER),
        ("providers/grpc://[2001:db8::1]:9090", "grpc", Kind.PROVIDER),
        ("providers/grpc://10.0.0.1:9090/", "grpc", Kind.PROVIDER),
        ("providers/grpc://10.0.0.1:9090?weight=1", "grpc", Kind.PROVIDER),
        ("providers/grpc://", "grpc", Kind.PROVIDER),
        ("providers/grpcs://10.0.0.1:9090", "grpcs", Kind.PROVIDER),
        ("providers/grpc-web://10.0.0.1:9090", "grpc-web", Kind.PROVIDER),
        ("governors/http://10.0.0.1:9990", "http", Kind.GOVERNOR),
        ("consumers/grpc://10.0.0.1:9990", "grpc", Kind.CONSUMER),
    ],
)
def test_keys_that_are_taken(tail: str, scheme: str, kind: Kind) -> None:
    endpoint = _decode(tail)
    assert isinstance(endpoint, Endpoint)
    assert (endpoint.scheme, endpoint.kind, endpoint.address) == (scheme, kind, "10.0.0.1:9090")


@pytest.mark.parametrize("tail", ["fe80::1%eth0:9090", "10.0.0.1:grpc", "h h:1"])
def test_keys_that_do_not_parse_are_rejected(tail: str) -> None:
    assert isinstance(_decode(f"providers/grpc://{tail}"), Rejected)


def test_a_scheme_that_is_no_urls_is_rejected() -> None:
    assert isinstance(_decode("providers/grpc_web://10.0.0.1:9090"), Rejected)


@pytest.mark.parametrize("tail", ["configurators/grpc:///routes/1", "settled/c1", "providers", "", "x/grpc://a:1"])
def test_other_keys_are_no_endpoints(tail: str) -> None:
    assert _decode(tail) is None


@pytest.mark.parametrize(
    "value",
    [
        *(b"", b"[]", b"hello", b"{}", b"null"),
        *(b'{"weight":"100"}', b'{"enable":"true"}', b'{"kind":"1"}', b'{"kind":1.0}', b'{"kind":256}'),
        *(b'{"metadata":{"a":1}}', b'{"services":[]}', b'{"services":{"a":{"methods":"x"}}}', b'{"name":1}'),
    ],
)
def test_values_that_go_drops_or_nobody_can_dial_are_rejected(value: bytes) -> None:
    if value.startswith(b'{"'):
        value = value[:-1] + b',"address":"10.0.0.1:9090"}'
    assert isinstance(_decode("providers/grpc://10.0.0.1:9090", value), Rejected)


@pytest.mark.parametrize(
    ("part", "weight"),
    [(b'"weight":100.0', 100), (b'"weight":0.5', 0.5), (b'"weight":null', 0), (b'"labels":{"x":[1]}', 0)],
)
def test_values_that_go_takes_are_taken(part: bytes, weight: float) -> None:
    endpoint = _decode("providers/grpc://10.0.0.1:9090", GOOD[:-1] + b"," + part + b"}")
    assert isinstance(endpoint, Endpoint)
    assert endpoint.weight == weight


def test_field_names_match_in_any_case() -> None:
    endpoint = _decode("providers/grpc://10.0.0.1:9090", b'{"ADDRESS":"10.0.0.1:9090","Enable":true,"WEIGHT":7}')
    assert isinstance(endpoint, Endpoint)
    assert (endpoint.enable, endpoint.weight) == (True, 7)


def test_missing_fields_have_gos_zero_values() -> None:
    endpoint = _decode("providers/grpc://10.0.0.1:9090", b'{"address":"10.0.0.1:9090"}')
    assert endpoint == Endpoint(name="main", address="10.0.0.1:9090", weight=0, enable=False, healthy=False)


def test_the_dialled_address_is_the_values() -> None:
    endpoint = _decode("providers/grpc://10.9.9.9:1")
    assert isinstance(endpoint, Endpoint)
    assert endpoint.address == "10.0.0.1:9090"


def test_services_are_written_in_struct_order() -> None:
    service = ServiceDescription(namespace="shop", name="Greeter", labels={"b": "2", "a": "1"}, methods=("Hi",))
    written = JUPITER.encode("main", Endpoint(name="main", address="10.0.0.1:1", services={"z": service}))
    assert isinstance(written, KeyValue)
    expected = b'"services":{"z":{"namespace":"shop","name":"Greeter","labels":{"a":"1","b":"2"},"methods":["Hi"]}}}'
    assert written.value.endswith(expected)


def test_metadata_name_a_version_for_juno_takes_the_key_for_jupiters_only_then() -> None:
    written = JUPITER.encode("main", Endpoint(name="main", address="10.0.0.1:1", metadata={"team": "shop"}))
    assert isinstance(written, KeyValue)
    assert json.loads(written.value)["metadata"] == {"jupiterVersion": "0.2.0", "team": "shop"}


V2_KEY = b"grpc:main:v1:unknown-mode/10.0.0.1:9090"


@pytest.mark.parametrize(
    ("value", "weight"),
    [
        (b'{"Op":0,"Addr":"10.0.0.1:9090","Metadata":null}', 100),
        (b'{"Op":0,"Addr":"10.0.0.1:9090","Metadata":{"address":"10.0.0.1:9090","weight":7,"enable":true}}', 7),
        (b'{"Op":0,"Addr":"10.0.0.1:9090","Metadata":{"team":"shop","weight":"7"}}', 100),
        (b'{"Op":0,"Addr":"10.0.0.1:9090","MetadataX":{"weight":8,"enable":true}}', 8),
        (b"{}", 100),
    ],
)
def test_all_of_v2s_values_are_read(value: bytes, weight: float) -> None:
    endpoint = JupiterV2().decode("main", V2_KEY, value)
    assert isinstance(endpoint, Endpoint)
    assert (endpoint.address, endpoint.weight, endpoint.enable) == ("10.0.0.1:9090", weight, True)


def test_v2s_readers_drop_a_value_that_says_deleted() -> None:
    assert JupiterV2().decode("main", V2_KEY, b'{"Op":1,"Addr":"10.0.0.1:9090"}') is None


@pytest.mark.parametrize(
    "value", [b"", b"plain", b"[]", b'{"Op":"0"}', b'{"Op":7}', b'{"Addr":1}', b'{"MetadataX":{"weight":"7"}}']
)
def test_v2_values_that_go_drops_are_rejected(value: bytes) -> None:
    assert isinstance(JupiterV2().decode("main", V2_KEY, value), Rejected)


def test_v2s_governors_have_a_scheme_of_their_own() -> None:
    governor = Endpoint(name="main", address="10.0.0.1:1", scheme="govern", kind=Kind.GOVERNOR)
    written = JupiterV2().encode("main", governor)
    assert isinstance(written, KeyValue)
    assert written.key == b"govern:main:v1:unknown-mode/10.0.0.1:1"
    read = JupiterV2().decode("main", *written)
    assert isinstance(read, Endpoint)
    assert read.kind is Kind.GOVERNOR

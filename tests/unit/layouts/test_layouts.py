"""What holds for every layout: round trips, refusals, and decoders that bear any bytes."""

import json
from copy import copy
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from grpc_etcd.layouts.index import LAYOUT_NAMES, make_layout
from grpc_etcd.layouts.jupiter import Jupiter
from grpc_etcd.layouts.jupiter_v2 import JupiterV2
from grpc_etcd.layouts.naming import EtcdNaming
from grpc_etcd.registry.endpoint import Endpoint, Kind, ServiceDescription
from grpc_etcd.registry.layout import KeyValue, Layout, Rejected

LAYOUTS = {name: make_layout(name) for name in LAYOUT_NAMES}
GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())
PLAIN = Endpoint(name="greeter", address="10.0.0.1:9000")

each_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUT_NAMES)

names = st.from_regex(r"[^/\s\x00-\x1f\x7f-\x9f]{1,12}", fullmatch=True).filter(lambda name: max(name) < "\ud800")
ports = st.integers(1, 65535)
hosts = st.ip_addresses(v=4).map(str) | st.from_regex(r"[a-z][a-z0-9-]{0,8}(\.[a-z0-9]{1,4})?", fullmatch=True)
v4_addresses = st.builds("{}:{}".format, hosts, ports)
addresses = v4_addresses | st.builds("[{}]:{}".format, st.ip_addresses(v=6), ports)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
text_maps = st.dictionaries(texts.filter(lambda key: key not in {"weight", "protocol", "version"}), texts, max_size=3)
services = st.none() | st.dictionaries(
    texts,
    st.builds(
        ServiceDescription,
        namespace=texts,
        name=texts,
        labels=st.none() | text_maps,
        methods=st.none() | st.lists(texts, max_size=2).map(tuple),
    ),
    max_size=2,
)


@st.composite
def endpoints(draw: st.DrawFn) -> Endpoint:
    """Draw what every layout can carry."""
    return Endpoint(name=draw(names), address=draw(v4_addresses), metadata=draw(text_maps), instance=draw(names))


@st.composite
def jupiter_endpoints(draw: st.DrawFn) -> Endpoint:
    """Draw what Jupiter's value has fields for."""
    return Endpoint(
        name=draw(names),
        address=draw(addresses),
        scheme=draw(st.sampled_from(["grpc", "grpcs", "http", "h2+c.x-y"])),
        weight=draw(st.integers(0, 10_000) | st.floats(0, 1e22)),
        enable=draw(st.booleans()),
        healthy=draw(st.booleans()),
        metadata=draw(text_maps) | {"jupiterVersion": "0.2.0"},
        region=draw(texts),
        zone=draw(texts),
        kind=draw(st.sampled_from([Kind.PROVIDER, Kind.GOVERNOR, Kind.CONSUMER, Kind.UNKNOWN])),
        deployment=draw(texts),
        group=draw(texts),
        app_id=draw(texts),
        services=draw(services),
    )


def unchecked(**fields: object) -> Endpoint:
    """Give an endpoint that could not be made: layouts do not rely on that."""
    made = copy(PLAIN)
    for name, value in fields.items():
        object.__setattr__(made, name, value)
    return made


def _written(layout: Layout, endpoint: Endpoint) -> KeyValue:
    written = layout.encode(endpoint.name, endpoint)
    assert isinstance(written, KeyValue), written
    return written


@given(endpoint=endpoints())
def test_what_every_layout_carries_survives_a_round_trip(endpoint: Endpoint) -> None:
    for layout in LAYOUTS.values():
        written = _written(layout, endpoint)
        read = layout.decode(endpoint.name, *written)
        assert isinstance(read, Endpoint), layout
        assert (read.name, read.address, read.scheme, read.enable) == (endpoint.name, endpoint.address, "grpc", True)
        if layout.name != "go-zero":
            assert endpoint.metadata.items() <= read.metadata.items(), layout
        assert written.key.startswith(layout.prefix(endpoint.name))
        assert _written(layout, read) == written


@given(endpoint=jupiter_endpoints())
def test_jupiter_carries_every_field(endpoint: Endpoint) -> None:
    layout = Jupiter("wsd-reg")
    assert layout.decode(endpoint.name, *_written(layout, endpoint)) == endpoint


@given(endpoint=jupiter_endpoints().map(lambda endpoint: replace(endpoint, services=None, kind=Kind.PROVIDER)))
def test_jupiter_v2_carries_every_field_but_the_services(endpoint: Endpoint) -> None:
    layout = JupiterV2()
    assert layout.decode(endpoint.name, *_written(layout, endpoint)) == endpoint


@given(name=names, weight=st.integers(1, 10_000), address=v4_addresses)
def test_kratos_and_kitex_carry_weights(name: str, weight: int, address: str) -> None:
    for layout in (LAYOUTS["kratos"], LAYOUTS["kitex"]):
        read = layout.decode(name, *_written(layout, Endpoint(name=name, address=address, weight=weight)))
        assert isinstance(read, Endpoint)
        assert read.weight == weight


@each_layout
def test_ipv6_is_carried_in_brackets_or_refused(layout: Layout) -> None:
    endpoint = replace(PLAIN, address="[2001:db8::5]:9000")
    written = layout.encode("greeter", endpoint)
    if layout.name == "kitex":
        assert isinstance(written, Rejected)
        assert "IPv6" in written.reason
    else:
        assert isinstance(written, KeyValue)
        read = layout.decode("greeter", *written)
        assert isinstance(read, Endpoint)
        assert read.address == "[2001:db8::5]:9000"


@each_layout
@pytest.mark.parametrize("name", ["", "a/b", "a b", "a\n", "\x00", "a\u00a0", "\udc80"])
def test_names_that_break_keys_are_refused(layout: Layout, name: str) -> None:
    assert isinstance(layout.encode(name, unchecked(name=name)), Rejected)


@each_layout
@pytest.mark.parametrize(
    "address",
    [
        *("", "10.0.0.1", "10.0.0.1:", ":9000", "10.0.0.1:0", "10.0.0.1:65536", "10.0.0.1:grpc", "a/b:1", "a b:1"),
        *(
            "2001:db8::1:9000",
            "[10.0.0.1]:9000",
            "[]:1",
            "[::1",
            "[fe80::1%eth0]:1",
            "u@h:1",
            "h:1?x",
            "h:" + "9" * 5000,
        ),
        *('a"b:1', "a\\b:1", "\u4f60:1", "h:\u0661"),
    ],
)
def test_addresses_that_nobody_can_dial_are_refused(layout: Layout, address: str) -> None:
    assert isinstance(layout.encode("greeter", unchecked(address=address)), Rejected)


@each_layout
def test_a_layout_that_cannot_disable_refuses_to(layout: Layout) -> None:
    written = layout.encode("greeter", replace(PLAIN, enable=False))
    assert isinstance(written, KeyValue) is layout.can_disable


@pytest.mark.parametrize("name", ["jupiter", "jupiter-v2", "kratos", "kitex"])
@pytest.mark.parametrize("weight", [-1, float("inf"), float("nan")])
def test_weights_that_are_none_are_refused(name: str, weight: float) -> None:
    assert isinstance(LAYOUTS[name].encode("greeter", unchecked(weight=weight)), Rejected)


def test_kitex_refuses_a_weight_of_zero_for_its_readers_take_it_for_ten() -> None:
    assert isinstance(LAYOUTS["kitex"].encode("greeter", replace(PLAIN, weight=0)), Rejected)


@pytest.mark.parametrize("scheme", ["", "GRPC", "1grpc", "grpc_web", "grpc:", "g/rpc", 'g"'])
def test_schemes_that_no_url_can_have_are_refused(scheme: str) -> None:
    for name in ("jupiter", "jupiter-v2", "kratos", "go-micro"):
        assert isinstance(LAYOUTS[name].encode("greeter", replace(PLAIN, scheme=scheme)), Rejected)


@each_layout
def test_a_key_of_another_service_is_no_endpoint(layout: Layout) -> None:
    written = _written(layout, replace(PLAIN, name="greeter-other"))
    assert layout.decode("greeter", *written) is None


def test_two_ports_of_one_pod_have_keys_of_their_own() -> None:
    for layout in LAYOUTS.values():
        keys = {_written(layout, replace(PLAIN, address=f"10.0.0.1:{port}", instance="")).key for port in (1, 2)}
        assert len(keys) == 2


def test_an_identity_outlives_a_change_of_address_where_keys_hold_ids() -> None:
    moved = [replace(PLAIN, instance="0b5e-9000", address=f"10.0.0.{n}:9000") for n in (1, 2)]
    for name in ("go-zero", "kratos", "go-micro"):
        assert len({_written(LAYOUTS[name], endpoint).key for endpoint in moved}) == 1


@given(st.text(max_size=40))
def test_go_zeros_ids_are_positive_int64s(instance: str) -> None:
    written = _written(LAYOUTS["go-zero"], replace(PLAIN, instance=instance))
    number = int(written.key.rpartition(b"/")[2])
    assert 0 < number < 2**63


@each_layout
def test_the_settling_touch_is_there_where_readers_need_it_and_no_reader_takes_it(layout: Layout) -> None:
    touch = layout.settled("greeter", "c1")
    assert (touch is not None) is layout.pace.settling_touch
    if touch is not None:
        assert touch.key.startswith(layout.prefix("greeter"))
        assert layout.decode("greeter", *touch) is None


def test_etcd_naming_reads_jupiter_v2_and_passes_its_touch_over() -> None:
    target = EtcdNaming()
    layout = JupiterV2()
    read = target.decode("grpc:greeter:v1:unknown-mode", *_written(layout, PLAIN))
    assert isinstance(read, Endpoint)
    assert read.address == PLAIN.address
    touch = layout.settled("greeter", "c1")
    assert target.decode("grpc:greeter:v1:unknown-mode", *touch) is None


def test_layouts_are_made_by_name() -> None:
    assert make_layout("jupiter", "/wsd-reg/").prefix("a") == b"/wsd-reg/a/"
    assert make_layout("jupiter-v2", mode="prod").prefix("a") == b"grpc:a:v1:prod/"
    assert make_layout("etcd-naming", "team").prefix("a") == b"team/a/"
    assert make_layout("kratos", "/ns/").prefix("a") == b"/ns/a/"
    with pytest.raises(ValueError, match="jupiter-v2"):
        make_layout("zookeeper")


golden_values = st.sampled_from([str(record["value"]).encode() for record in GOLDEN])
tails = st.sampled_from([record["key"].rpartition("greeter/")[2].encode() for record in GOLDEN])


@st.composite
def mangled(draw: st.DrawFn) -> bytes:
    """Draw a good value with a piece cut out and another put in."""
    value = draw(golden_values)
    start = draw(st.integers(0, len(value)))
    end = draw(st.integers(start, len(value)))
    pieces = st.sampled_from([b"null", b"{", b"[]", b"1e999", b'"', b"\\ud800", b"\xff", b"-1", b"\x00", b'{"a":1}'])
    return value[:start] + draw(pieces | st.binary(max_size=4)) + value[end:]


@given(tail=tails | st.binary(max_size=30), value=mangled() | st.binary(max_size=60) | golden_values)
@example(tail=b"providers/grpc://a:1", value=b"[" * 100_000)
@example(tail=b"providers/grpc://a:1", value=b'{"metadata":' + b"[" * 100_000)
@example(tail=b"providers/grpc://[" + b":" * 10_000, value=b"{}")
@example(tail=b"a:1", value=b"1" * 100_000)
def test_decoders_bear_any_bytes(tail: bytes, value: bytes) -> None:
    for layout in LAYOUTS.values():
        read = layout.decode("greeter", layout.prefix("greeter") + tail, value)
        assert read is None or isinstance(read, Endpoint | Rejected)
        if isinstance(read, Endpoint):
            assert read.address
            assert isinstance(layout.encode("greeter", read), KeyValue | Rejected)

"""The listing of all services: what changes add up to is what a new listing of the same records says."""

from hypothesis import given
from hypothesis import strategies as st

from grpc_etcd.layouts.index import LAYOUT_NAMES, make_layout
from grpc_etcd.registry.catalog import Catalog, service_of
from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.layout import KeyValue

LAYOUTS = {name: make_layout(name, None if name != "etcd-naming" else "naming") for name in LAYOUT_NAMES}
SERVICES = ("greeter", "users", "users.v2")
FOREIGN = (b"/grpc-etcd/synced/x", b"/prometheus/job/users/h/10.0.0.1:1", b"/jupiter/users/configurators/x", b"zzz")


@st.composite
def changes(draw: st.DrawFn) -> tuple[bytes, bytes | None]:
    """Draw a put or a deletion of a provider's key in some layout, a broken value, or what is none of a service's."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.sampled_from(FOREIGN)), b"1"
    layout = LAYOUTS[draw(st.sampled_from(LAYOUT_NAMES))]
    name, port = draw(st.sampled_from(SERVICES)), draw(st.integers(1, 3))
    written = layout.encode(name, Endpoint(name=name, address=f"10.0.0.1:{port}", instance=f"i{port}"))
    assert isinstance(written, KeyValue)
    return written.key, draw(st.sampled_from([written.value, written.value, None, b"broken"]))


@given(st.lists(changes(), max_size=20), st.lists(st.sampled_from(LAYOUT_NAMES), min_size=1, unique=True))
def test_changes_add_up_to_what_a_listing_says(drawn: list[tuple[bytes, bytes | None]], names: list[str]) -> None:
    layouts = [LAYOUTS[name] for name in names]
    followed = Catalog(layouts)
    records: dict[bytes, bytes] = {}
    for revision, (key, value) in enumerate(drawn, 1):
        records.pop(key, None) if value is None else records.update({key: value})
        followed.apply([(key, value)], revision)
    listed = Catalog(layouts)
    listed.replace(records.items(), len(drawn))
    good = {name: {each.address for each in endpoints} for name, endpoints in followed.services().items()}
    for name, endpoints in listed.services().items():  # a broken value hides the good one only from a new listing
        assert {each.address for each in endpoints} <= good.get(name, set())
    assert followed.services().keys() == listed.services().keys()


def test_a_change_cuts_its_own_service_alone() -> None:
    catalog = Catalog([LAYOUTS["jupiter"]])
    written: dict[str, KeyValue] = {}
    for name in SERVICES:
        made = LAYOUTS["jupiter"].encode(name, Endpoint(name=name, address="10.0.0.1:1"))
        assert isinstance(made, KeyValue)
        written[name] = made
    catalog.replace([(each.key, each.value) for each in written.values()], 1)
    before = catalog.services()
    catalog.apply([(written["users"].key, None)], 2)
    after = catalog.services()
    assert set(after) == {"greeter", "users.v2"}
    assert all(after[name] is before[name] for name in after)
    assert len(before["users"]) == 1


def test_keys_of_the_operator_and_of_prometheus_are_no_services() -> None:
    for layout in (*LAYOUTS.values(), make_layout("etcd-naming")):  # that one lists the whole etcd
        assert [key for key in FOREIGN[:2] if service_of(layout, key) is not None] == []


def test_each_prefix_is_listed_once() -> None:
    assert Catalog([make_layout("jupiter"), make_layout("jupiter")]).prefixes == (b"/jupiter/",)
    assert Catalog([make_layout("etcd-naming"), make_layout("kratos")]).prefixes == (b"",)

"""What is told of a service's past adds up to what it is now, whatever happened, and names the Pods of then."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpc_etcd.etcd import Deleted, Event, LeaseId, Put, Record, Revision
from grpc_etcd.inspect.history import Change, Past, Times, differences
from grpc_etcd.layouts.index import make_layout
from grpc_etcd.registry.endpoint import Endpoint, Kind
from grpc_etcd.registry.layout import KeyValue, Rejected
from grpc_etcd.registry.own import ClockReading, OwnerRecord, owner_key

LAYOUTS = [make_layout("jupiter"), make_layout("kratos")]
NO_TIMES = Times(())
SERVICE = "greeter"


def encode(address: str, weight: float, layout: int, service: str = SERVICE) -> tuple[bytes, bytes]:
    encoded = LAYOUTS[layout].encode(service, Endpoint(name=service, address=address, weight=weight))
    assert isinstance(encoded, KeyValue)
    return encoded.key, encoded.value


def put(key: bytes, value: bytes, revision: int) -> Put:
    return Put(Record(key, value, LeaseId(0), Revision(revision), Revision(revision), 1))


def told(events: list[Event], times: Times = NO_TIMES, records: tuple[Record, ...] = ()) -> list[Change]:
    return list(Past(SERVICE, LAYOUTS, records).changes(events, times))


events = st.lists(
    st.tuples(
        st.sampled_from(["10.0.0.1:9000", "10.0.0.2:9000", "10.0.0.3:9000"]),
        st.integers(0, 1),
        st.sampled_from([None, 1.0, 50.0, "rubbish"]),
        st.sampled_from([SERVICE, SERVICE, "other"]),
        st.integers(0, 1),  # how much later than the last
    ),
    max_size=30,
)


@given(events, st.integers(0, 30))
def test_the_changes_add_up_to_what_is_there(drawn: list[tuple[str, int, object, str, int]], begun: int) -> None:
    revision, happened, now = 2, list[Event](), dict[tuple[int, bytes], object]()
    addresses = dict[bytes, str]()
    for address, layout, weight, service, later in drawn:
        revision += later
        key, value = encode(address, weight if isinstance(weight, float) else 1.0, layout, service)
        value = b"{" if weight == "rubbish" else value
        happened.append(Deleted(key, Revision(revision)) if weight is None else put(key, value, revision))
        if service == SERVICE and weight is None:
            now.pop((layout, key), None)
        elif service == SERVICE:
            now[layout, key] = weight
            addresses[key] = address
    split = next((place for place, each in enumerate(happened) if each.revision > begun), len(happened))
    earlier = {event.key: event.record if isinstance(event, Put) else None for event in happened[:split]}
    changes = told(happened[split:], records=tuple(filter(None, earlier.values())))
    state = {key for key, record in earlier.items() if record and SERVICE.encode() in key}
    for change in changes:
        assert (change.before is None) == (change.key not in state)
        state = state - {change.key} if change.after is None else state | {change.key}
    assert state == {key for _, key in now}
    if changes:
        readable = {addresses[key] for (_, key), weight in now.items() if isinstance(weight, float)}
        assert changes[-1].endpoints == len(readable)  # one address is one endpoint


def test_an_address_in_two_layouts_is_one_endpoint() -> None:
    both: list[Event] = [put(*encode("10.0.0.1:9000", 1, layout), 5 + layout) for layout in (0, 1)]
    assert [each.endpoints for each in told(both)] == [1, 1]


def test_a_governor_is_shown_and_is_no_endpoint() -> None:
    """Jupiter registers an application's beside its servers, and no client calls it."""
    governor = Endpoint(name=SERVICE, address="10.0.0.9:9990", kind=Kind.GOVERNOR)
    encoded = LAYOUTS[0].encode(SERVICE, governor)
    assert isinstance(encoded, KeyValue)
    changes = told([put(*encode("10.0.0.1:9000", 1, 0), 3), put(encoded.key, encoded.value, 4)])
    assert [(change.address, change.endpoints) for change in changes] == [("10.0.0.1:9000", 1), ("10.0.0.9:9990", 1)]


def test_a_pod_is_named_when_it_comes_and_when_it_goes_with_its_owner_record() -> None:
    key, value = encode("10.0.0.1:9000", 1, 0)
    owner = OwnerRecord(namespace="shop", pod="greeter-0", keys=(key,)).to_json()
    owner_of = owner_key("c1", "uid-1")
    changes = told(
        [
            put(key, value, 5),
            put(owner_of, owner, 5),
            Deleted(owner_of, Revision(7)),
            Deleted(key, Revision(7)),
            put(key, value, 9),  # by somebody without an operator
        ]
    )
    assert [(each.revision, each.what, each.pod, each.endpoints) for each in changes] == [
        (5, "added", "shop/greeter-0", 1),
        (7, "removed", "shop/greeter-0", 0),
        (9, "added", "", 1),
    ]


def test_what_is_written_again_as_it_was_is_no_change_and_a_weight_is() -> None:
    key, value = encode("10.0.0.1:9000", 1, 0)
    changes = told([put(key, value, 5), put(key, value, 6), put(*encode("10.0.0.1:9000", 50, 0), 8)])
    assert [(each.revision, each.what) for each in changes] == [(5, "added"), (8, "changed")]
    assert differences(changes[1]) == {"weight": (1.0, 50.0)}


@given(st.lists(st.tuples(st.integers(1, 100), st.floats(0, 1e6))), st.integers(1, 101))
def test_a_revision_was_there_by_the_first_reading_that_covers_it(
    drawn: list[tuple[int, float]], revision: int
) -> None:
    found = Times(ClockReading(*each) for each in drawn).find(revision)
    covering = [each for each in drawn if each[0] >= revision]
    assert found == (min(covering)[1] if covering else None)


@given(st.integers(0, 2**62), st.floats(0, 4e9))
def test_a_reading_is_read_as_it_was_written_to_the_millisecond(revision: int, time: float) -> None:
    read = ClockReading.from_json(ClockReading(revision, time).to_json())
    assert isinstance(read, ClockReading)
    assert read.revision == revision
    assert read.time == pytest.approx(time, abs=0.001)


@given(st.binary() | st.sampled_from([b'{"revision":1}', b'{"revision":"x","time":"y"}', b"[]", b'{"revision":1e999}']))
def test_rubbish_is_no_reading(value: bytes) -> None:
    assert isinstance(ClockReading.from_json(value), Rejected)

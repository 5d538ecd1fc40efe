"""The operator's own keys and its owner records."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpc_etcd.registry import own
from grpc_etcd.registry.layout import Rejected

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
keys = texts.map(str.encode) | st.binary(max_size=12)


def test_keys_lie_where_other_programs_look_for_them() -> None:
    assert own.leader_key("c1") == b"/grpc-etcd/leader/c1"
    assert own.synced_key("c1") == b"/grpc-etcd/synced/c1"
    assert own.owner_key("c1", "0b5e") == b"/grpc-etcd/owner/c1/0b5e"
    assert own.policy_key("/wsd-reg/", "greeter") == b"/grpc-etcd/policy/wsd-reg/greeter"


def test_one_clusters_owners_are_not_anothers() -> None:
    assert own.owner_key("c1", "0b5e").startswith(own.owner_prefix("c1"))
    assert not own.owner_key("c10", "0b5e").startswith(own.owner_prefix("c1"))


@given(
    st.builds(
        own.OwnerRecord,
        namespace=texts,
        pod=texts,
        node=texts,
        grpc_services=st.lists(texts, unique=True, max_size=3).map(lambda names: tuple(sorted(names))),
        keys=st.lists(keys, unique=True, max_size=3).map(lambda names: tuple(sorted(names))),
        adjustments=st.dictionaries(
            keys,
            st.builds(own.Adjustment, st.booleans(), st.integers(0, 9), st.booleans(), st.integers(0, 9)),
            max_size=2,
        ),
    )
)
def test_an_owner_record_survives_a_round_trip(record: own.OwnerRecord) -> None:
    assert own.OwnerRecord.from_json(record.to_json()) == record


def test_equal_records_are_equal_bytes() -> None:
    one = own.OwnerRecord(namespace="shop", keys=(b"b", b"a"), grpc_services=("shop/b", "shop/a"))
    two = own.OwnerRecord(namespace="shop", keys=(b"a", b"b"), grpc_services=("shop/a", "shop/b"))
    assert one.to_json() == two.to_json()


@pytest.mark.parametrize(
    "value", [b"", b"[]", b"{}", b"null", b"\xff", b'{"namespace":1}', b'{"namespace":"a","keys":[1]}', b"[" * 100_000]
)
def test_what_is_no_owner_record_is_rejected(value: bytes) -> None:
    assert isinstance(own.OwnerRecord.from_json(value), Rejected)


HUGE = "1" + "0" * 400


def adjusted(made: str) -> bytes:
    return f'{{"namespace":"shop","keys":["a"],"adjustments":{{"a":{made}}}}}'.encode()


@pytest.mark.parametrize("weight", ['"9"', "-9", "NaN", "Infinity", "null", "true", HUGE])
def test_an_owner_record_whose_adjustment_has_no_weight_is_rejected(weight: str) -> None:
    made = f"[true,{weight},true,9]"
    assert isinstance(own.OwnerRecord.from_json(adjusted(made)), Rejected)


@pytest.mark.parametrize("made", ['"abcd"', "[true]", "[1,9,true,9]", "[true,9,null,9]", '{"enable":true}'])
def test_an_owner_record_whose_adjustment_no_endpoint_can_have_is_rejected(made: str) -> None:
    """Else its Pod could never be planned, and nobody would ever repair it."""
    assert isinstance(own.OwnerRecord.from_json(adjusted(made)), Rejected)


@given(st.binary(max_size=60))
def test_reading_bears_any_bytes(value: bytes) -> None:
    own.OwnerRecord.from_json(value)


def test_an_owner_record_says_which_keys_are_of_which_service_and_older_ones_do_not() -> None:
    sources = {"shop/a": (b"a",), "shop/b": (b"b", b"c")}
    record = own.OwnerRecord(
        namespace="shop", keys=(b"a", b"b", b"c"), grpc_services=("shop/a", "shop/b"), sources=sources
    )
    read = own.OwnerRecord.from_json(record.to_json())
    assert read == record
    assert record.behind(b"c") == ("shop/b",)
    older = own.OwnerRecord(namespace="shop", keys=(b"a",), grpc_services=("shop/a", "shop/b"))
    assert older.behind(b"a") == ("shop/a", "shop/b")

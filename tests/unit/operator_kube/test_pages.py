"""Pages of metadata and of tables: what is none is told apart, whatever it is. Real pages: tests/e2e/test_lists.py."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpc_etcd_operator.core.sweeps import Seen
from grpc_etcd_operator.kube.pages import Page, read_addresses, read_metadata, read_refusal

# The envelope (field 2: raw) around a list: its metadata (field 1) with a token (3), and an item (2) whose metadata (1)
# has a name (1), a namespace (3), a uid (5) and, as real ones do, fields that nobody asked for (11: labels).
METADATA = b"\x0a\x03pod\x1a\x02ns\x2a\x03uid\x5a\x06\x0a\x01a\x12\x01b"
ITEM = b"\x0a" + bytes([len(METADATA)]) + METADATA
PAGE = b"\x0a\x06\x1a\x04next" + b"\x12" + bytes([len(ITEM)]) + ITEM
BODY = b"k8s\x00\x12" + bytes([len(PAGE)]) + PAGE


def test_a_page_is_read() -> None:
    assert read_metadata(BODY) == Page([Seen("uid", "ns", "pod")], "next")


@pytest.mark.parametrize("body", [b"", b"<html>busy</html>", b'{"kind":"Status"}', BODY[4:], BODY[:-1], BODY + b"\x12"])
def test_what_is_no_page_is_told(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"no protobuf|broken"):
        read_metadata(body)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"columnDefinitions":[{"name":"Age"}],"rows":[],"metadata":{}}', b'"x"', b"null"]
)
def test_what_is_no_table_is_told(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_addresses(body)


@given(st.binary(max_size=300))
def test_nothing_that_arrives_does_any_harm(noise: bytes) -> None:
    for body in (noise, b"k8s\x00" + noise, BODY[:9] + noise):
        for read in (read_metadata, read_refusal, read_addresses):
            try:
                read(body)
            except ValueError:
                continue

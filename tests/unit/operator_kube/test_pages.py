"""Pages and events: what is none is told apart, whatever it is. Real ones are in tests/e2e."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpc_etcd_operator.core.sweeps import Seen
from grpc_etcd_operator.kube.pages import (
    Event,
    Page,
    Refusal,
    read_event,
    read_metadata,
    read_objects,
    read_refusal,
)

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


def test_a_page_of_whole_objects_is_read() -> None:
    body = b'{"metadata":{"resourceVersion":"7","continue":"next"},"items":[{"metadata":{"uid":"a"}}]}'
    assert read_objects(body) == Page([("a", {"metadata": {"uid": "a"}})], "next", "7")
    assert read_objects(b'{"metadata":{"resourceVersion":"7"},"items":null}') == Page([], "", "7")


def test_what_a_watch_tells_is_read() -> None:
    raw = {"metadata": {"resourceVersion": "7"}}
    assert read_event(b'{"type":"ADDED","object":{"metadata":{"resourceVersion":"7"}}}') == Event("ADDED", raw, "7")
    gone = b'{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired","message":"too old"}}'
    assert read_event(gone) == Refusal(410, "too old")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b"null",
        b'"x"',
        b'{"metadata":{"resourceVersion":"7"},"items":[{}]}',
        b'{"metadata":{},"items":[]}',
        b'{"type":"ADDED","object":{}}',
        b'{"type":"ERROR","object":{"code":"x"}}',
        b'{"type":"ADDED","object":{"metadata":{"resourceVersion":"7"}}',
    ],
)
@pytest.mark.parametrize("read", [read_objects, read_event])
def test_what_is_neither_list_nor_event_is_told(read: Callable[[bytes], object], body: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read(body)


@given(st.binary(max_size=300))
def test_nothing_that_arrives_does_any_harm(noise: bytes) -> None:
    for body in (noise, b"k8s\x00" + noise, BODY[:9] + noise):
        for read in (read_metadata, read_refusal, read_objects, read_event):
            try:
                read(body)
            except ValueError:
                continue

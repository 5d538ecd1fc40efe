"""Pages and events: what is none is kept apart, whatever it is. Real ones are in tests/e2e."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpc_etcd_operator.core.resync import ObjectRef
from grpc_etcd_operator.kube.messages import MAGIC, message_class
from grpc_etcd_operator.kube.pages import (
    Event,
    Page,
    Refusal,
    read_event,
    read_metadata,
    read_pods,
    read_refusal,
    split_frames,
)

# The envelope (field 2: raw) around a list: its metadata (field 1) with a token (3), and an item (2) whose metadata (1)
# has a name (1), a namespace (3), a uid (5), a version (6) and, as real ones do, fields nobody asked for (11: labels).
METADATA = b"\x0a\x03pod\x1a\x02ns\x2a\x03uid\x32\x0217\x5a\x06\x0a\x01a\x12\x01b"
ITEM = b"\x0a" + bytes([len(METADATA)]) + METADATA
PAGE = b"\x0a\x06\x1a\x04next" + b"\x12" + bytes([len(ITEM)]) + ITEM
BODY = b"k8s\x00\x12" + bytes([len(PAGE)]) + PAGE


def enclose(message: Any) -> bytes:
    raw: bytes = message_class("Unknown")(raw=message.SerializeToString()).SerializeToString()
    return MAGIC + raw


def tell(kind: str, message: Any) -> bytes:
    told = message_class("WatchEvent")(type=kind)
    if message:
        told.object.raw = enclose(message)
    frame: bytes = told.SerializeToString()
    return frame


def test_a_page_is_read() -> None:
    assert read_metadata(BODY) == Page([ObjectRef("uid", "ns", "pod", "17")], "next")


@pytest.mark.parametrize("body", [b"", b"<html>busy</html>", b'{"kind":"Status"}', BODY[4:], BODY[:-1], BODY + b"\x12"])
def test_what_is_no_page_is_told(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"not a protobuf|invalid"):
        read_metadata(body)


def test_a_page_of_pods_is_read() -> None:
    page = message_class("PodList")()
    page.metadata.resourceVersion, page.metadata.token = "7", "next"
    pod = page.items.add()
    pod.metadata.uid = "a"
    pod.metadata.labels["app"] = "greeter"
    pod.spec.containers.add().ports.add(containerPort=9000)
    assert read_pods(enclose(page)) == Page([pod], "next", "7")


def test_what_a_watch_tells_is_read() -> None:
    pod = message_class("Pod")()
    pod.metadata.resourceVersion = "7"
    assert read_event(tell("ADDED", pod)) == Event("ADDED", pod, "7")
    assert read_event(tell("ERROR", message_class("Status")(code=410, message="too old"))) == Refusal(410, "too old")


@given(st.lists(st.binary(max_size=300)), st.binary(max_size=4), st.lists(st.integers(0, 2000)))
def test_frames_are_split_wherever_the_stream_was_cut(frames: list[bytes], rest: bytes, cuts: list[int]) -> None:
    rest = rest and len(rest + b"more").to_bytes(4, "big") + rest
    stream = b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames) + rest
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    found, left = [], b""
    for begin, end in itertools.pairwise(edges):
        some, left = split_frames(left + stream[begin:end])
        found += some
    assert (found, left) == (frames, rest)


def test_what_is_no_frame_is_told() -> None:
    with pytest.raises(ValueError, match="not a watch event: b'<html>busy</html>'"):
        split_frames(b"<html>busy</html>")


@pytest.mark.parametrize(
    "body", [b"", b"k8s\x00", b"<html>busy</html>", tell("", None), tell("ADDED", None), BODY[:-1]]
)
@pytest.mark.parametrize("read", [read_pods, read_event])
def test_what_is_neither_list_nor_event_is_told(read: Callable[[bytes], object], body: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read(body)


@given(st.binary(max_size=300))
def test_nothing_that_arrives_does_any_harm(noise: bytes) -> None:
    for body in (noise, b"k8s\x00" + noise, BODY[:9] + noise):
        for read in (read_metadata, read_refusal, read_pods, read_event, split_frames):
            try:
                read(body)
            except ValueError:
                continue

"""Reads Pods that came as JSON into the messages that protobuf gives: who receives them sees no difference."""

from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cache
from typing import Any

from google.protobuf.message import Message

from grpc_etcd_operator.core.pods import PodMessage
from grpc_etcd_operator.kube.messages import message_class

_Fill = Callable[[Message, str, Any], None]


def read_pod(raw: Mapping[str, Any]) -> PodMessage:
    """Read a Pod; what is not described in `kube/messages.py` is left out. ValueError and TypeError: it is none."""
    pod = message_class("Pod")()
    _fill(pod, raw)
    if not pod.metadata.uid:
        raise ValueError("not a Pod: it has no UID")
    read: PodMessage = pod
    return read


def _fill(message: Message, raw: Mapping[str, Any]) -> None:
    for name, fill in _fields(message.DESCRIPTOR.name):
        value = raw.get(name)
        if value is not None:
            fill(message, name, value)


@cache
def _fields(message: str) -> tuple[tuple[str, _Fill], ...]:
    """List the fields of a message, and how each is filled: looked up once, since storms are thousands of Pods."""
    empty = message_class(message)()
    return tuple((field.name, _choose(field, getattr(empty, field.name))) for field in empty.DESCRIPTOR.fields)


def _choose(field: Any, empty: Any) -> _Fill:
    if field.message_type is None:
        return setattr
    if field.message_type.GetOptions().map_entry:
        return _fill_map
    if field.message_type.name == "Time":
        return _fill_time
    if field.message_type.name == "Probe":
        return _fill_probe
    return _fill_each if hasattr(empty, "add") else _fill_one


def _fill_map(message: Message, name: str, value: Mapping[str, str]) -> None:
    getattr(message, name).update(value)


def _fill_time(message: Message, name: str, value: str) -> None:
    getattr(message, name).seconds = int(datetime.fromisoformat(value).timestamp())


def _fill_one(message: Message, name: str, value: Mapping[str, Any]) -> None:
    part = getattr(message, name)
    part.SetInParent()
    _fill(part, value)


def _fill_probe(message: Message, name: str, value: Mapping[str, Any]) -> None:
    _fill(getattr(message, name).handler, value)


def _fill_each(message: Message, name: str, value: list[Mapping[str, Any]]) -> None:
    for each in value:
        _fill(getattr(message, name).add(), each)

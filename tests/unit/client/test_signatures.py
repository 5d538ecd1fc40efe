"""What stands in for an object of gRPC's is called as gRPC's own: by position, by name, with and without defaults.

What generated stubs and users pass comes in each of these ways, and a name that differs is a TypeError at the call.
"""

import inspect
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from grpc import aio

from grpc_etcd import CompoundRegistry, Registry, SelectedRegistry
from grpc_etcd.client import aio as following_aio
from grpc_etcd.client import channels
from grpc_etcd.client.compound import AioCompoundRegistry
from grpc_etcd.client.registry import AioEtcdRegistry
from grpc_etcd.client.selection import AioSelectedRegistry
from grpc_etcd.registration.server import BoundAioServer, BoundServer
from testbed.api_reference import public_methods

STAND_INS: list[tuple[type, type]] = [
    (channels.FollowingChannel, grpc.Channel),
    (channels.UnaryUnary, grpc.UnaryUnaryMultiCallable),
    (channels.UnaryStream, grpc.UnaryStreamMultiCallable),
    (channels.StreamUnary, grpc.StreamUnaryMultiCallable),
    (channels.StreamStream, grpc.StreamStreamMultiCallable),
    (following_aio.FollowingAioChannel, aio.Channel),
    (following_aio.UnaryUnary, aio.UnaryUnaryMultiCallable),
    (following_aio.UnaryStream, aio.UnaryStreamMultiCallable),
    (following_aio.StreamUnary, aio.StreamUnaryMultiCallable),
    (following_aio.StreamStream, aio.StreamStreamMultiCallable),
    (BoundServer, grpc.Server),
    (BoundAioServer, aio.Server),
]


def ways_to_call(method: Any) -> Iterator[tuple[list[str], list[str]]]:
    """Give the names of the arguments that are passed by position, and by name."""
    parameters = [*inspect.signature(method).parameters.values()][1:]
    named = [each for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    needed = [each.name for each in named if each.default is each.empty]
    yield [], [each.name for each in named]
    yield [], needed
    yield needed, []
    yield [each.name for each in named if each.kind is each.POSITIONAL_OR_KEYWORD], []


@pytest.mark.parametrize(("ours", "grpcs"), STAND_INS, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_a_stand_in_is_called_as_grpcs_own(ours: type, grpcs: type) -> None:
    names: frozenset[str] = grpcs.__abstractmethods__  # type: ignore[attr-defined]  # abc adds it
    for name in (each for each in names if each == "__call__" or not each.startswith("_")):
        for by_position, by_name in ways_to_call(getattr(grpcs, name)):
            try:
                inspect.signature(getattr(ours, name)).bind(None, *by_position, **dict.fromkeys(by_name))
            except TypeError as error:
                pytest.fail(f"{ours.__name__}.{name}({by_position}, {by_name}): {error}")


@pytest.mark.parametrize(
    ("kind", "aio_kind"),
    [
        (Registry, AioEtcdRegistry),
        (CompoundRegistry, AioCompoundRegistry),
        (SelectedRegistry, AioSelectedRegistry),
    ],
)
def test_whatever_threads_may_ask_a_registry_asyncio_may_too(kind: type, aio_kind: type) -> None:
    missing = dict(public_methods(kind)).keys() - {name for name in dir(aio_kind) if name[0] != "_"}
    makers = {"aio", "from_environ", "from_settings"}
    assert missing - makers <= {"etcd", "on_change"}  # those block, and so would a callback

"""Ctrl-C, or a timeout by signal, amid a method: the exception is the caller's, and the registry works on."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import pytest

from grpc_etcd import Endpoint
from grpc_etcd.testing import MemoryRegistry
from testbed.conditions import wait_until
from testbed.greeter import GreeterServer, say_hello

GREETER = Endpoint(name="greeter", address="10.0.0.1:1")


@contextmanager
def interrupt_at(function: str) -> Iterator[None]:
    """Raise KeyboardInterrupt where this thread calls a function of that name next, as a signal's handler may."""

    def look(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_name == function:
            sys.setprofile(before)
            raise KeyboardInterrupt

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        sys.setprofile(before)


@pytest.fixture
def registry() -> Iterator[MemoryRegistry]:
    with MemoryRegistry(name="interrupts", stop_seconds=1) as registry:
        yield registry


@pytest.mark.parametrize("function", ["find_address", "take_along", "follow", "changed"])
def test_a_first_use_that_was_interrupted_is_no_obstacle_to_the_next(registry: MemoryRegistry, function: str) -> None:
    with GreeterServer("127.0.7.1:0") as server:
        registry.set_endpoints("greeter", server.address)
        with interrupt_at(function):
            registry.insecure_channel("greeter")
        with registry.insecure_channel("greeter") as channel:
            assert say_hello(channel)("x", timeout=10) == server.address


def test_a_name_is_free_again_after_a_first_use_that_was_interrupted() -> None:
    with MemoryRegistry(name="interrupts") as registry, interrupt_at("find_address"):
        registry.insecure_channel("greeter")
    with MemoryRegistry(name="interrupts") as registry:
        registry.set_endpoints("greeter", "127.0.7.1:1")
        assert registry.wait_for_endpoints("greeter", 10).endpoints


@pytest.mark.parametrize("function", ["make_label", "claim"])
def test_a_registration_that_was_interrupted_is_no_obstacle_to_the_next(
    registry: MemoryRegistry, function: str
) -> None:
    with interrupt_at(function):
        registry.register(GREETER)
    assert registry.register(GREETER).wait(10)


def test_a_deregistration_that_was_interrupted_does_not_keep_the_registry_from_closing() -> None:
    with MemoryRegistry(name="interrupts", stop_seconds=10) as registry:
        registration = registry.register(GREETER)
        assert registration.wait(10)
        reader = MemoryRegistry(registry.etcd, name="reader")
        with interrupt_at("_forget_left"):
            registration.unregister()
    with reader:
        wait_until(lambda: not reader.services(), "it is deregistered")

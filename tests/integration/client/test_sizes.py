"""How large what others write may be: gRPC drops a message of more than 4 MB, and with it the stream of 50 services."""

import json
from collections.abc import Callable

import pytest

from grpc_etcd.registry.own import policy_key
from testbed.conditions import wait_until
from testbed.greeter import METHOD, say_hello

from .conftest import World

MEGABYTE = 1_200_000  # etcd takes 1.5 MB at once


def route(number: int, method: str, group: str = "") -> tuple[bytes, bytes]:
    upstream = {"nodes": {}, "groups": {group: 1}}
    value = {"id": f"r{number}", "scheme": "grpc", "host": "", "deployment": "", "uri": method, "upstream": upstream}
    return f"/jupiter/greeter/configurators/grpc:///routes/r{number}".encode(), json.dumps(value).encode()


def write_zones(world: World) -> None:
    for number in range(5):
        world.put(f"127.0.9.{number + 1}:9", zone=str(number) * MEGABYTE)


def write_groups(world: World) -> None:
    for number in range(5):
        world.put(f"127.0.9.{number + 1}:9", group=str(number) * MEGABYTE)
        world.etcd.put(*route(number, f"/a/b{number}", str(number) * MEGABYTE))


def write_methods(world: World) -> None:
    for number in range(5):
        world.etcd.put(*route(number, f"/a/{str(number) * MEGABYTE}"))


def write_routes(world: World) -> None:
    for number in range(600):
        world.etcd.put(*route(number, f"/a/{number}/{'x' * 8000}"))


def write_header(world: World) -> None:
    wish = {"loadBalancing": {"type": "RingHash", "hashHeader": "x" * MEGABYTE}}
    world.etcd.put(policy_key("jupiter", "greeter"), json.dumps(wish).encode())
    for number in range(5):
        world.etcd.put(*route(number, f"/a/b{number}"))


@pytest.mark.parametrize("write", [write_zones, write_groups, write_methods, write_routes, write_header])
def test_what_is_written_about_one_service_makes_no_other_deaf(world: World, write: Callable[[World], None]) -> None:
    world.serve(service="greeter")
    (before,) = world.serve(service="calm")
    registry = world.registry()
    greeter, calm = world.channel(registry), world.channel(registry, "calm")
    assert say_hello(calm)("x", timeout=20) == before.address
    say_hello(greeter)("x", timeout=20)

    write(world)
    last = world.greeter()
    world.put(last.address)  # told after all that was written
    wait_until(lambda: say_hello(greeter)("x", timeout=20, wait_for_ready=True) == last.address, "greeter's news")

    after = world.greeter()
    world.put(after.address, "calm")
    world.delete(before.address, "calm")
    wait_until(lambda: say_hello(calm)("x", timeout=20) == after.address, "calm's news")


def test_routes_that_are_too_many_are_told_and_calls_go_to_all(world: World) -> None:
    (server,) = world.serve()
    registry = world.registry()
    for number in range(600):
        world.etcd.put(*route(number, f"/a/{number}/{'x' * 8000}"))
    channel = world.channel(registry)
    assert say_hello(channel)("x", timeout=20) == server.address
    refused = wait_until(lambda: registry.stats()["greeter"].last_refusal, "the refusal to be told")
    assert "bytes" in refused
    for number in range(600):
        world.etcd.delete(route(number, METHOD)[0])
    assert say_hello(channel)("x", timeout=20) == server.address

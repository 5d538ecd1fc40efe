"""A registry that the program has lost without closing it gives a warning, and what others have of it goes on."""

import gc
import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from grpc_etcd import CompoundRegistry
from grpc_etcd.client.base import Following
from grpc_etcd.client.default import default_registry
from grpc_etcd.testing import MemoryEtcd, MemoryRegistry
from testbed.conditions import PATIENCE_SECONDS
from testbed.greeter import GreeterServer, say_hello

NUMBERS = itertools.count(1)
LEFT: list[Following] = []


@pytest.fixture(autouse=True)
def leaves_nothing() -> Iterator[None]:
    """Close at last what the tests have lost."""
    yield
    while LEFT:
        LEFT.pop().close()


def make(memory: MemoryEtcd | None = None, **options: Any) -> MemoryRegistry:
    registry = MemoryRegistry(memory, name=f"lost-{next(NUMBERS)}", **options)
    LEFT.append(registry._inner)
    return registry


def collect(lose: Callable[[], object]) -> list[str]:
    """Return the warnings about what is lost meanwhile."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lose()
        gc.collect()
    return [str(warning.message) for warning in caught if warning.category is ResourceWarning]


def use(registry: Following) -> None:
    registry.insecure_channel("greeter").close()


def use_selection(registry: MemoryRegistry) -> None:
    use(registry.select(metadata={"version": "v2"}))


def use_static() -> None:
    make(static={"greeter": "127.0.0.1:1"}).endpoints("greeter")


def use_compound() -> None:
    part = make()
    compound = CompoundRegistry([part], name=f"lost-{next(NUMBERS)}")
    LEFT.append(compound._inner)
    use(compound)
    part.close()


async def use_aio() -> None:
    await make().aio.insecure_channel("greeter").close()


@pytest.mark.parametrize(
    "lose",
    [
        pytest.param(lambda: use(make()), id="a registry"),
        pytest.param(lambda: use_selection(make()), id="with a selection of it"),
        pytest.param(use_static, id="with static services"),
        pytest.param(use_compound, id="several as one"),
    ],
)
def test_a_lost_registry_gives_one_warning(lose: Callable[[], object]) -> None:
    found = collect(lose)
    assert len(found) == 1
    assert found[0].startswith("unclosed <")
    assert "'lost-" in found[0]


async def test_so_does_one_that_was_used_on_asyncio() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        await use_aio()
        gc.collect()
    assert ["'lost-" in str(each.message) for each in caught if each.category is ResourceWarning] == [True]


def close(registry: MemoryRegistry) -> None:
    with registry:
        use(registry)
        use_selection(registry)


@pytest.mark.parametrize(
    "lose",
    [
        pytest.param(lambda: close(make()), id="closed"),
        pytest.param(make, id="never used"),
    ],
)
def test_another_gives_none(lose: Callable[[], object]) -> None:
    assert collect(lose) == []


def test_the_default_registry_lives_as_long_as_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPC_ETCD_STATIC", "greeter=127.0.0.1:1")
    registry = default_registry()
    assert not registry.warns_unclosed
    registry.close()


def call_and_close(channel: grpc.Channel) -> str:
    with channel:
        return say_hello(channel)("world", wait_for_ready=True, timeout=PATIENCE_SECONDS)


def test_a_channel_keeps_its_registry_and_targets_are_followed_without_it() -> None:
    memory = MemoryEtcd()
    channels, targets = list[grpc.Channel](), list[str]()
    assert collect(lambda: channels.append(make(memory).insecure_channel("greeter"))) == []
    assert len(collect(lambda: targets.append(make(memory).target("greeter")))) == 1
    channels.append(grpc.insecure_channel(targets[0], [("grpc.enable_http_proxy", 0)]))
    with GreeterServer("127.0.0.1:0") as server, make(memory) as writer:
        writer.set_endpoints("greeter", server.address)
        assert all(map(call_and_close, channels))
    assert len(collect(channels.clear)) == 1

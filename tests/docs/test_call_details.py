"""The table of failed calls in docs/client.md has the words of real calls that fail for those reasons."""

import re
from collections.abc import Callable, Iterator

import grpc
import pytest

from grpc_etcd.testing import MemoryRegistry
from testbed.build import ROOT
from testbed.conditions import free_port
from testbed.greeter import DELAY_HEADER, GreeterServer, say_hello

SECTION = "## Error details of failed calls"
EMPTY, UNNAMED, REFUSED, LATE = range(4)


def rows() -> list[tuple[str, str]]:
    """Give code and details of each row; the first of the details' words in backquotes are meant."""
    section = (ROOT / "docs/client.md").read_text().partition(SECTION)[2].partition("\n## ")[0]
    return re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", section, re.MULTILINE)


def pattern(details: str) -> str:
    """Let stand for anything what the table only hints at."""
    fixed = re.escape(details)
    for hint in ("default/greeter: WHY", "default/greeter", "..."):
        fixed = fixed.replace(re.escape(hint), ".*")
    return fixed


@pytest.fixture
def registry() -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as made:
        yield made


def empty(registry: MemoryRegistry) -> grpc.RpcError:
    registry.set_endpoints("greeter")
    return failure(lambda: registry.insecure_channel("greeter"))


def unnamed(registry: MemoryRegistry) -> grpc.RpcError:
    registry.target("greeter")  # so that gRPC knows whom to ask
    options = [("grpc.enable_http_proxy", 0)]
    return failure(lambda: grpc.insecure_channel("xds://etcd/no-such-registry/greeter", options))


def refused(registry: MemoryRegistry) -> grpc.RpcError:
    registry.set_endpoints("greeter", f"127.0.0.1:{free_port()}")
    return failure(lambda: registry.insecure_channel("greeter"))


def late(registry: MemoryRegistry) -> grpc.RpcError:
    with GreeterServer("127.0.0.1:0") as server:
        registry.set_endpoints("greeter", server.address)
        with registry.insecure_channel("greeter") as channel:  # so that only the server is late
            say_hello(channel)("x", timeout=30)
            return failure(lambda: registry.insecure_channel("greeter"), timeout=0.5)


def failure(make: Callable[[], grpc.Channel], timeout: float = 30) -> grpc.RpcError:
    with make() as channel, pytest.raises(grpc.RpcError) as found:
        say_hello(channel)("x", timeout=timeout, metadata=((DELAY_HEADER, "5"),))
    return found.value


@pytest.mark.parametrize(("row", "cause"), [(EMPTY, empty), (UNNAMED, unnamed), (REFUSED, refused), (LATE, late)])
def test_a_call_says_what_its_row_says(
    registry: MemoryRegistry, row: int, cause: Callable[[MemoryRegistry], grpc.RpcError]
) -> None:
    code, details = rows()[row]
    error = cause(registry)
    assert error.code().name == code
    assert re.search(pattern(details), error.details() or ""), error.details()


def test_every_row_is_tried() -> None:
    assert len(rows()) == LATE + 1

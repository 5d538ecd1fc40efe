"""An ended stream goes at once: what only the garbage collector would find, a forked child might wait in for ever."""

from collections.abc import Callable
from typing import Any, NoReturn

import grpc
import pytest

from grpc_etcd.etcd.aio.streams import ListWatch, name_loss
from grpc_etcd.etcd.blocking import streams as blocking
from grpc_etcd.etcd.blocking.streams import Reading, Requests
from grpc_etcd.etcd.calls import Call, Method
from grpc_etcd.etcd.errors import DeadlineExceeded, EtcdError, Unavailable, make_error
from grpc_etcd.etcd.messages import message
from grpc_etcd.etcd.model import Disconnected, WatchSnapshot
from grpc_etcd.etcd.renewing import may_be_refusal


class Ended(grpc.RpcError):
    """A call of grpcio's whose stream has ended: it raises itself."""

    def __next__(self) -> NoReturn:
        raise self

    def add_callback(self, _: Callable[[], None]) -> bool:
        return True

    def cancel(self) -> None:
        """End as it is."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return "as told"


@pytest.mark.parametrize("fault", [None, DeadlineExceeded("stuck")], ids=["by itself", "given up"])
def test_an_ended_stream_lives_on_neither_by_itself_nor_with_the_fault(fault: EtcdError | None) -> None:
    stream = Ended()
    reading = Reading(stream, Requests(()), 10.0)
    reading.fault = fault
    with pytest.raises(type(fault) if fault else Unavailable) as caught:
        reading.read()
    assert stream.__traceback__ is None, "it leads to itself"
    assert caught.value.__context__ is None


def test_a_stream_that_is_lost_while_a_request_is_written_is_a_connection_that_is_lost() -> None:
    """The asyncio of grpcio says then that something inside it has failed, as if etcd or the library were broken."""
    error = name_loss(make_error("INTERNAL", "Internal error from Core"))
    assert isinstance(error, Unavailable)
    assert may_be_refusal(error), "it may have ended because a lease may not be renewed"
    other = make_error("INTERNAL", "stream terminated by RST_STREAM")
    assert name_loss(other) is other


class Lost(Ended):
    """A stream that is lost while the first request is written, as grpcio's asyncio reports it."""

    async def write(self, request: object) -> NoReturn:
        """Fail."""
        del request
        raise self

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.INTERNAL

    def details(self) -> str:
        return "Internal error from Core"


class Line:
    """The way to an etcd that lists nothing, and whose streams get lost."""

    def __init__(self) -> None:
        self.reported: list[EtcdError] = []

    def report(self, stream: Lost, error: EtcdError) -> None:
        """Record that a stream has failed."""
        del stream
        self.reported.append(error)

    async def call(self, call: Call[Any]) -> Any:
        """Answer a listing."""
        del call
        return message("RangeResponse")(header={"revision": 3})

    async def stream(self, method: Method) -> Lost:
        """Open a stream."""
        del method
        return Lost()

    def hang_up(self, stream: Lost) -> None:
        """End it as it is."""


class Sealed(Line):
    """The way to an etcd for whose login the program's own function raises something, once."""

    has_raised = False

    async def call(self, call: Call[Any]) -> Any:
        """Answer a listing, but not the first one."""
        if not self.has_raised:
            self.has_raised = True
            raise RuntimeError("sealed")
        return await super().call(call)


class SealedForThreads:
    """The same for threads."""

    has_raised = False

    def call(self, call: Call[Any]) -> Any:
        """Answer a listing, but not the first one."""
        del call
        if not self.has_raised:
            self.has_raised = True
            raise RuntimeError("sealed")
        return message("RangeResponse")(header={"revision": 3})


async def test_what_nobody_foresaw_ends_no_list_watch(caplog: pytest.LogCaptureFixture) -> None:
    async with ListWatch(Sealed(), [b"/a/"], 10.0, 0) as watch:  # type: ignore[arg-type]  # what is asked of one
        news = [await anext(watch) for _ in range(2)]
    with blocking.ListWatch(SealedForThreads(), [b"/a/"], 10.0, 0) as other:  # type: ignore[arg-type]  # the same
        news += [next(other) for _ in range(2)]
    assert [type(each) for each in news] == [Disconnected, WatchSnapshot] * 2
    assert [str(each.error) for each in news if isinstance(each, Disconnected)] == ["unexpected: sealed"] * 2
    assert caplog.text.count("RuntimeError: sealed") == 2


async def test_so_is_a_watch_that_is_lost_while_it_is_asked_for() -> None:
    line = Line()
    async with ListWatch(line, [b"/a/"], 10.0, 0) as watch:  # type: ignore[arg-type]  # what is asked of one
        news = [await anext(watch) for _ in range(2)]
    assert isinstance(news[1], Disconnected)
    assert isinstance(news[1].error, Unavailable), news[1].error
    assert line.reported == [news[1].error]

"""An ended stream goes at once: what only the garbage collector would find, a forked child might wait in for ever."""

from collections.abc import Callable
from typing import NoReturn

import grpc
import pytest

from grpc_etcd.etcd.aio.streams import name_loss
from grpc_etcd.etcd.blocking.streams import Reading, Requests
from grpc_etcd.etcd.errors import DeadlineExceeded, EtcdError, Unavailable, make_error
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
    if fault:
        reading.give_up(fault)
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

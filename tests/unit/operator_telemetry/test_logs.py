"""What others log is left out where the operator has said it already, and nothing else is."""

import asyncio
import logging
import socket

import pytest
import uvloop

from grpc_etcd_operator.telemetry.logs import is_of_a_closed_connection


class Lost(asyncio.Protocol):
    """Says when its connection is closed."""

    def __init__(self) -> None:
        self.is_lost = asyncio.Event()

    def connection_lost(self, *_: object) -> None:
        """Note it."""
        self.is_lost.set()


async def report(error: Exception) -> None:
    context = {"message": "Fatal error on SSL protocol", "exception": error}
    asyncio.get_running_loop().call_exception_handler(context)


async def write_to_a_closed_connection() -> None:
    """Let uvloop raise what it raises, and report it as its TLS layer does."""
    ours, theirs = socket.socketpair()
    with theirs:
        transport, protocol = await asyncio.get_running_loop().create_connection(Lost, sock=ours)
        transport.abort()
        await protocol.is_lost.wait()
        with pytest.raises(RuntimeError) as raised:
            transport.write(b"late")
    await report(raised.value)


def test_a_connection_that_was_closed_before_its_answer_came_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    uvloop.run(write_to_a_closed_connection())
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert is_of_a_closed_connection(record)


@pytest.mark.parametrize("error", [RuntimeError("something else"), ValueError("the handler is closed")])
def test_whatever_else_the_event_loop_reports_is_logged(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    uvloop.run(report(error))
    (record,) = caplog.records
    assert not is_of_a_closed_connection(record)

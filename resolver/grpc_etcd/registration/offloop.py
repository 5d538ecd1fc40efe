"""Wait outside an event loop for what may take long, in a thread of its own.

The loop's executor has few threads (six on two processors), and the program, its look-ups of names and other calls of
this library need them: whoever waits for etcd to come back must not hold them up.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import TypeVar

from grpc_etcd.threads import contain, start_thread

ResultT = TypeVar("ResultT")


async def in_own_thread(work: Callable[[], ResultT], *, daemon: bool = False) -> ResultT:
    """Await what a function gives or raises; cancelled, it leaves the function to end by itself.

    The end of the program waits for it, as for a thread of the executor: what is being deregistered is deregistered. It
    does not for a `daemon`, which may wait forever.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[ResultT] = loop.create_future()

    def report(give: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
            loop.call_soon_threadsafe(lambda: None if answer.done() else give())

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - whoever waits gets it
            failure = contain(error)
            report(lambda: answer.set_exception(failure))
        else:
            report(lambda: answer.set_result(result))

    start_thread(run, name="grpc-etcd-wait", daemon=daemon)
    return await answer

"""What is done when an event loop ends, or an object of it: `asyncio.run` cancels all tasks, and runs no other code."""

import asyncio
import contextlib
import weakref
from collections.abc import Callable


def call_at_end(owner: object, ended: asyncio.Event, then: Callable[[], None]) -> None:
    """Call `then` once: when the running loop ends, `owner` is freed, to which it must not refer, or `ended` is set."""
    loop = asyncio.get_running_loop()
    task = loop.create_task(_call(ended, then), name="grpc-etcd-end-of-loop")
    weakref.finalize(owner, _wake, loop, ended, task).atexit = False


async def _call(ended: asyncio.Event, then: Callable[[], None]) -> None:
    try:
        await ended.wait()
    finally:
        then()


def _wake(loop: asyncio.AbstractEventLoop, event: asyncio.Event, _task: asyncio.Task[None]) -> None:
    """Set an event from any thread, and in the midst of anything; a loop that is closed has cancelled its tasks.

    The task is given to have it referred to until then: a loop does not keep its tasks.
    """
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(event.set)

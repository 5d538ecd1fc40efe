"""What a `grpc.aio` server needs where its event loop ends, or it is dropped: to be stopped while the loop still runs.

`asyncio.run` cancels all tasks, waits for them, and closes the loop. gRPC's core writes into what the server's own
tasks hold: cancelled, they free it, and the process ends by SIGSEGV. So those are kept out of asyncio's list of tasks,
and one of ours, which is cancelled in their place, stops the server.
"""

import asyncio
import contextlib
import weakref
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any

from grpc import aio

from grpc_etcd.threads import start_thread

# The coroutines of gRPC's server that must not be cancelled (grpc/_cython/_cygrpc/aio/server.pyx.pxi).
_OF_GRPC = frozenset({"_server_main_loop", "_request_call"})


_TasksOfGrpc = weakref.WeakSet[asyncio.Task[Any]]
_TASKS: ContextVar[_TasksOfGrpc] = ContextVar("grpc-etcd-tasks-of-grpc")
_NEVER_SECONDS = 1e9
_LAST_STEPS_SECONDS = 1.0  # arbitrary: for what gRPC's tasks do once their server has stopped


class _Hiding:
    """A task factory that hides gRPC's own tasks from `asyncio.all_tasks`, and leaves all else to the one before."""

    def __init__(self, make: Callable[..., Any] | None) -> None:
        self._make = make

    def __call__(self, loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> Any:
        make = self._make
        task = asyncio.Task(coro, loop=loop, **options) if make is None else make(loop, coro, **options)
        if getattr(coro, "__name__", "") in _OF_GRPC and (tasks := _TASKS.get(None)) is not None:
            tasks.add(task)
            asyncio._unregister_task(task)  # documented for makers of tasks  # noqa: SLF001
        return task


def _hide_tasks_of_grpc(loop: asyncio.AbstractEventLoop) -> None:
    """Make the loop hide them from now on, also where the program sets a task factory of its own later."""
    if isinstance(before := loop.get_task_factory(), _Hiding):
        return
    set_before = loop.set_task_factory

    def set_task_factory(make: Callable[..., Any] | None) -> None:
        set_before(make if isinstance(make, _Hiding) else _Hiding(make))

    with contextlib.suppress(AttributeError):  # a loop that is no class of Python's has its own for good
        loop.set_task_factory = set_task_factory  # type: ignore[method-assign, assignment]  # of this one loop
    set_before(_Hiding(before))


class WholeServer:
    """A `grpc.aio` server that is started and stopped to the end, whoever is cancelled meanwhile."""

    def __init__(self, server: aio.Server) -> None:
        self._server = server
        self._tasks = _TasksOfGrpc()

    async def start(self) -> None:
        """Start; cancelled meanwhile, it has started all the same."""
        _hide_tasks_of_grpc(asyncio.get_running_loop())
        await _to_the_end(self._start())

    async def _start(self) -> None:
        _TASKS.set(self._tasks)  # for the tasks that gRPC makes from here on: each has its maker's context
        await self._server.start()

    async def stop(self, grace: float | None) -> None:
        """Stop; cancelled meanwhile, it goes on."""
        await asyncio.shield(_hidden(self._server.stop(grace)))

    async def stop_now(self) -> None:
        """Stop at once; cancelled meanwhile, it has stopped all the same."""
        await _to_the_end(self._stop_now())

    async def _stop_now(self) -> None:
        await self._server.stop(None)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_LAST_STEPS_SECONDS)


async def _to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Await what must not be left half done; who is cancelled meanwhile learns of it afterwards."""
    task = _hidden(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled:
        raise cancelled
    task.result()


def _hidden(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Make a task that nobody cancels who cancels all."""
    task = asyncio.get_running_loop().create_task(work)
    asyncio._unregister_task(task)  # noqa: SLF001
    return task


async def stop_at_end(owner: object, server: WholeServer, ended: asyncio.Event, then: Callable[[], None]) -> None:
    """Call `then` and stop `server` when the running loop ends, `owner` is freed or `ended` is set.

    Neither `server` nor `then` may refer to `owner`.
    """
    loop = asyncio.get_running_loop()
    closing = _at_close(loop, then)
    task = loop.create_task(_stop_at_end(server, ended, then, closing), name="grpc-etcd-end-of-loop")
    weakref.finalize(owner, _wake, loop, ended, task).atexit = False
    await asyncio.sleep(0)  # a task that is cancelled before its first step does nothing


def _at_close(loop: asyncio.AbstractEventLoop, then: Callable[[], None]) -> "weakref.finalize[..., _Sign]":
    """Call `then` when a loop is closed, or freed, whose tasks nobody has cancelled: it frees what it was to call."""
    sign = _Sign()
    loop.call_later(_NEVER_SECONDS, sign)
    closing = weakref.finalize(sign, _call_apart, then)
    closing.atexit = False
    return closing


class _Sign:
    """What a loop is to call that it never calls."""

    def __call__(self) -> None:
        """Do nothing."""


def _call_apart(then: Callable[[], None]) -> None:
    """Call by a thread: whoever frees something may hold any lock."""
    with contextlib.suppress(RuntimeError):  # no thread may be started, as at the end of the program
        start_thread(then, name="grpc-etcd-end-of-loop")


async def _stop_at_end(
    server: WholeServer, ended: asyncio.Event, then: Callable[[], None], closing: "weakref.finalize[..., _Sign]"
) -> None:
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await ended.wait()
    finally:
        closing.detach()
        then()
    await server.stop_now()


def _wake(loop: asyncio.AbstractEventLoop, event: asyncio.Event, _task: asyncio.Task[None]) -> None:
    """Set an event from any thread, and in the midst of anything; a loop that is closed has cancelled its tasks.

    The task is given to have it referred to until then: a loop does not keep its tasks.
    """
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(event.set)

"""Start threads, or say what keeps this process from it; let no function of the program's end one; wait for them.

Whoever starts one keeps it only once it runs: a thread that is noted and was never started would be waited for at the
end, and never started by the next who needs it.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

NO_THREAD = (
    "this process cannot start the thread {name}: raise the limit of processes and threads "
    "(`ulimit -u`, the Pod's or container's PID limit) or of memory ({error})"
)
_SPARE = 2  # arbitrary: one that has ended counts for a moment longer
_LOOK_SECONDS = 0.5  # arbitrary: how late a signal may be obeyed
_this_thread = threading.local()


def start_thread(target: Callable[..., Any], *args: Any, name: str, daemon: bool = True) -> threading.Thread:
    """Start a thread; where the process may have no more of them, a RuntimeError names the limit."""
    thread = threading.Thread(target=_run, args=(target, *args), name=name, daemon=daemon)
    try:
        thread.start()
    except RuntimeError as error:  # python's "can't start new thread"
        raise RuntimeError(NO_THREAD.format(name=name, error=error)) from error
    return thread


def _run(target: Callable[..., Any], *args: Any) -> None:
    _this_thread.is_ours = True
    target(*args)


def contain(error: BaseException) -> Exception:
    """Return what a function of the program's has raised, for whoever reports it.

    `sys.exit()` and the like end a thread; in one that was started here they concern that function alone, since the
    thread works for others too. Elsewhere they are raised: an event loop's thread is the program's, with its Ctrl-C.
    """
    if isinstance(error, Exception):
        return error
    if not getattr(_this_thread, "is_ours", False):
        raise error
    contained = RuntimeError(f"it raised {error!r}")
    contained.__cause__ = error
    return contained


def wait_for(changed: threading.Condition, is_over: Callable[[], bool], timeout_seconds: float | None) -> bool:
    """Wait until a condition is notified that it is over; return whether it is, else the time is up. None: no end.

    A signal that comes just before the main thread begins to wait is obeyed only when that wait ends (CPython checks
    for signals, then gives other threads their turn, then waits). So each wait is short: Ctrl-C would be lost.
    """
    until = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    while not is_over():
        left = _LOOK_SECONDS if until is None else until - time.monotonic()
        if left <= 0:
            return False
        changed.wait(min(left, _LOOK_SECONDS))
    return True


def check_threads(count: int) -> None:
    """Raise RuntimeError where the process may not start so many threads now: for what starts some by itself.

    grpcio takes a thread that it could not start for one that runs. No stream of that channel is reported anything any
    more, and whoever closes the channel waits forever (grpc/_channel.py, `_channel_managed_call_management`).
    """
    over, started = threading.Event(), list[threading.Thread]()
    try:
        for _ in range(count + _SPARE):
            started.append(start_thread(over.wait, name="grpc-etcd-probe"))
    finally:
        over.set()
        for thread in started:
            thread.join()

"""An executor whose threads do not hold up the end of the program.

A gRPC server's handler of an open stream ends only when the client goes away, and the threads of
`ThreadPoolExecutor` are joined at exit: a program that forgets to close its channels would hang. Daemon threads are
not.
"""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import ParamSpec, TypeVar

from grpc_etcd.threads import start_thread

P = ParamSpec("P")
T = TypeVar("T")


class DaemonExecutor(Executor):
    """Runs each call in a daemon thread of its own: streams are few and long.

    Where the process may start no further thread, a call runs at once in the caller's. That is gRPC's own, which an
    exception would end, so that nobody was served any more; our handlers return at once, or fail for lack of a thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Start the call at once."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001 - an executor hands every failure to the future
                future.set_exception(error)

        try:
            start_thread(run, name=self._name)
        except RuntimeError:
            run()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - the base's signature
        """Do nothing: the threads end with their streams, or with the program."""

"""What would make a channel hang instead of fail: looked at before there is one, and reported with the remedy."""

import errno
import os
import sys
import time

if sys.platform != "win32":
    import resource

from grpc._cython import cygrpc  # type: ignore[attr-defined]  # the stubs leave it out

_SPARE_DESCRIPTORS = 32  # arbitrary: what etcd, name servers, log files and the program itself may still need
_COUNT_SECONDS = 0.1  # arbitrary: counting a thousand of them takes 0.3 ms
_FOLDERS = ("/proc/self/fd", "/dev/fd")


def check_gevent() -> None:
    """Raise RuntimeError where gevent has patched the process and gRPC does not know: its first call would hang."""
    monkey = sys.modules.get("gevent.monkey")
    is_patched = getattr(monkey, "is_module_patched", None)
    if is_patched and is_patched("threading") and not getattr(cygrpc, "g_gevent_activated", True):
        raise RuntimeError(
            "gevent has patched this process, but gRPC does not know it and would block every greenlet; "
            "call grpc.experimental.gevent.init_gevent() after gevent.monkey.patch_all(), before the first channel"
        )


class _Count:
    """The last count of descriptors and when it was taken: thousands of channels may be made at once."""

    def __init__(self) -> None:
        self._taken, self._at = 0, -_COUNT_SECONDS

    def now(self) -> int:
        if time.monotonic() - self._at > _COUNT_SECONDS:
            self._taken, self._at = open_descriptors(), time.monotonic()
        return self._taken


def open_descriptors() -> int:
    """Count this process's file descriptors; 0 where they cannot be counted."""
    for folder in _FOLDERS:
        try:
            return len(os.listdir(folder))  # noqa: PTH208 - for every channel, and a tenth of the time
        except OSError:
            continue
    return 0


_count = _Count()


def check_descriptors(expected: int) -> None:
    """Raise OSError if so many descriptors are more than the process may open, or it is close to that already.

    gRPC reports none of this: a connection that cannot be made is tried again forever, and the call hangs.
    """
    if sys.platform == "win32":  # which has no such limit
        return
    limit, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = max(expected, _count.now()) + _SPARE_DESCRIPTORS
    if limit != resource.RLIM_INFINITY and needed > limit:
        more = "" if highest == resource.RLIM_INFINITY else f" (up to {highest} without privileges)"
        raise OSError(
            errno.EMFILE,
            f"this channel may need descriptor {needed} of the {limit} that the process may open; "
            f"raise RLIMIT_NOFILE, such as by `ulimit -n {max(4096, 2 * limit)}`{more}, or close channels",
        )

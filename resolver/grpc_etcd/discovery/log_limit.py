"""How many lines about single services a registry logs: clients of `grpc-etcd ads` may name any that do not exist.

A thousand at once pass, as when permissions of many services change, and then one in a second; the next line that
passes says how many were left out, which are for debugging.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

BURST = 1000  # arbitrary
PER_SECOND = 1.0  # arbitrary


class LogLimit:
    """A bucket of lines. For one thread."""

    def __init__(self, log: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log, self._clock = log, clock
        self._left, self._filled_at, self._omitted = float(BURST), clock(), 0

    def write(self, level: int, message: str, *args: Any, event: str) -> None:
        """Log a line, or leave it out."""
        now = self._clock()
        self._left = min(float(BURST), self._left + (now - self._filled_at) * PER_SECOND)
        self._filled_at = now
        if self._left < 1.0:
            self._omitted += 1
            self._log.debug(message, *args, extra={"event": event})
            return
        self._left -= 1.0
        omitted, self._omitted = self._omitted, 0
        if omitted:
            message, args = f"{message} (%s lines like this were left out)", (*args, omitted)
        self._log.log(level, message, *args, extra={"event": event})

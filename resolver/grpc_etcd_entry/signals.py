"""What SIGINT (Ctrl-C) and SIGTERM do to a command: they end it at once and in silence.

A command imports for a second before it can do anything. A signal meanwhile was a traceback, or in a container, where
the command is process 1, was lost. A command that has something to do at its end takes the signals over.
"""

import os
import signal


def end_on_signals() -> None:
    """Let SIGINT and SIGTERM end this process, except for those that it was started to ignore."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)


def _end(number: int, _: object) -> None:
    """End by the signal itself, so that a shell's loop ends too; shells report it as 130 and 143."""
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
    os._exit(128 + number)  # process 1 of a container, which no signal ends by default

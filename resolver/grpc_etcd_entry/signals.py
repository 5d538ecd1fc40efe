"""What SIGINT (Ctrl-C) and SIGTERM do to a command: they end it at once and in silence.

A command imports for a second before it can do anything. A signal meanwhile was a traceback, or in a container, where
the command is process 1, was lost. A command that has something to do at its end takes the signals over.
"""

import os
import signal


def end_on_signals() -> None:
    """Let the system end this process on SIGINT and SIGTERM, except for those that it was started to ignore.

    By the signal itself, so that a shell's loop ends too, and whatever the process does; shells report 130 and 143.
    """
    is_first = os.getpid() == 1  # in a container: the system ends that by no signal that it does not handle
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end if is_first else signal.SIG_DFL)


def _end(number: int, _: object) -> None:
    os._exit(128 + number)

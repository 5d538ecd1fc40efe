"""Kill process groups when the program that started them is gone, however it went.

Run by testbed/process.py, one for each program that starts others. It reads "+GROUP" and "-GROUP" lines from standard
input. The input ends when the starter closes it or dies, by an exception, Ctrl-C or SIGKILL alike; then every group
that is still noted is killed. A parent-death signal would not do: it fires when the starting *thread* ends, and it
misses grandchildren.
"""

import contextlib
import os
import signal
import sys


def main() -> None:
    """Note groups until the input ends, then kill what is left."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()

"""Where this process listens to itself: a socket that only its own user can reach, wherever a file can be made."""

import contextlib
import os
import tempfile
from pathlib import Path

_LONGEST_PATH = 100  # bytes; sockaddr_un holds 108
# None: wherever the environment says. Containers with a read-only file system have the last one all the same.
_FOLDERS = (None, "/tmp", "/dev/shm")  # noqa: S108 - what is made there is this user's alone


def choose_address(name: str) -> tuple[Path | None, str]:
    """Make a folder, for whoever listens to remove, and name a socket in it as gRPC does.

    Where none can be made it is a port on loopback, which works only where the environment names no proxy: gRPC would
    ask that for it.
    """
    for place in _FOLDERS:
        with contextlib.suppress(OSError):
            folder = Path(tempfile.mkdtemp(prefix="grpc-etcd-", dir=place))
            path = folder / name
            if len(os.fsencode(path)) <= _LONGEST_PATH:
                return folder, f"unix:{path}"
            folder.rmdir()
    return None, "127.0.0.1:0"

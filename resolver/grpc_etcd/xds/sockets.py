"""Where this process listens to itself: a socket that only its own user can reach, wherever a file can be made."""

import contextlib
import errno
import os
import stat
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


def make_private(folder: Path) -> None:
    """Make a folder anew where a cleaner of temporary folders has been; OSError says that it is not this user's alone.

    Whoever may write there could put a socket of his own in the place of ours, and send our calls to any address.
    """
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    if not is_ours or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OSError(
            errno.EPERM,
            "the folder in which this process listens to itself has been removed, and made again by somebody else: "
            "restart the process, with TMPDIR set to a folder that nobody else may write to",
            str(folder),
        )

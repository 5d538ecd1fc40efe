"""Where this process listens to itself: a socket that only its own user can reach, wherever a file can be made."""

import contextlib
import errno
import os
import shutil
import stat
import sys
import tempfile
import time
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_LONGEST_PATH = 100  # bytes; sockaddr_un holds 108
_PREFIX = "grpc-etcd-socket-"
# None: wherever the environment says. Containers with a read-only file system have the last one all the same.
_FOLDERS = (None, "/tmp", "/dev/shm")  # noqa: S108 - what is made there is this user's alone
_SETTLED_SECONDS = 60.0  # a younger folder may be one whose owner has not locked it yet


class SocketFolder:
    """A folder for a socket, locked for as long as this process or a fork of it lives.

    A process that is killed leaves its folder behind. The lock reports the next process which folders those are; it
    also keeps systemd-tmpfiles away, which passes locked folders over.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = _lock(path)

    def keep(self) -> None:
        """Make it again where a cleaner of temporary folders has removed it; OSError: it is not this user's alone.

        Whoever may write there could put a socket of his own in the place of ours, and send our calls to any address.
        """
        with contextlib.suppress(FileExistsError):
            self.path.mkdir(mode=0o700)
            self._unlock()
            self._lock = _lock(self.path)
        if not _is_private(self.path):
            raise OSError(
                errno.EPERM,
                "the directory of this process's private socket was removed and created again by another user: restart "
                "the process with TMPDIR set to a directory that no other user may write to",
                str(self.path),
            )

    def remove(self) -> None:
        """Remove it with what is in it; errors are ignored, as this happens while a process ends."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._unlock()

    def _unlock(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)


def choose_address(name: str) -> tuple[SocketFolder | None, str]:
    """Make a folder, for whoever listens to remove, and name a socket in it as gRPC does.

    Where none can be made it is a port on loopback, which works only where the environment names no proxy: gRPC would
    ask that for it.
    """
    for place in _FOLDERS:
        with contextlib.suppress(OSError):
            folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
            _remove_abandoned(folder.parent)
            path = folder / name
            if len(os.fsencode(path)) <= _LONGEST_PATH:
                return SocketFolder(folder), f"unix:{path}"
            folder.rmdir()
    return None, "127.0.0.1:0"


def _lock(folder: Path) -> int | None:
    """Return the descriptor of a lock on a folder, or None where somebody else holds one or there are no locks."""
    if sys.platform == "win32":
        return None
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor
    return None


def _is_private(folder: Path) -> bool:
    found = folder.lstat()
    if sys.platform == "win32":  # where folders have no such owner and mode
        return stat.S_ISDIR(found.st_mode)
    is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    return is_ours and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _remove_abandoned(place: Path) -> None:
    """Remove the folders that killed processes of this user have left in a place."""
    for folder in place.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if _is_settled(folder):
                _remove_unlocked(folder)


def _is_settled(folder: Path) -> bool:
    found = folder.lstat()
    return sys.platform != "win32" and found.st_uid == os.geteuid() and time.time() - found.st_mtime > _SETTLED_SECONDS


def _remove_unlocked(folder: Path) -> None:
    lock = _lock(folder)
    if lock is not None:
        with contextlib.suppress(OSError):
            _remove_sockets(folder)
        os.close(lock)


def _remove_sockets(folder: Path) -> None:
    """Remove a folder of sockets; one that holds anything else is not of this module, or is used for more."""
    found = list(folder.iterdir())
    if all(each.is_socket() for each in found):
        for each in found:
            each.unlink()
        folder.rmdir()

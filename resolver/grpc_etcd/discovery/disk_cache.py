"""Last good sets on disk, so that a client that starts while etcd is down still knows whom to call.

One file per service: JSON with the records as they stand in etcd, so that a later version, or another layout, reads
them again. Written whole beside the old file and renamed, readable by its owner only, at most once a second; read only
where it has the owner that files of this process have there, since whoever writes it says whom the process calls. A
file that cannot be read or written is logged and skipped: the cache is never the reason for a failed call.
"""

import base64
import errno
import json
import logging
import os
import secrets
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

_LOG = logging.getLogger("grpc_etcd")
FORMAT = 1
_QUIET_SECONDS = 1.0  # arbitrary: bounds the writes of a service that changes all the time


@dataclass(frozen=True, slots=True)
class CachedRecords:
    """What was known of a service when it was last written."""

    revision: int
    records: Mapping[bytes, bytes]


class Cache:
    """The file of one service of one registry. Used by one feed; a timer thread does the writing."""

    def __init__(self, folder: Path, registry: str, service: str) -> None:
        digest = sha256(f"{registry}\0{service}".encode()).hexdigest()[:32]
        self._path = folder / f"{digest}.json"
        self._about = {"format": FORMAT, "registry": registry, "service": service}
        self._records: dict[bytes, bytes] | None = None  # what the file holds, or will; None: it is not known
        self._revision = 0
        self._lock = threading.Lock()
        self._writing = threading.Lock()  # who has gathered a set writes it before another one is gathered
        self._timer: threading.Timer | None = None

    def load(self) -> CachedRecords | None:
        """Read what was kept; None when there is nothing that can be used."""
        try:
            kept = json.loads(_read_own(self._path))
            if {name: kept[name] for name in self._about} != self._about:
                return None
            records = {_unpack(key): _unpack(value) for key, value in kept["records"]}
            return CachedRecords(int(kept["revision"]), records)
        except FileNotFoundError:
            self._records = {}
            return None
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            _LOG.warning(
                "Ignoring the cached set %s: %s: %s",
                self._path,
                type(error).__name__,
                error,
                extra={"event": "disk_cache_skipped"},
            )
            return None

    def replace(self, records: Iterable[tuple[bytes, bytes]], revision: int) -> None:
        """Take all that is to be kept, in place of what was."""
        taken = dict(records)
        with self._lock:
            if self._records == taken:
                return
            self._records, self._revision = taken, revision
        self._write_soon()

    def flush(self) -> None:
        """Write now what is still to be written."""
        with self._lock:
            timer, self._timer = self._timer, None
        if timer:
            timer.cancel()
            self._write()

    def _write_soon(self) -> None:
        """Have it written, or write it now where no further thread may be started: nobody would ask for it again."""
        with self._lock:
            self._timer = self._timer or _start_timer(self._write_due)
            is_timed = self._timer is not None
        if not is_timed:
            self._write()

    def _write_due(self) -> None:
        with self._lock:
            self._timer = None
        self._write()

    def _write(self) -> None:
        with self._writing:
            self._write_alone()

    def _write_alone(self) -> None:
        with self._lock:
            pairs = [(_pack(key), _pack(value)) for key, value in sorted((self._records or {}).items())]
            text = json.dumps({**self._about, "revision": self._revision, "records": pairs})
        try:
            _replace_file(self._path, text)
        except OSError as error:
            _LOG.warning(
                "the set of %s cannot be cached: %s",
                self._about["service"],
                error,
                extra={"event": "disk_cache_failed"},
            )


def _start_timer(due: Callable[[], None]) -> threading.Timer | None:
    timer = threading.Timer(_QUIET_SECONDS, due)
    timer.daemon = True
    try:
        timer.start()
    except RuntimeError:
        return None
    return timer


def _replace_file(path: Path, text: str) -> None:
    """Write a private file (mkstemp gives mode 0600) and put it in the place of the old one."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".new")
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(handle)
        Path(temporary).replace(path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise


def _read_own(path: Path) -> bytes:
    """Read a file of this process's user: no other may say whom the process calls. OSError: it is another one's."""
    if sys.platform == "win32":
        with path.open("rb") as file:
            return file.read()
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)  # both files are of this one, whatever its name becomes
    try:
        # Nothing but a file is read: one might wait for the other end of a pipe forever.
        with open(os.open(path.name, os.O_RDONLY | os.O_NONBLOCK, dir_fd=folder), "rb") as file:  # noqa: PTH123 - of a descriptor
            _check_own(os.fstat(file.fileno()), folder)
            return file.read()
    finally:
        os.close(folder)


def _check_own(found: os.stat_result, folder: int) -> None:
    """Refuse a file in an open folder that another user has written.

    Volumes may show other owners than processes have: NFS shows nobody for root (root_squash), CIFS the user of the
    mount. There, a file of one's own has the owner that one just created has.
    """
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")
    if found.st_uid != os.geteuid() and (found.st_uid, found.st_dev) != _owner_of_a_new_file(folder):
        raise OSError(errno.EPERM, "it belongs to another user")


def _owner_of_a_new_file(folder: int) -> tuple[int, int] | None:
    """Return which owner and device a file of this process has in an open folder; None: there can be none."""
    name = f".{secrets.token_hex(8)}.new"
    try:
        handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=folder)
    except OSError:
        return None
    try:
        made = os.fstat(handle)
        return made.st_uid, made.st_dev
    finally:
        os.close(handle)
        os.unlink(name, dir_fd=folder)


def _pack(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _unpack(text: str) -> bytes:
    return base64.b64decode(text, validate=True)

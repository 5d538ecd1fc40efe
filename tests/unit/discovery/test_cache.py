"""Last good sets on disk: whatever is wrong with a file, a client starts without it."""

import ctypes
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from grpc_etcd.discovery.disk_cache import Cache, CachedRecords

NOBODY = 65534
LIBC = ctypes.CDLL(None)


def written(folder: Path) -> Path:
    cache = Cache(folder, "etcd:2379", "greeter")
    cache.replace([(b"key", b"value")], 7)
    cache.flush()
    (file,) = folder.iterdir()
    return file


def load(folder: Path) -> CachedRecords | None:
    return Cache(folder, "etcd:2379", "greeter").load()


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    written(tmp_path)
    assert load(tmp_path) == CachedRecords(7, {b"key": b"value"})


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _: "garbage",
        lambda _: "[" * 100_000,
        lambda text: text.replace('"revision": 7', '"revision": Infinity'),
        lambda text: text.replace('"revision": 7', '"revision": null'),
        lambda text: text.replace('"records": [', '"records": [5, '),
    ],
)
def test_a_file_that_cannot_be_used_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[str], str]
) -> None:
    file = written(tmp_path)
    file.write_text(spoil(file.read_text()))
    assert load(tmp_path) is None
    assert "Ignoring the cached set" in caplog.text


def test_an_empty_set_replaces_one_that_is_on_disk_and_makes_no_file_where_there_is_none(tmp_path: Path) -> None:
    written(tmp_path)
    for folder, kept in ((tmp_path, CachedRecords(8, {})), (tmp_path / "new", None)):
        cache = Cache(folder, "etcd:2379", "greeter")
        cache.load()
        cache.replace([], 8)
        cache.flush()
        assert load(folder) == kept


def give_away(file: Path) -> None:
    """Let a file be another user's: only root can do that, for anyone else a file of root's takes its place."""
    if os.geteuid() == 0:
        os.chown(file, NOBODY, -1)
    else:
        file.unlink()
        file.symlink_to("/etc/passwd")


def test_a_file_of_another_user_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In a folder that many may write to, as below /tmp, it would say whom this process calls."""
    give_away(written(tmp_path))
    assert load(tmp_path) is None
    assert "it belongs to another user" in caplog.text


@pytest.fixture
def squashing() -> Iterator[Path]:
    """Return a folder in which this thread's files are nobody's, as root's are on NFS."""
    if os.geteuid() != 0:
        pytest.skip("only root can have its files belong to somebody else")
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o777)
        LIBC.setfsuid(NOBODY)
        yield folder
        LIBC.setfsuid(0)


def test_a_file_of_ones_own_is_read_where_a_volume_shows_another_owner(squashing: Path) -> None:
    assert written(squashing).stat().st_uid == NOBODY
    assert load(squashing) == CachedRecords(7, {b"key": b"value"})
    assert len(list(squashing.iterdir())) == 1, "nothing else is left there"


def test_nor_is_a_file_of_another_user_read_there(squashing: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = written(squashing)
    LIBC.setfsuid(0)
    os.chown(file, 1234, -1)
    file.chmod(0o644)
    LIBC.setfsuid(NOBODY)
    assert load(squashing) is None
    assert "it belongs to another user" in caplog.text


def test_nothing_is_waited_for_that_is_no_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = written(tmp_path)
    file.unlink()
    os.mkfifo(file)
    assert load(tmp_path) is None
    assert "it is no regular file" in caplog.text


class SlowFolder(type(Path())):  # type: ignore[misc]  # whichever kind of path this system has
    """A folder on a disk whose first write takes until it is let go on."""

    writing, may_go_on = threading.Event(), threading.Event()

    def mkdir(self, *arguments: Any, **more: Any) -> None:
        is_first = not self.writing.is_set()
        self.writing.set()
        if is_first:
            self.may_go_on.wait(60)
        super().mkdir(*arguments, **more)


def test_an_older_set_never_takes_the_place_of_a_newer_one(tmp_path: Path) -> None:
    cache = Cache(SlowFolder(tmp_path), "etcd:2379", "greeter")
    cache.replace([(b"key", b"old")], 7)
    with ThreadPoolExecutor(1) as pool:
        older = pool.submit(cache.flush)
        assert SlowFolder.writing.wait(60)
        cache.replace([(b"key", b"new")], 8)
        newer = threading.Thread(target=cache.flush)
        newer.start()
        newer.join(1)  # it is written, or waits for the other
        SlowFolder.may_go_on.set()
        older.result(60)
        newer.join(60)
    assert load(tmp_path) == CachedRecords(8, {b"key": b"new"})

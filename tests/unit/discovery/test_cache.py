"""Last good sets on disk: whatever is wrong with a file, a client starts without it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from grpc_etcd.discovery.disk_cache import Cache, CachedRecords


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


def test_a_file_of_another_user_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In a folder that many may write to, as below /tmp, it would say whom this process calls."""
    file = written(tmp_path)
    if os.geteuid() == 0:
        os.chown(file, 65534, -1)
    else:  # who may give no file away has one of root's there
        file.unlink()
        file.symlink_to("/etc/passwd")
    assert load(tmp_path) is None
    assert "it belongs to another user" in caplog.text


def test_nothing_is_waited_for_that_is_no_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = written(tmp_path)
    file.unlink()
    os.mkfifo(file)
    assert load(tmp_path) is None
    assert "it is no regular file" in caplog.text

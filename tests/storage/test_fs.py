"""The door to the real operating system, and the log on a real disk."""

import errno
import os
import stat
from pathlib import Path

import pytest

from jqd.errors import Corruption, DataDirLocked, DataDirUnusable, DiskFull, WriteFailed
from jqd.storage.fs import RealFileSystem, open_error, read_error, write_error
from jqd.storage.wal import WalStore
from tests.storage.logs import records


def open_handles() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_log_on_a_real_disk(tmp_path):
    directory = str(tmp_path / "data")
    store = WalStore(directory, segment_bytes=200)
    assert list(store.load()) == []
    for record in records(6):
        store.append([record])
        store.sync()
    store.close()
    (tmp_path / "data" / "0000000000000009.wal.tmp").touch()
    again = WalStore(directory)
    assert list(again.load()) == records(6)
    assert again.recovery.clean
    assert again.public_id == store.public_id
    assert again.size_bytes == sum(path.stat().st_size for path in (tmp_path / "data").glob("*.wal"))
    again.close()
    assert not (tmp_path / "data" / "0000000000000009.wal.tmp").exists()


def test_torn_tail_on_a_real_disk(tmp_path):
    store = WalStore(str(tmp_path))
    list(store.load())
    store.append(records(2))
    store.sync()
    last = tmp_path / "0000000000000001.wal"
    image = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    store.close()
    for name, content in image.items():
        (tmp_path / name).write_bytes(content)
    with last.open("ab") as file:
        file.write(b"torn")
    again = WalStore(str(tmp_path))
    assert list(again.load()) == records(2)
    assert (tmp_path / "quarantine" / f"0000000000000001-{last.stat().st_size}.torn").read_bytes() == b"torn"
    again.close()


def test_files_are_for_their_owner_only(tmp_path):
    old = os.umask(0)
    try:
        store = WalStore(str(tmp_path / "data"))
        list(store.load())
        store.close()
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    for path in (tmp_path / "data").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_nothing_is_inherited_by_children(tmp_path):
    fs = RealFileSystem()
    path = str(tmp_path / "file")
    for handle in (fs.lock(str(tmp_path / "lock")), fs.create(path), fs.open(path)):
        assert handle is not None
        assert not os.get_inheritable(handle)
        fs.close(handle)


@pytest.mark.parametrize("call", ["lock", "create", "open"])
def test_symbolic_links_are_not_followed(tmp_path, call):
    (tmp_path / "elsewhere").write_bytes(b"precious")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links") as refused:
        getattr(RealFileSystem(), call)(str(tmp_path / "link"))
    assert refused.value.errno == errno.ELOOP
    assert (tmp_path / "elsewhere").read_bytes() == b"precious"


def test_second_store_is_locked_out_until_the_first_closes(tmp_path):
    first = WalStore(str(tmp_path))
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    with pytest.raises(DataDirLocked):
        WalStore(str(tmp_path))
    after = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    assert after == before
    first.close()
    WalStore(str(tmp_path)).close()


def test_lock_that_fails_otherwise_leaks_no_handle(tmp_path, monkeypatch):
    import fcntl

    def fail(handle, how):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", fail)
    handles = open_handles()
    with pytest.raises(WriteFailed, match="no locks"):
        WalStore(str(tmp_path))
    assert open_handles() == handles


def test_file_in_place_of_the_directory_is_unusable(tmp_path):
    (tmp_path / "data").touch()
    with pytest.raises(DataDirUnusable, match="Not a directory"):
        WalStore(str(tmp_path / "data"))
    with pytest.raises(DataDirUnusable, match="No such file"):
        WalStore(str(tmp_path / "missing" / "data"))


def test_relative_directory_is_taken_from_where_the_process_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = WalStore("data/")
    list(store.load())
    store.close()
    assert (tmp_path / "data" / "store").exists()


def test_no_handle_is_left_open(tmp_path):
    handles = open_handles()
    store = WalStore(str(tmp_path), segment_bytes=1)
    list(store.load())
    for record in records(3):
        store.append([record])
    store.close()
    assert open_handles() == handles


@pytest.mark.parametrize(
    ("code", "write", "opening"),
    [
        (errno.ENOSPC, DiskFull, DiskFull),
        (errno.EDQUOT, DiskFull, DiskFull),
        (errno.EIO, WriteFailed, WriteFailed),
        (errno.EROFS, WriteFailed, DataDirUnusable),
        (errno.EACCES, WriteFailed, DataDirUnusable),
        (errno.EMFILE, WriteFailed, WriteFailed),
    ],
)
def test_errno_becomes_one_of_jqds_errors(code, write, opening):
    error = OSError(code, os.strerror(code))
    assert type(write_error(error, "/data")) is write
    assert type(open_error(error, "/data")) is opening
    assert os.strerror(code) in str(write_error(error, "/data"))


def test_error_names_its_file_and_always_a_reason():
    assert str(write_error(OSError(errno.EIO, "broken", "/data/x"), "/data")) == "/data/x: broken"
    assert str(write_error(OSError("odd"), "/data")) == "/data: odd"


def test_unreadable_bytes_are_damage():
    error = read_error(OSError(errno.EIO, "broken"), "/data/x", 7, "restore")
    assert isinstance(error, Corruption)
    assert (error.file, error.offset, error.exit_code) == ("/data/x", 7, 65)

"""What is written over an overlay stays there; whose files an operator makes; how a running daemon is noticed."""

import os
from pathlib import Path

import pytest

from jqd.errors import DataDirLocked, DataDirUnusable
from jqd.offline.files import OperatorFiles, Overlay, reading
from jqd.offline.walk import Log
from jqd.storage.fs import RealFileSystem
from jqd.storage.wal import WalStore
from tests.storage.logs import DATA, load, records, segment, write
from tests.support.faultfs import EFFECTS, FaultDisk


@pytest.fixture
def log(tmp_path):
    """Return a directory with a log in it."""
    store = WalStore(str(tmp_path / "data"))
    list(store.load())
    store.append(records(3))
    store.close()
    return tmp_path / "data"


def test_store_lives_on_an_overlay_and_leaves_nothing_below():
    disk = FaultDisk()
    write(disk, records(3)).close()
    before = disk.listing(DATA)
    disk.calls.clear()
    overlay = Overlay(disk)
    for _ in range(2):
        store = WalStore(DATA, fs=overlay, segment_bytes=100)
        found = list(store.load())
        store.append(records(2, found[-1].last_lsn + 1))
        store.close()
    store = WalStore(DATA, fs=overlay)
    assert len(list(store.load())) == 7
    assert segment(2) in {f"{DATA}/{name}" for name in overlay.list_directory(DATA)}
    assert disk.listing(DATA) == before
    assert not {name for name, _ in disk.calls} & EFFECTS
    disk.kill()
    assert load(disk)[0] == records(3)


def test_file_that_was_removed_on_an_overlay_is_gone_there():
    disk = FaultDisk()
    write(disk, records(1)).close()
    overlay = Overlay(disk)
    overlay.unlink(segment(1))
    assert "0000000000000001.wal" not in overlay.list_directory(DATA)
    with pytest.raises(FileNotFoundError):
        overlay.open(segment(1))
    assert disk.content(segment(1))


def test_file_below_that_is_renamed_on_an_overlay_is_read_under_its_new_name():
    disk = FaultDisk()
    write(disk, records(1)).close()
    overlay = Overlay(disk)
    overlay.rename(segment(1), f"{DATA}/quarantine/x")
    handle = overlay.open(f"{DATA}/quarantine/x")
    assert overlay.read(handle, 0, 1_000) == disk.content(segment(1))
    overlay.close(handle)
    with pytest.raises(FileNotFoundError):
        overlay.open(segment(1))


def test_running_daemon_is_noticed_and_a_stopped_one_not(log):
    with reading(str(log)) as (_, is_running):
        assert not is_running
    store = WalStore(str(log))
    with reading(str(log)) as (_, is_running):
        assert is_running
    list(store.load())
    store.close()
    with reading(str(log)) as (_, is_running):
        assert not is_running


def test_reading_makes_no_lock_file(log):
    (log / "lock").unlink()
    with reading(str(log)) as (_, is_running):
        assert not is_running
    assert not (log / "lock").exists()


def test_file_that_a_running_daemon_removed_says_try_again(log):
    store = WalStore(str(log))
    list(store.load())
    with pytest.raises(DataDirLocked, match="try again") as refused, reading(str(log)) as (fs, _):
        walked = Log(fs, str(log))
        (log / "0000000000000002.wal").unlink()
        list(walked.entries())
    assert refused.value.exit_code == 75
    store.close()
    with pytest.raises(DataDirUnusable), reading(str(log)) as (fs, _):
        walked = Log(fs, str(log))
        (log / "0000000000000001.wal").unlink()
        list(walked.entries())


@pytest.mark.parametrize("path", ["nothing", "file"])
def test_what_is_no_directory_is_refused(tmp_path, path):
    (tmp_path / "file").touch()
    with pytest.raises(DataDirUnusable, match=path) as refused, reading(str(tmp_path / path)) as (fs, _):
        Log(fs, str(tmp_path / path))
    assert refused.value.exit_code == 78


def test_what_root_makes_belongs_to_the_owner_of_the_directory(log, monkeypatch):
    given: list[tuple[str, int, int]] = []

    def note(what, uid, gid, **options):
        path = os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else what
        given.append((Path(path).name, uid, gid))

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "fchown", note)
    monkeypatch.setattr(os, "chown", note)
    owner = (log.stat().st_uid, log.stat().st_gid)
    files = OperatorFiles(str(log))
    handles = [files.create(f"{log}/new"), files.lock(f"{log}/lock")]
    files.make_directory(f"{log}/quarantine")
    for handle in handles:
        files.close(handle)
    assert given == [("new", *owner), ("lock", *owner), ("quarantine", *owner)]
    given.clear()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    files.close(files.create(f"{log}/new"))
    assert given == []


def test_operators_files_are_the_real_ones(log):
    assert isinstance(OperatorFiles(str(log)), RealFileSystem)

"""A full disk: what is given up for it, what may be repeated, and what stays final."""

import errno
import os
import random
from collections.abc import Callable

import pytest

from jqd.errors import DiskFull, WriteFailed
from jqd.storage.base import Space
from jqd.storage.reserve import Reserve
from jqd.storage.wal import WalStore
from tests.storage.logs import DATA, Ledger, frames, load, opened, records, segment
from tests.support.faultfs import DROP, EFFECTS, KEEP, Crash, FaultDisk, crash_at, fail_at, tear

RESERVE = f"{DATA}/reserve"
SIZE = 2_000
SEGMENT_BYTES = 350
Call = Callable[[str, str], None]
NEED_SPACE = frozenset({"write", "create", "rename"})  # of a life whose directories are there


def begin(disk: FaultDisk, ledger: Ledger) -> WalStore:
    return ledger.recover(disk, segment_bytes=SEGMENT_BYTES, reserve_bytes=SIZE)


def work(store: WalStore, ledger: Ledger) -> None:
    """Everything that a running daemon writes: batches of all sizes, rotations, seals, a clean stop."""
    for count, payload_bytes in ((1, 20), (3, 20), (1, 700), (1, 20), (2, 100)):
        ledger.append(store, count, payload_bytes)
        ledger.sync(store)
    store.seal()
    ledger.append(store, 2)
    store.close()
    ledger.acknowledged = len(ledger.appended)


def full_from(disk: FaultDisk, number: int, names: frozenset[str]) -> None:
    """Let the `number`th call among `names` and all that follow find no space."""
    left = number

    def count(name: str, path: str) -> None:
        nonlocal left
        if name in names:
            left -= 1
            if left <= 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    disk.on_call = count


def both(first: Call, second: Call) -> Call:
    def call(name: str, path: str) -> None:
        first(name, path)
        second(name, path)

    return call


def calls_since(disk: FaultDisk, before: int) -> list[str]:
    return [name for name, _ in disk.calls[before:]]


# --- it is there when it is needed ----------------------------------------------------------------


def test_reserve_is_allocated_by_a_start_and_found_by_the_next_one():
    disk = FaultDisk()
    store = opened(disk, reserve_bytes=SIZE)
    assert len(disk.content(RESERVE)) == SIZE
    assert store.space() == Space(1 << 50, reserve_is_lost=False)
    store.close()
    disk.on_call = lambda name, path: pytest.fail("a good reserve was removed") if name == "unlink" else None
    assert not opened(disk, reserve_bytes=SIZE).space().reserve_is_lost


def test_without_a_reserve_none_is_missed():
    disk = FaultDisk()
    store = opened(disk)
    assert not store.space().reserve_is_lost
    assert "reserve" not in disk.listing(DATA)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_write_without_space_gives_the_reserve_up_and_is_repeated(code):
    disk = FaultDisk()
    store = opened(disk, reserve_bytes=SIZE)
    before = len(disk.calls)
    fail_at(disk, 1, code, frozenset({"write"}))  # half of it is in the file all the same
    store.append(records(2))
    store.sync()
    assert calls_since(disk, before) == ["write", "unlink", "sync_directory", "cut", "write", "sync"]
    assert store.space().reserve_is_lost is False, "there is room again, so it was taken back"
    assert [header.lsn for _, header in frames(disk.content(segment(1)))] == [1, 1, 2]
    disk.power_loss(DROP)
    assert load(disk)[0] == records(2)


def test_rest_of_a_write_that_was_taken_in_part_is_repeated():
    disk = FaultDisk()
    store = opened(disk, reserve_bytes=SIZE)
    disk.capacity_bytes = used(disk) + 50
    store.append(records(1, payload_bytes=500))
    store.sync()
    assert "reserve" not in disk.listing(DATA)
    disk.kill()
    disk.capacity_bytes = None
    assert load(disk)[0] == records(1, payload_bytes=500)


def used(disk: FaultDisk) -> int:
    return disk._used_bytes(disk.root)


@pytest.mark.parametrize("part", range(3))
def test_every_call_may_find_no_space_once(part):
    number = 1 + part
    while True:
        disk, ledger = FaultDisk(), Ledger()
        store = begin(disk, ledger)
        fail_at(disk, number, errno.ENOSPC, NEED_SPACE)
        work(store, ledger)
        gave_up = "unlink" in calls_since(disk, 0)
        disk.power_loss(DROP)
        store = begin(disk, ledger)
        assert store.recovery.clean
        disk.kill()
        if not gave_up:
            break
        number += 3
    assert number > 20, "the life was too short"


@pytest.mark.parametrize("part", range(3))
def test_start_may_find_no_space_once_at_every_call(part):
    number = 1 + part
    while True:
        disk, ledger = FaultDisk(), Ledger()
        store = begin(disk, ledger)
        ledger.append(store, 2)
        ledger.sync(store)
        disk.kill()
        handle = disk.open(segment(1))
        disk.write(handle, b"half a frame")
        disk.kill()
        before = len(disk.calls)
        # The first one is the data directory itself: it is there, and not locked yet.
        fail_at(disk, number + 1, errno.ENOSPC, NEED_SPACE | {"make_directory"})
        store = begin(disk, ledger)
        ledger.append(store, 1)
        ledger.sync(store)
        disk.on_call = None
        disk.power_loss(DROP)
        gave_up = RESERVE in [path for name, path in disk.calls[before:] if name == "unlink"]
        begin(disk, ledger)
        disk.kill()
        if not gave_up:
            break
        number += 3
    assert number > 8, "the start did too little"


# --- when there is nothing left -------------------------------------------------------------------


@pytest.mark.parametrize("part", range(3))
def test_disk_that_stays_full_ends_the_store_and_loses_nothing(part):
    number = 1 + part
    while True:
        disk, ledger = FaultDisk(), Ledger()
        store = begin(disk, ledger)
        full_from(disk, number, NEED_SPACE)
        try:
            work(store, ledger)
        except DiskFull as error:
            assert error.exit_code == 74
        else:
            break
        before = len(disk.calls)
        for attempt in (store.sync, store.seal, store.space):
            with pytest.raises(WriteFailed, match="an earlier write failed"):
                attempt()
        assert calls_since(disk, before) == []
        for fate in (DROP, KEEP, *(tear(random.Random(seed)) for seed in range(4))):
            twin, copy = disk.clone(), Ledger()
            copy.appended, copy.acknowledged = list(ledger.appended), ledger.acknowledged
            twin.power_loss(fate)
            work(begin(twin, copy), copy)
        number += 3
    assert number > 20, "the life was too short"


@pytest.mark.parametrize("call", ["sync", "sync_directory"])
def test_sync_without_space_is_final(call):
    disk = FaultDisk()
    store = opened(disk, segment_bytes=1, reserve_bytes=SIZE)
    store.append(records(1))
    fail_at(disk, 1, errno.ENOSPC, frozenset({call}))
    with pytest.raises(DiskFull):
        store.append(records(1, 2))  # begins a segment
    assert len(disk.content(RESERVE)) == SIZE, "a reserve cannot mend a sync"
    with pytest.raises(WriteFailed):
        store.sync()


def test_failed_sync_of_giving_up_is_final():
    disk = FaultDisk()
    store = opened(disk, reserve_bytes=SIZE)

    def fail(name: str, path: str) -> None:
        if name in ("write", "sync_directory"):
            raise OSError(errno.ENOSPC if name == "write" else errno.EIO, "no", path)

    disk.on_call = fail
    with pytest.raises(WriteFailed, match="no"):
        store.append(records(1))
    disk.on_call = None
    with pytest.raises(WriteFailed):
        store.append(records(1))


def test_other_failures_give_nothing_up():
    disk = FaultDisk()
    store = opened(disk, reserve_bytes=SIZE)
    before = len(disk.calls)
    fail_at(disk, 1, errno.EIO, frozenset({"write"}))
    with pytest.raises(WriteFailed):
        store.append(records(1))
    assert calls_since(disk, before) == ["write"]


# --- a disk with an end ---------------------------------------------------------------------------


def test_small_disk_is_used_to_its_end_and_goes_on_when_room_comes():
    disk, ledger = FaultDisk(), Ledger()
    store = begin(disk, ledger)
    disk.capacity_bytes = used(disk) + 10_000
    lost_after = None
    with pytest.raises(DiskFull):
        while True:
            ledger.append(store, 1, 100)
            ledger.sync(store)
            if lost_after is None and "reserve" not in disk.listing(DATA):
                lost_after = ledger.acknowledged
                assert store.space().reserve_is_lost, "there is no room to take it back"
    assert lost_after is not None
    assert ledger.acknowledged > lost_after + 5, "the reserve was worth nothing"
    disk.kill()
    with pytest.raises(DiskFull):
        opened(disk, reserve_bytes=SIZE)
    disk.kill()
    disk.capacity_bytes += SIZE
    store = begin(disk, ledger)
    assert store.space().reserve_is_lost
    ledger.append(store, 1)
    ledger.sync(store)
    disk.capacity_bytes += 2 * SIZE
    assert not store.space().reserve_is_lost
    assert len(disk.content(RESERVE)) == SIZE
    store.close()


def test_reserve_is_not_taken_where_it_would_leave_nothing():
    disk = FaultDisk()
    store = opened(disk)
    disk.capacity_bytes = used(disk) + 2 * SIZE - 1
    store.close()
    store = opened(disk, reserve_bytes=SIZE)
    assert store.space().reserve_is_lost
    disk.capacity_bytes += SIZE
    assert not store.space().reserve_is_lost


def test_start_on_a_full_disk_uses_the_reserve_of_the_run_before():
    disk, ledger = FaultDisk(), Ledger()
    store = begin(disk, ledger)
    ledger.append(store, 3)
    ledger.sync(store)
    disk.kill()
    disk.capacity_bytes = used(disk)
    store = begin(disk, ledger)
    assert store.space().reserve_is_lost
    ledger.append(store, 1)
    store.close()


def test_reserve_that_a_power_loss_left_short_is_filled_again():
    disk = FaultDisk()
    opened(disk, reserve_bytes=SIZE).close()
    disk.overwrite(RESERVE, b"")
    assert not opened(disk, reserve_bytes=SIZE).space().reserve_is_lost
    assert len(disk.content(RESERVE)) == SIZE


def test_short_reserve_that_cannot_be_filled_is_none():
    disk = FaultDisk()
    opened(disk, reserve_bytes=SIZE).close()
    disk.overwrite(RESERVE, b"")
    disk.capacity_bytes = used(disk) + SIZE // 2
    store = opened(disk, reserve_bytes=SIZE)
    assert store.space().reserve_is_lost
    assert "reserve" not in disk.listing(DATA)


def test_space_that_cannot_be_asked_for_ends_the_store():
    disk = FaultDisk()
    store = opened(disk, reserve_bytes=SIZE)
    fail_at(disk, 1, errno.EIO, frozenset({"free_bytes"}))
    with pytest.raises(WriteFailed):
        store.space()
    with pytest.raises(WriteFailed):
        store.append(records(1))


# --- crashes in the middle of it ------------------------------------------------------------------


@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("full_at", [1, 2, 5, 9])
def test_crash_before_every_effect_of_a_life_that_gives_the_reserve_up(part, full_at):
    number = 1 + part
    while True:
        disk, ledger = FaultDisk(), Ledger()
        store = begin(disk, ledger)
        disk.on_call = both(crash_at(disk, number), fail_at(disk, full_at, errno.ENOSPC, NEED_SPACE))
        try:
            work(store, ledger)
        except Crash:
            pass
        else:
            break
        disk.on_call = None
        for fate in (None, DROP, KEEP, *(tear(random.Random(seed)) for seed in range(4))):
            twin, copy = disk.clone(), Ledger()
            copy.appended, copy.acknowledged = list(ledger.appended), ledger.acknowledged
            twin.kill() if fate is None else twin.power_loss(fate)
            work(begin(twin, copy), copy)
        number += 4
    assert number > 30, "the life was too short"


def test_what_is_a_change_is_known_to_the_crash_tests():
    assert {"cut", "allocate", "unlink"} <= EFFECTS


# --- on a real disk -------------------------------------------------------------------------------


def test_reserve_on_a_real_disk_takes_its_blocks_and_gives_them_back(tmp_path):
    store = WalStore(str(tmp_path / "data"), reserve_bytes=1 << 20)
    list(store.load())
    about = (tmp_path / "data" / "reserve").stat()
    assert about.st_blocks * 512 >= 1 << 20 and about.st_mode & 0o777 == 0o600
    space = store.space()
    assert not space.reserve_is_lost
    vfs = os.statvfs(tmp_path)
    assert abs(space.free_bytes - vfs.f_bavail * vfs.f_frsize) < 1 << 30, (
        "another program is at work, but not so much"
    )
    store.close()


def test_file_is_cut_and_written_on_from_there(tmp_path, monkeypatch):
    from jqd.storage.fs import RealFileSystem

    fs = RealFileSystem()
    reserve = Reserve(fs, str(tmp_path / "reserve"), 1 << 16)
    reserve.take()
    handle = reserve.create(str(tmp_path / "file"))
    assert reserve.write(handle, b"good") == 4

    def fail(handle, data):
        monkeypatch.undo()
        assert fs.write(handle, data[:2]) == 2
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(fs, "write", fail)
    assert reserve.write(handle, b" and on") == 7
    reserve.close(handle)
    assert (tmp_path / "file").read_bytes() == b"good and on"
    assert reserve.is_lost and not (tmp_path / "reserve").exists()

"""Snapshots in the log: what is kept, what is removed and when, and what a start makes of it."""

import errno
import random
import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue

import msgspec
import pytest
from crc32c import crc32c

from jqd.errors import Corruption, WriteFailed
from jqd.storage.base import Record
from jqd.storage.directory import snapshot_lsn
from jqd.storage.segment import segment_number
from jqd.storage.snapshot import Base
from jqd.storage.wal import WalStore
from tests.storage.logs import (
    DATA,
    STORE,
    Ledger,
    all_of,
    load,
    opened,
    parts_of,
    records,
    segment,
    snap,
    write,
)
from tests.support.faultfs import DROP, EFFECTS, KEEP, Crash, FaultDisk, crash_at, fail_at, tear

SEGMENT_BYTES = 200


def snap_path(lsn: int) -> str:
    return f"{DATA}/{lsn:016x}.snap"


def snapshots(disk: FaultDisk) -> list[int]:
    return sorted(lsn for name in disk.listing(DATA) if (lsn := snapshot_lsn(name)) is not None)


def segments(disk: FaultDisk) -> list[int]:
    return sorted(number for name in disk.listing(DATA) if (number := segment_number(name)) is not None)


def work(store: WalStore, ledger: Ledger, count: int) -> None:
    """Append and sync records one by one."""
    for _ in range(count):
        ledger.append(store, 1)
        ledger.sync(store)


def lived(times: int = 2) -> tuple[FaultDisk, Ledger, WalStore]:
    """Return a store with so many snapshots made, and work behind each of them."""
    disk, ledger = FaultDisk(), Ledger()
    store = ledger.recover(disk, segment_bytes=SEGMENT_BYTES)
    work(store, ledger, 4)
    for _ in range(times):
        ledger.snap(store)
        work(store, ledger, 4)
    return disk, ledger, store


def check_figures(store: WalStore, disk: FaultDisk) -> None:
    """What the store says of itself is what is on the disk."""
    sizes = {number: len(disk.content(segment(number))) for number in segments(disk)}
    newest = snapshots(disk)[-1:]
    first_no = store._snapshots[0].base.segment_no if newest else 1
    assert store.size_bytes == sum(sizes.values())
    assert store.segment_count == len(sizes)
    assert store.unsnapped_bytes == sum(size for number, size in sizes.items() if number >= first_no)
    assert store.snapshot_lsn == (newest[0] if newest else 0)
    assert store.snapshot_bytes == (len(disk.content(snap_path(newest[0]))) if newest else 0)


# --- what is kept and what goes ---------------------------------------------------------------


def test_cut_of_a_log_with_nothing_new_is_the_same_and_costs_nothing():
    disk = FaultDisk()
    store = opened(disk)
    before = len(disk.calls)
    assert store.cut() == store.cut() == (0, 1, 0)
    assert disk.calls[before:] == []
    store.append(records(3))
    base = store.cut()
    assert (base.lsn, base.segment_no, store.durable_lsn) == (6, 2, 6)
    before = len(disk.calls)
    assert store.cut() == base
    store.seal()
    assert store.cut() == base
    assert disk.calls[before:] == []
    store.close()
    assert opened(disk).cut() == base


def test_cut_of_a_failed_store_is_refused():
    disk = FaultDisk()
    store = opened(disk)
    store.append(records(1))
    fail_at(disk, 1, errno.EIO)
    with pytest.raises(WriteFailed):
        store.cut()
    with pytest.raises(WriteFailed, match="an earlier write failed"):
        store.cut()


def test_nothing_is_removed_before_there_are_two_and_then_the_log_before_the_older_one():
    disk, ledger, store = lived(0)
    assert (snapshots(disk), segments(disk)) == ([], [1, 2])
    ledger.snap(store)
    assert (snapshots(disk), segments(disk)) == ([4], [1, 2, 3])
    work(store, ledger, 4)
    assert segments(disk) == [1, 2, 3, 4]
    ledger.snap(store)
    assert (snapshots(disk), segments(disk)) == ([4, 8], [3, 4, 5])
    work(store, ledger, 4)
    ledger.snap(store)
    assert (snapshots(disk), segments(disk)) == ([8, 12], [5, 6, 7])
    disk.power_loss(DROP)
    ledger.recover(disk)


def test_snapshot_of_the_same_lsn_takes_the_place_of_the_one_before():
    disk, ledger, store = lived(2)
    ledger.snap(store)
    before = snapshots(disk), segments(disk)
    for _ in range(3):
        ledger.snap(store)
        assert (snapshots(disk), segments(disk)) == before
        check_figures(store, disk)
    work(store, ledger, 1)
    ledger.snap(store)
    assert snapshots(disk) == [before[0][1], store.snapshot_lsn]
    disk.kill()
    ledger.recover(disk)


def test_what_goes_goes_one_by_one_the_oldest_first_and_the_snapshot_before_its_log():
    disk, ledger, store = lived(2)
    work(store, ledger, 12)
    ledger.snap(store)
    work(store, ledger, 1)
    before = len(disk.calls)
    oldest, (first, *_) = snapshots(disk)[0], segments(disk)
    ledger.snap(store)
    calls = [call for call in disk.calls[before:] if call[0] in ("rename", "unlink", "sync_directory")]
    publish = next(at for at, call in enumerate(calls) if call == ("rename", snap_path(store.snapshot_lsn)))
    removals = [path for name, path in calls if name == "unlink"]
    gone = range(first, segments(disk)[0])
    assert len(gone) > 3
    assert removals == [snap_path(oldest), *map(segment, gone)]
    assert calls[publish + 1 :] == [
        ("sync_directory", DATA),
        *(call for path in removals for call in (("unlink", path), ("sync_directory", DATA))),
    ]


def test_start_removes_what_is_too_much_in_the_same_order():
    disk, ledger, store = lived(0)
    everything: dict[str, bytes] = {}
    for _ in range(4):
        ledger.snap(store)
        work(store, ledger, 4)
        everything |= disk.listing(DATA)
    store.close()
    first = segments(disk)[0]
    for name, data in (everything | disk.listing(DATA)).items():
        disk.overwrite(f"{DATA}/{name}", data)
    assert (snapshots(disk), segments(disk)[0]) == ([4, 8, 12, 16], 1)
    before = len(disk.calls)
    store = ledger.recover(disk, segment_bytes=SEGMENT_BYTES)
    removals = [path for name, path in disk.calls[before:] if name == "unlink"]
    assert removals == [snap_path(4), snap_path(8), *map(segment, range(1, first))]
    check_figures(store, disk)


def test_crash_between_any_two_removals_recovers_without_a_hole():
    begins = set()
    for fate in (KEEP, DROP, *(tear(random.Random(seed)) for seed in range(4))):
        number = 0
        while True:
            number += 1
            disk, ledger, store = lived(2)
            work(store, ledger, 8)
            crash_at(disk, number)
            try:
                ledger.snap(store)
                break
            except Crash:
                disk.power_loss(fate)
            disk.on_call = None
            there = segments(disk)
            assert there == list(range(there[0], there[-1] + 1)), "a hole"
            begins.add((len(snapshots(disk)), there[0]))
            again = ledger.recover(disk, segment_bytes=SEGMENT_BYTES)
            assert again.recovery.damaged_snapshots == ()
            assert len(snapshots(disk)) == 2
            assert segments(disk)[0] == again._snapshots[-1].base.segment_no
            check_figures(again, disk)
    # Before, with three snapshots, and with two of them while the log is removed piece by piece.
    assert {kept for kept, _ in begins} == {2, 3}
    assert len({first for _, first in begins}) > 2


@pytest.mark.parametrize("number", range(1, 7))
def test_removal_that_failed_is_done_with_the_next_snapshot(number):
    disk, ledger, store = lived(2)
    work(store, ledger, 4)
    left = number

    def fail(name: str, path: str) -> None:
        nonlocal left
        if name == "unlink" or (name == "sync_directory" and disk.calls[-2][0] == "unlink"):
            left -= 1
            if left == 0:
                raise OSError(errno.EIO, "no", path)

    disk.on_call = fail
    with pytest.raises(OSError, match="no"):
        ledger.snap(store)
    disk.on_call = None
    work(store, ledger, 4)
    ledger.snap(store)
    assert len(snapshots(disk)) == 2
    assert segments(disk)[0] == store._snapshots[-1].base.segment_no
    check_figures(store, disk)
    disk.kill()
    ledger.recover(disk)


@pytest.mark.parametrize("call", ["unlink", "rename"])
def test_snapshot_is_made_once_it_has_its_name_durably(call):
    disk, ledger, store = lived(2)
    work(store, ledger, 4)
    sink = store.begin_snapshot(store.cut())
    for part in parts_of(ledger.appended):
        sink.write(*part)
    fail_at(disk, 1, errno.ENOSPC, frozenset({call}))
    with pytest.raises(OSError):
        sink.finish()
    assert sink.is_made is (call == "unlink")
    assert (store.snapshot_lsn == store.durable_lsn) is sink.is_made


def test_snapshot_that_cannot_be_written_leaves_log_and_store_as_they_are():
    number = failures = 0
    while True:
        number += 1
        disk, ledger, store = lived(1)
        base = store.cut()
        before = disk.listing(DATA)
        fail_at(disk, number, errno.ENOSPC, EFFECTS | {"open"})
        sink = None
        try:
            sink = store.begin_snapshot(base)
            for part in parts_of(ledger.appended):
                sink.write(*part)
            assert sink.size_bytes > 300
            sink.finish()
            break
        except OSError:
            failures += 1
            if sink is not None:
                sink.abort()
        call = next(call for call in reversed(disk.calls) if call[0] != "unlink")
        if call[0] != "sync_directory":
            assert disk.listing(DATA) == before
            check_figures(store, disk)
        disk.on_call = None
        work(store, ledger, 3)
        ledger.snap(store)
        disk.power_loss(DROP)
        ledger.recover(disk)
    assert failures > 8


# --- what a start makes of it -----------------------------------------------------------------


def test_start_reads_the_newest_snapshot_and_the_log_behind_it():
    disk, ledger, store = lived(3)
    lsn = store.snapshot_lsn
    store.close()
    store = WalStore(DATA, fs=disk)
    parts = list(store.load_snapshot())
    behind = list(store.load())
    assert parts == [
        payload for _, payload in parts_of(each for each in ledger.appended if each.last_lsn <= lsn)
    ]
    assert behind == [each for each in ledger.appended if each.first_lsn > lsn]
    report = store.recovery
    last_lsn = ledger.appended[-1].last_lsn
    assert (report.records, report.first_lsn, report.last_lsn) == (4, lsn + 1, last_lsn)
    assert (report.snapshot_lsn, report.clean, report.damaged_snapshots) == (lsn, True, ())


def test_snapshot_with_nothing_behind_it_is_all_that_is_needed():
    disk, ledger, store = lived(2)
    ledger.snap(store)
    lsn = store.snapshot_lsn
    disk.kill()
    store = ledger.recover(disk)
    assert (store.recovery.records, store.recovery.first_lsn, store.recovery.last_lsn) == (0, 0, lsn)
    assert store.durable_lsn == lsn


def test_segment_numbers_go_on_over_restarts_and_snapshots():
    disk, ledger, store = lived(0)
    highest = 0
    for end in ("close", "kill", "power loss") * 3:
        work(store, ledger, 2)
        ledger.snap(store)
        work(store, ledger, 2)
        assert segments(disk)[-1] > highest
        highest = segments(disk)[-1]
        match end:
            case "close":
                store.close()
            case "kill":
                disk.kill()
            case "power loss":
                disk.power_loss(DROP)
        store = ledger.recover(disk, segment_bytes=SEGMENT_BYTES)
        assert segments(disk)[-1] == highest + 1
        highest += 1


@pytest.mark.parametrize("end", ["close", "kill"])
def test_figures_are_right_before_and_after_a_restart(end):
    disk, ledger = FaultDisk(), Ledger()
    for _ in range(4):
        store = ledger.recover(disk, segment_bytes=SEGMENT_BYTES)
        check_figures(store, disk)
        for _ in range(6):
            work(store, ledger, 1)
            check_figures(store, disk)
        ledger.snap(store)
        check_figures(store, disk)
        work(store, ledger, 2)
        check_figures(store, disk)
        said = (store.snapshot_lsn, store.snapshot_bytes)
        if end == "close":
            store.close()
        else:
            disk.kill()
        store = ledger.recover(disk, segment_bytes=SEGMENT_BYTES)
        assert (store.snapshot_lsn, store.snapshot_bytes) == said
        check_figures(store, disk)
        disk.kill()


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "a flipped bit in the head": lambda data: data[:20] + bytes([data[20] ^ 1]) + data[21:],
    "a flipped bit in a part": lambda data: data[:140] + bytes([data[140] ^ 1]) + data[141:],
    "a flipped bit at the end": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "cut short": lambda data: data[:-68],
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "too long": lambda data: data + b"x",
}


def damage(disk: FaultDisk, lsn: int, kind: str = "a flipped bit in a part") -> bytes:
    data = DAMAGES[kind](disk.content(snap_path(lsn)))
    disk.overwrite(snap_path(lsn), data)
    return data


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_newest_is_put_away_and_the_older_one_tells_the_same(kind):
    disk, ledger, store = lived(2)
    store.close()
    older, newest = snapshots(disk)
    data = damage(disk, newest, kind)
    store = ledger.recover(disk, segment_bytes=SEGMENT_BYTES)
    report = store.recovery
    assert (report.snapshot_lsn, report.clean) == (older, True)
    assert len(report.damaged_snapshots) == 1
    assert report.damaged_snapshots[0].startswith(f"{snap_path(newest)}: byte ")
    assert disk.listing(f"{DATA}/quarantine") == {f"{newest:016x}.snap": data}
    assert snapshots(disk) == [older]
    check_figures(store, disk)
    # The older one and all of its log stay until there are two again.
    work(store, ledger, 3)
    first = segments(disk)[0]
    disk.power_loss(DROP)
    store = ledger.recover(disk, segment_bytes=SEGMENT_BYTES)
    assert store.recovery.damaged_snapshots == ()
    assert disk.listing(f"{DATA}/quarantine") == {f"{newest:016x}.snap": data}
    ledger.snap(store)
    assert snapshots(disk) == [older, store.snapshot_lsn]
    assert segments(disk)[0] == first
    disk.kill()
    ledger.recover(disk)


def test_damaged_ones_of_one_name_are_all_kept():
    """As when a backup was restored over a directory whose newest snapshot had been put away before."""
    disk, ledger, store = lived(2)
    store.close()
    newest = snapshots(disk)[1]
    kept = [damage(disk, newest)]
    for number in range(3):
        ledger.recover(disk, segment_bytes=SEGMENT_BYTES).close()
        assert list(disk.listing(f"{DATA}/quarantine").values()) == kept
        if number < 2:
            # One has another size, one another byte.
            kept.append([kept[0] + b"x", kept[0][:-1] + b"x"][number])
            handle = disk.create(snap_path(newest))
            disk.write(handle, kept[-1])
            disk.sync(handle)
            disk.close(handle)
            disk.sync_directory(DATA)
    names = [f"{newest:016x}.snap", f"{newest:016x}.snap.2", f"{newest:016x}.snap.3"]
    assert list(disk.listing(f"{DATA}/quarantine")) == names


def test_quarantine_is_durable_before_a_snapshot_is_moved_into_it():
    disk, ledger, store = lived(2)
    store.close()
    newest = snapshots(disk)[1]
    damage(disk, newest)
    before = len(disk.calls)
    ledger.recover(disk)
    calls = disk.calls[before:]
    begin = calls.index(("make_directory", f"{DATA}/quarantine"))
    assert calls[begin : begin + 6] == [
        ("make_directory", f"{DATA}/quarantine"),
        ("sync_directory", DATA),
        ("size_of", f"{DATA}/quarantine/{newest:016x}.snap"),
        ("rename", f"{DATA}/quarantine/{newest:016x}.snap"),
        ("sync_directory", f"{DATA}/quarantine"),
        ("sync_directory", DATA),
    ]


def test_newest_that_cannot_be_read_is_put_away():
    disk, ledger, store = lived(2)
    store.close()
    _, newest = snapshots(disk)

    def fail(name: str, path: str) -> None:
        if (name, path) == ("read", snap_path(newest)):
            raise OSError(errno.EIO, "Input/output error", path)

    disk.on_call = fail
    store = ledger.recover(disk)
    (said,) = store.recovery.damaged_snapshots
    assert said == f"{snap_path(newest)}: byte 0: it cannot be read: Input/output error"
    assert f"{newest:016x}.snap" in disk.listing(f"{DATA}/quarantine")


def test_newest_that_rots_while_it_is_read_is_refused_and_the_next_start_falls_back():
    disk, ledger, store = lived(2)
    store.close()
    _, newest = snapshots(disk)
    ways = 0

    def fail(name: str, path: str) -> None:
        nonlocal ways
        ways += (name, path) == ("open", snap_path(newest))
        if (name, path) == ("read", snap_path(newest)) and ways > 1:
            raise OSError(errno.EIO, "Input/output error", path)

    disk.on_call = fail
    with pytest.raises(Corruption, match="it was whole a moment ago: start again"):
        load(disk)
    assert len(ledger.recover(disk).recovery.damaged_snapshots) == 1


def test_crash_at_every_effect_of_a_fallback_recovers():
    disk, ledger, store = lived(2)
    store.close()
    damage(disk, snapshots(disk)[1])
    for seed in range(6):
        number = 0
        while True:
            number += 1
            twin, twin_ledger = disk.clone(), Ledger()
            twin_ledger.appended, twin_ledger.acknowledged = list(ledger.appended), ledger.acknowledged
            crash_at(twin, number)
            try:
                twin_ledger.recover(twin)
                break
            except Crash:
                twin.power_loss((KEEP, DROP, tear(random.Random(seed)))[min(seed, 2)])
            again = twin_ledger.recover(twin)
            assert len(snapshots(twin)) == 1
            assert again.recovery.snapshot_lsn == snapshots(twin)[0]
            if seed < 2:
                assert len(twin.listing(f"{DATA}/quarantine")) == 1
        assert number > 8


def test_damaged_older_one_is_put_away_once_its_head_cannot_be_read():
    disk, ledger, store = lived(2)
    store.close()
    older, newest = snapshots(disk)
    damage(disk, older, "a flipped bit in the head")
    first = segments(disk)[0]
    store = ledger.recover(disk, segment_bytes=SEGMENT_BYTES)
    (said,) = store.recovery.damaged_snapshots
    assert said.startswith(snap_path(older))
    assert (snapshots(disk), segments(disk)[0]) == ([newest], first)
    check_figures(store, disk)


def test_both_damaged_are_refused_by_name_and_reason_and_nothing_is_changed():
    disk, _, store = lived(2)
    store.close()
    older, newest = snapshots(disk)
    damage(disk, older, "cut short")
    damage(disk, newest, "zeros")
    disk.overwrite(f"{DATA}/{99:016x}.snap.tmp", b"half of one")
    before = disk.listing(DATA)
    with pytest.raises(Corruption) as refusal:
        load(disk)
    said = str(refusal.value)
    assert said.startswith(f"{segment(1)} is missing; {snap_path(newest)}: byte 0: no frame begins here; ")
    assert f"{snap_path(older)}: byte " in said
    assert "the file ends here, without its end; nothing was changed" in said
    assert refusal.value.file == segment(1)
    assert disk.listing(DATA) == before


def test_both_damaged_over_a_log_from_its_beginning_are_replayed_in_full():
    disk, ledger, store = lived(1)
    old = disk.listing(DATA)
    ledger.snap(store)
    store.close()
    for name, data in old.items():
        if segment_number(name) is not None and name not in disk.listing(DATA):
            disk.overwrite(f"{DATA}/{name}", data)
    assert segments(disk)[0] == 1
    for lsn in snapshots(disk):
        damage(disk, lsn)
    store = ledger.recover(disk, segment_bytes=SEGMENT_BYTES)
    assert (store.recovery.snapshot_lsn, len(store.recovery.damaged_snapshots)) == (0, 2)
    assert (store.recovery.first_lsn, store.snapshot_lsn) == (1, 0)
    assert snapshots(disk) == []
    assert len(disk.listing(f"{DATA}/quarantine")) == 2
    check_figures(store, disk)


def test_whole_snapshot_whose_log_is_missing_is_refused_by_the_first_missing_segment():
    disk, _, store = lived(2)
    store.close()
    _, newest = snapshots(disk)
    goes_on_in = store._snapshots[0].base.segment_no
    last = segments(disk)[-1]
    assert last > goes_on_in
    for missing in (goes_on_in, last):
        twin = disk.clone()
        twin.remove(segment(missing))
        before = twin.listing(DATA)
        with pytest.raises(Corruption, match=f"^{segment(missing)} is missing; nothing was changed"):
            load(twin)
        assert twin.listing(DATA) == before
        # Nor does a damaged newest one make the hole smaller.
        damage(twin, newest)
        with pytest.raises(Corruption, match=f"^{segment(missing)} is missing; {snap_path(newest)}"):
            load(twin)


def test_snapshot_newer_than_a_restored_log_is_refused():
    disk, ledger, store = lived(1)
    image = {name: data for name, data in disk.listing(DATA).items() if name != "lock"}
    work(store, ledger, 4)
    ledger.snap(store)
    missing = store._snapshots[0].base.segment_no
    store.close()
    for number in segments(disk):
        disk.remove(segment(number))
    for name, data in image.items():
        disk.overwrite(f"{DATA}/{name}", data)
    with pytest.raises(Corruption, match=f"^{segment(missing)} is missing"):
        load(disk)


def test_snapshot_beside_an_empty_store_is_refused():
    disk, _, store = lived(1)
    store.close()
    (lsn,) = snapshots(disk)
    for number in segments(disk):
        disk.remove(segment(number))
    disk.remove(STORE)
    with pytest.raises(Corruption, match=f"{STORE} is missing, but {lsn:016x}.snap exists"):
        load(disk)
    assert "store" not in disk.listing(DATA)


def test_older_copy_that_is_restored_as_a_whole_is_good():
    disk, ledger, store = lived(2)
    copy, copied = disk.clone(), list(ledger.appended)
    work(store, ledger, 9)
    ledger.snap(store)
    store.close()
    copy.kill()
    old = Ledger()
    old.appended, old.acknowledged = copied, len(copied)
    store = old.recover(copy, segment_bytes=SEGMENT_BYTES)
    work(store, old, 3)
    old.snap(store)
    store.close()
    old.recover(copy)


def test_snapshot_of_another_history_of_the_same_store_is_refused():
    disk, ledger, store = lived(2)
    copy, copied = disk.clone(), list(ledger.appended)
    copy.kill()
    # Both go on to the same LSN and segment, with other payloads.
    first_lsn = copied[-1].last_lsn + 1
    record = Record(first_lsn, 1, b"this history")
    store.append([record])
    snap(store, [*copied, record])
    store.close()
    store = opened(copy)
    for lsn in range(first_lsn, first_lsn + 4):
        store.append([Record(lsn, 1, b"that history")])
        store.cut()
    store.close()
    assert segments(copy)[-1] >= segments(disk)[-1]
    lsn = snapshots(disk)[-1]
    copy.overwrite(snap_path(lsn), disk.content(snap_path(lsn)))
    with pytest.raises(Corruption, match=r"the frame before is not|LSN \d+ is missing"):
        load(copy)


def test_snapshot_of_another_store_is_put_away():
    disk, ledger, store = lived(2)
    store.close()
    other = FaultDisk(seed=9)
    stranger = write(other, records(20))
    lsn = snap(stranger, records(20))
    assert lsn > snapshots(disk)[-1]
    disk.overwrite(snap_path(lsn), other.content(snap_path(lsn)))
    store = ledger.recover(disk)
    assert store.recovery.damaged_snapshots == (
        f"{snap_path(lsn)}: byte 0: a frame of another store stands here",
    )


def test_log_of_another_store_behind_a_snapshot_is_refused():
    disk, _, store = lived(2)
    store.close()
    number = store._snapshots[0].base.segment_no
    other = FaultDisk(seed=9)
    write(other, records(4 * number), segment_bytes=SEGMENT_BYTES)
    disk.overwrite(segment(number), other.content(segment(number)))
    with pytest.raises(Corruption, match=f"{segment(number)}: byte 0: a frame of another store stands here"):
        load(disk)


def test_name_of_another_snapshot_is_noticed():
    disk, ledger, store = lived(2)
    store.close()
    newest = snapshots(disk)[-1]
    disk.overwrite(snap_path(newest + 1), disk.content(snap_path(newest)))
    store = ledger.recover(disk)
    assert store.recovery.snapshot_lsn == newest
    assert f"a frame of the snapshot of LSN {newest} stands here" in store.recovery.damaged_snapshots[0]


# --- size -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("jobs", "trigger"), [(40, 20_000), (40, 8_000), (120, 4_000), (3, 3_000)])
def test_disk_holds_three_times_the_live_data_and_four_triggers_at_most(jobs, trigger):
    """Steady load: each record replaces a random job but the first, which is as old as the store.

    A snapshot is due as in the daemon: when the log behind the last one has grown by the trigger, or by the size of
    the newest snapshot if that is more. It is written while work goes on, and takes as long as the log takes to grow by about
    that much again.
    """
    rng = random.Random(jobs)
    disk = FaultDisk()
    live = {number: bytes([number]) * 150 for number in range(jobs)}
    # What the live data takes in a snapshot: a frame for each job, head and end.
    live_bytes = sum(len(msgspec.msgpack.encode(job)) + 68 for job in live.items()) + 2 * 68
    bound = 3 * live_bytes + 4 * max(trigger, live_bytes)
    most = 0

    def weigh(_name: str, _path: str) -> None:
        nonlocal most
        most = max(most, sum(map(len, disk.listing(DATA).values())))

    store = opened(disk, segment_bytes=3_000)
    disk.on_call = weigh
    lsn = since_bytes = made = 0
    under_way = None
    slowness = 1  # steps for each part
    left: list[bytes] = []
    for step in range(3_000):
        number = rng.randrange(1, jobs) if step >= jobs else step
        live[number] = rng.randbytes(150)
        record = Record(lsn := lsn + 1, 1, msgspec.msgpack.encode((number, live[number])))
        store.append([record])
        store.sync()
        since_bytes += len(record.payload) + 68
        due = max(trigger, store.snapshot_bytes)
        if under_way is None and since_bytes >= due:
            under_way = store.begin_snapshot(store.cut())
            left = [msgspec.msgpack.encode(job) for job in live.items()]
            slowness = max(1, due // 230 // len(left))
            since_bytes = 0
        if under_way is not None and step % slowness == 0:
            if left:
                under_way.write(1, left.pop())
            else:
                under_way.finish()
                made += 1
                under_way = None
        if step == 1_500:
            disk.kill()
            store, under_way = WalStore(DATA, fs=disk, segment_bytes=3_000), None
            assert jobs_in(store) == live
            since_bytes = store.unsnapped_bytes
        assert most <= bound, f"{most} bytes at step {step}, {bound} are allowed"
    assert made > 10
    assert most > bound / 3, "the load is too light to say anything"
    disk.kill()
    assert jobs_in(WalStore(DATA, fs=disk)) == live


def jobs_in(store: WalStore) -> dict[int, bytes]:
    """Load a store whose parts and records are one job each."""
    state = dict(msgspec.msgpack.decode(part) for part in store.load_snapshot())
    state.update(msgspec.msgpack.decode(record.payload) for record in store.load())
    return state


# --- threads ----------------------------------------------------------------------------------


class Snapping(threading.Thread):
    """The daemon's snapshot thread: begins, writes and finishes, while another thread has the log."""

    def __init__(self, store: WalStore) -> None:
        super().__init__(daemon=True)
        self._store = store
        self.work: SimpleQueue[tuple[Base, bytes] | None] = SimpleQueue()
        self.failure: BaseException | None = None
        self.made = 0
        self.idle = threading.Event()

    def run(self) -> None:
        try:
            while (job := self.work.get()) is not None:
                cut, state = job
                sink = self._store.begin_snapshot(cut)
                for byte in state:
                    sink.write(1, bytes([byte]))
                sink.finish()
                self.made += 1
                self.idle.set()
        except BaseException as error:
            self.failure = error
        finally:
            self.idle.set()


def test_log_and_snapshots_in_two_threads(tmp_path):
    """What stands for the state is a checksum over all payloads, in eight parts of a byte."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        store = WalStore(str(tmp_path), segment_bytes=400)
        assert all_of(store) == []
        thread = Snapping(store)
        thread.start()
        rng = random.Random(5)
        lsn = crc = 0
        thread.idle.set()
        while thread.made < 60 and thread.failure is None:
            record = Record(lsn := lsn + 1, 1, rng.randbytes(rng.randrange(200)))
            store.append([record])
            crc = crc32c(record.payload, crc)
            if rng.random() < 0.3:
                store.sync()
            if rng.random() < 0.1:
                store.seal()
            if thread.idle.is_set():
                thread.idle.clear()
                thread.work.put((store.cut(), crc.to_bytes(8, "little")))
            assert store.size_bytes > 0
            assert store.unsnapped_bytes > 0
            assert store.segment_count > 0
            assert store.snapshot_lsn <= store.durable_lsn
        thread.work.put(None)
        thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert thread.failure is None
    store.seal()
    size_bytes = store.size_bytes
    store.close()
    names = [path.name for path in tmp_path.iterdir()]
    assert len([name for name in names if name.endswith(".snap")]) == 2
    numbers = sorted(number for name in names if (number := segment_number(name)) is not None)
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    assert numbers[0] == store._snapshots[-1].base.segment_no
    assert size_bytes == sum(path.stat().st_size for path in tmp_path.glob("*.wal"))
    again = WalStore(str(tmp_path))
    found = int.from_bytes(b"".join(again.load_snapshot()), "little")
    for record in again.load():
        found = crc32c(record.payload, found)
    assert (found, again.recovery.last_lsn, again.recovery.clean) == (crc, lsn, True)
    again.close()

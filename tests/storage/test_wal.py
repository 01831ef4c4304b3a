"""The rules of the log, one by one."""

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jqd.errors import (
    Corruption,
    DataDirLocked,
    DataDirUnusable,
    DiskFull,
    UnsupportedFormat,
    WriteFailed,
)
from jqd.storage.base import Record, RecoveryReport
from jqd.storage.store_file import STORE_FILE_BYTES, StoreFile, decode_store_file, encode_store_file
from jqd.storage.wal import WalStore
from tests.storage.logs import DATA, STORE, Ledger, frames, load, opened, records, segment, write
from tests.support.faultfs import DROP, FaultDisk, fail_at


def said_by_store(disk: FaultDisk) -> StoreFile:
    said = decode_store_file(disk.content(STORE))
    assert isinstance(said, StoreFile)
    return said


def test_new_store_is_empty_and_clean():
    disk = FaultDisk()
    store = opened(disk)
    assert store.recovery == RecoveryReport(0, 0, 0, True, 0, None)
    assert (store.durable_lsn, store.segment_count) == (0, 1)
    assert set(disk.listing(DATA)) == {"lock", "store", "0000000000000001.wal"}


def test_public_id_stays_and_is_not_the_secret_one():
    disk = FaultDisk()
    store = opened(disk)
    secret = said_by_store(disk).store_id
    assert len(store.public_id) == 32
    assert store.public_id != secret.hex()
    store.close()
    assert opened(disk).public_id == store.public_id


def test_two_stores_have_different_ids():
    one, other = opened(FaultDisk(seed=1)), opened(FaultDisk(seed=2))
    assert one.public_id != other.public_id


def test_records_come_back_after_a_clean_stop():
    disk = FaultDisk()
    write(disk, records(5)).close()
    found, report = load(disk)
    assert found == records(5)
    assert report == RecoveryReport(5, 1, 9, True, 0, None)


def test_records_come_back_after_a_kill():
    disk = FaultDisk()
    write(disk, records(5))
    disk.kill()
    found, report = load(disk)
    assert found == records(5)
    assert report == RecoveryReport(5, 1, 9, False, 0, None)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_use_comes_back(data):
    disk, ledger = FaultDisk(), Ledger()
    segment_bytes = data.draw(st.sampled_from([1, 300, 1000]))
    store = ledger.recover(disk, segment_bytes=segment_bytes)
    steps = st.sampled_from(["append", "append", "sync", "seal", "close", "kill", "power loss"])
    for step in data.draw(st.lists(steps, max_size=15)):
        match step:
            case "append":
                ledger.append(store, data.draw(st.integers(0, 3)), data.draw(st.integers(0, 200)))
                continue
            case "sync":
                ledger.sync(store)
                continue
            case "seal":
                store.seal()
                ledger.acknowledged = len(ledger.appended)
                continue
            case "close":
                store.close()
                ledger.acknowledged = len(ledger.appended)
            case "kill":
                disk.kill()
            case "power loss":
                disk.power_loss(DROP)
        store = ledger.recover(disk, segment_bytes=segment_bytes)


def test_durable_lsn_moves_with_sync_only():
    store = opened(FaultDisk())
    store.append(records(3))
    assert store.durable_lsn == 0
    store.sync()
    assert store.durable_lsn == 6


def test_frame_claims_only_what_was_synced_before_it_was_built():
    disk = FaultDisk()
    store = opened(disk)
    store.append(records(2))
    store.append(records(1, 4))
    store.sync()
    store.append(records(1, 5))
    assert [header.durable_lsn for _, header in frames(disk.content(segment(1)))] == [0, 0, 0, 0, 4]


def test_sync_of_nothing_costs_nothing():
    disk = FaultDisk()
    store = write(disk, records(1))
    before = len(disk.calls)
    store.sync()
    store.append([])
    assert [name for name, _ in disk.calls[before:]] in ([], ["write"])


def test_append_is_one_write_and_sync_is_one_sync():
    disk = FaultDisk()
    store = opened(disk)
    before = len(disk.calls)
    store.append(records(3))
    store.sync()
    assert [name for name, _ in disk.calls[before:]] == ["write", "sync"]


def test_seal_is_written_once_for_each_change_of_the_durable_lsn():
    disk = FaultDisk()
    store = opened(disk)
    store.seal()
    assert len(frames(disk.content(segment(1)))) == 1
    store.append(records(1))
    store.seal()
    store.seal()
    assert store.durable_lsn == 1
    (_, _, (_, seal)) = frames(disk.content(segment(1)))
    assert (seal.type, seal.durable_lsn, seal.lsn) == (3, 1, 2)


def test_full_segment_is_sealed_and_followed():
    disk = FaultDisk()
    store = write(disk, records(6), segment_bytes=200)
    assert store.segment_count == 3
    assert store.size_bytes == sum(len(disk.content(segment(number))) for number in (1, 2, 3))
    for number in (1, 2):
        assert frames(disk.content(segment(number)))[-1][1].type == 3
    disk.kill()
    assert load(disk)[0] == records(6)


def test_every_segment_is_durable_by_name_before_its_first_batch():
    disk = FaultDisk()
    store = opened(disk, segment_bytes=1)
    for record in records(4):
        store.append([record])
        store.sync()
        twin = disk.clone()
        twin.power_loss(DROP)
        assert load(twin)[0][-1] == record


def test_a_stop_and_start_without_work_leaves_no_trail():
    disk = FaultDisk()
    write(disk, records(1)).close()
    for end in (WalStore.close, lambda _: disk.kill()) * 5:
        store = opened(disk)
        assert (store.segment_count, store.recovery.last_lsn) == (2, 1)
        end(store)
    assert set(disk.listing(DATA)) == {"lock", "store", "0000000000000001.wal", "0000000000000002.wal"}


def test_old_segment_is_never_appended_to():
    disk = FaultDisk()
    write(disk, records(1)).close()
    before = disk.content(segment(1))
    store = opened(disk)
    store.append(records(1, 2))
    store.close()
    assert disk.content(segment(1)) == before


def test_clean_stop_needs_no_rewrite():
    disk = FaultDisk()
    write(disk, records(2)).close()
    before = disk.file(segment(1))
    load(disk)
    assert disk.file(segment(1)) is before


def test_unclean_stop_moves_the_last_segment_to_a_new_file():
    disk = FaultDisk()
    write(disk, records(2))
    disk.kill()
    before = disk.file(segment(1))
    load(disk)
    assert disk.file(segment(1)) is not before
    assert disk.content(segment(1)) == bytes(before.cache)


def test_unsynced_bytes_that_a_recovery_showed_are_durable():
    disk = FaultDisk()
    opened(disk).append(records(3))
    disk.kill()
    assert load(disk)[0] == records(3)
    disk.power_loss(DROP)
    assert load(disk)[0] == records(3)


def test_temporary_files_are_ignored_and_removed_after_a_good_start():
    disk = FaultDisk()
    write(disk, records(1)).close()
    for name in ("0000000000000009.wal.tmp", "store.tmp", "notes.tmp", "README"):
        disk.overwrite(f"{DATA}/{name}", b"junk")
    assert load(disk)[0] == records(1)
    assert set(disk.listing(DATA)) - {"lock", "store"} == {
        "0000000000000001.wal",
        "0000000000000002.wal",
        "notes.tmp",  # not a name that jqd gives: not jqd's to remove
        "README",
    }


def test_temporary_files_stay_when_the_start_is_refused():
    disk = FaultDisk()
    write(disk, records(1)).close()
    disk.overwrite(segment(1) + ".tmp", b"junk")
    disk.overwrite(segment(1), b"junk")
    with pytest.raises(Corruption):
        load(disk)
    assert disk.content(segment(1) + ".tmp") == b"junk"


def test_torn_tail_is_copied_and_cut():
    disk = FaultDisk()
    write(disk, records(2))
    disk.kill()
    good = disk.content(segment(1))
    disk.overwrite(segment(1), good + b"half a frame")
    found, report = load(disk)
    assert found == records(2)
    copy = f"{DATA}/quarantine/0000000000000001-{len(good)}.torn"
    assert report == RecoveryReport(2, 1, 3, False, 12, copy)
    assert disk.content(copy) == b"half a frame"
    assert disk.content(segment(1)) == good
    disk.power_loss(DROP)
    assert disk.content(copy) == b"half a frame"


def test_copy_is_durable_before_the_cut_begins():
    disk = FaultDisk()
    write(disk, records(2))
    disk.kill()
    disk.overwrite(segment(1), disk.content(segment(1)) + b"half a frame")
    copies: list[bytes] = []

    def look(name: str, path: str) -> None:
        if (name, path) == ("create", segment(1) + ".tmp"):
            twin = disk.clone()
            twin.power_loss(DROP)
            copies.extend(twin.listing(f"{DATA}/quarantine").values())

    disk.on_call = look
    load(disk)
    assert copies == [b"half a frame"]


def test_torn_first_batch_is_copied_and_its_segment_replaced():
    disk = FaultDisk()
    write(disk, [])
    disk.kill()
    disk.overwrite(segment(1), disk.content(segment(1)) + b"half a frame")
    found, report = load(disk)
    assert (found, report.torn_bytes) == ([], 12)
    assert report.quarantined is not None
    assert disk.content(report.quarantined) == b"half a frame"
    assert len(frames(disk.content(segment(1)))) == 1


def test_a_crash_between_copy_and_cut_keeps_one_copy():
    disk = FaultDisk()
    write(disk, records(1))
    disk.kill()
    disk.overwrite(segment(1), disk.content(segment(1)) + b"torn")
    for _ in range(3):
        fail_at(disk, 2, errno.EIO, frozenset({"rename"}))  # the first names the copy
        with pytest.raises(WriteFailed):
            load(disk)
    load(disk)
    assert len(disk.listing(f"{DATA}/quarantine")) == 1


# --- what is refused --------------------------------------------------------------------------


def test_refusal_names_file_offset_lsn_and_what_to_do():
    disk = FaultDisk()
    write(disk, records(4)).close()
    data = bytearray(disk.content(segment(1)))
    offset = frames(bytes(data))[2][0]
    data[offset + 70] ^= 1
    disk.overwrite(segment(1), bytes(data))
    with pytest.raises(Corruption) as refused:
        load(disk)
    assert (refused.value.file, refused.value.offset, refused.value.lsn) == (segment(1), offset, 2)
    assert refused.value.exit_code == 65
    for part in (segment(1), f"byte {offset}", "LSN 2 to 3", "keep a copy", "backup"):
        assert part in str(refused.value)
    assert disk.content(segment(1)) == bytes(data)


def test_bad_frame_before_the_last_segment_is_refused():
    disk = FaultDisk()
    write(disk, records(6), segment_bytes=200)
    disk.kill()
    for number in (1, 2):
        twin = disk.clone()
        twin.overwrite(segment(number), twin.content(segment(number))[:-1])
        with pytest.raises(Corruption, match="and later") as refused:
            load(twin)
        assert refused.value.file == segment(number)
        assert "quarantine" not in twin.list_directory(DATA)


def test_unfinished_frame_under_the_clean_mark_is_refused():
    disk = FaultDisk()
    write(disk, records(2)).close()
    for cut in range(len(disk.content(segment(1)))):
        twin = disk.clone()
        twin.overwrite(segment(1), twin.content(segment(1))[:cut])
        with pytest.raises(Corruption):
            load(twin)


def test_store_file_that_is_missing_or_damaged_is_refused():
    disk = FaultDisk()
    write(disk, records(1)).close()
    for damage in (None, b"", bytes(STORE_FILE_BYTES)):
        twin = disk.clone()
        twin.remove(STORE) if damage is None else twin.overwrite(STORE, damage)
        with pytest.raises(Corruption, match=r"store is (missing|damaged)"):
            load(twin)
        assert twin.listing(DATA).get("store") == damage


def test_newer_store_file_is_unsupported():
    from crc32c import crc32c

    disk = FaultDisk()
    write(disk, records(1)).close()
    data = bytearray(disk.content(STORE))
    data[4] = 2
    data[60:] = crc32c(bytes(data[:60])).to_bytes(4, "little")
    disk.overwrite(STORE, bytes(data))
    with pytest.raises(UnsupportedFormat, match="format 2, this jqd knows 1"):
        load(disk)


def test_newer_frame_is_unsupported():
    from crc32c import crc32c

    disk = FaultDisk()
    write(disk, records(1)).close()
    data = bytearray(disk.content(segment(1)))
    data[4] = 2
    data[60:64] = crc32c(bytes(data[:60])).to_bytes(4, "little")
    disk.overwrite(segment(1), bytes(data))
    with pytest.raises(UnsupportedFormat, match="byte 0: format 2"):
        load(disk)


def test_segment_of_another_store_is_refused():
    disk, other = FaultDisk(seed=1), FaultDisk(seed=2)
    for each in (disk, other):
        write(each, records(6), segment_bytes=200)
        each.kill()
    for number in (1, 2, 3):
        twin = disk.clone()
        twin.overwrite(segment(number), other.content(segment(number)))
        with pytest.raises(Corruption, match="another store"):
            load(twin)


def test_missing_swapped_repeated_and_emptied_segments_are_refused():
    disk = FaultDisk()
    write(disk, records(8), segment_bytes=200)
    disk.kill()
    numbers = range(1, len(disk.listing(DATA)) - 1)
    contents = {number: disk.content(segment(number)) for number in numbers}
    assert len(contents) == 4
    images = []
    for one in numbers:
        images.append({n: c for n, c in contents.items() if n != one})
        images.append({**contents, one: b""})
        images.append({**contents, len(contents) + 1: contents[one]})
        images += [{**contents, one: contents[other], other: contents[one]} for other in range(one + 1, 5)]
        images += [{**contents, one: contents[other]} for other in numbers if other != one]
    images.append({})
    for image in images:
        twin = disk.clone()
        for number in numbers:
            twin.remove(segment(number))
        for number, content in image.items():
            twin.overwrite(segment(number), content)
        with pytest.raises(Corruption):
            load(twin)


def test_an_earlier_state_of_the_last_segment_is_refused_after_a_clean_stop():
    disk = FaultDisk()
    store = write(disk, records(1))
    earlier = disk.content(segment(1))
    store.append(records(1, 2))
    store.close()
    disk.overwrite(segment(1), earlier)
    with pytest.raises(Corruption, match="a clean stop left"):
        load(disk)


def test_bytes_that_cannot_be_read_are_refused_and_kept():
    disk = FaultDisk()
    write(disk, records(6), segment_bytes=200).close()
    before = disk.listing(DATA)
    reads = []
    disk.on_call = lambda name, path: reads.append(path) if name == "read" else None
    load(disk.clone())
    twin = disk.clone()
    twin.on_call = disk.on_call
    load(twin)
    assert len(reads) >= 8
    for number in range(1, len(reads) + 1):
        twin = disk.clone()
        fail_at(twin, number, errno.EIO, frozenset({"read"}))
        with pytest.raises(Corruption, match="cannot be read: Input/output error") as refused:
            load(twin)
        assert refused.value.file == reads[number - 1]
        assert twin.listing(DATA) == before


# --- the lock and the directory ---------------------------------------------------------------


def test_second_store_on_a_directory_is_refused_and_touches_nothing():
    disk = FaultDisk()
    write(disk, records(1))
    before = disk.listing(DATA)
    calls = len(disk.calls)
    with pytest.raises(DataDirLocked, match="in use by another jqd") as refused:
        WalStore(DATA, fs=disk)
    assert refused.value.exit_code == 75
    assert {name for name, _ in disk.calls[calls:]} == {"make_directory", "lock"}
    assert disk.listing(DATA) == before


def test_lock_is_released_by_close():
    disk = FaultDisk()
    opened(disk).close()
    opened(disk).close()


def test_lock_is_released_when_the_store_file_is_refused():
    disk = FaultDisk()
    write(disk, []).close()
    good = disk.content(STORE)
    disk.overwrite(STORE, b"")
    with pytest.raises(Corruption):
        WalStore(DATA, fs=disk)
    disk.overwrite(STORE, good)
    opened(disk)


def test_close_without_load_changes_nothing():
    disk = FaultDisk()
    write(disk, records(1)).close()
    before = disk.listing(DATA)
    WalStore(DATA, fs=disk).close()
    assert disk.listing(DATA) == before
    assert load(disk)[1].clean


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOTDIR])
@pytest.mark.parametrize("call", ["make_directory", "lock", "list_directory", "create", "open"])
def test_directory_that_cannot_be_used_is_a_setting_to_mend(code, call):
    disk = FaultDisk()
    if call == "open":
        opened(disk).close()
    fail_at(disk, 1, code, frozenset({call}))
    with pytest.raises(DataDirUnusable, match=DATA) as refused:
        WalStore(DATA, fs=disk)
    assert refused.value.exit_code == 78
    opened(disk)  # the lock is free again


def test_directory_that_becomes_read_only_later_is_a_fault():
    disk = FaultDisk()
    store = opened(disk, segment_bytes=1)
    fail_at(disk, 1, errno.EROFS, frozenset({"create"}))
    with pytest.raises(WriteFailed):
        store.append(records(1))


def test_file_in_place_of_the_directory_is_unusable():
    disk = FaultDisk()
    disk.overwrite(DATA, b"")
    with pytest.raises(DataDirUnusable):
        WalStore(DATA, fs=disk)


# --- after a failure --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "leaf"), [(errno.ENOSPC, DiskFull), (errno.EDQUOT, DiskFull), (errno.EIO, WriteFailed)]
)
@pytest.mark.parametrize("call", ["write", "sync"])
def test_failed_write_or_sync_poisons_the_store(call, code, leaf):
    disk = FaultDisk()
    store = write(disk, records(1))
    fail_at(disk, 1, code, frozenset({call}))

    def append_and_sync() -> None:
        store.append(records(1, 2))
        store.sync()

    with pytest.raises(leaf) as failed:
        append_and_sync()
    assert failed.value.exit_code == 74
    calls = len(disk.calls)
    for attempt in (lambda: store.append(records(1, 2)), store.sync, store.seal, store.close):
        with pytest.raises(WriteFailed, match="an earlier write failed"):
            attempt()
    # No sync is tried again: the kernel would report success for pages that it dropped.
    assert [name for name, _ in disk.calls[calls:]] == []
    assert store.durable_lsn == 1
    store.close()


def test_interrupted_append_poisons_too():
    disk = FaultDisk()
    store = opened(disk)

    def interrupt(name, path):
        raise KeyboardInterrupt

    disk.on_call = interrupt
    with pytest.raises(KeyboardInterrupt):
        store.append(records(1))
    disk.on_call = None
    with pytest.raises(WriteFailed):
        store.append(records(1))


def test_failed_load_leaves_no_store_to_write_to():
    disk = FaultDisk()
    write(disk, records(1))
    disk.kill()
    fail_at(disk, 1, errno.EIO, frozenset({"rename"}))
    store = WalStore(DATA, fs=disk)
    with pytest.raises(WriteFailed):
        list(store.load())
    with pytest.raises(WriteFailed):
        store.append(records(1, 2))
    store.close()
    assert load(disk)[0] == records(1)


def test_order_of_calls_is_asserted():
    store = WalStore(DATA, fs=FaultDisk())
    with pytest.raises(AssertionError, match="load comes first"):
        store.append(records(1))
    with pytest.raises(AssertionError, match="load comes first"):
        _ = store.recovery
    list(store.load())
    with pytest.raises(AssertionError, match="loaded once"):
        list(store.load())
    store.close()
    with pytest.raises(AssertionError, match="nothing after close"):
        store.sync()


def test_record_with_a_hole_stops_the_store():
    disk = FaultDisk()
    store = write(disk, records(1))
    with pytest.raises(AssertionError, match="record begins at LSN 3, the log goes on at 2"):
        store.append([Record(3, 1, b"")])


def test_store_file_names_the_newest_segment_and_the_clean_end():
    disk = FaultDisk()
    store = write(disk, records(6), segment_bytes=200)
    said = said_by_store(disk)
    assert (said.segment_no, said.clean_bytes) == (3, 0)
    store.close()
    said = said_by_store(disk)
    assert (said.segment_no, said.clean_bytes) == (3, len(disk.content(segment(3))))
    assert encode_store_file(said) == disk.content(STORE)

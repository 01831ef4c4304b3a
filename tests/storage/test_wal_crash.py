"""Crashes and faults at every call of a scripted life, recovered and checked against the ledger."""

import errno
import random
from functools import cache

import pytest

from jqd.errors import Corruption, DiskFull, WriteFailed
from jqd.storage.record import FRAME_CRC_BYTES, HEADER_BYTES
from jqd.storage.segment import segment_number
from tests.storage.logs import DATA, Ledger, load, opened, records, segment, write
from tests.support.faultfs import (
    DROP,
    EFFECTS,
    KEEP,
    Crash,
    FaultDisk,
    SyncFailure,
    crash_at,
    fail_at,
    tear,
)

SEGMENT_BYTES = 350


def live(disk: FaultDisk, ledger: Ledger) -> None:
    """A life with everything in it: creation, rotation, seals, clean and unclean restarts."""
    store = ledger.recover(disk, segment_bytes=SEGMENT_BYTES)
    for size in (1, 2, 1):
        ledger.append(store, size)
        ledger.sync(store)
    store.seal()
    ledger.append(store, 1)
    ledger.append(store, 1, payload_bytes=700)
    ledger.append(store, 1)  # rotates over records that were not synced yet
    ledger.sync(store)
    ledger.append(store, 2)
    ledger.snap(store)
    ledger.append(store, 2)
    store.close()
    ledger.acknowledged = len(ledger.appended)

    store = ledger.recover(disk, segment_bytes=SEGMENT_BYTES)
    ledger.append(store, 1)
    ledger.sync(store)
    ledger.snap(store)  # from now on the beginning of the log is not needed
    ledger.append(store, 2)
    disk.kill()

    # The killed process left a half-written frame in the page cache.
    last = segment(newest_segment(disk))
    handle = disk.open(last)
    disk.write(handle, b"\xa7jqd, and no more")
    disk.kill()
    store = ledger.recover(disk, segment_bytes=SEGMENT_BYTES)
    store.close()
    store = ledger.recover(disk, segment_bytes=SEGMENT_BYTES)
    ledger.append(store, 3)
    ledger.sync(store)
    ledger.snap(store)  # and the oldest snapshot goes
    ledger.append(store, 1)
    store.close()
    ledger.acknowledged = len(ledger.appended)


def newest_segment(disk: FaultDisk) -> int:
    return max(number for name in disk.listing(DATA) if (number := segment_number(name)) is not None)


# What was proved once needs no second proof: many crashes and fates leave the same bytes and the same promises.
proved: set[int] = set()


def prove(disk: FaultDisk, ledger: Ledger, *, lives: int = 1) -> None:
    """Recover, go on working, and recover again; then lose power and begin another such life."""
    state = hash((disk.state(), tuple(ledger.appended), ledger.acknowledged, lives))
    if state in proved:
        return
    work_on(disk, ledger)
    for _ in range(1, lives):
        disk.power_loss(DROP)
        work_on(disk, ledger)
    proved.add(state)


def work_on(disk: FaultDisk, ledger: Ledger) -> None:
    store = ledger.recover(disk, segment_bytes=SEGMENT_BYTES)
    # What a recovery yielded has been seen: it must survive a power loss at once.
    disk.power_loss(DROP)
    store = ledger.recover(disk, segment_bytes=SEGMENT_BYTES)
    ledger.append(store, 2)
    ledger.sync(store)
    disk.power_loss(DROP)
    store = ledger.recover(disk, segment_bytes=SEGMENT_BYTES)
    ledger.append(store, 1)
    store.close()
    ledger.acknowledged = len(ledger.appended)
    store = ledger.recover(disk, segment_bytes=SEGMENT_BYTES)
    assert store.recovery.clean
    ledger.snap(store)
    disk.kill()
    ledger.recover(disk, segment_bytes=SEGMENT_BYTES)
    disk.kill()


def copy_of(ledger: Ledger) -> Ledger:
    twin = Ledger()
    twin.appended, twin.acknowledged = list(ledger.appended), ledger.acknowledged
    return twin


@cache
def effect_count() -> int:
    disk = FaultDisk()
    live(disk, Ledger())
    return sum(name in EFFECTS for name, _ in disk.calls)


def crashed(number: int) -> tuple[FaultDisk, Ledger]:
    """Return disk and ledger as a crash before the `number`th effect leaves them."""
    disk, ledger = FaultDisk(), Ledger()
    crash_at(disk, number)
    with pytest.raises(Crash):
        live(disk, ledger)
    return disk, ledger


def test_life_has_enough_in_it():
    disk, ledger = FaultDisk(), Ledger()
    live(disk, ledger)
    assert effect_count() > 100
    assert len(disk.listing(DATA)) > 6
    assert disk.listing(f"{DATA}/quarantine")


@pytest.mark.parametrize("part", range(4))
def test_crash_before_every_effect(part):
    for number in range(1 + part, effect_count() + 1, 4):
        disk, ledger = crashed(number)
        for fate in (None, DROP, KEEP, *(tear(random.Random(seed)) for seed in range(6))):
            twin = disk.clone()
            if fate is None:
                twin.kill()
            else:
                twin.power_loss(fate)
            prove(twin, copy_of(ledger))


@pytest.mark.parametrize("part", range(4))
def test_second_crash_before_every_effect_of_the_recovery(part):
    rng = random.Random(part)
    for number in range(1 + part, effect_count() + 1, 4):
        disk, ledger = crashed(number)
        if rng.random() < 0.5:
            disk.power_loss(tear(rng))
        else:
            disk.kill()
        again = 0
        while True:
            again += 1
            twin, twin_ledger = disk.clone(), copy_of(ledger)
            crash_at(twin, again)
            try:
                twin_ledger.recover(twin, segment_bytes=SEGMENT_BYTES)
            except Crash:
                # What the recovery yielded before the crash, nobody has seen.
                fate = rng.choice((DROP, KEEP, tear(rng)))
                twin.power_loss(fate)
                prove(twin, copy_of(ledger))
            else:
                break


FAULTS = [(errno.EIO, policy) for policy in SyncFailure] + [(errno.ENOSPC, SyncFailure.REPORTED_ONCE)]


@pytest.mark.parametrize(("code", "policy"), FAULTS)
def test_failure_of_every_call_is_final_and_loses_nothing(code, policy):
    expected = DiskFull if code == errno.ENOSPC else WriteFailed
    number = 0
    while True:
        number += 1
        disk, ledger = FaultDisk(), Ledger()
        disk.sync_failure = policy
        fail_at(disk, number, code, EFFECTS | {"open", "list_directory"})
        try:
            live(disk, ledger)
        except OSError:
            continue  # the script's own write failed
        except expected:
            pass
        else:
            break
        # Three ends: the daemon starts again at once, the machine loses power, or both in this order.
        for losses in range(3):
            twin, twin_ledger = disk.clone(), copy_of(ledger)
            twin.kill()
            if losses == 1:
                twin.power_loss(DROP)
            prove(twin, twin_ledger, lives=2 if losses == 2 else 1)
    assert number > effect_count()


def test_failed_call_is_followed_by_no_success():
    # An acknowledgement after the failure would show as a sync that returns.
    for number in range(1, 12):
        disk = FaultDisk()
        store = opened(disk, segment_bytes=SEGMENT_BYTES)
        store.append(records(1))
        store.sync()
        fail_at(disk, number, errno.EIO)
        failures = 0
        lsn = 2
        for _ in range(8):
            try:
                store.append(records(1, lsn, 200))
                store.sync()
                assert failures == 0
                lsn += 1
            except WriteFailed:
                failures += 1
        assert failures > 0


def test_short_writes_at_every_call_give_the_same_files():
    contents = []
    for short in (False, True):
        disk = FaultDisk()
        disk.short_writes = short
        disk.random_bytes = lambda count: bytes(range(count))  # type: ignore[method-assign]
        ledger = Ledger()
        live_without_torn_tail(disk, ledger)
        contents.append(disk.listing(DATA))
    assert contents[0] == contents[1]
    assert len(contents[0]) > 5


def live_without_torn_tail(disk: FaultDisk, ledger: Ledger) -> None:
    for _ in range(2):
        store = ledger.recover(disk, segment_bytes=SEGMENT_BYTES)
        ledger.append(store, 5, payload_bytes=300)
        ledger.sync(store)
        ledger.append(store, 5)
        store.close()
        disk.kill()


@pytest.mark.parametrize("sealed", [True, False])
def test_every_length_of_an_unclean_log_recovers_to_its_whole_records(sealed):
    disk = FaultDisk()
    store = write(disk, records(4))
    if sealed:
        store.seal()
    disk.kill()
    data = disk.content(segment(1))
    head = HEADER_BYTES + FRAME_CRC_BYTES
    ends = [head + (index + 1) * (head + 20) for index in range(4)]
    for length in range(len(data) + 1):
        twin = disk.clone()
        twin.overwrite(segment(1), data[:length])
        if length < head:
            with pytest.raises(Corruption):
                load(twin)
            continue
        whole = sum(end <= length for end in ends)
        found, report = load(twin)
        assert found == records(4)[:whole]
        at_frame_end = length in (head, len(data), *ends)
        assert (report.torn_bytes == 0) == at_frame_end
        if report.quarantined:
            assert twin.content(report.quarantined) == data[length - report.torn_bytes : length]


@pytest.mark.parametrize("fill", ["zeros", "garbage", "ones"])
def test_torn_last_frames_recover_at_every_sector_edge(fill):
    """Each unsynced frame torn at every 512-byte edge, the rest filled as disks fill it."""
    disk = FaultDisk()
    store = write(disk, records(2))
    durable = len(disk.content(segment(1)))
    store.append(records(3, 4, payload_bytes=1500))
    disk.kill()
    data = disk.content(segment(1))
    rng = random.Random(1)
    for edge in range(durable // 512 * 512 + 512, len(data), 512):
        rest = len(data) - edge
        tail = {"zeros": bytes(rest), "garbage": rng.randbytes(rest), "ones": b"\xff" * rest}[fill]
        for sectors in (tail, tail[:512] + data[edge + 512 :]):
            twin = disk.clone()
            twin.overwrite(segment(1), data[:edge] + sectors)
            found, _ = load(twin)
            everything = [*records(2), *records(3, 4, payload_bytes=1500)]
            assert found == everything[: len(found)]
            assert len(found) >= 2


def flips(data: bytes, count: int, seed: int) -> list[tuple[int, bytes]]:
    rng = random.Random(seed)
    bits = range(len(data) * 8) if count >= len(data) * 8 else rng.sample(range(len(data) * 8), count)
    images = []
    for bit in bits:
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        images.append((bit // 8, bytes(damaged)))
    return images


@pytest.mark.parametrize("state", ["closed", "sealed", "unsealed"])
def test_flipped_bit_is_never_silent(state):
    disk = FaultDisk()
    store = write(disk, records(7), segment_bytes=250)
    if state == "sealed":
        store.seal()
    if state == "closed":
        store.close()
    disk.kill()
    assert store.segment_count == 3
    for number in (1, 2, 3):
        for _, damaged in flips(disk.content(segment(number)), 800, number):
            twin = disk.clone()
            twin.overwrite(segment(number), damaged)
            try:
                found, _ = load(twin)
            except Corruption:
                continue
            # Only the last segment of a log that was not stopped cleanly is ever cut.
            assert number == 3 and state != "closed"
            assert found == records(7) or (state == "unsealed" and found == records(6))


def test_flipped_bit_in_the_store_file_is_refused():
    disk = FaultDisk()
    write(disk, records(1)).close()
    for _, damaged in flips(disk.content(f"{DATA}/store"), 512, 1):
        twin = disk.clone()
        twin.overwrite(f"{DATA}/store", damaged)
        with pytest.raises(Corruption):
            load(twin)

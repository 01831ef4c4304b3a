"""Writing and reading one snapshot: what is on the disk is what was written, or it is noticed."""

import errno
import os
import random
import tracemalloc
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jqd.errors import Corruption, WriteFailed
from jqd.storage.directory import Directory, snapshot_lsn, snapshot_name
from jqd.storage.record import PAYLOAD_BYTES_MAX, FrameType, encode_frame
from jqd.storage.snapshot import Base, Damaged, Snapshot, SnapshotWriter, read_base, read_parts, verify
from tests.storage.logs import DATA, cut_frames, frames
from tests.support.faultfs import DROP, EFFECTS, KEEP, Crash, FaultDisk, crash_at, fail_at, tear

STORE_ID = bytes(range(16))
OTHER_ID = bytes(range(1, 17))
BASE = Base(lsn=40, segment_no=3, crc=0xDEADBEEF)
NAME = "0000000000000028.snap"
PATH = f"{DATA}/{NAME}"
LOCK = f"{DATA}/lock"
PARTS = [(1, b""), (2, b"two images"), (700, bytes(range(100)))]
MIB = 1 << 20


def begin(disk: FaultDisk, base: Base = BASE, store_id: bytes = STORE_ID) -> SnapshotWriter:
    return SnapshotWriter(disk, Directory(disk, DATA), store_id, base)


def written(parts=PARTS, base: Base = BASE, store_id: bytes = STORE_ID) -> FaultDisk:
    """Return a disk with one snapshot on it."""
    disk = FaultDisk()
    writer = begin(disk, base, store_id)
    for part in parts:
        writer.write(*part)
    writer.finish()
    disk.kill()
    return disk


def holding(data: bytes) -> FaultDisk:
    disk = FaultDisk()
    disk.make_directory(DATA)
    disk.overwrite(PATH, data)
    return disk


def check(disk: FaultDisk) -> Snapshot | Damaged:
    found = verify(disk, PATH, STORE_ID, BASE.lsn)
    assert disk.open_paths == []
    return found


def check_bytes(data: bytes) -> Snapshot | Damaged:
    return check(holding(data))


DATA_OF_ONE = written().content(PATH)
FRAMES = cut_frames(DATA_OF_ONE)  # head, three parts, end
WHOLE = Snapshot(BASE, len(PARTS), len(DATA_OF_ONE))


# --- writing ----------------------------------------------------------------------------------


def test_names_sort_like_lsns_and_nothing_else_is_a_name():
    assert snapshot_name(BASE.lsn) == NAME
    assert snapshot_lsn(NAME) == BASE.lsn
    lsns = [0, 9, 10, 255, 256, 2**63]
    assert sorted(map(snapshot_name, lsns)) == list(map(snapshot_name, lsns))
    for name in ("28.snap", NAME + ".tmp", NAME.upper(), "0000000000000028.wal", "x" + NAME, NAME + "\n"):
        assert snapshot_lsn(name) is None


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 2**32 - 1), st.binary(max_size=300)), max_size=6),
    st.builds(Base, st.integers(0, 2**63), st.integers(1, 2**63), st.integers(0, 2**32 - 1)),
)
def test_parts_come_back(parts, base):
    disk = FaultDisk()
    writer = begin(disk, base)
    for part in parts:
        writer.write(*part)
    said = writer.finish()
    path = f"{DATA}/{snapshot_name(base.lsn)}"
    assert (
        said == Snapshot(base, len(parts), len(disk.content(path))) == (base, len(parts), writer.size_bytes)
    )
    assert verify(disk, path, STORE_ID, base.lsn) == said
    assert read_base(disk, path, STORE_ID, base.lsn).base == base
    assert list(read_parts(disk, path, STORE_ID, base.lsn)) == [payload for _, payload in parts]
    assert disk.open_paths == [LOCK]


def test_frames_say_what_the_header_of_the_module_says():
    found = [header for _, header in frames(DATA_OF_ONE)]
    assert [header.type for header in found] == [4, 5, 5, 5, 6]
    assert [header.change_count for header in found] == [0, 1, 2, 700, 0]
    assert {(header.lsn, header.durable_lsn, header.segment_no) for header in found} == {(41, 40, 3)}
    assert found[0].prev_crc == BASE.crc


def test_it_has_its_name_only_when_it_was_synced_and_read_again():
    disk = FaultDisk()
    writer = begin(disk)
    disk.sync_directory("/")
    writer.write(*PARTS[1])
    before = len(disk.calls)
    assert NAME not in disk.listing(DATA)
    writer.finish()
    calls = disk.calls[before:]
    assert [name for name, _ in calls if name != "read"] == [
        "write",
        "sync",
        "open",
        "rename",
        "sync_directory",
    ]
    read = {path for name, path in calls if name in ("sync", "open", "read")}
    assert read == {PATH + ".tmp"}
    disk.power_loss(DROP)
    assert check(disk) == Snapshot(BASE, 1, 214)


def test_short_writes_give_the_same_bytes():
    disk = FaultDisk()
    disk.short_writes = True
    writer = begin(disk)
    for part in PARTS:
        writer.write(*part)
    writer.finish()
    assert disk.content(PATH) == DATA_OF_ONE


def write_all_of(disk: FaultDisk) -> Snapshot:
    """Write a snapshot as its thread does: whatever fails, it is aborted."""
    writer = begin(disk)
    try:
        for part in PARTS:
            writer.write(*part)
        return writer.finish()
    except (OSError, WriteFailed):
        writer.abort()
        raise


def test_crash_before_every_effect_leaves_a_whole_one_or_none():
    outcomes = set()
    for seed in range(30):
        number = 0
        while True:
            number += 1
            disk = FaultDisk(seed)
            crash_at(disk, number)
            try:
                write_all_of(disk)
            except Crash:
                disk.power_loss((DROP, KEEP, tear(random.Random(seed)))[seed % 3])
                there = "data" in disk.root.cache and NAME in disk.listing(DATA)
                outcomes.add(there)
                assert not there or check(disk) == WHOLE
            else:
                break
        assert number > 10
    assert outcomes == {True, False}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_failure_of_every_call_is_told_and_leaves_nothing(code):
    number, failures = 0, 0
    while True:
        number += 1
        disk = FaultDisk()
        directory = Directory(disk, DATA)
        fail_at(disk, number, code, EFFECTS | {"open", "read"})
        writer = None
        try:
            writer = SnapshotWriter(disk, directory, STORE_ID, BASE)
            for part in PARTS:
                writer.write(*part)
            writer.finish()
        except (OSError, WriteFailed) as error:
            # Bytes that cannot be read again are not what was written: that is another error.
            assert isinstance(error, WriteFailed) or error.errno == code
            failures += 1
            if writer is not None:
                writer.abort()
        else:
            break
        last_call = disk.calls[-1 if writer is None else -2][0]
        assert disk.open_paths == [LOCK]
        # One whose name alone could not be made durable is whole, and nobody relies on it.
        left = {"lock", NAME} if last_call == "sync_directory" else {"lock"}
        assert set(disk.listing(DATA)) == left, (number, last_call)
        directory.unlock()
        assert write_all_of(disk) == WHOLE, "the next one is not in the way of the last"
    # create, five frames, sync, open, two reads, rename, sync_directory
    assert failures == 12


def test_what_reads_otherwise_than_it_was_written_gets_no_name():
    disk = FaultDisk()

    def rot(name: str, path: str) -> None:
        if name == "open":
            disk.file(path).cache[200] ^= 1

    writer = begin(disk)
    writer.write(*PARTS[2])
    disk.on_call = rot
    with pytest.raises(WriteFailed, match=rf"{NAME}\.tmp: .* byte 68: the frame is unfinished"):
        writer.finish()
    assert NAME not in disk.listing(DATA)
    writer.abort()
    assert set(disk.listing(DATA)) == {"lock"}
    assert disk.open_paths == [LOCK]


def test_abort_under_way_leaves_nothing():
    disk = FaultDisk()
    writer = begin(disk)
    writer.write(*PARTS[1])
    writer.abort()
    assert set(disk.listing(DATA)) == {"lock"}
    assert disk.open_paths == [LOCK]


def test_abort_after_the_end_takes_nothing_away():
    disk = FaultDisk()
    writer = begin(disk)
    writer.finish()
    writer.abort()
    assert NAME in disk.listing(DATA)


def test_part_without_images_or_too_large_is_a_mistake_of_the_caller():
    writer = begin(FaultDisk())
    with pytest.raises(AssertionError):
        writer.write(0, b"")
    with pytest.raises(AssertionError):
        writer.write(1, bytes(PAYLOAD_BYTES_MAX + 1))


# --- damage -----------------------------------------------------------------------------------


def test_every_flipped_bit_is_noticed():
    disk = holding(DATA_OF_ONE)
    cache = disk.file(PATH).cache
    starts = [offset for offset, _ in frames(DATA_OF_ONE)]
    for bit in range(len(DATA_OF_ONE) * 8):
        at = bit // 8
        cache[at] ^= 1 << bit % 8
        found = check(disk)
        assert isinstance(found, Damaged), bit
        assert found.offset == max(start for start in starts if start <= at)
        head = read_base(disk, PATH, STORE_ID, BASE.lsn)
        if at < starts[1]:
            assert head == found
        else:
            assert head.base == BASE
        cache[at] ^= 1 << bit % 8
    assert check(disk) == WHOLE


def test_every_length_but_the_whole_one_is_noticed():
    for length in range(len(DATA_OF_ONE)):
        found = check_bytes(DATA_OF_ONE[:length])
        assert isinstance(found, Damaged), length
        assert found.offset <= length
    assert check_bytes(DATA_OF_ONE) == WHOLE


@pytest.mark.parametrize("behind", [b"\0", b"junk", FRAMES[-1], FRAMES[1], DATA_OF_ONE], ids=len)
def test_something_behind_the_end_is_noticed(behind):
    found = check_bytes(DATA_OF_ONE + behind)
    assert found == Damaged(40, PATH, len(DATA_OF_ONE), "something stands behind the end")


def orders() -> dict[str, list[bytes]]:
    """Frames in every wrong order: one removed, one repeated, two swapped, one moved."""
    made = {}
    for one in range(len(FRAMES)):
        made[f"without {one}"] = FRAMES[:one] + FRAMES[one + 1 :]
        made[f"{one} twice"] = FRAMES[: one + 1] + FRAMES[one:]
        for other in range(one):
            swapped = list(FRAMES)
            swapped[one], swapped[other] = swapped[other], swapped[one]
            made[f"{one} and {other} swapped"] = swapped
            made[f"{one} before {other}"] = [
                *FRAMES[:other],
                FRAMES[one],
                *FRAMES[other:one],
                *FRAMES[one + 1 :],
            ]
    return made


@pytest.mark.parametrize("order", orders())
def test_frames_out_of_order_are_noticed(order):
    assert isinstance(check_bytes(b"".join(orders()[order])), Damaged)


def test_parts_that_are_alike_cannot_take_each_other_s_place():
    head, one, other, end = cut_frames(written([(1, b"same"), (1, b"same")]).content(PATH))
    for parts in ([one], [other], [one, one], [other, other], [other, one], [one, other, one]):
        assert isinstance(check_bytes(b"".join([head, *parts, end])), Damaged)
    assert check_bytes(head + one + other + end).parts == 2


@pytest.mark.parametrize(
    ("reason", "other"),
    [
        ("a frame of another store stands here", {"store_id": OTHER_ID}),
        ("a frame of the snapshot of LSN 41 stands here", {"base": BASE._replace(lsn=41)}),
        ("a frame of the snapshot of LSN 39 stands here", {"base": BASE._replace(lsn=39)}),
    ],
)
def test_snapshot_of_another_store_or_lsn_is_noticed_by_its_first_frame(reason, other):
    foreign = written(**other)
    (name,) = set(foreign.listing(DATA)) - {"lock"}
    found = check_bytes(foreign.content(f"{DATA}/{name}"))
    assert found == Damaged(40, PATH, 0, reason)
    assert read_base(holding(foreign.content(f"{DATA}/{name}")), PATH, STORE_ID, 40) == found


@pytest.mark.parametrize(
    "other",
    [
        {"store_id": OTHER_ID},
        {"base": BASE._replace(lsn=41)},
        {"base": BASE._replace(segment_no=4)},
        {"base": BASE._replace(crc=1)},
        {"parts": [(2, b""), *PARTS[1:]]},
    ],
    ids=["store", "lsn", "segment", "crc", "parts"],
)
def test_frames_of_another_snapshot_are_noticed_in_every_place(other):
    foreign = written(**other)
    (name,) = set(foreign.listing(DATA)) - {"lock"}
    theirs = cut_frames(foreign.content(f"{DATA}/{name}"))
    for place in range(len(FRAMES)):
        for image in (FRAMES[:place] + theirs[place:], theirs[:place] + FRAMES[place:]):
            mixed = b"".join(image)
            if mixed not in (DATA_OF_ONE, b"".join(theirs)):
                assert isinstance(check_bytes(mixed), Damaged), place


def forged(kind: int, count: int, payload: bytes, *, lsn: int = 41, durable: int = 40, at: int = 1) -> bytes:
    """Put a frame with right checksums and links in a snapshot, before the frame `at`."""
    prev_crc = int.from_bytes(FRAMES[at - 1][-4:], "little") if at else BASE.crc
    frame, _ = encode_frame(kind, STORE_ID, BASE.segment_no, lsn, durable, count, prev_crc, payload)
    return b"".join(FRAMES[:at]) + frame


@pytest.mark.parametrize(
    ("at", "kind", "count", "payload", "reason"),
    [
        (0, FrameType.SNAPSHOT_PART, 1, b"part", "the head of a snapshot is missing"),
        (0, FrameType.HEAD, 0, b"", "the head of a snapshot is missing"),
        (0, FrameType.SNAPSHOT_HEAD, 0, b"payload", "a count of 0 in a frame of type 4"),
        (0, FrameType.SNAPSHOT_HEAD, 1, b"", "a count of 1 in a frame of type 4"),
        (1, FrameType.SNAPSHOT_HEAD, 0, b"", "a frame of type 4 stands here"),
        (1, FrameType.BATCH, 1, b"batch", "a frame of type 2 stands here"),
        (1, FrameType.SEAL, 0, b"", "a frame of type 3 stands here"),
        (1, FrameType.SNAPSHOT_PART, 0, b"part", "a count of 0 in a frame of type 5"),
        (1, FrameType.SNAPSHOT_END, 1, b"", "a count of 1 in a frame of type 6"),
        (1, FrameType.SNAPSHOT_END, 0, b"payload", "a count of 0 in a frame of type 6"),
        (1, 7, 1, b"", "format 1, frame type 7"),
    ],
)
def test_frame_that_does_not_belong_is_named(at, kind, count, payload, reason):
    assert check_bytes(forged(kind, count, payload, at=at)) == Damaged(40, PATH, at * len(FRAMES[0]), reason)


@pytest.mark.parametrize(("lsn", "durable"), [(41, 39), (42, 40), (40, 39), (0, 40)])
def test_part_of_another_lsn_is_named(lsn, durable):
    found = check_bytes(forged(FrameType.SNAPSHOT_PART, 1, b"", lsn=lsn, durable=durable))
    assert found == Damaged(40, PATH, 68, f"a frame of the snapshot of LSN {durable} stands here")


def test_file_that_says_nothing_is_named():
    assert check_bytes(b"") == Damaged(40, PATH, 0, "the file ends here, without its end")
    assert check_bytes(FRAMES[0]) == Damaged(40, PATH, 68, "the file ends here, without its end")
    assert check_bytes(bytes(500)) == Damaged(40, PATH, 0, "no frame begins here")
    assert check_bytes(FRAMES[0] + FRAMES[2][:70]).reason.startswith("the frame before is not")
    assert check_bytes(FRAMES[0] + FRAMES[1][:-1]).reason.startswith("the frame is unfinished")


# --- reading ----------------------------------------------------------------------------------


class CountedDisk(FaultDisk):
    """Notes the size of each read, and gives back at most `read_bytes` at a time."""

    read_bytes = PAYLOAD_BYTES_MAX

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []
        self.given = 0

    def read(self, handle: int, offset: int, count: int) -> bytes:
        self.asked.append(count)
        data = super().read(handle, offset, min(count, self.read_bytes))
        self.given += len(data)
        return data


@pytest.mark.parametrize("read_bytes", [1, 7, 64, 68, 79, len(DATA_OF_ONE), len(DATA_OF_ONE) - 1])
def test_short_reads_change_nothing(read_bytes):
    disk = CountedDisk()
    disk.read_bytes = read_bytes
    disk.make_directory(DATA)
    disk.overwrite(PATH, DATA_OF_ONE)
    assert check(disk) == WHOLE
    assert list(read_parts(disk, PATH, STORE_ID, 40)) == [payload for _, payload in PARTS]
    # Where the buffer ends with the file's last frame, what is behind it is looked for all the same.
    disk.overwrite(PATH, DATA_OF_ONE + b"x")
    assert check(disk).reason == "something stands behind the end"


def test_a_large_snapshot_takes_the_memory_of_one_read():
    payload = random.Random(1).randbytes(64 * 1024)
    disk = CountedDisk()
    writer = begin(disk)
    for _ in range(24 * MIB // len(payload)):
        writer.write(1, payload)
    writer.finish()
    tracemalloc.start()
    try:
        verify(disk, PATH, STORE_ID, 40)
        sum(map(len, read_parts(disk, PATH, STORE_ID, 40)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert max(disk.asked) == MIB
    assert disk.given == 3 * writer.size_bytes, "each way reads each byte once"
    assert peak < 6 * MIB


def test_a_large_frame_is_read_whole_and_no_more():
    disk = CountedDisk()
    writer = begin(disk)
    writer.write(1, bytes(5 * MIB))
    writer.write(1, b"behind it")
    writer.finish()
    assert max(disk.asked) < 5 * MIB
    assert disk.given == writer.size_bytes
    assert [len(part) for part in read_parts(disk, PATH, STORE_ID, 40)] == [5 * MIB, 9]


def test_a_length_is_not_believed_before_it_is_within_the_limit():
    disk = CountedDisk()
    disk.make_directory(DATA)
    disk.overwrite(PATH, forged(FrameType.SNAPSHOT_PART, 1, bytes(PAYLOAD_BYTES_MAX + 1)))
    assert "over the limit" in check(disk).reason
    assert disk.asked == [MIB]


def test_the_head_alone_is_one_read():
    disk = CountedDisk()
    disk.make_directory(DATA)
    disk.overwrite(PATH, DATA_OF_ONE + b"junk")
    assert read_base(disk, PATH, STORE_ID, 40) == Snapshot(BASE, 0, 0)
    assert len(disk.asked) == 1


@pytest.mark.parametrize("number", [1, 2])
def test_bytes_that_cannot_be_read_are_damage(number):
    disk = holding(DATA_OF_ONE)
    fail_at(disk, number, errno.EIO, frozenset({"read"}))
    found = check(disk)
    assert found == Damaged(
        40, PATH, (number - 1) * len(DATA_OF_ONE), f"it cannot be read: {os.strerror(errno.EIO)}"
    )
    fail_at(disk, 1, errno.EIO, frozenset({"read"}))
    assert read_base(disk, PATH, STORE_ID, 40).reason == found.reason
    assert disk.open_paths == []


def test_file_that_cannot_be_opened_is_no_damage_but_an_error():
    disk = holding(DATA_OF_ONE)
    for reader in (verify, read_base, lambda *args: list(read_parts(*args))):
        fail_at(disk, 1, errno.EMFILE, frozenset({"open"}))
        with pytest.raises(OSError, match=PATH):
            reader(disk, PATH, STORE_ID, 40)
    assert disk.open_paths == []


def test_snapshot_that_rots_between_two_ways_is_refused():
    disk = holding(DATA_OF_ONE)
    assert check(disk) == WHOLE
    parts = read_parts(disk, PATH, STORE_ID, 40)
    fail_at(disk, 2, errno.EIO, frozenset({"read"}))
    with pytest.raises(Corruption, match=rf"{PATH}: byte {len(DATA_OF_ONE)}: it cannot be read") as refusal:
        list(parts)
    assert (refusal.value.file, refusal.value.offset) == (PATH, len(DATA_OF_ONE))
    assert disk.open_paths == []
    disk.overwrite(PATH, DATA_OF_ONE[:-1])
    with pytest.raises(Corruption, match="the frame is unfinished"):
        list(read_parts(disk, PATH, STORE_ID, 40))


def test_reader_that_is_left_early_gives_its_handle_back():
    disk = holding(DATA_OF_ONE)
    with closing(read_parts(disk, PATH, STORE_ID, 40)) as parts:  # type: ignore[type-var]
        next(parts)
        assert disk.open_paths == [PATH]
    assert disk.open_paths == []

"""Reading and writing one segment."""

import pytest

from jqd.storage.base import Record
from jqd.storage.record import PAYLOAD_BYTES_MAX, Chain, FrameType, encode_frame
from jqd.storage.segment import (
    End,
    SegmentReader,
    SegmentWriter,
    Verdict,
    segment_name,
    segment_number,
    write_all,
)
from tests.storage.logs import cut_frames, frames, records
from tests.support.faultfs import FaultDisk

STORE_ID = bytes(range(16))
OTHER_ID = bytes(range(1, 17))


class Log:
    """A segment under construction, frame by frame."""

    def __init__(self, store_id: bytes = STORE_ID, segment_no: int = 1) -> None:
        self.disk = FaultDisk()
        self.disk.make_directory("/data")
        self.chain = Chain()
        self.writer = SegmentWriter(self.disk, self.disk.create("/data/s"), store_id, segment_no, self.chain)

    def batch(self, *, synced: bool) -> "Log":
        self.writer.append(records(1, self.chain.last_lsn + 1))
        if synced:
            self.chain.durable_lsn = self.chain.last_lsn
        return self

    def seal(self) -> "Log":
        self.writer.seal()
        return self

    @property
    def data(self) -> bytes:
        return self.disk.content("/data/s")


def read(data: bytes, store_id: bytes = STORE_ID, segment_no: int = 1) -> tuple[list[Record], End]:
    reader = SegmentReader(data, store_id, segment_no, Chain())
    found = list(reader.records())
    assert reader.end is not None
    assert reader.batch_count == len(found)
    return found, reader.end


def damaged(data: bytes, frame: int) -> bytes:
    """Flip a bit in the payload or, where there is none, the header of a frame."""
    offset, header = frames(data)[frame]
    at = offset + (70 if header.payload_bytes else 20)
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


def test_names_sort_like_numbers():
    numbers = [1, 9, 10, 255, 256, 2**40]
    names = [segment_name(number) for number in numbers]
    assert names == sorted(names)
    assert [segment_number(name) for name in names] == numbers


@pytest.mark.parametrize("name", ["store", "1.wal", segment_name(1) + ".tmp", segment_name(171).upper(), ""])
def test_other_names_are_no_segments(name):
    assert segment_number(name) is None


def test_records_come_back_in_order():
    log = Log()
    for _ in range(5):
        log.batch(synced=True).seal()
    found, end = read(log.data)
    assert [record.first_lsn for record in found] == [1, 2, 3, 4, 5]
    assert end == End(Verdict.WHOLE, len(log.data))


def test_records_of_one_append_are_one_write():
    log = Log()
    before = len(log.disk.calls)
    log.writer.append(records(4))
    assert [name for name, _ in log.disk.calls[before:]] == ["write"]
    assert read(log.data)[0] == records(4)


def test_short_writes_give_the_same_bytes():
    whole, short = Log(), Log()
    short.disk.short_writes = True
    for log in (whole, short):
        log.writer.append(records(3, payload_bytes=300))
        log.writer.seal()
    assert short.data == whole.data
    assert short.writer.size_bytes == len(whole.data)


def test_write_all_asks_until_all_is_taken():
    taken = []

    class Slow(FaultDisk):
        def write(self, handle, data):
            taken.append(bytes(data[:3]))
            return len(taken[-1])

    write_all(Slow(), 1, b"0123456789")
    assert b"".join(taken) == b"0123456789"


@pytest.mark.parametrize(
    "bad",
    [
        Record(2, 1, b""),  # a hole
        Record(0, 1, b""),  # a repeat
        Record(1, 0, b""),
        Record(1, 2**32, b""),
        Record(1, 1, bytes(PAYLOAD_BYTES_MAX + 1)),
    ],
    ids=["hole", "repeat", "no change", "too many changes", "too large"],
)
def test_record_that_does_not_continue_the_log_is_not_written(bad):
    log = Log()
    before = log.data
    with pytest.raises(AssertionError):
        log.writer.append([bad])
    assert log.data == before


def test_bad_frame_with_nothing_behind_it_is_a_torn_tail():
    log = Log().batch(synced=True).batch(synced=True)
    found, end = read(damaged(log.data, 2))
    assert len(found) == 1
    assert (end.verdict, end.offset) == (Verdict.TORN, frames(log.data)[2][0])


def test_bad_frame_under_a_durable_mark_is_damage():
    log = Log().batch(synced=True).batch(synced=True).batch(synced=False)
    found, end = read(damaged(log.data, 2))
    assert len(found) == 1
    assert (end.verdict, end.lost_to_lsn) == (Verdict.DAMAGED, 2)


def test_bad_frame_under_a_seal_is_damage():
    log = Log().batch(synced=True).seal()
    assert read(damaged(log.data, 1))[1].verdict is Verdict.DAMAGED


def test_bad_frame_before_unsynced_ones_is_a_torn_tail():
    log = Log().batch(synced=True).batch(synced=False).batch(synced=False).batch(synced=False)
    found, end = read(damaged(log.data, 2))
    assert len(found) == 1
    assert end.verdict is Verdict.TORN


def test_bad_seal_before_a_batch_is_damage():
    # The seal carries no LSN that the batch's durable mark could cover, but it was synced before it.
    log = Log().batch(synced=True).seal().batch(synced=True)
    assert read(damaged(log.data, 2))[1].verdict is Verdict.DAMAGED


def test_bad_seal_at_the_end_is_a_torn_tail():
    log = Log().batch(synced=True).seal()
    found, end = read(damaged(log.data, 2))
    assert len(found) == 1
    assert end.verdict is Verdict.TORN


def test_bad_head_is_damage():
    log = Log()
    assert read(damaged(log.data, 0))[1] == End(Verdict.DAMAGED, 0, "no frame begins here")
    assert read(b"")[1] == End(Verdict.DAMAGED, 0, "the file is empty")


@pytest.mark.parametrize("fill", [bytes(700), b"\xff" * 700, b"\xa7jqd" * 200, STORE_ID * 50])
def test_fill_behind_the_good_frames_is_a_torn_tail(fill):
    log = Log().batch(synced=True)
    found, end = read(log.data + fill)
    assert len(found) == 1
    assert (end.verdict, end.offset) == (Verdict.TORN, len(log.data))


def test_durable_mark_is_found_behind_any_garbage():
    log = Log().batch(synced=True).batch(synced=True).seal()
    *good, bad, seal = cut_frames(log.data)
    for garbage in (b"", bytes(999), STORE_ID * 3, bad[:-1]):
        assert read(b"".join(good) + b"x" + garbage + seal)[1].verdict is Verdict.DAMAGED


def test_payload_cannot_fake_a_durable_mark_without_the_store_id():
    fake, _ = encode_frame(FrameType.SEAL, OTHER_ID, 1, 1000, 999, 0, 0, b"")
    log = Log().batch(synced=True)
    log.writer.append([Record(2, 1, fake)])
    assert read(damaged(log.data, 2))[1].verdict is Verdict.TORN


def test_frame_of_another_store_is_misplaced():
    log = Log(OTHER_ID).batch(synced=True)
    found, end = read(log.data)
    assert (found, end.verdict, end.offset) == ([], Verdict.MISPLACED, 0)


def test_frame_of_another_segment_is_misplaced():
    assert read(Log(segment_no=2).data)[1].verdict is Verdict.MISPLACED


@pytest.mark.parametrize("synced", [True, False])
def test_repeated_removed_and_swapped_frames_are_never_accepted(synced):
    log = Log()
    for _ in range(4):
        log.batch(synced=synced)
    head, *batches = cut_frames(log.data)
    for first in range(4):
        repeated = [*batches[: first + 1], *batches[first:]]
        assert read(head + b"".join(repeated))[1].verdict is Verdict.MISPLACED
        removed = batches[:first] + batches[first + 1 :]
        if first < 3:
            assert read(head + b"".join(removed))[1].verdict is Verdict.MISPLACED
        for second in range(first + 1, 4):
            swapped = list(batches)
            swapped[first], swapped[second] = swapped[second], swapped[first]
            assert read(head + b"".join(swapped))[1].verdict is Verdict.MISPLACED


def newer(log: Log, field: int, value: int) -> bytes:
    """Return a frame that continues the log, but has another value in a byte of its header."""
    from crc32c import crc32c

    data, _ = encode_frame(
        FrameType.SEAL,
        STORE_ID,
        1,
        log.chain.last_lsn + 1,
        log.chain.durable_lsn,
        0,
        log.chain.crc,
        b"",
    )
    fields = bytearray(data[:60])
    fields[field] = value
    return bytes(fields) + crc32c(bytes(fields)).to_bytes(4, "little") + bytes(40)


@pytest.mark.parametrize(("field", "value"), [(4, 2), (5, 9), (6, 1)])
def test_newer_frame_is_unsupported(field, value):
    log = Log().batch(synced=True)
    _, end = read(log.data + newer(log, field, value))
    assert (end.verdict, end.offset) == (Verdict.UNSUPPORTED, len(log.data))


def test_newer_frame_behind_bad_bytes_is_unsupported():
    log = Log().batch(synced=True).batch(synced=True)
    _, end = read(damaged(log.data, 2) + newer(log, 4, 2))
    assert end.verdict is Verdict.UNSUPPORTED

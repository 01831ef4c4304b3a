"""One segment of the log: its name, writing it, reading it, and telling a torn tail from damage.

Knows:         one file and its frames.
Must not know: the other segments, what is done about a verdict, locks, recovery.

A segment is a head followed by batches and seals. It gets its name when its head is durable, it is
only ever appended to, and only by the process that created it.

What a reader says about the first bytes that are no good frame in their place (`Verdict`):

    at that offset there is                                             verdict
    nothing: the file ends                                              whole
    a header of another store, or one that does not continue the chain  misplaced
    a header with a newer format or an unknown type                     unsupported
    anything else (zeros, garbage, half a frame), and behind it ...
      a header whose durable_lsn says that the next LSN was once synced damaged
      a batch that continues exactly where the good frames end          damaged
      none of these                                                     torn

The second kind of damage is a lost seal or head: both are synced before anything is appended behind
them, so a batch that follows proves them, although they carry no LSN that a durable mark could cover.

Sources: reliability.md 2.1; etcd wal/decoder.go isTornEntry; LevelDB db/log_reader.cc.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from jqd.storage.base import Record
from jqd.storage.fs import FileSystem
from jqd.storage.record import (
    BATCH,
    CHANGE_COUNT_MAX,
    PAYLOAD_BYTES_MAX,
    Chain,
    FrameType,
    Header,
    decode_header,
    decode_payload,
    encode_frame,
    frame_bytes,
    misplacement,
)

_NAME = re.compile(r"([0-9a-f]{16})\.wal")

_STORE_ID_OFFSET = 8  # in a header


def segment_name(segment_no: int) -> str:
    """Return the name of a segment's file: names sort like numbers."""
    return f"{segment_no:016x}.wal"


def segment_number(name: str) -> int | None:
    """Return the number in a segment's name, or None if the name is none."""
    match = _NAME.fullmatch(name)
    return int(match[1], 16) if match else None


def write_all(fs: FileSystem, handle: int, data: bytes) -> None:
    """Write all of `data`, however many bytes the system takes at a time."""
    written = fs.write(handle, data)
    if written < len(data):
        view = memoryview(data)
        while written < len(data):
            written += fs.write(handle, view[written:])


class Verdict(Enum):
    """How the good frames of a segment end. See the table above."""

    WHOLE = "whole"
    TORN = "torn"
    DAMAGED = "damaged"
    MISPLACED = "misplaced"
    UNSUPPORTED = "unsupported"


@dataclass(frozen=True, slots=True)
class End:
    """Where the good frames of a segment end, and why."""

    verdict: Verdict
    offset: int  # the first byte after the good frames
    reason: str = ""
    lost_to_lsn: int | None = None  # last LSN that is known to be lost, if any is


def headers_behind(data: bytes, store_id: bytes, offset: int) -> Iterator[tuple[int, Header]]:
    """Yield place and header of everything that begins behind `offset` and says it is a frame of this store.

    Lengths cannot be believed any more, so every place is looked at. The secret store id is what
    is searched for: users can put any number of magics into their payloads, but not one of these.
    """
    position = data.find(store_id, offset + 1 + _STORE_ID_OFFSET)
    while position >= 0:
        header = decode_header(data, position - _STORE_ID_OFFSET)
        if header is not None:
            yield position - _STORE_ID_OFFSET, header
        position = data.find(store_id, position + 1)


class SegmentReader:
    """Reads the frames of one segment and moves `chain` over them.

    Args:
        data: the whole file.
        chain: the end of the log before this segment.
    """

    def __init__(self, data: bytes, store_id: bytes, segment_no: int, chain: Chain) -> None:
        self._data = data
        self._store_id = store_id
        self._segment_no = segment_no
        self._chain = chain
        self.batch_count = 0
        self.offset = 0  # where the frame of the record that was yielded last begins
        self.end: End | None = None  # set when `records` is exhausted

    def records(self) -> Iterator[Record]:
        """Yield the record of every good batch, up to the first bytes that are no good frame."""
        data, chain = self._data, self._chain
        offset = 0
        while offset < len(data):
            header = decode_header(data, offset)
            if header is None:
                self.end = self._judge_bad_bytes(offset, "no frame begins here")
                return
            self.end = self._judge_header(offset, header)
            if self.end is not None:
                return
            body = decode_payload(data, offset, header)
            if body is None:
                self.end = self._judge_bad_bytes(offset, "the frame is unfinished or its checksum is wrong")
                return
            payload, chain.crc = body
            chain.durable_lsn = header.durable_lsn
            if header.type == FrameType.BATCH:
                chain.last_lsn += header.change_count
                self.batch_count += 1
                self.offset = offset
                yield Record(header.lsn, header.change_count, payload)
            offset += frame_bytes(header)
        # An empty file has no head, and the head was durable before the file had this name.
        self.end = End(Verdict.WHOLE, offset) if data else End(Verdict.DAMAGED, 0, "the file is empty")

    def _judge_header(self, offset: int, header: Header) -> End | None:
        if header.store_id != self._store_id:
            return End(Verdict.MISPLACED, offset, "a frame of another store stands here")
        if not header.is_supported:
            return End(Verdict.UNSUPPORTED, offset, f"format {header.format}, frame type {header.type}")
        reason = misplacement(header, self._segment_no, offset == 0, self._chain)
        return End(Verdict.MISPLACED, offset, reason) if reason else None

    def _judge_bad_bytes(self, offset: int, reason: str) -> End:
        """Tell a torn tail from damage by what stands behind the bad bytes."""
        if offset == 0:
            # The head was durable before the file had this name.
            return End(Verdict.DAMAGED, 0, reason)
        next_lsn = self._chain.last_lsn + 1
        for _, header in headers_behind(self._data, self._store_id, offset):
            if not header.is_supported:
                # What it says is unknown, so it may vouch for what is missing.
                return End(Verdict.UNSUPPORTED, offset, f"format {header.format}, frame type {header.type}")
            if header.durable_lsn >= next_lsn:
                return End(Verdict.DAMAGED, offset, reason, lost_to_lsn=header.durable_lsn)
            if (header.segment_no, header.type, header.lsn) == (self._segment_no, FrameType.BATCH, next_lsn):
                return End(Verdict.DAMAGED, offset, reason + ", and a good batch follows")
        return End(Verdict.TORN, offset, reason)


class SegmentWriter:
    """An open segment that takes frames. Raises OSError; the caller must then never write again.

    Args:
        handle: positioned at the end of an empty file.
        chain: the end of the log before this segment; moved along with what is written.
    """

    def __init__(self, fs: FileSystem, handle: int, store_id: bytes, segment_no: int, chain: Chain) -> None:
        self._fs = fs
        self._handle = handle
        self._store_id = store_id
        self._chain = chain
        self.segment_no = segment_no
        self.size_bytes = 0
        self._write_mark(FrameType.HEAD)

    def append(self, records: Sequence[Record]) -> None:
        """Write one batch frame for each record, all in one write if the system takes it whole."""
        chain = self._chain
        crc = chain.crc
        lsn = chain.last_lsn + 1
        frames = []
        for first_lsn, count, payload in records:
            assert first_lsn == lsn, f"record begins at LSN {first_lsn}, the log goes on at {lsn}"
            assert 1 <= count <= CHANGE_COUNT_MAX, f"a record of {count} changes"
            assert len(payload) <= PAYLOAD_BYTES_MAX, f"a record of {len(payload)} bytes"
            frame, crc = encode_frame(
                BATCH, self._store_id, self.segment_no, lsn, chain.durable_lsn, count, crc, payload
            )
            frames.append(frame)
            lsn += count
        self._write(b"".join(frames) if len(frames) != 1 else frames[0])
        chain.crc = crc
        chain.last_lsn = lsn - 1

    def seal(self) -> None:
        """Write a seal; the caller syncs it before anything else is appended."""
        self._write_mark(FrameType.SEAL)

    def sync(self) -> None:
        """Make everything written durable."""
        self._fs.sync(self._handle)

    def close(self) -> None:
        """Give the file back. Nothing is written or synced."""
        self._fs.close(self._handle)

    def _write_mark(self, frame_type: FrameType) -> None:
        chain = self._chain
        frame, crc = encode_frame(
            frame_type,
            self._store_id,
            self.segment_no,
            chain.last_lsn + 1,
            chain.durable_lsn,
            0,
            chain.crc,
            b"",
        )
        self._write(frame)
        chain.crc = crc

    def _write(self, data: bytes) -> None:
        write_all(self._fs, self._handle, data)
        self.size_bytes += len(data)

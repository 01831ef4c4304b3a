"""The frame: how one record stands in a segment. Both directions side by side.

Knows:         the bytes of a frame, its checksums, what a frame must continue.
Must not know: files, what is done about a bad frame, what a payload means.

Format 1, little-endian. The log is a chain of frames, each bound to its store, its segment and the
frame before it, so that bytes which are whole but stand in the wrong place are noticed as well.

    offset  bytes  type   field          limit
         0      4  bytes  magic          a7 6a 71 64
         4      1  u8     format         1
         5      1  u8     type           1 head, 2 batch, 3 seal; in a snapshot 4 head, 5 part, 6 end
         6      2  u16    reserved       0
         8     16  bytes  store_id       secret; the same in every frame of a store
        24      8  u64    segment_no     from 1; the number in the file's name
        32      8  u64    lsn            batch: its first LSN; others: the next batch's first LSN
        40      8  u64    durable_lsn    highest LSN known synced before this frame was built; < lsn
        48      4  u32    change_count   batch: changes, >= 1; others: 0
        52      4  u32    payload_bytes  batch: 0 to PAYLOAD_BYTES_MAX; others: 0
        56      4  u32    prev_crc       frame_crc of the frame before, over segments too; 0 for the first
        60      4  u32    header_crc     CRC-32C of bytes 0 to 60
        64      n  bytes  payload        n = payload_bytes
      64+n      4  u32    frame_crc      CRC-32C of the payload, continued from header_crc

- head: the first frame of a segment, and only there; it is synced before the segment gets its name.
- batch: one record.
- seal: nothing but a later `durable_lsn`; it is synced before anything is appended behind it.
- a snapshot's frames: snapshot.py.

What every later format keeps: the first 64 bytes with magic, format and header_crc in their places.
So a newer format can be told from a damaged frame.

The header has a checksum of its own so that a length is checked before it is believed. No client ever
sees the store id, so that no payload can contain what recovery would take for a frame.

Sources: reliability.md 2.1; LevelDB doc/log_format.md; etcd wal/doc.go (chained CRC); TigerBeetle
(hash chain); "Protocol-Aware Recovery for Consensus-Based Storage" (durable mark).
"""

from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import NamedTuple

from crc32c import crc32c

MAGIC = b"\xa7jqd"  # the first byte is no ASCII and no UTF-8 start: text is never taken for a frame
FORMAT = 1
STORE_ID_BYTES = 16
HEADER_BYTES = 64
FRAME_CRC_BYTES = 4

# Far above what one turn of the server's loop gathers (a few client frames of 16 MiB at most), and
# small enough that a reader can hold a whole frame, and that CRC-32C still finds every 3-bit error.
PAYLOAD_BYTES_MAX = 64 * 1024 * 1024

CHANGE_COUNT_MAX = 2**32 - 1  # the field is u32

_FIELDS = Struct("<4sBBH16sQQQIII")  # up to header_crc
_HEADER = Struct("<4sBBH16sQQQIIII")
_CRC = Struct("<I")
assert _HEADER.size == HEADER_BYTES

_pack_fields = _FIELDS.pack
_pack_crc = _CRC.pack


class FrameType(IntEnum):
    """What a frame is for. Numbers are on disk: append only, never reuse one."""

    HEAD = 1
    BATCH = 2
    SEAL = 3
    SNAPSHOT_HEAD = 4
    SNAPSHOT_PART = 5
    SNAPSHOT_END = 6


# Plain ints for the path of every append: an IntEnum member costs three times as much to pack.
BATCH = int(FrameType.BATCH)
_TYPES = frozenset(int(each) for each in FrameType)
_OF_SNAPSHOTS = frozenset({FrameType.SNAPSHOT_HEAD, FrameType.SNAPSHOT_PART, FrameType.SNAPSHOT_END})


@dataclass(slots=True)
class Chain:
    """The end of the log so far: what the next frame must continue. Writer and reader share it."""

    crc: int = 0  # frame_crc of the last frame
    last_lsn: int = 0
    durable_lsn: int = 0


class Header(NamedTuple):
    """A header whose checksum is right. In the order of the bytes."""

    magic: bytes
    format: int
    type: int
    reserved: int
    store_id: bytes
    segment_no: int
    lsn: int
    durable_lsn: int
    change_count: int
    payload_bytes: int
    prev_crc: int
    header_crc: int

    @property
    def is_supported(self) -> bool:
        """Whether this jqd knows what the frame means; the other fields can be trusted only then."""
        return self.format == FORMAT and self.type in _TYPES and self.reserved == 0


def encode_frame(
    frame_type: int,
    store_id: bytes,
    segment_no: int,
    lsn: int,
    durable_lsn: int,
    change_count: int,
    prev_crc: int,
    payload: bytes,
) -> tuple[bytes, int]:
    """Return a frame and its frame_crc."""
    fields = _pack_fields(
        MAGIC,
        FORMAT,
        frame_type,
        0,
        store_id,
        segment_no,
        lsn,
        durable_lsn,
        change_count,
        len(payload),
        prev_crc,
    )
    header_crc = crc32c(fields)
    frame_crc = crc32c(payload, header_crc)
    return b"".join((fields, _pack_crc(header_crc), payload, _pack_crc(frame_crc))), frame_crc


def decode_header(data: bytes, offset: int) -> Header | None:
    """Return the header at `offset`, or None if there is none: too few bytes, magic or checksum wrong."""
    if offset < 0 or offset + HEADER_BYTES > len(data):
        return None
    header = Header._make(_HEADER.unpack_from(data, offset))
    if header.magic != MAGIC:
        return None
    if header.header_crc != crc32c(data[offset : offset + HEADER_BYTES - FRAME_CRC_BYTES]):
        return None
    return header


def decode_payload(data: bytes, offset: int, header: Header) -> tuple[bytes, int] | None:
    """Return payload and frame_crc of the frame at `offset`, or None if it is unfinished or damaged."""
    start = offset + HEADER_BYTES
    end = start + header.payload_bytes
    if end + FRAME_CRC_BYTES > len(data):
        return None
    payload = data[start:end]
    frame_crc = crc32c(payload, header.header_crc)
    if frame_crc != _CRC.unpack_from(data, end)[0]:
        return None
    return payload, frame_crc


def frame_bytes(header: Header) -> int:
    """Return how many bytes the whole frame takes."""
    return HEADER_BYTES + header.payload_bytes + FRAME_CRC_BYTES


def misplacement(header: Header, segment_no: int, at_start: bool, chain: Chain) -> str | None:
    """Say why a supported header of this store does not continue `chain` here; None if it does.

    A crash leaves bytes unfinished, never whole in the wrong place. So whatever this function names
    was moved, repeated or removed by somebody, and is refused wherever it stands.
    """
    is_batch = header.type == FrameType.BATCH
    if header.type in _OF_SNAPSHOTS:
        return "a frame of a snapshot stands here"
    if header.segment_no != segment_no:
        return f"a frame of segment {header.segment_no} stands here"
    if (header.type == FrameType.HEAD) != at_start:
        return "the head of a segment is missing" if at_start else "a second head stands here"
    if header.lsn != chain.last_lsn + 1:
        return f"LSN {chain.last_lsn + 1} is missing, LSN {header.lsn} stands here"
    if header.prev_crc != chain.crc:
        return "the frame before is not the one that was written before"
    if not chain.durable_lsn <= header.durable_lsn <= chain.last_lsn:
        return f"durable LSN {header.durable_lsn} is out of order"
    if is_batch != (header.change_count > 0) or (header.payload_bytes > 0 and not is_batch):
        return f"a count of {header.change_count} in a frame of type {header.type}"
    if header.payload_bytes > PAYLOAD_BYTES_MAX:
        return f"a payload of {header.payload_bytes} bytes, over the limit of {PAYLOAD_BYTES_MAX}"
    return None

"""The file `store`: who this log is, how far it goes, and whether it was stopped cleanly.

Knows:         the bytes of that one file.
Must not know: files as such, frames.

It is replaced as a whole (write `store.tmp`, sync, rename, sync the directory), so it is never torn:
anything wrong with it is damage.

Format 1, little-endian.

    offset  bytes  type   field        limit
         0      4  bytes  magic        a7 6a 71 73
         4      2  u16    format       1
         6      2  u16    reserved     0
         8     16  bytes  store_id     random, secret: it is in every frame and never sent to a client
        24     16  bytes  public_id    random, independent of store_id; shown to clients
        40      8  u64    segment_no   this segment must exist; 0 before the first
        48      8  u64    clean_bytes  size of that segment, the last, at a clean stop; 0 otherwise
        56      4  u32    reserved     0
        60      4  u32    crc          CRC-32C of bytes 0 to 60

- `segment_no` is raised after a segment has its durable name and before its first batch: a segment
  with records cannot vanish unnoticed, not even the last one.
- The mark of a clean stop stands here and not behind the last frame: a frame whose sync failed can be
  seen in the page cache after a restart, and would then vouch for itself. This file replaces its
  predecessor only after the last segment's sync succeeded. It says more, too: that nothing is missing
  from the end.

Source: reliability.md 2.1.
"""

from struct import Struct
from typing import NamedTuple

from crc32c import crc32c

from jqd.storage.record import STORE_ID_BYTES

STORE_MAGIC = b"\xa7jqs"
STORE_FORMAT = 1
PUBLIC_ID_BYTES = 16

_FIELDS = Struct("<4sHH16s16sQQI")  # up to crc
_CRC = Struct("<I")
STORE_FILE_BYTES = _FIELDS.size + _CRC.size
assert STORE_FILE_BYTES == 64


class StoreFile(NamedTuple):
    """What the file says."""

    store_id: bytes
    public_id: bytes
    segment_no: int = 0
    clean_bytes: int = 0


class Newer(NamedTuple):
    """The file is whole, but of a format that this jqd does not know."""

    format: int


def encode_store_file(store: StoreFile) -> bytes:
    """Return the bytes of the file."""
    assert len(store.store_id) == STORE_ID_BYTES
    assert len(store.public_id) == PUBLIC_ID_BYTES
    fields = _FIELDS.pack(
        STORE_MAGIC,
        STORE_FORMAT,
        0,
        store.store_id,
        store.public_id,
        store.segment_no,
        store.clean_bytes,
        0,
    )
    return fields + _CRC.pack(crc32c(fields))


def decode_store_file(data: bytes) -> StoreFile | Newer | None:
    """Return what the file says, or None if it is damaged."""
    if len(data) < STORE_FILE_BYTES or data[:4] != STORE_MAGIC:
        return None
    magic_and_rest = data[: _FIELDS.size]
    if crc32c(magic_and_rest) != _CRC.unpack_from(data, _FIELDS.size)[0]:
        return None
    _, file_format, reserved, store_id, public_id, segment_no, clean_bytes, rest = _FIELDS.unpack(
        magic_and_rest
    )
    if file_format != STORE_FORMAT or reserved or rest:
        return Newer(file_format)
    if len(data) > STORE_FILE_BYTES:
        return None
    return StoreFile(store_id, public_id, segment_no, clean_bytes)

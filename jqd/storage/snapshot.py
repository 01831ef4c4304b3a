"""A snapshot: one file that says how everything stood at one LSN, so that the log before it can go.

Knows:         the file's name and its frames, how it is written, verified and read.
Must not know: what a part means, which snapshot is used (recovery.py), threads.

A snapshot is named by its LSN, `{lsn:016x}.snap`, and consists of the log's frames (record.py):

    head   where the log goes on: segment_no, and as prev_crc the frame_crc before that segment's head
    part   change_count images and their payload, any number of times
    end    nothing; without it the file is no snapshot

In each of them `lsn` is the snapshot's LSN + 1, `durable_lsn` the snapshot's, `segment_no` the segment in which the
log goes on, and `prev_crc` the frame_crc before it. So no part can be missing, repeated or of another snapshot.

A file gets its name when it was written, synced, read again and found whole. Whatever is wrong with one that has
its name is damage, and an older snapshot with the log behind it tells the same.

Sources: reliability.md 2.1; design.md 7; Redis' and etcd's snapshots (verify before you rely on it).
"""

from collections.abc import Iterator
from typing import NamedTuple

from jqd.errors import Corruption, WriteFailed
from jqd.storage.directory import Directory, snapshot_name
from jqd.storage.fs import FileSystem
from jqd.storage.record import (
    HEADER_BYTES,
    PAYLOAD_BYTES_MAX,
    Chain,
    FrameType,
    Header,
    decode_header,
    decode_payload,
    encode_frame,
    frame_bytes,
)
from jqd.storage.segment import write_all

_READ_BYTES = 1 << 20


class Base(NamedTuple):
    """A point between two segments of the log."""

    lsn: int  # of the last change before it
    segment_no: int  # the segment behind it
    crc: int  # frame_crc of the last frame before it

    @property
    def chain(self) -> Chain:
        """The end of the log at this point. What stands before it was synced before the segment was made."""
        return Chain(self.crc, self.lsn, self.lsn)


class Snapshot(NamedTuple):
    """A snapshot that was read from its first to its last byte and is whole; by read_base() only its base is known."""

    base: Base
    parts: int
    size_bytes: int


class Damaged(NamedTuple):
    """A snapshot that is none."""

    lsn: int  # by its name
    path: str
    offset: int
    reason: str


class SnapshotWriter:
    """Writes one snapshot. Raises OSError; the file is then worth nothing, and abort() removes it.

    Args:
        base: taken when the last change of the snapshot was in the log.
    """

    def __init__(self, fs: FileSystem, directory: Directory, store_id: bytes, base: Base) -> None:
        self._fs = fs
        self._directory = directory
        self._store_id = store_id
        self._base = base
        self._name = snapshot_name(base.lsn)
        self._crc = base.crc
        self._handle: int | None = directory.create(self._name)
        self.size_bytes = 0
        try:
            self._write(FrameType.SNAPSHOT_HEAD, 0, b"")
        except BaseException:
            self.abort()
            raise

    def write(self, count: int, payload: bytes) -> None:
        """Add a part of so many images."""
        assert count >= 1
        assert len(payload) <= PAYLOAD_BYTES_MAX
        self._write(FrameType.SNAPSHOT_PART, count, payload)

    def finish(self) -> Snapshot:
        """Make the file whole, durable and known by its name, in this order.

        Raises: WriteFailed: what can be read is not what was written.
        """
        self._write(FrameType.SNAPSHOT_END, 0, b"")
        assert self._handle is not None
        self._fs.sync(self._handle)
        self._close()
        path = self._directory.temporary_path_of(self._name)
        read = verify(self._fs, path, self._store_id, self._base.lsn)
        if isinstance(read, Damaged):
            raise WriteFailed(
                f"{path}: a snapshot was not written as told: byte {read.offset}: {read.reason}"
            )
        self._directory.publish(self._name)
        return read

    def abort(self) -> None:
        """Remove what was written so far."""
        if self._handle is not None:
            self._close()
        self._directory.remove_temporary(self._name)

    def _close(self) -> None:
        handle, self._handle = self._handle, None
        assert handle is not None
        self._fs.close(handle)

    def _write(self, frame_type: FrameType, count: int, payload: bytes) -> None:
        assert self._handle is not None
        lsn = self._base.lsn
        frame, self._crc = encode_frame(
            frame_type, self._store_id, self._base.segment_no, lsn + 1, lsn, count, self._crc, payload
        )
        write_all(self._fs, self._handle, frame)
        self.size_bytes += len(frame)


def verify(fs: FileSystem, path: str, store_id: bytes, lsn: int) -> Snapshot | Damaged:
    """Read a whole snapshot, and say what it is or what is wrong with it.

    Args:   lsn: what its name says.
    Raises: OSError: it cannot be opened. One that cannot be read to its end is damaged.
    """
    walk = _Walk(fs, path, store_id, lsn)
    parts = sum(1 for _ in walk.payloads())
    if walk.fault:
        return Damaged(lsn, path, walk.offset, walk.fault)
    assert walk.base is not None
    return Snapshot(walk.base, parts, walk.offset)


def read_base(fs: FileSystem, path: str, store_id: bytes, lsn: int) -> Snapshot | Damaged:
    """Read only the head of a snapshot that is kept to fall back to: verify() looks at the rest when it is needed."""
    walk = _Walk(fs, path, store_id, lsn)
    walk.read_head()
    if walk.base is None:
        return Damaged(lsn, path, walk.offset, walk.fault)
    return Snapshot(walk.base, 0, 0)


def read_parts(fs: FileSystem, path: str, store_id: bytes, lsn: int) -> Iterator[bytes]:
    """Yield the payloads of a snapshot that was verified before.

    Raises: Corruption: it reads otherwise now. The next start will see it damaged, and fall back.
    """
    walk = _Walk(fs, path, store_id, lsn)
    yield from walk.payloads()
    if walk.fault:
        message = f"{path}: byte {walk.offset}: {walk.fault}; it was whole a moment ago: start again"
        raise Corruption(message, file=path, offset=walk.offset)


class _Walk:
    """One way through a file, frame by frame: memory for one frame, however large the file is."""

    def __init__(self, fs: FileSystem, path: str, store_id: bytes, lsn: int) -> None:
        self._fs = fs
        self._path = path
        self._store_id = store_id
        self._lsn = lsn
        self._buffer = b""  # what was read and not walked past yet, from `_at` on
        # In the buffer, where the next frame begins: to cut each off its front would copy all the rest.
        self._at = 0
        self._crc = 0
        self.base: Base | None = None  # once the head was read
        self.offset = 0  # of the frame under way
        self.fault = ""  # what is wrong there

    def read_head(self) -> None:
        """Read the first frame: `base` is set, or `fault` is."""
        handle = self._fs.open(self._path)
        try:
            self._next_frame(handle)
        except OSError as error:
            self.fault = f"it cannot be read: {error.strerror or error}"
        finally:
            self._fs.close(handle)

    def payloads(self) -> Iterator[bytes]:
        """Yield the payload of each part; afterwards `fault` says whether that was all."""
        handle = self._fs.open(self._path)
        try:
            has_ended = False
            while not has_ended:
                frame = self._next_frame(handle)
                if frame is None:
                    return
                header, payload = frame
                if header.type == FrameType.SNAPSHOT_PART:
                    yield payload
                has_ended = header.type == FrameType.SNAPSHOT_END
            if self._buffer or self._fs.read(handle, self.offset, 1):
                self.fault = "something stands behind the end"
        except OSError as error:
            self.fault = f"it cannot be read: {error.strerror or error}"
        finally:
            self._fs.close(handle)

    def _next_frame(self, handle: int) -> tuple[Header, bytes] | None:
        self._fill(handle, HEADER_BYTES)
        header = decode_header(self._buffer, self._at)
        if header is None:
            self.fault = "no frame begins here" if self._buffer else "the file ends here, without its end"
            return None
        self.fault = self._misfit(header)
        if self.fault:
            return None
        size = frame_bytes(header)
        self._fill(handle, size)
        body = decode_payload(self._buffer, self._at, header)
        if body is None:
            self.fault = "the frame is unfinished or its checksum is wrong"
            return None
        if self.base is None:
            self.base = Base(self._lsn, header.segment_no, header.prev_crc)
        payload, self._crc = body
        self.offset += size
        self._at += size
        if self._at == len(self._buffer):
            self._buffer, self._at = b"", 0
        return header, payload

    def _misfit(self, header: Header) -> str:
        """Say why a header does not belong here; "" if it does."""
        if header.store_id != self._store_id:
            return "a frame of another store stands here"
        if not header.is_supported:
            return f"format {header.format}, frame type {header.type}"
        is_part = header.type == FrameType.SNAPSHOT_PART
        if self.base is None:
            if header.type != FrameType.SNAPSHOT_HEAD:
                return "the head of a snapshot is missing"
        elif (header.segment_no, header.prev_crc) != (self.base.segment_no, self._crc):
            return "the frame before is not the one that was written before"
        elif header.type not in (FrameType.SNAPSHOT_PART, FrameType.SNAPSHOT_END):
            return f"a frame of type {header.type} stands here"
        if (header.lsn, header.durable_lsn) != (self._lsn + 1, self._lsn):
            return f"a frame of the snapshot of LSN {header.durable_lsn} stands here"
        if is_part != (header.change_count > 0) or (header.payload_bytes > 0 and not is_part):
            return f"a count of {header.change_count} in a frame of type {header.type}"
        if header.payload_bytes > PAYLOAD_BYTES_MAX:
            return f"a payload of {header.payload_bytes} bytes, over the limit of {PAYLOAD_BYTES_MAX}"
        return ""

    def _fill(self, handle: int, size: int) -> None:
        """Read on until the buffer has `size` bytes, or the file ends."""
        missing = size - (len(self._buffer) - self._at)
        if missing <= 0:
            return
        parts = [self._buffer[self._at :]]
        self._buffer, self._at = b"", 0
        position = self.offset + len(parts[0])
        while missing > 0:
            data = self._fs.read(handle, position, max(missing, _READ_BYTES))
            if not data:
                break
            parts.append(data)
            position += len(data)
            missing -= len(data)
        self._buffer = b"".join(parts)

"""Find frames in bytes, however the network has cut them, and put bytes into frames.

Knows:         the length prefix and its limit.
Must not know: what is inside a frame, sockets, whose bytes these are.

    offset  bytes  what
    0       4      length of the body, unsigned, big-endian, 1 .. the reader's limit
    4       n      body: one msgpack value (messages.py)

A length over the limit is refused when its four bytes are there, before anything is kept for it.
Source: protocol.md "Frames".
"""

import struct
from collections.abc import Iterator
from typing import Final

from jqd.errors import BadFrame, PayloadTooLarge

PREFIX_BYTES: Final = 4
_LENGTH: Final = struct.Struct(">I")

pack_length = _LENGTH.pack


def to_frame(body: bytes) -> bytes:
    """Put one encoded message into a frame."""
    return pack_length(len(body)) + body


# A view costs two objects and no copy; below this a copy is cheaper.
_VIEW_BYTES_MIN: Final = 2 << 10


class FrameReader:
    """Bytes in, whole frames out.

    Contract: feed() what arrived, then take frames until there is none. A large frame is a view
    into the bytes fed; it may be kept, and then keeps them. After an exception the stream is out of
    step and the reader must not be used again.

    Args:
        limit: bytes that a frame's body may have. Lowered or raised at any time; it holds from the
            next frame on.
    """

    __slots__ = ("_chunks", "_chunks_bytes", "_data", "_offset", "_wanted", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._data = b""  # what is being cut into frames,
        self._offset = 0  # from here on
        self._chunks: list[bytes] = []  # a frame that came only in part, joined once it is whole:
        self._chunks_bytes = 0  # joining at each arrival would be quadratic
        self._wanted = 0  # bytes that the partial frame needs in all; 0: not even its length is there

    def feed(self, data: bytes) -> None:
        """Add what arrived. Keeps at most one partial frame, and what was not yet asked for."""
        rest_bytes = len(self._data) - self._offset
        if not self._chunks and not rest_bytes:
            self._data, self._offset = data, 0
            return
        if rest_bytes:
            self._chunks.append(self._data[self._offset :])
            self._chunks_bytes += rest_bytes
            self._data, self._offset = b"", 0
        self._chunks.append(data)
        self._chunks_bytes += len(data)
        if self._chunks_bytes >= max(self._wanted, PREFIX_BYTES):
            self._data = b"".join(self._chunks)
            self._chunks.clear()
            self._chunks_bytes = self._wanted = 0

    def next_frame(self) -> bytes | memoryview | None:
        """Return the next whole frame's body, or None until more bytes are fed.

        Raises: PayloadTooLarge (length over the limit), BadFrame (length 0).
        """
        return next(self.frames(), None)

    def frames(self) -> Iterator[bytes | memoryview]:
        """Yield the bodies of the whole frames that are there; may be left at any time, and begun anew.

        Raises: as next_frame().
        """
        data, offset = self._data, self._offset
        size = len(data)
        while offset + PREFIX_BYTES <= size:
            start = offset + PREFIX_BYTES
            (length,) = _LENGTH.unpack_from(data, offset)
            if not 0 < length <= self.limit:
                raise self._refusal(length)
            offset = start + length
            if offset > size:
                self._wanted = length + PREFIX_BYTES
                return
            self._offset = offset
            yield data[start:offset] if length < _VIEW_BYTES_MIN else memoryview(data)[start:offset]

    @property
    def has_more(self) -> bool:
        """Whether a whole frame may be there: what was fed last is not used up."""
        return self._offset < len(self._data)

    @property
    def buffered_bytes(self) -> int:
        """Bytes that are held for frames not yet returned."""
        return self._chunks_bytes + len(self._data) - self._offset

    def _refusal(self, length: int) -> BadFrame | PayloadTooLarge:
        if length == 0:
            return BadFrame("frame length = 0: a frame has at least 1 byte")
        return PayloadTooLarge(f"frame length = {length} bytes: the limit is {self.limit}")

"""Frames come out the same however the network cuts them, and limits hold before anything is kept."""

import struct
import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jqd.errors import BadFrame, PayloadTooLarge
from jqd.protocol.framing import FrameReader, pack_length, to_frame

LIMIT = 1_000


def frames(reader: FrameReader) -> list[bytes]:
    found = []
    while (frame := reader.next_frame()) is not None:
        found.append(bytes(frame))
    return found


def fed(chunks: list[bytes], limit: int = LIMIT) -> list[bytes]:
    reader = FrameReader(limit)
    found = []
    for chunk in chunks:
        reader.feed(chunk)
        found += frames(reader)
    assert reader.buffered_bytes == 0
    return found


bodies = st.lists(st.binary(min_size=1, max_size=40) | st.just(b"x" * LIMIT), max_size=8)


@given(bodies, st.lists(st.integers(0, 3_000)))
def test_any_cuts_give_the_same_frames(bodies, cuts):
    stream = b"".join(map(to_frame, bodies))
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    chunks = [stream[start:end] for start, end in pairwise(edges)]
    assert fed(chunks) == bodies


@given(bodies, st.lists(st.integers(1, 50), min_size=1))
def test_frames_may_be_asked_for_seldom(bodies, sizes):
    """Several chunks are fed between two looks."""
    stream = b"".join(map(to_frame, bodies))
    reader, found, offset = FrameReader(LIMIT), [], 0
    for index, size in enumerate(sizes * (len(stream) // sum(sizes) + 1)):
        reader.feed(stream[offset : offset + size])
        offset += size
        if index % 3 == 0:
            found += frames(reader)
    assert found + frames(reader) == bodies


def test_every_cut_of_a_stream_gives_the_same_frames():
    bodies = [b"a", b"bc" * 10, b"\x00\x00\x00\x00", b"d" * 5]
    stream = b"".join(map(to_frame, bodies))
    for cut in range(len(stream) + 1):
        assert fed([stream[:cut], stream[cut:]]) == bodies
        for second in range(cut, len(stream) + 1):
            assert fed([stream[:cut], stream[cut:second], stream[second:]]) == bodies


def test_byte_by_byte():
    bodies = [b"a", b"bcd", b"e" * 300]
    assert fed([bytes([byte]) for byte in b"".join(map(to_frame, bodies))]) == bodies


def test_empty_chunks_mean_nothing():
    assert fed([b"", b"\x00\x00", b"", b"\x00\x01", b"", b"x", b""]) == [b"x"]


def test_frame_has_a_length_in_four_bytes_big_endian():
    assert to_frame(b"abc") == b"\x00\x00\x00\x03abc"
    assert pack_length(1 << 24) == b"\x01\x00\x00\x00"


@pytest.mark.parametrize("length", [LIMIT + 1, 1 << 24, 1 << 31, (1 << 32) - 1])
def test_length_over_the_limit_is_refused_from_its_four_bytes(length):
    reader = FrameReader(LIMIT)
    prefix = struct.pack(">I", length)
    reader.feed(prefix[:3])
    assert reader.next_frame() is None
    reader.feed(prefix[3:])
    with pytest.raises(PayloadTooLarge) as refusal:
        reader.next_frame()
    assert str(refusal.value) == f"frame length = {length} bytes: the limit is 1000"


def test_length_of_the_limit_is_taken():
    assert fed([to_frame(b"x" * LIMIT)]) == [b"x" * LIMIT]


def test_length_zero_is_refused():
    reader = FrameReader(LIMIT)
    reader.feed(bytes(4))
    with pytest.raises(BadFrame, match="frame length = 0: a frame has at least 1 byte"):
        reader.next_frame()


def test_bad_length_after_good_frames_costs_none_of_them():
    reader = FrameReader(LIMIT)
    reader.feed(to_frame(b"good") + b"\xff\xff\xff\xff")
    assert bytes(reader.next_frame()) == b"good"
    with pytest.raises(PayloadTooLarge):
        reader.next_frame()


def test_limit_may_be_raised_between_two_frames():
    reader = FrameReader(4)
    reader.feed(to_frame(b"four") + to_frame(b"longer"))
    assert bytes(reader.next_frame()) == b"four"
    reader.limit = 6
    assert bytes(reader.next_frame()) == b"longer"


def test_frame_may_be_kept_while_others_come():
    reader = FrameReader(LIMIT)
    reader.feed(to_frame(b"first") + to_frame(b"second")[:5])
    first = reader.next_frame()
    assert reader.next_frame() is None
    reader.feed(to_frame(b"second")[5:])
    second = reader.next_frame()
    assert (bytes(first), bytes(second)) == (b"first", b"second")


def test_buffered_bytes_are_those_not_yet_returned():
    reader = FrameReader(LIMIT)
    seen = []
    for byte in to_frame(b"abc"):
        reader.feed(bytes([byte]))
        seen.append(reader.buffered_bytes)
    assert seen == [1, 2, 3, 4, 5, 6, 7]
    assert bytes(reader.next_frame()) == b"abc"
    assert reader.buffered_bytes == 0


def test_parts_of_a_frame_are_joined_once():
    """Joining at every arrival would copy 4 MiB 1,024 times over."""
    size, part = 4 << 20, 4_096
    stream = to_frame(bytes(size))
    reader, frame = FrameReader(size), None
    tracemalloc.start()
    try:
        for offset in range(0, len(stream), part):
            reader.feed(stream[offset : offset + part])
            frame = reader.next_frame()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(frame) == size
    assert peak < 2.5 * size, "the parts, and the whole"
    copied = [len(chunk) for chunk in _chunks_seen(stream, part)]
    assert max(copied) <= part + 4, "what had arrived was never joined before the whole was there"


def _chunks_seen(stream: bytes, part: int) -> list[bytes]:
    reader = FrameReader(len(stream))
    seen: list[bytes] = []
    for offset in range(0, len(stream) - part, part):
        reader.feed(stream[offset : offset + part])
        reader.next_frame()
        seen += reader._chunks[-1:]
    return seen


def test_claimed_length_reserves_no_memory():
    reader = FrameReader(1 << 30)
    tracemalloc.start()
    try:
        reader.feed(struct.pack(">I", 1 << 30) + b"x")
        assert reader.next_frame() is None
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10_000

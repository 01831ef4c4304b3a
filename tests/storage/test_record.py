"""The frame."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jqd.storage.record import (
    FRAME_CRC_BYTES,
    HEADER_BYTES,
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

STORE_ID = bytes(range(16))
u64 = st.integers(0, 2**64 - 1)
u32 = st.integers(0, 2**32 - 1)


def frame(payload=b"payload", lsn=8, durable_lsn=7, count=2, prev_crc=99, kind=FrameType.BATCH):
    return encode_frame(kind, STORE_ID, 3, lsn, durable_lsn, count, prev_crc, payload)


@given(st.sampled_from(FrameType), st.binary(min_size=16, max_size=16), u64, u64, u64, u32, u32, st.binary())
def test_decode_gives_back_what_was_encoded(kind, store_id, number, lsn, durable, count, prev_crc, payload):
    data, crc = encode_frame(kind, store_id, number, lsn, durable, count, prev_crc, payload)
    header = decode_header(b"junk" + data, 4)
    assert header is not None
    assert header[2:11] == (kind, 0, store_id, number, lsn, durable, count, len(payload), prev_crc)
    assert header.is_supported
    assert frame_bytes(header) == len(data)
    assert decode_payload(b"junk" + data, 4, header) == (payload, crc)


def test_every_bit_of_a_frame_is_guarded():
    data, _ = frame()
    good = decode_header(data, 0)
    assert good is not None
    for bit in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        header = decode_header(bytes(damaged), 0)
        assert (header is None) == (bit < HEADER_BYTES * 8)
        if header is not None:
            assert decode_payload(bytes(damaged), 0, header) is None


def test_unfinished_frame_is_no_frame_at_every_length():
    data, _ = frame()
    for length in range(len(data)):
        header = decode_header(data[:length], 0)
        assert (header is None) == (length < HEADER_BYTES)
        if header is not None:
            assert decode_payload(data[:length], 0, header) is None


def test_no_header_before_the_beginning():
    assert decode_header(frame()[0], -1) is None


def test_zeros_are_no_header():
    assert decode_header(bytes(4096), 0) is None


def test_header_checksum_of_other_bytes_is_no_header():
    data, _ = frame()
    assert decode_header(b"\xa7jqe" + data[4:], 0) is None


def test_empty_payload_takes_no_bytes():
    data, _ = frame(b"", count=0, kind=FrameType.SEAL)
    assert len(data) == HEADER_BYTES + FRAME_CRC_BYTES


def test_frame_crc_covers_the_header():
    _, one = frame(lsn=8)
    _, other = frame(lsn=9)
    assert one != other


def header(**changes: int) -> Header:
    decoded = decode_header(frame()[0], 0)
    assert decoded is not None
    return decoded._replace(**changes)  # type: ignore[arg-type]


CHAIN = Chain(crc=99, last_lsn=7, durable_lsn=6)


def test_frame_that_continues_the_chain_is_in_place():
    assert misplacement(header(), 3, False, CHAIN) is None
    head = header(type=FrameType.HEAD, change_count=0, payload_bytes=0)
    assert misplacement(head, 3, True, CHAIN) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"segment_no": 4}, "a frame of segment 4 stands here"),
        ({"type": FrameType.HEAD}, "a second head stands here"),
        ({"type": FrameType.SNAPSHOT_HEAD}, "a frame of a snapshot stands here"),
        ({"type": FrameType.SNAPSHOT_PART}, "a frame of a snapshot stands here"),
        ({"type": FrameType.SNAPSHOT_END}, "a frame of a snapshot stands here"),
        ({"lsn": 7}, "LSN 8 is missing, LSN 7 stands here"),
        ({"lsn": 9}, "LSN 8 is missing, LSN 9 stands here"),
        ({"prev_crc": 98}, "the frame before is not the one"),
        ({"durable_lsn": 5}, "durable LSN 5 is out of order"),
        ({"durable_lsn": 8}, "durable LSN 8 is out of order"),
        ({"change_count": 0}, "a count of 0 in a frame of type 2"),
        ({"type": FrameType.SEAL}, "a count of 2 in a frame of type 3"),
        ({"type": FrameType.SEAL, "change_count": 0}, "a count of 0 in a frame of type 3"),
        ({"payload_bytes": PAYLOAD_BYTES_MAX + 1}, "67108865 bytes, over the limit of 67108864"),
    ],
)
def test_frame_out_of_place_is_named(changes, reason):
    assert reason in str(misplacement(header(**changes), 3, False, CHAIN))


def test_segment_that_begins_with_a_batch_lacks_its_head():
    assert misplacement(header(), 3, True, CHAIN) == "the head of a segment is missing"


@pytest.mark.parametrize("changes", [{"format": 2}, {"format": 0}, {"type": 7}, {"type": 0}, {"reserved": 1}])
def test_newer_frame_is_whole_but_not_supported(changes):
    assert not header(**changes).is_supported

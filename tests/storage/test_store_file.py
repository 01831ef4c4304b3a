"""The file `store`."""

from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from jqd.storage.store_file import Newer, StoreFile, decode_store_file, encode_store_file

ids = st.binary(min_size=16, max_size=16)
u64 = st.integers(0, 2**64 - 1)


@given(st.builds(StoreFile, ids, ids, u64, u64))
def test_decode_gives_back_what_was_encoded(store):
    assert decode_store_file(encode_store_file(store)) == store


def test_every_bit_and_length_is_guarded():
    data = encode_store_file(StoreFile(bytes(16), bytes(16), 7, 9))
    for bit in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        assert decode_store_file(bytes(damaged)) is None
    for length in range(len(data)):
        assert decode_store_file(data[:length]) is None
    assert decode_store_file(data + b"x") is None


def test_newer_format_is_told_from_damage():
    data = bytearray(encode_store_file(StoreFile(bytes(16), bytes(16))))
    data[4] = 2
    data[60:64] = crc32c(bytes(data[:60])).to_bytes(4, "little")
    assert decode_store_file(bytes(data)) == Newer(2)

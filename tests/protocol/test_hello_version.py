"""A client of another version is told so, whatever else its hello says."""

import msgpack
import pytest

from jqd.errors import InvalidArgument, VersionMismatch
from jqd.protocol.messages import decode_command, decode_request


def hello(**args):
    return decode_command(decode_request(msgpack.packb([1, "hello", args])))


def test_newer_hello_with_a_field_that_is_unknown_here_is_a_version_mismatch():
    with pytest.raises(VersionMismatch, match="version = 2: this server speaks 1"):
        hello(version=2, compression="zstd")


@pytest.mark.parametrize(
    "args",
    [{"version": 1, "compression": "zstd"}, {"version": "2"}, {"client": "x"}, {"version": 1, "minor": -5}],
)
def test_hello_that_is_wrong_in_its_own_version_is_an_invalid_argument(args):
    with pytest.raises(InvalidArgument):
        hello(**args)

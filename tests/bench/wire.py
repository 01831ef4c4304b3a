"""jqd's protocol as a load generator speaks it: requests are bytes made beforehand, replies are looked at as bytes.

Knows:         frames, the place of the request id in one, the few fields of a reply that a benchmark needs.
Must not know: jqd's own code: what is measured must not also be what measures; and the peers' harness loads this
               file with an interpreter of its own, which has msgspec and uvloop but no jqd.

Request ids start at 2^16 and are always written as msgpack's uint32, so that all requests of one kind have one
length and `ok` stands at one place in every reply. See protocol.md "Frames" and "Messages".
"""

import struct
from collections.abc import Iterable
from typing import Any, Final

import msgspec

FIRST_ID: Final = 1 << 16
PREFIX_BYTES: Final = 4
_HEAD: Final = struct.Struct(">IBBI")  # length, array of 3, uint32, request id
_ID: Final = struct.Struct(">I")
_ID_BYTES: Final = slice(6, 10)  # in a request, its length prefix included
_OK_BYTES: Final = slice(6, 9)  # in a reply's body: array of 4, uint32, then the status
_OK: Final = b"\xa2ok"

_encode: Final = msgspec.msgpack.Encoder().encode


class Job(msgspec.Struct, gc=False):
    job_id: int
    payload: bytes


class Leased(msgspec.Struct, gc=False):
    token: int
    jobs: list[Job]


class LeaseReply(msgspec.Struct, array_like=True, gc=False):
    request_id: int
    status: str
    lsn: int
    body: Leased


class Verdicts(msgspec.Struct, gc=False):
    results: list[tuple[int, int, str]]


class AckReply(msgspec.Struct, array_like=True, gc=False):
    request_id: int
    status: str
    lsn: int
    body: Verdicts


_lease_decoder: Final = msgspec.msgpack.Decoder(LeaseReply)
_ack_decoder: Final = msgspec.msgpack.Decoder(AckReply)


class Refused(Exception):
    """A reply whose status is not `ok`."""


def request(verb: str, args: dict[str, Any], request_id: int = FIRST_ID) -> bytes:
    """Return the frame of a request."""
    rest = _encode(verb) + _encode(args)
    return _HEAD.pack(6 + len(rest), 0x93, 0xCE, request_id) + rest


def hello(session: bytes | None) -> bytes:
    """Return the first request of a connection."""
    return request("hello", {"version": 1} if session is None else {"version": 1, "session": session})


def ack(token: int, ids: list[int], request_id: int = FIRST_ID) -> bytes:
    """Return the frame that finishes these jobs of one grant."""
    return request("ack", {"items": [(token, ranges(ids), None)]}, request_id)


def renumbered(frame: bytes, request_id: int) -> bytes:
    """Return the same request with another id."""
    return frame[: _ID_BYTES.start] + _ID.pack(request_id) + frame[_ID_BYTES.stop :]


def series(frame: bytes, count: int, first_id: int | None) -> memoryview:
    """Return `count` copies of a request behind each other; with first_id their ids rise from it."""
    if first_id is None:
        return memoryview(frame * count)
    head, tail = frame[: _ID_BYTES.start], frame[_ID_BYTES.stop :]
    pack = _ID.pack
    return memoryview(b"".join([head + pack(first_id + index) + tail for index in range(count)]))


def ranges(ids: list[int]) -> list[tuple[int, int]]:
    """Pack rising ids into (first, count) runs."""
    if ids[-1] - ids[0] == len(ids) - 1:
        return [(ids[0], len(ids))]
    runs: list[tuple[int, int]] = []
    for job_id in ids:
        if runs and job_id == runs[-1][0] + runs[-1][1]:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((job_id, 1))
    return runs


def cut(data: bytes) -> tuple[list[bytes], bytes]:
    """Return the bodies of the whole frames in `data`, and what is left over."""
    bodies: list[bytes] = []
    start, total = 0, len(data)
    unpack = _ID.unpack_from
    while start + PREFIX_BYTES <= total:
        end = start + PREFIX_BYTES + unpack(data, start)[0]
        if end > total:
            break
        bodies.append(data[start + PREFIX_BYTES : end])
        start = end
    return bodies, data[start:]


def is_ok(body: bytes) -> bool:
    """Tell whether a reply says `ok`."""
    return body[_OK_BYTES] == _OK


def check_all(bodies: Iterable[bytes]) -> None:
    """Refuse to go on if a reply does not say `ok`."""
    for body in bodies:
        if body[_OK_BYTES] != _OK:
            raise Refused(repr(msgspec.msgpack.decode(body)))


def leased(body: bytes) -> Leased:
    """Decode the reply of a lease."""
    check_all((body,))
    return _lease_decoder.decode(body).body


def acked_count(body: bytes) -> int:
    """Return how many jobs the reply of an ack says are finished."""
    check_all((body,))
    return sum(count for _, count, code in _ack_decoder.decode(body).body.results if code == "ok")

"""The clients of a simulated daemon: the SDK's own connection, and a worker's memory of what it was lent.

Knows:         what a client process remembers: its session, its grants, what it has seen.
Must not know: what the server should have answered (oracle.py).

A client is jqd.protocol.connection.ClientConnection over a Stream: it sends again what was not answered, as the
shipped clients do. Everything that leaves and arrives is decoded once more with the `msgpack` package and told
to the oracle, so that it judges bytes and not the client's reading of them.
"""

from collections.abc import Iterator
from typing import Any, Final

import msgpack
from msgspec import Struct, structs

from jqd.core import commands as c
from jqd.errors import JqdError
from jqd.protocol.connection import Answered, ClientConnection, Request, Session, State
from tests.sim.network import Stream

# What a client keeps in mind of leases that ended, to be used when it should not.
STALE_MAX: Final = 40


class Grant:
    """A lease as its worker sees it."""

    __slots__ = ("ids", "token")

    def __init__(self, token: int, ids: list[int]) -> None:
        self.token = token
        self.ids = ids


class Client:
    """See the file's card.

    Args:
        name: names its worker too.
        session: 16 bytes, unique in the run.
    """

    def __init__(self, name: str, session: bytes) -> None:
        self.name = name
        self.session = session
        self.marked: list[tuple[int, int]] = []  # (token, job id): it was told that they are to end
        self.shared = Session(
            c.Hello(version=c.PROTOCOL_VERSION, session=session, worker=name),
            lambda job_id, token: self.marked.append((token, job_id)),
        )
        self.wire = ClientConnection(self.shared, in_flight_max=64)
        self.stream: Stream | None = None
        self.grants: list[Grant] = []
        self.has_parked = False
        self.heard_ms = 0  # when bytes last arrived, by boot time
        self._rest = b""  # of the replies, for the oracle's eyes

    # --- the stream ---------------------------------------------------------------------------

    @property
    def releases(self) -> bool:
        """Whether its leases are to end with its connections, from its next hello on."""
        return self.shared.hello.on_disconnect == "release"

    def decide(self, *, releases: bool) -> None:
        self.shared.hello = structs.replace(
            self.shared.hello, on_disconnect="release" if releases else "keep"
        )

    def open(self, stream: Stream) -> None:
        self.stream = stream
        self._rest = b""
        self.wire.open()

    def close(self) -> list[Answered]:
        """The client sees that its stream has ended. Returns what ends with it, its outcome unknown."""
        self.stream = None
        self.has_parked = False
        return self.wire.closed()

    def flush(self) -> list[list[Any]]:
        """Hand what may be sent to the stream; return the requests in it, decoded."""
        sent: list[list[Any]] = []
        stream = self.stream
        while stream is not None and (data := self.wire.data_to_send()):
            stream.up += data
            sent += [message for _, message in messages_in(data)[0]]
        return sent

    def hear(self, data: bytes) -> tuple[list[tuple[bytes, list[Any]]], list[Answered]]:
        """Take bytes that arrived; return (frame, message) of each whole reply, and what the client made of them."""
        found, self._rest = messages_in(self._rest + data)
        return found, self.wire.receive_data(data)

    @property
    def is_ready(self) -> bool:
        return self.wire.state is State.READY

    # --- a worker's memory --------------------------------------------------------------------

    def learned(self, request: Request, outcome: Struct | JqdError) -> None:
        if request.kind is c.Lease:
            self.has_parked = False
        if isinstance(outcome, c.Leased) and outcome.jobs:
            self.grants.append(Grant(outcome.token, [job.job_id for job in outcome.jobs]))
        if isinstance(outcome, c.Extended):
            marked = {
                job_id for first, count in outcome.cancel_marked for job_id in range(first, first + count)
            }
            self.marked += [
                (grant.token, job_id) for grant in self.grants for job_id in grant.ids if job_id in marked
            ]
        del self.marked[:-STALE_MAX]

    def drop(self, grant: Grant) -> None:
        if grant in self.grants:
            self.grants.remove(grant)


def messages_in(data: bytes) -> tuple[list[tuple[bytes, list[Any]]], bytes]:
    """Return the whole frames with what is in them, and the rest."""
    found: list[tuple[bytes, list[Any]]] = []
    at = 0
    while len(data) - at >= 4:
        end = at + 4 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            break
        frame = data[at + 4 : end]
        found.append((frame, msgpack.unpackb(frame, strict_map_key=False)))
        at = end
    return found, data[at:]


def ranges_of(ids: list[int]) -> list[tuple[int, int]]:
    return c.to_ranges(sorted(ids))


def garbage(number: int) -> Iterator[bytes]:
    """Yield bytes that no client should send, before or instead of a hello."""
    yield (
        b"\x00\x00\x00\x05\xdd\xff\xff\xff\xff",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\xff\xff\xff" + bytes(64),
        b"\x00\x00\x00\x04\x93\x01\xa1x",
        b"\x00\x00\x00\x00",
        b"\x00\x00\x10\x01" + bytes(4_097),
    )[number % 6]

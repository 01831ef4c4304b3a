"""A client that a stranger could write from protocol.md: one blocking socket, the msgpack package, nothing of jqd.

    with RawClient(("127.0.0.1", 7717), client="me") as client:     connected, `client.welcome` is hello's body
        client.call("submit", payload=b"x")["job_id"]               the body, or Refused
        number = client.send("lease", wait_ms=20_000)               no waiting;
        client.reply(number)                                        what came first for others is kept for them

Knows:
    the framing, the two forms of messages and that replies are matched by id.
Must not know:
    anything of the package under test, what a verb means, when it is safe to ask again.
"""

import itertools
import socket
from typing import Any, NamedTuple, Self

import msgpack

PATIENCE_S = 30
FRAME_BYTES_MAX = 16 * 1024 * 1024  # of a reply's body; hello says it for requests

Body = dict[str, Any]


class Reply(NamedTuple):
    id: int
    status: str
    lsn: int
    body: Body


class Refused(Exception):
    """The status of the reply is a code."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(f"{reply.status}: {reply.body['message']}")
        self.reply = reply
        self.code = reply.status
        self.details = reply.body["details"]


class RawClient:
    """See the file's card.

    Args:
        address: host and port.
        greet: say hello, with `version` and the arguments that follow.
        first_id: id of the first request, hello's.
    """

    def __init__(
        self, address: tuple[str, int], *, greet: bool = True, first_id: int = 1, **hello: Any
    ) -> None:
        self.socket = socket.create_connection(address, PATIENCE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.welcome: Body = {}
        self._ids = itertools.count(first_id)
        self._early: dict[int, Reply] = {}
        if greet:
            try:
                self.welcome = self.call("hello", version=1, **hello)
            except BaseException:
                self.socket.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()

    def send(self, verb: str, *, number: int | None = None, **args: Any) -> int:
        """Send a request, with the next id unless `number` says another; return its id."""
        number = next(self._ids) if number is None else number
        self.send_body(msgpack.packb([number, verb, args]))
        return number

    def send_body(self, body: bytes) -> None:
        self.socket.sendall(len(body).to_bytes(4, "big") + body)

    def next_reply(self) -> Reply | None:
        """Return what comes next, whoever it is for; None at the end of the stream."""
        head = self._read(4)
        if not head:
            return None
        size = int.from_bytes(head, "big")
        assert 1 <= size <= FRAME_BYTES_MAX
        return Reply(*msgpack.unpackb(self._read(size))[:4])  # replies grow: later elements are not ours

    def reply(self, number: int) -> Reply:
        """Return the reply to this request. One to id 0 says that the connection ends."""
        while number not in self._early:
            reply = self.next_reply()
            if reply is None:
                raise ConnectionError(f"the stream ended before the reply to {number}")
            if reply.id == 0:
                raise Refused(reply)
            self._early[reply.id] = reply
        return self._early.pop(number)

    def call(self, verb: str, **args: Any) -> Body:
        """Send a request and return the body of its reply."""
        return self.answer(self.send(verb, **args))

    def answer(self, number: int) -> Body:
        reply = self.reply(number)
        if reply.status != "ok":
            raise Refused(reply)
        return reply.body

    def _read(self, size: int) -> bytes:
        """Return so many bytes, or none if the stream ends before the first."""
        chunks = bytearray()
        while len(chunks) < size:
            chunk = self.socket.recv(size - len(chunks))
            if not chunk:
                assert not chunks, "the stream ended within a frame"
                return b""
            chunks += chunk
        return bytes(chunks)

"""The protocol as a stranger would speak it: raw sockets and the `msgpack` package, nothing of jqd.

    wire = Wire.connect(daemon.address)         a TCP address or the path of a unix socket; says hello
    wire.ask("submit", payload=b"x")            one request and the body of its reply; Refused if it is an error
    wire.send(3, "ping", {}); wire.receive()    the halves of it, for pipelines and for what is out of order

A reply is (request_id, status, lsn, body). The end of the stream is EOFError.
"""

import os
import socket
import struct
from typing import Any, NamedTuple, Self

import msgpack

# A daemon that does not answer within this hangs; nothing a test waits for takes a tenth of it.
PATIENCE_S = float(os.environ.get("JQD_TEST_PATIENCE_S") or 30)

Address = tuple[str, int] | str


class Answer(NamedTuple):
    request_id: int
    status: str
    lsn: int
    body: Any


class Refused(Exception):
    """The reply was an error."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"{answer.status}: {answer.body['message']}")
        self.code = answer.status
        self.message: str = answer.body["message"]


def frame(value: object) -> bytes:
    return framed(msgpack.packb(value))


def framed(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


def request(request_id: int, verb: str, **args: object) -> bytes:
    return frame([request_id, verb, args])


def hello(request_id: int = 1, **args: object) -> bytes:
    return request(request_id, "hello", **{"version": 1, **args})


def split(data: bytes) -> tuple[list[Answer], bytes]:
    """Return the whole replies in `data`, and what is left of it."""
    answers = []
    start = 0
    while len(data) >= start + 4 and len(data) >= (
        end := start + 4 + struct.unpack_from(">I", data, start)[0]
    ):
        answers.append(Answer(*msgpack.unpackb(memoryview(data)[start + 4 : end])))
        start = end
    return answers, data[start:]


def answers_in(data: bytes) -> list[Answer]:
    """Return the replies that `data` consists of."""
    answers, rest = split(data)
    assert not rest, f"{len(rest)} bytes after the last whole frame"
    return answers


class Wire:
    """One blocking connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.next_id = 1
        self._data = b""
        self._answers: list[Answer] = []

    @classmethod
    def open(cls, address: Address) -> Self:
        """Connect without a word."""
        sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        sock.settimeout(PATIENCE_S)
        try:
            sock.connect(address)
            if sock.family == socket.AF_INET:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            sock.close()
            raise
        return cls(sock)

    @classmethod
    def connect(cls, address: Address, **args: object) -> Self:
        wire = cls.open(address)
        try:
            wire.ask("hello", version=1, **args)
        except BaseException:
            wire.close()
            raise
        return wire

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()

    def cut(self) -> None:
        """End the connection so that the other side learns of it at once."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def write(self, data: bytes) -> None:
        self.sock.sendall(data)

    def send(self, request_id: int, verb: str, args: dict[str, Any]) -> None:
        self.write(frame([request_id, verb, args]))

    def receive(self) -> Answer:
        while not self._answers:
            data = self.sock.recv(1 << 18)
            if not data:
                raise EOFError("the daemon closed the connection")
            self._answers, self._data = split(self._data + data)
        return self._answers.pop(0)

    def rest(self) -> list[Answer]:
        """Return all replies up to the end of the stream."""
        answers = []
        while True:
            try:
                answers.append(self.receive())
            except (EOFError, ConnectionResetError):
                return answers

    def try_ask(self, verb: str, **args: object) -> Answer:
        """Send one request and return its reply; others must not be under way."""
        request_id = self.next_id
        self.next_id += 1
        self.send(request_id, verb, args)
        answer = self.receive()
        assert answer.request_id == request_id, answer
        return answer

    def ask(self, verb: str, **args: object) -> Any:
        answer = self.try_ask(verb, **args)
        if answer.status != "ok":
            raise Refused(answer)
        return answer.body

    def listed(self) -> list[dict[str, Any]]:
        """Return every job, as `list` shows it."""
        jobs: list[dict[str, Any]] = []
        cursor: int | None = 0
        while cursor is not None:
            page = self.ask("list", cursor=cursor, limit=1_000)
            jobs += page["jobs"]
            cursor = page["cursor"]
        return jobs

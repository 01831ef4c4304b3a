"""What a client process writes down about its own requests, below the client and above it.

    recorder = Recorder(file)                   opens it, and looks over the shoulder of all connections made later
    with recorder.asking("worker-1") as one:    the next request of this thread or task
        client.submit(...)
        one.said = "ok"

Between the client and its byte stream stands a ClientConnection: there request ids are given out, and LSNs arrive
that the client does not pass on. `Watched` is one that tells the recorder. Nothing else of the client is changed.

What is written before a request leaves is flushed before it leaves: a client that is killed has asked what it says.

Knows:         jqd's sans-IO connection, the form of the file (operations.py).
Must not know: what is asked and why, what is right.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from threading import RLock
from typing import Any, Final

import msgpack
import msgspec

import jqd.client.link
import jqd.client.synclink
from jqd.core.commands import Command
from jqd.protocol.connection import Answered, ClientConnection, Request
from jqd.protocol.messages import ReceivedReply

# Of what need not be on its way before a request is.
_BUFFER_BYTES: Final = 64 << 10


@dataclass(eq=False, slots=True)
class Asking:
    """One request. number: 0 until it is known at the connection."""

    actor: str
    invoked: int
    said: str = ""
    number: int = 0
    sent_id: int = 0


_asking: ContextVar[Asking | None] = ContextVar("asking", default=None)


class Recorder:
    """See the file's card. One a process."""

    def __init__(self, file: Path) -> None:
        self._handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._buffer = bytearray()
        self._pack = msgpack.Packer().pack
        self._lock = RLock()
        self._count = 0
        self._by_request: dict[Request, Asking] = {}
        watch(self)

    def hello(self, session: bytes, worker: str) -> None:
        """Note who asks from now on."""
        self._write(["hello", sha256(session).hexdigest()[:16], worker])

    @contextlib.contextmanager
    def asking(self, actor: str) -> Iterator[Asking]:
        one = Asking(actor, time.monotonic_ns())
        token = _asking.set(one)
        try:
            yield one
        finally:
            _asking.reset(token)
            if one.number:
                self._write(["knew", one.number, time.monotonic_ns(), one.said])
                if len(self._buffer) > _BUFFER_BYTES:
                    self.flush()

    def flush(self) -> None:
        with self._lock:
            while self._buffer:
                del self._buffer[: os.write(self._handle, self._buffer)]

    def _write(self, record: list[Any]) -> None:
        with self._lock:
            self._buffer += self._pack(record)

    # --- what connections tell ------------------------------------------------------------------

    def requested(self, request: Request, command: Command[Any]) -> None:
        one = _asking.get()
        if one is None or one.number:  # the client's own: it gives back what nobody waits for
            one = Asking("", time.monotonic_ns())
        with self._lock:
            self._count += 1
            one.number = self._count
            self._by_request[request] = one
            args = msgspec.to_builtins(command, builtin_types=(bytes,))
            self._write(["asked", one.number, one.actor, one.invoked, command.verb, args])

    def sending(self, requests: list[Request]) -> None:
        with self._lock:
            for request in requests:
                one = self._by_request[request]
                if one.sent_id != request.id:
                    one.sent_id = request.id
                    self._write(["sent", one.number, request.id])
            self.flush()

    def replied(self, request: Request, reply: ReceivedReply) -> None:
        one = self._by_request.pop(request)
        body = bytes(reply.body)
        told = [
            "told",
            one.number,
            time.monotonic_ns(),
            request.id,
            request.sends,
            reply.status,
            reply.lsn,
            body,
        ]
        self._write(told)


def watch(recorder: Recorder) -> None:
    """Have both clients make connections that tell the recorder."""

    class Watched(ClientConnection):
        def request(self, command: Command[Any]) -> Request:
            request = super().request(command)
            recorder.requested(request, command)
            return request

        def data_to_send(self) -> bytes:
            data = super().data_to_send()
            if data and self._unanswered:
                recorder.sending(list(self._unanswered.values()))
            return data

        def _take(self, reply: ReceivedReply, answers: list[Answered]) -> None:
            before = len(answers)
            super()._take(reply, answers)
            for request, _ in answers[before:]:
                recorder.replied(request, reply)

    for module in (jqd.client.link, jqd.client.synclink):
        assert hasattr(module, "ClientConnection")
        setattr(module, "ClientConnection", Watched)  # noqa: B010 - the name is another class there, for mypy

"""A server without a queue: says what a test tells it to, over the real framing and messages.

Knows:         hello, one answer per request, how to be silent, late, or gone.
Must not know: jobs. What it answers is in `answers` (by verb), or said later with `reply()`.

    async with FakeServer() as server:
        server.answers["submit"] = Submitted(job_id=1)      # an Answer, a JqdError, or f(asked) -> either or None
        async with AsyncClient(server.url) as client: ...

A verb without an answer gets none: await `heard(n)` for the n-th request, then `reply` or `cut`.
FakeServer.thread() runs one beside a program that has an event loop of its own, or none: do(f, ...) calls f where
the server runs, and wait(coroutine) waits for it there.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, NamedTuple, Self, TypeVar

from msgspec import Struct

from jqd.core.commands import PROTOCOL_VERSION, Command, Hello, Welcome
from jqd.core.model import FRAME_BYTES_MAX
from jqd.errors import JqdError
from jqd.protocol import framing, messages

T = TypeVar("T")

WELCOME = Welcome(
    version=PROTOCOL_VERSION,
    minor=0,
    server="fake",
    store_id="fake",
    epoch=1,
    start_lsn=1,
    engine_ms=0,
    wall_ms=1_700_000_000_000,
    limits={},
)


class Asked(NamedTuple):
    """One request that came."""

    connection: "Connection"
    request_id: int
    command: Command[Any]


Said = Struct | JqdError | None
Answering = Said | Callable[[Asked], Said]


def reply_frame(request_id: int, body: Struct | JqdError, lsn: int = 1) -> bytes:
    if isinstance(body, JqdError):
        return framing.to_frame(messages.encode_error(request_id, lsn, body))
    return framing.to_frame(messages.encode_reply(request_id, lsn, body))


class Connection(asyncio.Protocol):
    """One client's socket."""

    def __init__(self, server: "FakeServer") -> None:
        self.server = server
        self.reader = framing.FrameReader(FRAME_BYTES_MAX)
        self.hello: Hello | None = None
        self.ended = asyncio.Event()  # the client closed its side
        self.lost = asyncio.Event()
        self.transport: asyncio.Transport

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.server.meet(self)
        if self.server.refuse_connections:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        self.reader.feed(data)
        while (frame := self.reader.next_frame()) is not None:
            request = messages.decode_request(frame)
            try:
                command = messages.decode_command(request)
            except JqdError as error:
                self.say(request.request_id, error)
                continue
            if isinstance(command, Hello):
                self.hello = command
                welcome = self.server.welcome
                said = welcome() if callable(welcome) else welcome
                if said is not None:
                    self.say(request.request_id, said)
            else:
                self.server.take(Asked(self, request.request_id, command))

    def eof_received(self) -> bool:
        self.ended.set()
        return self.server.linger

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set()
        self.lost.set()

    def say(self, request_id: int, body: Struct | JqdError) -> None:
        self.write(reply_frame(request_id, body, self.server.lsn))

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    def cut(self) -> None:
        """End the connection at once, unsent bytes and all."""
        self.transport.abort()


class FakeServer:
    """See the file's card. `path`: listen on this unix socket instead of a TCP port."""

    def __init__(self, path: str | None = None) -> None:
        self.path = path
        self.url = ""
        self.welcome: Said | Callable[[], Said] = WELCOME
        self.lsn = 1  # what replies say
        self.answers: dict[str, Answering] = {}
        self.refuse_connections = False
        self.linger = False  # keep the socket open after the client closed its side
        self.connections: list[Connection] = []
        self.asked: list[Asked] = []
        self.loop: asyncio.AbstractEventLoop
        self._news = asyncio.Event()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.leave()

    async def listen(self, port: int = 0) -> None:
        loop = self.loop = asyncio.get_running_loop()
        if self.path is not None:
            self._server = await loop.create_unix_server(lambda: Connection(self), self.path)
            self.url = f"unix://{self.path}"
        else:
            self._server = await loop.create_server(lambda: Connection(self), "127.0.0.1", port)
            self.url = f"jqd://127.0.0.1:{self.port}"

    @property
    def port(self) -> int:
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def leave(self) -> None:
        """Stop listening and cut every connection."""
        assert self._server is not None
        self._server.close()
        for connection in self.connections:
            connection.cut()
            await connection.lost.wait()
        await self._server.wait_closed()

    def take(self, asked: Asked) -> None:
        self.asked.append(asked)
        answer = self.answers.get(asked.command.verb)
        if callable(answer):
            answer = answer(asked)
        if answer is not None:
            asked.connection.say(asked.request_id, answer)
        self._news.set()

    def meet(self, connection: Connection) -> None:
        self.connections.append(connection)
        self._news.set()

    async def met(self, count: int) -> list[Connection]:
        """Wait until `count` connections came in all."""
        while len(self.connections) < count:
            self._news.clear()
            await self._news.wait()
        return self.connections

    async def heard(self, count: int) -> list[Asked]:
        """Wait until `count` requests came in all."""
        while len(self.asked) < count:
            self._news.clear()
            await self._news.wait()
        return self.asked

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run it in the server's thread, from another one."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(10)

    def do(self, function: Callable[..., object], *args: object) -> None:
        """Call it in the server's thread, from another one."""

        async def call() -> None:
            function(*args)

        self.wait(call())

    @classmethod
    @contextlib.contextmanager
    def thread(cls, path: str | None = None) -> Iterator["FakeServer"]:
        """Run one in a thread, for programs that bring their own event loop."""
        started: threading.Event = threading.Event()
        box: dict[str, Any] = {}

        async def serve() -> None:
            async with cls(path) as server:
                box.update(server=server, loop=asyncio.get_running_loop(), stop=asyncio.Event())
                started.set()
                await box["stop"].wait()

        thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
        thread.start()
        assert started.wait(10)
        try:
            yield box["server"]
        finally:
            box["loop"].call_soon_threadsafe(box["stop"].set)
            thread.join(10)

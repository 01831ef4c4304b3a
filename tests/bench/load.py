"""The load generator: connections as state machines, no task and no future for a single job.

Knows:         how many requests are in flight, what is sent when a reply comes.
Must not know: which figures come out of it.

It shares the machine with the daemon, so what it does per job is kept to a slice and a look at three bytes.
"""

import asyncio
import os
import time
from collections.abc import Sequence
from typing import NamedTuple, cast

from tests.bench import wire
from tests.bench.server import Server


class Span(NamedTuple):
    """What a measured piece of work took."""

    wall_s: float
    user_s: float  # of the daemon
    system_s: float  # of the daemon
    client_s: float


class Line(asyncio.Protocol):
    """One connection: bytes go out, whole replies are its subclass's business.

    Args:
        hello: what is said first; empty: there is no greeting.
    """

    def __init__(self, hello: bytes = b"") -> None:
        self._hello = hello
        self._rest = b""
        self._transport: asyncio.Transport | None = None
        self._greeted = asyncio.get_running_loop().create_future()
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def open(self, port: int) -> None:
        await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", port)
        if self._hello:
            self.write(self._hello)
            await self._greeted
        else:
            self._greeted.set_result(None)

    def start(self) -> None:
        """Send the first requests."""
        raise NotImplementedError

    def greeting(self, data: bytes) -> bytes:
        """Call greeted() if this answers hello; return what is not yet a whole reply."""
        raise NotImplementedError

    def take(self, data: bytes) -> bytes:
        """Look at the replies that came; return what is not yet a whole one."""
        raise NotImplementedError

    def greeted(self) -> None:
        self._greeted.set_result(None)

    def write(self, data: bytes | memoryview) -> None:
        assert self._transport is not None
        self._transport.write(data)

    def close(self) -> None:
        assert self._transport is not None
        self._transport.abort()

    def finish(self) -> None:
        self.finished.set_result(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        try:
            look = self.take if self._greeted.done() else self.greeting
            self._rest = look(self._rest + data if self._rest else data)
        except Exception as error:
            self._fail(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(exc or ConnectionError("the server closed a connection"))

    def _fail(self, error: Exception) -> None:
        for future in (self._greeted, self.finished):
            if not future.done():
                future.set_exception(error)
                future.exception()  # one of them is looked at


class Lane(Line):
    """A connection to jqd that plays its part until it has nothing left to do."""

    def __init__(self, session: bytes | None) -> None:
        super().__init__(wire.hello(session))
        self.session = session
        self.next_id = wire.FIRST_ID + 1  # that one was hello's

    def step(self, bodies: list[bytes]) -> None:
        """Go on: these replies came."""
        raise NotImplementedError

    def take_id(self) -> int:
        """Return the id of the next request. Without a session nobody remembers ids, and one is enough."""
        if self.session is not None:
            self.next_id += 1
        return self.next_id

    def greeting(self, data: bytes) -> bytes:
        bodies, rest = wire.cut(data)
        if bodies:
            wire.check_all(bodies)
            self.greeted()
        return rest

    def take(self, data: bytes) -> bytes:
        bodies, rest = wire.cut(data)
        self.step(bodies)
        return rest


class Replay(Lane):
    """Sends requests made beforehand, a number of them in flight, and looks only whether each was answered `ok`.

    Args:
        frame: the request; every one is the same but for its id.
        count: how many are sent.
        window: how many are in flight.
    """

    def __init__(self, session: bytes | None, frame: bytes, count: int, window: int) -> None:
        super().__init__(session)
        self._stride = len(frame)
        self._count = count
        self._window = window
        self._stream = wire.series(frame, count, None if session is None else self.next_id)
        self._sent = 0
        self._answered = 0

    def start(self) -> None:
        self._send(self._window)

    def step(self, bodies: list[bytes]) -> None:
        wire.check_all(bodies)
        self._answered += len(bodies)
        if self._answered == self._count:
            self.finish()
        elif self._sent < self._count:
            self._send(len(bodies))

    def _send(self, count: int) -> None:
        begin = self._sent
        self._sent = min(begin + count, self._count)
        if self._sent > begin:
            self.write(self._stream[begin * self._stride : self._sent * self._stride])


class LeaseAck(Lane):
    """Leases `batch` jobs, acks them in one request when they came, and so on until it has had `count`."""

    def __init__(self, session: bytes | None, count: int, batch: int) -> None:
        super().__init__(session)
        self._lease = wire.request("lease", {"count": batch})
        self._left = count
        self._batch = batch
        self._held = 0

    def start(self) -> None:
        self.write(wire.renumbered(self._lease, self.take_id()))

    def step(self, bodies: list[bytes]) -> None:
        for body in bodies:
            if not self._held:
                grant = wire.leased(body)
                self._held = len(grant.jobs)
                if self._held != self._batch:
                    raise RuntimeError(
                        f"leased {self._held} jobs of {self._batch}: the queue was filled with more"
                    )
                self.write(wire.ack(grant.token, [job.job_id for job in grant.jobs], self.take_id()))
                continue
            done = wire.acked_count(body)
            if done != self._held:
                raise RuntimeError(f"{done} of {self._held} jobs were acked")
            self._left -= done
            self._held = 0
            if self._left > 0:
                self.start()
            else:
                self.finish()


def new_session(*, wanted: bool) -> bytes | None:
    """Return what a connection says in hello about its session."""
    return os.urandom(16) if wanted else None


async def play(server: Server, lanes: Sequence[Lane]) -> Span:
    """Connect the lanes, then measure them from the first request to the last reply."""
    for lane in lanes:
        await lane.open(server.port)
    client_s, before, begun_s = time.process_time(), server.cpu_s(), time.perf_counter()
    for lane in lanes:
        lane.start()
    for lane in lanes:
        await lane.finished
    wall_s, after = time.perf_counter() - begun_s, server.cpu_s()
    span = Span(wall_s, after[0] - before[0], after[1] - before[1], time.process_time() - client_s)
    for lane in lanes:
        lane.close()
    return span

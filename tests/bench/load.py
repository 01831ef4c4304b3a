"""The load generator: connections as state machines, no task and no future for a single job.

Knows:         how many requests are in flight, what is sent when a reply comes.
Must not know: which figures come out of it.

It shares the machine with the server, so what it does per job is kept to a slice and a look at three bytes.

    Line                a connection
      Lane              to jqd: Replay, LeaseAck
      Talk              to any server, in its dialect (dialects.py): Producer, Paced, Worker
"""

import asyncio
import contextlib
import os
import string
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, NamedTuple, cast

from tests.bench import wire
from tests.bench.dialects import Dialect
from tests.bench.server import Program


class Span(NamedTuple):
    """What a measured piece of work took."""

    wall_s: float
    user_s: float  # of the server
    system_s: float  # of the server
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

    def heard(self, data: bytes) -> bytes:
        """Look at the replies that came; return what is not yet a whole one."""
        raise NotImplementedError

    def greeted(self) -> None:
        self._greeted.set_result(None)

    def write(self, data: bytes | memoryview) -> None:
        assert self._transport is not None
        self._transport.write(data)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def finish(self) -> None:
        self.finished.set_result(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        try:
            look = self.heard if self._greeted.done() else self.greeting
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

    def heard(self, data: bytes) -> bytes:
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


# --- the same load for any server ---------------------------------------------------------------


PAYLOAD_BYTES: Final = 100
# More than are ever leased at once, so that no two leased jobs have the same payload.
_DISTINCT: Final = 1 << 14
_TAIL: Final = string.ascii_letters.encode() + string.digits.encode() + b"." * 22


def payload(number: int) -> bytes:
    """Return the payload of a job: a number in 16 hexadecimal digits, then what fills it up."""
    return b"%016x" % number + _TAIL


assert len(payload(0)) == PAYLOAD_BYTES


class Frames:
    """Submits made beforehand, in a ring; their payloads differ.

    Args:
        jobs: how many each submit brings.
    """

    def __init__(self, dialect: Dialect, jobs: int = 1) -> None:
        self.jobs = jobs
        if jobs == 1:
            frames = [dialect.submit(payload(number)) for number in range(_DISTINCT)]
        else:
            numbers = range(0, _DISTINCT - jobs, jobs)
            frames = [dialect.submit_many([payload(first + n) for n in range(jobs)]) for first in numbers]
        self._count = len(frames)
        self._stride = len(frames[0])
        assert all(len(frame) == self._stride for frame in frames)
        self._ring = memoryview(b"".join(frames))
        self._next = 0

    def take(self, count: int) -> memoryview:
        """Return the next frames."""
        assert count <= self._count
        if self._next + count > self._count:
            self._next = 0
        begin = self._next * self._stride
        self._next += count
        return self._ring[begin : self._next * self._stride]


class Supply:
    """The jobs that the lines of a run share: how many they may still take, how many are done.

    Args:
        jobs: how many there are.
        seconds: how long they may be taken, from begin().
    """

    def __init__(self, jobs: int, seconds: float | None = None) -> None:
        self.left = jobs
        self.done = 0
        self._seconds = seconds
        self._over = False
        self._goal: int | None = None
        self._reached = asyncio.Event()

    def begin(self) -> None:
        if self._seconds is not None:
            asyncio.get_running_loop().call_later(self._seconds, self.close)

    def close(self) -> None:
        self.left, self._over = 0, True

    def take(self, wanted: int) -> int:
        """Return how many of the wanted jobs may be begun."""
        taken = min(wanted, self.left)
        self.left -= taken
        return taken

    def give_back(self, count: int) -> None:
        """Leave jobs that could not be had to others."""
        if not self._over:
            self.left += count

    def add(self, count: int) -> None:
        """Count jobs that are done."""
        self.done += count
        if self._goal is not None and self.done >= self._goal:
            self._reached.set()

    async def reach(self, goal: int) -> None:
        """Wait until so many jobs are done."""
        self._goal = goal
        self.add(0)
        await self._reached.wait()


class Talk(Line):
    """A connection to any server, in its dialect."""

    def __init__(self, dialect: Dialect, supply: Supply) -> None:
        super().__init__(dialect.hello)
        self.dialect = dialect
        self.supply = supply

    def greeting(self, data: bytes) -> bytes:
        answered, rest = self.dialect.greeted(data)
        if answered:
            self.greeted()
        return rest


class Producer(Talk):
    """Submits as long as there is something to take, a number of requests in flight."""

    def __init__(self, dialect: Dialect, supply: Supply, frames: Frames, window: int) -> None:
        super().__init__(dialect, supply)
        self._frames = frames
        self._window = window
        self._in_flight = 0

    def start(self) -> None:
        self._go_on(self._window)

    def heard(self, data: bytes) -> bytes:
        count, rest = self.dialect.submitted(data)
        if count:
            self._in_flight -= count
            self.supply.add(count * self._frames.jobs)
            self._go_on(count)
        return rest

    def _go_on(self, count: int) -> None:
        count = self.supply.take(count * self._frames.jobs) // self._frames.jobs
        if count:
            self._in_flight += count
            self.write(self._frames.take(count))
        elif not self._in_flight:
            self.finish()


class Paced(Talk):
    """Submits when it is told to, whatever was answered; each payload begins with the time of its submit."""

    def __init__(self, dialect: Dialect, supply: Supply) -> None:
        super().__init__(dialect, supply)
        self.submitted = 0

    def start(self) -> None:
        """Wait to be told."""

    def submit(self) -> None:
        self.submitted += 1
        self.write(self.dialect.submit(payload(time.perf_counter_ns())))

    def heard(self, data: bytes) -> bytes:
        count, rest = self.dialect.submitted(data)
        self.supply.add(count)
        return rest


class Worker(Talk):
    """Leases up to `batch` jobs, acks them when they came, and so on as long as there is something to take.

    Args:
        wait: wait for jobs where there are none; otherwise that is an error: the supply said that there are.
        times: gets the time in ns from the submit to here, for jobs of Paced.
    """

    def __init__(
        self, dialect: Dialect, supply: Supply, batch: int, *, wait: bool, times: list[int] | None = None
    ) -> None:
        super().__init__(dialect, supply)
        self._batch = batch
        self._wait = wait
        self._times = times
        self._lease = dialect.lease(batch, wait=wait)
        self._asked = 0
        self._replies = 0  # still to come to what was asked
        self._jobs: list[Any] = []
        self._acks = 0  # still to come

    def start(self) -> None:
        self._asked = asked = self.supply.take(self._batch)
        if not asked:
            self.finish()
            return
        self._replies = self.dialect.replies(asked)
        self.write(self._lease if asked == self._batch else self.dialect.lease(asked, wait=self._wait))

    def heard(self, data: bytes) -> bytes:
        if self._replies:
            return self._take_jobs(data)
        count, rest = self.dialect.acked(data)
        self._acks -= count
        if count and not self._acks:
            self.supply.add(len(self._jobs))
            self._jobs = []
            self.start()
        return rest

    def _take_jobs(self, data: bytes) -> bytes:
        count, jobs, rest = self.dialect.leased(data)
        self._replies -= count
        self._jobs += jobs
        if self._times is not None:
            now = time.perf_counter_ns()
            self._times += [now - int(self.dialect.payload(job)[:16], 16) for job in jobs]
        if not self._replies:
            self.supply.give_back(self._asked - len(self._jobs))
            self._acks = len(self._jobs)
            if self._jobs:
                self.write(self.dialect.ack(self._jobs))
            elif self._wait:
                self.start()
            else:
                raise RuntimeError(f"no job to lease, and {self._asked} were to be there")
        return rest


# --- playing ------------------------------------------------------------------------------------


def new_session(*, wanted: bool) -> bytes | None:
    """Return what a connection says in hello about its session."""
    return os.urandom(16) if wanted else None


class Meter:
    """Measures from when it is made to span()."""

    def __init__(self, server: Program) -> None:
        self._server = server
        self._client_s, self._before = time.process_time(), server.cpu_s()
        self._begun_s = time.perf_counter()

    def span(self) -> Span:
        wall_s, after = time.perf_counter() - self._begun_s, self._server.cpu_s()
        user_s, system_s = (later - before for later, before in zip(after, self._before, strict=True))
        return Span(wall_s, user_s, system_s, time.process_time() - self._client_s)


@contextlib.asynccontextmanager
async def connected(server: Program, lines: Sequence[Line]) -> AsyncIterator[None]:
    """Connect the lines, and close them whatever happens: uvloop may wait for ever for those left open."""
    try:
        for line in lines:
            await line.open(server.port)
        yield
    finally:
        for line in lines:
            line.close()
        await asyncio.sleep(0)  # the loop closes them in its next turn


async def play(server: Program, lines: Sequence[Line], supply: Supply | None = None) -> Span:
    """Connect the lines, then measure them from the first request to the last reply."""
    async with connected(server, lines):
        meter = Meter(server)
        if supply is not None:
            supply.begin()
        for line in lines:
            line.start()
        for line in lines:
            await line.finished
        return meter.span()

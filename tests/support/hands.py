"""A driver's surroundings, moved by hand: clock, timers, and sockets that take bytes when a test says so.

async with Room() as room:              a driver on a GateStore; timers fire only in room.advance()
    peer = await room.peer()            a connection that has said hello
    peer.say(request(2, "ping"))        bytes arrive, as the loop would deliver them
    await room.settle()                 until no turn is under way and no reply waits for the disk
    peer.heard()                        the replies that reached the socket since it was asked last
"""

import asyncio
from collections.abc import Callable
from typing import Any, Self, cast

from jqd.core.engine import Engine
from jqd.core.memory import UNLIMITED_BYTES
from jqd.core.model import Now
from jqd.core.queues import Identity
from jqd.core.state import State
from jqd.server.config import Config
from jqd.server.driver import Clock, Connection, Driver
from tests.support.gatestore import GateStore
from tests.support.wire import Answer, answers_in, hello


class Timer:
    def __init__(self, due_s: float, call: Callable[[], object]) -> None:
        self.due_s = due_s
        self.call = call
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class HandLoop:
    """The running loop, but for its clock."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.call_soon = loop.call_soon
        self.call_soon_threadsafe = loop.call_soon_threadsafe
        self.now_s = 0.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now_s

    def call_later(self, delay_s: float, callback: Callable[..., object], *args: object) -> Timer:
        timer = Timer(self.now_s + delay_s, lambda: callback(*args))
        self.timers.append(timer)
        return timer


class HandClock:
    def __init__(self) -> None:
        self.engine_ms = 1_000
        self.wall_ms = 1_700_000_000_000

    def now(self) -> Now:
        return Now(self.engine_ms, self.wall_ms)


class HandTransport:
    """A socket whose other side takes everything at once, or with `slow` only what is read()."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.writes: list[bytes] = []
        self.unsent_bytes = 0
        self.slow = False
        self.reading = True
        self.closing = False
        self.lost = False
        self.aborted = False
        self._high = 64 << 10
        self._paused = False

    # --- what a transport is asked ---

    def set_write_buffer_limits(self, high: int) -> None:
        self._high = high

    def get_write_buffer_size(self) -> int:
        return self.unsent_bytes

    def is_closing(self) -> bool:
        return self.closing

    def write(self, data: bytes) -> None:
        assert data, "an empty write"
        assert not self.closing, "a write after close"
        self.writes.append(data)
        if self.slow:
            self.unsent_bytes += len(data)
            if self.unsent_bytes > self._high and not self._paused:
                self._paused = True
                self.connection.pause_writing()

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def close(self) -> None:
        self.closing = True
        if not self.unsent_bytes:
            asyncio.get_running_loop().call_soon(self._lose)

    def abort(self) -> None:
        self.closing = self.aborted = True
        asyncio.get_running_loop().call_soon(self._lose)

    def _lose(self) -> None:
        if not self.lost:
            self.lost = True
            self.connection.connection_lost(None)

    # --- what the other side does ---

    def read(self, size: int) -> None:
        """Take some bytes of what was written."""
        self.unsent_bytes -= min(size, self.unsent_bytes)
        if self._paused and self.unsent_bytes <= self._high // 4:
            self._paused = False
            self.connection.resume_writing()
        if self.closing and not self.unsent_bytes:
            asyncio.get_running_loop().call_soon(self._lose)

    def vanish(self) -> None:
        """End the connection from the other side."""
        self.closing = True
        self._lose()


class Peer:
    """One connection with its transport."""

    def __init__(self, room: "Room") -> None:
        self.room = room
        self.connection = room.driver.new_connection()
        self.transport = HandTransport(self.connection)
        self._heard = 0
        self.connection.connection_made(cast("asyncio.BaseTransport", self.transport))

    def say(self, data: bytes) -> None:
        self.connection.data_received(data)

    def heard(self) -> list[Answer]:
        writes = self.transport.writes[self._heard :]
        self._heard += len(writes)
        return answers_in(b"".join(writes))

    async def ask(self, *requests: bytes) -> list[Answer]:
        """Let requests arrive together; return all that is said from then on until nothing is left to do."""
        self.heard()
        self.say(b"".join(requests))
        await self.room.settle()
        return self.heard()


class Room:
    """See the file's card. Options are settings of the daemon, and on_trouble as the driver takes it."""

    def __init__(
        self, on_trouble: Callable[[str, str], object] = lambda subject, words: None, **settings: Any
    ) -> None:
        self.store = GateStore()
        self.clock = HandClock()
        self.loop = HandLoop()
        self.failures: list[BaseException] = []
        self.driver = Driver(
            Engine(
                State(),
                Identity(server="jqd test", store_id="0" * 32),
                memory_soft_bytes=settings.get("memory_soft_bytes", UNLIMITED_BYTES),
            ),
            self.store,
            Config(**{"data_dir": "/nowhere", "unix": None, "max_connections": 100, **settings}),
            cast("asyncio.AbstractEventLoop", self.loop),
            cast("Clock", self.clock),
            self.failures.append,
            on_trouble,
        )

    async def __aenter__(self) -> Self:
        self.driver.start("0")
        await self.settle()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.store.gate.set()
        self.driver._committer.stop()

    @property
    def busy(self) -> bool:
        driver = self.driver
        return bool(driver._waiting or driver._now or driver._unfinished)

    async def settle(self) -> None:
        """Wait until no turn is under way and no reply waits for the disk."""
        await self.until(lambda: not self.busy)
        await self.turns(3)
        if self.busy:
            await self.settle()

    async def until(self, happened: Callable[[], object]) -> None:
        """Turn the loop until something has happened."""
        while not happened():  # noqa: ASYNC110 - the commit thread tells nobody but the loop
            await asyncio.sleep(0)

    async def turns(self, count: int = 10) -> None:
        """Let the loop do all that it can without the disk."""
        for _ in range(count):
            await asyncio.sleep(0)

    async def syncing(self, number: int | None = None) -> None:
        """Wait until the next (or that) sync has begun; with a closed gate it then stands still."""
        await asyncio.to_thread(self.store.wait_for, "sync", number or self.store.count("sync") + 1)

    async def peer(self, **args: object) -> Peer:
        peer = Peer(self)
        (welcome,) = await peer.ask(hello(1, **args))
        assert welcome.status == "ok", welcome
        return peer

    async def advance(self, seconds: float) -> None:
        """Let time pass: both clocks and every timer that comes due on the way, in order."""
        await self._written()
        end_s = self.loop.now_s + seconds
        while due := [timer for timer in self.loop.timers if not timer.cancelled and timer.due_s <= end_s]:
            timer = min(due, key=lambda each: each.due_s)
            self.loop.timers.remove(timer)
            self._move_to(max(timer.due_s, self.loop.now_s))
            timer.call()
            await self.turns()
            await self._written()
        self._move_to(end_s)

    async def _written(self) -> None:
        """Wait until the disk has what it was handed: time moved by hand must not make an open gate look slow."""
        driver, gate = self.driver, self.store.gate
        await self.until(lambda: not driver._waiting or self.failures or not gate.is_set())

    def jump(self, seconds: float, *, asleep: bool = False) -> None:
        """Let time pass while nobody runs. asleep: the machine slept, so that timers do not know of it."""
        ms = round(seconds * 1_000)
        self.clock.engine_ms += ms
        self.clock.wall_ms += ms
        if not asleep:
            self.loop.now_s += seconds

    def _move_to(self, now_s: float) -> None:
        passed_ms = round((now_s - self.loop.now_s) * 1_000)
        self.loop.now_s = now_s
        self.clock.engine_ms += passed_ms
        self.clock.wall_ms += passed_ms

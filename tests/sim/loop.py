"""The event loop and the clocks of a simulated machine: nothing happens but when a plan says so.

Knows:         what the driver asks of an asyncio loop; three clocks that move together or apart.
Must not know: sockets, disks, what the callbacks do.

    wait      all clocks move, the loop's timers come due
    jump      the wall clock alone moves
    suspend   the machine sleeps: its timers do not know, boot time and wall clock do

A pass runs what was ready when it began, as asyncio does; what comes meanwhile is for the next one.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from heapq import heappop, heappush
from typing import Any

from jqd.core.model import Now


class Clocks:
    """Milliseconds of one machine."""

    def __init__(self, wall_ms: int) -> None:
        self.boot_ms = 1_000
        self.wall_ms = wall_ms
        self.loop_ms = 0

    def wait(self, ms: int) -> None:
        self.boot_ms += ms
        self.wall_ms += ms
        self.loop_ms += ms

    def suspend(self, ms: int) -> None:
        self.boot_ms += ms
        self.wall_ms += ms

    def boot_s(self) -> float:
        return self.boot_ms / 1_000


class EngineClock:
    """What jqd.server.driver.Clock is on a real machine."""

    def __init__(self, clocks: Clocks, high_water_ms: int) -> None:
        self._clocks = clocks
        self._offset_ms = high_water_ms - clocks.boot_ms

    def now(self) -> Now:
        return Now(self._offset_ms + self._clocks.boot_ms, self._clocks.wall_ms)


class Handle:
    __slots__ = ("args", "call")

    def __init__(self, call: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.call: Callable[..., object] | None = call
        self.args = args

    def cancel(self) -> None:
        self.call = None


class SimLoop:
    """As much of asyncio.AbstractEventLoop as the daemon's driver needs, drain() included."""

    def __init__(self, clocks: Clocks) -> None:
        self._clocks = clocks
        self._ready: deque[Handle] = deque()
        self._timers: list[tuple[float, int, Handle]] = []
        self._serial = 0

    # --- what a loop is asked -----------------------------------------------------------------

    def time(self) -> float:
        return self._clocks.loop_ms / 1_000

    def call_soon(self, call: Callable[..., object], *args: Any, context: Context | None = None) -> Handle:
        handle = Handle(call, args) if context is None else Handle(context.run, (call, *args))
        self._ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_later(
        self, delay_s: float, call: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Handle:
        handle = Handle(call, args) if context is None else Handle(context.run, (call, *args))
        self._serial += 1
        heappush(self._timers, (self.time() + delay_s, self._serial, handle))
        return handle

    def create_future(self) -> "asyncio.Future[Any]":
        return asyncio.Future(loop=self)  # type: ignore[arg-type]

    def create_task(self, work: Coroutine[Any, Any, Any], **_: object) -> "asyncio.Task[Any]":
        return asyncio.Task(work, loop=self)  # type: ignore[arg-type]

    def get_debug(self) -> bool:
        return False

    # --- what a simulation does ---------------------------------------------------------------

    def run(self) -> bool:
        """Make one pass; tell whether there was anything to do."""
        ready, timers = self._ready, self._timers
        now_s = self.time()
        while timers and timers[0][0] <= now_s:
            ready.append(heappop(timers)[2])
        count = len(ready)
        for _ in range(count):
            handle = ready.popleft()
            if handle.call is not None:
                handle.call(*handle.args)
        return count > 0

    def run_task(self, work: Coroutine[Any, Any, Any], meanwhile: Callable[[], object]) -> None:
        """Run a coroutine to its end; `meanwhile` lets the rest of the world act when the loop has nothing to do."""
        asyncio._set_running_loop(self)  # type: ignore[arg-type]
        try:
            task = self.create_task(work)
            while not task.done():
                if not self.run():
                    meanwhile()
            task.result()
        finally:
            asyncio._set_running_loop(None)

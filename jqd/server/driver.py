"""The loop around the engine: sockets, clocks and turns.

Knows:         asyncio transports, the two clocks, when a turn ends, whose replies wait for which LSN.
Must not know: what a command does, what a frame looks like, how a record is stored.

One turn: all bytes that the loop delivers before its next pass. It has one reading of the clocks,
one record, and one write per connection:

    data_received ... data_received      session -> engine, replies kept in the session
    _end_turn (call_soon)                engine.finish_turn, take_batch -> committer
    _durable(lsn) (from the commit thread)  replies of all turns up to lsn -> sockets

There is no task, no future and no log line per request on this path. Replies of a turn without
changes wait for the last turn that had some: what was read may not be durable yet.
"""

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

from jqd.core.commands import EVENT_NAMES, Command, Lease
from jqd.core.engine import Engine
from jqd.core.model import SECOND_MS, Now
from jqd.errors import Busy, Draining, JqdError, Overloaded
from jqd.protocol.framing import to_frame
from jqd.protocol.messages import encode_error
from jqd.server.committer import Committer
from jqd.server.config import Config
from jqd.server.log import get_logger
from jqd.server.memory import (
    CONNECTION_BYTES,
    LOOK_AFTER_BYTES,
    LOOK_AFTER_MS,
    LOOK_AFTER_MS_WHEN_FULL,
    PART_BYTES_MIN,
    MemoryGuard,
)
from jqd.server.session import Output, Session
from jqd.server.snapshots import Snapshots
from jqd.server.standstill import Standstill
from jqd.server.threads import Threads
from jqd.server.watermark import Watermark
from jqd.storage.base import Record, Space, Store

# The wall clock may be set while the loop sleeps; this is how late a run_at can get by that. And a loop that is
# seldom due is seldom late: standstill.py.
_SLEEP_MS_MAX: Final = SECOND_MS // 2
# Above this a client is told to come back later; the committer gets there within.
_BUSY_RETRY_MS: Final = 100

# A turn whose record may be this large ends before the next connection's requests. With one more frame of
# 16 MiB, or 4 MiB of answers, it stays far below the 64 MiB that the log takes.
_TURN_BYTES_MAX: Final = 8 << 20

log = get_logger()


class Clock:
    """Both clocks: engine_ms goes on from the log's high water, by time that includes suspend."""

    def __init__(self, high_water_ms: int) -> None:
        self._offset_ms = high_water_ms - _boot_ms()

    def now(self) -> Now:
        return Now(self._offset_ms + _boot_ms(), time.time_ns() // 1_000_000)


def _boot_ms() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


class _Waiting(NamedTuple):
    """Replies that may leave once the log is durable up to `lsn`."""

    lsn: int
    since_ms: int  # engine clock
    record_bytes: int
    outputs: list[tuple["Connection", Output]]


class Driver:
    """See the file's card. It is the House of the sessions.

    Args:
        clock: tests hand in their own.
        on_trouble: called with a subject and what is wrong with it, in words; "": nothing any more.
        threads: where those beside the loop come from; default: the real ones.
    """

    def __init__(
        self,
        engine: Engine,
        store: Store,
        config: Config,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        on_failure: Any,  # noqa: ANN401 - Callable[[BaseException], NoReturn] in the daemon
        on_trouble: Callable[[str, str], object] = lambda subject, words: None,  # noqa: ARG005
        threads: Threads | None = None,
    ) -> None:
        threads = threads or Threads()
        self.engine = engine
        self.config = config
        self.output_bytes_max = config.output_bytes_max
        self.unsent_grants = engine.unsent_grants
        engine.disconnect_grace_ms = config.disconnect_grace_ms
        self.connections: set[Connection] = set()
        self._settled = asyncio.Event()  # while draining: nothing waits for the disk, no turn is under way
        self._emptied = asyncio.Event()  # while draining: the last connection has ended
        self._store = store
        self._loop = loop
        self._clock = clock
        self._on_failure = on_failure
        self._draining = False
        self._now: Now | None = None  # of the turn under way
        self._talkers: dict[Connection, None] = {}  # connections with replies of this turn
        self._unfinished: dict[Connection, None] = {}  # connections whose bytes wait for the next turn
        self._waiting: deque[_Waiting] = deque()
        self._waiting_bytes = 0
        self.durable_lsn = engine.state.lsn
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ms = 0
        self._standstill = Standstill()
        self._is_lagging = False  # after a standstill: the engine judges leases by a clock that is behind
        self._on_trouble = on_trouble
        self._disk_timer: asyncio.TimerHandle | None = None  # while something waits for the disk
        self._disk_is_slow = False
        self._turn_bytes = 0  # of requests in the turn under way
        self._turns = 0
        self._watermark = Watermark(config.low_space_bytes, lambda words: on_trouble("disk space", words))
        self._guard = MemoryGuard(
            config.memory_soft_bytes, config.memory_hard_bytes, lambda words: on_trouble("memory", words)
        )
        self._unlooked_bytes = 0  # that came since the last look at memory
        self._look_ms = 0  # when the next one is due
        self._look_timer: asyncio.TimerHandle | None = None  # while the hard limit is passed
        self._ask_from_bytes = config.commit_queue_bytes
        self._committer = Committer(
            store,
            on_durable=lambda lsn: loop.call_soon_threadsafe(self._durable, lsn),
            on_failure=on_failure,
            on_slow_sync=lambda ms: loop.call_soon_threadsafe(self._slow_sync, ms),
            on_space=lambda space: loop.call_soon_threadsafe(self._see_space, space),
            sync_interval_ms=config.sync_interval_ms,
            slow_sync_ms=config.slow_sync_ms,
            threads=threads,
        )
        self.snapshots = Snapshots(engine, store, self._committer, config, loop, on_failure, threads)

    def start(self, version: str) -> None:
        """Begin a run of the engine; that it began is the first record."""
        space = self._store.space()  # while no other thread uses the store
        if space is not None:
            self._see_space(space)
        self._committer.start()
        self.engine.start(self.begin_turn(), version)

    # --- House --------------------------------------------------------------------------------

    @property
    def refusing(self) -> bool:
        return self._draining or self._waiting_bytes >= self._ask_from_bytes or self._guard.is_full

    def refuse(self, command: Command[Any], request_bytes: int) -> None:
        if self._draining:
            raise Draining("the server is shutting down", retry_after_ms=SECOND_MS)
        # What ends or extends a lease has as much room again: a flood of submits must not cost workers their leases.
        limit = self.config.commit_queue_bytes * (2 if command.scope == "jobs:ack" else 1)
        if command.writes and self._waiting_bytes >= limit:
            raise Busy(
                f"{self._waiting_bytes} bytes wait for the disk: the limit of {command.verb} is {limit}",
                retry_after_ms=_BUSY_RETRY_MS,
            )
        if self._guard.is_full and (command.adds_jobs or type(command) is Lease):
            raise self._guard.refusal()
        if command.adds_jobs:
            self._watermark.admit(request_bytes, self._waiting_bytes)

    def process_figures(self) -> dict[str, int]:
        return {
            "pid": os.getpid(),
            "connections": len(self.connections),
            "turns": self._turns,
            "syncs": self._committer.sync_count,
            "durable_lsn": self.durable_lsn,
            "unsynced_bytes": self._waiting_bytes,
            "log_bytes": self._store.size_bytes,
            "log_segments": self._store.segment_count,
            "snapshot_lsn": self._store.snapshot_lsn,
            "snapshot_bytes": self._store.snapshot_bytes,
            "snapshots": self.snapshots.count,
            "snapshot_under_way": int(self.snapshots.is_under_way),
            "rss_bytes": _rss_bytes(),
            **self._guard.figures(),
            **self._watermark.figures(),
        }

    def make_snapshot(self) -> None:
        self.snapshots.ask()

    def report(self, event: str, error: Exception) -> None:
        log.error(event, error=repr(error), exc_info=error)

    # --- turns --------------------------------------------------------------------------------

    def begin_turn(self) -> Now:
        """Return this turn's reading of the clocks; the first call takes it and plans the turn's end."""
        if self._now is None:
            self._now = self._clock.now()
            self._forgive_standstill(self._now.engine_ms)
            self._loop.call_soon(self._end_turn)
        return self._now

    def _forgive_standstill(self, now_ms: int) -> None:
        """See whether the loop or the disk stood still, before this turn judges any lease."""
        if self._timer is not None:
            stood_ms = self._standstill.see(now_ms, self._timer_ms)
            if stood_ms:
                self._timer_ms = now_ms  # seen once
                self._is_lagging = True
                if stood_ms > SECOND_MS:
                    log.warning("stood_still", for_ms=stood_ms)
        if self._waiting and self._standstill.see(now_ms, self._waiting[0].since_ms):
            self._is_lagging = True
        if self._is_lagging:
            lag_ms = self._standstill.lag_ms(now_ms)
            self._is_lagging = lag_ms > 0
            self.engine.forgive(lag_ms)

    def spoke(self, connection: "Connection") -> None:
        """Note what a session left behind: replies to be sent, bytes to be looked at in the next turn."""
        session = connection.session
        if session.has_output:
            self._talkers[connection] = None
        if session.unfinished and session.has_room:
            self._unfinished[connection] = None

    def took(self, count: int, came: int) -> None:
        """Count bytes of requests, and end the turn before its record grows too large. The last call of an event.

        Args: count: of requests that were carried out.  came: that arrived, and may be kept until a request is whole.
        """
        self._unlooked_bytes += came
        if self._unlooked_bytes >= LOOK_AFTER_BYTES:
            assert self._now is not None
            self._look_at_memory(self._now.engine_ms)
        self._turn_bytes += count
        if self._turn_bytes + self.engine.added_bytes_max >= _TURN_BYTES_MAX:
            self._finish_turn()

    def _look_at_memory(self, now_ms: int) -> None:
        """See what connections hold, and end some of them if all of it is more than there is."""
        guard, connections = self._guard, self.connections
        held_bytes = self._waiting_bytes + len(connections) * CONNECTION_BYTES
        held_bytes += sum(connection.held_bytes for connection in connections)
        # In proportion to what a look costs.
        self._unlooked_bytes = -len(connections) * (1 << 10)
        over_bytes = guard.see(self.engine.state.memory.bytes, held_bytes)
        if over_bytes:
            holders = [each for each in connections if each.session.part_bytes >= PART_BYTES_MIN]
            for connection in sorted(holders, key=lambda each: -each.session.part_bytes):
                over_bytes -= connection.session.part_bytes
                connection.session.drop_part(guard.refusal())
                self.spoke(connection)
                self.begin_turn()
                if over_bytes <= 0:
                    break
        self._look_ms = now_ms + (LOOK_AFTER_MS_WHEN_FULL if guard.is_full else LOOK_AFTER_MS)
        if guard.is_full and self._look_timer is None:  # those who hold it may leave, and nobody else come
            self._look_timer = self._loop.call_later(LOOK_AFTER_MS_WHEN_FULL / 1_000, self._look_again)

    def _look_again(self) -> None:
        self._look_timer = None
        try:
            self._look_at_memory(self._clock.now().engine_ms)
        except BaseException as error:
            self._on_failure(error)
            raise

    def _end_turn(self) -> None:
        if self._now is None:
            return  # took() was faster
        try:
            self._finish_turn()
        except BaseException as error:
            self._on_failure(error)
            raise

    def _finish_turn(self) -> None:
        now = self._now
        assert now is not None
        engine = self.engine
        due_ms = engine.finish_turn(now)
        if engine.outbox:
            for ticket, request_id, answer in engine.outbox:
                assert isinstance(ticket, Connection)
                ticket.session.answer(request_id, answer)
                self._talkers[ticket] = None
            engine.outbox.clear()
        if engine.events:
            for ticket, body in engine.events:
                assert isinstance(ticket, Connection)
                ticket.session.tell(EVENT_NAMES[type(body)], body)
                self._talkers[ticket] = None
            engine.events.clear()
        batch = engine.take_batch()
        outputs = [(connection, connection.session.take_output()) for connection in self._talkers]
        self._talkers.clear()
        self._now = None
        self._turn_bytes = 0
        self._turns += 1
        self._watermark.admitted_bytes = 0  # they are among those that wait for the disk now
        if batch is not None:
            self._waiting_bytes += len(batch.payload)
            self._waiting.append(_Waiting(engine.state.lsn, now.engine_ms, len(batch.payload), outputs))
            self._committer.put(Record(batch.first_lsn, batch.count, batch.payload))
            self.snapshots.wrote(len(batch.payload))
            if self._disk_timer is None:
                self._watch_disk()
        elif not self._waiting:
            self._send(outputs)
        elif outputs:
            self._waiting.append(_Waiting(engine.state.lsn, now.engine_ms, 0, outputs))
        self.snapshots.turn_ended(now.engine_ms)
        if now.engine_ms >= self._look_ms:
            self._look_at_memory(now.engine_ms)
        if self._unfinished:
            self._loop.call_soon(self._go_on)
        self._set_timer(now, due_ms)
        self._note_settled()

    def _go_on(self) -> None:
        """Give connections with requests left from the last turn their share of this one."""
        unfinished, self._unfinished = self._unfinished, {}
        for connection in unfinished:
            connection.go_on()

    def _set_timer(self, now: Now, due_ms: int | None) -> None:
        if due_ms is None or self._draining:
            return
        due_ms = max(now.engine_ms, min(due_ms, now.engine_ms + _SLEEP_MS_MAX))
        if self._timer is not None:
            if self._timer_ms <= due_ms:
                return
            self._timer.cancel()
        self._timer_ms = due_ms
        self._timer = self._loop.call_later((due_ms - now.engine_ms) / 1_000, self._time_passed)

    def _time_passed(self) -> None:
        self.begin_turn()  # first: it sees by the timer whether the loop stood still
        self._timer = None

    # --- durability ---------------------------------------------------------------------------

    def _durable(self, lsn: int) -> None:
        """The log is durable up to `lsn`: let the replies go that waited for it."""
        try:
            self.durable_lsn = lsn
            waiting = self._waiting
            while waiting and waiting[0].lsn <= lsn:
                done = waiting.popleft()
                self._waiting_bytes -= done.record_bytes
                self._send(done.outputs)
            if self._disk_is_slow:
                self._disk_is_slow = False
                self._on_trouble("disk speed", "")
            self._note_settled()
        except BaseException as error:
            self._on_failure(error)
            raise

    def _note_settled(self) -> None:
        if self._draining and self._now is None and not self._waiting:
            self._settled.set()

    def _watch_disk(self) -> None:
        after_s = self.config.slow_sync_ms / 1_000
        self._disk_timer = self._loop.call_later(after_s, self._check_disk)

    def _check_disk(self) -> None:
        """Say that a sync takes long while it does: nobody can ask, since every answer waits for it."""
        self._disk_timer = None
        if not self._waiting:
            return
        waiting_ms = self._clock.now().engine_ms - self._waiting[0].since_ms
        if waiting_ms >= self.config.slow_sync_ms and not self._disk_is_slow:
            self._disk_is_slow = True
            log.warning("sync_waits", for_ms=waiting_ms, unsynced_bytes=self._waiting_bytes)
            self._on_trouble("disk speed", "the disk is slow: answers wait for a sync that has not come back")
        self._watch_disk()

    def _see_space(self, space: Space) -> None:
        self._watermark.see(space)
        self._ask_from_bytes = min(self.config.commit_queue_bytes, self._watermark.ask_from_bytes)

    def _send(self, outputs: list[tuple["Connection", Output]]) -> None:
        for connection, output in outputs:
            connection.send(output)

    def _slow_sync(self, took_ms: int) -> None:
        log.warning(
            "slow_sync",
            took_ms=took_ms,
            limit_ms=self.config.slow_sync_ms,
            unsynced_bytes=self._waiting_bytes,
        )

    # --- connections --------------------------------------------------------------------------

    def new_connection(self) -> "Connection":
        """Protocol factory of the listeners."""
        return Connection(self)

    def connected(self, connection: "Connection") -> JqdError | None:
        """Take a connection in, or say why not."""
        if self._draining:
            return Draining("the server is shutting down", retry_after_ms=SECOND_MS)
        limit = self.config.max_connections
        if len(self.connections) >= limit:
            return Overloaded(f"{limit} connections are open: that is the limit", retry_after_ms=SECOND_MS)
        if self._guard.is_full:
            now_ms = self._clock.now().engine_ms
            if now_ms >= self._look_ms:
                self._look_at_memory(now_ms)
            if self._guard.is_full:
                return self._guard.refusal()
        self.connections.add(connection)
        return None

    def disconnected(self, connection: "Connection") -> None:
        self.connections.discard(connection)
        self._unfinished.pop(connection, None)
        if self._draining and not self.connections:
            self._emptied.set()

    async def drain(self) -> None:
        """End in order: nothing new, parked requests answered, all replies sent, all records durable.

        Takes at most config.drain_ms before connections that do not read are cut.
        """
        self._draining = True
        now = self.begin_turn()
        self.engine.stop(now)
        deadline_s = self._loop.time() + self.config.drain_ms / 1_000
        await self._settled.wait()
        for connection in list(self.connections):
            connection.close()
        if self.connections:
            try:
                await asyncio.wait_for(self._emptied.wait(), max(0.0, deadline_s - self._loop.time()))
            except TimeoutError:
                for connection in list(self.connections):
                    connection.abort()
        self.snapshots.stop()
        self._committer.stop()


class Connection(asyncio.Protocol):
    """A socket and its session: it only shuttles, and stops reading when the session is full."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._transport: asyncio.Transport | None = None
        self._reading = True
        self._writable = True
        self._heard_all = False
        self._closed = False
        self._cut = False  # the server ended it, not the peer
        self._timeout: asyncio.TimerHandle | None = None  # for hello, later for a peer that does not read
        self._written_bytes = 0
        self.session = Session(driver, self)

    # --- asyncio calls ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but its bases
        refusal = self._driver.connected(self)
        if refusal is not None:
            self._transport.write(to_frame(encode_error(0, self._driver.durable_lsn, refusal)))
            self._transport.close()
            return
        config = self._driver.config
        self._transport.set_write_buffer_limits(high=config.output_bytes_max)
        self._timeout = self._driver._loop.call_later(config.hello_timeout_ms / 1_000, self._no_hello)

    def data_received(self, data: bytes) -> None:
        try:
            driver = self._driver
            taken_bytes = self.session.receive(data, driver.begin_turn())
            self._after()
            driver.took(taken_bytes, len(data))
        except BaseException as error:
            self._driver._on_failure(error)
            raise

    def eof_received(self) -> bool:
        """The peer will send nothing more. True: the socket stays open for the replies that are due."""
        self._reading = False
        self._heard_all = True
        self.session.end_of_requests()
        return not self.session.has_ended

    def pause_writing(self) -> None:
        assert self._transport is not None
        self._writable = False
        self._watch_stall()
        self._pace()

    def resume_writing(self) -> None:
        self._writable = True
        if self.session.unfinished:
            self.go_on()
        self._pace()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = True
        if self._timeout is not None:
            self._timeout.cancel()
        try:
            # A keepalive that nobody answers ends in TimeoutError: a network may be down, and the client well.
            lost = not self._cut and not isinstance(exc, TimeoutError)
            self.session.close(self._driver.begin_turn(), lost=lost)
            self._driver.disconnected(self)
        except BaseException as error:
            self._driver._on_failure(error)
            raise

    # --- driver calls -------------------------------------------------------------------------

    def go_on(self) -> None:
        """Carry out requests that are already here."""
        if self._closed or not self._writable:
            return
        try:
            driver = self._driver
            taken_bytes = self.session.resume(driver.begin_turn())
            self._after()
            driver.took(taken_bytes, 0)
            if self.session.has_ended:
                self.close()
        except BaseException as error:
            self._driver._on_failure(error)
            raise

    def send(self, output: Output) -> None:
        """Hand durable replies to the socket."""
        assert self._transport is not None
        session = self.session
        if self._closed or self._transport.is_closing():
            if output.tokens:
                session.output_lost(output, self._driver.begin_turn())
            return
        if output.data:
            self._written_bytes += len(output.data)  # first: write() may call pause_writing()
            self._transport.write(output.data)
        session.output_sent(output)
        if session.has_ended:
            self.close()
        elif session.unfinished:
            self._driver.spoke(self)
            if session.has_room:
                self._driver.begin_turn()
        if not self._reading:  # room came, so reading can only begin again
            self._pace()

    def close(self) -> None:
        """End the connection after what was written has left, or when the peer does not take it."""
        assert self._transport is not None
        self._cut |= not self._heard_all
        self._transport.close()
        if self._transport.get_write_buffer_size():
            self._watch_stall()

    def abort(self) -> None:
        """End the connection now."""
        assert self._transport is not None
        self._cut = True
        self._transport.abort()

    # --- pacing -------------------------------------------------------------------------------

    def _after(self) -> None:
        if self._timeout is not None and self._writable and self.session.greeted:
            self._timeout.cancel()
            self._timeout = None
        self._driver.spoke(self)
        self._pace()

    def _pace(self) -> None:
        """Read exactly while the session could use what comes."""
        session = self.session
        wanted = self._writable and not session.unfinished and session.has_room
        if wanted is self._reading:
            return
        if self._heard_all or self._closed or self._transport is None or self._transport.is_closing():
            return
        self._reading = wanted
        if wanted:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _no_hello(self) -> None:
        if not self.session.greeted:
            log.info("hello_timeout", limit_ms=self._driver.config.hello_timeout_ms)
            self.abort()

    def _watch_stall(self) -> None:
        """Cut the connection if nothing of its unsent replies leaves for output_stall_ms."""
        if self._timeout is not None:
            self._timeout.cancel()
        after_s = self._driver.config.output_stall_ms / 1_000
        self._timeout = self._driver._loop.call_later(after_s, self._check_stall, self._left_bytes())

    @property
    def held_bytes(self) -> int:
        """Bytes that are kept for it: of requests that are not carried out, of replies that have not left."""
        unsent_bytes = (
            0 if self._closed or self._transport is None else self._transport.get_write_buffer_size()
        )
        return self.session.held_bytes + unsent_bytes

    def _left_bytes(self) -> int:
        """Return how many bytes of replies the peer's side has taken so far."""
        assert self._transport is not None
        return self._written_bytes - self._transport.get_write_buffer_size()

    def _check_stall(self, left_before: int) -> None:
        self._timeout = None
        assert self._transport is not None
        if self._closed or (self._writable and not self._transport.is_closing()):
            return
        if self._left_bytes() > left_before:
            self._watch_stall()
            return
        unsent_bytes = self._transport.get_write_buffer_size()
        log.warning("output_stalled", unsent_bytes=unsent_bytes, limit_ms=self._driver.config.output_stall_ms)
        self.abort()


def _rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

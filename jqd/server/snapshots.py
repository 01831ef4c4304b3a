"""When a snapshot is made, and its way from the engine to the disk.

Knows:         what calls for a snapshot, how fast the walk over the state may go, who writes it.
Must not know: what stands in one, which files it replaces (storage/wal.py).

    due      between two turns: the engine begins a dump, the committer is asked to cut the log there
    cut      the log thread has ended a segment: a thread of its own opens the snapshot's file
    walk     slices of the dump, each handed to that thread; a new one for each that it has written, so that no more
             than WINDOW slices wait in memory and everybody else is served in between. And more of them at the end of
             a turn that has written so much log that the walk falls behind
    finish   the thread syncs, reads again, gives the file its name, and removes what nobody needs any more

It is due when the log behind the newest snapshot has grown by snapshot_bytes, or to the size of that snapshot if
that is more: so a start reads at most as much log as snapshot, or snapshot_bytes, and what is written for
snapshots is never more than what is written anyway. It is due also when the newest one is snapshot_interval_ms
old and anything has changed since, and when somebody asks.

**The disk is bounded** (three times what is alive and four times snapshot_bytes) only if a snapshot is made before the
log has grown by as much again as called for it. Under load a pass of the loop is long and there are few of them, so
the walk is held to the log's bytes and not to time: it keeps ahead of the same share of what calls for a snapshot,
and is at its end when the log has grown by half of that; the other half is for the sync and for reading it again. So
a turn pays for the log that it writes, some 5 ms a MiB where jobs are small, and a turn that writes none pays nothing.

A full disk ends a snapshot, not the daemon: the log is whole without it. Any other failure to write or read is
what it is for the log: the end.
"""

import asyncio
from collections.abc import Callable, Generator
from typing import Any, Final

from jqd.core.changes import encode_part
from jqd.core.dump import Dump
from jqd.core.engine import Engine
from jqd.errors import DiskFull
from jqd.server.committer import Committer
from jqd.server.config import Config
from jqd.server.log import get_logger
from jqd.server.threads import Steps, Threads
from jqd.storage.base import SnapshotSink, Store
from jqd.storage.fs import write_error

# The walk is at its end when the log has grown by that part of what calls for a snapshot.
WALK_SHARE: Final = 2
# Bytes on their way to the disk where the walk has fallen behind: beyond that the disk is what is slow.
AHEAD_BYTES_MAX: Final = 32 << 20
# Slices on their way to the disk: enough for the thread never to wait, and 8 MiB at the most.
WINDOW: Final = 8

log = get_logger()


class Snapshots:
    """See the file's card. All of it runs in the loop's thread."""

    def __init__(
        self,
        engine: Engine,
        store: Store,
        committer: Committer,
        config: Config,
        loop: asyncio.AbstractEventLoop,
        on_failure: Callable[[BaseException], object],
        threads: Threads,
    ) -> None:
        self._engine = engine
        self._store = store
        self._committer = committer
        self._config = config
        self._loop = loop
        self._on_failure = on_failure
        self._threads = threads
        # Of the log, behind the newest snapshot or the one under way.
        self._since_bytes = store.unsnapped_bytes
        self._due_bytes = self._due_after_bytes()
        self._due_ms = engine.state.now.engine_ms + config.snapshot_interval_ms
        self._asked = False
        self._stopped = False
        self._dump: Dump | None = None
        self._thread: _Thread | None = None
        self._ahead_slices = self._ahead_bytes = 0  # handed to the thread and not written yet
        self.count = 0  # made since the start

    @property
    def is_under_way(self) -> bool:
        return self._dump is not None or self._thread is not None

    def ask(self) -> None:
        """Have one made as soon as this turn has ended and the one under way, if there is one."""
        self._asked = True

    def wrote(self, count_bytes: int) -> None:
        """Count what a turn has added to the log."""
        self._since_bytes += count_bytes

    def turn_ended(self, engine_ms: int) -> None:
        """Begin a snapshot if it is time. To be called when a turn's record was handed over."""
        if self._dump is not None:
            self._keep_up()
        # This look is every turn's: it compares what was computed before.
        if self._since_bytes < self._due_bytes and engine_ms < self._due_ms and not self._asked:
            return
        if self.is_under_way or self._stopped or not (self._since_bytes or self._asked):
            return
        self._asked = False
        self._since_bytes = 0
        self._due_ms = engine_ms + self._config.snapshot_interval_ms
        if self._engine.state.lsn == self._store.snapshot_lsn:
            return  # nothing has changed
        self._dump = self._engine.begin_dump()
        log.info("snapshot_begun", lsn=self._dump.lsn)
        self._committer.put_cut(lambda cut: self._loop.call_soon_threadsafe(self._cut, cut))

    def _due_after_bytes(self) -> int:
        """Return how much log calls for the next one."""
        return max(self._config.snapshot_bytes, self._store.snapshot_bytes)

    def stop(self) -> None:
        """Give up the snapshot under way. Blocks until its thread has ended."""
        self._stopped = True
        if self._dump is not None:
            self._dump.close()
            self._dump = None
        if self._thread is not None:
            self._thread.give_up()
            self._thread = None

    # --- one snapshot ---------------------------------------------------------------------------

    def _cut(self, cut: Any) -> None:  # noqa: ANN401 - the store's own
        """The log was cut where the dump began: let the walk begin."""
        if self._stopped:
            return
        self._thread = _Thread(
            self._store,
            cut,
            on_written=lambda size: self._loop.call_soon_threadsafe(self._written, size),
            on_end=lambda *how: self._loop.call_soon_threadsafe(self._ended, *how),
            on_failure=self._on_failure,
            threads=self._threads,
        )
        self._ahead_slices = self._ahead_bytes = 0
        for _ in range(WINDOW):
            self._loop.call_soon(self._step)

    def _written(self, count_bytes: int) -> None:
        """The thread has written a slice: take another one, unless more than enough are on their way."""
        self._ahead_slices -= 1
        self._ahead_bytes -= count_bytes
        if self._ahead_slices < WINDOW:
            self._step()

    def _keep_up(self) -> None:
        """Take as many slices as the log that was written calls for."""
        while (
            self._dump is not None
            and self._thread is not None
            and self._ahead_bytes < AHEAD_BYTES_MAX
            and self._dump.work_left * self._due_bytes
            > self._dump.work * (self._due_bytes - WALK_SHARE * self._since_bytes)
        ):
            self._step()

    def _step(self) -> None:
        """Take the next slice."""
        if self._dump is None or self._thread is None:
            return
        try:
            images = self._dump.take_slice()
            if images:
                part = encode_part(images)
                self._ahead_slices += 1
                self._ahead_bytes += len(part)
                self._thread.put(len(images), part)
            else:
                self._dump = None
                self._thread.finish()
        except BaseException as error:
            self._on_failure(error)
            raise

    def _ended(self, took_ms: int, is_made: bool, error: DiskFull | None) -> None:
        """The thread has come to its end: the snapshot has its name, or there is none.

        error: of a snapshot that is made: files that it replaces are still there, until the next one.
        """
        self._thread = None
        if self._dump is not None:
            self._dump.close()
            self._dump = None
        if not is_made:
            log.warning("snapshot_given_up", error=str(error), took_ms=took_ms)
            return
        self.count += 1
        self._due_bytes = self._due_after_bytes()
        log.info(
            "snapshot_made",
            lsn=self._store.snapshot_lsn,
            bytes=self._store.snapshot_bytes,
            log_bytes=self._store.size_bytes,
            took_ms=took_ms,
        )
        if error is not None:
            log.warning("removal_put_off", error=str(error), until="the next snapshot")


class _Thread:
    """Writes one snapshot: its file is opened, written, synced, read and published here."""

    def __init__(
        self,
        store: Store,
        cut: Any,  # noqa: ANN401
        *,
        on_written: Callable[[int], object],
        on_end: Callable[[int, bool, DiskFull | None], object],
        on_failure: Callable[[BaseException], object],
        threads: Threads,
    ) -> None:
        self._store = store
        self._cut = cut
        self._on_written = on_written
        self._on_end = on_end
        self._given_up = False
        self._monotonic_s = threads.monotonic_s
        self._begun_s = self._monotonic_s()
        self._thread = threads.make("jqd-snapshot", on_failure)
        self._thread.start(self._steps())

    def put(self, count: int, payload: bytes) -> None:
        """Hand over the next part."""
        self._thread.put((count, payload))

    def finish(self) -> None:
        """Say that the last part was handed over."""
        self._thread.put(None)

    def give_up(self) -> None:
        """Remove the file, and end; blocks until then."""
        self._given_up = True
        self._thread.put(None)
        self._thread.join()

    def _steps(self) -> Steps:
        """Open the file, write it, end it. Any failure but a full disk is final: the disk cannot be trusted any more."""
        sink: SnapshotSink | None = None
        full: DiskFull | None = None
        try:
            sink = self._store.begin_snapshot(self._cut)
            yield from self._write(sink)
        except OSError as error:
            failure = write_error(error, "snapshot")
            if not isinstance(failure, DiskFull):
                raise failure from error
            full = failure
        is_made = sink is not None and sink.is_made
        if sink is not None and not is_made:
            sink.abort()
        if not self._given_up:
            self._on_end(int((self._monotonic_s() - self._begun_s) * 1_000), is_made, full)

    def _write(self, sink: SnapshotSink) -> Generator[float | None, tuple[int, bytes] | None, None]:
        """Write all parts and make the snapshot, unless it is given up."""
        while (part := (yield None)) is not None:
            if self._given_up:
                return
            sink.write(*part)
            self._on_written(len(part[1]))
        if not self._given_up:
            sink.finish()

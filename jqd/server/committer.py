"""The one thread that writes and syncs the log, as steps (threads.py).

Knows:         when a record is durable, which records share one sync, when to seal an idle log, when to
               look how much room the disk has.
Must not know: what a record means, connections, asyncio.

Records come through a queue in LSN order. All that wait are written and synced together (group
commit): the loop decodes the next requests while the disk works, which is why the sync has a thread
of its own. Any failure is final: nothing later may be called durable, and nobody retries a sync.
"""

from collections.abc import Callable
from typing import Any, Final

from jqd.server.threads import IDLE, Steps, Threads
from jqd.storage.base import Record, Space, Store

# How long the log is idle before it says that its last batch is durable (Store.seal).
SEAL_AFTER_S: Final = 1.0
# How often it looks how much room the disk has: after so much time, idle or not, after so many bytes, and when
# the reserve was needed. Not the loop: a file system may let statvfs wait for what it is doing (XFS).
LOOK_EVERY_S: Final = 1.0
LOOK_AFTER_BYTES: Final = 1 << 20
# Records joined into one write; more would only delay the first of them.
WRITE_BYTES_MAX: Final = 8 << 20

# What is called with a cut of the log, once it was made.
Cut = Callable[[Any], object]
_LAST: Final = "the last item of the queue"
Item = Record | Cut | str


class Committer:
    """See the file's card.

    Args:
        on_durable: called in this thread with the LSN up to which replies may leave.
        on_failure: called in this thread with what went wrong; must end the process.
        on_slow_sync: called in this thread with the milliseconds a sync took, from slow_sync_ms on.
        on_space: called in this thread with what a look at the disk found.
        sync_interval_ms: None: sync before anything is called durable. Else replies do not wait for
            the disk, and a power cut may lose what was acknowledged in the last interval.
    """

    def __init__(
        self,
        store: Store,
        *,
        on_durable: Callable[[int], object],
        on_failure: Callable[[BaseException], object],
        on_slow_sync: Callable[[int], object],
        on_space: Callable[[Space], object],
        sync_interval_ms: int | None,
        slow_sync_ms: int,
        threads: Threads,
    ) -> None:
        self._store = store
        self._on_durable = on_durable
        self._on_slow_sync = on_slow_sync
        self._on_space = on_space
        self._monotonic_s = threads.monotonic_s
        self._look_s = self._monotonic_s() + LOOK_EVERY_S
        self._unlooked_bytes = 0
        self._reserve_was_lost = store.reserve_is_lost
        self._interval_s = None if sync_interval_ms is None else sync_interval_ms / 1_000
        self._slow_s = slow_sync_ms / 1_000
        self._unsynced_since_s: float | None = None
        self._unsealed = False
        self.sync_count = 0
        self._thread = threads.make("jqd-commit", on_failure)
        self._queue = self._thread.queue
        self._put = self._thread.put

    def start(self) -> None:
        self._thread.start(self._steps())

    def put(self, record: Record) -> None:
        """Hand over the next record."""
        self._put(record)

    def put_cut(self, on_cut: Cut) -> None:
        """End the log so far behind the last record that was put; `on_cut` is called in this thread with the cut."""
        self._put(on_cut)

    def stop(self) -> None:
        """Write and sync all that was handed over, then end. Blocks until it is done."""
        self._put(_LAST)
        self._thread.join()

    def _steps(self) -> Steps:
        """Make durable what comes, and do what idleness asks for. Whatever fails, nothing after it is durable."""
        end: Cut | str | None = None
        while end is not _LAST:
            item = yield self._patience_s()
            end = None
            if item is IDLE:
                self._idle()
                continue
            records, end = self._gather(item)
            if records:
                self._commit(records)
                self._look_if_due()
            if end is not None and self._unsynced_since_s is not None:
                self._sync()
            if callable(end):
                end(self._store.cut())
                self._unsealed = False

    def _idle(self) -> None:
        if self._unsynced_since_s is not None:
            self._sync_if_due()
        elif self._unsealed:
            self._store.seal()
            self._unsealed = False
        self._look_if_due()

    def _patience_s(self) -> float:
        if self._unsynced_since_s is not None and self._interval_s is not None:
            left_s = max(0.0, self._unsynced_since_s + self._interval_s - self._monotonic_s())
            return min(left_s, LOOK_EVERY_S)
        return SEAL_AFTER_S if self._unsealed else LOOK_EVERY_S

    def _look_if_due(self) -> None:
        now_s = self._monotonic_s()
        is_due = now_s >= self._look_s or self._unlooked_bytes >= LOOK_AFTER_BYTES
        if not is_due and self._store.reserve_is_lost is self._reserve_was_lost:
            return
        self._look_s = now_s + LOOK_EVERY_S
        self._unlooked_bytes = 0
        space = self._store.space()
        self._reserve_was_lost = self._store.reserve_is_lost
        if space is not None:
            self._on_space(space)

    def _gather(self, first: Item) -> tuple[list[Record], Cut | str | None]:
        """Return all records that wait, up to WRITE_BYTES_MAX, and the cut or the end that stopped them, if one did."""
        records: list[Record] = []
        size = 0
        item = first
        while isinstance(item, Record):
            records.append(item)
            size += len(item.payload)
            self._unlooked_bytes += len(item.payload)
            if size >= WRITE_BYTES_MAX or self._queue.empty():
                return records, None
            item = self._queue.get()
        return records, item

    def _commit(self, records: list[Record]) -> None:
        self._store.append(records)
        self._unsealed = True
        if self._interval_s is None:
            self._sync()
        elif self._unsynced_since_s is None:
            self._unsynced_since_s = self._monotonic_s()
        else:
            self._sync_if_due()
        last = records[-1]
        self._on_durable(last.first_lsn + last.count - 1)

    def _sync_if_due(self) -> None:
        assert self._unsynced_since_s is not None and self._interval_s is not None
        if self._monotonic_s() - self._unsynced_since_s >= self._interval_s:
            self._sync()

    def _sync(self) -> None:
        begun_s = self._monotonic_s()
        self._store.sync()
        self.sync_count += 1
        self._unsynced_since_s = None
        took_s = self._monotonic_s() - begun_s
        if took_s >= self._slow_s:
            self._on_slow_sync(int(took_s * 1_000))

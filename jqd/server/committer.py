"""The one thread that writes and syncs the log.

Knows:         when a record is durable, which records share one sync, when to seal an idle log, when to
               look how much room the disk has.
Must not know: what a record means, connections, asyncio.

Records come through a queue in LSN order. All that wait are written and synced together (group
commit): the loop decodes the next requests while the disk works, which is why the sync has a thread
of its own. Any failure is final: nothing later may be called durable, and nobody retries a sync.
"""

import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, Final

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
    ) -> None:
        self._store = store
        self._on_durable = on_durable
        self._on_failure = on_failure
        self._on_slow_sync = on_slow_sync
        self._on_space = on_space
        self._look_s = time.monotonic() + LOOK_EVERY_S
        self._unlooked_bytes = 0
        self._reserve_was_lost = store.reserve_is_lost
        self._interval_s = None if sync_interval_ms is None else sync_interval_ms / 1_000
        self._slow_ns = slow_sync_ms * 1_000_000
        self._queue: SimpleQueue[Item] = SimpleQueue()
        self._unsynced_since_s: float | None = None
        self._unsealed = False
        self.sync_count = 0
        self._thread = threading.Thread(target=self._run, name="jqd-commit", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, record: Record) -> None:
        """Hand over the next record."""
        self._queue.put(record)

    def put_cut(self, on_cut: Cut) -> None:
        """End the log so far behind the last record that was put; `on_cut` is called in this thread with the cut."""
        self._queue.put(on_cut)

    def stop(self) -> None:
        """Write and sync all that was handed over, then end. Blocks until it is done."""
        self._queue.put(_LAST)
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as error:  # noqa: BLE001 - whatever it was, nothing after it may be called durable
            self._on_failure(error)

    def _turn(self) -> bool:
        """Wait for records and make them durable, or do what idleness asks for. False: the end."""
        try:
            first = self._queue.get(timeout=self._patience_s())
        except Empty:
            if self._unsynced_since_s is not None:
                self._sync_if_due()
            elif self._unsealed:
                self._store.seal()
                self._unsealed = False
            self._look_if_due()
            return True
        records, end = self._gather(first)
        if records:
            self._commit(records)
            self._look_if_due()
        if end is not None and self._unsynced_since_s is not None:
            self._sync()
        if callable(end):
            end(self._store.cut())
            self._unsealed = False
        return end is not _LAST

    def _patience_s(self) -> float:
        if self._unsynced_since_s is not None and self._interval_s is not None:
            left_s = max(0.0, self._unsynced_since_s + self._interval_s - time.monotonic())
            return min(left_s, LOOK_EVERY_S)
        return SEAL_AFTER_S if self._unsealed else LOOK_EVERY_S

    def _look_if_due(self) -> None:
        now_s = time.monotonic()
        is_news = self._store.reserve_is_lost is not self._reserve_was_lost
        if now_s < self._look_s and self._unlooked_bytes < LOOK_AFTER_BYTES and not is_news:
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
            self._unsynced_since_s = time.monotonic()
        else:
            self._sync_if_due()
        last = records[-1]
        self._on_durable(last.first_lsn + last.count - 1)

    def _sync_if_due(self) -> None:
        assert self._unsynced_since_s is not None and self._interval_s is not None
        if time.monotonic() - self._unsynced_since_s >= self._interval_s:
            self._sync()

    def _sync(self) -> None:
        begun_ns = time.monotonic_ns()
        self._store.sync()
        self.sync_count += 1
        self._unsynced_since_s = None
        took_ns = time.monotonic_ns() - begun_ns
        if took_ns >= self._slow_ns:
            self._on_slow_sync(took_ns // 1_000_000)

"""A store that keeps nothing: for `--store memory` and for tests of everything above storage.

Knows:         the Store interface.
Must not know: files.
"""

from collections.abc import Iterable, Iterator, Sequence

from jqd.storage.base import Record, RecoveryReport, Space


class MemoryStore:
    """A log that ends with the process.

    Args:
        records: what `load` yields, as if an earlier process had written it.
        keep: keep what is appended in `records`. Only tests want that: it grows without bound.
        public_id: 32 hex characters; a fixed one is as good as any, since no two of these meet.
    """

    def __init__(
        self, records: Iterable[Record] = (), *, keep: bool = False, public_id: str = "0" * 32
    ) -> None:
        self.public_id = public_id
        self.records = list(records)
        self._keep = keep
        self._loaded = False
        self._recovery: RecoveryReport | None = None
        self._last_lsn = 0
        self._durable_lsn = 0
        self._size_bytes = 0
        self._snapped_bytes = 0  # of the log, when the newest snapshot was published
        self._snapshot_bytes = 0
        self._snapshot_lsn = 0
        self.parts: list[bytes] = []  # of the newest snapshot, if they are kept

    def load_snapshot(self) -> Iterator[bytes]:
        yield from ()

    def cut(self) -> int:
        return self._last_lsn

    def begin_snapshot(self, cut: int) -> "MemorySink":
        return MemorySink(self, cut, keep=self._keep)

    def load(self) -> Iterator[Record]:
        assert not self._loaded, "a store is loaded once"
        self._loaded = True
        count = 0
        for record in self.records:
            self._take(record)
            count += 1
            yield record
        self._durable_lsn = self._last_lsn
        first_lsn = 1 if count else 0
        self._recovery = RecoveryReport(count, first_lsn, self._last_lsn, True, 0, None)
        if not self._keep:
            self.records.clear()

    def append(self, records: Sequence[Record]) -> None:
        assert self._recovery is not None, "load comes first, to its end"
        for record in records:
            self._take(record)
        if self._keep:
            self.records.extend(records)

    def _take(self, record: Record) -> None:
        assert record.first_lsn == self._last_lsn + 1, "LSNs are dense"
        assert record.count >= 1
        self._last_lsn = record.last_lsn
        self._size_bytes += len(record.payload)

    def sync(self) -> None:
        self._durable_lsn = self._last_lsn

    def seal(self) -> None:
        """Nothing here outlives the process, so there is nothing to prove to a later one."""

    def space(self) -> Space | None:
        return None

    def close(self) -> None:
        self.sync()

    @property
    def reserve_is_lost(self) -> bool:
        return False

    @property
    def recovery(self) -> RecoveryReport:
        assert self._recovery is not None, "load comes first, to its end"
        return self._recovery

    @property
    def durable_lsn(self) -> int:
        return self._durable_lsn

    @property
    def size_bytes(self) -> int:
        """Bytes of payload that went in; none of them is kept unless asked for."""
        return self._size_bytes

    @property
    def unsnapped_bytes(self) -> int:
        return self._size_bytes - self._snapped_bytes

    @property
    def snapshot_bytes(self) -> int:
        return self._snapshot_bytes

    @property
    def snapshot_lsn(self) -> int:
        return self._snapshot_lsn

    @property
    def segment_count(self) -> int:
        return 0


class MemorySink:
    """A snapshot that nobody will read, unless a test has it kept. Implements `SnapshotSink`."""

    def __init__(self, store: MemoryStore, lsn: int, *, keep: bool) -> None:
        self._store = store
        self._lsn = lsn
        self._keep = keep
        self._parts: list[bytes] = []
        self.size_bytes = 0
        self.is_made = False

    def write(self, count: int, payload: bytes) -> None:
        assert count >= 1
        self.size_bytes += len(payload)
        if self._keep:
            self._parts.append(payload)

    def finish(self) -> None:
        store = self._store
        store._snapshot_lsn, store._snapshot_bytes = self._lsn, self.size_bytes
        store._snapped_bytes = store._size_bytes
        store.parts = self._parts
        self.is_made = True

    def abort(self) -> None:
        """Nothing was written anywhere."""

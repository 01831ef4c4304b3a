"""The write-ahead log on a local disk: the store that jqd uses unless told otherwise.

Knows:         which segments and snapshots there are, when to start the next segment, what to do about a verdict,
               which files nobody needs any more.
Must not know: what a record means, bytes of a frame, errno.

    start    lock -> file `store` -> newest whole snapshot (recovery.py) -> segments behind it in order
             -> last one made trustworthy -> fresh segment -> what nobody needs is removed
    run      append, sync | seal when idle | rotate when the segment is full | cut, begin_snapshot
    stop     sync, seal, clean mark in `store`, unlock

**Recovery** refuses (`Corruption`) whatever cannot be the work of a crash: anything wrong before the
end of the last segment, a missing segment, bytes that were durable once. A torn tail, which only the
last segment can have, is copied to quarantine/ and cut. Nothing that was synced is ever cut, but for
one case that nobody can tell apart: damage to the very last synced batch while no seal stands behind it.

**After an unclean stop** the page cache is not trusted: if a sync failed, it may show bytes that are
not on the disk, and a second sync would say nothing about them. So the good frames of the last segment
go into a new file. Earlier segments are safe: the process would have ended at their first failed sync.
No segment is ever appended to after the process that made it.

**Compaction.** cut() ends a segment, so that a snapshot of what is before stands at the beginning of the next one.
Once it is whole on the disk the newest two snapshots are kept, and the log from the older one on: should the newest
rot, the older one and the log behind it give the same state. Before there are two, all of the log is kept. Removed
are first the older snapshots, then segments, the oldest first: whatever a crash leaves has no hole. A snapshot is
written and files are removed in a thread of their own; the log's thread waits for neither. A damaged snapshot is
moved to quarantine/, never removed.

**A failed write or sync** poisons the store: every later call is refused, no sync is tried again. A write
that found the disk full is repeated first while there is a reserve to give up (reserve.py).

Each step of a rotation or recovery is durable before the next one begins, so a crash at any point
leaves either the earlier or the later state of that step:

    1  seal the old segment, sync
    2  make the new one with its head, sync, rename, sync the directory     now the old one is history
    3  raise `segment_no` in `store`                                        now the new one must exist
    4  append its first batch

Sources: reliability.md 2.1 and fault table; etcd wal/wal.go; "Can Applications Recover from fsync
Failures?" (Rebello et al., 2020); PostgreSQL's fsync panic.
"""

from collections.abc import Iterator, Sequence

from jqd.errors import Corruption, UnsupportedFormat, WriteFailed
from jqd.storage.base import Record, RecoveryReport, Space
from jqd.storage.directory import WHAT_TO_DO, Directory, snapshot_name
from jqd.storage.fs import FileSystem, RealFileSystem, open_error, write_error
from jqd.storage.record import FORMAT, Chain
from jqd.storage.recovery import BEGINNING, Plan, choose
from jqd.storage.reserve import RESERVE_NAME, Reserve
from jqd.storage.segment import End, SegmentReader, SegmentWriter, Verdict, segment_name
from jqd.storage.snapshot import Base, Damaged, Snapshot, SnapshotWriter, read_base, read_parts, verify

# A segment is the unit of compaction and of the copy after an unclean stop: at 64 MiB that copy takes
# well under a second, and a log of 10 GB has 160 files.
SEGMENT_BYTES = 64 * 1024 * 1024

# The newest, and one to fall back to if that one rots.
KEPT_SNAPSHOTS = 2

_REAL_FILE_SYSTEM = RealFileSystem()


class WalStore:
    """A log in a directory of the local disk. Implements `Store`.

    Args:
        directory: made if it does not exist; its parent must.
        fs: the operating system.
        segment_bytes: a segment that has reached this size is followed by the next one.
        reserve_bytes: set aside for a full disk; 0: nothing is.

    Raises:
        DataDirLocked: another process has the directory; nothing in it was touched.
        DataDirUnusable: the directory cannot be made, entered or written.
        Corruption, UnsupportedFormat: the file `store` cannot be used.
    """

    def __init__(
        self,
        directory: str,
        *,
        fs: FileSystem = _REAL_FILE_SYSTEM,
        segment_bytes: int = SEGMENT_BYTES,
        reserve_bytes: int = 0,
    ) -> None:
        self._plain_fs = fs
        self._fs = self._reserve = Reserve(fs, f"{directory}/{RESERVE_NAME}", reserve_bytes)
        self._segment_bytes = segment_bytes
        self._chain = Chain()
        self._writer: SegmentWriter | None = None
        self._sealed_lsn = 0  # no seal is needed up to here
        self._base = BEGINNING  # where the open segment begins
        self._sizes: dict[int, int] = {}  # bytes of the segments before the open one, by number
        self._plan: Plan | None = None
        self._snapshots: list[Snapshot] = []  # newest first; at most KEPT_SNAPSHOTS but for a moment
        self._loading = False
        self._closed = False
        self._recovery: RecoveryReport | None = None
        self._failure: BaseException | None = None
        self._directory = Directory(self._fs, directory)
        try:
            self._reserve.find()
            self._store = self._directory.open_store_file()
        except OSError as error:
            self._directory.unlock()
            raise open_error(error, directory) from error
        except BaseException:
            self._directory.unlock()
            raise
        self.public_id = self._store.public_id.hex()

    # --- recovery -----------------------------------------------------------------------------

    def load_snapshot(self) -> Iterator[bytes]:
        """See `Store.load_snapshot`."""
        assert self._plan is None, "a store is loaded once"
        try:
            self._plan = plan = self._make_plan()
            if plan.snapshot is not None:
                lsn = plan.base.lsn
                path = self._directory.path_of(snapshot_name(lsn))
                yield from read_parts(self._fs, path, self._store.store_id, lsn)
        except OSError as error:
            self._failure = error
            raise open_error(error, self._directory.path) from error

    def load(self) -> Iterator[Record]:
        """See `Store.load`. A log that begins at its beginning needs no load_snapshot()."""
        assert not self._loading, "a store is loaded once"
        self._loading = True
        try:
            if self._plan is None:
                self._plan = self._make_plan()
                assert self._plan.snapshot is None, "load_snapshot() comes first"
            yield from self._recover(self._plan)
        except OSError as error:
            self._failure = error
            raise open_error(error, self._directory.path) from error

    def _make_plan(self) -> Plan:
        """Decide where recovery begins, having read the snapshots that it takes to do so."""
        numbers = self._directory.segment_numbers()
        last_no = max(numbers[-1] if numbers else 0, self._store.segment_no)
        plan = choose(map(self._verify, self._directory.snapshot_lsns()), numbers, last_no)
        if isinstance(plan, Plan):
            return plan
        path = self._directory.path_of(segment_name(plan.missing_segment))
        damaged = "".join(f"; {_in_words(each)}" for each in plan.passed_over)
        raise Corruption(f"{path} is missing{damaged}; {WHAT_TO_DO}", file=path, offset=0)

    def _verify(self, lsn: int) -> Snapshot | Damaged:
        return verify(self._fs, self._directory.path_of(snapshot_name(lsn)), self._store.store_id, lsn)

    def _recover(self, plan: Plan) -> Iterator[Record]:
        numbers = self._directory.segment_numbers()
        last_no = numbers[-1] if numbers else 0
        self._chain = plan.base.chain
        for segment_no in numbers:
            if segment_no < plan.base.segment_no:  # for an older snapshot, or about to be removed
                self._sizes[segment_no] = self._directory.size_of(segment_name(segment_no))
        numbers = [segment_no for segment_no in numbers if segment_no >= plan.base.segment_no]
        clean = last_no == self._store.segment_no and (last_no == 0 or self._store.clean_bytes > 0)
        count = torn_bytes = 0
        quarantined = None
        next_no = plan.base.segment_no
        for segment_no in numbers:
            data = self._directory.read(segment_name(segment_no))
            chain_before = Chain(self._chain.crc, self._chain.last_lsn, self._chain.durable_lsn)
            reader = SegmentReader(data, self._store.store_id, segment_no, self._chain)
            for record in reader.records():
                count += 1
                yield record
            end = reader.end
            assert end is not None, "records() was exhausted"
            is_last = segment_no == last_no
            self._refuse_damage(segment_no, len(data), end, may_be_torn=is_last and not clean)
            if is_last and reader.batch_count == 0:
                # Nothing is lost if the fresh segment takes its place, and a daemon that is started
                # and stopped all day leaves no trail of empty files.
                self._chain = chain_before
                next_no = segment_no
            else:
                self._sizes[segment_no] = end.offset
                next_no = segment_no + 1
            if end.verdict is Verdict.TORN:
                torn_bytes = len(data) - end.offset
                quarantined = self._directory.quarantine(segment_no, end.offset, data[end.offset :])
            if is_last and not clean and reader.batch_count > 0:
                self._directory.replace(segment_name(segment_no), data[: end.offset])
        self._chain.durable_lsn = self._chain.last_lsn
        self._start_segment(next_no)
        self._directory.remove_temporary_files()
        damaged = self._take_stock(plan)
        self._reserve.take()
        self._recovery = RecoveryReport(
            count,
            plan.base.lsn + 1 if count else 0,
            self._chain.last_lsn,
            clean,
            torn_bytes,
            quarantined,
            plan.base.lsn,
            tuple(_in_words(each) for each in damaged),
        )

    def _take_stock(self, plan: Plan) -> list[Damaged]:
        """Note which snapshots there are, and put the damaged ones away. Returns these."""
        damaged = list(plan.passed_over)
        if plan.snapshot is not None:
            self._snapshots.append(plan.snapshot)
            for lsn in self._directory.snapshot_lsns():
                if lsn < plan.base.lsn:
                    path = self._directory.path_of(snapshot_name(lsn))
                    older = read_base(self._fs, path, self._store.store_id, lsn)
                    if isinstance(older, Damaged):
                        damaged.append(older)
                    else:
                        self._snapshots.append(older)
        for each in damaged:
            self._directory.move_to_quarantine(snapshot_name(each.lsn))
        self._trim()
        return damaged

    def _refuse_damage(self, segment_no: int, size: int, end: End, *, may_be_torn: bool) -> None:
        """Turn a verdict into the one exception that it deserves, if any."""
        path = self._directory.path_of(segment_name(segment_no))
        if end.verdict is Verdict.UNSUPPORTED:
            raise UnsupportedFormat(
                f"{path}: byte {end.offset}: {end.reason}; this jqd knows format {FORMAT}"
            )
        reason = end.reason
        if end.verdict is Verdict.WHOLE:
            if segment_no != self._store.segment_no or self._store.clean_bytes in (0, size):
                return
            reason = f"the file ends here, a clean stop left {self._store.clean_bytes} bytes"
        elif end.verdict is Verdict.TORN and may_be_torn:
            return
        lsn = self._chain.last_lsn + 1
        lost = f"LSN {lsn} to {end.lost_to_lsn} and maybe more" if end.lost_to_lsn else f"LSN {lsn} and later"
        message = f"{path}: byte {end.offset}: {reason}; {lost} cannot be trusted; {WHAT_TO_DO}"
        raise Corruption(message, file=path, offset=end.offset, lsn=lsn)

    # --- writing ------------------------------------------------------------------------------

    def append(self, records: Sequence[Record]) -> None:
        """See `Store.append`. Rotates first if the segment is full, which syncs what is in it."""
        writer = self._open_writer()
        try:
            if writer.size_bytes >= self._segment_bytes:
                writer = self._rotate()
            writer.append(records)
        except BaseException as error:
            # Whatever it was: half a batch may be in the file, and nothing may follow it.
            self._poison(error)
            raise

    def sync(self) -> None:
        """See `Store.sync`."""
        writer = self._open_writer()
        chain = self._chain
        if chain.durable_lsn == chain.last_lsn:
            return
        try:
            writer.sync()
        except BaseException as error:
            self._poison(error)
            raise
        chain.durable_lsn = chain.last_lsn

    def cut(self) -> Base:
        """See `Store.cut`. The base is the beginning of the open segment, which is a fresh one if need be."""
        self._open_writer()
        if self._chain.last_lsn > self._base.lsn:
            try:
                self._rotate()
            except BaseException as error:
                self._poison(error)
                raise
        return self._base

    def begin_snapshot(self, cut: Base) -> "SnapshotInWal":
        """See `Store.begin_snapshot`."""
        # Past the reserve: a snapshot that finds the disk full is given up, and nothing is given up for it.
        directory = self._directory.through(self._plain_fs)
        return SnapshotInWal(self, SnapshotWriter(self._plain_fs, directory, self._store.store_id, cut))

    def _published(self, snapshot: Snapshot) -> None:
        """Take in a snapshot that has its name, and let go of what it replaces."""
        # One of the same LSN has taken the other's file: it counts once, or its file would go as a surplus one.
        others = [each for each in self._snapshots if each.base.lsn != snapshot.base.lsn]
        self._snapshots = [snapshot, *others]
        self._trim()

    def _trim(self) -> None:
        """Remove the snapshots that are too many, and the segments that no kept one goes on with."""
        kept, surplus = self._snapshots[:KEPT_SNAPSHOTS], self._snapshots[KEPT_SNAPSHOTS:]
        self._directory.remove(snapshot_name(each.base.lsn) for each in reversed(surplus))
        self._snapshots = kept
        if len(kept) < KEPT_SNAPSHOTS:
            return
        for segment_no in sorted(self._sizes):  # a copy, made at once: the log's thread may add to it
            if segment_no < kept[-1].base.segment_no:
                self._directory.remove([segment_name(segment_no)])
                del self._sizes[segment_no]

    def seal(self) -> None:
        """See `Store.seal`. Syncs first what was not synced yet."""
        self.sync()
        if self._sealed_lsn == self._chain.durable_lsn:
            return
        writer = self._open_writer()
        try:
            writer.seal()
            writer.sync()
        except BaseException as error:
            self._poison(error)
            raise
        self._sealed_lsn = self._chain.durable_lsn

    def space(self) -> Space:
        """See `Store.space`."""
        self._open_writer()  # of a poisoned store nobody asks anything
        try:
            if self.reserve_is_lost:
                self._reserve.take()
            return Space(self._fs.free_bytes(self._directory.path), self.reserve_is_lost)
        except BaseException as error:
            self._poison(error)
            raise

    def close(self) -> None:
        """See `Store.close`. On a poisoned store it lets go of the files and raises WriteFailed."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._recovery is not None:
                self._stop_cleanly()
        finally:
            writer, self._writer = self._writer, None
            if writer is not None:
                writer.close()
            self._directory.unlock()

    def _stop_cleanly(self) -> None:
        self.seal()
        self._store = self._store._replace(clean_bytes=self._open_writer().size_bytes)
        try:
            self._directory.write_store_file(self._store)
        except OSError as error:
            self._poison(error)

    def _rotate(self) -> SegmentWriter:
        self.seal()
        old = self._open_writer()
        new = self._start_segment(old.segment_no + 1)
        self._sizes[old.segment_no] = old.size_bytes
        old.close()
        return new

    def _start_segment(self, segment_no: int) -> SegmentWriter:
        """Open a fresh segment, durable by name, so that its batches may be acknowledged."""
        name = segment_name(segment_no)
        base = Base(self._chain.last_lsn, segment_no, self._chain.crc)
        handle = self._directory.create(name)
        try:
            writer = SegmentWriter(self._fs, handle, self._store.store_id, segment_no, self._chain)
            writer.sync()
            self._directory.publish(name)
            self._store = self._store._replace(segment_no=segment_no, clean_bytes=0)
            self._directory.write_store_file(self._store)
        except BaseException:
            self._fs.close(handle)
            raise
        # That the segment exists is as good as a seal on the one before.
        self._sealed_lsn = self._chain.durable_lsn
        self._base = base
        self._writer = writer
        return writer

    def _open_writer(self) -> SegmentWriter:
        if self._failure is not None:
            raise WriteFailed(f"an earlier write failed, restart to recover: {self._failure}")
        assert self._writer is not None, "load comes first, to its end, and nothing after close"
        return self._writer

    def _poison(self, error: BaseException) -> None:
        """Refuse everything from now on; raise jqd's error for one of the operating system."""
        self._failure = self._failure or error
        if isinstance(error, OSError):
            raise write_error(error, self._directory.path) from error

    # --- facts --------------------------------------------------------------------------------

    @property
    def reserve_is_lost(self) -> bool:
        """See `Store.reserve_is_lost`."""
        return self._reserve.is_lost

    @property
    def recovery(self) -> RecoveryReport:
        """See `Store.recovery`."""
        assert self._recovery is not None, "load comes first, to its end"
        return self._recovery

    @property
    def durable_lsn(self) -> int:
        """See `Store.durable_lsn`."""
        return self._chain.durable_lsn

    @property
    def size_bytes(self) -> int:
        """Bytes of all segments."""
        return sum(list(self._sizes.values())) + (self._writer.size_bytes if self._writer else 0)

    @property
    def unsnapped_bytes(self) -> int:
        """See `Store.unsnapped_bytes`."""
        first_no = self._snapshots[0].base.segment_no if self._snapshots else 1
        closed = sum(size for number, size in list(self._sizes.items()) if number >= first_no)
        return closed + (self._writer.size_bytes if self._writer else 0)

    @property
    def snapshot_bytes(self) -> int:
        """See `Store.snapshot_bytes`."""
        return self._snapshots[0].size_bytes if self._snapshots else 0

    @property
    def snapshot_lsn(self) -> int:
        """See `Store.snapshot_lsn`."""
        return self._snapshots[0].base.lsn if self._snapshots else 0

    @property
    def segment_count(self) -> int:
        """Segments, the open one included."""
        return len(self._sizes) + 1


class SnapshotInWal:
    """A snapshot on its way. Implements `SnapshotSink`."""

    def __init__(self, store: WalStore, writer: SnapshotWriter) -> None:
        self._store = store
        self._writer = writer
        self.is_made = False

    @property
    def size_bytes(self) -> int:
        """Bytes written so far."""
        return self._writer.size_bytes

    def write(self, count: int, payload: bytes) -> None:
        """See `SnapshotSink.write`."""
        self._writer.write(count, payload)

    def finish(self) -> None:
        """See `SnapshotSink.finish`."""
        snapshot = self._writer.finish()
        self.is_made = True
        self._store._published(snapshot)

    def abort(self) -> None:
        """See `SnapshotSink.abort`."""
        self._writer.abort()


def _in_words(damaged: Damaged) -> str:
    return f"{damaged.path}: byte {damaged.offset}: {damaged.reason}"

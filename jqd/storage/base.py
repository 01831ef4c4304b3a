"""What the rest of jqd may ask of a store, and the values that cross that line.

Knows:         records as opaque bytes, LSNs, what recovery found.
Must not know: what a change is, files, databases, threads.

The life of a store: `load` to its end, then any number of `append`, `sync` and `seal`, then `close`.
One thread at a time calls it. `durable_lsn` may be read from any thread.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol


class Record(NamedTuple):
    """One batch of changes, durable as a whole or not at all."""

    first_lsn: int  # LSN of its first change, from 1
    count: int  # type: ignore[assignment]  # changes in it, >= 1; hides tuple.count, which nobody needs
    payload: bytes

    @property
    def last_lsn(self) -> int:
        """LSN of its last change."""
        return self.first_lsn + self.count - 1


@dataclass(frozen=True, slots=True)
class RecoveryReport:
    """What `load` found. An operator reads it in the log of the daemon's start."""

    records: int
    first_lsn: int  # 0 when there are no records
    last_lsn: int  # 0 when there are no records
    clean: bool  # the last stop was a `close` that came to its end, or there was no store yet
    torn_bytes: int  # unfinished bytes that were cut from the end of the last segment
    quarantined: str | None  # path of the copy of these bytes
    snapshot_lsn: int = 0  # of the snapshot that it began with; 0: it read the whole log
    damaged_snapshots: tuple[str, ...] = ()  # what is wrong with newer ones, which were passed over


class SnapshotSink(Protocol):
    """A snapshot that is being written. All of it in one thread, which need not be that of the log.

    An OSError says that the file is worth nothing: call abort(), and nothing else. Unless it `is_made`: then finish()
    could not remove everything that it replaces, which is done with the next one or at the next start.
    """

    @property
    def size_bytes(self) -> int:
        """Bytes written so far."""
        ...

    @property
    def is_made(self) -> bool:
        """Whether it is durable and will be used, whatever finish() met afterwards."""
        ...

    def write(self, count: int, payload: bytes) -> None:
        """Add a part of so many images."""
        ...

    def finish(self) -> None:
        """Make it durable, read it again, and remove what of the log and of older snapshots nobody needs now.

        Raises: StorageError: it is not what was written.
        """
        ...

    def abort(self) -> None:
        """Remove it."""
        ...


class Space(NamedTuple):
    """What is left for the log to grow into."""

    free_bytes: int  # others can take them as well
    reserve_is_lost: bool  # what is set aside for a full disk had to be given up and is not back yet


class Store(Protocol):
    """A log of records.

    A failed write or sync is final: from then on every call raises `WriteFailed`, since what the disk
    holds is known only after a restart. The daemon ends with the error's exit code.
    """

    public_id: str  # 32 hex characters; shown to clients, unlike the secret store id

    def load_snapshot(self) -> Iterator[bytes]:
        """Yield the parts of the snapshot that the log goes on from, if there is one; once, before `load`.

        Raises: as `load`.
        """
        ...

    def load(self) -> Iterator[Record]:
        """Yield every record in LSN order; once, before the first append.

        When the iterator is exhausted, every record that it yielded is durable, `recovery` is set and
        the store takes appends.

        Raises:
            Corruption: bytes that were once durable are damaged or missing.
            UnsupportedFormat: written by a newer jqd, or not by jqd.
        """
        ...

    def append(self, records: Sequence[Record]) -> None:
        """Hand records to the operating system. They are not durable before `sync` returns."""
        ...

    def sync(self) -> None:
        """Make everything appended durable."""
        ...

    def cut(self) -> Any:  # noqa: ANN401 - what a store knows itself by; begin_snapshot() takes it
        """End the log so far at its last record, so that a snapshot of that LSN can take its place."""
        ...

    def begin_snapshot(self, cut: Any) -> SnapshotSink:  # noqa: ANN401
        """Begin to write the snapshot of a cut. In another thread than append and sync."""
        ...

    def seal(self) -> None:
        """Write down that what was synced is durable, if it is not written down yet.

        To be called when the log has been idle for a moment: damage to the last batch can be told from
        an unfinished write only once a seal or another batch stands behind it.
        """
        ...

    def close(self) -> None:
        """Stop cleanly: sync, seal, mark the stop as clean, release the lock. A second call does nothing."""
        ...

    def space(self) -> Space | None:
        """Look how much room is left; take the reserve back if there is room for it again.

        None: the store has no bound of its own that it knows of.
        """
        ...

    @property
    def reserve_is_lost(self) -> bool:
        """Whether a full disk was met and its reserve is not back yet: time for a look at `space`."""
        ...

    @property
    def recovery(self) -> RecoveryReport:
        """What `load` found; valid once it is exhausted."""
        ...

    @property
    def durable_lsn(self) -> int:
        """The highest LSN that is known to be durable; 0 for none."""
        ...

    @property
    def size_bytes(self) -> int:
        """Bytes that the log takes."""
        ...

    @property
    def unsnapped_bytes(self) -> int:
        """Bytes of the log behind the newest snapshot: what a start has to read besides it."""
        ...

    @property
    def snapshot_bytes(self) -> int:
        """Size of the newest snapshot; 0 for none."""
        ...

    @property
    def snapshot_lsn(self) -> int:
        """LSN of the newest snapshot; 0 for none."""
        ...

    @property
    def segment_count(self) -> int:
        """Files that the log consists of."""
        ...

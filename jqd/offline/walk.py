"""Reading a log record by record, with the place of each, up to where its good part ends.

Knows:         in which order recovery reads what is there, where the good part ends, whose frames these are.
Must not know: what recovery does about it (check.py asks recovery itself), what a record means.

Nothing is locked and nothing is written, so that the log of a running daemon can be read too: what is there is a
prefix of what it will be, and its last frame may be half written.

A log is read from the newest snapshot that is whole: with or without what stands behind it, no other way leads
further. `Log.parts` gives that snapshot, `Log.entries` the records behind it.
"""

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from jqd.errors import Corruption, DataDirUnusable
from jqd.offline.files import Overlay, read_what_can_be_read
from jqd.storage.base import Record
from jqd.storage.directory import STORE_NAME, Directory, snapshot_name
from jqd.storage.fs import FileSystem, open_error
from jqd.storage.record import FORMAT, HEADER_BYTES, decode_header
from jqd.storage.recovery import BEGINNING
from jqd.storage.segment import SegmentReader, Verdict, segment_name
from jqd.storage.snapshot import Base, Snapshot, read_parts, verify
from jqd.storage.store_file import Newer, StoreFile, decode_store_file


class Entry(NamedTuple):
    """A record and where its frame begins."""

    segment_no: int
    offset: int
    record: Record


class Stop(NamedTuple):
    """The first bytes that are no good frame in their place.

    verdict: None if there is no such segment.
    """

    segment_no: int
    offset: int
    verdict: Verdict | None
    reason: str


@dataclass
class Segment:
    """What a segment was found to hold. LSNs are 0 where there are none; size_bytes is None if it was not read."""

    number: int
    size_bytes: int | None = None
    records: int = 0
    first_lsn: int = 0
    last_lsn: int = 0

    @property
    def name(self) -> str:
        return segment_name(self.number)


class Log:
    """A log as it lies there.

    Attributes:
        store: what the file `store` says; a word where it says nothing.
        store_id: of the frames: as `store` says, or, where that is of no use, as the segments say themselves.
        snapshot: the newest one that is whole, if there is one.
        damaged_snapshots: names of those that are newer than that one.
        stop: set by `entries`; None: all is good.

    Raises: DataDirUnusable: it cannot be read, or is not a data directory of jqd.
    """

    def __init__(self, fs: FileSystem, path: str) -> None:
        self.fs = Overlay(fs)
        self.directory = Directory(self.fs, path)
        try:
            # `store` first, as recovery does: a running daemon raises its number when the segment is there.
            is_there = STORE_NAME in self.fs.list_directory(path)
            self.store = self._read_store() if is_there else "missing"
            self.segments = {number: Segment(number) for number in self.directory.segment_numbers()}
            lsns = self.directory.snapshot_lsns()
            if not is_there and not self.segments and not lsns:
                raise DataDirUnusable(
                    f"{path} holds no log of jqd: neither {STORE_NAME} nor a segment nor a snapshot is there"
                )
            self.store_id = self._find_store_id(
                [*map(snapshot_name, lsns), *map(segment_name, self.segments)]
            )
            self.damaged_snapshots: list[str] = []
            self.snapshot = self._find_snapshot(lsns)
        except OSError as error:
            raise open_error(error, path) from error
        self.stop: Stop | None = None

    @property
    def path(self) -> str:
        return self.directory.path

    @property
    def format(self) -> int:
        return FORMAT

    @property
    def base(self) -> Base:
        """Return where the log is read from."""
        return self.snapshot.base if self.snapshot is not None else BEGINNING

    @property
    def last_segment_no(self) -> int:
        """Return the highest number that there is or, as `store` says, must be."""
        said = self.store.segment_no if isinstance(self.store, StoreFile) else 0
        return max([said, *self.segments])

    def parts(self) -> Iterator[bytes]:
        """Yield the parts of the snapshot that the log is read from."""
        if self.snapshot is not None:
            lsn = self.base.lsn
            yield from read_parts(self.fs, self.directory.path_of(snapshot_name(lsn)), self.store_id, lsn)

    def entries(self) -> Iterator[Entry]:
        """Yield every record of the good part of the log, in order of LSNs. Holds one segment in memory."""
        chain = self.base.chain
        for segment_no in range(self.base.segment_no, self.last_segment_no + 1):
            segment = self.segments.get(segment_no)
            if segment is None:
                self.stop = Stop(segment_no, 0, None, "the file is missing")
                return
            data = self.read(segment_no)
            reader = SegmentReader(data, self.store_id, segment_no, chain)
            for record in reader.records():
                segment.records += 1
                segment.first_lsn = segment.first_lsn or record.first_lsn
                segment.last_lsn = record.last_lsn
                yield Entry(segment_no, reader.offset, record)
            end = reader.end
            assert end is not None, "records() was exhausted"
            if end.verdict is not Verdict.WHOLE:
                self.stop = Stop(segment_no, end.offset, end.verdict, end.reason)
                return

    def read(self, segment_no: int) -> bytes:
        """Return a segment, with zeros for what the disk does not give back. Raises DataDirUnusable: it is gone."""
        name = segment_name(segment_no)
        try:
            data = self.directory.read(name)
        except Corruption:
            data, _ = read_what_can_be_read(self.fs, self.directory.path_of(name))
        except OSError as error:
            raise open_error(error, self.path) from error
        self.segments[segment_no].size_bytes = len(data)
        return data

    def _read_store(self) -> "StoreFile | Newer | str":
        try:
            store = decode_store_file(self.directory.read(STORE_NAME))
        except Corruption:
            return "unreadable"
        return "damaged" if store is None else store

    def _find_snapshot(self, lsns: Iterable[int]) -> Snapshot | None:
        for lsn in lsns:
            found = verify(self.fs, self.directory.path_of(snapshot_name(lsn)), self.store_id, lsn)
            if isinstance(found, Snapshot):
                return found
            self.damaged_snapshots.append(snapshot_name(lsn))
        return None

    def _find_store_id(self, names: Iterable[str]) -> bytes:
        """Return the id that the frames have; of no frame, if there is nobody to say it."""
        heads: Counter[bytes] = Counter()
        for name in names:
            with contextlib.suppress(OSError):  # that it cannot be read, `entries` will notice
                header = decode_header(self._read_head(name), 0)
                if header is not None:
                    heads[header.store_id] += 1
        if isinstance(self.store, StoreFile) and (self.store.store_id in heads or not heads):
            return self.store.store_id
        return heads.most_common(1)[0][0] if heads else b""

    def _read_head(self, name: str) -> bytes:
        handle = self.fs.open(self.directory.path_of(name))
        try:
            return self.fs.read(handle, 0, HEADER_BYTES)
        finally:
            self.fs.close(handle)

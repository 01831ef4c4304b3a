"""Small verbs for tests of the log: a disk, a store on it, records, frames, and the one oracle."""

import random
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from jqd.storage.base import Record, RecoveryReport
from jqd.storage.record import FRAME_CRC_BYTES, HEADER_BYTES, Header, decode_header
from jqd.storage.segment import segment_name
from jqd.storage.wal import WalStore
from tests.support.faultfs import FaultDisk

DATA = "/data"
STORE = f"{DATA}/store"

_RECORDS = msgspec.msgpack.Decoder(list[Record])


def segment(number: int) -> str:
    return f"{DATA}/{segment_name(number)}"


def records(count: int, first_lsn: int = 1, payload_bytes: int = 20) -> list[Record]:
    """Return records of one to three changes, each with a payload of its own."""
    made = []
    for index in range(count):
        changes = index % 3 + 1
        payload = random.Random(first_lsn).randbytes(payload_bytes)
        made.append(Record(first_lsn, changes, payload))
        first_lsn += changes
    return made


def opened(disk: FaultDisk, **options: int) -> WalStore:
    """Return a loaded store."""
    store = WalStore(DATA, fs=disk, **options)
    all_of(store)
    return store


def all_of(store: WalStore) -> list[Record]:
    """Read snapshot and log of a store: the snapshots here hold the records that they stand for."""
    found = [record for part in store.load_snapshot() for record in _RECORDS.decode(part)]
    return [*found, *store.load()]


def parts_of(batches: Iterable[Record]) -> Iterator[tuple[int, bytes]]:
    """Return the parts of a snapshot of these records: a few, of some records each."""
    left = list(batches)
    while left:
        part, left = left[:8], left[8:]
        yield sum(record.count for record in part), msgspec.msgpack.encode(part)


def snap(store: WalStore, batches: Iterable[Record]) -> int:
    """Make a snapshot of these records, which are all that the store has; return its LSN."""
    sink = store.begin_snapshot(store.cut())
    for part in parts_of(batches):
        sink.write(*part)
    sink.finish()
    return store.snapshot_lsn


def load(disk: FaultDisk) -> tuple[list[Record], RecoveryReport]:
    """Read the log as a starting daemon does, and end like a killed one."""
    store = WalStore(DATA, fs=disk)
    try:
        return all_of(store), store.recovery
    finally:
        disk.kill()


def write(disk: FaultDisk, batches: Iterable[Record], **options: int) -> WalStore:
    """Append and sync each record by itself; return the open store."""
    store = opened(disk, **options)
    for record in batches:
        store.append([record])
        store.sync()
    return store


def frames(data: bytes) -> list[tuple[int, Header]]:
    """Return offset and header of each frame of a good segment."""
    found = []
    offset = 0
    while offset < len(data):
        header = decode_header(data, offset)
        assert header is not None
        found.append((offset, header))
        offset += HEADER_BYTES + header.payload_bytes + FRAME_CRC_BYTES
    return found


def cut_frames(data: bytes) -> list[bytes]:
    """Return the bytes of each frame of a good segment."""
    starts = [offset for offset, _ in frames(data)]
    return [data[start:end] for start, end in zip(starts, [*starts[1:], len(data)], strict=True)]


class Ledger:
    """What was asked of a store and what it promised: the oracle of all crash tests."""

    def __init__(self) -> None:
        self.appended: list[Record] = []
        self.acknowledged = 0  # records whose sync returned

    def next_records(self, count: int, payload_bytes: int = 20) -> list[Record]:
        lsn = self.appended[-1].last_lsn + 1 if self.appended else 1
        return records(count, lsn, payload_bytes)

    def append(self, store: WalStore, count: int, payload_bytes: int = 20) -> None:
        new = self.next_records(count, payload_bytes)
        self.appended += new
        store.append(new)

    def sync(self, store: WalStore) -> None:
        store.sync()
        self.acknowledged = len(self.appended)

    def snap(self, store: WalStore) -> None:
        """Make a snapshot of all that was appended, which a cut makes durable."""
        appended = list(self.appended)
        cut = store.cut()
        self.acknowledged = len(appended)
        sink = store.begin_snapshot(cut)
        for part in parts_of(appended):
            sink.write(*part)
        sink.finish()

    def recovered(self, found: Sequence[Record]) -> None:
        """Check what a recovery yielded; from now on it is promised, since clients may have seen it."""
        assert list(found) == self.appended[: len(found)], "not a prefix of what was appended"
        assert len(found) >= self.acknowledged, "an acknowledged record is lost"
        self.appended = list(found)
        self.acknowledged = len(found)

    def recover(self, disk: FaultDisk, **options: int) -> WalStore:
        store = WalStore(DATA, fs=disk, **options)
        self.recovered(all_of(store))
        last = self.appended[-1].last_lsn if self.appended else 0
        assert store.durable_lsn == store.recovery.last_lsn == last
        return store

"""Write the golden log of the present disk format.

A log of every released format stays in `wal_format_N/` for ever: a test loads it. Only the directory of
the present format is written anew, and its bytes change only together with the format's number.
"""

import json
import shutil
from pathlib import Path

from jqd.storage.base import Record
from jqd.storage.fs import RealFileSystem
from jqd.storage.record import FORMAT
from jqd.storage.wal import WalStore

HERE = Path(__file__).parent
SEGMENT_BYTES = 256
RECORDS = [
    Record(1, 1, b""),
    Record(2, 3, b"three changes"),
    Record(5, 1, bytes(range(256))),
    Record(6, 2, b"\xa7jqd looks like a frame"),
    Record(8, 1000, b"many changes"),
    Record(1008, 1, b"the last one"),
]


class FixedFileSystem(RealFileSystem):
    """The real one, but with ids that are the same on every run."""

    def __init__(self) -> None:
        self._next = 0

    def random_bytes(self, count: int) -> bytes:
        first, self._next = self._next, self._next + count
        return bytes(range(first, first + count))


def write_wal(directory: Path) -> None:
    """Write the log: one record in each sync, a seal in the middle, two runs, clean stops."""
    fs = FixedFileSystem()
    for run in (RECORDS[:4], RECORDS[4:]):
        store = WalStore(str(directory), fs=fs, segment_bytes=SEGMENT_BYTES)
        for _ in store.load():
            pass
        for record in run:
            store.append([record])
            store.sync()
            if record.first_lsn == 1:
                store.seal()
        store.close()


def make_wal_golden() -> None:
    """Write `wal_format_N/` anew."""
    directory = HERE / f"wal_format_{FORMAT}"
    shutil.rmtree(directory, ignore_errors=True)
    write_wal(directory)
    (directory / "lock").unlink()
    expected = [[first_lsn, count, payload.hex()] for first_lsn, count, payload in RECORDS]
    text = json.dumps(expected, indent=0)
    (directory / "expected.json").write_text(text + "\n", encoding="ascii")


if __name__ == "__main__":
    make_wal_golden()

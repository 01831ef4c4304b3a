"""Write the golden store with snapshots of the present disk format.

A store of every released format stays in `snapshot_format_N/` for ever: a test loads it. Its log does not begin at
the beginning, so that nothing but the snapshots can rebuild it. Only the directory of the present format is written
anew, and its bytes change only together with the format's number.
"""

import json
import shutil
from pathlib import Path

from jqd.storage.record import FORMAT
from jqd.storage.wal import WalStore
from tests.golden.make_wal import RECORDS, SEGMENT_BYTES, FixedFileSystem

HERE = Path(__file__).parent
SNAPPED = {2: [(1, b"older")], 6: [(1, b""), (3, b"three images"), (1000, bytes(range(200)))]}  # by first LSN


def write_store(directory: Path) -> None:
    """Write the store: one record in each sync, two snapshots, a clean stop."""
    store = WalStore(str(directory), fs=FixedFileSystem(), segment_bytes=SEGMENT_BYTES)
    for _ in store.load():
        pass
    for record in RECORDS:
        store.append([record])
        store.sync()
        if parts := SNAPPED.get(record.first_lsn):
            sink = store.begin_snapshot(store.cut())
            for count, payload in parts:
                sink.write(count, payload)
            sink.finish()
    store.close()


def make_snapshot_golden() -> None:
    """Write `snapshot_format_N/` anew."""
    directory = HERE / f"snapshot_format_{FORMAT}"
    shutil.rmtree(directory, ignore_errors=True)
    write_store(directory)
    (directory / "lock").unlink()
    expected = {
        "parts": [payload.hex() for _, payload in SNAPPED[6]],
        "records": [
            [first_lsn, count, payload.hex()] for first_lsn, count, payload in RECORDS if first_lsn > 6
        ],
    }
    text = json.dumps(expected, indent=0)
    (directory / "expected.json").write_text(text + "\n", encoding="ascii")


if __name__ == "__main__":
    make_snapshot_golden()

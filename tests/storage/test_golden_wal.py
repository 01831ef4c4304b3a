"""The bytes on disk: every released format loads for ever, the present one does not change unnoticed."""

import json
import shutil
from pathlib import Path

import pytest

from jqd.storage.base import Record
from jqd.storage.record import FORMAT
from jqd.storage.wal import WalStore
from tests.golden.make_snapshot import write_store
from tests.golden.make_wal import HERE, write_wal

FORMATS = sorted(HERE.glob("wal_format_*"))
SNAPSHOT_FORMATS = sorted(HERE.glob("snapshot_format_*"))


def golden(directory: Path) -> dict[str, bytes]:
    left_out = {"lock", "expected.json"}
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name not in left_out}


def test_there_is_a_golden_log_of_every_format():
    assert [path.name for path in FORMATS] == [f"wal_format_{number}" for number in range(1, FORMAT + 1)]
    assert [path.name for path in SNAPSHOT_FORMATS] == [
        f"snapshot_format_{number}" for number in range(1, FORMAT + 1)
    ]


@pytest.mark.parametrize("directory", FORMATS, ids=lambda path: path.name)
def test_log_of_every_released_format_loads(directory, tmp_path):
    shutil.copytree(directory, tmp_path, dirs_exist_ok=True)
    expected = json.loads((directory / "expected.json").read_text(encoding="ascii"))
    store = WalStore(str(tmp_path))
    found = list(store.load())
    assert found == [Record(first, count, bytes.fromhex(payload)) for first, count, payload in expected]
    assert store.recovery.clean
    assert store.public_id == "101112131415161718191a1b1c1d1e1f"
    store.close()


def test_same_records_give_the_golden_bytes(tmp_path):
    write_wal(tmp_path)
    assert golden(tmp_path) == golden(HERE / f"wal_format_{FORMAT}")


@pytest.mark.parametrize("directory", SNAPSHOT_FORMATS, ids=lambda path: path.name)
def test_snapshot_of_every_released_format_loads(directory, tmp_path):
    shutil.copytree(directory, tmp_path, dirs_exist_ok=True)
    expected = json.loads((directory / "expected.json").read_text(encoding="ascii"))
    store = WalStore(str(tmp_path))
    assert [part.hex() for part in store.load_snapshot()] == expected["parts"]
    assert [[lsn, count, payload.hex()] for lsn, count, payload in store.load()] == expected["records"]
    assert (store.recovery.clean, store.recovery.damaged_snapshots) == (True, ())
    assert len(list(tmp_path.glob("*.snap"))) == 2
    assert not (tmp_path / "0000000000000001.wal").exists()
    store.close()


def test_same_snapshots_give_the_golden_bytes(tmp_path):
    write_store(tmp_path)
    assert golden(tmp_path) == golden(HERE / f"snapshot_format_{FORMAT}")

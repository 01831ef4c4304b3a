"""The store that keeps nothing."""

import pytest

from jqd.storage.base import Record, RecoveryReport, Store
from jqd.storage.memory import MemoryStore
from jqd.storage.wal import WalStore
from tests.storage.logs import records
from tests.support.faultfs import FaultDisk


def test_both_stores_are_stores():
    stores: list[Store] = [MemoryStore(), WalStore("/data", fs=FaultDisk())]  # mypy checks this line
    for store in stores:
        assert list(store.load()) == []
        assert len(bytes.fromhex(store.public_id)) == 16


def test_records_of_an_earlier_process_are_loaded():
    store = MemoryStore(records(3), keep=True)
    assert list(store.load()) == records(3)
    assert store.recovery == RecoveryReport(3, 1, 6, True, 0, None)
    assert store.durable_lsn == 6
    store.append(records(1, 7))
    assert store.durable_lsn == 6
    store.close()
    assert store.durable_lsn == 7
    assert store.records == [*records(3), *records(1, 7)]


def test_nothing_is_kept_unless_asked_for():
    store = MemoryStore()
    assert list(store.load()) == []
    store.append(records(2))
    store.sync()
    store.seal()
    assert store.records == []
    assert (store.durable_lsn, store.size_bytes, store.segment_count) == (3, 40, 0)


def test_rules_of_a_store_are_asserted():
    store = MemoryStore()
    with pytest.raises(AssertionError):
        store.append(records(1))
    with pytest.raises(AssertionError):
        _ = store.recovery
    list(store.load())
    with pytest.raises(AssertionError):
        list(store.load())
    with pytest.raises(AssertionError):
        store.append([Record(2, 1, b"")])


@pytest.mark.parametrize("keep", [True, False])
def test_snapshot_counts_like_one_on_a_disk_and_is_kept_only_if_asked_for(keep):
    store = MemoryStore(keep=keep)
    assert not [*store.load_snapshot(), *store.load()]
    store.append(records(2))
    store.sync()
    sink = store.begin_snapshot(store.cut())
    sink.write(2, b"four")
    sink.abort()
    assert (store.snapshot_lsn, store.snapshot_bytes, store.unsnapped_bytes) == (0, 0, 40)
    sink = store.begin_snapshot(store.cut())
    sink.write(2, b"four")
    sink.finish()
    assert (store.snapshot_lsn, store.snapshot_bytes, store.unsnapped_bytes) == (3, 4, 0)
    assert store.parts == ([b"four"] if keep else [])
    store.append(records(1, 4))
    assert (store.snapshot_lsn, store.unsnapped_bytes, store.size_bytes) == (3, 20, 60)

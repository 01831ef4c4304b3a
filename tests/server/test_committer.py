"""The commit thread over a disk that waits and fails when it is told to."""

import queue
import threading

import pytest

from jqd.errors import WriteFailed
from jqd.server import committer as committer_module
from jqd.server.committer import LOOK_AFTER_BYTES, WRITE_BYTES_MAX, Committer
from jqd.server.threads import Threads
from jqd.storage.base import Record, Space
from tests.support.gatestore import GateStore
from tests.support.wire import PATIENCE_S


class Room:
    """A committer and what it said."""

    def __init__(self, *, sync_interval_ms: int | None = None, slow_sync_ms: int = 60_000) -> None:
        self.store = GateStore()
        self.durable: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.failures: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
        self.slow: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.spaces: queue.SimpleQueue[Space] = queue.SimpleQueue()
        self.threads: set[str] = set()
        self.committer = Committer(
            self.store,
            on_durable=self._durable,
            on_failure=self.failures.put,
            on_slow_sync=self.slow.put,
            on_space=self.spaces.put,
            sync_interval_ms=sync_interval_ms,
            slow_sync_ms=slow_sync_ms,
            threads=Threads(),
        )
        self._lsn = 0

    def _durable(self, lsn: int) -> None:
        self.threads.add(threading.current_thread().name)
        self.store.log.append(("durable", lsn, self.store.durable_lsn))
        self.durable.put(lsn)

    def put(self, count: int = 1, payload: bytes = b"x") -> None:
        self.committer.put(Record(self._lsn + 1, count, payload))
        self._lsn += count

    def next_durable(self) -> int:
        return self.durable.get(timeout=PATIENCE_S)

    def calls(self) -> list[object]:
        return [call[0] for call in self.store.log]


@pytest.fixture
def make_room():
    rooms: list[Room] = []

    def make(**options: int) -> Room:
        room = Room(**options)
        rooms.append(room)
        room.committer.start()
        return room

    yield make
    for room in rooms:
        room.store.gate.set()
        room.committer.stop()


def test_record_is_durable_after_its_sync_and_not_before(make_room):
    room = make_room()
    room.store.gate.clear()
    room.put(count=3)
    room.store.wait_for("sync")
    assert room.durable.empty()
    room.store.gate.set()
    assert room.next_durable() == 3
    assert room.calls()[:3] == ["append", "sync", "durable"]
    assert room.threads == {"jqd-commit"}


def test_records_that_wait_share_one_write_and_one_sync(make_room):
    room = make_room()
    room.store.gate.clear()
    room.put()
    room.store.wait_for("sync")
    for _ in range(50):
        room.put(count=2)
    room.store.gate.set()
    assert [room.next_durable(), room.next_durable()] == [1, 101]
    assert room.committer.sync_count == 2
    appended = [call[1:] for call in room.store.log if call[0] == "append"]
    assert appended[1] == tuple((lsn, lsn + 1) for lsn in range(2, 102, 2))


def test_records_become_durable_in_order_of_their_lsn(make_room):
    room = make_room()
    for count in range(1, 200):
        room.put(count=count % 5 + 1)
    told = [room.next_durable()]
    while told[-1] < room._lsn:
        told.append(room.next_durable())
    assert told == sorted(set(told))
    assert [record.first_lsn for record in room.store.records] == [
        1,
        *(record.last_lsn + 1 for record in room.store.records[:-1]),
    ]
    for _, lsn, durable_lsn in (call for call in room.store.log if call[0] == "durable"):
        assert lsn <= durable_lsn


def test_one_write_is_bounded(make_room):
    room = make_room()
    room.store.gate.clear()
    room.put()
    room.store.wait_for("sync")
    for _ in range(3):
        room.put(payload=bytes(WRITE_BYTES_MAX // 2))
    room.store.gate.set()
    assert [room.next_durable() for _ in range(3)] == [1, 3, 4]


@pytest.mark.parametrize("call", ["append", "sync"])
def test_nothing_is_durable_after_a_failure(make_room, call):
    room = make_room()
    room.store.fail[call] = 2
    room.put()
    assert room.next_durable() == 1
    room.put()
    error = room.failures.get(timeout=PATIENCE_S)
    assert isinstance(error, WriteFailed)
    assert str(error) == f"{call} number 2 failed"
    calls = room.calls()
    room.put()
    room.committer.stop()  # the thread has ended: what comes later is not even looked at
    assert room.durable.empty() and room.failures.empty()
    assert room.calls() == calls


def test_failed_seal_is_a_failure(make_room, monkeypatch):
    monkeypatch.setattr(committer_module, "SEAL_AFTER_S", 0.0)
    room = make_room()
    room.store.fail["seal"] = 1
    room.put()
    assert isinstance(room.failures.get(timeout=PATIENCE_S), WriteFailed)


def test_idle_log_is_sealed_once(make_room, monkeypatch):
    monkeypatch.setattr(committer_module, "SEAL_AFTER_S", 0.0)
    room = make_room()
    room.put()
    room.store.wait_for("seal")
    room.put()
    room.store.wait_for("seal", 2)
    room.committer.stop()
    assert room.calls() == ["append", "sync", "durable", "seal"] * 2


def test_stop_writes_and_syncs_what_was_handed_over(make_room):
    room = make_room()
    room.store.gate.clear()
    room.put()
    room.store.wait_for("sync")
    for _ in range(3):
        room.put()
    stopper = threading.Thread(target=room.committer.stop)
    stopper.start()
    room.store.gate.set()
    stopper.join(PATIENCE_S)
    assert not stopper.is_alive()
    assert room.store.durable_lsn == 4
    assert [room.next_durable(), room.next_durable()] == [1, 4]


def test_slow_sync_is_reported_and_a_fast_one_is_not(make_room):
    room = make_room(slow_sync_ms=0)
    room.put()
    assert room.slow.get(timeout=PATIENCE_S) >= 0
    room = make_room(slow_sync_ms=60_000)
    room.put()
    room.next_durable()
    assert room.slow.empty()


# --- room on the disk ---------------------------------------------------------------------------

ROOM = Space(5_000, reserve_is_lost=False)


def test_looks_for_room_while_it_is_idle(make_room, monkeypatch):
    monkeypatch.setattr(committer_module, "LOOK_EVERY_S", 0.0)
    room = make_room()
    room.store.room = ROOM
    assert room.spaces.get(timeout=PATIENCE_S) == ROOM
    room.store.room = Space(6_000, reserve_is_lost=True)
    while room.spaces.get(timeout=PATIENCE_S) == ROOM:
        pass
    assert room.calls() == [], "an idle log was written to"


def test_looks_for_room_after_so_many_bytes_and_not_after_every_record(make_room, monkeypatch):
    monkeypatch.setattr(committer_module, "LOOK_EVERY_S", 60.0)
    room = make_room()
    room.store.room = ROOM
    for _ in range(3):
        room.put(payload=bytes(LOOK_AFTER_BYTES // 2 - 1))
        room.next_durable()
    assert room.spaces.get(timeout=PATIENCE_S) == ROOM
    room.put()
    room.next_durable()
    room.committer.stop()
    assert room.store.looks == 1


def test_looks_for_room_when_the_reserve_was_needed(make_room, monkeypatch):
    monkeypatch.setattr(committer_module, "LOOK_EVERY_S", 60.0)
    room = make_room()
    room.store.room = ROOM
    room.put()
    room.next_durable()
    room.store.lost = True
    for _ in range(3):
        room.put()
        room.next_durable()
    room.committer.stop()
    assert room.store.looks == 1


def test_record_is_durable_before_the_look_that_follows(make_room):
    room = make_room()
    room.store.room = ROOM
    room.put(payload=bytes(LOOK_AFTER_BYTES))
    room.spaces.get(timeout=PATIENCE_S)
    assert not room.durable.empty()


def test_store_without_a_bound_says_nothing(make_room, monkeypatch):
    monkeypatch.setattr(committer_module, "LOOK_EVERY_S", 0.0)
    room = make_room()
    room.store.wait_for_looks()
    room.committer.stop()
    assert room.spaces.empty()


def test_looks_for_room_between_syncs_that_are_far_apart(make_room, monkeypatch):
    monkeypatch.setattr(committer_module, "LOOK_EVERY_S", 0.0)
    room = make_room(sync_interval_ms=60_000)
    room.put()
    room.next_durable()
    room.store.wait_for_looks(3)
    assert room.store.count("sync") == 0


def test_failed_look_is_a_failure(make_room, monkeypatch):
    monkeypatch.setattr(committer_module, "LOOK_EVERY_S", 0.0)
    room = Room()
    monkeypatch.setattr(room.store, "space", lambda: 1 / 0)
    room.committer.start()
    assert isinstance(room.failures.get(timeout=PATIENCE_S), ZeroDivisionError)


# --- sync = interval --------------------------------------------------------------------------


def test_with_an_interval_replies_do_not_wait_for_the_sync(make_room):
    room = make_room(sync_interval_ms=60_000)
    room.store.gate.clear()
    room.put()
    room.put()
    assert room.next_durable() in (1, 2)
    assert room.store.count("sync") == 0
    room.store.gate.set()
    room.committer.stop()
    assert room.store.durable_lsn == 2
    assert room.committer.sync_count == 1


def test_with_an_interval_an_idle_log_is_synced_when_it_is_over(make_room):
    room = make_room(sync_interval_ms=1)
    room.put()
    room.store.wait_for("sync")
    room.committer.stop()
    assert room.store.durable_lsn == 1
    assert room.committer.sync_count == 1


def test_with_an_interval_a_failed_sync_is_a_failure(make_room):
    room = make_room(sync_interval_ms=1)
    room.store.fail["sync"] = 1
    room.put()
    assert isinstance(room.failures.get(timeout=PATIENCE_S), WriteFailed)

"""A store in memory that tells what it was asked, and whose disk waits or fails when a test says so.

store.gate.clear()          from now on a sync waits until gate.set()
store.wait_for("sync", 2)   until the second sync has begun
store.fail["append"] = 3    the third append raises
store.room = Space(...)     what a look at the disk finds
store.log                   [("append", (first_lsn, last_lsn), ...), ("sync",), ("seal",), ...]
"""

import threading
from collections.abc import Sequence

from jqd.errors import WriteFailed
from jqd.storage.base import Record, Space
from jqd.storage.memory import MemoryStore
from tests.support.wire import PATIENCE_S


class GateStore(MemoryStore):
    def __init__(self) -> None:
        super().__init__(keep=True)
        self.gate = threading.Event()
        self.gate.set()
        self.log: list[tuple[object, ...]] = []
        self.room: Space | None = None
        self.looks = 0
        self.lost = False
        self.fail: dict[str, int] = {}
        self._news = threading.Condition()
        for _ in self.load():
            raise AssertionError("a new store is empty")

    def append(self, records: Sequence[Record]) -> None:
        self._note("append", *((record.first_lsn, record.last_lsn) for record in records))
        super().append(records)

    def sync(self) -> None:
        self._note("sync")
        assert self.gate.wait(PATIENCE_S), "the test never opened the gate"
        super().sync()

    def seal(self) -> None:
        self._note("seal")

    @property
    def reserve_is_lost(self) -> bool:
        return self.lost

    def space(self) -> Space | None:
        with self._news:
            self.looks += 1
            self._news.notify_all()
        return self.room

    def _note(self, call: str, *details: object) -> None:
        with self._news:
            self.log.append((call, *details))
            self._news.notify_all()
            number = self.count(call)
        if self.fail.get(call) == number:
            raise WriteFailed(f"{call} number {number} failed")

    def count(self, call: str) -> int:
        return sum(each[0] == call for each in self.log)

    def wait_for_looks(self, number: int = 1) -> None:
        """Wait until somebody has looked that often how much room there is, from now on."""
        with self._news:
            enough = self.looks + number
            assert self._news.wait_for(lambda: self.looks >= enough, PATIENCE_S), self.log

    def wait_for(self, call: str, number: int = 1) -> None:
        with self._news:
            assert self._news.wait_for(lambda: self.count(call) >= number, PATIENCE_S), self.log

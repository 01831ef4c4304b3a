"""What a look inside the daemon shows of rare situations, after each step of a plan.

Knows:         which of the daemon's own figures tell of one (marks.py).
Must not know: what is right; nothing here can fail a run.
"""

from jqd.server.driver import Driver
from tests.sim.house import House
from tests.sim.marks import Marks

WAITING_MANY = 3


class Watch:
    """Compares what it sees with what it saw a step before."""

    def __init__(self, house: House, marks: Marks) -> None:
        self._house = house
        self._hit = marks.hit
        self._driver: Driver | None = None
        self._segments = self._snapshots = 0
        self._reserve_was_lost = False

    def look(self) -> None:
        driver = self._house.driver
        if driver is None:
            return
        store, snapshots = self._house.store, driver.snapshots
        segments, made, is_lost = store.segment_count, snapshots.count, store.reserve_is_lost
        if driver is self._driver:
            if segments > self._segments:
                self._hit("log rotated")
            elif segments < self._segments:
                self._hit("log trimmed behind a snapshot")
            if made > self._snapshots:
                self._hit("snapshot made")
            if is_lost is not self._reserve_was_lost:
                self._hit("reserve given up at a full disk" if is_lost else "reserve taken again")
        self._driver, self._segments, self._snapshots = driver, segments, made
        self._reserve_was_lost = is_lost
        engine = driver.engine
        if engine.state.lease_lag_ms:
            self._hit("leases judged by a clock that is behind")
        if len(engine._parked) > 1:
            self._hit("two leases wait")
        if len(driver._waiting) >= WAITING_MANY:
            self._hit("turns wait behind each other for the disk")
        dump = snapshots._dump
        if dump is not None and dump._kept:
            self._hit("change while a snapshot walks")
        for stream in self._house.streams:
            if stream.is_stalled:
                self._hit("replies that nobody reads")

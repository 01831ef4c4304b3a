"""Scripted lives of a store, recorded effect by effect: what the crash images are made from.

Knows:         what clients ask for, when the log is written, synced, sealed, cut and snapped, how a daemon ends.
Must not know: what a crash leaves, what a start makes of that.

A life is about 200 requests through the shipped engine, store and snapshots, on one disk and from one seed. It stops
cleanly, is killed, loses its power and meets failing calls, and starts again each time. The log's thread and the
snapshot's are one thread here: between two disk calls of a snapshot the log may be written, as in a daemon.

    Life(LIVES["steady"], Rolls(seed), SimDisk(), on_point).live()      on_point: before each effect, the disk then

The thread boundaries of the daemon are the driver's business; what is asked of the store, and in which order, is what
jqd.server's Committer and Snapshots ask.
"""

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from jqd.core.changes import AnyChange, encode_part
from jqd.core.dump import Dump
from jqd.core.model import FINISHED_RETENTION_MS, LOCAL, Caller, JobState, Now
from jqd.errors import JqdError, StorageError
from jqd.storage.base import Record, SnapshotSink
from jqd.storage.fs import is_full, write_error
from tests.sim.disk import Fault, Loss, SimDisk
from tests.sim.restart import recovered
from tests.storage.logs import DATA
from tests.support.core import ENGINE_MS, WALL_MS, Core
from tests.support.faultfs import EFFECTS, SyncFailure

PURGED: Final = frozenset({JobState.DELAYED, JobState.READY, JobState.DEAD})
QUEUES: Final = ("mail", "bulk")
SESSION: Final = b"a session's name"


@dataclass(frozen=True, kw_only=True)
class Script:
    """What a life is like. Chances are in percent.

    Attributes:
        payload_bytes: of a job, at most.
        group: so many records wait at most before they are written together.
        unsynced: chance that what was written is not synced at once.
        snapshot_bytes: so much log behind the newest snapshot calls for the next one.
        ends: chance of an end after a request, by its kind.
    """

    requests: int = 200
    payload_bytes: int = 60
    group: int = 1
    unsynced: int = 0
    segment_bytes: int = 1_000
    snapshot_bytes: int = 2_500
    reserve_bytes: int = 2_000
    seal: int = 10
    ends: dict[str, int] = field(
        default_factory=lambda: {"stop": 2, "kill": 1, "power": 1, "fault": 1, "full": 1}
    )


# What each life meets at least once, behind so many requests; more comes by chance.
PLANNED: Final = {50: "full", 80: "stop", 110: "kill", 140: "power", 165: "fault", 180: "stop"}
# With more jobs than that, a request lets some go: a start reads all that is left, and there are very many starts.
JOBS_MAX: Final = 30

LIVES: Final = {
    "steady": Script(),
    # Frames over pages and segments, several of them unsynced.
    "bulk": Script(
        payload_bytes=6_000,
        group=4,
        unsynced=40,
        segment_bytes=9_000,
        snapshot_bytes=30_000,
        reserve_bytes=20_000,
    ),
    # Snapshots nearly all the time, so that they are interrupted and overtaken.
    "snapshots": Script(snapshot_bytes=1_500, segment_bytes=700, unsynced=10, group=2),
    "restarts": Script(ends={"stop": 8, "kill": 6, "power": 6, "fault": 3, "full": 1}, snapshot_bytes=2_000),
    # Syncs in the background, as with `sync = interval`.
    "lazy": Script(unsynced=85, group=3, segment_bytes=2_500, seal=3, payload_bytes=300),
}


class Point(NamedTuple):
    """The disk just before one of its effects, and what is known then.

    Attributes:
        number: from 0, within the life.
        call: name and path of the effect that comes next; ("end", "") behind the last one.
        before: of the effect that came last.
        floor: LSN up to which everything was called durable.
        line: digest of the state behind each record, by its last LSN; from the last start on.
        during: what the life is at: "run", "start", "stop", "snapshot" (it is being written), "compaction".
        is_beside: one thread is at work while the other one waits for the disk.
    """

    number: int
    disk: SimDisk
    call: tuple[str, str]
    before: tuple[str, str]
    floor: int
    line: dict[int, str]
    during: str
    is_beside: bool = False


class Rolls:
    """Dice of a life: any number from a seed, the same under every version of Python."""

    def __init__(self, *seed: object) -> None:
        self._bits = random.Random(" ".join(map(str, seed))).getrandbits

    def below(self, limit: int) -> int:
        """Return one of 0 to limit - 1."""
        return self._bits(48) % limit

    def happens(self, percent: int) -> bool:
        """Return True in so many of a hundred cases."""
        return self._bits(48) % 100 < percent

    def bytes(self, count: int) -> bytes:
        """Return so many bytes."""
        return self._bits(8 * count).to_bytes(count, "little") if count else b""


class Life(Core):
    """A daemon, its clients and its disk, from the first start to the last stop. See the file's card.

    Args:
        wants: the points to be given to `on_point`, by their numbers.
        on_point: takes the disk as it is: a copy is made for it.
    """

    def __init__(
        self,
        script: Script,
        dice: Rolls,
        disk: SimDisk,
        on_point: Callable[[Point], object] = lambda _: None,
        wants: Callable[[int], bool] = lambda _: True,
    ) -> None:
        self.script = script
        self.dice = dice
        self.disk = disk
        self.line: dict[int, str] = {}
        self.floor = 0
        self.points = 0
        self.during = "start"
        self.done: dict[str, int] = {}  # what happened how often: so that a test can see that it did
        self._on_point = on_point
        self._wants = wants
        self._before = ("", "")
        self._unwritten: list[Record] = []
        self._grants: list[tuple[int, list[int]]] = []
        self._dump: Dump | None = None
        self._sink: SnapshotSink | None = None
        self._is_snapping = False  # the snapshot's thread is at work
        self._is_nested = False
        self.engine_ms, self.wall_ms = ENGINE_MS, WALL_MS
        self._now = Now(0, 0)
        self.log = []
        self.answers = []
        self._next_request_id = 0
        self._connections = {}
        disk.on_call = self._before_call

    def live(self) -> None:
        """Live to the end."""
        self._start_until_it_starts()
        for number in range(self.script.requests):
            self.step(PLANNED.get(number))
        self.step("stop")
        self._take("end", "")

    def step(self, planned: str | None = None) -> None:
        """One request and what comes of it, and maybe an end."""
        try:
            self._act()
            self._walk()
            hows = [how for how, percent in self.script.ends.items() if self.dice.happens(percent)]
            if planned or hows:
                self._end(planned or hows[0])
        except StorageError:
            # The daemon ends at once, and starts again; or the machine goes down with the disk.
            self._count("failed call")
            self.disk.capacity_bytes = None
            self.disk.disarm()
            self._end("power" if self.dice.happens(30) else "kill")

    # --- the disk's calls ---------------------------------------------------------------------

    def _before_call(self, name: str, path: str) -> None:
        if name in EFFECTS:
            self._take(name, path)
        if self._sink is not None and not self._is_nested and self.dice.happens(15):
            # One of the two threads goes on while the other one waits for the disk.
            self._is_nested = True
            try:
                if self._is_snapping:
                    self._act()
                else:
                    self._go_on()
            finally:
                self._is_nested = False

    def _take(self, name: str, path: str) -> None:
        if self._wants(self.points):
            during = "compaction" if name == "unlink" and path.endswith((".wal", ".snap")) else self.during
            if during == "run" and self._sink is not None:
                during = "snapshot"
            disk, before = self.disk.clone(), self._before
            self._on_point(
                Point(self.points, disk, (name, path), before, self.floor, self.line, during, self._is_nested)
            )
        self.points += 1
        self._before = (name, path)

    def _count(self, what: str) -> None:
        self.done[what] = self.done.get(what, 0) + 1

    # --- requests -----------------------------------------------------------------------------

    def write(self) -> list[AnyChange]:
        """Take the turn's record, to be written with those that wait; note the state that it leads to."""
        batch = self.engine.take_batch()
        if batch is not None:
            self._unwritten.append(Record(batch.first_lsn, batch.count, batch.payload))
            self.line[self.state.lsn] = self.state.digest()
        return []

    def _act(self) -> None:
        caller = self._caller if self.dice.happens(50) else LOCAL
        with suppress(JqdError):
            self._request(caller)
        if len(self._unwritten) > self.dice.below(self.script.group):
            self._commit()

    def _request(self, caller: Caller) -> None:
        dice = self.dice
        if sum(self.state.counts()) > JOBS_MAX:
            self._let_go()
            return
        queue = QUEUES[dice.below(len(QUEUES))]
        payload = dice.bytes(dice.below(self.script.payload_bytes + 1))
        if len(self._grants) > 4 or (self._grants and dice.happens(45)):
            token, ids = self._grants.pop(dice.below(len(self._grants)))
            match dice.below(7):
                case 0:
                    self.fail(token, *ids, error="no")
                case 1:
                    self.release(token, *ids)
                case 2:
                    self.extend(token, *ids)
                    self._grants.append((token, ids))
                case 3 | 4:
                    self.ack(token, *ids, result=payload[:40])
                case _:
                    self.ack(token, *ids)
            return
        match dice.below(12):
            case 0 | 1 | 2:
                self.submit(payload, caller, queue=queue, priority=dice.below(3))
            case 3:
                self.submit(payload, caller, queue=queue, delay_ms=dice.below(5_000))
            case 4:
                self.submit_jobs(1 + dice.below(4), queue=queue)
            case 5 | 6 | 7:
                leased = self.lease(queue, caller=caller, count=1 + dice.below(3))
                if leased.jobs:
                    self._grants.append((leased.token, [job.job_id for job in leased.jobs]))
            case 8:
                self.cancel(*self._some_jobs())
            case 9:
                self.requeue(*self._some_jobs())
            case _:
                self.wait(dice.below(3_000))

    def _some_jobs(self) -> list[int]:
        ids = [job.id for job in self.state.pages.jobs_from(0)]
        return sorted({ids[self.dice.below(len(ids))] for _ in range(2)}) if ids else []

    def _let_go(self) -> None:
        """Remove what waits or is dead, and let so much time pass that what has ended is forgotten."""
        self.purge(*(job.id for job in self.state.pages.jobs_from(0) if job.state in PURGED))
        if sum(self.state.counts()) > JOBS_MAX // 2:
            self.wait(FINISHED_RETENTION_MS + 1)

    # --- the log ------------------------------------------------------------------------------

    def _commit(self) -> None:
        """Write what waits, and mostly sync it: then it is promised."""
        if self._unwritten:
            records, self._unwritten = self._unwritten, []
            self.store.append(records)
            self._look_for_room()
        if not self.dice.happens(self.script.unsynced):
            self._promise()
            if self.dice.happens(self.script.seal):
                self.store.seal()

    def _promise(self) -> None:
        self.store.sync()
        self.floor = self.store.durable_lsn

    def _look_for_room(self) -> None:
        if self.store.reserve_is_lost:
            self._count("reserve given up")
            self.disk.capacity_bytes = None  # somebody made room
            self.store.space()

    # --- snapshots ----------------------------------------------------------------------------

    def _walk(self) -> None:
        """Begin a snapshot if one is due, or go on with the one under way."""
        if self._sink is None:
            if self.store.unsnapped_bytes >= max(self.script.snapshot_bytes, self.store.snapshot_bytes):
                self._begin_snapshot()
            return
        if self.dice.happens(40):
            return
        self._go_on()

    def _go_on(self) -> None:
        """Write the next part of the snapshot, or finish it."""
        assert self._sink is not None
        self._is_snapping = True
        try:
            images = self._dump.take_slice() if self._dump is not None else []
            if images:
                self._sink.write(len(images), encode_part(images))
                return
            self._dump = None
            self._sink.finish()
            self._count("snapshot")
        except OSError as error:
            self._give_up(error)
        finally:
            self._is_snapping = False
        if self._dump is None:
            self._sink = None

    def _begin_snapshot(self) -> None:
        self._dump = self.engine.begin_dump()
        if self._unwritten:
            records, self._unwritten = self._unwritten, []
            self.store.append(records)
        cut = self.store.cut()
        self.floor = self.store.durable_lsn
        assert cut.lsn == self._dump.lsn
        try:
            self._sink = self.store.begin_snapshot(cut)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """A full disk ends a snapshot and not the daemon; whatever else fails ends the daemon."""
        if self._dump is not None:
            self._dump.close()
            self._dump = None
        sink, self._sink = self._sink, None
        if not is_full(error):
            raise write_error(error, DATA) from error
        if sink is not None:
            sink.abort()
        self._count("snapshot given up")

    # --- ends and starts ----------------------------------------------------------------------

    def _end(self, how: str) -> None:
        self._count(how)
        match how:
            case "full":
                self.disk.capacity_bytes = self.disk.used_bytes() + self.dice.below(400)
                return
            case "fault":
                policies = list(SyncFailure)
                self.disk.sync_failure = policies[self.dice.below(len(policies))]
                fault = Fault.SYNC_FAILS if self.dice.happens(70) else Fault.WRITE_FAILS
                self.disk.arm(fault, 1 + self.dice.below(6))
                return
            case "stop":
                self._stop()
            case "power":
                losses = list(Loss)
                self.disk.crash(losses[self.dice.below(len(losses))], self.dice)
            case _:
                self.disk.kill()
        self.forget()
        self._start_until_it_starts()

    def forget(self) -> None:
        """The process has ended: nothing of it is left but what is on the disk, and what clients know."""
        self._dump = self._sink = None
        self._unwritten.clear()
        self._is_snapping = self._is_nested = False

    def _stop(self) -> None:
        """Stop as the daemon does: a snapshot under way is given up, the log closed."""
        self.during = "stop"
        if self._dump is not None:
            self._dump.close()
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.abort()
        self.engine.stop(self.now)
        self.engine.outbox.clear()
        self.write()
        if self._unwritten:
            records, self._unwritten = self._unwritten, []
            self.store.append(records)
        self.store.close()
        self.floor = self.state.lsn
        self.disk.kill()

    def _start_until_it_starts(self) -> None:
        while True:
            self.during = "start"
            try:
                self.start()
            except StorageError:
                self._count("failed start")
                self.disk.capacity_bytes = None
                self.disk.kill()
            else:
                self.during = "run"
                return

    def start(self) -> None:
        """Start on what is on the disk, which is checked, and begin a run.

        Raises: StorageError; AssertionError: it is not what was promised.
        """
        self.engine, self.store = recovered(
            self.disk, segment_bytes=self.script.segment_bytes, reserve_bytes=self.script.reserve_bytes
        )
        lsn = self.state.lsn
        assert lsn >= self.floor, f"LSN {self.floor} was promised, {lsn} recovered"
        assert lsn == 0 or self.line[lsn] == self.state.digest(), f"another state at LSN {lsn}"
        self.floor = lsn
        # A new line: what came behind this LSN is gone, and nothing before it may come back.
        self.line = {lsn: self.state.digest()}
        self.engine_ms = self.state.now.engine_ms or self.engine_ms
        self._now = Now(0, 0)
        self.engine.start(self.now, "0")
        self.write()
        self._caller = self.hello(SESSION)
        self._commit()

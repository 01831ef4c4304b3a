"""Every crash of a life: what a disk can look like after it, and whether a start makes of that what was promised.

Knows:         which images follow from one point of a life, what a start must make of each.
Must not know: how a life goes (lives.py), how a disk loses what is pending (disk.py).

A life is lived once. Before each effect on its disk, and behind the last one, stands a point; from each point come
these images, and each of them is started:

    killed      the process ends, the machine goes on: the page cache is there. Also in the middle of a write
    prefix      power loss; of what was pending all operations up to one, each of them; and the next write in part, at
                every edge of a sector and of a frame and at bytes that the dice choose
    subset      power loss; every combination of lost and kept names, pages and sizes, if they are at most 8; else 64
                that the dice choose
    torn        power loss; pages damaged by sectors, as the dice will
    frame       one of the last three frames of the log torn at an edge of a sector or of a page, and filled with zeros,
                with what stood in an older file there, or with garbage; what is behind it there or gone
    unsynced    the sync that comes next fails, with each of three states of the page cache; the process ends
    unreadable  at some points; a read of the start fails
    full        at some points; the process ends, and the start finds next to no space
    rotten      of some power losses: a bit of the newest snapshot has rotted as well; there is another way to the state
    again       of one in ten images: power loss during the start, at an effect that the dice choose

**The judge.** The state has the digest that the living engine had at the LSN that the start came to: a prefix, without
a hole. That LSN is not before the one up to which everything was called durable. What the start showed is on the disk:
a power loss right behind it changes nothing. At most two snapshots are left, the log has no hole, no half-made file is
left. A start refuses (`Corruption`) only where the disk lost what was synced: of "frame" images a synced frame that was
torn, which is refused, or, as the very last frame with no seal behind it, cut with a copy in quarantine; and unreadable
bytes. Images that look alike are started once for each promise.

    figures = run(seeds=[0], processes=2)        all images of five lives; see Figures
    figures = run(count=10_000, seeds=...)       at least so many
    explore(name, seed, point)                   one point's images in this process, the first wrong one raised
"""

import argparse
import gc
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Final

from jqd.errors import Corruption, DiskFull
from jqd.storage.base import RecoveryReport
from jqd.storage.directory import TMP_SUFFIX, snapshot_lsn
from jqd.storage.record import Header, decode_header, frame_bytes
from jqd.storage.reserve import RESERVE_NAME
from jqd.storage.segment import segment_number
from jqd.storage.wal import KEPT_SNAPSHOTS
from tests.sim.disk import Fault, Loss, SimDisk
from tests.sim.lives import LIVES, Life, Point, Rolls
from tests.sim.restart import recovered
from tests.storage.logs import DATA
from tests.support.faultfs import SECTOR_BYTES, Crash, SyncFailure

# All combinations of so many units, and so many drawn where there are more.
UNITS_MAX: Final = 8
SUBSETS: Final = 64
# The part of a write that is torn at its edges, and how many of its bytes are tried as its end beside these.
LAST_BYTES: Final = 8_192
PARTS: Final = 6
# Power losses of a point that tear pages as the dice will.
TORN: Final = 4
# Of the log's last frames so many are torn, each at so many edges at most.
FRAMES: Final = 3
EDGES: Final = 3
# Of so many images the start is interrupted; a snapshot is damaged as well; the end of the start is followed by a power
# loss and a second start, and the indexes of the state are looked through.
AGAIN_PERCENT: Final = 10
ROTTEN_PERCENT: Final = 10
TWICE_PERCENT: Final = 20
# At so many points a read of the start fails, or it finds no space.
UNREADABLE_PERCENT: Final = 5
FULL_PERCENT: Final = 5
# A life is cut into so many tasks, of runs of points.
TASKS: Final = 4
VIOLATIONS_MAX: Final = 5
RUN_POINTS: Final = 32


# Situations that a crash must have met, or the images prove less than they seem to: a name, and what the effect
# before the crash was, or what the start found.
BEFORE: Final[dict[str, Callable[[Point], bool]]] = {
    "a segment has its name, its directory is not synced": lambda at: _was(at, "rename", ".wal"),
    "a snapshot has its name, its directory is not synced": lambda at: _was(at, "rename", ".snap"),
    "`store` was replaced, its directory is not synced": lambda at: _was(at, "rename", "/store"),
    "a copy of a torn tail has its name, the tail is not cut": lambda at: _was(at, "rename", ".torn"),
    "a segment is there that `store` does not know yet": lambda at: (
        at.call == ("create", f"{DATA}/store.tmp") and _was(at, "sync_directory", "") and at.during != "stop"
    ),
    "a segment is begun while a snapshot is written": lambda at: (
        at.during == "snapshot" and at.call[0] == "create" and at.call[1].endswith(".wal.tmp")
    ),
    "the log is written while a snapshot is finished": lambda at: at.is_beside and ".wal" in at.call[1],
    "a snapshot is written while the log waits for the disk": lambda at: (
        at.is_beside and ".snap" in at.call[1]
    ),
    "the older snapshot is gone, its log is there": lambda at: _was(at, "unlink", ".snap"),
    "the oldest segment is gone, the next one is not": lambda at: _was(at, "unlink", ".wal"),
    "the reserve was given up": lambda at: _was(at, "unlink", f"/{RESERVE_NAME}"),
    "a clean stop is written down, its directory is not synced": lambda at: (
        at.during == "stop" and _was(at, "rename", "/store")
    ),
    "a segment is half made": lambda at: _was(at, "create", ".wal.tmp"),
    "a start rewrites the last segment": lambda at: at.during == "start" and _was(at, "write", ".wal.tmp"),
}
FOUND: Final = (
    "a torn tail is cut",
    "a clean stop is found",
    "a snapshot is passed over for an older one",
    "a start is interrupted",
    "a start finds no space",
    "records that were never synced come back",
    "records that were never synced are gone",
)
MARKS: Final = (*BEFORE, *FOUND)


def _was(point: Point, name: str, suffix: str) -> bool:
    return point.before[0] == name and point.before[1].endswith(suffix)


@dataclass
class Figures:
    """What was tried and what came out.

    Attributes:
        points: effects of lives that were looked at.
        images: by kind. Of equal ones for the same promise one was started.
        starts: on an image.
        outcomes: by kind of image.
        in_snapshot: images of points where a snapshot was being written or old files removed.
        marks: how often each of MARKS was met.
        cpu_s: of all processes.
        violations: texts; each names life, seed, point and image.
    """

    points: int = 0
    images: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    in_snapshot: int = 0
    marks: Counter[str] = field(default_factory=Counter)
    cpu_s: float = 0.0
    violations: list[str] = field(default_factory=list)

    def add(self, other: "Figures") -> None:
        """Take in what another process has."""
        self.points += other.points
        self.images += other.images
        self.starts += other.starts
        self.outcomes += other.outcomes
        self.in_snapshot += other.in_snapshot
        self.marks += other.marks
        self.cpu_s += other.cpu_s
        self.violations += other.violations

    def lines(self) -> Iterator[str]:
        """Yield what a reader wants to see."""
        yield f"{self.points} points, {self.images.total()} images, {self.starts} starts, {self.cpu_s:.0f} s of CPU"
        yield f"{self.in_snapshot} images within snapshots and compaction"
        for kind, count in sorted(self.images.items()):
            said = {outcome: number for (of, outcome), number in sorted(self.outcomes.items()) if of == kind}
            yield f"  {kind:<10} {count:>8} images, starts: {said}"
        yield f"{len(self.marks)} of {len(MARKS)} situations were met"
        yield from (f"  {self.marks[name]:>8} {name}" for name in MARKS)
        yield from self.violations


class Judge:
    """Starts on images of one life, and says what is wrong. See the file's card.

    Args:
        options: of the store.
    """

    def __init__(self, figures: Figures, options: dict[str, int]) -> None:
        self.figures = figures
        self._options = options
        self._proved: dict[bytes, tuple[int, str]] = {}  # what a start on an image came to: LSN, digest

    def look_at(
        self, kind: str, disk: SimDisk, point: Point, *, mark: int | None = None, torn: bytes = b""
    ) -> None:
        """Start on an image after a power loss, unless its like was started.

        Args:
            mark: a synced frame is damaged, and what is left vouches for what was synced up to this LSN.
            torn: from the damaged frame on.
        Raises: AssertionError, or whatever a start should not raise.
        """
        self.figures.images[kind] += 1
        if mark is not None:
            self._start_on_rot(kind, disk, point, mark, torn)
            return
        image = disk.image()
        proved = self._proved.get(image)
        if proved is not None:
            self._check_state(*proved, point)
            return
        # From the image itself, so that what is done with it does not hang on what came before.
        dice = Rolls(point.number, image.hex())
        twin = disk.clone() if dice.happens(AGAIN_PERCENT) else None
        rotten = disk.clone() if dice.happens(ROTTEN_PERCENT) else None
        self._proved[image] = self._start(kind, disk, point, twice=dice.happens(TWICE_PERCENT))
        if twin is not None:
            self._crash_again(twin, point, dice)
        if rotten is not None:
            self._rot(rotten, point, dice)

    def look_at_living(self, kind: str, disk: SimDisk, point: Point) -> None:
        """Start on an image whose page cache is there."""
        self.figures.images[kind] += 1
        self._start(kind, disk, point, twice=True)

    def look_at_unreadable(self, disk: SimDisk, point: Point, dice: Rolls) -> None:
        """Start on what a kill leaves, while one read fails: refused, or a snapshot is passed over for another."""
        kind = "unreadable"
        self.figures.images[kind] += 1
        twin = disk.clone()
        twin.kill()
        before = twin.copy_of(DATA) if twin.exists(DATA) else {}
        twin.arm(Fault.READ_FAILS, 1 + dice.below(6))
        try:
            self._start(kind, twin, point)
        except Corruption as refusal:
            assert "cannot be read" in str(refusal) and refusal.file.startswith(DATA), refusal
            assert twin.copy_of(DATA) == before, "refused, and changed all the same"
            self.figures.outcomes[kind, "refused"] += 1

    def _start(self, kind: str, disk: SimDisk, point: Point, *, twice: bool = False) -> tuple[int, str]:
        self.figures.starts += 1
        try:
            engine, store = recovered(disk, **self._options)
        except DiskFull:
            # That it is full may keep it from starting, and no more than that.
            self.figures.outcomes[kind, "no space"] += 1
            self.figures.marks["a start finds no space"] += 1
            disk.capacity_bytes = None
            disk.kill()
            engine, store = recovered(disk, **self._options)
        lsn, digest = engine.state.lsn, engine.state.digest()
        self._check_state(lsn, digest, point)
        assert store.durable_lsn == lsn, f"LSN {lsn} recovered, {store.durable_lsn} said to be durable"
        self._check_files(disk)
        self._note(store.recovery, lsn, point)
        if twice:
            engine.state.check()
            self._check_second(disk, lsn, digest)
        self.figures.outcomes[kind, "recovered"] += 1
        return lsn, digest

    def _start_on_rot(self, kind: str, disk: SimDisk, point: Point, mark: int, torn: bytes) -> None:
        self.figures.starts += 1
        disk.capacity_bytes = None
        try:
            engine, store = recovered(disk, **self._options)
        except Corruption:
            self.figures.outcomes[kind, "refused"] += 1
            return
        lsn, copy = engine.state.lsn, store.recovery.quarantined
        assert lsn == 0 or engine.state.digest() == point.line.get(lsn), f"not the state of LSN {lsn}"
        assert lsn >= mark, f"LSN {mark} is vouched for, and {lsn} recovered"
        if lsn < point.floor:
            assert copy is not None and disk.content(copy) == torn, "synced records are gone without a copy"
            self.figures.outcomes[kind, "last batch cut"] += 1
        else:
            self.figures.outcomes[kind, "recovered"] += 1

    def _check_state(self, lsn: int, digest: str, point: Point) -> None:
        assert lsn >= point.floor, f"LSN {point.floor} was promised, {lsn} recovered"
        assert lsn == 0 or digest == point.line.get(lsn), f"not the state of LSN {lsn}"

    def _note(self, report: RecoveryReport, lsn: int, point: Point) -> None:
        marks = self.figures.marks
        marks["a torn tail is cut"] += report.torn_bytes > 0
        marks["a clean stop is found"] += report.clean and lsn > 0
        marks["a snapshot is passed over for an older one"] += bool(report.damaged_snapshots)
        marks["records that were never synced come back"] += lsn > point.floor
        marks["records that were never synced are gone"] += lsn < max(point.line, default=0)

    def _check_files(self, disk: SimDisk) -> None:
        names = disk.sizes(DATA)
        numbers = sorted(number for number in map(segment_number, names) if number is not None)
        assert numbers == list(range(numbers[0], numbers[-1] + 1)), f"a hole in the log: {numbers}"
        assert sum(snapshot_lsn(name) is not None for name in names) <= KEPT_SNAPSHOTS
        assert not [name for name in names if name.endswith(".tmp")], "a half-made file is left"

    def _check_second(self, disk: SimDisk, lsn: int, digest: str) -> None:
        """What a start showed survives a power loss right behind it."""
        disk.crash_behind(0)
        disk.capacity_bytes = None
        self.figures.starts += 1
        engine, store = recovered(disk, **self._options)
        found = engine.state.lsn, engine.state.digest()
        assert found == (lsn, digest), f"LSN {lsn} was shown, {found[0]} came back"
        assert store.recovery.torn_bytes == 0, "what was cut came back"
        assert store.recovery.damaged_snapshots == ()

    def _crash_again(self, disk: SimDisk, point: Point, dice: Rolls) -> None:
        """Power loss during the start, or right behind it."""
        kind = "again"
        self.figures.images[kind] += 1
        disk.arm(Fault.KILL, 1 + dice.below(30))
        try:
            recovered(disk, **self._options)
        except (Crash, DiskFull):
            self.figures.outcomes[kind, "interrupted"] += 1
            self.figures.marks["a start is interrupted"] += 1
        disk.disarm()
        disk.crash(list(Loss)[dice.below(len(Loss))], dice)
        self._start(kind, disk, point)

    def _rot(self, disk: SimDisk, point: Point, dice: Rolls) -> None:
        """One file may rot at any time: there is an older snapshot, or all of the log."""
        names = (
            [name for name in disk.listing(DATA) if snapshot_lsn(name) is not None]
            if disk.exists(DATA)
            else []
        )
        if names:
            self.figures.images["rotten"] += 1
            path = f"{DATA}/{max(names)}"
            disk.flip(path, dice.below(8 * len(disk.content(path))))
            self._start("rotten", disk, point)


# --- the images of a point ----------------------------------------------------------------------


def look_around(point: Point, judge: Judge, dice: Rolls) -> None:
    """Start on all images of a point."""
    disk = point.disk
    judge.figures.marks.update(name for name, is_met in BEFORE.items() if is_met(point))
    _settle_reserve(disk, dice)
    killed = disk.clone()
    killed.kill()
    judge.look_at_living("killed", killed, point)
    _lose_prefixes(point, judge, dice)
    _lose_subsets(point, judge, dice)
    for _ in range(TORN if disk.pending() else 0):
        twin = disk.clone()
        twin.crash(Loss.TORN, dice)
        judge.look_at("torn", twin, point)
    # A handle is known by the path that it was opened with: a segment's, before it had its name.
    path = point.before[1].removesuffix(TMP_SUFFIX)
    if point.before[0] in ("write", "sync") and path.endswith(".wal") and disk.exists(path):
        _tear_frames(point, path, judge, dice)
    if point.call[0] == "sync":
        for policy in (SyncFailure.KEPT_IN_CACHE, SyncFailure.REVERTED):
            twin = disk.clone()
            twin.fail_sync(point.call[1], policy)
            judge.look_at_living("unsynced", twin, point)
    if dice.happens(UNREADABLE_PERCENT):
        judge.look_at_unreadable(disk, point, dice)
    if dice.happens(FULL_PERCENT):
        full = disk.clone()
        full.kill()
        full.capacity_bytes = full.used_bytes() + dice.below(600)
        judge.look_at_living("full", full, point)


def _settle_reserve(disk: SimDisk, dice: Rolls) -> None:
    """Half of the reserves are whole after a power loss, half are empty: nobody reads what is in them."""
    if disk.exists(f"{DATA}/{RESERVE_NAME}"):
        file = disk.file(f"{DATA}/{RESERVE_NAME}")
        if dice.happens(50):
            file.durable = bytearray(file.cache)
        file.pending.clear()


def _lose_prefixes(point: Point, judge: Judge, dice: Rolls) -> None:
    disk = point.disk
    count = len(disk.pending())
    for kept in range(count + 1):
        twin = disk.clone()
        twin.crash_behind(kept)
        judge.look_at("prefix", twin, point)
    written = disk.last_write()
    if written is None or point.before[0] != "write":
        return
    for part_bytes in _edges(*written, dice):
        twin = disk.clone()
        twin.crash_behind(count - 1, part_bytes)
        judge.look_at("prefix", twin, point)
    killed = disk.clone()
    killed.kill_within_write(dice.below(len(written[1])))
    judge.look_at_living("killed", killed, point)


def _edges(offset: int, data: bytes, dice: Rolls) -> list[int]:
    """Return how much of a write may be kept: to the edges of sectors and frames, and some bytes more."""
    last = max(0, len(data) - LAST_BYTES)
    edges = set(range(-offset % SECTOR_BYTES, len(data), SECTOR_BYTES))
    edges |= {start for start, _ in _frames(data)}
    edges |= {dice.below(len(data)) for _ in range(PARTS)}
    return sorted(edge for edge in edges if edge > last or not last)


def _frames(data: bytes) -> Iterator[tuple[int, Header]]:
    offset = 0
    while (header := decode_header(data, offset)) is not None:
        yield offset, header
        offset += frame_bytes(header)


def _lose_subsets(point: Point, judge: Judge, dice: Rolls) -> None:
    if max(_units(point.disk, 0), _units(point.disk, 1)) <= UNITS_MAX:
        for twin in _all_subsets(point.disk):
            judge.look_at("subset", twin, point)
        return
    for _ in range(SUBSETS):
        twin = point.disk.clone()
        twin.crash(Loss.SUBSET, dice)
        judge.look_at("subset", twin, point)


def _units(disk: SimDisk, chosen: int) -> int:
    """Return how many units are asked about when each is lost, or kept."""
    asked: list[str] = []

    def choose(what: str, _ways: int) -> int:
        asked.append(what)
        return chosen

    disk.clone().crash_by(choose)
    return len(asked)


def _all_subsets(disk: SimDisk) -> Iterator[SimDisk]:
    """Yield the disk after a power loss, once for each way in which units can be lost and kept."""
    chosen: list[int] = []
    while True:
        twin = disk.clone()
        asked = 0

        def choose(_what: str, _ways: int) -> int:
            nonlocal asked
            if asked == len(chosen):
                chosen.append(0)  # one that was not asked about before: it is lost first
            asked += 1
            return chosen[asked - 1]

        twin.crash_by(choose)
        yield twin
        while chosen and chosen[-1]:
            chosen.pop()
        if not chosen:
            return
        chosen[-1] = 1


def _tear_frames(point: Point, path: str, judge: Judge, dice: Rolls) -> None:
    file = point.disk.file(path)
    data = bytes(file.cache)
    stale = _older_bytes(point.disk, path)
    found = list(_frames(data))
    for index in range(max(0, len(found) - FRAMES), len(found)):
        start, header = found[index]
        end = start + frame_bytes(header)
        edges = list(range(start + SECTOR_BYTES - start % SECTOR_BYTES, end, SECTOR_BYTES))
        while len(edges) > EDGES:
            del edges[dice.below(len(edges))]
        for edge in edges:
            # Where a synced frame is damaged, what is left vouches for what it knows to be synced.
            marks = [header.durable_lsn for at, header in found if at != start]
            mark = max(marks, default=0) if edge < len(file.durable) else None
            for fill in (b"", stale[edge:end], dice.bytes(end - edge)):
                torn = data[:edge] + fill + bytes(end - edge - len(fill))
                for behind in {data[end:], data[end:] if mark is not None else b""}:
                    twin = point.disk.clone()
                    twin.crash_behind(len(twin.pending()))
                    twin.overwrite(path, torn + behind)
                    judge.look_at("frame", twin, point, mark=mark, torn=(torn + behind)[start:])


def _older_bytes(disk: SimDisk, path: str) -> bytes:
    """Return what a file held whose place on the disk this one may have taken."""
    directory, name = path.rsplit("/", 1)
    older = [other for other in disk.listing(directory) if other < name and other.endswith(".wal")]
    return disk.content(f"{directory}/{max(older)}") if older else b""


# --- volume -------------------------------------------------------------------------------------


class _Enough(BaseException):
    """So many violations were found that more would say nothing new. No code under test may catch it."""


def explore(
    name: str,
    seed: int,
    part: int | None = None,
    points: Collection[int] | None = None,
    violations_max: int = VIOLATIONS_MAX,
) -> Figures:
    """Live a life and look around at its points.

    Args:
        part: of TASKS; None: all.
        points: at these alone, by number.
        violations_max: with so many it ends.
    """
    figures = Figures()
    script = LIVES[name]
    options = {"segment_bytes": script.segment_bytes, "reserve_bytes": script.reserve_bytes}
    judge = Judge(figures, options)

    def wants(point_number: int) -> bool:
        # Neighbours look alike, so they go to one judge.
        here = part is None or point_number // RUN_POINTS % TASKS == part
        return here if points is None else point_number in points

    def look(point: Point) -> None:
        before = figures.images.total()
        figures.points += 1
        point.disk.reseed(point.number)
        try:
            look_around(point, judge, Rolls(name, seed, point.number))
        except Exception:  # whatever it is, it is wrong, and the life goes on
            figures.violations.append(_violation(name, seed, point))
            if len(figures.violations) == violations_max:
                raise _Enough from None
        if point.during in ("snapshot", "compaction"):
            figures.in_snapshot += figures.images.total() - before

    life = Life(script, Rolls(name, seed), SimDisk(seed), look, wants)
    gc.disable()  # nothing here is garbage before it is counted down
    begun_s = time.process_time()
    try:
        life.live()
    except _Enough:
        figures.violations.append("... and maybe more")
    except Exception:
        figures.violations.append(f"life {name!r}, seed {seed}: {traceback.format_exc(limit=-3)}")
    finally:
        gc.enable()
    figures.cpu_s = time.process_time() - begun_s
    return figures


def _violation(name: str, seed: int, point: Point) -> str:
    where = f"life {name!r}, seed {seed}, point {point.number} ({point.during}), before {point.call}"
    again = f"python -m tests.sim.images --only {name} --seed {seed} --point {point.number}"
    return f"{where}: {again}\n{traceback.format_exc(limit=-4)}"


def run(
    count: int | None = None,
    seeds: Iterable[int] = (0,),
    processes: int = 1,
    names: Sequence[str] = tuple(LIVES),
) -> Figures:
    """Live lives and look around at all of their points.

    Args:
        count: enough images: no further seed is begun with so many.
        seeds: each gives one life of each name.
    """
    figures = Figures()
    if processes == 1:
        for seed in seeds:
            for name in names:
                figures.add(explore(name, seed))
            if count is not None and figures.images.total() >= count:
                break
        return figures
    with ProcessPoolExecutor(processes, mp_context=get_context("fork")) as pool:
        for seed in seeds:
            tasks = [pool.submit(explore, name, seed, part) for name in names for part in range(TASKS)]
            for task in tasks:
                figures.add(task.result())
            if count is not None and figures.images.total() >= count:
                break
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Look around, print what came out; return the exit code: 1 if anything was wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.sim.images", description="Start on every disk that a crash of a life can leave."
    )
    parser.add_argument("--only", action="append", choices=tuple(LIVES), help="this life; repeatable")
    parser.add_argument("--seed", type=int, default=0, help="the first one (default 0)")
    parser.add_argument("--seeds", type=int, default=1, help="so many of them (default 1)")
    parser.add_argument("--count", type=int, help="so many images are enough")
    parser.add_argument("--point", type=int, help="this point alone, of one life")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="default: one a core")
    given = parser.parse_args(arguments)
    names = given.only or list(LIVES)
    if given.point is not None:
        figures = explore(names[0], given.seed, points={given.point})
    else:
        seeds = range(given.seed, given.seed + given.seeds)
        figures = run(given.count, seeds, given.processes, names)
    print("\n".join(figures.lines()))
    return 1 if figures.violations else 0


if __name__ == "__main__":
    sys.exit(main())

"""Crash images of scripted lives: none is wrong, and bugs that are planted show in them."""

import random
from collections.abc import Callable

import pytest

from jqd.storage import segment, wal
from jqd.storage.directory import Directory
from jqd.storage.segment import SegmentWriter
from jqd.storage.snapshot import Snapshot, SnapshotWriter
from jqd.storage.store_file import StoreFile
from jqd.storage.wal import SnapshotInWal, WalStore
from tests.sim import images
from tests.sim.disk import SimDisk
from tests.sim.images import MARKS, Figures, explore, run
from tests.sim.lives import LIVES, PLANNED, Life, Rolls, Script

IMAGES_MIN = 50_000


def complete(figures: Figures) -> None:
    assert not figures.violations, "\n".join(figures.violations)


# --- volume -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.sim
@pytest.mark.timeout(600)  # all of it: 100 s of CPU
def test_every_crash_of_five_lives_keeps_what_was_promised():
    figures = run(IMAGES_MIN, seeds=range(9), processes=2)
    print(*figures.lines(), sep="\n")
    complete(figures)
    assert figures.images.total() >= IMAGES_MIN
    assert figures.starts >= IMAGES_MIN // 2
    assert figures.in_snapshot >= 10_000
    started = sum(figures.outcomes[kind, "recovered"] for kind in ("prefix", "subset", "torn"))
    assert figures.images["again"] > started / 12
    assert [name for name in MARKS if not figures.marks[name]] == []
    kinds = {
        "again",
        "frame",
        "full",
        "killed",
        "prefix",
        "rotten",
        "subset",
        "torn",
        "unreadable",
        "unsynced",
    }
    assert set(figures.images) == kinds
    assert {kind for kind, _ in figures.outcomes} == kinds


@pytest.mark.parametrize("name", LIVES)
def test_crashes_of_a_part_of_a_life_keep_what_was_promised(name, request):
    seed = request.config.getoption("randomly_seed", 0)
    points = random.Random(f"{seed} {name}").sample(range(400), 12)
    print("points", points)
    figures = explore(name, seed % 1_000, points=points)
    complete(figures)
    assert figures.points == 12
    assert figures.images.total() > 50


# --- lives --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LIVES)
def test_life_has_everything_in_it(name):
    calls: dict[tuple[str, str], int] = {}
    during: dict[str, int] = {}

    last_lsn = 0

    def note(point):
        nonlocal last_lsn
        last_lsn = max(last_lsn, max(point.line, default=0))
        call, path = point.call
        calls[call, path.rpartition(".")[2]] = calls.get((call, path.rpartition(".")[2]), 0) + 1
        during[point.during] = during.get(point.during, 0) + 1

    life = Life(LIVES[name], Rolls(name, 0), SimDisk(0), note)
    life.live()
    assert set(during) == {"run", "start", "stop", "snapshot", "compaction"}
    assert set(PLANNED.values()) | {"snapshot", "reserve given up"} <= set(life.done)
    assert life.done["snapshot"] >= 3
    assert life.done.get("failed call", 0) + life.done.get("failed start", 0) >= 1
    assert calls["unlink", "wal"] >= 3 and calls["unlink", "snap"] >= 1
    assert calls["rename", "wal"] >= 20
    assert life.points == sum(during.values()) > 600
    assert last_lsn > 150


def test_same_seed_gives_the_same_life_and_the_same_figures():
    def told(seed):
        figures = explore("restarts", seed, points=(30, 200, 333))
        complete(figures)
        return figures.images, figures.starts, figures.outcomes, figures.marks

    assert told(3) == told(3)
    assert told(3) != told(4)


def test_parts_are_the_whole():
    seen = []

    def points_of(part):
        return explore("lazy", 0, part=part).points

    def look(point, judge, dice):
        seen.append(point.number)

    before, images.look_around = images.look_around, look
    try:
        counts = [points_of(part) for part in (*range(images.TASKS), None)]
    finally:
        images.look_around = before
    assert sum(counts[:-1]) == counts[-1]
    assert sorted(seen) == sorted([*range(counts[-1])] * 2)


# --- the alarm ----------------------------------------------------------------------------------

Plant = Callable[[pytest.MonkeyPatch], None]


def no_directory_sync_on_rotate(patch: pytest.MonkeyPatch) -> None:
    publish = Directory.publish

    def planted(self, name):
        if name.endswith(".wal"):
            self._fs.rename(self.temporary_path_of(name), self.path_of(name))
        else:
            publish(self, name)

    patch.setattr(Directory, "publish", planted)


def trim_before_the_snapshot_is_synced(patch: pytest.MonkeyPatch) -> None:
    def finish(self):
        self._store._published(Snapshot(self._writer._base, 1, 1))
        self._writer.finish()

    patch.setattr(SnapshotInWal, "finish", finish)


class WithoutSync:
    """A file system that says that it has synced, and has not."""

    def __init__(self, fs):
        self._fs = fs

    def __getattr__(self, name):
        return getattr(self._fs, name)

    def sync(self, handle):
        pass


def no_sync_of_a_snapshot(patch: pytest.MonkeyPatch) -> None:
    finish = SnapshotWriter.finish

    def planted(self):
        self._fs = WithoutSync(self._fs)
        return finish(self)

    patch.setattr(SnapshotWriter, "finish", planted)


def promise_before_the_sync(patch: pytest.MonkeyPatch) -> None:
    sync = WalStore.sync

    def planted(self):
        self._chain.durable_lsn = self._chain.last_lsn
        sync(self)

    patch.setattr(WalStore, "sync", planted)


def try_a_failed_sync_again(patch: pytest.MonkeyPatch) -> None:
    sync = SegmentWriter.sync

    def planted(self):
        try:
            sync(self)
        except OSError:
            sync(self)

    patch.setattr(SegmentWriter, "sync", planted)
    patch.setitem(LIVES, "steady", Script(ends={"fault": 40}))  # few syncs fail in the others


def trust_the_page_cache_of_the_last_run(patch: pytest.MonkeyPatch) -> None:
    replace = Directory.replace

    def planted(self, name, data):
        if not name.endswith(".wal"):
            replace(self, name, data)

    patch.setattr(Directory, "replace", planted)


def leave_the_mark_of_a_clean_stop(patch: pytest.MonkeyPatch) -> None:
    class Planted(StoreFile):
        def _replace(self, **fields):
            if fields.get("clean_bytes") == 0:
                fields["clean_bytes"] = 68  # as it was
            return super()._replace(**fields)

    patch.setattr(wal, "StoreFile", Planted, raising=False)
    opened = Directory.open_store_file
    patch.setattr(Directory, "open_store_file", lambda self: Planted(*opened(self)))


def name_a_segment_before_its_head_is_durable(patch: pytest.MonkeyPatch) -> None:
    class Planted(SegmentWriter):
        is_first = True

        def sync(self):
            if not self.is_first:
                super().sync()
            self.is_first = False

    patch.setattr(wal, "SegmentWriter", Planted)


def ignore_a_short_write(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(segment, "write_all", lambda fs, handle, data: fs.write(handle, data))


def begin_the_log_before_the_older_snapshot(patch: pytest.MonkeyPatch) -> None:
    """Keep the log behind the newest snapshot only."""
    trim = WalStore._trim

    def planted(self):
        trim(self)
        for number in sorted(self._sizes):
            if self._snapshots and number < self._snapshots[0].base.segment_no:
                self._directory.remove([segment.segment_name(number)])
                del self._sizes[number]

    patch.setattr(WalStore, "_trim", planted)


@pytest.mark.parametrize(
    ("plant", "name"),
    [
        (no_directory_sync_on_rotate, "steady"),
        (trim_before_the_snapshot_is_synced, "snapshots"),
        (no_sync_of_a_snapshot, "snapshots"),
        (promise_before_the_sync, "steady"),
        (try_a_failed_sync_again, "steady"),
        (trust_the_page_cache_of_the_last_run, "restarts"),
        (leave_the_mark_of_a_clean_stop, "restarts"),
        (name_a_segment_before_its_head_is_durable, "steady"),
        (ignore_a_short_write, "steady"),
        (begin_the_log_before_the_older_snapshot, "snapshots"),
    ],
    ids=lambda each: getattr(each, "__name__", str(each)),
)
def test_planted_bug_shows(plant: Plant, name: str, monkeypatch):
    plant(monkeypatch)
    figures = explore(name, 0, violations_max=1)
    print(figures.points, "points,", figures.images.total(), "images")
    assert figures.violations
    print(figures.violations[0])

"""A daemon that keeps crashing keeps its promises, and its disk does not fill up."""

import pytest

from jqd.storage.directory import Directory
from jqd.storage.segment import segment_number
from jqd.storage.wal import WalStore
from tests.sim import cycles


def check(figures: cycles.Figures) -> None:
    print(figures, "allowed:", cycles.bound(figures))
    assert figures.interrupted_starts > figures.cycles / 10
    assert figures.cuts > figures.cycles / 20
    assert figures.requests > 5 * figures.cycles
    # Each copy of a torn tail stays. It is what was not synced, so it is small.
    assert figures.quarantine_bytes < 200 * figures.cycles


@pytest.mark.slow
@pytest.mark.sim
@pytest.mark.timeout(300)  # 12 s of CPU, beside what else runs
def test_thousand_crashes_leave_two_snapshots_and_the_log_behind_them():
    figures = cycles.run(1_000, seed=0)
    check(figures)
    assert figures.snapshots > 30
    assert figures.most_bytes > cycles.bound(figures) / 2, "the bound is too wide to say anything"


def test_some_crashes_in_a_row(request):
    seed = request.config.getoption("randomly_seed", 0)
    print("seed", seed)
    figures = cycles.run(150, seed)
    check(figures)
    assert figures.snapshots > 2


def keep_all_of_the_log(patch: pytest.MonkeyPatch) -> None:
    remove = Directory.remove
    patch.setattr(
        Directory,
        "remove",
        lambda self, names: remove(self, (each for each in names if segment_number(each) is None)),
    )


def leave_half_made_files(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Directory, "remove_temporary_files", lambda self: None)


def make_no_snapshot(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(WalStore, "unsnapped_bytes", 0)


@pytest.mark.parametrize("plant", [keep_all_of_the_log, leave_half_made_files, make_no_snapshot])
def test_planted_leak_is_noticed(plant, monkeypatch):
    plant(monkeypatch)
    with pytest.raises(AssertionError, match=r"bytes are allowed"):
        cycles.run(400, seed=0)

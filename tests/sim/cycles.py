"""Crash loops: a daemon that never lives long, on one disk that must not fill up.

Knows:         how long a daemon lives in such a loop, what may lie on the disk.
Must not know: how a life goes (lives.py), how a disk loses what is pending (disk.py).

Each cycle starts on what the last one left, does some requests, and ends at an effect that the dice choose, of the
start or of the work, by a kill or a power loss of any kind. The engine's digest is compared at each start (lives.py).

    run(cycles, seed).most_bytes      see Figures; AssertionError: more lies on the disk than may
"""

from dataclasses import dataclass
from typing import Final

from jqd.storage.directory import QUARANTINE_NAME, TMP_SUFFIX, snapshot_lsn
from tests.sim.disk import Fault, Loss, SimDisk
from tests.sim.lives import Life, Rolls, Script
from tests.storage.logs import DATA
from tests.support.faultfs import Crash

SCRIPT: Final = Script(ends={}, group=2, unsynced=20, snapshot_bytes=4_000)
# A life ends before so many effects of its disk; it takes about 25 to start.
EFFECTS_MAX: Final = 120


@dataclass
class Figures:
    """What a loop did and left. Bytes are of the data directory, without quarantine/."""

    cycles: int = 0
    interrupted_starts: int = 0
    requests: int = 0
    snapshots: int = 0
    most_bytes: int = 0
    snapshot_bytes: int = 0  # the largest that was seen
    cuts: int = 0  # torn tails
    quarantine_bytes: int = 0  # at the end


def bound(figures: Figures) -> int:
    """Return how much may lie there: two snapshots and one being written, and the log behind the older one.

    A snapshot is due when the log has grown by SCRIPT.snapshot_bytes, or by the size of the newest one. It takes
    some lives that are cut short before one is whole, so twice that much log may come between two of them.
    """
    due_bytes = max(SCRIPT.snapshot_bytes, figures.snapshot_bytes)
    return 3 * figures.snapshot_bytes + 2 * 2 * due_bytes + SCRIPT.reserve_bytes


def run(cycles: int, seed: int) -> Figures:
    """Go through so many cycles. Raises AssertionError at the first that is not as it should be."""
    dice, disk, figures = Rolls("cycles", seed), SimDisk(seed), Figures()
    life = Life(SCRIPT, dice, disk, wants=lambda _: False)
    before_call = disk.on_call
    assert before_call is not None

    def weigh(name: str, path: str) -> None:
        before_call(name, path)
        if disk.exists(DATA):
            _weigh(disk, figures)

    disk.on_call = weigh
    for _ in range(cycles):
        figures.cycles += 1
        disk.arm(Fault.KILL, 1 + dice.below(EFFECTS_MAX))
        has_started = False
        try:
            life.start()
            has_started = True
            figures.cuts += life.store.recovery.torn_bytes > 0
            while True:
                life.step()
                figures.requests += 1
        except Crash:
            figures.interrupted_starts += not has_started
        if dice.happens(50):
            disk.crash(list(Loss)[dice.below(len(Loss))], dice)
        else:
            disk.kill()
        life.forget()
    figures.snapshots = life.done["snapshot"]
    if disk.exists(f"{DATA}/{QUARANTINE_NAME}"):
        figures.quarantine_bytes = sum(map(len, disk.listing(f"{DATA}/{QUARANTINE_NAME}").values()))
    return figures


def _weigh(disk: SimDisk, figures: Figures) -> None:
    sizes = disk.sizes(DATA)
    snapshots = [
        size for name, size in sizes.items() if snapshot_lsn(name.removesuffix(TMP_SUFFIX)) is not None
    ]
    figures.snapshot_bytes = max([figures.snapshot_bytes, *snapshots])
    figures.most_bytes = max(figures.most_bytes, sum(sizes.values()))
    assert figures.most_bytes <= bound(figures), f"{sizes}: {bound(figures)} bytes are allowed"

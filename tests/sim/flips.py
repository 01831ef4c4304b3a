"""Rot, one bit at a time: each bit of a reference file flipped once, and what a start makes of each image.

Knows:         the reference logs and snapshots, what the file formats promise for a bit in each of their frames.
Must not know: why a format keeps that promise.

A reference is 8,192 bytes of log, or of one snapshot: 65,536 images. For each of them one outcome is right, and it
depends only on the frame that the bit stands in:

    reference    bit in ...             outcome
    sealed       the last frame, a seal exact: all is there, a copy of the torn seal in quarantine/
                 any other frame        refused, naming file and frame; nothing is changed
    unsealed     the last batch         cut: exactly the last batch goes, a copy in quarantine/
                 any other frame        refused
    segments     as unsealed, over several files
    closed       any frame              refused
    newest       any                    fell back: exact by the older snapshot and the log behind it; the damaged one
                                        named and put into quarantine/
    first        any                    fell back: exact by the whole log
    both         any, and one bit of    refused, naming both
                 the older one too

"Exact" is compared by the digest of the state. What `jqctl wal repair` would say of a refused image is held against
the true loss, on a sample.

    python -m tests.sim.flips [--only NAME] [--count N] [--seed N] [--bit N] [--processes N]
"""

import argparse
import gc
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from typing import Final, NamedTuple

from jqd.errors import Corruption
from jqd.offline.repair import repair
from jqd.storage.base import Record
from jqd.storage.directory import snapshot_name
from tests.offline.history import History, history_of, life, records_of, snapshot
from tests.offline.test_repair import check_repaired, check_report
from tests.sim.restart import recovered
from tests.storage.logs import DATA, cut_frames, opened
from tests.support.core import Core
from tests.support.faultfs import DROP, FaultDisk

BYTES: Final = 8_192
BITS: Final = 8 * BYTES

# One of so many refused images is also given to a repair, which takes twenty times as long.
REPAIR_EVERY: Final = 50

EXACT: Final = "exact"
CUT: Final = "last batch cut"
FELL_BACK: Final = "fell back, exact"
REFUSED: Final = "refused"
REPAIRED: Final = "repair checked"


class Frame(NamedTuple):
    """A frame of the bytes that are flipped."""

    name: str  # of its file
    offset: int  # there
    size: int
    position: int  # of its first byte among all bytes that are flipped


@dataclass
class Reference:
    """See the file's card.

    Attributes:
        frames: those whose bits are flipped.
        digests: of the state behind so many records.
    """

    name: str
    history: History
    frames: list[Frame]
    digests: list[str]

    @property
    def records(self) -> list[Record]:
        return self.history.records

    def frame_of(self, bit: int) -> Frame:
        """Return the frame that a bit stands in."""
        return next(frame for frame in self.frames if bit // 8 < frame.position + frame.size)

    def flipped(self, bit: int) -> tuple[Frame, bytes]:
        """Return the frame that a bit stands in, and its file with this bit flipped."""
        frame = self.frame_of(bit)
        data = bytearray(self.history.files[frame.name])
        data[frame.offset + bit // 8 - frame.position] ^= 1 << bit % 8
        return frame, bytes(data)

    def disk(self, files: dict[str, bytes]) -> FaultDisk:
        """Return the disk with these files in place of its own."""
        disk = self.history.disk.clone()
        for name, data in files.items():
            disk.overwrite(f"{DATA}/{name}", data)
        return disk


# --- the references -----------------------------------------------------------------------------


def _longer_life(pad_bytes: int) -> Core:
    """Return the life of jobs, continued for some more records; one payload has `pad_bytes`."""
    core = life()
    for size in (180, 20, 333, 90):
        core.submit(random.Random(size).randbytes(size), queue="long")
    token, job_id = core.held("long")
    core.submit(random.Random(0).randbytes(pad_bytes), queue="long")
    core.ack(token, job_id, result=b"r" * 70)
    core.submit_jobs(3, queue="long")
    core.cancel(core.submit(b"not this one", queue="long"))
    core.write()
    return core


def _sized(make: Callable[[int], tuple[FaultDisk, list[Record], list[str]]], name: str) -> Reference:
    """Return a reference whose flipped files have BYTES bytes: its padding is adjusted until they have.

    Args:   make: takes the bytes of padding; returns a disk, what its log holds, and the names of the flipped files.
    """
    pad_bytes = 200
    for _ in range(9):
        disk, records, names = make(pad_bytes)
        files = disk.listing(DATA)
        missing = BYTES - sum(len(files[each]) for each in names)
        if not missing:
            break
        pad_bytes += missing
    else:
        raise AssertionError(f"{name} does not come to {BYTES} bytes")
    history = history_of(disk, records)
    frames: list[Frame] = []
    position = 0
    for each in names:
        offset = 0
        for frame in cut_frames(files[each]):
            frames.append(Frame(each, offset, len(frame), position))
            offset += len(frame)
            position += len(frame)
    history.disk.calls.clear()
    digests = [history.state(count).digest() for count in range(len(records) + 1)]
    return Reference(name, history, frames, digests)


def _log(name: str, end: str, segment_bytes: int) -> Reference:
    def make(pad_bytes: int) -> tuple[FaultDisk, list[Record], list[str]]:
        records = records_of(_longer_life(pad_bytes))
        disk = FaultDisk()
        store = opened(disk, segment_bytes=segment_bytes)
        for record in records:
            store.append([record])
            store.sync()
        if end == "sealed":
            store.seal()
        if end == "closed":
            store.close()
        disk.kill()
        return disk, records, sorted(each for each in disk.listing(DATA) if each.endswith(".wal"))

    return _sized(make, name)


def _snapshots(name: str, at: Sequence[float]) -> Reference:
    """Return a log with snapshots behind so much of its records; the last one is flipped."""

    def make(pad_bytes: int) -> tuple[FaultDisk, list[Record], list[str]]:
        core = _longer_life(pad_bytes)
        job_id = core.submit(b"x" * 5_000, queue="long")  # most of it is in the snapshot
        core.submit(b"behind the snapshot", queue="long")
        core.cancel(job_id)
        core.write()
        records = records_of(core)
        plain = History(FaultDisk(), records, {})
        marks = [int(share * (len(records) - 2)) for share in at]
        disk = FaultDisk()
        store = opened(disk, segment_bytes=1_500)
        for number, record in enumerate(records, 1):
            store.append([record])
            store.sync()
            if number in marks:
                snapshot(store, plain.state(number))
        disk.kill()
        return disk, records, [snapshot_name(store.snapshot_lsn)]

    return _sized(make, name)


@cache
def reference(name: str) -> Reference:
    """Return a reference by its name."""
    return _MAKERS[name]()


_MAKERS: Final[dict[str, Callable[[], Reference]]] = {
    "sealed": lambda: _log("sealed", "sealed", 1 << 20),
    "unsealed": lambda: _log("unsealed", "unsealed", 1 << 20),
    "segments": lambda: _log("segments", "unsealed", 1_500),
    "closed": lambda: _log("closed", "closed", 1 << 20),
    "newest": lambda: _snapshots("newest", (0.5, 1)),
    "first": lambda: _snapshots("first", (1,)),
    "both": lambda: _snapshots("both", (0.5, 1)),
}
NAMES: Final = tuple(_MAKERS)


# --- the judge ----------------------------------------------------------------------------------


def judge(ref: Reference, bit: int, *, with_repair: bool = False) -> str:
    """Start on an image and return the outcome.

    Raises: AssertionError: it is not the one that the file's card promises; or whatever a start should not raise.
    """
    try:
        return _judge(ref, bit, with_repair=with_repair)
    except Exception as error:
        error.add_note(f"reference {ref.name}, bit {bit}, of {ref.frame_of(bit)}")
        raise


def _judge(ref: Reference, bit: int, *, with_repair: bool) -> str:
    frame, data = ref.flipped(bit)
    images = {frame.name: data}
    if ref.name == "both":
        images |= _older_flipped(ref, bit)
    files = ref.history.files | images
    disk = ref.disk(images)
    try:
        engine, store = recovered(disk)
    except Corruption as refusal:
        assert disk.listing(DATA) == files, "refused, and changed all the same"
        _check_refusal(ref, frame, images, refusal)
        if with_repair:
            disk.kill()
            _check_repair(ref, files, disk)
        return REFUSED
    report = store.recovery
    kept = len(ref.records)
    torn = b""
    damaged: list[str] = []
    outcome = EXACT
    if ref.name in ("newest", "first"):
        outcome = FELL_BACK
        damaged = [frame.name]
    else:
        assert frame is ref.frames[-1], "not refused"
        assert ref.name != "closed", "a clean stop vouches for its last byte"
        torn = data[frame.offset :]
        if ref.name != "sealed":
            outcome, kept = CUT, kept - 1
    assert engine.state.digest() == ref.digests[kept], "another state"
    assert (report.last_lsn, report.clean) == (ref.records[kept - 1].last_lsn, False)
    assert report.torn_bytes == len(torn)
    assert [said.partition(": byte ")[0] for said in report.damaged_snapshots] == [
        f"{DATA}/{name}" for name in damaged
    ]
    there = "quarantine" in disk.list_directory(DATA)
    copies = disk.listing(f"{DATA}/quarantine").values() if there else ()
    assert list(copies) == ([torn] if torn else [data]), "no copy of what was cut or put away"
    # It is all on the disk, too, and is said once.
    disk.power_loss(DROP)
    engine, store = recovered(disk)
    assert engine.state.digest() == ref.digests[kept], "another state at the second start"
    assert (store.recovery.torn_bytes, store.recovery.damaged_snapshots) == (0, ())
    return outcome


def _older_flipped(ref: Reference, bit: int) -> dict[str, bytes]:
    name = min(name for name in ref.history.files if name.endswith(".snap"))
    data = bytearray(ref.history.files[name])
    other = random.Random(bit).randrange(8 * len(data))
    data[other // 8] ^= 1 << other % 8
    return {name: bytes(data)}


def _check_refusal(ref: Reference, frame: Frame, images: Iterable[str], refusal: Corruption) -> None:
    if ref.name == "both":
        assert all(f"{DATA}/{name}: byte " in str(refusal) for name in images), "a snapshot is not named"
        return
    assert ref.name not in ("newest", "first"), f"refused: {refusal}"
    assert frame is not ref.frames[-1] or ref.name == "closed", f"refused: {refusal}"
    assert (refusal.file, refusal.offset) == (f"{DATA}/{frame.name}", frame.offset), "another place is named"
    assert refusal.file in str(refusal) and f"byte {refusal.offset}" in str(refusal)


def _check_repair(ref: Reference, files: dict[str, bytes], disk: FaultDisk) -> None:
    """What the repair says is lost is what is lost, and it does what it said."""
    # Without a snapshot the log has to begin at its beginning, which went when there were two.
    kept = 0 if ref.name == "both" else None
    before = {name: data for name, data in files.items() if name != "lock"}
    dry = repair(disk, DATA, accept_loss=False)
    assert disk.listing(DATA) == files, "a dry run changed something"
    assert dry.loss is not None
    kept = check_report(ref.history, before, dry.loss, clean=ref.name == "closed", kept=kept)
    done = repair(disk, DATA, accept_loss=True)
    assert done.is_done and done.loss == dry.loss
    check_repaired(ref.history, before, disk, kept)


# --- volume -------------------------------------------------------------------------------------


def sample(count: int, seed: int, *names: str) -> list[tuple[str, int]]:
    """Return so many images, drawn by the seed, of these references in turn; with BITS or more, all of each."""
    images = []
    for index, name in enumerate(names):
        share = (count + index) // len(names)
        bits = range(BITS) if share >= BITS else random.Random(f"{seed} {name}").sample(range(BITS), share)
        images += [(name, bit) for bit in bits]
    return images


def count_outcomes(images: Iterable[tuple[str, int]]) -> Counter[tuple[str, str]]:
    """Judge images; return how often which reference had which outcome, and how many repairs were checked."""
    gc.disable()  # nothing here is garbage before it is counted down
    try:
        outcomes: Counter[tuple[str, str]] = Counter()
        for name, bit in images:
            with_repair = outcomes[name, REFUSED] % REPAIR_EVERY == 0
            outcome = judge(reference(name), bit, with_repair=with_repair)
            outcomes[name, outcome] += 1
            outcomes[name, REPAIRED] += with_repair and outcome == REFUSED
        return outcomes
    finally:
        gc.enable()


def run(images: list[tuple[str, int]], processes: int) -> Counter[tuple[str, str]]:
    """Judge images in several processes."""
    if processes == 1:
        return count_outcomes(images)
    outcomes: Counter[tuple[str, str]] = Counter()
    with ProcessPoolExecutor(processes, mp_context=get_context("fork")) as pool:
        pieces = [images[start : start + 2_000] for start in range(0, len(images), 2_000)]
        for part in pool.map(count_outcomes, pieces):
            outcomes += part
    return outcomes


def main(arguments: Sequence[str] | None = None) -> None:
    """Flip, and print what came out."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.sim.flips",
        description="Flip each bit of reference files once, start, and hold the outcome against the right one.",
    )
    parser.add_argument("--only", action="append", choices=NAMES, help="this reference; repeatable")
    parser.add_argument(
        "--count", type=int, default=BITS, help=f"images of each reference (default: all {BITS})"
    )
    parser.add_argument("--seed", type=int, default=0, help="draws the images, if not all (default 0)")
    parser.add_argument("--bit", type=int, help="this one alone")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="default: one a core")
    given = parser.parse_args(arguments)
    print(f"{'reference':<10} {'images':>7}  {'outcomes':<40} {'repairs':>7} {'CPU s':>6}")
    for name in given.only or NAMES:
        reference(name)
        images = sample(given.count, given.seed, name) if given.bit is None else [(name, given.bit)]
        begun_s = _cpu_s()
        outcomes = run(images, given.processes)
        took_s = _cpu_s() - begun_s
        repairs = outcomes.pop((name, REPAIRED), 0)
        said = ", ".join(f"{outcome} {count}" for (_, outcome), count in sorted(outcomes.items()))
        print(f"{name:<10} {outcomes.total():>7}  {said:<40} {repairs:>7} {took_s:>6.0f}", flush=True)


def _cpu_s() -> float:
    """Return the seconds of processor time that this process and those that it has waited for have taken."""
    return sum(os.times()[:4])


if __name__ == "__main__":
    main()

"""A repair does what it said, loses what it said, and can be interrupted anywhere.

The model (history.py) knows what was written, and so what is truly lost.
"""

import errno
import random

import pytest
from crc32c import crc32c

from jqd.core.changes import DaemonStarted, IdsSkipped, JobsDone, decode_batch, encode_batch
from jqd.core.engine import Engine
from jqd.core.model import Now
from jqd.core.queues import Identity
from jqd.core.state import State
from jqd.errors import Corruption, DataDirLocked, DataDirUnusable, DiskFull, UnsupportedFormat
from jqd.offline.check import ask_recovery, examine
from jqd.offline.files import read_what_can_be_read
from jqd.offline.loss import GONE, Loss
from jqd.offline.repair import Repair, repair
from jqd.storage.base import Record, RecoveryReport
from jqd.storage.record import FORMAT, decode_header, encode_frame
from jqd.storage.segment import segment_name
from jqd.storage.store_file import StoreFile, decode_store_file, encode_store_file
from tests.offline.history import History, made
from tests.storage.logs import DATA, STORE, load, opened, records, segment, write
from tests.support.faultfs import DROP, KEEP, Crash, FaultDisk, crash_at, fail_at, tear

CLEAN = made(clean=True)
KILLED = made(clean=False)

# --- damage -----------------------------------------------------------------------------------


def flip(files: dict[str, bytes], rng: random.Random) -> None:
    name = rng.choice([name for name in files if files[name]])
    data = bytearray(files[name])
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    files[name] = bytes(data)


def shorten(files: dict[str, bytes], rng: random.Random) -> None:
    name = rng.choice([name for name in files if files[name]])
    files[name] = files[name][: rng.randrange(len(files[name]))]


def delete(files: dict[str, bytes], rng: random.Random) -> None:
    del files[rng.choice(sorted(files))]


def swap_files(files: dict[str, bytes], rng: random.Random) -> None:
    one, other = rng.sample([name for name in files if name.endswith(".wal")], 2)
    files[one], files[other] = files[other], files[one]


def repeat_file(files: dict[str, bytes], rng: random.Random) -> None:
    one, other = rng.sample([name for name in files if name.endswith(".wal")], 2)
    files[one] = files[other]


def swap_frames(files: dict[str, bytes], rng: random.Random) -> None:
    _, name, start, size = rng.choice(
        [
            (index, name, offset, len(frame))
            for index, (name, offset, frame, record) in enumerate(CLEAN.frames())
            if record is not None and offset + len(frame) < len(files[name])
        ]
    )
    data = files[name]
    header = decode_header(data, start + size)
    end = start + size + 68 + header.payload_bytes
    files[name] = data[:start] + data[start + size : end] + data[start : start + size] + data[end:]


def zero(files: dict[str, bytes], rng: random.Random) -> None:
    name = rng.choice([name for name in files if files[name]])
    start = rng.randrange(len(files[name]))
    count = min(rng.choice((1, 64, 512)), len(files[name]) - start)
    files[name] = files[name][:start] + bytes(count) + files[name][start + count :]


DAMAGES = [flip, shorten, delete, swap_files, repeat_file, swap_frames, zero]


def damaged(history: History, files: dict[str, bytes]) -> FaultDisk:
    disk = history.disk.clone()
    for name in history.files:
        if name not in files:
            disk.remove(f"{DATA}/{name}")
        elif files[name] != history.files[name]:
            disk.overwrite(f"{DATA}/{name}", files[name])
    return disk


def listing(disk: FaultDisk) -> dict[str, bytes]:
    """Return what counts in the data directory."""
    return {name: data for name, data in disk.listing(DATA).items() if name != "lock"}


def log_files(history: History) -> dict[str, bytes]:
    return {name: data for name, data in history.files.items() if name != "lock"}


# --- the report and the truth -----------------------------------------------------------------


def expected_jobs(history: History, kept: int, left: list[Record]) -> dict[int, tuple[str | None, str]]:
    """Return what is true of the jobs that the readable rest of the log speaks of: job id -> (was, becomes)."""
    state = history.state(kept)
    was: dict[int, str | None] = {}
    for record in left:
        was |= history.touched[history.records.index(record)]
    for job_id in range(state.pages.next_id, max(was, default=0) + 1):
        was.setdefault(job_id, None)
    return {
        job_id: (
            word,
            GONE if job_id >= state.pages.next_id else state.known_job(job_id).state.wire_name,
        )
        for job_id, word in was.items()
    }


def told_jobs(loss: Loss) -> dict[int, tuple[str | None, str]]:
    return {
        job_id: (run.was, run.becomes)
        for run in loss.jobs
        for job_id in range(run.first_id, run.first_id + run.count)
    }


def check_report(
    history: History, files: dict[str, bytes], loss: Loss, *, clean: bool, kept: int | None = None
) -> int:
    """Hold a report against the history; return how many records are kept. kept: where that is known otherwise."""
    kept = history.good_records(files) if kept is None else kept
    left = history.left(files, kept)
    last_lsn = history.records[-1].last_lsn
    assert loss.first_lsn == (
        history.records[kept].first_lsn if kept < len(history.records) else last_lsn + 1
    )
    assert loss.last_lsn is None or loss.first_lsn <= loss.last_lsn <= last_lsn
    if clean and not loss.may_be_more:
        assert (loss.last_lsn or loss.first_lsn - 1) == last_lsn
    readable = {lsn for record in left for lsn in range(record.first_lsn, record.last_lsn + 1)}
    unreadable = {lsn for first, last in loss.unreadable for lsn in range(first, last + 1)}
    assert readable | unreadable == set(range(loss.first_lsn, (loss.last_lsn or 0) + 1))
    assert not readable & unreadable
    assert told_jobs(loss) == expected_jobs(history, kept, left)
    queues = {
        job.id: job.options.queue
        for n in range(len(history.records) + 1)
        for job in history.state(n).pages.jobs_from(0)
    }
    for run in loss.jobs:
        assert run.queue in (None, queues[run.first_id])
        assert run.queue is not None or run.becomes == GONE
    return kept


def kept_of(disk: FaultDisk, loss: Loss | None) -> list[Record]:
    """Return what a repair has left of a log, without the fact that it puts behind that.

    loss: its next id is what that fact says; None: one of several repairs may have said another.
    """
    found, _ = load(disk)
    while found and isinstance(decode_batch(found[-1].payload).changes[0], IdsSkipped):
        (change,) = decode_batch(found.pop().payload).changes
        assert loss is None or change.next_id == loss.next_id
    return found


def check_ids(history: History, disk: FaultDisk) -> None:
    """No id is given out that the log ever gave to a job, read or not."""
    engine = Engine(State(), Identity("", ""))
    for record in load(disk)[0]:
        engine.replay(record.first_lsn, record.count, record.payload)
    engine.state.check()
    assert engine.state.pages.next_id >= history.state(len(history.records)).pages.next_id


def check_repaired(history: History, before: dict[str, bytes], disk: FaultDisk, kept: int) -> None:
    """The log holds what it was to hold, starts, and each byte that went is kept."""
    after = listing(disk)
    there = "quarantine" in disk.list_directory(DATA)
    copies = disk.listing(f"{DATA}/quarantine") if there else {}
    for name, data in before.items():
        if after.get(name) != data:
            stem = name.removesuffix(".wal")
            held = [
                (int(copy.split("-")[1].split(".")[0]), content)
                for copy, content in copies.items()
                if copy.startswith(f"{stem}-")
            ]
            assert any(data[:offset] + content == data for offset, content in held), name
            # What stays is the beginning; only the last one may have been put there, with the fact about ids.
            if name.endswith(".wal") and name != max(each for each in after if each.endswith(".wal")):
                assert all(after.get(name, b"") == data[:offset] for offset, _ in held)
    assert kept_of(disk, None) == history.records[:kept]
    check_ids(history, disk)


@pytest.mark.parametrize("history", [CLEAN, KILLED], ids=["clean", "killed"])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_report_is_the_true_loss(history, damage):
    needed = 0
    for seed in range(60):
        rng = random.Random(seed)
        files = log_files(history)
        damage(files, rng)
        if rng.random() < 0.3:
            flip(files, rng)
        disk = damaged(history, files)
        before = listing(disk)
        dry = repair(disk, DATA, accept_loss=False)
        assert listing(disk) == before
        if not dry.steps:
            assert isinstance(ask_recovery(disk, DATA), RecoveryReport)
            continue
        needed += 1
        kept = check_report(history, files, dry.loss, clean=history is CLEAN)
        done = repair(disk, DATA, accept_loss=True)
        assert done.is_done and (done.loss, len(done.steps)) == (dry.loss, len(dry.steps))
        assert repair(disk, DATA, accept_loss=True).steps == []
        check_repaired(history, before, disk, kept)
    assert needed > (20 if history is CLEAN else 10)


def test_interrupted_repair_is_harmless_and_can_be_repeated():
    """A power loss before each effect, of which any part of what was not synced survives."""
    files = log_files(CLEAN)
    name = CLEAN.segments[1]
    files[name] = files[name][:300] + b"?" + files[name][301:]
    kept = CLEAN.good_records(files)
    before = listing(damaged(CLEAN, files))
    for fate in (DROP, KEEP, tear(random.Random(1)), tear(random.Random(2))):
        for number in range(1, 200):
            disk = damaged(CLEAN, files)
            crash_at(disk, number)
            try:
                assert repair(disk, DATA, accept_loss=True).is_done
                break
            except Crash:
                disk.power_loss(fate)
            disk.on_call = None
            verdict = ask_recovery(disk, DATA)
            if isinstance(verdict, RecoveryReport):
                # A daemon that starts now gives no id of a lost job out.
                assert kept_of(disk.clone(), None) == CLEAN.records[:kept]
                check_ids(CLEAN, disk.clone())
            again = repair(disk, DATA, accept_loss=True)
            assert again.is_done is bool(again.steps)
            check_repaired(CLEAN, before, disk, kept)
        else:
            raise AssertionError("the repair does not end")
        assert number > 20


def test_full_disk_leaves_the_log_as_it_was():
    files = log_files(CLEAN)
    del files[CLEAN.segments[1]]
    disk = damaged(CLEAN, files)
    before = listing(disk)
    fail_at(disk, 2, errno.ENOSPC, frozenset({"write"}))
    with pytest.raises(DiskFull):
        repair(disk, DATA, accept_loss=True)
    assert listing(disk) == before
    disk.on_call = None
    assert repair(disk, DATA, accept_loss=True).is_done


# --- each kind of damage by name --------------------------------------------------------------


def mended(disk: FaultDisk) -> Repair:
    """Repair, and lose the power at once."""
    result = repair(disk, DATA, accept_loss=True)
    assert result.is_done
    disk.power_loss(DROP)
    return result


def said_by_store(disk: FaultDisk) -> StoreFile:
    said = decode_store_file(disk.content(STORE))
    assert isinstance(said, StoreFile)
    return said


def test_good_log_needs_no_repair():
    for history in (CLEAN, KILLED):
        disk = history.disk.clone()
        result = repair(disk, DATA, accept_loss=True)
        assert (result.steps, result.loss, result.is_done) == ([], None, False)
        assert listing(disk) == log_files(history)


def test_torn_tail_is_left_to_the_daemon():
    files = log_files(KILLED)
    files[KILLED.segments[-1]] = files[KILLED.segments[-1]][:-1]
    disk = damaged(KILLED, files)
    result = repair(disk, DATA, accept_loss=True)
    assert not result.steps
    assert result.found.recovery.torn_bytes > 0
    assert "quarantine" not in disk.list_directory(DATA)


@pytest.mark.parametrize("content", [None, b"", b"rubbish"], ids=["missing", "empty", "damaged"])
def test_store_file_is_made_anew_from_the_frames_and_no_record_goes(content):
    disk = CLEAN.disk.clone()
    old = said_by_store(disk)
    disk.remove(STORE) if content is None else disk.overwrite(STORE, content)
    result = mended(disk)
    new = said_by_store(disk)
    assert new.store_id == old.store_id
    assert new.public_id != old.public_id
    assert result.public_id == new.public_id.hex()
    # Whether more segments stood behind these nobody can say, so a fact is put there: how ids go on.
    assert (new.segment_no, new.clean_bytes) == (5, 0)
    assert (result.loss.last_lsn, result.loss.may_be_more, result.loss.jobs) == (None, True, [])
    assert kept_of(disk, result.loss) == CLEAN.records


def test_store_file_of_another_log_is_replaced_and_no_record_goes():
    disk = CLEAN.disk.clone()
    disk.overwrite(STORE, encode_store_file(StoreFile(b"o" * 16, b"p" * 16, 4, 9)))
    result = mended(disk)
    assert kept_of(disk, result.loss) == CLEAN.records


def test_store_file_that_nothing_bears_out_goes():
    disk = FaultDisk()
    write(disk, records(3)).close()
    disk.kill()
    disk.overwrite(segment(1), b"?" * 300)
    disk.remove(STORE)
    result = mended(disk)
    assert result.loss == Loss(1, None, True, [], [], 300, next_id=result.loss.next_id)
    assert kept_of(disk, result.loss) == []
    assert disk.content(f"{DATA}/quarantine/{segment_name(1).removesuffix('.wal')}-0.cut") == b"?" * 300


def test_clean_mark_that_the_log_does_not_reach_is_taken_back():
    files = log_files(CLEAN)
    last = CLEAN.segments[-1]
    seal = [offset for name, offset, _, _ in CLEAN.frames() if name == last][-1]
    files[last] = files[last][:seal]
    disk = damaged(CLEAN, files)
    result = mended(disk)
    assert result.loss == Loss(CLEAN.records[-1].last_lsn + 1, None, True, next_id=result.loss.next_id)
    assert said_by_store(disk).clean_bytes == 0
    assert kept_of(disk, result.loss) == CLEAN.records


def test_last_segment_that_is_missing_leaves_the_end_unseen():
    disk = KILLED.disk.clone()
    disk.remove(segment(4))
    result = mended(disk)
    assert result.loss == Loss(KILLED.records[-1].first_lsn, None, True, next_id=result.loss.next_id)
    assert kept_of(disk, result.loss) == KILLED.records[:-1]


def test_public_id_stays_if_it_can_be_read():
    disk = CLEAN.disk.clone()
    old = said_by_store(disk)
    disk.remove(segment(2))
    result = mended(disk)
    assert result.public_id is None
    assert said_by_store(disk) == StoreFile(old.store_id, old.public_id, 2, 0)


def with_poison(bad: bytes, count: int = 1) -> tuple[FaultDisk, int]:
    """Return the log with a whole record that cannot be applied, and good ones behind it; and its LSN."""
    disk = CLEAN.disk.clone()
    lsn = CLEAN.records[-1].last_lsn + 1
    good = encode_batch(Now(20_000, 1_700_000_000_000), [DaemonStarted(9)])
    store = opened(disk)
    store.append([Record(lsn, count, bad), Record(lsn + count, 1, good)])
    store.close()
    return disk, lsn


@pytest.mark.parametrize(
    ("bad", "unreadable"),
    [(b"no batch", True), (encode_batch(Now(20_000, 1), [JobsDone([(99, 1)])]), False)],
    ids=["unknown", "refused"],
)
def test_log_is_cut_before_a_record_that_cannot_be_applied(bad, unreadable):
    disk, lsn = with_poison(bad)
    result = mended(disk)
    (problem,) = result.found.problems
    assert (problem.kind, problem.lsn) == ("poison", lsn)
    assert (result.loss.first_lsn, result.loss.last_lsn, result.loss.may_be_more) == (lsn, lsn + 1, False)
    assert result.loss.unreadable == ([(lsn, lsn)] if unreadable else [])
    assert kept_of(disk, result.loss) == CLEAN.records


def test_poison_record_goes_as_a_whole_although_it_begins_well():
    changes = [DaemonStarted(9), JobsDone([(99, 1)])]
    disk, lsn = with_poison(encode_batch(Now(20_000, 1), changes), count=2)
    result = mended(disk)
    assert result.found.problems[0].lsn == lsn + 1
    assert result.loss.first_lsn == lsn
    assert kept_of(disk, result.loss) == CLEAN.records


def test_bytes_that_cannot_be_read_are_cut_where_they_begin():
    disk = CLEAN.disk.clone()
    name = segment(2)
    faulty = FaultyDisk(disk, name, range(600, 601))
    result = repair(faulty, DATA, accept_loss=True)
    assert result.is_done
    assert "cannot be read" in result.found.problems[0].message
    files = log_files(CLEAN)
    sector = files[segment_name(2)][:512] + bytes(512)
    assert 300 < len(disk.content(name)) <= 512
    assert disk.content(f"{DATA}/quarantine/0000000000000002-{len(disk.content(name))}.cut")
    kept = CLEAN.good_records({**files, segment_name(2): sector})
    assert kept_of(disk, result.loss) == CLEAN.records[:kept]


def test_piece_that_cannot_be_read_is_closed_in_on_in_few_reads():
    disk = FaultDisk()
    content = random.Random(0).randbytes(200 * 512)
    disk.overwrite("/f", content)
    for bad in (range(1), range(60_000, 60_001), range(511, 513), range(200 * 512 - 1, 200 * 512)):
        faulty = FaultyDisk(disk, "/f", bad)
        found, holes = read_what_can_be_read(faulty, "/f")
        assert holes == sorted({bad.start // 512 * 512, (bad.stop - 1) // 512 * 512})
        expected = bytearray(content)
        for hole in holes:
            expected[hole : hole + 512] = bytes(512)
        assert found == expected
        assert faulty.failures < 60


class FaultyDisk:
    """A disk on which some bytes of a file cannot be read until somebody replaces it."""

    def __init__(self, disk: FaultDisk, path: str, bad: range) -> None:
        self._disk = disk
        self._path = path
        self._bad = bad
        self.failures = 0

    def __getattr__(self, name):
        return getattr(self._disk, name)

    def rename(self, old, new):
        self._disk.rename(old, new)
        if new == self._path:
            self._bad = range(0)

    def read(self, handle, offset, count):
        _, path = self._disk._handles[handle]
        data = self._disk.read(handle, offset, count)
        if path == self._path and range(
            max(offset, self._bad.start), min(offset + len(data), self._bad.stop)
        ):
            self.failures += 1
            raise OSError(errno.EIO, "Input/output error", path)
        return data


def test_copy_of_another_repair_is_not_overwritten():
    files = log_files(CLEAN)
    disk = damaged(CLEAN, {**files, "store": b"first"})
    mended(disk)
    disk.overwrite(STORE, b"second")
    assert mended(disk).copies == [f"{DATA}/quarantine/store-0.2.cut"]
    disk.overwrite(STORE, b"first")
    assert mended(disk).copies == [f"{DATA}/quarantine/store-0.cut"]
    copies = disk.listing(f"{DATA}/quarantine")
    assert copies == {"store-0.cut": b"first", "store-0.2.cut": b"second"}


# --- what is refused --------------------------------------------------------------------------


def test_log_of_a_running_daemon_is_refused():
    disk = FaultDisk()
    write(disk, records(3))
    before = listing(disk)
    with pytest.raises(DataDirLocked):
        repair(disk, DATA, accept_loss=True)
    assert listing(disk) == before


def test_lock_is_given_back():
    disk = CLEAN.disk.clone()
    repair(disk, DATA, accept_loss=False)
    repair(disk, DATA, accept_loss=False)


def test_what_is_no_data_directory_is_refused_and_gets_no_lock():
    disk = FaultDisk()
    with pytest.raises(DataDirUnusable, match="No such file"):
        repair(disk, DATA, accept_loss=True)
    disk.make_directory(DATA)
    with pytest.raises(DataDirUnusable, match="holds no log of jqd"):
        repair(disk, DATA, accept_loss=True)
    assert disk.listing(DATA) == {}


def newer_frame(disk: FaultDisk, segment_no: int) -> bytes:
    """Return a frame such as a newer jqd might write."""
    frame, _ = encode_frame(9, said_by_store(disk).store_id, segment_no, 99, 0, 0, 0, b"")
    return frame


def test_what_a_newer_jqd_wrote_is_not_cut():
    files = log_files(CLEAN)
    last = CLEAN.segments[-1]
    newer = files[last] + newer_frame(CLEAN.disk, 4)
    for more in ({}, {CLEAN.segments[0]: b"damage" + files[CLEAN.segments[0]]}):
        disk = damaged(CLEAN, {**files, last: newer, **more})
        before = listing(disk)
        with pytest.raises(UnsupportedFormat):
            repair(disk, DATA, accept_loss=True)
        assert listing(disk) == before


def test_store_file_of_a_newer_jqd_is_not_replaced():
    disk = CLEAN.disk.clone()
    content = bytearray(disk.content(STORE))
    content[4] = 9
    content[-4:] = crc32c(bytes(content[:-4])).to_bytes(4, "little")
    disk.overwrite(STORE, bytes(content))
    with pytest.raises(UnsupportedFormat, match="format 9"):
        repair(disk, DATA, accept_loss=True)
    assert disk.content(STORE) == content


def test_format_is_the_one_that_was_thought_of():
    assert FORMAT == 1, "look at what a repair of the new format has to do, and at newer_frame"


def test_damage_is_named_as_recovery_names_it():
    files = log_files(CLEAN)
    del files[CLEAN.segments[2]]
    disk = damaged(CLEAN, files)
    (problem,) = examine(disk, DATA).problems
    with pytest.raises(Corruption) as refused:
        opened(disk)
    assert str(refused.value).startswith(problem.message)
    assert (problem.file, problem.offset, problem.lsn) == (
        refused.value.file,
        refused.value.offset,
        refused.value.lsn,
    )

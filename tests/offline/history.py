"""A log of a life of jobs, and what is true of it at every LSN: the model that reports are held against."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jqd.core.changes import DaemonStarted, TimeAdvanced, decode_batch, encode_part
from jqd.core.dump import Dump
from jqd.core.model import Now
from jqd.core.state import State
from jqd.storage.base import Record
from jqd.storage.wal import WalStore
from tests.storage.logs import DATA, cut_frames, opened
from tests.support.core import Core
from tests.support.faultfs import FaultDisk

WIDE = (DaemonStarted, TimeAdvanced)


def life() -> Core:
    """Return a core that has seen every kind of fact about jobs."""
    core = Core()
    caller = core.hello(b"s" * 16)
    core.submit(b'{"n": 1}', queue="mail", encoding="json")
    core.submit_jobs(4, queue="bulk")
    core.submit(b"later", queue="mail", delay_ms=60_000)
    token, first = core.held("mail")
    core.move(500)
    core.extend(token, first)
    core.submit(b"again", caller, queue="mail")
    core.ack(token, first, result=b"sent")
    leased = core.lease("bulk", count=3)
    one, two, three = (job.job_id for job in leased.jobs)
    core.fail(leased.token, one, error="no")
    core.release(leased.token, two)
    core.fail(leased.token, three, error="never", dead=True)
    core.requeue(three)
    core.submit_jobs(3, queue="bulk")
    core.cancel(three)
    core.wait(2_000)
    core.purge(two)
    core.submit(b"last", queue="mail")
    token, job_id = core.held("mail")
    core.ack(token, job_id)
    core.write()
    return core


@dataclass
class History:
    """See the file's card. `disk` holds the log as its daemon left it."""

    disk: FaultDisk
    records: list[Record]
    files: dict[str, bytes]
    touched: list[dict[int, str]] = field(default_factory=list)  # by record: job id -> state behind it

    @property
    def segments(self) -> list[str]:
        return sorted(name for name in self.files if name.endswith(".wal"))

    def state(self, count: int) -> State:
        """Return what the first `count` records give."""
        state = State()
        for record in self.records[:count]:
            for _ in applied(state, record):
                pass
        return state

    def frames(self) -> Iterator[tuple[str, int, bytes, Record | None]]:
        """Yield file, offset, bytes, and record if it is one, of every frame as it was written."""
        payloads = {record.payload: record for record in self.records}
        for name in self.segments:
            offset = 0
            for frame in cut_frames(self.files[name]):
                yield name, offset, frame, payloads.get(frame[64:-4]) if len(frame) > 68 else None
                offset += len(frame)

    def good_records(self, files: dict[str, bytes]) -> int:
        """Return how many records stand before the first byte of the segments that is not as it was."""
        count = 0
        for name, offset, frame, record in self.frames():
            if files.get(name, b"")[offset : offset + len(frame)] != frame:
                return count
            count += record is not None
        return count

    def left(self, files: dict[str, bytes], count: int) -> list[Record]:
        """Return the records behind the first `count` whose frames are whole, wherever they stand now."""
        now = b"".join(data for name, data in files.items() if name.endswith(".wal"))
        return [
            record for *_, frame, record in self.frames() if record in self.records[count:] and frame in now
        ]


def applied(state: State, record: Record) -> Iterator[tuple[Any, State]]:
    """Apply a record change by change."""
    batch = decode_batch(record.payload)
    for change in batch.changes:
        change.apply(state, Now(batch.engine_ms, batch.wall_ms))
        state.lsn += 1
        yield change, state
    state.now = Now(batch.engine_ms, batch.wall_ms)


def signatures(state: State) -> dict[int, tuple[Any, ...]]:
    return {
        job.id: (job.state, job.attempt, job.due, job.lease and (job.lease.token, job.lease.deadline_ms))
        for job in state.pages.jobs_from(0)
    }


def made(*, clean: bool, segment_bytes: int = 700) -> History:
    """Write the life of jobs as a daemon does, each record synced by itself, over several segments."""
    records = records_of(life())
    disk = FaultDisk()
    store = opened(disk, segment_bytes=segment_bytes)
    for record in records:
        store.append([record])
        store.sync()
    if clean:
        store.close()
    disk.kill()
    history = history_of(disk, records)
    assert len(history.segments) >= 4
    return history


def snapshot(store: WalStore, state: State) -> None:
    """Have the store make a snapshot of a state that its log has come to."""
    sink = store.begin_snapshot(store.cut())
    dump = Dump(state)
    while images := dump.take_slice():
        sink.write(len(images), encode_part(images))
    sink.finish()


def records_of(core: Core) -> list[Record]:
    """Return what a core has logged, as a store takes it."""
    return [Record(batch.first_lsn, batch.count, batch.payload) for batch in core.log]


def history_of(disk: FaultDisk, records: list[Record]) -> History:
    """Return the history that a log of these records, on this disk, is."""
    history = History(disk, records, disk.listing(DATA))
    state = State()
    for record in records:
        touched: dict[int, str] = {}
        before = signatures(state)
        for change, state_now in applied(state, record):
            after = signatures(state_now)
            if not isinstance(change, WIDE):
                for job_id in before.keys() | after.keys():
                    if before.get(job_id) != after.get(job_id):
                        job = state_now.job(job_id)
                        touched[job_id] = "forgotten" if job is None else job.state.wire_name
            before = after
        history.touched.append(touched)
    return history


def put(files: dict[str, bytes], directory: Path) -> str:
    """Write the files of a log into a real directory; return its path."""
    directory.mkdir()
    for name, data in files.items():
        (directory / name).write_bytes(data)
    return str(directory)

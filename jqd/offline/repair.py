"""Making a damaged log start again: what is cut, what is kept of it, and in which order.

Knows:         which steps make a directory that recovery accepts, that each is durable before the next begins.
Must not know: what is wrong with a log (check.py), what is lost by a cut (loss.py).

**What stays** is the longest prefix that is good: recovered records have no hole, since a fact behind a hole may name
jobs that nobody knows. Everything behind the first bad frame, missing segment or record that cannot be applied goes.

**Steps**, in this order:

    1  keep     each byte that will be cut or changed is copied to quarantine/, under a name that says where it stood;
                a copy is never overwritten, and the same one not made twice
    2  remove   segments behind the cut, or whose head is bad
    3  cut      the segment with the cut in it is replaced by its good part
    4  store    says which segment is the last, and that nobody stopped cleanly; with a new public id if the old one
                cannot be read. The secret id is in every frame

Where facts go that gave ids of jobs out, or may have, a fact is put behind what stays, in a segment of its own, that
says from which id on to go on: an id never means two jobs. That comes right after 1, since 2 takes away what says how
far the ids had come; then `store`, and 3 last.

Interrupted anywhere, the directory is refused by recovery as before, or is what the repair would have made, and the
repair can be repeated: it finds the same cut.

**Proof**: before anything is changed, these steps are done on an `Overlay` and recovery is run there to its end, with
every fact applied. So a dry run is the repair itself, and what it says is what will happen.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from jqd.core.changes import IdsSkipped, encode_batch
from jqd.core.engine import Engine
from jqd.core.queues import Identity
from jqd.core.state import State
from jqd.errors import UnsupportedFormat
from jqd.offline.check import Findings, ask_recovery, examine
from jqd.offline.files import Overlay, read_what_can_be_read
from jqd.offline.loss import Loss, measure
from jqd.offline.walk import Log
from jqd.storage.base import Record, RecoveryReport
from jqd.storage.directory import QUARANTINE_NAME, STORE_NAME, Directory
from jqd.storage.fs import FileSystem, open_error
from jqd.storage.segment import SegmentWriter, segment_name
from jqd.storage.snapshot import Base
from jqd.storage.store_file import PUBLIC_ID_BYTES, StoreFile
from jqd.storage.wal import WalStore


class Keep(NamedTuple):
    """Copy a file, from `offset` on, to quarantine/."""

    name: str
    offset: int


class Remove(NamedTuple):
    """Remove a file."""

    name: str


class Cut(NamedTuple):
    """Keep the first `size` bytes of a file."""

    name: str
    size: int


class Begin(NamedTuple):
    """Make the segment that a snapshot goes on in, without a batch: without it the snapshot is not taken."""

    store_id: bytes
    base: Base

    @property
    def name(self) -> str:
        return segment_name(self.base.segment_no)


class Skip(NamedTuple):
    """Make the segment behind what stays, with one record that says from which id on jobs are numbered."""

    store_id: bytes
    base: Base
    record: Record

    @property
    def name(self) -> str:
        return segment_name(self.base.segment_no)


class WriteStore(NamedTuple):
    """Write the file `store`."""

    store: StoreFile


Step = Keep | Remove | Cut | Begin | Skip | WriteStore


@dataclass
class Repair:
    """What a repair does or, not `is_done`, would do.

    Attributes:
        found: what was wrong; no steps: nothing that a repair could mend.
        public_id: a new one, where the old one could not be read.
        copies: paths of the copies that were made or were there.
    """

    found: Findings
    steps: list[Step] = field(default_factory=list)
    loss: Loss | None = None
    public_id: str | None = None
    is_done: bool = False
    copies: list[str] = field(default_factory=list)


def repair(fs: FileSystem, path: str, *, accept_loss: bool) -> Repair:
    """Find out what has to go so that a log starts again and, with `accept_loss`, let it go.

    Raises:
        DataDirLocked: a daemon runs on it.
        DataDirUnusable: it cannot be read or written, or is not a data directory of jqd.
        UnsupportedFormat: a newer jqd wrote this. That one can read it; nothing has to go.
    """
    Log(fs, path)  # refuses what is no data directory, before a lock is put into it
    directory = Directory(fs, path)
    try:
        result = _plan(fs, path)
        if accept_loss and result.steps:
            result.copies = list(_carry_out(fs, directory, result.steps))
            verdict = ask_recovery(fs, path)
            assert isinstance(verdict, RecoveryReport), f"repaired, and still refused: {verdict}"
            result.is_done = True
        return result
    except OSError as error:
        raise open_error(error, path) from error
    finally:
        directory.unlock()


def _plan(fs: FileSystem, path: str) -> Repair:
    found = examine(fs, path)
    result = Repair(found)
    for problem in found.problems:
        if problem.kind == "unsupported":
            raise UnsupportedFormat(problem.message)
    if not found.problems:
        return result
    log = found.log
    cut = _cut_of(found)
    result.steps = list(_steps(fs, log, cut))
    store = next((step.store for step in result.steps if isinstance(step, WriteStore)), None)
    if store is not None and store.public_id.hex() != found.public_id:
        result.public_id = store.public_id.hex()
    state, base = _prove(fs, path, result.steps)
    result.loss = measure(log, cut, state)
    if result.loss.has_newer_format:
        raise UnsupportedFormat(
            f"{path}: behind the damage stands what a newer jqd wrote: repair it with that one"
        )
    if log.store_id and result.loss.next_id > state.pages.next_id:
        payload = encode_batch(state.now, [IdsSkipped(result.loss.next_id)])
        skip = Skip(log.store_id, base, Record(base.lsn + 1, 1, payload))
        result.steps = list(_with(skip, result.steps))
        state, _ = _prove(fs, path, result.steps)
        assert state.pages.next_id == result.loss.next_id, "the plan is wrong"
    return result


def _cut_of(found: Findings) -> tuple[int, int] | None:
    """Return segment and offset of what goes first."""
    if found.poison is not None:
        return found.poison.segment_no, found.poison.offset
    if found.log.stop is not None:
        return found.log.stop.segment_no, found.log.stop.offset
    return None


def _steps(fs: FileSystem, log: Log, cut: tuple[int, int] | None) -> Iterator[Step]:
    last_no = max(log.segments, default=0)
    removed: list[int] = []
    shortened: Cut | None = None
    if cut is not None:
        segment_no, offset = cut
        removed = [number for number in sorted(log.segments) if number >= segment_no]
        last_no = segment_no - 1
        if offset > 0:
            removed.remove(segment_no)
            last_no = segment_no
            shortened = Cut(segment_name(segment_no), offset)
    if log.store != "missing":
        yield Keep(STORE_NAME, 0)
    if shortened is not None:
        yield Keep(shortened.name, shortened.size)
    yield from (Keep(segment_name(number), 0) for number in removed)
    # With nothing left to begin with, a damaged snapshot would vouch for what is gone.
    surplus = log.damaged_snapshots if log.snapshot is None and last_no == 0 else []
    for name in surplus:
        yield Keep(name, 0)
        yield Remove(name)
    yield from (Remove(segment_name(number)) for number in reversed(removed))
    if shortened is not None:
        yield shortened
    if log.store_id and log.base.lsn and last_no < log.base.segment_no:
        yield Begin(log.store_id, log.base)
        last_no = log.base.segment_no
    if log.store_id:
        old = log.store if isinstance(log.store, StoreFile) and log.store.store_id == log.store_id else None
        public_id = old.public_id if old is not None else fs.random_bytes(PUBLIC_ID_BYTES)
        yield WriteStore(StoreFile(log.store_id, public_id, last_no))
    elif log.store != "missing":
        yield Remove(STORE_NAME)  # no frame says whose it is: the daemon begins anew


def _with(skip: Skip, steps: Sequence[Step]) -> Iterator[Step]:
    """Yield the steps with one more, before anything goes that says which ids were given out.

    Its segment takes the place of one that would be removed, or of one of which nothing but the head would stay. What is
    damaged is still there then, so recovery refuses the log until the last step, and a repetition reads the fact.
    """
    yield from (step for step in steps if isinstance(step, Keep))
    yield skip
    for step in steps:
        if isinstance(step, WriteStore):
            yield WriteStore(step.store._replace(segment_no=skip.base.segment_no))
    yield from (step for step in steps if isinstance(step, Remove | Cut) and step.name != skip.name)


def _prove(fs: FileSystem, path: str, steps: Sequence[Step]) -> tuple[State, Base]:
    """Return the state that the repaired log gives, and where it ends; AssertionError: the plan is wrong."""
    overlay = Overlay(fs)
    changes = [step for step in steps if not isinstance(step, Keep)]
    for _ in _carry_out(overlay, Directory(overlay, path), changes):
        raise AssertionError("no copy was asked for")
    engine = Engine(State(), Identity(server="", store_id=""))
    store = WalStore(path, fs=overlay)
    for part in store.load_snapshot():
        engine.restore(part)
    for record in store.load():
        engine.replay(record.first_lsn, record.count, record.payload)
    return engine.state, store.cut()


def _carry_out(fs: FileSystem, directory: Directory, steps: Sequence[Step]) -> Iterator[str]:
    """Do the steps, each durable before the next one begins; yield the paths of copies."""
    for step in steps:
        match step:
            case Keep(name, offset):
                data, _ = read_what_can_be_read(fs, directory.path_of(name))
                yield _keep(fs, directory, name, offset, data[offset:])
            case Remove(name):
                fs.unlink(directory.path_of(name))
                fs.sync_directory(directory.path)
            case Cut(name, size):
                data, _ = read_what_can_be_read(fs, directory.path_of(name))
                directory.replace(name, data[:size])
            case Begin(store_id, base):
                handle = directory.create(step.name)
                SegmentWriter(fs, handle, store_id, base.segment_no, base.chain).sync()
                fs.close(handle)
                directory.publish(step.name)
            case Skip(store_id, base, record):
                handle = directory.create(step.name)
                writer = SegmentWriter(fs, handle, store_id, base.segment_no, base.chain)
                writer.append([record])
                writer.sync()
                fs.close(handle)
                directory.publish(step.name)
            case WriteStore(store):
                directory.write_store_file(store)


def _keep(fs: FileSystem, directory: Directory, name: str, offset: int, data: bytes) -> str:
    fs.make_directory(directory.path_of(QUARANTINE_NAME))
    fs.sync_directory(directory.path)
    there = set(fs.list_directory(directory.path_of(QUARANTINE_NAME)))
    stem = f"{name.removesuffix('.wal')}-{offset}"
    number = 1
    while (copy := f"{stem}.cut" if number == 1 else f"{stem}.{number}.cut") in there:
        if directory.read(f"{QUARANTINE_NAME}/{copy}") == data:
            break
        number += 1
    else:
        directory.replace(f"{QUARANTINE_NAME}/{copy}", data)
    return directory.path_of(f"{QUARANTINE_NAME}/{copy}")

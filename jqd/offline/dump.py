"""The facts of a log, one by one, as they stand: for `jqctl wal dump`.

Knows:         which facts somebody asks for.
Must not know: State; how a fact is shown.

Nothing is applied, so it takes no more memory than a segment; to follow one queue it keeps the ids of its jobs, as
ranges (16 bytes for each run of consecutive ids).
"""

from array import array
from bisect import bisect_right
from collections.abc import Collection, Iterator
from typing import NamedTuple

import msgspec

from jqd.core.changes import Change, JobsRestored, JobsSubmitted, ReadyJobsRestored, decode_batch, decode_part
from jqd.errors import Corruption
from jqd.offline.facts import jobs_of
from jqd.offline.walk import Log


class Fact(NamedTuple):
    """A change and where it stands: `offset` is that of its record's frame.

    One of the snapshot that the log begins with has the snapshot's LSN, and neither a place nor a reading of the clocks.
    """

    lsn: int
    segment: int | None
    offset: int | None
    engine_ms: int | None
    wall_ms: int | None
    kind: str
    change: Change


class Wanted(NamedTuple):
    """Which facts are asked for. A fact that names no job belongs to no job and no queue."""

    from_lsn: int = 1
    to_lsn: int | None = None
    job_id: int | None = None
    queue: str | None = None
    kinds: Collection[str] = ()


def facts(log: Log, wanted: Wanted) -> Iterator[Fact]:
    """Yield the facts of the good part of a log that are wanted, in order.

    Raises: Corruption: a record is whole, and no fact that this version knows.
    """
    ids = _Ids()
    for part in log.parts():
        for image in decode_part(part).images:
            if wanted.queue is None or ids.follow(image, wanted.queue):
                kind = type(image).__name__
                if _is_wanted(wanted, log.base.lsn, kind, image):
                    yield Fact(log.base.lsn, None, None, None, None, kind, image)
    for segment_no, offset, record in log.entries():
        if wanted.to_lsn is not None and record.first_lsn > wanted.to_lsn:
            return
        if record.last_lsn < wanted.from_lsn and wanted.queue is None:
            continue
        try:
            batch = decode_batch(record.payload)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            file = log.directory.path_of(log.segments[segment_no].name)
            message = f"{file}: byte {offset}: LSN {record.first_lsn}: not a record of this version: {error}"
            raise Corruption(message, file=file, offset=offset, lsn=record.first_lsn) from error
        for lsn, change in enumerate(batch.changes, record.first_lsn):
            if wanted.queue is not None and not ids.follow(change, wanted.queue):
                continue
            kind = type(change).__name__
            if _is_wanted(wanted, lsn, kind, change):
                yield Fact(lsn, segment_no, offset, batch.engine_ms, batch.wall_ms, kind, change)


def _is_wanted(wanted: Wanted, lsn: int, kind: str, change: Change) -> bool:
    if lsn < wanted.from_lsn or (wanted.to_lsn is not None and lsn > wanted.to_lsn):
        return False
    if wanted.kinds and kind not in wanted.kinds:
        return False
    return wanted.job_id is None or _names(change, wanted.job_id)


def _names(change: Change, job_id: int) -> bool:
    return any(first <= job_id < first + count for first, count, _ in jobs_of(change))


class _Ids:
    """The ids of a queue's jobs, as rising ranges."""

    def __init__(self) -> None:
        self._firsts = array("Q")
        self._ends = array("Q")

    def follow(self, change: Change, queue: str) -> bool:
        """Tell whether a fact is about jobs of the queue; new ones are noted."""
        if isinstance(change, JobsSubmitted | ReadyJobsRestored | JobsRestored):
            if change.options.queue == queue:
                for first, count, _ in jobs_of(change):
                    self._add(first, first + count)
            return change.options.queue == queue
        return any(self._overlaps(first, first + count) for first, count, _ in jobs_of(change))

    def _add(self, first: int, end: int) -> None:
        if self._ends and self._ends[-1] == first:
            self._ends[-1] = end
        else:
            self._firsts.append(first)
            self._ends.append(end)

    def _overlaps(self, first: int, end: int) -> bool:
        index = bisect_right(self._ends, first)
        return index < len(self._ends) and self._firsts[index] < end

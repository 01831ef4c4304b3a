"""What a log loses when it is cut at one place: which LSNs, which jobs, and what cannot be told.

Knows:         how to find the frames that are left behind a damaged place, what they say about jobs.
Must not know: why the log is cut there, how it is cut.

Behind the cut nothing can be applied, since what came between is not known. But it can be read: frames are found
by the store's secret id, each with its own checksum. Ids of jobs are dense, so each id up to the highest that is
named was given to a job, whether or not the fact that made it is left.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

import msgspec

from jqd.core.changes import Change, IdsSkipped, JobsSubmitted, decode_batch
from jqd.core.model import JOB_ID_MAX, JOBS_PER_REQUEST_MAX
from jqd.core.state import State
from jqd.offline.facts import jobs_of
from jqd.offline.walk import Log
from jqd.storage.base import Record
from jqd.storage.record import FrameType, decode_payload, frame_bytes
from jqd.storage.segment import headers_behind
from jqd.storage.store_file import StoreFile

GONE = "gone"
# Room for the jobs of an end that nobody can see, beside what can be read.
_UNSEEN_IDS = 1 << 20


class JobRun(NamedTuple):
    """Consecutive jobs with one fate.

    queue:   None: the fact that says it cannot be read.
    was:     the state behind the last fact that names them; None: no such fact can be read.
    becomes: the state in the log that is cut; "gone": it does not know them.
    """

    first_id: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs
    queue: str | None
    was: str | None
    becomes: str


@dataclass
class Loss:
    """See the file's card.

    Attributes:
        first_lsn: the first that goes.
        last_lsn: the highest that anything behind the cut speaks of; None: nothing does, so maybe none goes.
        may_be_more: the end of the log cannot be seen, so there may have been later ones.
        unreadable: LSN ranges, first and last, of which nothing can be read. What they did to jobs is not in `jobs`.
        lost_bytes: behind the cut.
        has_newer_format: something behind the cut was written by a newer jqd.
        next_id: below it stand all ids that anything behind the cut can have given out. An id must not mean two jobs.
    """

    first_lsn: int
    last_lsn: int | None = None
    may_be_more: bool = False
    unreadable: list[tuple[int, int]] = field(default_factory=list)
    jobs: list[JobRun] = field(default_factory=list)
    lost_bytes: int = 0
    has_newer_format: bool = False
    next_id: int = 0


def measure(log: Log, cut: tuple[int, int] | None, state: State) -> Loss:
    """Return what is lost if a log is cut at (segment, offset).

    Args:
        cut: None: all that is there stays.
        state: what the log that is cut gives.
    """
    loss = Loss(state.lsn + 1)
    remains = _Remains(log, loss)
    records = list(remains.read(cut)) if cut is not None else []
    loss.may_be_more = not (remains.ends_well and _is_end_vouched_for(log))
    understood = []
    story = _Story(state)
    for record in sorted(records):
        try:
            changes = decode_batch(record.payload).changes
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        understood.append(record)
        story.add(changes)
    if loss.last_lsn is not None:
        loss.unreadable = list(_gaps(loss.first_lsn, loss.last_lsn, understood))
    loss.jobs = list(story.runs())
    unread = sum(last - first + 1 for first, last in loss.unreadable)
    unseen = _UNSEEN_IDS if loss.may_be_more else 0
    loss.next_id = min(story.next_id + unread * JOBS_PER_REQUEST_MAX + unseen, JOB_ID_MAX)
    return loss


def _is_end_vouched_for(log: Log) -> bool:
    """Tell whether the file `store` bears out that the last segment is here, and whole if the stop was clean."""
    store = log.store
    last_no = max(log.segments, default=0)
    if not isinstance(store, StoreFile) or store.segment_no > last_no:
        return False
    if store.segment_no < last_no or not store.clean_bytes:
        return True
    return log.segments[last_no].size_bytes == store.clean_bytes


class _Remains:
    """Finds the frames behind a cut, and notes in `loss` what they prove."""

    def __init__(self, log: Log, loss: Loss) -> None:
        self._log = log
        self._loss = loss
        self.ends_well = True  # the last thing in the last segment is a good frame

    def read(self, cut: tuple[int, int]) -> Iterator[Record]:
        """Yield the records that are whole. One that stands in two files comes twice."""
        for number in sorted(self._log.segments):
            if number >= cut[0]:
                for record in self._read_segment(number, cut[1] if number == cut[0] else 0):
                    if record.first_lsn >= self._loss.first_lsn:
                        yield record

    def _read_segment(self, number: int, start: int) -> Iterator[Record]:
        data = self._log.read(number)
        self._loss.lost_bytes += len(data) - start
        good_to = start
        if self._log.store_id:
            for offset, header in headers_behind(data, self._log.store_id, start - 1):
                if not header.is_supported:
                    self._loss.has_newer_format = True
                    continue
                self._note(header.lsn + header.change_count - 1)
                body = decode_payload(data, offset, header)
                if body is not None and header.segment_no == number:  # else another file stands in its place
                    good_to = offset + frame_bytes(header)
                if body is not None and header.type == FrameType.BATCH:
                    yield Record(header.lsn, header.change_count, body[0])
        self.ends_well = good_to == len(data)

    def _note(self, lsn: int) -> None:
        if lsn >= self._loss.first_lsn:
            self._loss.last_lsn = max(lsn, self._loss.last_lsn or 0)


def _gaps(first_lsn: int, last_lsn: int, records: Iterable[Record]) -> Iterator[tuple[int, int]]:
    next_lsn = first_lsn
    for record in records:
        if record.first_lsn > next_lsn:
            yield next_lsn, record.first_lsn - 1
        next_lsn = max(next_lsn, record.last_lsn + 1)
    if next_lsn <= last_lsn:
        yield next_lsn, last_lsn


class _Story:
    """What is known of the jobs that facts behind a cut name."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._was: dict[int, str] = {}
        self._queues: dict[int, str] = {}  # of jobs that the state does not know
        self.next_id = state.pages.next_id  # above all ids that a fact has named

    def add(self, changes: Iterable[Change]) -> None:
        """Take in the facts of one record; the order of records counts."""
        for change in changes:
            if isinstance(change, IdsSkipped):
                self.next_id = max(self.next_id, change.next_id)
            for first, count, was in jobs_of(change):
                self.next_id = max(self.next_id, first + count)
                self._was.update(dict.fromkeys(range(first, first + count), was))
                if isinstance(change, JobsSubmitted):
                    self._queues.update(dict.fromkeys(range(first, first + count), change.options.queue))

    def runs(self) -> Iterator[JobRun]:
        """Yield every job that goes or goes back, in order of ids, alike neighbours together."""
        back = sorted(job_id for job_id in self._was if job_id < self._state.pages.next_id)
        fates = [fate for job_id in back if (fate := self._back(job_id)) is not None]
        fates += [self._gone(job_id) for job_id in range(self._state.pages.next_id, self.next_id)]
        numbered = enumerate(fates)
        for (_, queue, was, becomes), group in groupby(
            numbered, lambda each: (each[1].first_id - each[0], *each[1][2:])
        ):
            alike = [fate for _, fate in group]
            yield JobRun(alike[0].first_id, len(alike), queue, was, becomes)

    def _back(self, job_id: int) -> JobRun | None:
        job = self._state.job(job_id)
        if job is None:
            return None
        return JobRun(job_id, 1, job.options.queue, self._was[job_id], job.state.wire_name)

    def _gone(self, job_id: int) -> JobRun:
        return JobRun(job_id, 1, self._queues.get(job_id), self._was.get(job_id), GONE)

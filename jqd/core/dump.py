"""The state at one LSN as a run of changes, made in slices while life goes on.

Knows:         which facts rebuild a state, how far the walk has come, what has to be kept of a job before it
               changes.
Must not know: files, records, when a snapshot is wanted.

    dump = engine.begin_dump()          between two turns: the state as it is now, at dump.lsn
    while (facts := dump.take_slice()): any number of turns; each call looks at a bounded number of jobs
    loading                             apply all slices in order to an empty State: the same digest

The walk goes over the pages in order of their ids. A job that is about to change while the walk has not
reached it yet is kept as it was (`keep`, called by State before it changes anything), so that the dump is
exact at its LSN without a copy of the memory: it costs what is touched meanwhile, not what there is. Kept
is one image a job and not the page around it: a request that acks jobs on a hundred pages would otherwise
write these hundred pages within one turn.

A job that is ready and was never handed out is its options, its payload and a date: neighbours that share
options and date are one fact. Every other one is an image of its own. What follows from the jobs is not
dumped: the orders of the queues, the timers, the counts, the deadlines of grants.
"""

from typing import Final

from msgspec.structs import replace

from jqd.core.changes import (
    Image,
    JobImage,
    JobsRestored,
    KeysRestored,
    LeaseImage,
    QueuesRestored,
    ReadyJobsRestored,
    SessionRestored,
    StateRestored,
)
from jqd.core.keys import SHARDS, Key, shard_of
from jqd.core.model import Job, JobState, Lease
from jqd.core.pages import PAGE_JOBS, PAGE_SHIFT
from jqd.core.state import Session, State

# What one slice takes at most: ids looked at, and bytes of what has no fixed size. About half a millisecond.
SLICE_JOBS: Final = 1_024
SLICE_BYTES: Final = 1 << 20
SLICE_SESSIONS: Final = 64

# What a job and an answer cost beside their bytes. An estimate, for SLICE_BYTES.
_IMAGE_BYTES: Final = 64
_ANSWER_BYTES: Final = 12


class Dump:
    """See the file's card. It is the Keeper of the state.

    Args:
        state: between two turns, all of its changes handed over.
    """

    def __init__(self, state: State) -> None:
        assert state.keeper is None, "one dump at a time"
        self.lsn = state.lsn
        self.job_count = 0  # taken so far
        self._state = state
        self._end = StateRestored(state.lsn, state.now, state.epoch, state.grant, state.pages.next_id)
        # That exist now, the lowest last; gone when they were walked over.
        self._pages = state.pages.numbers()
        self._position = 0  # ids below are taken
        self._limit = state.pages.next_id  # ids from here on came later
        self._kept: dict[int, Job] = {}  # by id: as they were, of those not taken yet that have changed since
        self._sessions = dict.fromkeys(reversed(state.sessions))  # not taken yet, the oldest last
        self._kept_sessions: dict[bytes, SessionRestored] = {}
        self._shards = list(range(SHARDS))  # of keys, not taken yet
        # By shard and name: keys as they were, None where there was none, of what has changed since.
        self._kept_keys: dict[int, dict[str, Key | None]] = {}
        # As they were: frozen, and at most 10,000.
        self._queues = {name: queue.settings for name, queue in state.set_queues.items()}
        state.keeper = self
        self.work = self.work_left  # of the whole walk

    @property
    def work_left(self) -> int:
        """What the walk has before it: ids to look at, and what sessions cost beside those. 0: nearly nothing."""
        pages = self._pages
        taken = max(0, self._position - (pages[-1] << PAGE_SHIFT)) if pages else 0
        return len(pages) * PAGE_JOBS - taken + len(self._sessions) * (SLICE_JOBS // SLICE_SESSIONS)

    # --- before a change ----------------------------------------------------------------------

    def keep(self, jobs: list[Job]) -> None:
        """Remember jobs as they are: they are about to change or to go."""
        for job in jobs:
            job_id = job.id
            if self._position <= job_id < self._limit and job_id not in self._kept:
                outcome = None if job.outcome is None else replace(job.outcome)
                self._kept[job_id] = replace(job, outcome=outcome)

    def keep_session(self, session: bytes, record: Session) -> None:
        """Remember a session as it is."""
        if session in self._sessions and session not in self._kept_sessions:
            self._kept_sessions[session] = _session(session, record)

    def keep_key(self, name: str, key: Key | None) -> None:
        """Remember a key as it is, None: it is not there."""
        number = shard_of(name)
        if number < len(self._shards):  # they are taken from the highest down
            self._kept_keys.setdefault(number, {}).setdefault(name, key)

    # --- the walk -----------------------------------------------------------------------------

    def take_slice(self) -> list[Image]:
        """Return the next facts, in the order in which they are to be applied; empty when all were taken."""
        images: list[Image] = []
        while self._pages and not images:
            images = self._take_jobs()
        if not images and self._sessions:
            images = self._take_sessions()
        while self._shards and not images:
            images = self._take_keys()
        if not images and self._queues:
            images, self._queues = [QueuesRestored(self._queues)], {}
        if not images and self._state.keeper is self:
            images = [self._end]
            self.close()
        return images

    def close(self) -> None:
        """Stop keeping: all was taken, or nobody wants the rest."""
        if self._state.keeper is self:
            self._state.keeper = None
        self._kept.clear()
        self._kept_sessions.clear()
        self._kept_keys.clear()

    def _take_jobs(self) -> list[Image]:
        """Take the next SLICE_JOBS ids of the lowest page, or fewer if their payloads are large."""
        number = self._pages[-1]
        first = max(self._position, number << PAGE_SHIFT)
        page_end = min((number + 1) << PAGE_SHIFT, self._limit)
        end = min(first + SLICE_JOBS, page_end)
        jobs = self._state.pages.jobs_between(first, end)
        if self._kept:
            jobs = self._as_they_were(jobs, first, end)
        images: list[Image] = []
        leases: dict[int, int] = {}  # of the newest fact: id() of a lease -> its index there
        left_bytes = SLICE_BYTES
        for job in jobs:
            if left_bytes <= 0:
                end = job.id
                break
            left_bytes -= _add(images, job, leases)
            self.job_count += 1
            self._kept.pop(job.id, None)
        self._position = end
        if end >= page_end:
            self._pages.pop()
        return images

    def _as_they_were(self, jobs: list[Job], first: int, end: int) -> list[Job]:
        by_id = {job.id: job for job in jobs}
        by_id.update((job_id, self._kept[job_id]) for job_id in range(first, end) if job_id in self._kept)
        return [by_id[job_id] for job_id in sorted(by_id)]

    def _take_keys(self) -> list[Image]:
        """Take the next shard of the keys, as it was."""
        number = self._shards.pop()
        keys = dict(self._state.keys.shard(number))
        for name, key in self._kept_keys.pop(number, {}).items():
            if key is None:
                keys.pop(name, None)
            else:
                keys[name] = key
        return [KeysRestored(keys)] if keys else []

    def _take_sessions(self) -> list[Image]:
        images: list[Image] = []
        left_bytes = SLICE_BYTES
        while self._sessions and left_bytes > 0 and len(images) < SLICE_SESSIONS:
            session, _ = self._sessions.popitem()
            image = self._kept_sessions.pop(session, None) or _session(session, self._state.sessions[session])
            images.append(image)
            left_bytes -= sum(
                _ANSWER_BYTES + (len(answer) if isinstance(answer, bytes) else 0)
                for _, answer in image.answers
            )
        return images


def _session(session: bytes, record: Session) -> SessionRestored:
    return SessionRestored(
        session, record.principal, record.floor, [(each, record.answers[each]) for each in record.order]
    )


def _add(images: list[Image], job: Job, leases: dict[int, int]) -> int:
    """Add a job to the newest fact, or to a new one if it does not go on there. Returns its bytes."""
    newest = images[-1] if images else None
    payload = job.payload
    if (
        job.state is JobState.READY
        and job.attempt == 0
        and job.outcome is None
        and job.changed == job.created
    ):
        assert payload is not None
        if (
            isinstance(newest, ReadyJobsRestored)
            and newest.options is job.options
            and newest.created == job.created
            and newest.first_id + len(newest.payloads) == job.id
        ):
            newest.payloads.append(payload)
        else:
            images.append(ReadyJobsRestored(job.id, job.options, [payload], job.created))
        return len(payload) + _IMAGE_BYTES
    if not isinstance(newest, JobsRestored) or newest.options is not job.options:
        newest = JobsRestored(job.options, [], [])
        images.append(newest)
        leases.clear()
    newest.jobs.append(
        JobImage(
            job.id,
            job.state,
            job.created,
            job.changed,
            payload,
            job.attempt,
            job.errors,
            job.crashes,
            None if job.lease is None else _lease_index(newest.leases, job.lease, leases),
            job.due,
            job.outcome,
        )
    )
    size = _IMAGE_BYTES + len(payload or b"")
    if job.outcome is not None:
        size += len(job.outcome.result or b"") + len(job.outcome.error)
        size += sum(_IMAGE_BYTES + len(attempt.error) for attempt in job.outcome.attempts)
    return size


def _lease_index(images: list[LeaseImage], lease: Lease, known: dict[int, int]) -> int:
    """Return where a lease stands in a fact's list, to which it is added when it is new."""
    index = known.get(id(lease))
    if index is None:
        index = known[id(lease)] = len(images)
        images.append(
            LeaseImage(
                lease.token, lease.deadline_ms, lease.lease_ms, lease.worker, lease.session, lease.restarted
            )
        )
    return index

"""Everything that is true at one LSN: jobs, queues, leases, timers, sessions.

Knows:         the containers, the indexes over them, and how to keep these in step.
Must not know: why anything happens (deciding.py says who decides), records, sockets, clocks.

Who may touch it: decisions read; only the apply() of a change (changes.py) calls the methods below
"writing". No code outside this file touches a container.

    pages      jobs by id (pages.py), and the next id
    queues     name -> Queue
    tenants    name -> Tenant, as long as it has jobs or keys
    leases     token -> the grant's leases, by id(): one, or up to one a job after parts of it were extended
    timers     lease_timers (token), delay_timers and result_timers (job id) and retention by engine clock;
               date_timers (job id) by wall clock, and expiry_timers of those that wait and were never handed out
    sessions   session -> the answers that a retry would get again
    keys       dedupe and idempotency keys -> the jobs that they stand for (keys.py)
    memory     what all of it takes, see memory.py: counted with each change, and no fact
    marked     jobs that were marked to end since the engine last looked; likewise
    ended      of those that somebody waits for (watched) the ones that ended or went since the engine last looked; and
    woken      queues in which a job became ready since the engine last looked; a hint, not a fact

Jobs are Structs without GC header and point to nothing that points back: the collector is off.
"""

import hashlib
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, islice, repeat
from operator import attrgetter
from typing import Final, Protocol, TypeVar

import msgspec
from msgspec import Struct, field

from jqd.core import memory, model
from jqd.core.keys import Key, KeyTable, dedupe_name, tenant_of
from jqd.core.memory import JOB_BYTES, LEASE_BYTES, RANGE_BYTES, Memory, Tenant
from jqd.core.model import (
    Attempt,
    Cause,
    DeadReason,
    Due,
    Encoding,
    Job,
    JobOptions,
    JobState,
    Lease,
    Now,
    Outcome,
    Progress,
    QueueSettings,
)
from jqd.core.ordered import LINE_BYTES, ReadyLane, TimerHeap
from jqd.core.pages import Pages
from jqd.errors import JobNotFound, QueueNotFound

# Fields of submits whose options are remembered. When it is full remembering starts anew.
_KNOWN_FIELDS_MAX: Final = 4_096

# What a group of jobs costs besides them, in jobs: alike and one behind the other they take 0.5 to 1 us each, and one that
# stands alone, or is of another tenant than the one before, 5 to 10.
GROUP_WORK: Final = 8

# Rebuilding a shorter list of results is not worth its bookkeeping.
_RESULT_HOLES_MIN: Final = 512

# A duration of less than 2^63 ms by its bit length, 0 to 63.
_BUCKETS: Final = 64

DELAYED, READY, LEASED, DONE, DEAD, CANCELLED, EXPIRED = JobState
FINISHED: Final = frozenset({DONE, CANCELLED, EXPIRED})
ENDED: Final = FINISHED | {DEAD}
WAITING: Final = (DELAYED, READY)
_options_of: Final = attrgetter("options")
_options_and_state_of: Final = attrgetter("options", "state")

Ranges = Sequence[tuple[int, int]]
Timed = TypeVar("Timed", int, str)


class Queue:
    """A named, ordered set of jobs.

    ready:    what a lease takes from. One lane; lanes per tenant and group will stand in its place.
    counts:   jobs by JobState.
    finished: deque of ids of done, cancelled and expired jobs, the oldest first.
    dead:     ids of dead jobs, the oldest first; from its middle jobs are requeued.
    settings: what an operator said, or UNSET_QUEUE.
    waits, runs: jobs by the bit length of the ms from ready to lease, and from lease to done: no facts.
    finished_due_ms, dead_due_ms: when the oldest one is to be forgotten; None: there is none.
    own_bytes: of memory, see memory.py, but for its priorities in use.
    """

    __slots__ = (
        *("counts", "dead", "dead_due_ms", "finished", "finished_due_ms"),
        *("name", "own_bytes", "ready", "runs", "settings", "waits"),
    )

    def __init__(self, name: str, memory: Memory) -> None:
        self.name = name
        self.own_bytes = 0
        self.settings = model.UNSET_QUEUE
        self.waits = [0] * _BUCKETS
        self.runs = [0] * _BUCKETS
        self.ready = ReadyLane(memory)
        self.counts = [0] * len(JobState)
        self.finished: deque[int] = deque()
        self.dead: OrderedDict[int, None] = OrderedDict()
        self.finished_due_ms: int | None = None
        self.dead_due_ms: int | None = None

    @property
    def bytes(self) -> int:
        """What it takes in memory with its jobs, but for their leases and keys."""
        return self.own_bytes + LINE_BYTES * len(self.ready.lines)

    @property
    def length(self) -> int:
        """How many jobs of it are not at their end."""
        return self.counts[DELAYED] + self.counts[READY] + self.counts[LEASED]

    @property
    def retention_ms(self) -> int:
        own_ms = self.settings.retention_ms
        return model.FINISHED_RETENTION_MS if own_ms is None else own_ms

    @property
    def dead_retention_ms(self) -> int:
        own_ms = self.settings.dead_retention_ms
        return model.DEAD_RETENTION_MS if own_ms is None else own_ms

    def measure(self, durations: list[int], jobs: list[Job], now: Now) -> None:
        """Count how long jobs were in the state that they are about to leave."""
        if jobs[0].changed is jobs[-1].changed:  # they came together
            durations[(now.engine_ms - jobs[0].changed.engine_ms).bit_length()] += len(jobs)
            return
        for job in jobs:
            durations[(now.engine_ms - job.changed.engine_ms).bit_length()] += 1

    def excess(self, limit: int) -> list[int]:
        """Return up to `limit` ids that are over the queue's limits, the oldest first."""
        surplus = max(0, len(self.finished) - model.FINISHED_COUNT_MAX)
        ids = list(islice(self.finished, min(surplus, limit)))
        surplus = max(0, len(self.dead) - model.DEAD_COUNT_MAX)
        return ids + list(islice(self.dead, min(surplus, limit - len(ids))))


class Kind:
    """Options that are there once for all jobs that were given the same, as long as there are such jobs."""

    __slots__ = ("count", "options", "queue", "tenant")

    def __init__(self, options: JobOptions, queue: Queue, tenant: Tenant) -> None:
        self.options = options
        self.queue = queue
        self.tenant = tenant
        self.count = 0  # jobs


class Session(Struct, gc=False):
    """What is remembered of a client process: the answers to its newest state-changing requests.

    answers: request id -> the encoded body, or a lease's token; at most ANSWERS_PER_SESSION_MAX, and
             together at most ANSWERS_BYTES_PER_SESSION_MAX, but for the newest.
    answer_bytes: of the encoded bodies.
    order:   its keys, the oldest first (a dict is slow to give up its first key).
    floor:   highest request id whose answer was dropped; at or below it nothing can be told.
    """

    principal: str
    answers: dict[int, bytes | int] = {}
    order: deque[int] = field(default_factory=deque)
    answer_bytes: int = 0
    floor: int = 0

    @property
    def bytes(self) -> int:
        """What it takes in memory."""
        return memory.session_bytes(len(self.order), self.answer_bytes)

    def is_new(self, request_ids: Sequence[int]) -> bool:
        """Tell whether nothing is remembered of any of these requests."""
        return min(request_ids) > self.floor and self.answers.keys().isdisjoint(request_ids)


class Keeper(Protocol):
    """Who wants to see what is about to change, while it is still as it was (dump.py)."""

    def keep(self, jobs: list[Job]) -> None: ...

    def keep_session(self, session: bytes, record: Session) -> None: ...

    def keep_key(self, name: str, key: Key | None) -> None: ...


class State:
    """See the file's card."""

    def __init__(self) -> None:
        self.keeper: Keeper | None = None
        self.lsn = 0  # of the last change applied
        self.now = Now(0, 0)  # of the last change applied: the high water of the engine clock
        self.epoch = 0
        self.grant = 0  # last grant number of this epoch
        self.result_bytes = 0
        # Leases are judged by a clock that is so far behind now: Engine.forgive(), not a fact.
        self.lease_lag_ms = 0
        self.pages = Pages()
        # Jobs touched or looked at since the start, and what costs as much: a measure of effort, not a fact.
        self.work = 0
        self.queues: dict[str, Queue] = {}
        self.set_queues: dict[str, Queue] = {}  # those with settings
        self.bounded_queues: dict[str, Queue] = {}  # those with a length_max
        self.sessions: dict[bytes, Session] = {}
        self.leases: dict[int, dict[int, Lease]] = {}
        self._deadlines: dict[int, dict[int, int]] = {}  # token of a split grant -> deadline -> its leases
        self.lease_timers: TimerHeap[int] = TimerHeap()
        self.delay_timers: TimerHeap[int] = TimerHeap()
        self.date_timers: TimerHeap[int] = TimerHeap()
        self.expiry_timers: TimerHeap[int] = TimerHeap()
        self.result_timers: TimerHeap[int] = TimerHeap()
        self.finished_timers: TimerHeap[str] = TimerHeap()
        self.dead_timers: TimerHeap[str] = TimerHeap()
        self.keys = KeyTable()
        self.overfull: dict[str, None] = {}  # queues with more finished or dead jobs than they may keep
        self.woken: dict[str, None] = {}
        self.marked: dict[int, None] = {}
        self.marked_count = 0  # jobs that are held and are to end
        self.watched: Mapping[int, object] = {}  # job ids; waiting.py's, not facts
        self.ended: dict[int, None] = {}
        self.progress_count = 0  # jobs that have progress to show, in any state
        # Ids of jobs that got a result, the oldest first; some may have lost it since, never the first one.
        self._results: deque[int] = deque()
        self.result_count = 0  # jobs that have one
        self.memory = Memory()
        self.tenants: dict[str, Tenant] = {}
        self._kinds: dict[JobOptions, Kind] = {}
        self._last_kind: Kind | None = None  # that jobs came with
        # What fields of a submit came out as which options: spares the hot path checking and hashing.
        self.options_by_fields: dict[tuple[object, ...], JobOptions] = {}

    # --- reading ------------------------------------------------------------------------------

    def job(self, job_id: int) -> Job | None:
        """Return a job, or None if there is none of this id."""
        return self.pages.get(job_id)

    def known_job(self, job_id: int) -> Job:
        """Return a job. Raises: JobNotFound."""
        job = self.job(job_id)
        if job is None:
            raise JobNotFound(f"job_id = {job_id}: no such job, or it was purged or forgotten")
        return job

    def known_queue(self, name: str) -> Queue:
        """Return a queue. Raises: QueueNotFound."""
        queue = self.queues.get(name)
        if queue is None:
            raise QueueNotFound(f"queue = {model.shorten(name)}: it has no jobs and no settings")
        return queue

    def ready_ids(self, queue_name: str, count: int) -> list[int]:
        """Return up to `count` ids in the order in which the queue hands them out."""
        queue = self.queues.get(queue_name)
        if queue is None or queue.settings.paused:
            return []
        return queue.ready.peek(count)

    def oldest_ready_ms(self, queue: Queue) -> int | None:
        """Return since when the job is ready that has been so longest of those that are next at their priority."""
        self.work += len(queue.ready.lines)
        heads = [self.known_job(line.peek(1)[0]) for line in queue.ready.lines.values()]
        return min((job.changed.engine_ms for job in heads), default=None)

    def key(self, name: str, now: Now) -> Key | None:
        """Return what a key stands for, or None if it is not known or its time is over."""
        key = self.keys.get(name)
        return None if key is None or (key.due_ms is not None and key.due_ms <= now.engine_ms) else key

    def comes_with(self, options: JobOptions) -> dict[object, int]:
        """Return what the first job with these options brings besides itself: bytes by what is not there yet."""
        came: dict[object, int] = {}
        if memory.are_shared(options) and options not in self._kinds:
            came[options] = memory.options_bytes(options)
        queue = self.queues.get(options.queue)
        if queue is None:
            came["queue", options.queue] = memory.queue_bytes(options.queue)
        if queue is None or options.priority not in queue.ready.lines:
            came["line", options.queue, options.priority] = LINE_BYTES
        if options.tenant not in self.tenants:
            came["tenant", options.tenant] = memory.tenant_bytes(options.tenant)
        return came

    def counts(self) -> list[int]:
        """Return jobs by JobState over all queues."""
        return [
            sum(column) for column in zip(*(queue.counts for queue in self.queues.values()), strict=True)
        ] or [0] * len(JobState)

    def oldest_results(self) -> Iterator[Job]:
        """Yield finished jobs that hold a result, the oldest first."""
        for job_id in self._results:
            if self._has_result(job_id):
                yield self.known_job(job_id)

    # --- writing: jobs come -------------------------------------------------------------------

    def share(self, options: JobOptions) -> JobOptions:
        """Return the equal object that jobs have already, or this one.

        Metadata is rarely equal, and not hashable; a key never is, and a date is that of one submit.
        """
        kind = self._kinds.get(options) if memory.are_shared(options) else None
        return options if kind is None else kind.options

    def remember_fields(self, fields: tuple[object, ...], options: JobOptions) -> None:
        """Note which options these fields of a submit mean."""
        if len(self.options_by_fields) >= _KNOWN_FIELDS_MAX:
            self.options_by_fields.clear()
        self.options_by_fields[fields] = options

    def add_jobs(
        self, first_id: int, options: JobOptions, payloads: list[bytes], due: Due | None, now: Now
    ) -> None:
        """Add new jobs with consecutive ids, ready at once or delayed until `due`."""
        assert first_id == self.pages.next_id, f"ids are dense: {first_id} after {self.pages.next_id - 1}"
        count = len(payloads)
        kind = self._last_kind
        if kind is None or options is not kind.options:
            kind = self._kind(options)
        if kind is not None:
            kind.count += count
            options, queue, tenant = kind.options, kind.queue, kind.tenant
        else:
            queue, tenant = self._made_queue(options.queue), self._made_tenant(options.tenant)
        size = JOB_BYTES + len(payloads[0]) if count == 1 else JOB_BYTES * count + sum(map(len, payloads))
        if kind is None:
            size += memory.options_bytes(options) * count
        queue.own_bytes += size
        tenant.bytes += size
        self.memory.bytes += size
        self.work += count
        if options.dedupe_key is not None:
            self._take_key(first_id, options, now)
        if options.expires_wall_ms is not None:
            for job_id in range(first_id, first_id + count):
                self.expiry_timers.push(options.expires_wall_ms, job_id)
        if count == 1 and due is None:  # a lone submit: what follows, without lists
            self.pages.add(Job(first_id, options, payloads[0], READY, now, now))
            queue.counts[READY] += 1
            queue.ready.append(options.priority, first_id)
            self.woken[queue.name] = None
            return
        ids = list(range(first_id, first_id + count))
        # Half the time of a comprehension: the loop is in C.
        jobs = list(map(Job, ids, repeat(options), payloads, repeat(READY), repeat(now), repeat(now)))
        self.pages.extend(jobs)
        if due is not None:
            self._delay(queue, jobs, due, now)
            return
        queue.counts[READY] += count
        queue.ready.extend(options.priority, ids)
        self.woken[queue.name] = None

    def _kind(self, options: JobOptions) -> Kind | None:
        """Return the kind of jobs that come with these options; None: they are a job's own."""
        if not memory.are_shared(options):
            return None
        kind = self._kinds.get(options)
        if kind is None:
            queue, tenant = self._made_queue(options.queue), self._made_tenant(options.tenant)
            kind = self._kinds[options] = Kind(options, queue, tenant)
            self.work += GROUP_WORK
            self._count_bytes(queue, tenant, memory.options_bytes(options))
        self._last_kind = kind
        return kind

    def _leave_kind(self, options: JobOptions, count: int) -> None:
        """Note that jobs have gone, or have other options now."""
        kind = self._kinds.get(options) if memory.are_shared(options) else None
        if kind is None:
            return
        kind.count -= count
        if not kind.count:
            del self._kinds[options]
            if self._last_kind is kind:
                self._last_kind = None
            self._count_bytes(kind.queue, kind.tenant, -memory.options_bytes(options))

    def _made_queue(self, name: str) -> Queue:
        queue = self.queues.get(name)
        if queue is None:
            queue = self.queues[name] = Queue(name, self.memory)
            queue.own_bytes = memory.queue_bytes(name)
            self.memory.bytes += queue.own_bytes
        return queue

    def _made_tenant(self, name: str) -> Tenant:
        tenant = self.tenants.get(name)
        if tenant is None:
            tenant = self.tenants[name] = Tenant(name)
            self.memory.bytes += memory.tenant_bytes(name)
        return tenant

    def _count_bytes(self, queue: Queue, tenant: Tenant, size: int) -> None:
        """Count what a queue and a tenant have more of, or less."""
        queue.own_bytes += size
        tenant.bytes += size
        self.memory.bytes += size

    def _drop_if_idle(self, tenant: Tenant) -> None:
        """Forget a tenant without jobs and keys."""
        if not tenant.bytes:
            del self.tenants[tenant.name]
            self.memory.bytes -= memory.tenant_bytes(tenant.name)

    def skip_ids(self, next_id: int) -> None:
        """Let the next job have this id, and none the ids between."""
        self.pages.skip_to(next_id)

    # --- writing: jobs move -------------------------------------------------------------------

    def lease_jobs(self, lease: Lease, now: Now) -> None:
        """Hand out ready jobs: one more attempt each, held by `lease` (its live_count is counted here)."""
        self.grant = lease.token & model.GRANT_MAX
        for options, jobs in self._groups(lease.ranges):
            queue = self.queues[options.queue]
            queue.measure(queue.waits, jobs, now)
            for job in jobs:
                assert job.state is READY, f"job {job.id} is {job.state.name}"
                job.state = LEASED
                job.attempt += 1
                job.lease = lease
                job.changed = now
            queue.ready.remove_run(options.priority, jobs[0].id, len(jobs))
            queue.counts[READY] -= len(jobs)
            queue.counts[LEASED] += len(jobs)
            if options.expires_wall_ms is not None:
                for job in jobs:
                    if job.attempt == 1:  # it waited for its first start
                        self.expiry_timers.discard(options.expires_wall_ms, job.id)
            if options.dedupe_key is not None and options.dedupe_until == "started":
                self._give_up_key(jobs)
            if self.progress_count:
                for job in jobs:
                    self._set_progress(job, None)
            lease.live_count += len(jobs)
        self._hold(lease)

    def extend_leases(self, token: int, ranges: Ranges, deadline_ms: int, lease_ms: int) -> None:
        """Move the deadline of some jobs of a grant. Those that stay behind keep their own lease."""
        jobs = [job for first, count in ranges for job in self._jobs(first, count)]
        self.work += len(jobs) + GROUP_WORK
        old = jobs[0].lease
        assert old is not None
        assert old.token == token, f"job {jobs[0].id} is held under {old.token}, not {token}"
        lease = msgspec.structs.replace(
            old,
            deadline_ms=deadline_ms,
            lease_ms=lease_ms,
            ranges=list(ranges),
            live_count=len(jobs),
            restarted=False,
        )
        self._end_leases(jobs)
        for job in jobs:
            job.lease = lease
        self._hold(lease)

    def report_progress(self, ranges: Ranges, progress: Progress) -> None:
        """Note how far held jobs have come, in the place of what was said before."""
        for _, jobs in self._groups(ranges):
            for job in jobs:
                assert job.state is LEASED, f"job {job.id} is {job.state.name}"
                self._set_progress(job, progress)

    def _set_progress(self, job: Job, progress: Progress | None) -> None:
        outcome, size = job.outcome, 0
        if outcome is None:
            if progress is None:
                return
            outcome = job.outcome = Outcome()
            size += memory.EMPTY_OUTCOME_BYTES
        if outcome.progress is not None:
            self.progress_count -= 1
            size -= memory.progress_bytes(outcome.progress)
        if progress is not None:
            self.progress_count += 1
            size += memory.progress_bytes(progress)
        outcome.progress = progress
        if size:
            self._count_bytes(self.queues[job.options.queue], self.tenants[job.options.tenant], size)

    def mark_cancel(self, ranges: Ranges) -> None:
        """Note that held jobs, not marked yet, are to end."""
        for _, jobs in self._groups(ranges):
            for job in jobs:
                assert job.state is LEASED, f"job {job.id} is {job.state.name}"
                if job.outcome is None:
                    job.outcome = Outcome()
                    queue, tenant = self.queues[job.options.queue], self.tenants[job.options.tenant]
                    self._count_bytes(queue, tenant, memory.EMPTY_OUTCOME_BYTES)
                assert not job.outcome.cancel_marked, f"job {job.id} is marked already"
                job.outcome.cancel_marked = True
                self.marked[job.id] = None
            self.marked_count += len(jobs)

    def finish(
        self,
        ranges: Ranges,
        state: JobState,
        now: Now,
        result: bytes | None = None,
        encoding: Encoding = "raw",
        cause: Cause = "none",
        error: str = "",
    ) -> None:
        """Move jobs to a final state: payload dropped, result kept until retention forgets the job.

        cause: why the attempt ended, for the history of a job that was held; none: nothing is recorded.
        """
        for options, jobs in self._groups(ranges, mixed=state is not DONE):
            queue = self.queues[options.queue]
            if cause != "none":
                self._record_attempts(queue, jobs, cause, error, now, model.HISTORY_COUNT_MAX)
            self._leave(queue, jobs, state)
            if state is DONE:
                queue.measure(queue.runs, jobs, now)
            if options.dedupe_key is not None:
                self._give_up_key(jobs)
            if options.expires_wall_ms is not None:
                self._stop_expiry(jobs)
            freed = 0
            kept = JOB_BYTES * len(jobs)
            for job in jobs:
                freed += len(job.payload)  # type: ignore[arg-type]  # it was not at its end
                if job.outcome is not None:
                    kept += memory.outcome_bytes(job.outcome)
                job.state = state
                job.payload = None
                job.changed = now
            if not memory.are_shared(options):
                kept += memory.options_bytes(options) * len(jobs)
            self.memory.ended_bytes += kept
            queue.own_bytes -= freed
            self.tenants[options.tenant].bytes -= freed
            self.memory.bytes -= freed
            if result is not None:
                self._keep_result(queue, jobs, result, encoding)
            if self.watched:
                self._note_ended(jobs)
            queue.counts[state] += len(jobs)
            if state is EXPIRED:
                self.woken[queue.name] = None  # it may have stood before others
            queue.finished.extend([job.id for job in jobs])
            if queue.finished_due_ms is None:
                self._rearm_finished(queue)
            else:  # the oldest one is still the oldest
                self._note_excess(queue)

    def _keep_result(self, queue: Queue, jobs: list[Job], result: bytes, encoding: Encoding) -> None:
        """Give finished jobs their result."""
        size = memory.result_bytes(jobs[0].options, result) * len(jobs)
        for job in jobs:
            if job.outcome is None:
                job.outcome = Outcome()
                size += memory.EMPTY_OUTCOME_BYTES
            job.outcome.result, job.outcome.result_encoding = result, encoding
            self._results.append(job.id)
            if job.options.result_ttl_ms is not None:
                self._time_result(job)
        self.result_bytes += len(result) * len(jobs)
        self.result_count += len(jobs)
        self._count_bytes(queue, self.tenants[jobs[0].options.tenant], size)
        self.memory.ended_bytes += size

    def _time_result(self, job: Job) -> None:
        due_ms = job.result_due_ms
        assert due_ms is not None
        self.result_timers.push(due_ms, job.id)

    def forget_results(self, ranges: Ranges) -> None:
        """Take the results of done jobs, whose time is over. The jobs stay."""
        for first, count in ranges:
            self.work += count
            for job in self._jobs(first, count):
                options, outcome = job.options, job.outcome
                assert outcome is not None
                assert outcome.result is not None, f"job {job.id} has no result"
                size = memory.result_bytes(options, outcome.result)
                self._drop_result(job)
                outcome.result_dropped = True
                self._count_bytes(self.queues[options.queue], self.tenants[options.tenant], -size)
                self.memory.ended_bytes -= size
        self._tidy_results()

    def _drop_result(self, job: Job) -> None:
        outcome = job.outcome
        assert outcome is not None
        assert outcome.result is not None, f"job {job.id} has no result"
        self.result_bytes -= len(outcome.result)
        self.result_count -= 1
        outcome.result, outcome.result_encoding = None, "raw"
        if (due_ms := job.result_due_ms) is not None:
            self.result_timers.discard(due_ms, job.id)

    def _tidy_results(self) -> None:
        """Drop ids without a result at the head of their list, and all when they are the larger half."""
        while self._results and not self._has_result(self._results[0]):
            self._results.popleft()
        if len(self._results) > 2 * self.result_count + _RESULT_HOLES_MIN:
            self._results = deque(filter(self._has_result, self._results))

    def _has_result(self, job_id: int) -> bool:
        job = self.job(job_id)
        return job is not None and job.outcome is not None and job.outcome.result is not None

    def bury(self, ranges: Ranges, reason: DeadReason, cause: Cause, error: str, now: Now, kept: int) -> None:
        """Move leased jobs to dead; their payload stays for a requeue.

        kept: attempts that stay in the history, this one included; at least 1.
        """
        for options, jobs in self._groups(ranges):
            queue = self.queues[options.queue]
            self._record_attempts(queue, jobs, cause, error, now, kept)
            self._leave(queue, jobs, DEAD)
            if options.dedupe_key is not None:
                self._give_up_key(jobs)
            for job in jobs:
                job.state = DEAD
                job.changed = now
                assert job.outcome is not None  # it has the attempt that ended
                job.outcome.reason = reason
                queue.dead[job.id] = None
                self.memory.ended_bytes += memory.job_bytes(job)
            if self.watched:
                self._note_ended(jobs)
            queue.counts[DEAD] += len(jobs)
            self._rearm_dead(queue)

    def give_back(
        self, ranges: Ranges, due: Due | None, cause: Cause, error: str, now: Now, kept: int
    ) -> None:
        """Move leased jobs back to wait: ready at once, or delayed until `due`.

        cause "none" takes the attempt back (release); any other is recorded in the job's history, of which `kept` stay.
        """
        for options, jobs in self._groups(ranges):
            queue = self.queues[options.queue]
            if cause == "none":
                for job in jobs:
                    job.attempt -= 1
            else:
                self._record_attempts(queue, jobs, cause, error, now, kept)
            self._leave(queue, jobs, READY if due is None else DELAYED)
            self._wait(queue, jobs, due, now)
            if options.expires_wall_ms is not None:
                for job in jobs:
                    if job.attempt == 0:
                        self.expiry_timers.push(options.expires_wall_ms, job.id)

    def revive(self, ranges: Ranges, now: Now) -> None:
        """Move dead jobs to ready, with new budgets; their history stays."""
        for options, jobs in self._groups(ranges):
            queue = self.queues[options.queue]
            self._leave(queue, jobs, READY)
            for job in jobs:
                job.errors = job.crashes = 0
                assert job.outcome is not None
                job.outcome.reason = None
                self.memory.ended_bytes -= memory.job_bytes(job)
            if options.dedupe_key is not None and holds_while_alive(options):
                for job in jobs:
                    self._take_key(job.id, options, now)
            self._wait(queue, jobs, None, now)
            self._rearm_dead(queue)

    def update_job(self, job_id: int, options: JobOptions | None, payload: bytes | None) -> None:
        """Change what a waiting job is: its options, but for the queue, and its payload; None: as it was."""
        (job,) = self._jobs(job_id, 1)
        assert job.state in WAITING, f"job {job_id} is {job.state.name}"
        # The fact has all options, though its request may have named one: this is what they take in a record.
        self.work += 1 if options is None else 64 if options.metadata is None else 256
        queue, tenant = self.queues[job.options.queue], self.tenants[job.options.tenant]
        before = memory.job_bytes(job)
        if payload is not None:
            job.payload = payload
        old = job.options
        if options is not None:
            assert (options.queue, options.tenant) == (old.queue, old.tenant), (
                f"job {job_id} is in {old.queue}"
            )
            kind = self._kind(options)  # first: the old one may be the last with its options
            if kind is not None:
                kind.count += 1
            job.options = options if kind is None else kind.options
            self._leave_kind(old, 1)
        self._count_bytes(queue, tenant, memory.job_bytes(job) - before)
        if options is None:
            return
        if job.state is READY and options.priority != old.priority:
            queue.ready.remove_run(old.priority, job_id, 1)
            queue.ready.put_back(options.priority, job_id)
            self.woken[queue.name] = None

    def move_job(self, job_id: int, due: Due | None, now: Now) -> None:
        """Give a waiting job another time; None: it is ready at once."""
        (job,) = self._jobs(job_id, 1)
        if job.state is READY and due is None:
            return
        queue = self.queues[job.options.queue]
        stays = due is not None and job.state is DELAYED
        changed = job.changed if stays else now  # as it came into its state
        target = READY if due is None else DELAYED
        self._leave(queue, [job], target if target is not job.state else None)
        self._wait(queue, [job], due, now)
        job.changed = changed

    def promote(self, limit: int, now: Now) -> None:
        """Make the earliest `limit` delayed jobs that are due ready."""
        ids = self.delay_timers.pop_due(now.engine_ms, limit)
        ids += self.date_timers.pop_due(now.wall_ms, limit - len(ids))
        for job_id in ids:
            (job,) = self._jobs(job_id, 1)
            assert job.state is DELAYED, f"job {job_id} is {job.state.name}"
            queue = self.queues[job.options.queue]
            queue.counts[DELAYED] -= 1
            job.due = None
            self._count_bytes(queue, self.tenants[job.options.tenant], -memory.DELAYED_BYTES)
            self._wait(queue, [job], None, now)

    def forget(self, ranges: Ranges) -> None:
        """Remove jobs without a trace."""
        for options, jobs in self._groups(ranges, mixed=True):
            queue = self.queues[options.queue]
            self._leave(queue, jobs, None)
            if options.dedupe_key is not None:
                self._give_up_key(jobs)
            if options.expires_wall_ms is not None:
                self._stop_expiry(jobs)
            size = 0
            for job in jobs:
                size += memory.job_bytes(job)
                if job.outcome is not None:
                    self.progress_count -= job.outcome.progress is not None
                    if job.outcome.result is not None:
                        self._drop_result(job)
            tenant = self.tenants[options.tenant]
            self._count_bytes(queue, tenant, -size)
            if jobs[0].state in ENDED:
                self.memory.ended_bytes -= size
            self._leave_kind(options, len(jobs))
            self._drop_if_idle(tenant)
            if self.watched:
                self._note_ended(jobs)
            if jobs[0].state in FINISHED:
                self._rearm_finished(queue)
            elif jobs[0].state is DEAD:
                self._rearm_dead(queue)
            self._drop_if_empty(queue)
        for first, count in ranges:
            self.pages.remove(first, count)
        self._tidy_results()

    def _drop_if_empty(self, queue: Queue) -> None:
        """Forget a queue without jobs and settings: names are the clients' to make up."""
        if queue.settings is model.UNSET_QUEUE and not any(queue.counts):
            del self.queues[queue.name]
            self.memory.bytes -= queue.own_bytes
            assert queue.own_bytes == memory.queue_bytes(queue.name), (
                f"{queue.name}: {queue.own_bytes} bytes of nothing"
            )
            self.woken.pop(queue.name, None)

    # --- writing: queues ----------------------------------------------------------------------

    def set_queue(self, name: str, settings: QueueSettings) -> None:
        """Let this hold in a queue, which is made if there is none."""
        queue = self._made_queue(name)
        self.work += 64  # the fact has all settings, though its request may have named one
        self.options_by_fields.clear()  # what may be asked of a job can depend on them
        if queue.settings.paused and not settings.paused:
            self.woken[name] = None
        size = _settings_bytes(settings) - _settings_bytes(queue.settings)
        queue.own_bytes += size
        self.memory.bytes += size
        if settings == model.UNSET_QUEUE:
            queue.settings = model.UNSET_QUEUE
            self.set_queues.pop(name, None)
        else:
            queue.settings = settings
            self.set_queues[name] = queue
        if settings.length_max is None:
            self.bounded_queues.pop(name, None)
        else:
            self.bounded_queues[name] = queue
        self._rearm_finished(queue)
        self._rearm_dead(queue)
        self._drop_if_empty(queue)

    def measure_anew(self) -> None:
        """Begin to count waits and runs anew."""
        for queue in self.queues.values():
            queue.waits = [0] * _BUCKETS
            queue.runs = [0] * _BUCKETS

    # --- writing: from a snapshot ---------------------------------------------------------------

    def restore_ready(self, first_id: int, options: JobOptions, payloads: list[bytes], created: Now) -> None:
        """Put back jobs that are ready and were never handed out. All ids rise from call to call."""
        count = len(payloads)
        options, queue, tenant = self._restored(options, count)
        self._count_bytes(
            queue,
            tenant,
            memory.new_job_bytes(options, is_delayed=False) * count + sum(map(len, payloads)),
        )
        ids = list(range(first_id, first_id + count))
        self.pages.put(
            first_id,
            list(map(Job, ids, repeat(options), payloads, repeat(READY), repeat(created), repeat(created))),
        )
        queue.counts[READY] += count
        queue.ready.extend(options.priority, ids)
        if options.expires_wall_ms is not None:
            for job_id in ids:
                self.expiry_timers.push(options.expires_wall_ms, job_id)

    def restore_jobs(self, options: JobOptions, jobs: list[Job]) -> None:
        """Put back jobs with rising ids, in any state."""
        options, queue, tenant = self._restored(options, len(jobs))
        begin = size = 0
        for index, job in enumerate(jobs):
            job.options = options
            job_size = memory.job_bytes(job)
            size += job_size
            if job.state in ENDED:
                self.memory.ended_bytes += job_size
            if job.id - jobs[begin].id != index - begin:
                self.pages.put(jobs[begin].id, jobs[begin:index])
                begin = index
            state = job.state
            queue.counts[state] += 1
            if state is READY:
                queue.ready.append(options.priority, job.id)
            elif state is DELAYED:
                assert job.due is not None
                (self.date_timers if job.due.is_wall else self.delay_timers).push(job.due.ms, job.id)
                size += memory.DELAYED_BYTES
            elif state is LEASED:
                assert job.lease is not None
                job.lease.live_count += 1
                job.lease.ranges.append((job.id, 1))
                self.marked_count += job.cancel_marked
            elif state is DEAD:
                queue.dead[job.id] = None
            else:
                queue.finished.append(job.id)
            if options.expires_wall_ms is not None and _may_expire(job):
                self.expiry_timers.push(options.expires_wall_ms, job.id)
            if job.outcome is not None:
                self.progress_count += job.outcome.progress is not None
                if job.outcome.result is not None:
                    self._results.append(job.id)
                    self.result_bytes += len(job.outcome.result)
                    self.result_count += 1
                    if options.result_ttl_ms is not None:
                        self._time_result(job)
        self.pages.put(jobs[begin].id, jobs[begin:])
        self._count_bytes(queue, tenant, size)

    def _restored(self, options: JobOptions, count: int) -> tuple[JobOptions, Queue, Tenant]:
        """Return the options that `count` jobs come back with, and whose they are."""
        kind = self._kind(options)
        if kind is None:
            return options, self._made_queue(options.queue), self._made_tenant(options.tenant)
        kind.count += count
        return kind.options, kind.queue, kind.tenant

    def restore_lease(self, lease: Lease) -> Lease:
        """Return the lease that equal ones of earlier facts have become, or make this one it."""
        parts = self.leases.setdefault(lease.token, {})
        for known in parts.values():
            if (known.deadline_ms, known.lease_ms, known.restarted) == (
                lease.deadline_ms,
                lease.lease_ms,
                lease.restarted,
            ):
                return known
        parts[id(lease)] = lease
        return lease

    def restore_session(
        self, session: bytes, principal: str, floor: int, answers: Sequence[tuple[int, bytes | int]]
    ) -> None:
        """Put back a session with its answers, the oldest first."""
        record = self.sessions[session] = Session(
            principal,
            dict(answers),
            deque(request_id for request_id, _ in answers),
            sum(_answer_bytes(answer) for _, answer in answers),
            floor,
        )
        self.memory.bytes += record.bytes

    def finish_restoring(self, lsn: int, now: Now, epoch: int, grant: int, next_id: int) -> None:
        """Set the numbers of a snapshot, and make what follows from its jobs."""
        self.lsn, self.now = lsn, now
        self.epoch, self.grant = epoch, grant
        self.pages.finish_restoring(next_id)
        for parts in self.leases.values():
            for lease in parts.values():
                lease.ranges = _packed(lease.ranges)
                self.memory.bytes += _lease_bytes(lease)
            self._arm(parts)
        for queue in self.queues.values():
            queue.finished = deque(sorted(queue.finished, key=self._when_changed))
            queue.dead = OrderedDict.fromkeys(sorted(queue.dead, key=self._when_changed))
            self._rearm_finished(queue)
            self._rearm_dead(queue)
        self._results = deque(sorted(self._results, key=self._when_changed))

    def _when_changed(self, job_id: int) -> tuple[int, int]:
        return self.known_job(job_id).changed.engine_ms, job_id

    # --- writing: leases and time -------------------------------------------------------------

    def start(self, epoch: int, now: Now) -> None:
        """Begin a new run of the daemon: every live lease is worth at least the restart grace."""
        self.epoch, self.grant = epoch, 0
        self.lease_timers = TimerHeap()
        self._deadlines = {}
        for parts in self.leases.values():
            for lease in parts.values():
                grace_ms = min(lease.lease_ms, model.RESTART_GRACE_MS)
                lease.deadline_ms = max(lease.deadline_ms, now.engine_ms + grace_ms)
                lease.restarted = True
            self._arm(parts)

    # --- writing: sessions --------------------------------------------------------------------

    def open_session(self, session: bytes, principal: str) -> None:
        record = self.sessions[session] = Session(principal)
        self.memory.bytes += record.bytes

    def forget_sessions(self, sessions: Sequence[bytes]) -> None:
        for session in sessions:
            record = self.sessions.pop(session)
            self.memory.bytes -= record.bytes
            if self.keeper is not None:
                self.keeper.keep_session(session, record)

    def remember_answers(self, session: bytes, answers: Sequence[tuple[int, bytes | int]]) -> None:
        """Keep the answers of a session's requests, and drop its oldest ones beyond the limit."""
        record = self.sessions[session]
        if self.keeper is not None:
            self.keeper.keep_session(session, record)
        known, order = record.answers, record.order
        before = memory.ANSWER_BYTES * len(order) + record.answer_bytes
        new = dict(answers)
        # A client that uses one id for a parked lease and for another verb answers it twice.
        if len(new) < len(answers) or not known.keys().isdisjoint(new):
            for request_id in new.keys() & known.keys():
                record.answer_bytes -= _answer_bytes(known[request_id])
            order.extend([request_id for request_id in new if request_id not in known])
        else:
            order.extend(new)
        known.update(new)
        record.answer_bytes += sum(map(_answer_bytes, new.values()))
        floor = record.floor
        while len(order) > model.ANSWERS_PER_SESSION_MAX or (
            record.answer_bytes > model.ANSWERS_BYTES_PER_SESSION_MAX and len(order) > 1
        ):
            oldest = order.popleft()
            answer = known.pop(oldest)
            if type(answer) is bytes:
                record.answer_bytes -= len(answer)
            floor = max(floor, oldest)
        record.floor = floor
        self.memory.bytes += memory.ANSWER_BYTES * len(order) + record.answer_bytes - before

    # --- writing: keys ------------------------------------------------------------------------

    def put_key(self, name: str, key: Key) -> None:
        """Let a key stand for a job, in the place of one that is over."""
        old = self.keys.get(name)
        if self.keeper is not None:
            self.keeper.keep_key(name, old)
        if old is None:
            size = memory.key_bytes(name)
            self._made_tenant(tenant_of(name)).bytes += size
            self.memory.bytes += size
        self.keys.put(name, key)

    def drop_key(self, name: str) -> None:
        """Forget a key."""
        key = self.keys.get(name)
        if self.keeper is not None:
            self.keeper.keep_key(name, key)
        if key is None:
            return
        self.keys.drop(name)
        size = memory.key_bytes(name)
        tenant = self.tenants[tenant_of(name)]
        tenant.bytes -= size
        self.memory.bytes -= size
        self._drop_if_idle(tenant)

    def _take_key(self, job_id: int, options: JobOptions, now: Now) -> None:
        ttl_ms = options.dedupe_ttl_ms
        due_ms = None if ttl_ms is None else now.engine_ms + ttl_ms
        self.put_key(dedupe_name(options), Key(job_id, due_ms=due_ms))

    def _give_up_key(self, jobs: list[Job]) -> None:
        """Free the keys of jobs that have one only as long as they live, or wait."""
        for job in jobs:
            name = dedupe_name(job.options)
            key = self.keys.get(name)
            if key is not None and key.job_id == job.id and key.due_ms is None:
                self.drop_key(name)

    # --- parts of moves -----------------------------------------------------------------------

    def _groups(self, ranges: Ranges, *, mixed: bool = False) -> Iterator[tuple[JobOptions, list[Job]]]:
        """Yield the jobs of ranges, in order, cut where the options change: each group has consecutive ids.

        mixed: the jobs may be in several states, and a group is cut where the state changes as well.
        """
        for first, count in ranges:
            jobs = self._jobs(first, count)
            if count == 1:
                self.work += 1 + GROUP_WORK
                yield jobs[0].options, jobs
                continue
            for _, group in groupby(jobs, _options_and_state_of if mixed else _options_of):
                alike = list(group)
                self.work += len(alike) + GROUP_WORK
                yield alike[0].options, alike

    def _jobs(self, first: int, count: int) -> list[Job]:
        """Return the jobs of consecutive ids, each of which there must be, for a change."""
        jobs = self.pages.run(first, count)
        assert None not in jobs, f"a job of {first}+{count} does not exist"
        if self.keeper is not None:
            self.keeper.keep(jobs)  # type: ignore[arg-type]  # asserted above
        return jobs  # type: ignore[return-value]

    def _leave(self, queue: Queue, jobs: list[Job], target: JobState | None) -> None:
        """Take jobs, all in one state, out of what their state keeps them in.

        target: None: they are forgotten, or stay in their state.
        """
        state = jobs[0].state
        assert target is None or target in model.TRANSITIONS[state], f"{state.name} -> {target}"
        for job in jobs:
            assert job.state is state, f"job {job.id} is {job.state.name}, not {state.name}"
        queue.counts[state] -= len(jobs)
        if state is LEASED:
            self._end_leases(jobs)
            if self.marked_count:
                self._unmark(jobs)
        elif state is READY:
            for job in jobs:
                queue.ready.remove_run(job.options.priority, job.id, 1)
        elif state is DELAYED:
            for job in jobs:
                assert job.due is not None
                (self.date_timers if job.due.is_wall else self.delay_timers).discard(job.due.ms, job.id)
                job.due = None
            tenant = self.tenants[jobs[0].options.tenant]
            self._count_bytes(queue, tenant, -memory.DELAYED_BYTES * len(jobs))
        elif state is DEAD:
            for job in jobs:
                del queue.dead[job.id]
        else:
            _remove_oldest(queue.finished, jobs)

    def _note_ended(self, jobs: list[Job]) -> None:
        """Have the engine look at those that somebody waits for."""
        for job in jobs:
            if job.id in self.watched:
                self.ended[job.id] = None

    def _unmark(self, jobs: list[Job]) -> None:
        for job in jobs:
            if job.outcome is not None and job.outcome.cancel_marked:
                job.outcome.cancel_marked = False
                self.marked_count -= 1

    def _stop_expiry(self, jobs: list[Job]) -> None:
        """Take the timers of jobs that were just taken out of their state."""
        for job in jobs:
            expires_ms = job.options.expires_wall_ms
            if expires_ms is not None and _may_expire(job):
                self.expiry_timers.discard(expires_ms, job.id)

    def _wait(self, queue: Queue, jobs: list[Job], due: Due | None, now: Now) -> None:
        """Put jobs, taken out of their former state, into ready or delayed."""
        if due is None:
            for job in jobs:
                job.state = READY
                job.changed = now
                queue.ready.put_back(job.options.priority, job.id)
            queue.counts[READY] += len(jobs)
            self.woken[queue.name] = None
            return
        self._delay(queue, jobs, due, now)

    def _delay(self, queue: Queue, jobs: list[Job], due: Due, now: Now) -> None:
        timers = self.date_timers if due.is_wall else self.delay_timers
        for job in jobs:
            job.state = DELAYED
            job.changed = now
            job.due = due
            timers.push(due.ms, job.id)
        queue.counts[DELAYED] += len(jobs)
        tenant = self.tenants[jobs[0].options.tenant]
        self._count_bytes(queue, tenant, memory.DELAYED_BYTES * len(jobs))

    def _record_attempts(
        self, queue: Queue, jobs: list[Job], cause: Cause, error: str, now: Now, kept: int
    ) -> None:
        """Note how the attempts ended: counted, and kept in the histories, of which the newest `kept` stay."""
        size = 0
        error_bytes = memory.text_bytes(error)
        for job in jobs:
            assert job.lease is not None
            if cause == "error":
                job.errors += 1
            elif cause == "crash":
                job.crashes += 1
            outcome = job.outcome
            if not kept:
                size -= memory.outcome_bytes(outcome)
                assert outcome is None or not outcome.cancel_marked, f"job {job.id} is to end"
                self.progress_count -= outcome is not None and outcome.progress is not None
                job.outcome = None
                continue
            if outcome is None:
                outcome = job.outcome = Outcome()
                size += memory.EMPTY_OUTCOME_BYTES
            size += error_bytes - memory.text_bytes(outcome.error)
            outcome.error = error
            worker = job.lease.worker
            size += memory.attempt_bytes(worker, error)
            gone = max(0, len(outcome.attempts) + 1 - kept)
            for old in outcome.attempts[:gone]:
                size -= memory.attempt_bytes(old.worker, old.error)
            attempt = Attempt(job.attempt, cause, now.wall_ms, worker, error)
            outcome.attempts = [*outcome.attempts[gone:], attempt]
        self._count_bytes(queue, self.tenants[jobs[0].options.tenant], size)

    def _hold(self, lease: Lease) -> None:
        parts = self.leases.get(lease.token)
        self.memory.bytes += LEASE_BYTES + RANGE_BYTES * len(lease.ranges)
        if parts is None:
            self.leases[lease.token] = {id(lease): lease}
            self.lease_timers.push(lease.deadline_ms, lease.token)
            return
        deadlines = self._deadlines.get(lease.token)
        if deadlines is None:
            (other,) = parts.values()
            deadlines = self._deadlines[lease.token] = {other.deadline_ms: 1}
        parts[id(lease)] = lease
        sharing = deadlines.get(lease.deadline_ms, 0)
        deadlines[lease.deadline_ms] = sharing + 1
        if not sharing:
            self.lease_timers.push(lease.deadline_ms, lease.token)

    def _end_leases(self, jobs: list[Job]) -> None:
        lease, count = jobs[0].lease, 0
        for job in jobs:
            if job.lease is not lease:
                self._shrink(lease, count)
                lease, count = job.lease, 0
            count += 1
            job.lease = None
        self._shrink(lease, count)

    def _shrink(self, lease: Lease | None, count: int) -> None:
        assert lease is not None
        assert lease.live_count >= count, "more jobs leave a lease than it holds"
        lease.live_count -= count
        if lease.live_count:
            return
        parts = self.leases[lease.token]
        self.memory.bytes -= LEASE_BYTES + RANGE_BYTES * len(lease.ranges)
        del parts[id(lease)]
        deadlines = self._deadlines.get(lease.token)
        if not parts:
            del self.leases[lease.token]
            self._deadlines.pop(lease.token, None)
        if deadlines is not None:
            deadlines[lease.deadline_ms] -= 1
            if deadlines[lease.deadline_ms]:
                return
            del deadlines[lease.deadline_ms]
        self.lease_timers.discard(lease.deadline_ms, lease.token)

    def _arm(self, parts: dict[int, Lease]) -> None:
        """Set the timers of a grant: one per (deadline, token), whatever number of its leases shares it."""
        deadlines: dict[int, int] = {}
        for lease in parts.values():
            if lease.deadline_ms not in deadlines:
                self.lease_timers.push(lease.deadline_ms, lease.token)
            deadlines[lease.deadline_ms] = deadlines.get(lease.deadline_ms, 0) + 1
        if len(parts) > 1:
            self._deadlines[lease.token] = deadlines

    def _rearm_finished(self, queue: Queue) -> None:
        """Keep the queue's retention timer at its oldest finished job."""
        due_ms = self._due_to_forget(queue.finished[0] if queue.finished else None, queue.retention_ms)
        queue.finished_due_ms = _move(self.finished_timers, queue.name, queue.finished_due_ms, due_ms)
        self._note_excess(queue)

    def _rearm_dead(self, queue: Queue) -> None:
        """Keep the queue's retention timer at its oldest dead job."""
        due_ms = self._due_to_forget(next(iter(queue.dead), None), queue.dead_retention_ms)
        queue.dead_due_ms = _move(self.dead_timers, queue.name, queue.dead_due_ms, due_ms)
        self._note_excess(queue)

    def _note_excess(self, queue: Queue) -> None:
        if len(queue.finished) > model.FINISHED_COUNT_MAX or len(queue.dead) > model.DEAD_COUNT_MAX:
            self.overfull[queue.name] = None
        elif self.overfull:
            self.overfull.pop(queue.name, None)

    def _due_to_forget(self, job_id: int | None, retention_ms: int) -> int | None:
        job = self.job(job_id) if job_id is not None else None
        return job.changed.engine_ms + retention_ms if job is not None else None

    # --- checking -----------------------------------------------------------------------------

    def digest(self) -> str:
        """Return a hash of everything that is a fact: equal states, however reached, have equal digests."""
        facts = [
            (self.lsn, self.now, self.epoch, self.grant, self.pages.next_id, self.result_bytes),
            [_facts(job) for job in self.pages.jobs_from(0)],
            [
                # Which of those that ended in one ms stands first is no fact.
                (
                    q.name,
                    q.counts,
                    q.settings,
                    *(sorted(ids, key=self._when_changed) for ids in (q.finished, q.dead)),
                )
                for _, q in sorted(self.queues.items())
            ],
            [(token, _shares(parts)) for token, parts in sorted(self.leases.items())],
            sorted((name, *msgspec.structs.astuple(key)) for name, key in self.keys.items()),
            sorted((key, s.principal, s.floor, list(s.answers.items())) for key, s in self.sessions.items()),
        ]
        return hashlib.sha256(msgspec.msgpack.encode(facts)).hexdigest()

    def check(self) -> None:
        """Assert that every index agrees with the jobs. O(all jobs): for tests and tools."""
        jobs = list(self.pages.jobs_from(0))
        self.pages.check()
        by_queue: dict[str, list[Job]] = {name: [] for name in self.queues}
        for job in jobs:
            by_queue[job.options.queue].append(job)  # a KeyError would be a job of a queue that is not there
        assert self.set_queues == {
            name: queue for name, queue in self.queues.items() if queue.settings is not model.UNSET_QUEUE
        }
        assert self.bounded_queues == {
            name: queue for name, queue in self.set_queues.items() if queue.settings.length_max is not None
        }
        for queue in self.queues.values():
            mine = by_queue[queue.name]
            assert mine or queue.name in self.set_queues, f"{queue.name} has neither jobs nor settings"
            counts = [sum(job.state is state for job in mine) for state in JobState]
            assert counts == queue.counts, f"{queue.name}: {queue.counts}, recounted {counts}"
            ready = sorted((-job.options.priority, job.id) for job in mine if job.state is READY)
            assert queue.ready.peek(len(mine) + 1) == [job_id for _, job_id in ready]
            assert len(queue.ready) == len(ready)
            assert sorted(queue.finished) == [job.id for job in mine if job.state in FINISHED]
            assert sorted(queue.dead) == [job.id for job in mine if job.state is DEAD]
            assert (queue.finished_due_ms is None) == (not queue.finished)
            assert (queue.dead_due_ms is None) == (not queue.dead)
        assert self.marked_count == sum(job.cancel_marked for job in jobs)
        self._check_timers(jobs)
        self._check_keys(jobs)
        self._check_outcomes(jobs)
        self._check_memory(jobs)

    def _check_memory(self, jobs: list[Job]) -> None:
        """Recount what everything takes."""
        of_queues = {
            name: memory.queue_bytes(name) + _settings_bytes(queue.settings)
            for name, queue in self.queues.items()
        }
        of_tenants: dict[str, int] = {}
        kinds: dict[JobOptions, int] = {}
        ended_bytes = 0
        for job in jobs:
            options = job.options
            size = memory.job_bytes(job)
            if job.state in ENDED:
                ended_bytes += size
            if job.state is DELAYED:
                size += memory.DELAYED_BYTES
            if memory.are_shared(options):
                assert options is self._kinds[options].options, f"job {job.id} has options of its own"
                if options not in kinds:
                    size += memory.options_bytes(options)
                kinds[options] = kinds.get(options, 0) + 1
            of_queues[options.queue] += size
            of_tenants[options.tenant] = of_tenants.get(options.tenant, 0) + size
        keys_bytes = 0
        for name, _ in self.keys.items():  # noqa: PERF102 - a KeyTable is no dict
            keys_bytes += memory.key_bytes(name)
            of_tenants[tenant_of(name)] = of_tenants.get(tenant_of(name), 0) + memory.key_bytes(name)
        assert {kind.options: kind.count for kind in self._kinds.values()} == kinds
        assert self._last_kind is None or self._kinds[self._last_kind.options] is self._last_kind
        for kind in self._kinds.values():
            assert kind.queue is self.queues[kind.options.queue]
            assert kind.tenant is self.tenants[kind.options.tenant]
        assert {name: queue.own_bytes for name, queue in self.queues.items()} == of_queues
        assert {name: tenant.bytes for name, tenant in self.tenants.items()} == of_tenants
        assert self.memory.ended_bytes == ended_bytes
        leases = [lease for parts in self.leases.values() for lease in parts.values()]
        assert self.memory.bytes == (
            sum(queue.bytes for queue in self.queues.values())
            + sum(map(memory.tenant_bytes, self.tenants))
            + keys_bytes
            + sum(map(_lease_bytes, leases))
            + sum(record.bytes for record in self.sessions.values())
        )

    def _check_outcomes(self, jobs: list[Job]) -> None:
        outcomes = [(job, job.outcome) for job in jobs if job.outcome is not None]
        results = [(job, outcome.result) for job, outcome in outcomes if outcome.result is not None]
        assert all(job.state is DONE for job, _ in results)
        assert not any(outcome.result_dropped for job, outcome in outcomes if job.state is not DONE)
        assert sum(len(result) for _, result in results) == self.result_bytes
        assert len(results) == self.result_count
        assert sorted(job.id for job in self.oldest_results()) == [job.id for job, _ in results]
        assert not self._results or self._has_result(self._results[0])
        assert _alive(self.result_timers) == sorted(
            (job.result_due_ms, job.id) for job, _ in results if job.result_due_ms is not None
        )
        assert sum(outcome.progress is not None for _, outcome in outcomes) == self.progress_count

    def _check_keys(self, jobs: list[Job]) -> None:
        keys = dict(self.keys.items())
        assert len(keys) == self.keys.count
        assert _alive(self.keys.timers) == sorted(
            (key.due_ms, name) for name, key in keys.items() if key.due_ms is not None
        )
        of_jobs = {name: key.job_id for name, key in keys.items() if key.due_ms is None}
        for name, job_id in of_jobs.items():
            job = self.known_job(job_id)
            assert job.state in (DELAYED, READY, LEASED), f"job {job_id} is {job.state.name}"
            assert dedupe_name(job.options) == name
        for job in jobs:
            if job.options.dedupe_key is not None and holds_while_alive(job.options):
                alive = job.state in (DELAYED, READY, LEASED)
                assert (of_jobs.get(dedupe_name(job.options)) == job.id) == alive, f"job {job.id}"

    def _check_timers(self, jobs: list[Job]) -> None:
        held: dict[int, int] = {}
        for job in jobs:
            assert (job.lease is not None) == (job.state is LEASED), f"job {job.id}"
            assert (job.due is not None) == (job.state is DELAYED), f"job {job.id}"
            assert (job.payload is None) == (job.state in FINISHED), f"job {job.id}"
            assert job.state is LEASED or not job.cancel_marked, f"job {job.id}"
            if job.lease is not None:
                held[id(job.lease)] = held.get(id(job.lease), 0) + 1
        leases = [lease for parts in self.leases.values() for lease in parts.values()]
        assert {id(lease): lease.live_count for lease in leases} == held
        deadlines = sorted({(lease.deadline_ms, lease.token) for lease in leases})
        assert _alive(self.lease_timers) == deadlines
        for token, counts in self._deadlines.items():
            split = [lease.deadline_ms for lease in self.leases[token].values()]
            assert counts == {deadline_ms: split.count(deadline_ms) for deadline_ms in split}
        for timers, is_wall in ((self.delay_timers, False), (self.date_timers, True)):
            dues = sorted(
                (job.due.ms, job.id) for job in jobs if job.due is not None and job.due.is_wall is is_wall
            )
            assert _alive(timers) == dues
        expiries = sorted(
            (job.options.expires_wall_ms, job.id)
            for job in jobs
            if job.options.expires_wall_ms is not None and _may_expire(job)
        )
        assert _alive(self.expiry_timers) == expiries


def holds_while_alive(options: JobOptions) -> bool:
    """Tell whether a job has its dedupe key as long as it lives, and again when it is revived."""
    return options.dedupe_ttl_ms is None and options.dedupe_until == "finished"


def _may_expire(job: Job) -> bool:
    return job.attempt == 0 and job.state in WAITING


def _facts(job: Job) -> tuple[object, ...]:
    """Return all that is a fact about a job: of its lease what is its own, not who else was in it once."""
    lease = job.lease
    held = lease and (
        lease.token,
        lease.deadline_ms,
        lease.lease_ms,
        lease.worker,
        lease.session,
        lease.restarted,
    )
    return (*msgspec.structs.astuple(msgspec.structs.replace(job, lease=None)), held)


def _shares(parts: dict[int, Lease]) -> list[tuple[tuple[int, int, bool], int]]:
    """Return how many jobs of a grant have which deadline, however many leases share it."""
    shares: dict[tuple[int, int, bool], int] = {}
    for part in parts.values():
        key = (part.deadline_ms, part.lease_ms, part.restarted)
        shares[key] = shares.get(key, 0) + part.live_count
    return sorted(shares.items())


def _packed(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join (id, 1) pairs with rising ids into runs."""
    runs: list[tuple[int, int]] = []
    for job_id, _ in ranges:
        if runs and sum(runs[-1]) == job_id:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((job_id, 1))
    return runs


def _alive(timers: TimerHeap[Timed]) -> list[tuple[int, Timed]]:
    assert len(timers) == len(timers.heap) - len(timers.holes)
    return sorted(entry for entry in timers.heap if entry not in timers.holes)


def _lease_bytes(lease: Lease) -> int:
    return LEASE_BYTES + RANGE_BYTES * len(lease.ranges)


def _settings_bytes(settings: QueueSettings) -> int:
    return 0 if settings == model.UNSET_QUEUE else memory.settings_bytes(settings)


def _answer_bytes(answer: bytes | int) -> int:
    return len(answer) if isinstance(answer, bytes) else 0


def _remove_oldest(finished: deque[int], jobs: list[Job]) -> None:
    for job in jobs:
        if finished[0] == job.id:
            finished.popleft()
        else:
            finished.remove(job.id)


def _move(timers: TimerHeap[str], name: str, armed_ms: int | None, due_ms: int | None) -> int | None:
    if armed_ms != due_ms:
        if armed_ms is not None:
            timers.discard(armed_ms, name)
        if due_ms is not None:
            timers.push(due_ms, name)
    return due_ms

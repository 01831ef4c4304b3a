"""What can be asked about jobs: one of them, or a page.

Knows:         how a job is shown, how far one call looks.
Must not know: any change: what is here emits none.
"""

from collections.abc import Set as AbstractSet

from jqd.core import backoff, filters, model, settings
from jqd.core.commands import AttemptInfo, Get, JobFilter, JobInfo, JobList, ListJobs
from jqd.core.deciding import REPLY_JOB_BYTES, Emit
from jqd.core.filters import Filter
from jqd.core.model import Caller, Encoding, Job, JobState, Now, Outcome
from jqd.core.state import State


def get(command: Get, state: State, caller: Caller, now: Now, emit: Emit) -> JobInfo:  # noqa: ARG001
    """Show one job with its payload.

    Raises: JobNotFound.
    """
    job = state.known_job(command.job_id)
    info = job_info(job, state, now)
    info.payload = job.payload
    return info


def list_jobs(command: ListJobs, state: State, caller: Caller, now: Now, emit: Emit) -> JobList:  # noqa: ARG001
    """Show jobs in order of their ids, without payloads.

    Raises: QueueNotFound, InvalidArgument (filter.where).
    """
    wanted = command.filter or JobFilter()
    states = frozenset(JobState) if wanted.state is None else frozenset({model.STATES_BY_NAME[wanted.state]})
    where = None if wanted.where is None else filters.parse(wanted.where, now)
    jobs, cursor = scan(state, wanted.queue, states, where, command.cursor, command.limit)
    infos: list[JobInfo] = []
    size = 0
    for job in jobs:
        size += REPLY_JOB_BYTES * 4 + _extras_bytes(job)
        if infos and size > model.REPLY_BYTES_MAX:
            return JobList(jobs=infos, cursor=job.id)
        infos.append(job_info(job, state, now))
    return JobList(jobs=infos, cursor=cursor)


def scan(
    state: State,
    queue: str | None,
    states: AbstractSet[JobState],
    where: Filter | None,
    cursor: int,
    limit: int,
) -> tuple[list[Job], int | None]:
    """Return up to `limit` matching jobs from `cursor` on, and where to go on.

    Takes SCAN_JOBS_MAX steps at most, so that a filter that matches little does not stop the loop: a job
    looked at is one, and what `where` costs on it comes on top.
    """
    if queue is not None:
        state.known_queue(queue)
    if where is not None:
        states = states & where.states
    found: list[Job] = []
    steps = 0
    for job in state.pages.jobs_from(cursor):
        if len(found) >= limit or steps >= model.SCAN_JOBS_MAX:
            state.work += steps
            return found, job.id
        steps += 1
        if job.state in states and (queue is None or job.options.queue == queue):
            if where is None:
                found.append(job)
                continue
            steps += where.cost(job)
            if where.test(job):
                found.append(job)
    state.work += steps
    return found, None


def _extras_bytes(job: Job) -> int:
    size = 0 if job.options.metadata is None else model.METADATA_BYTES_MAX
    if job.outcome is not None:
        size += len(job.outcome.result or b"")
        size += 4 * (len(job.outcome.error) + sum(len(attempt.error) for attempt in job.outcome.attempts))
    return size


def shown_result(job: Job, outcome: Outcome, now: Now) -> tuple[bytes | None, Encoding, bool]:
    """Return a job's result, its encoding, and whether its time is over: at that very ms it is."""
    due_ms = None if outcome.result is None else job.result_due_ms
    if outcome.result_dropped or (due_ms is not None and due_ms <= now.engine_ms):
        return None, "raw", True
    return outcome.result, outcome.result_encoding, False


def job_info(job: Job, state: State, now: Now) -> JobInfo:
    """Show a job as of `now`, without its payload."""
    options = job.options
    info = JobInfo(
        job_id=job.id,
        queue=options.queue,
        state=job.state.wire_name,
        attempt=job.attempt,
        created_wall_ms=job.created.wall_ms,
        changed_wall_ms=job.changed.wall_ms,
        payload_bytes=len(job.payload or b""),
        encoding=options.encoding,
        priority=options.priority,
        tenant=options.tenant,
        group=options.group,
        task=options.task,
        dedupe_key=options.dedupe_key,
        metadata=options.metadata,
        delivery=options.delivery,
        errors=job.errors,
        crashes=job.crashes,
        max_retries=settings.max_retries(job, state),
        max_crashes=settings.max_crashes(job, state),
        lease_ms=settings.lease_ms(job, state),
    )
    policy = settings.retry_policy(job, state)
    if policy is not backoff.DEFAULT:
        info.retry = policy
    if job.lease is not None:
        info.lease_ms_left = max(0, job.lease.deadline_ms - now.engine_ms)
        info.worker = job.lease.worker
        info.cancel_marked = job.cancel_marked
    if job.due is not None and job.due.is_wall:
        info.run_at_ms = job.due.ms
    elif job.due is not None:
        info.due_ms_left = max(0, job.due.ms - now.engine_ms)
    info.expires_at_ms = options.expires_wall_ms
    if job.outcome is not None:
        info.reason = job.outcome.reason
        info.error = job.outcome.error
        info.result, info.result_encoding, info.result_expired = shown_result(job, job.outcome, now)
        if job.outcome.progress is not None:
            info.progress_percent = job.outcome.progress.percent
            info.progress_text = job.outcome.progress.text
        info.attempts = [
            AttemptInfo(attempt=a.number, cause=a.cause, wall_ms=a.wall_ms, worker=a.worker, error=a.error)
            for a in job.outcome.attempts
        ]
    return info

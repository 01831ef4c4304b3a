"""What can be asked about jobs: one of them, or a page.

Knows:         how a job is shown, how far one call looks.
Must not know: any change: what is here emits none.
"""

from jqd.core import backoff, model, settings
from jqd.core.commands import AttemptInfo, Get, JobFilter, JobInfo, JobList, ListJobs
from jqd.core.deciding import REPLY_JOB_BYTES, Emit
from jqd.core.model import Caller, Job, JobState, Now
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

    Raises: QueueNotFound.
    """
    wanted = command.filter or JobFilter()
    states = tuple(JobState) if wanted.state is None else (model.STATES_BY_NAME[wanted.state],)
    jobs, cursor = scan(state, wanted.queue, states, command.cursor, command.limit)
    infos: list[JobInfo] = []
    size = 0
    for job in jobs:
        size += REPLY_JOB_BYTES * 4 + _extras_bytes(job)
        if infos and size > model.REPLY_BYTES_MAX:
            return JobList(jobs=infos, cursor=job.id)
        infos.append(job_info(job, state, now))
    return JobList(jobs=infos, cursor=cursor)


def scan(
    state: State, queue: str | None, states: tuple[JobState, ...], cursor: int, limit: int
) -> tuple[list[Job], int | None]:
    """Return up to `limit` matching jobs from `cursor` on, and where to go on.

    Looks at SCAN_JOBS_MAX jobs at most, so that a filter that matches little does not stop the loop.
    """
    if queue is not None:
        state.known_queue(queue)
    found: list[Job] = []
    for looked, job in enumerate(state.jobs_from(cursor)):
        if len(found) >= limit or looked >= model.SCAN_JOBS_MAX:
            return found, job.id
        state.work += 1
        if job.state in states and (queue is None or job.options.queue == queue):
            found.append(job)
    return found, None


def _extras_bytes(job: Job) -> int:
    size = 0 if job.options.metadata is None else model.METADATA_BYTES_MAX
    if job.outcome is not None:
        size += len(job.outcome.result or b"")
        size += 4 * (len(job.outcome.error) + sum(len(attempt.error) for attempt in job.outcome.attempts))
    return size


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
    if job.due is not None and job.due.is_wall:
        info.run_at_ms = job.due.ms
    elif job.due is not None:
        info.due_ms_left = max(0, job.due.ms - now.engine_ms)
    if job.outcome is not None:
        info.reason = job.outcome.reason
        info.error = job.outcome.error
        info.result = job.outcome.result
        info.result_encoding = job.outcome.result_encoding
        info.attempts = [
            AttemptInfo(attempt=a.number, cause=a.cause, wall_ms=a.wall_ms, worker=a.worker, error=a.error)
            for a in job.outcome.attempts
        ]
    return info

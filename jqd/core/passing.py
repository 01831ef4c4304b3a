"""What time alone does: leases run out or end with their client, old jobs and results are forgotten.

Knows:         what a crash costs, how long finished and dead jobs are kept.
Must not know: when it is asked (engine.py), what the clock is.
"""

from collections.abc import Container

from jqd.core import backoff, model, settings
from jqd.core.changes import (
    JobsCancelled,
    JobsDied,
    JobsExpired,
    JobsForgotten,
    JobsRetried,
    KeysForgotten,
    ResultsForgotten,
)
from jqd.core.commands import to_ranges
from jqd.core.deciding import Emit, judged_at_ms, kept_attempts, live_jobs
from jqd.core.memory import job_bytes
from jqd.core.model import Job, Lease, Now
from jqd.core.ordered import NEVER_MS
from jqd.core.state import State


def expire_leases(state: State, now: Now, emit: Emit, limit: int) -> None:
    """End leases whose deadline has come, up to `limit` jobs.

    An expired lease is a crash: the first one is retried at once, later ones after the backoff,
    one too many is dead. A lease that was live at the daemon's start and not extended since counts
    nothing. An at-most-once job is dead: it may have run. One that is marked to end is cancelled.
    """
    judged_ms = judged_at_ms(state, now)
    while limit > 0 and state.lease_timers and state.lease_timers.first()[0] <= judged_ms:
        _, token = state.lease_timers.first()
        for part in [part for part in state.leases[token].values() if part.deadline_ms <= judged_ms]:
            jobs = [job for job, _ in zip(live_jobs(part, state), range(limit), strict=False)]
            limit -= len(jobs)
            if jobs:
                _crash(jobs, part, f"lease of {part.lease_ms} ms ran out", state, now, emit)


def end_leases(session: bytes, unsent: Container[int], state: State, now: Now, emit: Emit, limit: int) -> int:
    """End what a client held that is gone, up to `limit` jobs: a crash of each, as if its lease had run out.

    Args:    unsent: grants whose reply no socket has seen yet. They are taken back when that shows.
    Returns: what is left of the limit; 0: there may be more.
    Cost:    O(grants that are live).
    """
    mine = [
        part
        for token in sorted(state.leases)
        if token not in unsent
        for part in state.leases[token].values()
        if part.session == session
    ]
    for part in mine:
        jobs = [job for job, _ in zip(live_jobs(part, state), range(limit), strict=False)]
        limit -= len(jobs)
        if jobs:
            _crash(jobs, part, "its worker's connection was lost", state, now, emit)
        if not limit:
            break
    return limit


def _crash(jobs: list[Job], lease: Lease, error: str, state: State, now: Now, emit: Emit) -> None:
    """End the lease of jobs that nobody finished."""
    cause: model.Cause = "restart" if lease.restarted else "crash"
    retried: list[tuple[int, int]] = []
    crashed: list[int] = []
    abandoned: list[int] = []
    cancelled: list[int] = []
    for job in jobs:
        if job.cancel_marked:
            cancelled.append(job.id)
        elif job.options.delivery == "at_most_once":
            abandoned.append(job.id)
        elif cause == "restart" or (job.crashes == 0 and settings.max_crashes(job, state) > 0):
            retried.append((job.id, 0))
        elif job.crashes + 1 > settings.max_crashes(job, state):
            crashed.append(job.id)
        else:
            delay_ms = backoff.retry_delay_ms(
                job.crashes, job.id, job.attempt, settings.retry_policy(job, state)
            )
            retried.append((job.id, now.engine_ms + delay_ms if delay_ms else 0))
    kept = kept_attempts(state, len(jobs), error)
    if retried:
        emit(JobsRetried(retried, cause, error, kept=kept))
    if crashed:
        emit(JobsDied(to_ranges(crashed), "crashes", cause, error, kept=max(1, kept)))
    if abandoned:
        emit(JobsDied(to_ranges(abandoned), "abandoned", cause, error, kept=max(1, kept)))
    if cancelled:
        emit(JobsCancelled(to_ranges(cancelled), "", cause, error))


def expire_jobs(state: State, now: Now, emit: Emit, limit: int) -> None:
    """End up to `limit` waiting jobs whose date has come before anybody started them.

    State: delayed | ready -> expired.
    """
    ids = state.expiry_timers.due(now.wall_ms, limit)
    if ids:
        emit(JobsExpired(to_ranges(sorted(ids))))


def forget_old_jobs(state: State, now: Now, emit: Emit, limit: int) -> None:
    """Apply retention by age and by count, up to `limit` jobs."""
    for timers, shelf, retention in (
        (state.finished_timers, "finished", "retention_ms"),
        (state.dead_timers, "dead", "dead_retention_ms"),
    ):
        while limit > 0 and timers and timers.first()[0] <= now.engine_ms:
            ids: list[int] = []
            queue = state.queues[timers.first()[1]]
            retention_ms: int = getattr(queue, retention)
            for job_id in getattr(queue, shelf):
                job = state.known_job(job_id)
                if len(ids) >= limit or job.changed.engine_ms + retention_ms > now.engine_ms:
                    break
                ids.append(job_id)
            emit(JobsForgotten(to_ranges(ids)))
            limit -= len(ids)
    while limit > 0 and state.overfull:
        ids = state.queues[next(iter(state.overfull))].excess(limit)
        emit(JobsForgotten(to_ranges(ids)))
        limit -= len(ids)


def forget_keys(state: State, now: Now, emit: Emit, limit: int) -> None:
    """Give up to `limit` keys up whose time is over."""
    names = state.keys.timers.due(now.engine_ms, limit)
    if names:
        emit(KeysForgotten(names))


def forget_results(state: State, now: Now, emit: Emit, limit: int) -> None:
    """Take up to `limit` results whose time is over. Nobody has been shown one since: that is judged by `now`."""
    ids = state.result_timers.due(now.engine_ms, limit)
    if ids:
        emit(ResultsForgotten(to_ranges(sorted(ids))))


def forget_oldest_results(state: State, emit: Emit, limit: int) -> None:
    """Keep the results of all jobs within their bytes: the oldest jobs with one go, up to `limit`.

    Cost: O(finished jobs of the queue) each, since such a job stands in the middle of its queue's shelf.
    """
    excess = state.result_bytes - model.RESULTS_BYTES_MAX
    ids: list[int] = []
    for job in state.oldest_results():
        if excess <= 0 or len(ids) >= limit:
            break
        assert job.outcome is not None
        assert job.outcome.result is not None
        ids.append(job.id)
        excess -= len(job.outcome.result)
    if ids:
        emit(JobsForgotten(to_ranges(ids)))


def forget_for_memory(state: State, emit: Emit, limit: int) -> None:
    """Keep the jobs that have ended within their share of memory: up to `limit` go, those whose time is up first.

    Finished ones go before dead ones, which somebody may still want to requeue.
    """
    excess = state.memory.ended_bytes - state.memory.ended_bytes_max
    for timers, shelf, due, retention in (
        (state.finished_timers, "finished", "finished_due_ms", "retention_ms"),
        (state.dead_timers, "dead", "dead_due_ms", "dead_retention_ms"),
    ):
        while excess > 0 and limit > 0 and timers:
            first, *others = timers.due(NEVER_MS, 2)
            queue = state.queues[first]
            until_ms: int = getattr(state.queues[others[0]], due) if others else NEVER_MS
            retention_ms: int = getattr(queue, retention)
            ids: list[int] = []
            for job_id in getattr(queue, shelf):
                job = state.known_job(job_id)
                if excess <= 0 or len(ids) >= limit:
                    break
                if ids and job.changed.engine_ms + retention_ms > until_ms:
                    break  # the other queue's oldest comes before it
                ids.append(job_id)
                excess -= job_bytes(job)
            emit(JobsForgotten(to_ranges(ids)))
            limit -= len(ids)

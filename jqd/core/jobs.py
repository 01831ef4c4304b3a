"""What happens to jobs: one decision per command, and those that time makes.

Knows:         the rules of a job's life (protocol.md says them to the user).
Must not know: records, frames, parked requests (engine.py), what the clock is.

A decision validates all it needs, which may raise, and only then emits changes. Each change is
applied before the next one is emitted, so a decision may look at the state in between. After the
first change nothing may raise: the process would have to stop.

    decide(command, state, caller, now, emit) -> reply body
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from msgspec.structs import astuple

from jqd.core import backoff, model
from jqd.core.changes import (
    Change,
    EpochRaised,
    JobsCancelled,
    JobsDied,
    JobsDone,
    JobsForgotten,
    JobsLeased,
    JobsReleased,
    JobsRequeued,
    JobsRetried,
    JobsSubmitted,
    LeasesExtended,
)
from jqd.core.commands import (
    Ack,
    AttemptInfo,
    Cancel,
    Extend,
    Extended,
    Fail,
    Get,
    JobFields,
    JobFilter,
    JobInfo,
    JobList,
    Leased,
    LeasedJob,
    ListJobs,
    Purge,
    Release,
    Requeue,
    Submit,
    SubmitGroup,
    SubmitMany,
    Submitted,
    SubmittedMany,
    Sweep,
    Swept,
    Verdict,
    Verdicts,
    to_ranges,
)
from jqd.core.commands import Lease as LeaseCommand
from jqd.core.model import Caller, DeadReason, Job, JobOptions, JobState, Lease, Now
from jqd.core.state import DEAD, DELAYED, READY, State
from jqd.errors import InvalidArgument, JqdError, PayloadTooLarge, WrongState

Emit = Callable[[Change], None]

OK: Final = "ok"
JOB_NOT_FOUND: Final = "job_not_found"
LEASE_LOST: Final = "lease_lost"
WRONG_STATE: Final = "wrong_state"

# What a job costs in a reply besides its payload: keys, numbers, a queue's name. An estimate.
_REPLY_JOB_BYTES: Final = 160

# --- submit -----------------------------------------------------------------------------------


def submit(command: Submit, state: State, caller: Caller, now: Now, emit: Emit) -> Submitted:
    """Add one job, ready at once or at its time.

    Returns: its id.          Cost: O(1); O(log delayed) with a time.
    Raises:  InvalidArgument, PayloadTooLarge.
    """
    options = _options(command, state)
    due_engine_ms, due_wall_ms = _due(command, now)
    payload = command.payload
    if len(payload) > model.PAYLOAD_BYTES_MAX:
        raise _too_large("payload", payload)
    job_id = state.next_id
    emit(JobsSubmitted(job_id, options, [payload], due_engine_ms, due_wall_ms, caller.principal))
    return Submitted(job_id=job_id)


def submit_run(
    commands: Sequence[Submit], state: State, caller: Caller, now: Now, emit: Emit
) -> list[Submitted | JqdError]:
    """Add the jobs of submits that came together: what submit() would do, one after the other.

    Neighbours that differ only in their payload are one fact, which is what a run is for: it costs a
    fifth of a fact for each.

    Returns: for each command its id, or why it alone was refused.
    """
    replies: list[Submitted | JqdError] = []
    changes: list[JobsSubmitted] = []
    change: JobsSubmitted | None = None  # the newest,
    alike: tuple[object, ...] | None = None  # and what its jobs have in common
    next_id = state.next_id
    for command in commands:
        payload = command.payload
        fields = astuple(command)[1:]
        try:
            if fields != alike:
                change = JobsSubmitted(
                    next_id, _options(command, state), [], *_due(command, now), caller.principal
                )
                alike = None
            if len(payload) > model.PAYLOAD_BYTES_MAX:
                raise _too_large("payload", payload)
        except JqdError as error:
            replies.append(error)
            continue
        assert change is not None
        if alike is None:
            changes.append(change)
            alike = fields
        change.payloads.append(payload)
        replies.append(Submitted(job_id=next_id))
        next_id += 1
    for change in changes:
        emit(change)
    return replies


def submit_many(command: SubmitMany, state: State, caller: Caller, now: Now, emit: Emit) -> SubmittedMany:
    """Add the jobs of all groups, or none of them.

    Raises: InvalidArgument, PayloadTooLarge; the message names the group.
    """
    count = sum(len(group.payloads) for group in command.groups)
    if count > model.JOBS_PER_REQUEST_MAX:
        raise InvalidArgument(
            f"groups = {count} jobs in all: the limit is {model.JOBS_PER_REQUEST_MAX} a request"
        )
    changes: list[JobsSubmitted] = []
    next_id = state.next_id
    for index, group in enumerate(command.groups):
        try:
            options = _options(group, state)
            due_engine_ms, due_wall_ms = _due(group, now)
        except InvalidArgument as error:
            raise InvalidArgument(f"groups[{index}].{error}") from None
        if max(map(len, group.payloads)) > model.PAYLOAD_BYTES_MAX:
            number, payload = max(enumerate(group.payloads), key=lambda item: len(item[1]))
            raise _too_large(f"groups[{index}].payloads[{number}]", payload)
        changes.append(
            JobsSubmitted(next_id, options, group.payloads, due_engine_ms, due_wall_ms, caller.principal)
        )
        next_id += len(group.payloads)
    for change in changes:
        emit(change)
    return SubmittedMany(jobs=[(change.first_id, len(change.payloads), False) for change in changes])


# The field that differs from job to job stands first, so that the rest is the key of what is shared.
assert Submit.__struct_fields__[0] == "payload"
assert SubmitGroup.__struct_fields__[0] == "payloads"


def _options(fields: Submit | SubmitGroup, state: State) -> JobOptions:
    """Return the options that these fields mean, checked; shared with earlier jobs where possible."""
    key = astuple(fields)[1:] if fields.metadata is None else None
    if key is not None:
        known = state.options_by_fields.get(key)
        if known is not None:
            return known
    options = _checked_options(fields, state)
    if key is not None and fields.delay_ms is None and fields.run_at_ms is None:
        state.options_by_fields[key] = options
    return options


def _checked_options(fields: JobFields, state: State) -> JobOptions:
    for name in ("group", "dedupe_key", "idempotency_key", "expires_ms", "result_ttl_ms"):
        value = getattr(fields, name)
        if value is not None:
            raise InvalidArgument(f"{name} = {model.shorten(value)}: this server does not support {name} yet")
    if fields.tenant != model.DEFAULT_TENANT:
        raise InvalidArgument(
            f"tenant = {model.shorten(fields.tenant)}: this server knows only {model.DEFAULT_TENANT!r} yet"
        )
    if fields.queue not in state.queues:
        model.check_name("queue", fields.queue)
    if fields.task is not None:
        model.check_name("task", fields.task)
    if fields.metadata is not None:
        size = sum(len(key.encode()) + len(value.encode()) for key, value in fields.metadata.items())
        if size > model.METADATA_BYTES_MAX:
            raise InvalidArgument(f"metadata = {size} bytes: the limit is {model.METADATA_BYTES_MAX}")
    max_retries = fields.max_retries
    if fields.delivery == "at_most_once":
        if max_retries:
            raise InvalidArgument(f"max_retries = {max_retries}: with delivery at_most_once it must be 0")
        max_retries = 0
    return state.share(
        JobOptions(
            queue=fields.queue,
            task=fields.task,
            encoding=fields.encoding,
            priority=fields.priority,
            max_retries=max_retries,
            max_crashes=fields.max_crashes,
            lease_ms=fields.lease_ms,
            delivery=fields.delivery,
            metadata=fields.metadata,
        )
    )


def _due(fields: JobFields, now: Now) -> tuple[int | None, int | None]:
    """Return (engine_ms, wall_ms) at which the job becomes ready: at most one, both None = at once."""
    if fields.delay_ms is not None and fields.run_at_ms is not None:
        raise InvalidArgument(
            f"delay_ms = {fields.delay_ms} and run_at_ms = {fields.run_at_ms}: give one of them"
        )
    if fields.delay_ms:
        return now.engine_ms + fields.delay_ms, None
    if fields.run_at_ms is not None and fields.run_at_ms > now.wall_ms:
        return None, fields.run_at_ms
    return None, None


def _too_large(field: str, payload: bytes) -> PayloadTooLarge:
    return PayloadTooLarge(f"{field} = {len(payload)} bytes: the limit is {model.PAYLOAD_BYTES_MAX}")


# --- lease ------------------------------------------------------------------------------------


def lease(command: LeaseCommand, state: State, caller: Caller, now: Now, emit: Emit) -> Leased:
    """Hand out ready jobs under a new token, from the queues in the order given.

    All jobs of one grant have one lease time: the command's, else the first job's own, else the
    default; a job that asks for another one ends the grant and comes first in the next.

    State:   ready -> leased.
    Returns: jobs empty and token 0 if there is nothing to lease.
    Raises:  InvalidArgument.
    Cost:    O(jobs); O(log returned) for jobs that were delayed or retried.
    """
    for name in command.queues:
        if name not in state.queues:
            model.check_name("queues", name)
    jobs = _candidates(command, state)
    if not jobs:
        return Leased(token=0, lease_ms_left=0, wall_ms=now.wall_ms, jobs=[])
    lease_ms = command.lease_ms or _lease_ms(jobs[0])
    token = _next_token(state, now, emit)
    ranges = to_ranges([job.id for job in jobs])
    emit(JobsLeased(token, lease_ms, ranges, caller.worker, caller.session, caller.principal))
    return Leased(
        token=token, lease_ms_left=lease_ms, wall_ms=now.wall_ms, jobs=[_leased_job(job) for job in jobs]
    )


def _candidates(command: LeaseCommand, state: State) -> list[Job]:
    """Return the jobs to hand out: in order, one lease time, together below the reply's limit."""
    jobs: list[Job] = []
    size = 0
    options: JobOptions | None = None  # of the job before: most neighbours share theirs
    more_bytes = 0  # of a job with these options, besides its payload
    for name in dict.fromkeys(command.queues):
        ids = state.ready_ids(name, command.count - len(jobs))
        for first, count in to_ranges(ids):
            for job in state.run(first, count):
                assert job is not None, "a ready id without a job"
                assert job.payload is not None, f"job {job.id} has lost its payload"
                if job.options is not options:
                    options = job.options
                    if jobs and command.lease_ms is None and _lease_ms(job) != _lease_ms(jobs[0]):
                        return jobs
                    more_bytes = _REPLY_JOB_BYTES
                    if options.metadata is not None:
                        more_bytes += model.METADATA_BYTES_MAX
                size += len(job.payload) + more_bytes
                if size > model.REPLY_BYTES_MAX and jobs:
                    return jobs
                jobs.append(job)
        if len(jobs) >= command.count:
            break
    return jobs


def _lease_ms(job: Job) -> int:
    return job.options.lease_ms or model.LEASE_MS_DEFAULT


def _next_token(state: State, now: Now, emit: Emit) -> int:
    if state.grant >= model.GRANT_MAX:
        emit(EpochRaised(next_epoch(state, now)))
    return state.epoch << model.GRANT_BITS | state.grant + 1


def next_epoch(state: State, now: Now) -> int:
    """Return an epoch above all that tokens were made with, even in a later copy of this store."""
    return max(state.epoch + 1, now.wall_ms // 1_000)


def _leased_job(job: Job) -> LeasedJob:
    options = job.options
    assert job.payload is not None
    return LeasedJob(  # by position, in half the time that keywords take
        job.id,
        options.queue,
        job.attempt,
        job.payload,
        options.encoding,
        options.priority,
        options.task,
        options.metadata,
        options.delivery,
        job.errors,
        job.crashes,
    )


# A field added in the middle would shift what _leased_job() says by position.
assert LeasedJob.__struct_fields__ == (
    *("job_id", "queue", "attempt", "payload", "encoding", "priority", "task", "metadata"),
    *("delivery", "errors", "crashes"),
)


def leased_again(token: int, state: State, now: Now) -> Leased:
    """Answer a retried lease: what is still held under its token, without at-most-once jobs.

    Those may have reached the worker the first time, and are never sent twice.
    """
    held = [
        (max(0, part.deadline_ms - now.engine_ms), job)
        for part in state.leases.get(token, {}).values()
        if part.deadline_ms > _judged_ms(state, now)
        for job in live_jobs(part, state)
        if job.options.delivery == "at_least_once"
    ]
    return Leased(
        token=token if held else 0,
        lease_ms_left=min((left_ms for left_ms, _ in held), default=0),
        wall_ms=now.wall_ms,
        jobs=[_leased_job(job) for _, job in held],
    )


def _judged_ms(state: State, now: Now) -> int:
    """Return the time by which leases are judged: a deadline at or before it has passed."""
    return now.engine_ms - state.lease_lag_ms


def live_jobs(lease: Lease, state: State) -> Iterator[Job]:
    """Yield the jobs that a lease still holds, in the order of its ranges."""
    for first, count in lease.ranges:
        state.work += count
        for job in state.run(first, count):
            if job is not None and job.lease is lease:
                yield job


# --- held jobs: extend, ack, fail, release -------------------------------------------------------


def extend(command: Extend, state: State, caller: Caller, now: Now, emit: Emit) -> Extended:
    """Move the deadline of held jobs to now + lease_ms; without it, to now + what each lease was given.

    State:   leased -> leased.
    Returns: a verdict per run: ok, job_not_found, lease_lost (token not current, or deadline passed);
             lease_ms_left is the shortest of those extended, 0 if there is none.
    Source:  protocol.md "extend"; beanstalkd touch; SQS ChangeMessageVisibility.
    """
    _check_ranges(ranges for _, ranges in command.items)
    results: list[Verdict] = []
    left_ms: list[int] = []
    for token, ranges in command.items:
        held = _held(state, now, token, ranges, results)
        for lease_ms, part in _by_lease_ms(held, command.lease_ms, state):
            emit(LeasesExtended(token, lease_ms, part, caller.principal))
            left_ms.append(lease_ms)
    return Extended(results=results, lease_ms_left=min(left_ms, default=0))


def _by_lease_ms(
    held: list[tuple[int, int]], lease_ms: int | None, state: State
) -> list[tuple[int, list[tuple[int, int]]]]:
    """Group held ranges by the lease time they get."""
    if not held:
        return []
    if lease_ms is not None:
        return [(lease_ms, held)]
    groups: dict[int, list[int]] = {}
    for first, count in held:
        for job in state.run(first, count):
            assert job is not None
            assert job.lease is not None
            groups.setdefault(job.lease.lease_ms, []).append(job.id)
    return [(ms, to_ranges(ids)) for ms, ids in groups.items()]


def ack(command: Ack, state: State, caller: Caller, now: Now, emit: Emit) -> Verdicts:
    """Finish held jobs: done, or with result_error dead without another attempt.

    State:   leased -> done | dead (refused).
    Returns: a verdict per run: ok, job_not_found, lease_lost.
    Raises:  InvalidArgument, PayloadTooLarge (result).
    """
    _check_ranges(ranges for _, ranges, _ in command.items)
    for index, (_, _, result) in enumerate(command.items):
        if result is not None and len(result) > model.RESULT_BYTES_MAX:
            raise PayloadTooLarge(
                f"items[{index}] result = {len(result)} bytes: the limit is {model.RESULT_BYTES_MAX}"
            )
        if result is not None and command.result_error is not None:
            raise InvalidArgument(
                f"items[{index}] result = {len(result)} bytes: with result_error there is none"
            )
    results: list[Verdict] = []
    plain: list[
        tuple[int, int]
    ] = []  # all that end alike are one fact; ranges are disjoint, so they can wait
    for token, ranges, result in command.items:
        held = _held(state, now, token, ranges, results)
        if result is None:
            plain += held
        elif held:
            emit(JobsDone(held, result, command.encoding, caller.principal))
    if plain and command.result_error is not None:
        error = _cut_text(command.result_error)
        emit(JobsDied(plain, "refused", "error", error, caller.principal))
    elif plain:
        emit(JobsDone(plain, None, "raw", caller.principal))
    return Verdicts(results=results)


def fail(command: Fail, state: State, caller: Caller, now: Now, emit: Emit) -> Verdicts:
    """Give held jobs back as failed: another attempt after the backoff, or dead after the last one.

    State:   leased -> delayed | ready (retry_in_ms 0) | dead (retries; killed with `dead`).
    Returns: a verdict per run: ok, job_not_found, lease_lost.
    """
    if command.dead and command.retry_in_ms is not None:
        raise InvalidArgument(f"retry_in_ms = {command.retry_in_ms}: with dead there is no retry")
    _check_ranges(ranges for _, ranges in command.items)
    results: list[Verdict] = []
    retried: list[tuple[int, int]] = []
    dead: list[int] = []
    for token, ranges in command.items:
        for job in _jobs(state, _held(state, now, token, ranges, results)):
            if command.dead or job.errors + 1 > _max_retries(job):
                dead.append(job.id)
            elif command.retry_in_ms is None:
                delay_ms = backoff.retry_delay_ms(job.errors + 1, job.id, job.attempt)
                retried.append((job.id, now.engine_ms + delay_ms))
            else:
                retried.append((job.id, now.engine_ms + command.retry_in_ms if command.retry_in_ms else 0))
    error = _cut_text(command.error)
    if retried:
        emit(JobsRetried(retried, "error", error, caller.principal))
    if dead:
        reason: DeadReason = "killed" if command.dead else "retries"
        emit(JobsDied(to_ranges(dead), reason, "error", error, caller.principal))
    return Verdicts(results=results)


def release(command: Release, state: State, caller: Caller, now: Now, emit: Emit) -> Verdicts:
    """Give held jobs back unworked, ready at once or after delay_ms; the attempt does not count.

    State:   leased -> ready | delayed.
    Returns: a verdict per run: ok, job_not_found, lease_lost.
    """
    _check_ranges(ranges for _, ranges in command.items)
    results: list[Verdict] = []
    held: list[tuple[int, int]] = []
    for token, ranges in command.items:
        held += _held(state, now, token, ranges, results)
    if held:
        due_ms = now.engine_ms + command.delay_ms if command.delay_ms else 0
        emit(JobsReleased(held, due_ms, caller.principal))
    return Verdicts(results=results)


def take_back(token: int, state: State, emit: Emit) -> None:
    """Undo a grant whose reply never reached a socket: as if it had been released."""
    jobs = [job.id for part in state.leases.get(token, {}).values() for job in live_jobs(part, state)]
    if jobs:
        emit(JobsReleased(to_ranges(jobs)))


def _check_ranges(items: Iterable[Sequence[tuple[int, int]]]) -> None:
    """Refuse requests that name too many jobs, or one job twice.

    A job named twice would be judged twice before its first change; so it is an error.
    """
    ranges = [one for ranges in items for one in ranges]
    if len(ranges) == 1:
        return
    ranges.sort()
    total = sum(count for _, count in ranges)
    if total > model.JOBS_PER_REQUEST_MAX:
        raise InvalidArgument(f"{total} jobs: the limit is {model.JOBS_PER_REQUEST_MAX} a request")
    end = 0
    for first, count in ranges:
        if first < end:
            raise InvalidArgument(f"job_id = {first} is named twice in one request")
        end = first + count


def _held(
    state: State, now: Now, token: int, ranges: Sequence[tuple[int, int]], results: list[Verdict]
) -> list[tuple[int, int]]:
    """Return what of the ranges is held under the token, and add a verdict for all of it."""
    judged_ms = _judged_ms(state, now)
    held: list[tuple[int, int]] = []
    for first, count in ranges:
        jobs = state.run(first, count)
        lease = jobs[0].lease if jobs[0] is not None else None
        if lease is not None and lease.token == token and lease.deadline_ms > judged_ms:
            for job in jobs:
                if job is None or job.lease is not lease:
                    break
            else:
                held.append((first, count))
                _add_verdict(results, first, count, OK)
                continue
        state.work += count  # what is refused is counted by no change
        for job_id, job in enumerate(jobs, first):
            verdict = _verdict(job, token, judged_ms)
            if verdict is OK:
                held.append((job_id, 1))
            _add_verdict(results, job_id, 1, verdict)
    return held


def _verdict(job: Job | None, token: int, judged_ms: int) -> str:
    if job is None:
        return JOB_NOT_FOUND
    if job.lease is None or job.lease.token != token or job.lease.deadline_ms <= judged_ms:
        return LEASE_LOST
    return OK


def _add_verdict(results: list[Verdict], first: int, count: int, code: str) -> None:
    if results:
        last_first, last_count, last_code = results[-1]
        if last_code == code and last_first + last_count == first:
            results[-1] = (last_first, last_count + count, code)
            return
    results.append((first, count, code))


def _jobs(state: State, ranges: Sequence[tuple[int, int]]) -> Iterator[Job]:
    for first, count in ranges:
        for job in state.run(first, count):
            assert job is not None
            yield job


def _max_retries(job: Job) -> int:
    limit = job.options.max_retries
    return model.MAX_RETRIES_DEFAULT if limit is None else limit


def _max_crashes(job: Job) -> int:
    limit = job.options.max_crashes
    return model.MAX_CRASHES_DEFAULT if limit is None else limit


def _cut_text(text: str) -> str:
    """Cut an error text to its limit in bytes: losing its end is better than losing the report."""
    raw = text.encode("utf-8", "replace")
    if len(raw) <= model.ERROR_TEXT_BYTES_MAX:
        return raw.decode()
    return raw[: model.ERROR_TEXT_BYTES_MAX].decode("utf-8", "ignore")


# --- time ---------------------------------------------------------------------------------------


def expire_leases(state: State, now: Now, emit: Emit, limit: int) -> None:
    """End leases whose deadline has come, up to `limit` jobs.

    An expired lease is a crash: the first one is retried at once, later ones after the backoff,
    one too many is dead. A lease that was live at the daemon's start and not extended since counts
    nothing. An at-most-once job is dead: it may have run.
    """
    judged_ms = _judged_ms(state, now)
    while limit > 0 and state.lease_timers and state.lease_timers.first()[0] <= judged_ms:
        _, token = state.lease_timers.first()
        for part in [part for part in state.leases[token].values() if part.deadline_ms <= judged_ms]:
            jobs = [job for job, _ in zip(live_jobs(part, state), range(limit), strict=False)]
            limit -= len(jobs)
            if jobs:
                _expire(jobs, now, emit, "restart" if part.restarted else "crash", part)


def _expire(jobs: list[Job], now: Now, emit: Emit, cause: model.Cause, lease: Lease) -> None:
    retried: list[tuple[int, int]] = []
    crashed: list[int] = []
    abandoned: list[int] = []
    for job in jobs:
        if job.options.delivery == "at_most_once":
            abandoned.append(job.id)
        elif cause == "restart" or (job.crashes == 0 and _max_crashes(job) > 0):
            retried.append((job.id, 0))
        elif job.crashes + 1 > _max_crashes(job):
            crashed.append(job.id)
        else:
            delay_ms = backoff.retry_delay_ms(job.crashes, job.id, job.attempt)
            retried.append((job.id, now.engine_ms + delay_ms))
    error = f"lease of {lease.lease_ms} ms ran out"
    if retried:
        emit(JobsRetried(retried, cause, error))
    if crashed:
        emit(JobsDied(to_ranges(crashed), "crashes", cause, error))
    if abandoned:
        emit(JobsDied(to_ranges(abandoned), "abandoned", cause, error))


def forget_old_jobs(state: State, now: Now, emit: Emit, limit: int) -> None:
    """Apply retention by age and by count, up to `limit` jobs."""
    for timers, shelf, retention_ms in (
        (state.finished_timers, "finished", model.FINISHED_RETENTION_MS),
        (state.dead_timers, "dead", model.DEAD_RETENTION_MS),
    ):
        while limit > 0 and timers and timers.first()[0] <= now.engine_ms:
            ids: list[int] = []
            for job_id in getattr(state.queues[timers.first()[1]], shelf):
                job = state.known_job(job_id)
                if len(ids) >= limit or job.changed.engine_ms + retention_ms > now.engine_ms:
                    break
                ids.append(job_id)
            emit(JobsForgotten(to_ranges(ids)))
            limit -= len(ids)
    while limit > 0 and state.overfull:
        ids = state.queues[next(iter(state.overfull))].excess()[:limit]
        emit(JobsForgotten(to_ranges(ids)))
        limit -= len(ids)


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


# --- bulk action --------------------------------------------------------------------------------

_WAITING: Final = (DELAYED, READY)


def cancel(command: Cancel, state: State, caller: Caller, now: Now, emit: Emit) -> Swept:  # noqa: ARG001
    """End waiting jobs for good.

    State:  delayed | ready -> cancelled.
    Raises: InvalidArgument, WrongState (filter.state), QueueNotFound.
    """
    return _sweep(
        command, state, _WAITING, _WAITING, lambda ranges: emit(JobsCancelled(ranges, caller.principal))
    )


def requeue(command: Requeue, state: State, caller: Caller, now: Now, emit: Emit) -> Swept:  # noqa: ARG001
    """Make dead jobs ready again: new budgets of errors and crashes, same history, a higher token.

    State:  dead -> ready.
    Raises: InvalidArgument, WrongState (filter.state), QueueNotFound.
    """
    return _sweep(
        command, state, (DEAD,), (DEAD,), lambda ranges: emit(JobsRequeued(ranges, caller.principal))
    )


def purge(command: Purge, state: State, caller: Caller, now: Now, emit: Emit) -> Swept:  # noqa: ARG001
    """Remove waiting jobs without a trace; dead ones where ids or filter.state name them.

    State:  delayed | ready | dead -> gone.
    Raises: InvalidArgument, WrongState (filter.state), QueueNotFound.
    """
    accepted = (*_WAITING, DEAD)
    return _sweep(
        command, state, accepted, _WAITING, lambda ranges: emit(JobsForgotten(ranges, caller.principal))
    )


def _sweep(
    command: Sweep,
    state: State,
    accepted: tuple[JobState, ...],
    default: tuple[JobState, ...],
    act: Callable[[list[tuple[int, int]]], None],
) -> Swept:
    """Find the jobs that `ids` or `filter` mean, and act on them unless it is a dry run.

    accepted: states that may be named; default: those meant by a filter without a state.
    """
    results: list[Verdict] = []
    cursor: int | None = None
    if (command.ids is None) == (command.filter is None):
        raise InvalidArgument(f"{command.verb} takes either ids or filter")
    if command.ids is not None and command.cursor:
        raise InvalidArgument(f"cursor = {command.cursor}: with ids there is nothing to go on with")
    if command.ids is not None and command.limit != model.LIST_LIMIT_MAX:
        raise InvalidArgument(f"limit = {command.limit}: with ids all of them are meant")
    if command.ids is not None:
        found = _by_ids(command.ids, state, accepted, results)
    else:
        assert command.filter is not None
        found, cursor = _by_filter(command, command.filter, state, accepted, default)
    if found and not command.dry_run:
        act(to_ranges(found))
    return Swept(count=len(found), cursor=cursor, results=results)


def _by_ids(
    ids: Sequence[tuple[int, int]], state: State, accepted: tuple[JobState, ...], results: list[Verdict]
) -> list[int]:
    _check_ranges([ids])
    found: list[int] = []
    for first, count in ids:
        state.work += count
        for job_id, job in enumerate(state.run(first, count), first):
            if job is None:
                code = JOB_NOT_FOUND
            elif job.state in accepted:
                code = OK
                found.append(job_id)
            else:
                code = WRONG_STATE
            _add_verdict(results, job_id, 1, code)
    return found


def _by_filter(
    command: Sweep,
    wanted: JobFilter,
    state: State,
    accepted: tuple[JobState, ...],
    default: tuple[JobState, ...],
) -> tuple[list[int], int | None]:
    states = default
    if wanted.state is not None:
        states = (model.STATES_BY_NAME[wanted.state],)
        if states[0] not in accepted:
            names = " ".join(one.wire_name for one in accepted)
            raise WrongState(f"filter.state = {wanted.state}: {command.verb} takes {names}")
    jobs, cursor = _scan(state, wanted.queue, states, command.cursor, command.limit)
    return [job.id for job in jobs], cursor


def _scan(
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


# --- reading ------------------------------------------------------------------------------------


def get(command: Get, state: State, caller: Caller, now: Now, emit: Emit) -> JobInfo:  # noqa: ARG001
    """Show one job with its payload.

    Raises: JobNotFound.
    """
    job = state.known_job(command.job_id)
    info = job_info(job, now)
    info.payload = job.payload
    return info


def list_jobs(command: ListJobs, state: State, caller: Caller, now: Now, emit: Emit) -> JobList:  # noqa: ARG001
    """Show jobs in order of their ids, without payloads.

    Raises: QueueNotFound.
    """
    wanted = command.filter or JobFilter()
    states = tuple(JobState) if wanted.state is None else (model.STATES_BY_NAME[wanted.state],)
    jobs, cursor = _scan(state, wanted.queue, states, command.cursor, command.limit)
    infos: list[JobInfo] = []
    size = 0
    for job in jobs:
        size += _REPLY_JOB_BYTES * 4 + _extras_bytes(job)
        if infos and size > model.REPLY_BYTES_MAX:
            return JobList(jobs=infos, cursor=job.id)
        infos.append(job_info(job, now))
    return JobList(jobs=infos, cursor=cursor)


def _extras_bytes(job: Job) -> int:
    size = 0 if job.options.metadata is None else model.METADATA_BYTES_MAX
    if job.outcome is not None:
        size += len(job.outcome.result or b"")
        size += 4 * (len(job.outcome.error) + sum(len(attempt.error) for attempt in job.outcome.attempts))
    return size


def job_info(job: Job, now: Now) -> JobInfo:
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
        metadata=options.metadata,
        delivery=options.delivery,
        errors=job.errors,
        crashes=job.crashes,
        max_retries=_max_retries(job),
        max_crashes=_max_crashes(job),
        lease_ms=_lease_ms(job),
    )
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

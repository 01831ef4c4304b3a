"""What the holder of a lease says of its jobs: extend, ack, fail, release.

Knows:         who holds a job, what each verb makes of it, when a retry follows.
Must not know: leases that run out (passing.py), the wire.
"""

from collections.abc import Iterator, Sequence

from jqd.core import backoff, memory, model, settings
from jqd.core.changes import (
    JobsCancelled,
    JobsDied,
    JobsDone,
    JobsReleased,
    JobsRetried,
    LeasesExtended,
    ProgressReported,
    ResultsForgotten,
)
from jqd.core.commands import Ack, Extend, Extended, Fail, Release, Verdict, Verdicts, to_ranges
from jqd.core.deciding import (
    JOB_NOT_FOUND,
    LEASE_LOST,
    OK,
    Emit,
    add_verdict,
    check_ranges,
    check_split,
    has_room,
    judged_at_ms,
    kept_attempts,
    kept_error,
    without_marked,
)
from jqd.core.model import Caller, DeadReason, Job, Now, Progress
from jqd.core.state import State
from jqd.errors import InvalidArgument, PayloadTooLarge


def extend(command: Extend, state: State, caller: Caller, now: Now, emit: Emit) -> Extended:
    """Move the deadline of held jobs to now + lease_ms; without it, to now + what each lease was given.

    What it says of progress stands in the place of what was said before, as a whole, for all that are held. While memory
    is short it is not kept, and what was said before stays: a worker must not lose its jobs for that.

    State:   leased -> leased.
    Returns: a verdict per run: ok, job_not_found, lease_lost (token not current, or deadline passed);
             lease_ms_left is the shortest of those extended, 0 if there is none; cancel_marked: those of
             them that are to end.
    Raises:  InvalidArgument, Overloaded (far beyond the limit of memory, what would split leases).
    Source:  protocol.md "extend"; beanstalkd touch; SQS ChangeMessageVisibility.
    """
    percent, text = command.progress_percent, command.progress_text
    says_progress = percent is not None or text != ""
    if text and (size := len(text.encode())) > model.PROGRESS_TEXT_BYTES_MAX:
        raise InvalidArgument(f"progress_text = {size} bytes: the limit is {model.PROGRESS_TEXT_BYTES_MAX}")
    check_ranges(ranges for _, ranges in command.items)
    check_split(command.items, state)
    each_bytes = 0
    if says_progress:
        each_bytes = memory.EMPTY_OUTCOME_BYTES + memory.progress_bytes(Progress(percent, text))
    results: list[Verdict] = []
    left_ms: list[int] = []
    marked: list[tuple[int, int]] = []
    for token, ranges in command.items:
        held = _held(state, now, token, ranges, results)
        if says_progress and held and has_room(state, each_bytes * sum(count for _, count in held)):
            emit(ProgressReported(held, percent, text, caller.principal))
        marked += without_marked(held, state)[1]
        for lease_ms, part in _by_lease_ms(token, held, command.lease_ms, state):
            emit(LeasesExtended(token, lease_ms, part, caller.principal))
            left_ms.append(lease_ms)
    return Extended(results=results, lease_ms_left=min(left_ms, default=0), cancel_marked=marked)


def _by_lease_ms(
    token: int, held: list[tuple[int, int]], lease_ms: int | None, state: State
) -> list[tuple[int, list[tuple[int, int]]]]:
    """Group ranges that are held under a token by the lease time they get."""
    if not held:
        return []
    if lease_ms is not None:
        return [(lease_ms, held)]
    parts = state.leases[token]
    if len(parts) == 1:  # most grants were never split
        return [(part.lease_ms, held) for part in parts.values()]
    groups: dict[int, list[int]] = {}
    for first, count in held:
        for job in state.pages.run(first, count):
            assert job is not None
            assert job.lease is not None
            groups.setdefault(job.lease.lease_ms, []).append(job.id)
    return [(ms, to_ranges(ids)) for ms, ids in groups.items()]


def ack(command: Ack, state: State, caller: Caller, now: Now, emit: Emit) -> Verdicts:
    """Finish held jobs: done, or with result_error dead without another attempt.

    A result that would be far beyond the limit of memory goes at once: whoever asks for it is told that there was one.

    State:   leased -> done | dead (refused).
    Returns: a verdict per run: ok, job_not_found, lease_lost.
    Raises:  InvalidArgument, PayloadTooLarge (result).
    """
    check_ranges(ranges for _, ranges, _ in command.items)
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
            continue
        held, bare = _by_keeping(held, state)
        plain += bare
        if held:
            emit(JobsDone(held, result, command.encoding, caller.principal))
            if not state.memory.may_end_with():  # said once, and counted for each job
                emit(ResultsForgotten(held))
    if plain and command.result_error is not None:
        error = _cut_text(command.result_error)
        _bury(plain, sum(count for _, count in plain), "refused", error, state, caller, emit)
    elif plain:
        emit(JobsDone(plain, None, "raw", caller.principal))
    return Verdicts(results=results)


def _by_keeping(
    held: list[tuple[int, int]], state: State
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return the ranges of jobs whose result is kept, and of those whose submit said that none is."""
    kept: list[int] = []
    bare: list[int] = []
    for job in _jobs(state, held):
        (bare if job.options.result_ttl_ms == 0 else kept).append(job.id)
    return (to_ranges(kept), to_ranges(bare)) if bare else (held, [])


def fail(command: Fail, state: State, caller: Caller, now: Now, emit: Emit) -> Verdicts:
    """Give held jobs back as failed: another attempt after the backoff, or dead after the last one.

    State:   leased -> delayed | ready (retry_in_ms 0) | dead (retries; killed with `dead`);
             cancelled if it is marked to end.
    Returns: a verdict per run: ok, job_not_found, lease_lost.
    Raises:  InvalidArgument.
    """
    _check_retry(command)
    check_ranges(ranges for _, ranges in command.items)
    results: list[Verdict] = []
    retried: list[tuple[int, int]] = []
    dead: list[int] = []
    cancelled: list[int] = []
    for token, ranges in command.items:
        for job in _jobs(state, _held(state, now, token, ranges, results)):
            if state.marked_count and job.cancel_marked:
                cancelled.append(job.id)
                continue
            if command.dead or job.errors + 1 > settings.max_retries(job, state):
                dead.append(job.id)
                continue
            delay_ms = command.retry_in_ms
            if delay_ms is None:
                policy = command.retry or settings.retry_policy(job, state)
                delay_ms = backoff.retry_delay_ms(job.errors + 1, job.id, job.attempt, policy)
            retried.append((job.id, now.engine_ms + delay_ms if delay_ms else 0))
    error = _cut_text(command.error)
    if retried:
        kept = kept_attempts(state, len(retried), error)
        emit(JobsRetried(retried, "error", error, caller.principal, kept))
    if dead:
        reason: DeadReason = "killed" if command.dead else "retries"
        _bury(to_ranges(dead), len(dead), reason, error, state, caller, emit)
    if cancelled:
        text = kept_error(state, len(cancelled), error)
        emit(JobsCancelled(to_ranges(cancelled), caller.principal, "error", text))
    return Verdicts(results=results)


def _bury(
    ranges: list[tuple[int, int]],
    job_count: int,
    reason: DeadReason,
    error: str,
    state: State,
    caller: Caller,
    emit: Emit,
) -> None:
    """Let held jobs die, with as much of their history as there is room for."""
    kept = max(1, kept_attempts(state, job_count, error))
    emit(JobsDied(ranges, reason, "error", kept_error(state, job_count, error), caller.principal, kept))


def _check_retry(command: Fail) -> None:
    """Refuse a command that says two things about the next attempt, or what cannot be."""
    if command.dead and command.retry_in_ms is not None:
        raise InvalidArgument(f"retry_in_ms = {command.retry_in_ms}: with dead there is no retry")
    if command.retry is not None:
        if command.dead:
            raise InvalidArgument(f"retry.kind = {command.retry.kind}: with dead there is no retry")
        if command.retry_in_ms is not None:
            raise InvalidArgument(
                f"retry_in_ms = {command.retry_in_ms} and retry.kind = {command.retry.kind}: give one of them"
            )
        backoff.check_policy("retry", command.retry)


def release(command: Release, state: State, caller: Caller, now: Now, emit: Emit) -> Verdicts:
    """Give held jobs back unworked, ready at once or after delay_ms; the attempt does not count.

    State:   leased -> ready | delayed; cancelled if it is marked to end.
    Returns: a verdict per run: ok, job_not_found, lease_lost.
    """
    check_ranges(ranges for _, ranges in command.items)
    results: list[Verdict] = []
    held: list[tuple[int, int]] = []
    for token, ranges in command.items:
        held += _held(state, now, token, ranges, results)
    held, marked = without_marked(held, state)
    if held:
        due_ms = now.engine_ms + command.delay_ms if command.delay_ms else 0
        emit(JobsReleased(held, due_ms, caller.principal))
    if marked:
        emit(JobsCancelled(marked, caller.principal))
    return Verdicts(results=results)


def _held(
    state: State, now: Now, token: int, ranges: Sequence[tuple[int, int]], results: list[Verdict]
) -> list[tuple[int, int]]:
    """Return what of the ranges is held under the token, and add a verdict for all of it."""
    judged_ms = judged_at_ms(state, now)
    held: list[tuple[int, int]] = []
    for first, count in ranges:
        jobs = state.pages.run(first, count)
        lease = jobs[0].lease if jobs[0] is not None else None
        if lease is not None and lease.token == token and lease.deadline_ms > judged_ms:
            for job in jobs:
                if job is None or job.lease is not lease:
                    break
            else:
                held.append((first, count))
                add_verdict(results, first, count, OK)
                continue
        state.work += count  # what is refused is counted by no change
        for job_id, job in enumerate(jobs, first):
            verdict = _verdict(job, token, judged_ms)
            if verdict is OK:
                held.append((job_id, 1))
            add_verdict(results, job_id, 1, verdict)
    return held


def _verdict(job: Job | None, token: int, judged_ms: int) -> str:
    if job is None:
        return JOB_NOT_FOUND
    if job.lease is None or job.lease.token != token or job.lease.deadline_ms <= judged_ms:
        return LEASE_LOST
    return OK


def _jobs(state: State, ranges: Sequence[tuple[int, int]]) -> Iterator[Job]:
    for first, count in ranges:
        for job in state.pages.run(first, count):
            assert job is not None
            yield job


def _cut_text(text: str) -> str:
    """Cut an error text to its limit in bytes: losing its end is better than losing the report."""
    raw = text.encode("utf-8", "replace")
    if len(raw) <= model.ERROR_TEXT_BYTES_MAX:
        return raw.decode()
    return raw[: model.ERROR_TEXT_BYTES_MAX].decode("utf-8", "ignore")

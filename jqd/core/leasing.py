"""How jobs are handed out, and taken back where nobody got them.

Knows:         the order of handing out, tokens, how much fits into one reply.
Must not know: what a worker says of its jobs later (holding.py), who is parked (engine.py).
"""

from typing import Final

from jqd.core import model, settings
from jqd.core.changes import EpochRaised, JobsCancelled, JobsLeased, JobsReleased
from jqd.core.commands import Lease as LeaseCommand
from jqd.core.commands import Leased, LeasedJob, to_ranges
from jqd.core.deciding import REPLY_JOB_BYTES, Emit, judged_at_ms, live_jobs, without_marked
from jqd.core.model import Caller, Job, JobOptions, Now
from jqd.core.state import State
from jqd.errors import InvalidArgument

_GOLDEN: Final = 2_654_435_769  # 2^32 divided by the golden ratio
_U32: Final = (1 << 32) - 1


def lease(command: LeaseCommand, state: State, caller: Caller, now: Now, emit: Emit) -> Leased:
    """Hand out ready jobs under a new token, from the queues in the order given, or drawn by their weights.

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
    weights = command.weights
    if weights is not None and len(weights) != len(command.queues):
        raise InvalidArgument(
            f"weights = {len(weights)} items for {len(command.queues)} queues: give one for each"
        )
    jobs = _candidates(command, state, now)
    if not jobs:
        return Leased(token=0, lease_ms_left=0, wall_ms=now.wall_ms, jobs=[])
    lease_ms = command.lease_ms or settings.lease_ms(jobs[0], state)
    token = _next_token(state, now, emit)
    ranges = to_ranges([job.id for job in jobs])
    emit(JobsLeased(token, lease_ms, ranges, caller.worker, caller.session, caller.principal))
    return Leased(
        token=token, lease_ms_left=lease_ms, wall_ms=now.wall_ms, jobs=[_leased_job(job) for job in jobs]
    )


def _candidates(command: LeaseCommand, state: State, now: Now) -> list[Job]:
    """Return the jobs to hand out: in order, one lease time, together below the reply's limit.

    None behind one that has expired: Engine ends those first, but a bounded number at a time.
    """
    jobs: list[Job] = []
    size = 0
    options: JobOptions | None = None  # of the job before: most neighbours share theirs
    expires_ms: int | None = None
    more_bytes = 0  # of a job with these options, besides its payload
    queues = dict.fromkeys(command.queues) if command.weights is None else _drawn(command, state)
    for name in queues:
        ids = state.ready_ids(name, command.count - len(jobs))
        for first, count in to_ranges(ids):
            for job in state.pages.run(first, count):
                assert job is not None, "a ready id without a job"
                assert job.payload is not None, f"job {job.id} has lost its payload"
                if job.options is not options:
                    options = job.options
                    if (
                        jobs
                        and command.lease_ms is None
                        and settings.lease_ms(job, state) != settings.lease_ms(jobs[0], state)
                    ):
                        return jobs
                    expires_ms = options.expires_wall_ms
                    more_bytes = REPLY_JOB_BYTES
                    if options.metadata is not None:
                        more_bytes += model.METADATA_BYTES_MAX
                if expires_ms is not None and job.attempt == 0 and expires_ms <= now.wall_ms:
                    return jobs
                size += len(job.payload) + more_bytes
                if size > model.REPLY_BYTES_MAX and jobs:
                    return jobs
                jobs.append(job)
        if len(jobs) >= command.count:
            break
    return jobs


def _drawn(command: LeaseCommand, state: State) -> list[str]:
    """Return the queues that have jobs in an order that is drawn by their weights.

    Nothing is remembered between leases and nothing is random: the draw follows from the number of the grant.
    Its multiples of 2^32 divided by the golden ratio fall evenly over 0 .. 2^32 - 1, so that a queue is first in its
    share of any run of leases, and not only on average (Knuth, The Art of Computer Programming 3, 6.4).
    """
    assert command.weights is not None
    left: dict[str, int] = {}
    for name, weight in zip(command.queues, command.weights, strict=True):
        if name not in left and state.ready_ids(name, 1):
            left[name] = weight
    order: list[str] = []
    number = (state.grant + 1) * _GOLDEN & _U32
    while left:
        at = number * sum(left.values()) >> 32
        for name, weight in left.items():  # noqa: B007 - the last one is meant
            if at < weight:
                break
            at -= weight
        order.append(name)
        del left[name]
        number = (number + 1) * _GOLDEN & _U32
    return order


def _next_token(state: State, now: Now, emit: Emit) -> int:
    if state.grant >= model.GRANT_MAX:
        emit(EpochRaised(next_epoch(state, now)))
    return state.epoch << model.GRANT_BITS | state.grant + 1


def next_epoch(state: State, now: Now) -> int:
    """Return an epoch above all that tokens were made with, even in a later copy of this store."""
    date = now.wall_ms // 1_000
    return max(state.epoch + 1, date if date <= model.EPOCH_DATE_MAX else 0)


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
        options.tenant,
        options.group,
    )


# A field added in the middle would shift what _leased_job() says by position.
assert LeasedJob.__struct_fields__ == (
    *("job_id", "queue", "attempt", "payload", "encoding", "priority", "task", "metadata"),
    *("delivery", "errors", "crashes", "tenant", "group"),
)


def leased_again(token: int, state: State, now: Now) -> Leased:
    """Answer a retried lease: what is still held under its token, without at-most-once jobs.

    Those may have reached the worker the first time, and are never sent twice.
    """
    held = [
        (max(0, part.deadline_ms - now.engine_ms), job)
        for part in state.leases.get(token, {}).values()
        if part.deadline_ms > judged_at_ms(state, now)
        for job in live_jobs(part, state)
        if job.options.delivery == "at_least_once"
    ]
    return Leased(
        token=token if held else 0,
        lease_ms_left=min((left_ms for left_ms, _ in held), default=0),
        wall_ms=now.wall_ms,
        jobs=[_leased_job(job) for _, job in held],
    )


def take_back(token: int, state: State, emit: Emit) -> None:
    """Undo a grant whose reply never reached a socket: as if it had been released."""
    jobs = [job.id for part in state.leases.get(token, {}).values() for job in live_jobs(part, state)]
    held, marked = without_marked(to_ranges(jobs), state)
    if held:
        emit(JobsReleased(held))
    if marked:
        emit(JobsCancelled(marked))

"""What the decisions have in common: verdicts on jobs that are named, and the time by which leases are judged.

Knows:         how a request names jobs, how an answer says what became of each.
Must not know: any one command.

A decision validates all it needs, which may raise, and only then emits changes. Each change is
applied before the next one is emitted, so a decision may look at the state in between. After the
first change nothing may raise: the process would have to stop.

    decide(command, state, caller, now, emit) -> reply body

submitting.py, updating.py, leasing.py, holding.py, passing.py, sweeping.py, reading.py and queues.py decide;
protocol.md says their rules to the user.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from jqd.core import model
from jqd.core.changes import Change
from jqd.core.commands import Verdict, to_ranges
from jqd.core.memory import LEASE_BYTES, RANGE_BYTES, failure_bytes
from jqd.core.model import Job, Lease, Now
from jqd.core.state import State
from jqd.errors import InvalidArgument, Overloaded

Emit = Callable[[Change], None]

OK: Final = "ok"
JOB_NOT_FOUND: Final = "job_not_found"
LEASE_LOST: Final = "lease_lost"
WRONG_STATE: Final = "wrong_state"
DUPLICATE: Final = "duplicate"

# What a job costs in a reply besides its payload: keys, numbers, a queue's name. An estimate.
REPLY_JOB_BYTES: Final = 160


def judged_at_ms(state: State, now: Now) -> int:
    """Return the time by which leases are judged: a deadline at or before it has passed."""
    return now.engine_ms - state.lease_lag_ms


def has_room(state: State, added_bytes: int) -> bool:
    """Tell whether so much more stays within the soft limit of memory."""
    return state.memory.bytes + added_bytes <= state.memory.soft_bytes


def check_memory(state: State, added_bytes: int) -> None:
    """Refuse what would add to memory beyond the soft limit.

    Args:   added_bytes: that it adds, at least about.
    Raises: Overloaded.
    """
    if not has_room(state, added_bytes):
        memory = state.memory
        raise _overloaded(
            state,
            added_bytes,
            f"memory = {memory.bytes} bytes, and {added_bytes} more would come: the limit is {memory.soft_bytes}",
        )


def _overloaded(state: State, added_bytes: int, message: str) -> Overloaded:
    return Overloaded(
        message,
        retry_after_ms=model.SECOND_MS,
        details={
            "memory_bytes": state.memory.bytes,
            "added_bytes": added_bytes,
            "memory_soft_bytes": state.memory.soft_bytes,
        },
    )


def check_split(items: Sequence[tuple[int, Sequence[tuple[int, int]]]], state: State) -> None:
    """Refuse to extend parts of leases far beyond the soft limit: each becomes a lease of its own.

    What renews a lease as a whole, or all that is left of one, goes on.

    Raises: Overloaded.
    """
    memory = state.memory
    added_bytes = sum(LEASE_BYTES + RANGE_BYTES * len(ranges) for _, ranges in items)
    if memory.bytes + added_bytes <= memory.split_bytes:
        return
    left: dict[int, dict[int, int]] = {}  # token -> part of its grant -> jobs that are not named
    for token, ranges in items:
        if token not in left:
            left[token] = {key: part.live_count for key, part in state.leases.get(token, {}).items()}
        for first, count in ranges:
            for job in state.pages.run(first, count):
                if job is not None and id(job.lease) in left[token]:
                    left[token][id(job.lease)] -= 1
    for token, counts in left.items():
        for key, count in counts.items():
            if not count:  # it goes
                added_bytes -= LEASE_BYTES + RANGE_BYTES * len(state.leases[token][key].ranges)
    if added_bytes > 0:
        check_held(state, added_bytes, "parts of leases", "extend all jobs of a lease together")


def check_held(state: State, added_bytes: int, what: str, advice: str) -> None:
    """Refuse what is noted of held jobs beyond the room that there is for that above the soft limit.

    Raises: Overloaded.
    """
    memory = state.memory
    if memory.bytes + added_bytes > memory.split_bytes:
        raise _overloaded(
            state,
            added_bytes,
            f"memory = {memory.bytes} bytes, and {what} would take {added_bytes} more: the limit is "
            f"{memory.split_bytes}; {advice}",
        )


def kept_attempts(state: State, job_count: int, error: str) -> int:
    """Return how many attempts the histories of jobs keep that are tried again: none if memory would be short then.

    What ends attempts goes on then, and must not add to what waits. Who dies keeps one: retention sees to the dead.

    Args: error: that the attempts end with, kept for each job.
    """
    return model.HISTORY_COUNT_MAX if has_room(state, job_count * failure_bytes(error)) else 0


def kept_error(state: State, job_count: int, error: str) -> str:
    """Return what jobs keep that end with an error: its text, or "" far beyond the limit of memory.

    A request says a text once and its jobs count it each, 10,000 times 40 KB. To refuse it would leave them held, and no
    memory would ever be given back: the loss of a text is better than that of the report.
    """
    return error if state.memory.may_end_with(job_count * failure_bytes(error)) else ""


def live_jobs(lease: Lease, state: State) -> Iterator[Job]:
    """Yield the jobs that a lease still holds, in the order of its ranges."""
    for first, count in lease.ranges:
        state.work += count
        for job in state.pages.run(first, count):
            if job is not None and job.lease is lease:
                yield job


def jobs_of(ranges: Iterable[tuple[int, int]], state: State) -> Iterator[Job]:
    """Yield the jobs of ranges that are there."""
    for first, count in ranges:
        for job in state.pages.run(first, count):
            if job is not None:
                yield job


def without_marked(
    ranges: list[tuple[int, int]], state: State
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return held ranges without the jobs that are marked to end, and these."""
    if not state.marked_count:
        return ranges, []
    jobs = list(jobs_of(ranges, state))
    state.work += len(jobs)
    marked = [job.id for job in jobs if job.cancel_marked]
    return to_ranges([job.id for job in jobs if not job.cancel_marked]), to_ranges(marked)


def check_ranges(items: Iterable[Sequence[tuple[int, int]]]) -> None:
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


def add_verdict(results: list[Verdict], first: int, count: int, code: str) -> None:
    """Add what became of consecutive ids, joined to the run before where that goes on."""
    if results:
        last_first, last_count, last_code = results[-1]
        if last_code == code and last_first + last_count == first:
            results[-1] = (last_first, last_count + count, code)
            return
    results.append((first, count, code))

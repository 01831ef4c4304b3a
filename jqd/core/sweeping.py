"""What is done to many jobs at once, by ids or by filter: cancel, requeue, purge.

Knows:         which states each verb takes, how far one call goes.
Must not know: who holds a job (holding.py), the wire.
"""

from collections.abc import Callable, Sequence

from jqd.core import filters, model
from jqd.core.changes import JobsCancelled, JobsCancelMarked, JobsForgotten, JobsRequeued
from jqd.core.commands import Cancel, JobFilter, Purge, Requeue, Sweep, Swept, Verdict, to_ranges
from jqd.core.deciding import (
    DUPLICATE,
    JOB_NOT_FOUND,
    OK,
    WRONG_STATE,
    Emit,
    add_verdict,
    check_held,
    check_ranges,
    jobs_of,
)
from jqd.core.keys import dedupe_name
from jqd.core.memory import EMPTY_OUTCOME_BYTES
from jqd.core.model import Caller, Job, JobState, Now
from jqd.core.reading import scan
from jqd.core.state import DEAD, LEASED, WAITING, State, holds_while_alive
from jqd.errors import InvalidArgument, WrongState


def cancel(command: Cancel, state: State, caller: Caller, now: Now, emit: Emit) -> Swept:
    """End waiting jobs for good; with `running` mark held ones, which end when their lease does.

    State:  delayed | ready -> cancelled; leased -> leased, marked.
    Raises: InvalidArgument, WrongState (filter), QueueNotFound, Overloaded (marks, far beyond the limit of memory).
    """

    def act(ranges: list[tuple[int, int]]) -> None:
        jobs = list(jobs_of(ranges, state))
        waiting = [job.id for job in jobs if job.state is not LEASED]
        unmarked = [job for job in jobs if job.state is LEASED and not job.cancel_marked]
        held = [job.id for job in unmarked]
        if held:
            added_bytes = EMPTY_OUTCOME_BYTES * sum(job.outcome is None for job in unmarked)
            check_held(state, added_bytes, "marks", "those that are marked are to end first")
        if waiting:
            emit(JobsCancelled(to_ranges(waiting), caller.principal))
        if held:
            emit(JobsCancelMarked(to_ranges(held), caller.principal))

    accepted = (*WAITING, LEASED) if command.running else WAITING
    return _sweep(command, state, now, accepted, accepted, act)


def requeue(command: Requeue, state: State, caller: Caller, now: Now, emit: Emit) -> Swept:
    """Make dead jobs ready again: new budgets of errors and crashes, same history, a higher token.

    State:  dead -> ready.
    A job that would live beside another one with its dedupe key stays dead: duplicate.

    Raises: InvalidArgument, WrongState (filter), QueueNotFound.
    """
    taken: set[str] = set()  # keys of those found so far

    def is_second(job: Job) -> bool:
        options = job.options
        if options.dedupe_key is None or not holds_while_alive(options):
            return False
        name = dedupe_name(options)
        if name in taken or state.key(name, now) is not None:
            return True
        taken.add(name)
        return False

    return _sweep(
        command,
        state,
        now,
        (DEAD,),
        (DEAD,),
        lambda ranges: emit(JobsRequeued(ranges, caller.principal)),
        is_second,
    )


def purge(command: Purge, state: State, caller: Caller, now: Now, emit: Emit) -> Swept:
    """Remove waiting jobs without a trace; dead ones where ids or filter.state name them.

    State:  delayed | ready | dead -> gone.
    Raises: InvalidArgument, WrongState (filter), QueueNotFound.
    """
    accepted = (*WAITING, DEAD)
    return _sweep(
        command, state, now, accepted, WAITING, lambda ranges: emit(JobsForgotten(ranges, caller.principal))
    )


def _sweep(
    command: Sweep,
    state: State,
    now: Now,
    accepted: tuple[JobState, ...],
    default: tuple[JobState, ...],
    act: Callable[[list[tuple[int, int]]], None],
    is_second: Callable[[Job], bool] = lambda _: False,
) -> Swept:
    """Find the jobs that `ids` or `filter` mean, and act on them unless it is a dry run.

    accepted: states that may be named; default: those meant by a filter that says nothing about states.
    is_second: tells of a job, in the order in which they are found, that another one stands in its way.
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
        found = _by_ids(command.ids, state, accepted, is_second, results)
    else:
        assert command.filter is not None
        found, cursor = _by_filter(command, command.filter, state, now, accepted, default, is_second)
    marked = 0
    if LEASED in accepted:
        marked = sum(state.known_job(job_id).state is LEASED for job_id in found)
    if found and not command.dry_run:
        act(to_ranges(found))
    return Swept(count=len(found), cursor=cursor, results=results, marked=marked)


def _by_ids(
    ids: Sequence[tuple[int, int]],
    state: State,
    accepted: tuple[JobState, ...],
    is_second: Callable[[Job], bool],
    results: list[Verdict],
) -> list[int]:
    check_ranges([ids])
    found: list[int] = []
    for first, count in ids:
        state.work += count
        for job_id, job in enumerate(state.pages.run(first, count), first):
            if job is None:
                code = JOB_NOT_FOUND
            elif job.state in accepted:
                code = DUPLICATE if is_second(job) else OK
                if code is OK:
                    found.append(job_id)
            else:
                code = WRONG_STATE
            add_verdict(results, job_id, 1, code)
    return found


def _by_filter(
    command: Sweep,
    wanted: JobFilter,
    state: State,
    now: Now,
    accepted: tuple[JobState, ...],
    default: tuple[JobState, ...],
    is_second: Callable[[Job], bool],
) -> tuple[list[int], int | None]:
    states = frozenset(default)
    where = None if wanted.where is None else filters.parse(wanted.where, now)
    names = " ".join(one.wire_name for one in accepted)
    if wanted.state is not None:
        states = frozenset({model.STATES_BY_NAME[wanted.state]})
        if not states.issubset(accepted):
            raise WrongState(f"filter.state = {wanted.state}: {command.verb} takes {names}")
    elif where is not None and where.names_state:
        states = where.states & frozenset(accepted)
        if not states:
            raise WrongState(
                f"filter.where means no job in one of these states: {command.verb} takes {names}"
            )
    jobs, cursor = scan(state, wanted.queue, states, where, command.cursor, command.limit)
    return [job.id for job in jobs if not is_second(job)], cursor

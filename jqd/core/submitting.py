"""How jobs come: one by one, in a run, in bulk.

Knows:         how the jobs of one request, or of requests that came together, become facts.
Must not know: what the fields mean (fields.py), what becomes of a job later, the wire.
"""

from collections.abc import Sequence

from msgspec.structs import astuple

from jqd.core import model
from jqd.core.changes import JobsSubmitted
from jqd.core.commands import Submit, SubmitMany, Submitted, SubmittedMany
from jqd.core.deciding import Emit
from jqd.core.fields import due_of, options_of, payload_too_large
from jqd.core.model import Caller, Now
from jqd.core.state import State
from jqd.errors import InvalidArgument, JqdError


def submit(command: Submit, state: State, caller: Caller, now: Now, emit: Emit) -> Submitted:
    """Add one job, ready at once or at its time.

    Returns: its id.          Cost: O(1); O(log delayed) with a time.
    Raises:  InvalidArgument, PayloadTooLarge.
    """
    options = options_of(command, state)
    due_engine_ms, due_wall_ms = due_of(command.delay_ms, command.run_at_ms, now)
    payload = command.payload
    if len(payload) > model.PAYLOAD_BYTES_MAX:
        raise payload_too_large("payload", payload)
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
                    next_id,
                    options_of(command, state),
                    [],
                    *due_of(command.delay_ms, command.run_at_ms, now),
                    caller.principal,
                )
                alike = None
            if len(payload) > model.PAYLOAD_BYTES_MAX:
                raise payload_too_large("payload", payload)
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
            options = options_of(group, state)
            due_engine_ms, due_wall_ms = due_of(group.delay_ms, group.run_at_ms, now)
        except InvalidArgument as error:
            raise InvalidArgument(f"groups[{index}].{error}") from None
        if max(map(len, group.payloads)) > model.PAYLOAD_BYTES_MAX:
            number, payload = max(enumerate(group.payloads), key=lambda item: len(item[1]))
            raise payload_too_large(f"groups[{index}].payloads[{number}]", payload)
        changes.append(
            JobsSubmitted(next_id, options, group.payloads, due_engine_ms, due_wall_ms, caller.principal)
        )
        next_id += len(group.payloads)
    for change in changes:
        emit(change)
    return SubmittedMany(jobs=[(change.first_id, len(change.payloads), False) for change in changes])

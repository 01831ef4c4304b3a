"""How jobs come: one by one, in a run, in bulk.

Knows:         what a submit may say, and what its fields mean together.
Must not know: what becomes of a job later, the wire.
"""

from collections.abc import Sequence

from msgspec.structs import astuple

from jqd.core import backoff, model
from jqd.core.changes import JobsSubmitted
from jqd.core.commands import JobFields, Submit, SubmitGroup, SubmitMany, Submitted, SubmittedMany
from jqd.core.deciding import Emit
from jqd.core.model import Caller, JobOptions, Now
from jqd.core.state import State
from jqd.errors import InvalidArgument, JqdError, PayloadTooLarge


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
        if fields.retry is not None:
            raise InvalidArgument(
                f"retry.kind = {fields.retry.kind}: with delivery at_most_once nothing is retried"
            )
        max_retries = 0
    if fields.retry is not None:
        backoff.check_policy("retry", fields.retry)
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
            retry=fields.retry,
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

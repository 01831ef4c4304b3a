"""What a producer changes in a job that waits: its place, its time, what is in it.

Knows:         which jobs may still be changed, and what of them.
Must not know: how jobs come (submitting.py), who works on them.
"""

from msgspec.structs import replace

from jqd.core import memory, model
from jqd.core.changes import JobUpdated
from jqd.core.commands import Update, Updated
from jqd.core.deciding import Emit, check_memory
from jqd.core.fields import check_metadata, due_of, payload_too_large
from jqd.core.model import Caller, Encoding, Job, JobOptions, Now
from jqd.core.state import DELAYED, READY, WAITING, State
from jqd.errors import InvalidArgument, WrongState


def update(command: Update, state: State, caller: Caller, now: Now, emit: Emit) -> Updated:
    """Change a waiting job; what is not said stays.

    State:   delayed | ready -> the same, or with a time the one that it means.
    Raises:  InvalidArgument, PayloadTooLarge, JobNotFound, WrongState, Overloaded.
    Cost:    O(log waiting).
    """
    due_engine_ms, due_wall_ms = due_of(command.delay_ms, command.run_at_ms, now)
    payload = command.payload
    if payload is None and command.encoding is not None:
        raise InvalidArgument(f"encoding = {command.encoding}: there is no payload that it could be of")
    if command.metadata is not None:
        check_metadata(command.metadata)
    moved = command.delay_ms is not None or command.run_at_ms is not None
    if not moved and payload is None and command.priority is None and command.metadata is None:
        raise InvalidArgument("update says nothing: give priority, delay_ms, run_at_ms, payload or metadata")
    if payload is not None and len(payload) > model.PAYLOAD_BYTES_MAX:
        raise payload_too_large("payload", payload)
    job = state.known_job(command.job_id)
    if job.state not in WAITING:
        raise WrongState(
            f"job_id = {job.id}: it is {job.state.wire_name}; only a delayed or ready job can be updated"
        )
    options = changed_options(
        job,
        command.priority,
        command.encoding or (None if payload is None else "raw"),
        command.metadata,
    )
    if payload is not None or command.metadata is not None:
        added_bytes = len(payload or b"") + (0 if options is None else memory.own_bytes(options))
        check_memory(state, added_bytes)
    target = job.state
    if moved:
        target = READY if due_engine_ms is due_wall_ms is None else DELAYED
    emit(JobUpdated(job.id, target, options, payload, due_engine_ms, due_wall_ms, caller.principal))
    return Updated(job_id=job.id, state=job.state.wire_name)


def changed_options(
    job: Job, priority: int | None, encoding: Encoding | None, metadata: dict[str, str] | None
) -> JobOptions | None:
    """Return a job's options with what is not None changed; None: they stay as they are."""
    old = job.options
    options = replace(
        old,
        priority=old.priority if priority is None else priority,
        encoding=encoding or old.encoding,
        metadata=old.metadata if metadata is None else metadata,
    )
    return None if options == old else options

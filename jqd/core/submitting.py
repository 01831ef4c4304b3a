"""How jobs come: one by one, in a run, in bulk.

Knows:         how the jobs of one request, or of requests that came together, become facts.
Must not know: what the fields mean (fields.py), what becomes of a job later, the wire.
"""

from collections.abc import Sequence
from typing import Final

from msgspec.structs import astuple

from jqd.core import memory, model
from jqd.core.changes import Change, JobsSubmitted
from jqd.core.commands import Submit, SubmitGroup, SubmitMany, Submitted, SubmittedMany
from jqd.core.deciding import Emit, check_memory, has_room
from jqd.core.fields import due_of, is_keyed, options_of, payload_too_large
from jqd.core.keyed import plan
from jqd.core.keys import dedupe_name, idempotency_name
from jqd.core.model import Caller, JobOptions, Now
from jqd.core.state import State
from jqd.errors import InvalidArgument, JqdError, QueueFull

# What a run can add to memory where its jobs have nothing of their own but payloads: they came in one piece of a stream,
# behind a part of a frame, and are 1,024 at most.
_RUN_BYTES_MAX: Final = 32 << 20
# What can come with the jobs of one group besides them: a queue, a tenant, a priority, options with all their names.
_GROUP_BYTES_MAX: Final = 8 << 10


def submit(command: Submit, state: State, caller: Caller, now: Now, emit: Emit) -> Submitted:
    """Add one job, ready at once or at its time.

    Returns: its id.          Cost: O(1); O(log delayed) with a time.
    Raises:  InvalidArgument, PayloadTooLarge; with a key also IdempotencyConflict, Duplicate, Overloaded; then QueueFull,
             Overloaded.
    """
    options = options_of(command, state, now)
    due_engine_ms, due_wall_ms = due_of(command.delay_ms, command.run_at_ms, now)
    payload = command.payload
    size = len(payload)
    if size > model.PAYLOAD_BYTES_MAX:
        raise payload_too_large("payload", payload)
    job_id = state.pages.next_id
    if command.idempotency_key is not None or options.dedupe_key is not None:
        planned = plan(command, options, [payload], state, caller, now, next_id=job_id)
        if not planned.existing:
            check_room(state, {options.queue: 1})
        if planned.changes:
            check_memory(state, planned.added_bytes)
        for change in planned.changes:
            emit(change)
        return Submitted(job_id=planned.first_id, existing=planned.existing)
    if state.bounded_queues:
        check_room(state, {options.queue: 1})
    if state.memory.bytes + size > state.memory.soft_bytes:
        check_memory(state, size)
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
    next_id = state.pages.next_id
    room_bytes = state.memory.soft_bytes - state.memory.bytes
    is_near = room_bytes < _RUN_BYTES_MAX  # to the limit of memory, so that each job is measured
    more_bytes = 0  # of each job of the newest, besides its payload
    came: dict[object, int] = {}  # with those before it
    new: dict[object, int] = {}  # what comes with the first job of the newest
    for command in commands:
        payload = command.payload
        fields = astuple(command)[1:]
        try:
            if fields != alike:
                if is_keyed(command) or (state.bounded_queues and command.queue in state.bounded_queues):
                    # What becomes of it depends on those before it.
                    for change in changes:
                        emit(change)
                    changes, alike = [], None
                    replies.append(submit(command, state, caller, now, emit))
                    next_id = state.pages.next_id
                    room_bytes = state.memory.soft_bytes - state.memory.bytes
                    is_near = room_bytes < _RUN_BYTES_MAX
                    continue
                change = JobsSubmitted(
                    next_id,
                    options_of(command, state, now),
                    [],
                    *due_of(command.delay_ms, command.run_at_ms, now),
                    caller.principal,
                )
                alike = None
                more_bytes = _job_bytes(change)
                is_near = is_near or more_bytes > memory.JOB_BYTES
                new = state.comes_with(change.options) if is_near else {}
            if len(payload) > model.PAYLOAD_BYTES_MAX:
                raise payload_too_large("payload", payload)
            if is_near:
                size = len(payload) + more_bytes
                if alike is None:
                    size += sum(each for what, each in new.items() if what not in came)
                if size > room_bytes:
                    check_memory(state, state.memory.soft_bytes - state.memory.bytes - room_bytes + size)
                room_bytes -= size
        except JqdError as error:
            replies.append(error)
            continue
        assert change is not None
        if alike is None:
            changes.append(change)
            alike = fields
            came |= new
        change.payloads.append(payload)
        replies.append(Submitted(job_id=next_id))
        next_id += 1
    for change in changes:
        emit(change)
    return replies


def submit_many(command: SubmitMany, state: State, caller: Caller, now: Now, emit: Emit) -> SubmittedMany:
    """Add the jobs of all groups, or none of them.

    Raises: InvalidArgument, PayloadTooLarge; the message names the group. With keys as submit().
    """
    count = sum(len(group.payloads) for group in command.groups)
    if count > model.JOBS_PER_REQUEST_MAX:
        raise InvalidArgument(
            f"groups = {count} jobs in all: the limit is {model.JOBS_PER_REQUEST_MAX} a request"
        )
    changes: list[Change] = []
    jobs: list[tuple[int, int, bool]] = []
    next_id = state.pages.next_id
    names: set[str] = set()
    new_keys = added_bytes = 0
    new_jobs: dict[str, int] = {}  # by queue, where a queue is bounded
    for index, group in enumerate(command.groups):
        try:
            options = options_of(group, state, now)
            due_engine_ms, due_wall_ms = due_of(group.delay_ms, group.run_at_ms, now)
        except InvalidArgument as error:
            raise InvalidArgument(f"groups[{index}].{error}") from None
        size = sum(map(len, group.payloads))
        # Most requests are below the limit of one payload with all of theirs.
        if size > model.PAYLOAD_BYTES_MAX and max(map(len, group.payloads)) > model.PAYLOAD_BYTES_MAX:
            number, payload = max(enumerate(group.payloads), key=lambda item: len(item[1]))
            raise payload_too_large(f"groups[{index}].payloads[{number}]", payload)
        if is_keyed(group):
            _check_group(index, group, options, names)
            planned = plan(
                group, options, group.payloads, state, caller, now, next_id=next_id, pending_keys=new_keys
            )
            changes += planned.changes
            added_bytes += planned.added_bytes
            jobs.append((planned.first_id, planned.count, planned.existing))
            next_id += 0 if planned.existing else planned.count
            new_keys += planned.new_keys
            if not planned.existing:
                new_jobs[options.queue] = new_jobs.get(options.queue, 0) + planned.count
            continue
        if state.bounded_queues:
            new_jobs[options.queue] = new_jobs.get(options.queue, 0) + len(group.payloads)
        coming = JobsSubmitted(next_id, options, group.payloads, due_engine_ms, due_wall_ms, caller.principal)
        added_bytes += size + _job_bytes(coming) * len(group.payloads)
        changes.append(coming)
        jobs.append((next_id, len(group.payloads), False))
        next_id += len(group.payloads)
    check_room(state, new_jobs)
    if changes:
        if not has_room(state, added_bytes + _GROUP_BYTES_MAX * len(changes)):
            added_bytes += _bytes_with(changes, state)  # looked at only where it can matter
        check_memory(state, added_bytes)
    for change in changes:
        emit(change)
    return SubmittedMany(jobs=jobs)


def _job_bytes(change: JobsSubmitted) -> int:
    """Return what each of these jobs takes besides its payload."""
    is_delayed = change.due_engine_ms is not None or change.due_wall_ms is not None
    return memory.new_job_bytes(change.options, is_delayed=is_delayed)


def _bytes_with(changes: Sequence[Change], state: State) -> int:
    """Return what comes with jobs besides them: queues, tenants and the like that are not there yet, each once."""
    came: dict[object, int] = {}
    for change in changes:
        if isinstance(change, JobsSubmitted):
            came |= state.comes_with(change.options)
    return sum(came.values())


def check_room(state: State, new_jobs: dict[str, int]) -> None:
    """Refuse new jobs, counted by queue, that would not fit into their queue.

    Raises: QueueFull.
    """
    for name, count in new_jobs.items():
        queue = state.bounded_queues.get(name)
        if queue is None:
            continue
        limit = queue.settings.length_max
        assert limit is not None
        if queue.length + count > limit:
            raise QueueFull(
                f"queue = {name}: it holds {queue.length} jobs and would hold {queue.length + count}: the limit is {limit}",
                details={"length": queue.length, "length_max": limit},
            )


def _check_group(index: int, group: SubmitGroup, options: JobOptions, names: set[str]) -> None:
    """Refuse a dedupe key for several jobs, and a key that another group of the request has: adds to `names`."""
    if group.dedupe_key is not None and len(group.payloads) > 1:
        raise InvalidArgument(
            f"groups[{index}].payloads = {len(group.payloads)} items: with a dedupe_key the limit is 1"
        )
    keys: dict[str, str] = {}
    if group.dedupe_key is not None:
        keys["dedupe_key"] = dedupe_name(options)
    if group.idempotency_key is not None:
        keys["idempotency_key"] = idempotency_name(group.tenant, group.idempotency_key)
    for field, name in keys.items():
        if name in names:
            raise InvalidArgument(
                f"groups[{index}].{field} = {getattr(group, field)}: it is named twice in one request"
            )
        names.add(name)

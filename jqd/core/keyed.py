"""Submits with a key: a dedupe key, of which one job lives at a time, or an idempotency key, which has one answer.

Knows:         what becomes of a submit whose key is known, and of its key.
Must not know: where keys are kept (keys.py), how requests are answered.

Both keys may be given. The idempotency key comes first: a request that is sent again gets its answer whatever has
become of the job.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

import msgspec
from msgspec import Struct

from jqd.core import memory, model
from jqd.core.changes import Change, JobsSubmitted, JobUpdated, SubmitRemembered
from jqd.core.commands import JobFields
from jqd.core.fields import check_result_ttl, due_of
from jqd.core.keys import Key, dedupe_name, idempotency_name
from jqd.core.model import Caller, JobOptions, Now
from jqd.core.state import DELAYED, READY, WAITING, State
from jqd.core.updating import changed_options
from jqd.errors import Duplicate, IdempotencyConflict, Overloaded

_encode: Final = msgspec.msgpack.Encoder(order="sorted").encode
# Enough that no two contents meet by chance.
_CONTENT_BYTES: Final = 16
_DEFAULTS: Final = {one.name: one.default for one in msgspec.structs.fields(JobFields)}
# Of how a submit is said, and not what is submitted.
_NOT_CONTENT: Final = frozenset({"idempotency_key", "idempotency_ttl_ms"})


class Plan(Struct, frozen=True, gc=False):
    """What is to become of a submit: facts to emit, and the jobs that it is answered with."""

    changes: list[Change]
    first_id: int
    count: int
    existing: bool
    new_keys: int  # that the facts add to the table
    added_bytes: int  # of memory, at most


def plan(
    fields: JobFields,
    options: JobOptions,
    payloads: Sequence[bytes],
    state: State,
    caller: Caller,
    now: Now,
    *,
    next_id: int,
    pending_keys: int = 0,
) -> Plan:
    """Decide about a submit with a key.

    Args:
        options, payloads: checked.  next_id: that its jobs would get.
        pending_keys: that other submits of the same request add.
    Raises: InvalidArgument, IdempotencyConflict, Duplicate, Overloaded.
    """
    due = due_of(fields.delay_ms, fields.run_at_ms, now)
    content = b""
    if fields.idempotency_key is not None:
        content = _content(fields, payloads)
        known = state.key(idempotency_name(fields.tenant, fields.idempotency_key), now)
        if known is not None:
            return _answered(fields.idempotency_key, known, content)
    changes: list[Change] = []
    first_id, count, existing = next_id, len(payloads), False
    held = None if fields.dedupe_key is None else state.key(dedupe_name(options), now)
    if held is None:
        check_result_ttl(fields, state)
        changes.append(JobsSubmitted(next_id, options, list(payloads), *due, caller.principal))
    else:
        first_id, count, existing = held.job_id, 1, True
        changes += _taken(fields, held, payloads[0], due, state, caller)
    new_keys = (fields.dedupe_key is not None and held is None) + (fields.idempotency_key is not None)
    if new_keys and state.keys.count + pending_keys + new_keys > model.KEYS_MAX:
        raise Overloaded(
            f"{state.keys.count + pending_keys} keys are remembered: the limit is {model.KEYS_MAX}",
            retry_after_ms=model.MINUTE_MS,
        )
    if fields.idempotency_key is not None:
        changes.append(
            SubmitRemembered(
                fields.tenant,
                fields.idempotency_key,
                first_id,
                count,
                content,
                fields.idempotency_ttl_ms or model.IDEMPOTENCY_TTL_MS_DEFAULT,
                caller.principal,
            )
        )
    each_bytes = memory.new_job_bytes(options, is_delayed=due != (None, None))
    added_bytes = sum(map(len, payloads)) + each_bytes * len(payloads)
    if fields.dedupe_key is not None and held is None:
        added_bytes += memory.key_bytes(dedupe_name(options))
    if fields.idempotency_key is not None:
        added_bytes += memory.key_bytes(idempotency_name(fields.tenant, fields.idempotency_key))
    return Plan(changes, first_id, count, existing, new_keys, added_bytes)


def _answered(name: str, known: Key, content: bytes) -> Plan:
    if known.content != content:
        raise IdempotencyConflict(
            f"idempotency_key = {name}: it was used for job {known.job_id}, with other content",
            details={"job_id": known.job_id},
        )
    return Plan([], known.job_id, known.count, existing=True, new_keys=0, added_bytes=0)


def _taken(
    fields: JobFields,
    held: Key,
    payload: bytes,
    due: tuple[int | None, int | None],
    state: State,
    caller: Caller,
) -> list[Change]:
    """Return what a submit changes in the job that has its dedupe key."""
    if fields.dedupe == "existing":
        return []
    details: dict[str, str | int | bool] = {"job_id": held.job_id}
    if fields.dedupe == "reject":
        raise Duplicate(f"dedupe_key = {fields.dedupe_key}: job {held.job_id} has it", details=details)
    job = state.job(held.job_id)
    if job is None or job.state not in WAITING:
        what = "gone" if job is None else job.state.wire_name
        raise Duplicate(
            f"dedupe_key = {fields.dedupe_key}: job {held.job_id} has it and is {what}, "
            f"so that it cannot be changed (dedupe = {fields.dedupe})",
            details=details,
        )
    options = changed_options(job, fields.priority, fields.encoding, fields.metadata)
    target, moved = job.state, fields.dedupe == "debounce"
    if moved:
        target = READY if due == (None, None) else DELAYED
    times = due if moved else (None, None)
    return [JobUpdated(job.id, target, options, payload, *times, caller.principal)]


def _content(fields: JobFields, payloads: Sequence[bytes]) -> bytes:
    """Return a fingerprint of what is submitted: a field that holds its default counts as not said."""
    said = {
        name: value
        for name, default in _DEFAULTS.items()
        if name not in _NOT_CONTENT and (value := getattr(fields, name)) != default
    }
    return blake2b(_encode((said, payloads)), digest_size=_CONTENT_BYTES).digest()

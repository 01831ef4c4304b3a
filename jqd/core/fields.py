"""What the fields of a submit mean: a job's options, its time, and what is refused.

Knows:         which fields there are, what they mean together, their limits.
Must not know: which command says them, the jobs that are there.
"""

from msgspec.structs import astuple

from jqd.core import backoff, model
from jqd.core.commands import JobFields, Submit, SubmitGroup
from jqd.core.model import JobOptions, Now
from jqd.core.state import State
from jqd.errors import InvalidArgument, PayloadTooLarge

# The field that differs from job to job stands first, so that the rest is the key of what is shared.
assert Submit.__struct_fields__[0] == "payload"
assert SubmitGroup.__struct_fields__[0] == "payloads"


def options_of(fields: Submit | SubmitGroup, state: State, now: Now) -> JobOptions:
    """Return the options that these fields mean, checked; shared with earlier jobs where possible."""
    key = astuple(fields)[1:] if fields.metadata is None else None
    if key is not None:
        known = state.options_by_fields.get(key)
        if known is not None:
            return known
    options = _checked_options(fields, state, now)
    lasting = options.expires_wall_ms is None and not is_keyed(fields)
    if key is not None and fields.delay_ms is None and fields.run_at_ms is None and lasting:
        state.remember_fields(key, options)
    return options


def _checked_options(fields: JobFields, state: State, now: Now) -> JobOptions:
    if fields.queue not in state.queues:
        model.check_name("queue", fields.queue)
    if fields.task is not None:
        model.check_name("task", fields.task)
    if fields.tenant != model.DEFAULT_TENANT:
        model.check_name("tenant", fields.tenant)
    if fields.group is not None:
        model.check_name("group", fields.group)
    if fields.metadata is not None:
        check_metadata(fields.metadata)
    _check_keys(fields)
    if not is_keyed(fields):  # one with a key may be about a job that is there: see keyed.py
        check_result_ttl(fields, state)
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
            tenant=fields.tenant,
            group=fields.group,
            task=fields.task,
            encoding=fields.encoding,
            priority=fields.priority,
            max_retries=max_retries,
            max_crashes=fields.max_crashes,
            lease_ms=fields.lease_ms,
            delivery=fields.delivery,
            metadata=fields.metadata,
            retry=fields.retry,
            dedupe_key=fields.dedupe_key,
            dedupe_until=fields.dedupe_until,
            dedupe_ttl_ms=fields.dedupe_ttl_ms,
            expires_wall_ms=_expiry_of(fields, now),
            result_ttl_ms=fields.result_ttl_ms,
        )
    )


def _expiry_of(fields: JobFields, now: Now) -> int | None:
    """Return the date by which a job must have been started; it lies behind the time at which it is ready."""
    if fields.expires_ms is not None and fields.expires_at_ms is not None:
        raise InvalidArgument(
            f"expires_ms = {fields.expires_ms} and expires_at_ms = {fields.expires_at_ms}: give one of them"
        )
    expires_ms = fields.expires_at_ms
    if fields.expires_ms is not None:
        expires_ms = now.wall_ms + fields.expires_ms
    if expires_ms is None:
        return None
    for name, ready_ms in (
        ("delay_ms", None if not fields.delay_ms else now.wall_ms + fields.delay_ms),
        ("run_at_ms", fields.run_at_ms),
    ):
        if ready_ms is not None and expires_ms <= ready_ms:
            said = "expires_ms" if fields.expires_ms is not None else "expires_at_ms"
            raise InvalidArgument(
                f"{said} = {getattr(fields, said)}: it would expire before it is ready "
                f"({name} = {getattr(fields, name)})"
            )
    return expires_ms


def check_result_ttl(fields: JobFields, state: State) -> None:
    """Refuse a new job whose result would have to outlive it.

    Raises: InvalidArgument.
    """
    ttl_ms = fields.result_ttl_ms
    if ttl_ms is None:
        return
    queue = state.queues.get(fields.queue)
    retention_ms = model.FINISHED_RETENTION_MS if queue is None else queue.retention_ms
    if ttl_ms > retention_ms:
        raise InvalidArgument(
            f"result_ttl_ms = {ttl_ms}: the limit is {retention_ms}, the retention_ms of queue {fields.queue}: "
            "a result goes with its job; set_queue raises it"
        )


def is_keyed(fields: JobFields) -> bool:
    """Tell whether what becomes of a submit depends on a key."""
    return fields.dedupe_key is not None or fields.idempotency_key is not None


def _check_keys(fields: JobFields) -> None:
    if fields.dedupe_key is not None:
        model.check_name("dedupe_key", fields.dedupe_key)
        if fields.dedupe_ttl_ms is not None and fields.dedupe_until != "finished":
            raise InvalidArgument(
                f"dedupe_until = {fields.dedupe_until} and dedupe_ttl_ms = {fields.dedupe_ttl_ms}: give one of them"
            )
        if fields.dedupe == "debounce" and fields.delay_ms is None and fields.run_at_ms is None:
            raise InvalidArgument(
                "dedupe = debounce: it moves the time of the job: give delay_ms or run_at_ms"
            )
    else:
        for name, default in (("dedupe", "existing"), ("dedupe_until", "finished"), ("dedupe_ttl_ms", None)):
            if (value := getattr(fields, name)) != default:
                raise InvalidArgument(f"{name} = {value}: there is no dedupe_key")
    if fields.idempotency_key is not None:
        model.check_name("idempotency_key", fields.idempotency_key)
    elif fields.idempotency_ttl_ms is not None:
        raise InvalidArgument(
            f"idempotency_ttl_ms = {fields.idempotency_ttl_ms}: there is no idempotency_key"
        )


def check_metadata(metadata: dict[str, str]) -> None:
    """Refuse metadata over its limit. Raises: InvalidArgument."""
    size = sum(len(key.encode()) + len(value.encode()) for key, value in metadata.items())
    if size > model.METADATA_BYTES_MAX:
        raise InvalidArgument(f"metadata = {size} bytes: the limit is {model.METADATA_BYTES_MAX}")


def due_of(delay_ms: int | None, run_at_ms: int | None, now: Now) -> tuple[int | None, int | None]:
    """Return (engine_ms, wall_ms) at which a job becomes ready: at most one, both None = at once.

    Raises: InvalidArgument: both were said.
    """
    if delay_ms is not None and run_at_ms is not None:
        raise InvalidArgument(f"delay_ms = {delay_ms} and run_at_ms = {run_at_ms}: give one of them")
    if delay_ms:
        return now.engine_ms + delay_ms, None
    if run_at_ms is not None and run_at_ms > now.wall_ms:
        return None, run_at_ms
    return None, None


def payload_too_large(field: str, payload: bytes) -> PayloadTooLarge:
    """Return the error that a payload over its limit is."""
    return PayloadTooLarge(f"{field} = {len(payload)} bytes: the limit is {model.PAYLOAD_BYTES_MAX}")

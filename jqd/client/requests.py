"""The commands of jqd as a program says them: each function turns Python values into one command.

Knows:         how each verb's arguments are said, what a held job is, which exception a verdict means.
Must not know: how a command is sent, who waits for its reply. Both clients, jqctl and whatever else
               sends commands share these, so that one spelling holds everywhere.

Durations are `values.Duration` (seconds, timedelta, "5m"), dates `values.Date`. Ranges of values are
checked by the server. Every function raises InvalidArgument for what it cannot turn into a command.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypedDict

import msgspec
from msgspec import UNSET, Struct, UnsetType, structs

from jqd.client.values import (
    Date,
    Duration,
    Payload,
    Retry,
    from_bytes,
    in_own_words,
    to_bytes,
    to_ms,
    to_optional_ms,
    to_retry,
    to_wall_ms,
)
from jqd.core.commands import (
    Ack,
    Cancel,
    EndedJob,
    Extend,
    Fail,
    Get,
    GetQueue,
    JobFilter,
    JobInfo,
    JobList,
    Lease,
    Leased,
    LeasedJob,
    ListJobs,
    ListWorkers,
    Pause,
    Ping,
    Pong,
    Purge,
    QueueChanged,
    QueueDetails,
    QueueInfo,
    QueueList,
    Queues,
    Register,
    Release,
    Requeue,
    Resume,
    ServerStats,
    SetQueue,
    Snapshot,
    SnapshotBegun,
    Stats,
    Submit,
    SubmitGroup,
    SubmitMany,
    Submitted,
    SubmittedMany,
    Swept,
    TellWorkers,
    Update,
    Verdict,
    Wait,
    Waited,
    WorkerInfo,
    to_ranges,
)
from jqd.core.model import (
    DEFAULT_QUEUE,
    JOBS_PER_REQUEST_MAX,
    LIST_LIMIT_MAX,
    PAYLOAD_BYTES_MAX,
    QUEUE_WEIGHT_MAX,
    STATE_NAMES,
    Dedupe,
    DedupeUntil,
    Delivery,
    Encoding,
    StateName,
    WorkerOrder,
    WorkerState,
    check_name,
    shorten,
)
from jqd.errors import WIRE_ERRORS, InvalidArgument, JqdError, PayloadTooLarge

__all__ = [
    "JOBS_PER_REQUEST_MAX",
    "LIST_LIMIT_MAX",
    "PAYLOAD_BYTES_MAX",
    "QUEUE_WEIGHT_MAX",
    "STATE_NAMES",
    "Delivery",
    "Encoding",
    "EndedJob",
    "Held",
    "HeldJob",
    "JobInfo",
    "JobList",
    "JobOptions",
    "LeasedJob",
    "Pong",
    "QueueChanged",
    "QueueDetails",
    "QueueInfo",
    "QueueList",
    "QueueOptions",
    "ServerStats",
    "SnapshotBegun",
    "StateName",
    "SubmitGroup",
    "Submitted",
    "SubmittedMany",
    "SweepOptions",
    "Swept",
    "UpdateOptions",
    "Verdict",
    "Waited",
    "WorkerInfo",
    "ack",
    "cancel",
    "check",
    "extend",
    "fail",
    "get",
    "group",
    "held",
    "lease",
    "list_jobs",
    "pause",
    "ping",
    "purge",
    "queue",
    "queues",
    "refusal",
    "register",
    "release",
    "requeue",
    "resume",
    "set_queue",
    "snapshot",
    "stats",
    "submit",
    "submit_many",
    "swept",
    "tell_workers",
    "update",
    "validate",
    "wait",
    "workers",
]

OK: Final = "ok"


# --- producer ---------------------------------------------------------------------------------


class JobOptions(TypedDict, total=False):
    """What may be said about a job besides its payload. What is None or left out is the server's default.

    priority:        -32,768 to 32,767, higher is served first; 0.
    delay:           Duration until the job is ready.
    run_at:          Date at which it is ready; instead of delay.
    max_retries:     how often it is tried again after an error, then it is dead; 3.
    max_crashes:     how often it is tried again after a crash, then it is dead; 5.
    retry:           Retry, how long it waits after an error or a second crash; exponential from 1 s to 1 h.
    lease:           Duration that a worker gets for it, where the worker does not say; 30 s.
    delivery:        "at_least_once", or "at_most_once": max_retries must then be 0 or left out.
    task:            a name for what is to be done with it.
    metadata:        texts by name, 4 KiB in all.
    encoding:        what the payload's bytes are: "raw", "text", "json", "msgpack".
    dedupe_key:      of the jobs of a queue that have this name one lives at a time.
    dedupe:          what a further submit does: "existing" returns the job that lives, "reject" raises Duplicate,
                     "replace" gives it this payload, priority and metadata, "debounce" also this time.
    dedupe_until:    the job has its key until it is "finished", or only until it is "started".
    dedupe_ttl:      Duration for which it has it instead, from the submit on; 1 s to 7 d.
    idempotency_key: a further submit of the same returns the first one's job, whatever became of it; one of
                     something else raises IdempotencyConflict.
    idempotency_ttl: Duration for which the key is remembered, 1 s to 7 d; 24 h.
    expires:         Duration within which a worker must have started it, or it is `expired`.
    expires_at:      Date by which; instead of expires.
    result_ttl:      Duration for which its result is kept after the ack, at most as long as the queue keeps the job;
                     0: not at all.
    tenant:          whose job it is; "default". Its keys are that tenant's.
    group:           jobs that belong together within the tenant.
    """

    priority: int
    delay: Duration | None
    run_at: Date | None
    max_retries: int | None
    max_crashes: int | None
    retry: Retry | None
    lease: Duration | None
    delivery: Delivery
    task: str | None
    metadata: Mapping[str, str] | None
    encoding: Encoding | None
    tenant: str
    group: str | None
    dedupe_key: str | None
    dedupe: Dedupe
    dedupe_until: DedupeUntil
    dedupe_ttl: Duration | None
    idempotency_key: str | None
    idempotency_ttl: Duration | None
    expires: Duration | None
    expires_at: Date | None
    result_ttl: Duration | None


# Option -> the wire's field, where a value has to be turned into another one.
_DURATIONS: Final = {
    "delay": "delay_ms",
    "lease": "lease_ms",
    "expires": "expires_ms",
    "result_ttl": "result_ttl_ms",
    "dedupe_ttl": "dedupe_ttl_ms",
    "idempotency_ttl": "idempotency_ttl_ms",
}


def _fields(options: JobOptions) -> dict[str, Any]:
    """Return options as the wire's fields, without the encoding."""
    fields: dict[str, Any] = {}
    for name, value in options.items():
        if value is None or name == "encoding":
            continue
        if name in _DURATIONS:
            fields[_DURATIONS[name]] = to_ms(name, value)  # type: ignore[arg-type]  # a Duration by its name
        elif name in ("run_at", "expires_at"):
            fields[f"{name}_ms"] = to_wall_ms(name, value)  # type: ignore[arg-type]
        elif name == "retry":
            fields[name] = to_retry(name, value)  # type: ignore[arg-type]
        elif name == "metadata":
            fields[name] = dict(value)  # type: ignore[call-overload]
        else:
            fields[name] = value
    return fields


def submit(
    queue: str, payload: Payload | None, options: JobOptions, *, json: object | UnsetType = UNSET
) -> Submit:
    """Return the command for one job; `json` instead of `payload` for any other value."""
    data, encoding = to_bytes("payload", payload, json, options.get("encoding"))
    return Submit(queue=queue, payload=data, encoding=encoding, **_fields(options))


def group(queue: str, payloads: Iterable[Payload], options: JobOptions) -> list[SubmitGroup]:
    """Return jobs that differ in nothing but their payload: one group for each run of bytes or of str.

    Raises: InvalidArgument.
    """
    if isinstance(payloads, str | bytes | bytearray | memoryview):  # a str would be a job for each character
        raise InvalidArgument(f"payloads = {shorten(payloads)}: give a list of payloads; for one job, submit")
    groups: list[SubmitGroup] = []
    fields = _fields(options)
    for index, payload in enumerate(payloads):
        data, encoding = to_bytes(f"payloads[{index}]", payload, encoding=options.get("encoding"))
        if groups and groups[-1].encoding == encoding:
            groups[-1].payloads.append(data)
        else:
            groups.append(SubmitGroup(queue=queue, payloads=[data], encoding=encoding, **fields))
    return groups


def submit_many(groups: list[SubmitGroup]) -> SubmitMany:
    """Return the command for the jobs of these groups, 1 to 10,000 in all."""
    count = sum(len(group.payloads) for group in groups)
    if not 1 <= count <= JOBS_PER_REQUEST_MAX:
        raise InvalidArgument(f"payloads = {count} jobs: a request has 1 to {JOBS_PER_REQUEST_MAX}")
    return SubmitMany(groups=groups)


def validate(group: SubmitGroup) -> SubmitGroup:
    """Check what a server would check before it looks at its queues, for who has to know it sooner.

    Raises: InvalidArgument, PayloadTooLarge.
    """
    _check_ranges(structs.replace(group, payloads=[b""]))
    check_name("queue", group.queue)
    for field in ("task", "tenant", "group", "dedupe_key", "idempotency_key"):
        if (name := getattr(group, field)) is not None:
            check_name(field, name)
    if (size := max(map(len, group.payloads))) > PAYLOAD_BYTES_MAX:
        raise PayloadTooLarge(f"payload = {size} bytes: the limit is {PAYLOAD_BYTES_MAX}")
    return group


def _check_ranges(command: Struct) -> None:
    try:
        msgspec.convert(msgspec.to_builtins(command, builtin_types=(bytes,)), type(command))
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `$.")
        field = path.rstrip("`")
        value = f" = {shorten(getattr(command, field))}" if hasattr(command, field) else ""
        raise in_own_words(InvalidArgument(f"{field}{value}: {what[:1].lower()}{what[1:]}")) from None


# --- worker -----------------------------------------------------------------------------------


class HeldJob(LeasedJob, kw_only=True):
    """A leased job and the token that it is held by: all that ack, fail, extend and release need."""

    token: int

    def value(self) -> Any:  # noqa: ANN401 - what the producer sent
        """Return the payload as its encoding says: bytes, str, or the value in JSON or msgpack.

        Raises: InvalidArgument: the bytes are something else.
        """
        return from_bytes(self.payload, self.encoding)


class Held(Struct, kw_only=True):
    """What a lease gave: `jobs` is empty when there was nothing.

    token: of every job in it, 0 without any.  lease_ms_left: until the server may hand them to others.
    wall_ms: the server's date at the reply, for showing only.
    """

    token: int
    lease_ms_left: int
    wall_ms: int
    jobs: list[HeldJob]


def lease(
    queues: str | Iterable[str] = DEFAULT_QUEUE,
    *,
    count: int = 1,
    lease: Duration | None = None,
    wait: Duration = 0,
) -> Lease:
    """Return the command for up to `count` jobs of these queues, served in the order given.

    queues: a mapping says the weight of each: which one comes first is drawn by it.
    """
    return Lease(
        weights=list(queues.values()) if isinstance(queues, Mapping) else None,
        queues=[queues] if isinstance(queues, str) else list(queues),
        count=count,
        lease_ms=to_optional_ms("lease", lease),
        wait_ms=to_ms("wait", wait),
    )


def check_lease(command: Lease) -> None:
    """Check what a server would check before it looks for jobs, for who would ask it again and again.

    Raises: InvalidArgument.
    """
    _check_ranges(command)
    for queue in command.queues:
        check_name("queue", queue)


def held(reply: Leased) -> Held:
    """Join each job with its token."""
    return Held(
        token=reply.token,
        lease_ms_left=reply.lease_ms_left,
        wall_ms=reply.wall_ms,
        jobs=[HeldJob(token=reply.token, **structs.asdict(job)) for job in reply.jobs],
    )


Holding = HeldJob | tuple[int, int]
"""A held job, or its (job_id, token)."""


def holding(job: HeldJob | int, token: int | None) -> Holding:
    """Say which job is meant by `ack(job)` or `ack(job_id, token)`."""
    if isinstance(job, HeldJob):
        return job
    if token is None:
        raise InvalidArgument(
            f"job = {shorten(job)}: give the job that lease() returned, or job_id and token"
        )
    return job, token


def _key(job: Holding) -> tuple[int, int]:
    return (job.job_id, job.token) if isinstance(job, HeldJob) else job


def _items(jobs: Iterable[Holding]) -> list[tuple[int, list[tuple[int, int]]]]:
    """Pack held jobs into (token, ranges), one item for each run of the same token, in the order given."""
    items: list[tuple[int, list[int]]] = []
    for job_id, token in map(_key, jobs):
        if items and items[-1][0] == token:
            items[-1][1].append(job_id)
        else:
            items.append((token, [job_id]))
    if not items:
        raise InvalidArgument("jobs = []: give at least one")
    return [(token, to_ranges(ids)) for token, ids in items]


def extend(
    jobs: Iterable[Holding],
    *,
    lease: Duration | None = None,
    progress_percent: int | None = None,
    progress_text: str = "",
) -> Extend:
    """Return the command that holds jobs for `lease` from now on; None: what each lease was given."""
    return Extend(
        items=_items(jobs),
        lease_ms=to_optional_ms("lease", lease),
        progress_percent=progress_percent,
        progress_text=progress_text,
    )


def ack(
    jobs: Sequence[Holding],
    *,
    results: Sequence[Payload | None] | None = None,
    json: object | UnsetType = UNSET,
    encoding: Encoding | None = None,
    error: str | None = None,
) -> Ack:
    """Finish held jobs.

    Args:
        results: one for each job, or None for no results; of one encoding.
        json: the result of a single job, instead of `results`.
        error: what the job came to, if that is a final failure: dead, without a retry.
    """
    if results is None and json is UNSET:
        return Ack(items=[(token, ranges, None) for token, ranges in _items(jobs)], result_error=error)
    values: Sequence[Payload | None] = [None] if results is None else results
    if len(values) != len(jobs):
        raise InvalidArgument(f"results = {len(values)} for {len(jobs)} jobs: give one for each")
    items: list[tuple[int, list[tuple[int, int]], bytes | None]] = []
    encodings: set[Encoding] = set()
    for (job_id, token), value in zip(map(_key, jobs), values, strict=True):
        data = None
        if value is not None or json is not UNSET:
            data, said = to_bytes("result", value, json, encoding)
            encodings.add(said)
        items.append((token, [(job_id, 1)], data))
    if len(encodings) > 1:
        raise InvalidArgument("results: a request has one encoding: give all as bytes or all as str")
    return Ack(items=items, encoding=next(iter(encodings), "raw"), result_error=error)


def fail(
    jobs: Iterable[Holding],
    *,
    error: str = "",
    retry_in: Duration | None = None,
    retry: Retry | None = None,
    dead: bool = False,
) -> Fail:
    """Return the command that gives held jobs back as failed; `error` is kept with each."""
    return Fail(
        items=_items(jobs),
        error=error,
        retry_in_ms=to_optional_ms("retry_in", retry_in),
        retry=None if retry is None else to_retry("retry", retry),
        dead=dead,
    )


def release(jobs: Iterable[Holding], *, delay: Duration = 0) -> Release:
    """Return the command that gives held jobs back unworked, ready after `delay`."""
    return Release(items=_items(jobs), delay_ms=to_ms("delay", delay))


# What a verdict means, for an exception's message.
_VERDICTS: Final = {
    "job_not_found": "no such job: never submitted, purged, or forgotten by retention",
    "lease_lost": "the token is not the job's current one, or its deadline has passed",
    "wrong_state": "the job's state does not allow it",
}

# The same of verbs that want a certain state: whoever reads it learns which.
_WRONG_STATES: Final = {
    "cancel": "it is held by a worker, which `running` is for, or has ended",
    "requeue": "only a dead job can be requeued",
    "purge": "only a delayed, ready or dead job can be purged",
}


def check(verb: str, results: Iterable[Verdict]) -> None:
    """Raise the exception that the first verdict names which is not "ok"."""
    for first, _, code in results:
        if code != OK:
            raise refusal(verb, first, code)


def refusal(verb: str, job_id: int, code: str) -> JqdError:
    """Return the exception that a verdict names; a code of a newer server stands in the message."""
    why = _WRONG_STATES.get(verb) if code == "wrong_state" else None
    return WIRE_ERRORS.get(code, JqdError)(f"{verb} of job {job_id}: {why or _VERDICTS.get(code, code)}")


# --- reading and management -------------------------------------------------------------------


def ping() -> Ping:
    """Return the command that asks whether the server and its disk answer."""
    return Ping()


def _filter(queue: str | None, state: StateName | None, where: str | None) -> JobFilter | None:
    if queue is None and state is None and where is None:
        return None
    return JobFilter(queue=queue, state=state, where=where)


class SweepOptions(TypedDict, total=False):
    """Which jobs, where no ids are given, and how.

    queue, state, filter: all conditions that are given must hold. filter is a text such as
                  `error contains timeout and age > 1h`; see protocol.md "The filter language".
    cursor:       from the reply before; 0 begins.
    limit:        jobs in one call, at most 1,000.
    dry_run:      count only, change nothing.
    """

    queue: str | None
    state: StateName | None
    filter: str | None
    cursor: int
    limit: int
    dry_run: bool


class UpdateOptions(TypedDict, total=False):
    """What may be changed of a job that waits. What is None or left out stays as it is.

    priority:      takes effect at once, also for a job that is ready.
    delay, run_at: another time, from now; delay=0: ready at once.
    payload:       bytes or str, or json: anything that JSON can say, instead of the payload that it has.
    encoding:      what the bytes of that payload are.
    metadata:      all of it, instead of what it has.
    """

    priority: int | None
    delay: Duration | None
    run_at: Date | None
    payload: Payload | None
    json: object | UnsetType
    encoding: Encoding | None
    metadata: Mapping[str, str] | None


class QueueOptions(TypedDict, total=False):
    """What may be set of a queue. What is None or left out stays as it is.

    lease, max_retries, max_crashes, retry: what holds for jobs that do not say it themselves.
    retention:      Duration that finished jobs are kept, up to 30 days; 1 h.
    dead_retention: Duration that dead jobs are kept, up to 30 days; 30 d.
    length_max:     jobs that are delayed, ready or leased; beyond, submits are refused; 0: no limit.
    reset:          what is not said here is jqd's default again.
    """

    lease: Duration | None
    max_retries: int | None
    max_crashes: int | None
    retry: Retry | None
    retention: Duration | None
    dead_retention: Duration | None
    length_max: int | None
    reset: bool


_QUEUE_DURATIONS: Final = frozenset({"lease", "retention", "dead_retention"})


def cancel(ids: int | Iterable[int] | None, options: SweepOptions, *, running: bool = False) -> Cancel:
    """Return the command that ends waiting jobs for good; with `running` it marks those that are held."""
    return Cancel(**_sweep("cancel", ids, options), running=running)


def update(
    job_id: int,
    *,
    priority: int | None = None,
    delay: Duration | None = None,
    run_at: Date | None = None,
    payload: Payload | None = None,
    json: object | UnsetType = UNSET,
    encoding: Encoding | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Update:
    """Return the command that changes a waiting job: see UpdateOptions."""
    command = Update(
        job_id=job_id,
        priority=priority,
        delay_ms=to_optional_ms("delay", delay),
        run_at_ms=None if run_at is None else to_wall_ms("run_at", run_at),
        encoding=encoding,
        metadata=None if metadata is None else dict(metadata),
    )
    if payload is not None or json is not UNSET:
        command.payload, command.encoding = to_bytes("payload", payload, json, encoding)
    return command


def requeue(ids: int | Iterable[int] | None, options: SweepOptions) -> Requeue:
    """Return the command that makes dead jobs ready again."""
    return Requeue(**_sweep("requeue", ids, options))


def purge(ids: int | Iterable[int] | None, options: SweepOptions) -> Purge:
    """Return the command that removes jobs without a trace."""
    return Purge(**_sweep("purge", ids, options))


def _sweep(verb: str, ids: int | Iterable[int] | None, options: SweepOptions) -> dict[str, Any]:
    fields: dict[str, Any] = dict(options)
    condition = _filter(fields.pop("queue", None), fields.pop("state", None), fields.pop("filter", None))
    ranges = None if ids is None else to_ranges([ids] if isinstance(ids, int) else list(ids))
    if (ranges is None) == (condition is None) or ranges == []:
        raise InvalidArgument(f"{verb}: give ids, or a queue, state or filter")
    return {"ids": ranges, "filter": condition, **fields}


def set_queue(queue: str, options: QueueOptions) -> SetQueue:
    """Return the command that changes what holds in a queue; what is None or left out stays."""
    fields: dict[str, Any] = {}
    for name, value in options.items():
        if name in _QUEUE_DURATIONS:
            fields[f"{name}_ms"] = to_optional_ms(name, value)  # type: ignore[arg-type]  # a Duration by its name
        elif name == "retry":
            fields[name] = None if value is None else to_retry(name, value)  # type: ignore[arg-type]
        else:
            fields[name] = value
    return SetQueue(queue=queue, **fields)


def pause(queue: str) -> Pause:
    """Return the command after which nothing of a queue is handed out."""
    return Pause(queue=queue)


def resume(queue: str) -> Resume:
    """Return the command after which a queue's jobs are handed out again."""
    return Resume(queue=queue)


def swept(verb: str, ids: int | Iterable[int] | None, reply: Swept) -> Swept:
    """Return the reply to cancel, requeue or purge; raise what befell a job that was named alone."""
    if isinstance(ids, int):
        check(verb, reply.results)
    return reply


def get(job_id: int) -> Get:
    """Return the command that shows one job."""
    return Get(job_id=job_id)


def wait(ids: Iterable[int], *, wait: Duration = 0, all: bool = False) -> Wait:
    """Return the command that waits up to `wait` until one of these jobs is at its end, or all are."""
    return Wait(ids=to_ranges(list(ids)), wait_ms=to_ms("wait", wait), all=all)


def list_jobs(
    *,
    queue: str | None = None,
    state: StateName | None = None,
    filter: str | None = None,
    cursor: int = 0,
    limit: int = 100,
) -> ListJobs:
    """Return the command for a page of up to `limit` jobs, from `cursor` on."""
    return ListJobs(filter=_filter(queue, state, filter), cursor=cursor, limit=limit)


def queues(*, cursor: str = "", limit: int = LIST_LIMIT_MAX) -> Queues:
    """Return the command for a page of queues with their counts."""
    return Queues(cursor=cursor, limit=limit)


def queue(name: str) -> GetQueue:
    """Return the command that shows one queue."""
    return GetQueue(queue=name)


def register(
    queues: str | Iterable[str] = (),
    *,
    concurrency: int = 1,
    state: WorkerState = "running",
    host: str = "",
    pid: int = 0,
    version: str = "",
) -> Register:
    """Return the command by which a worker says what it is."""
    return Register(
        queues=[queues] if isinstance(queues, str) else list(queues),
        concurrency=concurrency,
        state=state,
        host=host,
        pid=pid,
        version=version,
    )


def workers(*, cursor: str = "", limit: int = 100) -> ListWorkers:
    """Return the command for a page of workers."""
    return ListWorkers(cursor=cursor, limit=limit)


def tell_workers(
    order: WorkerOrder, workers: str | Iterable[str] | None = None, *, all: bool = False
) -> TellWorkers:
    """Return the command that tells workers what to do: some, by id or label, or all."""
    names = [workers] if isinstance(workers, str) else None if workers is None else list(workers)
    return TellWorkers(order=order, workers=names, all=all)


def stats() -> Stats:
    """Return the command that shows figures of the daemon."""
    return Stats()


def snapshot() -> Snapshot:
    """Return the command that has a snapshot made."""
    return Snapshot()

"""What can be said to jqd and what it answers: one Struct per command and per reply.

Knows:         the fields of every request and reply, their types and ranges, the scope each needs.
Must not know: what a command does (deciding.py), how it travels (protocol/).

A field's range is declared where the decoder can check it; what depends on the state, or on
several fields, is checked by the decision. Requests are decoded strictly: an unknown field is an
error, since a silently ignored option is a lost promise. Replies may grow fields; clients ignore
those they do not know. COMMANDS, at the end, is the one table that session, metrics,
authorization, clients and the documentation test read. Source: protocol.md.
"""

from typing import Annotated, Any, ClassVar, Final, Generic, Literal, TypeVar

from msgspec import Meta, Struct, field

from jqd.core import model
from jqd.core.model import (
    Cause,
    DeadReason,
    Dedupe,
    DedupeUntil,
    Delivery,
    Encoding,
    Name,
    RetryPolicy,
    StateName,
    WorkerOrder,
    WorkerState,
)
from jqd.errors import VersionMismatch

PROTOCOL_VERSION: Final = 1
PROTOCOL_MINOR: Final = 0

Reply_co = TypeVar("Reply_co", covariant=True)

Scope = Literal[
    "none",
    "jobs:submit",
    "jobs:read",
    "jobs:lease",
    "jobs:ack",
    "jobs:manage",
    "queues:manage",
    "server:admin",
]

JobId = Annotated[int, Meta(ge=1, le=model.JOB_ID_MAX)]
# u64: the decoder cannot declare a bound above 2^63, and nothing above 2^64 can be said in msgpack.
Token = Annotated[int, Meta(ge=1)]
Count = Annotated[int, Meta(ge=1, le=model.JOBS_PER_REQUEST_MAX)]
# (first id, count): ids are dense, so most requests name one range.
Range = tuple[JobId, Count]
Ranges = Annotated[list[Range], Meta(min_length=1, max_length=model.JOBS_PER_REQUEST_MAX)]
Priority = Annotated[int, Meta(ge=model.PRIORITY_MIN, le=model.PRIORITY_MAX)]
LeaseMs = Annotated[int, Meta(ge=model.LEASE_MS_MIN, le=model.LEASE_MS_MAX)]
DelayMs = Annotated[int, Meta(ge=0, le=model.DELAY_MS_MAX)]
KeyTtlMs = Annotated[int, Meta(ge=model.KEY_TTL_MS_MIN, le=model.KEY_TTL_MS_MAX)]
WallMs = Annotated[int, Meta(ge=0, le=model.WALL_MS_MAX)]
# Its bytes are checked by the decision. The decoder has to know a limit as well: entries of three bytes take a hundred.
Metadata = Annotated[dict[str, str], Meta(max_length=model.METADATA_KEYS_MAX)]
AttemptLimit = Annotated[int, Meta(ge=0, le=model.ATTEMPT_LIMIT_MAX)]
RetentionMs = Annotated[int, Meta(ge=0, le=model.DEAD_RETENTION_MS)]
QueueLength = Annotated[int, Meta(ge=0, le=model.QUEUE_LENGTH_MAX)]
Limit = Annotated[int, Meta(ge=1, le=model.LIST_LIMIT_MAX)]
# Longer texts are cut by the decision; this bound only keeps the decoder honest.
ErrorText = Annotated[str, Meta(max_length=model.PAYLOAD_BYTES_MAX)]
Percent = Annotated[int, Meta(ge=0, le=100)]
# What it is in bytes the decision checks.
ProgressText = Annotated[str, Meta(max_length=model.PROGRESS_TEXT_BYTES_MAX)]
FilterText = Annotated[str, Meta(min_length=1, max_length=model.FILTER_CHARS_MAX)]
Label = Annotated[str, Meta(max_length=model.NAME_CHARS_MAX)]

# (first id, count, code) per run of jobs with the same outcome: "ok" or an error code.
Verdict = tuple[int, int, str]


class Command(
    Struct, Generic[Reply_co], kw_only=True, forbid_unknown_fields=True, omit_defaults=True, gc=False
):
    """A request's arguments, sent without what is at its default. Subclasses declare verb, scope, reply and whether they change anything."""

    verb: ClassVar[str]
    scope: ClassVar[Scope]
    reply: ClassVar[type[Struct]]
    writes: ClassVar[bool] = False
    adds_jobs: ClassVar[bool] = (
        False  # what is there grows for good; other writes only move it towards its end
    )


class Answer(Struct, kw_only=True, gc=False):
    """A reply's body."""


# --- connection -------------------------------------------------------------------------------


class Welcome(Answer):
    """The server's side of the handshake."""

    version: int
    minor: int
    server: str
    store_id: str  # public; the same for the life of a store
    epoch: int  # that this run of the daemon began with: higher than that of every run before
    start_lsn: int  # of the first fact of this run: what was acknowledged before lies below it
    engine_ms: int
    wall_ms: int
    limits: dict[str, int]


class Hello(Command[Welcome]):
    """The first frame of a connection.

    session: 16 random bytes of the client process; with it a retried request is answered once.
    """

    verb = "hello"
    scope = "none"
    reply = Welcome

    version: int
    minor: Annotated[int, Meta(ge=0)] = 0
    client: Label = ""
    key: Annotated[str, Meta(max_length=512)] | None = None
    worker: Label = ""
    session: Annotated[bytes, Meta(min_length=model.SESSION_BYTES, max_length=model.SESSION_BYTES)] | None = (
        None
    )
    on_disconnect: Literal["keep", "release"] = "keep"


def check_version(version: int) -> None:
    """Refuse a client that speaks another version of the protocol.

    Raises: VersionMismatch.
    """
    if version != PROTOCOL_VERSION:
        raise VersionMismatch(
            f"version = {version}: this server speaks {PROTOCOL_VERSION}",
            details={"version": PROTOCOL_VERSION},
        )


class Pong(Answer):
    wall_ms: int
    engine_ms: int


class Ping(Command[Pong]):
    """Ask whether the server is there and its disk answers: the reply waits for a sync in flight."""

    verb = "ping"
    scope = "none"
    reply = Pong


# --- producer ---------------------------------------------------------------------------------


class JobFields(Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """What may be said about a job besides its payload; see protocol.md "submit" for each."""

    queue: Name = model.DEFAULT_QUEUE
    priority: Priority = 0
    delay_ms: DelayMs | None = None
    run_at_ms: WallMs | None = None
    max_retries: AttemptLimit | None = None
    max_crashes: AttemptLimit | None = None
    retry: RetryPolicy | None = None
    lease_ms: LeaseMs | None = None
    delivery: Delivery = "at_least_once"
    encoding: Encoding = "raw"
    task: Name | None = None
    metadata: Metadata | None = None
    tenant: Name = model.DEFAULT_TENANT
    group: Name | None = None
    dedupe_key: Name | None = None
    dedupe: Dedupe = "existing"
    dedupe_until: DedupeUntil = "finished"
    dedupe_ttl_ms: KeyTtlMs | None = None
    idempotency_key: Name | None = None
    idempotency_ttl_ms: KeyTtlMs | None = None
    expires_ms: Annotated[int, Meta(ge=1, le=model.DELAY_MS_MAX)] | None = None
    expires_at_ms: WallMs | None = None
    result_ttl_ms: DelayMs | None = None


class Submitted(Answer, omit_defaults=True):
    job_id: int
    existing: bool = False  # it was there before: its dedupe or idempotency key was known


class Submit(JobFields, Command[Submitted]):
    """Add one job."""

    verb = "submit"
    scope = "jobs:submit"
    reply = Submitted
    writes = True
    adds_jobs = True

    payload: bytes = b""


class SubmitGroup(JobFields):
    """Jobs that differ only in their payload."""

    payloads: Annotated[list[bytes], Meta(min_length=1, max_length=model.JOBS_PER_REQUEST_MAX)]


class SubmittedMany(Answer):
    jobs: list[tuple[int, int, bool]]  # (first id, count, existing) in request order


class SubmitMany(Command[SubmittedMany]):
    """Add many jobs, all or none."""

    verb = "submit_many"
    scope = "jobs:submit"
    reply = SubmittedMany
    writes = True
    adds_jobs = True

    groups: Annotated[list[SubmitGroup], Meta(min_length=1, max_length=model.JOBS_PER_REQUEST_MAX)]


# --- worker -----------------------------------------------------------------------------------


class LeasedJob(Struct, omit_defaults=True, gc=False):
    """What a worker needs to know of a job. Fields that hold their default are left out."""

    job_id: int
    queue: str
    attempt: int
    payload: bytes
    encoding: Encoding = "raw"
    priority: int = 0
    task: str | None = None
    metadata: dict[str, str] | None = None
    delivery: Delivery = "at_least_once"
    errors: int = 0
    crashes: int = 0
    tenant: str = model.DEFAULT_TENANT
    group: str | None = None


class Leased(Answer):
    """`token` is 0 and `jobs` empty when there was nothing to lease."""

    token: int
    lease_ms_left: int
    wall_ms: int
    jobs: list[LeasedJob]


class Lease(Command[Leased]):
    """Take up to `count` jobs, waiting up to `wait_ms` for the first one."""

    verb = "lease"
    scope = "jobs:lease"
    reply = Leased
    writes = True

    queues: Annotated[list[Name], Meta(min_length=1, max_length=model.QUEUES_PER_LEASE_MAX)] = field(
        default_factory=lambda: [model.DEFAULT_QUEUE]
    )
    count: Count = 1
    lease_ms: LeaseMs | None = None
    wait_ms: Annotated[int, Meta(ge=0, le=model.WAIT_MS_MAX)] = 0
    weights: (
        Annotated[
            list[Annotated[int, Meta(ge=1, le=model.QUEUE_WEIGHT_MAX)]],
            Meta(min_length=1, max_length=model.QUEUES_PER_LEASE_MAX),
        ]
        | None
    ) = None  # one for each queue; None: in the order given


class Verdicts(Answer):
    """One verdict per run of jobs with the same outcome, in request order."""

    results: list[Verdict]


class Extended(Answer, omit_defaults=True):
    """cancel_marked: of those extended the ones that somebody wants to end; give them back."""

    results: list[Verdict]
    lease_ms_left: int
    cancel_marked: list[tuple[int, int]] = []


# (token, ranges): jobs held under that token.
Held = tuple[Token, Ranges]
HeldItems = Annotated[list[Held], Meta(min_length=1, max_length=model.JOBS_PER_REQUEST_MAX)]


class Extend(Command[Extended]):
    """Move the deadline of held leases to now + lease_ms (default: what each lease was given); say how far they are."""

    verb = "extend"
    scope = "jobs:ack"
    reply = Extended
    writes = True

    items: HeldItems
    lease_ms: LeaseMs | None = None
    progress_percent: Percent | None = None
    progress_text: ProgressText = ""


class CancelRequested(Answer):
    """The body of an event `cancel`: jobs that this session holds and somebody wants to end."""

    items: list[tuple[int, list[tuple[int, int]]]]  # (token, ranges)


class Ack(Command[Verdicts]):
    """Finish held jobs: `done`, or `dead` with reason `refused` if result_error is given."""

    verb = "ack"
    scope = "jobs:ack"
    reply = Verdicts
    writes = True

    items: Annotated[
        list[tuple[Token, Ranges, bytes | None]],
        Meta(min_length=1, max_length=model.JOBS_PER_REQUEST_MAX),
    ]
    encoding: Encoding = "raw"
    result_error: ErrorText | None = None


class Fail(Command[Verdicts]):
    """Give held jobs back as failed: retried after a backoff, or dead after the last retry."""

    verb = "fail"
    scope = "jobs:ack"
    reply = Verdicts
    writes = True

    items: HeldItems
    error: ErrorText = ""
    retry_in_ms: DelayMs | None = None
    retry: RetryPolicy | None = None
    dead: bool = False


class Release(Command[Verdicts]):
    """Give held jobs back unworked: the attempt is not counted."""

    verb = "release"
    scope = "jobs:ack"
    reply = Verdicts
    writes = True

    items: HeldItems
    delay_ms: DelayMs = 0


# --- reading ----------------------------------------------------------------------------------


class AttemptInfo(Struct, gc=False, kw_only=True):
    """How one delivery ended that did not succeed."""

    attempt: int
    cause: Cause
    wall_ms: int
    worker: str
    error: str


class JobInfo(Answer, omit_defaults=True):
    """A job as it is shown. `*_ms_left` count from the reply's state; fields at default are left out."""

    job_id: int
    queue: str
    state: StateName
    attempt: int
    created_wall_ms: int
    changed_wall_ms: int
    payload_bytes: int
    payload: bytes | None = None  # only in `get`; None once the job is finished
    encoding: Encoding = "raw"
    priority: int = 0
    tenant: str = model.DEFAULT_TENANT
    group: str | None = None
    task: str | None = None
    dedupe_key: str | None = None
    metadata: dict[str, str] | None = None
    delivery: Delivery = "at_least_once"
    errors: int = 0
    crashes: int = 0
    max_retries: int = model.MAX_RETRIES_DEFAULT
    max_crashes: int = model.MAX_CRASHES_DEFAULT
    retry: RetryPolicy | None = None  # None: jqd's default
    lease_ms: int = model.LEASE_MS_DEFAULT
    lease_ms_left: int | None = None  # leased
    worker: str | None = None  # leased
    cancel_marked: bool = False  # leased: it ends when it is given back
    due_ms_left: int | None = None  # delayed, for a duration
    run_at_ms: int | None = None  # delayed, for a date
    expires_at_ms: int | None = None  # if it is not started by then
    reason: DeadReason | None = None  # dead
    error: str = ""
    attempts: list[AttemptInfo] = []
    result: bytes | None = None
    result_encoding: Encoding = "raw"
    result_expired: bool = False  # there was one, and it is kept no longer
    progress_percent: int | None = None  # of the last attempt, as far as it said
    progress_text: str = ""


class Get(Command[JobInfo]):
    """Show one job."""

    verb = "get"
    scope = "jobs:read"
    reply = JobInfo

    job_id: JobId


class EndedJob(Struct, gc=False, kw_only=True, omit_defaults=True):
    """What became of a job. Fields at default are left out."""

    job_id: int
    state: StateName  # done, dead, cancelled or expired
    changed_wall_ms: int
    reason: DeadReason | None = None  # dead
    error: str = ""
    result: bytes | None = None  # done
    result_encoding: Encoding = "raw"
    result_expired: bool = False


class Waited(Answer, omit_defaults=True):
    """`jobs` are at their end; `pending` counts those that are not.

    gone: ids of which there is no job. More jobs than fit into a reply are neither here nor pending: ask again.
    """

    jobs: list[EndedJob]
    pending: int
    gone: list[tuple[int, int]] = []


class Wait(Command[Waited]):
    """Wait up to `wait_ms` until one of some jobs is at its end, or `all` are."""

    verb = "wait"
    scope = "jobs:read"
    reply = Waited

    ids: Annotated[list[Range], Meta(min_length=1, max_length=model.WAIT_JOBS_MAX)]
    wait_ms: Annotated[int, Meta(ge=0, le=model.WAIT_MS_MAX)] = 0
    all: bool = False


class JobFilter(Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """Which jobs are meant: all conditions that are given must hold."""

    queue: Name | None = None
    state: StateName | None = None
    where: FilterText | None = None  # in the filter language, see filters.py


class JobList(Answer):
    jobs: list[JobInfo]
    cursor: int | None  # pass it on for the next page; None: that was the last one


class ListJobs(Command[JobList]):
    """Show jobs in order of their ids, without payloads. A page may be short or empty before the end."""

    verb = "list"
    scope = "jobs:read"
    reply = JobList

    filter: JobFilter | None = None
    cursor: Annotated[int, Meta(ge=0, le=model.JOB_ID_MAX)] = 0
    limit: Limit = 100


class QueueInfo(Struct, gc=False, kw_only=True):
    """A queue with its jobs counted by state.

    ready_age_ms: how long the job that has been next in line longest, of any priority, has been ready; None: none is.
    memory_bytes: what it takes with its jobs, but for leases and keys; an estimate that errs upwards.
    """

    queue: str
    delayed: int
    ready: int
    leased: int
    done: int
    dead: int
    cancelled: int
    expired: int
    paused: bool = False
    ready_age_ms: int | None = None
    memory_bytes: int = 0


class QueueList(Answer):
    queues: list[QueueInfo]
    cursor: str | None


class Queues(Command[QueueList]):
    """Show every queue with its jobs counted by state, in order of the names."""

    verb = "queues"
    scope = "jobs:read"
    reply = QueueList

    cursor: Annotated[str, Meta(max_length=model.NAME_CHARS_MAX)] = ""
    limit: Limit = model.LIST_LIMIT_MAX


class QueueDetails(Answer):
    """A queue, what holds in it, and how long its jobs took since the daemon's start.

    lease_ms ... dead_retention_ms: what holds where the submit says nothing.  length_max: 0: no limit.
    waits, runs: (ms, jobs): so many waited from ready to lease, or ran from lease to ack, for less than that,
    and not less than half of it. Not kept over a restart.
    """

    info: QueueInfo
    lease_ms: int
    max_retries: int
    max_crashes: int
    retry: RetryPolicy
    retention_ms: int
    dead_retention_ms: int
    length_max: int
    waits: list[tuple[int, int]]
    runs: list[tuple[int, int]]


class GetQueue(Command[QueueDetails]):
    """Show one queue: counts, settings, how long its jobs waited and ran."""

    verb = "queue"
    scope = "jobs:read"
    reply = QueueDetails

    queue: Name


class Registered(Answer):
    """What a worker is told in return.

    worker_id: by which `workers` and `tell_workers` call it; the same for as long as its session.
    order:   what it is to do that it does not do yet; None: go on.
    beat_ms: say it again within that time.
    """

    worker_id: str
    order: str | None  # a WorkerOrder; a worker skips what it does not know
    beat_ms: int


class Register(Command[Registered]):
    """Say what a worker is: at its start, when something changes, and again every `beat_ms`."""

    verb = "register"
    scope = "jobs:lease"
    reply = Registered

    queues: Annotated[list[Name], Meta(max_length=model.QUEUES_PER_LEASE_MAX)] = []
    concurrency: Annotated[int, Meta(ge=1, le=model.WORKER_CONCURRENCY_MAX)] = 1
    state: WorkerState = "running"
    host: Label = ""
    pid: Annotated[int, Meta(ge=0, le=model.WORKER_PID_MAX)] = 0
    version: Label = ""


class OrderGiven(Answer):
    """The body of an event `order`: what a worker is to do from now on. It skips what it does not know."""

    order: str  # a WorkerOrder


class WorkerInfo(Struct, gc=False, kw_only=True):
    """A worker as it has said, and what it holds as the server knows it.

    worker_id: its id; worker: its label, as in hello.
    leased:  jobs that its session holds; jobs: which, (first id, count), the first 100 ranges of them.
    order:   what it was told and does not do yet.
    since_wall_ms, state_since_wall_ms: it is there, and in this state, since then, as far as this run of the daemon knows.
    heard_ms_ago: it last said so.
    """

    worker_id: str
    worker: str
    host: str
    pid: int
    version: str
    queues: list[str]
    concurrency: int
    state: WorkerState
    order: WorkerOrder | None
    leased: int
    jobs: list[tuple[int, int]]
    since_wall_ms: int
    state_since_wall_ms: int
    heard_ms_ago: int


class WorkerList(Answer):
    workers: list[WorkerInfo]
    cursor: str | None  # pass it on for the next page; None: that was the last one


class ListWorkers(Command[WorkerList]):
    """Show workers that have registered and are connected, in order of their ids."""

    verb = "workers"
    scope = "jobs:read"
    reply = WorkerList

    cursor: Label = ""
    limit: Limit = 100


class WorkersTold(Answer):
    told: list[tuple[str, str]]  # (worker id, label), in order of the ids


class TellWorkers(Command[WorkersTold]):
    """Tell workers to lease no more, to lease again, or to stop: some by id or label, or `all`."""

    verb = "tell_workers"
    scope = "server:admin"
    reply = WorkersTold

    order: WorkerOrder
    workers: (
        Annotated[
            list[Annotated[str, Meta(min_length=1, max_length=model.NAME_CHARS_MAX)]],
            Meta(min_length=1, max_length=model.LIST_LIMIT_MAX),
        ]
        | None
    ) = None
    all: bool = False


class ServerStats(Answer):
    """Figures of the daemon. `process` has its own ones, by name; others may come, and some are not always there:

    pid, rss_bytes            of the process; its resident memory
    connections, turns        that are open; passes of its loop that had something to do
    syncs, unsynced_bytes     of the log so far; what waits for one
    durable_lsn               up to which the log is on the disk
    log_bytes, log_segments   what the log takes, and in how many files
    snapshot_lsn, snapshot_bytes  of the newest one, 0 for none
    snapshots, snapshot_under_way  made in this run; 1: one is being made
    disk_free_bytes, low_space_bytes, storage_full  where the log is on a disk: what is free, a second old at most;
                              below which new jobs are refused; 1: they are
    memory_soft_bytes, memory_hard_bytes, held_bytes, memory_full  what jobs and the like may take; that and what is
                              held for connections and the disk; what is held now; 1: new connections are refused
    """

    server: str
    store_id: str
    epoch: int
    engine_ms: int
    wall_ms: int
    uptime_ms: int
    lsn: int
    jobs: dict[StateName, int]
    queue_count: int
    lease_count: int
    parked_count: int
    waiting_count: int
    session_count: int
    key_count: int  # dedupe and idempotency keys that are remembered
    result_bytes: int
    memory_bytes: int  # what all of it takes, as it is counted
    ended_bytes: int  # of it done, dead, cancelled and expired jobs
    tenant_count: int
    tenants: dict[str, int]  # bytes of the tenants that take most, 20 at most
    process: dict[str, int]  # see above


class Stats(Command[ServerStats]):
    """Show figures of the daemon."""

    verb = "stats"
    scope = "jobs:read"
    reply = ServerStats


# --- management -------------------------------------------------------------------------------


class Swept(Answer, omit_defaults=True):
    """What a bulk action did, or with dry_run would do.

    results: per id, only where `ids` were given. cursor: where to go on; None: that was all.
    marked:  of `count` those that are held, and end when their worker gives them back or their lease ends.
    """

    count: int
    cursor: int | None
    results: list[Verdict]
    marked: int = 0


class Sweep(Command[Swept]):
    """The common form of bulk actions: `ids` or `filter`; one call is one decision."""

    ids: Ranges | None = None
    filter: JobFilter | None = None
    cursor: Annotated[int, Meta(ge=0, le=model.JOB_ID_MAX)] = 0
    limit: Limit = model.LIST_LIMIT_MAX
    dry_run: bool = False


class Cancel(Sweep):
    """End waiting jobs for good; with `running` mark those that are held, so that they end."""

    verb = "cancel"
    scope = "jobs:submit"
    reply = Swept
    writes = True

    running: bool = False


class Updated(Answer):
    job_id: int
    state: StateName  # that it has now


class Update(Command[Updated]):
    """Change a job that waits: what is None stays. A time (0: at once) replaces the one that it had."""

    verb = "update"
    scope = "jobs:submit"
    reply = Updated
    writes = True
    adds_jobs = True  # a payload may be added, and what was written before stays in the log

    job_id: JobId
    priority: Priority | None = None
    delay_ms: DelayMs | None = None
    run_at_ms: WallMs | None = None
    payload: bytes | None = None
    encoding: Encoding | None = None  # of the payload; raw
    metadata: Metadata | None = None


class Requeue(Sweep):
    """Make dead jobs ready again, with new budgets and their history."""

    verb = "requeue"
    scope = "jobs:manage"
    reply = Swept
    writes = True


class Purge(Sweep):
    """Remove jobs without a trace: waiting ones, or dead ones where the filter says so."""

    verb = "purge"
    scope = "jobs:manage"
    reply = Swept
    writes = True


class QueueChanged(Answer):
    queue: str
    paused: bool


class SetQueue(Command[QueueChanged]):
    """Change what holds in a queue, and make it if there is none: what is None stays."""

    verb = "set_queue"
    scope = "queues:manage"
    reply = QueueChanged
    writes = True

    queue: Name
    lease_ms: LeaseMs | None = None
    max_retries: AttemptLimit | None = None
    max_crashes: AttemptLimit | None = None
    retry: RetryPolicy | None = None
    retention_ms: RetentionMs | None = None
    dead_retention_ms: RetentionMs | None = None
    length_max: QueueLength | None = None
    reset: bool = False


class Pause(Command[QueueChanged]):
    """Hand out no jobs of a queue until resume; submits go on."""

    verb = "pause"
    scope = "queues:manage"
    reply = QueueChanged
    writes = True

    queue: Name


class Resume(Command[QueueChanged]):
    """Hand out the jobs of a paused queue again."""

    verb = "resume"
    scope = "queues:manage"
    reply = QueueChanged
    writes = True

    queue: Name


class SnapshotBegun(Answer):
    """`lsn`: when `stats` shows a `snapshot_lsn` of this or more, the snapshot is made."""

    lsn: int


class Snapshot(Command[SnapshotBegun]):
    """Have a snapshot of everything made, so that a start need not read the log before it."""

    verb = "snapshot"
    scope = "server:admin"
    reply = SnapshotBegun


# --- the table --------------------------------------------------------------------------------

COMMANDS: Final[dict[str, type[Command[Any]]]] = {
    command.verb: command
    for command in (
        Hello,
        Ping,
        Submit,
        SubmitMany,
        Lease,
        Extend,
        Ack,
        Fail,
        Release,
        Cancel,
        Update,
        Requeue,
        Purge,
        SetQueue,
        Pause,
        Resume,
        Get,
        Wait,
        ListJobs,
        Queues,
        GetQueue,
        Register,
        ListWorkers,
        TellWorkers,
        Stats,
        Snapshot,
    )
}

# What the server says unasked: the body's type, and the event's name.
EVENT_NAMES: Final[dict[type[Struct], str]] = {CancelRequested: "cancel", OrderGiven: "order"}


def to_ranges(ids: list[int]) -> list[tuple[int, int]]:
    """Pack ids into (first, count) runs, in the order given."""
    if len(ids) == 1:
        return [(ids[0], 1)]
    if ids and ids[-1] - ids[0] == len(ids) - 1 and ids == list(range(ids[0], ids[-1] + 1)):
        return [(ids[0], len(ids))]
    ranges: list[tuple[int, int]] = []
    for job_id in ids:
        if ranges and job_id == ranges[-1][0] + ranges[-1][1]:
            ranges[-1] = (ranges[-1][0], ranges[-1][1] + 1)
        else:
            ranges.append((job_id, 1))
    return ranges

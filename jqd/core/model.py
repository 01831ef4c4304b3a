"""What a job, a lease and a queue are, in which states a job can be, and every limit.

Knows:         the nouns of jqd, the transition table, each limit with its unit and its reason.
Must not know: which command moves a job, where jobs are kept (state.py), bytes, sockets, clocks.

Units are the suffix: `_ms` integer milliseconds, `_bytes`, `_count`. A time without a date is
`engine_ms`, which never jumps; a date is `wall_ms`, which may (design: the two clocks never mix).
"""

import re
from enum import IntEnum
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from jqd.errors import InvalidArgument

# --- numbers that identify --------------------------------------------------------------------

# Job id: u64 = shard (12 bits, 0 for the embedded log) << 48 | sequence, dense from 1.
SHARD_SHIFT: Final = 48
JOB_ID_MAX: Final = (1 << 60) - 1
# Lease token: u64 = epoch (32 bits) << 32 | grant. The epoch is at least the start's unix time, so
# that tokens rise even over a restored backup. 32 bits end in 2106: a clock that shows a time beyond the
# first second of 2100 is not believed, or one start with it would leave no epoch for the next ones.
EPOCH_DATE_MAX: Final = 4_102_444_800
GRANT_BITS: Final = 32
GRANT_MAX: Final = (1 << GRANT_BITS) - 1
SESSION_BYTES: Final = 16

# --- limits -----------------------------------------------------------------------------------

SECOND_MS: Final = 1_000
MINUTE_MS: Final = 60 * SECOND_MS
HOUR_MS: Final = 60 * MINUTE_MS
DAY_MS: Final = 24 * HOUR_MS

PRIORITY_MIN: Final = -(1 << 15)
PRIORITY_MAX: Final = (1 << 15) - 1
LEASE_MS_DEFAULT: Final = 30 * SECOND_MS
LEASE_MS_MIN: Final = 1 * SECOND_MS  # below this a slow network alone would end leases
LEASE_MS_MAX: Final = 1 * DAY_MS
MAX_RETRIES_DEFAULT: Final = 3
MAX_CRASHES_DEFAULT: Final = 5
ATTEMPT_LIMIT_MAX: Final = 1_000
RETRY_BASE_MS_DEFAULT: Final = 1 * SECOND_MS
RETRY_FACTOR_PERCENT_DEFAULT: Final = 200
RETRY_FACTOR_PERCENT_MAX: Final = 10_000  # a hundredfold: from 1 s the second retry is above every cap
RETRY_CAP_MS_DEFAULT: Final = 1 * HOUR_MS
RETRY_JITTER_PERCENT_DEFAULT: Final = 20
RETRY_DELAYS_MAX: Final = 32  # in a list; it is kept with the options of its jobs
WAIT_MS_MAX: Final = 30 * SECOND_MS  # below the idle timeout of every usual proxy
DELAY_MS_MAX: Final = 366 * DAY_MS
# A date up to year 9999, the last one that RFC 3339 can write.
WALL_MS_MAX: Final = 253_402_300_799_999

PAYLOAD_BYTES_MAX: Final = 1 << 20
RESULT_BYTES_MAX: Final = 64 << 10
PROGRESS_TEXT_BYTES_MAX: Final = 256  # what fits into one line of a screen, in any script
METADATA_BYTES_MAX: Final = 4 << 10  # keys and values together, UTF-8
METADATA_KEYS_MAX: Final = 64  # 10,000 jobs of a request with that many take 80 MiB, whatever stands in them
ERROR_TEXT_BYTES_MAX: Final = (
    4 << 10
)  # longer texts are cut, not refused: a traceback must not cost its report
NAME_CHARS_MAX: Final = 128
# Alike and in a row they hold the loop for some 10 ms; those that have nothing in common, each under its own token or of
# its own tenant, for 40 to 120 (new queues take longest), and others are served then (State.work).
JOBS_PER_REQUEST_MAX: Final = 10_000
QUEUES_PER_LEASE_MAX: Final = 64
QUEUE_WEIGHT_MAX: Final = 1_000
LIST_LIMIT_MAX: Final = 1_000
# Of one wait: each is looked at when it comes and when it is answered, and kept in a table in between. A wait is sent
# again every WAIT_MS_MAX, so more in one request would be a load that comes back.
WAIT_JOBS_MAX: Final = 1_000
# Jobs of all waits that are parked, counted once for each wait: some 250 bytes each.
WAITED_JOBS_MAX: Final = 100_000
# Steps of one list or bulk call before it answers with a cursor: a job looked at is one, and so is each comparison
# that a filter makes on it (filters.py). About 5 ms of the loop.
SCAN_JOBS_MAX: Final = 20_000
# A filter's text: what a person writes in one line, and what 250 us read. Each value compared with is one comparison.
FILTER_CHARS_MAX: Final = 1_000
FILTER_COMPARISONS_MAX: Final = 32
FILTER_DEPTH_MAX: Final = 16
FRAME_BYTES_MAX: Final = 16 << 20
FRAME_BYTES_MAX_BEFORE_HELLO: Final = 4 << 10
# A reply ends before this, with at least one job in it; one payload of 1 MiB always fits.
REPLY_BYTES_MAX: Final = 4 << 20
IN_FLIGHT_MAX: Final = 1_024

FINISHED_RETENTION_MS: Final = 1 * HOUR_MS
FINISHED_COUNT_MAX: Final = 100_000  # per queue
DEAD_RETENTION_MS: Final = 30 * DAY_MS
DEAD_COUNT_MAX: Final = 100_000  # per queue
RESULTS_BYTES_MAX: Final = 256 << 20  # in all, the oldest go first

# Read by apply(), so part of the disk format: another value needs a new number for the fact that uses it.
HISTORY_COUNT_MAX: Final = 16

KEYS_MAX: Final = 1_000_000  # dedupe and idempotency keys; some 300 bytes each
KEY_TTL_MS_MIN: Final = 1 * SECOND_MS
KEY_TTL_MS_MAX: Final = 7 * DAY_MS
IDEMPOTENCY_TTL_MS_DEFAULT: Final = 24 * HOUR_MS

QUEUES_SET_MAX: Final = 10_000  # queues with settings of their own: they stay without jobs
QUEUE_LENGTH_MAX: Final = 1_000_000_000  # of a queue's length_max: more than memory holds

SESSIONS_MAX: Final = 100_000
SESSION_RETENTION_MS: Final = 10 * MINUTE_MS  # after its last connection
# Parts of the disk format, see HISTORY_COUNT_MAX. An answer that lists 10,000 verdicts has some 100 KiB.
ANSWERS_PER_SESSION_MAX: Final = 1_024
ANSWERS_BYTES_PER_SESSION_MAX: Final = 1 << 20

# What a session has to come back in after it lost its last connection, if its hello asked for `release`: far more than
# a reconnect takes on one machine. The server's setting disconnect_grace_ms takes its place.
DISCONNECT_GRACE_MS: Final = 500

# Workers that say what they are; some 10 KB each at most. Half of max_connections: each has two connections or more.
WORKERS_MAX: Final = 5_000
WORKER_BEAT_MS: Final = (
    5 * SECOND_MS
)  # how often a worker says it again: an order that went astray is that late
WORKER_CONCURRENCY_MAX: Final = 1_000_000  # a number to show, no more than that
WORKER_PID_MAX: Final = (1 << 32) - 1  # of any system
WORKER_RANGES_MAX: Final = 100  # of its jobs that are shown of each worker

PROMOTIONS_PER_TICK: Final = 10_000
EXPIRIES_PER_TICK: Final = 1_000
RESULTS_PER_TICK: Final = 50  # each may have to be looked for among 100,000 finished jobs: about 1 ms
# What a lease is worth at least after a restart: its worker needs time to come back.
RESTART_GRACE_MS: Final = 30 * SECOND_MS  # part of the disk format, see HISTORY_COUNT_MAX
# The high water of the engine clock is logged this often while a timer is pending.
HIGH_WATER_EVERY_MS: Final = 5 * SECOND_MS

# --- names ------------------------------------------------------------------------------------

DEFAULT_QUEUE: Final = "default"
DEFAULT_TENANT: Final = "default"
NAME_PATTERN: Final = "[A-Za-z0-9_][A-Za-z0-9_.:-]{0,127}"
_NAME: Final = re.compile(NAME_PATTERN)

# The decoder checks only the length: the pattern costs more than the rest of a small request and
# a name that is in use has passed it. Whoever makes a name new calls check_name().
Name = Annotated[str, Meta(min_length=1, max_length=NAME_CHARS_MAX)]
Encoding = Literal["raw", "text", "json", "msgpack"]
Delivery = Literal["at_least_once", "at_most_once"]
Dedupe = Literal["existing", "reject", "replace", "debounce"]
DedupeUntil = Literal["finished", "started"]
RetryKind = Literal["exponential", "linear", "fixed", "list"]
WorkerState = Literal["running", "quiet", "stopping"]
WorkerOrder = Literal["quiet", "resume", "stop"]
StateName = Literal["delayed", "ready", "leased", "done", "dead", "cancelled", "expired"]
DeadReason = Literal["retries", "crashes", "refused", "abandoned", "killed"]
# Why an attempt ended without success. A restart is nobody's fault and counts against no limit.
Cause = Literal["error", "crash", "restart", "none"]


def check_name(field: str, name: str) -> None:
    """Refuse a name that does not match NAME_PATTERN.

    Args:   field: what the caller calls it, for the message.
    Raises: InvalidArgument.
    """
    if _NAME.fullmatch(name) is None:
        raise InvalidArgument(f"{field} = {shorten(name)}: a name must match {NAME_PATTERN}")


def shorten(value: object, limit: int = 60) -> str:
    """Show a value in a one-line message: its repr, control characters escaped, cut at `limit`."""
    text = ascii(value)
    if len(text) <= limit:
        return text
    return f"{text[:limit]}... ({len(value if isinstance(value, str) else text)} characters)"


# --- states -----------------------------------------------------------------------------------


class JobState(IntEnum):
    """Where a job is in its life. Members index Queue.counts; the wire has `wire_name`."""

    DELAYED = 0  # waits for its time: submitted with a delay, or between two attempts
    READY = 1
    LEASED = 2
    DONE = 3
    DEAD = 4  # kept for an operator, with a DeadReason
    CANCELLED = 5
    EXPIRED = 6  # was not started before its `expires`

    @property
    def wire_name(self) -> StateName:
        return STATE_NAMES[self]


STATE_NAMES: Final[tuple[StateName, ...]] = (
    "delayed",
    "ready",
    "leased",
    "done",
    "dead",
    "cancelled",
    "expired",
)
STATES_BY_NAME: Final[dict[str, JobState]] = {name: JobState(i) for i, name in enumerate(STATE_NAMES)}

# The whole life of a job. State.move asserts it; protocol.md's picture is compared with it.
TRANSITIONS: Final[dict[JobState, frozenset[JobState]]] = {
    JobState.DELAYED: frozenset({JobState.READY, JobState.CANCELLED, JobState.EXPIRED}),
    JobState.READY: frozenset({JobState.LEASED, JobState.DELAYED, JobState.CANCELLED, JobState.EXPIRED}),
    JobState.LEASED: frozenset(
        {JobState.DONE, JobState.DEAD, JobState.READY, JobState.DELAYED, JobState.CANCELLED}
    ),
    JobState.DONE: frozenset(),
    JobState.DEAD: frozenset({JobState.READY}),
    JobState.CANCELLED: frozenset(),
    JobState.EXPIRED: frozenset(),
}


# --- things -----------------------------------------------------------------------------------


class Now(Struct, frozen=True, gc=False, array_like=True):
    """One reading of both clocks. All of one loop turn, and of one record, shares one.

    engine_ms never jumps and never goes back, over restarts too; wall_ms is a date and may jump.
    """

    engine_ms: int
    wall_ms: int


RetryMs = Annotated[int, Meta(ge=1, le=DELAY_MS_MAX)]


class RetryPolicy(
    Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """How long a job waits after a failure; see backoff.py. None: jqd's default of this field.

    Said on the wire and kept on disk as it was said: a map that leaves out what is None.
    """

    kind: RetryKind = "exponential"
    base_ms: RetryMs | None = None
    factor_percent: Annotated[int, Meta(ge=100, le=RETRY_FACTOR_PERCENT_MAX)] | None = None
    cap_ms: RetryMs | None = None
    jitter_percent: Annotated[int, Meta(ge=0, le=100)] | None = None
    delays_ms: (
        Annotated[
            tuple[Annotated[int, Meta(ge=0, le=DELAY_MS_MAX)], ...],
            Meta(min_length=1, max_length=RETRY_DELAYS_MAX),
        ]
        | None
    ) = None


class QueueSettings(
    Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """What an operator said of a queue. None: jqd's default. On disk a map that leaves out defaults.

    length_max: delayed, ready and leased jobs; beyond, new ones are refused.
    paused:     nothing is handed out.  kept: it was set, so it stays without jobs.
    """

    lease_ms: int | None = None
    max_retries: int | None = None
    max_crashes: int | None = None
    retry: RetryPolicy | None = None
    retention_ms: int | None = None
    dead_retention_ms: int | None = None
    length_max: int | None = None
    paused: bool = False
    kept: bool = False


UNSET_QUEUE: Final = QueueSettings()


class JobOptions(Struct, frozen=True, gc=False, omit_defaults=True, forbid_unknown_fields=True):
    """What a submit says about a job besides its payload. Shared by all jobs that were given the same.

    None means "not said": the queue's setting, then jqd's default, is looked up when it is needed,
    and what came out is written into the fact, so that replay never looks anything up.
    On disk a map that leaves out defaults, so that an option added later costs old jobs nothing.
    """

    queue: str = DEFAULT_QUEUE
    tenant: str = DEFAULT_TENANT
    group: str | None = None
    task: str | None = None
    encoding: Encoding = "raw"
    priority: int = 0
    max_retries: int | None = None
    max_crashes: int | None = None
    lease_ms: int | None = None
    delivery: Delivery = "at_least_once"
    metadata: dict[str, str] | None = None
    retry: RetryPolicy | None = None
    dedupe_key: str | None = None  # of one job alone: its options are shared with nobody
    dedupe_until: DedupeUntil = "finished"
    dedupe_ttl_ms: int | None = None  # from the submit on, whatever becomes of the job
    expires_wall_ms: int | None = None  # not started by then: expired
    result_ttl_ms: int | None = None  # from the ack on; 0: none is kept; None: as long as the job


class Lease(Struct, gc=False):
    """The exclusive right to some jobs until `deadline_ms`. Shared by all jobs of one grant that
    still have one deadline; extending a part of them splits it (same token).

    Holds job ids, never jobs: with gc off there must be no cycle.
    """

    token: int
    deadline_ms: int  # engine clock; at this very ms the lease is over
    lease_ms: int
    ranges: list[
        tuple[int, int]
    ]  # (first id, count): the jobs it began with; a job is in it while job.lease is it
    live_count: int
    worker: str
    session: bytes | None
    restarted: bool = (
        False  # was live at DaemonStarted and not extended since: its end counts against no limit
    )


class Due(Struct, frozen=True, gc=False, array_like=True):
    """When a delayed job becomes ready: engine clock for a duration, wall clock for a date."""

    ms: int
    is_wall: bool


class Attempt(Struct, frozen=True, gc=False, array_like=True):
    """How one delivery ended that did not succeed. The newest HISTORY_COUNT_MAX are kept."""

    number: int
    cause: Cause
    wall_ms: int
    worker: str
    error: str


class Progress(Struct, frozen=True, gc=False, array_like=True):
    """How far the last attempt said that it had come."""

    percent: int | None = None
    text: str = ""


class Outcome(Struct, gc=False, array_like=True):
    """What only some jobs have: the story of failed attempts, a reason of death, a result, how far it came."""

    reason: DeadReason | None = None
    error: str = ""
    attempts: list[Attempt] = []
    result: bytes | None = None
    result_encoding: Encoding = "raw"
    cancel_marked: bool = False  # only while LEASED: it is to end, and whoever holds it is told
    progress: Progress | None = None  # of the last attempt: the next hand-out clears it
    result_dropped: bool = False  # there was a result, and its time is over


class Job(Struct, gc=False):
    """One unit of work. 12 slots, since a million of them wait in memory.

    attempt numbers deliveries from 1 (0 = never handed out); a release gives the number back.
    """

    @property
    def cancel_marked(self) -> bool:
        """Whether it is to end, although somebody still holds it."""
        return self.outcome is not None and self.outcome.cancel_marked

    @property
    def result_due_ms(self) -> int | None:
        """When the time of a done job's result is over, by the engine clock; None: it has as long as the job."""
        ttl_ms = self.options.result_ttl_ms
        return None if ttl_ms is None else self.changed.engine_ms + ttl_ms

    id: int
    options: JobOptions
    payload: bytes | None  # None once the job is done, cancelled or expired
    state: JobState
    created: Now
    changed: Now  # last transition
    attempt: int = 0
    errors: int = 0
    crashes: int = 0
    lease: Lease | None = None  # exactly while LEASED
    due: Due | None = None  # exactly while DELAYED
    outcome: Outcome | None = None


class Caller(Struct, frozen=True, gc=False):
    """Who asks, as settled by hello. One object per connection.

    principal: id of the API key, "" for a local caller without one.
    session:   128 random bits of the client process, or None: then retries are not recognised.
    """

    principal: str = ""
    tenant: str = DEFAULT_TENANT
    session: bytes | None = None
    worker: str = ""


LOCAL: Final = Caller()

"""What the state takes in memory: an estimate that follows from the state alone, and is never a fact.

Knows:         what each kind of thing costs, and which of that is known without looking at it.
Must not know: when something is counted (state.py), what follows from a limit (submitting.py, passing.py), the process.

Counted is what clients can make more of: jobs, what they carry, distinct options, queues, tenants, priorities in use,
leases, keys, sessions with their answers. A queue and a tenant know what is theirs; `Memory.bytes` is all of it.

**The estimate errs upwards.** The constants were measured with CPython 3.11 as growth of the resident memory for
each thing in the worst shape that it usually comes in (a job submitted alone has its own reading of the clocks, one
of a bulk has not): docs/performance.md has the figures. What many jobs may share while the daemon runs (a text of an
error, a result, metadata of one request) counts for each of them, since a start from a snapshot gives each its own.
Options without metadata, dedupe key and expiry are shared by value over any restart, and count once.

Not counted: what stands in pages of which nearly all jobs have gone, cancelled timers (at most as many as there
are others), and what the server holds for its connections, which it counts itself.
"""

from collections.abc import Iterable
from typing import Final

from jqd.core.model import (
    DEFAULT_TENANT,
    NAME_CHARS_MAX,
    Job,
    JobOptions,
    Outcome,
    Progress,
    QueueSettings,
    RetryPolicy,
)

# Its Struct, slot, id, place in a queue, the head of its payload, and a reading of both clocks.
JOB_BYTES: Final = 320
# Its time, and a timer.
DELAYED_BYTES: Final = 140
# A JobOptions and its place in the table of those that are shared.
OPTIONS_BYTES: Final = 280
# A timer, and a date that is nobody else's.
EXPIRY_BYTES: Final = 120
# A dict that grows leaves room for as much again.
METADATA_BYTES: Final = 200
ENTRY_BYTES: Final = 60
RETRY_BYTES: Final = 160
RETRY_DELAY_BYTES: Final = 40
# An Outcome with its list, the place of a dead job or of a result, a reading of the clocks.
OUTCOME_BYTES: Final = 300
ATTEMPT_BYTES: Final = 110
RESULT_BYTES: Final = 50
# A timer, of a result that has a time of its own.
RESULT_TIMER_BYTES: Final = 130
PROGRESS_BYTES: Final = 60
LEASE_BYTES: Final = 680
RANGE_BYTES: Final = 100
# Containers that are empty, and two histograms.
QUEUE_BYTES: Final = 3_100
SETTINGS_BYTES: Final = 260
TENANT_BYTES: Final = 260
KEY_BYTES: Final = 360
SESSION_BYTES: Final = 1_300
ANSWER_BYTES: Final = 200

# No limit: more than any machine has.
UNLIMITED_BYTES: Final = (1 << 63) - 1
# Of the soft limit, what jobs that have ended may take together.
ENDED_SHARE: Final = 5
# Before no lease is split and no held job marked any more: that share beyond the soft limit, and at least so much. With
# the share of what has ended it is a little less than the way to the hard limit, which is a third at least.
SPLIT_SHARE: Final = 8
SPLIT_BYTES_MIN: Final = 1 << 20


class Memory:
    """What is counted, and what may be.

    bytes:       of all that is counted.  ended_bytes: of the jobs that are done, dead, cancelled or expired.
    split_bytes: beyond it no lease is split, no held job marked.
    soft_bytes:  beyond it nothing is taken that adds to it.  ended_bytes_max: beyond it the oldest are forgotten.
    """

    __slots__ = ("bytes", "ended_bytes", "ended_bytes_max", "soft_bytes", "split_bytes")

    def __init__(self) -> None:
        self.bytes = 0
        self.ended_bytes = 0
        self.limit(UNLIMITED_BYTES)

    def limit(self, soft_bytes: int) -> None:
        """Set the soft limit, which is no fact: Engine is handed it."""
        self.soft_bytes = soft_bytes
        self.ended_bytes_max = soft_bytes // ENDED_SHARE
        self.split_bytes = soft_bytes + max(SPLIT_BYTES_MIN, soft_bytes // SPLIT_SHARE)

    def may_end_with(self, added_bytes: int = 0) -> bool:
        """Tell whether jobs that end may leave so much more behind: results, texts of errors.

        What has ended has its share even where what waits has used up the whole limit, and room beyond it for what one
        turn brings, since the oldest are forgotten in the next ones. It has both where a limit was lowered, too.
        """
        spare_bytes = self.split_bytes - self.soft_bytes
        return (
            self.bytes + added_bytes <= self.split_bytes + self.ended_bytes_max
            or self.ended_bytes + added_bytes <= self.ended_bytes_max + spare_bytes
        )


class Tenant:
    """Whose jobs and keys they are. It is there as long as it has some.

    bytes: of its jobs and keys.
    """

    __slots__ = ("bytes", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.bytes = 0


def text_bytes(text: str) -> int:
    """Return what a text takes: one that is not ASCII up to four bytes a character, and once more in UTF-8."""
    return 56 + len(text) if text.isascii() else 80 + 4 * len(text) + len(text.encode())


def _texts_bytes(texts: Iterable[str | None]) -> int:
    return sum(text_bytes(text) for text in texts if text is not None)


def _retry_bytes(retry: RetryPolicy | None) -> int:
    return 0 if retry is None else RETRY_BYTES + RETRY_DELAY_BYTES * len(retry.delays_ms or ())


def are_shared(options: JobOptions) -> bool:
    """Tell whether all jobs that are given the same options have one object: metadata, a key and a date are a job's own."""
    return options.metadata is None and options.dedupe_key is None and options.expires_wall_ms is None


def options_bytes(options: JobOptions) -> int:
    """Return what an object of these options takes."""
    names = (options.queue, options.group, options.task, options.dedupe_key)
    size = OPTIONS_BYTES + _texts_bytes(names) + _retry_bytes(options.retry)
    if options.tenant != DEFAULT_TENANT:
        size += text_bytes(options.tenant)
    if options.expires_wall_ms is not None:
        size += EXPIRY_BYTES
    if options.metadata is not None:
        size += METADATA_BYTES
        for key, value in options.metadata.items():
            size += ENTRY_BYTES + text_bytes(key) + text_bytes(value)
    return size


def own_bytes(options: JobOptions) -> int:
    """Return what each job with these options takes for them."""
    return 0 if are_shared(options) else options_bytes(options)


def new_job_bytes(options: JobOptions, *, is_delayed: bool) -> int:
    """Return what a job that was never handed out takes besides its payload."""
    return JOB_BYTES + own_bytes(options) + DELAYED_BYTES * is_delayed


def attempt_bytes(worker: str, error: str) -> int:
    """Return what an attempt in a job's history takes."""
    return ATTEMPT_BYTES + text_bytes(worker) + text_bytes(error)


# Of an outcome in which nothing stands yet.
EMPTY_OUTCOME_BYTES: Final = OUTCOME_BYTES + text_bytes("")
# The label of a worker, in the script that takes most.
_WORKER_BYTES_MAX: Final = text_bytes("\U00010000" * NAME_CHARS_MAX)


def failure_bytes(error: str) -> int:
    """Return what a job takes more at most when an attempt of it ends with this error."""
    return EMPTY_OUTCOME_BYTES + ATTEMPT_BYTES + _WORKER_BYTES_MAX + 2 * text_bytes(error)


def outcome_bytes(outcome: Outcome | None) -> int:
    """Return what only some jobs have."""
    if outcome is None:
        return 0
    size = OUTCOME_BYTES + text_bytes(outcome.error)
    for attempt in outcome.attempts:
        size += attempt_bytes(attempt.worker, attempt.error)
    if outcome.result is not None:
        size += RESULT_BYTES + len(outcome.result)
    if outcome.progress is not None:
        size += progress_bytes(outcome.progress)
    return size


def result_bytes(options: JobOptions, result: bytes) -> int:
    """Return what the result of a job with these options takes."""
    return RESULT_BYTES + len(result) + (0 if options.result_ttl_ms is None else RESULT_TIMER_BYTES)


def progress_bytes(progress: Progress) -> int:
    """Return what is taken by how far a job has come."""
    return PROGRESS_BYTES + text_bytes(progress.text)


def job_bytes(job: Job) -> int:
    """Return what a job takes, besides what a time or a lease adds."""
    size = JOB_BYTES + len(job.payload or b"") + own_bytes(job.options) + outcome_bytes(job.outcome)
    if job.outcome is not None and job.outcome.result is not None and job.options.result_ttl_ms is not None:
        size += RESULT_TIMER_BYTES
    return size


def queue_bytes(name: str) -> int:
    """Return what a queue without jobs takes."""
    return QUEUE_BYTES + text_bytes(name)


def settings_bytes(settings: QueueSettings) -> int:
    """Return what a queue's settings take."""
    return SETTINGS_BYTES + _retry_bytes(settings.retry)


def tenant_bytes(name: str) -> int:
    """Return what a tenant without jobs takes."""
    return TENANT_BYTES + text_bytes(name)


def key_bytes(name: str) -> int:
    """Return what a key takes."""
    return KEY_BYTES + len(name)


def session_bytes(answer_count: int, answer_bytes: int) -> int:
    """Return what a session takes with that many answers, of which those that are encoded have so many bytes."""
    return SESSION_BYTES + ANSWER_BYTES * answer_count + answer_bytes

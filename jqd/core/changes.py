"""What can have happened: each durable fact, and how it becomes true.

Knows:         the shape of every fact on disk, and which State methods make it true.
Must not know: why it happened. A change is applied as it stands, live and in recovery alike; it
               looks up no default, no clock and no setting. A later fix of a decision never alters
               history.

On disk a fact is a msgpack array [number, field, ...]; the numbers below are appended to and never
reused, and a new field goes to the end with a default. A record is [engine_ms, wall_ms, [fact, ...]]:
one batch, one reading of the clocks. Every old record must load for ever (tests/golden).

`principal` is the id of the API key that asked, "" for a local caller without one.
"""

from collections.abc import Sequence
from typing import Final, Union

import msgspec
from msgspec import Struct

from jqd.core.keys import Key, idempotency_name
from jqd.core.model import (
    HISTORY_COUNT_MAX,
    Cause,
    DeadReason,
    Due,
    Encoding,
    Job,
    JobOptions,
    JobState,
    Lease,
    Now,
    Outcome,
    Progress,
    QueueSettings,
)
from jqd.core.state import State

Ranges = list[tuple[int, int]]


class Change(Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """A fact. apply() is the only code that writes to a State."""

    def apply(self, state: State, now: Now) -> None:
        raise NotImplementedError


def _due(engine_ms: int | None, wall_ms: int | None) -> Due | None:
    if engine_ms is not None:
        return Due(engine_ms, is_wall=False)
    return None if wall_ms is None else Due(wall_ms, is_wall=True)


# --- time ---------------------------------------------------------------------------------------


class DaemonStarted(Change, tag=1):
    """A new run of the daemon began; leases that were live get a grace."""

    epoch: int
    version: str = ""

    def apply(self, state: State, now: Now) -> None:
        state.start(self.epoch, now)


class TimeAdvanced(Change, tag=2):
    """Time passed: the earliest `limit` delayed jobs that are due became ready.

    The one wide fact: which jobs these are follows from the state and the record's clocks.
    """

    limit: int

    def apply(self, state: State, now: Now) -> None:
        state.promote(self.limit, now)


# --- jobs ---------------------------------------------------------------------------------------


class JobsSubmitted(Change, tag=3):
    """Jobs came: one per payload, consecutive ids, ready or due at one of the two times."""

    first_id: int
    options: JobOptions
    payloads: list[bytes]
    due_engine_ms: int | None = None
    due_wall_ms: int | None = None
    principal: str = ""

    def apply(self, state: State, now: Now) -> None:
        due = _due(self.due_engine_ms, self.due_wall_ms)
        state.add_jobs(self.first_id, self.options, self.payloads, due, now)


class JobsLeased(Change, tag=4):
    """Ready jobs were handed out under one token."""

    token: int
    lease_ms: int
    ranges: Ranges
    worker: str = ""
    session: bytes | None = None
    principal: str = ""

    def apply(self, state: State, now: Now) -> None:
        deadline_ms = now.engine_ms + self.lease_ms
        lease = Lease(self.token, deadline_ms, self.lease_ms, self.ranges, 0, self.worker, self.session)
        state.lease_jobs(lease, now)


class LeasesExtended(Change, tag=5):
    """The deadline of held jobs moved to the record's time + lease_ms."""

    token: int
    lease_ms: int
    ranges: Ranges
    principal: str = ""

    def apply(self, state: State, now: Now) -> None:
        state.extend_leases(self.token, self.ranges, now.engine_ms + self.lease_ms, self.lease_ms)


class JobsDone(Change, tag=6):
    """Held jobs were finished well."""

    ranges: Ranges
    result: bytes | None = None
    encoding: Encoding = "raw"
    principal: str = ""

    def apply(self, state: State, now: Now) -> None:
        state.finish(self.ranges, JobState.DONE, now, self.result, self.encoding)


class JobsRetried(Change, tag=7):
    """An attempt ended without success and another will follow.

    jobs: (id, due_ms by the engine clock), 0 = ready at once: each has its own jitter.
    kept: attempts of their histories that stay, this one included; 0: none, and the error goes as well.
    """

    jobs: list[tuple[int, int]]
    cause: Cause
    error: str = ""
    principal: str = ""
    kept: int = HISTORY_COUNT_MAX

    def apply(self, state: State, now: Now) -> None:
        for job_id, due_ms in self.jobs:
            due = Due(due_ms, is_wall=False) if due_ms else None
            state.give_back([(job_id, 1)], due, self.cause, self.error, now, self.kept)


class JobsDied(Change, tag=8):
    """An attempt ended without success and no other will follow. kept: as in JobsRetried, at least 1."""

    ranges: Ranges
    reason: DeadReason
    cause: Cause
    error: str = ""
    principal: str = ""
    kept: int = HISTORY_COUNT_MAX

    def apply(self, state: State, now: Now) -> None:
        state.bury(self.ranges, self.reason, self.cause, self.error, now, self.kept)


class JobsReleased(Change, tag=9):
    """Held jobs were given back unworked; the attempt does not count. due_ms 0 = ready at once."""

    ranges: Ranges
    due_ms: int = 0
    principal: str = ""

    def apply(self, state: State, now: Now) -> None:
        due = Due(self.due_ms, is_wall=False) if self.due_ms else None
        state.give_back(self.ranges, due, "none", "", now, HISTORY_COUNT_MAX)


class JobsCancelled(Change, tag=10):
    """Jobs were ended for good: waiting ones, or marked ones whose lease ended.

    cause: why the attempt of those ended; none: nothing is kept of it.
    """

    ranges: Ranges
    principal: str = ""
    cause: Cause = "none"
    error: str = ""

    def apply(self, state: State, now: Now) -> None:
        state.finish(self.ranges, JobState.CANCELLED, now, cause=self.cause, error=self.error)


class JobsRequeued(Change, tag=11):
    """Dead jobs became ready again."""

    ranges: Ranges
    principal: str = ""

    def apply(self, state: State, now: Now) -> None:
        state.revive(self.ranges, now)


class JobsForgotten(Change, tag=12):
    """Jobs were removed without a trace, by retention or by a purge."""

    ranges: Ranges
    principal: str = ""

    def apply(self, state: State, now: Now) -> None:  # noqa: ARG002 - one signature for all changes
        state.forget(self.ranges)


# --- sessions -----------------------------------------------------------------------------------


class SessionOpened(Change, tag=13):
    """A client process said hello with a session that was not known."""

    session: bytes
    principal: str = ""

    def apply(self, state: State, now: Now) -> None:  # noqa: ARG002
        state.open_session(self.session, self.principal)


class SessionsForgotten(Change, tag=14):
    """Sessions were without a connection for so long that their retries are not recognised any more."""

    sessions: list[bytes]

    def apply(self, state: State, now: Now) -> None:  # noqa: ARG002
        state.forget_sessions(self.sessions)


class RequestsAnswered(Change, tag=15):
    """State-changing requests of a session were carried out; stands in the same record as their changes.

    One a turn and session, since one a request would double the cost of a small one.
    answers: (request id, the reply's body as encoded, or the token of a lease, whose jobs are looked up
    again), in the order of being carried out.
    """

    session: bytes
    answers: list[tuple[int, bytes | int]]

    def apply(self, state: State, now: Now) -> None:  # noqa: ARG002
        state.remember_answers(self.session, self.answers)


class EpochRaised(Change, tag=16):
    """The grant numbers of an epoch were used up, and a new one began without a restart."""

    epoch: int

    def apply(self, state: State, now: Now) -> None:  # noqa: ARG002
        state.epoch, state.grant = self.epoch, 0


class JobUpdated(Change, tag=21):
    """A waiting job was changed.

    state: that it is in behind it: ready, or delayed until one of the two times, without one as before.
    options: all of them, None: as they were.  payload: None: as it was.
    """

    id: int
    state: JobState
    options: JobOptions | None = None
    payload: bytes | None = None
    due_engine_ms: int | None = None
    due_wall_ms: int | None = None
    principal: str = ""

    def apply(self, state: State, now: Now) -> None:
        state.update_job(self.id, self.options, self.payload)
        due = _due(self.due_engine_ms, self.due_wall_ms)
        if due is not None or self.state is JobState.READY:
            state.move_job(self.id, due, now)


class SubmitRemembered(Change, tag=22):
    """A submit with an idempotency key was carried out: for so long from now on it has this answer."""

    tenant: str
    key: str
    job_id: int
    count: int
    content: bytes
    ttl_ms: int
    principal: str = ""

    def apply(self, state: State, now: Now) -> None:
        name = idempotency_name(self.tenant, self.key)
        state.put_key(name, Key(self.job_id, self.count, now.engine_ms + self.ttl_ms, self.content))


class KeysForgotten(Change, tag=23):
    """The time of keys was over."""

    names: list[str]

    def apply(self, state: State, now: Now) -> None:  # noqa: ARG002
        state.work += 16 * len(self.names)  # a name takes up to 400 bytes in a record
        for name in self.names:
            state.drop_key(name)


class JobsExpired(Change, tag=25):
    """Waiting jobs were not started in time."""

    ranges: Ranges

    def apply(self, state: State, now: Now) -> None:
        state.finish(self.ranges, JobState.EXPIRED, now)


class JobsCancelMarked(Change, tag=26):
    """Held jobs are to end: cancelled as soon as their lease does, unless they are acked."""

    ranges: Ranges
    principal: str = ""

    def apply(self, state: State, now: Now) -> None:  # noqa: ARG002
        state.mark_cancel(self.ranges)


class ResultsForgotten(Change, tag=27):
    """The time of done jobs' results was over; the jobs stay."""

    ranges: Ranges

    def apply(self, state: State, now: Now) -> None:  # noqa: ARG002
        state.forget_results(self.ranges)


class ProgressReported(Change, tag=28):
    """Who holds jobs said how far they have come, in the place of what was said before."""

    ranges: Ranges
    percent: int | None = None
    text: str = ""
    principal: str = ""

    def apply(self, state: State, now: Now) -> None:  # noqa: ARG002
        state.report_progress(self.ranges, Progress(self.percent, self.text))


class IdsSkipped(Change, tag=60):
    """The ids below `next_id` are given to no job any more: facts that gave some of them out are lost.

    No daemon says so; `jqctl wal repair` does, behind what it leaves of a log.
    """

    next_id: int

    def apply(self, state: State, now: Now) -> None:  # noqa: ARG002
        state.skip_ids(self.next_id)


# --- queues -------------------------------------------------------------------------------------


class QueueSet(Change, tag=40):
    """What holds in a queue is this from now on; all of it, so that the newest fact says everything."""

    queue: str
    settings: QueueSettings
    principal: str = ""

    def apply(self, state: State, now: Now) -> None:  # noqa: ARG002
        state.set_queue(self.queue, self.settings)


AnyChange = Union[  # noqa: UP007 - one line each reads better than `|`
    DaemonStarted,
    TimeAdvanced,
    JobsSubmitted,
    JobsLeased,
    LeasesExtended,
    JobsDone,
    JobsRetried,
    JobsDied,
    JobsReleased,
    JobsCancelled,
    JobsRequeued,
    JobsForgotten,
    SessionOpened,
    SessionsForgotten,
    RequestsAnswered,
    EpochRaised,
    JobUpdated,
    SubmitRemembered,
    KeysForgotten,
    JobsExpired,
    JobsCancelMarked,
    ResultsForgotten,
    ProgressReported,
    QueueSet,
    IdsSkipped,
]


# --- snapshots ----------------------------------------------------------------------------------


class Image(Change):
    """A fact of a snapshot: how something stood at its LSN. Stands in no log; dump.py makes them.

    Applied to an empty State in the order in which they were made: jobs by rising ids, StateRestored last.
    """


class ReadyJobsRestored(Image, tag=17):
    """Jobs with consecutive ids, ready and never handed out, as they came at `created`."""

    first_id: int
    options: JobOptions
    payloads: list[bytes]
    created: Now

    def apply(self, state: State, now: Now) -> None:  # noqa: ARG002
        state.restore_ready(self.first_id, self.options, self.payloads, self.created)


class LeaseImage(Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """A lease without the jobs in it: they say which one is theirs."""

    token: int
    deadline_ms: int
    lease_ms: int
    worker: str
    session: bytes | None
    restarted: bool


class JobImage(Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """A job; see model.Job. lease: index into the leases of its fact."""

    id: int
    state: JobState
    created: Now
    changed: Now
    payload: bytes | None
    attempt: int
    errors: int
    crashes: int
    lease: int | None
    due: Due | None
    outcome: Outcome | None


class JobsRestored(Image, tag=18):
    """Jobs with rising ids and the same options, in any state."""

    options: JobOptions
    leases: list[LeaseImage]
    jobs: list[JobImage]

    def apply(self, state: State, now: Now) -> None:  # noqa: ARG002
        leases = [
            state.restore_lease(
                Lease(one.token, one.deadline_ms, one.lease_ms, [], 0, one.worker, one.session, one.restarted)
            )
            for one in self.leases
        ]
        jobs = [
            Job(
                one.id,
                self.options,
                one.payload,
                one.state,
                one.created,
                one.changed,
                one.attempt,
                one.errors,
                one.crashes,
                None if one.lease is None else leases[one.lease],
                one.due,
                one.outcome,
            )
            for one in self.jobs
        ]
        state.restore_jobs(self.options, jobs)


class SessionRestored(Image, tag=19):
    """A session and its answers, the oldest first."""

    session: bytes
    principal: str
    floor: int
    answers: list[tuple[int, bytes | int]]

    def apply(self, state: State, now: Now) -> None:  # noqa: ARG002
        state.restore_session(self.session, self.principal, self.floor, self.answers)


class KeysRestored(Image, tag=24):
    """Keys, by their names."""

    keys: dict[str, Key]

    def apply(self, state: State, now: Now) -> None:  # noqa: ARG002
        for name, key in self.keys.items():
            state.put_key(name, key)


class QueuesRestored(Image, tag=41):
    """Queues that have settings of their own."""

    queues: dict[str, QueueSettings]

    def apply(self, state: State, now: Now) -> None:  # noqa: ARG002
        for name, settings in self.queues.items():
            state.set_queue(name, settings)


class StateRestored(Image, tag=20):
    """All that a snapshot has was said: the numbers at its LSN."""

    lsn: int
    now: Now
    epoch: int
    grant: int
    next_id: int

    def apply(self, state: State, now: Now) -> None:  # noqa: ARG002
        state.finish_restoring(self.lsn, self.now, self.epoch, self.grant, self.next_id)


AnyImage = Union[  # noqa: UP007
    ReadyJobsRestored, JobsRestored, SessionRestored, KeysRestored, QueuesRestored, StateRestored
]


class Batch(Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """A record's payload: the changes of one loop turn."""

    engine_ms: int
    wall_ms: int
    changes: list[AnyChange]


class Part(Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """The payload of a record in a snapshot."""

    images: list[AnyImage]


_encoder: Final = msgspec.msgpack.Encoder()
_part_decoder: Final = msgspec.msgpack.Decoder(Part)
_decoder: Final = msgspec.msgpack.Decoder(Batch)


def encode_batch(now: Now, changes: list[Change]) -> bytes:
    """Encode a record's payload."""
    return _encoder.encode((now.engine_ms, now.wall_ms, changes))


def decode_batch(payload: bytes) -> Batch:
    """Decode a record's payload.

    Raises: msgspec.DecodeError: a fact that this version does not know, or no batch at all.
    """
    return _decoder.decode(payload)


def encode_part(images: Sequence[Image]) -> bytes:
    """Encode the payload of a record in a snapshot."""
    return _encoder.encode((images,))


def decode_part(payload: bytes) -> Part:
    """Decode the payload of a record in a snapshot.

    Raises: msgspec.DecodeError: an image that this version does not know, or none at all.
    """
    return _part_decoder.decode(payload)

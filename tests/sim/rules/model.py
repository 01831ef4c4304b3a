"""What the oracle knows things as: requests, jobs, and jobs that are alike.

Knows:         protocol.md "Jobs", "get": the fields of a job, what holds where one is left out, which states end it.
Must not know: anything of jqd; what is right (the other files here).
"""

from collections.abc import Callable
from typing import Any, Final

from tests.sim.rules.clocks import Clocks, Date

Args = dict[str, Any]
Key = tuple[bytes | None, int]
WAITING: Final = ("delayed", "ready")
FINISHED: Final = ("done", "cancelled", "expired")
HOUR_MS: Final = 3_600_000
# What protocol.md says where a field is left out of a job that is shown.
SHOWN_DEFAULTS: Final[dict[str, object]] = {
    "encoding": "raw",
    "priority": 0,
    "task": None,
    "tenant": "default",
    "group": None,
    "metadata": None,
    "delivery": "at_least_once",
    "max_retries": 3,
    "max_crashes": 5,
    "lease_ms": 30_000,
}
# Of these the ones that the queue says where the submit does not. SHOWN_DEFAULTS: what holds where neither does.
OF_QUEUE: Final = ("max_retries", "max_crashes", "lease_ms")
# What update and a further submit with a dedupe key may change.
EDITABLE: Final = ("priority", "encoding", "metadata")
# What stays the same for as long as a job lives, as a list shows it, and a lease.
HANDED_OUT: Final = ("queue", "priority", "encoding", "task", "tenant", "group", "metadata", "delivery")
CONTENT: Final = (*HANDED_OUT, *OF_QUEUE)
LIMITS: Final = {
    "FINISHED_COUNT_MAX": 100_000,
    "DEAD_COUNT_MAX": 100_000,
    "RESULTS_BYTES_MAX": 268_435_456,
    "EXPIRIES_PER_TICK": 1_000,
}
# Which rule a job breaks that is in another state than it can have come to from this one.
BROKEN_BY_LEAVING: Final = {
    "delayed": "I9",
    "ready": "I15",
    "leased": "I4",
    "done": "I3",
    "dead": "I18",
    "cancelled": "I15",
    "expired": "I15",
    "gone": "I15",
}
STATES: Final = frozenset({"delayed", "ready", "leased", "done", "dead", "cancelled", "expired"})
LIVE: Final = frozenset({"delayed", "ready", "leased"})
ENDED: Final = (*FINISHED, "dead")
# What is shown of a job's progress: percent, text. UNKNOWN is compared by identity.
Progress = tuple[int | None, str]
NO_PROGRESS: Final[Progress] = (None, "")
UNKNOWN: Final[Progress] = (-1, "")
NONE: Final[frozenset[str]] = frozenset()
ANY: Final = b"any payload"  # of a job of which nobody can tell what it was changed to; compared by identity


class Violation(BaseException):
    """An invariant is broken. Not an Exception: no code under test may catch it and go on.

    Args:
        invariant: its id, I1 to I20; SHADOW and CODE for what has none.
    """

    def __init__(self, invariant: str, text: str) -> None:
        super().__init__(f"{invariant}: {text}")
        self.invariant = invariant
        self.text = text
        self.step = 0  # of the plan; the world sets it


class Request:
    """Something that was asked."""

    __slots__ = (
        "acts",
        "again",
        "args",
        "floor",
        "gaps",
        "is_loose",
        "key",
        "lo_ms",
        "lsn",
        "run",
        "run_of_first",
        "sends",
        "verb",
        "wall_ms",
    )

    def __init__(self, key: Key, verb: str, args: Args, floor: int, ms: int, run: int) -> None:
        self.key = key
        self.verb = verb
        self.args = args
        self.acts = acts(verb, args)
        self.wall_ms = 0  # when it was sent last
        self.floor = floor  # the LSN that was known when it was first sent
        self.lo_ms = ms  # the earliest time at which it can have been carried out
        self.run = self.run_of_first = run  # of the daemon, when it was sent last, and first
        self.sends = 1
        self.gaps = 0  # of its session, when it was sent last
        self.again: tuple[str, object] | None = None  # what it was answered before it was sent once more
        self.is_loose = False
        self.lsn = 0  # answered: carried out at this one or before; 0: it may be carried out yet

    def __str__(self) -> str:
        session, number = self.key
        return f"{self.verb} {number} of {session.hex()[:4] if session else 'nobody'}"


def acts(verb: str, args: Args) -> tuple[str, ...]:
    """Return what a request can do to a job, in the words of `Reach.of`."""
    if verb == "update":
        is_moved = args.get("delay_ms") is not None or args.get("run_at_ms") is not None
        return ("update",) if is_moved else ("edit",)
    if verb == "cancel" and args.get("running"):
        return ("cancel", "mark")
    return (verb,)


class Job:
    """What is known of a job for sure: how it stood at one LSN, which lies in lo..hi."""

    __slots__ = (
        *("attempt", "changed", "crashes", "created", "deadline_ms", "done_by", "due_ms", "due_wall_ms"),
        *("error", "errors", "facts", "hi", "id", "is_graced", "is_vague", "lease_ms", "lo", "once"),
        *("payload", "pool", "queue", "rank", "result", "since_ms", "state", "token", "tokens"),
        *("seen", "was_dead", "was_released"),
        *("also", "born_hi_ms", "content", "content_lsn", "date", "due_hi_ms", "expires_at_ms", "expiry"),
        *("mark",),
        *("right", "said_lsns", "shown_lsn", "was_edited"),
        *("done_hi_ms", "done_run", "dropped_lsn", "progress"),
    )

    def __init__(self, job_id: int, pool: "Pool", state: str, lo: int, hi: int, ms: int) -> None:
        self.id = job_id
        self.pool = pool
        self.queue: str = pool.shown["queue"]
        self.once = pool.shown["delivery"] == "at_most_once"
        self.rank = (-pool.shown["priority"], job_id)
        self.payload: bytes | None = pool.payloads[0] if len(pool.payloads) == 1 else None
        self.state = state
        self.lo, self.hi = lo, hi
        self.since_ms = ms  # not in this state before
        self.attempt = self.errors = self.crashes = 0
        self.is_vague = False  # these three may have changed before it came into its state
        self.due_ms = 0  # delayed: not ready before, by the engine clock
        self.due_wall_ms = 0  # and by the wall clock
        self.token = 0  # leased: under which one, 0 if nobody has told
        self.lease_ms = 0
        self.deadline_ms = 0  # not before does the lease end by itself
        self.was_dead = self.was_released = False  # since it was handed out last; for marks
        self.is_graced = False  # leased: since before the start of the run, and not extended
        self.tokens: list[tuple[int, int]] = []  # (token, LSN of the reply) of its deliveries
        self.done_by: Key | None = None
        self.created: int | None = None
        self.changed: int | None = None
        self.facts: tuple[object, ...] | None = None  # as shown, when it was shown last
        self.seen: Args | None = (
            None  # that, whole, where it has not moved since and nothing in it moves by itself
        )
        self.error: str | None = None  # of its last failure, where that was answered
        self.result: tuple[object, object] | None = None
        self.also = NONE  # it may be in one of these states instead
        self.due_hi_ms = 0  # delayed: ready then at the latest, 0: nobody can tell
        self.date: Date | None = None  # delayed until this
        self.mark = 0  # leased: the LSN at which it was marked to end for sure; -1: perhaps it was
        self.content = pool.shown  # as it is now, with what it was changed to
        self.content_lsn = 0  # since when
        self.said_lsns: dict[str, int] = {}  # of what was changed: when it surely was
        self.shown_lsn = 0  # when all of it was shown last
        self.right = pool.right  # how it was shown before, and rightly so
        self.expires_at_ms: int | None = pool.shown_expiry_ms  # where that is known exactly
        self.expiry: Date | None = None  # that, where only the daemon knew it first
        self.born_hi_ms = ms  # not submitted later
        self.was_edited = False  # for a mark
        self.done_hi_ms = ms  # done: acked at this time at the latest, not before since_ms
        self.done_run = 0  # done: known to be since this run
        self.dropped_lsn = 0  # where its result was said to be over first
        self.progress = NO_PROGRESS  # as it was said, since the last hand-out

    def __str__(self) -> str:
        return f"job {self.id} ({self.state} at LSN {self.hi}, attempt {self.attempt}, token {self.token})"


class Where:
    """What is said of a violation that a look at a job can show: put into words where there is one."""

    __slots__ = ("info", "job", "lsn", "ms")

    def __init__(self, job: Job, info: Args, lsn: int, ms: int) -> None:
        self.job, self.info, self.lsn, self.ms = job, info, lsn, ms

    def __str__(self) -> str:
        numbers = ", ".join(f"{self.info.get(name, 0)} {name}" for name in ("errors", "crashes"))
        shown = f"{self.info['state']}, attempt {self.info['attempt']}, {numbers}"
        return f"{self.job} is shown at LSN {self.lsn}, {self.ms} ms as {shown}"


class Pool:
    """Jobs that are alike in all that a list shows of what was submitted.

    shown:    as the list shows it; None: what the queue says.
    payloads: that one of them may have.
    right:    as it was shown before, and rightly so.
    most:     how many of them there can be.
    """

    __slots__ = (
        *("delay_ms", "ids", "lo_ms", "most", "payloads", "right", "run_at_ms", "shown"),
        *("date", "expiry", "fields", "shown_expiry_ms", "version"),
    )

    def __init__(self, shown: Args, ms: int, fields: Args) -> None:
        self.shown = shown
        self.fields = fields  # as submitted
        self.expiry: Date | None = None  # before that they do not expire
        self.shown_expiry_ms: int | None = fields.get("expires_at_ms")
        self.date: Date | None = None
        self.version = 0  # of what was known of the queue, for `right`
        self.payloads: list[bytes] = []
        self.right: list[tuple[object, ...]] = []
        self.most = 0
        self.ids: set[int] = set()
        self.lo_ms = ms
        self.delay_ms = 0
        self.run_at_ms = 0


class Known:
    """What all rules share.

    Args:
        marks: what is told of rare situations.

    limits: by their names in protocol.md; a run may have made them smaller.
    seen:   the highest LSN that a client knows.
    run:    of the daemon, from 0.
    """

    def __init__(self, marks: Any) -> None:
        self.hit: Callable[[str], object] = marks.hit
        self.clocks = Clocks(self.hit)
        self.limits: dict[str, int] = dict(LIMITS)
        self.seen = 0
        self.run = 0

"""What clients may see: a second mind that knows the rules of protocol.md and nothing of how jqd keeps them.

Knows:         what was asked and what was answered, when, and the invariants of the table below.
Must not know: anything of jqd; what happens inside the daemon.

It is told of each request and each reply, never of what the daemon did. What it is sure of about a job is one state
at one LSN (`Job`), from the newest reply that says something about it. A request that was sent and not yet answered,
or never will be, is *loose*: it may have been carried out at any moment since, or not at all. A reply is wrong if
no sequence of permitted moves (time that passed, loose requests) leads from what was known to what it says.

Where a reply lies in the log: its LSN says up to where it has seen it. A request that was sent once was carried out
exactly there; of one that was sent again the first copy may have been, so its place is anywhere from what its client
knew when it was first sent (`floor`) to that LSN. So it is with time: somewhere between sent and answered.

| id  | here |
| --- | --- |
| I1  | a job whose submit was answered is shown until something was asked, or so much time passed, that ends it |
| I2  | every job was submitted by somebody; by a request sent twice, once |
| I3  | a job that was acked never comes back, and is acked once |
| I4  | a token has one owner; tokens of a job rise; nobody gets a job whose lease lives, and its holder is heard |
| I5  | a token that is not the job's current one is refused |
| I6  | an at-most-once job is not handed out again unless it was released or requeued |
| I7  | a lease takes what stands first, and does not come back empty while something is ready |
| I8  | attempts, errors and crashes are counted, also over a crash, and bound the deliveries |
| I9  | no job is handed out before its time |
| I10 | a request of a session that comes twice is answered twice and carried out once |
| I11 | the counts of the queues are those of the jobs that are listed |
| I14 | an LSN that somebody has seen is never undercut; ids rise |
| I15 | nothing that was seen before a crash is undone after it |
| I18 | a dead job has used up what its reason says, and one that has used it up is dead |
| I19 | at the end nothing is left that could go on |

Sources: protocol.md; reliability.md 4.4.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from typing import Any, Final

Args = dict[str, Any]
Key = tuple[bytes | None, int]

WAITING: Final = ("delayed", "ready")
FINISHED: Final = ("done", "cancelled", "expired")
HOUR_MS: Final = 3_600_000
MINUTE_MS: Final = 60_000
SESSION_MS: Final = 600_000
# What protocol.md says where a field is left out of a job that is shown.
SHOWN_DEFAULTS: Final[dict[str, object]] = {
    "encoding": "raw",
    "priority": 0,
    "task": None,
    "metadata": None,
    "delivery": "at_least_once",
    "max_retries": 3,
    "max_crashes": 5,
    "lease_ms": 30_000,
}
# What stays the same for as long as a job lives, as a list shows it, and a lease.
HANDED_OUT: Final = ("queue", "priority", "encoding", "task", "metadata", "delivery")
CONTENT: Final = (*HANDED_OUT, "max_retries", "max_crashes", "lease_ms")
# What stays the same while a job stays in a state.
FACTS: Final = (
    *("payload_bytes", "errors", "crashes", "run_at_ms", "reason", "error", "attempts", "result"),
    "result_encoding",
)
LIMITS: Final = {
    "FINISHED_COUNT_MAX": 100_000,
    "DEAD_COUNT_MAX": 100_000,
    "RESULTS_BYTES_MAX": 268_435_456,
}
# An error that says nothing about whether an earlier copy of the request was carried out.
UNKNOWN_OUTCOME: Final = "position_lost"
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
    )

    def __init__(self, key: Key, verb: str, args: Args, floor: int, ms: int, run: int) -> None:
        self.key = key
        self.verb = verb
        self.args = args
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


class Job:
    """What is known of a job for sure: how it stood at one LSN, which lies in lo..hi."""

    __slots__ = (
        *("attempt", "changed", "crashes", "created", "deadline_ms", "done_by", "due_ms", "due_wall_ms"),
        *("error", "errors", "facts", "hi", "id", "is_graced", "is_vague", "lease_ms", "lo", "once"),
        *("payload", "pool", "queue", "rank", "result", "since_ms", "state", "token", "tokens"),
        *("seen", "was_dead", "was_released"),
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

    shown:    as the list shows it.
    payloads: that one of them may have.
    right:    as it was shown before, and rightly so.
    most:     how many of them there can be.
    """

    __slots__ = ("delay_ms", "ids", "is_reached", "lo_ms", "most", "payloads", "right", "run_at_ms", "shown")

    def __init__(self, shown: Args, ms: int) -> None:
        self.shown = shown
        self.payloads: list[bytes] = []
        self.right: list[tuple[object, ...]] = []
        self.most = 0
        self.ids: set[int] = set()
        self.lo_ms = ms
        self.delay_ms = 0
        self.run_at_ms = 0
        self.is_reached = False  # the wall clock has stood at run_at_ms or later since the jobs can have come


class Suspicion:
    """A lease passed a job over, and only requests that are still to be answered can say why."""

    __slots__ = ("job", "lsn", "text", "waiting")

    def __init__(self, job: Job, lsn: int, text: str, waiting: set[Key]) -> None:
        self.job, self.lsn, self.text, self.waiting = job, lsn, text, waiting


class Oracle:
    """See the file's card.

    Args:
        marks: what is told of rare situations.
    """

    def __init__(self, marks: Any) -> None:
        self._hit = marks.hit
        self._limits = dict(LIMITS)
        self.jobs: dict[int, Job] = {}
        self._pools: dict[tuple[object, ...], Pool] = {}
        self._ready: dict[
            str, list[tuple[tuple[int, int], Job]]
        ] = {}  # surely ready, in order of handing out
        self._open: dict[Key, Request] = {}  # not answered yet
        self._given_up: list[Request] = []  # never to be answered, and yet perhaps carried out
        self._closed: dict[Key, tuple[str, object]] = {}  # what was answered: status, body
        self._named: dict[
            int, list[tuple[Request, int]]
        ] = {}  # loose: by job id, with the token that they show
        self._leases: dict[str, dict[Key, Request]] = {}  # loose: by queue
        self._sweeps: dict[Key, Request] = {}  # loose: by filter
        # Answered, but not for which jobs: verb, queue, and the LSN at or before which it was carried out.
        self._swept: list[tuple[str, str | None, int]] = []
        self._suspicions: list[Suspicion] = []
        self._given: dict[tuple[int, int], Key] = {}  # (token, job id) -> who got it
        self._owners: dict[int, Key] = {}  # token -> the lease that was answered with it
        self._refused: set[int] = set()  # jobs that somebody wanted to ack with an error
        self._killed: set[int] = set()  # or to fail for good
        # Session -> run and time of the last word that surely came, and how often it was silent for so long that it may be forgotten.
        self._heard: dict[bytes | None, tuple[int, int, int]] = {}
        self._result_bytes = 0  # of all results that were sent
        self._odd_leases: set[str] = set()  # queues with jobs that ask for a lease time of their own
        self._queue_jobs: dict[str, int] = {}  # jobs that there can have been
        self._seen = 0  # the highest LSN that a client knows
        self._id_max = self._id_lsn = 0
        self._run = 0
        self._epoch = 0  # of the run, 0 before its first welcome
        self._epoch_max = 0
        self._store_id: str | None = None
        self._full = ""  # why a submit was refused last, until one is taken
        self._clock_floor_ms = 0  # a durable fact is as new as this
        self._start_ms = 0  # of the run: not later than this
        self._now_ms = self._now_wall_ms = 0
        self._dates: list[
            tuple[int, int, Pool]
        ] = []  # date, number, and whose: the wall clock was not there yet
        self._date_count = 0

    def rules(self, **limits: int) -> None:
        """Take over limits that a run has made smaller, by their names in protocol.md."""
        self._limits.update(limits)

    # --- what the world tells -----------------------------------------------------------------

    def sent(
        self, session: bytes | None, request_id: int, verb: str, args: Args, engine_ms: int, wall_ms: int
    ) -> None:
        """A client sends a request, for the first time or again."""
        self.clocks(engine_ms, wall_ms)
        gaps = self._gaps(session, engine_ms)
        key = (session, request_id)
        request = self._open.get(key)
        if request is None:
            request = self._open[key] = Request(key, verb, args, self._seen, engine_ms, self._run)
            known = self._closed.get(key)
            if known is not None:
                request.sends = 2
                request.again = known
            if known is None or not _has_changed(request, known[1]):
                self._loosen(request)
        else:
            self._hit("request sent again")
            request.sends += 1
            request.run = self._run
            if engine_ms < request.lo_ms:  # a crash has set the engine clock back
                request.lo_ms = engine_ms
                self._set_back(request)
            if session is None or gaps > request.gaps:
                self._double(request)
        request.gaps = gaps

    def answered(
        self,
        session: bytes | None,
        request_id: int,
        status: str,
        lsn: int,
        body: Any,
        engine_ms: int,
        wall_ms: int,
    ) -> None:
        """A reply reached its client whole."""
        self.clocks(engine_ms, wall_ms)
        key = (session, request_id)
        request = self._open.pop(key, None)
        if request is None:
            return
        # The daemon has heard it some time after it was sent, and the reply may have been under way for long.
        self._hear(
            session, body["engine_ms"] if status == "ok" and request.verb == "hello" else request.lo_ms
        )
        if lsn < request.floor:
            raise Violation("I14", f"{request} was answered at LSN {lsn}, and LSN {request.floor} was known")
        self._seen = max(self._seen, lsn)
        if status != "ok":
            self._on_error(request, status, lsn, body, engine_ms)
        else:
            if request.run_of_first != self._run:
                self._hit("request answered in a later run than it was sent in")
            if request.again is not None and _has_changed(request, request.again[1]):
                self._same_answer(request, body)
                return
            self._settle(request)
            getattr(self, f"_on_{request.verb}")(request, body, lsn, engine_ms)
            changed = _has_changed(request, body)
            if changed:
                self._clock_floor_ms = max(self._clock_floor_ms, request.lo_ms)
                if request.sends > 1:
                    self._hit("answer to a request sent again came from one of its tries")
                elif lsn <= request.floor:
                    raise Violation(
                        "I14", f"{request} changed something at LSN {lsn}, which was known before"
                    )
            elif request.sends > 1:
                self._loosen(request)  # nothing was remembered: another copy may still be carried out
                self._given_up.append(request)
            self._closed[key] = (status, body)
        if self._suspicions:
            if request.sends > 1 or (
                status == "ok" and "filter" in request.args
            ):  # it does not say of which jobs
                self._drop_suspicions(key)
            else:
                self._resolve(key)

    def unknown(self, session: bytes | None, request_id: int) -> None:
        """A client has given up a request: what became of it only later reads can tell."""
        request = self._open.pop((session, request_id), None)
        if request is not None:
            self._hit("outcome unknown for ever")
            self._given_up.append(request)
            self._drop_suspicions(request.key)

    def crashed(self) -> None:
        """The daemon's run has ended, in whatever way."""
        self._run += 1
        self._epoch = 0
        self._suspicions.clear()

    def started(self, welcome: Args, engine_ms: int, wall_ms: int) -> None:
        """A client was welcomed by a run; may be told of each."""
        self.clocks(engine_ms, wall_ms)
        epoch, begun_ms = welcome["epoch"], welcome["engine_ms"]
        if self._epoch:
            if epoch != self._epoch:
                raise Violation("I4", f"epoch {self._epoch} became {epoch} without a restart")
            return
        if epoch <= self._epoch_max:
            raise Violation("I4", f"epoch {epoch} after epoch {self._epoch_max}")
        if self._store_id not in (None, welcome["store_id"]):
            raise Violation("I15", f"store {self._store_id} became {welcome['store_id']}")
        if begun_ms < self._clock_floor_ms:
            raise Violation(
                "I15", f"the engine clock says {begun_ms}, and a durable fact {self._clock_floor_ms}"
            )
        self._store_id = welcome["store_id"]
        self._epoch = self._epoch_max = epoch
        self._start_ms = begun_ms
        for job in self.jobs.values():
            # Of a lease that cannot have run out before the start it is known that it got its grace.
            if job.state == "leased" and begun_ms < job.deadline_ms:
                grace_ms = min(job.lease_ms, 30_000)
                job.deadline_ms = max(job.deadline_ms, self._clock_floor_ms + grace_ms)

    def rolled_back(self) -> None:
        """An older copy of the store was put back: jobs and LSNs went back, tokens must not."""
        self.jobs.clear()
        self._ready.clear()
        self._suspicions.clear()
        self._swept.clear()
        for pool in self._pools.values():
            pool.ids.clear()
            pool.lo_ms = 0
        self._seen = self._id_max = self._id_lsn = self._clock_floor_ms = 0
        for request in self._open.values():
            request.floor = request.lo_ms = 0
            request.sends += 1  # in the copy it may have been carried out already
        if self._now_wall_ms // 1_000 <= self._epoch_max:
            self._epoch_max = 0  # the clock was set back too: nothing is left that could keep tokens apart
            self._owners.clear()
            self._given.clear()

    def check_listing(
        self,
        jobs: list[Args],
        queues: list[Args],
        lsn: int,
        final: bool,
        *,
        engine_ms: int,
        wall_ms: int,
        fresh: bool = False,
    ) -> None:
        """Hold against what is known all that a client could read at one moment, with nothing under way in the daemon.

        Args:
            lsn: that replies can have told of: a start of the daemon is not known before it is durable.
            final: nothing goes wrong any more, and everything that can end has ended.
            fresh: the run has just begun.
        """
        self.clocks(engine_ms, wall_ms)
        if lsn < self._seen:
            raise Violation("I15", f"everything is read at LSN {lsn}, and LSN {self._seen} was known")
        self._seen = lsn
        counts: dict[tuple[str, str], int] = {}
        listed: set[int] = set()
        for info in jobs:
            listed.add(info["job_id"])
            place = (info["queue"], info["state"])
            counts[place] = counts.get(place, 0) + 1
            if fresh and info["state"] == "leased":
                self._check_grace(info)
            self._see(info, lsn, engine_ms, engine_ms)
            if fresh:
                self._note_held(info)
            if final:
                self._must_have_ended(info)
        for job in self.jobs.values():
            if job.id not in listed and job.state != "gone":
                self._is_missing(job, lsn, engine_ms, "a list of everything")
        shown = {
            (queue["queue"], state): count
            for queue in queues
            for state, count in queue.items()
            if state in STATES and count
        }
        if shown != counts:
            raise Violation("I11", f"the queues say {shown}, the jobs are {counts}")
        self._clear_up(lsn)

    def finish(self) -> None:
        """The run is over."""
        if self._suspicions and not self._open:
            one = self._suspicions[0]
            raise Violation("I7", one.text)

    def clocks(self, engine_ms: int, wall_ms: int) -> None:
        self._now_ms = engine_ms
        self.tick(wall_ms)

    def tick(self, wall_ms: int) -> None:
        """Note what the wall clock says; to be told before and after each jump."""
        self._now_wall_ms = wall_ms
        dates = self._dates
        if dates and wall_ms >= dates[0][0] + MINUTE_MS:
            self._hit("wall clock jumped over a date")
        while dates and dates[0][0] <= wall_ms:
            dates.pop(0)[2].is_reached = True

    # --- requests that may have been carried out ----------------------------------------------

    def _loosen(self, request: Request) -> None:
        verb, args = request.verb, request.args
        request.is_loose = True
        if verb == "submit":
            self._expect(request, args, [args.get("payload", b"")])
        elif verb == "submit_many":
            for group in args["groups"]:
                self._expect(request, group, group["payloads"])
        elif verb == "lease":
            for name in args.get("queues", ("default",)):
                self._leases.setdefault(name, {})[request.key] = request
        elif verb in ("ack", "fail", "release", "extend"):
            for job_id, token in _named_by(args):
                self._named.setdefault(job_id, []).append((request, token))
            if verb == "ack":
                self._note_ack(args)
            elif verb == "fail" and args.get("dead"):
                self._killed.update(job_id for job_id, _ in _named_by(args))
        elif verb in ("cancel", "requeue", "purge") and not args.get("dry_run"):
            if args.get("ids"):
                for job_id in _ids_in(args["ids"]):
                    self._named.setdefault(job_id, []).append((request, 0))
            else:
                self._sweeps[request.key] = request

    def _note_ack(self, args: Args) -> None:
        if args.get("result_error") is not None:
            self._refused.update(job_id for job_id, _ in _named_by(args))
        for _, ranges, result in args["items"]:
            if result is not None:
                self._result_bytes += len(result) * sum(count for _, count in ranges)

    def _expect(self, request: Request, fields: Args, payloads: list[bytes]) -> None:
        pool = self._pool(fields, request.lo_ms)
        pool.most += len(payloads)
        pool.payloads += [payload for payload in payloads if payload not in pool.payloads]
        pool.delay_ms = fields.get("delay_ms") or 0
        if fields.get("run_at_ms") and not pool.run_at_ms:
            pool.run_at_ms = fields["run_at_ms"]
            pool.is_reached = pool.run_at_ms <= self._now_wall_ms
            self._date_count += 1
            insort(self._dates, (pool.run_at_ms, self._date_count, pool))
        name = pool.shown["queue"]
        if pool.shown["lease_ms"] != SHOWN_DEFAULTS["lease_ms"]:
            self._odd_leases.add(name)
        self._queue_jobs[name] = self._queue_jobs.get(name, 0) + len(payloads)

    def _set_back(self, request: Request) -> None:
        """The jobs of a submit may be as old as the time that its request has now."""
        groups = {"submit": [request.args], "submit_many": request.args.get("groups", ())}.get(
            request.verb, ()
        )
        for fields in groups:
            pool = self._pool(fields, request.lo_ms)
            pool.lo_ms = min(pool.lo_ms, request.lo_ms)

    def _pool(self, fields: Args, ms: int) -> Pool:
        shown = {name: fields.get(name) for name in SHOWN_DEFAULTS}
        for name, usual in SHOWN_DEFAULTS.items():
            if shown[name] is None:
                shown[name] = usual
        if shown["delivery"] == "at_most_once":
            shown["max_retries"] = 0
        shown["queue"] = fields.get("queue", "default")
        key = _pool_key(shown)
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = Pool(shown, ms)
        return pool

    def _settle(self, request: Request) -> None:
        """A request is loose no longer."""
        if not request.is_loose:
            return
        request.is_loose = False
        verb, args, key = request.verb, request.args, request.key
        if verb == "lease":
            for name in args.get("queues", ("default",)):
                self._leases[name].pop(key, None)
        elif verb in ("ack", "fail", "release", "extend"):
            self._unname(request, (job_id for job_id, _ in _named_by(args)))
        elif verb in ("cancel", "requeue", "purge"):
            if args.get("ids"):
                self._unname(request, _ids_in(args["ids"]))
            else:
                self._sweeps.pop(key, None)

    def _unname(self, request: Request, ids: Iterable[int]) -> None:
        for job_id in ids:
            left = [each for each in self._named.get(job_id, ()) if each[0] is not request]
            if left:
                self._named[job_id] = left
            else:
                self._named.pop(job_id, None)

    def _linger(self, request: Request, job_id: int, token: int, lsn: int) -> None:
        """An answered request acted on a job, before or after what else is known of it."""
        request.lsn = lsn
        self._named.setdefault(job_id, []).append((request, token))

    def _double(self, request: Request) -> None:
        """A copy of a request was sent that the daemon need not recognise: both may be carried out."""
        twin = Request(request.key, request.verb, request.args, request.floor, request.lo_ms, self._run)
        twin.key = (b"twin", len(self._given_up) << 20 | self._run)
        self._loosen(twin)
        self._given_up.append(twin)

    def _hear(self, session: bytes | None, ms: int) -> None:
        """Note that the daemon has heard of a session, not before a time."""
        run, heard_ms, gaps = self._heard.get(session, (self._run, ms, 0))
        self._heard[session] = (self._run, ms if run != self._run else max(ms, heard_ms), gaps)

    def _gaps(self, session: bytes | None, ms: int) -> int:
        """Return how often a session may have been forgotten so far, for want of a word of it."""
        run, heard_ms, gaps = self._heard.get(session, (self._run, ms, 0))
        if run != self._run:
            heard_ms = min(self._start_ms, ms)  # a start of the daemon begins to count anew
        if ms - heard_ms >= SESSION_MS:
            self._hit("session silent for so long that it may be forgotten")
            gaps += 1
        self._heard[session] = (self._run, heard_ms, gaps)
        return gaps

    def _clear_up(self, lsn: int) -> None:
        """All is known at an LSN: what runs that have ended may have done is in it.

        But for jobs of a submit that is still to be answered: they may have come and been purged before.
        """
        submits = [
            request.floor for request in self._open.values() if request.verb in ("submit", "submit_many")
        ]
        for request in self._given_up:
            if request.run < self._run and not (submits and request.verb == "purge"):
                self._settle(request)
        lsn = min([lsn, *submits])
        self._given_up = [request for request in self._given_up if request.is_loose]
        self._swept = [each for each in self._swept if each[2] > lsn]
        for job_id, named in list(self._named.items()):
            left = [each for each in named if not 0 < each[0].lsn <= lsn]
            if left:
                self._named[job_id] = left
            else:
                del self._named[job_id]

    # --- what may have become of a job --------------------------------------------------------

    def _verbs_on(self, job: Job) -> set[str]:
        """Return the verbs of loose requests that may have acted on a job since it was seen."""
        verbs: set[str] = set()
        named = self._named.get(job.id)
        if named is not None:
            for request, token in named:
                if request.lsn and request.lsn <= job.lo:
                    continue
                if not token or not job.token or token >= job.token:
                    verbs.add(request.verb)
        for request in self._sweeps.values():
            if _queue_swept(request.args) in (None, job.queue):
                verbs.add(request.verb)
        for verb, queue, lsn in self._swept:
            if lsn > job.lo and queue in (None, job.queue):
                verbs.add(verb)
        if self._leases.get(job.queue):
            verbs.add("lease")
        return verbs

    def _reach(self, job: Job, ms: int) -> set[str]:
        """Return the states in which a job can be at a time, from what is known of it and what is loose."""
        found = {job.state}
        verbs = self._verbs_on(job)
        leased = "lease" in verbs
        is_over = (
            job.state != "leased"
            or not job.token
            or ms >= job.deadline_ms
            or "extend" in verbs
            or (leased and not verbs.isdisjoint(("release", "fail")))
        )
        count = 0
        while len(found) != count:
            count = len(found)
            if "delayed" in found and (job.state != "delayed" or self._is_due(job, ms)):
                found.add("ready")
            if "ready" in found and leased:
                found.add("leased")
            if "leased" in found:
                if is_over:
                    found |= {"dead"} if job.once and job.token else {"ready", "delayed", "dead"}
                if "release" in verbs:
                    found |= {"ready", "delayed"}
                if "fail" in verbs:
                    found |= {"dead"} if job.once else {"ready", "delayed", "dead"}
                if "ack" in verbs:
                    found |= {"done", "dead"}
            if "dead" in found and "requeue" in verbs:
                found.add("ready")
            if "cancel" in verbs and not found.isdisjoint(WAITING):
                found.add("cancelled")
            if "purge" in verbs and not found.isdisjoint(("delayed", "ready", "dead")):
                found.add("gone")
            if "gone" not in found and self._may_be_forgotten(job, found, ms):
                found.add("gone")
        return found

    def _is_due(self, job: Job, ms: int) -> bool:
        if job.due_ms:
            return ms >= job.due_ms
        return not job.due_wall_ms or job.pool.is_reached

    def _may_be_forgotten(self, job: Job, states: set[str], ms: int) -> bool:
        """Tell whether retention can have ended a job that is in one of these states."""
        if not states.isdisjoint(FINISHED):
            if ms - job.since_ms >= HOUR_MS:
                return True
            if self._queue_jobs[job.queue] > self._limits["FINISHED_COUNT_MAX"]:
                return True
            if "done" in states and self._result_bytes > self._limits["RESULTS_BYTES_MAX"]:
                return True
        if "dead" in states:
            too_many = self._queue_jobs[job.queue] > self._limits["DEAD_COUNT_MAX"]
            return too_many or ms - job.since_ms >= 720 * HOUR_MS
        return False

    def _move(self, job: Job, state: str, lo: int, hi: int, ms: int) -> None:
        """A job is known to be in a state at lo..hi, not before a time."""
        if state != job.state:
            if state == "dead":
                job.was_dead = True
            if job.state == "ready":
                lane = self._ready[job.queue]
                lane.pop(bisect_left(lane, job.rank, key=_rank_of))
            if state == "ready":
                insort(self._ready.setdefault(job.queue, []), (job.rank, job), key=_rank_of)
            job.state = state
            job.since_ms = ms
            job.facts = job.seen = None
        job.lo, job.hi = lo, max(hi, job.hi)

    # --- jobs come to be known ----------------------------------------------------------------

    def _discover(self, info: Args, lsn: int) -> Job:
        """Enter a job that no reply to a submit has named yet."""
        if "state" in info:
            self._hit("unanswered submit found in a list")
        pool = self._pools.get(_pool_key({**SHOWN_DEFAULTS, **info}))
        if pool is None:
            raise Violation("I2", f"nobody submitted job {info['job_id']}: {info}")
        job = self._enter(info["job_id"], pool, info.get("state", "ready"), lsn, lsn, pool.lo_ms)
        job.attempt = info["attempt"] if "state" in info else info["attempt"] - 1
        job.errors, job.crashes = info.get("errors", 0), info.get("crashes", 0)
        return job

    def _enter(self, job_id: int, pool: Pool, state: str, lo: int, hi: int, ms: int) -> Job:
        if len(pool.ids) >= pool.most:
            raise Violation(
                "I2", f"job {job_id} is one too many of those with {pool.shown}: {sorted(pool.ids)}"
            )
        pool.ids.add(job_id)
        job = self.jobs[job_id] = Job(job_id, pool, state, lo, hi, ms)
        if state == "ready":
            insort(self._ready.setdefault(job.queue, []), (job.rank, job), key=_rank_of)
        if state == "delayed":
            job.due_ms = pool.delay_ms and pool.lo_ms + pool.delay_ms
            job.due_wall_ms = pool.run_at_ms
        return job

    def _submitted(
        self, request: Request, fields: Args, ids: Iterable[int], payloads: list[bytes], lsn: int
    ) -> None:
        pool = self._pool(fields, request.lo_ms)
        delay_ms, run_at_ms = fields.get("delay_ms"), fields.get("run_at_ms")
        state = "delayed" if delay_ms or run_at_ms else "ready"
        lo = lsn if request.sends == 1 else request.floor
        for job_id, payload in zip(ids, payloads, strict=True):
            job = self.jobs.get(job_id)
            if job is None:
                job = self._enter(job_id, pool, state, lo, lsn, request.lo_ms)
            elif job.pool is not pool:
                raise Violation("I2", f"{request} was answered with {job}, which is somebody else's")
            job.payload = payload

    def _check_grace(self, info: Args) -> None:
        """A lease that a start of the daemon found is worth a while from then on."""
        job = self.jobs.get(info["job_id"])
        if job is None or job.state != "leased" or not job.token or self._named.get(job.id):
            return
        if info["attempt"] == job.attempt and info["lease_ms_left"] < min(job.lease_ms, 30_000):
            raise Violation(
                "I4", f"{job} has {info['lease_ms_left']} ms left after a start, of {job.lease_ms}"
            )

    def _note_held(self, info: Args) -> None:
        """A start has found a job: is it in somebody's hands?"""
        job = self.jobs[info["job_id"]]
        job.is_graced = info["state"] == "leased"
        if job.is_graced and job.once:
            self._hit("at-most-once job lives through a crash")

    # --- replies: submit ----------------------------------------------------------------------

    def _on_submit(self, request: Request, body: Args, lsn: int, ms: int) -> None:
        if self._full:
            self._hit(f"job taken after {self._full}")
            self._full = ""
        job_id = body["job_id"]
        self._check_ids(request, job_id, job_id, lsn)
        self._submitted(request, request.args, (job_id,), [request.args.get("payload", b"")], lsn)

    def _on_submit_many(self, request: Request, body: Args, lsn: int, ms: int) -> None:
        groups = request.args["groups"]
        at = body["jobs"][0][0]
        end = at + sum(len(group["payloads"]) for group in groups)
        self._check_ids(request, at, end - 1, lsn)
        for group, (first, count, _) in zip(groups, body["jobs"], strict=True):
            if first != at or count != len(group["payloads"]):
                raise Violation("I14", f"{request}: ids are not consecutive: {body['jobs']}")
            self._submitted(request, group, range(first, first + count), group["payloads"], lsn)
            at += count

    def _check_ids(self, request: Request, first: int, last: int, lsn: int) -> None:
        if request.sends > 1:
            return
        if lsn > self._id_lsn:
            if first <= self._id_max:
                raise Violation("I14", f"{request} got id {first} at LSN {lsn}, after id {self._id_max}")
            self._id_lsn = lsn
        self._id_max = max(self._id_max, last)

    # --- replies: lease -----------------------------------------------------------------------

    def _on_lease(self, request: Request, body: Args, lsn: int, ms: int) -> None:
        jobs, token = body["jobs"], body["token"]
        if bool(jobs) != bool(token):
            raise Violation("I4", f"{request} got token {token} for {len(jobs)} jobs")
        if jobs:
            self._check_token(request, token, lsn)
        if request.args.get("wait_ms"):
            self._hit("parked lease served" if jobs else "parked lease gave up")
        first_ms = request.lo_ms
        for info in jobs:
            self._deliver(request, info, token, body["lease_ms_left"], lsn, first_ms, ms)
        if request.sends == 1:
            self._check_order(request, jobs, lsn)
        else:  # it tells only of what is still held: the first try may have been handed more
            self._hit("retried lease told what is still held" if jobs else "retried lease found nothing left")
            self._swept += [("lease", name, lsn) for name in request.args.get("queues", ("default",))]

    def _check_token(self, request: Request, token: int, lsn: int) -> None:
        owner = self._owners.get(token)
        if owner is None:
            self._owners[token] = request.key
        elif owner != request.key:
            raise Violation("I4", f"token {token} of {request} at LSN {lsn} is another request's")
        self._epoch_max = max(self._epoch_max, token >> 32)

    def _deliver(
        self, request: Request, info: Args, token: int, left_ms: int, lsn: int, lo_ms: int, ms: int
    ) -> None:
        job_id = info["job_id"]
        job = self.jobs.get(job_id)
        if job is None:
            job = self._discover(info, lsn - 1)  # as it stood before
        self._check_content(job, info)
        self._check_rising(job, token, lsn)
        if (token, job_id) in self._given:
            raise Violation("I6" if job.once else "I4", f"{job} was sent twice under token {token}")
        self._given[token, job_id] = request.key
        # A purge that was sent twice tells only between which LSNs a job went.
        may_be_newer = job.lo < lsn and token > job.token and job.state != "gone"
        if lsn <= job.hi and not may_be_newer:
            # A newer reply has told of the job already: this one can only add the name of what it saw.
            if job.state == "leased" and not job.token and job.attempt == info["attempt"]:
                job.token, job.lease_ms = token, left_ms
            return
        self._check_delivery(job, info, token, lsn, ms)
        self._note_delivery(job, info, ms)
        self._move(job, "leased", lsn, lsn, lo_ms)
        job.attempt, job.errors, job.crashes = info["attempt"], info.get("errors", 0), info.get("crashes", 0)
        job.is_vague = job.is_graced = False
        job.token, job.lease_ms, job.deadline_ms = token, left_ms, lo_ms + left_ms
        job.error = job.facts = job.seen = None
        job.due_ms = job.due_wall_ms = 0

    def _check_rising(self, job: Job, token: int, lsn: int) -> None:
        for other, other_lsn in job.tokens:
            if other == token:
                return
            if (other_lsn < lsn) != (other < token):
                raise Violation("I4", f"{job}: token {token} at LSN {lsn}, token {other} at LSN {other_lsn}")
        job.tokens.append((token, lsn))

    def _check_delivery(self, job: Job, info: Args, token: int, lsn: int, ms: int) -> None:
        """A job is handed out at an LSN behind all that is known of it: may it be?"""
        where = f"{job} was handed out at LSN {lsn}, {ms} ms, under token {token}"
        reach = self._reach(job, ms)
        if "ready" not in reach:
            invariant = "I6" if job.once and job.state in ("leased", "dead") else BROKEN_BY_LEAVING[job.state]
            raise Violation(invariant, f"{where}; it can be {sorted(reach)}")
        attempt, errors, crashes = info["attempt"], info.get("errors", 0), info.get("crashes", 0)
        shown = job.pool.shown
        if errors > shown["max_retries"] or crashes > shown["max_crashes"]:
            raise Violation("I8", f"{where} with {errors} errors and {crashes} crashes: {shown}")
        if job.is_vague:
            return
        verbs = self._verbs_on(job)
        is_watched = "lease" not in verbs and (job.state != "leased" or job.token > 0)
        fewest = job.attempt + 1
        if job.state == "leased" and (not job.token or "release" in verbs):
            fewest -= 1
        if attempt < fewest or (is_watched and attempt > job.attempt + 1):
            raise Violation("I8", f"{where} as attempt {attempt}")
        if "requeue" in verbs:
            return
        where += f" with {errors} errors and {crashes} crashes"
        self._check_growth(job, errors, crashes, verbs, is_watched, where)

    def _note_delivery(self, job: Job, info: Args, ms: int) -> None:
        """Tell what is rare in a delivery that may be."""
        if job.state == "delayed":
            if job.due_ms == ms:
                self._hit("job handed out at the millisecond of its time")
            if job.due_wall_ms > self._now_wall_ms:
                self._hit("dated job handed out though the wall clock is behind its date")
        elif job.state == "leased" and job.deadline_ms == ms:
            self._hit("job handed out in the millisecond in which a lease ran out")
        if job.state == "leased" and job.is_graced and info.get("crashes", 0) == job.crashes:
            self._hit("lease ended by a restart counted as nothing")
        if job.tokens[:-1] and info["attempt"] == job.attempt + 1 and job.was_released:
            self._hit("attempt given back and counted again")
        if job.was_dead:
            self._hit("dead job came back")
        job.was_dead = job.was_released = False

    def _check_order(self, request: Request, jobs: list[Args], lsn: int) -> None:
        """What was handed out stands in order, and nothing that stands before it was passed over."""
        args = request.args
        names = list(dict.fromkeys(args.get("queues", ("default",))))
        at, worst = 0, None
        for info in jobs:
            job = self.jobs[info["job_id"]]
            if job.queue not in names[at:]:
                raise Violation("I7", f"{request} got {job} out of the order of its queues {names}")
            if job.queue != names[at]:
                at, worst = names.index(job.queue), None
            if worst is not None and job.rank < worst:
                raise Violation("I7", f"{request} got {job} behind one that comes after it")
            worst = job.rank
        is_full = len(jobs) >= args.get("count", 1)
        # A job that asks for another lease time than the first one ends the reply, even one that nobody knows is ready.
        may_be_cut = bool(jobs) and args.get("lease_ms") is None and not self._odd_leases.isdisjoint(names)
        # Parked, it may have been served before its reply's LSN.
        known = request.floor if args.get("wait_ms") else lsn - bool(jobs)
        for number, name in enumerate(names[: at + 1] if is_full else names):
            for rank, job in self._ready.get(name, ()):
                if number == at and worst is not None and rank > worst and is_full:
                    break
                passed = worst is not None and (number < at or (number == at and rank < worst))
                if job.hi <= known and (passed or not may_be_cut):
                    self._suspect(request, job, lsn)

    def _suspect(self, request: Request, job: Job, lsn: int) -> None:
        """A lease passed a job over that was ready as far as is known: somebody else must have taken it before."""
        who = list(self._leases.get(job.queue, {}).values())
        who += [each for each, _ in self._named.get(job.id, ()) if each.verb in ("cancel", "purge")]
        who += [each for each in self._sweeps.values() if each.verb != "requeue"]
        if any(
            verb != "requeue" and at > job.lo and queue in (None, job.queue)
            for verb, queue, at in self._swept
        ):
            return
        if any(self._open.get(each.key) is not each for each in who):
            return  # one of those that nobody will ever hear of
        text = f"{request} passed over {job} at LSN {lsn}"
        if not who:
            raise Violation("I7", text)
        self._suspicions.append(Suspicion(job, lsn, text, {each.key for each in who}))

    def _resolve(self, key: Key) -> None:
        """A request was answered: it explains a suspicion, or does not."""
        left = []
        for one in self._suspicions:
            if one.job.state != "ready" or one.job.hi > one.lsn:
                continue
            one.waiting.discard(key)
            if not one.waiting:
                raise Violation("I7", one.text)
            left.append(one)
        self._suspicions = left

    def _drop_suspicions(self, key: Key) -> None:
        self._suspicions = [one for one in self._suspicions if key not in one.waiting]

    # --- replies: the holder of a lease -------------------------------------------------------

    def _on_ack(self, request: Request, body: Args, lsn: int, ms: int) -> None:
        args = request.args
        results = {job_id: result for _, ranges, result in args["items"] for job_id in _ids_in(ranges)}
        for job_id, token, code in self._verdicts(request, body):
            job = self._held(request, job_id, token, code, lsn, ms)
            if code == "ok":
                self._acked_once(request, job_id, job)
            if job is None:
                continue
            if args.get("result_error") is not None:
                job.errors += 1
                job.error = args["result_error"]
                self._move(job, "dead", self._lo(request, lsn), lsn, request.lo_ms)
            else:
                self._move(job, "done", self._lo(request, lsn), lsn, request.lo_ms)
                result = results[job_id]
                job.result = (result, args.get("encoding", "raw") if result is not None else "raw")

    def _acked_once(self, request: Request, job_id: int, job: Job | None) -> None:
        if request.args.get("result_error") is not None:
            return
        known = job or self.jobs.get(job_id)
        if known is None:
            return
        if known.done_by not in (None, request.key):
            raise Violation("I3", f"{known} was acked by {request} and by request {known.done_by}")
        known.done_by = request.key

    def _on_fail(self, request: Request, body: Args, lsn: int, ms: int) -> None:
        args = request.args
        for job_id, token, code in self._verdicts(request, body):
            job = self._held(request, job_id, token, code, lsn, ms)
            if job is None:
                continue
            job.errors += 1
            job.error = args.get("error", "")
            delay_ms = args.get("retry_in_ms")
            if args.get("dead") or job.errors > job.pool.shown["max_retries"]:
                self._move(job, "dead", self._lo(request, lsn), lsn, request.lo_ms)
                continue
            if delay_ms is None:
                delay_ms = min(1_000 << min(job.errors - 1, 20), HOUR_MS) * 8 // 10
            self._wait(job, delay_ms, request, lsn)

    def _on_release(self, request: Request, body: Args, lsn: int, ms: int) -> None:
        for job_id, token, code in self._verdicts(request, body):
            job = self._held(request, job_id, token, code, lsn, ms)
            if job is not None:
                job.attempt -= 1
                job.was_released = True
                self._wait(job, request.args.get("delay_ms", 0), request, lsn)

    def _wait(self, job: Job, delay_ms: int, request: Request, lsn: int) -> None:
        """A job goes back to wait, at least for so long."""
        self._move(job, "delayed" if delay_ms else "ready", self._lo(request, lsn), lsn, request.lo_ms)
        job.due_ms = request.lo_ms + delay_ms if delay_ms else 0

    def _on_extend(self, request: Request, body: Args, lsn: int, ms: int) -> None:
        for job_id, token, code in self._verdicts(request, body):
            job = self._held(request, job_id, token, code, lsn, ms)
            if job is not None:
                job.lease_ms = request.args.get("lease_ms") or job.lease_ms
                job.deadline_ms = request.lo_ms + job.lease_ms
                job.is_graced = False
                job.hi = max(job.hi, lsn)

    def _lo(self, request: Request, lsn: int) -> int:
        return lsn if request.sends == 1 else request.floor

    def _verdicts(self, request: Request, body: Args) -> Iterator[tuple[int, int, str]]:
        """Yield (job id, token, verdict) for each job that was named, in order."""
        codes = {first + i: code for first, count, code in body["results"] for i in range(count)}
        named = list(_named_by(request.args))
        if list(codes) != [job_id for job_id, _ in named]:
            raise Violation("I14", f"{request} named {named}, and its verdicts are {body['results']}")
        for job_id, token in named:
            yield job_id, token, codes[job_id]

    def _held(self, request: Request, job_id: int, token: int, code: str, lsn: int, ms: int) -> Job | None:
        """Judge a verdict on a lease; return the job if it was current and the verdict is the newest word on it."""
        job = self.jobs.get(job_id)
        if code == "ok":
            return self._heard_as_holder(request, job_id, job, token, lsn, ms)
        if job is None:
            return None
        if code == "job_not_found":
            if request.sends == 1 or job.hi <= request.floor:
                self._is_missing(job, lsn, ms, str(request))
        elif code == "lease_lost":
            self._may_be_lost(request, job, token, lsn, ms)
        else:
            raise Violation("I5", f"{request}: verdict {code!r}")
        return None

    def _note_word(self, request: Request, job: Job, ms: int) -> None:
        """Tell what is rare in a word of who holds a job."""
        if job.token >> 32 < self._epoch:
            self._hit("token of an earlier run accepted")
        if request.lo_ms == ms and not self._named.get(job.id):
            if ms == job.deadline_ms - 1:
                self._hit("accepted in the last millisecond of a lease")
            elif ms >= job.deadline_ms:
                self._hit("heard after the deadline")

    def _heard_as_holder(
        self, request: Request, job_id: int, job: Job | None, token: int, lsn: int, ms: int
    ) -> Job | None:
        exact = request.sends == 1
        if job is None:
            raise Violation("I5", f"{request} was ok for job {job_id}, which nobody knows")
        for other, other_lsn in job.tokens:
            if other > token and other_lsn < lsn and (exact or other_lsn <= request.floor):
                raise Violation(
                    "I5", f"{request} at LSN {lsn}: token {token} was ok, and {job} has had {other}"
                )
        if job.state == "leased" and token == job.token:
            self._note_word(request, job, ms)
            return job
        if job.state == "leased" and not job.token:
            if request.verb in ("fail", "release") and lsn < job.lo:
                return None  # of a lease before the one that a newer reply has shown
            if exact or (request.verb == "ack" and request.args.get("result_error") is None):
                job.token = token
                return job
            self._linger(request, job_id, token, lsn)  # of this lease, or of one before
            return None
        if not exact or lsn <= job.hi or "lease" in self._verbs_on(job):
            return None
        if job.state == "done":
            raise Violation("I3", f"{request} at LSN {lsn}: token {token} was ok for {job}")
        raise Violation("I5", f"{request} at LSN {lsn}: token {token} was ok for {job}")

    def _may_be_lost(self, request: Request, job: Job, token: int, lsn: int, ms: int) -> None:
        """A token was refused: its lease must have ended, or be another's."""
        if job.token > token:
            self._hit("stale token refused")
        if job.state != "leased" or job.token != token:
            return
        if ms >= job.deadline_ms:
            if ms == job.deadline_ms == request.lo_ms:
                self._hit("refused at the millisecond of the deadline")
            return
        if job.hi > (lsn if request.sends == 1 else request.floor) or self._named.get(job.id):
            return
        raise Violation(
            "I4", f"{request} at LSN {lsn}, {ms} ms was refused, and {job} is held until {job.deadline_ms} ms"
        )

    # --- replies: sweeps ----------------------------------------------------------------------

    def _on_cancel(self, request: Request, body: Args, lsn: int, ms: int) -> None:
        self._on_sweep(request, body, lsn, ms, WAITING, "cancelled")

    def _on_requeue(self, request: Request, body: Args, lsn: int, ms: int) -> None:
        self._on_sweep(request, body, lsn, ms, ("dead",), "ready")

    def _on_purge(self, request: Request, body: Args, lsn: int, ms: int) -> None:
        self._on_sweep(request, body, lsn, ms, ("delayed", "ready", "dead"), "gone")

    def _on_sweep(
        self, request: Request, body: Args, lsn: int, ms: int, accepted: tuple[str, ...], state: str
    ) -> None:
        args = request.args
        if not args.get("ids"):
            if body["count"] and not args.get("dry_run"):
                self._swept.append((request.verb, _queue_swept(args), lsn))
            return
        ids = list(_ids_in(args["ids"]))
        codes = {first + i: code for first, count, code in body["results"] for i in range(count)}
        if list(codes) != ids or body["count"] != sum(code == "ok" for code in codes.values()):
            raise Violation("I14", f"{request} named {ids}, and its verdicts are {body}")
        for job_id in ids:
            job = self.jobs.get(job_id)
            code = codes[job_id]
            if job is None and code == "ok" and not args.get("dry_run"):
                self._linger(request, job_id, 0, lsn)  # its submit has not been answered yet
            if job is None or job.hi > lsn:
                continue
            if request.sends > 1 and job.hi > request.floor:
                # Before or after it was seen? What cancel and purge do to a job is for good.
                if code == "ok" and not args.get("dry_run") and job.state != state:
                    if request.verb == "requeue":
                        self._linger(request, job_id, 0, lsn)
                    else:
                        self._move(job, state, job.lo, lsn, request.lo_ms)
                        job.is_vague = True
                continue
            if code == "job_not_found":
                self._is_missing(job, lsn, ms, str(request))
                continue
            reach = self._reach(job, ms)
            if code == "ok" and reach.isdisjoint(accepted):
                raise Violation(
                    BROKEN_BY_LEAVING[job.state],
                    f"{request} took {job} at LSN {lsn}, which can be {sorted(reach)}",
                )
            if code == "wrong_state" and reach <= set(accepted):
                raise Violation("I15", f"{request} left {job} at LSN {lsn}, which can be {sorted(reach)}")
            if code == "ok" and not args.get("dry_run"):
                self._move(job, state, self._lo(request, lsn), lsn, request.lo_ms)
                job.is_vague = True

    # --- replies: reads -----------------------------------------------------------------------

    def _on_hello(self, request: Request, body: Args, lsn: int, ms: int) -> None:
        pass

    _on_ping = _on_stats = _on_snapshot = _on_queues = _on_hello

    def _on_get(self, request: Request, body: Args, lsn: int, ms: int) -> None:
        self._see(body, lsn, request.lo_ms, ms)

    def _on_list(self, request: Request, body: Args, lsn: int, ms: int) -> None:
        wanted = request.args.get("filter") or {}
        begin, end = request.args.get("cursor", 0), body["cursor"]
        listed = set()
        for info in body["jobs"]:
            if wanted.get("state") not in (None, info["state"]) or wanted.get("queue") not in (
                None,
                info["queue"],
            ):
                raise Violation("I11", f"{request} asked for {wanted} and got {info}")
            listed.add(info["job_id"])
            self._see(info, lsn, request.lo_ms, ms)
        if wanted.get("state") is not None:
            return
        for job in self.jobs.values():
            if job.id < begin or (end is not None and job.id >= end) or job.id in listed:
                continue
            if wanted.get("queue") in (None, job.queue) and job.state != "gone" and job.hi <= lsn:
                self._is_missing(job, lsn, ms, str(request))

    def _is_missing(self, job: Job, lsn: int, ms: int, where: str) -> None:
        """A job is not there: it must be one that may be gone."""
        if job.hi > lsn or job.state == "gone":
            return
        reach = self._reach(job, ms)
        if "gone" not in reach:
            raise Violation("I1", f"{where} at LSN {lsn}: {job} is missing, and can be {sorted(reach)}")
        if "purge" not in self._verbs_on(job):
            self._hit("job forgotten")
        self._move(job, "gone", lsn, lsn, ms)

    def _see(self, info: Args, lsn: int, lo_ms: int, ms: int) -> None:
        """A job is shown as it stands at an LSN."""
        job = self.jobs.get(info["job_id"])
        if job is None:
            job = self._discover(info, lsn)
            self._note(job, info, lsn, lo_ms)
            return
        if info == job.seen and not job.is_vague:  # in the same state as before: all of this was right
            if lsn >= job.hi:
                job.lo = job.hi = lsn
            return
        self._check_content(job, info)
        if lsn < job.hi:
            return
        state = info["state"]
        where = Where(job, info, lsn, ms)
        if state != job.state:
            reach = self._reach(job, ms)
            if state not in reach:
                raise Violation(BROKEN_BY_LEAVING[job.state], f"{where}; it can be {sorted(reach)}")
        self._check_numbers(job, info, where)
        self._check_facts(job, info, where)
        self._note(job, info, lsn, lo_ms)

    def _check_numbers(self, job: Job, info: Args, where: "Where") -> None:
        """Attempts, errors and crashes only grow, and no faster than jobs are handed out."""
        state, attempt = info["state"], info["attempt"]
        errors, crashes = info.get("errors", 0), info.get("crashes", 0)
        shown = job.pool.shown
        if state in ("delayed", "ready", "leased") and (
            errors > shown["max_retries"] or crashes > shown["max_crashes"]
        ):
            raise Violation("I18", f"{where}; the limits are {shown}")
        if state == job.state and (attempt, errors, crashes) == (job.attempt, job.errors, job.crashes):
            return
        if job.is_vague:
            return
        verbs = self._verbs_on(job)
        is_watched = "lease" not in verbs
        fewest = job.attempt
        if job.state == "leased" and (not job.token or "release" in verbs):
            fewest -= 1
        if attempt < fewest or (is_watched and attempt > job.attempt):
            raise Violation("I8", str(where))
        if "requeue" in verbs:
            return
        self._check_growth(job, errors, crashes, verbs, is_watched, where)

    def _check_growth(
        self, job: Job, errors: int, crashes: int, verbs: set[str], is_watched: bool, where: object
    ) -> None:
        """Only the end of a lease makes one more of either, and what a restart has ended makes none."""
        grown, crashed = errors - job.errors, crashes - job.crashes
        most = 1 if job.state == "leased" else 0
        if grown < 0 or crashed < 0 or (is_watched and grown + crashed > most):
            raise Violation("I8", f"{where}, after {job.errors} errors and {job.crashes} crashes")
        if crashed and is_watched and job.is_graced and job.state == "leased" and "extend" not in verbs:
            raise Violation("I8", f"{where}, after {job.crashes} crashes; its lease ran out after a restart")

    def _check_facts(self, job: Job, info: Args, where: "Where") -> None:
        """What was shown before is shown again, while nothing has happened to the job."""
        if job.created not in (None, info["created_wall_ms"]):
            raise Violation("I15", f"{where}: created at {info['created_wall_ms']}, once at {job.created}")
        if info["state"] != job.state or info["attempt"] != job.attempt:
            return
        if job.state == "done" and job.result is not None:
            result = (info.get("result"), info.get("result_encoding", "raw"))
            if result != job.result:
                raise Violation("I15", f"{where} with result {result}, acked with {job.result}")
        if (
            job.error is not None
            and job.state in ("delayed", "ready", "dead")
            and info.get("error", "") != job.error
        ):
            raise Violation("I15", f"{where} with error {info.get('error')!r}, failed with {job.error!r}")
        facts = tuple(map(info.get, FACTS))
        if job.facts is not None and job.changed == info["changed_wall_ms"] and facts != job.facts:
            raise Violation("I15", f"{where}: {facts}, once {job.facts}")

    def _note(self, job: Job, info: Args, lsn: int, lo_ms: int) -> None:
        """Take over what is shown of a job."""
        state, attempt = info["state"], info["attempt"]
        if state == "dead":
            self._check_reason(job, info)
        verbs = self._verbs_on(job) if state == "leased" else ()
        was_held = job.state == "leased" and attempt == job.attempt and "release" not in verbs
        if state != job.state or attempt != job.attempt:
            job.error = job.result = None
        self._move(job, state, lsn, lsn, job.since_ms)  # when it came there nobody said
        job.created, job.changed = info["created_wall_ms"], info["changed_wall_ms"]
        job.attempt, job.errors, job.crashes = attempt, info.get("errors", 0), info.get("crashes", 0)
        job.is_vague = False
        job.facts = tuple(map(info.get, FACTS))
        if state == "leased":
            if not was_held:
                job.token = 0
                job.is_graced = False
            if not was_held or "extend" in verbs:
                job.lease_ms = 1_000  # or more
            job.deadline_ms = lo_ms + info["lease_ms_left"]
        elif state != "delayed":
            job.seen = info
        else:
            job.due_ms = lo_ms + info["due_ms_left"] if info.get("due_ms_left") is not None else 0
            job.due_wall_ms = info.get("run_at_ms") or 0

    def _check_content(self, job: Job, info: Args) -> None:
        """A job is what was submitted."""
        content = tuple(map(info.get, CONTENT)) if "state" in info else tuple(map(info.get, HANDED_OUT))
        if content not in job.pool.right:
            self._compare_content(job, info)
            job.pool.right.append(content)
        payload = info.get("payload")
        if (
            payload is not None
            and payload != job.payload
            and (job.payload is not None or payload not in job.pool.payloads)
        ):
            raise Violation("I15", f"{job} has payload {payload!r}, submitted with {job.payload!r}")

    def _compare_content(self, job: Job, info: Args) -> None:
        shown = job.pool.shown
        for name in CONTENT if "state" in info else HANDED_OUT:
            if info.get(name, SHOWN_DEFAULTS.get(name)) != shown[name]:
                raise Violation("I15", f"{job} has {name} {info.get(name)!r}, submitted with {shown[name]!r}")

    def _check_reason(self, job: Job, info: Args) -> None:
        """A job is dead because of what its reason says (I18)."""
        shown, reason = job.pool.shown, info.get("reason")
        fits = {
            "retries": info.get("errors", 0) > shown["max_retries"],
            "crashes": info.get("crashes", 0) > shown["max_crashes"],
            "abandoned": job.once,
            "refused": job.id in self._refused,
            "killed": job.id in self._killed,
        }
        if not fits.get(reason, False):
            raise Violation("I18", f"{job} is dead because of {reason!r}: {info}, {shown}")
        self._hit(f"dead: {reason}")

    def _must_have_ended(self, info: Args) -> None:
        state = info["state"]
        if state in ("ready", "leased"):
            raise Violation("I19", f"at the end job {info['job_id']} is {state}")
        if state == "delayed":
            left_ms, date_ms = info.get("due_ms_left"), info.get("run_at_ms")
            if left_ms == 0 or (
                left_ms is None and date_ms is not None and date_ms + 1_000 <= self._now_wall_ms
            ):
                raise Violation("I19", f"at the end job {info['job_id']} is delayed, and its time has come")

    # --- replies: errors ----------------------------------------------------------------------

    def _on_error(self, request: Request, status: str, lsn: int, body: Any, ms: int) -> None:
        """A request was refused, which changes nothing."""
        if status == "internal":
            raise Violation("CODE", f"{request}: {body}")
        self._hit(f"refused: {status}")
        if status in ("storage_full", "busy"):
            self._full = status
        if status == UNKNOWN_OUTCOME:
            self._given_up.append(request)
            self._drop_suspicions(request.key)
            return
        if request.again is not None and _has_changed(request, request.again[1]):
            raise Violation("I10", f"{request} was answered {request.again}, and then {status}")
        if request.sends > 1:
            self._given_up.append(request)  # another copy may be carried out yet
            self._drop_suspicions(request.key)
        else:
            self._settle(request)
            self._take_back(request)
        self._closed[request.key] = (status, body)
        if request.verb == "get" and status == "job_not_found":
            job = self.jobs.get(request.args["job_id"])
            if job is not None:
                self._is_missing(job, lsn, ms, str(request))
        if status == "queue_not_found":
            name = request.args["filter"]["queue"]
            for job in self.jobs.values():
                if job.queue == name and job.state != "gone" and job.hi <= lsn:
                    self._is_missing(job, lsn, ms, str(request))

    def _take_back(self, request: Request) -> None:
        """What a refused submit would have added does not come."""
        if request.verb == "submit":
            self._pool(request.args, request.lo_ms).most -= 1
        elif request.verb == "submit_many":
            for group in request.args["groups"]:
                self._pool(group, request.lo_ms).most -= len(group["payloads"])

    def _same_answer(self, request: Request, body: Any) -> None:
        """A request that has changed something was sent once more after its answer: that is what it gets again.

        Of a lease it is what is still held, without at-most-once jobs.
        """
        assert request.again is not None
        before: Any = request.again[1]
        if request.verb != "lease":
            if body != before:
                raise Violation("I10", f"{request} was answered {before}, and then {body}")
            return
        known = {info["job_id"] for info in before["jobs"]}
        for info in body["jobs"]:
            job = self.jobs.get(info["job_id"])
            if job is not None and job.once:
                raise Violation("I6", f"{job} was sent twice to {request}")
            if body["token"] != before["token"] or info["job_id"] not in known:
                raise Violation("I10", f"{request} was answered {before}, and then {body}")


def _rank_of(entry: tuple[tuple[int, int], Job]) -> tuple[int, int]:
    return entry[0]


def _pool_key(shown: Args) -> tuple[object, ...]:
    metadata = shown["metadata"]
    return (
        shown["queue"],
        *(shown[name] for name in ("priority", "encoding", "task", "delivery")),
        None if metadata is None else tuple(sorted(metadata.items())),
    )


def _ids_in(ranges: Iterable[Any]) -> Iterator[int]:
    for first, count in ranges:
        yield from range(first, first + count)


def _named_by(args: Args) -> Iterator[tuple[int, int]]:
    """Yield (job id, token) for each job that ack, fail, release or extend names."""
    for item in args["items"]:
        for job_id in _ids_in(item[1]):
            yield job_id, item[0]


def _queue_swept(args: Args) -> str | None:
    """Return the queue that a filter means; None: all of them."""
    queue: str | None = (args.get("filter") or {}).get("queue")
    return queue


def _has_changed(request: Request, body: Any) -> bool:
    """Tell whether a request with this answer has changed something."""
    verb = request.verb
    if verb in ("submit", "submit_many"):
        return "job_id" in body or "jobs" in body
    if verb == "lease":
        return bool(body.get("jobs"))
    if verb in ("ack", "fail", "release", "extend"):
        return any(code == "ok" for _, _, code in body.get("results", ()))
    return (
        verb in ("cancel", "requeue", "purge")
        and body.get("count", 0) > 0
        and not request.args.get("dry_run")
    )

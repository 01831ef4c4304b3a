"""A queue that does one thing after the other: what a reply must be, if all before it happened in this order.

    model.submit(args, clock) -> the body that the reply must have
    model.expire(fact), model.promote(clock), ...    what time does, as the log says when

Knows:         protocol.md. Written from it alone: dicts, and a heap a queue.
Must not know: anything of the package under test; the order of things, which is for the witness to say.

What chance or a clock decides is handed in and judged: a lease's token has to rise, a due time has to lie where the
backoff may put it, a lease may end only after its time. Two clocks could say whether a deadline had passed, the
record's and the one at the moment of the request; where the log does not tell which side of it a request came, both
answers are taken (`Clock.latest_ms`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any, Final

from tests.history.operations import Body, Range, ids_in

OK: Final = "ok"
LOST: Final = "lease_lost"
MISSING: Final = "job_not_found"
WRONG: Final = "wrong_state"

STATES: Final = ("delayed", "ready", "leased", "done", "dead", "cancelled", "expired")
LEASE_MS: Final = 30_000
RESTART_GRACE_MS: Final = 30_000
MAX_RETRIES: Final = 3
MAX_CRASHES: Final = 5
HISTORY_MAX: Final = 16
RETRY_CAP_MS: Final = 3_600_000

Verdicts = list[list[Any]]  # [first id, count, code] each


class Contradiction(Exception):
    """No reply at all could be right here, or what the log says cannot be."""


@dataclass(slots=True)
class Clock:
    """The engine clock at a step.

    Attributes:
        ms: of the record, or of the one before a request that made none.
        latest_ms: it was not later than that; None: that is not known.
        late_ms: how long after its deadline a lease may still be taken for held, since the daemon stood still.
    """

    ms: int
    latest_ms: int | None
    late_ms: int = 0


@dataclass(slots=True)
class Job:
    id: int
    payload: bytes | None
    options: Body
    state: str = "ready"
    attempt: int = 0
    errors: int = 0
    crashes: int = 0
    token: int = 0  # of the newest lease
    worker: str = ""
    lease_ms: int = 0  # that its lease was given
    deadline_ms: int = 0
    restarted: bool = False  # the daemon was, and the lease was not extended since
    due_ms: int | None = None  # while delayed
    reason: str | None = None
    error: str = ""
    result: bytes | None = None
    result_encoding: str = "raw"
    attempts: list[tuple[int, str, str, str]] = field(default_factory=list)  # attempt, cause, worker, error

    @property
    def queue(self) -> str:
        return str(self.options.get("queue", "default"))

    @property
    def priority(self) -> int:
        return int(self.options.get("priority", 0))

    @property
    def max_retries(self) -> int:
        at_most_once = self.options.get("delivery") == "at_most_once"
        return int(self.options.get("max_retries", 0 if at_most_once else MAX_RETRIES))

    @property
    def max_crashes(self) -> int:
        return int(self.options.get("max_crashes", MAX_CRASHES))

    @property
    def own_lease_ms(self) -> int:
        return int(self.options.get("lease_ms", LEASE_MS))


class Model:
    """See the file's card."""

    def __init__(self) -> None:
        self.jobs: dict[int, Job] = {}
        self.next_id = 1
        self.epoch = 0
        self.newest_token = 0
        self.touched: list[int] = []  # jobs that the steps since it was cleared have moved or extended
        self._ready: dict[
            str, list[tuple[int, int]]
        ] = {}  # (-priority, id): a heap a queue, with stale entries
        self._delayed: list[tuple[int, int]] = []  # (due, id): a heap with stale entries
        self._counts: dict[str, dict[str, int]] = {}  # queue -> state -> jobs

    # --- jobs come --------------------------------------------------------------------------

    def submit(self, args: Body, clock: Clock) -> Body:
        options = {name: value for name, value in args.items() if name != "payload"}
        return {"job_id": self._add(options, args.get("payload", b""), clock)}

    def submit_many(self, args: Body, clock: Clock) -> Body:
        jobs = []
        for group in args["groups"]:
            options = {name: value for name, value in group.items() if name != "payloads"}
            first_id = self.next_id
            for payload in group["payloads"]:
                self._add(options, payload, clock)
            jobs.append([first_id, len(group["payloads"]), False])
        return {"jobs": jobs}

    def _add(self, options: Body, payload: bytes, clock: Clock) -> int:
        job = self.jobs[self.next_id] = Job(self.next_id, payload, options, state="")
        self.next_id += 1
        self._wait(job, clock.ms + options["delay_ms"] if options.get("delay_ms") else None)
        return job.id

    # --- jobs are handed out ----------------------------------------------------------------

    def lease(self, args: Body, clock: Clock, token: int, worker: str) -> Body:
        """Hand out jobs under a token that somebody else chose. Without any the reply has none: token 0."""
        jobs = self._candidates(args)
        if not jobs:
            return {"token": 0, "lease_ms_left": 0, "jobs": []}
        if token >> 32 != self.epoch or token <= self.newest_token:
            raise Contradiction(
                f"token {token} of epoch {token >> 32}: the epoch is {self.epoch}, the last token was "
                f"{self.newest_token}"
            )
        self.newest_token = token
        lease_ms = args.get("lease_ms") or jobs[0].own_lease_ms
        for job in jobs:
            self._move(job, "leased")
            job.attempt += 1
            job.token, job.worker, job.lease_ms, job.restarted = token, worker, lease_ms, False
            job.deadline_ms = clock.ms + lease_ms
        return {"token": token, "lease_ms_left": lease_ms, "jobs": [_leased(job) for job in jobs]}

    def _candidates(self, args: Body) -> list[Job]:
        count = args.get("count", 1)
        found: list[Job] = []
        for queue in dict.fromkeys(args.get("queues", ["default"])):
            while len(found) < count and (job := self._first_ready(queue)) is not None:
                if found and not args.get("lease_ms") and job.own_lease_ms != found[0].own_lease_ms:
                    return found
                heappop(self._ready[queue])
                found.append(job)
        return found

    def has_ready(self, args: Body) -> bool:
        """Tell whether there is something to hand out."""
        return any(self._first_ready(queue) is not None for queue in args.get("queues", ["default"]))

    def _first_ready(self, queue: str) -> Job | None:
        heap = self._ready.get(queue, [])
        while heap and self.jobs[heap[0][1]].state != "ready":  # cancelled meanwhile
            heappop(heap)
        return self.jobs[heap[0][1]] if heap else None

    def leased_again(self, token: int, ids: Iterable[int]) -> list[Body]:
        """Return what a lease that is asked again may be answered: what it still holds."""
        jobs = (self.jobs[job_id] for job_id in ids)
        return [
            _leased(job)
            for job in jobs
            if job.state == "leased" and job.token == token and job.options.get("delivery") != "at_most_once"
        ]

    # --- what the holder says ---------------------------------------------------------------

    def extend(self, args: Body, clock: Clock, said: Body) -> Body:
        left: list[int] = []

        def act(job: Job) -> None:
            job.lease_ms = args.get("lease_ms") or job.lease_ms
            job.deadline_ms, job.restarted = clock.ms + job.lease_ms, False
            left.append(job.lease_ms)
            self.touched.append(job.id)

        results = self._hold(args, clock, said, act)
        return {"results": results, "lease_ms_left": min(left, default=0)}

    def ack(self, args: Body, clock: Clock, said: Body) -> Body:
        results = {job_id: result for _, ranges, result in args["items"] for job_id in ids_in(ranges)}
        error = args.get("result_error")

        def act(job: Job) -> None:
            if error is not None:
                self._bury(job, "refused", "error", error)
                return
            self._move(job, "done")
            job.payload = None
            if results[job.id] is not None:
                job.result, job.result_encoding = results[job.id], args.get("encoding", "raw")

        return {"results": self._hold(args, clock, said, act)}

    def fail(self, args: Body, clock: Clock, said: Body, due: dict[int, int]) -> Body:
        """due: of the jobs that the log says will be tried again; 0: at once."""
        retry_in_ms, is_last = args.get("retry_in_ms"), args.get("dead", False)

        def act(job: Job) -> None:
            error = args.get("error", "")
            job.errors += 1
            if is_last or job.errors > job.max_retries:
                self._bury(job, "killed" if is_last else "retries", "error", error, counted=True)
                return
            due_ms = due.get(job.id)
            if due_ms is None:
                raise Contradiction(
                    f"job {job.id}: failed {job.errors} times, and nothing says when it is retried"
                )
            if retry_in_ms is None:
                _check_backoff(job, due_ms - clock.ms, job.errors)
            elif due_ms != (clock.ms + retry_in_ms if retry_in_ms else 0):
                raise Contradiction(f"job {job.id}: due at {due_ms}, {retry_in_ms} ms after {clock.ms}")
            self._note_attempt(job, "error", error)
            self._wait(job, due_ms or None)

        return {"results": self._hold(args, clock, said, act)}

    def release(self, args: Body, clock: Clock, said: Body) -> Body:
        delay_ms = args.get("delay_ms", 0)

        def act(job: Job) -> None:
            job.attempt -= 1
            self._wait(job, clock.ms + delay_ms if delay_ms else None)

        return {"results": self._hold(args, clock, said, act)}

    def _hold(self, args: Body, clock: Clock, said: Body, act: Callable[[Job], None]) -> Verdicts:
        """Judge each job that is named, and act on those that are held."""
        told = {
            job_id: code
            for first, count, code in said.get("results", ())
            for job_id in range(first, first + count)
        }
        verdicts: Verdicts = []
        for item in args["items"]:
            for job_id in ids_in(item[1]):
                allowed = self._verdicts(self.jobs.get(job_id), item[0], clock)
                code = told.get(job_id, allowed[0])
                if code not in allowed:
                    code = allowed[0]
                if code == OK:
                    act(self.jobs[job_id])
                _add_verdict(verdicts, job_id, code)
        return verdicts

    @staticmethod
    def _verdicts(job: Job | None, token: int, clock: Clock) -> Sequence[str]:
        if job is None:
            return (MISSING,)
        if job.state != "leased" or job.token != token:
            return (LOST,)
        over_ms = clock.ms - job.deadline_ms
        if over_ms >= 0:
            return (LOST, OK) if over_ms <= clock.late_ms else (LOST,)
        if clock.latest_ms is None or clock.latest_ms >= job.deadline_ms:
            return (OK, LOST)
        return (OK,)

    # --- operators --------------------------------------------------------------------------

    def cancel(self, args: Body) -> Body:
        def act(job: Job) -> None:
            self._move(job, "cancelled")
            job.payload = None
            job.due_ms = None

        return self._sweep(args, ("delayed", "ready"), act)

    def requeue(self, args: Body) -> Body:
        def act(job: Job) -> None:
            job.errors = job.crashes = 0
            job.reason = None
            self._wait(job, None)

        return self._sweep(args, ("dead",), act)

    def _sweep(self, args: Body, accepted: tuple[str, ...], act: Callable[[Job], None]) -> Body:
        if args.get("ids") is None:
            wanted = args["filter"]
            self._check_queue(wanted)
            found = list(self._matching(wanted, args.get("cursor", 0), accepted, args.get("limit", 1_000)))
            for job in found:
                act(job)
            return {"count": len(found), "results": []}
        verdicts: Verdicts = []
        count = 0
        for job_id in ids_in(args["ids"]):
            job = self.jobs.get(job_id)
            code = MISSING if job is None else OK if job.state in accepted else WRONG
            if job is not None and code == OK:
                act(job)
                count += 1
            _add_verdict(verdicts, job_id, code)
        return {"count": count, "results": verdicts}

    # --- reads ------------------------------------------------------------------------------

    def get(self, args: Body) -> Body:
        job = self.jobs.get(args["job_id"])
        if job is None:
            raise Refusal(MISSING)
        return _shown(job) | ({} if job.payload is None else {"payload": job.payload})

    def list(self, args: Body) -> Body:
        wanted = args.get("filter") or {}
        self._check_queue(wanted)
        jobs = self._matching(wanted, args.get("cursor", 0), STATES, args.get("limit", 100))
        return {"jobs": [_shown(job) for job in jobs]}

    def queues(self, args: Body) -> Body:
        return {
            "queues": [
                {"queue": queue} | dict.fromkeys(STATES, 0) | counts | {"paused": False}
                for queue, counts in sorted(self._counts.items())
            ]
        }

    def _check_queue(self, wanted: Body) -> None:
        if wanted.get("queue") is not None and wanted["queue"] not in self._counts:
            raise Refusal("queue_not_found")

    def _matching(self, wanted: Body, cursor: int, accepted: tuple[str, ...], limit: int) -> Iterator[Job]:
        queue, state = wanted.get("queue"), wanted.get("state")
        for job_id in range(max(cursor, 1), self.next_id):
            job = self.jobs[job_id]
            if job.state in accepted and state in (None, job.state) and queue in (None, job.queue):
                yield job
                limit -= 1
                if not limit:
                    return

    # --- what time does ---------------------------------------------------------------------

    def start(self, epoch: int, clock: Clock) -> None:
        """A new run of the daemon: what is held stays so for a grace at least."""
        if epoch <= self.epoch:
            raise Contradiction(f"epoch {epoch} comes after {self.epoch}")
        self.epoch = epoch
        for job in self.jobs.values():
            if job.state == "leased":
                job.deadline_ms = max(job.deadline_ms, clock.ms + min(job.lease_ms, RESTART_GRACE_MS))
                job.restarted = True

    def promote(self, clock: Clock) -> None:
        """Make ready what is due."""
        while self._delayed and self._delayed[0][0] <= clock.ms:
            due_ms, job_id = heappop(self._delayed)
            job = self.jobs[job_id]
            if job.state == "delayed" and job.due_ms == due_ms:
                self._wait(job, None)

    def expire_and_retry(self, jobs: Iterable[Range], cause: str, error: str, clock: Clock) -> None:
        for job_id, due_ms in jobs:
            job = self._expired(job_id, cause, clock)
            if job.options.get("delivery") == "at_most_once":
                raise Contradiction(f"job {job_id} is at_most_once and is tried again")
            if cause == "crash":
                job.crashes += 1
                if job.crashes > job.max_crashes:
                    raise Contradiction(f"job {job_id}: crash {job.crashes} of {job.max_crashes} is retried")
            if cause == "crash" and job.crashes > 1:
                _check_backoff(job, due_ms - clock.ms, job.crashes - 1)
            elif due_ms:
                raise Contradiction(f"job {job_id}: after its first {cause} it waits until {due_ms}")
            self._note_attempt(job, cause, error)
            self._wait(job, due_ms or None)

    def expire_and_bury(self, ids: Iterable[int], reason: str, cause: str, error: str, clock: Clock) -> None:
        for job_id in ids:
            job = self._expired(job_id, cause, clock)
            at_most_once = job.options.get("delivery") == "at_most_once"
            job.crashes += cause == "crash"
            if reason != ("abandoned" if at_most_once else "crashes"):
                raise Contradiction(f"job {job_id}: dead of {reason}, its delivery is {job.options}")
            if not at_most_once and (cause == "restart" or job.crashes <= job.max_crashes):
                raise Contradiction(f"job {job_id}: dead after {cause} {job.crashes} of {job.max_crashes}")
            self._bury(job, reason, cause, error, counted=True)

    def _expired(self, job_id: int, cause: str, clock: Clock) -> Job:
        job = self.jobs[job_id]
        if job.state != "leased":
            raise Contradiction(f"job {job_id} is {job.state}, and its lease ran out")
        if clock.ms < job.deadline_ms:
            raise Contradiction(
                f"job {job_id}: its lease ran out at {clock.ms}, its time is {job.deadline_ms}"
            )
        if (cause == "restart") is not job.restarted:
            raise Contradiction(f"job {job_id}: its lease ended by a {cause}; restarted: {job.restarted}")
        return job

    def take_back(self, ids: Iterable[int]) -> None:
        """Undo a lease that nobody was told of."""
        for job_id in ids:
            job = self.jobs[job_id]
            if job.state != "leased":
                raise Contradiction(f"job {job_id} is {job.state}, and was taken back")
            job.attempt -= 1
            self._wait(job, None)

    # --- moves ------------------------------------------------------------------------------

    def _move(self, job: Job, state: str) -> None:
        counts = self._counts.setdefault(job.queue, dict.fromkeys(STATES, 0))
        if job.state:
            counts[job.state] -= 1
        job.state = state
        counts[state] += 1
        self.touched.append(job.id)

    def _wait(self, job: Job, due_ms: int | None) -> None:
        job.due_ms = due_ms
        if due_ms is None:
            self._move(job, "ready")
            heappush(self._ready.setdefault(job.queue, []), (-job.priority, job.id))
        else:
            self._move(job, "delayed")
            heappush(self._delayed, (due_ms, job.id))

    def _bury(self, job: Job, reason: str, cause: str, error: str, *, counted: bool = False) -> None:
        job.errors += not counted
        self._note_attempt(job, cause, error)
        self._move(job, "dead")
        job.reason = reason

    @staticmethod
    def _note_attempt(job: Job, cause: str, error: str) -> None:
        job.error = error
        job.attempts = [*job.attempts, (job.attempt, cause, job.worker, error)][-HISTORY_MAX:]


class Refusal(Exception):
    """The reply must be this error."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def _check_backoff(job: Job, delay_ms: int, count: int) -> None:
    full_ms = min(1_000 << min(count - 1, 30), RETRY_CAP_MS)
    if not full_ms * 8 // 10 <= delay_ms <= full_ms * 12 // 10:
        raise Contradiction(f"job {job.id}: waits {delay_ms} ms after failure {count}, not {full_ms} +- 20 %")


def _add_verdict(verdicts: Verdicts, job_id: int, code: str) -> None:
    if verdicts and verdicts[-1][2] == code and verdicts[-1][0] + verdicts[-1][1] == job_id:
        verdicts[-1][1] += 1
    else:
        verdicts.append([job_id, 1, code])


# --- what is shown: fields at their default are left out, as on the wire; times are the clocks' -------------


def _given(fields: Body, defaults: Body) -> Body:
    return {name: value for name, value in fields.items() if name not in defaults or value != defaults[name]}


_LEASED_DEFAULTS: Final[Body] = {
    "encoding": "raw", "priority": 0, "metadata": None, "delivery": "at_least_once", "errors": 0, "crashes": 0,
}  # fmt: skip
_SHOWN_DEFAULTS: Final[Body] = _LEASED_DEFAULTS | {
    "max_retries": MAX_RETRIES, "max_crashes": MAX_CRASHES, "lease_ms": LEASE_MS, "worker": None, "reason": None,
    "error": "", "attempts": [], "result": None, "result_encoding": "raw",
}  # fmt: skip


def _options_of(job: Job) -> Body:
    return {
        "encoding": job.options.get("encoding", "raw"),
        "priority": job.priority,
        "metadata": job.options.get("metadata"),
        "delivery": job.options.get("delivery", "at_least_once"),
        "errors": job.errors,
        "crashes": job.crashes,
    }


def _leased(job: Job) -> Body:
    fields = {"job_id": job.id, "queue": job.queue, "attempt": job.attempt, "payload": job.payload}
    return _given(fields | _options_of(job), _LEASED_DEFAULTS)


def _shown(job: Job) -> Body:
    fields = {
        "job_id": job.id,
        "queue": job.queue,
        "state": job.state,
        "attempt": job.attempt,
        "payload_bytes": len(job.payload or b""),
        "max_retries": job.max_retries,
        "max_crashes": job.max_crashes,
        "lease_ms": job.own_lease_ms,
        "worker": job.worker if job.state == "leased" else None,
        "reason": job.reason,
        "error": job.error,
        "attempts": [
            {"attempt": attempt, "cause": cause, "worker": worker, "error": error}
            for attempt, cause, worker, error in job.attempts
        ],
        "result": job.result,
        "result_encoding": job.result_encoding,
    }
    return _given(fields | _options_of(job), _SHOWN_DEFAULTS)

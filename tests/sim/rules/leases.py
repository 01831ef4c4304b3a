"""Leases: which jobs are handed out, in which order, and to one at a time.

Knows:         protocol.md "lease", "Order", "Leases and tokens", "Expiry", "At most once": tokens rise, nobody gets a job
               whose lease lives (I4), an at-most-once job again (I6), a job before its time, from its expiry on or while
               its queue is paused (I9); what stands first goes first, and none is passed over (I7); attempts count (I8).
Must not know: anything of jqd; what holders say of what they got (holders.py), how a weight is drawn (draws.py).

A lease may pass over a job that was ready as far as is known, if somebody else took it before: who that can be may be
told by an answer that is still to come. Until then there is a suspicion.
"""

from tests.sim.rules.attempts import Attempts
from tests.sim.rules.book import Book
from tests.sim.rules.draws import orders
from tests.sim.rules.edits import Edits
from tests.sim.rules.loose import Loose
from tests.sim.rules.model import (
    BROKEN_BY_LEAVING,
    LIMITS,
    NO_PROGRESS,
    UNKNOWN,
    Args,
    Job,
    Key,
    Known,
    Request,
    Violation,
)
from tests.sim.rules.pools import Pools
from tests.sim.rules.queues import Queues
from tests.sim.rules.reach import Reach
from tests.sim.rules.sessions import Sessions


class Suspicion:
    """A lease passed a job over, and only requests that are still to be answered can say why."""

    __slots__ = ("job", "lsn", "text", "waiting")

    def __init__(self, job: Job, lsn: int, text: str, waiting: set[Key]) -> None:
        self.job, self.lsn, self.text, self.waiting = job, lsn, text, waiting


class Leases:
    """Judges what leases were answered."""

    def __init__(
        self,
        known: Known,
        pools: Pools,
        book: Book,
        sessions: Sessions,
        queues: Queues,
        loose: Loose,
        reach: Reach,
        edits: Edits,
        attempts: Attempts,
    ) -> None:
        self._known = known
        self._hit = known.hit
        self._clocks = known.clocks
        self._pools = pools
        self._book = book
        self._sessions = sessions
        self._queues = queues
        self._loose = loose
        self._reach = reach
        self._edits = edits
        self._attempts = attempts
        self._suspicions: list[Suspicion] = []

    def on_lease(self, request: Request, body: Args, lsn: int, ms: int) -> None:
        jobs, token = body["jobs"], body["token"]
        if bool(jobs) != bool(token):
            raise Violation("I4", f"{request} got token {token} for {len(jobs)} jobs")
        if jobs:
            self._sessions.check_token(request, token, lsn)
        if request.args.get("wait_ms"):
            self._hit("parked lease served" if jobs else "parked lease gave up")
        first_ms = request.lo_ms
        if self._queues.shelves and jobs:
            self._check_paused(request, jobs, lsn)
        for info in jobs:
            self._deliver(request, info, token, body["lease_ms_left"], lsn, first_ms, ms)
            if info["attempt"] == 1 and request.sends == 1:
                self._check_expiry(request, info, body["wall_ms"])
        if request.sends == 1:
            self._check_order(request, jobs, lsn)
            if jobs and request.args.get("weights"):
                self._check_weights(request, jobs, token)
        else:  # it tells only of what is still held: the first try may have been handed more
            self._hit("retried lease told what is still held" if jobs else "retried lease found nothing left")
            self._loose.swept += [("lease", name, lsn) for name in request.args.get("queues", ("default",))]

    def _check_paused(self, request: Request, jobs: list[Args], lsn: int) -> None:
        """Nothing was handed out of a queue that was paused all the time in which the lease can have been served."""
        lo = lsn if request.sends == 1 and not request.args.get("wait_ms") else request.floor
        for name in {info["queue"] for info in jobs}:
            if all(self._queues.can_be(name, "paused", lo, lsn)):
                raise Violation("I9", f"{request} at LSN {lsn} got jobs of {name}, which is paused")

    def _check_expiry(self, request: Request, info: Args, wall_ms: int) -> None:
        """A job that was never started is not handed out from its expiry on, by the clock that the reply shows."""
        at_ms = self._book.jobs[info["job_id"]].expires_at_ms
        if at_ms is None:
            return
        if at_ms <= wall_ms:
            raise Violation(
                "I9", f"{request} at {wall_ms} got job {info['job_id']}, which expired at {at_ms}"
            )
        if at_ms == wall_ms + 1:
            self._hit("job handed out in the last millisecond before its expiry")

    def _check_weights(self, request: Request, jobs: list[Args], token: int) -> None:
        """The queues come in an order that is drawn by the grant's number, for some set of queues that had jobs."""
        args = request.args
        got = list(dict.fromkeys(info["queue"] for info in jobs))
        queues = dict(reversed(list(zip(args["queues"], args["weights"], strict=True))))
        named = [(name, queues[name]) for name in dict.fromkeys(args["queues"])]
        for order in orders(named, got, token & 0xFFFFFFFF):
            if order[: len(got)] == got:
                if got[0] != args["queues"][0]:
                    self._hit("lease with weights: another queue came first than the first one named")
                return
        raise Violation("I7", f"{request} got jobs of {got}, which grant {token & 0xFFFFFFFF} does not draw")

    def _deliver(
        self, request: Request, info: Args, token: int, left_ms: int, lsn: int, lo_ms: int, ms: int
    ) -> None:
        job_id = info["job_id"]
        job = self._book.jobs.get(job_id)
        if job is None:
            job = self._book.discover(info, lsn - 1)  # as it stood before
        lo = lsn if request.sends == 1 and not request.args.get("wait_ms") else request.floor
        self._edits.check_content(job, info, lo, lsn)
        self._check_rising(job, token, lsn)
        if (token, job_id) in self._sessions.given:
            raise Violation("I6" if job.once else "I4", f"{job} was sent twice under token {token}")
        self._sessions.given[token, job_id] = request.key
        # A purge that was sent twice tells only between which LSNs a job went.
        may_be_newer = job.lo < lsn and token > job.token and job.state != "gone"
        if lsn <= job.hi and not may_be_newer:
            # A newer reply has told of the job already: this one can only add the name of what it saw.
            if job.state == "leased" and not job.token and job.attempt == info["attempt"]:
                job.token, job.lease_ms = token, left_ms
            return
        mark = job.mark if lo < job.mark or lo < lsn else 0  # of this lease: it was heard of first
        if mark and not job.token and info["attempt"] == job.attempt:
            job.token, job.lease_ms = token, left_ms  # what was shown as held is this
            return
        if mark:
            job.mark = 0
        self._check_delivery(job, info, token, lsn, ms)
        self._note_delivery(job, info, ms)
        self._book.move(job, "leased", lo, lsn, lo_ms)
        job.mark = mark
        job.attempt, job.errors, job.crashes = info["attempt"], info.get("errors", 0), info.get("crashes", 0)
        job.is_vague = job.is_graced = False
        job.token, job.lease_ms, job.deadline_ms = token, left_ms, lo_ms + left_ms
        if job.progress not in (NO_PROGRESS, UNKNOWN):
            self._hit("progress cleared by a hand-out")
        job.progress = NO_PROGRESS
        job.error = job.facts = job.seen = None
        job.due_ms = job.due_wall_ms = job.due_hi_ms = 0
        job.date = None

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
        reach = self._reach.of(job, ms)
        if "ready" not in reach:
            invariant = "I6" if job.once and job.state in ("leased", "dead") else BROKEN_BY_LEAVING[job.state]
            raise Violation(invariant, f"{where}; it can be {sorted(reach)}")
        attempt, errors, crashes = info["attempt"], info.get("errors", 0), info.get("crashes", 0)
        shown = job.pool.shown
        if (
            errors > self._attempts.bounds(job, "max_retries")[1]
            or crashes > self._attempts.bounds(job, "max_crashes")[1]
        ):
            raise Violation("I8", f"{where} with {errors} errors and {crashes} crashes: {shown}")
        if job.is_vague:
            return
        verbs = self._loose.verbs_on(job)
        is_watched = "lease" not in verbs and (job.state != "leased" or job.token > 0)
        fewest = job.attempt + 1
        if job.state == "leased" and (not job.token or "release" in verbs):
            fewest -= 1
        if attempt < fewest or (is_watched and attempt > job.attempt + 1):
            raise Violation("I8", f"{where} as attempt {attempt}")
        if "requeue" in verbs:
            return
        where += f" with {errors} errors and {crashes} crashes"
        self._attempts.check_growth(job, errors, crashes, verbs, is_watched, where)

    def _note_delivery(self, job: Job, info: Args, ms: int) -> None:
        """Tell what is rare in a delivery that may be."""
        if job.state == "delayed":
            if job.due_ms == ms:
                self._hit("job handed out at the millisecond of its time")
            if job.due_wall_ms > self._clocks.wall_ms:
                self._hit("dated job handed out though the wall clock is behind its date")
        elif job.state == "leased" and job.deadline_ms == ms:
            self._hit("job handed out in the millisecond in which a lease ran out")
        if job.state == "leased" and job.is_graced and info.get("crashes", 0) == job.crashes:
            self._hit("lease ended by a restart counted as nothing")
        if job.tokens[:-1] and info["attempt"] == job.attempt + 1 and job.was_released:
            self._hit("attempt given back and counted again")
        if job.was_dead:
            self._hit("dead job came back")
        if job.was_edited:
            self._hit("job handed out as it was changed to")
        job.was_dead = job.was_released = job.was_edited = False

    def _check_order(self, request: Request, jobs: list[Args], lsn: int) -> None:
        """What was handed out stands in order, and nothing that stands before it was passed over."""
        args = request.args
        names = list(dict.fromkeys(args.get("queues", ("default",))))
        if args.get("weights") is not None:  # drawn: first those that there were jobs of
            got = list(dict.fromkeys(info["queue"] for info in jobs))
            names = got + [name for name in names if name not in got]
        at, worst = 0, None
        for info in jobs:
            job = self._book.jobs[info["job_id"]]
            if job.queue not in names[at:]:
                raise Violation("I7", f"{request} got {job} out of the order of its queues {names}")
            if job.queue != names[at]:
                at, worst = names.index(job.queue), None
            rank = (-info.get("priority", 0), job.id)  # as it was then: it may have been changed since
            if worst is not None and rank < worst:
                raise Violation("I7", f"{request} got {job} behind one that comes after it")
            worst = rank
        is_full = len(jobs) >= args.get("count", 1)
        # A job that asks for another lease time than the first one ends the reply, even one that nobody knows is ready.
        odd = self._pools.odd_leases
        may_be_cut = bool(jobs) and args.get("lease_ms") is None and not odd.isdisjoint(names)
        if self._known.limits["EXPIRIES_PER_TICK"] < LIMITS[
            "EXPIRIES_PER_TICK"
        ] and not self._pools.expiring.isdisjoint(names):
            return  # so does one that has expired and was not ended yet
        # Parked, it may have been served before its reply's LSN.
        known = request.floor if args.get("wait_ms") else lsn - bool(jobs)
        for number, name in enumerate(names[: at + 1] if is_full else names):
            if self._queues.shelves and any(self._queues.can_be(name, "paused", min(known, lsn), lsn)):
                continue
            for rank, job in self._book.ready.get(name, ()):
                if number == at and worst is not None and rank > worst and is_full:
                    break
                if job.attempt == 0 and self._reach.may_expire(job, set()):
                    continue
                if job.also or job.content_lsn > known:
                    continue
                passed = worst is not None and (number < at or (number == at and rank < worst))
                if job.hi <= known and (passed or not may_be_cut):
                    self._suspect(request, job, lsn)

    # --- jobs that were passed over -----------------------------------------------------------

    def _suspect(self, request: Request, job: Job, lsn: int) -> None:
        """A lease passed a job over that was ready as far as is known: somebody else must have taken it before."""
        who = list(self._loose.leases.get(job.queue, {}).values())
        who += [each for each, _ in self._loose.named.get(job.id, ()) if each.verb in ("cancel", "purge")]
        who += [each for each in self._loose.sweeps.values() if each.verb != "requeue"]
        if self._loose.edits_on(job):
            return  # it may have had another place, or another time
        if any(
            verb != "requeue" and at > job.lo and queue in (None, job.queue)
            for verb, queue, at in self._loose.swept
        ):
            return
        if any(self._loose.open.get(each.key) is not each for each in who):
            return  # one of those that nobody will ever hear of
        text = f"{request} passed over {job} at LSN {lsn}"
        if not who:
            raise Violation("I7", text)
        self._suspicions.append(Suspicion(job, lsn, text, {each.key for each in who}))

    def hear(self, request: Request, status: str) -> None:
        """A request was answered."""
        if self._suspicions:
            if request.sends > 1 or (
                status == "ok" and "filter" in request.args
            ):  # it does not say of which jobs
                self.drop_suspicions(request.key)
            else:
                self._resolve(request.key)

    def _resolve(self, key: Key) -> None:
        """A request was answered: it explains a suspicion, or does not."""
        left = []
        for one in self._suspicions:
            if one.job.state != "ready" or one.job.also or one.job.hi > one.lsn:
                continue
            one.waiting.discard(key)
            if not one.waiting:
                raise Violation("I7", one.text)
            left.append(one)
        self._suspicions = left

    def drop_suspicions(self, key: Key) -> None:
        """Whether a request explains a suspicion nobody will hear."""
        self._suspicions = [one for one in self._suspicions if key not in one.waiting]

    def forget(self) -> None:
        """The run has ended: what it passed over may have been taken by somebody of whom nobody will hear."""
        self._suspicions.clear()

    def finish(self) -> None:
        """Nothing more is to come: no suspicion may be left, if all requests were answered."""
        if self._suspicions and not self._loose.open:
            one = self._suspicions[0]
            raise Violation("I7", one.text)

"""What the holder of a lease says, and what it is told: ack, fail, release, extend.

Knows:         protocol.md "extend", "ack", "fail", "release", "Leases and tokens", "Events": a holder is heard until its
               lease is over (I4), nobody else is (I5, I16), a job is acked once (I3), a mark that it is to end stays (I15).
Must not know: anything of jqd; who was handed what (leases.py), how long a retry waits (attempts.py).
"""

from collections.abc import Iterator

from tests.sim.rules.attempts import Attempts
from tests.sim.rules.book import Book
from tests.sim.rules.loose import Loose
from tests.sim.rules.model import UNKNOWN, WAITING, Args, Job, Known, Request, Violation
from tests.sim.rules.reach import Reach
from tests.sim.rules.sessions import Sessions
from tests.sim.rules.words import ids_in, lo_of, named_by, progress_said


class Holders:
    """Judges verdicts on leases."""

    def __init__(
        self, known: Known, book: Book, sessions: Sessions, loose: Loose, reach: Reach, attempts: Attempts
    ) -> None:
        self._hit = known.hit
        self._book = book
        self._sessions = sessions
        self._loose = loose
        self._reach = reach
        self._attempts = attempts

    def on_ack(self, request: Request, body: Args, lsn: int, ms: int) -> None:
        args = request.args
        results = {job_id: result for _, ranges, result in args["items"] for job_id in ids_in(ranges)}
        for job_id, token, code in self._verdicts(request, body):
            job = self._held(request, job_id, token, code, lsn, ms)
            if code == "ok":
                self._acked_once(request, job_id, job)
            if job is None:
                continue
            if job.mark > 0:
                self._hit("marked job acked all the same")
            if args.get("result_error") is not None:
                job.errors += 1
                job.error = args["result_error"]
                self._book.move(job, "dead", lo_of(request, lsn), lsn, request.lo_ms)
            else:
                self._book.move(job, "done", lo_of(request, lsn), lsn, request.lo_ms)
                result = results[job_id]
                if job.pool.fields.get("result_ttl_ms") == 0:
                    result = None  # it is not kept
                job.result = (result, args.get("encoding", "raw") if result is not None else "raw")

    def _acked_once(self, request: Request, job_id: int, job: Job | None) -> None:
        if request.args.get("result_error") is not None:
            return
        known = job or self._book.jobs.get(job_id)
        if known is None:
            return
        if known.done_by not in (None, request.key):
            raise Violation("I3", f"{known} was acked by {request} and by request {known.done_by}")
        known.done_by = request.key

    def on_fail(self, request: Request, body: Args, lsn: int, ms: int) -> None:
        args = request.args
        for job_id, token, code in self._verdicts(request, body):
            job = self._held(request, job_id, token, code, lsn, ms)
            if job is None:
                continue
            job.errors += 1
            job.error = args.get("error", "")
            if job.mark > 0:
                self._end_marked(job, request, lsn)
                continue
            may_be_marked = job.mark < 0 or "mark" in self._loose.verbs_on(job)
            delay_ms = args.get("retry_in_ms")
            lo = lo_of(request, lsn)
            least, most = self._attempts.bounds(job, "max_retries", lsn if request.sends == 1 else None)
            if args.get("dead") or job.errors > most:
                self._book.move(job, "dead", lo, lsn, request.lo_ms)
            elif delay_ms is not None:
                self._wait(job, delay_ms, delay_ms, request, lsn, ms)
            else:
                self._wait(job, *self._attempts.backoff(job, args, job.errors, lo, lsn), request, lsn, ms)
            if not args.get("dead") and least < job.errors <= most:  # as it stood with the limit then
                job.also = frozenset(("dead",))
            if may_be_marked:
                job.also |= {"cancelled"}

    def on_release(self, request: Request, body: Args, lsn: int, ms: int) -> None:
        for job_id, token, code in self._verdicts(request, body):
            job = self._held(request, job_id, token, code, lsn, ms)
            if job is None:
                continue
            if job.mark > 0:
                self._end_marked(job, request, lsn)
                continue
            may_be_marked = job.mark < 0 or "mark" in self._loose.verbs_on(job)
            job.attempt -= 1
            job.was_released = True
            delay_ms = request.args.get("delay_ms", 0)
            self._wait(job, delay_ms, delay_ms, request, lsn, ms)
            if may_be_marked:
                job.also = frozenset(("cancelled",))
                job.is_vague = True

    def _end_marked(self, job: Job, request: Request, lsn: int) -> None:
        """A marked job was given back: that is its end."""
        if request.sends > 1 and job.mark > request.floor:
            # Or it was given back before, and what is marked is a lease that came after.
            job.token = job.deadline_ms = 0
            job.mark = -1
            job.also = frozenset(("cancelled", "dead", *WAITING))
            job.is_vague = True
            job.seen = None
            return
        self._hit(f"marked job ended by its holder: {request.verb}")
        self._book.move(job, "cancelled", lo_of(request, lsn), lsn, request.lo_ms)

    def _wait(self, job: Job, least_ms: int, most_ms: int, request: Request, lsn: int, ms: int) -> None:
        """A job goes back to wait, for so long."""
        state = "delayed" if most_ms else "ready"
        self._book.move(job, state, lo_of(request, lsn), lsn, request.lo_ms)
        job.due_ms = request.lo_ms + least_ms if most_ms else 0
        job.due_hi_ms = ms + most_ms if most_ms else 0
        job.due_wall_ms, job.date = 0, None
        if most_ms and not least_ms:
            job.also = frozenset(("ready",))

    def on_extend(self, request: Request, body: Args, lsn: int, ms: int) -> None:
        marked = set(ids_in(body.get("cancel_marked", ())))
        progress = progress_said(request.args)
        for job_id, token, code in self._verdicts(request, body):
            known = self._book.jobs.get(job_id)
            is_newest = request.sends == 1 and known is not None and lsn >= known.hi
            job = self._held(request, job_id, token, code, lsn, ms)
            if known is not None and progress is not None and code == "ok":
                known.progress = progress if job is not None and is_newest else UNKNOWN
                known.seen = None
            if job is not None:
                if request.sends == 1 and lsn >= job.hi:
                    self.see_mark(job, job_id in marked, lsn, str(request))
                job.lease_ms = request.args.get("lease_ms") or job.lease_ms
                job.deadline_ms = request.lo_ms + job.lease_ms
                job.is_graced = False
                job.hi = max(job.hi, lsn)

    # --- whether it holds the job -------------------------------------------------------------

    def _verdicts(self, request: Request, body: Args) -> Iterator[tuple[int, int, str]]:
        """Yield (job id, token, verdict) for each job that was named, in order."""
        codes = {first + i: code for first, count, code in body["results"] for i in range(count)}
        named = list(named_by(request.args))
        if list(codes) != [job_id for job_id, _ in named]:
            raise Violation("I14", f"{request} named {named}, and its verdicts are {body['results']}")
        for job_id, token in named:
            yield job_id, token, codes[job_id]

    def _held(self, request: Request, job_id: int, token: int, code: str, lsn: int, ms: int) -> Job | None:
        """Judge a verdict on a lease; return the job if it was current and the verdict is the newest word on it."""
        job = self._book.jobs.get(job_id)
        if code == "ok":
            return self._heard_as_holder(request, job_id, job, token, lsn, ms)
        if job is None:
            return None
        if code == "job_not_found":
            if request.sends == 1 or job.hi <= request.floor:
                self._reach.is_missing(job, lsn, ms, str(request))
        elif code == "lease_lost":
            self._may_be_lost(request, job, token, lsn, ms)
        else:
            raise Violation("I5", f"{request}: verdict {code!r}")
        return None

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
            self._loose.linger(request, job_id, token, lsn)  # of this lease, or of one before
            return None
        if not exact or lsn <= job.hi or "lease" in self._loose.verbs_on(job):
            return None
        if job.state == "done":
            raise Violation("I3", f"{request} at LSN {lsn}: token {token} was ok for {job}")
        raise Violation("I5", f"{request} at LSN {lsn}: token {token} was ok for {job}")

    def _note_word(self, request: Request, job: Job, ms: int) -> None:
        """Tell what is rare in a word of who holds a job."""
        if job.token >> 32 < self._sessions.epoch:
            self._hit("token of an earlier run accepted")
        if request.lo_ms == ms and not self._loose.named.get(job.id):
            if ms == job.deadline_ms - 1:
                self._hit("accepted in the last millisecond of a lease")
            elif ms >= job.deadline_ms:
                self._hit("heard after the deadline")

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
        if self._sessions.is_released(job, ms):
            self._hit("lease ended with the connections of its holder")
            return
        if job.hi > (lsn if request.sends == 1 else request.floor) or self._loose.named.get(job.id):
            return
        raise Violation(
            "I4", f"{request} at LSN {lsn}, {ms} ms was refused, and {job} is held until {job.deadline_ms} ms"
        )

    # --- whether its job is to end ------------------------------------------------------------

    def see_mark(self, job: Job, is_marked: bool, lsn: int, where: str) -> None:
        """A lease is shown, with the mark that its job is to end, or without it."""
        if is_marked:
            if not job.mark and "mark" not in self._loose.verbs_on(job):
                raise Violation("I15", f"{where} at LSN {lsn}: {job} is to end, and nobody wanted it to")
            job.mark = job.mark if job.mark > 0 else lsn
        elif 0 < job.mark <= lsn:
            raise Violation("I15", f"{where} at LSN {lsn}: {job} was to end, and nothing of it is left")

    def on_cancel_event(self, session: bytes, lsn: int, body: Args) -> None:
        """A client was told unasked that jobs which it holds are to end."""
        for token, ranges in body["items"]:
            for job_id in ids_in(ranges):
                holder = self._sessions.given.get((token, job_id))
                if holder is not None and holder[0] != session:
                    raise Violation(
                        "I16", f"{session.hex()[:4]} was told of job {job_id}, which {holder} holds"
                    )
                job = self._book.jobs.get(job_id)
                if job is None:
                    continue
                if (
                    job.lo < lsn
                    and job.hi <= lsn
                    and not job.mark
                    and "mark" not in self._loose.verbs_on(job)
                ):
                    raise Violation(
                        "I5", f"{job} is to end by an event at LSN {lsn}, and nobody wanted it to"
                    )
                self._hit("holder told by an event that its job is to end")

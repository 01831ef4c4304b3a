"""What keys stand for: an idempotency key for an answer, a dedupe key for a job that lives (I10).

Knows:         protocol.md "Keys": when a submit makes jobs, when it gets those that are there, what it makes of them, when
               it is refused.
Must not know: anything of jqd; how long an idempotency key is known (idempotency.py), what a change makes of a job
               (edits.py).
"""

from tests.sim.rules import idempotency
from tests.sim.rules.book import Book
from tests.sim.rules.edits import Edits
from tests.sim.rules.loose import Loose
from tests.sim.rules.model import FINISHED, LIVE, WAITING, Args, Job, Known, Request, Violation
from tests.sim.rules.reach import Reach
from tests.sim.rules.words import dedupe_of, edit_of, lo_of, payloads_of


class Keys:
    """Judges submits that have a key."""

    def __init__(self, known: Known, book: Book, loose: Loose, reach: Reach, edits: Edits) -> None:
        self._hit = known.hit
        self._book = book
        self._loose = loose
        self._reach = reach
        self._edits = edits

    def is_first(self, request: Request, fields: Args, lsn: int, ms: int) -> None:
        """A submit made jobs: neither of its keys can have stood for others."""
        if fields.get("idempotency_key") is not None:
            ikey = self._loose.ikey(fields)
            if wrong := ikey.judge_new(request.key, lsn, request.lo_ms, ms):
                raise Violation("I10", f"{request} at LSN {lsn} {wrong}")
            if any(use.is_known(request.lo_ms, ms) is False for use in ikey.uses):
                self._hit("idempotency key used again behind its time")
        if fields.get("dedupe_key") is None:
            return
        left = []
        for job in self._book.key_jobs.get(dedupe_of(fields), ()):
            if job.pool.fields.get("dedupe_ttl_ms") is None and job.state in (*FINISHED, "gone"):
                self._hit("dedupe key used again behind the end of its job")
                continue  # whatever becomes of it, it has no key
            left.append(job)
            if job.hi < lsn and self._has_key(job, request.lo_ms, ms) is True:
                raise Violation("I10", f"{request} at LSN {lsn} made a job beside {job}, which has its key")
        self._book.key_jobs[dedupe_of(fields)] = left

    def met(self, request: Request, fields: Args, first: int, count: int, lsn: int, ms: int) -> None:
        """A submit was answered with jobs that were there: one of its keys must have stood for them."""
        content = idempotency.content_of(fields, payloads_of(fields))
        if fields.get("idempotency_key") is not None:
            ikey = self._loose.ikey(fields)
            wrong = ikey.judge_existing(request.key, (first, count), content, lsn, request.lo_ms, ms)
            if not wrong:
                self._hit("submit answered by its idempotency key")
                if (
                    fields.get("dedupe_key") is not None
                ):  # or by the other one, which has then given this one a meaning
                    ikey.doubt_lsn = max(ikey.doubt_lsn, lsn)
                return
            if fields.get("dedupe_key") is None and request.sends == 1:
                raise Violation("I10", f"{request} at LSN {lsn} {wrong}")
            if ikey.must_conflict(content, lsn, request.lo_ms, ms) and request.sends == 1:
                raise Violation("I10", f"{request} at LSN {lsn} got job {first}; its key had other content")
            self.use(request, fields, (first, count), lsn, ms)
        elif fields.get("dedupe_key") is None:
            raise Violation("I10", f"{request} has no key, and was answered with job {first} as there before")
        mode = fields.get("dedupe", "existing")
        job = self._book.jobs.get(first)
        if mode == "reject":
            raise Violation("I10", f"{request} at LSN {lsn} was to be refused, and got job {first}")
        self._hit(f"dedupe key met: {mode}")
        if job is None or job.hi > lsn or request.sends > 1:
            if mode in ("replace", "debounce"):
                self._edits.linger(request, fields, first, lsn)
            return
        if dedupe_of(fields) != (job.queue, job.pool.shown["dedupe_key"]):
            raise Violation("I10", f"{request} at LSN {lsn} was answered with {job}, which has another key")
        if self._has_key(job, request.lo_ms, ms) is False:
            raise Violation("I10", f"{request} at LSN {lsn} was answered with {job}, which has lost the key")
        if mode == "existing":
            return
        reach = self._reach.of(job, ms)
        if reach.isdisjoint(WAITING):
            raise Violation("I10", f"{request} at LSN {lsn} changed {job}, which can be {sorted(reach)}")
        self._book.edit(job, edit_of(fields), lsn)
        state = self._edits.time_of(fields, ms) if mode == "debounce" else None
        self._edits.put_off(job, request, fields, state, reach, lsn, ms)

    def use(self, request: Request, fields: Args, answer: tuple[int, int], lsn: int, ms: int) -> None:
        """An idempotency key stands for jobs from here on."""
        content = idempotency.content_of(fields, payloads_of(fields))
        ttl_ms = fields.get("idempotency_ttl_ms") or idempotency.DAY_MS
        use = idempotency.Use(answer, content, request.lo_ms, ms, ttl_ms, lo_of(request, lsn), lsn)
        self._loose.ikey(fields).add(use)

    def _has_key(self, job: Job, lo_ms: int, ms: int) -> bool | None:
        """Tell whether a job has its dedupe key at some time in lo..ms, if it had it once; None: perhaps."""
        ttl_ms = job.pool.fields.get("dedupe_ttl_ms")
        if ttl_ms is not None:
            if lo_ms - job.born_hi_ms >= ttl_ms:
                return False
            if ms == lo_ms == job.pool.lo_ms + ttl_ms - 1 and job.born_hi_ms == job.pool.lo_ms:
                self._hit("dedupe key met in the last millisecond of its time")
            return True if ms - job.pool.lo_ms < ttl_ms else None
        reach = self._reach.of(job, ms)
        if reach.isdisjoint(LIVE):
            return False
        if job.pool.fields.get("dedupe_until") != "started":
            return True if reach <= LIVE else None
        if job.tokens:
            return False
        return None  # a lease of which nobody heard may have been taken back

    def on_conflict(self, request: Request, lsn: int, ms: int) -> None:
        """A submit was refused since its idempotency key stands for other content."""
        ikey = self._loose.ikey(request.args)
        content = idempotency.content_of(request.args, payloads_of(request.args))
        if wrong := ikey.judge_conflict(request.key, content, lsn, request.lo_ms, ms):
            raise Violation("I10", f"{request} at LSN {lsn} {wrong}")

    def on_duplicate(self, request: Request, fields: Args, job_id: int, lsn: int, ms: int) -> None:
        """A submit was refused since a job has its dedupe key."""
        mode = fields.get("dedupe", "existing")
        job = self._book.jobs.get(job_id)
        if mode == "existing":
            raise Violation("I10", f"{request} at LSN {lsn} was refused, and asked for what there is")
        if job is None or job.hi > lsn:
            return
        if self._has_key(job, request.lo_ms, ms) is False:
            raise Violation("I10", f"{request} at LSN {lsn} was refused: {job} has lost the key")
        if mode != "reject" and self._reach.of(job, ms) <= {*WAITING}:
            raise Violation("I10", f"{request} at LSN {lsn} was refused, and {job} could be changed")

"""Bulk actions: which jobs cancel, requeue and purge take, and what becomes of them.

Knows:         protocol.md "Bulk actions", "cancel", "requeue", "purge": a job is taken in the states that a verb says, and
               left in others; one that is held is marked, and ends with its lease.
Must not know: anything of jqd; what a mark does (holders.py).

An answer to a filter says how many jobs it took, not which ones: what it did is as loose as before.
"""

from tests.sim.rules.book import Book
from tests.sim.rules.loose import Loose
from tests.sim.rules.model import BROKEN_BY_LEAVING, LIVE, WAITING, Args, Job, Known, Request, Violation
from tests.sim.rules.reach import Reach
from tests.sim.rules.words import ids_in, lo_of, queue_swept


class Sweeps:
    """Judges what bulk actions were answered."""

    def __init__(self, known: Known, book: Book, loose: Loose, reach: Reach) -> None:
        self._hit = known.hit
        self._book = book
        self._loose = loose
        self._reach = reach

    def on_cancel(self, request: Request, body: Args, lsn: int, ms: int) -> None:
        accepted = (*WAITING, "leased") if request.args.get("running") else WAITING
        if not request.args.get("running") and body.get("marked"):
            raise Violation("I4", f"{request} at LSN {lsn} has marked {body['marked']} jobs")
        self._on_sweep(request, body, lsn, ms, accepted, "cancelled")

    def on_requeue(self, request: Request, body: Args, lsn: int, ms: int) -> None:
        self._on_sweep(request, body, lsn, ms, ("dead",), "ready")

    def on_purge(self, request: Request, body: Args, lsn: int, ms: int) -> None:
        self._on_sweep(request, body, lsn, ms, ("delayed", "ready", "dead"), "gone")

    def _on_sweep(
        self, request: Request, body: Args, lsn: int, ms: int, accepted: tuple[str, ...], state: str
    ) -> None:
        args = request.args
        if not args.get("ids"):
            if body["count"] and not args.get("dry_run"):
                queue = queue_swept(args)
                self._loose.swept += [(act, queue, lsn) for act in request.acts]
                if body.get("marked"):
                    self._hit("running jobs marked by a filter")
                    for job in self._book.jobs.values():  # of those that are known better since
                        if job.hi > lsn and queue in (None, job.queue) and job.state in (*LIVE, "dead"):
                            job.mark = job.mark or (-1 if job.state == "leased" else 0)
                            job.also |= {"cancelled"}
            return
        ids = list(ids_in(args["ids"]))
        codes = {first + i: code for first, count, code in body["results"] for i in range(count)}
        if list(codes) != ids or body["count"] != sum(code == "ok" for code in codes.values()):
            raise Violation("I14", f"{request} named {ids}, and its verdicts are {body}")
        for job_id in ids:
            job = self._book.jobs.get(job_id)
            code = codes[job_id]
            if job is None and code == "ok" and not args.get("dry_run"):
                self._loose.linger(request, job_id, 0, lsn)  # its submit has not been answered yet
            if code == "duplicate" and job is not None:
                if request.verb != "requeue" or job.pool.shown["dedupe_key"] is None:
                    raise Violation(
                        "I10", f"{request} at LSN {lsn}: {job} has no key that another could have"
                    )
                self._hit("dead job not requeued: its key has another")
                continue
            if "mark" in request.acts and code == "ok" and job is not None and not args.get("dry_run"):
                self._cancelled_running(request, job, body, lsn, ms)
                continue
            if job is None or job.hi > lsn:
                continue
            if code == "ok" and not args.get("dry_run") and job.hi == lsn and job.state == state:
                continue  # a reply of this very moment has shown what was done to it
            if request.sends > 1 and job.hi > request.floor:
                # Before or after it was seen? What cancel and purge do to a job is for good.
                if code == "ok" and not args.get("dry_run") and job.state != state:
                    if request.verb == "requeue":
                        self._loose.linger(request, job_id, 0, lsn)
                    else:
                        self._book.move(job, state, job.lo, lsn, request.lo_ms)
                        job.is_vague = True
                continue
            if code == "job_not_found":
                self._reach.is_missing(job, lsn, ms, str(request))
                continue
            reach = self._reach.of(job, ms)
            if code == "ok" and reach.isdisjoint(accepted):
                raise Violation(
                    BROKEN_BY_LEAVING[job.state],
                    f"{request} took {job} at LSN {lsn}, which can be {sorted(reach)}",
                )
            if code == "wrong_state" and reach <= set(accepted):
                raise Violation("I15", f"{request} left {job} at LSN {lsn}, which can be {sorted(reach)}")
            if code == "ok" and not args.get("dry_run"):
                self._book.move(job, state, lo_of(request, lsn), lsn, request.lo_ms)
                job.is_vague = True

    def _cancelled_running(self, request: Request, job: Job, body: Args, lsn: int, ms: int) -> None:
        """A job was cancelled if it waited, and marked if it was held."""
        if job.hi > lsn or request.sends > 1:
            self._loose.linger(request, job.id, 0, lsn)
            if job.state == "leased":
                job.mark = job.mark or -1
            if job.state in (*LIVE, "dead"):
                job.also |= {"cancelled"}
                job.is_vague = True
            job.seen = None
            return
        reach = self._reach.of(job, ms)
        if reach.isdisjoint(LIVE):
            raise Violation(
                BROKEN_BY_LEAVING[job.state],
                f"{request} took {job} at LSN {lsn}, which can be {sorted(reach)}",
            )
        was_held = "leased" in reach and body.get("marked", 0) > 0
        waited = not reach.isdisjoint(WAITING) and body.get("marked", 0) < body["count"]
        if not was_held and not waited:
            raise Violation("I4", f"{request} at LSN {lsn} was answered {body}; {job} can be {sorted(reach)}")
        if waited and not was_held:
            self._book.move(job, "cancelled", lsn, lsn, request.lo_ms)
            job.is_vague = True
        elif waited:
            self._loose.linger(request, job.id, 0, lsn)
            job.mark = -1 if job.state == "leased" else 0
            job.also |= {"cancelled", "leased"} - {job.state}
            job.is_vague = True
        else:
            if job.state != "leased":
                self._book.move(job, "leased", lsn, lsn, request.lo_ms)
                job.token = job.deadline_ms = 0
                job.is_vague = True
            job.mark = job.mark if job.mark > 0 else lsn
            job.hi = max(job.hi, lsn)
            self._hit("running job marked")

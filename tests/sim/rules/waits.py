"""Waits, and what a holder leaves to be read: results and progress.

Knows:         protocol.md "wait", "get", "extend", "submit" for `result_ttl_ms`: who waits hears of jobs at their end, or
               that its time is over (I19); a result is shown until its time is over and not from that ms on, progress
               until the next hand-out (I15).
Must not know: anything of jqd; who may say so (holders.py).
"""

from tests.sim.rules.book import Book
from tests.sim.rules.loose import Loose
from tests.sim.rules.model import (
    BROKEN_BY_LEAVING,
    ENDED,
    FINISHED,
    UNKNOWN,
    Args,
    Job,
    Known,
    Request,
    Violation,
    Where,
)
from tests.sim.rules.reach import Reach
from tests.sim.rules.sessions import Sessions
from tests.sim.rules.words import ids_in, progress_said


class Waits:
    """Judges what waits were answered, and what is shown of results and progress."""

    def __init__(self, known: Known, book: Book, sessions: Sessions, loose: Loose, reach: Reach) -> None:
        self._known = known
        self._hit = known.hit
        self._book = book
        self._sessions = sessions
        self._loose = loose
        self._reach = reach

    def on_wait(self, request: Request, body: Args, lsn: int, ms: int) -> None:
        args = request.args
        ids = list(ids_in(args["ids"]))
        gone = list(ids_in(body.get("gone", ())))
        told = [info["job_id"] for info in body["jobs"]] + gone
        count = len(ids) - body["pending"]
        is_whole = len(told) == count  # else there was no room for what has ended
        if len({*told} & {*ids}) != len(told) or len(told) > count or (body["jobs"] and not is_whole):
            raise Violation("I14", f"{request} for {ids} was answered {body}")
        is_met = not body["pending"] if args.get("all") else count > 0
        if not is_met and ms - request.lo_ms < args.get("wait_ms", 0) and not self._sessions.is_stopping:
            raise Violation("I19", f"{request} was answered {body} at {ms} ms, asked at {request.lo_ms} ms")
        for info in body["jobs"]:
            self._check_ended(request, info, lsn, ms)
        for job_id in gone:
            if job_id in self._book.jobs:
                self._reach.is_missing(self._book.jobs[job_id], lsn, ms, str(request))
        for job_id in {*ids} - {*told} if is_whole else ():
            job = self._book.jobs.get(job_id)
            if (
                job is not None
                and job.state in (*FINISHED, "gone")
                and job.hi <= request.floor
                and not job.also
            ):
                raise Violation("I19", f"{request} at LSN {lsn} was not told of {job}")

    def _check_ended(self, request: Request, info: Args, lsn: int, ms: int) -> None:
        """Who waits is told of a job: it must be at its end."""
        job, state = self._book.jobs.get(info["job_id"]), info["state"]
        if state not in ENDED:
            raise Violation("I19", f"{request} at LSN {lsn} was told of {info}")
        if job is None:
            return
        # What has ended may go later in the same turn.
        is_newest = lsn > job.hi or (lsn == job.hi and job.state != "gone")
        if is_newest and state not in (reach := self._reach.of(job, ms)):
            raise Violation(
                BROKEN_BY_LEAVING[job.state],
                f"{request} at LSN {lsn} was told that {job} is {state}; it can be {sorted(reach)}",
            )
        if state == "done":
            self.check_result(job, info, lsn, request.lo_ms, ms, str(request))

    def check_result(self, job: Job, info: Args, lsn: int, lo_ms: int, ms: int, where: object) -> None:
        """The result of a done job is shown until its time is over, and then never again; both by the engine clock.

        It was acked in since_ms..done_hi_ms, and looked at in lo_ms..ms.
        """
        ttl_ms = job.pool.fields.get("result_ttl_ms")
        result, is_dropped = info.get("result"), info.get("result_expired", False)
        if is_dropped and (not ttl_ms or result is not None or job.result == (None, "raw")):
            raise Violation(
                "I15", f"{where}: {job} says that its result is over: {info}, kept for {ttl_ms} ms"
            )
        if ttl_ms == 0 and result is not None:
            raise Violation("I15", f"{where}: {job} has a result of which none is kept: {info}")
        if job.state == "done" and job.result is not None and not is_dropped:
            shown = (result, info.get("result_encoding", "raw"))
            if shown != job.result:
                raise Violation("I15", f"{where} with result {shown}, acked with {job.result}")
        if ttl_ms is None or (result is None and not is_dropped):
            return
        is_exact = job.state == "done" and lo_ms == ms and job.since_ms == job.done_hi_ms
        if is_dropped:
            if (
                ms - job.since_ms < ttl_ms and job.state != "gone"
            ):  # since when it is gone says nothing of the ack
                raise Violation(
                    "I15",
                    f"{where}: the result of {job} is over at {ms} ms, acked at {job.since_ms} for {ttl_ms}",
                )
            if is_exact and ms - job.since_ms == ttl_ms:
                self._hit("result gone at the millisecond of its end")
            if not job.dropped_lsn and job.state == "done" and job.done_run < self._known.run:
                self._hit("result gone over the end of a run")
            job.dropped_lsn = job.dropped_lsn or lsn
            return
        if 0 < job.dropped_lsn < lsn:
            raise Violation("I15", f"{where}: the result of {job} is back: {info}")
        if job.state == "done" and lo_ms - job.done_hi_ms >= ttl_ms:
            raise Violation(
                "I15",
                f"{where}: the result of {job} is shown at {lo_ms} ms, acked at {job.done_hi_ms} for {ttl_ms}",
            )
        if is_exact and ms - job.since_ms == ttl_ms - 1:
            self._hit("result shown in its last millisecond")

    def check_progress(self, job: Job, info: Args, lsn: int, where: Where) -> None:
        """What a holder said of its progress is shown until the next hand-out, and nobody else's word."""
        shown = (info.get("progress_percent"), info.get("progress_text", ""))
        if shown == job.progress or job.progress is UNKNOWN or job.is_vague or info["attempt"] != job.attempt:
            return
        # Where memory is short a job that is tried again keeps nothing of its attempts.
        if "memory_soft_bytes" in self._known.limits or "lease" in self._loose.verbs_on(job):
            return
        for request, token in self._loose.named.get(job.id, ()):
            if (
                progress_said(request.args) == shown
                and request.verb == "extend"
                and request.floor < lsn
                and not 0 < request.lsn <= job.lo
                and (not job.token or token >= job.token)
            ):
                return
        raise Violation("I15", f"{where} with progress {shown}, its holder said {job.progress}")

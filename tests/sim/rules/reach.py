"""In which states a job can be, from what is known of it, the time, and the requests that are loose.

Knows:         protocol.md "Life cycle", "Expiry", "At most once": which moves there are, which of them time makes and
               which a verb; when a job may be gone (I1).
Must not know: anything of jqd; what a reply says (the verbs' files).
"""

from tests.sim.rules.book import Book
from tests.sim.rules.loose import Loose
from tests.sim.rules.model import FINISHED, HOUR_MS, WAITING, Job, Known, Violation
from tests.sim.rules.pools import Pools
from tests.sim.rules.queues import Queues
from tests.sim.rules.sessions import Sessions


class Reach:
    """What can have become of a job since it was seen."""

    def __init__(
        self, known: Known, pools: Pools, book: Book, sessions: Sessions, queues: Queues, loose: Loose
    ) -> None:
        self._hit = known.hit
        self._known = known
        self._pools = pools
        self._book = book
        self._sessions = sessions
        self._queues = queues
        self._loose = loose

    def of(self, job: Job, ms: int) -> set[str]:
        """Return the states in which a job can be at a time, from what is known of it and what is loose."""
        found = {job.state, *job.also}
        verbs = self._loose.verbs_on(job)
        leased = "lease" in verbs
        moved = "update" in verbs
        is_over = (
            job.state != "leased"
            or not job.token
            or ms >= job.deadline_ms
            or "extend" in verbs
            or (leased and not verbs.isdisjoint(("release", "fail")))
            or self._sessions.is_released(job, ms)
        )
        may_expire = self.may_expire(job, verbs)
        count = 0
        while len(found) != count:
            count = len(found)
            if "delayed" in found and (job.state != "delayed" or moved or self._is_due(job, ms)):
                found.add("ready")
            if "ready" in found and moved:
                found.add("delayed")
            if "ready" in found and leased:
                found.add("leased")
            if "leased" in found:
                ends: set[str] = set()
                if is_over:
                    ends |= {"dead"} if job.once and job.token else {"ready", "delayed", "dead"}
                if "release" in verbs:
                    ends |= {"ready", "delayed"}
                if "fail" in verbs:
                    ends |= {"dead"} if job.once else {"ready", "delayed", "dead"}
                if ends and job.mark > 0:
                    ends = {"cancelled"}
                elif ends and (job.mark or "mark" in verbs):
                    ends.add("cancelled")
                found |= ends
                if "ack" in verbs:
                    found |= {"done", "dead"}
            if "dead" in found and "requeue" in verbs:
                found.add("ready")
            if "cancel" in verbs and not found.isdisjoint(WAITING):
                found.add("cancelled")
            if may_expire and not found.isdisjoint(WAITING):
                found.add("expired")
            if "purge" in verbs and not found.isdisjoint(("delayed", "ready", "dead")):
                found.add("gone")
            if "gone" not in found and self._may_be_forgotten(job, found, ms):
                found.add("gone")
        return found

    def _is_due(self, job: Job, ms: int) -> bool:
        if job.due_ms:
            return ms >= job.due_ms
        return job.date is None or job.date.is_reached

    def may_expire(self, job: Job, verbs: set[str]) -> bool:
        """Tell whether a job's time to be started can be over without a start."""
        expiry = job.expiry or job.pool.expiry
        if expiry is None or not expiry.is_reached:
            return False
        # A lease that was loose may have been taken back, and a release gives the attempt back.
        return job.attempt == 0 or job.is_vague or not verbs.isdisjoint(("lease", "release"))

    def _may_be_forgotten(self, job: Job, states: set[str], ms: int) -> bool:
        """Tell whether retention can have ended a job that is in one of these states."""
        if "memory_soft_bytes" in self._known.limits and not states.isdisjoint((*FINISHED, "dead")):
            return True  # they have a share of memory that others use too
        shelf = self._queues.shelves.get(job.queue)
        if shelf is not None:
            kept_ms = [
                shelf.ever(name)
                for name, few in (("retention_ms", FINISHED), ("dead_retention_ms", ("dead",)))
                if not states.isdisjoint(few)
            ]
            if any(each is not None and ms - job.since_ms >= each for ever in kept_ms for each in ever):
                return True
        if not states.isdisjoint(FINISHED):
            if ms - job.since_ms >= HOUR_MS:
                return True
            if self._pools.queue_jobs[job.queue] > self._known.limits["FINISHED_COUNT_MAX"]:
                return True
            if "done" in states and self._loose.result_bytes > self._known.limits["RESULTS_BYTES_MAX"]:
                return True
        if "dead" in states:
            too_many = self._pools.queue_jobs[job.queue] > self._known.limits["DEAD_COUNT_MAX"]
            return too_many or ms - job.since_ms >= 720 * HOUR_MS
        return False

    def is_missing(self, job: Job, lsn: int, ms: int, where: str) -> None:
        """A job is not there: it must be one that may be gone."""
        if job.hi > lsn or job.state == "gone":
            return
        reach = self.of(job, ms)
        if "gone" not in reach:
            raise Violation("I1", f"{where} at LSN {lsn}: {job} is missing, and can be {sorted(reach)}")
        if "purge" not in self._loose.verbs_on(job):
            self._hit("job forgotten")
        self._book.move(job, "gone", lsn, lsn, ms)

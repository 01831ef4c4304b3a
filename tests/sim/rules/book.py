"""The jobs that are known by name, and how what is known of one changes.

Knows:         protocol.md "Job ids and ranges", "Order": of each job where it stands and what it is, by the newest word.
               Every job was submitted by somebody (I2).
Must not know: anything of jqd; whether a job may come to be so (reach.py and what judges by it).
"""

from bisect import bisect_left, insort

from tests.sim.rules.model import (
    ANY,
    EDITABLE,
    NONE,
    SHOWN_DEFAULTS,
    UNKNOWN,
    Args,
    Job,
    Known,
    Pool,
    Request,
    Violation,
)
from tests.sim.rules.pools import Pools, pool_key


class Book:
    """What is known of each job.

    jobs:           by id.
    ready:          by queue: surely ready, in order of handing out.
    key_jobs:       by queue and dedupe key: jobs that were given it.
    payloads:       by job id, or queue and dedupe key: what jobs may have been given. A list of everything shows none,
                    so requests of which nobody knows whether they were carried out stay until one is read.
    is_rolled_back: an older copy of the store was put back, and nobody has seen yet what is there.
    """

    def __init__(self, known: Known, pools: Pools) -> None:
        self._known = known
        self._hit = known.hit
        self._clocks = known.clocks
        self._pools = pools
        self.jobs: dict[int, Job] = {}
        self.ready: dict[str, list[tuple[tuple[int, int], Job]]] = {}
        self.key_jobs: dict[tuple[str, str], list[Job]] = {}
        self.payloads: dict[object, list[tuple[Request, bytes]]] = {}
        self.is_rolled_back = False

    def rolled_back(self) -> None:
        """An older copy of the store was put back: nobody knows which jobs are in it."""
        self.jobs.clear()
        self.ready.clear()
        self.key_jobs.clear()
        self.is_rolled_back = True

    def discover(self, info: Args, lsn: int) -> Job:
        """Enter a job that no reply to a submit has named yet."""
        if "state" in info:
            self._hit("unanswered submit found in a list")
        pool = self._pools.by_key.get(pool_key({**SHOWN_DEFAULTS, **info}))
        if pool is None:
            raise Violation("I2", f"nobody submitted job {info['job_id']}: {info}")
        job = self.enter(info["job_id"], pool, info.get("state", "ready"), lsn, lsn, pool.lo_ms)
        if self.is_rolled_back:  # it may have been changed by somebody before
            self.edit(job, {name: info.get(name, SHOWN_DEFAULTS[name]) for name in EDITABLE}, 0)
            job.payload = ANY
        job.attempt = info["attempt"] if "state" in info else info["attempt"] - 1
        job.errors, job.crashes = info.get("errors", 0), info.get("crashes", 0)
        job.progress = UNKNOWN
        job.done_hi_ms, job.done_run = self._clocks.ms, self._known.run
        return job

    def enter(self, job_id: int, pool: Pool, state: str, lo: int, hi: int, ms: int) -> Job:
        """Enter a job that is in a state at lo..hi, and was not before a time."""
        if len(pool.ids) >= pool.most:
            raise Violation(
                "I2", f"job {job_id} is one too many of those with {pool.shown}: {sorted(pool.ids)}"
            )
        pool.ids.add(job_id)
        job = self.jobs[job_id] = Job(job_id, pool, state, lo, hi, ms)
        if state == "ready":
            insort(self.ready.setdefault(job.queue, []), (job.rank, job), key=_rank_of)
        if state == "delayed":
            job.due_ms = pool.delay_ms and pool.lo_ms + pool.delay_ms
            job.due_wall_ms = pool.run_at_ms
            job.date = pool.date
        if pool.shown["dedupe_key"] is not None:
            self.key_jobs.setdefault((job.queue, pool.shown["dedupe_key"]), []).append(job)
            job.born_hi_ms = self._clocks.ms
        return job

    def move(self, job: Job, state: str, lo: int, hi: int, ms: int) -> None:
        """A job is known to be in a state at lo..hi, not before a time."""
        if state != job.state:
            if state == "dead":
                job.was_dead = True
            if job.state == "ready":
                lane = self.ready[job.queue]
                lane.pop(bisect_left(lane, job.rank, key=_rank_of))
            if state == "ready":
                insort(self.ready.setdefault(job.queue, []), (job.rank, job), key=_rank_of)
            job.state = state
            job.since_ms = ms
            job.facts = job.seen = None
            job.mark = 0
            if state == "done":
                job.done_hi_ms, job.done_run = self._clocks.ms, self._known.run
        job.also = NONE
        job.lo, job.hi = lo, max(hi, job.hi)

    def edit(self, job: Job, edit: Args, lsn: int) -> None:
        """A job is something else from here on."""
        if edit.get("payload") is not None:
            job.payload = edit["payload"]
            if job.id in self.payloads:
                self.payloads[job.id] = [
                    each for each in self.payloads[job.id] if each[0].is_loose or each[0].lsn > lsn
                ]
        said = {name: edit[name] for name in EDITABLE if edit.get(name) is not None}
        job.content = {**job.content, **said}  # metadata is never taken away, but it may become {}
        job.said_lsns = {**job.said_lsns, **dict.fromkeys(said, lsn)}
        job.content_lsn = max(job.content_lsn, lsn)
        job.right = []
        job.facts = job.seen = None
        job.was_edited = True
        rank = (-job.content["priority"], job.id)
        if rank != job.rank:
            if job.state == "ready":
                lane = self.ready[job.queue]
                lane.pop(bisect_left(lane, job.rank, key=_rank_of))
                insort(lane, (rank, job), key=_rank_of)
            job.rank = rank

    def expires_at(self, job: Job, at_ms: int) -> None:
        """The date of a job that said how long it may wait is known; the wall clock may have been there already."""
        job.expires_at_ms = at_ms
        job.expiry = self._clocks.watch(at_ms)
        job.expiry.is_reached = at_ms <= self._clocks.wall_max_ms


def _rank_of(entry: tuple[tuple[int, int], Job]) -> tuple[int, int]:
    return entry[0]

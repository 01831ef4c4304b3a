"""Submits: which jobs come of them, under which ids, and whether there was room.

Knows:         protocol.md "submit", "submit_many", "Job ids and ranges": ids are consecutive and rise (I14), all jobs of a
               request come or none, jobs have one submit (I2), `queue_full` is exact (I11).
Must not know: anything of jqd; what keys stand for (keys.py).
"""

from collections.abc import Iterable

from tests.sim.rules.book import Book
from tests.sim.rules.keys import Keys
from tests.sim.rules.model import LIVE, Args, Known, Request, Violation
from tests.sim.rules.pools import Pools
from tests.sim.rules.queues import Queues
from tests.sim.rules.reach import Reach
from tests.sim.rules.words import groups_of, payloads_of


class Submits:
    """Judges what submits were answered.

    full: why a submit was refused last, until one is taken.
    """

    def __init__(
        self, known: Known, pools: Pools, book: Book, queues: Queues, reach: Reach, keys: Keys
    ) -> None:
        self._hit = known.hit
        self._clocks = known.clocks
        self._pools = pools
        self._book = book
        self._queues = queues
        self._reach = reach
        self._keys = keys
        self.full = ""
        self._id_max = self._id_lsn = 0

    def rolled_back(self) -> None:
        """An older copy of the store was put back: ids may come again."""
        self._id_max = self._id_lsn = 0

    def on_submit(self, request: Request, body: Args, lsn: int, ms: int) -> None:
        if self.full:
            self._hit(f"job taken after {self.full}")
            self.full = ""
        job_id = body["job_id"]
        self._on_groups(request, [(request.args, job_id, 1, body.get("existing", False))], lsn, ms)

    def on_submit_many(self, request: Request, body: Args, lsn: int, ms: int) -> None:
        groups = request.args["groups"]
        for group, (_, count, _) in zip(groups, body["jobs"], strict=True):
            if count != len(group["payloads"]):
                raise Violation("I14", f"{request}: not all jobs were taken, or too many: {body['jobs']}")
        groups = [(group, *jobs) for group, jobs in zip(groups, body["jobs"], strict=True)]
        self._on_groups(request, groups, lsn, ms)

    def _on_groups(
        self, request: Request, groups: list[tuple[Args, int, int, bool]], lsn: int, ms: int
    ) -> None:
        """Jobs were taken, or those that were there are said to be enough: (fields, first id, count, existing)."""
        new = [(first, count) for _, first, count, existing in groups if not existing]
        if new:
            self._check_ids(request, new[0][0], sum(new[-1]) - 1, lsn)
        at = new[0][0] if new else 0
        added: dict[str, int] = {}
        for fields, first, count, existing in groups:
            payloads = payloads_of(fields)
            if existing:
                self._pools.of(fields, request.lo_ms).most -= count
                self._keys.met(request, fields, first, count, lsn, ms)
                continue
            if first != at:
                raise Violation("I14", f"{request}: ids are not consecutive: {groups}")
            at += count
            if request.sends == 1:
                self._keys.is_first(request, fields, lsn, ms)
            if fields.get("idempotency_key") is not None:
                self._keys.use(request, fields, (first, count), lsn, ms)
            name = fields.get("queue", "default")
            added[name] = added.get(name, 0) + count
            self._submitted(request, fields, range(first, first + count), payloads, lsn)
        if request.sends == 1:
            for name, count in added.items():
                self._check_room(request, name, count, lsn, ms)

    def _submitted(
        self, request: Request, fields: Args, ids: Iterable[int], payloads: list[bytes], lsn: int
    ) -> None:
        pool = self._pools.of(fields, request.lo_ms)
        delay_ms, run_at_ms = fields.get("delay_ms"), fields.get("run_at_ms")
        state = "delayed" if delay_ms or run_at_ms else "ready"
        lo = lsn if request.sends == 1 else request.floor
        for job_id, payload in zip(ids, payloads, strict=True):
            job = self._book.jobs.get(job_id)
            if job is None:
                job = self._book.enter(job_id, pool, state, lo, lsn, request.lo_ms)
                if delay_ms:
                    job.due_hi_ms = self._clocks.ms + delay_ms
                if self._is_instant(request) and fields.get("expires_ms"):
                    self._book.expires_at(job, self._clocks.wall_ms + fields["expires_ms"])
            elif job.pool is not pool:
                raise Violation("I2", f"{request} was answered with {job}, which is somebody else's")
            if not job.content_lsn:
                job.payload = payload

    def _is_instant(self, request: Request) -> bool:
        """Tell whether a request was sent once, and answered in the same ms by both clocks."""
        return (
            request.sends == 1
            and request.lo_ms == self._clocks.ms
            and request.wall_ms == self._clocks.wall_ms
        )

    def _check_ids(self, request: Request, first: int, last: int, lsn: int) -> None:
        if request.sends > 1:
            return
        if lsn > self._id_lsn:
            if first <= self._id_max:
                raise Violation("I14", f"{request} got id {first} at LSN {lsn}, after id {self._id_max}")
            self._id_lsn = lsn
        self._id_max = max(self._id_max, last)

    def _check_room(self, request: Request, queue: str, count: int, lsn: int, ms: int) -> None:
        """Jobs were taken: there must have been room for them."""
        shelf = self._queues.shelves.get(queue)
        if shelf is None:
            return
        limits = shelf.can_be("length_max", lsn, lsn)
        if None in limits:
            return
        new = range(self._id_max - count + 1, self._id_max + 1)
        mine = [job for job in self._book.jobs.values() if job.queue == queue and job.state in LIVE]
        if len(mine) <= max(limits):
            return
        before = [
            job
            for job in mine
            if job.hi < lsn and job.id not in new and not job.also and self._reach.of(job, ms) <= LIVE
        ]
        if len(before) + count > max(limits):
            raise Violation(
                "I11",
                f"{request} at LSN {lsn} was taken: {len(before)} jobs live, the limit is {max(limits)}",
            )

    def on_full(self, request: Request, lsn: int, body: Args) -> None:
        """Jobs were refused since their queue is full: it must have been."""
        length, limit = body["details"]["length"], body["details"]["length_max"]
        added: dict[str, int] = {}
        for fields in groups_of(request):
            name = fields.get("queue", "default")
            added[name] = added.get(name, 0) + len(payloads_of(fields))
        lo = lsn if request.sends == 1 else request.floor
        for name, count in added.items():
            if limit in self._queues.can_be(name, "length_max", lo, lsn) and length + count > limit:
                known = sum(job.queue == name for job in self._book.jobs.values())
                loose = self._pools.queue_jobs.get(name, 0)
                if length <= max(known, loose):
                    return
        raise Violation("I11", f"{request} at LSN {lsn} was refused: {body['details']}, it adds {added}")

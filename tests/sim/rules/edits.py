"""What a job is, and what it was changed to: by update, or by a further submit with its dedupe key.

Knows:         protocol.md "update", and "Keys" for replace and debounce: what of a job may change, when, and what becomes
               of its time. A job is shown and handed out as it was submitted, or as it was changed to (I15).
Must not know: anything of jqd; who has a key (keys.py).
"""

from tests.sim.rules.book import Book
from tests.sim.rules.loose import Loose
from tests.sim.rules.model import (
    ANY,
    BROKEN_BY_LEAVING,
    CONTENT,
    EDITABLE,
    HANDED_OUT,
    OF_QUEUE,
    SHOWN_DEFAULTS,
    WAITING,
    Args,
    Job,
    Known,
    Request,
    Violation,
)
from tests.sim.rules.queues import Queues
from tests.sim.rules.reach import Reach
from tests.sim.rules.words import edit_of, lo_of


class Edits:
    """Judges what is said and shown of what a job is."""

    def __init__(self, known: Known, book: Book, queues: Queues, loose: Loose, reach: Reach) -> None:
        self._hit = known.hit
        self._clocks = known.clocks
        self._book = book
        self._queues = queues
        self._loose = loose
        self._reach = reach

    def on_update(self, request: Request, body: Args, lsn: int, ms: int) -> None:
        args = request.args
        job = self._book.jobs.get(args["job_id"])
        state = body["state"]
        if body["job_id"] != args["job_id"] or state not in WAITING:
            raise Violation("I14", f"{request} was answered {body}")
        if job is None or job.hi > lsn or request.sends > 1:
            self.linger(request, args, args["job_id"], lsn)
            return
        reach = self._reach.of(job, ms)
        if reach.isdisjoint(WAITING):
            raise Violation(
                BROKEN_BY_LEAVING[job.state],
                f"{request} changed {job} at LSN {lsn}, which can be {sorted(reach)}",
            )
        if "update" in request.acts:
            delay_ms = args.get("delay_ms")
            if delay_ms is not None and state != ("delayed" if delay_ms else "ready"):
                raise Violation("I9", f"{request} made {job} {state}")
        elif state not in reach:
            raise Violation("I9", f"{request} left {job} {state}, which can be {sorted(reach)}")
        if job.state == "ready" and args.get("priority") is not None:
            self._hit("ready job given another priority")
        self._book.edit(job, edit_of(args, update=True), lsn)
        if "update" in request.acts:
            self.put_off(job, request, args, state, reach, lsn, ms)
        else:
            self.put_off(job, request, args, None, {state}, lsn, ms)

    def refused(self, request: Request, status: str, lsn: int, ms: int) -> None:
        """An update that was sent once, of a job that is known, was refused."""
        job = self._book.jobs[request.args["job_id"]]
        if status == "job_not_found":
            self._reach.is_missing(job, lsn, ms, str(request))
        elif status == "wrong_state" and job.hi <= lsn and self._reach.of(job, ms) <= {*WAITING}:
            raise Violation("I15", f"{request} left {job} at LSN {lsn}, which waits")

    def linger(self, request: Request, fields: Args, job_id: int, lsn: int) -> None:
        """A request has changed a job that is not known, or at a moment that is not."""
        self._loose.linger(request, job_id, 0, lsn)
        payload = edit_of(fields, update=request.verb == "update")["payload"]
        if payload is not None:
            self._book.payloads.setdefault(job_id, []).append((request, payload))
        job = self._book.jobs.get(job_id)
        if job is not None:
            job.facts = job.seen = None
            is_moved = "update" in request.acts or fields.get("dedupe") == "debounce"
            if is_moved and job.state in WAITING:
                job.also = frozenset(WAITING)
                job.due_ms = job.due_hi_ms = 0
                job.date = None

    def time_of(self, fields: Args, ms: int) -> str | None:
        """Return the state that a new time means for a waiting job; None: nothing is said of its time."""
        if fields.get("delay_ms") is not None:
            return "delayed" if fields["delay_ms"] else "ready"
        if fields.get("run_at_ms") is not None:
            return "delayed" if fields["run_at_ms"] > self._clocks.wall_ms else "ready"
        return None

    def put_off(
        self, job: Job, request: Request, fields: Args, state: str | None, reach: set[str], lsn: int, ms: int
    ) -> None:
        """A job that waits was changed at an LSN, and is in a state by what was said; None: in the one that it was in."""
        was = job.state
        if was not in WAITING or "lease" in self._loose.verbs_on(job):  # it may have been held meanwhile
            job.is_vague = True
        if state is None:
            may_be = reach & {*WAITING}
            if was not in may_be:
                job.due_ms = job.due_hi_ms = 0
                job.date = None
            state = was if was in may_be else min(may_be)
            self._book.move(job, state, lo_of(request, lsn), lsn, request.lo_ms)
            job.also = frozenset(may_be - {state})
            return
        self._book.move(job, state, lo_of(request, lsn), lsn, request.lo_ms)
        delay_ms = fields.get("delay_ms")
        job.due_ms = job.due_hi_ms = 0
        job.due_wall_ms, job.date = 0, None
        if state == "delayed" and delay_ms:
            job.due_ms, job.due_hi_ms = request.lo_ms + delay_ms, ms + delay_ms
        elif state == "delayed":
            job.due_wall_ms = fields["run_at_ms"]
            job.date = self._clocks.dates_by_ms.get(job.due_wall_ms) or self._clocks.watch(job.due_wall_ms)
        if was == "delayed" and state == "ready":
            self._hit("delayed job made ready by an update")
        job.facts = job.seen = None

    def check_content(self, job: Job, info: Args, lo: int, lsn: int) -> None:
        """A job is what was submitted, or what it was changed to since, as it stood at an LSN in lo..lsn."""
        if lo < job.content_lsn:
            return  # it was changed since, or perhaps
        content = tuple(map(info.get, CONTENT)) if "state" in info else tuple(map(info.get, HANDED_OUT))
        shelf = self._queues.shelves.get(job.queue)
        if shelf is not None and job.pool.version != shelf.version:
            job.pool.version = shelf.version
            job.pool.right.clear()
        edit: Args = {}  # what a loose request has made of it
        if content not in job.right or (job.right is not job.pool.right and shelf is not None):
            edit = self._compare_content(job, info, lsn)
            if shelf is None or lsn >= shelf.newest_lsn:
                job.right.append(content)
        payload = info.get("payload")
        if payload is not None and payload != job.payload:
            if job.payload is ANY or (job.payload is None and payload in job.pool.payloads):
                job.payload = payload
            elif any(
                said == payload and request.floor < lsn
                for place in (job.id, (job.queue, job.pool.shown["dedupe_key"]))
                for request, said in self._book.payloads.get(place, ())
            ):
                edit["payload"] = payload
            else:
                raise Violation("I15", f"{job} has payload {payload!r}, submitted with {job.payload!r}")
        if edit:
            self._book.edit(job, edit, lsn)
        if job.id in self._loose.named and self._loose.edits_on(job):
            job.facts = None  # they may have given it a payload, of which a list shows the size alone
        job.shown_lsn = max(job.shown_lsn, lsn)

    def _compare_content(self, job: Job, info: Args, lsn: int) -> Args:
        """Hold what is shown against what is known; return what only a loose request can have made of it."""
        edit: Args = {}
        for name in CONTENT if "state" in info else HANDED_OUT:
            shown = info.get(name, SHOWN_DEFAULTS.get(name))
            said = job.content[name]
            if shown == said:
                continue
            if name in OF_QUEUE and said is None:
                possible = self._queues.can_be(job.queue, name, lsn, lsn)
                if shown in [SHOWN_DEFAULTS[name] if each is None else each for each in possible]:
                    continue
            if name in EDITABLE and any(
                request.floor < lsn
                and each.get(name) == shown
                and not 0 < request.lsn <= job.said_lsns.get(name, 0)
                for request, each in self._loose.edits_on(job)
            ):
                edit[name] = shown
                continue
            raise Violation("I15", f"{job} has {name} {info.get(name)!r}, submitted with {said!r}")
        return edit

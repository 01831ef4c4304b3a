"""Reads: what is shown of jobs, one by one, in lists, and all of them at once.

Knows:         protocol.md "get", "list", "Filters", "The filter language": what was seen is shown again while nothing has
               happened (I1, I15), a filter means what it says, the counts of the queues are those of the jobs (I11);
               what a start and the end of all runs leave (I4, I19).
Must not know: anything of jqd; what follows of numbers, content and results (attempts.py, edits.py, waits.py).
"""

from collections.abc import Iterable
from typing import Final

from tests.sim.rules.attempts import Attempts
from tests.sim.rules.book import Book
from tests.sim.rules.edits import Edits
from tests.sim.rules.holders import Holders
from tests.sim.rules.loose import Loose
from tests.sim.rules.meanings import facts_of, meaning
from tests.sim.rules.model import BROKEN_BY_LEAVING, STATES, Args, Job, Known, Request, Violation, Where
from tests.sim.rules.queues import Queues
from tests.sim.rules.reach import Reach
from tests.sim.rules.waits import Waits

# What stays the same while a job stays in a state.
FACTS: Final = (
    *("payload_bytes", "errors", "crashes", "run_at_ms", "reason", "error", "attempts", "result"),
    "result_encoding",
)


class Looks:
    """Judges what is shown of jobs, and takes it over."""

    def __init__(
        self,
        known: Known,
        book: Book,
        queues: Queues,
        loose: Loose,
        reach: Reach,
        edits: Edits,
        attempts: Attempts,
        holders: Holders,
        waits: Waits,
    ) -> None:
        self._known = known
        self._hit = known.hit
        self._clocks = known.clocks
        self._book = book
        self._queues = queues
        self._loose = loose
        self._reach = reach
        self._edits = edits
        self._attempts = attempts
        self._holders = holders
        self._waits = waits

    def on_get(self, request: Request, body: Args, lsn: int, ms: int) -> None:
        self._see(body, lsn, request.lo_ms, ms)

    def on_list(self, request: Request, body: Args, lsn: int, ms: int) -> None:
        wanted = request.args.get("filter") or {}
        begin, end = request.args.get("cursor", 0), body["cursor"]
        listed = set()
        for info in body["jobs"]:
            if wanted.get("state") not in (None, info["state"]) or wanted.get("queue") not in (
                None,
                info["queue"],
            ):
                raise Violation("I11", f"{request} asked for {wanted} and got {info}")
            listed.add(info["job_id"])
            self._see(info, lsn, request.lo_ms, ms)
        where = wanted.get("where")
        if where is not None:
            self._check_where(request, where, body["jobs"], lsn)
        if wanted.get("state") is not None:
            return
        for job in self._book.jobs.values():
            if job.id < begin or (end is not None and job.id >= end) or job.id in listed:
                continue
            if where is not None and (
                job.seen is None
                or meaning(where)(facts_of(job.seen)) is not True
                or self._loose.edits_on(job)
                or self._reach.of(job, ms) != {job.state}
            ):
                continue
            if wanted.get("queue") in (None, job.queue) and job.state != "gone" and job.hi <= lsn:
                if where is not None and "gone" not in self._reach.of(job, ms):
                    raise Violation("I11", f"{request} at LSN {lsn} for {where!r} does not have {job.seen}")
                self._reach.is_missing(job, lsn, ms, str(request))

    def _check_where(self, request: Request, where: str, jobs: list[Args], lsn: int) -> None:
        for info in jobs:
            if meaning(where)(facts_of(info)) is False:
                raise Violation("I11", f"{request} at LSN {lsn} asked for {where!r} and got {info}")
        self._hit("list by a filter's text" if jobs else "nothing found by a filter's text")

    # --- one job ------------------------------------------------------------------------------

    def _see(self, info: Args, lsn: int, lo_ms: int, ms: int) -> None:
        """A job is shown as it stands at an LSN."""
        job = self._book.jobs.get(info["job_id"])
        if job is None:
            job = self._book.discover(info, lsn)
            self._edits.check_content(job, info, lsn, lsn)  # somebody may have changed it already
            self._note(job, info, lsn, lo_ms)
            return
        shelf = self._queues.shelves.get(job.queue) if self._queues.shelves else None
        same = info is job.seen or info == job.seen
        known = shelf is None or job.pool.version == shelf.version
        if same and known and not job.is_vague and not job.also:
            # In the same state as before: all of this was right.
            if lsn >= job.hi:
                job.lo = job.hi = lsn
            return
        self._edits.check_content(job, info, lsn, lsn)
        if lsn < job.hi:
            return
        state = info["state"]
        where = Where(job, info, lsn, ms)
        if state != job.state:
            reach = self._reach.of(job, ms)
            if state not in reach:
                raise Violation(BROKEN_BY_LEAVING[job.state], f"{where}; it can be {sorted(reach)}")
            if state == "expired":
                self._hit("job expired")
        elif state == "delayed":
            self._attempts.check_due(job, info, lo_ms, ms, where)
        elif state == "leased" and info["attempt"] == job.attempt:
            self._holders.see_mark(job, info.get("cancel_marked", False), lsn, str(where))
        self._attempts.check_numbers(job, info, where)
        self._check_facts(job, info, where)
        self._waits.check_progress(job, info, lsn, where)
        if state == "done":
            self._waits.check_result(job, info, lsn, lo_ms, ms, where)
        self._note(job, info, lsn, lo_ms)

    def _check_facts(self, job: Job, info: Args, where: Where) -> None:
        """What was shown before is shown again, while nothing has happened to the job."""
        if job.created not in (None, info["created_wall_ms"]):
            raise Violation("I15", f"{where}: created at {info['created_wall_ms']}, once at {job.created}")
        if info["state"] != job.state or info["attempt"] != job.attempt:
            return
        if (
            job.error is not None
            and job.state in ("delayed", "ready", "dead")
            and info.get("error", "") != job.error
            # Where memory is short a job that is tried again keeps no history.
            and not (
                "memory_soft_bytes" in self._known.limits and job.state != "dead" and not info.get("error")
            )
        ):
            raise Violation("I15", f"{where} with error {info.get('error')!r}, failed with {job.error!r}")
        if job.facts is not None and job.changed == info["changed_wall_ms"]:
            facts = _facts_shown(job, info)
            if facts != job.facts and not self._loose.edits_on(job):
                raise Violation("I15", f"{where}: {facts}, once {job.facts}")

    def _note(self, job: Job, info: Args, lsn: int, lo_ms: int) -> None:
        """Take over what is shown of a job."""
        state, attempt = info["state"], info["attempt"]
        if state == "dead":
            self._attempts.check_reason(job, info)
        verbs = self._loose.verbs_on(job) if state == "leased" else ()
        was_held = job.state == "leased" and attempt == job.attempt and "release" not in verbs
        if state != job.state or attempt != job.attempt:
            job.error = job.result = None
            job.due_hi_ms = 0
        self._book.move(job, state, lsn, lsn, job.since_ms)  # when it came there nobody said
        job.mark = lsn if info.get("cancel_marked") else 0
        if info.get("expires_at_ms") is not None and job.expires_at_ms is None:
            self._book.expires_at(job, info["expires_at_ms"])
        job.created, job.changed = info["created_wall_ms"], info["changed_wall_ms"]
        job.attempt, job.errors, job.crashes = attempt, info.get("errors", 0), info.get("crashes", 0)
        job.is_vague = False
        job.facts = _facts_shown(job, info)
        job.progress = info.get("progress_percent"), info.get("progress_text", "")
        has_result = state == "done" and info.get("result") is not None
        if has_result and job.result is None:
            job.result = info["result"], info.get("result_encoding", "raw")
        if info.get("result_expired"):
            job.dropped_lsn = job.dropped_lsn or lsn
        if state == "leased":
            if not was_held:
                job.token = 0
                job.is_graced = False
            if not was_held or "extend" in verbs:
                job.lease_ms = 1_000  # or more
            job.deadline_ms = lo_ms + info["lease_ms_left"]
        elif state != "delayed":
            is_timed = has_result and job.pool.fields.get("result_ttl_ms") is not None
            job.seen = None if is_timed else info
        else:
            left_ms, date_ms = info.get("due_ms_left"), info.get("run_at_ms") or 0
            job.due_ms = lo_ms + left_ms if left_ms is not None else 0
            if date_ms != job.due_wall_ms or not date_ms or job.date is None:
                job.date = (
                    (self._clocks.dates_by_ms.get(date_ms) or self._clocks.watch(date_ms))
                    if date_ms
                    else None
                )
            job.due_wall_ms = date_ms

    # --- everything at once -------------------------------------------------------------------

    def see_everything(
        self,
        jobs: list[Args],
        queues: list[Args],
        settings: Iterable[Args],
        lsn: int,
        *,
        final: bool,
        fresh: bool,
    ) -> None:
        """All is read at one moment; final, fresh: as in `Oracle.check_listing`."""
        engine_ms = self._clocks.ms
        if lsn < self._known.seen:
            raise Violation("I15", f"everything is read at LSN {lsn}, and LSN {self._known.seen} was known")
        self._known.seen = lsn
        if self._queues.shelves:
            self._queues.see_all(settings, lsn)
        counts: dict[tuple[str, str], int] = {}
        listed: set[int] = set()
        for info in jobs:
            listed.add(info["job_id"])
            place = (info["queue"], info["state"])
            counts[place] = counts.get(place, 0) + 1
            if fresh and info["state"] == "leased":
                self._check_grace(info)
            self._see(info, lsn, engine_ms, engine_ms)
            if fresh and info["state"] == "leased":
                self._note_held(info)
            elif fresh:
                self._book.jobs[info["job_id"]].is_graced = False
            if final:
                self._must_have_ended(info)
        for job in self._book.jobs.values():
            if job.id not in listed and job.state != "gone":
                self._reach.is_missing(job, lsn, engine_ms, "a list of everything")
        shown = {
            (queue["queue"], state): count
            for queue in queues
            for state, count in queue.items()
            if state in STATES and count
        }
        if shown != counts:
            raise Violation("I11", f"the queues say {shown}, the jobs are {counts}")
        self._loose.clear_up(lsn)
        self._book.is_rolled_back = False

    def _check_grace(self, info: Args) -> None:
        """A lease that a start of the daemon found is worth a while from then on."""
        job = self._book.jobs.get(info["job_id"])
        if job is None or job.state != "leased" or not job.token or self._loose.named.get(job.id):
            return
        if info["attempt"] == job.attempt and info["lease_ms_left"] < min(job.lease_ms, 30_000):
            raise Violation(
                "I4", f"{job} has {info['lease_ms_left']} ms left after a start, of {job.lease_ms}"
            )

    def _note_held(self, info: Args) -> None:
        """A start has found a job in somebody's hands."""
        job = self._book.jobs[info["job_id"]]
        job.is_graced = True
        if job.once:
            self._hit("at-most-once job lives through a crash")

    def _must_have_ended(self, info: Args) -> None:
        state = info["state"]
        if state in ("ready", "leased"):
            raise Violation("I19", f"at the end job {info['job_id']} is {state}")
        expires_at_ms = info.get("expires_at_ms")
        is_waiting = state == "delayed" and not info["attempt"]
        if is_waiting and expires_at_ms is not None and expires_at_ms <= self._clocks.wall_ms:
            raise Violation("I19", f"at the end job {info['job_id']} is delayed, and should have expired")
        if state == "delayed":
            left_ms, date_ms = info.get("due_ms_left"), info.get("run_at_ms")
            if left_ms == 0 or (
                left_ms is None and date_ms is not None and date_ms + 1_000 <= self._clocks.wall_ms
            ):
                raise Violation("I19", f"at the end job {info['job_id']} is delayed, and its time has come")


def _facts_shown(job: Job, info: Args) -> tuple[object, ...]:
    """Return what stays the same while a job stays in a state: of a result with a time of its own waits.py knows."""
    facts = tuple(map(info.get, FACTS))
    return facts if job.pool.fields.get("result_ttl_ms") is None else facts[:-2]

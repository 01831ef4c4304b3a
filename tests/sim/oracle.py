"""What clients may see: a second mind that knows the rules of protocol.md and nothing of how jqd keeps them.

Knows:         what was asked and what was answered, when, and the invariants of the table below.
Must not know: anything of jqd; what happens inside the daemon.

It is told of each request and each reply, never of what the daemon did. What it is sure of about a job is one state
at one LSN (`Job`), from the newest reply that says something about it. A request that was sent and not yet answered,
or never will be, is *loose*: it may have been carried out at any moment since, or not at all. A reply is wrong if
no sequence of permitted moves (time that passed, loose requests) leads from what was known to what it says.

Where a reply lies in the log: its LSN says up to where it has seen it. A request that was sent once was carried out
exactly there; of one that was sent again the first copy may have been, so its place is anywhere from what its client
knew when it was first sent (`floor`) to that LSN. So it is with time: somewhere between sent and answered.

| id  | here |
| --- | --- |
| I1  | a job whose submit was answered is shown until something was asked, or so much time passed, that ends it |
| I2  | every job was submitted by somebody; by a request sent twice, once |
| I3  | a job that was acked never comes back, and is acked once |
| I4  | a token has one owner; tokens of a job rise; nobody gets a job whose lease lives, and its holder is heard |
| I5  | a token that is not the job's current one is refused |
| I6  | an at-most-once job is not handed out again unless it was released or requeued |
| I7  | a lease takes what stands first, and does not come back empty while something is ready; weights are kept |
| I8  | attempts, errors and crashes are counted, also over a crash, and bound the deliveries |
| I9  | no job is handed out before its time, from its expiry on, or while its queue is paused; retries wait as their policy says |
| I10 | a request of a session that comes twice is answered twice and carried out once; a key has one answer, or one live job, in its window and not beyond |
| I11 | the counts of the queues are those of the jobs that are listed; a filter means what it says; `queue_full` is exact |
| I14 | an LSN that somebody has seen is never undercut; ids rise |
| I15 | nothing that was seen before a crash is undone after it: cancel marks, settings, pauses and progress too; a result
        is shown until its time is over, and not from that ms on |
| I18 | a dead job has used up what its reason says, and one that has used it up is dead |
| I19 | at the end nothing is left that could go on; who waits hears of jobs that are at their end, or that its time is over |

A verb has its rules in five places: `_loosen` and `_settle` (what it may do while nobody has its answer; `acts` names it
for `_reach`), `_on_VERB` (what its answer says), `_on_error` (why it may be refused) and `has_changed`. What is known of
queues, idempotency keys, filters, retry policies and weights has files of its own.

Sources: protocol.md; reliability.md 4.4.
"""

from collections.abc import Callable, Iterable
from typing import Any, Final

from tests.sim.meanings import facts_of, meaning
from tests.sim.rules.attempts import Attempts
from tests.sim.rules.book import Book
from tests.sim.rules.edits import Edits
from tests.sim.rules.holders import Holders
from tests.sim.rules.keys import Keys
from tests.sim.rules.leases import Leases
from tests.sim.rules.loose import Loose
from tests.sim.rules.model import (
    BROKEN_BY_LEAVING,
    ENDED,
    FINISHED,
    STATES,
    UNKNOWN,
    Args,
    Job,
    Known,
    Request,
    Violation,
    Where,
)
from tests.sim.rules.pools import Pools
from tests.sim.rules.queues import Queues
from tests.sim.rules.reach import Reach
from tests.sim.rules.sessions import Sessions
from tests.sim.rules.submits import Submits
from tests.sim.rules.sweeps import Sweeps
from tests.sim.rules.words import (
    has_changed,
    ids_in,
    progress_said,
)

__all__ = ["Oracle", "Violation"]

# Verbs whose answers say nothing of jobs or queues that could be wrong.
SILENT: Final = frozenset({"ping", "stats", "snapshot"})
# What stays the same while a job stays in a state.
FACTS: Final = (
    *("payload_bytes", "errors", "crashes", "run_at_ms", "reason", "error", "attempts", "result"),
    "result_encoding",
)
# An error that says nothing about whether an earlier copy of the request was carried out.
UNKNOWN_OUTCOME: Final = "position_lost"


class Oracle:
    """See the file's card.

    Args:
        marks: what is told of rare situations.
    """

    def __init__(self, marks: Any) -> None:
        self._known = Known(marks)
        self._hit = self._known.hit
        self._clocks = self._known.clocks
        self._pools = Pools(self._known)
        self._book = Book(self._known, self._pools)
        self._sessions = Sessions(self._known, self._book)
        self._queues = Queues()
        self._loose = Loose(self._known, self._pools, self._book, self._queues)
        self._reach = Reach(self._known, self._pools, self._book, self._sessions, self._queues, self._loose)
        self._edits = Edits(self._known, self._book, self._queues, self._loose, self._reach)
        self._keys = Keys(self._known, self._book, self._loose, self._reach, self._edits)
        self._submits = Submits(self._known, self._pools, self._book, self._queues, self._reach, self._keys)
        self._attempts = Attempts(self._known, self._queues, self._loose)
        self._leases = Leases(
            self._known,
            self._pools,
            self._book,
            self._sessions,
            self._queues,
            self._loose,
            self._reach,
            self._edits,
            self._attempts,
        )
        self._holders = Holders(
            self._known, self._book, self._sessions, self._loose, self._reach, self._attempts
        )
        self._sweeps = Sweeps(self._known, self._book, self._loose, self._reach)
        # What the answer to each verb says. Arguments: the request, the answer, its LSN, its time by the engine clock.
        self._rules: dict[str, Callable[[Request, Any, int, int], None]] = {
            "hello": self._sessions.on_hello,
            "submit": self._submits.on_submit,
            "submit_many": self._submits.on_submit_many,
            "update": self._edits.on_update,
            "lease": self._leases.on_lease,
            "ack": self._holders.on_ack,
            "fail": self._holders.on_fail,
            "release": self._holders.on_release,
            "extend": self._holders.on_extend,
            "cancel": self._sweeps.on_cancel,
            "requeue": self._sweeps.on_requeue,
            "purge": self._sweeps.on_purge,
            "get": self._on_get,
            "list": self._on_list,
            "wait": self._on_wait,
            "set_queue": self._queues.on_set_queue,
            "pause": self._queues.on_set_queue,
            "resume": self._queues.on_set_queue,
            "queue": self._queues.on_queue,
            "queues": self._queues.on_queues,
        }

    def rules(self, **limits: int) -> None:
        """Take over limits that a run has made smaller, by their names in protocol.md."""
        self._known.limits.update(limits)

    @property
    def knows_settings(self) -> bool:
        """Whether anything was asked about what holds in queues."""
        return bool(self._queues.shelves)

    # --- what the world tells -----------------------------------------------------------------

    def sent(
        self, session: bytes | None, request_id: int, verb: str, args: Args, engine_ms: int, wall_ms: int
    ) -> None:
        """A client sends a request, for the first time or again."""
        self.clocks(engine_ms, wall_ms)
        gaps = self._sessions.gaps(session, engine_ms)
        key = (session, request_id)
        request = self._loose.open.get(key)
        if verb == "hello" and session is not None:
            self._sessions.greets(session, request_id, args)
        if request is None:
            request = self._loose.open[key] = Request(
                key, verb, args, self._known.seen, engine_ms, self._known.run
            )
            request.wall_ms = wall_ms
            known = self._loose.closed.get(key)
            if known is not None:
                request.sends = 2
                request.again = known
            if known is None or not has_changed(request, known[1]):
                self._loose.loosen(request)
        else:
            self._hit("request sent again")
            request.sends += 1
            request.run = self._known.run
            if engine_ms < request.lo_ms:  # a crash has set the engine clock back
                request.lo_ms = engine_ms
                self._pools.set_back(request)
            if session is None or gaps > request.gaps:
                self._loose.double(request)
        request.gaps = gaps

    def answered(
        self,
        session: bytes | None,
        request_id: int,
        status: str,
        lsn: int,
        body: Any,
        engine_ms: int,
        wall_ms: int,
    ) -> None:
        """A reply reached its client whole."""
        self.clocks(engine_ms, wall_ms)
        key = (session, request_id)
        request = self._loose.open.pop(key, None)
        if request is None:
            return
        # The daemon has heard it some time after it was sent, and the reply may have been under way for long.
        self._sessions.hear(
            session, body["engine_ms"] if status == "ok" and request.verb == "hello" else request.lo_ms
        )
        if lsn < request.floor:
            raise Violation("I14", f"{request} was answered at LSN {lsn}, and LSN {request.floor} was known")
        self._known.seen = max(self._known.seen, lsn)
        if status != "ok":
            self._on_error(request, status, lsn, body, engine_ms)
        else:
            if request.run_of_first != self._known.run:
                self._hit("request answered in a later run than it was sent in")
            if request.again is not None and has_changed(request, request.again[1]):
                self._same_answer(request, body)
                return
            self._loose.settle(request)
            if request.verb not in SILENT:
                self._rules[request.verb](request, body, lsn, engine_ms)
            changed = has_changed(request, body)
            if changed:
                self._sessions.clock_floor_ms = max(self._sessions.clock_floor_ms, request.lo_ms)
                if request.sends > 1:
                    self._hit("answer to a request sent again came from one of its tries")
                elif lsn <= request.floor:
                    raise Violation(
                        "I14", f"{request} changed something at LSN {lsn}, which was known before"
                    )
            elif request.sends > 1:
                self._loose.loosen(request)  # nothing was remembered: another copy may still be carried out
                self._loose.given_up.append(request)
            self._loose.closed[key] = (status, body)
        self._leases.hear(request, status)

    def unknown(self, session: bytes | None, request_id: int) -> None:
        """A client has given up a request: what became of it only later reads can tell."""
        request = self._loose.open.pop((session, request_id), None)
        if request is not None:
            self._hit("outcome unknown for ever")
            self._loose.given_up.append(request)
            self._leases.drop_suspicions(request.key)

    def lost(self, session: bytes, engine_ms: int) -> None:
        """A client has no connection any more, or has said that it will send nothing over the one that it has."""
        self._sessions.lost(session, engine_ms)

    def event(self, session: bytes, name: str, lsn: int, body: Args) -> None:
        """A client was told something unasked."""
        self._known.seen = max(self._known.seen, lsn)
        if name == "cancel":
            self._holders.on_cancel_event(session, lsn, body)

    def stops(self) -> None:
        """The daemon is told to stop."""
        self._sessions.is_stopping = True

    def crashed(self) -> None:
        """The daemon's run has ended, in whatever way."""
        self._leases.forget()
        self._sessions.crashed()
        if any(job.mark > 0 and job.state == "leased" for job in self._book.jobs.values()):
            self._hit("marked job held over the end of a run")
        if any(
            True in shelf.can_be("paused", self._known.seen, self._known.seen)
            for shelf in self._queues.shelves.values()
        ):
            self._hit("queue paused over the end of a run")

    def started(self, welcome: Args, engine_ms: int, wall_ms: int) -> None:
        """A client was welcomed by a run; may be told of each."""
        self.clocks(engine_ms, wall_ms)
        self._sessions.started(welcome)

    def rolled_back(self) -> None:
        """An older copy of the store was put back: jobs and LSNs went back, tokens must not."""
        self._book.jobs.clear()
        self._book.ready.clear()
        self._leases.forget()
        self._book.is_rolled_back = True
        self._book.key_jobs.clear()
        self._queues.rolled_back()
        for pool in self._pools.by_key.values():
            pool.ids.clear()
            pool.lo_ms = 0
        self._submits.rolled_back()
        self._known.seen = 0
        self._loose.rolled_back()
        self._sessions.rolled_back()

    def check_listing(
        self,
        jobs: list[Args],
        queues: list[Args],
        lsn: int,
        final: bool,
        *,
        engine_ms: int,
        wall_ms: int,
        fresh: bool = False,
        settings: Iterable[Args] = (),
    ) -> None:
        """Hold against what is known all that a client could read at one moment, with nothing under way in the daemon.

        Args:
            lsn: that replies can have told of: a start of the daemon is not known before it is durable.
            final: nothing goes wrong any more, and everything that can end has ended.
            fresh: the run has just begun.
            settings: of all queues, as `queue` shows them; not asked for before anybody has set something.
        """
        self.clocks(engine_ms, wall_ms)
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

    def finish(self) -> None:
        """The run is over."""
        self._leases.finish()

    def clocks(self, engine_ms: int, wall_ms: int) -> None:
        self._clocks.ms = engine_ms
        self.tick(wall_ms)

    def tick(self, wall_ms: int) -> None:
        """Note what the wall clock says; to be told before and after each jump."""
        if wall_ms < self._clocks.wall_ms:
            self._pools.expire_earlier((*self._loose.open.values(), *self._loose.given_up), wall_ms)
        self._clocks.tick(wall_ms)

    # --- requests that may have been carried out ----------------------------------------------

    # --- what may have become of a job --------------------------------------------------------

    # --- jobs come to be known ----------------------------------------------------------------

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

    # --- replies: submit ----------------------------------------------------------------------

    # --- keys ---------------------------------------------------------------------------------

    # --- replies: update ----------------------------------------------------------------------

    # --- replies: queues ----------------------------------------------------------------------

    # --- replies: lease -----------------------------------------------------------------------

    # --- replies: the holder of a lease -------------------------------------------------------

    # --- replies: sweeps ----------------------------------------------------------------------

    # --- replies: reads -----------------------------------------------------------------------

    def _on_get(self, request: Request, body: Args, lsn: int, ms: int) -> None:
        self._see(body, lsn, request.lo_ms, ms)

    def _on_list(self, request: Request, body: Args, lsn: int, ms: int) -> None:
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

    def _on_wait(self, request: Request, body: Args, lsn: int, ms: int) -> None:
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
            self._check_result(job, info, lsn, request.lo_ms, ms, str(request))

    def _check_result(self, job: Job, info: Args, lsn: int, lo_ms: int, ms: int, where: object) -> None:
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
            if ms - job.since_ms < ttl_ms:
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

    def _check_progress(self, job: Job, info: Args, lsn: int, where: "Where") -> None:
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
        self._check_progress(job, info, lsn, where)
        if state == "done":
            self._check_result(job, info, lsn, lo_ms, ms, where)
        self._note(job, info, lsn, lo_ms)

    def _check_facts(self, job: Job, info: Args, where: "Where") -> None:
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

    # --- replies: errors ----------------------------------------------------------------------

    def _on_error(self, request: Request, status: str, lsn: int, body: Any, ms: int) -> None:
        """A request was refused, which changes nothing."""
        if status == "internal":
            raise Violation("CODE", f"{request}: {body}")
        about = body.get("details") or {}
        if status == "overloaded" and "memory_bytes" not in about:
            if "KEYS_MAX" not in self._known.limits:
                raise Violation("I17", f"{request}: refused with {body}")
            self._hit("refused: too many keys")
        elif status != "draining":  # whether a request meets the end of a run is luck
            self._hit(f"refused: {status}")
        if status in ("storage_full", "busy", "queue_full") or "memory_bytes" in about:
            self._submits.full = status
        if "memory_bytes" in about:
            limit = self._known.limits.get("memory_soft_bytes")
            if limit is None or about["memory_bytes"] + about["added_bytes"] <= limit:
                raise Violation("I17", f"{request}: refused with {about}, limit {limit}")
        if status == UNKNOWN_OUTCOME:
            self._loose.given_up.append(request)
            self._leases.drop_suspicions(request.key)
            return
        if request.again is not None and has_changed(request, request.again[1]):
            raise Violation("I10", f"{request} was answered {request.again}, and then {status}")
        if request.sends > 1:
            self._loose.given_up.append(request)  # another copy may be carried out yet
            self._leases.drop_suspicions(request.key)
        else:
            self._loose.settle(request)
            self._pools.take_back(request)
            self._check_refusal(request, status, lsn, body, ms)
        self._loose.closed[request.key] = (status, body)
        if request.verb == "get" and status == "job_not_found":
            job = self._book.jobs.get(request.args["job_id"])
            if job is not None:
                self._reach.is_missing(job, lsn, ms, str(request))
        if status == "queue_not_found":
            name = request.args.get("queue") or request.args["filter"]["queue"]
            for job in self._book.jobs.values():
                if job.queue == name and job.state != "gone" and job.hi <= lsn:
                    self._reach.is_missing(job, lsn, ms, str(request))
            if name in self._queues.shelves:
                self._queues.not_there(name, self._queues.shelves[name], lsn, str(request))

    def _check_refusal(self, request: Request, status: str, lsn: int, body: Any, ms: int) -> None:
        """A request that was sent once was refused: was there a reason?"""
        if status == "queue_full":
            self._submits.on_full(request, lsn, body)
        elif status == "idempotency_conflict" and request.verb == "submit":
            self._keys.on_conflict(request, lsn, ms)
        elif status == "duplicate" and request.verb == "submit":
            self._keys.on_duplicate(request, request.args, body["details"]["job_id"], lsn, ms)
        elif request.verb == "update" and request.args["job_id"] in self._book.jobs:
            self._edits.refused(request, status, lsn, ms)

    def _same_answer(self, request: Request, body: Any) -> None:
        """A request that has changed something was sent once more after its answer: that is what it gets again.

        Of a lease it is what is still held, without at-most-once jobs.
        """
        assert request.again is not None
        before: Any = request.again[1]
        if request.verb != "lease":
            if body != before:
                raise Violation("I10", f"{request} was answered {before}, and then {body}")
            return
        known = {info["job_id"] for info in before["jobs"]}
        for info in body["jobs"]:
            job = self._book.jobs.get(info["job_id"])
            if job is not None and job.once:
                raise Violation("I6", f"{job} was sent twice to {request}")
            if body["token"] != before["token"] or info["job_id"] not in known:
                raise Violation("I10", f"{request} was answered {before}, and then {body}")


def _facts_shown(job: Job, info: Args) -> tuple[object, ...]:
    """Return what stays the same while a job stays in a state: of a result with a time of its own _check_result knows."""
    facts = tuple(map(info.get, FACTS))
    return facts if job.pool.fields.get("result_ttl_ms") is None else facts[:-2]

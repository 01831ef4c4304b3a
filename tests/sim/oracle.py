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

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from tests.sim import backoffs
from tests.sim.draws import orders
from tests.sim.meanings import facts_of, meaning
from tests.sim.rules.book import Book
from tests.sim.rules.edits import Edits
from tests.sim.rules.keys import Keys
from tests.sim.rules.loose import Loose
from tests.sim.rules.model import (
    BROKEN_BY_LEAVING,
    ENDED,
    FINISHED,
    LIMITS,
    LIVE,
    NO_PROGRESS,
    SHOWN_DEFAULTS,
    STATES,
    UNKNOWN,
    WAITING,
    Args,
    Job,
    Key,
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
from tests.sim.rules.words import (
    has_changed,
    ids_in,
    lo_of,
    named_by,
    progress_said,
    queue_swept,
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


class Suspicion:
    """A lease passed a job over, and only requests that are still to be answered can say why."""

    __slots__ = ("job", "lsn", "text", "waiting")

    def __init__(self, job: Job, lsn: int, text: str, waiting: set[Key]) -> None:
        self.job, self.lsn, self.text, self.waiting = job, lsn, text, waiting


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
        # What the answer to each verb says. Arguments: the request, the answer, its LSN, its time by the engine clock.
        self._rules: dict[str, Callable[[Request, Any, int, int], None]] = {
            "hello": self._sessions.on_hello,
            "submit": self._submits.on_submit,
            "submit_many": self._submits.on_submit_many,
            "update": self._edits.on_update,
            "lease": self._on_lease,
            "ack": self._on_ack,
            "fail": self._on_fail,
            "release": self._on_release,
            "extend": self._on_extend,
            "cancel": self._on_cancel,
            "requeue": self._on_requeue,
            "purge": self._on_purge,
            "get": self._on_get,
            "list": self._on_list,
            "wait": self._on_wait,
            "set_queue": self._queues.on_set_queue,
            "pause": self._queues.on_set_queue,
            "resume": self._queues.on_set_queue,
            "queue": self._queues.on_queue,
            "queues": self._queues.on_queues,
        }
        self._suspicions: list[Suspicion] = []

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
        if self._suspicions:
            if request.sends > 1 or (
                status == "ok" and "filter" in request.args
            ):  # it does not say of which jobs
                self._drop_suspicions(key)
            else:
                self._resolve(key)

    def unknown(self, session: bytes | None, request_id: int) -> None:
        """A client has given up a request: what became of it only later reads can tell."""
        request = self._loose.open.pop((session, request_id), None)
        if request is not None:
            self._hit("outcome unknown for ever")
            self._loose.given_up.append(request)
            self._drop_suspicions(request.key)

    def lost(self, session: bytes, engine_ms: int) -> None:
        """A client has no connection any more, or has said that it will send nothing over the one that it has."""
        self._sessions.lost(session, engine_ms)

    def event(self, session: bytes, name: str, lsn: int, body: Args) -> None:
        """A client was told something unasked."""
        self._known.seen = max(self._known.seen, lsn)
        if name != "cancel":
            return
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

    def stops(self) -> None:
        """The daemon is told to stop."""
        self._sessions.is_stopping = True

    def crashed(self) -> None:
        """The daemon's run has ended, in whatever way."""
        self._suspicions.clear()
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
        self._suspicions.clear()
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
        if self._suspicions and not self._loose.open:
            one = self._suspicions[0]
            raise Violation("I7", one.text)

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

    def _bounds(self, job: Job, setting: str, lsn: int | None = None) -> tuple[int, int]:
        """Return the least and the greatest that max_retries or max_crashes can be for a job, now or ever (None)."""
        own = job.pool.shown[setting]
        if own is not None:
            return own, own
        shelf = self._queues.shelves.get(job.queue)
        usual: int = SHOWN_DEFAULTS[setting]  # type: ignore[assignment]
        if shelf is None:
            return usual, usual
        known = shelf.ever(setting) if lsn is None else shelf.can_be(setting, lsn, lsn)
        values = [usual if each is None else each for each in known]
        return min(values), max(values)

    # --- replies: lease -----------------------------------------------------------------------

    def _on_lease(self, request: Request, body: Args, lsn: int, ms: int) -> None:
        jobs, token = body["jobs"], body["token"]
        if bool(jobs) != bool(token):
            raise Violation("I4", f"{request} got token {token} for {len(jobs)} jobs")
        if jobs:
            self._sessions.check_token(request, token, lsn)
        if request.args.get("wait_ms"):
            self._hit("parked lease served" if jobs else "parked lease gave up")
        first_ms = request.lo_ms
        if self._queues.shelves and jobs:
            self._check_paused(request, jobs, lsn)
        for info in jobs:
            self._deliver(request, info, token, body["lease_ms_left"], lsn, first_ms, ms)
            if info["attempt"] == 1 and request.sends == 1:
                self._check_expiry(request, info, body["wall_ms"])
        if request.sends == 1:
            self._check_order(request, jobs, lsn)
            if jobs and request.args.get("weights"):
                self._check_weights(request, jobs, token)
        else:  # it tells only of what is still held: the first try may have been handed more
            self._hit("retried lease told what is still held" if jobs else "retried lease found nothing left")
            self._loose.swept += [("lease", name, lsn) for name in request.args.get("queues", ("default",))]

    def _check_paused(self, request: Request, jobs: list[Args], lsn: int) -> None:
        """Nothing was handed out of a queue that was paused all the time in which the lease can have been served."""
        lo = lsn if request.sends == 1 and not request.args.get("wait_ms") else request.floor
        for name in {info["queue"] for info in jobs}:
            if all(self._queues.can_be(name, "paused", lo, lsn)):
                raise Violation("I9", f"{request} at LSN {lsn} got jobs of {name}, which is paused")

    def _check_expiry(self, request: Request, info: Args, wall_ms: int) -> None:
        """A job that was never started is not handed out from its expiry on, by the clock that the reply shows."""
        at_ms = self._book.jobs[info["job_id"]].expires_at_ms
        if at_ms is None:
            return
        if at_ms <= wall_ms:
            raise Violation(
                "I9", f"{request} at {wall_ms} got job {info['job_id']}, which expired at {at_ms}"
            )
        if at_ms == wall_ms + 1:
            self._hit("job handed out in the last millisecond before its expiry")

    def _check_weights(self, request: Request, jobs: list[Args], token: int) -> None:
        """The queues come in an order that is drawn by the grant's number, for some set of queues that had jobs."""
        args = request.args
        got = list(dict.fromkeys(info["queue"] for info in jobs))
        queues = dict(reversed(list(zip(args["queues"], args["weights"], strict=True))))
        named = [(name, queues[name]) for name in dict.fromkeys(args["queues"])]
        for order in orders(named, got, token & 0xFFFFFFFF):
            if order[: len(got)] == got:
                if got[0] != args["queues"][0]:
                    self._hit("lease with weights: another queue came first than the first one named")
                return
        raise Violation("I7", f"{request} got jobs of {got}, which grant {token & 0xFFFFFFFF} does not draw")

    def _deliver(
        self, request: Request, info: Args, token: int, left_ms: int, lsn: int, lo_ms: int, ms: int
    ) -> None:
        job_id = info["job_id"]
        job = self._book.jobs.get(job_id)
        if job is None:
            job = self._book.discover(info, lsn - 1)  # as it stood before
        lo = lsn if request.sends == 1 and not request.args.get("wait_ms") else request.floor
        self._edits.check_content(job, info, lo, lsn)
        self._check_rising(job, token, lsn)
        if (token, job_id) in self._sessions.given:
            raise Violation("I6" if job.once else "I4", f"{job} was sent twice under token {token}")
        self._sessions.given[token, job_id] = request.key
        # A purge that was sent twice tells only between which LSNs a job went.
        may_be_newer = job.lo < lsn and token > job.token and job.state != "gone"
        if lsn <= job.hi and not may_be_newer:
            # A newer reply has told of the job already: this one can only add the name of what it saw.
            if job.state == "leased" and not job.token and job.attempt == info["attempt"]:
                job.token, job.lease_ms = token, left_ms
            return
        mark = job.mark if lo < job.mark or lo < lsn else 0  # of this lease: it was heard of first
        if mark and not job.token and info["attempt"] == job.attempt:
            job.token, job.lease_ms = token, left_ms  # what was shown as held is this
            return
        if mark:
            job.mark = 0
        self._check_delivery(job, info, token, lsn, ms)
        self._note_delivery(job, info, ms)
        self._book.move(job, "leased", lo, lsn, lo_ms)
        job.mark = mark
        job.attempt, job.errors, job.crashes = info["attempt"], info.get("errors", 0), info.get("crashes", 0)
        job.is_vague = job.is_graced = False
        job.token, job.lease_ms, job.deadline_ms = token, left_ms, lo_ms + left_ms
        if job.progress not in (NO_PROGRESS, UNKNOWN):
            self._hit("progress cleared by a hand-out")
        job.progress = NO_PROGRESS
        job.error = job.facts = job.seen = None
        job.due_ms = job.due_wall_ms = job.due_hi_ms = 0
        job.date = None

    def _check_rising(self, job: Job, token: int, lsn: int) -> None:
        for other, other_lsn in job.tokens:
            if other == token:
                return
            if (other_lsn < lsn) != (other < token):
                raise Violation("I4", f"{job}: token {token} at LSN {lsn}, token {other} at LSN {other_lsn}")
        job.tokens.append((token, lsn))

    def _check_delivery(self, job: Job, info: Args, token: int, lsn: int, ms: int) -> None:
        """A job is handed out at an LSN behind all that is known of it: may it be?"""
        where = f"{job} was handed out at LSN {lsn}, {ms} ms, under token {token}"
        reach = self._reach.of(job, ms)
        if "ready" not in reach:
            invariant = "I6" if job.once and job.state in ("leased", "dead") else BROKEN_BY_LEAVING[job.state]
            raise Violation(invariant, f"{where}; it can be {sorted(reach)}")
        attempt, errors, crashes = info["attempt"], info.get("errors", 0), info.get("crashes", 0)
        shown = job.pool.shown
        if errors > self._bounds(job, "max_retries")[1] or crashes > self._bounds(job, "max_crashes")[1]:
            raise Violation("I8", f"{where} with {errors} errors and {crashes} crashes: {shown}")
        if job.is_vague:
            return
        verbs = self._loose.verbs_on(job)
        is_watched = "lease" not in verbs and (job.state != "leased" or job.token > 0)
        fewest = job.attempt + 1
        if job.state == "leased" and (not job.token or "release" in verbs):
            fewest -= 1
        if attempt < fewest or (is_watched and attempt > job.attempt + 1):
            raise Violation("I8", f"{where} as attempt {attempt}")
        if "requeue" in verbs:
            return
        where += f" with {errors} errors and {crashes} crashes"
        self._check_growth(job, errors, crashes, verbs, is_watched, where)

    def _note_delivery(self, job: Job, info: Args, ms: int) -> None:
        """Tell what is rare in a delivery that may be."""
        if job.state == "delayed":
            if job.due_ms == ms:
                self._hit("job handed out at the millisecond of its time")
            if job.due_wall_ms > self._clocks.wall_ms:
                self._hit("dated job handed out though the wall clock is behind its date")
        elif job.state == "leased" and job.deadline_ms == ms:
            self._hit("job handed out in the millisecond in which a lease ran out")
        if job.state == "leased" and job.is_graced and info.get("crashes", 0) == job.crashes:
            self._hit("lease ended by a restart counted as nothing")
        if job.tokens[:-1] and info["attempt"] == job.attempt + 1 and job.was_released:
            self._hit("attempt given back and counted again")
        if job.was_dead:
            self._hit("dead job came back")
        if job.was_edited:
            self._hit("job handed out as it was changed to")
        job.was_dead = job.was_released = job.was_edited = False

    def _check_order(self, request: Request, jobs: list[Args], lsn: int) -> None:
        """What was handed out stands in order, and nothing that stands before it was passed over."""
        args = request.args
        names = list(dict.fromkeys(args.get("queues", ("default",))))
        if args.get("weights") is not None:  # drawn: first those that there were jobs of
            got = list(dict.fromkeys(info["queue"] for info in jobs))
            names = got + [name for name in names if name not in got]
        at, worst = 0, None
        for info in jobs:
            job = self._book.jobs[info["job_id"]]
            if job.queue not in names[at:]:
                raise Violation("I7", f"{request} got {job} out of the order of its queues {names}")
            if job.queue != names[at]:
                at, worst = names.index(job.queue), None
            rank = (-info.get("priority", 0), job.id)  # as it was then: it may have been changed since
            if worst is not None and rank < worst:
                raise Violation("I7", f"{request} got {job} behind one that comes after it")
            worst = rank
        is_full = len(jobs) >= args.get("count", 1)
        # A job that asks for another lease time than the first one ends the reply, even one that nobody knows is ready.
        odd = self._pools.odd_leases
        may_be_cut = bool(jobs) and args.get("lease_ms") is None and not odd.isdisjoint(names)
        if self._known.limits["EXPIRIES_PER_TICK"] < LIMITS[
            "EXPIRIES_PER_TICK"
        ] and not self._pools.expiring.isdisjoint(names):
            return  # so does one that has expired and was not ended yet
        # Parked, it may have been served before its reply's LSN.
        known = request.floor if args.get("wait_ms") else lsn - bool(jobs)
        for number, name in enumerate(names[: at + 1] if is_full else names):
            if self._queues.shelves and any(self._queues.can_be(name, "paused", min(known, lsn), lsn)):
                continue
            for rank, job in self._book.ready.get(name, ()):
                if number == at and worst is not None and rank > worst and is_full:
                    break
                if job.attempt == 0 and self._reach.may_expire(job, set()):
                    continue
                if job.also or job.content_lsn > known:
                    continue
                passed = worst is not None and (number < at or (number == at and rank < worst))
                if job.hi <= known and (passed or not may_be_cut):
                    self._suspect(request, job, lsn)

    def _suspect(self, request: Request, job: Job, lsn: int) -> None:
        """A lease passed a job over that was ready as far as is known: somebody else must have taken it before."""
        who = list(self._loose.leases.get(job.queue, {}).values())
        who += [each for each, _ in self._loose.named.get(job.id, ()) if each.verb in ("cancel", "purge")]
        who += [each for each in self._loose.sweeps.values() if each.verb != "requeue"]
        if self._loose.edits_on(job):
            return  # it may have had another place, or another time
        if any(
            verb != "requeue" and at > job.lo and queue in (None, job.queue)
            for verb, queue, at in self._loose.swept
        ):
            return
        if any(self._loose.open.get(each.key) is not each for each in who):
            return  # one of those that nobody will ever hear of
        text = f"{request} passed over {job} at LSN {lsn}"
        if not who:
            raise Violation("I7", text)
        self._suspicions.append(Suspicion(job, lsn, text, {each.key for each in who}))

    def _resolve(self, key: Key) -> None:
        """A request was answered: it explains a suspicion, or does not."""
        left = []
        for one in self._suspicions:
            if one.job.state != "ready" or one.job.hi > one.lsn:
                continue
            one.waiting.discard(key)
            if not one.waiting:
                raise Violation("I7", one.text)
            left.append(one)
        self._suspicions = left

    def _drop_suspicions(self, key: Key) -> None:
        self._suspicions = [one for one in self._suspicions if key not in one.waiting]

    # --- replies: the holder of a lease -------------------------------------------------------

    def _on_ack(self, request: Request, body: Args, lsn: int, ms: int) -> None:
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

    def _on_fail(self, request: Request, body: Args, lsn: int, ms: int) -> None:
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
            least, most = self._bounds(job, "max_retries", lsn if request.sends == 1 else None)
            if args.get("dead") or job.errors > most:
                self._book.move(job, "dead", lo, lsn, request.lo_ms)
            elif delay_ms is not None:
                self._wait(job, delay_ms, delay_ms, request, lsn, ms)
            else:
                self._wait(job, *self._backoff(job, args, job.errors, lo, lsn), request, lsn, ms)
            if not args.get("dead") and least < job.errors <= most:  # as it stood with the limit then
                job.also = frozenset(("dead",))
            if may_be_marked:
                job.also |= {"cancelled"}

    def _backoff(self, job: Job, args: Args, failures: int, lo: int, hi: int) -> tuple[int, int]:
        """Return the shortest and the longest delay behind a failure, whichever policy held."""
        own = args.get("retry") or job.pool.shown["retry"]
        known = [own] if own is not None else self._queues.can_be(job.queue, "retry", lo, hi)
        windows = [backoffs.window_ms(policy, failures) for policy in known]
        return min(low for low, _ in windows), max(high for _, high in windows)

    def _end_marked(self, job: Job, request: Request, lsn: int) -> None:
        """A marked job was given back: that is its end."""
        self._hit(f"marked job ended by its holder: {request.verb}")
        self._book.move(job, "cancelled", lo_of(request, lsn), lsn, request.lo_ms)

    def _on_release(self, request: Request, body: Args, lsn: int, ms: int) -> None:
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

    def _wait(self, job: Job, least_ms: int, most_ms: int, request: Request, lsn: int, ms: int) -> None:
        """A job goes back to wait, for so long."""
        state = "delayed" if most_ms else "ready"
        self._book.move(job, state, lo_of(request, lsn), lsn, request.lo_ms)
        job.due_ms = request.lo_ms + least_ms if most_ms else 0
        job.due_hi_ms = ms + most_ms if most_ms else 0
        job.due_wall_ms, job.date = 0, None
        if most_ms and not least_ms:
            job.also = frozenset(("ready",))

    def _on_extend(self, request: Request, body: Args, lsn: int, ms: int) -> None:
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
                    self._see_mark(job, job_id in marked, lsn, str(request))
                job.lease_ms = request.args.get("lease_ms") or job.lease_ms
                job.deadline_ms = request.lo_ms + job.lease_ms
                job.is_graced = False
                job.hi = max(job.hi, lsn)

    def _see_mark(self, job: Job, is_marked: bool, lsn: int, where: str) -> None:
        """A lease is shown, with the mark that its job is to end, or without it."""
        if is_marked:
            if not job.mark and "mark" not in self._loose.verbs_on(job):
                raise Violation("I15", f"{where} at LSN {lsn}: {job} is to end, and nobody wanted it to")
            job.mark = job.mark if job.mark > 0 else lsn
        elif 0 < job.mark <= lsn:
            raise Violation("I15", f"{where} at LSN {lsn}: {job} was to end, and nothing of it is left")

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

    def _note_word(self, request: Request, job: Job, ms: int) -> None:
        """Tell what is rare in a word of who holds a job."""
        if job.token >> 32 < self._sessions.epoch:
            self._hit("token of an earlier run accepted")
        if request.lo_ms == ms and not self._loose.named.get(job.id):
            if ms == job.deadline_ms - 1:
                self._hit("accepted in the last millisecond of a lease")
            elif ms >= job.deadline_ms:
                self._hit("heard after the deadline")

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

    # --- replies: sweeps ----------------------------------------------------------------------

    def _on_cancel(self, request: Request, body: Args, lsn: int, ms: int) -> None:
        accepted = (*WAITING, "leased") if request.args.get("running") else WAITING
        if not request.args.get("running") and body.get("marked"):
            raise Violation("I4", f"{request} at LSN {lsn} has marked {body['marked']} jobs")
        self._on_sweep(request, body, lsn, ms, accepted, "cancelled")

    def _on_requeue(self, request: Request, body: Args, lsn: int, ms: int) -> None:
        self._on_sweep(request, body, lsn, ms, ("dead",), "ready")

    def _on_purge(self, request: Request, body: Args, lsn: int, ms: int) -> None:
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
            self._check_due(job, info, lo_ms, ms, where)
        elif state == "leased" and info["attempt"] == job.attempt:
            self._see_mark(job, info.get("cancel_marked", False), lsn, str(where))
        self._check_numbers(job, info, where)
        self._check_facts(job, info, where)
        self._check_progress(job, info, lsn, where)
        if state == "done":
            self._check_result(job, info, lsn, lo_ms, ms, where)
        self._note(job, info, lsn, lo_ms)

    def _check_due(self, job: Job, info: Args, lo_ms: int, ms: int, where: "Where") -> None:
        """A job waits for as long as it was said to: not shorter, nor longer."""
        left_ms = info.get("due_ms_left")
        if left_ms is None or not job.due_hi_ms or info["attempt"] != job.attempt or job.also:
            return
        if not left_ms:
            return  # it is due, and has not been looked at yet
        is_early, is_late = ms + left_ms < job.due_ms, lo_ms + left_ms > job.due_hi_ms
        if (is_early or is_late) and not self._loose.verbs_on(job):
            raise Violation(
                "I9", f"{where}: due in {left_ms} ms, which is not in {job.due_ms}..{job.due_hi_ms}"
            )

    def _check_numbers(self, job: Job, info: Args, where: "Where") -> None:
        """Attempts, errors and crashes only grow, and no faster than jobs are handed out."""
        state, attempt = info["state"], info["attempt"]
        errors, crashes = info.get("errors", 0), info.get("crashes", 0)
        if state in ("delayed", "ready", "leased") and (
            errors > self._bounds(job, "max_retries")[1] or crashes > self._bounds(job, "max_crashes")[1]
        ):
            raise Violation("I18", f"{where}; the limits are {job.pool.shown}")
        if state == job.state and (attempt, errors, crashes) == (job.attempt, job.errors, job.crashes):
            return
        if job.is_vague:
            return
        verbs = self._loose.verbs_on(job)
        is_watched = "lease" not in verbs
        fewest = job.attempt
        if job.state == "leased" and (not job.token or "release" in verbs):
            fewest -= 1
        if attempt < fewest or (is_watched and attempt > job.attempt):
            raise Violation("I8", str(where))
        if "requeue" in verbs:
            return
        self._check_growth(job, errors, crashes, verbs, is_watched, where)

    def _check_growth(
        self, job: Job, errors: int, crashes: int, verbs: set[str], is_watched: bool, where: object
    ) -> None:
        """Only the end of a lease makes one more of either, and what a restart has ended makes none."""
        grown, crashed = errors - job.errors, crashes - job.crashes
        most = 1 if job.state == "leased" else 0
        if grown < 0 or crashed < 0 or (is_watched and grown + crashed > most):
            raise Violation("I8", f"{where}, after {job.errors} errors and {job.crashes} crashes")
        if crashed and is_watched and job.is_graced and job.state == "leased" and "extend" not in verbs:
            raise Violation("I8", f"{where}, after {job.crashes} crashes; its lease ran out after a restart")

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
            self._check_reason(job, info)
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

    def _check_reason(self, job: Job, info: Args) -> None:
        """A job is dead because of what its reason says (I18)."""
        shown, reason = job.pool.shown, info.get("reason")
        fits = {
            "retries": info.get("errors", 0) > self._bounds(job, "max_retries")[0],
            "crashes": info.get("crashes", 0) > self._bounds(job, "max_crashes")[0],
            "abandoned": job.once,
            "refused": job.id in self._loose.refused,
            "killed": job.id in self._loose.killed,
        }
        if not fits.get(reason, False):
            raise Violation("I18", f"{job} is dead because of {reason!r}: {info}, {shown}")
        self._hit(f"dead: {reason}")

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
            self._drop_suspicions(request.key)
            return
        if request.again is not None and has_changed(request, request.again[1]):
            raise Violation("I10", f"{request} was answered {request.again}, and then {status}")
        if request.sends > 1:
            self._loose.given_up.append(request)  # another copy may be carried out yet
            self._drop_suspicions(request.key)
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

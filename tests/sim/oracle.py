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

The rules are in rules/, by subject; each file there asks only those that stand above it here:

| file | subject | stands on |
| --- | --- | --- |
| clocks | time, dates | |
| model, words | what things are known as, and what requests say of them | |
| pools, book | what was submitted, which jobs are known and how one changes | backoffs |
| sessions | runs of the daemon, sessions, tokens | |
| queues | settings, pauses | shelves, backoffs |
| loose | requests that may have been carried out | meanings, idempotency |
| reach | in which states a job can be | |
| edits | update; what a job is | |
| keys | idempotency keys, dedupe keys | idempotency |
| submits | submits, ids, room in a queue | |
| attempts | attempts, errors, crashes, retries | backoffs |
| leases | what is handed out, and in which order | draws |
| holders | ack, fail, release, extend, marks | |
| sweeps | cancel, requeue, purge | |
| waits | waits, results, progress | |
| looks | get, list, a list of everything | meanings |
| refusals | errors | |

A verb has its rules in five places: `Loose.loosen` and `Loose.settle` (what it may do while nobody has its answer;
`model.acts` names it for `Reach.of`), `on_VERB` of its subject (what its answer says; `Oracle` has the table),
`Refusals.on_error` (why it may be refused) and `words.has_changed`.

Sources: protocol.md; reliability.md 4.4.
"""

from collections.abc import Callable, Iterable
from typing import Any, Final

from tests.sim.rules.attempts import Attempts
from tests.sim.rules.book import Book
from tests.sim.rules.edits import Edits
from tests.sim.rules.holders import Holders
from tests.sim.rules.keys import Keys
from tests.sim.rules.leases import Leases
from tests.sim.rules.looks import Looks
from tests.sim.rules.loose import Loose
from tests.sim.rules.model import Args, Known, Request, Violation
from tests.sim.rules.pools import Pools
from tests.sim.rules.queues import Queues
from tests.sim.rules.reach import Reach
from tests.sim.rules.refusals import Refusals
from tests.sim.rules.sessions import Sessions
from tests.sim.rules.submits import Submits
from tests.sim.rules.sweeps import Sweeps
from tests.sim.rules.waits import Waits
from tests.sim.rules.words import has_changed

__all__ = ["Oracle", "Violation"]

# Verbs whose answers say nothing of jobs or queues that could be wrong.
SILENT: Final = frozenset({"ping", "stats", "snapshot"})


class Oracle:
    """See the file's card.

    Args:
        marks: what is told of rare situations.
    """

    def __init__(self, marks: Any) -> None:
        known = Known(marks)
        pools = Pools(known)
        book = Book(known, pools)
        sessions = Sessions(known, book)
        queues = Queues()
        loose = Loose(known, pools, book, queues)
        reach = Reach(known, pools, book, sessions, queues, loose)
        edits = Edits(known, book, queues, loose, reach)
        keys = Keys(known, book, loose, reach, edits)
        submits = Submits(known, pools, book, queues, reach, keys)
        attempts = Attempts(known, queues, loose)
        leases = Leases(known, pools, book, sessions, queues, loose, reach, edits, attempts)
        holders = Holders(known, book, sessions, loose, reach, attempts)
        sweeps = Sweeps(known, book, loose, reach)
        waits = Waits(known, book, sessions, loose, reach)
        looks = Looks(known, book, queues, loose, reach, edits, attempts, holders, waits)
        refusals = Refusals(known, pools, book, queues, loose, reach, edits, keys, submits, leases)
        self._hit = known.hit
        self._known, self._clocks, self._pools, self._book = known, known.clocks, pools, book
        self._sessions, self._queues, self._loose, self._submits = sessions, queues, loose, submits
        self._leases, self._holders, self._looks, self._refusals = leases, holders, looks, refusals
        # What the answer to each verb says. Arguments: the request, the answer, its LSN, its time by the engine clock.
        self._rules: dict[str, Callable[[Request, Any, int, int], None]] = {
            "hello": sessions.on_hello,
            "submit": submits.on_submit,
            "submit_many": submits.on_submit_many,
            "update": edits.on_update,
            "lease": leases.on_lease,
            "ack": holders.on_ack,
            "fail": holders.on_fail,
            "release": holders.on_release,
            "extend": holders.on_extend,
            "cancel": sweeps.on_cancel,
            "requeue": sweeps.on_requeue,
            "purge": sweeps.on_purge,
            "get": looks.on_get,
            "list": looks.on_list,
            "wait": waits.on_wait,
            "set_queue": queues.on_set_queue,
            "pause": queues.on_set_queue,
            "resume": queues.on_set_queue,
            "queue": queues.on_queue,
            "queues": queues.on_queues,
        }

    def rules(self, **limits: int) -> None:
        """Take over limits that a run has made smaller, by their names in protocol.md."""
        self._known.limits.update(limits)

    @property
    def knows_settings(self) -> bool:
        """Whether anything was asked about what holds in queues."""
        return bool(self._queues.shelves)

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
            self._refusals.on_error(request, status, lsn, body, engine_ms)
        else:
            if request.run_of_first != self._known.run:
                self._hit("request answered in a later run than it was sent in")
            if request.again is not None and has_changed(request, request.again[1]):
                self._sessions.same_answer(request, body)
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
        self._known.seen = 0
        self._pools.rolled_back()
        self._book.rolled_back()
        self._sessions.rolled_back()
        self._queues.rolled_back()
        self._loose.rolled_back()
        self._submits.rolled_back()
        self._leases.forget()

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
        self._looks.see_everything(jobs, queues, settings, lsn, final=final, fresh=fresh)

    def finish(self) -> None:
        """The run is over."""
        self._leases.finish()

    def clocks(self, engine_ms: int, wall_ms: int) -> None:
        """Note what both clocks say."""
        self._clocks.ms = engine_ms
        self.tick(wall_ms)

    def tick(self, wall_ms: int) -> None:
        """Note what the wall clock says; to be told before and after each jump."""
        if wall_ms < self._clocks.wall_ms:
            self._pools.expire_earlier((*self._loose.open.values(), *self._loose.given_up), wall_ms)
        self._clocks.tick(wall_ms)

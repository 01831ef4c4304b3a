"""Runs of the daemon, the sessions of clients in them, and who holds which token.

Knows:         protocol.md "Connections", "Sessions and retries", "Leases and tokens", "hello": when a session may be
               forgotten, when its leases end for want of a connection, that it gets an answer again (I10); that a token
               has one owner (I4); what a start promises (I4, I15).
Must not know: anything of jqd; what follows for jobs (reach.py).
"""

from typing import Any, Final

from tests.sim.rules.book import Book
from tests.sim.rules.model import Args, Job, Key, Known, Request, Violation

SESSION_MS: Final = 600_000
DISCONNECT_GRACE_MS: Final = 500


class Sessions:
    """The newest run, and all sessions.

    epoch:          of the run, 0 before its first welcome.
    clock_floor_ms: a durable fact is as new as this.
    is_stopping:    who waits is sent away.
    given:          (token, job id) -> who got it.
    """

    def __init__(self, known: Known, book: Book) -> None:
        self._known = known
        self._hit = known.hit
        self._clocks = known.clocks
        self._book = book
        self.epoch = self.epoch_max = 0
        self.clock_floor_ms = 0
        self.is_stopping = False
        self._store_id: str | None = None
        self._start_ms = 0  # of the run: not later than this
        self.given: dict[tuple[int, int], Key] = {}
        self._owners: dict[int, Key] = {}  # token -> the lease that was answered with it
        # Session -> run and time of the last word that surely came, and how often it was silent for so long that it may
        # be forgotten.
        self._heard: dict[bytes | None, tuple[int, int, int]] = {}
        self._releasing: set[bytes] = set()  # sessions that have said on_disconnect=release
        # Session -> [begin, end or None] of times without a connection, as its client sees it, long enough to matter.
        self._gone: dict[bytes, list[tuple[int, int | None]]] = {}
        self._hello_ids: dict[bytes, int] = {}  # of the newest that was sent
        self._lost_ids: dict[bytes, int] = {}  # the newest when the connection was lost

    # --- runs ---------------------------------------------------------------------------------

    def started(self, welcome: Args) -> None:
        """A client was welcomed by a run."""
        epoch, begun_ms = welcome["epoch"], welcome["engine_ms"]
        if self.epoch:
            if epoch != self.epoch:
                raise Violation("I4", f"epoch {self.epoch} became {epoch} without a restart")
            return
        if epoch <= self.epoch_max:
            raise Violation("I4", f"epoch {epoch} after epoch {self.epoch_max}")
        if self._store_id not in (None, welcome["store_id"]):
            raise Violation("I15", f"store {self._store_id} became {welcome['store_id']}")
        if begun_ms < self.clock_floor_ms:
            raise Violation(
                "I15", f"the engine clock says {begun_ms}, and a durable fact {self.clock_floor_ms}"
            )
        self._store_id = welcome["store_id"]
        self.epoch = self.epoch_max = epoch
        self._start_ms = begun_ms
        for job in self._book.jobs.values():
            # Of a lease that cannot have run out before the start it is known that it got its grace.
            if job.state == "leased" and begun_ms < job.deadline_ms:
                grace_ms = min(job.lease_ms, 30_000)
                job.deadline_ms = max(job.deadline_ms, self.clock_floor_ms + grace_ms)

    def crashed(self) -> None:
        """The run has ended: the next one begins."""
        self._known.run += 1
        self.is_stopping = False
        self.epoch = 0
        for session in self._gone:
            self._came_back(session, self._clocks.ms)

    def rolled_back(self) -> None:
        """An older copy of the store was put back: the engine clock went back, tokens must not."""
        self.clock_floor_ms = 0
        if self._clocks.wall_ms // 1_000 <= self.epoch_max:
            self.epoch_max = 0  # the clock was set back too: nothing is left that could keep tokens apart
            self._owners.clear()
            self.given.clear()

    # --- tokens -------------------------------------------------------------------------------

    def check_token(self, request: Request, token: int, lsn: int) -> None:
        """A token has one owner."""
        owner = self._owners.get(token)
        if owner is None:
            self._owners[token] = request.key
        elif owner != request.key:
            raise Violation("I4", f"token {token} of {request} at LSN {lsn} is another request's")
        self.epoch_max = max(self.epoch_max, token >> 32)

    # --- sessions -----------------------------------------------------------------------------

    def greets(self, session: bytes, request_id: int, args: Args) -> None:
        """A client says hello."""
        self._hello_ids[session] = request_id
        if args.get("on_disconnect") == "release":
            self._releasing.add(session)

    def lost(self, session: bytes, engine_ms: int) -> None:
        """A client has no connection any more."""
        if session in self._releasing:
            gone = self._gone.setdefault(session, [])
            if not gone or gone[-1][1] is not None:
                gone.append((engine_ms, None))
            self._lost_ids[session] = self._hello_ids.get(session, 0)

    def hear(self, session: bytes | None, ms: int) -> None:
        """Note that the daemon has heard of a session, not before a time."""
        run, heard_ms, gaps = self._heard.get(session, (self._known.run, ms, 0))
        self._heard[session] = (self._known.run, ms if run != self._known.run else max(ms, heard_ms), gaps)

    def gaps(self, session: bytes | None, ms: int) -> int:
        """Return how often a session may have been forgotten so far, for want of a word of it."""
        run, heard_ms, gaps = self._heard.get(session, (self._known.run, ms, 0))
        if run != self._known.run:
            heard_ms = min(self._start_ms, ms)  # a start of the daemon begins to count anew
        if ms - heard_ms >= SESSION_MS:
            self._hit("session silent for so long that it may be forgotten")
            gaps += 1
        self._heard[session] = (self._known.run, heard_ms, gaps)
        return gaps

    def _came_back(self, session: bytes, engine_ms: int, hello_id: float = float("inf")) -> None:
        """A session is connected, or its daemon is gone: its leases do not end for want of a connection."""
        gone = self._gone.get(session)
        if gone and gone[-1][1] is None and hello_id > self._lost_ids[session]:
            begin_ms = gone.pop()[0]
            if engine_ms - begin_ms >= DISCONNECT_GRACE_MS:
                gone.append((begin_ms, engine_ms))
            else:
                self._hit("client that is to lose its leases came back in time")

    def is_released(self, job: Job, ms: int) -> bool:
        """Tell whether a lease can have ended because the session that holds it had no connection."""
        if not self._gone or job.state != "leased":
            return False
        holder = self.given.get((job.token, job.id))
        if holder is None or holder[0] is None:
            return bool(self._releasing)
        return any(
            ms >= begin_ms + DISCONNECT_GRACE_MS and (end_ms is None or end_ms >= job.since_ms)
            for begin_ms, end_ms in self._gone.get(holder[0], ())
        )

    def on_hello(self, request: Request, body: Args, lsn: int, ms: int) -> None:
        session = request.key[0]
        if session is not None:
            self._came_back(session, ms, request.key[1])

    def same_answer(self, request: Request, body: Any) -> None:
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

"""The lock-step check: what the engine is told is told to the naive queue too, and both say the same.

Knows:         every call that decides something, and how far the log came when it did.
Must not know: the disk, the network, why the engine says what it says.

tests/support/naive.py is the queue once more, without jqd's decisions or containers. It hears each call of the
driver at the moment at which the engine carries it out, so there is nothing to guess: answers, parked answers and
what a list shows are equal or a rule is broken. After a crash it is rolled back to the LSN that recovery came to,
by doing again what was done up to there since the last start; then it lists what the engine lists, and so each
state that a crash can leave is the state that the calls up to that LSN lead to.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from msgspec import Raw, Struct, structs

from jqd.core import commands as c
from jqd.core import model
from jqd.core.engine import Body, Engine
from jqd.core.memory import UNLIMITED_BYTES
from jqd.core.model import Caller, Now
from jqd.core.queues import Identity
from jqd.core.state import State
from jqd.errors import JqdError
from tests.sim.listing import Listing, Shown
from tests.sim.marks import Marks
from tests.sim.oracle import Violation
from tests.support.core import decoded
from tests.support.naive import NaiveQueue, Refused

# A call on a naive queue, to be made again after a roll-back.
Call = Callable[[NaiveQueue], object]


class Shadow:
    """The naive queue of one run, over all starts of its daemon."""

    def __init__(self, marks: Marks) -> None:
        self.naive = NaiveQueue()
        self.marks = marks
        self.listing = Listing()
        self._base = NaiveQueue()  # as of the last start
        self._turns: list[tuple[int, list[Call]]] = []  # since then: the LSN after the turn, its calls
        self._calls: list[Call] = []  # of the turn under way
        self._saved: NaiveQueue | None = None

    def make_engine(self, state: State, identity: Identity, *, memory_soft_bytes: int) -> Engine:
        """Return an engine that is watched; for jqd.server.daemon, in place of Engine.

        memory_soft_bytes: none that is met: the naive queue does not know what things take.
        """
        assert memory_soft_bytes == UNLIMITED_BYTES
        return ShadowedEngine(state, identity, self)

    # --- what the engine does -----------------------------------------------------------------

    def did(self, call: Call) -> None:
        """Note a call that was made on the naive queue."""
        self._calls.append(call)

    def ended_turn(self, lsn: int) -> None:
        if self._calls:
            self._turns.append((lsn, self._calls))
            self._calls = []

    # --- runs ---------------------------------------------------------------------------------

    def recovered(self, lsn: int) -> None:
        """A new run knows what was done up to an LSN: so does the naive queue from here on."""
        if self._calls or (self._turns and self._turns[-1][0] > lsn):
            self._roll_back(lsn)
        self.naive.outbox.clear()
        self._base = self.naive.twin()
        self._turns, self._calls = [], []

    def _roll_back(self, lsn: int) -> None:
        naive = self._base  # recovered() makes another one
        for after_lsn, calls in self._turns:
            if after_lsn > lsn:
                self.marks.hit("turn lost in a crash")
                break
            for call in calls:
                call(naive)
            naive.outbox.clear()
        self.naive = naive

    def saved(self) -> None:
        """The daemon has stopped, and its directory was copied."""
        self._saved = self.naive.twin()

    def rolled_back(self) -> None:
        """That copy was put back."""
        assert self._saved is not None
        self.naive = self._saved.twin()
        self._base = self._saved.twin()
        self._turns, self._calls = [], []


def wrong(what: str, got: object, expected: object) -> Violation:
    return Violation("SHADOW", f"{what}: got {got}, expected {expected}")


def _place(answer: tuple[Any, ...]) -> tuple[str, int]:
    """Return the connection and the request that are answered."""
    return answer[0], answer[1]


class ShadowedEngine(Engine):
    """The shipped engine; each call that decides is also made on the naive queue, and compared."""

    def __init__(self, state: State, identity: Identity, shadow: Shadow) -> None:
        super().__init__(state, identity)
        self._shadow = shadow
        self._tickets: dict[Hashable, str] = {}
        self.shown: list[Shown] = []  # all jobs as the start found them

    def _ticket(self, ticket: Hashable) -> str:
        return self._tickets.setdefault(ticket, f"connection {len(self._tickets)}")

    def _done(self, call: Call) -> object:
        """Make a call on the naive queue, and note it."""
        self._shadow.did(call)
        return call(self._shadow.naive)

    def _adopt(self) -> None:
        for job_id in self._shadow.naive.unsettled():
            job = self.state.job(job_id)
            if job is None or job.due is None:
                raise wrong(f"job {job_id}", job, "a retry with a time")
            due_ms = job.due.ms
            try:
                self._done(lambda naive, job_id=job_id, due_ms=due_ms: naive.adopt(job_id, due_ms))  # type: ignore[misc]
            except AssertionError as error:
                raise Violation("SHADOW", str(error)) from error

    # --- runs, connections --------------------------------------------------------------------

    def start(self, now: Now, version: str) -> None:
        self._shadow.recovered(self.state.lsn)
        super().start(now, version)
        self._done(lambda naive: naive.start(now))
        naive = self._shadow.naive
        if (self.state.epoch, self.state.pages.next_id) != (naive.epoch, naive.next_id):
            raise wrong(
                "epoch, next id", (self.state.epoch, self.state.pages.next_id), (naive.epoch, naive.next_id)
            )
        self.shown = self._shadow.listing.of(self.state, now)
        expected = [naive.info(job, now) for job in naive.jobs.values()]
        if [shown.info for shown in self.shown] != expected:
            self.compare(now)
            raise wrong("jobs", len(self.shown), len(expected))
        self._compare_ready()

    def stop(self, now: Now) -> None:
        super().stop(now)

        def stop(naive: NaiveQueue) -> None:
            for parked in list(naive.parked):
                naive.answer(parked, c.Leased(token=0, lease_ms_left=0, wall_ms=now.wall_ms, jobs=[]))
            naive.answer_waits(list(naive.waits), now)

        self._done(stop)

    def hello(self, command: c.Hello, now: Now, ticket: Hashable) -> tuple[Caller, c.Welcome]:
        got = super().hello(command, now, ticket)
        self._done(lambda naive: naive.hello(command.session, command.on_disconnect))
        return got

    def disconnect(self, caller: Caller, ticket: Hashable, now: Now, *, lost: bool = True) -> None:
        super().disconnect(caller, ticket, now, lost=lost)
        name = self._ticket(ticket)
        self._done(lambda naive: naive.disconnect(caller, name, now, lost=lost))

    def withdraw(self, ticket: Hashable) -> bool:
        name = self._ticket(ticket)

        def withdraw(naive: NaiveQueue) -> None:
            naive.parked = [one for one in naive.parked if one.ticket != name]

        self._done(withdraw)
        return super().withdraw(ticket)

    def take_back(self, token: int, now: Now) -> None:
        if token in self.state.leases:
            self._shadow.marks.hit("leased jobs taken back unsent")
        super().take_back(token, now)
        self._done(lambda naive: naive.take_back(token, now))

    def forgive(self, lag_ms: int) -> None:
        super().forgive(lag_ms)
        self._done(lambda naive: setattr(naive, "lag_ms", lag_ms))

    # --- commands -----------------------------------------------------------------------------

    def execute(
        self, command: c.Command[Any], caller: Caller, request_id: int, ticket: Hashable, now: Now
    ) -> Body | None:
        body: Body | None
        raised: JqdError | None = None
        grant = self.state.grant
        try:
            body = super().execute(command, caller, request_id, ticket, now)
        except JqdError as error:
            raised, body = error, None
        if not isinstance(command, c.Ping | c.Stats | c.Snapshot):
            expected = self._expected(command, caller, request_id, self._ticket(ticket), now)
            got = raised.code if raised is not None else decoded(command, body)
            if isinstance(got, c.QueueList):  # the naive queue does not know what things take
                got = structs.replace(
                    got, queues=[structs.replace(one, memory_bytes=0) for one in got.queues]
                )
            if isinstance(got, c.Leased) and isinstance(expected, c.Leased) and self.state.grant == grant:
                # What is left of a grant of which a part was extended has no order.
                got.jobs.sort(key=lambda job: job.job_id)
                expected.jobs.sort(key=lambda job: job.job_id)
            if isinstance(got, c.QueueDetails):  # the naive queue measures no times
                info = structs.replace(got.info, memory_bytes=0)
                got = structs.replace(got, info=info, waits=[], runs=[])
            self._compare_answer(command, got, expected)
            if isinstance(command, c.Fail):
                self._adopt()
        if raised is not None:
            raise raised
        return body

    def _expected(
        self, command: c.Command[Any], caller: Caller, request_id: int, ticket: str, now: Now
    ) -> object:
        def execute(naive: NaiveQueue) -> object:
            try:
                answer: object = naive.execute(command, caller, request_id, ticket, now)
            except Refused as refused:
                return refused.code
            return answer

        if command.writes or isinstance(command, c.Lease | c.Wait):
            return self._done(execute)
        return execute(self._shadow.naive)

    def _compare_answer(self, command: c.Command[Any], got: object, expected: object) -> None:
        if got != expected:
            raise wrong(str(command)[:200], got, expected)

    def submit_run(
        self, ids: Sequence[int], run: Sequence[c.Submit], caller: Caller, now: Now
    ) -> Sequence[Body | JqdError]:
        answers = super().submit_run(ids, run, caller, now)
        for request_id, command, answer in zip(ids, run, answers, strict=True):
            expected = self._expected(command, caller, request_id, "", now)
            got = answer.code if isinstance(answer, JqdError) else decoded(command, answer)
            self._compare_answer(command, got, expected)
        return answers

    # --- time ---------------------------------------------------------------------------------

    def finish_turn(self, now: Now) -> int | None:
        unsent = frozenset(self.unsent_grants)
        due_ms = super().finish_turn(now)
        self._done(lambda naive: naive.turn(now, unsent))
        self._adopt()
        naive = self._shadow.naive
        got = [
            (self._ticket(ticket), request_id, self._plain(answer))
            for ticket, request_id, answer in self.outbox
        ]
        for _, _, answer in got:
            if isinstance(answer, c.Waited):
                is_told = answer.jobs or answer.gone
                self._shadow.marks.hit(
                    "parked wait answered by a job's end" if is_told else "parked wait gave up"
                )
        # In which order those of one turn are told is nobody's promise.
        got.sort(key=_place)
        expected = sorted([tuple(one) for one in naive.outbox], key=_place)
        if got != expected:
            raise wrong("answers to who waited", got, expected)
        naive.outbox.clear()
        self._shadow.ended_turn(self.state.lsn)
        return due_ms

    @staticmethod
    def _plain(answer: Body | JqdError) -> object:
        return decoded(c.Lease, answer) if isinstance(answer, Raw | Struct) else answer

    # --- everything ---------------------------------------------------------------------------

    def compare(self, now: Now) -> None:
        """Hold a list of every job and the order of what is ready against the naive queue."""
        naive = self._shadow.naive
        cursor: int | None = 0
        while cursor is not None:
            command = c.ListJobs(cursor=cursor, limit=500)
            got = super().execute(command, model.LOCAL, 0, "check", now)
            expected = naive.execute(command, model.LOCAL, 0, "check", now)
            assert isinstance(got, c.JobList)
            if got != expected:
                pairs = zip(got.jobs, expected.jobs, strict=False)
                first = next(
                    ((one, other) for one, other in pairs if one != other),
                    (len(got.jobs), len(expected.jobs)),
                )
                raise wrong("a job in the list", *first)
            cursor = got.cursor
        self._compare_ready()

    def _compare_ready(self) -> None:
        naive = self._shadow.naive
        for name in naive.names():
            ready = [job.id for job in naive.waiting_for(c.Lease(queues=[name]))]
            if self.state.ready_ids(name, 100_000) != ready:
                raise wrong(f"ready in {name}", self.state.ready_ids(name, 100_000), ready)

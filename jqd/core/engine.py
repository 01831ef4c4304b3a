"""The heart without I/O: commands in, replies and records out, and what waits in between.

Knows:         which decision answers which command, what this turn changed, which leases are parked, which
               sessions are connected, and when time has something to do.
Must not know: sockets, files, threads, what the clock says by itself.

The driver's contract, once per loop turn, all with one `now`:

    execute(...)      any number of times; each returns a body, or None if the request is parked
    finish_turn(now)  lets time pass if it is due, and serves who is parked: outbox has their answers, and
                      events what others are to be told
    take_batch()      the record to write, or None; nothing of this turn, reads included, may leave
                      before this and all earlier records are durable
    next_deadline(now)  when finish_turn must be called again even if nobody asks

An exception before a command's first change is an answer. One after it is FailStop: memory is no
longer what the log says, and the process has to end (exit 70). Nobody catches it to go on.
"""

from collections.abc import Callable, Hashable, Sequence
from heapq import heapify, heappop, heapreplace
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from jqd.core import (
    commands,
    holding,
    leasing,
    model,
    passing,
    queues,
    reading,
    submitting,
    sweeping,
    updating,
)
from jqd.core.changes import (
    Change,
    DaemonStarted,
    RequestsAnswered,
    SessionOpened,
    SessionsForgotten,
    TimeAdvanced,
    decode_batch,
    decode_part,
    encode_batch,
)
from jqd.core.commands import (
    PROTOCOL_MINOR,
    PROTOCOL_VERSION,
    CancelRequested,
    Command,
    Hello,
    Leased,
    OrderGiven,
    Pong,
    SnapshotBegun,
    Welcome,
)
from jqd.core.commands import Lease as LeaseCommand
from jqd.core.deciding import Emit, judged_at_ms
from jqd.core.dump import Dump
from jqd.core.fields import is_keyed
from jqd.core.memory import UNLIMITED_BYTES
from jqd.core.model import Caller, Now
from jqd.core.ordered import NEVER_MS, TimerHeap, earliest_ms
from jqd.core.queues import Identity
from jqd.core.state import State
from jqd.core.waiting import Waits
from jqd.core.workers import Workers
from jqd.errors import (
    InvalidArgument,
    JqdError,
    Overloaded,
    PermissionDenied,
    PositionLost,
    Unauthenticated,
)

Body = Struct | Raw
Decision = Callable[[Any, State, Caller, Now, Emit], Struct]
# Whatever the driver wants back with the answer to a parked request.
Ticket = Hashable

# Commands whose decision needs nothing but the state. The engine itself answers hello, ping, stats and snapshot,
# what is about workers (workers.py), and what may have to wait: lease (leasing.lease decides) and wait (waiting.py).
DECISIONS: Final[dict[type[Command[Any]], Decision]] = {
    commands.Submit: submitting.submit,
    commands.SubmitMany: submitting.submit_many,
    commands.Extend: holding.extend,
    commands.Ack: holding.ack,
    commands.Fail: holding.fail,
    commands.Release: holding.release,
    commands.Cancel: sweeping.cancel,
    commands.Update: updating.update,
    commands.Requeue: sweeping.requeue,
    commands.Purge: sweeping.purge,
    commands.SetQueue: queues.set_queue,
    commands.Pause: queues.pause,
    commands.Resume: queues.resume,
    commands.Get: reading.get,
    commands.ListJobs: reading.list_jobs,
    commands.Queues: queues.queues,
    commands.GetQueue: queues.get_queue,
}

LIMITS: Final = {
    "frame_bytes": model.FRAME_BYTES_MAX,
    "payload_bytes": model.PAYLOAD_BYTES_MAX,
    "result_bytes": model.RESULT_BYTES_MAX,
    "jobs_per_request": model.JOBS_PER_REQUEST_MAX,
    "in_flight": model.IN_FLIGHT_MAX,
    "wait_ms": model.WAIT_MS_MAX,
    "wait_jobs": model.WAIT_JOBS_MAX,
}

_encode: Final = msgspec.msgpack.Encoder().encode

# What a fact can take in a record, besides what its request brought: its numbers, a session and a worker's
# label of 128 characters; and each job in it: an id and a time.
_FACT_BYTES_MAX: Final = 640
_FACT_JOB_BYTES_MAX: Final = 24


class FailStop(Exception):
    """A command failed after its first change. Only the process's end helps."""


class ReplayFailed(Exception):
    """A record from the log cannot be applied.

    Args:
        lsn: of the change that was refused.
    """

    def __init__(self, lsn: int, reason: str) -> None:
        super().__init__(f"LSN {lsn}: {reason}")
        self.lsn = lsn


class Batch(Struct, frozen=True, gc=False):
    """What one loop turn changed, as the store keeps it."""

    first_lsn: int
    count: int
    payload: bytes


class Parked(Struct, eq=False):
    """A lease request that waits for a job."""

    serial: int
    ticket: Ticket
    command: LeaseCommand
    caller: Caller
    request_id: int
    deadline_ms: int


class Claims:
    """Requests of a session that were sent again, and over which connection last. At most as many as answers.

    hellos: by request id, the id of that connection's hello.
    """

    __slots__ = ("hellos", "newest_hello_id")

    def __init__(self) -> None:
        self.hellos: dict[int, int] = {}
        self.newest_hello_id = 0

    def add(self, request_id: int, hello_id: int) -> None:
        self.newest_hello_id = max(self.newest_hello_id, hello_id)
        self.hellos[request_id] = max(hello_id, self.hellos.get(request_id, 0))
        if len(self.hellos) > model.ANSWERS_PER_SESSION_MAX:
            del self.hellos[min(self.hellos)]


class Engine:
    """See the file's card.

    Args:
        state: as recovered: replay() every record before start().
        memory_soft_bytes: what the state may take before nothing is taken any more that adds to it. A state that takes
            more is recovered all the same.
    """

    def __init__(self, state: State, identity: Identity, *, memory_soft_bytes: int = UNLIMITED_BYTES) -> None:
        self.state = state
        state.memory.limit(memory_soft_bytes)
        # What nobody asked for: (ticket, body of the event), for each connection of the session that it is about.
        self.events: list[tuple[Ticket, CancelRequested | OrderGiven]] = []
        self.outbox: list[tuple[Ticket, int, Body | JqdError]] = []  # (ticket, request id, answer)
        self._identity = identity
        self._started_ms = 0
        # What this run began with: an epoch of its own, even if tokens have used that up since, and its first LSN.
        self._start_epoch = 0
        self._start_lsn = 0
        self._changes: list[Change] = []
        self._now = Now(0, 0)
        # Parked requests: by serial, by ticket, and per queue in order of arrival.
        self._parked: dict[int, Parked] = {}
        self._parked_by_ticket: dict[Ticket, Parked] = {}
        self._parked_by_queue: dict[str, dict[int, Parked]] = {}
        # Answers of this turn, by session and request id, and their bytes.
        self._answers: dict[bytes, dict[int, bytes | int]] = {}
        self._answers_bytes = 0
        self._work_before = 0  # state.work when the turn under way began
        self._parked_by_request: dict[tuple[bytes, int], Parked] = {}
        self._parked_timers: TimerHeap[int] = TimerHeap()
        self._waits = Waits(state, self.outbox)
        # What next_deadline() asks with each turn, besides leases and delays: by engine clock and by wall clock.
        self._timers = (
            *(state.finished_timers, state.dead_timers, state.result_timers, state.keys.timers),
            *(self._parked_timers, self._waits.timers),
        )
        self._dated = (state.date_timers, state.expiry_timers)
        self._parked_serial = 0
        # Sessions: connections of each, and since when those without one are without one, oldest first.
        self._attached: dict[bytes, dict[Ticket, None]] = {}
        self._detached: dict[bytes, int] = {}
        self.claims: dict[bytes | None, Claims] = {}  # by session, while it has connections
        # Those whose newest hello asked for on_disconnect=release, and when the leases end of those that lost their last
        # connection, soonest first.
        self._releasing: set[bytes] = set()
        self._leaving: dict[bytes, int] = {}
        self.disconnect_grace_ms = model.DISCONNECT_GRACE_MS
        self.workers = Workers()
        # Grants whose reply reached no socket yet -> replies on their way that hold them; kept by the sessions.
        self.unsent_grants: dict[int, int] = {}

    # --- recovery -----------------------------------------------------------------------------

    def replay(self, first_lsn: int, count: int, payload: bytes) -> None:
        """Apply one record of the log.

        Raises: ReplayFailed: the store vouches for the bytes, but they are not what this state allows.
        """
        state = self.state
        try:
            batch = decode_batch(payload)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ReplayFailed(first_lsn, f"not a record of this version: {error}") from error
        if first_lsn != state.lsn + 1 or count != len(batch.changes):
            raise ReplayFailed(first_lsn, f"{len(batch.changes)} of {count} changes after LSN {state.lsn}")
        now = Now(batch.engine_ms, batch.wall_ms)
        for change in batch.changes:
            try:
                change.apply(state, now)
            except Exception as error:
                raise ReplayFailed(
                    state.lsn + 1, f"{type(change).__name__} was refused: {error!r}"
                ) from error
            state.lsn += 1
        state.now = now
        state.woken.clear()
        state.marked.clear()

    def restore(self, payload: bytes) -> None:
        """Apply one record of a snapshot, in order, to a state that is empty but for those before it.

        Raises: ReplayFailed: the store vouches for the bytes, but they are no snapshot of this version.
        """
        try:
            images = decode_part(payload).images
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ReplayFailed(self.state.lsn, f"not a snapshot of this version: {error}") from error
        for image in images:
            try:
                image.apply(self.state, self.state.now)
            except Exception as error:
                raise ReplayFailed(
                    self.state.lsn, f"a snapshot's {type(image).__name__} was refused: {error!r}"
                ) from error

    def begin_dump(self) -> Dump:
        """Begin to dump the state as it is now. Between two turns, and one dump at a time."""
        assert not self._changes, "take_batch() comes first: the log has to have all that the dump has"
        return Dump(self.state)

    def start(self, now: Now, version: str) -> None:
        """Begin a run: a new epoch, and a grace for the leases that were live."""
        assert now.engine_ms >= self.state.now.engine_ms, "the engine clock never goes back"
        self._started_ms = now.engine_ms
        self.state.measure_anew()
        self._begin(now)
        self._emit(DaemonStarted(leasing.next_epoch(self.state, now), version))
        self._start_epoch, self._start_lsn = self.state.epoch, self.state.lsn
        self._detached = dict.fromkeys(self.state.sessions, now.engine_ms)

    def stop(self, now: Now) -> None:
        """End a run: log how far the engine clock came, and send who is parked away."""
        self._begin(now)
        self._emit(TimeAdvanced(model.PROMOTIONS_PER_TICK))
        for parked in list(self._parked.values()):
            self._answer_parked(parked, _nothing(now))
        self._waits.answer_all(now)

    # --- commands -----------------------------------------------------------------------------

    def hello(self, command: Hello, now: Now, ticket: Ticket) -> tuple[Caller, Welcome]:
        """Settle who a new connection is. Its end must be told by disconnect().

        Args:
            ticket: identifies the connection.
        Raises: VersionMismatch, Unauthenticated, InvalidArgument, PermissionDenied, Overloaded.
        """
        commands.check_version(command.version)
        if command.key is not None:
            raise Unauthenticated("key: this server has no API keys")
        if command.on_disconnect == "release" and command.session is None:
            raise InvalidArgument("on_disconnect = 'release': give a session, which comes back or does not")
        caller = Caller(session=command.session, worker=command.worker)
        self._begin(now)
        if command.session is not None:
            self._attach(command.session, caller, ticket)
            if command.on_disconnect == "release":
                self._releasing.add(command.session)
            else:
                self._releasing.discard(command.session)
        return caller, Welcome(
            version=PROTOCOL_VERSION,
            minor=PROTOCOL_MINOR,
            server=self._identity.server,
            store_id=self._identity.store_id,
            epoch=self._start_epoch,
            start_lsn=self._start_lsn,
            engine_ms=now.engine_ms,
            wall_ms=now.wall_ms,
            limits=LIMITS,
        )

    def _attach(self, session: bytes, caller: Caller, ticket: Ticket) -> None:
        known = self.state.sessions.get(session)
        if known is None:
            if len(self.state.sessions) >= model.SESSIONS_MAX:
                raise Overloaded(
                    f"{len(self.state.sessions)} sessions are remembered: the limit is {model.SESSIONS_MAX}",
                    retry_after_ms=model.MINUTE_MS,
                )
        elif known.principal != caller.principal:
            raise PermissionDenied("session: it belongs to another key")
        self._detached.pop(session, None)
        self._leaving.pop(session, None)
        self.workers.came_back(session)
        self._attached.setdefault(session, {})[ticket] = None

    def disconnect(self, caller: Caller, ticket: Ticket, now: Now, *, lost: bool = True) -> None:
        """A connection ended: nothing can be answered there any more.

        Args: lost: its client ended it, or is gone. False: the server cut it, which says nothing about the client.
        """
        self.withdraw(ticket)
        self._waits.drop(ticket)
        if caller.session is not None:
            connections = self._attached[caller.session]
            del connections[ticket]
            if not connections:
                del self._attached[caller.session]
                self.claims.pop(caller.session, None)
                if caller.session in self.state.sessions:
                    self._detached[caller.session] = now.engine_ms
                if lost and caller.session in self._releasing:
                    self._leaving[caller.session] = now.engine_ms + self.disconnect_grace_ms
                self._releasing.discard(caller.session)
                self.workers.left(caller.session, now.engine_ms + self.disconnect_grace_ms)

    def withdraw(self, ticket: Ticket) -> bool:
        """Forget the lease that a connection has parked, unanswered; return whether there was one."""
        parked = self._parked_by_ticket.get(ticket)
        if parked is not None:
            self._unpark(parked)
        return parked is not None

    def claim(self, command: Command[Any], caller: Caller, request_id: int, hello_id: int) -> None:
        """Let only the newest of the connections over which a request comes have it carried out.

        A client that sends again has given the connection before up, but what it had sent there may still be on its
        way. Carried out after the answer to the second copy, which changed nothing and so is not remembered, it would
        do what its client was told that it did not.

        Args:
            hello_id: id of the connection's hello: a request with a lower one was sent before, over another one.
        Raises: PositionLost: this is such an earlier copy.
        """
        session = caller.session
        if session is None or not command.writes:
            return
        if request_id < hello_id:
            claims = self.claims.get(session)
            if claims is None:
                claims = self.claims[session] = Claims()
            claims.add(request_id, hello_id)
        if self.is_overtaken(session, hello_id) and self.claims[session].hellos.get(request_id, 0) > hello_id:
            raise PositionLost(
                f"request_id = {request_id}: it was sent again over a later connection, and has its answer there"
            )

    def is_overtaken(self, session: bytes | None, hello_id: int) -> bool:
        """Tell whether something was sent again over a later connection of the session than that with this hello."""
        return session in self.claims and self.claims[session].newest_hello_id > hello_id

    def execute(
        self, command: Command[Any], caller: Caller, request_id: int, ticket: Ticket, now: Now
    ) -> Body | None:
        """Carry out one command.

        Args:
            ticket: identifies the connection; handed back in outbox if the request is parked.
        Returns: the reply's body; None: parked, the answer comes through outbox.
        Raises:  JqdError: refused, nothing has changed. FailStop: stop the process.
        """
        if now is not self._now:
            self._begin(now)
        if caller.session is not None and command.writes:
            answer = self._answered(caller.session, request_id, now)
            if answer is not None:
                return answer
        decision = DECISIONS.get(type(command))
        if decision is not None:
            return self._decide(decision, command, caller, request_id, now)
        if type(command) is LeaseCommand:
            return self._lease(command, caller, request_id, ticket, now)
        if type(command) is commands.Wait:
            return self._waits.ask(command, request_id, ticket, now)
        if type(command) is commands.Register:
            return self.workers.register(command, caller, now)
        if type(command) is commands.ListWorkers:
            return self.workers.show(command, self.state, now)
        if type(command) is commands.TellWorkers:
            return self._tell_workers(command, now)
        if type(command) is commands.Ping:
            return Pong(wall_ms=now.wall_ms, engine_ms=now.engine_ms)
        if type(command) is commands.Snapshot:  # making it is the server's work
            return SnapshotBegun(lsn=self.state.lsn)
        assert type(command) is commands.Stats, f"no decision for {command.verb}"
        uptime_ms = now.engine_ms - self._started_ms
        return queues.stats(
            self._identity, self.state, now, uptime_ms, len(self._parked), waiting_count=len(self._waits)
        )

    def submit_run(
        self, ids: Sequence[int], run: Sequence[commands.Submit], caller: Caller, now: Now
    ) -> Sequence[Body | JqdError]:
        """Carry out submits of one connection that came together, as execute() would one by one.

        Args:
            ids: their request ids.
        Returns: their answers, in the same order.
        Raises:  FailStop: stop the process.
        """
        if now is not self._now:
            self._begin(now)
        session = caller.session
        # A submit with a key may change nothing, and is then not remembered: _decide() sees which.
        if session is not None and (any(map(is_keyed, run)) or self._may_know(session, ids)):
            return [
                self._submit(request_id, command, caller, now)
                for request_id, command in zip(ids, run, strict=True)
            ]
        before = len(self._changes)
        try:
            answers = submitting.submit_run(run, self.state, caller, now, self._emit)
            if session is None:
                return answers
            return [
                answer
                if isinstance(answer, JqdError)
                else self._remember(caller, session, request_id, answer)
                for request_id, answer in zip(ids, answers, strict=True)
            ]
        except Exception as error:
            self._stop_if_changed(before, "submit", error)
            raise

    def _submit(self, request_id: int, command: commands.Submit, caller: Caller, now: Now) -> Body | JqdError:
        assert caller.session is not None
        try:
            answer = self._answered(caller.session, request_id, now)
            if answer is not None:
                return answer
            return self._decide(submitting.submit, command, caller, request_id, now)
        except JqdError as error:
            return error

    def _may_know(self, session: bytes, ids: Sequence[int]) -> bool:
        """Tell whether one of these requests may have been answered before, or came twice now."""
        record = self.state.sessions.get(session)
        turn = self._answers.get(session)
        return (
            len(set(ids)) < len(ids)
            or (record is not None and not record.is_new(ids))
            or (turn is not None and not turn.keys().isdisjoint(ids))
        )

    def _decide(
        self, decision: Decision, command: Command[Any], caller: Caller, request_id: int, now: Now
    ) -> Body:
        """Run the decision, and remember its answer for a retry if it changed anything."""
        before = len(self._changes)
        try:
            body: Body = decision(command, self.state, caller, now, self._emit)
            if caller.session is not None and len(self._changes) > before:
                body = self._remember(caller, caller.session, request_id, body)
        except Exception as error:
            self._stop_if_changed(before, command.verb, error)
            raise
        return body

    def _stop_if_changed(self, before: int, what: str, error: Exception) -> None:
        """Raise FailStop if there are more changes than `before`: then a failure is no answer any more."""
        if len(self._changes) > before:
            raise FailStop(f"{what} failed after its first change: {error!r}") from error

    def _remember(self, caller: Caller, session: bytes, request_id: int, body: Body) -> Body:
        """Keep an answer for a retry; finish_turn() makes it a fact."""
        answers = self._answers.get(session)
        if answers is None:
            answers = self._answers[session] = {}
            if session not in self.state.sessions:  # not by hello: who only reads leaves nothing to remember
                self._emit(SessionOpened(session, caller.principal))
        if type(body) is Leased:
            answers[request_id] = body.token
            return body
        answers[request_id] = encoded = _encode(body)
        self._answers_bytes += len(encoded)
        return Raw(encoded)

    def remembers(self, caller: Caller, request_id: int) -> bool:
        """Tell whether a request was answered before, so that carrying it out again changes nothing."""
        session = caller.session
        if session is None:
            return False
        record = self.state.sessions.get(session)
        if record is not None and not record.is_new((request_id,)):
            return True
        return request_id in self._answers.get(session, ())

    def _answered(self, session: bytes, request_id: int, now: Now) -> Body | None:
        """Return the answer that this request got before, or None if it is new."""
        record = self.state.sessions.get(session)
        if record is None:
            return None
        answer = record.answers.get(request_id)
        if answer is None and session in self._answers:
            answer = self._answers[session].get(request_id)
        if answer is None:
            if request_id <= record.floor:
                raise PositionLost(
                    f"request_id = {request_id}: only the newest {model.ANSWERS_PER_SESSION_MAX} answers of a "
                    f"session are remembered (nothing at or below {record.floor}); its outcome is unknown"
                )
            return None
        if isinstance(answer, int):
            return leasing.leased_again(answer, self.state, now)
        return Raw(answer)

    def _tell_workers(self, command: commands.TellWorkers, now: Now) -> commands.WorkersTold:
        """Note an order for workers, and tell it to each connection of theirs; who misses it gets it in return for its
        next `register`.
        """
        told = self.workers.tell(command, now)
        order = OrderGiven(order=command.order)
        for worker in told:
            self.events += [(ticket, order) for ticket in self._attached.get(worker.session, ())]
        self.state.work += len(self.workers)
        return commands.WorkersTold(told=[(worker.worker_id, worker.label) for worker in told])

    # --- parked leases ------------------------------------------------------------------------

    def _lease(
        self, command: LeaseCommand, caller: Caller, request_id: int, ticket: Ticket, now: Now
    ) -> Body | None:
        if self.state.expiry_timers.next_ms() <= now.wall_ms:
            self._expire_jobs(now)
        if self.state.woken:
            self._serve_parked(now)  # they were first, perhaps this very request over a dead connection
            answer = None if caller.session is None else self._answered(caller.session, request_id, now)
            if answer is not None:
                return answer
        if command.wait_ms and ticket in self._parked_by_ticket:
            raise InvalidArgument(
                f"wait_ms = {command.wait_ms}: this connection has a lease parked, and only one can wait at a time"
            )
        body = self._decide(leasing.lease, command, caller, request_id, now)
        if not command.wait_ms or not isinstance(body, Leased) or body.jobs:
            return body
        self._park(command, caller, request_id, ticket, now)
        return None

    def _expire_jobs(self, now: Now) -> None:
        """End jobs that a lease must not be given any more, before it looks for some."""
        before = len(self._changes)
        try:
            passing.expire_jobs(self.state, now, self._emit, model.EXPIRIES_PER_TICK)
        except Exception as error:
            self._stop_if_changed(before, "expiry of jobs", error)
            raise

    def _park(self, command: LeaseCommand, caller: Caller, request_id: int, ticket: Ticket, now: Now) -> None:
        if caller.session is not None:
            zombie = self._parked_by_request.get((caller.session, request_id))
            if zombie is not None:
                # The same request came again, and its first connection is not yet known to be gone.
                self._answer_parked(zombie, _nothing(now))
        self._parked_serial += 1
        deadline_ms = now.engine_ms + command.wait_ms
        parked = Parked(self._parked_serial, ticket, command, caller, request_id, deadline_ms)
        self._parked[parked.serial] = self._parked_by_ticket[ticket] = parked
        if caller.session is not None:
            self._parked_by_request[caller.session, request_id] = parked
        for name in command.queues:
            self._parked_by_queue.setdefault(name, {})[parked.serial] = parked
        self._parked_timers.push(deadline_ms, parked.serial)

    def _unpark(self, parked: Parked) -> None:
        del self._parked[parked.serial]
        del self._parked_by_ticket[parked.ticket]
        if parked.caller.session is not None:
            del self._parked_by_request[parked.caller.session, parked.request_id]
        for name in set(parked.command.queues):
            waiting = self._parked_by_queue[name]
            del waiting[parked.serial]
            if not waiting:
                del self._parked_by_queue[name]
        self._parked_timers.discard(parked.deadline_ms, parked.serial)

    def _answer_parked(self, parked: Parked, answer: Body | JqdError) -> None:
        self._unpark(parked)
        self.outbox.append((parked.ticket, parked.request_id, answer))

    def _serve_parked(self, now: Now) -> None:
        """Hand jobs that became ready to who waits for them, the longest waiting first."""
        heads = [
            (next(iter(waiting)), name)
            for name in self.state.woken
            if (waiting := self._parked_by_queue.get(name)) is not None
        ]
        self.state.woken.clear()
        heapify(heads)
        while heads:
            serial, name = heads[0]
            waiting = self._parked_by_queue.get(name)
            if waiting is None or not self.state.ready_ids(name, 1):
                heappop(heads)
            elif serial not in waiting:  # served already, with jobs of another queue
                heapreplace(heads, (next(iter(waiting)), name))
            else:
                parked = waiting[serial]
                body = self._decide(leasing.lease, parked.command, parked.caller, parked.request_id, now)
                if isinstance(body, Leased) and not body.jobs:
                    heappop(heads)  # what is ready has expired; the next tick says so
                else:
                    self._answer_parked(parked, body)

    def forgive(self, lag_ms: int) -> None:
        """From now on judge leases as of lag_ms ago: for that long nobody could be heard. 0: as of now."""
        self.state.lease_lag_ms = lag_ms

    def take_back(self, token: int, now: Now) -> None:
        """Undo a lease whose reply found its socket closed."""
        self._begin(now)
        leasing.take_back(token, self.state, self._emit)

    # --- time ---------------------------------------------------------------------------------

    def finish_turn(self, now: Now) -> int | None:
        """Let time pass if something is due, serve who is parked, note what was answered. The last call of a turn.

        Returns: what next_deadline() says now.
        """
        self._begin(now)
        deadline_ms = self.next_deadline(now)
        is_due = deadline_ms is not None and deadline_ms <= now.engine_ms
        if is_due:
            self._tick(now)
        count = len(self._changes)
        if self.state.woken:
            self._serve_parked(now)
        while self._parked_timers and self._parked_timers.first()[0] <= now.engine_ms:
            _, serial = self._parked_timers.first()
            self._answer_parked(self._parked[serial], _nothing(now))
        if self.state.ended or self._waits.due:
            self._waits.serve(now)
        if self._waits.timers:
            self._waits.expire(now)
        # Most turns do nothing here that has a time, and to ask all timers costs as much as the rest of this.
        if is_due or len(self._changes) > count or self._waits.due:
            deadline_ms = self.next_deadline(now)
        if self.state.marked:
            self._tell_holders()
        for session, answers in self._answers.items():
            self._emit(RequestsAnswered(session, list(answers.items())))
        self._answers.clear()
        return deadline_ms

    def _tell_holders(self) -> None:
        """Tell the sessions that hold jobs which of them were marked to end in this turn."""
        found: dict[bytes, dict[int, list[int]]] = {}  # session -> token -> job ids
        for job_id in self.state.marked:
            job = self.state.job(job_id)
            lease = job.lease if job is not None and job.cancel_marked else None
            if lease is not None and lease.session in self._attached:
                found.setdefault(lease.session, {}).setdefault(lease.token, []).append(job_id)
        self.state.marked.clear()
        for session, by_token in found.items():
            items = [(token, commands.to_ranges(ids)) for token, ids in by_token.items()]
            self.events += [(ticket, CancelRequested(items=items)) for ticket in self._attached[session]]

    def _tick(self, now: Now) -> None:
        """Do a bounded part of what is due; next_deadline() says whether more is."""
        state = self.state
        timed = state.lease_timers or state.delay_timers or state.result_timers
        if self._promotion_due(now) or (timed and self._high_water_due_ms() <= now.engine_ms):
            self._emit(TimeAdvanced(model.PROMOTIONS_PER_TICK))
        passing.expire_jobs(state, now, self._emit, model.EXPIRIES_PER_TICK)
        passing.expire_leases(state, now, self._emit, model.EXPIRIES_PER_TICK)
        self._end_leases_of_the_gone(now)
        passing.forget_keys(state, now, self._emit, model.EXPIRIES_PER_TICK)
        if state.ended or self._waits.due:
            self._waits.serve(now)
        # Who waits sees a job's end before it goes. Memory can wait for that: what more jobs may leave behind has a bound.
        are_seen = not self._waits.due
        if are_seen:
            passing.forget_old_jobs(state, now, self._emit, model.EXPIRIES_PER_TICK)
        passing.forget_results(state, now, self._emit, model.EXPIRIES_PER_TICK)
        if are_seen and state.result_bytes > model.RESULTS_BYTES_MAX:
            passing.forget_oldest_results(state, self._emit, model.RESULTS_PER_TICK)
        if are_seen and state.memory.ended_bytes > state.memory.ended_bytes_max:
            passing.forget_for_memory(state, self._emit, model.EXPIRIES_PER_TICK)
        old: list[bytes] = []
        for session, since_ms in self._detached.items():
            if since_ms + model.SESSION_RETENTION_MS > now.engine_ms or len(old) >= model.EXPIRIES_PER_TICK:
                break
            old.append(session)
        if old:
            for session in old:
                del self._detached[session]
            self._emit(SessionsForgotten(old))

    def _end_leases_of_the_gone(self, now: Now) -> None:
        """End the leases of sessions that did not come back in time.

        Judged as deadlines are: what came while the daemon stood still is heard first.
        """
        state, limit = self.state, model.EXPIRIES_PER_TICK
        while self._leaving:
            session, due_ms = next(iter(self._leaving.items()))
            if due_ms > judged_at_ms(state, now):
                return
            limit = passing.end_leases(session, self.unsent_grants, state, now, self._emit, limit)
            if not limit:
                return
            del self._leaving[session]

    def _promotion_due(self, now: Now) -> bool:
        state = self.state
        return state.delay_timers.next_ms() <= now.engine_ms or state.date_timers.next_ms() <= now.wall_ms

    def next_deadline(self, now: Now) -> int | None:
        """Return the engine_ms at which finish_turn() has something to do; None: only if asked."""
        state = self.state
        memory = state.memory
        if (
            state.overfull
            or state.result_bytes > model.RESULTS_BYTES_MAX
            or self._waits.due
            or memory.ended_bytes > memory.ended_bytes_max
        ):
            return now.engine_ms
        lease_ms, delay_ms = state.lease_timers.next_ms(), state.delay_timers.next_ms()
        if lease_ms < NEVER_MS:
            lease_ms += state.lease_lag_ms
        due_ms = min(lease_ms, delay_ms, earliest_ms(self._timers))
        if lease_ms < NEVER_MS or delay_ms < NEVER_MS or state.result_timers.heap:
            due_ms = min(due_ms, self._high_water_due_ms())
        date_ms = earliest_ms(self._dated)
        if date_ms < NEVER_MS:
            due_ms = min(due_ms, now.engine_ms + max(0, date_ms - now.wall_ms))
        if self._detached:
            due_ms = min(due_ms, next(iter(self._detached.values())) + model.SESSION_RETENTION_MS)
        if self._leaving:
            due_ms = min(due_ms, next(iter(self._leaving.values())) + state.lease_lag_ms)
        return due_ms if due_ms < NEVER_MS else None

    def _high_water_due_ms(self) -> int:
        """When the engine clock's high water is to be logged, while a timer by that clock is pending."""
        return self.state.now.engine_ms + model.HIGH_WATER_EVERY_MS

    # --- the turn's changes -------------------------------------------------------------------

    def take_batch(self) -> Batch | None:
        """Return what this turn changed as one record, and begin a new one."""
        assert not self._answers, "finish_turn() comes first: a change without its answer could happen twice"
        changes = self._changes
        state = self.state
        self._work_before = state.work
        if not changes:
            return None
        self._changes = []
        self._answers_bytes = 0
        payload = encode_batch(self._now, changes)
        return Batch(state.lsn - len(changes) + 1, len(changes), payload)

    @property
    def added_bytes_max(self) -> int:
        """Bytes that this turn's record can have so far, besides what its requests brought.

        A request of 30 bytes can end 10,000 jobs, and get an answer of 200 KB that is remembered.
        """
        work = self.state.work - self._work_before
        return self._answers_bytes + len(self._changes) * _FACT_BYTES_MAX + work * _FACT_JOB_BYTES_MAX

    @property
    def has_changes(self) -> bool:
        """Whether this turn has changed anything yet."""
        return bool(self._changes)

    def _begin(self, now: Now) -> None:
        assert not self._changes or now == self._now, "one reading of the clocks a turn"
        self._now = now

    def _emit(self, change: Change) -> None:
        self._changes.append(change)  # first: from here on a failure is fatal
        change.apply(self.state, self._now)
        self.state.lsn += 1
        self.state.now = self._now


def _nothing(now: Now) -> Leased:
    return Leased(token=0, lease_ms_left=0, wall_ms=now.wall_ms, jobs=[])

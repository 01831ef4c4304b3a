"""A core in the hand of a test: an engine, both clocks, its log, and one short verb per command.

Each verb is one loop turn of its own. `turn()` does what the driver does at the end of one; `check()` proves that
the indexes agree and that the log alone gives the same state.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from msgspec import Raw, Struct

from jqd.core import commands as c
from jqd.core.changes import AnyChange, decode_batch, encode_part
from jqd.core.dump import Dump
from jqd.core.engine import Batch, Engine, Ticket
from jqd.core.model import LOCAL, Caller, Job, Now
from jqd.core.queues import Identity
from jqd.core.state import State
from jqd.errors import JqdError

ENGINE_MS = 10_000
WALL_MS = 1_700_000_000_000
IDENTITY = Identity(server="jqd test", store_id="5709e")
# More turns than this for one moment in time would be a loop that gets nowhere.
TURNS_MAX = 1_000


class Core:
    """See the file's first lines."""

    def __init__(self, *, engine_ms: int = ENGINE_MS, wall_ms: int = WALL_MS) -> None:
        self.engine_ms = engine_ms
        self.wall_ms = wall_ms
        self._now = Now(0, 0)
        self.log: list[Batch] = []
        self.answers: list[tuple[Ticket, int, Any]] = []  # what parked requests got
        self._next_request_id = 0
        self._connections: dict[bytes, list[Ticket]] = {}  # of sessions, in this run
        self.engine = Engine(State(), IDENTITY)
        self.engine.start(self.now, "0")
        self.write()

    # --- time and turns -----------------------------------------------------------------------

    @property
    def now(self) -> Now:
        """One reading of the clocks: the same object until they move."""
        now = Now(self.engine_ms, self.wall_ms)
        if now != self._now:
            self._now = now
        return self._now

    @property
    def state(self) -> State:
        return self.engine.state

    def write(self) -> list[AnyChange]:
        """Take the turn's record into the log; return its changes."""
        batch = self.engine.take_batch()
        if batch is None:
            return []
        self.log.append(batch)
        return decode_batch(batch.payload).changes

    def turn(self) -> list[AnyChange]:
        """End a turn as the driver does; return what it changed."""
        self.engine.finish_turn(self.now)
        for ticket, request_id, answer in self.engine.outbox:
            self.answers.append((ticket, request_id, decoded(c.Lease, answer)))
        self.engine.outbox.clear()
        return self.write()

    def settle(self) -> list[AnyChange]:
        """Take turns until nothing is due at this moment; return all that changed."""
        changes: list[AnyChange] = []
        for _ in range(TURNS_MAX):
            changes += self.turn()
            due_ms = self.engine.next_deadline(self.now)
            if due_ms is None or due_ms > self.engine_ms:
                return changes
        raise AssertionError("there is no end to what is due")

    def move(self, ms: int, *, wall_ms: int | None = None) -> None:
        """Move the clocks without letting anything happen. wall_ms: by how much that one moves instead."""
        self.engine_ms += ms
        self.wall_ms += ms if wall_ms is None else wall_ms

    def wait(self, ms: int, *, wall_ms: int | None = None) -> list[AnyChange]:
        """Let time pass, with a turn only at its end; return what changed."""
        self.move(ms, wall_ms=wall_ms)
        return self.settle()

    def restart(
        self, *, down_ms: int = 0, wall_ms: int | None = None, parts: Iterable[bytes] | None = None
    ) -> None:
        """Kill the daemon and start it on its log. The engine clock stands still while it is down.

        parts: of a snapshot, of which the log then only goes on.
        """
        self.wall_ms += down_ms if wall_ms is None else wall_ms
        state = replayed(self.log) if parts is None else restored_from(parts, self.log)
        self.engine_ms = state.now.engine_ms
        self.engine = Engine(state, IDENTITY)
        self._connections.clear()
        self.engine.start(self.now, "0")
        self.write()

    def check(self) -> None:
        self.write()
        self.state.check()
        again = replayed(self.log)
        again.check()
        assert again.digest() == self.state.digest(), "the log gives another state"
        if self.state.keeper is None:
            restored = restored_from(parts_of(self.engine.begin_dump()))
            restored.check()
            assert restored.digest() == self.state.digest(), "a snapshot gives another state"

    # --- commands -----------------------------------------------------------------------------

    def execute(
        self,
        command: c.Command[Any],
        caller: Caller = LOCAL,
        *,
        request_id: int | None = None,
        ticket: Ticket = "connection",
    ) -> Any:
        """Carry out one command within a turn that goes on; return its reply decoded, None if it is parked."""
        if request_id is None:
            request_id = self._next_request_id = self._next_request_id + 1
        return decoded(command, self.engine.execute(command, caller, request_id, ticket, self.now))

    def submit_run(self, run: Sequence[tuple[int, c.Submit]], caller: Caller = LOCAL) -> list[Any]:
        """Carry out submits that came together; return replies, and the codes of refusals."""
        ids, commands = zip(*run, strict=True)
        return [
            answer.code if isinstance(answer, JqdError) else decoded(c.Submit, answer)
            for answer in self.engine.submit_run(ids, commands, caller, self.now)
        ]

    def do(
        self,
        command: c.Command[Any],
        caller: Caller = LOCAL,
        *,
        request_id: int | None = None,
        ticket: Ticket = "connection",
    ) -> Any:
        """Carry out one command in a turn of its own."""
        reply = self.execute(command, caller, request_id=request_id, ticket=ticket)
        self.turn()
        return reply

    def connect(self, session: bytes | None = None, **fields: Any) -> tuple[Caller, c.Welcome]:
        """Say hello over a connection of its own."""
        ticket = object()
        reply = self.engine.hello(c.Hello(**{"version": 1, "session": session, **fields}), self.now, ticket)
        if session is not None:
            self._connections.setdefault(session, []).append(ticket)
        return reply

    def hello(self, session: bytes | None = None, **fields: Any) -> Caller:
        caller, _ = self.connect(session, **fields)
        self.write()
        return caller

    def leave(self, caller: Caller, *, lost: bool = True) -> None:
        """End a connection of this caller's session."""
        assert caller.session is not None
        self.engine.disconnect(caller, self._connections[caller.session].pop(), self.now, lost=lost)

    def submit(self, payload: bytes = b"", caller: Caller = LOCAL, **fields: Any) -> int:
        return self.do(c.Submit(payload=payload, **fields), caller).job_id  # type: ignore[no-any-return]

    def submit_jobs(self, count: int, **fields: Any) -> list[int]:
        """Submit jobs in bulk; return their ids."""
        group = c.SubmitGroup(payloads=[b""] * count, **fields)
        ((first, _, _),) = self.do(c.SubmitMany(groups=[group])).jobs
        return list(range(first, first + count))

    def lease(self, *queues: str, caller: Caller = LOCAL, **fields: Any) -> c.Leased:
        if queues:
            fields["queues"] = list(queues)
        return self.do(c.Lease(**fields), caller)  # type: ignore[no-any-return]

    def lease_ids(self, *queues: str, **fields: Any) -> list[int]:
        return ids_of(self.lease(*queues, **fields))

    def held(self, *queues: str, **fields: Any) -> tuple[int, int]:
        """Lease one job; return (token, job id)."""
        leased = self.lease(*queues, **fields)
        return leased.token, leased.jobs[0].job_id

    def ack(self, token: int, *job_ids: int, result: bytes | None = None, **fields: Any) -> list[c.Verdict]:
        items = [(token, c.to_ranges(list(job_ids)), result)]
        return self.do(c.Ack(items=items, **fields)).results  # type: ignore[no-any-return]

    def fail(self, token: int, *job_ids: int, **fields: Any) -> list[c.Verdict]:
        return self.do(c.Fail(items=held_items(token, job_ids), **fields)).results  # type: ignore[no-any-return]

    def release(self, token: int, *job_ids: int, **fields: Any) -> list[c.Verdict]:
        return self.do(c.Release(items=held_items(token, job_ids), **fields)).results  # type: ignore[no-any-return]

    def extend(self, token: int, *job_ids: int, **fields: Any) -> c.Extended:
        return self.do(c.Extend(items=held_items(token, job_ids), **fields))  # type: ignore[no-any-return]

    def cancel(self, *job_ids: int) -> c.Swept:
        return self.do(c.Cancel(ids=c.to_ranges(list(job_ids))))  # type: ignore[no-any-return]

    def requeue(self, *job_ids: int) -> c.Swept:
        return self.do(c.Requeue(ids=c.to_ranges(list(job_ids))))  # type: ignore[no-any-return]

    def purge(self, *job_ids: int) -> c.Swept:
        return self.do(c.Purge(ids=c.to_ranges(list(job_ids))))  # type: ignore[no-any-return]

    def get(self, job_id: int) -> c.JobInfo:
        return self.do(c.Get(job_id=job_id))  # type: ignore[no-any-return]

    def job(self, job_id: int) -> Job:
        return self.state.known_job(job_id)

    def states(self, *job_ids: int) -> list[str]:
        """Return the states of jobs by their wire names, "gone" where there is none."""
        jobs = [self.state.job(job_id) for job_id in job_ids]
        return ["gone" if job is None else job.state.wire_name for job in jobs]


def held_items(token: int, job_ids: Sequence[int]) -> list[tuple[int, list[tuple[int, int]]]]:
    return [(token, c.to_ranges(list(job_ids)))]


def ids_of(leased: c.Leased) -> list[int]:
    return [job.job_id for job in leased.jobs]


def decoded(command: c.Command[Any] | type[c.Command[Any]], body: Struct | Raw | JqdError | None) -> Any:
    """Return a body as its Struct, also where the engine kept it encoded."""
    return msgspec.msgpack.decode(body, type=command.reply) if isinstance(body, Raw) else body


def parts_of(dump: Dump) -> list[bytes]:
    """Return all that a dump has still to say, as the records of a snapshot."""
    parts: list[bytes] = []
    while images := dump.take_slice():
        parts.append(encode_part(images))
    return parts


def restored_from(parts: Iterable[bytes], log: Iterable[Batch] = ()) -> State:
    """Return the state that a snapshot, and the log behind it, give."""
    engine = Engine(State(), IDENTITY)
    for part in parts:
        engine.restore(part)
    for batch in log:
        if batch.first_lsn > engine.state.lsn:
            engine.replay(batch.first_lsn, batch.count, batch.payload)
    return engine.state


def replayed(log: Iterable[Batch]) -> State:
    """Return the state that a log gives."""
    engine = Engine(State(), IDENTITY)
    for batch in log:
        engine.replay(batch.first_lsn, batch.count, batch.payload)
    return engine.state

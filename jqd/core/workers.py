"""Which workers there are, what they have said of themselves, and what they were told to do.

Knows:         how a worker is named, when it counts as gone, when an order is carried out.
Must not know: what is on disk: a worker is as durable as its connection. After a restart of the daemon each connects
               and says again what it is; that it is quiet is the worker's own knowledge.

    register   a worker's session -> an entry; again with each beat, which also brings back an order that is open
    left       its last connection has ended: the entry goes when the grace of the session is over
    tell       an order is open until the worker says that it is in the state that it was told

What it holds is not what it says: leases are looked up by its session.
"""

from collections.abc import Iterable
from hashlib import blake2b
from typing import Final

from msgspec import Struct

from jqd.core import model
from jqd.core.commands import (
    ListWorkers,
    Register,
    Registered,
    TellWorkers,
    WorkerInfo,
    WorkerList,
    to_ranges,
)
from jqd.core.deciding import live_jobs
from jqd.core.model import Caller, Now, WorkerOrder, WorkerState
from jqd.core.state import State
from jqd.errors import InvalidArgument, Overloaded, WorkerNotFound

# 48 bits: among 5,000 workers two have the same id once in 20 million times; and nobody finds the session by it.
_ID_BYTES: Final = 6
# In which states an order is carried out. One that stops is beyond all others.
_OBEYED: Final[dict[WorkerOrder, frozenset[WorkerState]]] = {
    "quiet": frozenset({"quiet", "stopping"}),
    "resume": frozenset({"running", "stopping"}),
    "stop": frozenset({"stopping"}),
}
# What a worker takes in a reply besides its texts. An estimate.
_INFO_BYTES: Final = 300
_RANGE_BYTES: Final = 12
_CHAR_BYTES_MAX: Final = 4


class Worker(Struct, gc=False):
    """What is known of one."""

    worker_id: str
    session: bytes
    label: str
    said: Register
    since_wall_ms: int
    state_since_wall_ms: int
    heard_ms: int  # engine clock
    order: WorkerOrder | None = None


class Workers:
    """See the file's card. At most WORKERS_MAX of them."""

    def __init__(self) -> None:
        self._by_session: dict[bytes, Worker] = {}
        self._leaving: dict[
            bytes, int
        ] = {}  # session without a connection -> when its entry goes, soonest first

    def __len__(self) -> int:
        return len(self._by_session)

    # --- connections --------------------------------------------------------------------------

    def came_back(self, session: bytes) -> None:
        """A session has a connection."""
        self._leaving.pop(session, None)

    def left(self, session: bytes, due_ms: int) -> None:
        """A session has lost its last connection; it has until due_ms to come back."""
        if session in self._by_session:
            self._leaving[session] = due_ms

    def _forget(self, now: Now) -> None:
        while self._leaving:
            session, due_ms = next(iter(self._leaving.items()))
            if due_ms > now.engine_ms:
                return
            del self._leaving[session], self._by_session[session]

    # --- what they say ------------------------------------------------------------------------

    def register(self, command: Register, caller: Caller, now: Now) -> Registered:
        """Note what a worker says of itself.

        Raises: InvalidArgument (no session; a queue's name), Overloaded (WORKERS_MAX).
        """
        if caller.session is None:
            raise InvalidArgument("register: a worker is known by its session: say one in hello")
        for name in command.queues:
            model.check_name("queues", name)
        self._forget(now)
        worker = self._by_session.get(caller.session)
        if worker is None:
            if len(self._by_session) >= model.WORKERS_MAX:
                raise Overloaded(
                    f"{len(self._by_session)} workers are registered: the limit is {model.WORKERS_MAX}",
                    retry_after_ms=model.MINUTE_MS,
                )
            worker = self._by_session[caller.session] = Worker(
                blake2b(caller.session, digest_size=_ID_BYTES).hexdigest(),
                caller.session,
                caller.worker,
                command,
                now.wall_ms,
                now.wall_ms,
                now.engine_ms,
            )
        elif command.state != worker.said.state:
            worker.state_since_wall_ms = now.wall_ms
        worker.said = command
        worker.heard_ms = now.engine_ms
        if worker.order is not None and command.state in _OBEYED[worker.order]:
            worker.order = None
        return Registered(worker_id=worker.worker_id, order=worker.order, beat_ms=model.WORKER_BEAT_MS)

    # --- what is asked about them -------------------------------------------------------------

    def show(self, command: ListWorkers, state: State, now: Now) -> WorkerList:
        """Show workers in order of their ids, after `cursor`.

        Cost: O(workers log workers + live leases + jobs that the workers shown hold).
        """
        self._forget(now)
        state.work += len(self._by_session)
        behind = sorted(
            (worker for worker in self._by_session.values() if worker.worker_id > command.cursor),
            key=lambda worker: worker.worker_id,
        )
        page = behind[: command.limit]
        held = _held_by({worker.session for worker in page}, state)
        infos: list[WorkerInfo] = []
        size = 0
        for worker in page:
            info = _info(worker, held[worker.session], now)
            size += _bytes(info)
            if infos and size > model.REPLY_BYTES_MAX:
                break
            infos.append(info)
        cursor = infos[-1].worker_id if len(infos) < len(behind) else None
        return WorkerList(workers=infos, cursor=cursor)

    def tell(self, command: TellWorkers, now: Now) -> list[Worker]:
        """Note an order, and return the workers that are to be told, in order of their ids.

        One that stops is told nothing else, and one that does what it is told already is told again.

        Raises: InvalidArgument, WorkerNotFound: of a name, and then nobody is told anything.
        """
        if (command.workers is not None) is command.all:
            raise InvalidArgument("tell_workers: give workers, or all = true")
        self._forget(now)
        found = self._by_session.values() if command.workers is None else self._named(command.workers)
        told = [worker for worker in found if worker.said.state != "stopping" or command.order == "stop"]
        for worker in told:
            worker.order = command.order  # also if its state is that: an earlier order may be on its way
        return sorted(told, key=lambda worker: worker.worker_id)

    def _named(self, names: Iterable[str]) -> list[Worker]:
        by_name: dict[str, dict[bytes, Worker]] = {}
        for worker in self._by_session.values():
            for name in (worker.worker_id, worker.label):
                by_name.setdefault(name, {})[worker.session] = worker
        found: dict[bytes, Worker] = {}
        for name in dict.fromkeys(names):  # a label may be that of all of them
            if name not in by_name:
                raise WorkerNotFound(
                    f"worker {model.shorten(name)}: none with this id or label is registered"
                )
            found |= by_name[name]
        return list(found.values())


def _held_by(sessions: set[bytes], state: State) -> dict[bytes, list[int]]:
    """Return the ids of the jobs that these sessions hold, in order."""
    held: dict[bytes, list[int]] = {session: [] for session in sessions}
    state.work += len(state.leases)
    for parts in state.leases.values():
        for lease in parts.values():
            if lease.session in held:
                held[lease.session] += [job.id for job in live_jobs(lease, state)]
    for ids in held.values():
        ids.sort()
    return held


def _info(worker: Worker, held: list[int], now: Now) -> WorkerInfo:
    said = worker.said
    return WorkerInfo(
        worker_id=worker.worker_id,
        worker=worker.label,
        host=said.host,
        pid=said.pid,
        version=said.version,
        queues=said.queues,
        concurrency=said.concurrency,
        state=said.state,
        order=worker.order,
        leased=len(held),
        jobs=to_ranges(held)[: model.WORKER_RANGES_MAX],
        since_wall_ms=worker.since_wall_ms,
        state_since_wall_ms=worker.state_since_wall_ms,
        heard_ms_ago=now.engine_ms - worker.heard_ms,
    )


def _bytes(info: WorkerInfo) -> int:
    chars = sum(map(len, (info.worker, info.host, info.version, *info.queues)))
    return _INFO_BYTES + _CHAR_BYTES_MAX * chars + _RANGE_BYTES * len(info.jobs)

"""What can be asked about queues and the whole daemon.

Knows:         how State counts.
Must not know: how a job moves, sockets.
"""

from msgspec import Struct

from jqd.core.commands import QueueInfo, QueueList, Queues, ServerStats
from jqd.core.deciding import Emit
from jqd.core.model import STATE_NAMES, Caller, JobState, Now
from jqd.core.state import Queue, State


class Identity(Struct, frozen=True):
    """What the daemon says of itself. public store id: clients notice by it that a store was exchanged."""

    server: str
    store_id: str


def queues(command: Queues, state: State, caller: Caller, now: Now, emit: Emit) -> QueueList:  # noqa: ARG001
    """Show queues in order of their names, after `cursor`.

    Cost: O(queues log queues).
    """
    state.work += len(state.queues)
    names = sorted(name for name in state.queues if name > command.cursor)
    page = names[: command.limit]
    cursor = page[-1] if len(names) > len(page) else None
    return QueueList(queues=[_queue_info(state.queues[name]) for name in page], cursor=cursor)


def _queue_info(queue: Queue) -> QueueInfo:
    counts = {state.wire_name: queue.counts[state] for state in JobState}
    return QueueInfo(queue=queue.name, **counts)


def stats(identity: Identity, state: State, now: Now, uptime_ms: int, parked_count: int) -> ServerStats:
    """Show figures of the daemon; the driver adds those of the process.

    Cost: O(queues).
    """
    state.work += len(state.queues)
    return ServerStats(
        server=identity.server,
        store_id=identity.store_id,
        epoch=state.epoch,
        engine_ms=now.engine_ms,
        wall_ms=now.wall_ms,
        uptime_ms=uptime_ms,
        lsn=state.lsn,
        jobs=dict(zip(STATE_NAMES, state.counts(), strict=True)),
        queue_count=len(state.queues),
        lease_count=len(state.leases),
        parked_count=parked_count,
        session_count=len(state.sessions),
        key_count=state.keys.count,
        result_bytes=state.result_bytes,
        process={},
    )

"""What can be asked about queues and the whole daemon, and what can be set of a queue.

Knows:         how State counts, what a queue's settings mean together.
Must not know: how a job moves, which setting holds for a job (settings.py), sockets.
"""

from heapq import nsmallest
from operator import attrgetter, neg
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from jqd.core import backoff, memory, model
from jqd.core.changes import QueueSet
from jqd.core.commands import (
    GetQueue,
    Pause,
    QueueChanged,
    QueueDetails,
    QueueInfo,
    QueueList,
    Queues,
    Resume,
    ServerStats,
    SetQueue,
)
from jqd.core.deciding import Emit, check_memory
from jqd.core.model import STATE_NAMES, Caller, JobState, Now, QueueSettings
from jqd.core.state import Queue, State
from jqd.errors import Overloaded

# In an answer of stats: those that take most.
TENANTS_SHOWN_MAX: Final = 20


class Identity(Struct, frozen=True):
    """What the daemon says of itself. public store id: clients notice by it that a store was exchanged."""

    server: str
    store_id: str


def queues(command: Queues, state: State, caller: Caller, now: Now, emit: Emit) -> QueueList:  # noqa: ARG001
    """Show queues in order of their names, after `cursor`.

    Cost: O(queues log queues + priorities in use of those shown).
    """
    state.work += len(state.queues)
    names = sorted(name for name in state.queues if name > command.cursor)
    page = names[: command.limit]
    cursor = page[-1] if len(names) > len(page) else None
    return QueueList(queues=[_queue_info(state.queues[name], state, now) for name in page], cursor=cursor)


def get_queue(command: GetQueue, state: State, caller: Caller, now: Now, emit: Emit) -> QueueDetails:  # noqa: ARG001
    """Show one queue.

    Raises: QueueNotFound.
    """
    queue = state.known_queue(command.queue)
    settings = queue.settings
    return QueueDetails(
        info=_queue_info(queue, state, now),
        lease_ms=settings.lease_ms or model.LEASE_MS_DEFAULT,
        max_retries=_or_default(settings.max_retries, model.MAX_RETRIES_DEFAULT),
        max_crashes=_or_default(settings.max_crashes, model.MAX_CRASHES_DEFAULT),
        retry=settings.retry or backoff.DEFAULT,
        retention_ms=queue.retention_ms,
        dead_retention_ms=queue.dead_retention_ms,
        length_max=settings.length_max or 0,
        waits=_counted(queue.waits),
        runs=_counted(queue.runs),
    )


def set_queue(command: SetQueue, state: State, caller: Caller, now: Now, emit: Emit) -> QueueChanged:  # noqa: ARG001
    """Change what holds in a queue, or make one. What it is paused stays, also with `reset`.

    Raises: InvalidArgument, Overloaded (QUEUES_SET_MAX; memory, where one is made).
    """
    model.check_name("queue", command.queue)
    if command.retry is not None:
        backoff.check_policy("retry", command.retry)
    old = _settings(command.queue, state)
    said = {name: value for name in _SETTINGS if (value := getattr(command, name)) is not None}
    if said.get("length_max") == 0:
        said["length_max"] = None
    new = replace(
        QueueSettings(paused=old.paused) if command.reset else old,
        kept=bool(said) or not command.reset,
        **said,
    )
    return _change(command.queue, old, new, state, caller, emit)


def pause(command: Pause, state: State, caller: Caller, now: Now, emit: Emit) -> QueueChanged:  # noqa: ARG001
    """Hand out nothing of a queue, which is made if there is none: jobs that come later wait as well.

    Raises: InvalidArgument, Overloaded (QUEUES_SET_MAX; memory, where one is made).
    """
    model.check_name("queue", command.queue)
    old = _settings(command.queue, state)
    return _change(command.queue, old, replace(old, paused=True), state, caller, emit)


def resume(command: Resume, state: State, caller: Caller, now: Now, emit: Emit) -> QueueChanged:  # noqa: ARG001
    """Hand out the jobs of a queue again; who waits for them is served in this turn.

    Raises: QueueNotFound.
    """
    old = state.known_queue(command.queue).settings
    return _change(command.queue, old, replace(old, paused=False), state, caller, emit)


_SETTINGS: Final = (
    *("lease_ms", "max_retries", "max_crashes", "retry", "retention_ms", "dead_retention_ms", "length_max"),
)


def _settings(name: str, state: State) -> QueueSettings:
    queue = state.queues.get(name)
    return model.UNSET_QUEUE if queue is None else queue.settings


def _change(
    name: str, old: QueueSettings, new: QueueSettings, state: State, caller: Caller, emit: Emit
) -> QueueChanged:
    if new != old:
        if old == model.UNSET_QUEUE and len(state.set_queues) >= model.QUEUES_SET_MAX:
            raise Overloaded(
                f"{len(state.set_queues)} queues have settings: the limit is {model.QUEUES_SET_MAX}",
                retry_after_ms=model.MINUTE_MS,
            )
        if name not in state.queues:
            check_memory(state, memory.queue_bytes(name))
        emit(QueueSet(name, new, caller.principal))
    return QueueChanged(queue=name, paused=new.paused)


def _or_default(value: int | None, default: int) -> int:
    return default if value is None else value


def _counted(durations: list[int]) -> list[tuple[int, int]]:
    """Return (ms, jobs) for the durations that occurred; a bit length of n is less than 2^n ms."""
    return [(1 << bits, count) for bits, count in enumerate(durations) if count]


def _queue_info(queue: Queue, state: State, now: Now) -> QueueInfo:
    counts: dict[str, Any] = {each.wire_name: queue.counts[each] for each in JobState}
    since_ms = state.oldest_ready_ms(queue)
    return QueueInfo(
        queue=queue.name,
        paused=queue.settings.paused,
        ready_age_ms=None if since_ms is None else now.engine_ms - since_ms,
        memory_bytes=queue.bytes,
        **counts,
    )


def stats(
    identity: Identity, state: State, now: Now, uptime_ms: int, parked_count: int, waiting_count: int
) -> ServerStats:
    """Show figures of the daemon; the driver adds those of the process.

    Cost: O(queues + tenants).
    """
    state.work += len(state.queues) + len(state.tenants)
    # Without a key, which would be called for each. Of equal ones the first by name: names mostly came in that order, and
    # one that stands behind all that were found costs one comparison.
    sizes = map(attrgetter("bytes"), state.tenants.values())
    largest = nsmallest(TENANTS_SHOWN_MAX, zip(map(neg, sizes), state.tenants, strict=True))
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
        waiting_count=waiting_count,
        session_count=len(state.sessions),
        key_count=state.keys.count,
        result_bytes=state.result_bytes,
        memory_bytes=state.memory.bytes,
        ended_bytes=state.memory.ended_bytes,
        tenant_count=len(state.tenants),
        tenants={name: -size for size, name in largest},
        process={},
    )

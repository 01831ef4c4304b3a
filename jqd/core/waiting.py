"""Who waits for jobs to come to their end: what a wait is answered, and when, without polling.

Knows:         which jobs somebody waits for, what a reply says of them, whose time is over.
Must not know: why a job ends, sessions and their answers: a wait changes nothing.

    State.watched   the jobs that somebody waits for: while it is empty, the end of a job costs nothing here
    State.ended     those of them that ended, or went, since the engine last looked
    due             waits that may have their answer now; looked at in bounded parts, so that a job for which all
                    the world waits does not stop the loop

Each wait knows the jobs of which it has not heard yet. When it has heard of one (or with `all` of every one) it looks
at them anew, since a dead job may have been revived in between; if that is so it waits on.
"""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final

from msgspec import Raw, Struct

from jqd.core import model
from jqd.core.commands import EndedJob, Wait, Waited, to_ranges
from jqd.core.deciding import REPLY_JOB_BYTES
from jqd.core.model import Job, Now
from jqd.core.ordered import TimerHeap
from jqd.core.reading import shown_result
from jqd.core.state import ENDED, State
from jqd.errors import InvalidArgument, JqdError, Overloaded

# Jobs that parked waits are looked up for in one turn: some 10 ms.
_LOOKS_PER_TURN: Final = 20_000
# What counts as one of them as well: a twentieth of what it costs to end a wait and send its answer, and so many bytes
# of results in it.
_ANSWER_LOOKS: Final = 20
_LOOK_BYTES: Final = 4 << 10


class _Parked(Struct, eq=False):
    """A wait that has no answer yet. left: jobs of which it has not heard."""

    serial: int
    ticket: Hashable
    request_id: int
    command: Wait
    deadline_ms: int
    left: set[int]


class Waits:
    """See the file's card.

    Args:
        outbox: gets (ticket, request id, answer) of each that was parked.
    """

    def __init__(self, state: State, outbox: list[tuple[Hashable, int, Struct | Raw | JqdError]]) -> None:
        self._state = state
        self._outbox = outbox
        self._parked: dict[int, _Parked] = {}
        self._by_ticket: dict[Hashable, dict[int, _Parked]] = {}
        self._by_job: dict[int, dict[int, _Parked]] = {}  # job id -> serial -> the wait
        self._watched_count = 0  # jobs of all waits, a job once for each
        self._serial = 0
        self.timers: TimerHeap[int] = TimerHeap()
        # No dict: one that gives up its first key walks each time past all that have gone.
        self.due: OrderedDict[int, _Parked] = OrderedDict()
        state.watched = self._by_job

    def __len__(self) -> int:
        return len(self._parked)

    # --- a request ----------------------------------------------------------------------------

    def ask(self, command: Wait, request_id: int, ticket: Hashable, now: Now) -> Waited | None:
        """Answer a wait, or park it.

        Returns: None: parked, its answer comes through the outbox.
        Raises:  InvalidArgument, Overloaded (WAITED_JOBS_MAX).
        """
        count = _check_ids(command)
        waited = _look(command, self._state, now)
        if not command.wait_ms or _is_met(command, waited):
            return waited
        if self._watched_count + count > model.WAITED_JOBS_MAX:
            raise Overloaded(
                f"{self._watched_count} jobs are waited for: the limit is {model.WAITED_JOBS_MAX}",
                retry_after_ms=model.SECOND_MS,
            )
        self._park(command, request_id, ticket, now)
        return None

    def _park(self, command: Wait, request_id: int, ticket: Hashable, now: Now) -> None:
        self._serial += 1
        deadline_ms = now.engine_ms + command.wait_ms
        left = _pending_ids(command, self._state)
        parked = _Parked(self._serial, ticket, request_id, command, deadline_ms, left)
        self._parked[parked.serial] = parked
        self._by_ticket.setdefault(ticket, {})[parked.serial] = parked
        for (
            first,
            count,
        ) in command.ids:  # also those that have ended: a dead one may be revived, and end again
            self._watched_count += count
            for job_id in range(first, first + count):
                self._by_job.setdefault(job_id, {})[parked.serial] = parked
        self.timers.push(deadline_ms, parked.serial)

    def _unpark(self, parked: _Parked) -> None:
        del self._parked[parked.serial]
        mine = self._by_ticket[parked.ticket]
        del mine[parked.serial]
        if not mine:
            del self._by_ticket[parked.ticket]
        for first, count in parked.command.ids:
            self._watched_count -= count
            for job_id in range(first, first + count):
                waits = self._by_job[job_id]
                del waits[parked.serial]
                if not waits:
                    del self._by_job[job_id]
        self.timers.discard(parked.deadline_ms, parked.serial)
        self.due.pop(parked.serial, None)

    def drop(self, ticket: Hashable) -> None:
        """Forget what a connection waits for: nothing can be answered there any more."""
        for parked in list(self._by_ticket.get(ticket, {}).values()):
            self._unpark(parked)

    # --- answers ------------------------------------------------------------------------------

    def serve(self, now: Now) -> None:
        """Answer those that have what they wait for: a bounded part; `due` has the rest."""
        state = self._state
        for job_id in state.ended:
            for parked in self._by_job.get(job_id, {}).values():
                parked.left.discard(job_id)
                if not parked.command.all or not parked.left:
                    self.due[parked.serial] = parked
        state.ended.clear()
        end = state.work + _LOOKS_PER_TURN
        while self.due and state.work < end:
            _, parked = self.due.popitem(last=False)
            waited = _look(parked.command, state, now)
            if _is_met(parked.command, waited):
                self._answer(parked, waited)
            else:  # revived in between
                parked.left = _pending_ids(parked.command, state)

    def expire(self, now: Now) -> None:
        """Answer those whose time is over with what there is."""
        end = self._state.work + _LOOKS_PER_TURN
        while self.timers.next_ms() <= now.engine_ms and self._state.work < end:
            self._answer_as_it_is(self._parked[self.timers.first()[1]], now)

    def answer_all(self, now: Now) -> None:
        """Send everybody away with what there is."""
        for parked in list(self._parked.values()):
            self._answer_as_it_is(parked, now)

    def _answer_as_it_is(self, parked: _Parked, now: Now) -> None:
        self._answer(parked, _look(parked.command, self._state, now))

    def _answer(self, parked: _Parked, waited: Waited) -> None:
        self._unpark(parked)
        self._state.work += _ANSWER_LOOKS
        self._outbox.append((parked.ticket, parked.request_id, waited))


def _check_ids(command: Wait) -> int:
    """Refuse too many jobs, or one that is named twice; return how many they are."""
    total = sum(count for _, count in command.ids)
    if total > model.WAIT_JOBS_MAX:
        raise InvalidArgument(f"ids = {total} jobs: the limit is {model.WAIT_JOBS_MAX} a wait")
    end = 0
    for first, count in sorted(command.ids):
        if first < end:
            raise InvalidArgument(f"job_id = {first} is named twice in one request")
        end = first + count
    return total


def _is_met(command: Wait, waited: Waited) -> bool:
    if command.all:
        return not waited.pending
    return bool(waited.jobs or waited.gone)


def _look(command: Wait, state: State, now: Now) -> Waited:
    """Say how the jobs stand, within the bytes of a reply."""
    jobs: list[EndedJob] = []
    gone: list[int] = []
    pending = size = 0
    for first, count in command.ids:
        state.work += count
        for job_id, job in enumerate(state.pages.run(first, count), first):
            if job is None:
                gone.append(job_id)
            elif job.state not in ENDED:
                pending += 1
            elif size <= model.REPLY_BYTES_MAX:
                size += _reply_bytes(job)
                if not jobs or size <= model.REPLY_BYTES_MAX:
                    jobs.append(_ended(job, now))
    state.work += size // _LOOK_BYTES
    return Waited(jobs=jobs, pending=pending, gone=to_ranges(gone))


def _pending_ids(command: Wait, state: State) -> set[int]:
    return {
        job_id
        for first, count in command.ids
        for job_id, job in enumerate(state.pages.run(first, count), first)
        if job is not None and job.state not in ENDED
    }


def _reply_bytes(job: Job) -> int:
    outcome = job.outcome
    if outcome is None:
        return REPLY_JOB_BYTES
    return REPLY_JOB_BYTES + len(outcome.result or b"") + len(outcome.error.encode())


def _ended(job: Job, now: Now) -> EndedJob:
    ended = EndedJob(job_id=job.id, state=job.state.wire_name, changed_wall_ms=job.changed.wall_ms)
    if job.outcome is not None:
        ended.reason, ended.error = job.outcome.reason, job.outcome.error
        ended.result, ended.result_encoding, ended.result_expired = shown_result(job, job.outcome, now)
    return ended

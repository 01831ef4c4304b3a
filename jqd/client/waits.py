"""Waiting for jobs: what is asked, for how long, and when somebody has waited long enough.

Knows:         how one wait becomes requests of at most 1,000 jobs and 30 s each, what ends it, what is asked again.
Must not know: sockets, asyncio (handle.py waits for coroutines: who does without a loop does not load it).
"""

import math
import time
from collections.abc import Iterable
from typing import Final, Protocol, TypeVar

from jqd.client.values import Duration, to_ms
from jqd.core.commands import Command, EndedJob, Wait, Waited, to_ranges
from jqd.core.model import WAIT_JOBS_MAX, WAIT_MS_MAX
from jqd.errors import Draining, InvalidArgument, JobNotFound, JqdError, RequestTimeout, WaitTimeout

R = TypeVar("R")

# How much longer than its caller's time the last request of a wait gets for its answer.
_GRACE_S: Final = 1.0
# Before a server that is about to end is asked again, where it does not say.
_AGAIN_S: Final = 1.0


class Call(Protocol):
    """Sends a command and waits for its reply, as Client.call."""

    def __call__(self, command: Command[R], /, *, timeout: Duration | None = None) -> R: ...


class Wanted:
    """Jobs that somebody waits for, and what is known of them.

        while not wanted.is_met:
            command, timeout_s = wanted.next_request()
            try: wanted.take(call(command, timeout=timeout_s))
            except JqdError as error: sleep(wanted.pause_s(error))

    Args:
        timeout: Duration; None: as long as it takes.
        all: until every one of them is at its end; False: until one is.
    Raises: InvalidArgument: no jobs; more than 1,000 without `all`.
    """

    def __init__(self, ids: Iterable[int], timeout: Duration | None, *, all: bool) -> None:
        self._ids = dict.fromkeys(ids)
        self._left = dict(self._ids)  # not at their end yet, as far as it is known
        self._jobs: dict[int, EndedJob] = {}
        self._all = all
        self._timeout_s = None if timeout is None else to_ms("timeout", timeout) / 1_000
        self._ends_at = math.inf if self._timeout_s is None else time.monotonic() + self._timeout_s
        if not self._ids:
            raise InvalidArgument("ids = []: give at least one")
        if not all and len(self._ids) > WAIT_JOBS_MAX:
            raise InvalidArgument(f"ids = {len(self._ids)} jobs: without all the limit is {WAIT_JOBS_MAX}")

    @property
    def is_met(self) -> bool:
        """Whether there is nothing to wait for any more."""
        return not self._left or (not self._all and len(self._left) < len(self._ids))

    def next_request(self) -> tuple[Wait, float | None]:
        """Return what is to be asked, and how many seconds its answer gets beyond its wait_ms; None: as usual."""
        left_s = max(0.0, self._ends_at - time.monotonic())
        wait_ms = WAIT_MS_MAX if left_s * 1_000 > WAIT_MS_MAX else math.ceil(left_s * 1_000)
        ids = sorted(self._left)[:WAIT_JOBS_MAX]
        grace_s = None if wait_ms == WAIT_MS_MAX else _GRACE_S
        return Wait(ids=to_ranges(ids), wait_ms=wait_ms, all=self._all), grace_s

    def take(self, reply: Waited) -> None:
        """Take an answer. Raises: WaitTimeout: the time is over, and it is not what was waited for."""
        for job in reply.jobs:
            self._jobs[job.job_id] = job
            self._left.pop(job.job_id, None)
        for first, count in reply.gone:
            for job_id in range(first, first + count):
                self._left.pop(job_id, None)
        if not reply.jobs and not reply.gone:
            self._check_time()

    def pause_s(self, error: JqdError) -> float:
        """Return how long to wait before the same is asked again.

        Raises: WaitTimeout: the time is over. The error: it is none after which it helps to ask again.
        """
        if not isinstance(error, Draining | RequestTimeout):
            raise error
        self._check_time()
        if isinstance(error, RequestTimeout):  # a wait changes nothing
            return 0.0
        again_s = _AGAIN_S if error.retry_after_ms is None else error.retry_after_ms / 1_000
        return min(again_s, max(0.0, self._ends_at - time.monotonic()))

    def _check_time(self) -> None:
        if time.monotonic() < self._ends_at:
            return
        what = f"job {next(iter(self._ids))} is not at its end"
        if len(self._ids) > 1:
            what = f"{len(self._left)} of {len(self._ids)} jobs are not at their end"
        raise WaitTimeout(f"{what} after {self._timeout_s:g} s")

    def result(self) -> Waited:
        """Return what became of them, in the order of the ids."""
        jobs = [self._jobs[job_id] for job_id in self._ids if job_id in self._jobs]
        gone = [job_id for job_id in self._ids if job_id not in self._jobs and job_id not in self._left]
        return Waited(jobs=jobs, pending=len(self._left), gone=to_ranges(gone))


def only_job(waited: Waited) -> EndedJob:
    """Return the one job that was waited for. Raises: JobNotFound."""
    if waited.gone:
        raise JobNotFound(f"job_id = {waited.gone[0][0]}: no such job, or it was purged or forgotten")
    return waited.jobs[0]


def wait_for_sync(wanted: Wanted, call: Call) -> Waited:
    """Wait as `wanted` says. Raises: as Client.wait_many."""
    while not wanted.is_met:
        command, grace_s = wanted.next_request()
        try:
            wanted.take(call(command, timeout=grace_s))
        except (Draining, RequestTimeout) as error:
            time.sleep(wanted.pause_s(error))
    return wanted.result()

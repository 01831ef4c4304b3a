"""A submitted job in the hands of who submitted it: how it stands, its result, its cancelling.

Knows:         when a job has ended, and what its end means to who waits.
Must not know: how a request travels: App hands in what asks the server.

    Handle       for coroutines
    SyncHandle   the same for threads
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from jqd.client import requests
from jqd.client.values import Duration
from jqd.client.waits import Call, Wanted, only_job, wait_for_sync
from jqd.core.commands import Command, EndedJob, JobInfo, Waited
from jqd.core.model import Encoding, StateName
from jqd.errors import Draining, JobFailed, JobNotFound, RequestTimeout, ResultExpired

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

ResultOf = Callable[[bytes | None, Encoding], Any]


class AsyncCall(Protocol):
    """The same for coroutines, as AsyncClient.call."""

    def __call__(self, command: Command[R], /, *, timeout: Duration | None = None) -> Awaitable[R]: ...


class _Base(Generic[R_co]):
    def __init__(self, job_id: int, result_of: ResultOf) -> None:
        self.job_id = job_id
        self._result_of = result_of

    def __repr__(self) -> str:
        return f"{type(self).__name__}(job_id={self.job_id})"

    def _result(self, job: EndedJob) -> R_co:
        if job.state != "done":
            raise JobFailed(self.job_id, job.state, job.reason, job.error)
        if job.result_expired:
            raise ResultExpired(
                f"job {self.job_id} is done, but its result_ttl is over, or there was no memory for it: its result is gone"
            )
        result: R_co = self._result_of(job.result, job.result_encoding)
        return result


class Handle(_Base[R_co]):
    """A job that was submitted, for coroutines. Made by Task.submit, or by Task.handle from a job id."""

    def __init__(self, job_id: int, result_of: ResultOf, call: AsyncCall) -> None:
        super().__init__(job_id, result_of)
        self._call = call

    async def wait(self, timeout: Duration | None = None) -> R_co:  # noqa: ASYNC109 - as every verb has it
        """Wait until the job has ended, and return what its function returned.

        Args:   timeout: Duration; None: as long as it takes.
        Raises: JobFailed: it is dead, cancelled or expired. WaitTimeout. JobNotFound: it was purged or forgotten.
                ResultExpired: it is done, and its result is kept no longer.
        """
        wanted = Wanted([self.job_id], timeout, all=True)
        return self._result(only_job(await wait_for(wanted, self._call)))

    async def status(self) -> StateName:
        """Return the job's state. Raises: JobNotFound."""
        return (await self.info()).state

    async def info(self) -> JobInfo:
        """Return all that is known of the job. Raises: JobNotFound."""
        return await self._call(requests.get(self.job_id))

    async def cancel(self, *, running: bool = False) -> None:
        """End the job for good; with `running` also one that has begun: its handler is interrupted.

        Raises: JobNotFound; WrongState: it has ended, or, without `running`, has begun.
        """
        asked = requests.cancel(self.job_id, {}, running=running)
        requests.swept("cancel", self.job_id, await self._call(asked))


class SyncHandle(_Base[R_co]):
    """A job that was submitted, for threads. Made by Task.submit_sync, or by Task.handle_sync from a job id."""

    def __init__(self, job_id: int, result_of: ResultOf, call: Call) -> None:
        super().__init__(job_id, result_of)
        self._call = call

    def wait(self, timeout: Duration | None = None) -> R_co:
        """Wait until the job has ended, and return what its function returned.

        Args:   timeout: Duration; None: as long as it takes.
        Raises: JobFailed: it is dead, cancelled or expired. WaitTimeout. JobNotFound: it was purged or forgotten.
                ResultExpired: it is done, and its result is kept no longer.
        """
        wanted = Wanted([self.job_id], timeout, all=True)
        return self._result(only_job(wait_for_sync(wanted, self._call)))

    def status(self) -> StateName:
        """Return the job's state. Raises: JobNotFound."""
        return self.info().state

    def info(self) -> JobInfo:
        """Return all that is known of the job. Raises: JobNotFound."""
        return self._call(requests.get(self.job_id))

    def cancel(self, *, running: bool = False) -> None:
        """End the job for good; with `running` also one that has begun: its handler is interrupted.

        Raises: JobNotFound; WrongState: it has ended, or, without `running`, has begun.
        """
        asked = requests.cancel(self.job_id, {}, running=running)
        requests.swept("cancel", self.job_id, self._call(asked))


# --- waiting ----------------------------------------------------------------------------------


async def wait_for(wanted: Wanted, call: AsyncCall) -> Waited:
    """Wait as `wanted` says. Raises: as AsyncClient.wait_many."""
    while not wanted.is_met:
        command, grace_s = wanted.next_request()
        try:
            wanted.take(await call(command, timeout=grace_s))
        except (Draining, RequestTimeout) as error:
            await asyncio.sleep(wanted.pause_s(error))
    return wanted.result()


def results_of(handles: Sequence[Handle[R] | SyncHandle[R]], waited: Waited) -> list[R]:
    """Return the results of jobs that have ended, in the order of the handles.

    Raises: what Handle.wait raises of the first one that has none.
    """
    ended = {job.job_id: job for job in waited.jobs}
    results: list[R] = []
    for handle in handles:
        if handle.job_id not in ended:
            raise JobNotFound(f"job_id = {handle.job_id}: no such job, or it was purged or forgotten")
        results.append(handle._result(ended[handle.job_id]))
    return results

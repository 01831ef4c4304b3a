"""A submitted job in the hands of who submitted it: how it stands, its result, its cancelling.

Knows:         when a job has ended, and what its end means to who waits.
Must not know: how a request travels: App hands in what asks the server.

    Handle       for coroutines
    SyncHandle   the same for threads
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final, Generic, Protocol, TypeVar

from jqd.client import requests
from jqd.client.values import Duration, to_ms
from jqd.core.commands import Command, JobInfo
from jqd.core.model import Encoding, StateName
from jqd.errors import JobFailed, WaitTimeout

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

ENDS: Final[frozenset[StateName]] = frozenset({"done", "dead", "cancelled", "expired"})
# Between two looks at a job, doubled from the one to the other.
_PAUSE_MS_FIRST: Final = 10
_PAUSE_MS_MAX: Final = 1_000

ResultOf = Callable[[bytes | None, Encoding], Any]


class Call(Protocol):
    """Sends a command and waits for its reply, as Client.call."""

    def __call__(self, command: Command[R], /) -> R: ...


class AsyncCall(Protocol):
    """The same for coroutines, as AsyncClient.call."""

    def __call__(self, command: Command[R], /) -> Awaitable[R]: ...


class _Base(Generic[R_co]):
    def __init__(self, job_id: int, result_of: ResultOf) -> None:
        self.job_id = job_id
        self._result_of = result_of

    def __repr__(self) -> str:
        return f"{type(self).__name__}(job_id={self.job_id})"

    def _result(self, info: JobInfo) -> R_co:
        if info.state != "done":
            raise JobFailed(self.job_id, info.state, info.reason, info.error)
        result: R_co = self._result_of(info.result, info.result_encoding)
        return result

    def _late(self, timeout: Duration, info: JobInfo) -> WaitTimeout:
        return WaitTimeout(f"job {self.job_id} is {info.state} after {to_ms('timeout', timeout) / 1_000:g} s")


def _pauses(timeout: Duration | None) -> Iterator[float]:
    """Yield how many seconds to wait before each next look; ends when the time is over."""
    ends_at = None if timeout is None else time.monotonic() + to_ms("timeout", timeout) / 1_000
    pause_ms = _PAUSE_MS_FIRST
    while True:
        left = _PAUSE_MS_MAX if ends_at is None else ends_at - time.monotonic()
        if left <= 0:
            return
        yield min(pause_ms / 1_000, left)
        pause_ms = min(2 * pause_ms, _PAUSE_MS_MAX)


class Handle(_Base[R_co]):
    """A job that was submitted, for coroutines. Made by Task.submit, or by Task.handle from a job id."""

    def __init__(self, job_id: int, result_of: ResultOf, call: AsyncCall) -> None:
        super().__init__(job_id, result_of)
        self._call = call

    async def wait(self, timeout: Duration | None = None) -> R_co:  # noqa: ASYNC109 - as every verb has it
        """Wait until the job has ended, and return what its function returned.

        Args:   timeout: Duration; None: as long as it takes.
        Raises: JobFailed: it is dead, cancelled or expired. WaitTimeout. JobNotFound: it was purged or forgotten.
        """
        pauses = _pauses(timeout)
        while (info := await self.info()).state not in ENDS:
            pause = next(pauses, None)
            if pause is None:
                assert timeout is not None
                raise self._late(timeout, info)
            await asyncio.sleep(pause)
        return self._result(info)

    async def status(self) -> StateName:
        """Return the job's state. Raises: JobNotFound."""
        return (await self.info()).state

    async def info(self) -> JobInfo:
        """Return all that is known of the job. Raises: JobNotFound."""
        return await self._call(requests.get(self.job_id))

    async def cancel(self) -> None:
        """End the job for good.

        Raises: JobNotFound; WrongState: it has begun, or ended.
        """
        requests.swept("cancel", self.job_id, await self._call(requests.cancel(self.job_id, {})))


class SyncHandle(_Base[R_co]):
    """A job that was submitted, for threads. Made by Task.submit_sync, or by Task.handle_sync from a job id."""

    def __init__(self, job_id: int, result_of: ResultOf, call: Call) -> None:
        super().__init__(job_id, result_of)
        self._call = call

    def wait(self, timeout: Duration | None = None) -> R_co:
        """Wait until the job has ended, and return what its function returned.

        Args:   timeout: Duration; None: as long as it takes.
        Raises: JobFailed: it is dead, cancelled or expired. WaitTimeout. JobNotFound: it was purged or forgotten.
        """
        pauses = _pauses(timeout)
        while (info := self.info()).state not in ENDS:
            pause = next(pauses, None)
            if pause is None:
                assert timeout is not None
                raise self._late(timeout, info)
            time.sleep(pause)
        return self._result(info)

    def status(self) -> StateName:
        """Return the job's state. Raises: JobNotFound."""
        return self.info().state

    def info(self) -> JobInfo:
        """Return all that is known of the job. Raises: JobNotFound."""
        return self._call(requests.get(self.job_id))

    def cancel(self) -> None:
        """End the job for good.

        Raises: JobNotFound; WrongState: it has begun, or ended.
        """
        requests.swept("cancel", self.job_id, self._call(requests.cancel(self.job_id, {})))

"""The job that is being worked on here: what a handler may know of it.

Knows:         who asks, by a context variable: each task and thread, and a process of the pool, has its own job.
Must not know: how jobs are leased, run and finished.
"""

import threading
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar, Token
from datetime import UTC, datetime, timedelta

from msgspec import Struct

from jqd.client.requests import HeldJob
from jqd.core.model import DEFAULT_TENANT, PROGRESS_TEXT_BYTES_MAX, shorten
from jqd.errors import InvalidArgument

Report = Callable[[int | None, str], object]
"""Takes what a handler says of its progress to who tells the server; must not block."""


class CurrentJob(Struct, frozen=True, kw_only=True):
    """The job that a handler works on, by `jqd.current_job()`.

    token: rises with each lease of a job, over restarts and restored backups: write it beside what the handler
        changes elsewhere, and refuse an older one there, and a worker that was away too long does no harm.
    attempt: number of this delivery, from 1.  errors, crashes: how many of those before ended in one.
    deadline: when its task's `timeout` is over, by this machine's clock; None: it has none.
    """

    job_id: int
    token: int
    attempt: int
    queue: str
    task: str | None
    tenant: str = DEFAULT_TENANT
    group: str | None = None
    priority: int = 0
    errors: int = 0
    crashes: int = 0
    metadata: Mapping[str, str] = {}
    deadline: datetime | None = None
    _ends_at: float | None = None  # the same on the monotonic clock
    _ended: threading.Event | None = None
    _report: Report | None = None

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the deadline, 0 after it; None: there is none."""
        return None if self._ends_at is None else max(0.0, self._ends_at - time.monotonic())

    @property
    def is_ended(self) -> bool:
        """Whether nobody waits for the outcome any more: the lease is lost, the time is over, the worker stops.

        A handler on the event loop is cancelled then and need not ask. In a thread that waits in C code
        this is the way to learn it.
        """
        return self._ended is not None and self._ended.is_set()

    def progress(self, percent: int | None = None, text: str = "") -> None:
        """Say how far the job is: shown by `get`, `list` and `jqctl job` until it is handed out again.

        Returns at once, in coroutines as in threads and processes. What is said goes to the server within a quarter
        of a second, the newest of what was said meanwhile; what is said just before the end may never be seen.

        Args:
            percent: 0 to 100.  text: cut at 256 bytes of UTF-8. Both stand in the place of what was said before.
        Raises: InvalidArgument: percent is no such number.
        """
        if percent is not None and (type(percent) is not int or not 0 <= percent <= 100):
            raise InvalidArgument(f"percent = {shorten(percent)}: a whole number from 0 to 100")
        raw = text.encode("utf-8", "replace")[:PROGRESS_TEXT_BYTES_MAX]
        if self._report is not None and not self.is_ended:
            self._report(percent, raw.decode("utf-8", "ignore"))


def make_current(
    job: HeldJob,
    timeout_s: float | None,
    ended: threading.Event | None,
    report: Report | None = None,
) -> CurrentJob:
    """Say of a job that begins now what its handler may know."""
    return CurrentJob(
        job_id=job.job_id,
        token=job.token,
        attempt=job.attempt,
        queue=job.queue,
        task=job.task,
        tenant=job.tenant,
        group=job.group,
        priority=job.priority,
        errors=job.errors,
        crashes=job.crashes,
        metadata=job.metadata or {},
        deadline=None if timeout_s is None else datetime.now(UTC) + timedelta(seconds=timeout_s),
        _ends_at=None if timeout_s is None else time.monotonic() + timeout_s,
        _ended=ended,
        _report=report,
    )


_current: ContextVar[CurrentJob] = ContextVar("jqd_current_job")


def current_job() -> CurrentJob:
    """Return the job that the caller works on.

    Raises: RuntimeError: the caller is no handler, nor called by one.
    """
    job = _current.get(None)
    if job is None:
        raise RuntimeError("no job is worked on here: current_job() is for handlers and what they call")
    return job


def enter(job: CurrentJob) -> Token[CurrentJob]:
    """Begin to work on a job in this context."""
    return _current.set(job)


def leave(token: Token[CurrentJob]) -> None:
    """End what enter() began."""
    _current.reset(token)

"""One attempt: find the function, decode its arguments, call it, say how it ended.

Knows:         the order of these, and that nothing a handler does may come out as an exception.
Must not know: leases, pools, the server. The same code runs on the loop, in a thread and in another process.
"""

import asyncio
import contextlib
import threading
from collections.abc import Iterable, Sequence

from jqd.client import current, outcomes
from jqd.client.app import Hook, Middleware, Runnable, pack_result
from jqd.client.current import Report
from jqd.client.outcomes import Outcome
from jqd.client.requests import HeldJob
from jqd.core.model import shorten
from jqd.errors import InvalidArgument

INTERRUPTED = Outcome("error", "interrupted")


class Interrupted(BaseException):
    """Raised inside a handler that runs in a thread: its time is over, its lease is lost, or the worker stops.

    No Exception, so that a handler's `except Exception` does not take it for one of its own.
    """


def unknown(job: HeldJob, tasks: Iterable[str]) -> Outcome:
    """Return the outcome of a job that nothing here can run. It is retried: another worker may know it."""
    if job.task is None:
        return Outcome(
            "error", f"no task: the job names none, and queue {shorten(job.queue)} has no handler here"
        )
    known = ", ".join(sorted(tasks)) or "none"
    return Outcome("error", f"unknown task {shorten(job.task)}: this worker knows {known}")


async def run_async(
    runnable: Runnable,
    job: HeldJob,
    middleware: Sequence[Middleware],
    ended: threading.Event,
    report: Report | None = None,
) -> Outcome:
    """Run an `async def` handler. Cancelled, it returns INTERRUPTED."""
    try:
        args, kwargs = runnable.call_for(job)
    except InvalidArgument as error:
        return Outcome("refused", str(error))
    now = current.make_current(job, runnable.timeout_s, ended, report)
    current.enter(now)  # the task's own context: nothing to leave
    try:
        with contextlib.ExitStack() as stack:
            for each in middleware:
                stack.enter_context(each(now))
            result = await runnable.function(*args, **kwargs)
        return outcomes.done(pack_result(result))
    except asyncio.CancelledError:
        return INTERRUPTED
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a handler's failure is its job's outcome
        return outcomes.of_exception(error)


def run_sync(
    runnable: Runnable,
    job: HeldJob,
    middleware: Sequence[Middleware],
    ended: threading.Event | None,
    report: Report | None = None,
) -> Outcome:
    """Run a `def` handler in this thread. Raises: Interrupted."""
    try:
        args, kwargs = runnable.call_for(job)
    except InvalidArgument as error:
        return Outcome("refused", str(error))
    now = current.make_current(job, runnable.timeout_s, ended, report)
    token = current.enter(now)
    try:
        with contextlib.ExitStack() as stack:
            for each in middleware:
                stack.enter_context(each(now))
            result = runnable.function(*args, **kwargs)
        return outcomes.done(pack_result(result))
    except Interrupted:
        raise
    except BaseException as error:  # noqa: BLE001 - SystemExit too: it must not end a thread of the pool
        return outcomes.of_exception(error)
    finally:
        current.leave(token)


async def call_hooks(hooks: Iterable[Hook]) -> None:
    """Call what the app wants called before the first handler, or after the last one."""
    for hook in hooks:
        waits = hook()
        if waits is not None:
            await waits

"""How a job can end, as its handler says it by an exception, and as the worker tells the server.

Knows:         the exceptions that a handler may raise, what each asks of the server.
Must not know: who sends it, who runs the handler.

    the handler ...             the server is told            the job
    returns                     ack, with the result          done
    raises Retry(in_=...)       fail, retry_in                tried again then; an error was counted
    raises Snooze(in_)          release, delay                ready then; the attempt is not counted
    raises Fail("why")          ack with error                dead, reason `refused`: no retry
    raises anything else        fail                          tried again after its backoff, at last dead
"""

import signal
import traceback
from typing import Final, Literal

from msgspec import Struct

from jqd.client.values import Duration, to_ms
from jqd.core.model import ERROR_TEXT_BYTES_MAX, RESULT_BYTES_MAX

Kind = Literal["done", "error", "retry", "refused", "snooze", "release", "lost"]

# Room for the exception's own line before the end of its traceback.
_HEADLINE_BYTES: Final = ERROR_TEXT_BYTES_MAX // 4


class Retry(Exception):
    """Raised by a handler: try again, `in_` from now instead of after the backoff. Counts as an error.

    Args:
        in_: Duration until the next attempt; None: the backoff says.
        message: what went wrong; kept with the job.
    """

    def __init__(self, message: str = "", *, in_: Duration | None = None) -> None:
        super().__init__(message)
        self.in_ms: int | None = None if in_ is None else to_ms("in_", in_)


class Snooze(Exception):
    """Raised by a handler: not now. The job is given back for `in_`, and the attempt is not counted.

    Args: in_: Duration until the job is ready again.
    """

    def __init__(self, in_: Duration) -> None:
        super().__init__(in_)
        self.in_ms: int = to_ms("in_", in_)


class Fail(Exception):
    """Raised by a handler: this job cannot be done, and no retry would help. It is dead, reason `refused`.

    Args: message: why; kept with the job.
    """


class Outcome(Struct, frozen=True):
    """How one attempt ended: what the server is to be told. `lost`: nothing."""

    kind: Kind
    error: str = ""
    delay_ms: int | None = None
    result: bytes | None = None


def done(result: bytes | None) -> Outcome:
    """Return the outcome of a handler that came to its end.

    A result that the server would refuse ends the job for good: no attempt would make it smaller.
    """
    if result is not None and len(result) > RESULT_BYTES_MAX:
        return Outcome("refused", f"result = {len(result)} bytes: the limit is {RESULT_BYTES_MAX}")
    return Outcome("done", result=result)


def of_exception(error: BaseException) -> Outcome:
    """Return the outcome of a handler that raised."""
    match error:
        case Retry():
            return Outcome("retry", str(error), error.in_ms)
        case Snooze():
            return Outcome("snooze", delay_ms=error.in_ms)
        case Fail():
            return Outcome("refused", str(error) or "Fail")
        case _:
            return Outcome("error", describe(error))


def end_of_process(code: int) -> str:
    """Say how a process ended, by its exit code as subprocess gives it: below 0 it is a signal's."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def describe(error: BaseException) -> str:
    """Say what was raised, and then where, the innermost frames last: within what the server keeps."""
    headline = "".join(traceback.format_exception_only(error)).strip()
    trace = "".join(traceback.format_exception(error))
    head = headline.encode("utf-8", "replace")[:_HEADLINE_BYTES]
    room = ERROR_TEXT_BYTES_MAX - len(head) - 2
    tail = trace.encode("utf-8", "replace")
    tail = tail if len(tail) <= room else b"..." + tail[3 - room :]
    return f"{head.decode('utf-8', 'ignore')}\n\n{tail.decode('utf-8', 'ignore').rstrip()}"

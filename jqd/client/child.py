"""A process that runs handlers for a worker: `python -m jqd.client.child FD`, started by pools.py only.

Knows:         the line to its parent: first a Birth, then one Order after the other, a Report for each, and before it
               a Note for whatever the handler says of its progress.
Must not know: the server. A parent that is gone is the end of the line, and of this process.

Signals for the whole group (Ctrl-C, a service manager's SIGTERM) are the parent's to answer: it lets this one finish.
"""

import asyncio
import contextlib
import ctypes
import pkgutil
import signal
import sys
import threading
from multiprocessing.connection import Connection
from typing import Final

import msgspec

from jqd.client.app import App, Handler, Runnable, Task
from jqd.client.outcomes import Outcome, describe
from jqd.client.pools import Birth, Note, Order, Report, rss_bytes_or_0
from jqd.client.running import call_hooks, run_sync

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h


def main(descriptor: int) -> None:
    """Serve until the parent closes the line."""
    if sys.platform == "linux":
        # A parent that is killed takes its children along: others do their jobs by then.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    apps: set[App] = set()
    with Connection(descriptor) as line:
        try:
            birth = msgspec.msgpack.decode(line.recv_bytes(), type=Birth)
            sys.path[:] = birth.sys_path
            with contextlib.suppress(
                Exception
            ):  # the first order says it again, and its outcome is the job's
                _find_app(birth.path, apps)
            line.send_bytes(b"ready")
            while True:
                order = msgspec.msgpack.decode(line.recv_bytes(), type=Order)
                speaker = _Speaker(line)
                outcome = _perform(order, apps, speaker)
                speaker.end(Report(outcome, rss_bytes_or_0()))
        except (EOFError, OSError):  # the parent is gone, or has no more work
            pass
    for app in apps:
        asyncio.run(call_hooks(app.on_stop))


class _Speaker:
    """Says what one order comes to. A thread that outlives its handler says nothing more."""

    def __init__(self, line: Connection) -> None:
        self._line = line
        self._lock = threading.Lock()
        self._is_over = False

    def note(self, percent: int | None, text: str) -> None:
        with self._lock:
            if not self._is_over:
                self._line.send_bytes(msgspec.msgpack.encode(Note(percent, text)))

    def end(self, report: Report) -> None:
        with self._lock:
            self._is_over = True
            self._line.send_bytes(msgspec.msgpack.encode(report))


def _perform(order: Order, apps: set[App], speaker: _Speaker) -> Outcome:
    try:
        runnable, app = _find_app(order.path, apps)
    except Exception as error:  # noqa: BLE001 - the user's module failed: the job's outcome says how
        return Outcome("error", describe(error))
    return run_sync(runnable, order.job, app.middleware, None, speaker.note)


def _find_app(path: str, apps: set[App]) -> tuple[Runnable, App]:
    runnable, app = find(path)
    if app not in apps:
        asyncio.run(call_hooks(app.on_start))
        apps.add(app)
    return runnable, app


def find(path: str) -> tuple[Runnable, App]:
    """Return what stands at `module:name`, and its app.

    Raises: LookupError: something else does; and what importing the module raises.
    """
    found = pkgutil.resolve_name(path)
    if isinstance(found, Task):
        return found, found.app
    handler = getattr(found, "__jqd_handler__", None)
    if isinstance(handler, Handler):
        return handler, handler.app
    raise LookupError(f"{path} is no task: a decorator above @app.task hides it from other processes")


if __name__ == "__main__":
    main(int(sys.argv[1]))

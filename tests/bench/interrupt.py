"""SIGTERM and Ctrl-C, taken only where nothing is half done: servers and their data are then removed, always.

Knows:         whether one of them came.
Must not know: what there is to remove: whoever made it does, on the way out.

An exception out of a signal handler comes up wherever the program happens to be: in the removal of a directory, or
in a callback of the event loop, which takes it for the fault of a connection. So the handler only cancels what an
event loop does at that moment; everything else asks with check() before it starts something.
"""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Iterator

_came = False


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Take the signals from now on; whoever runs in this context is ended by them, after what it made is removed."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _take)
    try:
        yield
    except asyncio.CancelledError:
        check()
        raise


def check() -> None:
    """Leave the program if one came."""
    if _came:
        sys.exit("terminated")


def _take(_number: int, _frame: object) -> None:
    global _came  # a process has one set of signal handlers
    _came = True
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return
    for task in asyncio.all_tasks(loop):
        task.cancel()

"""Children that os.fork makes of the test's own process, threads left behind and all.

with forked(work):          work() runs in a child
    ...                     beside it, here
                            the child must have ended well: no exception, no deadlock

Flag()                      set() in one process, wait() in another
"""

import contextlib
import gc
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn

from tests.support.wire import PATIENCE_S


class Flag:
    """An event between a process and its forks."""

    def __init__(self) -> None:
        self._reads, self._writes = os.pipe()

    def set(self) -> None:
        os.write(self._writes, b"!")

    def wait(self) -> None:
        assert os.read(self._reads, 1) == b"!"


def end_if_stuck() -> None:
    """Let SIGALRM end this child where it hangs."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(int(PATIENCE_S))


def become_child(work: Callable[[], object]) -> NoReturn:
    """Run it in what os.fork has just made, and end there."""
    code = 1
    try:
        end_if_stuck()
        work()
        gc.collect()
        code = 0
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        os._exit(code)


def ended_well(pid: int) -> None:
    """Wait for a child; fail if it did."""
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@contextlib.contextmanager
def forked(work: Callable[[], object]) -> Iterator[None]:
    """See the file's card."""
    pid = os.fork()
    if not pid:
        become_child(work)
    try:
        yield
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    ended_well(pid)

"""Where `def` handlers run: threads, or a process for each slot.

Knows:         how to begin an attempt there, how to interrupt it, what to do with one that cannot be.
Must not know: leases, the server, when to interrupt.

    ThreadPool    threads of its own, made when they are needed. interrupt() raises Interrupted in the handler at its next
                  step in Python; a handler that waits in C code goes on until it comes back
    ProcessPool   the same threads, each with a child that does the work (child.py). interrupt() kills the child

Own threads and not an executor's: these can be interrupted, can be left behind, and do not keep the process from ending.
"""

import asyncio
import contextlib
import ctypes
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from jqd.client.app import Middleware, Runnable
from jqd.client.current import Report as ReportProgress
from jqd.client.outcomes import Outcome, end_of_process
from jqd.client.requests import HeldJob
from jqd.client.running import INTERRUPTED, Interrupted, run_sync

# How long a child that has nothing to do any more gets to run its hooks and end.
_CHILD_ENDS_S: Final = 5.0


class Work:
    """One attempt in a pool. `future` gets its outcome, in the loop that began it.

    ended: set when nobody waits for the outcome any more.
    on_begin: called in the loop when the handler begins: there was a thread, and a child, for it.
    report: takes what the handler says of its progress, in any thread.
    """

    def __init__(
        self,
        runnable: Runnable,
        job: HeldJob,
        loop: asyncio.AbstractEventLoop,
        on_begin: Callable[[], object] | None,
        report: ReportProgress | None = None,
    ) -> None:
        self.report = report
        self.runnable = runnable
        self.job = job
        self.ended = threading.Event()
        self.future: asyncio.Future[Outcome] = loop.create_future()
        self.thread: _Thread | None = None
        self.is_interrupted = False
        self._loop = loop
        self._on_begin = on_begin

    def begin(self) -> None:
        if self._on_begin is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._on_begin)

    def settle(self, outcome: Outcome) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the worker has ended without this one
            self._loop.call_soon_threadsafe(self._set, outcome)

    def _set(self, outcome: Outcome) -> None:
        if not self.future.done():
            self.future.set_result(outcome)


class ThreadPool:
    """See the file's card.

    Args:
        size: threads at most, besides those that are left behind.
        middleware: of the app; read at each attempt.
    """

    def __init__(self, size: int, middleware: Sequence[Middleware]) -> None:
        self._size = size
        self._middleware = middleware
        self._queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: set[_Thread] = set()
        self._idle_count = 0
        self._queued_count = 0

    def begin(
        self,
        runnable: Runnable,
        job: HeldJob,
        on_begin: Callable[[], object] | None = None,
        report: ReportProgress | None = None,
    ) -> Work:
        """Begin an attempt, in a thread that is free or a new one, or when one is free."""
        work = Work(runnable, job, asyncio.get_running_loop(), on_begin, report)
        with self._lock:
            self._queued_count += 1
            staff = sum(not thread.is_left for thread in self._threads)
            thread = (
                self._make_thread() if self._queued_count > self._idle_count and staff < self._size else None
            )
            if thread is not None:
                self._threads.add(thread)
        self._queue.put(work)
        if thread is not None:
            thread.start()
        return work

    def interrupt(self, work: Work) -> None:
        """Ask an attempt to end now."""
        work.ended.set()
        with self._lock:
            work.is_interrupted = True
            if work.thread is not None:
                self._interrupt(work.thread)

    def abandon(self, work: Work) -> None:
        """Leave behind an attempt that does not end: its thread is not counted on any more."""
        with self._lock:
            if work.thread is not None:
                work.thread.is_left = True

    def close(self, wait_s: float) -> None:
        """End the threads that are free, and wait for these; others end with the process."""
        with self._lock:
            threads = [thread for thread in self._threads if not thread.is_left]
        for _ in threads:
            self._queue.put(None)
        for thread in threads:
            thread.join(wait_s)

    # --- in the threads -----------------------------------------------------------------------

    def _make_thread(self) -> "_Thread":
        return _Thread(self)

    def _interrupt(self, thread: "_Thread") -> None:
        """Raise Interrupted in the thread at its next step in Python. Under the lock: its work is not over."""
        assert thread.ident is not None
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident), ctypes.py_object(Interrupted)
        )

    def serve(self, thread: "_Thread") -> None:
        """Take one work after the other."""
        try:
            while not thread.is_left:
                with self._lock:
                    self._idle_count += 1
                work = self._queue.get()
                with self._lock:
                    self._idle_count -= 1
                    if work is not None:
                        self._queued_count -= 1
                if work is None:
                    return
                work.settle(self._attempt(thread, work))
        finally:
            thread.leave()
            with self._lock:
                self._threads.discard(thread)

    def _attempt(self, thread: "_Thread", work: Work) -> Outcome:
        """Perform a work that may be interrupted at any step, and leave no exception on its way to this thread."""
        outcome = INTERRUPTED
        try:
            with self._lock:
                if work.is_interrupted:
                    return outcome
                work.thread = thread
            try:
                outcome = self.perform(thread, work)
            finally:
                self._part(thread, work)
        except Interrupted:
            self._part(thread, work)
        return outcome

    def _part(self, thread: "_Thread", work: Work) -> None:
        """Let nobody interrupt this thread any more, and see an interruption that is on its way arrive."""
        while True:
            try:
                with self._lock:
                    work.thread = None
                if work.is_interrupted:
                    self._await_interruption(thread)
            except Interrupted:
                if work.thread is None:
                    return
            else:
                return

    def _await_interruption(self, thread: "_Thread") -> None:
        """Let an interruption that is on its way to this thread arrive. Raises: Interrupted.

        Whether it has come before is not known, so it is sent again in its own place. To take it back would leave the
        interpreter's mark that one is on its way set for ever: all Python code would be slower from then on, and code that
        is traced would stand still.
        """
        self._interrupt(thread)
        while True:
            pass

    def perform(self, thread: "_Thread", work: Work) -> Outcome:  # noqa: ARG002 - the process pool's child is its thread's
        """Run the handler."""
        work.begin()
        return run_sync(work.runnable, work.job, self._middleware, work.ended, work.report)


class _Thread(threading.Thread):
    def __init__(self, pool: ThreadPool) -> None:
        super().__init__(name="jqd handler", daemon=True)
        self._pool = pool
        self.is_left = False

    def run(self) -> None:
        self._pool.serve(self)

    def leave(self) -> None:
        """Let go of what the thread has of its own."""


# --- processes --------------------------------------------------------------------------------


class Order(Struct, array_like=True):
    """What a child is told to do: the path of a function, and the job."""

    path: str
    job: HeldJob


class Birth(Struct, array_like=True):
    """What a child is told first: where modules are, and the function that it will be asked for. It answers when it has
    been imported, well or badly.
    """

    sys_path: list[str]
    path: str


class Note(Struct, array_like=True, tag=1):
    """What a child says of a job's progress, before its Report."""

    percent: int | None
    text: str


class Report(Struct, array_like=True, tag=2):
    """What a child answers."""

    outcome: Outcome
    rss_bytes: int


class ProcessPool(ThreadPool):
    """See the file's card.

    Args:
        max_jobs, max_rss_bytes: a child that has done so many, or takes so much, is replaced by a new one.
    """

    def __init__(self, size: int, max_jobs: int | None = None, max_rss_bytes: int | None = None) -> None:
        super().__init__(size, ())  # the child enters the app's middleware
        self.max_jobs = max_jobs
        self.max_rss_bytes = max_rss_bytes

    def _make_thread(self) -> "_Thread":
        return _Parent(self)

    def _interrupt(self, thread: "_Thread") -> None:
        assert isinstance(thread, _Parent)
        thread.kill()

    def _await_interruption(self, thread: "_Thread") -> None:
        """Do nothing: it went to the child."""

    def perform(self, thread: "_Thread", work: Work) -> Outcome:
        assert isinstance(thread, _Parent)
        thread.bear(work.runnable.path)
        if work.is_interrupted:  # while there was no child that could be killed
            return INTERRUPTED
        work.begin()
        return thread.ask(Order(work.runnable.path, work.job), work.report)


class _Parent(_Thread):
    """A thread and its child.

    _lock: held while the child is made, asked to end or killed, so that nobody kills a process that is another one by now.
    """

    def __init__(self, pool: ProcessPool) -> None:
        super().__init__(pool)
        self._limits = pool.max_jobs, pool.max_rss_bytes
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._line: Connection | None = None
        self._jobs_count = 0

    def ask(self, order: Order, report_progress: ReportProgress | None) -> Outcome:
        """Have the child carry out an order. Its end is an error of the job, which may have been what ended it."""
        assert self._line is not None
        try:
            self._line.send_bytes(msgspec.msgpack.encode(order))
            while isinstance(said := self._hear(), Note):
                if report_progress is not None:
                    report_progress(said.percent, said.text)
            report = said
        except (EOFError, OSError):
            return Outcome("error", f"its process ended: {end_of_process(self._bury())}")
        self._jobs_count += 1
        max_jobs, max_rss_bytes = self._limits
        if (max_jobs and self._jobs_count >= max_jobs) or (
            max_rss_bytes and report.rss_bytes > max_rss_bytes
        ):
            self.leave()
        return report.outcome

    def _hear(self) -> Note | Report:
        assert self._line is not None
        return msgspec.msgpack.decode(self._line.recv_bytes(), type=Note | Report)

    def bear(self, path: str) -> None:
        """Make the child, if there is none, and wait until it has imported what is at `path`."""
        if self._child is not None:
            return
        ours, theirs = socket.socketpair()
        with self._lock, theirs:
            command = [sys.executable, "-m", "jqd.client.child", str(theirs.fileno())]
            self._child = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)  # noqa: S603
            self._line = Connection(ours.detach())
            self._jobs_count = 0
        with contextlib.suppress(EOFError, OSError):  # it died: ask() says how
            self._line.send_bytes(msgspec.msgpack.encode(Birth(sys.path, path)))
            self._line.recv_bytes()

    def kill(self) -> None:
        with self._lock:
            if self._child is not None:
                self._child.kill()

    def leave(self) -> None:
        """Let the child end by itself: it sees that nobody speaks to it any more."""
        if self._line is not None:
            self._line.close()
            try:
                assert self._child is not None
                self._child.wait(_CHILD_ENDS_S)
            except subprocess.TimeoutExpired:
                self.kill()
            self._bury()

    def _bury(self) -> int:
        assert self._child is not None
        assert self._line is not None
        self._line.close()
        code = self._child.wait()
        with self._lock:
            self._child, self._line = None, None
        return code


def rss_bytes() -> int:
    """Return how much memory this process has. Raises: OSError: this system does not say."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def rss_bytes_or_0() -> int:
    """Return how much memory this process has, 0 where the system does not say."""
    try:
        return rss_bytes()
    except OSError:
        return 0

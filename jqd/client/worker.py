"""The worker: leases jobs, runs their handlers, tells the server how they ended.

Knows:         how many jobs may run, when to ask for more, when and how to stop.
Must not know: how a handler is called (running.py, pools.py), how a lease is kept (heart.py), frames.

    lease   one request at a time, for as many jobs as there are free slots; the server answers when there is a job
    run     async def handlers as tasks of the loop, def handlers in the pool
    tell    acks, failures and releases of one turn of the loop go in one request each, and are asked again until
            the server has answered or the lease is lost; the lease is kept meanwhile
    heart   a thread of its own extends what is held

One object a slot, one task or work item for the handler, and callbacks in between: no other task a job.

    beat    says every 5 s, and when something changes, what this worker is and whether it is quiet or stopping; the
            answer, or an event, says what it is to do: quiet, resume, stop

    stop()      lease nothing more; what runs has `grace` to end; the rest is interrupted and released, and its attempt
                is not counted
    stop_now()  the same without a grace
    quiet()     lease nothing more, finish what runs, and stay, until resume() or stop()
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from jqd import __version__
from jqd.client import requests
from jqd.client.aio import AsyncClient
from jqd.client.app import App
from jqd.client.heart import Heart, Key
from jqd.client.outcomes import Outcome
from jqd.client.pools import ProcessPool, ThreadPool, Work, rss_bytes
from jqd.client.requests import JOBS_PER_REQUEST_MAX, OK, HeldJob
from jqd.client.running import INTERRUPTED, call_hooks, run_async, unknown
from jqd.client.shared import hold_by_connection
from jqd.client.values import Duration, to_ms
from jqd.core.commands import Ack, Command, Verdicts
from jqd.core.model import (
    DEFAULT_QUEUE,
    NAME_CHARS_MAX,
    QUEUES_PER_LEASE_MAX,
    WAIT_MS_MAX,
    WORKER_BEAT_MS,
    WorkerState,
)
from jqd.errors import JobNotFound, JqdError, LeaseLost, UnavailableError

# How long a handler that was interrupted has to come to its end; then it is left behind.
_INTERRUPT_S: Final = 5.0
# How long what is left to tell the server may take at the end.
_FAREWELL_S: Final = 5.0
# A lease request waits this long for a job: often enough to prove that the worker still asks.
_WAIT_MS: Final = 10_000
# How often the worker says what it is while no server has said how often it wants to hear that.
_BEAT_S: Final = WORKER_BEAT_MS / 1_000
# Between two tries of something that the server did not take, doubled.
_AGAIN_S: Final = 0.1
_AGAIN_S_MAX: Final = 5.0
# How often a burst looks for jobs that those which run have submitted.
_BURST_LOOK_S: Final = 0.05
# Less than a worker has taken before its first job, so that it would begin anew after each: somebody forgot the unit.
RSS_BYTES_MIN: Final = 16 << 20
# Results in one request: far below the 16 MiB of a frame.
_RESULTS_BYTES_MAX: Final = 4 << 20

Why = Literal["lost", "timeout", "release", "cancel"]

log: Final = logging.getLogger("jqd.worker")


class Ended(Enum):
    """Why Worker.run came to its end."""

    STOPPED = "it was told to stop"
    EMPTY = "burst: there was nothing left to do"
    RECYCLE = "max_jobs or max_rss: start another one"


class _Slot:
    """A job that runs here."""

    __slots__ = ("begun_at", "ended", "interrupt", "job", "timer", "why", "work")

    def __init__(self, job: HeldJob) -> None:
        self.job = job
        self.begun_at = time.monotonic()
        self.ended = threading.Event()
        self.interrupt: Callable[[], object] = self.ended.set
        self.work: Work | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.why: Why | None = None  # it was interrupted

    @property
    def key(self) -> Key:
        return self.job.job_id, self.job.token


class Worker:
    """Runs the tasks of an app.

        worker = Worker(app, queues=["emails", "default"], concurrency=20)
        await worker.run()                        # or worker.run_forever(), which makes the event loop

    Args:
        queues: in the order in which they are served.
        concurrency: jobs that run at a time.
        pool: where `def` handlers run: "thread", or "process" for those that compute or that must be stoppable.
        lease: Duration before the server may hand a job to another worker if this one falls silent. Not how long a job
            may take: the lease is extended for as long as it runs. Default: what the job's submit said, else 30 s.
        grace: Duration that running jobs have to end after stop().
        name: shown as the jobs' worker; default: host and process id.
        burst: end when there is nothing to do, instead of waiting.
        max_jobs, max_rss: end (RECYCLE) after so many jobs, or above so many bytes of memory, as stop() does. With
            pool="process" they hold for each process of the pool, which is replaced. max_rss is 16 MiB or more.
        health: path of a file that is written whenever the worker has proved that it works: the server has answered a
            request for jobs, or, with every slot taken, has extended them. A probe looks how old it is.
    Raises: InvalidArgument, ValueError: it could never work like this.
    """

    def __init__(
        self,
        app: App,
        queues: str | Sequence[str] = DEFAULT_QUEUE,
        *,
        concurrency: int = 10,
        pool: Literal["thread", "process"] = "thread",
        lease: Duration | None = None,
        grace: Duration = 25,
        name: str | None = None,
        burst: bool = False,
        max_jobs: int | None = None,
        max_rss: int | None = None,
        health: str | os.PathLike[str] | None = None,
    ) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency = {concurrency}: at least 1")
        if health is not None and not (directory := Path(health).parent).is_dir():
            raise ValueError(
                f"health = {os.fspath(health)!r}: there is no directory {os.fspath(directory)!r}"
            )
        if max_rss is not None:
            if max_rss < RSS_BYTES_MIN:
                raise ValueError(
                    f"max_rss = {max_rss} bytes: at least {RSS_BYTES_MIN} (16 MiB); Python alone takes most of that"
                )
            rss_bytes()  # fails here where the system does not say
        self.app = app
        self.queues: list[str] = [queues] if isinstance(queues, str) else list(queues)
        requests.check_lease(requests.lease(self.queues, lease=lease))  # now, and not when a server is there
        self.concurrency = concurrency
        self.name: str = (name or f"{socket.gethostname()}:{os.getpid()}")[:NAME_CHARS_MAX]
        self.done_count: int = 0  # jobs whose handler came to its end
        self.failed_count: int = 0  # jobs that failed, with or without another attempt
        self._lease = lease
        self._grace_s = to_ms("grace", grace) / 1_000
        self._burst = burst
        in_children = pool == "process"
        self._max_jobs = None if in_children else max_jobs
        self._max_rss = None if in_children else max_rss
        self._health = None if health is None else Path(health)
        self._health_failed = False  # when it was last to be written, which was said then
        self._pool: ThreadPool
        if in_children:
            for runnable in (*app.tasks.values(), *app.handlers.values()):
                if not runnable.is_async and (
                    "<locals>" in runnable.path or runnable.path.startswith("__main__:")
                ):
                    raise ValueError(
                        f"{runnable.path}: another process cannot find it: put it at the top of a module that is imported"
                    )
            self._pool = ProcessPool(concurrency, max_jobs, max_rss)
        else:
            self._pool = ThreadPool(concurrency, app.middleware)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: AsyncClient
        self._heart: Heart
        self._leaser: asyncio.Task[None] | None = None
        self._running: dict[Key, _Slot] = {}
        self._untold: list[tuple[HeldJob, Outcome]] = []  # of this turn of the loop
        self._telling: set[asyncio.Task[None]] = set()
        self._unconfirmed_count = 0  # jobs that ended and whose outcome the server has not taken yet
        self._begun_count = 0
        self._rss_looked_at = 0.0
        self._room = asyncio.Event()  # a slot is free, or all is over: look again
        self._hurry = asyncio.Event()
        self._stops: Ended | None = None
        self._is_quiet = False
        self._news = asyncio.Event()  # there is something to say before the next beat
        self._failure: JqdError | None = None

    # --- from outside -------------------------------------------------------------------------

    def run_forever(self) -> Ended:
        """Run in an event loop of its own, until it is told to stop; SIGTERM and SIGINT tell it."""
        return asyncio.run(self.run(signals=True))

    def _not_served(self) -> str:
        """Name the queues that the app's own functions are for and this worker leaves alone."""
        others = sorted(self.app.queues.difference(self.queues))
        return (
            f"; its app has tasks of other queues, which it does not serve: {', '.join(others)}"
            if others
            else ""
        )

    async def run(self, *, signals: bool = False) -> Ended:
        """Run until it is told to stop.

        Args:   signals: answer SIGTERM and SIGINT by stop(), the second one by stop_now(). Main thread only.
        Raises: RequestError: the server refuses this worker for good.
        """
        assert self._loop is None, "a Worker runs once"
        loop = self._loop = asyncio.get_running_loop()
        handled = (signal.SIGTERM, signal.SIGINT) if signals else ()
        for number in handled:
            loop.add_signal_handler(number, self._signalled, number)
        try:
            await call_hooks(self.app.on_start)
            self._client = AsyncClient(self.app.url, worker=self.name)
            session = hold_by_connection(
                self._client._shared,
                lambda *key: self._cancelled_elsewhere([key]),
                self._ordered_elsewhere,
                self._greeted_elsewhere,
            )
            self._heart = Heart(
                self.app.url,
                self.name,
                self._lost_elsewhere,
                self._cancelled_elsewhere,
                self._beaten,
                session,
            )
            self._heart.start()
            log.info(
                "%s serves %s, up to %d jobs%s",
                self.name,
                ", ".join(self.queues),
                self.concurrency,
                self._not_served(),
            )
            beats = asyncio.create_task(self._beat_on(), name="jqd beats")
            try:
                await self._work()
            finally:
                beats.cancel()
                await asyncio.wait([beats])
                await self._client.close()
                await asyncio.to_thread(self._heart.stop)
                await asyncio.to_thread(self._pool.close, _INTERRUPT_S)
            await call_hooks(self.app.on_stop)
        finally:
            for number in handled:
                loop.remove_signal_handler(number)
            await self.app.close()
        if self._failure is not None:
            raise self._failure
        assert self._stops is not None
        log.info(
            "%s has ended: %s; %d jobs done, %d failed",
            self.name,
            self._stops.value,
            self.done_count,
            self.failed_count,
        )
        return self._stops

    def stop(self, why: Ended = Ended.STOPPED) -> None:
        """Lease nothing more, and end when what runs has ended, or the grace is over. In the worker's loop."""
        if self._stops is None:
            self._stops = why
            self._news.set()
            if self._running:
                log.info("stopping: %d jobs have %g s to end", len(self._running), self._grace_s)
        elif self._stops is Ended.RECYCLE:
            self._stops = why  # whoever wants it to end does not want another one
        self._ask_no_more()

    def quiet(self) -> None:
        """Lease nothing more, finish what runs, and stay, until resume() or stop(). In the worker's loop."""
        if not self._is_quiet and self._stops is None:
            log.info("quiet: no job is leased until it is told to resume")
            self._is_quiet = True
            self._news.set()
            self._ask_no_more()

    def resume(self) -> None:
        """Lease again after quiet(). In the worker's loop."""
        if self._is_quiet:
            log.info("resumed: jobs are leased again")
            self._is_quiet = False
            self._news.set()
            self._room.set()

    def _ask_no_more(self) -> None:
        """Give up a lease that waits. One that does not wait is not worth it."""
        if self._leaser is not None and not self._burst:
            self._leaser.cancel()
        self._room.set()

    def stop_now(self) -> None:
        """End without a grace: what runs is interrupted and released. In the worker's loop."""
        self.stop()
        self._hurry.set()

    def _signalled(self, number: int) -> None:
        log.info("%s", signal.Signals(number).name)
        if self._stops is None or self._stops is Ended.RECYCLE:
            self.stop()
        else:
            self.stop_now()

    # --- leasing ------------------------------------------------------------------------------

    async def _work(self) -> None:
        while self._stops is None:
            if self._is_quiet:
                self._room.clear()
                await self._room.wait()
                continue
            self._leaser = asyncio.create_task(self._lease_on(), name="jqd leases")
            await asyncio.wait([self._leaser])
            if not self._leaser.cancelled() and (error := self._leaser.exception()) is not None:
                if not isinstance(error, JqdError):
                    raise error
                self._failure = error
                self.stop()
        await self._drain()

    async def _lease_on(self) -> None:
        again_s = _AGAIN_S
        while self._stops is None and not self._is_quiet:
            self._room.clear()
            count = min(self.concurrency - len(self._running), JOBS_PER_REQUEST_MAX)
            if count < 1 or self._unconfirmed_count > self.concurrency:
                await self._room.wait()
                continue
            if self._max_jobs is not None:
                count = min(count, self._max_jobs - self._begun_count)
            wait_ms = 0 if self._burst else min(_WAIT_MS, WAIT_MS_MAX)
            command = requests.lease(self.queues, count=count, lease=self._lease, wait=wait_ms / 1_000)
            try:
                # The connection that holds the jobs: a lease that waits has one of its own.
                await self._client.connect()
                held = requests.held(await self._client.call(command))
            except UnavailableError as error:
                if again_s == _AGAIN_S:
                    log.warning("no jobs: %s", error)
                await asyncio.sleep(again_s)
                again_s = min(2 * again_s, _AGAIN_S_MAX)
                continue
            if again_s > _AGAIN_S:
                again_s = _AGAIN_S
                log.info("the server is there again")
            self._prove()
            if held.jobs:
                self._begin(held)
            elif self._burst and not self._running and not self._unconfirmed_count and not self._untold:
                self.stop(Ended.EMPTY)
            elif self._burst:
                with contextlib.suppress(TimeoutError):  # what runs may add jobs, and wait for them
                    await asyncio.wait_for(self._room.wait(), _BURST_LOOK_S)

    def _begin(self, held: requests.Held) -> None:
        self._heart.hold(held.jobs, held.lease_ms_left / 1_000)
        for job in held.jobs:
            if self._stops is None and not self._is_quiet:
                self._start(job)
            else:  # they came in the moment in which it was told to stop, or to be quiet
                self._tell(job, Outcome("release"))
        self._begun_count += len(held.jobs)
        if self._max_jobs is not None and self._begun_count >= self._max_jobs:
            self.stop(Ended.RECYCLE)

    # --- running ------------------------------------------------------------------------------

    def _start(self, job: HeldJob) -> None:
        assert self._loop is not None
        slot = _Slot(job)
        runnable = self.app.runnable(job)
        if runnable is None:
            self._tell(job, unknown(job, self.app.tasks))
            return
        self._running[slot.key] = slot
        log.debug("job %d (%s) begins, attempt %d", job.job_id, runnable.name, job.attempt)
        future: asyncio.Future[Outcome]
        if runnable.is_async:
            task = asyncio.create_task(
                run_async(
                    runnable, job, self.app.middleware, slot.ended, partial(self._heart.report, slot.key)
                ),
                name=runnable.name,
            )
            slot.interrupt = task.cancel
            future = task
            if runnable.timeout_s is not None:
                self._arm(slot, runnable.timeout_s)
        else:
            limit_s = runnable.timeout_s
            on_begin = None if limit_s is None else partial(self._arm, slot, limit_s)
            report = partial(self._heart.report, slot.key)
            work = slot.work = self._pool.begin(runnable, job, on_begin, report)
            slot.interrupt = partial(self._pool.interrupt, work)
            future = work.future
        future.add_done_callback(partial(self._ended, slot))

    def _arm(self, slot: _Slot, limit_s: float) -> None:
        """Have a handler that begins now interrupted when its time is over."""
        assert self._loop is not None
        if slot.why is None and self._running.get(slot.key) is slot:
            slot.timer = self._loop.call_later(limit_s, self._interrupt, slot, "timeout")

    def _interrupt(self, slot: _Slot, why: Why) -> None:
        """Have a handler end before its time; it gets a while for that."""
        assert self._loop is not None
        if slot.why is not None:
            return
        slot.why = why
        slot.ended.set()
        if slot.timer is not None:
            slot.timer.cancel()
        slot.timer = self._loop.call_later(_INTERRUPT_S, self._leave, slot)
        slot.interrupt()

    def _leave(self, slot: _Slot) -> None:
        """Go on without a handler that does not end."""
        log.error("job %d goes on although it was interrupted: it is left behind", slot.job.job_id)
        if slot.work is not None:
            self._pool.abandon(slot.work)
        self._finish(slot, INTERRUPTED)

    def _ended(self, slot: _Slot, future: "asyncio.Future[Outcome]") -> None:
        # Cancelled before its first step, or by somebody else's hand.
        outcome = INTERRUPTED if future.cancelled() else future.result()
        if slot.key in self._running:
            self._finish(slot, outcome)

    def _finish(self, slot: _Slot, outcome: Outcome) -> None:
        del self._running[slot.key]
        if slot.timer is not None:
            slot.timer.cancel()
        match slot.why:
            case "lost":
                outcome = Outcome("lost")
            case "timeout" if outcome.kind == "error":
                runnable = self.app.runnable(slot.job)
                limit_s = runnable.timeout_s if runnable is not None else None
                outcome = Outcome("error", f"timeout: it took longer than {limit_s:g} s")
            case "release" | "cancel" if outcome.kind == "error":
                outcome = Outcome("release")
        self._tell(slot.job, outcome)

    # --- telling ------------------------------------------------------------------------------

    def _tell(self, job: HeldJob, outcome: Outcome) -> None:
        """See to it that the server learns how a job ended; what ends in one turn of the loop goes together."""
        assert self._loop is not None
        self._room.set()
        if outcome.kind == "lost":
            log.warning("job %d: the lease is lost, its outcome is not wanted any more", job.job_id)
            return
        if outcome.kind in ("error", "refused", "retry"):
            self.failed_count += 1
            log.warning(
                "job %d (%s) failed: %s", job.job_id, job.task or job.queue, outcome.error.partition("\n")[0]
            )
        elif outcome.kind == "done":
            self.done_count += 1
            log.debug("job %d (%s) is done", job.job_id, job.task or job.queue)
        if not self._untold:
            self._loop.call_soon(self._tell_all)
        self._untold.append((job, outcome))
        self._unconfirmed_count += 1

    def _tell_all(self) -> None:
        untold, self._untold = self._untold, []
        for command, jobs in _commands(untold):
            task = asyncio.create_task(self._ask(command, jobs), name=f"jqd {command.verb}")
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)
        self._look_at_memory()

    async def _ask(self, command: Command[Verdicts], jobs: list[HeldJob]) -> None:
        """Ask until the server has answered, or knows nothing of these jobs."""
        again_s = _AGAIN_S
        keys = [(job.job_id, job.token) for job in jobs]
        try:
            while True:
                try:
                    reply = await self._client.call(command)
                except UnavailableError as error:
                    log.warning("%s of %d jobs was not taken: %s", command.verb, len(jobs), error)
                    await asyncio.sleep(again_s)
                    again_s = min(2 * again_s, _AGAIN_S_MAX)
                    continue
                break
            for first, count, code in reply.results:
                if code in (LeaseLost.code, JobNotFound.code):
                    log.warning("%s of job %d (%d in all): %s", command.verb, first, count, code)
                elif code != OK:
                    log.error("%s of job %d (%d in all): %s", command.verb, first, count, code)
        except JqdError:
            # Not understood, and so nothing that helps to ask again: the leases run out, and others try.
            log.exception("%s of %d jobs was refused", command.verb, len(jobs))
        finally:
            self._heart.drop(keys)
            self._unconfirmed_count -= len(jobs)
            self._room.set()

    # --- the end ------------------------------------------------------------------------------

    async def _drain(self) -> None:
        deadline = time.monotonic() + self._grace_s
        hurry = asyncio.create_task(self._hurry.wait())
        try:
            while self._running and not self._hurry.is_set():
                self._room.clear()
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    break
                room = asyncio.create_task(self._room.wait())
                await asyncio.wait([room, hurry], timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
                room.cancel()
            if self._running:
                log.warning(
                    "%d jobs did not end in time: they are interrupted and released", len(self._running)
                )
            for slot in list(self._running.values()):
                self._interrupt(slot, "release")
            while self._running:
                self._room.clear()
                await self._room.wait()
        finally:
            hurry.cancel()
        self._tell_all()
        if self._telling:
            _, late = await asyncio.wait(self._telling, timeout=_FAREWELL_S)
            if late:
                log.error(
                    "the server did not take the outcome of %d jobs: their leases run out",
                    self._unconfirmed_count,
                )
            for task in late:
                task.cancel()

    def _look_at_memory(self) -> None:
        if self._max_rss is None or self._stops is not None or self._is_quiet:
            return  # the one that would come after a quiet worker would not be quiet
        now = time.monotonic()
        if now - self._rss_looked_at < 1:
            return
        self._rss_looked_at = now
        if (taken := rss_bytes()) > self._max_rss:
            log.info("%d bytes of memory: the limit is %d", taken, self._max_rss)
            self.stop(Ended.RECYCLE)

    # --- who it is ----------------------------------------------------------------------------

    @property
    def _state(self) -> WorkerState:
        return "stopping" if self._stops is not None else "quiet" if self._is_quiet else "running"

    async def _beat_on(self) -> None:
        """Say what this worker is, as long as it lives, and do what it is told in return."""
        host, pid = socket.gethostname()[:NAME_CHARS_MAX], os.getpid()
        beat_s = _BEAT_S
        while True:
            self._news.clear()
            command = requests.register(
                self.queues[:QUEUES_PER_LEASE_MAX],
                concurrency=self.concurrency,
                state=self._state,
                host=host,
                pid=pid,
                version=__version__,
            )
            try:
                reply = await self._client.call(command)
            except UnavailableError as error:
                log.debug("the server does not know of this worker for now: %s", error)
            except JqdError as error:
                log.warning("the server does not list this worker: %s", error)
                return
            else:
                beat_s = reply.beat_ms / 1_000
                if reply.order is not None:
                    self._obey(reply.order)
                if self._is_quiet:
                    self._prove()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(beat_s):  # wait_for() may swallow that it was cancelled
                    await self._news.wait()

    def _obey(self, order: str) -> None:
        """Do what the server says: again and again, as long as it does not know that it is done."""
        log.debug("the server says: %s", order)
        match order:
            case "quiet":
                self.quiet()
            case "resume":
                self.resume()
            case "stop":
                self.stop()
            case _:
                log.warning("the server's order %r is not known here", order)

    # --- what the heart says ------------------------------------------------------------------

    def _lost_elsewhere(self, keys: list[Key]) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed: nothing runs any more
            self._loop.call_soon_threadsafe(self._lost, keys)

    def _lost(self, keys: list[Key]) -> None:
        for key in keys:
            slot = self._running.get(key)
            if slot is not None:
                log.warning("job %d: the lease is lost: the handler is interrupted", slot.job.job_id)
                self._interrupt(slot, "lost")

    def _cancelled_elsewhere(self, keys: list[Key]) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._cancel, keys)

    def _cancel(self, keys: list[Key]) -> None:
        """Interrupt handlers of jobs that somebody wants to end; given back, such a job is cancelled."""
        for key in keys:
            slot = self._running.get(key)
            if slot is not None and slot.why is None:
                log.warning("job %d is to end: the handler is interrupted", slot.job.job_id)
                self._interrupt(slot, "cancel")

    def _ordered_elsewhere(self, order: str) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._ordered, order)

    def _greeted_elsewhere(self) -> None:
        """Say again what this worker is, to a server that may have begun anew and know nothing of it."""
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._news.set)

    def _ordered(self, order: str) -> None:
        self._obey(order)
        self._news.set()  # whoever gave the order sees at once that it has come

    def _beaten(self) -> None:
        if len(self._running) >= self.concurrency:
            self._prove()

    def _prove(self) -> None:
        """Leave a sign of life: the server has just shown that this worker gets jobs, or is full of them."""
        if self._health is None:
            return
        try:
            _write_over(self._health, f"{time.time():.0f}\n".encode())
        except OSError as error:  # the jobs are not to blame; whoever looks how old the file is will see it
            if not self._health_failed:
                log.warning("health file %s cannot be written: %s", self._health, error.strerror or error)
            self._health_failed = True
        else:
            if self._health_failed:
                log.info("health file %s is written again", self._health)
            self._health_failed = False


def _write_over(path: Path, data: bytes) -> None:
    """Write a file where its old content stands: no new space is asked of a full disk, and its age is that of the write."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        os.write(fd, data)
        os.ftruncate(fd, len(data))
    finally:
        os.close(fd)


def _commands(untold: Sequence[tuple[HeldJob, Outcome]]) -> list[tuple[Command[Verdicts], list[HeldJob]]]:
    """Put outcomes into as few requests as there are ways to end: one ack for all results, one fail for each text."""
    groups: dict[Any, list[tuple[HeldJob, Outcome]]] = {}
    sizes: dict[Any, int] = {}
    for job, outcome in untold:
        what = (outcome.kind, outcome.error, outcome.delay_ms)
        size = sizes[what] = sizes.get(what, 0) + len(outcome.result or b"")
        # A group that is full is followed by another one of the same kind.
        groups.setdefault((*what, size // _RESULTS_BYTES_MAX), []).append((job, outcome))
    return [
        (_command([job for job, _ in part], [outcome for _, outcome in part]), [job for job, _ in part])
        for group in groups.values()
        for part in (group[n : n + JOBS_PER_REQUEST_MAX] for n in range(0, len(group), JOBS_PER_REQUEST_MAX))
    ]


def _command(jobs: list[HeldJob], outcomes: list[Outcome]) -> Command[Verdicts]:
    first = outcomes[0]
    delay_s = None if first.delay_ms is None else first.delay_ms / 1_000
    match first.kind:
        case "done":
            results = [outcome.result for outcome in outcomes]
            ack: Ack = requests.ack(jobs, results=results if any(results) else None, encoding="msgpack")
            return ack
        case "refused":
            return requests.ack(jobs, error=first.error)
        case "error" | "retry":
            return requests.fail(jobs, error=first.error, retry_in=delay_s)
        case _:
            return requests.release(jobs, delay=delay_s or 0)

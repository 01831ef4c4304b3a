"""The blocking client: every verb, and which connection a request takes.

Knows:         what a caller may rely on.
Must not know: how a connection is kept up and how threads share it (synclink.py), frames and request ids
               (protocol/connection.py), how a verb's arguments are said (requests.py), what a failure is
               called (shared.py), asyncio.

    Client   has one main SyncLink: every request but the next ones, of all threads, pipelined
             and one SyncLink for each `lease(wait=...)` that is waiting now: the server parks one
             lease on a connection; kept for the next one afterwards
             and one for `wait`, or more: what waits for jobs takes no place of what has to be said

All connections of one client are one session: a state-changing request that is sent again after a
lost connection is answered once, also if it was carried out the first time.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from threading import RLock
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, cast

from msgspec import UNSET, Struct, UnsetType

from jqd.client import fork, requests
from jqd.client.requests import Held, HeldJob, Holding, JobOptions, QueueOptions, SweepOptions, UpdateOptions
from jqd.client.retry import Backoff
from jqd.client.shared import (
    IDLE_LINKS_MAX,
    IN_FLIGHT_MAX,
    closed_client,
    give_back,
    make_shared,
    renewed,
)
from jqd.client.synclink import SyncLink
from jqd.client.values import DEFAULT_URL, Duration, Payload, Retry, to_ms
from jqd.client.waits import Wanted, only_job, wait_for_sync
from jqd.core.commands import (
    Command,
    EndedJob,
    Extended,
    JobInfo,
    JobList,
    Lease,
    Pong,
    QueueChanged,
    QueueDetails,
    QueueList,
    Registered,
    ServerStats,
    SnapshotBegun,
    Submitted,
    SubmittedMany,
    Swept,
    Updated,
    Verdicts,
    Wait,
    Waited,
    WorkerList,
    WorkersTold,
)
from jqd.core.model import (
    DEFAULT_QUEUE,
    LIST_LIMIT_MAX,
    Encoding,
    StateName,
    WorkerOrder,
    WorkerState,
)
from jqd.errors import InvalidArgument, JqdError, RequestTimeout

R = TypeVar("R")


class Client:
    """A client of one jqd server, for the threads of one process. No event loop, no thread of its own.

        with Client("jqd://127.0.0.1:7717", worker="mailer-1") as client:
            client.submit("emails", "hello")
            held = client.lease("emails", wait="20s")
            for job in held.jobs:
                client.ack(job)

    Any number of threads may use it at once: their requests share a connection and are pipelined,
    and each lease that waits has a connection of its own.

    In a fork it begins anew, as if it had just been made: it connects for itself when it is used there, and what
    was asked before the fork stays the parent's. So does one that is pickled for another process.

    A lost connection is made again, and what was not answered is sent again under its id, so that the
    server carries it out once. An error reply is raised as it is, never asked again: after `busy`,
    `overloaded`, `storage_full` or `draining` (`error.retryable`, `error.retry_after_ms`) that is for the caller to do.

    After Ctrl-C in a verb the client is usable: the interrupted request's outcome is unknown, and in a
    rare case (the exception came in the middle of a write or read) what other threads were waiting for
    ends in ConnectionLost.

    Args:
        url: `jqd://HOST[:PORT]` or `unix:///PATH`.
        worker: a name for what leases jobs here, shown in `get` and in a job's history; up to 128 characters.
        timeout: Duration (seconds, timedelta, "30s") that each request has, reconnecting included; a
            waiting lease has its `wait` on top. Every verb takes another one as `timeout=`.
        backoff: when to try again after a lost connection.
        on_cancel: called with job id and token of each job leased here that somebody wants to end: stop working
            on it, and fail() or release() it. Called where replies are read, so it must return at once, must
            not raise, and must not use the client. extend() tells the same.

    Raises (every verb):
        RequestTimeout: no reply in time; outcome unknown. A state-changing request may have been carried out.
        ConnectionLost: no connection; `outcome_unknown` says whether the request may have been carried out.
        StoreRolledBack: an older backup was restored, or another store answers; what was acknowledged may be gone.
        RequestError, UnavailableError: what the server answered, by its code; see jqd.errors.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        worker: str = "",
        timeout: Duration = 30,
        backoff: Backoff | None = None,
        on_cancel: Callable[[int, int], None] | None = None,
    ) -> None:
        self.url = url
        self._timeout_ms = to_ms("timeout", timeout)
        self._shared = make_shared(SyncLink, url, worker, backoff, self._unclaimed, on_cancel)
        self._lock = RLock()  # guards all that follows, and everything in the links
        self._closed = False
        self._main: SyncLink | None = None
        self._idle: list[SyncLink] = []  # lease links that nobody waits on, at most IDLE_LINKS_MAX
        self._waits: list[SyncLink] = []  # that `wait` has, never the last one idle
        fork.register(self)

    # --- life ---------------------------------------------------------------------------------

    def connect(self) -> None:
        """Connect now. Not needed: the first request does it.

        Raises: ConnectionLost at once if the server cannot be reached, or what it answered to hello.
        """
        self._main_link().up()

    def close(self) -> None:
        """Close every connection. What was not answered ends in ConnectionLost. Twice is once."""
        with self._lock:
            self._closed = True
            for link in list(self._shared.links):
                link.end("the client was closed")

    def __enter__(self) -> Self:
        try:
            self.connect()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin_anew(self) -> None:
        """Drop, in a fork, what is the parent's. Called by itself: see jqd/client/fork.py."""
        lock, links = RLock(), self._shared.links
        self._lock, self._shared = lock, renewed(self._shared)
        self._main, self._idle, self._waits = None, [], []
        for link in links:
            link.disown(lock)

    def __reduce__(self) -> tuple["partial[Self]", tuple[()]]:
        """Say how to make another one of the same settings: what pickle brings to another process."""
        session, backoff = self._shared.session, self._shared.backoff
        timeout = self._timeout_ms / 1_000
        again = partial(
            type(self),
            self.url,
            worker=session.hello.worker,
            timeout=timeout,
            backoff=backoff,
            on_cancel=session.on_cancel,
        )
        return again, ()

    # --- one request --------------------------------------------------------------------------

    def call(self, command: Command[R], *, timeout: Duration | None = None) -> R:
        """Send one command and wait for its reply. Every verb is a call.

        An interrupted or timed-out lease is not lost: the server is told that nobody waits, and jobs
        that were on their way are given back.
        """
        link = self._main_link()
        wait_s = self._wait_s(timeout)
        if isinstance(command, Lease) and command.wait_ms:
            return cast("R", self._wait(command, wait_s + command.wait_ms / 1_000))
        if isinstance(command, Wait) and command.wait_ms:
            return cast("R", self._wait_for_jobs(command, wait_s + command.wait_ms / 1_000))
        return cast("R", link.ask(command, wait_s))

    def call_many(
        self, commands: Iterable[Command[Any]], *, timeout: Duration | None = None
    ) -> list[Struct | JqdError]:
        """Send commands one behind the other without waiting between them: a pipeline.

        They are carried out in their order, each for itself: one that is refused stops no other. (Many
        jobs that differ in little are better one `submit_many`.)

        Args:    commands: made by the functions of jqd.client.requests; no lease or wait that waits.
        Returns: for each command its reply, or the error that `call` would have raised.
        """
        link = self._main_link()
        wanted = list(commands)
        if any(isinstance(command, Lease | Wait) and command.wait_ms for command in wanted):
            raise InvalidArgument("commands: what waits has a connection of its own: use lease() and wait()")
        return link.ask_all(wanted, self._wait_s(timeout))

    def _wait_s(self, timeout: Duration | None) -> float:
        return (self._timeout_ms if timeout is None else to_ms("timeout", timeout)) / 1_000

    def _wait(self, command: Lease, wait_s: float) -> Struct:
        with self._lock:
            self._check_open()
            link = self._idle.pop() if self._idle else SyncLink(self._shared, self._lock, 1)
        try:
            reply = link.ask(command, wait_s)
        except RequestTimeout:
            link.retire()
            raise
        except JqdError:
            self._keep(link)
            raise
        except BaseException:
            link.retire()
            raise
        self._keep(link)
        return reply

    def _wait_for_jobs(self, command: Wait, wait_s: float) -> Struct:
        with self._lock:
            self._check_open()
            link = next((each for each in self._waits if each.load < IN_FLIGHT_MAX), None)
            if link is None:
                link = SyncLink(self._shared, self._lock, IN_FLIGHT_MAX)
                self._waits.append(link)
        try:
            return link.ask(command, wait_s)
        finally:
            with self._lock:
                surplus = link in self._waits[1:] and not link.load
                if surplus:
                    self._waits.remove(link)
            if surplus:
                link.end("not needed any more")

    def _keep(self, link: SyncLink) -> None:
        with self._lock:
            # One that has ended, or that a fork has left to the parent, is not among the links.
            if len(self._idle) < IDLE_LINKS_MAX and link in self._shared.links:
                self._idle.append(link)
                return
        link.end("not needed any more")

    def _main_link(self) -> SyncLink:
        """Return the main link, after checking that this client may be used now."""
        with self._lock:
            self._check_open()
            if self._main is None:
                self._main = SyncLink(self._shared, self._lock, IN_FLIGHT_MAX)
            return self._main

    def _check_open(self) -> None:
        if self._closed:
            raise closed_client()

    def _unclaimed(self, reply: Struct | JqdError) -> None:
        """Take a reply that nobody waits for any more."""
        if (release := give_back(reply)) is not None and self._main is not None and not self._closed:
            self._main.tell(release)

    # --- the verbs, in the order of COMMANDS ----------------------------------------------------

    def ping(self, *, timeout: Duration | None = None) -> Pong:
        """Ask whether the server is there and its disk answers."""
        return self.call(requests.ping(), timeout=timeout)

    def submit(
        self,
        queue: str = DEFAULT_QUEUE,
        payload: Payload | None = None,
        *,
        json: object | UnsetType = UNSET,
        timeout: Duration | None = None,
        **options: Unpack[JobOptions],
    ) -> Submitted:
        """Add one job; on disk when this returns.

        Args:
            payload: bytes (encoding `raw`) or str (encoding `text`), up to 1 MiB.
            json: anything that JSON can say, instead of payload.
            options: see JobOptions.
        """
        return self.call(requests.submit(queue, payload, options, json=json), timeout=timeout)

    def submit_many(
        self,
        queue: str,
        payloads: Iterable[Payload],
        *,
        timeout: Duration | None = None,
        **options: Unpack[JobOptions],
    ) -> SubmittedMany:
        """Add up to 10,000 jobs that differ in nothing but their payload: all of them, or none.

        For jobs that differ in more: `call(requests.submit_many([*requests.group(...), ...]))`.

        Returns: ranges (first id, count, existing) in the order of the payloads.
        """
        groups = requests.group(queue, payloads, options)
        return self.call(requests.submit_many(groups), timeout=timeout)

    def lease(
        self,
        queues: str | Iterable[str] = DEFAULT_QUEUE,
        *,
        count: int = 1,
        lease: Duration | None = None,
        wait: Duration = 0,
        timeout: Duration | None = None,
    ) -> Held:
        """Take up to `count` jobs, from the queues in the order given.

        Args:
            queues: a mapping of weights, `{"urgent": 3, "mail": 1}`, draws for each lease which of those that
                have jobs comes first: here urgent in three of four. So none waits for ever.
            count: 1 to 10,000; fewer come if there are fewer, or to keep the reply below 4 MiB.
            lease: Duration before the server may hand them to others, 1 s to 24 h; default: what
                each job's submit said, else 30 s.
            wait: Duration to wait for the first job, up to 30 s. Answers as soon as there is one.
        Returns: Held; its `jobs` are empty when there was nothing.
        """
        command = requests.lease(queues, count=count, lease=lease, wait=wait)
        return requests.held(self.call(command, timeout=timeout))

    def extend(
        self,
        job: HeldJob | int,
        token: int | None = None,
        *,
        lease: Duration | None = None,
        progress_percent: int | None = None,
        progress_text: str = "",
        timeout: Duration | None = None,
    ) -> Extended:
        """Hold a job for `lease` from now on; default: the time that its lease was given.

        Args:
            job: what lease() returned, or a job id with its token.
            progress_percent, progress_text: how far it is, 0 to 100 and up to 256 bytes, either or both; in the
                place of what was said before, shown by get() until it is handed out again.
        Raises: JobNotFound, LeaseLost.
        """
        reply = self.extend_many(
            [requests.holding(job, token)],
            lease=lease,
            progress_percent=progress_percent,
            progress_text=progress_text,
            timeout=timeout,
        )
        requests.check("extend", reply.results)
        return reply

    def extend_many(
        self,
        jobs: Iterable[Holding],
        *,
        lease: Duration | None = None,
        progress_percent: int | None = None,
        progress_text: str = "",
        timeout: Duration | None = None,
    ) -> Extended:
        """Hold jobs longer. Returns a verdict per run of jobs; lease_ms_left is the shortest."""
        command = requests.extend(
            jobs, lease=lease, progress_percent=progress_percent, progress_text=progress_text
        )
        return self.call(command, timeout=timeout)

    def ack(
        self,
        job: HeldJob | int,
        token: int | None = None,
        *,
        result: Payload | None = None,
        json: object | UnsetType = UNSET,
        encoding: Encoding | None = None,
        error: str | None = None,
        timeout: Duration | None = None,
    ) -> None:
        """Finish a held job: `done`; with `error`, dead with reason `refused`, without a retry.

        Args:
            result: bytes or str, up to 64 KiB, kept with the job; json: the same as a JSON value.
            error: why the job failed for good.
        Raises: JobNotFound, LeaseLost, PayloadTooLarge.
        """
        results = None if result is None else [result]
        command = requests.ack(
            [requests.holding(job, token)], results=results, json=json, encoding=encoding, error=error
        )
        requests.check("ack", (self.call(command, timeout=timeout)).results)

    def ack_many(
        self,
        jobs: Sequence[Holding],
        *,
        results: Sequence[Payload | None] | None = None,
        encoding: Encoding | None = None,
        error: str | None = None,
        timeout: Duration | None = None,
    ) -> Verdicts:
        """Finish held jobs, `results[i]` being that of `jobs[i]`. Returns a verdict per run of jobs."""
        command = requests.ack(jobs, results=results, encoding=encoding, error=error)
        return self.call(command, timeout=timeout)

    def fail(
        self,
        job: HeldJob | int,
        token: int | None = None,
        *,
        error: str = "",
        retry_in: Duration | None = None,
        retry: Retry | None = None,
        dead: bool = False,
        timeout: Duration | None = None,
    ) -> None:
        """Give a held job back as failed: retried after a backoff, dead after the last retry.

        Args:
            error: what went wrong; kept with the job, cut at 4 KiB.
            retry_in: Duration until the next attempt, instead of the backoff.
            retry: Retry, the policy that says how long it waits this time, instead of the job's own.
            dead: no retry (reason `killed`).
        Raises: JobNotFound, LeaseLost.
        """
        jobs = [requests.holding(job, token)]
        reply = self.fail_many(jobs, error=error, retry_in=retry_in, retry=retry, dead=dead, timeout=timeout)
        requests.check("fail", reply.results)

    def fail_many(
        self,
        jobs: Iterable[Holding],
        *,
        error: str = "",
        retry_in: Duration | None = None,
        retry: Retry | None = None,
        dead: bool = False,
        timeout: Duration | None = None,
    ) -> Verdicts:
        """Give held jobs back as failed. Returns a verdict per run of jobs."""
        command = requests.fail(jobs, error=error, retry_in=retry_in, retry=retry, dead=dead)
        return self.call(command, timeout=timeout)

    def release(
        self,
        job: HeldJob | int,
        token: int | None = None,
        *,
        delay: Duration = 0,
        timeout: Duration | None = None,
    ) -> None:
        """Give a held job back unworked, ready after `delay`: the attempt is not counted.

        Raises: JobNotFound, LeaseLost.
        """
        reply = self.release_many([requests.holding(job, token)], delay=delay, timeout=timeout)
        requests.check("release", reply.results)

    def release_many(
        self, jobs: Iterable[Holding], *, delay: Duration = 0, timeout: Duration | None = None
    ) -> Verdicts:
        """Give held jobs back unworked. Returns a verdict per run of jobs."""
        return self.call(requests.release(jobs, delay=delay), timeout=timeout)

    def cancel(
        self,
        ids: int | Iterable[int] | None = None,
        *,
        running: bool = False,
        timeout: Duration | None = None,
        **options: Unpack[SweepOptions],
    ) -> Swept:
        """End waiting jobs for good: one by its id, several by theirs, or those of a queue, state or filter.

        With `running` also jobs that are held: these are marked, whoever holds them is told, and they are
        cancelled when they are failed or released, or their lease ends; acked they are done. The reply's
        `marked` counts them.

        One call looks at a page of all jobs, so a count of 0 is not the end: go on with the reply's `cursor`
        until it is None.

        Raises: JobNotFound, WrongState for a single id; for several, see the reply's verdicts.
        """
        return requests.swept(
            "cancel", ids, self.call(requests.cancel(ids, options, running=running), timeout=timeout)
        )

    def update(
        self, job_id: int, *, timeout: Duration | None = None, **options: Unpack[UpdateOptions]
    ) -> Updated:
        """Change a job that waits: what is not given stays.

        Args:    options: see UpdateOptions.
        Returns: the state that it has now.
        Raises: JobNotFound, WrongState: it does not wait (any more).
        """
        return self.call(requests.update(job_id, **options), timeout=timeout)

    def requeue(
        self,
        ids: int | Iterable[int] | None = None,
        *,
        timeout: Duration | None = None,
        **options: Unpack[SweepOptions],
    ) -> Swept:
        """Make dead jobs ready again, with new budgets of retries. Arguments as in cancel()."""
        return requests.swept("requeue", ids, self.call(requests.requeue(ids, options), timeout=timeout))

    def purge(
        self,
        ids: int | Iterable[int] | None = None,
        *,
        timeout: Duration | None = None,
        **options: Unpack[SweepOptions],
    ) -> Swept:
        """Remove jobs without a trace: waiting ones, dead ones with state="dead". Arguments as in cancel()."""
        return requests.swept("purge", ids, self.call(requests.purge(ids, options), timeout=timeout))

    def set_queue(
        self, queue: str, *, timeout: Duration | None = None, **options: Unpack[QueueOptions]
    ) -> QueueChanged:
        """Change what holds in a queue, and make it if there is none; what is not given stays.

        A queue that was set is there without jobs, until it is set with nothing but `reset=True`.

        Args:   options: see QueueOptions.
        Raises: Overloaded: 10,000 queues have settings.
        """
        return self.call(requests.set_queue(queue, options), timeout=timeout)

    def pause(self, queue: str, *, timeout: Duration | None = None) -> QueueChanged:
        """Hand out nothing of a queue until resume(), over restarts; held jobs and submits go on."""
        return self.call(requests.pause(queue), timeout=timeout)

    def resume(self, queue: str, *, timeout: Duration | None = None) -> QueueChanged:
        """Hand out the jobs of a paused queue again. Raises: QueueNotFound."""
        return self.call(requests.resume(queue), timeout=timeout)

    def get(self, job_id: int, *, timeout: Duration | None = None) -> JobInfo:
        """Show one job. Raises: JobNotFound."""
        return self.call(requests.get(job_id), timeout=timeout)

    def wait(self, job_id: int, *, timeout: Duration | None = None) -> EndedJob:
        """Wait until a job is at its end: done, dead, cancelled or expired. Nothing polls.

        Goes on over lost connections and a server that is started again.

        Args:   timeout: Duration; None: as long as it takes.
        Raises: JobNotFound: there is none, or it went meanwhile. WaitTimeout: it goes on.
        """
        return only_job(self.wait_many([job_id], timeout=timeout))

    def wait_many(self, ids: Iterable[int], *, timeout: Duration | None = None, all: bool = True) -> Waited:
        """Wait until jobs are at their end: all of them, or with all=False one, or more that end together.

        Args:    timeout: Duration; None: as long as it takes.
        Returns: those that are at their end, in the order of the ids; how many are not; ids without a job.
        Raises:  WaitTimeout; InvalidArgument: no ids, or more than 1,000 without `all`.
        """
        return wait_for_sync(Wanted(ids, timeout, all=all), self.call)

    def list(
        self,
        *,
        queue: str | None = None,
        state: StateName | None = None,
        filter: str | None = None,
        cursor: int = 0,
        limit: int = 100,
        timeout: Duration | None = None,
    ) -> JobList:
        """Show jobs in order of their ids, without payloads: a page of at most `limit`, up to 1,000.

        filter: a text such as `state = dead and error contains timeout`; see protocol.md "The filter language".

        A page may be short or empty before the end: go on with the reply's `cursor` until it is None.

        Raises: QueueNotFound, InvalidArgument (the filter, with the position).
        """
        command = requests.list_jobs(queue=queue, state=state, filter=filter, cursor=cursor, limit=limit)
        return self.call(command, timeout=timeout)

    def queues(
        self, *, cursor: str = "", limit: int = LIST_LIMIT_MAX, timeout: Duration | None = None
    ) -> QueueList:
        """Show queues with their jobs counted by state: a page, in order of the names."""
        return self.call(requests.queues(cursor=cursor, limit=limit), timeout=timeout)

    def queue(self, name: str, *, timeout: Duration | None = None) -> QueueDetails:
        """Show one queue: counts, settings, and how long its jobs waited and ran. Raises: QueueNotFound."""
        return self.call(requests.queue(name), timeout=timeout)

    def register(
        self,
        queues: str | Iterable[str] = (),
        *,
        concurrency: int = 1,
        state: WorkerState = "running",
        host: str = "",
        pid: int = 0,
        version: str = "",
        timeout: Duration | None = None,
    ) -> Registered:
        """Say what a worker is, for `workers` to show: at its start, when something changes, and every `beat_ms`.

        A Worker does this by itself. The reply's `order`, if there is one, is what it is to do from now on.

        Raises: Overloaded: 5,000 workers are registered.
        """
        command = requests.register(
            queues, concurrency=concurrency, state=state, host=host, pid=pid, version=version
        )
        return self.call(command, timeout=timeout)

    def workers(self, *, cursor: str = "", limit: int = 100, timeout: Duration | None = None) -> WorkerList:
        """Show workers that are registered and connected, and what they hold: a page, in order of their ids."""
        return self.call(requests.workers(cursor=cursor, limit=limit), timeout=timeout)

    def tell_workers(
        self,
        order: WorkerOrder,
        workers: str | Iterable[str] | None = None,
        *,
        all: bool = False,
        timeout: Duration | None = None,
    ) -> WorkersTold:
        """Tell workers to lease no more ("quiet"), to lease again ("resume"), or to drain and end ("stop").

        Args:    workers: ids or labels, as `workers` shows them. all: every one, instead.
        Returns: who was told; not when it is done: see `state` in `workers`. One that stops is told nothing else.
        Raises:  WorkerNotFound: of a name; then nobody was told.
        """
        return self.call(requests.tell_workers(order, workers, all=all), timeout=timeout)

    def stats(self, *, timeout: Duration | None = None) -> ServerStats:
        """Show figures of the daemon."""
        return self.call(requests.stats(), timeout=timeout)

    def snapshot(self, *, timeout: Duration | None = None) -> SnapshotBegun:
        """Have a snapshot of everything made. It is made when `stats` shows a `snapshot_lsn` of the reply's or more."""
        return self.call(requests.snapshot(), timeout=timeout)

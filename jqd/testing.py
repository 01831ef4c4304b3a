"""A jqd for tests: the real server in this process, without a disk, with a clock that the test moves.

Knows:         how to run the server's own code in a thread, how to disturb it.
Must not know: what is tested. Nothing here is for production: it keeps all that ever happened in memory.

    with jqd.testing.Server() as server:              needs jqd[server]
        client = Client(server.url)
        client.submit("emails", b"hi", delay="1h")
        server.advance("1h")                          leases, delays, backoff, retention: all of it has passed
        server.drop_lease(job_id)                     as if it had run out: the job is handed out again
        server.deliver_again("emails")                the next ack is too late: the job is done twice
        server.lose_reply("submit")                   carried out, and the connection is cut instead of an answer
        server.restart()                              from what was durable, as after kill -9

    with jqd.testing.worker(app, server): ...         a worker beside the test
    jqd.testing.work_off(app, server)                 a worker, until nothing is left to do now
    with jqd.testing.inline(app): ...                 each job is done before its submit returns

As a fixture of pytest: `pytest_plugins = "jqd.pytest_plugin"` in conftest.py, then `jqd_server`.

Time stands still unless the test moves it, for the server. The real clock goes on: a lease that waits for a job on the
client waits in real time, and a worker extends its leases in real time. So nothing runs out by itself, however long a
debugger holds the test, and what should run out does so at once.
"""

import asyncio
import contextlib
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar, cast

from jqd import __version__
from jqd.client.app import App
from jqd.client.sync import Client
from jqd.client.values import Duration, to_ms
from jqd.client.worker import Ended, Worker
from jqd.core import passing
from jqd.core.commands import Ack, Command, Lease, Leased, Wait
from jqd.core.engine import Body, Engine
from jqd.core.model import DEFAULT_QUEUE, Now
from jqd.core.queues import Identity
from jqd.core.state import State
from jqd.errors import JobNotFound, JqdError, WrongState
from jqd.protocol.messages import SubmitRequest
from jqd.server.config import Config, load_config
from jqd.server.driver import Connection, Driver
from jqd.server.machine import find_memory
from jqd.server.session import Output, Session
from jqd.storage.memory import MemoryStore

T = TypeVar("T")

# The date at which every test begins, unless it says otherwise: 2030-01-01T00:00:00Z.
BEGINNING_WALL_MS: Final = 1_893_456_000_000
# What the server may take for one thing that it is told.
_PATIENCE_S: Final = 30.0


class _Clock:
    def __init__(self, now: Now) -> None:
        self.time = now

    def now(self) -> Now:
        return self.time

    def advance(self, ms: int) -> None:
        self.time = Now(self.time.engine_ms + ms, self.time.wall_ms + ms)


class _NoStandstill:
    """Here a leap of the clock is what the test wants, and no lease is spared by it."""

    def see(self, now_ms: int, since_ms: int) -> int:  # noqa: ARG002 - as Standstill has it
        return 0

    def lag_ms(self, now_ms: int) -> int:  # noqa: ARG002
        return 0


class _Faults:
    """What is to go wrong next.

    replies: verb -> how many replies are lost.  acks: queue -> how many acks come too late.
    """

    def __init__(self) -> None:
        self.replies: dict[str, int] = {}
        self.acks: dict[str, int] = {}


def _spend(budget: dict[str, int], name: str) -> bool:
    if not budget.get(name):
        return False
    budget[name] -= 1
    return True


class _FaultySession(Session):
    __slots__ = ("_connection", "_faults")

    def __init__(self, driver: Driver, connection: "_Line", faults: _Faults) -> None:
        super().__init__(driver, connection)
        self._connection = connection
        self._faults = faults

    def _carry_out(self, command: Command[Any], request_id: int, now: Now) -> None:
        if isinstance(command, Ack) and any(self._faults.acks.values()):
            self._come_too_late(command, now)
        super()._carry_out(command, request_id, now)
        is_parked = isinstance(command, Lease) and self._ticket in self._house.engine._parked_by_ticket
        if not is_parked and _spend(self._faults.replies, command.verb):
            self._connection.loses = True

    def answer(self, request_id: int, answer: Body | JqdError) -> None:
        super().answer(request_id, answer)
        if isinstance(answer, Leased) and answer.jobs and _spend(self._faults.replies, Lease.verb):
            self._connection.loses = True

    def _submit(self, run: list[SubmitRequest], now: Now) -> None:
        if not self._faults.replies.get("submit"):
            super()._submit(run, now)
            return
        for request in run:
            self._carry_out(request.args, request.request_id, now)

    def _come_too_late(self, command: Ack, now: Now) -> None:
        """End leases before the ack is looked at, for as many jobs as it was asked for."""
        engine = self._house.engine
        for token, ranges, _ in command.items:
            for first, count in ranges:
                for job_id in range(first, first + count):
                    job = engine.state.job(job_id)
                    if job is None or job.lease is None or job.lease.token != token:
                        continue
                    if _spend(self._faults.acks, job.options.queue):
                        _end_lease(engine, job_id, now)


def _cut(connection: Connection) -> None:
    """End a connection as a network does: to the server it looks like the client's end."""
    assert connection._transport is not None
    connection._transport.abort()


class _Line(Connection):
    """A connection. `loses`: what is sent next is lost on its way, with the connection."""

    def __init__(self, driver: Driver, faults: _Faults) -> None:
        super().__init__(driver)
        self.session = _FaultySession(driver, self, faults)
        self.loses = False

    def send(self, output: Output) -> None:
        if self.loses and not self._closed:
            self.loses = False
            self.session.output_sent(output)  # as far as the server can tell
            _cut(self)
        else:
            super().send(output)


def _end_lease(engine: Engine, job_id: int, now: Now) -> None:
    job = engine.state.known_job(job_id)
    assert job.lease is not None
    passing._crash([job], job.lease, "its lease was dropped by the test", engine.state, now, engine._emit)


class Server:
    """See the file's card. Entered in any thread; its methods may be called from any, they return when it is done.

    Args:
        wall_ms: the date at which it begins, in unix milliseconds.

    Attributes:
        url: for Client, AsyncClient and App.
    """

    def __init__(self, *, wall_ms: int = BEGINNING_WALL_MS) -> None:
        self.url = ""
        self._clock = _Clock(Now(0, wall_ms))
        self._faults = _Faults()
        self._store = MemoryStore(keep=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._driver: Driver | None = None
        self._listener: asyncio.Server | None = None
        self._failures: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, name="jqd test server", daemon=True)
        self._ready = threading.Event()

    # --- life ---------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._ready.wait(_PATIENCE_S):
            raise RuntimeError("the server's thread did not begin")
        self._await(self._open())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._loop is not None
        self._await(self._close(gracefully=True))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_PATIENCE_S)
        if self._failures and error is None:
            raise self._failures[0]

    def _run(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.call_soon(self._ready.set)
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    def _await(self, work: Coroutine[Any, Any, T]) -> T:
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_PATIENCE_S)

    def _do(self, function: Callable[[Driver, Now], T]) -> T:
        """Do something to the server between two requests, and wait until it is durable."""

        async def do() -> T:
            driver = self._known_driver
            result = function(driver, driver.begin_turn())
            await self._settle(driver)
            return result

        return self._await(do())

    @property
    def _known_driver(self) -> Driver:
        assert self._driver is not None, "use it in a `with` block"
        return self._driver

    async def _open(self, port: int = 0) -> None:
        loop = asyncio.get_running_loop()
        engine = Engine(State(), Identity(server=f"jqd {__version__} (test)", store_id=self._store.public_id))
        for record in self._store.load():
            engine.replay(record.first_lsn, record.count, record.payload)
        driver = Driver(engine, self._store, _config(), loop, self._clock, self._failures.append)  # type: ignore[arg-type]  # a clock
        driver._standstill = _NoStandstill()  # type: ignore[assignment]
        self._driver = driver
        self._listener = await loop.create_server(lambda: _Line(driver, self._faults), "127.0.0.1", port)
        host, port = self._listener.sockets[0].getsockname()
        self.url = f"jqd://{host}:{port}"
        driver.start(__version__)

    async def _close(self, *, gracefully: bool) -> None:
        driver = self._known_driver
        assert self._listener is not None
        self._listener.close()
        if not gracefully:
            for connection in list(driver.connections):
                connection.abort()
        await driver.drain()

    @staticmethod
    async def _settle(driver: Driver) -> None:
        """Wait until the turn has ended and all that it changed is durable."""
        while driver._now is not None or driver._waiting:  # noqa: ASYNC110 - the disk is a list: it takes no time
            await asyncio.sleep(0)

    def restart(self) -> None:
        """End as kill -9 does and begin again with what was durable. `url` stays the same."""

        async def again() -> None:
            driver = self._known_driver
            await self._settle(driver)
            records = list(self._store.records)  # before it is told to end: that it did is not in them
            assert self._listener is not None
            port = self._listener.sockets[0].getsockname()[1]
            await self._close(gracefully=False)
            self._store = MemoryStore(records, keep=True)
            await self._open(port)

        self._await(again())

    # --- time ---------------------------------------------------------------------------------

    @property
    def now(self) -> Now:
        """What its clocks say."""
        return self._clock.time

    def advance(self, duration: Duration) -> None:
        """Let time pass, on both clocks; when this returns all that was due has happened."""
        ms = to_ms("duration", duration)

        async def pass_by() -> None:
            driver = self._known_driver
            await self._settle(driver)
            self._clock.advance(ms)
            while True:
                driver.begin_turn()
                await self._settle(driver)
                due_ms = driver.engine.next_deadline(self._clock.time)
                if due_ms is None or due_ms > self._clock.time.engine_ms:
                    return

        self._await(pass_by())

    # --- faults -------------------------------------------------------------------------------

    def drop_lease(self, job_id: int) -> None:
        """End a job's lease as if it had run out: a crash is counted, and whoever holds it is refused from now on.

        Raises: JobNotFound, WrongState: it is not leased.
        """

        def drop(driver: Driver, now: Now) -> None:
            job = driver.engine.state.job(job_id)
            if job is None:
                raise JobNotFound(f"job {job_id}: no such job")
            if job.lease is None:
                raise WrongState(f"job {job_id} is {job.state.wire_name}: it is not leased")
            _end_lease(driver.engine, job_id, now)

        self._do(drop)

    def deliver_again(self, queue: str = "default", count: int = 1) -> None:
        """Have the next `count` jobs of a queue that are acked delivered once more.

        Their lease is lost at the last moment, after all was done: what at-least-once means.
        """
        self._do(lambda driver, now: self._faults.acks.update({queue: count}))  # noqa: ARG005

    def lose_reply(self, verb: str, count: int = 1) -> None:
        """Carry out the next `count` requests of a verb, and cut the connection instead of answering.

        As a network does that loses the reply: what was carried out is on disk, and the server takes the reply for sent.
        """
        self._do(lambda driver, now: self._faults.replies.update({verb: count}))  # noqa: ARG005

    def cut(self) -> None:
        """Cut all connections."""

        def abort(driver: Driver, now: Now) -> None:  # noqa: ARG001
            for connection in list(driver.connections):
                _cut(connection)

        self._do(abort)


def _config() -> Config:
    where = str(Path(tempfile.gettempdir()) / "jqd-testing")  # named, and never made: nothing is on disk
    return load_config(
        {"data_dir": where}, {}, is_root=False, cwd="/", open_files_max=1 << 16, memory_max=find_memory()
    )


# --- workers ----------------------------------------------------------------------------------


@contextlib.contextmanager
def worker(app: App, server: Server | None = None, **options: Any) -> Iterator[Worker]:  # noqa: ANN401 - Worker's
    """Run a worker in a thread beside the test, until the block ends; it has 25 s to finish what it runs.

    Args:
        server: the app is told to talk to it from now on.
        options: as Worker has them; but for these it serves all queues that the app's functions are for.
    """
    if server is not None:
        app.redirect(server.url)
    loops: list[asyncio.AbstractEventLoop] = []
    begun = threading.Event()
    made = _worker(app, options)
    ends: list[BaseException] = []

    async def run() -> Ended:
        loops.append(asyncio.get_running_loop())
        begun.set()
        return await made.run()

    def work() -> None:
        try:
            asyncio.run(run())
        except BaseException as error:  # noqa: BLE001 - raised in the test's thread
            ends.append(error)

    thread = threading.Thread(target=work, name="jqd test worker", daemon=True)
    thread.start()
    begun.wait(_PATIENCE_S)
    try:
        yield made
    finally:
        with contextlib.suppress(RuntimeError):  # it has ended by itself
            loops[0].call_soon_threadsafe(made.stop)
        thread.join(2 * _PATIENCE_S)
    if thread.is_alive():
        raise RuntimeError("the worker does not end")
    if ends:
        raise ends[0]


def work_off(app: App, server: Server | None = None, **options: Any) -> Worker:  # noqa: ANN401 - Worker's
    """Run a worker until there is nothing left to do now; what is delayed is not waited for. Returns it.

    Args: as of worker().
    """
    if server is not None:
        app.redirect(server.url)
    made = _worker(app, {"burst": True, **options})
    _in_thread(made)
    return made


def _worker(app: App, options: dict[str, Any]) -> Worker:
    """Make a worker that leaves out no queue by mistake: in a test nobody reads the line that would say so."""
    return Worker(app, **{"queues": sorted({DEFAULT_QUEUE, *app.queues}), **options})


def _in_thread(made: Worker) -> None:
    """Run a worker to its end, in a thread: the caller may have an event loop of its own."""
    errors: list[BaseException] = []

    def work() -> None:
        try:
            asyncio.run(made.run())
        except BaseException as error:  # noqa: BLE001 - raised in the test's thread
            errors.append(error)

    thread = threading.Thread(target=work, name="jqd test worker", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


# --- inline -----------------------------------------------------------------------------------


class Inline(Server):
    """A server whose jobs are done before their submit returns: see inline()."""

    def __init__(self, app: App, **options: Any) -> None:  # noqa: ANN401 - Worker's
        super().__init__()
        self._app = app
        self._options = options
        self._works = threading.Lock()  # held while a worker runs: what its handlers submit is its own to do
        self._client: Client | None = None

    def __enter__(self) -> Self:
        super().__enter__()
        self._client = Client(self.url)
        self._before = self._app.url
        self._app.redirect(self.url, stand_in=(self._call, self._acall))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._app.redirect(self._before)
        self._asked.close()
        super().__exit__(kind, error, trace)

    @property
    def _asked(self) -> Client:
        assert self._client is not None, "use it in a `with` block"
        return self._client

    def advance(self, duration: Duration) -> None:
        super().advance(duration)
        self._work()

    def _call(self, command: Command[T], *, timeout: Duration | None = None) -> T:
        reply = self._asked.call(command, timeout=timeout)
        if command.adds_jobs:
            self._work()
        return reply

    async def _acall(self, command: Command[T], *, timeout: Duration | None = None) -> T:  # noqa: ASYNC109
        if isinstance(command, Wait) and command.wait_ms:
            return cast("T", await asyncio.to_thread(self._asked.call, command, timeout=timeout))
        reply = self._asked.call(command, timeout=timeout)
        if command.adds_jobs and self._works.acquire(blocking=False):
            try:
                await self._worker().run()  # in the test's own event loop
            finally:
                self._works.release()
        return reply

    def _work(self) -> None:
        if self._works.acquire(blocking=False):
            try:
                _in_thread(self._worker())
            finally:
                self._works.release()

    def _worker(self) -> Worker:
        queues = [queue.queue for queue in self._asked.queues().queues] or [DEFAULT_QUEUE]
        return Worker(self._app, queues, burst=True, **self._options)


def inline(app: App, **options: Any) -> Inline:  # noqa: ANN401 - Worker's
    """Return a context manager in which a job is done before its submit returns: `with jqd.testing.inline(app): ...`.

    Arguments and results go over the wire all the same, and retries, delays and dead letters are those of the server. What
    is delayed, a retry too, is done by advance() of what the `with` gives. Async handlers run in the loop that awaits
    `submit`; after `submit_sync` in one of their own.
    """
    return Inline(app, **options)

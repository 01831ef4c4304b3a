"""The worker against the real server in this process: each way in which a job can end, and each way to stop."""

import asyncio
import contextlib
import logging
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgpack
import pytest

import jqd
from jqd.client.aio import AsyncClient
from jqd.client.app import App, Task
from jqd.client.outcomes import Outcome
from jqd.client.requests import HeldJob
from jqd.client.sync import Client
from jqd.client.worker import RSS_BYTES_MIN, Ended, Worker, _commands
from jqd.core import model
from jqd.core.commands import Ack, Command, Fail, JobInfo, Lease, OrderGiven, Register, Release
from jqd.core.model import ERROR_TEXT_BYTES_MAX, RESULT_BYTES_MAX, WorkerOrder
from jqd.errors import Busy, InvalidArgument, Overloaded, UnknownCommand
from jqd.protocol.connection import Session
from jqd.testing import Server, work_off, worker
from tests.support.daemon import ROOT
from tests.support.until import PATIENCE_S, happens

pytest_plugins = ["jqd.pytest_plugin"]


class Scene:
    """An app whose task `act` does what a test says, once as a coroutine and once as a plain function."""

    def __init__(self, server: Server, kind: str) -> None:
        self.server = server
        self.app = App(server.url)
        self.acts: list[Any] = []  # what the next calls do
        self.seen: list[jqd.CurrentJob] = []
        self.client = Client(server.url)

        def act() -> Any:
            self.seen.append(jqd.current_job())
            return self.acts.pop(0)() if self.acts else None

        if kind == "async":

            @self.app.task(name="act")
            async def _act() -> Any:
                return act()
        else:
            self.app.task(name="act")(act)

    def submit(self, **options: Any) -> int:
        job_id: int = self.app.tasks["act"].options(**options).submit_sync().job_id
        return job_id

    def run(self, *acts: Any, **options: Any) -> JobInfo:
        """Submit a job, have a worker do it, and return how it stands."""
        self.acts += acts
        job_id = self.submit(**options)
        work_off(self.app)
        return self.client.get(job_id)


@pytest.fixture(params=["async", "sync"])
def scene(request, jqd_server: Server) -> Iterator[Scene]:
    made = Scene(jqd_server, request.param)
    yield made
    made.client.close()
    made.app.close_sync()


def is_cancelled(client: Client, job_id: int) -> bool:
    return client.get(job_id).state == "cancelled"


def is_done(client: Client, job_id: int) -> bool:
    return client.get(job_id).state == "done"


def raises(error: BaseException) -> Any:
    def act() -> None:
        raise error

    return act


def holding(app: App) -> tuple[Task[[], None], threading.Event, threading.Event]:
    """Return a task that runs until it is told to end, the event that it has begun, and the one that it may end."""
    begun, may_end = threading.Event(), threading.Event()

    @app.task()
    def hold() -> None:
        begun.set()
        assert may_end.wait(PATIENCE_S)

    return hold, begun, may_end


# --- how a job can end --------------------------------------------------------------------------


def test_what_it_returns_is_the_result(scene):
    info = scene.run(lambda: {"n": 1})
    assert (info.state, info.result, info.result_encoding) == ("done", b"\x81\xa1n\x01", "msgpack")
    assert scene.run(lambda: None).result is None


def test_an_exception_is_an_error_and_is_retried_after_the_backoff(scene):
    info = scene.run(raises(ValueError("too\nbad")))
    assert (info.state, info.errors, info.crashes) == ("delayed", 1, 0)
    headline, _, rest = info.error.partition("\n\n")
    assert headline == "ValueError: too\nbad" and "in act" in rest and rest.endswith("ValueError: too\nbad")
    scene.server.advance("1h")
    work_off(scene.app)
    assert scene.client.get(1).state == "done"
    assert [(job.attempt, job.errors) for job in scene.seen] == [(1, 0), (2, 1)]


def test_the_last_retry_is_the_last(scene):
    info = scene.run(raises(ValueError("x")), max_retries=0)
    assert (info.state, info.reason) == ("dead", "retries")


def test_retry_says_when(scene):
    info = scene.run(raises(jqd.Retry("the other side is asleep", in_="7m")))
    assert (info.state, info.errors, info.due_ms_left, info.error) == (
        "delayed",
        1,
        420_000,
        "the other side is asleep",
    )
    assert 800 <= scene.run(raises(jqd.Retry())).due_ms_left <= 1_200  # the backoff


def test_snooze_does_not_count(scene):
    info = scene.run(raises(jqd.Snooze("7m")))
    assert (info.state, info.errors, info.attempt, info.due_ms_left) == ("delayed", 0, 0, 420_000)


def test_fail_is_final(scene):
    info = scene.run(raises(jqd.Fail("no such customer")))
    assert (info.state, info.reason, info.error) == ("dead", "refused", "no such customer")


def test_an_exit_in_a_handler_ends_its_job_only(scene):
    info = scene.run(raises(SystemExit(3)))
    assert (info.state, info.errors) == ("delayed", 1) and info.error.startswith("SystemExit: 3")


def test_a_result_that_is_too_large_is_final(scene):
    info = scene.run(lambda: b"x" * RESULT_BYTES_MAX)
    assert (info.state, info.reason) == ("dead", "refused")
    assert info.error == f"result = {RESULT_BYTES_MAX + 5} bytes: the limit is {RESULT_BYTES_MAX}"
    assert scene.run(lambda: b"x" * (RESULT_BYTES_MAX - 5)).state == "done"


def test_a_result_that_cannot_be_sent_is_an_error(scene):
    info = scene.run(object)
    assert (info.state, info.errors) == ("delayed", 1) and "object cannot be sent" in info.error


def test_a_long_error_keeps_its_beginning_and_its_end(scene):
    def deep(n: int = 300) -> None:
        if n:
            deep(n - 1)
        raise ValueError("b" * 3_000)

    error = scene.run(deep).error
    assert (
        error.startswith("ValueError: bbb")
        and error.endswith("bbb")
        and len(error.encode()) <= ERROR_TEXT_BYTES_MAX
    )


def test_an_unknown_task_fails_with_the_names_that_are_known(scene):
    job_id = scene.client.submit("default", b"\x80", task="os.system", encoding="msgpack").job_id
    work_off(scene.app)
    info = scene.client.get(job_id)
    assert (info.state, info.errors, info.error) == (
        "delayed",
        1,
        "unknown task 'os.system': this worker knows act",
    )


def test_arguments_that_do_not_fit_are_final(scene):
    job_id = scene.client.submit("default", json={"x": 1}, task="act").job_id
    work_off(scene.app)
    info = scene.client.get(job_id)
    assert (info.state, info.reason) == ("dead", "refused") and "unknown field `x`" in info.error
    assert not scene.seen


def test_a_job_without_a_task_goes_to_its_queues_handler(scene):
    job_id = scene.client.submit("default", b"raw").job_id
    other_id = scene.client.submit("other", b"raw").job_id

    @scene.app.handler("other", timeout="5s")
    def handle(job: HeldJob) -> str:
        return f"{job.payload!r} of {job.queue}, {jqd.current_job().job_id}"

    with pytest.raises(ValueError, match="queue 'other' has the handler"):
        scene.app.handler("other")(work_off)
    work_off(scene.app, queues=["default", "other"])
    assert (
        "no task: the job names none, and queue 'default' has no handler here"
        in scene.client.get(job_id).error
    )
    assert msgpack.unpackb(scene.client.get(other_id).result) == f"b'raw' of other, {other_id}"


def test_a_timeout_is_an_error(jqd_server):
    app = App(jqd_server.url)
    cleaned: list[str] = []

    @app.task(timeout=0.05)
    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append("wait")

    @app.task(timeout=0.05)
    def spin() -> None:
        try:
            while not jqd.current_job().is_ended:
                pass
            while True:  # interrupted here, or above
                pass
        finally:
            cleaned.append("spin")

    with app, Client(jqd_server.url) as client:
        for task in (wait, spin):
            task.submit_sync()
        work_off(app)
        for job_id in (1, 2):
            info = client.get(job_id)
            assert (info.state, info.errors) == ("delayed", 1)
            assert info.error == "timeout: it took longer than 0.05 s"
    assert sorted(cleaned) == ["spin", "wait"]


# In a process of its own: what stands still is ended there. Traced code is what shows the mark, see pools.py.
INTERRUPTIONS = """
import asyncio
import threading
from jqd.client.app import App
from jqd.client.pools import ThreadPool
from jqd.client.requests import HeldJob
from jqd.client.running import INTERRUPTED, Interrupted
from tests.support.effort import steps_of

app = App()
begun = threading.Event()

@app.handler("plain")
def plain(job):
    return b"done"

@app.handler("endless")
def endless(job):
    begun.set()
    while True:
        pass

@app.handler("stubborn")
def stubborn(job):
    try:
        endless(job)
    except Interrupted:
        return b"done"

def job(queue):
    return HeldJob(job_id=1, queue=queue, payload=b"", priority=0, attempt=1, token=1)

async def main():
    pool = ThreadPool(1, [])
    async def run(queue, *, interrupts=False):
        begun.clear()
        work = pool.begin(app.handlers[queue], job(queue))
        if interrupts:
            await asyncio.to_thread(begun.wait)
            pool.interrupt(work)
        outcome = await work.future
        steps_of(lambda: None)
        return outcome
    assert (await run("plain")).kind == "done"
    assert await run("endless", interrupts=True) == INTERRUPTED
    assert (await run("stubborn", interrupts=True)).kind == "done"
    assert (await run("plain")).kind == "done"
    await asyncio.to_thread(pool.close, 30)

asyncio.run(main())
"""


def test_an_interruption_leaves_nothing_behind_in_the_interpreter():
    subprocess.run([sys.executable, "-c", INTERRUPTIONS], check=True, timeout=PATIENCE_S, cwd=ROOT)


# --- what a handler knows -----------------------------------------------------------------------


def test_a_handler_knows_its_job(scene):
    job_id = scene.submit(priority=3, metadata={"user": "ada"})
    work_off(scene.app)
    (job,) = scene.seen
    assert (job.job_id, job.attempt, job.queue, job.task, job.priority) == (job_id, 1, "default", "act", 3)
    assert job.metadata == {"user": "ada"} and job.token > 1 << 32
    assert job.deadline is None and job.seconds_left is None and not job.is_ended
    with pytest.raises(RuntimeError, match="no job is worked on here"):
        jqd.current_job()


def test_a_handler_knows_how_long_it_has(jqd_server):
    app = App(jqd_server.url)
    seen: list[jqd.CurrentJob] = []

    @app.task(timeout="1m")
    def look() -> None:
        job = jqd.current_job()
        assert 50 < job.seconds_left <= 60
        seen.append(job)

    with app:
        look.submit_sync()
        work_off(app)
    assert 40 < (seen[0].deadline - datetime.now(UTC)).total_seconds() <= 60


def test_middleware_stands_around_the_handler_the_first_one_outside(scene):
    said: list[str] = []

    def stand(name: str) -> Any:
        @scene.app.around
        @contextlib.contextmanager
        def around(job: jqd.CurrentJob) -> Iterator[None]:
            said.append(f"{name} begins {job.job_id}")
            try:
                yield
            except ValueError as error:
                said.append(f"{name} sees {error}")
                raise jqd.Retry("softened", in_=60) from error
            finally:
                assert jqd.current_job() is job
                said.append(f"{name} ends")

        return around

    stand("outer")
    stand("inner")
    info = scene.run(raises(ValueError("x")))
    assert said == ["outer begins 1", "inner begins 1", "inner sees x", "inner ends", "outer ends"]
    assert (info.error, info.due_ms_left) == ("softened", 60_000)


def test_hooks_are_called_before_the_first_handler_and_after_the_last(scene):
    said: list[str] = []

    @scene.app.before_start
    async def begin() -> None:
        said.append("begin")

    @scene.app.after_stop
    def end() -> None:
        said.append("end")

    scene.run(lambda: said.append("act"))
    assert said == ["begin", "act", "end"]


# --- how many at a time -------------------------------------------------------------------------


def test_no_more_run_than_there_are_slots(jqd_server):
    app = App(jqd_server.url)
    running: set[int] = set()
    most: list[int] = []

    async def act(n: int) -> None:
        running.add(n)
        most.append(len(running))
        await app.aclient.ping()
        running.remove(n)

    app.task(name="act")(act)
    task: Any = app.tasks["act"]
    with app:
        handles = task.map_sync(range(30))
        assert work_off(app, concurrency=4).done_count == 30
        assert {handle.status() for handle in handles} == {"done"} and max(most) == 4


def test_a_job_that_comes_while_it_waits_begins_at_once(scene):
    with worker(scene.app):
        for n in range(3):
            scene.acts.append(lambda n=n: n)
            assert scene.app.tasks["act"].submit_and_wait_sync() == n


def test_queues_are_served_in_their_order(scene):
    for queue in ("b", "a", "b", "a"):
        scene.submit(queue=queue)
    work_off(scene.app, queues=["a", "b"], concurrency=1)
    assert [job.queue for job in scene.seen] == ["a", "a", "b", "b"]


# --- what goes in one request -------------------------------------------------------------------


def job(n: int) -> HeldJob:
    return HeldJob(job_id=n, queue="q", attempt=1, payload=b"", token=9)


def test_outcomes_of_one_turn_go_in_as_few_requests_as_there_are_ways_to_end():
    untold = [
        (job(1), Outcome("done")),
        (job(2), Outcome("done", result=b"\x01")),
        (job(3), Outcome("error", "x")),
        (job(4), Outcome("error", "x")),
        (job(5), Outcome("retry", "x", 5_000)),
        (job(6), Outcome("snooze", delay_ms=7_000)),
        (job(7), Outcome("release")),
        (job(8), Outcome("refused", "y")),
        (job(9), Outcome("error", "z")),
    ]
    asked = [command for command, _ in _commands(untold)]
    assert asked == [
        Ack(items=[(9, [(1, 1)], None), (9, [(2, 1)], b"\x01")], encoding="msgpack"),
        Fail(items=[(9, [(3, 2)])], error="x"),
        Fail(items=[(9, [(5, 1)])], error="x", retry_in_ms=5_000),
        Release(items=[(9, [(6, 1)])], delay_ms=7_000),
        Release(items=[(9, [(7, 1)])]),
        Ack(items=[(9, [(8, 1)], None)], result_error="y"),
        Fail(items=[(9, [(9, 1)])], error="z"),
    ]


def test_results_of_one_request_stay_below_a_frame():
    untold = [(job(n), Outcome("done", result=b"x" * RESULT_BYTES_MAX)) for n in range(1, 200)]
    asked = _commands(untold)
    assert sum(len(jobs) for _, jobs in asked) == 199
    for command, _ in asked:
        assert isinstance(command, Ack) and sum(len(data) for _, _, data in command.items) < 5 << 20


# --- a lease that is lost -----------------------------------------------------------------------


def test_a_handler_whose_lease_is_lost_is_interrupted_and_its_outcome_is_not_told(jqd_server, caplog):
    app = App(jqd_server.url)
    begun, ended = threading.Semaphore(0), threading.Semaphore(0)

    @app.task(lease=1)
    async def hang() -> None:
        begun.release()
        try:
            if jqd.current_job().attempt == 1:
                await asyncio.Event().wait()
        finally:
            ended.release()

    @app.task(lease=1)
    def spin() -> None:
        begun.release()
        try:
            while jqd.current_job().attempt == 1:
                pass
        finally:
            ended.release()

    with app, worker(app), Client(jqd_server.url) as client:
        for job_id, task in enumerate((hang, spin), 1):
            task.submit_sync()
            assert begun.acquire(timeout=PATIENCE_S)
            jqd_server.drop_lease(job_id)
            assert ended.acquire(timeout=PATIENCE_S)  # the first one, or the second that has it now
            assert ended.acquire(timeout=PATIENCE_S)
            happens(partial(is_done, client, job_id))
            assert client.get(job_id).crashes == 1 and client.get(job_id).errors == 0
    assert "the lease is lost: the handler is interrupted" in caplog.text
    assert (
        "of job 1 (1 in all)" not in caplog.text and "of job 2 (1 in all)" not in caplog.text
    )  # no request was refused


@pytest.mark.parametrize("heard_by", ["event", "heart"])
def test_a_handler_whose_job_is_to_end_is_interrupted_and_the_job_is_cancelled(
    jqd_server, monkeypatch, caplog, heard_by
):
    app = App(jqd_server.url)
    begun = threading.Semaphore(0)
    lease = 1 if heard_by == "heart" else "24h"  # whose heart beats in 8 h
    if heard_by == "heart":
        monkeypatch.setattr(Session, "cancel_requested", lambda *_: None)

    @app.task(lease=lease)
    async def hang() -> None:
        begun.release()
        await asyncio.Event().wait()

    @app.task(lease=lease)
    def spin() -> None:
        begun.release()
        while True:
            pass

    with app, worker(app), Client(jqd_server.url) as client:
        for job_id, task in enumerate((hang, spin), 1):
            task.submit_sync()
            assert begun.acquire(timeout=PATIENCE_S)
            assert client.cancel(job_id, running=True).marked == 1
            happens(partial(is_cancelled, client, job_id))
            assert (client.get(job_id).attempt, client.get(job_id).attempts) == (1, [])
    assert "job 1 is to end: the handler is interrupted" in caplog.text


def test_a_handler_that_ends_well_although_its_job_is_to_end_is_done(jqd_server):
    app = App(jqd_server.url)
    begun = threading.Semaphore(0)

    @app.task(lease=1)
    async def hang() -> str:
        begun.release()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "saved what there was"
        return ""

    with app, worker(app), Client(jqd_server.url) as client:
        hang.submit_sync()
        assert begun.acquire(timeout=PATIENCE_S)
        client.cancel(1, running=True)
        happens(partial(is_done, client, 1))


def test_a_job_whose_ack_comes_too_late_is_done_once_more(scene):
    scene.server.deliver_again("default")
    info = scene.run()
    assert (info.state, info.crashes) == ("done", 1) and [job.attempt for job in scene.seen] == [1, 2]
    assert scene.seen[0].token < scene.seen[1].token


def test_a_lost_reply_does_a_job_once(scene):
    with worker(scene.app):
        for verb in ("submit", "lease", "ack"):
            scene.server.lose_reply(verb)
            scene.app.tasks["act"].submit_and_wait_sync()
    assert [job.attempt for job in scene.seen] == [1, 1, 1]


def test_a_worker_that_has_ended_holds_nothing(scene):
    """A lease whose reply was lost is taken back, and the next one is not begun when it is all over."""
    for _ in range(3):
        scene.server.lose_reply("lease")
        scene.submit()
        work_off(scene.app)
        assert scene.client.stats().lease_count == 0


# --- stopping -----------------------------------------------------------------------------------


def test_it_stops_when_what_runs_has_ended(jqd_server):
    app = App(jqd_server.url)
    hold, begun, may_end = holding(app)
    with app, Client(jqd_server.url) as client:
        hold.submit_sync()
        with worker(app, concurrency=1) as made:
            assert begun.wait(PATIENCE_S)
            other: Any = hold.submit_sync()
            made._loop.call_soon_threadsafe(made.stop)
            made._loop.call_soon_threadsafe(may_end.set)
        assert client.get(1).state == "done" and other.status() == "ready"


@pytest.mark.parametrize("kind", ["async", "sync"])
@pytest.mark.parametrize("how", ["grace", "now"])
def test_what_does_not_end_in_time_is_released_and_its_attempt_not_counted(jqd_server, kind, how):
    app = App(jqd_server.url)
    begun = threading.Event()

    if kind == "async":

        @app.task(name="hang")
        async def hang() -> None:
            begun.set()
            await asyncio.Event().wait()
    else:

        @app.task(name="hang")
        def spin() -> None:
            begun.set()
            while True:
                pass

    with app, Client(jqd_server.url) as client:
        job_id = app.tasks["hang"].submit_sync().job_id
        with worker(app, grace=0 if how == "grace" else 60) as made:
            assert begun.wait(PATIENCE_S)
            if how == "now":
                made._loop.call_soon_threadsafe(made.stop_now)
        info = client.get(job_id)
        assert (info.state, info.attempt, info.errors, info.crashes) == ("ready", 0, 0, 0)


def test_max_jobs_ends_it_with_the_wish_for_another_one(scene):
    for _ in range(5):
        scene.submit()
    made = Worker(scene.app, concurrency=10, max_jobs=3)
    assert asyncio.run(made.run()) is Ended.RECYCLE
    assert made.done_count == 3 and scene.client.queues().queues[0].ready == 2


def test_max_rss_ends_it_with_the_wish_for_another_one(scene):
    scene.submit()
    assert asyncio.run(Worker(scene.app, max_rss=RSS_BYTES_MIN).run()) is Ended.RECYCLE
    assert scene.client.queues().queues[0].done == 1


def test_a_burst_waits_for_what_its_jobs_submit(scene):
    def act() -> None:
        scene.submit()

    scene.acts += [act, act]
    scene.submit()
    made = Worker(scene.app, burst=True)
    assert asyncio.run(made.run()) is Ended.EMPTY
    assert scene.client.queues().queues[0].done == 3


def test_what_the_server_refuses_for_good_ends_it(scene):
    made = Worker(scene.app)
    made.queues = ["a b"]
    with pytest.raises(jqd.errors.InvalidArgument, match="queue"):
        asyncio.run(made.run())


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"queues": ["a", "b@c"]}, "queue = 'b@c': a name must match [A-Za-z0-9_]"),
        ({"queues": ""}, "queues[0]: expected `str` of length >= 1"),
        ({"queues": []}, "queues = []: expected `array` of length >= 1"),
        ({"lease": "40d"}, "lease = 40d: at most 1d"),
        ({"max_rss": 5}, "max_rss = 5 bytes: at least 16777216 (16 MiB)"),
        ({"max_rss": RSS_BYTES_MIN - 1, "pool": "process"}, "max_rss = 16777215 bytes"),
    ],
)
def test_what_could_never_work_is_refused_when_it_is_made(options, fault):
    with pytest.raises((jqd.errors.InvalidArgument, ValueError), match=re.escape(fault)):
        Worker(App(), **options)


@pytest.mark.parametrize("concurrency", [0, -1])
def test_no_slots_are_refused(scene, concurrency):
    with pytest.raises(ValueError, match="concurrency"):
        Worker(scene.app, concurrency=concurrency)


# --- the server is away -------------------------------------------------------------------------


def test_it_goes_on_after_the_server_was_away(scene, caplog):
    caplog.set_level(logging.INFO, "jqd.worker")
    with worker(scene.app):
        scene.app.tasks["act"].submit_and_wait_sync()
        scene.server.restart()
        scene.app.tasks["act"].submit_and_wait_sync()
        scene.server.cut()
        scene.app.tasks["act"].submit_and_wait_sync()
    assert [job.attempt for job in scene.seen] == [1, 1, 1]


def test_a_worker_whose_slots_are_all_taken_comes_back_at_once_when_its_connections_are_cut(jqd_server):
    """Nobody waits for an answer then, and its jobs are held by its connections."""
    app = App(jqd_server.url)
    begun, may_end = threading.Event(), threading.Event()

    @app.task(lease="1h")
    def hold() -> int:
        begun.set()
        assert may_end.wait(PATIENCE_S)
        return jqd.current_job().attempt

    engine = jqd_server._driver.engine
    with app, worker(app, concurrency=1):
        handle = hold.submit_sync()
        assert begun.wait(PATIENCE_S)
        (session,) = engine._releasing
        jqd_server.cut()
        happens(lambda: engine._attached.get(session), within_s=5)
        jqd_server.advance("10s")
        may_end.set()
        assert handle.wait() == 1 and handle.info().crashes == 0


@pytest.mark.parametrize("kind", [Ack, Fail, Lease])
def test_what_the_server_cannot_take_now_is_asked_again(scene, kind, monkeypatch):
    refused: list[Command[Any]] = []
    call = AsyncClient.call

    async def refuse_once(self: AsyncClient, command: Command[Any], **options: Any) -> Any:
        if type(command) is kind and not refused:
            refused.append(command)
            raise Busy("the disk is behind")
        return await call(self, command, **options)

    monkeypatch.setattr(AsyncClient, "call", refuse_once)
    info = scene.run(raises(ValueError("x")) if kind is Fail else lambda: 1)
    assert refused and info.state == ("delayed" if kind is Fail else "done") and info.crashes == 0


# --- what the server says -----------------------------------------------------------------------


def nothing() -> bool:
    """Do nothing, well."""
    return True


def seen_state(client: Client) -> str | None:
    """Return the state of the only worker, when it does all that it was told; None: it is not there."""
    workers = client.workers().workers
    return next((info.state for info in workers if info.order is None), None)


def is_seen(client: Client, state: str) -> bool:
    return seen_state(client) == state


@pytest.mark.parametrize("heard_by", ["event", "beat"])
def test_a_worker_is_quiet_resumes_and_stops_when_the_server_says_so(jqd_server, monkeypatch, heard_by):
    if heard_by == "event":
        monkeypatch.setattr(model, "WORKER_BEAT_MS", 3_600_000)
    else:
        monkeypatch.setattr(model, "WORKER_BEAT_MS", 10)
        monkeypatch.setattr(Worker, "_ordered_elsewhere", lambda *_: None)
    app = App(jqd_server.url)
    task = app.task()(nothing)
    with app, worker(app, name="w1") as made, Client(jqd_server.url) as client:
        happens(lambda: seen_state(client) == "running")
        steps: list[tuple[WorkerOrder, str]] = [
            ("quiet", "quiet"),
            ("quiet", "quiet"),
            ("resume", "running"),
            ("quiet", "quiet"),
        ]
        for order, state in steps:
            assert [name for _, name in client.tell_workers(order, "w1").told] == ["w1"]
            happens(partial(is_seen, client, state))
        handle = task.submit_sync()
        happens(lambda: client.stats().parked_count == 0)  # its lease that waited was given up
        assert handle.status() == "ready"
        client.tell_workers("resume", all=True)
        handle.wait()
        client.tell_workers("stop", all=True)
        happens(lambda: made._stops is Ended.STOPPED)
    assert made.done_count == 1


def test_a_worker_is_listed_again_when_the_server_is_there_again(jqd_server, monkeypatch):
    monkeypatch.setattr(model, "WORKER_BEAT_MS", 3_600_000)
    app = App(jqd_server.url)
    with app, worker(app, name="w1"), Client(jqd_server.url) as client:
        happens(partial(is_seen, client, "running"))
        client.tell_workers("quiet", "w1")
        happens(partial(is_seen, client, "quiet"))
        jqd_server.restart()
        happens(partial(is_seen, client, "quiet"))


def test_an_order_of_a_newer_server_is_skipped(jqd_server, caplog):
    app = App(jqd_server.url)
    task = app.task()(nothing)
    with app, worker(app), Client(jqd_server.url) as client:
        happens(lambda: seen_state(client) == "running")
        engine = jqd_server._driver.engine

        def tell(driver: Any, now: Any) -> None:
            for tickets in engine._attached.values():
                engine.events += [(ticket, OrderGiven(order="of tomorrow")) for ticket in tickets]

        jqd_server._do(tell)
        happens(lambda: "order 'of tomorrow' is not known here" in caplog.text)
        task.submit_sync().wait()


@pytest.mark.parametrize("error", [UnknownCommand("verb"), Overloaded("5000 workers")])
def test_a_worker_that_is_not_listed_works_all_the_same(scene, monkeypatch, error):
    refused = threading.Event()
    call = AsyncClient.call

    async def refuse(self: AsyncClient, command: Command[Any], **options: Any) -> Any:
        if type(command) is Register:
            refused.set()
            raise error
        return await call(self, command, **options)

    monkeypatch.setattr(AsyncClient, "call", refuse)
    with worker(scene.app):
        scene.app.tasks["act"].submit_and_wait_sync()
    assert refused.is_set()


def test_a_quiet_worker_does_not_begin_anew_for_its_memory(jqd_server):
    """The one that came after it would not be quiet."""
    app = App(jqd_server.url)
    hold, begun, may_end = holding(app)
    with app, worker(app, max_rss=RSS_BYTES_MIN) as made, Client(jqd_server.url) as client:
        hold.submit_sync()
        assert begun.wait(PATIENCE_S)
        client.tell_workers("quiet", all=True)
        happens(lambda: seen_state(client) == "quiet")
        may_end.set()
        happens(partial(is_done, client, 1))
        assert made._stops is None and seen_state(client) == "quiet"
        client.tell_workers("stop", all=True)
        happens(lambda: made._stops is Ended.STOPPED)


def test_a_burst_that_is_quiet_leases_nothing_and_ends_when_it_has_resumed_and_done_all(jqd_server):
    app = App(jqd_server.url)
    hold, begun, may_end = holding(app)
    hold.submit_sync()
    with app, worker(app, burst=True) as made, Client(jqd_server.url) as client:
        assert begun.wait(PATIENCE_S)
        client.tell_workers("quiet", all=True)
        happens(lambda: seen_state(client) == "quiet")
        hold.submit_sync()
        may_end.set()
        happens(partial(is_done, client, 1))
        assert client.get(2).state == "ready"
        client.tell_workers("resume", all=True)
        happens(lambda: made._stops is Ended.EMPTY)
    assert made.done_count == 2


def test_who_says_stop_to_a_worker_that_would_begin_anew_gets_no_other_one(jqd_server):
    app = App(jqd_server.url)
    hold, begun, may_end = holding(app)
    with app, worker(app, max_jobs=1) as made, Client(jqd_server.url) as client:
        hold.submit_sync()
        assert begun.wait(PATIENCE_S)
        happens(lambda: seen_state(client) == "stopping")
        assert made._stops is Ended.RECYCLE
        client.tell_workers("stop", all=True)
        happens(lambda: made._stops is Ended.STOPPED)
        may_end.set()
    assert made.done_count == 1


# --- a sign of life -----------------------------------------------------------------------------


def test_the_file_is_written_when_the_server_has_answered(scene, tmp_path):
    path = tmp_path / "alive"
    scene.submit()
    work_off(scene.app, health=path)
    assert abs(int(path.read_text()) - time.time()) < PATIENCE_S


def test_the_file_is_written_while_every_slot_is_taken(jqd_server, tmp_path):
    app = App(jqd_server.url)
    path = tmp_path / "alive"
    begun, may_end = threading.Event(), threading.Event()

    @app.task(lease=1)
    def hold() -> None:
        path.unlink()
        begun.set()
        assert may_end.wait(PATIENCE_S)

    with app, worker(app, concurrency=1, health=path):
        hold.submit_sync()
        assert begun.wait(PATIENCE_S)
        happens(path.exists)
        may_end.set()


def test_a_file_that_cannot_be_written_is_said_once_and_tried_again(jqd_server, tmp_path, caplog):
    app = App(jqd_server.url)
    path = tmp_path / "alive"
    path.mkdir()

    @app.task()
    def work() -> None: ...

    caplog.set_level(logging.INFO, logger="jqd.worker")
    with app, Client(jqd_server.url) as client, worker(app, health=path):
        for job_id in (1, 2, 3):
            work.submit_sync()
            happens(partial(is_done, client, job_id))
        assert caplog.text.count(f"health file {path} cannot be written: Is a directory") == 1
        path.rmdir()
        for job_id in (4, 5, 6):
            work.submit_sync()
            happens(partial(is_done, client, job_id))
        assert path.is_file()
    assert caplog.text.count(f"health file {path} is written again") == 1


def test_the_file_has_the_last_time_alone(scene, tmp_path):
    path = tmp_path / "alive"
    path.write_text("x" * 100)
    scene.submit()
    work_off(scene.app, health=path)
    assert re.fullmatch("[0-9]+\n", path.read_text())


# --- progress -----------------------------------------------------------------------------------


def shown_progress(client: Client, job_id: int) -> tuple[int | None, str]:
    info = client.get(job_id)
    return info.progress_percent, info.progress_text


def test_progress_is_seen_while_the_handler_runs(scene):
    told = threading.Event()

    def act() -> None:
        job = jqd.current_job()
        with pytest.raises(InvalidArgument, match="percent = 101"):
            job.progress(101)
        for percent in range(41):
            job.progress(percent, "ä" * 200)
        if not told.wait(PATIENCE_S):
            raise TimeoutError

    scene.acts.append(act)
    job_id = scene.submit()
    with worker(scene.app):
        happens(lambda: shown_progress(scene.client, job_id) == (40, "ä" * 128))
        told.set()
        happens(lambda: is_done(scene.client, job_id))
    assert shown_progress(scene.client, job_id) == (40, "ä" * 128)


def test_progress_of_a_job_that_is_over_goes_nowhere(scene):
    scene.run()
    scene.seen[0].progress(10)
    assert shown_progress(scene.client, 1) == (None, "")


def test_it_says_which_queues_of_its_app_it_does_not_serve(jqd_server, caplog):
    app = App(jqd_server.url)

    @app.task(queue="emails")
    def send() -> None: ...

    @app.handler("uploads")
    def handle(job: HeldJob) -> None: ...

    with caplog.at_level(logging.INFO, logger="jqd.worker"):
        asyncio.run(Worker(app, ["emails", "default"], burst=True).run())
    assert "its app has tasks of other queues, which it does not serve: uploads" in caplog.text


def test_a_health_file_without_a_directory_is_refused(tmp_path):
    with pytest.raises(ValueError, match="health = .*: there is no directory .*gone"):
        Worker(App(), health=tmp_path / "gone" / "alive")

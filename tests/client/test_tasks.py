"""Tasks: functions that are called here and submitted there. Against the real server, in this process."""

import asyncio
import subprocess
import sys
import threading
from typing import Any
from uuid import UUID

import pytest

import jqd
from jqd.client.app import App, AsyncTask, SyncTask, TaskOptions
from jqd.client.requests import JobOptions
from jqd.core.model import JOBS_PER_REQUEST_MAX
from jqd.errors import Duplicate, InvalidArgument, JobFailed, JobNotFound, WaitTimeout, WrongState
from jqd.testing import Server, work_off
from tests.support.daemon import ROOT

pytest_plugins = ["jqd.pytest_plugin"]


def make_app(url: str | None = None) -> App:
    app = App(url)

    @app.task(queue="emails", max_retries=0, priority=5)
    async def send(to: str, subject: str = "hello") -> int:
        """Send it."""
        if to == "nobody":
            raise LookupError("no such person")
        return len(to) + len(subject)

    @app.task(name="sums.add", queue="emails")
    def add(a: int, b: int) -> int:
        return a + b

    @app.task(queue="emails")
    def keep(id: UUID) -> UUID:
        return id

    return app


@pytest.fixture
def app(jqd_server: Server):
    with make_app(jqd_server.url) as made:
        yield made


# --- the function stays what it is --------------------------------------------------------------


async def test_the_function_stays_callable():
    tasks: Any = make_app().tasks
    assert await tasks["send"]("ada") == 8
    assert tasks["sums.add"](1, b=2) == 3
    assert isinstance(tasks["send"], AsyncTask) and isinstance(tasks["sums.add"], SyncTask)
    assert tasks["send"].__name__ == "send" and tasks["send"].__doc__ == "Send it."
    assert "send" in repr(tasks["send"])


def test_options_of_a_task_are_those_of_a_job_but_for_its_name():
    assert TaskOptions.__annotations__.keys() == JobOptions.__annotations__.keys() | {"queue", "unique"}


@pytest.mark.parametrize("options", [{"task": "x"}, {"encoding": "json"}, {"colour": "red"}])
def test_an_option_that_is_none_is_refused_where_it_is_said(options):
    with pytest.raises(TypeError, match=next(iter(options))):
        App().task(**options)
    with pytest.raises(TypeError, match=next(iter(options))):
        make_app().tasks["send"].options(**options)


def test_of_calls_with_the_same_arguments_one_job_lives_at_a_time(app):
    @app.task(unique=True, name="n" * 128)
    def grow(a: int, b: int = 2, *, tags: frozenset[str] = frozenset(), **more: str) -> int:
        return a + b

    first = grow.submit_sync(1)
    same = [
        grow.submit_sync(1, 2),
        grow.submit_sync(b=2, a=1),
        grow.submit_sync(1, tags=frozenset()),
        *grow.map_sync([1, 1], 2),
    ]
    assert {each.job_id for each in same} == {first.job_id}
    others = {grow.submit_sync(2).job_id, *(each.job_id for each in grow.map_sync([1, 3], 3))}
    assert len(others | {first.job_id}) == 4
    names = [f"tag{n}" for n in range(50)]
    tagged = grow.submit_sync(1, tags=frozenset(names), x="1", y="2")
    assert grow.submit_sync(1, tags=frozenset(reversed(names)), y="2", x="1").job_id == tagged.job_id
    assert app.client.get(first.job_id).dedupe_key.startswith("n" * 95 + ":")
    sizes = [len(command.groups) for command in grow._commands([1, 2, 2, 1], (), {})]
    assert sizes == [2, 2], "a request ends before a key that it has, and the next one has none"
    work_off(app)
    assert first.wait() == 3 and grow.submit_sync(1).job_id != first.job_id, "it has ended"


def test_calls_are_unique_only_if_that_is_said_last(app):
    @app.task(unique=True)
    def one(a: int) -> None: ...

    first = one.submit_sync(1).job_id
    assert one.options(unique=False).submit_sync(1).job_id != first
    assert one.options(dedupe_key="mine").submit_sync(1).job_id != first
    assert one.options(dedupe_key="mine").options(unique=True).submit_sync(1).job_id == first
    assert one.options(dedupe="reject").options(priority=3)._options.get("unique")
    with pytest.raises(Duplicate):
        one.options(dedupe="reject").submit_sync(1)
    for options in ({"unique": True, "dedupe_key": "k"},):
        with pytest.raises(TypeError, match="unique and dedupe_key"):
            app.task(**options)
        with pytest.raises(TypeError, match="unique and dedupe_key"):
            one.options(**options)


def test_the_digest_of_a_call_is_the_same_in_every_process():
    code = (
        "from jqd.client.arguments import Arguments\n"
        "def f(a, b=frozenset('abcdefgh')): ...\n"
        "print(Arguments(f).digest(({'x': 1, 'y': {'p', 'q', 'r'}},), {}))"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(said) == 1 and len(said.pop().strip()) == 32


@pytest.mark.parametrize("name", ["", "a b", "../x", "x" * 129])
def test_a_name_that_the_server_would_refuse_is_refused_here(name):
    with pytest.raises(InvalidArgument, match="name"):
        App().task(name=name)(lambda: None)


def test_the_decorator_without_its_parentheses_says_so():
    with pytest.raises(TypeError, match=r"write @app\.task\(\), with its parentheses"):
        App().task(make_app)  # type: ignore[arg-type]


def test_two_functions_cannot_have_one_name():
    app = App()
    app.task(name="x")(make_app)
    app.task(name="x")(make_app)  # its module was reloaded
    with pytest.raises(ValueError, match="task 'x' is .*make_app already: give .*other"):

        @app.task(name="x")
        def other() -> None: ...


def test_a_generator_is_no_task():
    with pytest.raises(TypeError, match="generator"):

        @App().task()
        def steps():
            yield 1


def test_the_url_is_looked_at_when_it_is_said_and_comes_from_the_environment(monkeypatch):
    with pytest.raises(InvalidArgument, match="url"):
        App("redis://localhost")
    monkeypatch.setenv("JQD_URL", "jqd://example.org:1")
    assert App().url == "jqd://example.org:1" and App("unix:///s").url == "unix:///s"
    monkeypatch.setenv("JQD_URL", "redis://localhost")
    with pytest.raises(InvalidArgument, match=r"^\$JQD_URL = 'redis://localhost': a server is jqd://"):
        App()
    monkeypatch.delenv("JQD_URL")
    assert App().url == "jqd://127.0.0.1:7717"


# --- submitting -----------------------------------------------------------------------------------


async def test_a_submitted_call_comes_back_with_its_result(app, jqd_server):
    send, add = app.tasks["send"], app.tasks["sums.add"]
    handles = [await send.submit("ada", subject="x"), await add.submit(1, 2)]
    assert [await handle.status() for handle in handles] == ["ready", "ready"]
    await asyncio.to_thread(work_off, app, queues="emails")
    assert [await handle.wait() for handle in handles] == [4, 3]
    info = await handles[0].info()
    assert (info.task, info.queue, info.priority, info.max_retries, info.encoding) == (
        "send",
        "emails",
        5,
        0,
        "msgpack",
    )
    assert await send.handle(handles[0].job_id).wait() == 4
    await app.close()


def test_the_same_without_an_event_loop(app):
    handle = app.tasks["keep"].submit_sync(UUID(int=7))
    work_off(app, queues="emails")
    assert handle.wait() == UUID(int=7) == app.tasks["keep"].handle_sync(handle.job_id).wait()
    assert handle.status() == "done" and str(handle.job_id) in repr(handle)


async def test_submit_and_wait(app):
    with jqd.testing.worker(app, queues="emails"):
        assert await app.tasks["send"].submit_and_wait("ada") == 8
        assert await asyncio.to_thread(app.tasks["sums.add"].submit_and_wait_sync, 4, b=5) == 9
    await app.close()


def test_options_hold_for_one_task_object_only(app, jqd_server):
    later = app.tasks["send"].options(delay="1h", queue="slow").options(priority=-3)
    info = later.submit_sync("ada").info()
    assert (info.state, info.queue, info.priority, info.task) == ("delayed", "slow", -3, "send")
    jqd_server.advance("1h")
    assert later.handle_sync(info.job_id).status() == "ready"
    assert app.tasks["send"].submit_sync("ada").info().queue == "emails"


def test_map_submits_a_call_for_each_value_in_few_requests(app, monkeypatch):
    asked = []
    call = app.call

    def listen(command: Any, **options: Any) -> Any:
        asked.append(command)
        return call(command, **options)

    monkeypatch.setattr(app, "call", listen)
    handles = app.tasks["sums.add"].map_sync(range(JOBS_PER_REQUEST_MAX + 5), b=10)
    assert [len(command.groups[0].payloads) for command in asked] == [JOBS_PER_REQUEST_MAX, 5]
    assert [handle.job_id for handle in handles] == list(range(1, JOBS_PER_REQUEST_MAX + 6))
    assert app.tasks["sums.add"].map_sync([], 1) == []
    big = app.tasks["send"].map_sync(["x" * 1_000_000] * 9)
    assert [len(command.groups[0].payloads) for command in asked[2:]] == [4, 4, 1]
    assert len({handle.job_id for handle in big}) == 9


async def test_map_for_coroutines(app):
    handles = await app.tasks["sums.add"].map([1, 2, 3], 10)
    await asyncio.to_thread(work_off, app, queues="emails")
    assert [await handle.wait() for handle in handles] == [11, 12, 13]
    await app.close()


def test_what_cannot_be_submitted_is_refused_before_anything_is_sent():
    send = make_app("jqd://127.0.0.1:1").tasks["send"]
    with pytest.raises(TypeError, match="missing a required argument"):
        send.submit_sync()
    with pytest.raises(InvalidArgument, match="^to = "):
        send.submit_sync(object())


# --- handles --------------------------------------------------------------------------------------


def test_waiting_for_a_job_that_failed_says_why(app):
    handle = app.tasks["send"].submit_sync("nobody")
    work_off(app, queues="emails")
    with pytest.raises(
        JobFailed, match=r"job 1 is dead, reason retries: LookupError: no such person"
    ) as caught:
        handle.wait()
    error = caught.value
    assert (error.job_id, error.state, error.reason, error.code) == (1, "dead", "retries", "job_failed")
    assert "line" in error.error and "in send" in error.error  # the traceback


def test_cancel_ends_a_job_that_waits(app):
    handle = app.tasks["send"].submit_sync("ada")
    handle.cancel()
    with pytest.raises(JobFailed, match="job 1 is cancelled$"):
        handle.wait()
    with pytest.raises(WrongState, match="cancel of job 1: it is held by a worker, .* or has ended"):
        handle.cancel()
    with pytest.raises(JobNotFound):
        app.tasks["send"].handle_sync(99).status()


def test_cancel_of_a_job_that_runs_marks_it(app, jqd_server):
    handle = app.tasks["send"].submit_sync("ada")
    with jqd.Client(jqd_server.url) as client:
        (held,) = client.lease("emails").jobs
        with pytest.raises(WrongState):
            handle.cancel()
        handle.cancel(running=True)
        assert handle.info().cancel_marked
        client.release(held)
    assert handle.status() == "cancelled"


async def test_cancel_of_a_job_that_runs_for_coroutines(app, jqd_server):
    handle = await app.tasks["send"].submit("ada")
    async with jqd.AsyncClient(jqd_server.url) as client:
        (held,) = (await client.lease("emails")).jobs
        with pytest.raises(WrongState):
            await handle.cancel()
        await handle.cancel(running=True)
        await client.release(held)
    assert await handle.status() == "cancelled"
    await app.close()


@pytest.mark.parametrize(
    ("verb", "words"),
    [("requeue", "only a dead job can be requeued"), ("purge", "only a delayed, ready or dead job")],
)
def test_what_the_state_does_not_allow_says_which_would(jqd_server, verb, words):
    with jqd.Client(jqd_server.url) as client:
        client.submit("emails")
        client.lease("emails")
        with pytest.raises(WrongState, match=f"{verb} of job 1: {words}"):
            getattr(client, verb)(1)


async def test_cancel_for_coroutines(app):
    handle = await app.tasks["send"].submit("ada")
    await handle.cancel()
    assert await handle.status() == "cancelled"
    with pytest.raises(JobFailed):
        await handle.wait()
    await app.close()


async def test_a_wait_has_an_end(app):
    handle = await app.tasks["send"].submit("ada")
    with pytest.raises(WaitTimeout, match=r"job 1 is not at its end after 0\.05 s"):
        await handle.wait(timeout="50ms")
    with pytest.raises(WaitTimeout, match="job 1 is not at its end after 0 s"):
        await asyncio.to_thread(app.tasks["send"].handle_sync(1).wait, 0)
    await app.close()


# --- clients --------------------------------------------------------------------------------------


def test_one_app_serves_one_event_loop_after_the_other_and_threads(app):
    async def submit() -> int:
        async with app:
            job: Any = await app.tasks["send"].submit("ada")
            return int(job.job_id)

    assert [asyncio.run(submit()) for _ in range(3)] == [1, 2, 3]
    ids: list[int] = []
    threads = [
        threading.Thread(target=lambda: ids.append(app.tasks["send"].submit_sync("ada").job_id))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ids) == [4, 5, 6, 7]

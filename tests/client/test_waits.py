"""Waiting for jobs with both clients and with handles, against the real server in this process."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from jqd.client.aio import AsyncClient
from jqd.client.app import App
from jqd.client.sync import Client
from jqd.client.waits import Wanted
from jqd.core.commands import EndedJob, Waited
from jqd.errors import (
    Draining,
    InvalidArgument,
    JobFailed,
    JobNotFound,
    RequestTimeout,
    ResultExpired,
    WaitTimeout,
)
from jqd.testing import Server, work_off
from tests.support.until import happens

pytest_plugins = ["jqd.pytest_plugin"]


@pytest.fixture
def client(jqd_server: Server) -> Iterator[Client]:
    with Client(jqd_server.url) as made:
        yield made


def finish(client: Client, **fields: Any) -> None:
    client.ack(client.lease().jobs[0], **fields)


def waits_for(client: Client, count: int) -> None:
    happens(lambda: client.stats().waiting_count == count)


async def test_a_coroutine_waits_and_is_told_the_result(jqd_server, client):
    job_id = client.submit().job_id
    async with AsyncClient(jqd_server.url) as other:
        waiting = asyncio.create_task(other.wait(job_id, timeout=20))
        await asyncio.to_thread(waits_for, client, 1)
        finish(client, json=[1])
        job = await waiting
    assert (job.job_id, job.state, job.result, job.result_encoding) == (job_id, "done", b"[1]", "json")


def test_a_thread_waits_over_a_restart_of_the_server(jqd_server, client):
    job_id = client.submit().job_id
    got: list[EndedJob] = []
    thread = threading.Thread(target=lambda: got.append(client.wait(job_id)))
    thread.start()
    with Client(jqd_server.url) as other:
        waits_for(other, 1)
        jqd_server.restart()
        waits_for(other, 1)
        other.cancel(job_id)
        thread.join(20)
    assert [job.state for job in got] == ["cancelled"]


def test_what_there_is_no_job_of_is_not_waited_for(client):
    with pytest.raises(JobNotFound, match="job_id = 77: no such job"):
        client.wait(77)
    job_id = client.submit().job_id
    waited = client.wait_many([77, job_id, 78], all=False)
    assert (waited.jobs, waited.pending, waited.gone) == ([], 1, [(77, 2)])


def test_a_wait_has_an_end(client):
    job_id = client.submit().job_id
    with pytest.raises(WaitTimeout, match="job 1 is not at its end after 0 s"):
        client.wait(job_id, timeout=0)
    with pytest.raises(WaitTimeout, match="2 of 2 jobs are not at their end after 0 s"):
        client.wait_many([job_id, client.submit().job_id], timeout=0)


def test_more_jobs_than_one_request_has_are_waited_for_in_parts(client):
    client.submit_many("default", [b""] * 2_500)
    client.cancel(range(1, 2_501))
    waited = client.wait_many(range(2_500, 0, -1))
    assert [job.job_id for job in waited.jobs] == list(range(2_500, 0, -1))
    with pytest.raises(InvalidArgument, match="ids = 1001 jobs: without all the limit is 1000"):
        client.wait_many(range(1, 1_002), all=False)
    with pytest.raises(InvalidArgument, match=r"ids = \[\]"):
        client.wait_many([])


async def test_those_who_wait_are_in_nobody_s_way(jqd_server, client):
    """More of them than a connection takes requests."""
    async with AsyncClient(jqd_server.url) as other:
        ids = [
            job
            for first, count, _ in (await other.submit_many("q", [b""] * 600)).jobs
            for job in range(first, first + count)
        ]
        waiting = [asyncio.create_task(other.wait(job_id)) for job_id in ids]
        await asyncio.to_thread(waits_for, client, 600)
        assert (await other.submit("q")).job_id == 601
        await other.cancel(ids)
        assert {job.state for job in await asyncio.gather(*waiting)} == {"cancelled"}
        assert len(other._waits) == 1


async def test_a_server_that_is_about_to_end_is_asked_again(monkeypatch):
    wanted = Wanted([1], None, all=True)
    assert wanted.pause_s(Draining("the server is shutting down", retry_after_ms=250)) == 0.25
    assert wanted.pause_s(RequestTimeout("wait: no reply")) == 0.0
    with pytest.raises(JobNotFound):
        wanted.pause_s(JobNotFound("no"))
    monkeypatch.setattr("jqd.client.waits.time.monotonic", lambda: 100.0)
    wanted = Wanted([1], 5, all=True)
    monkeypatch.setattr("jqd.client.waits.time.monotonic", lambda: 105.0)
    with pytest.raises(WaitTimeout, match="job 1 is not at its end after 5 s"):
        wanted.pause_s(RequestTimeout("wait: no reply"))
    wanted.take(Waited(jobs=[EndedJob(job_id=1, state="done", changed_wall_ms=0)], pending=0))
    assert wanted.is_met


# --- handles ------------------------------------------------------------------------------------


def test_a_handle_tells_what_became_of_its_job(jqd_server):
    app = App(jqd_server.url)

    @app.task(result_ttl="1m", max_retries=0)
    def half(n: int) -> int:
        if n % 2:
            raise ValueError("odd")
        return n // 2

    jobs = half.map_sync([2, 4])
    odd = half.submit_sync(3)
    work_off(app)
    assert app.wait_many_sync(jobs) == [1, 2]
    with pytest.raises(JobFailed, match="job 3 is dead, reason retries: ValueError: odd") as failure:
        app.wait_many_sync([*jobs, odd])
    assert failure.value.job_id == 3
    jqd_server.advance("1m")
    with pytest.raises(ResultExpired, match="job 1 is done, but its result_ttl is over"):
        jobs[0].wait()
    jqd_server.advance("1h")
    with pytest.raises(JobNotFound):
        app.wait_many_sync(jobs)
    app.close_sync()


async def test_handles_are_waited_for_together(jqd_server):
    app = App(jqd_server.url)

    @app.task()
    async def same(n: int) -> int:
        return n

    jobs = await same.map([1, 2, 3])
    waiting = asyncio.create_task(app.wait_many(jobs, timeout=20))
    await asyncio.to_thread(work_off, app)
    assert await waiting == [1, 2, 3]
    await app.close()

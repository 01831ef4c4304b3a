"""jqd.testing: the clock moves when the test says so, and what is to go wrong does."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

import jqd
from jqd import testing
from jqd.client.app import App
from jqd.client.requests import HeldJob
from jqd.client.sync import Client
from jqd.errors import JobFailed, JobNotFound, LeaseLost, WrongState
from tests.support.until import happens

pytest_plugins = ["jqd.pytest_plugin"]


@pytest.fixture
def client(jqd_server):
    with Client(jqd_server.url) as made:
        yield made


def test_time_stands_still_unless_it_is_moved(jqd_server, client):
    before = client.ping()
    jqd_server.advance("90s")
    after = client.ping()
    assert (after.engine_ms - before.engine_ms, after.wall_ms - before.wall_ms) == (90_000, 90_000)
    assert client.ping() == after and jqd_server.now.wall_ms == testing.BEGINNING_WALL_MS + 90_000


def test_delays_leases_backoff_and_retention_pass_with_it(jqd_server, client):
    job_id = client.submit("q", b"x", delay="1h").job_id
    jqd_server.advance("59m")
    assert client.get(job_id).state == "delayed"
    jqd_server.advance("1m")
    client.lease("q", lease="10m")
    jqd_server.advance("599s")
    assert client.get(job_id).state == "leased"
    jqd_server.advance("1s")
    assert (client.get(job_id).state, client.get(job_id).crashes) == (
        "ready",
        1,
    )  # exactly: nothing is forgiven
    (job,) = client.lease("q").jobs
    client.fail(job)
    jqd_server.advance("2s")
    (job,) = client.lease("q").jobs
    client.ack(job)
    jqd_server.advance("1h")
    with pytest.raises(JobNotFound):
        client.get(job_id)


def test_all_that_is_due_has_happened_however_much(jqd_server, client):
    client.submit_many("q", [b""] * 10_000, delay=1)
    client.submit_many("q", [b""] * 10_000, delay=1)
    jqd_server.advance(1)
    assert client.queues().queues[0].ready == 20_000
    client.lease("q", count=5_000, lease=1)
    jqd_server.advance(1)  # 1,000 leases end in a tick
    assert client.queues().queues[0].ready == 20_000


def test_a_dropped_lease_is_lost_and_the_job_is_there_for_others(jqd_server, client):
    job_id = client.submit("q").job_id
    (first,) = client.lease("q").jobs
    jqd_server.drop_lease(job_id)
    (second,) = client.lease("q").jobs
    with pytest.raises(LeaseLost):
        client.ack(first)
    client.ack(second)
    assert second.attempt == 2 and client.get(job_id).crashes == 1
    with pytest.raises(WrongState, match="job 1 is done"):
        jqd_server.drop_lease(job_id)
    with pytest.raises(JobNotFound):
        jqd_server.drop_lease(99)


def test_an_ack_comes_too_late_for_as_many_jobs_of_the_queue_as_was_said(jqd_server, client):
    jqd_server.deliver_again("q", 2)
    for queue in ("q", "q", "q", "other"):
        client.submit(queue)
    verdicts = client.ack_many(client.lease(["q", "other"], count=4).jobs).results
    assert verdicts == [(1, 2, "lease_lost"), (3, 2, "ok")]
    assert client.ack_many(client.lease("q", count=4).jobs).results == [(1, 2, "ok")]


@pytest.mark.parametrize("pipelined", [False, True])
def test_a_lost_reply_is_asked_for_again_and_nothing_happens_twice(jqd_server, client, pipelined):
    client.ping()
    before = set(jqd_server._driver.connections)
    jqd_server.lose_reply("submit", 2)
    if pipelined:
        replies = client.call_many([jqd.client.requests.submit("q", b"x", {}) for _ in range(5)])
        assert [reply.job_id for reply in replies] == [1, 2, 3, 4, 5]
    else:
        assert [client.submit("q").job_id for _ in range(5)] == [1, 2, 3, 4, 5]
    assert client.queues().queues[0].ready == 5
    assert jqd_server._faults.replies == {"submit": 0} and before.isdisjoint(jqd_server._driver.connections)


@pytest.mark.parametrize("waits", [False, True])
def test_the_lost_reply_of_a_lease_had_left_the_server(jqd_server, client, waits):
    """So its jobs are in the hands of who asks again, under the first token; and nothing is lost before there is a job."""
    if not waits:
        client.submit("q", b"x")
    jqd_server.lose_reply("lease")
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.lease, "q", wait="20s")
        if waits:
            happens(lambda: client.stats().parked_count == 1)
            assert jqd_server._faults.replies == {"lease": 1}
            client.submit("q", b"x")
        (job,) = asked.result(20).jobs
    assert (job.attempt, job.token & 0xFFFF_FFFF) == (1, 1)
    assert jqd_server._faults.replies == {"lease": 0}
    client.ack(job)


def test_a_restart_keeps_what_was_durable_and_the_url(jqd_server, client):
    url = jqd_server.url
    client.submit("q")
    (job,) = client.lease("q", lease="5m").jobs
    epoch = client.stats().epoch
    jqd_server.restart()
    assert jqd_server.url == url and client.stats().epoch == epoch + 1
    client.ack(job)
    jqd_server.restart()
    assert client.get(job.job_id).state == "done"


def test_cut_connections_are_made_again(jqd_server, client):
    client.ping()
    jqd_server.cut()
    client.ping()


def test_what_fails_in_a_worker_fails_the_test(jqd_server):
    app = App()
    with pytest.raises(jqd.errors.InvalidArgument, match="queue"):  # noqa: SIM117
        with testing.worker(app, jqd_server, queues=["a b"]) as made:
            happens(lambda: made._failure)
    with pytest.raises(jqd.errors.InvalidArgument, match="queue"):
        testing.work_off(app, queues=["a b"])


def test_a_worker_serves_all_queues_of_its_app(jqd_server):
    app = App(jqd_server.url)

    @app.task(queue="sums")
    def double(n: int) -> int:
        return 2 * n

    @app.handler("raw")
    def raw(job: HeldJob) -> str:
        return job.queue

    jobs = [double.submit_sync(1), double.options(queue="default").submit_sync(2)]
    plain = app.client.submit("raw")
    testing.work_off(app)
    assert [job.wait() for job in jobs] == [2, 4]
    assert app.client.get(plain.job_id).state == "done"
    with testing.worker(app):
        assert double.submit_sync(3).wait() == 6


# --- inline -------------------------------------------------------------------------------------


def make_app() -> App:
    app = App("jqd://127.0.0.1:1")

    @app.task(queue="sums", max_retries=1)
    async def double(n: int) -> int:
        if n < 0 and jqd.current_job().errors < -n:
            raise ValueError("not yet")
        return 2 * n

    @app.task()
    def twice(n: int) -> list[int]:
        return [double.submit_and_wait_sync(n), double.submit_and_wait_sync(n + 1)]

    @app.task()
    def where() -> int:
        return id(asyncio.get_running_loop())

    @app.task()
    async def awhere() -> int:
        return id(asyncio.get_running_loop())

    return app


def test_inline_a_job_is_done_before_its_submit_returns():
    app = make_app()
    with testing.inline(app):
        job = app.tasks["double"].submit_sync(4)
        assert job.status() == "done" and job.wait() == 8
        assert [each.wait() for each in app.tasks["double"].map_sync([1, 2])] == [2, 4]
        assert app.tasks["twice"].submit_and_wait_sync(3) == [6, 8]  # what a handler submits is done too
        info = app.tasks["double"].submit_sync("5").info()  # it went over the wire: "5" is no int
        assert (info.state, info.reason) == ("dead", "refused")
    assert app.url == "jqd://127.0.0.1:1"


async def test_inline_an_async_handler_runs_in_the_loop_that_awaits():
    app = make_app()
    with testing.inline(app):
        assert await app.tasks["awhere"].submit_and_wait() == id(asyncio.get_running_loop())
        assert [await each.wait() for each in await app.tasks["double"].map([1, 2])] == [2, 4]


def test_inline_a_retry_waits_for_the_clock():
    app = make_app()
    with testing.inline(app) as server:
        job = app.tasks["double"].submit_sync(-1)
        assert job.status() == "delayed"
        server.advance("2s")
        assert job.wait() == -2
        job = app.tasks["double"].submit_sync(-2)
        server.advance("2s")
        with pytest.raises(JobFailed, match="reason retries: ValueError: not yet"):
            job.wait()

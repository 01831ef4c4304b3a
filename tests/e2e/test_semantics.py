"""What a job was promised holds over kill -9 of the daemon, by its log and by its snapshots."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from jqd.client.aio import AsyncClient
from jqd.client.sync import Client
from jqd.errors import Duplicate, IdempotencyConflict, WrongState
from tests.support.daemon import Daemon

pytestmark = pytest.mark.e2e


def client_of(daemon: Daemon) -> Client:
    host, port = daemon.address
    return Client(f"jqd://{host}:{port}", worker="w-1")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(tmp_path / "data") as running:
        yield running


def kill(daemon: Daemon, *, snapshot: bool) -> Client:
    """Kill the daemon and start it again, from a snapshot and the log behind it, or from the log alone."""
    if snapshot:
        with client_of(daemon) as client:
            lsn = client.snapshot().lsn
            while client.stats().process["snapshot_lsn"] < lsn:
                pass
    daemon.kill()
    daemon.start()
    return client_of(daemon)


def lease_one(client: Client, queue: str):
    (job,) = client.lease(queue, wait=20).jobs
    return job


@pytest.mark.parametrize("snapshot", [False, True])
def test_retry_policy(daemon, snapshot):
    with client_of(daemon) as client:
        job_id = client.submit("q", "x", retry="list,1ms,2h,jitter=0").job_id
        client.fail(lease_one(client, "q"), error="first")
    with kill(daemon, snapshot=snapshot) as client:
        client.fail(lease_one(client, "q"), error="second")
        shown = client.get(job_id)
        assert (shown.state, shown.errors) == ("delayed", 2)
        assert 7_100_000 < shown.due_ms_left <= 7_200_000
        assert [attempt.error for attempt in shown.attempts] == ["first", "second"]


@pytest.mark.parametrize("snapshot", [False, True])
def test_update(daemon, snapshot):
    with client_of(daemon) as client:
        first, second = (client.submit("q", text, delay="1h").job_id for text in ("first", "second"))
        assert client.update(second, priority=1, delay=0, payload="changed").state == "ready"
        assert client.update(first, delay=0, metadata={"k": "v"}).state == "ready"
    with kill(daemon, snapshot=snapshot) as client:
        held = client.lease("q", count=2, wait=20)
        assert [(job.job_id, job.payload, job.metadata) for job in held.jobs] == [
            (second, b"changed", None),
            (first, b"first", {"k": "v"}),
        ]
        with pytest.raises(WrongState):
            client.update(first, priority=1)


@pytest.mark.parametrize("snapshot", [False, True])
def test_keys(daemon, snapshot):
    with client_of(daemon) as client:
        one = client.submit("q", "first", dedupe_key="d")
        paid = client.submit("pay", "9 EUR", idempotency_key="order-9")
        assert (one.existing, paid.existing) == (False, False)
    with kill(daemon, snapshot=snapshot) as client:
        again = client.submit("q", "second", dedupe_key="d", dedupe="replace")
        assert (again.job_id, again.existing) == (one.job_id, True)
        with pytest.raises(Duplicate):
            client.submit("q", dedupe_key="d", dedupe="reject")
        job = lease_one(client, "q")
        assert job.payload == b"second"
        client.ack(job)
        assert not client.submit("q", "third", dedupe_key="d").existing
        client.ack(lease_one(client, "pay"))
    with kill(daemon, snapshot=snapshot) as client:
        again = client.submit("pay", "9 EUR", idempotency_key="order-9")
        assert (again.job_id, again.existing) == (paid.job_id, True)
        with pytest.raises(IdempotencyConflict):
            client.submit("pay", "8 EUR", idempotency_key="order-9")
        with pytest.raises(Duplicate):
            client.submit("q", dedupe_key="d", dedupe="reject")


@pytest.mark.parametrize("snapshot", [False, True])
def test_expiry(daemon, snapshot):
    with client_of(daemon) as client:
        late = client.submit("q", expires="100ms").job_id
        client.submit("q", "x", expires="1h")
    with kill(daemon, snapshot=snapshot) as client:
        while client.get(late).state != "expired":
            pass
        assert lease_one(client, "q").payload == b"x"


@pytest.mark.parametrize("snapshot", [False, True])
def test_cancel_of_a_running_job(daemon, snapshot):
    host, port = daemon.address
    told: list[tuple[int, int]] = []
    with (
        client_of(daemon) as operator,
        Client(f"jqd://{host}:{port}", on_cancel=lambda *job: told.append(job)) as worker,
    ):
        first, second = (operator.submit("q", lease="2s").job_id for _ in range(2))
        one, two = worker.lease("q", count=2, wait=20).jobs
        assert operator.cancel([first, second], running=True).marked == 2
        while len(told) < 2:  # the event comes with whatever the worker hears next
            worker.ping()
        assert told == [(first, one.token), (second, two.token)]
    with kill(daemon, snapshot=snapshot) as client:
        assert client.get(first).cancel_marked
        assert client.extend(one, lease=60).cancel_marked == [(first, 1)]
        client.fail(one, error="interrupted")
        shown = client.get(first)
        assert (shown.state, shown.error) == ("cancelled", "interrupted")
        while client.get(second).state != "cancelled":  # its lease runs out
            pass


async def test_event_reaches_an_asyncio_client(daemon):
    host, port = daemon.address
    told: asyncio.Queue[tuple[int, int]] = asyncio.Queue()
    async with AsyncClient(f"jqd://{host}:{port}", on_cancel=lambda *job: told.put_nowait(job)) as worker:
        await worker.submit("q")
        (job,) = (await worker.lease("q")).jobs
        with client_of(daemon) as operator:
            operator.cancel(job.job_id, running=True)
        assert await told.get() == (job.job_id, job.token)
        await worker.ack(job)
        assert (await worker.get(job.job_id)).state == "done"


@pytest.mark.parametrize("snapshot", [False, True])
def test_result_its_time_and_progress(daemon, snapshot):
    with client_of(daemon) as client:
        kept, timed, held = (
            client.submit(queue, result_ttl=ttl).job_id
            for queue, ttl in (("k", None), ("t", "1h"), ("h", None))
        )
        for queue in "kt":
            client.ack(lease_one(client, queue), result=queue)
        client.extend(lease_one(client, "h"), progress_percent=40, progress_text="half")
    with kill(daemon, snapshot=snapshot) as client:
        assert [client.wait(job_id).result for job_id in (kept, timed)] == [b"k", b"t"]
        shown = client.get(held)
        assert (shown.state, shown.progress_percent, shown.progress_text) == ("leased", 40, "half")
        short = client.submit("s", result_ttl="1ms").job_id
        client.ack(lease_one(client, "s"), result="s")
        while not client.get(short).result_expired:
            pass
    with kill(daemon, snapshot=snapshot) as client:
        job = client.wait(short)
        assert (job.state, job.result, job.result_expired) == ("done", None, True)


async def test_who_waits_has_the_answer_over_kill_and_start(daemon):
    url = f"unix://{daemon.socket_path}"  # it stays
    async with AsyncClient(url) as waiting, AsyncClient(url) as other:
        job_id = (await other.submit("q")).job_id
        answer = asyncio.create_task(waiting.wait(job_id, timeout=60))
        while not (await other.stats()).waiting_count:
            pass
        await asyncio.to_thread(daemon.kill)
        await asyncio.to_thread(daemon.start)
        (job,) = (await other.lease("q", wait=20)).jobs
        await other.ack(job, result="r")
        assert (await answer).result == b"r"

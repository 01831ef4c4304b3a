"""A user's program that asks everything that both clients offer, and takes every reply apart.

It is judged as it would be at a user's: by mypy and pyright in their strict modes, beside the installed package and without
jqd's own configuration (tests/e2e/test_install.py); and it is run (test_every_verb.py). What an editor knows of each
reply is written out with assert_type.

    python every_verb.py URL
"""

import asyncio
import sys
from datetime import UTC, datetime, timedelta
from typing import assert_type

import jqd
from jqd import AsyncClient, Client, JqdError, errors
from jqd.client import requests
from jqd.client.requests import Held, HeldJob
from jqd.client.retry import Backoff
from jqd.core.commands import (
    EndedJob,
    Extended,
    JobInfo,
    JobList,
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
    Waited,
    WorkerList,
    WorkersTold,
)
from jqd.core.model import StateName


def blocking(url: str) -> None:
    client = Client(url, worker="w-1", timeout=timedelta(seconds=20), backoff=Backoff(first_ms=10))
    client.connect()
    with client as same:
        assert_type(same, Client)
    with Client(url) as client:
        assert_type(client.ping(), Pong)
        submitted = client.submit(
            "blocking",
            json={"to": ["ada"]},
            priority=5,
            delay=0,
            max_retries=3,
            lease="1m",
            task="mail",
            metadata={"user": "ada"},
            timeout=10,
        )
        assert_type(submitted, Submitted)
        assert_type(submitted.job_id, int)
        client.submit("later", b"x", run_at=datetime.now(UTC) + timedelta(hours=1))
        client.submit("later", "x", run_at="2035-01-31T08:00:00Z")
        many = client.submit_many("blocking", [b"1", "2", b"3", b"4", b"5", b"6", b"7"])
        assert_type(many, SubmittedMany)
        held = client.lease(["blocking", "other"], count=8, lease=timedelta(minutes=1), wait="5s")
        assert_type(held, Held)
        first, second, third, fourth, *rest = held.jobs
        assert_type(first, HeldJob)
        assert_type(first.payload, bytes)
        assert first.value() == {"to": ["ada"]}
        assert_type(client.extend(first, lease=60.0), Extended)
        assert_type(client.extend_many([second, (third.job_id, third.token)]), Extended)
        client.ack(first, json={"sent": True})
        client.ack(second.job_id, second.token, result="sent", encoding="text")
        verdicts = client.ack_many(rest[:2], results=[b"a", None])
        assert_type(verdicts, Verdicts)
        for verdict in verdicts.results:
            assert_type(verdict, tuple[int, int, str])
        client.fail(third, error="smtp is down", dead=True)
        assert_type(client.fail_many([fourth], error="smtp is down", retry_in="1s"), Verdicts)
        client.release(rest[2], delay=timedelta(seconds=0))
        assert_type(client.release_many([rest[3]]), Verdicts)
        assert_type(client.requeue(third.job_id), Swept)
        assert_type(client.cancel([third.job_id]), Swept)
        waiting = client.submit("later", "x", delay="1h")
        assert_type(
            client.update(waiting.job_id, priority=9, delay=timedelta(hours=2), json={"a": 1}), Updated
        )
        swept = client.purge(queue="blocking", limit=10, dry_run=True)
        assert_type(swept.count, int)
        info = client.get(first.job_id)
        assert_type(client.wait_many([first.job_id, 1 << 40], timeout="10s", all=False), Waited)
        if client.get(first.job_id).state == "done":
            assert_type(client.wait(first.job_id, timeout=10), EndedJob)
        assert_type(info, JobInfo)
        assert_type(info.priority, int)
        page = client.list(queue="blocking", state="done", filter="age >= 0", limit=10)
        assert_type(page, JobList)
        assert_type(page.cursor, int | None)
        queues = client.queues()
        assert_type(queues, QueueList)
        assert_type([queue.queue for queue in queues.queues], list[str])
        assert_type(client.set_queue("blocking", lease="1m", length_max=9), QueueChanged)
        assert_type(client.pause("blocking").paused, bool)
        assert_type(client.resume("blocking"), QueueChanged)
        assert_type(client.queue("blocking"), QueueDetails)
        registered = client.register(["blocking"], concurrency=4, host="box", pid=1, version="2")
        assert_type(registered, Registered)
        workers = client.workers(limit=10)
        assert_type(workers, WorkerList)
        assert_type([worker.queues for worker in workers.workers], list[list[str]])
        assert_type(client.tell_workers("quiet", registered.worker_id), WorkersTold)
        assert_type(client.tell_workers("resume", all=True).told, list[tuple[str, str]])
        assert_type(client.stats(), ServerStats)
        assert_type(client.snapshot(), SnapshotBegun)
        reply = client.call(requests.get(first.job_id), timeout=5)
        assert_type(reply, JobInfo)
        for answer in client.call_many([requests.ping(), requests.get(1 << 40)]):
            if isinstance(answer, JqdError):
                assert_type(answer.code, str)
        try:
            client.ack(first)
        except errors.LeaseLost as error:
            assert_type(error.retryable, bool)
            assert_type(error.retry_after_ms, int | None)


async def with_asyncio(url: str) -> None:
    client = AsyncClient(url, worker="w-2", timeout=20.0)
    await client.connect()
    async with client as same:
        assert_type(same, AsyncClient)
    async with AsyncClient(url, backoff=Backoff()) as client:
        assert_type(await client.ping(), Pong)
        assert_type(
            await client.submit("asyncio", "text", max_crashes=2, delivery="at_least_once"), Submitted
        )
        assert_type(await client.submit_many("asyncio", ["2", "3", "4", "5", "6", "7", "8"]), SubmittedMany)
        held = await client.lease({"asyncio": 3, "other": 1}, count=8, wait=5)
        assert_type(held, Held)
        first, second, third, fourth, *rest = held.jobs
        assert_type(first.attempt, int)
        assert_type(await client.extend(first), Extended)
        assert_type(await client.extend_many([second, third]), Extended)
        await client.ack(first, error="never again")
        assert_type(await client.ack_many([second]), Verdicts)
        await client.fail(third, dead=True)
        assert_type(await client.fail_many([fourth], retry_in=1), Verdicts)
        await client.release(rest[0])
        assert_type(await client.release_many(rest[1:]), Verdicts)
        assert_type(await client.requeue(third.job_id), Swept)
        assert_type(await client.cancel(third.job_id), Swept)
        later = await client.submit("later", "x", delay=3_600)
        assert_type((await client.update(later.job_id, metadata={"user": "ada"})).state, StateName)
        assert_type(await client.purge(queue="asyncio", filter="state = dead"), Swept)
        assert_type(await client.get(second.job_id), JobInfo)
        assert_type(await client.wait_many([1 << 40], timeout=10), Waited)
        if (await client.get(second.job_id)).state == "done":
            assert_type(await client.wait(second.job_id, timeout=10), EndedJob)
        assert_type(await client.list(cursor=0), JobList)
        assert_type(await client.queues(limit=1), QueueList)
        assert_type(await client.set_queue("asyncio", retention=60), QueueChanged)
        assert_type(await client.pause("asyncio"), QueueChanged)
        assert_type(await client.resume("asyncio"), QueueChanged)
        assert_type((await client.queue("asyncio")).info.ready, int)
        registered = await client.register("asyncio", state="quiet")
        assert_type(registered.order, str | None)
        assert_type((await client.workers()).cursor, str | None)
        assert_type(await client.tell_workers("stop", [registered.worker_id]), WorkersTold)
        assert_type((await client.stats()).jobs["ready"], int)
        assert_type(await client.call(requests.stats()), ServerStats)
        assert_type((await client.snapshot()).lsn, int)


if __name__ == "__main__":
    blocking(sys.argv[1])
    asyncio.run(with_asyncio(sys.argv[1]))
    print(jqd.__version__)

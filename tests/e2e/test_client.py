"""AsyncClient and the real daemon."""

import asyncio
from pathlib import Path

import pytest

from jqd.client.aio import AsyncClient
from jqd.client.retry import Backoff
from jqd.errors import JobNotFound, LeaseLost
from tests.support.daemon import Daemon

pytestmark = pytest.mark.e2e


def urls(daemon: Daemon) -> list[str]:
    host, port = daemon.address
    return [f"jqd://{host}:{port}", f"unix://{daemon.socket_path}"]


async def test_every_verb(tmp_path: Path):
    with Daemon(tmp_path / "data", "--unix", str(tmp_path / "s")) as daemon:
        for number, url in enumerate(urls(daemon)):
            async with AsyncClient(url, worker="w-1") as client:
                queue = f"q{number}"
                job_id = (await client.submit(queue, json={"n": 1}, lease=60)).job_id
                assert (await client.submit_many(queue, ["a", "b", b"c"])).jobs == [
                    (job_id + 1, 2, False),
                    (job_id + 3, 1, False),
                ]
                held = await client.lease(queue, count=4, lease=30)
                first, second, third, fourth = held.jobs
                assert first.value() == {"n": 1}
                assert (await client.get(job_id)).worker == "w-1"
                assert (await client.extend(first, lease="5m")).lease_ms_left == 300_000
                await client.ack(first, json=[1])
                with pytest.raises(LeaseLost):
                    await client.ack(first)
                await client.fail(second, error="bad", dead=True)
                await client.release(third)
                assert (await client.ack_many([fourth])).results == [(fourth.job_id, 1, "ok")]
                await client.requeue(second.job_id)
                await client.cancel(second.job_id)
                assert (await client.purge(queue=queue)).count == 1
                with pytest.raises(JobNotFound):
                    await client.get(third.job_id)
                listed = await client.list(queue=queue)
                assert [job.state for job in listed.jobs] == ["done", "cancelled", "done"]
                assert (await client.queues()).queues[number].done == 2
                assert (await client.stats()).jobs["leased"] == 0
                assert (await client.ping()).wall_ms > 0


async def test_many_waiting_leases_are_served_by_one_client(tmp_path: Path):
    with Daemon(tmp_path / "data", "--unix", str(tmp_path / "s")) as daemon:
        async with AsyncClient(urls(daemon)[0]) as client:
            waiting = [asyncio.create_task(client.lease("q", wait=20)) for _ in range(10)]
            while (await client.stats()).parked_count < 10:
                pass
            cancelled = waiting.pop()
            cancelled.cancel()
            while (await client.stats()).parked_count > 9:
                pass
            await client.submit_many("q", [b""] * 9)
            jobs = [held.jobs[0].job_id for held in await asyncio.gather(*waiting)]
            assert sorted(jobs) == list(range(1, 10))


async def test_each_submit_is_carried_out_once_over_kills(tmp_path: Path):
    with Daemon(tmp_path / "data", "--unix", str(tmp_path / "s")) as daemon:
        url = f"unix://{daemon.socket_path}"
        async with AsyncClient(url, backoff=Backoff(first_ms=5, cap_ms=50)) as client:
            count = 2_000
            done: list[int] = []
            waiting = asyncio.create_task(client.lease("other", wait=30))

            async def submit(number: int) -> None:
                done.append((await client.submit("q", str(number))).job_id)

            tasks = [asyncio.create_task(submit(number)) for number in range(count)]
            for part in (1, 2):
                while len(done) < part * count // 3:
                    await asyncio.wait(tasks, timeout=0.001, return_when=asyncio.FIRST_COMPLETED)
                await asyncio.to_thread(daemon.kill)
                await asyncio.to_thread(daemon.start)
            await asyncio.gather(*tasks)
            assert len(set(done)) == count
            payloads: set[bytes] = set()
            while (held := await client.lease("q", count=1_000)).jobs:
                payloads |= {job.payload for job in held.jobs}
            (queue,) = (await client.queues()).queues
            assert queue.leased == count == len(payloads), "nothing lost, nothing twice"
            await client.submit("other", b"")
            assert len((await waiting).jobs) == 1

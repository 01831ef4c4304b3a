"""Client and the real daemon."""

import contextlib
import functools
import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from jqd.client import requests
from jqd.client.retry import Backoff
from jqd.client.sync import Client
from jqd.errors import JobNotFound, LeaseLost
from tests.support.daemon import Daemon
from tests.support.fork import forked

pytestmark = pytest.mark.e2e


def urls(daemon: Daemon) -> list[str]:
    host, port = daemon.address
    return [f"jqd://{host}:{port}", f"unix://{daemon.socket_path}"]


def test_every_verb(tmp_path: Path):
    with Daemon(tmp_path / "data", "--unix", str(tmp_path / "s")) as daemon:
        for number, url in enumerate(urls(daemon)):
            with Client(url, worker="w-1") as client:
                queue = f"q{number}"
                job_id = client.submit(queue, json={"n": 1}, lease=60).job_id
                assert client.submit_many(queue, ["a", "b", b"c"]).jobs == [
                    (job_id + 1, 2, False),
                    (job_id + 3, 1, False),
                ]
                first, second, third, fourth = client.lease(queue, count=4, lease=30).jobs
                assert first.value() == {"n": 1}
                assert client.get(job_id).worker == "w-1"
                assert client.extend(first, lease="5m").lease_ms_left == 300_000
                client.ack(first, json=[1])
                with pytest.raises(LeaseLost):
                    client.ack(first)
                client.fail(second, error="bad", dead=True)
                client.release(third)
                assert client.ack_many([fourth]).results == [(fourth.job_id, 1, "ok")]
                client.requeue(second.job_id)
                client.cancel(second.job_id)
                assert client.purge(queue=queue).count == 1
                with pytest.raises(JobNotFound):
                    client.get(third.job_id)
                assert [job.state for job in client.list(queue=queue).jobs] == ["done", "cancelled", "done"]
                assert client.queues().queues[number].done == 2
                assert client.stats().jobs["leased"] == 0
                assert client.ping().wall_ms > 0


def test_a_pipeline_of_different_commands(tmp_path: Path):
    with Daemon(tmp_path / "data") as daemon, Client(urls(daemon)[0]) as client:
        submits = [requests.submit("q", str(number), {}) for number in range(3_000)]
        replies = client.call_many([*submits, requests.get(1 << 40), requests.stats()])
        assert [reply.job_id for reply in replies[:3_000]] == list(range(1, 3_001))
        assert isinstance(replies[3_000], JobNotFound)
        assert replies[3_001].jobs["ready"] == 3_000


def test_many_waiting_leases_are_served_to_the_threads_of_one_client(tmp_path: Path):
    with (
        Daemon(tmp_path / "data") as daemon,
        Client(urls(daemon)[0]) as client,
        ThreadPoolExecutor(10) as threads,
    ):
        waiting = [threads.submit(client.lease, "q", wait=20) for _ in range(10)]
        while client.stats().parked_count < 10:
            pass
        client.submit_many("q", [b""] * 10)
        jobs = [future.result(20).jobs[0].job_id for future in waiting]
        assert sorted(jobs) == list(range(1, 11))


def test_each_submit_is_carried_out_once_over_kills(tmp_path: Path):
    with Daemon(tmp_path / "data", "--unix", str(tmp_path / "s")) as daemon:
        url, backoff = f"unix://{daemon.socket_path}", Backoff(first_ms=5, cap_ms=50)
        with Client(url, backoff=backoff) as client, ThreadPoolExecutor(17) as threads:
            count, done = 2_000, list[int]()
            third = [threading.Event(), threading.Event()]

            def submit(number: int) -> None:
                done.append(client.submit("q", str(number)).job_id)
                for part, reached in enumerate(third, 1):
                    if len(done) >= part * count // 3:
                        reached.set()

            waiting = threads.submit(client.lease, "other", wait=30)
            submits = [threads.submit(submit, number) for number in range(count)]
            for reached in third:
                assert reached.wait(20)
                daemon.kill()
                daemon.start()
            for future in submits:
                future.result(20)
            assert len(set(done)) == count
            payloads: set[bytes] = set()
            while (held := client.lease("q", count=1_000)).jobs:
                payloads |= {job.payload for job in held.jobs}
            (queue,) = client.queues().queues
            assert queue.leased == count == len(payloads), "nothing lost, nothing twice"
            client.submit("other", b"")
            assert len(waiting.result(20).jobs) == 1


def test_a_pipeline_is_carried_out_once_over_a_kill(tmp_path: Path):
    with Daemon(tmp_path / "data", "--unix", str(tmp_path / "s")) as daemon:
        url, backoff = f"unix://{daemon.socket_path}", Backoff(first_ms=5, cap_ms=50)
        with Client(url, backoff=backoff) as client, ThreadPoolExecutor(1) as threads:
            count = 20_000
            commands = [requests.submit("q", str(number), {}) for number in range(count)]
            replies = threads.submit(client.call_many, commands)
            while client.stats().jobs["ready"] < count // 4:
                pass
            daemon.kill()
            daemon.start()
            assert len({reply.job_id for reply in replies.result(30)}) == count
            assert client.stats().jobs["ready"] == count


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_threads_and_forked_processes_share_a_client(tmp_path: Path):
    """As a web server does that loads the program, forks its workers and serves in threads, while the parent goes on."""
    with Daemon(tmp_path / "data") as daemon, Client(urls(daemon)[0]) as client:
        count = 150
        all_of_them = {f"{part}-{number}".encode() for part in range(4) for number in range(count)}

        def submit_all(part: int) -> None:
            with ThreadPoolExecutor(4) as threads:
                for reply in [threads.submit(client.submit, "q", f"{part}-{n}") for n in range(count)]:
                    reply.result(20)

        with ThreadPoolExecutor(2) as threads:
            parents = threads.submit(submit_all, 0)
            waiting = threads.submit(client.lease, "other", wait=30)
            while client.stats().parked_count == 0:
                pass
            with contextlib.ExitStack() as children:
                for part in range(1, 4):
                    children.enter_context(forked(functools.partial(submit_all, part)))
            parents.result(20)
            client.submit("other", b"")
            assert len(waiting.result(20).jobs) == 1
        jobs = client.lease("q", count=4 * count + 1).jobs
        assert len(jobs) == len(all_of_them) and {job.payload for job in jobs} == all_of_them


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_takes_a_client_along(tmp_path: Path, method: str):
    with Daemon(tmp_path / "data") as daemon, Client(urls(daemon)[0], worker="w-1") as client:
        job_id = client.submit("q", b"").job_id
        context: Any = multiprocessing.get_context(method)
        process = context.Process(target=client.lease, args=("q",))
        process.start()
        process.join(20)
        assert process.exitcode == 0
        assert client.get(job_id).worker == "w-1"

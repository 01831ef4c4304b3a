"""A store that goes back under its clients, and one that is only restarted. Fault 29 of docs/faults.md."""

import asyncio
import contextlib
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

import pytest

from jqd import AsyncClient, Client, StoreRolledBack
from jqd.client.retry import Backoff
from jqd.errors import LeaseLost, UnavailableError, WrongState
from tests.support.daemon import Daemon, wait_for_the_clock

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.e2e, pytest.mark.timeout(180)]

COPIES = 10
RESTARTS = 50
SOON = Backoff(first_ms=5, cap_ms=20)


@contextmanager
def served(tmp_path: Path) -> Iterator[Daemon]:
    """Run a daemon at an address that stays the same over its starts."""
    with Daemon(tmp_path / "data", "--listen", "off", "--unix", str(tmp_path / "s")) as daemon:
        yield daemon


def url(tmp_path: Path) -> str:
    return f"unix://{tmp_path / 's'}"


def end(daemon: Daemon, number: int) -> None:
    """Stop it every other time in order."""
    daemon.kill() if number % 2 else daemon.stop()


def copies(daemon: Daemon, client: Client, tmp_path: Path) -> list[Path]:
    """Copy the directory now and then while the store grows."""
    made = []
    for number in range(COPIES):
        client.submit("q", str(number))
        copy = tmp_path / f"copy-{number}"
        end(daemon, number)
        shutil.copytree(tmp_path / "data", copy)
        daemon.start()
        made.append(copy)
    client.submit("q", "the last")
    return made


def restore(daemon: Daemon, copy: Path, tmp_path: Path) -> None:
    daemon.kill()  # a stop would answer what waits
    shutil.rmtree(tmp_path / "data")
    shutil.copytree(copy, tmp_path / "data")
    wait_for_the_clock(daemon.ready["epoch"])
    daemon.start()


def test_each_restored_copy_is_noticed_by_every_client_whatever_it_does(tmp_path):
    pool = ThreadPoolExecutor(2)
    with (
        served(tmp_path) as daemon,
        pool,
        Client(url(tmp_path), backoff=SOON) as idle,
        Client(url(tmp_path), backoff=SOON) as waiting,
    ):
        made = copies(daemon, idle, tmp_path)
        waiting.ping()
        for copy in reversed(made):
            seen = idle.submit("q", "seen").job_id
            parked = pool.submit(waiting.lease, "empty", wait=30)
            while not idle.stats().parked_count:
                pass
            restore(daemon, copy, tmp_path)
            error = parked.exception(30)
            assert type(error) is StoreRolledBack and error.outcome_unknown
            assert waiting.lease("empty").jobs == []
            # Somebody else brings the store beyond everything that this client has heard.
            while waiting.submit("q", "beyond").job_id <= seen:
                pass
            with pytest.raises(StoreRolledBack, match="^submit: the store went back: LSN"):
                idle.submit("q", "x")
            idle.submit("q", "x")


def test_asyncio_client_notices_each_restored_copy_once_in_all_that_is_under_way(tmp_path):
    async def work(daemon: Daemon, made: list[Path]) -> None:
        async with AsyncClient(url(tmp_path), backoff=SOON) as client:
            for copy in made:
                await client.submit("q", b"x")
                parked = [asyncio.create_task(client.lease(f"empty-{n}", wait=30)) for n in range(3)]
                while (await client.stats()).parked_count < 3:
                    pass
                await asyncio.to_thread(restore, daemon, copy, tmp_path)
                errors = await asyncio.gather(*parked, return_exceptions=True)
                assert [type(error) for error in errors] == [StoreRolledBack] * 3
                await asyncio.gather(*(client.submit("q", b"x") for _ in range(20)))

    with served(tmp_path) as daemon:
        with Client(url(tmp_path), backoff=SOON) as client:
            made = copies(daemon, client, tmp_path)
        asyncio.run(work(daemon, list(reversed(made))))


def test_fifty_restarts_without_a_restore_are_never_taken_for_one(tmp_path):
    """Under load, by both clients, with requests that are sent again and leases that wait."""
    went_on: dict[str, SimpleQueue[int]] = {"threads": SimpleQueue(), "asyncio": SimpleQueue()}
    ending = False
    # What a daemon that stops, or is away, may answer at any time, and what a token of before is answered.
    usual = contextlib.suppress(UnavailableError, LeaseLost, WrongState)

    def in_a_thread() -> None:
        with Client(url(tmp_path), backoff=SOON) as client:
            while not ending:
                with usual:
                    went_on["threads"].put(client.submit("a", b"x").job_id)

    async def in_a_loop() -> None:
        async def submits() -> None:
            while not ending:
                with usual:
                    await asyncio.gather(*(client.submit("b", b"x") for _ in range(10)))
                    went_on["asyncio"].put(1)

        async def leases() -> None:
            while not ending:
                with usual:
                    for job in (await client.lease(["b", "a"], count=50, wait=0.2)).jobs:
                        await client.release(job)

        async with AsyncClient(url(tmp_path), backoff=SOON) as client:
            await asyncio.gather(submits(), submits(), leases())

    with served(tmp_path) as daemon, ThreadPoolExecutor(2) as pool:
        running = [pool.submit(in_a_thread), pool.submit(asyncio.run, in_a_loop())]
        try:
            for number in range(RESTARTS):
                for news in went_on.values():
                    while not news.empty():
                        news.get()
                    news.get(timeout=30)
                end(daemon, number)
                daemon.start()
        finally:
            ending = True
        for each in running:
            each.result(30)

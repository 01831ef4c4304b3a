"""A user's program with tasks and a worker. What an editor knows of each is written out with assert_type.

It is judged as every_verb.py is, by mypy and pyright in their strict modes beside the installed package; and it is run.

    python tasks.py URL
"""

import asyncio
import contextlib
import sys
from collections.abc import Generator
from dataclasses import dataclass
from datetime import timedelta
from typing import assert_type
from uuid import UUID

import jqd
from jqd import App, CurrentJob, Worker
from jqd.client.handle import Handle, SyncHandle
from jqd.client.requests import HeldJob
from jqd.client.worker import Ended
from jqd.core.commands import JobInfo

app = App(sys.argv[1])


@dataclass
class Receipt:
    order: UUID
    lines: list[str]


@app.task(queue="emails", max_retries=5, timeout="30s", priority=5)
async def send(to: str, subject: str = "hello") -> int:
    job = jqd.current_job()
    assert_type(job, CurrentJob)
    assert_type(job.token, int)
    if to == "later" and job.attempt == 1 and not job.errors:
        raise jqd.Retry(in_=timedelta(seconds=0))
    if to == "nobody":
        raise jqd.Fail("no such person")
    return len(to) + len(subject)


@app.task(name="make.receipt")
def receipt(order: UUID, *lines: str) -> Receipt:
    return Receipt(order, list(lines))


@app.handler("raw")
def handle(job: HeldJob) -> None:
    assert_type(job.payload, bytes)


@app.around
@contextlib.contextmanager
def around(job: CurrentJob) -> Generator[None]:
    assert job.task != "unknown"
    yield


@app.before_start
async def begin() -> None:
    assert_type(app, App)


@app.after_stop
def end() -> None:
    assert_type(app, App)


async def main() -> None:
    assert_type(receipt(UUID(int=1), "a"), Receipt)
    one = await send.submit("ada", subject="x")
    assert_type(one, Handle[int])
    many = await send.options(delay="0s", priority=9).map(["ada", "later"], subject="to all")
    assert_type(many, list[Handle[int]])
    other = receipt.submit_sync(UUID(int=1), "a", "b")
    assert_type(other, SyncHandle[Receipt])
    assert_type(receipt.map_sync([UUID(int=2)], "c"), list[SyncHandle[Receipt]])
    nobody = await send.submit("nobody")
    worker = Worker(app, ["emails", "default", "raw"], concurrency=4, grace="5s", burst=True)
    assert_type(await worker.run(), Ended)
    assert_type(await one.wait(timeout=5), int)
    assert_type(other.wait("5s"), Receipt)
    assert other.wait() == Receipt(UUID(int=1), ["a", "b"])
    assert [await each.wait() for each in many] == [9, 11]
    assert_type(await many[0].info(), JobInfo)
    try:
        await nobody.wait()
    except jqd.errors.JobFailed as error:
        assert_type(error.reason, str | None)
    assert_type(await send.handle(one.job_id).wait(), int)
    await app.close()


async def never() -> None:
    """What would wait here, and what is wrong."""
    assert_type(await send("ada"), int)
    assert_type(await send.submit_and_wait("ada"), int)
    assert_type(receipt.submit_and_wait_sync(UUID(int=1)), Receipt)
    send.submit_sync(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    send.submit_sync()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    send.submit_sync("ada", colour="red")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    send.options(dealy="5m")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


if __name__ == "__main__":
    asyncio.run(main())

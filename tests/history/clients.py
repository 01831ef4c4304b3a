"""A client process of a history: the client that users have, and actors that share it.

    python -m tests.history.clients '{"name": "c1", "url": "unix:///...", "kind": "sync", ...}'     see Settings

It ends when its standard input does. For each request that was answered well a byte goes to standard output, so that
whoever started it knows how the work goes.

Knows:         how programs are run over each of the two clients.
Must not know: what programs ask, what is right.
"""

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from jqd.client.aio import AsyncClient
from jqd.client.retry import Backoff
from jqd.client.sync import Client
from jqd.errors import ConnectionLost, JqdError
from tests.history.programs import Ask, Outcome, Program, anybody, code_of, drain
from tests.history.recording import Recorder

# A daemon is away for half a second at a time here: nobody shall sleep on when it is back.
_BACKOFF: Final = Backoff(first_ms=20, cap_ms=250)
_TIMEOUT_S: Final = 60
_AGAIN_S: Final = 0.05


class Settings(Struct):
    """What a client process is told.

    kind: "sync", "async", or "drain": work everything off, with one actor.
    """

    name: str
    url: str
    kind: str
    seed: str
    file: str
    actors: int = 1
    lease_s_max: float = 20


class Process:
    """What the actors of a process share."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.recorder = Recorder(Path(settings.file))
        self.over = threading.Event()

    def programs(self) -> Iterator[tuple[str, Program]]:
        settings = self.settings
        if settings.kind == "drain":
            yield settings.name, drain()
            return
        for number in range(settings.actors):
            name = f"{settings.name}.{number}"
            yield name, anybody(f"{settings.seed}-{name}", name, settings.lease_s_max)

    def next(self, program: Program, outcome: Outcome) -> Ask | None:
        """Return what to ask next; None: that was all."""
        try:
            return program.send(None if self.over.is_set() else outcome)
        except StopIteration:
            return None

    def answered(self) -> None:
        os.write(1, b".")

    def wait_for_the_end(self) -> None:
        os.read(0, 1)  # not the buffered one: nobody can leave while another thread holds that
        self.over.set()


def _outcome(reply: object) -> Outcome:
    """Return a reply as a program gets it: None would be the end."""
    return True if reply is None else reply


# --- threads --------------------------------------------------------------------------------------


def run_sync(process: Process) -> None:
    settings = process.settings
    with contextlib.closing(
        Client(settings.url, worker=settings.name, timeout=_TIMEOUT_S, backoff=_BACKOFF)
    ) as client:
        while not process.over.is_set():
            try:
                client.connect()
                break
            except ConnectionLost:  # who starts while the daemon is away tries again
                process.over.wait(_AGAIN_S)
        hello = client._shared.session.hello
        process.recorder.hello(hello.session or b"", hello.worker)
        threads = [
            threading.Thread(target=_act, args=(process, client, name, program), name=name)
            for name, program in process.programs()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _act(process: Process, client: Client, name: str, program: Program) -> None:
    wanted: Ask | None = next(program)
    while wanted is not None:
        outcome: Outcome
        with process.recorder.asking(name) as one:
            try:
                outcome = _outcome(getattr(client, wanted.verb)(*wanted.args, **wanted.options))
                one.said = "ok"
            except JqdError as error:
                outcome, one.said = error, code_of(error)
        if one.said == "ok":
            process.answered()
        wanted = process.next(program, outcome)


# --- tasks ----------------------------------------------------------------------------------------


async def run_async(process: Process) -> None:
    settings = process.settings
    client = AsyncClient(settings.url, worker=settings.name, timeout=_TIMEOUT_S, backoff=_BACKOFF)
    try:
        while not process.over.is_set():
            try:
                await client.connect()
                break
            except ConnectionLost:  # as in threads; the proxy cuts who has just come, too
                await asyncio.to_thread(process.over.wait, _AGAIN_S)
        hello = client._shared.session.hello
        process.recorder.hello(hello.session or b"", hello.worker)
        async with asyncio.TaskGroup() as group:
            for name, program in process.programs():
                group.create_task(_act_async(process, client, name, program))
    finally:
        await client.close()


async def _act_async(process: Process, client: AsyncClient, name: str, program: Program) -> None:
    wanted: Ask | None = next(program)
    while wanted is not None:
        outcome: Outcome
        with process.recorder.asking(name) as one:
            try:
                outcome = _outcome(await getattr(client, wanted.verb)(*wanted.args, **wanted.options))
                one.said = "ok"
            except JqdError as error:
                outcome, one.said = error, code_of(error)
        if one.said == "ok":
            process.answered()
        wanted = process.next(program, outcome)


def main(argument: str) -> None:
    """Run one client process."""
    settings = msgspec.json.decode(argument, type=Settings)
    process = Process(settings)
    if settings.kind != "drain":
        threading.Thread(target=process.wait_for_the_end, daemon=True).start()
    try:
        if settings.kind == "async":
            asyncio.run(run_async(process))
        else:
            run_sync(process)
    finally:
        process.recorder.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A program with tasks, and workers of it in processes of their own.

program = Program(tmp_path, daemon_url)        writes shop.py
with program.worker("-c", "4") as worker:      `jqd worker shop:app`, as a user starts it
    program.submit("note", "x")                -> job id
    happens(lambda: program.notes() == ["x"])  what the handlers have written
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any, Self

from jqd.client.arguments import pack
from jqd.client.sync import Client
from tests.support.daemon import ROOT, environment
from tests.support.until import PATIENCE_S, happens

SOURCE = """
    import os, time
    import jqd

    app = jqd.App()

    def write(text):
        with open(os.environ["NOTES"], "a") as file:
            file.write(text + "\\n")

    def spin(seconds):
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at:
            pass

    @app.task(lease=1)
    def note(text: str, after: float = 0.0) -> str:
        time.sleep(after)
        write(text)
        return text

    @app.task(lease=1)
    async def anote(text: str) -> str:
        write(text)
        return text

    @app.task(lease=2)
    def mark(number: int) -> int:
        time.sleep(0.02)
        write(str(number))
        return jqd.current_job().attempt

    @app.task(lease=1)
    def busy(seconds: float) -> int:
        write("begins")
        spin(seconds)
        return jqd.current_job().attempt

    @app.task(lease=1)
    async def abusy(seconds: float) -> int:
        write("begins")
        spin(seconds)
        return jqd.current_job().attempt

    @app.task(lease=1)
    async def gate(path: str) -> None:
        import asyncio
        write("begins")
        while not os.path.exists(path):
            await asyncio.sleep(0.01)

    @app.task(lease=1)
    async def hang() -> None:
        import asyncio
        write(f"begins {jqd.current_job().attempt}")
        await asyncio.Event().wait()

    @app.task()
    def who() -> int:
        return os.getpid()

    @app.task()
    def crash() -> None:
        os.kill(os.getpid(), 9)

    @app.task(timeout=0.3)
    def forever() -> None:
        write(f"pid {os.getpid()}")
        time.sleep(60)
"""


class Program:
    """See the file's card."""

    def __init__(self, directory: Path, url: str) -> None:
        self.directory = directory
        self.url = url
        self.path = directory / "shop.py"
        self.path.write_text(dedent(SOURCE))
        self._notes = directory / "notes"
        self.client = Client(url)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.client.close()

    def worker(self, *flags: str, start: bool = True) -> "WorkerProcess":
        made = WorkerProcess(self, flags)
        if start:
            happens(lambda: "serves" in made.said or made.process.poll() is not None)
        return made

    def submit(self, task: str, *args: object, **options: Any) -> int:
        names = {
            "note": ["text", "after"],
            "anote": ["text"],
            "gate": ["path"],
            "busy": ["seconds"],
            "abusy": ["seconds"],
        }
        payload = pack("arguments", dict(zip(names.get(task, []), args, strict=False)))
        options = {"lease": 1, **options}
        return self.client.submit("default", payload, task=task, encoding="msgpack", **options).job_id

    def notes(self) -> list[str]:
        return self._notes.read_text().splitlines() if self._notes.exists() else []

    def has_noted(self, text: str) -> bool:
        return text in self.notes()

    def counts(self) -> dict[str, int]:
        """Return the jobs of its only queue, by state."""
        (queue,) = self.client.queues().queues
        return {state: getattr(queue, state) for state in ("ready", "delayed", "leased", "done", "dead")}

    def environment(self) -> dict[str, str]:
        return {**environment({"NOTES": str(self._notes)}), "JQD_URL": self.url, "PYTHONPATH": str(ROOT)}

    def is_done(self, job_id: int) -> bool:
        return self.client.get(job_id).state == "done"


class WorkerProcess:
    """A running `jqd worker`; killed at the latest when the block ends."""

    def __init__(self, program: Program, flags: tuple[str, ...]) -> None:
        self._log = program.directory / f"worker-{len(list(program.directory.glob('worker-*')))}.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jqd", "worker", "shop:app", "--log-level", "debug", *flags],
                cwd=program.directory,
                env=program.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(PATIENCE_S)

    @property
    def said(self) -> str:
        return self._log.read_text()

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.terminate()
        return self.process.wait(PATIENCE_S)

"""What jqd's worker does for tasks, and beside whole frameworks: the rows "tasks" of docs/performance.md.

Knows:         how each framework is told of a task, started and watched.
Must not know: the command line.

    tasks_celery, tasks_dramatiq, tasks_saq   tasks that do nothing, one worker process each, out of a queue that is
                                              full: from the first one to the last. jqd waits for the disk, Redis
                                              keeps nothing on one. Each with the concurrency that it is best with
    tasks_start                               submit to the first line of the handler, at 1,000 a second
    tasks_kill                                SIGKILL of a worker to the start of its job elsewhere
    tasks_rss                                 memory of a worker over a million jobs

The frameworks are not dependencies of jqd: they are installed, in these versions, into an environment of their own.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from textwrap import dedent
from typing import Any, Final, NamedTuple

from jqd.client.aio import AsyncClient
from jqd.client.app import App
from jqd.core.model import JOBS_PER_REQUEST_MAX
from tests.bench import interrupt
from tests.bench.peers import Redis
from tests.bench.server import ROOT, Program, Server

FRAMEWORKS: Final = ("celery[redis]==5.7.0", "dramatiq[redis]==2.2.1", "saq[hiredis]==0.26.4")
ENVIRONMENT: Final = ROOT / ".cache" / "frameworks"
PATIENCE_S: Final = 300.0

JQD_JOBS: Final = 50_000
PEER_JOBS: Final = 10_000
START_RATE: Final = 1_000
START_JOBS: Final = 10_000
KILLS: Final = 100
RSS_JOBS: Final = 1_000_000

# Notes when it was called for the first and for the LASTth time, and how much memory its process has then.
NOTE: Final = """
    import os, time
    LAST, FILE, COUNT = int(os.environ["LAST"]), os.environ["NOTES"], 0

    def call():
        global COUNT
        COUNT += 1
        if COUNT == 1 or COUNT == LAST or COUNT % 100_000 == 0:
            with open("/proc/self/statm") as statm, open(FILE, "a") as file:
                rss = int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
                file.write(f"{time.monotonic()} {COUNT} {time.process_time()} {rss}\\n")
"""

JQD: Final = """
    import asyncio, os, time
    import jqd, note
    app = jqd.App(os.environ["JQD_URL"])

    @app.task()
    async def noop(n: int) -> None:
        note.call()

    @app.task()
    async def started(at: float) -> None:
        with open(os.environ["NOTES"], "a") as file:
            file.write(f"{time.monotonic() - at}\\n")

    @app.task(lease=60)
    async def hang() -> None:
        with open(os.environ["NOTES"], "a") as file:
            file.write(f"{time.monotonic()} {os.getpid()}\\n")
        await asyncio.Event().wait()
"""

CELERY: Final = """
    import os, sys
    import note
    from celery import Celery
    app = Celery("tasks", broker=os.environ["REDIS_URL"])
    app.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True)

    @app.task(name="noop")
    def noop(n):
        note.call()

    if __name__ == "__main__":
        for n in range(int(sys.argv[1])):
            noop.delay(n)
"""

DRAMATIQ: Final = """
    import os, sys
    import dramatiq, note
    from dramatiq.brokers.redis import RedisBroker
    dramatiq.set_broker(RedisBroker(url=os.environ["REDIS_URL"]))

    @dramatiq.actor
    def noop(n):
        note.call()

    if __name__ == "__main__":
        for n in range(int(sys.argv[1])):
            noop.send(n)
"""

SAQ: Final = """
    import asyncio, os, sys
    import note
    from saq import Queue
    queue = Queue.from_url(os.environ["REDIS_URL"])

    async def noop(ctx, *, n):
        note.call()

    settings = {"queue": queue, "functions": [noop], "concurrency": int(os.environ["CONCURRENCY"])}

    async def main():
        await queue.connect()
        for n in range(int(sys.argv[1])):
            await queue.enqueue("noop", n=n)
        await queue.disconnect()

    if __name__ == "__main__":
        asyncio.run(main())
"""


class Framework(NamedTuple):
    """argv: of one worker process, for a concurrency. concurrencies: that are tried; the best one counts."""

    source: str
    argv: Callable[[int], list[str]]
    concurrencies: tuple[int, ...]
    asked: float


PEERS: Final[dict[str, Framework]] = {
    "celery": Framework(
        CELERY,
        lambda n: [
            "celery",
            "-A",
            "tasks",
            "worker",
            "--pool",
            "solo" if n == 1 else "threads",
            "-c",
            str(n),
        ],
        (1, 10),
        15,
    ),
    "dramatiq": Framework(
        DRAMATIQ, lambda n: ["dramatiq", "tasks", "--processes", "1", "--threads", str(n)], (1, 8), 5
    ),
    "saq": Framework(SAQ, lambda n: ["saq", "tasks.settings"], (10, 100), 5),
}
JQD_CONCURRENCIES: Final = (10, 100, 500)


class Memory(Redis):
    """Redis that keeps nothing on a disk: as fast as it can be."""

    def argv(self) -> list[str]:
        return [
            *(
                shutil.which("redis-server") or "redis-server",
                "--bind",
                "127.0.0.1",
                "--port",
                str(self.port),
            ),
            *("--dir", self.dir, "--save", "", "--appendonly", "no"),
        ]


class Notes:
    """A program in a directory of its own, its workers, and the lines that its tasks have written."""

    def __init__(self, server: Program, source: str, environ: dict[str, str], last: int) -> None:
        self.directory = Path(server.dir, "program")
        self.directory.mkdir(exist_ok=True)
        (self.directory / "note.py").write_text(dedent(NOTE))
        (self.directory / "tasks.py").write_text(dedent(source))
        self._file = self.directory / "notes"
        self._file.write_text("")
        kept = {name: value for name, value in os.environ.items() if not name.startswith("JQD_")}
        self.environ = {
            **kept,
            "PYTHONPATH": f"{self.directory}:{ROOT}",
            "PATH": f"{ENVIRONMENT / 'bin'}:{os.environ['PATH']}",
            "NOTES": str(self._file),
            "LAST": str(last),
            **environ,
        }

    def lines(self) -> list[list[float]]:
        return [list(map(float, line.split())) for line in self._file.read_text().splitlines()]

    def until(self, done: Callable[[list[list[float]]], object]) -> list[list[float]]:
        """Wait for lines."""
        deadline_s = time.monotonic() + PATIENCE_S
        while not done(lines := self.lines()):
            interrupt.check()
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"no end after {PATIENCE_S:g} s; see {self.directory}")
            time.sleep(0.01)
        return lines

    @contextlib.contextmanager
    def worker(self, argv: list[str]) -> Iterator["subprocess.Popen[bytes]"]:
        """Run a worker; killed with all that it forked."""
        with open(self.directory / "log", "ab") as log:
            process = subprocess.Popen(
                argv,
                cwd=self.directory,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def has_lines(count: int, lines: list[list[float]]) -> bool:
    return len(lines) == count


def jqd_worker(*flags: str) -> list[str]:
    return [sys.executable, "-m", "jqd", "worker", "tasks:app", "--log-level", "warning", *flags]


def url_of(server: Server) -> str:
    return f"jqd://127.0.0.1:{server.port}"


def fill(server: Server, jobs: int) -> None:
    """Submit tasks that do nothing."""
    app = App(url_of(server))

    @app.task(name="noop")
    async def noop(n: int) -> None:
        """The worker has it."""

    for first in range(0, jobs, JOBS_PER_REQUEST_MAX):
        noop.map_sync(range(first, min(jobs, first + JOBS_PER_REQUEST_MAX)))
    app.close_sync()


def rate_of(lines: list[list[float]], jobs: int) -> dict[str, float]:
    """Make figures of the first and the last call."""
    (begun_at, _, cpu_begun, _), (ended_at, _, cpu_ended, _) = lines[0], lines[-1]
    return {
        "jobs_per_s": (jobs - 1) / (ended_at - begun_at),
        "worker_us": (cpu_ended - cpu_begun) / (jobs - 1) * 1e6,
    }


def measure_jqd(data: str, concurrency: int) -> dict[str, float]:
    with Server(data) as server:
        fill(server, JQD_JOBS)
        notes = Notes(server, JQD, {"JQD_URL": url_of(server)}, JQD_JOBS)
        before = sum(server.cpu_s())
        with notes.worker(jqd_worker("-c", str(concurrency))):
            lines = notes.until(lambda lines: lines and lines[-1][1] == JQD_JOBS)
        return rate_of(lines, JQD_JOBS) | {"server_us": (sum(server.cpu_s()) - before) / JQD_JOBS * 1e6}


def measure_peer(data: str, peer: str, concurrency: int) -> dict[str, float]:
    framework = PEERS[peer]
    with Memory(data) as server:
        url = f"redis://127.0.0.1:{server.port}/0"
        environ = {"REDIS_URL": url, "CONCURRENCY": str(concurrency)}
        notes = Notes(server, framework.source, environ, PEER_JOBS)
        python = str(ENVIRONMENT / "bin" / "python")
        subprocess.run(
            [python, "tasks.py", str(PEER_JOBS)], cwd=notes.directory, env=notes.environ, check=True
        )
        before = sum(server.cpu_s())
        with notes.worker(framework.argv(concurrency)):
            lines = notes.until(lambda lines: lines and lines[-1][1] == PEER_JOBS)
        return rate_of(lines, PEER_JOBS) | {"server_us": (sum(server.cpu_s()) - before) / PEER_JOBS * 1e6}


def best(measured: dict[int, dict[str, float]]) -> tuple[int, dict[str, float]]:
    return max(measured.items(), key=lambda item: item[1]["jobs_per_s"])


def beside(peer: str) -> Callable[[str, int], dict[str, Any]]:
    """Measure jqd and a framework in turns."""

    def measure(data: str, runs: int) -> dict[str, Any]:
        install()
        pairs = []
        for _ in range(runs):
            jqd = {each: measure_jqd(data, each) for each in JQD_CONCURRENCIES}
            other = {each: measure_peer(data, peer, each) for each in PEERS[peer].concurrencies}
            pairs.append((jqd, other))
        of_rates = [best(jqd)[1]["jobs_per_s"] / best(other)[1]["jobs_per_s"] for jqd, other in pairs]
        ratio, asked = statistics.median(of_rates), PEERS[peer].asked
        sides = [f"{name} {_shown(side)}" for name, side in zip(("jqd", peer), pairs[-1], strict=True)]
        verdict = "reached" if ratio >= asked else "MISSED"
        return {
            "line": f"{ratio:.1f} x (>= {asked:g} asked, {verdict}); last run: {'; '.join(sides)}",
            "ratio": ratio,
            "pairs": pairs,
        }

    return measure


def _shown(side: dict[int, dict[str, float]]) -> str:
    return ", ".join(
        f"-c {n}: {figures['jobs_per_s']:,.0f}/s ({figures['worker_us']:.0f} + {figures['server_us']:.0f} us)"
        for n, figures in side.items()
    )


def install() -> None:
    """Make the environment of the frameworks, once."""
    stamp = ENVIRONMENT / "installed"
    wanted = "\n".join(FRAMEWORKS)
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print(f"installing {', '.join(FRAMEWORKS)} into {ENVIRONMENT}", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)], check=True)
    subprocess.run([str(ENVIRONMENT / "bin" / "pip"), "install", "--quiet", *FRAMEWORKS], check=True)
    stamp.write_text(wanted)


def start_time(data: str, runs: int) -> dict[str, Any]:
    """Submit START_RATE jobs a second one by one to a waiting worker."""

    async def submit(url: str, jobs: int) -> None:
        async with AsyncClient(url) as client:
            app = App(url)

            @app.task(name="started")
            async def started(at: float) -> None:
                """The worker has it."""

            async def one() -> None:
                await started.submit(time.monotonic())

            await client.ping()
            asked: set[asyncio.Task[None]] = set()
            begun_at = time.monotonic()
            for n in range(jobs):
                due_s = begun_at + n / START_RATE - time.monotonic()
                if due_s > 0:
                    await asyncio.sleep(due_s)
                task = asyncio.create_task(one())
                asked.add(task)
                task.add_done_callback(asked.discard)
            await asyncio.gather(*asked)
            await app.close()

    times: list[float] = []
    for _ in range(runs):
        with Server(data) as server:
            notes = Notes(server, JQD, {"JQD_URL": url_of(server)}, 0)
            with notes.worker(jqd_worker("-c", "100")):
                asyncio.run(submit(url_of(server), 1))
                notes.until(partial(has_lines, 1))  # the worker is there
                asyncio.run(submit(url_of(server), START_JOBS))
                lines = notes.until(partial(has_lines, START_JOBS + 1))[1:]
        times += [line[0] * 1e3 for line in lines]
    p50, p99 = statistics.median(times), statistics.quantiles(times, n=100)[98]
    return {
        "line": f"p50 {p50:.2f} ms (< 0.5 asked), p99 {p99:.2f} ms (< 3 asked)",
        "p50_ms": p50,
        "p99_ms": p99,
    }


def kill_time(data: str, runs: int) -> dict[str, Any]:
    """Kill the worker that holds a job while another one waits, KILLS times."""
    times: list[float] = []
    for _ in range(runs):
        with Server(data) as server, contextlib.ExitStack() as stack:
            notes = Notes(server, JQD, {"JQD_URL": url_of(server)}, 0)
            app = App(url_of(server))

            @app.task(name="hang")
            async def hang() -> None:
                """The workers have it."""

            workers = {}
            for _ in range(2):
                process = stack.enter_context(notes.worker(jqd_worker("-c", "1")))
                workers[process.pid] = process
            for n in range(KILLS):
                hang.submit_sync()
                lines = notes.until(partial(has_lines, 2 * n + 1))
                holder = workers.pop(int(lines[-1][1]))
                holder.kill()
                killed_at = time.monotonic()
                lines = notes.until(partial(has_lines, 2 * n + 2))
                times.append((lines[-1][0] - killed_at) * 1e3)
                # The one that has it now goes as well, with its job, and two new ones come.
                last = workers.pop(int(lines[-1][1]))
                job = next(iter(app.client.list(filter="state = leased").jobs))
                app.client.cancel(job.job_id, running=True)
                last.kill()
                for _ in range(2):
                    process = stack.enter_context(notes.worker(jqd_worker("-c", "1")))
                    workers[process.pid] = process
            app.close_sync()
    p50, p99 = statistics.median(times), statistics.quantiles(times, n=100)[98]
    line = f"p50 {p50:.0f} ms, p99 {p99:.0f} ms (<= 1,000 asked: the grace of 500 ms and as much again)"
    return {"line": line, "p50_ms": p50, "p99_ms": p99}


def memory(data: str, runs: int) -> dict[str, Any]:
    """Watch a worker's memory over a million jobs."""
    with Server(data) as server:
        fill(server, RSS_JOBS)
        notes = Notes(server, JQD, {"JQD_URL": url_of(server)}, RSS_JOBS)
        with notes.worker(jqd_worker("-c", "500")):
            lines = notes.until(lambda lines: lines and lines[-1][1] == RSS_JOBS)
    early, last = lines[1][3] / (1 << 20), lines[-1][3] / (1 << 20)
    line = f"{early:.1f} MiB after 100,000 jobs, {last:.1f} MiB after {RSS_JOBS:,}"
    return {"line": line, "early_mib": early, "last_mib": last}


ROWS: Final[dict[str, Callable[[str, int], dict[str, Any]]]] = {
    **{f"tasks_{peer}": beside(peer) for peer in PEERS},
    "tasks_start": start_time,
    "tasks_kill": kill_time,
    "tasks_rss": memory,
}

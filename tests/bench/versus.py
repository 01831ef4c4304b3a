"""jqd beside beanstalkd and Redis: the same load on each in turns, and the ratios of one run.

Knows:         the workloads, what ratio is asked of jqd in each, how pairs are made and shown.
Must not know: how a server is started (peers.py), a protocol (dialects.py), how load is made (load.py).

On a shared machine a rate says little and a neighbour's rate of two seconds ago says more: jqd and one peer run a
workload in turns, each time with a new server and a new directory, and each two neighbours make one ratio. The
median of these counts. After every run the server is asked what it still has: a job that was submitted and is not
there, or was acked and is not gone, ends the benchmark.
"""

import asyncio
import statistics
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import uvloop

from tests.bench.dialects import Counts
from tests.bench.figures import CLIENT_SHARE_MAX, Figures, figures
from tests.bench.load import Frames, Meter, Paced, Producer, Supply, Talk, Worker, connected, play
from tests.bench.peers import Beanstalkd, Contestant, Jqd, Redis

PEERS: Final[Mapping[str, type[Contestant]]] = {peer.name: peer for peer in (Beanstalkd, Redis)}

MANY: Final = 1_000
WINDOW: Final = 500
# What fits into the memory of a small machine, some 600 MB; a run by time that gets there ends early.
JOBS_MAX: Final = 2_000_000
# What a drain finds; a run by time that has taken all of it ends early.
BACKLOG: Final = 400_000
STREAM_WINDOW: Final = 250
STREAM_BATCH: Final = 100
LATENCY_RATE: Final = 1_000  # jobs a second
LATENCY_PRODUCERS: Final = 4
LATENCY_WORKERS: Final = 8
# The part of the latencies that is left out at the beginning: a server that has just started.
WARM_UP: Final = 0.1


@dataclass(frozen=True)
class Size:
    """How long a run goes on: for so many seconds, or for so many jobs (then what it counts is exact)."""

    seconds: float | None = None
    jobs: int | None = None

    def supply(self, jobs_max: int = JOBS_MAX) -> Supply:
        return Supply(min(self.jobs or jobs_max, jobs_max), self.seconds)


@dataclass(frozen=True)
class Workload:
    """One thing to do to every server.

    Attributes:
        measure: one run on a new server.
        asked: the ratio to each peer that jqd should reach; None: none was agreed. A peer that is not there
            cannot do it.
        figure: of what `measure` returns, the one whose ratio counts: a rate is to be at least what
            is asked, a time at most.
    """

    name: str
    what: str
    measure: Callable[[Contestant, Size], Figures]
    asked: Mapping[str, float | None]
    figure: str = "jobs_per_s"


# --- one run ------------------------------------------------------------------------------------


def submits(connections: int, window: int, jobs: int = 1) -> Callable[[Contestant, Size], Figures]:
    """Measure submits: so many connections, each with so many requests in flight, so many jobs in each."""

    async def run(server: Contestant, size: Size) -> Figures:
        supply = size.supply()
        frames = Frames(server.dialect(), jobs)
        span = await play(
            server,
            [Producer(server.dialect(), supply, frames, window) for _ in range(connections)],
            supply,
        )
        check(server, Counts(waiting=supply.done, leased=0))
        return figures(span, supply.done)

    return in_loop(run)


def drains(connections: int, batch: int) -> Callable[[Contestant, Size], Figures]:
    """Measure lease and ack of jobs that are there: so many connections, each so many jobs at a time."""

    async def run(server: Contestant, size: Size) -> Figures:
        backlog = min(size.jobs or BACKLOG, server.backlog_max or BACKLOG)
        await fill(server, backlog)
        supply = size.supply(backlog)
        span = await play(
            server,
            [Worker(server.dialect(), supply, batch, wait=False) for _ in range(connections)],
            supply,
        )
        check(server, Counts(waiting=backlog - supply.done, leased=0))
        return figures(span, supply.done)

    return in_loop(run)


async def stream(server: Contestant, size: Size) -> Figures:
    """Measure the jobs that are acked while producers submit; what is left is then acked too, and not counted.

    Producers have 500 jobs in flight and workers 400, which take two requests to get done: where replies come
    in waves, as each sync lets them go, some 2.5 times as many jobs are submitted as are acked.
    """
    submitted, acked = size.supply(), Supply(sys.maxsize)
    frames = Frames(server.dialect())
    producers = [Producer(server.dialect(), submitted, frames, STREAM_WINDOW) for _ in range(2)]
    workers = [Worker(server.dialect(), acked, STREAM_BATCH, wait=True) for _ in range(4)]
    # A worker that fails ends the run.
    async with connected(server, [*producers, *workers]), asyncio.TaskGroup() as group:
        meter = Meter(server)
        submitted.begin()
        for worker in workers:
            worker.start()
            group.create_task(finished(worker))
        for producer in producers:
            producer.start()
        for producer in producers:
            await producer.finished
        if size.seconds is None:
            await acked.reach(submitted.done)
        jobs, span = acked.done, meter.span()
        await acked.reach(submitted.done)
        for worker in workers:
            worker.finish()
    check(server, Counts(waiting=0, leased=0))
    return {
        **figures(span, jobs),
        "submitted": submitted.done,
        "submitted_per_s": submitted.done / span.wall_s,
    }


async def latency(server: Contestant, size: Size) -> Figures:
    """Measure the time from just before a submit is sent until a waiting worker has read the job."""
    submitted, acked = size.supply(), Supply(sys.maxsize)
    times: list[int] = []
    producers = [Paced(server.dialect(), submitted) for _ in range(LATENCY_PRODUCERS)]
    workers = [Worker(server.dialect(), acked, 1, wait=True, times=times) for _ in range(LATENCY_WORKERS)]
    async with connected(server, [*producers, *workers]), asyncio.TaskGroup() as group:
        for line in (*workers, *producers):
            line.start()
            group.create_task(finished(line))
        meter, begun_s, sent = Meter(server), time.perf_counter(), 0
        submitted.begin()
        while submitted.left:
            due = int((time.perf_counter() - begun_s) * LATENCY_RATE) + 1 - sent
            for _ in range(submitted.take(due)):
                producers[sent % LATENCY_PRODUCERS].submit()
                sent += 1
            await asyncio.sleep(1 / LATENCY_RATE)
        await submitted.reach(sent)
        await acked.reach(sent)
        span = meter.span()
        for line in (*workers, *producers):
            line.finish()
    check(server, Counts(waiting=0, leased=0))
    counted = sorted(times[int(sent * WARM_UP) :])
    return {
        **figures(span, sent),
        "p50_us": counted[len(counted) // 2] / 1_000,
        "p99_us": counted[len(counted) * 99 // 100] / 1_000,
    }


# --- parts of a run -----------------------------------------------------------------------------


def in_loop(
    run: Callable[[Contestant, Size], Coroutine[Any, Any, Figures]],
) -> Callable[[Contestant, Size], Figures]:
    """Run it in an event loop of its own."""

    def measure(server: Contestant, size: Size) -> Figures:
        return uvloop.run(run(server, size))

    return measure


async def finished(line: Talk) -> None:
    """Wait until it has nothing left to do, or fails."""
    await line.finished


async def fill(server: Contestant, jobs: int) -> None:
    """Put jobs into the queue as fast as it takes them."""
    many = min(MANY, jobs) if server.takes_many else 1
    supply = Supply(jobs)
    frames = Frames(server.dialect(), many)
    with server.filling():
        await play(server, [Producer(server.dialect(), supply, frames, WINDOW if many == 1 else 1)])
    check(server, Counts(waiting=jobs, leased=0))


def check(server: Contestant, expected: Counts) -> None:
    """Refuse to count a run whose jobs are not where they should be."""
    counts = server.counts()
    if counts != expected:
        raise RuntimeError(f"{server.name} has {counts}, and should have {expected}")


# --- the table ----------------------------------------------------------------------------------

WORKLOADS: Final = (
    Workload(
        "vs_submit",
        "submit, 1 connection in lock step",
        submits(1, 1),
        {"beanstalkd": 0.5, "redis": None},
    ),
    Workload(
        "vs_submit_50",
        "submit, 50 connections in lock step",
        submits(50, 1),
        {"beanstalkd": 2.5, "redis": 0.5},
    ),
    Workload(
        "vs_submit_pipelined",
        f"submit, 1 connection, {WINDOW} in flight",
        submits(1, WINDOW),
        {"beanstalkd": 10, "redis": 0.4},
    ),
    Workload("vs_submit_many", f"submit, {MANY:,} jobs a request", submits(1, 1, MANY), {"redis": 1}),
    Workload(
        "vs_lease_1_50",
        "lease + ack one by one, 50 connections",
        drains(50, 1),
        {"beanstalkd": None, "redis": None},
    ),
    Workload(
        "vs_lease_100_10",
        "lease + ack, 100 at a time, 10 connections",
        drains(10, 100),
        {"beanstalkd": None, "redis": 1.5},
    ),
    Workload(
        "vs_stream",
        f"2 producers with {STREAM_WINDOW} in flight, 4 workers with {STREAM_BATCH} at a time, jobs acked",
        in_loop(stream),
        {"beanstalkd": None, "redis": 1},
    ),
    Workload(
        "vs_latency",
        f"submit to waiting worker at {LATENCY_RATE:,} jobs/s, p50",
        in_loop(latency),
        {"beanstalkd": None, "redis": None},
        figure="p50_us",
    ),
)

HEADING: Final = (
    f"{'workload':<20} {'jqd : peer':<11} {'ratio':>6} {'min..max':>13} {'asked':>8} {'':<7} {'CPU/job':>7}"
    "  medians: jqd, peer"
)


def run_once(workload: Workload, contestant: type[Contestant], size: Size, data: str) -> Figures:
    """Run a workload on a new server."""
    with contestant(data) as server:
        return workload.measure(server, size)


def compare(workload: Workload, peer: str, size: Size, data: str, runs: int) -> dict[str, Any]:
    """Run jqd and a peer in turns, print the row of their ratios, and return everything."""
    pairs = [
        (run_once(workload, Jqd, size, data), run_once(workload, PEERS[peer], size, data))
        for _ in range(runs)
    ]
    result = ratios(workload, peer, pairs)
    print(row(result, pairs), flush=True)
    return result


def ratios(workload: Workload, peer: str, pairs: Sequence[tuple[Figures, Figures]]) -> dict[str, Any]:
    """Make the ratios of neighbours, and hold them against what is asked."""
    of_figure = [jqd[workload.figure] / other[workload.figure] for jqd, other in pairs]
    # A run that took less than a tick of the kernel's clock has no CPU to divide by.
    of_cpu = [jqd["value"] / other["value"] for jqd, other in pairs if other["value"]]
    ratio, asked = statistics.median(of_figure), workload.asked[peer]
    return {
        "name": workload.name,
        "what": workload.what,
        "peer": peer,
        "figure": workload.figure,
        "ratio": ratio,
        "ratio_min": min(of_figure),
        "ratio_max": max(of_figure),
        "asked": asked,
        "reached": None if asked is None else ratio <= asked if is_time(workload.figure) else ratio >= asked,
        "cpu_ratio": statistics.median(of_cpu) if of_cpu else None,
        "pairs": [{"jqd": jqd, peer: other} for jqd, other in pairs],
    }


def is_time(figure: str) -> bool:
    """Tell whether less of a figure is better."""
    return figure.endswith("_us")


def row(result: dict[str, Any], pairs: Sequence[tuple[Figures, Figures]]) -> str:
    """Show a result in a line."""
    sign = "<=" if is_time(result["figure"]) else ">="
    asked = "-" if result["asked"] is None else f"{sign} {result['asked']:g}"
    verdict = {None: "", True: "reached", False: "MISSED"}[result["reached"]]
    cpu = "-" if result["cpu_ratio"] is None else f"{result['cpu_ratio']:.2f}"
    spread = f"{result['ratio_min']:.2f}..{result['ratio_max']:.2f}"
    more: list[str] = []
    for side in (0, 1):
        middle = {key: statistics.median(pair[side][key] for pair in pairs) for key in pairs[0][side]}
        shown = (
            f"{middle['p50_us']:,.0f} us (p99 {middle['p99_us']:,.0f} us)"
            if is_time(result["figure"])
            else f"{middle['jobs_per_s']:,.0f}/s"
        )
        if "submitted_per_s" in middle:
            shown += f" (submitted {middle['submitted_per_s']:,.0f}/s)"
        bound = ", THE GENERATOR'S RATE" if middle["client_share"] > CLIENT_SHARE_MAX else ""
        more.append(f"{shown} {middle['value']:.1f} us CPU, client {middle['client_share']:.2f}{bound}")
    return (
        f"{result['name']:<20} {result['peer']:<11} {result['ratio']:>6.2f} {spread:>13} {asked:>8} {verdict:<7}"
        f" {cpu:>7}  {'; '.join(more)}"
    )

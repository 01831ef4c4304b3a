"""What jqd costs, path by path: the first table of docs/performance.md.

Knows:         the paths, their budgets, how a path is measured, how a result is shown.
Must not know: bytes of the protocol (wire.py), how load is made (load.py).

Server CPU per job counts (user and system time of the daemon, all threads); the rate is a by-product of who else
uses the machine. Every repetition has a daemon and a data directory of its own, with jqd's defaults. On a shared
machine the minimum says what the code costs; the distance to the median says how quiet the machine was.
"""

import gc
import socket
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import uvloop

from tests.bench import interrupt, wire
from tests.bench.figures import CLIENT_SHARE_MAX, Figures, figures
from tests.bench.load import LeaseAck, Replay, Span, new_session, play
from tests.bench.server import Server

PAYLOAD: Final = (
    b"%016x" % 1 + b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ" + b"0123456789" * 3 + b"jk"
)
assert len(PAYLOAD) == 100
SUBMIT: Final = wire.request("submit", {"payload": PAYLOAD})
MANY: Final = 1_000
SUBMIT_MANY: Final = wire.request("submit_many", {"groups": [{"payloads": [PAYLOAD] * MANY}]})
WINDOW: Final = 500
# Requests are made beforehand: at most so many jobs' worth of them at a time.
ROUND: Final = 1_000_000
GROWTH_SMALL: Final = 10_000
GROWTH_ROUNDS: Final = 3


@dataclass(frozen=True)
class Options:
    """How a path is to be measured."""

    jobs: int
    session: bool
    data: str


@dataclass(frozen=True)
class Row:
    """One row: what is done, how much of it, and what it may cost.

    Attributes:
        unit: of the figure that counts.
        budget: what it should reach; None: there is no agreed figure.
        measure: makes one repetition; its figure `value` counts.
    """

    name: str
    what: str
    unit: str
    budget: float | None
    jobs: int
    measure: Callable[[Options], Figures]


# --- one repetition -----------------------------------------------------------------------------


def submits(connections: int, window: int) -> Callable[[Options], Figures]:
    """Measure single submits: so many connections, each with so many in flight."""

    def measure(options: Options) -> Figures:
        each = options.jobs // connections

        async def run(server: Server) -> Span:
            lanes = [
                Replay(new_session(wanted=options.session), SUBMIT, each, window) for _ in range(connections)
            ]
            return await play(server, lanes)

        with Server(options.data) as server:
            return figures(uvloop.run(run(server)), each * connections)

    return measure


def submit_many(options: Options) -> Figures:
    """Measure requests of MANY jobs on one connection."""
    with Server(options.data) as server:
        return figures(fill(server, options.jobs, session=options.session), options.jobs)


def leases(connections: int, batch: int) -> Callable[[Options], Figures]:
    """Measure lease and ack in lock step: so many connections, each so many jobs a request."""

    def measure(options: Options) -> Figures:
        with Server(options.data) as server:
            fill(server, options.jobs)
            return drain(server, options.jobs, connections, batch, session=options.session)

    return measure


def memory(fill_: Callable[..., Span]) -> Callable[[Options], Figures]:
    """Measure resident memory a ready job."""

    def measure(options: Options) -> Figures:
        with Server(options.data) as server:
            before = server.rss_bytes()
            fill_(server, options.jobs, session=options.session)
            return {
                "value": (server.rss_bytes() - before) / options.jobs,
                "empty_mib": before / (1 << 20),
                "log_bytes_per_job": server.log_bytes() / options.jobs,
            }

    return measure


def restart(fill_: Callable[..., Span], *, snapshot: bool = False) -> Callable[[Options], Figures]:
    """Measure the time from the start of a killed daemon to the first lease answered.

    Args:
        snapshot: the daemon reads a snapshot of all jobs; else a log that has none.
    """
    settings = {"snapshot_bytes": "1024GiB"}  # the most there is: none is made unasked

    def measure(options: Options) -> Figures:
        with Server(options.data, settings) as server:
            empty = server.rss_bytes()
            begun_s = time.perf_counter()
            for begin in range(0, options.jobs, ROUND):
                fill_(server, min(ROUND, options.jobs - begin), session=options.session)
            figures_: Figures = {"fill_s": time.perf_counter() - begun_s}
            full = server.rss_bytes()
            if snapshot:
                begun_s = time.perf_counter()
                ask(server, wire.request("snapshot", {}))
                while not server.snapshot_bytes():
                    interrupt.check()
                    time.sleep(0.002)
                figures_["snapshot_s"] = time.perf_counter() - begun_s
                figures_["snapshot_bytes_per_job"] = server.snapshot_bytes() / options.jobs
            server.kill()
            log_bytes = server.log_bytes()
            begun_s = time.perf_counter()
            server.start()
            reply = ask(server, wire.request("lease", {"count": 1}))
            took_s = time.perf_counter() - begun_s
            assert len(wire.leased(reply).jobs) == 1
            return {
                "value": took_s,
                "cpu_s": sum(server.cpu_s()),
                **figures_,
                "log_bytes_per_job": log_bytes / options.jobs,
                "rss_bytes_per_job": (server.rss_bytes() - empty) / options.jobs,
                "rss_peak_to_before": server.rss_bytes_max() / full,
                "rss_after_to_before": server.rss_bytes() / full,
            }

    return measure


def growth(connections: int, batch: int) -> Callable[[Options], Figures]:
    """Measure lease and ack with many and with few jobs in the queue, in turns: neighbours compare best."""

    def measure(options: Options) -> Figures:
        part = GROWTH_SMALL if batch == 1 else 5 * GROWTH_SMALL
        with Server(options.data) as small, Server(options.data) as large:
            cpu: dict[Server, list[float]] = {small: [], large: []}
            fill(small, GROWTH_SMALL)
            fill(large, options.jobs)
            for _ in range(GROWTH_ROUNDS):
                for server, costs in cpu.items():
                    fill(server, part)
                    costs.append(drain(server, part, connections, batch, session=options.session)["value"])
        ratios = [one / other for one, other in zip(cpu[large], cpu[small], strict=True)]
        return {
            "value": min(cpu[large]) / min(cpu[small]),
            "median_of_neighbours": statistics.median(ratios),
            "small_us": min(cpu[small]),
            "large_us": min(cpu[large]),
        }

    return measure


# --- parts of a repetition ----------------------------------------------------------------------


def ask(server: Server, request: bytes) -> bytes:
    """Send one request over a connection of its own; return the body of its reply, which says `ok`."""
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(wire.hello(None) + request)
        replies: list[bytes] = []
        data = b""
        while len(replies) < 2:
            data += connection.recv(1 << 16)
            replies, _ = wire.cut(data)
    wire.check_all(replies)
    return replies[1]


def fill(server: Server, jobs: int, *, session: bool = False) -> Span:
    """Put jobs into the queue, MANY a request."""

    async def run() -> Span:
        return await play(server, [Replay(new_session(wanted=session), SUBMIT_MANY, jobs // MANY, 1)])

    return uvloop.run(run())


def fill_one_by_one(server: Server, jobs: int, *, session: bool = False) -> Span:
    """Put jobs into the queue, one a request, as a pipelining producer does."""

    async def run() -> Span:
        return await play(server, [Replay(new_session(wanted=session), SUBMIT, jobs, WINDOW)])

    return uvloop.run(run())


def drain(server: Server, jobs: int, connections: int, batch: int, *, session: bool) -> Figures:
    """Lease and ack jobs that are there."""
    each = jobs // connections // batch * batch

    async def run() -> Span:
        lanes = [LeaseAck(new_session(wanted=session), each, batch) for _ in range(connections)]
        return await play(server, lanes)

    return figures(uvloop.run(run()), each * connections)


# --- the table ----------------------------------------------------------------------------------

US: Final = "us CPU/job"
ROWS: Final = (
    Row("submit", "submit, 1 connection in lock step", US, 60, 10_000, submits(1, 1)),
    Row("submit_50", "submit, 50 connections in lock step", US, 16, 100_000, submits(50, 1)),
    Row("submit_pipelined", f"submit, 1 connection, {WINDOW} in flight", US, 4, 300_000, submits(1, WINDOW)),
    Row("submit_many", f"submit_many of {MANY:,}", US, 0.8, 1_000_000, submit_many),
    Row("lease_1000", "lease 1,000 + ack 1,000, 1 connection", US, 2, 300_000, leases(1, 1_000)),
    Row("lease_100", "lease 100 + ack 100, 1 connection", US, 3, 200_000, leases(1, 100)),
    Row("lease_100_10", "lease 100 + ack 100, 10 connections", US, 3, 200_000, leases(10, 100)),
    Row("lease_1_50", "lease + ack one by one, 50 connections", US, None, 50_000, leases(50, 1)),
    Row("memory_many", "RSS a ready job, by submit_many", "bytes/job", 450, 1_000_000, memory(fill)),
    Row("memory_single", "RSS a ready job, by submit", "bytes/job", 450, 1_000_000, memory(fill_one_by_one)),
    Row(
        "growth_1",
        "lease + ack one by one, 1 M : 10 k jobs in the queue",
        "ratio",
        1.3,
        1_000_000,
        growth(50, 1),
    ),
    Row("growth_100", "lease 100 + ack 100, 1 M : 10 k jobs", "ratio", 1.3, 1_000_000, growth(10, 100)),
    Row("restart_many", "kill -9 to first lease, 1 M by submit_many", "s", 5, 1_000_000, restart(fill)),
    Row(
        "restart_single", "kill -9 to first lease, 1 M by submit", "s", 5, 1_000_000, restart(fill_one_by_one)
    ),
    Row(
        "restart_snapshot",
        "kill -9 to first lease, 1 M in a snapshot",
        "s",
        2,
        1_000_000,
        restart(fill, snapshot=True),
    ),
)


HEADING: Final = f"{'path':<17} {'min':>9} {'median':>9} {'budget':>6} {'unit':<19}{'best rate':>13}  of the best repetition"


def run_path(path: Row, options: Options, runs: int) -> dict[str, Any]:
    """Measure one path and print its row."""
    rows: list[Figures] = []
    for _ in range(runs):
        rows.append(path.measure(options))
        gc.collect()  # a hundred megabytes of requests made beforehand
    values = [row["value"] for row in rows]
    low, middle = min(values), statistics.median(values)
    best = rows[values.index(low)]
    verdict = "" if path.budget is None else "reached" if low <= path.budget else "MISSED"
    more = ", ".join(
        f"{key} {number:,.2f}" for key, number in best.items() if key not in ("value", "jobs", "jobs_per_s")
    )
    rate = f"{max(row['jobs_per_s'] for row in rows):>11,.0f}/s" if "jobs_per_s" in best else " " * 13
    if best.get("client_share", 0) > CLIENT_SHARE_MAX:
        more += " (the generator is the bottleneck of the rate)"
    budget = "-" if path.budget is None else f"{path.budget:g}"
    print(
        f"{path.name:<17} {low:>9.2f} {middle:>9.2f} {budget:>6} {path.unit:<11}{verdict:<8}{rate}  {more}",
        flush=True,
    )
    return {
        "name": path.name,
        "what": path.what,
        "unit": path.unit,
        "budget": path.budget,
        "min": low,
        "median": middle,
        "runs": rows,
    }

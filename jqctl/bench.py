"""`jqctl bench`: measure a running daemon, as somebody would before trusting it.

Knows:         the options, which queue may be used, what is cleaned up, which figures come out.
Must not know: how load is made (jqd.client.load), what the kernel says about a process (process.py).

A benchmark must not hurt: it takes a queue that has no jobs, ends nobody's jobs but its own, and removes what it
has put in, after Ctrl-C too. Jobs that were acked stay as done for as long as the daemon keeps finished ones.
"""

# ruff: noqa: D301 - click reads the backspace itself, before a paragraph that is not to be filled

import contextlib
import functools
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import click

from jqctl import output
from jqctl.group import QUEUE as QUEUE_NAME
from jqctl.group import Settings, cli, common, verb
from jqctl.queues import find
from jqd.errors import ConnectionLost, InvalidArgument, JqdError, QueueNotFound, WrongState

if TYPE_CHECKING:
    from jqctl.connect import Connection
    from jqctl.process import Cpu
    from jqd.client.load import Kind, Load, Plan, Span
    from jqd.client.requests import ServerStats

QUEUE: Final = "jqctl-bench"
# Above this share of a core the generator decides the rate, not the daemon.
_CLIENT_SHARE_MAX: Final = 0.9
# Fewer steps of the kernel's clock than that are too coarse: 2 % off.
_CPU_STEPS_MIN: Final = 50
# The limits of jqd.client.load, which is not loaded for the sake of a help text; a test compares them.
CLIENTS_MAX: Final = 1_000
IN_FLIGHT_MAX: Final = 1_024
JOBS_PER_REQUEST_MAX: Final = 10_000
PAYLOAD_BYTES_MAX: Final = 1 << 20
JOBS_MAX: Final = 10_000_000
STAMP_BYTES: Final = 16

_LIVE: Final = ("delayed", "ready", "leased", "dead")
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)

Verb = Callable[..., int | None]


def _sizes(*, jobs: int, clients: int, batch: int, payload_bytes: int = 0) -> Callable[[Verb], Verb]:
    """Return the options that say how much; here are their defaults."""

    def decorate(function: Verb) -> Verb:
        for name, least, default, most, text in (
            ("--pid", 1, None, None, "The daemon's process, where it does not tell: for its CPU time."),
            ("--jobs", 1, jobs, JOBS_MAX, "In all."),
            ("--payload-bytes", payload_bytes, 100, PAYLOAD_BYTES_MAX, "Size of each payload."),
            ("--batch", 1, batch, JOBS_PER_REQUEST_MAX, "Jobs a request."),
            ("--pipeline", 1, 1, IN_FLIGHT_MAX, "Requests in flight on each connection."),
            ("--clients", 1, clients, CLIENTS_MAX, "Connections."),
        ):
            option = click.option(
                name, type=click.IntRange(least, most), default=default, show_default=True, help=text
            )
            function = option(function)
        return click.option(
            "--queue", type=QUEUE_NAME, default=QUEUE, show_default=True, help="A queue without jobs."
        )(function)

    return decorate


@cli.group()
@common
def bench() -> None:
    """Measure a running daemon: jobs a second, latency, CPU time and syncs.

    \b
    Examples:
      jqctl bench submit                             producers that wait for each reply
      jqctl bench submit --clients 1 --pipeline 500  a producer that does not
      jqctl bench lease --batch 1000                 workers that take jobs that are there
      jqctl bench mixed --clients 10 -o json         both at once: submit to lease to ack

    It works in a queue of its own, jqctl-bench, and takes no queue that has jobs. It ends no jobs but its own, and
    purges those that it does not ack, after Ctrl-C too; those that it acks stay as done for the hour (at most
    100,000 a queue) that finished jobs are kept. But the daemon is the one that you use: others wait longer
    meanwhile, each job is written to its log, and waiting jobs are in its memory.

    \b
    What is shown:
      jobs, seconds, jobs_per_s              of the measured part, from the first request to the last reply
      latency_p50_us, latency_p99_us         of a request, as the client sees it
      submit_to_lease_p50_us, ..._p99_us     mixed: from the sending of submit to the arrival of the lease
      server_cpu_us_per_job                  of all threads, user and system, from /proc; only on this machine
      client_cpu_share                       of one core; above 0.9 the client is what is measured
      syncs, jobs_per_sync                   of the daemon's log

    The daemon's figures count what others do with it at the same time. Each connection is a session of its own, as
    those of programs are. After Ctrl-C what was measured is shown, and the exit code is 130.
    """


of_bench = functools.partial(verb, group=bench)


@of_bench
@_sizes(jobs=100_000, clients=50, batch=1)
@click.option("--keep", is_flag=True, help="Leave the jobs in the queue.")
def submit(settings: Settings, connection: "Connection", keep: bool, **options: Any) -> int:  # noqa: ANN401 - numbers and a text
    """Measure producers.

    Each connection has --pipeline requests in flight, each of one job (submit) or of --batch jobs
    (submit_many). The jobs are purged afterwards; with --keep they stay, for
    `jqctl bench lease --destroy-existing`.

    \b
    Examples:
      jqctl bench submit
      jqctl bench submit --clients 1 --pipeline 500 --jobs 300000
      jqctl bench submit --clients 4 --batch 1000 --jobs 1000000 --payload-bytes 200
    """
    return _run(settings, connection, _plan("submit", options), options["pid"], keep=keep)


@of_bench
@_sizes(jobs=100_000, clients=10, batch=100)
@click.option(
    "--destroy-existing",
    is_flag=True,
    help="Put no jobs in: take those that are in the queue, whoever they are of. They are gone then, unworked.",
)
def lease(settings: Settings, connection: "Connection", destroy_existing: bool, **options: Any) -> int:  # noqa: ANN401
    """Measure workers on jobs that are there.

    The jobs are put in first, which is not measured. Then each connection leases --batch jobs, acks them in one
    request, and so on; --pipeline such pairs at a time. A latency is that of a lease or of an ack.

    With --destroy-existing it takes up to --jobs jobs that are in the queue already and acks them: nobody will
    work on them.

    \b
    Examples:
      jqctl bench lease
      jqctl bench lease --clients 50 --batch 1
      jqctl bench submit --keep && jqctl bench lease --destroy-existing
    """
    return _run(settings, connection, _plan("lease", options, existing=destroy_existing), options["pid"])


@of_bench
@_sizes(jobs=20_000, clients=10, batch=1, payload_bytes=STAMP_BYTES)
def mixed(settings: Settings, connection: "Connection", **options: Any) -> int:  # noqa: ANN401
    """Measure producers and workers at once.

    There are --clients connections of each. Each job is submitted once, leased once and acked once. As many jobs
    are on their way as the producers may have in flight (clients x pipeline x batch): an ack lets the next one
    in, so that the queue stays short. Workers wait for up to --batch jobs, one request at a time.

    A latency is that of a submit or of an ack; submit_to_lease is how long a job takes to reach its worker.

    \b
    Examples:
      jqctl bench mixed
      jqctl bench mixed --clients 1 --jobs 5000
      jqctl bench mixed --clients 4 --pipeline 10 --batch 100 --jobs 1000000
    """
    return _run(settings, connection, _plan("mixed", options), options["pid"])


def _plan(kind: "Kind", options: Mapping[str, Any], *, existing: bool = False) -> "Plan":
    from jqd.client import load

    sizes = {name: value for name, value in options.items() if name != "pid"}
    plan = load.Plan(kind=kind, existing=existing, **sizes)
    try:
        load.check(plan)
    except InvalidArgument as error:
        raise click.UsageError(output.clean(str(error))) from None
    return plan


# --- a run ------------------------------------------------------------------------------------


def _run(
    settings: Settings, connection: "Connection", plan: "Plan", pid: int | None, *, keep: bool = False
) -> int:
    """Measure, clean up, and show the figures. Returns the exit code."""
    from jqctl import process
    from jqd.client import requests
    from jqd.client.load import Load
    from jqd.client.values import to_ms

    if settings.format == "id":
        raise click.UsageError("-o id: a benchmark has no ids to show")
    remarks: list[str] = []
    if pid is not None:
        try:
            process.cpu(pid)
        except process.Unknown as error:
            raise click.UsageError(str(error)) from None
    _check_queue(connection, plan)
    url = connection.url or ""
    before = connection.call(requests.stats())
    if pid is None:
        try:
            pid = _daemon_pid(url, before)
        except process.Unknown as error:
            advice = "; say --pid" if process.is_near(url) else ""
            remarks.append(f"the daemon's CPU time is not known: {error}{advice}")
    load = Load(
        url,
        plan,
        timeout_s=to_ms("timeout", settings.timeout) / 1_000,
        worker=f"jqctl-bench:{plan.kind}",
        progress=_progress if sys.stderr is not None and sys.stderr.isatty() else None,
    )
    left = f"jobs may be left in the queue {plan.queue}"
    with _stopping(load) as signals:
        try:
            try:
                load.prepare()
                before = connection.call(requests.stats())
                cpu = None if pid is None else process.cpu(pid)
                span = load.measure()
                spent = None if pid is None or cpu is None else process.cpu(pid).since(cpu)
                after = connection.call(requests.stats())
            finally:
                load.close()
                _progress_over(load)
                left = _clean_up(settings, load, keep=keep)
        except process.Unknown as error:  # it ended: the --pid of another process, or the daemon restarted
            raise ConnectionLost(f"{error}; {left}", outcome_unknown=False) from None
        except JqdError as error:
            error.message = f"{error.message}; after {load.done} of {plan.jobs} jobs; {left}"
            error.args = (error.message,)
            raise
        except KeyboardInterrupt:
            output.say(left)
            raise
    if not span.jobs:
        output.say("interrupted before anything was measured" if signals else "there was nothing to lease")
        output.say(left)
        return 128 + signals[0] if signals else 0
    figures = _figures(plan, span, before, after)
    if spent is not None and pid is not None:
        figures |= _server_figures(span, spent, pid)
        if sum(spent) < _CPU_STEPS_MIN * process.step_s():
            remarks.append(f"{sum(spent):.2f} s of server CPU are too few to tell: take more --jobs")
    if figures["client_cpu_share"] > _CLIENT_SHARE_MAX:
        remarks.append("the client used its core up: the daemon could do more than jobs_per_s says")
    if span.stopped:
        remarks.insert(0, "interrupted: these are the figures till then")
    _show(settings, figures, [*remarks, left])
    return 128 + signals[0] if signals else 0


def _check_queue(connection: "Connection", plan: "Plan") -> None:
    """Refuse a queue in which somebody's jobs could come to harm.

    Jobs that are finished may be there if the name says that they are a benchmark's: others could be pushed out by
    the jobs that are acked here, since 100,000 are kept.

    Raises: QueueNotFound, WrongState.
    """
    queue = find(connection, plan.queue)
    if plan.existing:
        if queue is None or not queue.ready:
            raise QueueNotFound(f"queue = {plan.queue}: it has no ready jobs to take")
        return
    if queue is None:
        return
    own = plan.queue.startswith(QUEUE)
    harmed = _LIVE if own else (*_LIVE, "done", "cancelled", "expired")
    there = {state: count for state in harmed if (count := getattr(queue, state))}
    if there:
        counts = ", ".join(f"{count} {state}" for state, count in there.items())
        hint = (
            "; remove what an earlier run has left with `jqctl bench lease --destroy-existing`" if own else ""
        )
        raise WrongState(f"queue = {plan.queue}: has {counts}: a benchmark takes a queue without jobs{hint}")


def _daemon_pid(url: str, stats: "ServerStats") -> int:
    """Return the pid that the daemon tells, if it is that of a jqd on this machine."""
    from jqctl import process

    if not process.is_near(url):
        raise process.Unknown(f"{url} is not on this machine")
    pid = stats.process.get("pid")
    if pid is None:
        raise process.Unknown("the daemon does not tell its pid")
    process.check_daemon(pid)
    process.cpu(pid)
    return pid


def _clean_up(settings: Settings, load: "Load", *, keep: bool) -> str:
    """Purge the own jobs that are still in the queue. Returns what is there now, in words."""
    from jqctl.connect import Connection
    from jqd.client import requests

    queue = load.plan.queue
    if keep and not load.refusal and not load.stopped:
        return f"{load.done} jobs stay in the queue {queue}"
    purged = done = held = 0
    try:
        # A new client: where the daemon is gone it says so at once, and does not wait for its return.
        with Connection(load.url, settings.timeout) as connection:
            if load.plan.kind == "submit" or load.done < load.plan.jobs:
                for ids in load.own_ids():
                    purged += connection.call(requests.purge(ids, {})).count
            left = find(connection, queue)
    except JqdError as error:
        return f"jobs may be left in the queue {queue}: it could not be cleaned up ({error.code})"
    if left is not None:
        done, held = left.done, sum(getattr(left, state) for state in _LIVE)
    said = [f"{purged} jobs were purged"] if purged else []
    if held:
        said.append(f"{held} jobs are left in the queue {queue}")
    else:
        said.append(f"no job is left in the queue {queue}" + (f" but {done} that are done" if done else ""))
    return ", ".join(said)


@contextlib.contextmanager
def _stopping(load: "Load") -> Iterator[list[int]]:
    """Let Ctrl-C and SIGTERM end the load in order; the second one ends it at once. Yields the signals that came."""
    came: list[int] = []

    def handle(number: int, _: object) -> None:
        came.append(number)
        if len(came) > 1:
            raise KeyboardInterrupt
        load.stop()

    if threading.current_thread() is not threading.main_thread():
        yield came  # signals are for the program
        return
    former = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield came
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


# --- figures ----------------------------------------------------------------------------------


def _figures(plan: "Plan", span: "Span", before: "ServerStats", after: "ServerStats") -> dict[str, Any]:
    syncs = after.process.get("syncs", 0) - before.process.get("syncs", 0)
    figures: dict[str, Any] = {
        "bench": plan.kind,
        "server": after.server,
        "queue": plan.queue,
        "clients": plan.clients,
        "pipeline": plan.pipeline,
        "batch": plan.batch,
        "payload_bytes": plan.payload_bytes,
        "jobs": span.jobs,
        "seconds": round(span.seconds, 6),
        "jobs_per_s": round(span.jobs / span.seconds),
        "requests": len(span.requests),
        "latency_p50_us": span.requests.percentile(50),
        "latency_p99_us": span.requests.percentile(99),
        "submit_to_lease_p50_us": span.waits.percentile(50),
        "submit_to_lease_p99_us": span.waits.percentile(99),
        "client_cpu_share": round(span.cpu_s / span.seconds, 3),
        "syncs": syncs,
        "jobs_per_sync": round(span.jobs / syncs, 1) if syncs else None,
        "interrupted": span.stopped,
    }
    return {name: value for name, value in figures.items() if value is not None}


def _server_figures(span: "Span", spent: "Cpu", pid: int) -> dict[str, Any]:
    user_us, system_us = (round(seconds / span.jobs * 1e6, 2) for seconds in spent)
    return {
        "server_pid": pid,
        "server_cpu_us_per_job": round(sum(spent) / span.jobs * 1e6, 2),
        "server_user_us_per_job": user_us,
        "server_system_us_per_job": system_us,
        "server_cpu_share": round(sum(spent) / span.seconds, 3),
    }


def _show(settings: Settings, figures: dict[str, Any], remarks: list[str]) -> None:
    """Print the figures; remarks are beside a table, and in an object."""
    if settings.format == "json":
        click.echo(output.to_json({**figures, "remarks": remarks}), nl=False)
        return
    output.details(
        {
            name: f"{value:,}" if type(value) in (int, float) and name != "server_pid" else value
            for name, value in figures.items()
        }
    )
    for remark in remarks:
        output.say(remark)


def _progress(done: int, jobs: int) -> None:
    """Show how far it is. Drawing the bar of progress.py takes milliseconds, which would be in the latencies."""
    click.echo(f"\r{done:>12,} of {jobs:,} jobs", err=True, nl=False)


def _progress_over(load: "Load") -> None:
    """Clear the line on which progress was."""
    if sys.stderr is not None and sys.stderr.isatty():
        click.echo("\r" + " " * (len(f"{load.plan.jobs:,}") + 24) + "\r", err=True, nl=False)

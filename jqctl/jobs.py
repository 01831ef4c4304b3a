"""The verbs about jobs: submit, work on, manage and show them.

Knows:         arguments, help and examples of these verbs, which fields a table shows.
Must not know: the wire, how a connection is made (connect.py), how a value is shown (output.py).
"""

# ruff: noqa: D301 - click reads the backspace itself, before a paragraph that is not to be filled

import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, BinaryIO, Final, cast

import click
from msgspec import structs

from jqctl import acting, output
from jqctl.group import DATE, DURATION, ID, QUEUE, RETRY, STATES, TOKEN, WEIGHTED_QUEUE, Settings, verb
from jqctl.progress import Progress
from jqctl.replies import show, show_one, verdicts
from jqd.errors import JqdError

if TYPE_CHECKING:
    from jqctl.connect import Connection
    from jqd.client.requests import Encoding, JobOptions, StateName, SweepOptions

ENCODINGS: Final = ("raw", "text", "json", "msgpack")
_PAGE: Final = 1_000


def _text_or_stdin(text: str) -> str | bytes:
    if text != "-":
        return text
    if sys.stdin is None:
        raise output.Unreadable("cannot read stdin: it is closed")
    try:
        return sys.stdin.buffer.read()
    except OSError as error:
        raise output.Unreadable(f"cannot read stdin: {error.strerror}") from None


# --- producer ---------------------------------------------------------------------------------


def _metadata(
    context: click.Context, parameter: click.Parameter, pairs: Sequence[str]
) -> dict[str, str] | None:
    metadata: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"{output.clean(pair)!r} is not KEY=VALUE", context, parameter)
        metadata[key] = value
    return metadata or None


@verb
@click.argument("queue", type=QUEUE)
@click.argument("payload", required=False)
@click.option("--file", type=click.File("rb"), help="Submit the jobs of a file of JSON lines; - is stdin.")
@click.option("--priority", type=int, metavar="N", help="-32768 to 32767, higher is served first: 0.")
@click.option("--delay", type=DURATION, help="Ready after this: at once.")
@click.option("--run-at", type=DATE, help="Ready at this date: ISO 8601 with Z or an offset.")
@click.option("--expires", type=DURATION, help="Not started within this: expired.")
@click.option("--expires-at", type=DATE, help="The same with a date.")
@click.option("--max-retries", type=int, metavar="N", help="Errors after which it is dead, 0 to 1000: 3.")
@click.option("--max-crashes", type=int, metavar="N", help="Crashes after which it is dead, 0 to 1000: 5.")
@click.option("--retry", type=RETRY, help="How long it waits after a failure: exponential; see jqctl --help.")
@click.option("--lease", type=DURATION, help="What a worker gets that does not say, 1s to 24h: 30s.")
@click.option("--task", help="A name for what is to be done.")
@click.option("--tenant", metavar="NAME", help="Whose job it is: default. Keys are those of one tenant.")
@click.option("--group", metavar="NAME", help="What it belongs to within the tenant; for filters.")
@click.option("--dedupe-key", metavar="NAME", help="One job of this name lives in the queue at a time.")
@click.option(
    "--dedupe",
    "--on-duplicate",
    "dedupe",
    type=click.Choice(("existing", "reject", "replace", "debounce")),
    help="If one does: print its id, refuse this one, replace payload, priority and metadata, or the time too: existing.",
)
@click.option(
    "--dedupe-until", type=click.Choice(("finished", "started")), help="How long it has the key: finished."
)
@click.option("--dedupe-ttl", type=DURATION, help="It has the key this long instead, 1s to 7d.")
@click.option("--idempotency-key", metavar="NAME", help="The same submit again prints the first one's id.")
@click.option("--idempotency-ttl", type=DURATION, help="So long it is recognised, 1s to 7d: 24h.")
@click.option(
    "--result-ttl",
    type=DURATION,
    help="Keep its result so long after the ack, 0 is not at all: as long as the job, 1h.",
)
@click.option(
    "--delivery",
    type=click.Choice(("at-least-once", "at-most-once")),
    help="at-most-once: never hand it out twice, a failure is final: at-least-once.",
)
@click.option("--at-most-once", is_flag=True, help="Short for --delivery at-most-once.")
@click.option(
    "--meta",
    "metadata",
    multiple=True,
    metavar="KEY=VALUE",
    callback=_metadata,
    help="Kept with the job, 4 KiB in all; repeatable.",
)
@click.option("--encoding", type=click.Choice(ENCODINGS), help="What PAYLOAD is: text; from stdin: raw.")
def submit(
    settings: Settings,
    connection: "Connection",
    queue: str,
    payload: str | None,
    file: BinaryIO | None,
    delivery: str | None,
    at_most_once: bool,
    **options: object,
) -> None:
    """Add a job, or all jobs of a file, and print its id.

    PAYLOAD is a text, or - for stdin as it is; without it the job has an empty payload. The job is on
    disk when the id is printed.

    \b
    Examples:
      jqctl submit emails '{"to": "ada"}' --encoding json --priority 5
      jqctl submit reports monthly --run-at 2030-01-31T08:00:00Z --meta team=sales
      jqctl submit reports monthly --dedupe-key monthly --dedupe debounce --delay 5m
      tar c docs | jqctl submit archive -
      jqctl submit emails --file jobs.jsonl --max-retries 10 --retry fixed,30s

    A line of jobs.jsonl is an object: `payload` (a string is a text, any other value JSON) or
    `payload_base64`, `queue`, and options as here (`delay`, `max-retries`, `meta`) or as on the wire
    (`delay_ms`). The file is checked as a whole before the first job goes in; from a pipe, each 10,000
    lines are. 10,000 jobs, or 8 MiB, are one request: all of it goes in or nothing. One line is printed
    for each range: first job id and count.
    """
    from jqd.client import requests

    if at_most_once and delivery == "at-least-once":
        raise click.UsageError("--at-most-once and --delivery at-least-once: give one of them")
    if at_most_once or delivery == "at-most-once":
        options["delivery"] = "at_most_once"
    chosen = cast("JobOptions", {name: value for name, value in options.items() if value is not None})
    if file is not None:
        if payload is not None:
            raise click.UsageError("PAYLOAD and --file: give one of them")
        _submit_file(settings, connection, file, queue, chosen)
        return
    data = None if payload is None else _text_or_stdin(payload)
    if chosen.get("encoding") == "json":
        _check_json(data or b"")
    reply = connection.call(requests.submit(queue, data, chosen))
    show(settings, ("job_id",), [reply], ("job_id",), header=False)
    if reply.existing and settings.format == "table":
        output.say("it was there before")


def _check_json(payload: str | bytes) -> None:
    from jqctl import jsontext

    # What of an argument is no UTF-8 goes back to the bytes that it was.
    data = payload if isinstance(payload, bytes) else payload.encode(errors="surrogateescape")
    if wrong := jsontext.fault(data):
        raise click.UsageError(f"PAYLOAD is not JSON: {wrong}")


def _submit_file(
    settings: Settings, connection: "Connection", file: BinaryIO, queue: str, options: "JobOptions"
) -> None:
    from jqctl import bulk
    from jqd.client import requests

    done_line = sent = 0
    seekable = file.seekable()
    with Progress("submit", "bytes" if seekable else "lines") as bar:
        try:
            size = None
            if seekable:
                begin = file.tell()
                size = file.seek(0, os.SEEK_END)
                file.seek(begin)
                for _ in bulk.parts(file, queue, options):
                    bar.move(file.tell(), size, what="check")
                file.seek(begin)
            for part in bulk.parts(file, queue, options):
                if done_line:
                    bar.move(sent, size)
                try:
                    reply = connection.call(requests.submit_many(part.groups))
                except JqdError as error:
                    unknown = getattr(error, "outcome_unknown", False)
                    fate = "outcome unknown, all or none of them are in" if unknown else "none of them is in"
                    bar.end()
                    output.say(f"lines {part.first_line} to {part.last_line}: {fate}")
                    raise
                with bar.aside():
                    _show_ranges(settings, reply.jobs, header=not done_line)
                done_line = part.last_line
                sent = file.tell() if seekable else done_line
        except bulk.BadLine as error:
            raise click.UsageError(output.clean(str(error))) from None
        finally:
            bar.end()
            if done_line and not file.closed and file.read(1):
                output.say(f"lines 1 to {done_line} are in")


def _show_ranges(settings: Settings, ranges: Iterable[tuple[int, int, bool]], *, header: bool) -> None:
    if settings.format == "id":
        for first, count, _ in ranges:
            click.echo("\n".join(map(str, range(first, first + count))))
        return
    shown = [{"job_id": first, "count": count, "existing": old} for first, count, old in ranges]
    show(settings, ("job_id", "count"), shown, ("job_id",), header=header)


# --- worker -----------------------------------------------------------------------------------


@verb
@click.argument("queues", nargs=-1, type=WEIGHTED_QUEUE, required=True, metavar="QUEUE[=WEIGHT]...")
@click.option(
    "--count", type=click.IntRange(1, 10_000), default=1, metavar="N", help="Take up to so many: 1."
)
@click.option(
    "--wait", type=DURATION, default="0", help="Wait so long for the first one, up to 30s: not at all."
)
@click.option("--lease", type=DURATION, help="Hold them so long, 1s to 24h: what the job says, or 30s.")
def lease(
    settings: Settings,
    connection: "Connection",
    queues: tuple[str, ...],
    count: int,
    wait: str,
    lease: str | None,
) -> None:
    """Take jobs: print job id, token, attempt and payload of each.

    Several queues are served in the order given. With weights, 1 to 1000, one for each, it is drawn which of those
    that have jobs comes first: urgent=3 mail=1 begins with urgent in three of four leases. Nothing to lease prints nothing and exits 0. With -o id
    a line is `JOB_ID TOKEN`, the arguments of ack, fail, extend and release.

    A lease lasts 30s unless --lease says otherwise, here or when the job was submitted. Then the job goes
    to another worker, and the token is worth nothing; extend holds it longer.

    \b
    Examples:
      jqctl lease emails --wait 20s
      jqctl lease urgent emails --count 100 --lease 5m -o json
      jqctl lease urgent=3 emails=1
      held=$(jqctl lease emails -o id) && [ -n "$held" ] && jqctl ack $held
    """
    from jqd.client import requests

    command = requests.lease(_weighted(queues), count=count, lease=lease, wait=wait)
    held = requests.held(connection.call(command))
    jobs = [structs.asdict(job) | {"lease_ms_left": held.lease_ms_left} for job in held.jobs]
    columns = ("job_id", "token", "attempt", "payload", "queue", "task")
    show(settings, columns, jobs, ("job_id", "token"))
    if not jobs and settings.format == "table":
        output.say("nothing to lease")


def _weighted(queues: Sequence[str]) -> Sequence[str] | dict[str, int]:
    """Return names, or the weight of each where they have one."""
    pairs = [queue.partition("=") for queue in queues]
    if not any(equals for _, equals, _ in pairs):
        return queues
    from jqd.client.requests import QUEUE_WEIGHT_MAX

    weights: dict[str, int] = {}
    digits = len(str(QUEUE_WEIGHT_MAX))  # int() fails at some thousands
    for name, _, weight in pairs:
        if not weight.isdecimal() or len(weight) > digits or not 1 <= int(weight) <= QUEUE_WEIGHT_MAX:
            raise click.UsageError(
                f"{output.clean(name)}: give every queue a weight of 1 to {QUEUE_WEIGHT_MAX}, as in {output.clean(name)}=3, or none"
            )
        if name in weights:
            raise click.UsageError(f"{output.clean(name)} is named twice")
        weights[name] = int(weight)
    return weights


@verb
@click.argument("job_id", type=ID)
@click.argument("token", type=TOKEN)
@click.option("--result", help="Kept with the job, up to 64 KiB: a text, or - for stdin as it is.")
@click.option("--error", help="It failed for good: dead, without a retry.")
def ack(
    settings: Settings,
    connection: "Connection",
    job_id: int,
    token: int,
    result: str | None,
    error: str | None,
) -> int:
    """Finish a held job: done, or with --error dead.

    \b
    Examples:
      jqctl ack 17 7298374651238 --result sent
      jqctl ack 17 7298374651238 --error "no such address"
    """
    from jqd.client import requests

    if result is not None and error is not None:
        raise click.UsageError("--result and --error: give one of them")
    results = None if result is None else [_text_or_stdin(result)]
    reply = connection.call(requests.ack([(job_id, token)], results=results, error=error))
    return verdicts(settings, "ack", reply.results)


@verb
@click.argument("job_id", type=ID)
@click.argument("token", type=TOKEN)
@click.option("--error", default="", help="What went wrong; kept with the job, cut at 4 KiB.")
@click.option("--retry-in", type=DURATION, help="Next attempt after this, instead of the backoff.")
@click.option("--retry", type=RETRY, help="This policy says how long it waits this time; see jqctl --help.")
@click.option("--dead", is_flag=True, help="No retry.")
def fail(
    settings: Settings,
    connection: "Connection",
    job_id: int,
    token: int,
    error: str,
    retry_in: str | None,
    retry: str | None,
    dead: bool,
) -> int:
    """Give a held job back as failed.

    It is retried after a backoff, and dead after its last retry.

    \b
    Examples:
      jqctl fail 17 7298374651238 --error "connection refused"
      jqctl fail 17 7298374651238 --retry-in 5m
      jqctl fail 17 7298374651238 --retry exponential,base=1m,cap=1d
    """
    from jqd.client import requests

    said = {"--dead": dead or None, "--retry-in": retry_in, "--retry": retry}
    names = [name for name, value in said.items() if value is not None]
    if len(names) > 1:
        raise click.UsageError(f"{' and '.join(names)}: give one of them")
    command = requests.fail([(job_id, token)], error=error, retry_in=retry_in, retry=retry, dead=dead)
    return verdicts(settings, "fail", connection.call(command).results)


@verb
@click.argument("job_id", type=ID)
@click.argument("token", type=TOKEN)
@click.option("--lease", type=DURATION, help="So long from now on, 1s to 24h: what the lease was given.")
@click.option("--progress", type=click.IntRange(0, 100), metavar="PERCENT", help="How far it is.")
@click.option("--text", default="", help="The same in words, up to 256 bytes.")
def extend(
    settings: Settings,
    connection: "Connection",
    job_id: int,
    token: int,
    lease: str | None,
    progress: int | None,
    text: str,
) -> int:
    """Hold a job longer, and say how far it is.

    Progress stands in the place of what was said before, and `jqctl job` shows it until the job is handed out again.

    \b
    Examples:
      jqctl extend 17 7298374651238 --lease 10m
      jqctl extend 17 7298374651238 --progress 40 --text "page 4 of 10"
    """
    from jqd.client import requests

    command = requests.extend([(job_id, token)], lease=lease, progress_percent=progress, progress_text=text)
    reply = connection.call(command)
    return verdicts(settings, "extend", reply.results, lease_ms_left=reply.lease_ms_left)


@verb
@click.argument("job_id", type=ID)
@click.argument("token", type=TOKEN)
@click.option("--delay", type=DURATION, default="0", help="Ready again after this: at once.")
def release(settings: Settings, connection: "Connection", job_id: int, token: int, delay: str) -> int:
    """Give a held job back unworked: the attempt is not counted.

    \b
    Example:
      jqctl release 17 7298374651238 --delay 1m
    """
    from jqd.client import requests

    reply = connection.call(requests.release([(job_id, token)], delay=delay))
    return verdicts(settings, "release", reply.results)


# --- management -------------------------------------------------------------------------------


@verb
@click.argument("ids", nargs=-1, type=ID, metavar="[JOB_ID]...")
@click.option("--queue", type=QUEUE, help="The waiting jobs of this queue.")
@click.option("--state", type=click.Choice(("delayed", "ready", "leased")), help="Only those in this state.")
@click.option("--running", is_flag=True, help="Also jobs that are held: they end when they are given back.")
@acting.filter_option
@acting.dry_run_option
def cancel(
    settings: Settings,
    connection: "Connection",
    ids: tuple[int, ...],
    queue: str | None,
    state: str | None,
    running: bool,
    filter: str | None,
    dry_run: bool,
) -> int:
    """End waiting jobs for good: by id, or all that a queue, a state and a filter mean.

    With --running jobs that are held are marked, and their worker is told: they are cancelled when it fails or
    releases them, or their lease ends; if it acks them after all, they are done.

    With -o id the ids that were given and cancelled are printed, one a line; jobs that were not named by
    their ids are only counted, in table and json.

    \b
    Examples:
      jqctl cancel 17 18
      jqctl cancel 17 --running
      jqctl cancel --queue emails --state delayed --dry-run
      jqctl cancel --filter "task = resize and metadata.user = ada"
    """
    where = _where(ids, {"queue": queue, "state": cast("StateName | None", state), "filter": filter})
    return acting.act(settings, connection, "cancel", ids, where, dry_run=dry_run, running=running)


@verb
@click.argument("job_id", type=ID)
@click.option("--priority", type=int, metavar="N", help="-32768 to 32767, higher is served first.")
@click.option("--delay", type=DURATION, help="Ready after this, from now; 0 is at once.")
@click.option("--run-at", type=DATE, help="Ready at this date: ISO 8601 with Z or an offset.")
@click.option("--payload", help="A text, or - for stdin as it is.")
@click.option("--encoding", type=click.Choice(ENCODINGS), help="What the payload is: text; from stdin: raw.")
@click.option(
    "--meta",
    "metadata",
    multiple=True,
    metavar="KEY=VALUE",
    callback=_metadata,
    help="Instead of all that it has; repeatable.",
)
def update(
    settings: Settings,
    connection: "Connection",
    job_id: int,
    payload: str | None,
    delay: str | None,
    run_at: str | None,
    encoding: "Encoding | None",
    priority: int | None,
    metadata: dict[str, str] | None,
) -> None:
    """Change a job that waits, and print the state that it has now.

    What is not given stays. A job that is held or has ended is refused.

    \b
    Examples:
      jqctl update 17 --priority 9 --delay 0
      jqctl update 17 --run-at 2030-01-31T08:00:00Z --payload '{"to": "ada"}' --encoding json
    """
    from jqd.client import requests

    if delay is not None and run_at is not None:
        raise click.UsageError("--delay and --run-at: give one of them")
    data = None if payload is None else _text_or_stdin(payload)
    if data is not None and encoding == "json":
        _check_json(data)
    command = requests.update(
        job_id,
        priority=priority,
        delay=delay,
        run_at=run_at,
        payload=data,
        encoding=encoding,
        metadata=metadata,
    )
    show(settings, ("job_id", "state"), [connection.call(command)], ("job_id",), header=False)


@verb
@click.argument("ids", nargs=-1, type=ID, metavar="[JOB_ID]...")
@click.option("--queue", type=QUEUE, help="The dead jobs of this queue.")
@acting.filter_option
@acting.dry_run_option
def requeue(
    settings: Settings,
    connection: "Connection",
    ids: tuple[int, ...],
    queue: str | None,
    filter: str | None,
    dry_run: bool,
) -> int:
    """Make dead jobs ready again: by id, or all that a queue and a filter mean.

    They get new budgets of retries; their history stays. With -o id the ids that were given and requeued
    are printed, one a line; jobs that were not named by their ids are only counted, in table and json.

    \b
    Examples:
      jqctl requeue 17
      jqctl requeue --queue emails --filter "error contains timeout"
    """
    where = _where(ids, {"queue": queue, "filter": filter})
    return acting.act(settings, connection, "requeue", ids, where, dry_run=dry_run)


@verb
@click.argument("ids", nargs=-1, type=ID, metavar="[JOB_ID]...")
@acting.filter_option
@acting.dry_run_option
@acting.yes_option
def purge(
    settings: Settings,
    connection: "Connection",
    ids: tuple[int, ...],
    filter: str | None,
    dry_run: bool,
    yes: bool,
) -> int:
    """Remove waiting or dead jobs without a trace: by id, or all that a filter means.

    From then on they are job_not_found. Jobs that are held, done, cancelled or expired are refused; retention
    removes them. A filter means waiting jobs, and dead ones where it says `state`.

    Jobs that were named go without a question. With --filter they are counted and you are asked first; no is exit
    code 1. Where nobody can be asked, --yes is required. `jqctl queue purge` removes those of a queue.

    \b
    Examples:
      jqctl purge 17 18 --dry-run
      jqctl purge --filter "queue in (emails, sms) and age > 2d"
      jqctl purge --filter "state = dead and state_age > 7d" --yes
    """
    from jqd.client import requests

    where = _where(ids, {"filter": filter})
    if where is not None:
        return acting.purge(settings, connection, where, "jobs", dry_run=dry_run, yes=yes)
    reply = connection.call(requests.purge(list(ids), {"dry_run": dry_run}))
    return verdicts(settings, "purge", reply.results)


def _where(ids: Sequence[int], options: "SweepOptions") -> "SweepOptions | None":
    """Return the options that say which jobs are meant, None where ids do."""
    is_said = any(value is not None for value in options.values())
    words = " or ".join(f"--{name}" for name in options)
    if ids and is_said:
        raise click.UsageError(f"JOB_ID and {words}: give one of them")
    if not ids and not is_said:
        raise click.UsageError(f"give JOB_ID or {words}")
    return options if is_said else None


# --- reading ----------------------------------------------------------------------------------


@verb
@click.argument("job_id", type=ID)
def job(settings: Settings, connection: "Connection", job_id: int) -> None:
    """Show everything about one job.

    \b
    Example:
      jqctl job 17 -o json
    """
    from jqd.client import requests

    show_one(settings, connection.call(requests.get(job_id)), ("job_id",))


@verb
@click.option("--queue", type=QUEUE, help="Only this queue.")
@click.option("--state", type=click.Choice(STATES), help="Only this state.")
@acting.filter_option
@click.option("--limit", type=click.IntRange(min=0), default=100, metavar="N", help="So many: 100; 0 is all.")
def jobs(
    settings: Settings,
    connection: "Connection",
    queue: str | None,
    state: str | None,
    filter: str | None,
    limit: int,
) -> None:
    """List jobs in order of their ids, without payloads.

    \b
    Examples:
      jqctl jobs --queue emails --state dead
      jqctl jobs --filter "state in (ready, delayed) and metadata.user = ada and age > 1h"
      jqctl jobs --limit 0 -o json
      jqctl jobs --state dead -o id | xargs -r jqctl requeue
    """
    columns = ("job_id", "queue", "state", "attempt", "priority", "created_wall_ms", "error")
    list_jobs(settings, connection, columns, limit, queue=queue, state=state, filter=filter)


def list_jobs(
    settings: Settings,
    connection: "Connection",
    columns: Sequence[str],
    limit: int,
    *,
    queue: str | None,
    state: str | None,
    filter: str | None,
) -> None:
    """Print the jobs that are meant, up to `limit`; 0: all."""
    from jqd.client import requests

    shown = 0
    cursor: int | None = 0
    while cursor is not None and (not limit or shown < limit):
        size = min(_PAGE, limit - shown) if limit else _PAGE
        command = requests.list_jobs(
            queue=queue, state=cast("StateName | None", state), filter=filter, cursor=cursor, limit=size
        )
        page = connection.call(command)
        show(settings, columns, page.jobs, ("job_id",), header=not shown)
        shown += len(page.jobs)
        cursor = page.cursor
    if settings.format == "table":
        if cursor is not None:
            output.say(f"there may be more after these {shown}: --limit 0 shows all")
        elif not shown:
            output.say("no such jobs")

"""The verbs about queues.

Knows:         arguments, help and examples of these verbs, which fields a table shows.
Must not know: the wire, how a connection is made (connect.py), how a value is shown (output.py).
"""

# ruff: noqa: D301 - click reads the backspace itself, before a paragraph that is not to be filled

import contextlib
import functools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, cast

import click

from jqctl import acting, output, watch
from jqctl.group import DURATION, QUEUE, RETRY, STATES, Settings, cli, common, verb
from jqctl.replies import show, show_one, show_pages
from jqd.errors import QueueNotFound

if TYPE_CHECKING:
    from jqctl.connect import Connection
    from jqd.client.requests import QueueChanged, QueueInfo, QueueOptions, StateName, SweepOptions


@verb
@watch.option
def queues(settings: Settings, connection: "Connection", every_s: float | None) -> None:
    """List queues with their jobs counted by state.

    With --watch and -o json a line is {wall_ms, at, queues: [...]}.

    \b
    Examples:
      jqctl queues -o json
      jqctl queues --watch 2
    """
    if every_s is None:
        _show_all(settings, _pages(connection))
    else:

        def read() -> list[list["QueueInfo"]]:
            return list(_pages(connection))

        watch.watch(settings, connection, every_s, read, functools.partial(_show_all, settings))


def _pages(connection: "Connection") -> Iterator[list["QueueInfo"]]:
    """Yield all queues in order of their names."""
    from jqd.client import requests

    cursor: str | None = ""
    while cursor is not None:
        page = connection.call(requests.queues(cursor=cursor))
        yield page.queues
        cursor = page.cursor


def find(connection: "Connection", name: str) -> "QueueInfo | None":
    """Return one queue with its counts; None: it has no jobs."""
    for page in _pages(connection):
        for info in page:
            if info.queue == name:
                return info
        if page and page[-1].queue > name:
            break
    return None


def _show_all(settings: Settings, pages: Iterable[list["QueueInfo"]], wall_ms: int | None = None) -> None:
    """Print all queues; with a date, the JSON of all of them is one line."""
    if wall_ms is not None and settings.format == "json":
        infos = [info for page in pages for info in page]
        show(settings, (), [{"wall_ms": wall_ms, "queues": infos}], ())
        return
    nothing = "no queues: one is there from its first job on" if wall_ms is None else None
    columns = ("queue", *STATES, "paused", "ready_age_ms")
    show_pages(settings, columns, pages, ("queue",), nothing=nothing)


# --- one of them ------------------------------------------------------------------------------


@cli.group()
@common
def queue() -> None:
    """Look at one queue, set what holds in it, pause it, or remove its jobs.

    \b
    Examples:
      jqctl queue show emails
      jqctl queue set emails --lease 5m --max-retries 10 --length-max 100000
      jqctl queue pause emails
      jqctl queue purge emails --state dead --dry-run
    """


of_queue = functools.partial(verb, group=queue)


@of_queue
@click.argument("name", type=QUEUE)
def show_(settings: Settings, connection: "Connection", name: str) -> None:
    """Show everything about one queue: its jobs counted by state, what holds in it, how long its jobs took.

    A queue is there from its first job until its last one is purged or forgotten, and as long as something is
    set of it. ready_age_ms is how long the oldest ready job waits. waits and runs count jobs since the daemon's
    start by their time from ready to lease, and from lease to ack: [ms, jobs] are so many below that many ms, and
    not below half of it.

    \b
    Examples:
      jqctl queue show emails
      jqctl queue show emails -o json
    """
    from msgspec import structs

    from jqd.client import requests

    details = structs.asdict(connection.call(requests.queue(name)))
    show_one(settings, structs.asdict(details.pop("info")) | details, ("queue",))


@of_queue
@click.argument("name", type=QUEUE)
@click.option("--lease", type=DURATION, help="What a worker gets for a job that does not say: 30s.")
@click.option("--max-retries", type=int, metavar="N", help="For jobs that do not say, 0 to 1000: 3.")
@click.option("--max-crashes", type=int, metavar="N", help="For jobs that do not say, 0 to 1000: 5.")
@click.option("--retry", type=RETRY, help="Waits after a failure, for jobs that do not say; as of submit.")
@click.option("--retention", type=DURATION, help="Finished jobs are kept so long, up to 30d: 1h.")
@click.option("--dead-retention", type=DURATION, help="Dead jobs are kept so long, up to 30d: 30d.")
@click.option(
    "--length-max",
    type=int,
    metavar="N",
    help="Jobs that it takes, finished and dead ones apart; 0: any number.",
)
@click.option("--reset", is_flag=True, help="What is not said here is jqd's default again.")
def set_(settings: Settings, connection: "Connection", name: str, reset: bool, **options: object) -> None:
    """Change what holds in a queue, and make it if there is none; what is not said stays.

    It holds at once, also for jobs that are there, and over restarts. A queue that was set is there without jobs.
    With nothing but --reset it is as if nothing had been set; it stays paused if it is. That one was made is said,
    since the name may be a slip.

    \b
    Examples:
      jqctl queue set emails --lease 5m --retry fixed,10s
      jqctl queue set emails --length-max 100000
      jqctl queue set emails --reset
    """
    from jqd.client import requests

    said = {option: value for option, value in options.items() if value is not None}
    chosen = cast("QueueOptions", said | ({"reset": True} if reset else {}))
    makes_one = bool(said) or not reset
    with _telling_of_a_new_one(settings, connection, name, "set {} --reset" if makes_one else None):
        _show_change(settings, connection.call(requests.set_queue(name, chosen)))


@of_queue
@click.argument("name", type=QUEUE)
def pause(settings: Settings, connection: "Connection", name: str) -> None:
    """Hand out no jobs of a queue until it is resumed, over restarts.

    Jobs that are held go on, new ones are taken. Workers that wait, wait on. A queue that is not there yet is made,
    so that it can be paused before its first job; that is said, since the name may be a slip.

    \b
    Example:
      jqctl queue pause emails
    """
    from jqd.client import requests

    with _telling_of_a_new_one(settings, connection, name, "resume {}"):
        _show_change(settings, connection.call(requests.pause(name)))


@of_queue
@click.argument("name", type=QUEUE)
def resume(settings: Settings, connection: "Connection", name: str) -> None:
    """Hand out the jobs of a paused queue again; who waits for them gets them at once.

    \b
    Example:
      jqctl queue resume emails
    """
    from jqd.client import requests

    _show_change(settings, connection.call(requests.resume(name)))


@contextlib.contextmanager
def _telling_of_a_new_one(
    settings: Settings, connection: "Connection", name: str, undo: str | None
) -> Iterator[None]:
    """Tell a person afterwards if a queue is made by what is done here.

    undo: the verb that takes it back; None: nothing here makes one.
    """
    is_new = undo is not None and settings.format == "table" and not _is_there(connection, name)
    yield
    if undo is not None and is_new:
        output.say(
            f"queue {name} was not there: this made it; `jqctl queue {undo.format(name)}` takes it back"
        )


def _is_there(connection: "Connection", name: str) -> bool:
    from jqd.client import requests

    try:
        connection.call(requests.queue(name))
    except QueueNotFound:
        return False
    return True


def _show_change(settings: Settings, change: "QueueChanged") -> None:
    show(settings, ("queue", "paused"), [change], ("queue",))


@of_queue
@click.argument("name", type=QUEUE)
@click.option("--state", type=click.Choice(("delayed", "ready", "dead")), help="Only those in this state.")
@acting.filter_option
@acting.dry_run_option
@acting.yes_option
def purge(
    settings: Settings,
    connection: "Connection",
    name: str,
    state: str | None,
    filter: str | None,
    dry_run: bool,
    yes: bool,
) -> int:
    """Remove the waiting jobs of a queue, or with --state dead the dead ones, without a trace.

    Without --state those are the delayed and the ready ones. Held jobs stay, and so do finished ones, which
    retention removes. Jobs that come in meanwhile may go too.

    On a terminal the jobs are counted and you are asked first; no is exit code 1. Where nobody can be asked,
    --yes is required.

    \b
    Examples:
      jqctl queue purge emails --dry-run
      jqctl queue purge emails
      jqctl queue purge emails --filter "task = digest and age > 1d"
      jqctl queue purge emails --state dead --yes
    """
    where: SweepOptions = {"queue": name, "state": cast("StateName | None", state), "filter": filter}
    what = f"{state or ('' if filter else 'delayed and ready')} jobs of queue {name}".strip()
    return acting.purge(settings, connection, where, what, dry_run=dry_run, yes=yes)

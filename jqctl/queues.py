"""The verbs about queues.

Knows:         arguments, help and examples of these verbs, which fields a table shows.
Must not know: the wire, how a connection is made (connect.py), how a value is shown (output.py).
"""

# ruff: noqa: D301 - click reads the backspace itself, before a paragraph that is not to be filled

import functools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, cast

import click

from jqctl import acting, watch
from jqctl.group import QUEUE, STATES, Settings, cli, common, verb
from jqctl.replies import show, show_one
from jqd.errors import QueueNotFound

if TYPE_CHECKING:
    from jqctl.connect import Connection
    from jqd.client.requests import QueueInfo, StateName, SweepOptions


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
    header = True
    for page in pages:
        show(settings, ("queue", *STATES), page, ("queue",), header=header)
        header = False


# --- one of them ------------------------------------------------------------------------------


@cli.group()
@common
def queue() -> None:
    """Look at one queue, or remove its jobs.

    \b
    Examples:
      jqctl queue show emails
      jqctl queue purge emails --state dead --dry-run
    """


of_queue = functools.partial(verb, group=queue)


@of_queue
@click.argument("name", type=QUEUE)
def show_(settings: Settings, connection: "Connection", name: str) -> None:
    """Show everything about one queue: its jobs counted by state.

    A queue is there from its first job until its last one is purged or forgotten.

    \b
    Examples:
      jqctl queue show emails
      jqctl queue show emails -o json
    """
    info = find(connection, name)
    if info is None:
        raise QueueNotFound(f"queue = {name!r}: it has no jobs")
    show_one(settings, info, ("queue",))


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

"""The verbs about dead letters: look at them, give them another chance, remove them.

Knows:         arguments, help and examples of these verbs.
Must not know: the wire, how a connection is made (connect.py), how a value is shown (output.py).
"""

# ruff: noqa: D301 - click reads the backspace itself, before a paragraph that is not to be filled

import functools
from typing import TYPE_CHECKING

import click

from jqctl import acting
from jqctl.group import ID, QUEUE, Settings, cli, common, verb
from jqctl.jobs import list_jobs

if TYPE_CHECKING:
    from jqctl.connect import Connection
    from jqd.client.requests import SweepOptions


@cli.group()
@common
def dead() -> None:
    """Look at dead jobs, requeue or remove them: all of them, those of a queue, those that a filter means.

    \b
    Examples:
      jqctl dead list --filter "error contains timeout and state_age < 1h"
      jqctl dead requeue --queue emails --dry-run
      jqctl dead purge --filter "reason = refused and state_age > 7d"
    """


of_dead = functools.partial(verb, group=dead)
_all_option = click.option("--all", "every", is_flag=True, help="All dead jobs.")


def _where(queue: str | None, filter: str | None, *, every: bool) -> "SweepOptions":
    if every and (queue is not None or filter is not None):
        raise click.UsageError("--all and --queue or --filter: give one of them")
    if not every and queue is None and filter is None:
        raise click.UsageError("say which dead jobs: --queue, --filter or --all")
    return {"queue": queue, "state": "dead", "filter": filter}


@of_dead
@click.option("--queue", type=QUEUE, help="Only this queue.")
@acting.filter_option
@click.option("--limit", type=click.IntRange(min=0), default=100, metavar="N", help="So many: 100; 0 is all.")
def list_(
    settings: Settings, connection: "Connection", queue: str | None, filter: str | None, limit: int
) -> None:
    """List dead jobs in order of their ids: why each died, after how many attempts, and its last error.

    `jqctl job JOB_ID` shows the attempts of one.

    \b
    Examples:
      jqctl dead list --queue emails
      jqctl dead list --filter "reason = crashes" -o json
    """
    columns = ("job_id", "queue", "reason", "attempt", "changed_wall_ms", "error")
    list_jobs(settings, connection, columns, limit, queue=queue, state="dead", filter=filter)


@of_dead
@click.argument("ids", nargs=-1, type=ID, metavar="[JOB_ID]...")
@click.option("--queue", type=QUEUE, help="The dead jobs of this queue.")
@acting.filter_option
@_all_option
@acting.dry_run_option
def requeue(
    settings: Settings,
    connection: "Connection",
    ids: tuple[int, ...],
    queue: str | None,
    filter: str | None,
    every: bool,
    dry_run: bool,
) -> int:
    """Make dead jobs ready again, with new budgets of retries; their history stays.

    \b
    Examples:
      jqctl dead requeue 17
      jqctl dead requeue --filter "error contains 'connection refused'" --dry-run
      jqctl dead requeue --all
    """
    if ids and (queue is not None or filter is not None or every):
        raise click.UsageError("JOB_ID and --queue, --filter or --all: give one of them")
    if not (ids or every or queue is not None or filter is not None):
        raise click.UsageError("say which dead jobs: JOB_ID, --queue, --filter or --all")
    where = None if ids else _where(queue, filter, every=every)
    return acting.act(settings, connection, "requeue", ids, where, dry_run=dry_run)


@of_dead
@click.option("--queue", type=QUEUE, help="The dead jobs of this queue.")
@acting.filter_option
@_all_option
@acting.dry_run_option
@acting.yes_option
def purge(
    settings: Settings,
    connection: "Connection",
    queue: str | None,
    filter: str | None,
    every: bool,
    dry_run: bool,
    yes: bool,
) -> int:
    """Remove dead jobs without a trace; `jqctl purge JOB_ID...` removes single ones.

    On a terminal they are counted and you are asked first; no is exit code 1. Where nobody can be asked, --yes
    is required.

    \b
    Examples:
      jqctl dead purge --filter "reason = refused" --dry-run
      jqctl dead purge --queue emails --filter "state_age > 7d" --yes
    """
    where = _where(queue, filter, every=every)
    what = "dead jobs" if queue is None else f"dead jobs of queue {queue}"
    return acting.purge(settings, connection, where, what, dry_run=dry_run, yes=yes)

"""What the verbs of bulk actions share: jobs by ids or by a filter, and a question before they are lost.

Knows:         which of the two was given, when somebody is asked whether it is meant, what is printed of it.
Must not know: which options a verb has, how the pages of a sweep follow each other (sweeps.py).
"""

import functools
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import click

from jqctl import output
from jqctl.group import Settings
from jqctl.replies import show_count, verdicts
from jqctl.sweeps import said_by, sweep

if TYPE_CHECKING:
    from jqctl.connect import Connection
    from jqd.client.requests import SweepOptions

F = TypeVar("F", bound=Callable[..., Any])

filter_option: Final[Callable[[F], F]] = functools.partial(
    click.option,
    "--filter",
    metavar="TEXT",
    help="Only jobs that meet it: error contains timeout and age > 1h. See docs/jqctl.md.",
)()
yes_option: Final[Callable[[F], F]] = functools.partial(
    click.option, "--yes", is_flag=True, help="Do not ask."
)()
dry_run_option: Final[Callable[[F], F]] = functools.partial(
    click.option, "--dry-run", is_flag=True, help="Count them, change nothing."
)()


def act(
    settings: Settings,
    connection: "Connection",
    verb: Literal["cancel", "requeue"],
    ids: Sequence[int],
    where: "SweepOptions | None",
    *,
    dry_run: bool,
    running: bool = False,
) -> int:
    """Act on the jobs with these ids, or on all that `where` means. Returns the exit code.

    running: whether cancel means jobs that are held, too.
    """
    if ids:
        named = said_by(verb, running=running)(ids, {"dry_run": dry_run})
        return verdicts(settings, verb, connection.call(named).results)
    assert where is not None
    count = sweep(connection, verb, {**where, "dry_run": dry_run}, running=running)
    show_count(settings, verb, count, dry_run=dry_run)
    return 0


def purge(
    settings: Settings,
    connection: "Connection",
    where: "SweepOptions",
    what: str,
    *,
    dry_run: bool,
    yes: bool,
) -> int:
    """Count the jobs that `where` means and ask, unless told not to; then remove them. Returns the exit code.

    what: what they are called in the question.
    """
    total = None
    if not dry_run and not yes:
        if not _is_anybody_there():
            raise click.UsageError(
                "nobody can be asked here, stdin or stderr is no terminal: --yes purges, --dry-run only counts"
            )
        total = sweep(connection, "purge", {**where, "dry_run": True})
        if total and not _ask(f"Remove {total} {what} without a trace? [y/N] "):
            output.say("nothing was changed")
            return 1
    # What came in since none were counted was not asked about.
    count = 0 if total == 0 else sweep(connection, "purge", {**where, "dry_run": dry_run}, total=total)
    show_count(settings, "purge", count, dry_run=dry_run)
    return 0


def _is_anybody_there() -> bool:
    """Tell whether a question reaches somebody who can answer it."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))


def _ask(question: str) -> bool:
    """Ask on the terminal; no answer is no.

    Unlike click.confirm this writes nothing to stdout, which may go to a program.
    """
    click.echo(output.clean(question), nl=False, err=True)
    answer = sys.stdin.readline()
    if not answer.endswith("\n"):  # the input ended: the next line would begin behind the question
        click.echo(err=True)
    return answer.strip().lower() in ("y", "yes")

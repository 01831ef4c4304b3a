"""Bulk actions by a filter, page by page: what cancel, requeue and queue purge share.

Knows:         that the server stops after a page and says where to go on.
Must not know: which filters a verb takes, what is printed of the result.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from jqctl import output
from jqctl.progress import Progress
from jqd.errors import JqdError

if TYPE_CHECKING:
    from jqctl.connect import Connection
    from jqd.client.requests import SweepOptions

Sweeping = Literal["cancel", "requeue", "purge"]


def said_by(verb: Sweeping, *, running: bool = False) -> Callable[..., Any]:
    """Return what makes the command of ids or a filter, and options."""
    from jqd.client import requests

    commands: dict[str, Callable[..., Any]] = {
        "cancel": partial(requests.cancel, running=running),
        "requeue": requests.requeue,
        "purge": requests.purge,
    }
    return commands[verb]


def sweep(
    connection: "Connection",
    verb: Sweeping,
    options: "SweepOptions",
    *,
    total: int | None = None,
    running: bool = False,
) -> int:
    """Act on all jobs that the options mean. Returns how many; with dry_run how many it would be.

    total:   how many are expected, for the bar.
    running: whether cancel means jobs that are held, too.
    """
    command = said_by(verb, running=running)
    dry_run = options.get("dry_run", False)
    count = 0
    cursor: int | None = 0
    with Progress("count" if dry_run else verb, "jobs") as bar:
        try:
            while cursor is not None:
                reply = connection.call(command(None, {**options, "cursor": cursor}))
                count, cursor = count + reply.count, reply.cursor
                if cursor is not None:
                    bar.move(count, total)
        except (JqdError, KeyboardInterrupt):
            bar.end()
            if count and not dry_run:
                output.say(f"{verb}: {count} jobs were changed before this")
            raise
    return count

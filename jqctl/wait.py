"""The verb that waits for jobs.

Knows:         its arguments, what it prints, what its exit code says.
Must not know: what one wait is on the wire (jqd.client.waits), how a value is shown (output.py).
"""

# ruff: noqa: D301 - click reads the backspace itself, before a paragraph that is not to be filled

from typing import TYPE_CHECKING

import click

from jqctl import output
from jqctl.group import DURATION, ID, Settings, verb
from jqctl.replies import show

if TYPE_CHECKING:
    from jqctl.connect import Connection


@verb
@click.argument("ids", nargs=-1, type=ID, required=True, metavar="JOB_ID...")
@click.option("--wait", "patience", type=DURATION, help="Wait so long: as long as it takes.")
@click.option("--any", "any_", is_flag=True, help="Until one of them has ended; without it, all of them.")
def wait(
    settings: Settings, connection: "Connection", ids: tuple[int, ...], patience: str | None, any_: bool
) -> int:
    """Wait until jobs have ended: done, dead, cancelled or expired.

    Prints what became of each, with its result or error. Nothing polls, and a restart of the daemon is waited out.

    The exit code is 0 if all that are printed are done, 1 if one is dead, cancelled or expired, or if there is no such
    job (any more), and 4 if --wait was over first; then nothing is printed. --timeout is for each request, as ever.

    \b
    Examples:
      jqctl wait 17 --wait 5m
      jqctl wait $(jqctl submit reports monthly) -o json
      jqctl wait 17 18 19 --any
    """
    from jqd.client import requests
    from jqd.client.waits import Wanted, wait_for_sync

    waited = wait_for_sync(Wanted(ids, patience, all=not any_), connection.call)
    show(settings, ("job_id", "state", "result", "error"), waited.jobs, ("job_id",), header=False)
    gone = [job_id for first, count in waited.gone for job_id in range(first, first + count)]
    for job_id in gone:
        output.say(f"jqctl: job_not_found: {requests.refusal('wait', job_id, 'job_not_found')}")
    return 1 if gone or any(job.state != "done" for job in waited.jobs) else 0

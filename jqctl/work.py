"""The verb `work`: run a command for each job.

Knows:         its arguments, help and examples; that it is a worker like any other.
Must not know: how a job becomes a process (shell.py), how a worker works (jqd.client.worker).
"""

# ruff: noqa: D301 - click reads the backspace itself, before a paragraph that is not to be filled

from typing import TYPE_CHECKING

import click

from jqctl.group import DURATION, QUEUE, Settings, verb

if TYPE_CHECKING:
    from jqctl.connect import Connection


@verb
@click.argument("queues", type=QUEUE, nargs=-1, required=True, metavar="QUEUE...")
@click.option("--exec", "command", required=True, metavar="COMMAND", help="What is run for each job.")
@click.option(
    "-j",
    "--jobs",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    metavar="N",
    help="Run at a time.",
)
@click.option("--limit", type=DURATION, metavar="DURATION", help="Of one run; it is ended then: none.")
@click.option(
    "--lease", type=DURATION, help="After which a silent worker's jobs go to others: the job's, 30s."
)
@click.option(
    "--retry-in",
    default="30s",
    show_default=True,
    type=DURATION,
    help="When a job is ready after exit code 75.",
)
@click.option(
    "--grace", default="25s", show_default=True, type=DURATION, help="What runs have to end after SIGTERM."
)
@click.option("--name", metavar="TEXT", help="Shown as the jobs' worker: host and process id.")
@click.option("--burst", is_flag=True, help="End when there is nothing left to do.")
@click.option("-v", "--verbose", is_flag=True, help="Say on stderr when each job begins and is done.")
def work(
    settings: Settings,
    connection: "Connection",
    queues: tuple[str, ...],
    command: str,
    jobs: int,
    limit: str | None,
    lease: str | None,
    retry_in: str,
    grace: str,
    name: str | None,
    burst: bool,
    verbose: bool,
) -> None:
    """Run a command for each job of some queues, the first queue first, until told to stop.

    The payload replaces each {} of COMMAND, as one argument or a part of one; without {} it is on stdin.
    COMMAND is split as a shell does it, but no shell runs it, so no payload can become a command; where
    a shell is wanted, write sh -c '... "$1"' sh {}. The environment has JQD_JOB_ID, JQD_TOKEN, JQD_QUEUE,
    JQD_ATTEMPT, JQD_PRIORITY, JQD_TASK, and JQD_METADATA as a JSON object.

    \b
    The exit code decides:
      0      done; the first 64 kB of stdout are the result
      65     dead: no retry would help (EX_DATAERR)
      75     ready again after --retry-in; the attempt is not counted (EX_TEMPFAIL)
      other  an error, with the end of stderr: tried again after the backoff, dead after the last retry

    The lease is extended for as long as the command runs. On SIGTERM nothing more is leased, and what
    runs has --grace to end; then, or at a second signal, it gets SIGTERM, 3 s later SIGKILL, and its job
    is given back. A command also gets these when --limit is over (an error), or its lease is lost. If
    jqctl itself is killed, a process beside it kills what runs, with its process group, and the job is
    run again elsewhere. What has left its group, or began in the very moment, goes on: a supervisor that
    ends a whole cgroup, as systemd does, reaches that too.

    \b
    Examples:
      jqctl work thumbnails --exec 'convert {} -resize 200x200 {}.small.png' -j 4
      jqctl work mails --exec 'sendmail -t' --limit 1m
      jqctl work urgent reports --exec ./report.sh --burst
    """
    import logging

    from jqctl.shell import ShellApp
    from jqd.client import requests
    from jqd.client.worker import Worker

    app = ShellApp(settings.url, command, limit=limit, retry_in=retry_in)
    worker = Worker(app, list(queues), concurrency=jobs, lease=lease, grace=grace, name=name, burst=burst)
    # Which of the default addresses answers is found here; and one where nobody does ends this now.
    connection.call(requests.ping())
    assert connection.url is not None
    app.redirect(connection.url)
    logging.basicConfig(level="DEBUG" if verbose else "INFO", format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("asyncio").setLevel("WARNING")
    worker.run_forever()

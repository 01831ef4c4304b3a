"""The program `jqd worker`: find the app, run a Worker, turn its end into an exit code.

Knows:         the flags, --help, how a worker is replaced by a new one (recycle, reload).
Must not know: how jobs are worked on (client/worker.py), the daemon.

    end                                             exit code
    told to stop, or burst and nothing left         0
    the server refuses this worker for good         1, with its message; the app cannot be imported: 1, with its traceback
    a flag, or MODULE:APP, makes no sense           2
    max_jobs, max_rss                               none: the process begins anew, with the same process id
"""

import logging
import os
import pkgutil
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal, NoReturn

import click

from jqd import __version__
from jqd.client.app import App
from jqd.client.values import to_ms
from jqd.client.worker import RSS_BYTES_MIN, Ended, Worker
from jqd.core.model import DEFAULT_QUEUE
from jqd.errors import InvalidArgument, JqdError

EXIT_REFUSED = 1
EXIT_USAGE = 2

# How often --reload looks at the files.
_LOOK_S: Final = 0.5
_NO_SOURCES: Final = frozenset({"__pycache__", "node_modules", "site-packages"})
_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}

SUMMARY = """\
Run the tasks of a Python program: lease jobs from jqd, run their functions, tell jqd how they ended.

MODULE:APP names the jqd.App, as in `jqd worker shop.tasks:app`; without :APP it is called `app`. The module is looked
for where the command is started, then where Python looks.

A job's lease is extended for as long as its function runs, by a thread of its own. If the worker dies, another one
takes the job half a second later; if it hangs, when the lease has run out; if the daemon is restarted, nothing happens.
"""

EPILOG = """\
\b
How a function ends its job:
  it returns                 done, with what it returned as the result
  raise jqd.Retry(in_="5m")  tried again then; counts as an error
  raise jqd.Snooze("5m")     given back, ready then; the attempt does not count
  raise jqd.Fail("why")      dead, without another attempt
  any other exception        tried again after a backoff; dead after the last retry
  its timeout is over        an error, as any other exception

\b
Signals:
  SIGTERM, SIGINT   lease nothing more; what runs has --grace to end; the rest is interrupted and given back,
                    and its attempt does not count. Exit 0
  a second one      the same, without the grace
  SIGKILL           what ran is tried again half a second later, by another worker; counts as a crash

\b
Liveness:
  --health FILE is written when jqd has answered a request for jobs, at least every 10 s, or has extended the
  leases of a worker whose slots are all taken. So a worker that does not consume has an old file:
    find FILE -mmin -1 | grep -q .      exit 0: it is alive

\b
Exit codes:
  0  stopped, or --burst and nothing left
  1  jqd refuses this worker, or the app's module fails when it is imported
  2  usage, or there is no such module or app

\b
Examples:
  jqd worker shop.tasks:app -q emails,default -c 20
  jqd worker shop.tasks:app -q thumbnails -c 4 --pool process --max-rss 512M
  jqd worker shop.tasks:app --reload --log-level debug
"""


def _bytes(text: str) -> int:
    match = re.fullmatch(r"([0-9]+)([KMG]?)", text)
    if match is None or not int(match[1]):
        raise click.BadParameter(f"{text}: a number of bytes, or 512M, 2G")
    if (size := int(match[1]) * _UNITS[match[2]]) < RSS_BYTES_MIN:
        unit = "" if match[2] else "; a number alone is bytes, as in 512M"
        raise click.BadParameter(
            f"{text}: at least {RSS_BYTES_MIN >> 20}M, Python alone takes most of that{unit}"
        )
    return size


def _names(text: str) -> list[str]:
    names = [name for each in text.split(",") if (name := each.strip())]
    if not names:
        raise click.UsageError(f"-q {text!r}: name a queue")
    return names


def _duration(text: str) -> str:
    try:
        to_ms("duration", text)
    except InvalidArgument as error:
        raise click.BadParameter(str(error)) from error
    return text


_COUNT: Final = click.IntRange(min=1)


@click.command(
    "worker",
    help=SUMMARY,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.argument("place", metavar="MODULE:APP")
@click.option("-q", "--queues", default=DEFAULT_QUEUE, show_default=True, metavar="NAME,...",
              help="Queues, in the order in which they are served.")  # fmt: skip
@click.option("-c", "--concurrency", default=10, show_default=True, type=_COUNT, metavar="N",
              help="Jobs that run at a time.")  # fmt: skip
@click.option("--pool", default="thread", show_default=True, type=click.Choice(["thread", "process"]),
              help="Where `def` functions run; those that are `async def` run on the event loop.")  # fmt: skip
@click.option(
    "--url", metavar="URL", help="Of the server; default: what the app says, $JQD_URL, jqd://127.0.0.1:7717."
)
@click.option("--name", metavar="TEXT", help="Shown as the jobs' worker. Default: host and process id.")
@click.option("--lease", type=_duration, metavar="DURATION",
              help="When jqd hands a silent worker's jobs to others. Default: what the job says, 30s.")  # fmt: skip
@click.option("--grace", default="25s", show_default=True, type=_duration, metavar="DURATION",
              help="What running jobs have to end after SIGTERM.")  # fmt: skip
@click.option("--max-jobs", type=_COUNT, metavar="N",
              help="Begin anew after N jobs; with --pool process each process of the pool.")  # fmt: skip
@click.option("--max-rss", type=_bytes, metavar="BYTES",
              help="Begin anew above so much memory: 512M, 2G, from 16M; with --pool process each process of it.")  # fmt: skip
@click.option("--burst", is_flag=True, help="End when there is nothing left to do.")
@click.option(
    "--health",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Written as long as it consumes; see below.",
)
@click.option(
    "--reload", is_flag=True, help="Begin anew when a .py file below the current directory changes."
)
@click.option("--log-level", default="info", show_default=True,
              type=click.Choice(["debug", "info", "warning", "error"]), help="Of what goes to stderr.")  # fmt: skip
@click.version_option(__version__, prog_name="jqd worker", message="%(prog)s %(version)s")
def command(
    place: str,
    queues: str,
    concurrency: int,
    pool: Literal["thread", "process"],
    url: str | None,
    name: str | None,
    lease: str | None,
    grace: str,
    max_jobs: int | None,
    max_rss: int | None,
    burst: bool,
    health: str | None,
    reload: bool,
    log_level: str,
) -> None:
    """Run a worker; --help says SUMMARY."""
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if reload:
        _reload(ends_with_it=not burst)
    app = _find(place)
    try:
        if url is not None:
            app.redirect(url)
        worker = Worker(
            app,
            _names(queues),
            concurrency=concurrency,
            pool=pool,
            lease=lease,
            grace=grace,
            name=name,
            burst=burst,
            max_jobs=max_jobs,
            max_rss=max_rss,
            health=health,
        )
    except (InvalidArgument, ValueError, OSError) as error:
        raise click.UsageError(str(error)) from error
    try:
        if worker.run_forever() is Ended.RECYCLE:
            _begin_anew()
    except JqdError as error:
        click.echo(f"jqd worker: {error}", err=True)
        sys.exit(EXIT_REFUSED)


def main(arguments: Sequence[str]) -> NoReturn:
    """Run the program and leave it by SystemExit."""
    command.main(args=list(arguments), prog_name="jqd worker")
    raise AssertionError("click leaves by SystemExit")


def _find(place: str) -> App:
    """Return the app at MODULE:APP. Raises: UsageError; and what the module raises when it is imported."""
    sys.path.insert(0, str(Path.cwd()))
    where = place if ":" in place else f"{place}:app"
    try:
        found = pkgutil.resolve_name(where)
    except (ModuleNotFoundError, AttributeError, ValueError) as error:
        module = where.partition(":")[0]
        if isinstance(error, ModuleNotFoundError) and not (
            module == error.name or module.startswith(f"{error.name}.")
        ):
            raise  # one that the user's module wanted
        raise click.UsageError(f"{place}: {error}") from error
    if not isinstance(found, App):
        raise click.UsageError(f"{place} is a {type(found).__name__}: name a jqd.App, as in shop.tasks:app")
    return found


def _begin_anew() -> NoReturn:
    """Replace this process by a new one, under the same process id: whoever watches it sees none end."""
    logging.shutdown()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - ourselves


# --- reload -----------------------------------------------------------------------------------


def _reload(*, ends_with_it: bool) -> NoReturn:
    """Run a worker as a child, and another one whenever the sources change.

    ends_with_it: when the child has ended well: `jqctl workers stop` told it to.
    """
    arguments = [each for each in sys.orig_argv[1:] if each != "--reload"]
    stops = threading.Event()
    child: subprocess.Popen[bytes] | None = None

    def stop(number: int, _: object) -> None:
        stops.set()
        if child is not None and child.poll() is None:
            child.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    log = logging.getLogger("jqd.worker")
    while not stops.is_set():
        seen = _sources()
        # A session of its own: Ctrl-C comes once, from here.
        child = subprocess.Popen([sys.executable, *arguments], start_new_session=True)  # noqa: S603 - ourselves
        while not stops.is_set() and _sources() == seen:
            stops.wait(_LOOK_S)
            if ends_with_it and child.poll() == 0:
                sys.exit(0)
        if not stops.is_set():
            log.info("the sources have changed: the worker begins anew")
            child.terminate()
        while child.poll() is None:  # in steps, so that a second signal is handed on
            stops.wait(_LOOK_S) if not stops.is_set() else _wait(child)
    sys.exit(child.returncode if child is not None and child.returncode > 0 else 0)


def _wait(child: "subprocess.Popen[bytes]") -> None:
    try:
        child.wait(_LOOK_S)
    except subprocess.TimeoutExpired:
        return


def _sources() -> dict[str, int]:
    """Return when each .py file below the current directory was changed, in ns."""
    return {path: os.stat(path).st_mtime_ns for path in _walk(".") if os.path.exists(path)}  # noqa: PTH110, PTH116 - often


def _walk(top: str) -> Iterator[str]:
    for directory, names, files in os.walk(top):
        names[:] = [
            name
            for name in names
            if not name.startswith(".")
            and name not in _NO_SOURCES
            and not os.path.exists(os.path.join(directory, name, "pyvenv.cfg"))  # noqa: PTH110, PTH118
        ]
        yield from (os.path.join(directory, name) for name in files if name.endswith(".py"))  # noqa: PTH118


if __name__ == "__main__":
    main(sys.argv[1:])

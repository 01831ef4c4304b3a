"""The verbs about workers: which there are, and what they are to do.

Knows:         arguments, help and examples of these verbs, which fields a table shows.
Must not know: the wire, how a connection is made (connect.py), how a worker does what it is told.
"""

# ruff: noqa: D301 - click reads the backspace itself, before a paragraph that is not to be filled

import functools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

import click
from msgspec import structs

from jqctl import output, watch
from jqctl.group import Settings, cli, common, verb
from jqctl.replies import show, show_pages

if TYPE_CHECKING:
    from jqctl.connect import Connection
    from jqd.client.requests import WorkerInfo

_COLUMNS: Final = (
    *("worker_id", "worker", "state", "leased", "concurrency", "queues", "pid", "version"),
    *("since_wall_ms", "heard_ms_ago"),
)
_PAGE: Final = 1_000


@cli.group(invoke_without_command=True)
@common
@click.pass_context
def workers(context: click.Context) -> None:
    """List workers, or tell them to lease no more, to lease again, or to stop; without a verb: list.

    Every `jqd worker` and `jqctl work` says what it is. A client of your own that does not is not here.

    \b
    Examples:
      jqctl workers
      jqctl workers quiet web-3:4242
      jqctl workers stop --all
    """
    if context.invoked_subcommand is None:
        context.invoke(list_)


of_workers = functools.partial(verb, group=workers)


@of_workers
@watch.option
def list_(settings: Settings, connection: "Connection", every_s: float | None) -> None:
    """List workers that are connected: who they are, what they serve, how many jobs they hold.

    state is running, quiet (leases nothing, finishes what it has, and stays) or stopping; what one was told and
    does not do yet stands beside it. leased counts the jobs that it holds by the daemon's books; -o json has their
    ids as [first, count]. heard_ms_ago over 10000: it hangs, or what lies between does. A worker that is gone
    leaves the list half a second after its last connection.

    \b
    Examples:
      jqctl workers list -o json
      jqctl workers list --watch 2
    """
    if every_s is None:
        _show_all(settings, _pages(connection))
    else:

        def read() -> list[list["WorkerInfo"]]:
            return list(_pages(connection))

        watch.watch(settings, connection, every_s, read, functools.partial(_show_all, settings))


def _pages(connection: "Connection") -> Iterator[list["WorkerInfo"]]:
    """Yield all workers in order of their ids."""
    from jqd.client import requests

    cursor: str | None = ""
    while cursor is not None:
        page = connection.call(requests.workers(cursor=cursor, limit=_PAGE))
        yield page.workers
        cursor = page.cursor


def _show_all(settings: Settings, pages: Iterable[list["WorkerInfo"]], wall_ms: int | None = None) -> None:
    """Print all workers; with a date, the JSON of all of them is one line."""
    if settings.format == "json":
        infos = [output.to_record(_record(info)) for page in pages for info in page]
        show(settings, (), infos if wall_ms is None else [{"wall_ms": wall_ms, "workers": infos}], ())
        return
    nothing = "no worker is connected" if wall_ms is None else None
    rows = (list(map(_row, page)) for page in pages)
    show_pages(settings, _COLUMNS, rows, ("worker_id",), nothing=nothing)


def _record(info: "WorkerInfo") -> dict[str, Any]:
    """Return what JSON shows: ids as strings, as everywhere."""
    return structs.asdict(info) | {"jobs": [[str(first), count] for first, count in info.jobs]}


def _row(info: "WorkerInfo") -> dict[str, Any]:
    state = info.state if info.order is None else f"{info.state}, told {info.order}"
    return structs.asdict(info) | {"state": state, "queues": ",".join(info.queues)}


# --- orders -----------------------------------------------------------------------------------

_names = click.argument("names", nargs=-1, metavar="[WORKER]...")
_all_option = click.option("--all", "every", is_flag=True, help="Every worker that is connected.")


@of_workers
@_names
@_all_option
def quiet(settings: Settings, connection: "Connection", names: tuple[str, ...], every: bool) -> None:
    """Tell workers to lease nothing more, to finish what they have, and to stay.

    WORKER is an id, or a label, which may be that of several. They stay quiet over restarts of the daemon, until
    `resume` or `stop`, or until they are started anew. Prints whom it told; `jqctl workers` shows who is quiet.

    \b
    Examples:
      jqctl workers quiet web-3:4242
      jqctl workers quiet --all
    """
    _tell(settings, connection, "quiet", names, every=every)


@of_workers
@_names
@_all_option
def resume(settings: Settings, connection: "Connection", names: tuple[str, ...], every: bool) -> None:
    """Tell quiet workers to lease again.

    \b
    Example:
      jqctl workers resume --all
    """
    _tell(settings, connection, "resume", names, every=every)


@of_workers
@_names
@_all_option
def stop(settings: Settings, connection: "Connection", names: tuple[str, ...], every: bool) -> None:
    """Tell workers to lease nothing more, to finish what they have, and to end: as SIGTERM does.

    What does not end within a worker's --grace is interrupted and given back, and its attempt does not count. The
    exit code of `jqd worker` is 0 then: who wants another one started has its supervisor do so (systemd:
    Restart=always).

    \b
    Examples:
      jqctl workers stop web-3:4242
      jqctl workers stop --all
    """
    _tell(settings, connection, "stop", names, every=every)


def _tell(
    settings: Settings, connection: "Connection", order: str, names: tuple[str, ...], *, every: bool
) -> None:
    from jqd.client import requests

    if every is bool(names):
        raise click.UsageError(f"say which workers to {order}: their ids or labels, or --all")
    reply = connection.call(requests.tell_workers(order, names or None, all=every))  # type: ignore[arg-type]
    told = [{"worker_id": worker_id, "worker": label, "order": order} for worker_id, label in reply.told]
    show(settings, ("worker_id", "worker", "order"), told, ("worker_id",))
    if not told:
        output.say("jqctl: nobody was told: no worker is connected, or all are stopping")

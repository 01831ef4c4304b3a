"""The verbs about a data directory: they open it themselves and ask no daemon.

Knows:         arguments, help and examples of these verbs, what people are told of a finding.
Must not know: the bytes of a log, what is wrong with one (jqd.offline).

jqd.offline needs the package that the daemon computes checksums with, so it is imported when a verb runs.
"""

# ruff: noqa: D301 - click reads the backspace itself, before a paragraph that is not to be filled

import functools
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

import click

from jqctl import output
from jqctl.group import COMMON, ID, QUEUE, Settings, cli, output_option
from jqd.errors import EXIT_DATA_DAMAGED

if TYPE_CHECKING:
    from jqd.offline.check import Problem
    from jqd.offline.loss import Loss
    from jqd.offline.repair import Repair

USAGE: Final = 2
# What the extra `server` brings and jqd.offline needs. Another module that is missing is our own mistake.
_EXTRA: Final = frozenset({"crc32c"})
_JOBS_SHOWN: Final = 20
_LSN: Final = click.IntRange(min=1)


@cli.group()
def wal() -> None:
    """Look into the log of a data directory, and make a damaged one start again.

    DIR is a data directory (data_dir of the daemon) on this machine. No daemon is asked. stat, verify and dump write
    nothing and take no lock: while a daemon runs they show what is on the disk so far. repair needs the directory for
    itself.

    \b
    Examples:
      jqctl wal verify /var/lib/jqd
      jqctl wal repair /var/lib/jqd                  says what would go, changes nothing
      jqctl wal repair --accept-loss /var/lib/jqd

    \b
    Exit codes, after sysexits.h, as the daemon has them:
       0  good, or repaired
      65  damaged, or written by a newer jqd
      74  the disk failed, or is full
      75  in use by a daemon (repair), or changed by one while it was read
      78  no data directory of jqd, or you may not read it
    """


def _verb(formats: tuple[str, ...] = ("table", "json")) -> Callable[[Callable[..., int]], click.Command]:
    def make(function: Callable[..., int]) -> click.Command:
        @functools.wraps(function)
        def invoke(directory: str, **arguments: object) -> int:
            settings = click.get_current_context().ensure_object(Settings)
            try:
                code = function(settings, directory.rstrip("/") or "/", **arguments)
                sys.stdout.flush()
            except ModuleNotFoundError as error:
                if error.name not in _EXTRA:
                    raise
                output.say(f"jqctl: wal needs the package {error.name}: pip install 'jqd[server]'")
                return USAGE
            except BrokenPipeError:
                raise output.PipeClosed from None
            return code

        command: Any = invoke
        if formats:
            command = output_option(formats, "table for people; json: one object.")(command)
        command = click.argument("directory", metavar="DIR", type=click.Path())(command)
        made: click.Command = wal.command(name=function.__name__)(command)
        made.params.sort(key=lambda parameter: parameter.name in COMMON)  # help shows a verb's own ones first
        return made

    return make


# --- reading ----------------------------------------------------------------------------------


@_verb()
def stat(settings: Settings, directory: str) -> int:
    """Show what a log holds: segments, LSNs, changes by kind, jobs by state, dates.

    Everything is read and applied, as at a start of the daemon. In a damaged log that goes up to the damage, and the
    exit code is 65.

    \b
    Examples:
      jqctl wal stat /var/lib/jqd
      jqctl wal stat /var/lib/jqd -o json
    """
    from jqd.offline.check import examine
    from jqd.offline.files import reading

    with reading(directory) as (fs, is_running):
        found = examine(fs, directory, kinds=True)
    log = found.log
    segments = list(log.segments.values())
    figures = {
        "store_id": found.public_id,
        "format": log.format,
        "running": is_running,
        "clean": found.is_clean,
        "bytes": sum(segment.size_bytes or 0 for segment in segments),
        "records": sum(segment.records for segment in segments),
        "snapshot_lsn": log.base.lsn or None,
        "first_lsn": min((each.first_lsn for each in segments if each.first_lsn), default=None),
        "last_lsn": max((each.last_lsn for each in segments if each.last_lsn), default=None),
        "oldest_wall_ms": found.oldest_wall_ms,
        "newest_wall_ms": found.newest_wall_ms,
        "jobs": found.jobs_by_state(),
        "changes": dict(sorted(found.kinds.items())),
    }
    rows = [
        {
            "segment": segment.number,
            "bytes": segment.size_bytes,
            "records": segment.records,
            "first_lsn": segment.first_lsn or None,
            "last_lsn": segment.last_lsn or None,
        }
        for segment in segments
    ]
    if settings.format == "json":
        _print_json(
            figures | {"segments": [_present(row) for row in rows], "problems": _records(found.problems)}
        )
    else:
        output.details({name: value for name, value in figures.items() if value is not None})
        click.echo()
        _print_table(rows, ("segment", "bytes", "records", "first_lsn", "last_lsn"))
    return _complain(found.problems)


@_verb()
def verify(settings: Settings, directory: str) -> int:
    """Read all of a log and say whether a daemon would start on it, and if not what is wrong where.

    Every frame, the chain of frames and the file `store` are judged by the daemon's own recovery. Then every
    change is applied, and the state that comes out is checked against itself.

    \b
    Examples:
      jqctl wal verify /var/lib/jqd
      jqctl wal verify /backup/jqd && echo good
    """
    from jqd.offline.check import check_state, examine
    from jqd.offline.files import reading

    with reading(directory) as (fs, is_running):
        found = examine(fs, directory)
    check_state(found)
    torn_bytes = found.recovery.torn_bytes if found.recovery is not None else 0
    if settings.format == "json":
        _print_json(
            {
                "ok": not found.problems,
                "running": is_running,
                "clean": found.is_clean,
                "last_lsn": found.state.lsn,
                "jobs": sum(found.state.counts()),
                "torn_bytes": torn_bytes,
                "problems": _records(found.problems),
            }
        )
    elif not found.problems:
        end = "stopped cleanly" if found.is_clean else "not stopped cleanly"
        click.echo(
            output.clean(
                f"{directory}: ok: LSN {found.state.lsn}, {sum(found.state.counts())} jobs, "
                f"{'a daemon runs on it' if is_running else end}"
            )
        )
    if torn_bytes:
        why = "the daemon is writing there" if is_running else "the daemon cuts them when it starts"
        output.say(f"the last {torn_bytes} bytes are an unfinished write: {why}")
    if found.problems:
        _complain(found.problems)
        if any(problem.kind in ("damaged", "poison") for problem in found.problems):
            output.say(
                f"keep a copy of {directory}; then restore a backup into it, or see what would be lost: "
                f"jqctl wal repair {directory}"
            )
        return EXIT_DATA_DAMAGED
    return 0


def _kind(context: click.Context, parameter: click.Parameter, names: tuple[str, ...]) -> tuple[str, ...]:
    if names:
        from jqd.offline.facts import KINDS

        for name in names:
            if name not in KINDS:
                known = ", ".join(KINDS)
                raise click.BadParameter(f"{output.clean(name)!r} is none of {known}", context, parameter)
    return names


@_verb(formats=())
@click.option("--from-lsn", type=_LSN, metavar="LSN", default=1, help="From this one on.")
@click.option("--to-lsn", type=_LSN, metavar="LSN", help="Up to and with this one.")
@click.option("--job", "job_id", type=ID, metavar="ID", help="Only facts that name this job.")
@click.option("--queue", type=QUEUE, metavar="NAME", help="Only facts that name a job of this queue.")
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    callback=_kind,
    metavar="KIND",
    help="Only these, as JobsSubmitted; may be repeated.",
)
def dump(
    settings: Settings,  # noqa: ARG001 - it has one format
    directory: str,
    from_lsn: int,
    to_lsn: int | None,
    job_id: int | None,
    queue: str | None,
    kinds: tuple[str, ...],
) -> int:
    """Print the facts of a log, one JSON object a line, in order of their LSNs.

    Where a log begins with a snapshot, its facts come first, with its lsn and no place or clocks.

    Each has its lsn; segment, and offset of its record in there; engine_ms, wall_ms and at, the clocks; kind; and the
    fact's own fields, in the manner of -o json. The id of a client's session is shown as a fingerprint. A fact that names
    no job, as TimeAdvanced, is left out by --job and --queue.

    A damaged log is printed up to the damage, and the exit code is 65.

    \b
    Examples:
      jqctl wal dump /var/lib/jqd --job 17
      jqctl wal dump /var/lib/jqd --kind JobsDied --queue emails
      jqctl wal dump /var/lib/jqd --from-lsn 4000 | head
    """
    from jqctl.facts import to_record
    from jqd.offline.check import ask_recovery
    from jqd.offline.dump import Wanted, facts
    from jqd.offline.files import reading
    from jqd.offline.walk import Log

    wanted = Wanted(from_lsn, to_lsn, job_id, queue, kinds)
    with reading(directory) as (fs, _):
        log = Log(fs, directory)
        for fact in facts(log, wanted):
            place = fact._asdict()
            change = place.pop("change")
            click.echo(output.to_json(to_record(place, change)), nl=False)
        if log.stop is not None:
            verdict = ask_recovery(fs, directory)
            if isinstance(verdict, Exception):
                raise verdict
    return 0


# --- repairing --------------------------------------------------------------------------------


@_verb()
@click.option("--accept-loss", is_flag=True, help="Do it. Without it nothing is changed.")
def repair(settings: Settings, directory: str, accept_loss: bool) -> int:
    """Say what a damaged log would lose so that a daemon starts on it again; with --accept-loss, let it go.

    Kept is all that stands before the first damage: behind a hole nothing can be applied. A file `store` that is damaged
    or missing is made anew from the frames, and costs no record.

    Listed are the LSNs that go, and each job that goes or goes back to an earlier state: `was` is its state behind the
    last fact that can still be read, `becomes` the one that it will have. A job that goes back may be worked on again.
    The ids of jobs that go are given out no more: `next_id` says from which on they are.

    Each byte that is cut or changed is copied to DIR/quarantine first, which takes as much room. Interrupted, it can be
    repeated. Without --accept-loss, or where nothing can be done, the exit code is 65 if the log is damaged.

    \b
    Examples:
      jqctl wal repair /var/lib/jqd
      jqctl wal repair /var/lib/jqd -o json > loss.json
      jqctl wal repair --accept-loss /var/lib/jqd
    """
    from jqd.offline.files import OperatorFiles
    from jqd.offline.repair import repair as make_repair

    done = make_repair(OperatorFiles(directory), directory, accept_loss=accept_loss)
    if settings.format == "json":
        _print_json(
            {
                "ok": done.is_done or not done.steps,
                "done": done.is_done,
                "problems": _records(done.found.problems),
                "loss": None if done.loss is None else _loss_record(done.loss),
                "steps": [_step(step) for step in done.steps],
                "new_store_id": done.public_id,
                "copies": done.copies,
            }
        )
    elif done.loss is not None:
        _tell_loss(done.loss)
    return _tell_end(done, directory)


def _tell_loss(loss: "Loss") -> None:
    more = " and maybe more" if loss.may_be_more else ""
    if loss.last_lsn is None:
        click.echo(f"no LSN is known to go{', but the end of the log cannot be seen' if more else ''}")
    else:
        click.echo(f"LSN {loss.first_lsn} to {loss.last_lsn}{more} go: {loss.lost_bytes} bytes")
    for first, last in loss.unreadable:
        click.echo(f"LSN {first} to {last} cannot be read: what they did to jobs is not listed")
    if not loss.jobs:
        return
    click.echo()
    rows = [
        {
            "jobs": str(run.first_id) if run.count == 1 else f"{run.first_id}-{run.first_id + run.count - 1}",
            "count": run.count,
            "queue": run.queue or "unknown",
            "was": run.was or "unknown",
            "becomes": run.becomes,
        }
        for run in loss.jobs
    ]
    _print_table(rows[:_JOBS_SHOWN], ("jobs", "count", "queue", "was", "becomes"))
    if len(rows) > _JOBS_SHOWN:
        output.say(f"{len(rows) - _JOBS_SHOWN} more lines of jobs are shown by -o json")


def _tell_end(done: "Repair", directory: str) -> int:
    if not done.steps:
        recovery = done.found.recovery
        if recovery is not None and recovery.torn_bytes:
            output.say(
                f"the last {recovery.torn_bytes} bytes are an unfinished write: the daemon cuts them itself"
            )
        output.say(f"{directory}: nothing to repair: a daemon starts on it")
        return 0
    if not done.is_done:
        _complain(done.found.problems)
        output.say("nothing was changed: --accept-loss does it; keep a copy of the directory first")
        return EXIT_DATA_DAMAGED
    for copy in done.copies:
        output.say(f"kept: {copy}")
    if done.public_id is not None:
        output.say(f"the store has a new id: {done.public_id}")
    output.say(f"{directory}: repaired: a daemon starts on it")
    return 0


# --- what is shown ----------------------------------------------------------------------------


def _records(problems: Iterable["Problem"]) -> list[dict[str, Any]]:
    return [_present(problem._asdict()) for problem in problems]


def _loss_record(loss: "Loss") -> dict[str, Any]:
    jobs = [_present(run._asdict()) | {"first_id": str(run.first_id)} for run in loss.jobs]
    return {
        "first_lsn": loss.first_lsn,
        "last_lsn": loss.last_lsn,
        "may_be_more": loss.may_be_more,
        "unreadable": [list(each) for each in loss.unreadable],
        "next_id": str(loss.next_id),
        "bytes": loss.lost_bytes,
        "jobs": jobs,
    }


def _step(step: Any) -> dict[str, Any]:  # noqa: ANN401 - a named tuple of jqd.offline
    """Show a step: which file, and where in it. What is written there is not shown: it has the store's secret id."""
    fields = {name: value for name, value in step._asdict().items() if name in ("offset", "size")}
    return {
        "step": type(step).__name__.removesuffix("Store").lower(),
        "name": getattr(step, "name", "store"),
        **fields,
    }


def _present(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _print_json(fields: dict[str, Any]) -> None:
    click.echo(output.to_json(output.to_record(fields)), nl=False)


def _print_table(rows: Iterable[dict[str, Any]], columns: tuple[str, ...]) -> None:
    output.table(columns, [[output.cell(name, row[name]) for name in columns] for row in rows])


def _complain(problems: Iterable["Problem"]) -> int:
    code = 0
    for problem in problems:
        output.say(f"jqctl: {problem.kind}: {problem.message}")
        code = EXIT_DATA_DAMAGED
    return code

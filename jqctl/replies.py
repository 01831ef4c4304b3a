"""What a verb shows of a reply, in the format that was chosen.

Knows:         the formats, what verdicts say and which exit code they mean.
Must not know: verbs, how a value is spelled (output.py), the server.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click
from msgspec import Struct, structs

from jqctl import output
from jqctl.group import Settings


def show(
    settings: Settings,
    columns: Sequence[str],
    things: Iterable[Struct | Mapping[str, Any]],
    ids: Sequence[str],
    *,
    header: bool = True,
) -> None:
    """Print things in the chosen format; `ids`: the fields that `-o id` prints."""
    maps = [thing if isinstance(thing, Mapping) else structs.asdict(thing) for thing in things]
    match settings.format:
        case "json":
            for fields in maps:
                click.echo(output.to_json(output.to_record(fields)), nl=False)
        case "id":
            for fields in maps:
                click.echo(" ".join(output.clean(str(fields[name])) for name in ids))
        case "table" if maps:
            rows = [
                [output.cell(name, fields.get(name)) for name in columns]
                for fields in map(output.readable, maps)
            ]
            output.table(columns, rows, header=header)
        case _:
            pass


def show_pages(
    settings: Settings,
    columns: Sequence[str],
    pages: Iterable[Sequence[Struct | Mapping[str, Any]]],
    ids: Sequence[str],
    *,
    nothing: str | None,
) -> None:
    """Print pages as they come, a table under one header; `nothing`: what is told where a table would be empty."""
    header = True
    for page in pages:
        show(settings, columns, page, ids, header=header)
        header = header and not page
    if header and nothing is not None and settings.format == "table":
        output.say(nothing)


def show_one(settings: Settings, thing: Struct | Mapping[str, Any], ids: Sequence[str]) -> None:
    fields = thing if isinstance(thing, Mapping) else structs.asdict(thing)
    if settings.format == "table":
        output.details(
            {name: value for name, value in output.readable(fields).items() if value not in (None, "", [])}
        )
    else:
        show(settings, (), [fields], ids)


def show_count(settings: Settings, verb: str, count: int, *, dry_run: bool) -> None:
    """Print how many jobs were swept. With -o id nothing: the server counts them, and names none."""
    match settings.format:
        case "table":
            jobs = f"{count:,} job" if count == 1 else f"{count:,} jobs"
            done = {"cancel": "cancelled", "requeue": "requeued", "purge": "purged"}[verb]
            click.echo(f"{jobs} would be {done}; nothing was changed" if dry_run else f"{jobs} {done}")
        case "json":
            show(settings, (), [{"count": count, "dry_run": dry_run}], ())
        case _:
            pass


def verdicts(settings: Settings, verb: str, results: Iterable[tuple[int, int, str]], **more: object) -> int:
    """Print what became of each job. Returns the exit code."""
    from jqd.client import requests

    jobs = [(first + n, code) for first, count, code in results for n in range(count)]
    refused = [(job_id, code) for job_id, code in jobs if code != "ok"]
    shown: list[dict[str, Any]]
    if settings.format == "id":
        shown = [{"job_id": job_id} for job_id, code in jobs if code == "ok"]
    else:
        shown = [{"job_id": job_id, "code": code, **(more if code == "ok" else {})} for job_id, code in jobs]
    show(settings, ("job_id", "code", *more), shown, ("job_id",), header=False)
    for job_id, code in refused:
        output.say(f"jqctl: {code}: {requests.refusal(verb, job_id, code)}")
    return 1 if refused else 0

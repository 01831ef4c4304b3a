"""What is wrong with a request, in the words of who typed it: `--wait 40s` and not `wait_ms = 40000`.

Knows:         how the client and the daemon name a field and its value, and the options of a command.
Must not know: what a field means, verbs, exit codes.

    field of the request                  what was typed
    wait_ms = 40000, wait = 40s           --wait 40s
    run_at_ms = 0                         --run-at 1970-01-01T00:00:00.000Z
    priority = 40000                      --priority 40000
    retry.base_ms = 90000                 --retry base=90s
    progress_text = 300 bytes             --text 300 bytes; _ALIASES has such names
    filter.where                          --filter
    expected `int` <= 5                   at most 5
    dedupe_key, retention_ms              --dedupe-key, and retention where that is no option
    set_queue                             jqctl queue set

A field that is no option of the command, such as `queue = ` and `payload = `, stays, and so does what stands in quotes, and what
is said of the text of a filter, which has fields of its own.
"""

import re
from collections.abc import Mapping
from typing import Final

import click

from jqctl import output

# jqd's refusals are shorter. Of another program's the expressions below might be at work for long.
_MESSAGE_CHARS_MAX: Final = 2_000
_ALIASES: Final = {"progress_percent": "progress", "progress_text": "text", "result_error": "error"}
_DATES: Final = frozenset({"run_at", "expires_at"})
# The verb that a refusal begins with: "lease: wait = 40s: at most 30s".
_VERB: Final = re.compile(r"^[a-z_]+: (?=[a-z_.\[\]0-9]+(?: = |: |,))")
_FILTER: Final = re.compile(r"\bfilter\.(?:where(?P<said> = )?)?")
_BOUND: Final = re.compile(r"expected `int` (?P<sign>[<>]=) (?=-?[0-9])")
_LIMIT: Final = re.compile(
    r"(?P<head>^[a-z_]+_ms = [0-9]+: the limit is |[a-z_]+_ms, which is )(?P<ms>[0-9]+)\b"
)
_VERBS: Final = {"set_queue": "jqctl queue set"}
_DATE_BOUND: Final = re.compile(
    rf"\b(?P<head>(?:{'|'.join(_DATES)})_ms = -?[0-9]+: at (?:most|least)) (?P<bound>[0-9]+)"
)
_FIELD: Final = re.compile(
    # Of a long text there is the beginning, and no second quote; it may be cut within an escape.
    r"""(?P<quoted>(?P<quote>['"])(?:(?!(?P=quote))[^\\]|\\.)*?(?:\\?\.\.\. \([0-9]+ characters\)|(?P=quote)))"""
    r"|\b(?P<retry>retry\.)?(?P<name>[a-z][a-z_]*?)(?P<ms>_ms)?\b(?P<said> = (?P<value>-?[0-9]+\b)?)?"
)


def reworded(message: str, command: click.Command) -> str:
    """Return a refusal with the options of a command in the place of fields."""
    if len(message) > _MESSAGE_CHARS_MAX:
        return message
    options = _options(command)
    message = _VERB.sub("", message, count=1)
    message = _BOUND.sub(lambda found: f"at {'most' if found['sign'] == '<=' else 'least'} ", message)
    message = _DATE_BOUND.sub(lambda found: f"{found['head']} {_date(found['bound'])}", message)
    message = _LIMIT.sub(lambda found: f"{found['head']}{_duration(found['ms'])}", message)
    message = _FILTER.sub(_filter, message)
    if message.startswith("--filter,"):
        return message
    return _FIELD.sub(lambda found: _option(found, options), message)


def _filter(found: re.Match[str]) -> str:
    if found["said"]:
        return "filter = "
    return "--filter" if found[0].endswith("where") else ""


def _options(command: click.Command) -> dict[str, str]:
    """Return what a field is called -> the option that says it."""
    options: dict[str, str] = {}
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.is_flag:
            said = next(option for option in parameter.opts if option.startswith("--"))
            options[said.removeprefix("--").replace("-", "_")] = said
            options.setdefault(str(parameter.name), said)
    for field, name in _ALIASES.items():
        if name in options:
            options.setdefault(field, options[name])
    return options


def _option(found: re.Match[str], options: Mapping[str, str]) -> str:
    name, value = found["name"], found["value"]
    part = f"{name}=" if found["retry"] and found["said"] else name
    if found["quoted"]:
        return found[0]
    option = options.get("retry" if found["retry"] else name)
    if option is None:
        return name if found["ms"] and not found["said"] else _VERBS.get(name, found[0])
    if not (found["said"] or found["ms"] or "_" in name):  # "wait" alone may be any word
        return found[0]
    if found["ms"] and value is not None:
        value = _date(value) if name in _DATES else _duration(value)
    words = f"{option} {part}" if found["retry"] else f"{option} " if found["said"] else option
    return f"{words}{value or ''}"


def _date(wall_ms: str) -> str:
    try:
        return output.rfc3339(int(wall_ms))
    except OverflowError:
        return f"{wall_ms} ms"


def _duration(ms: str) -> str:
    from jqd.client.values import from_ms

    return from_ms(int(ms))

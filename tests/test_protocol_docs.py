"""protocol.md says what the code does: its tables, its picture and its examples are read and compared.

A table is found by its heading and its first column. What the code can tell about a field (type, default, limit) is
written out here in the page's own words, and the page must have the same row in the same place; the last column
is prose.
"""

import ast
import dataclasses
import json
import re
import struct
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest
from msgspec import NODEFAULT, Struct, inspect

from jqd.core import backoff, commands, filters, model
from jqd.core.commands import COMMANDS, Command
from jqd.core.engine import DECISIONS, LIMITS
from jqd.core.state import State
from jqd.errors import WIRE_ERRORS, InvalidArgument, ProtocolError
from jqd.protocol import messages
from jqd.server.config import Config

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "protocol.md"

Row = tuple[str, ...]


# --- reading the page ---------------------------------------------------------------------------


def page() -> str:
    return PAGE.read_text(encoding="utf-8")


@cache
def sections() -> dict[str, str]:
    """Return the text under each heading, up to the next heading of any level."""
    found: dict[str, str] = {}
    title = ""
    in_code = False
    for line in page().splitlines():
        in_code ^= line.startswith("```")
        if not in_code and (heading := re.fullmatch(r"#{1,6} (.+)", line)):
            title = heading[1].replace("`", "")
            assert title not in found, f"two sections are called {title!r}"
            found[title] = ""
        elif title:
            found[title] += line + "\n"
    return found


def section(title: str) -> str:
    assert title in sections(), f"protocol.md has no section {title!r}"
    return sections()[title]


def tables(title: str) -> dict[str, list[Row]]:
    """Return the tables of a section by the heading of their first column, without code quotes."""
    found: dict[str, list[Row]] = {}
    block: list[Row] = []
    for line in [*section(title).splitlines(), ""]:
        if line.startswith("|"):
            block.append(tuple(cell.strip().replace("`", "") for cell in line.strip()[1:-1].split("|")))
        elif block:
            head, rule, *rows = block
            assert set("".join(rule)) <= set("-|: "), f"{title}: no rule under {head}"
            for row in rows:
                assert len(row) == len(head), f"{title}: {row} has not the columns {head}"
            assert head[0] not in found, f"{title} has two tables that begin with {head[0]!r}"
            found[head[0]] = rows
            block = []
    return found


def table(title: str, first_column: str) -> list[Row]:
    found = tables(title)
    assert first_column in found, f"section {title!r} has no table that begins with {first_column!r}"
    return found[first_column]


def number(text: str) -> int:
    return int(text.replace(",", "").replace("−", "-"))


# --- a field in the page's words ----------------------------------------------------------------

# Limits that depend on more than one value, so that a decision checks them and not the decoder.
DECIDED_LIMITS = {
    "payload": f"≤ {model.PAYLOAD_BYTES_MAX:,} bytes",
    "payloads": f"1 .. {model.JOBS_PER_REQUEST_MAX:,} items",
    "metadata": f"≤ {model.METADATA_BYTES_MAX:,} bytes, {model.METADATA_KEYS_MAX} keys",
    "progress_text": f"≤ {model.PROGRESS_TEXT_BYTES_MAX:,} bytes",
}


def describe(kind: inspect.Type) -> tuple[str, str]:
    """Return what the page calls a type, and the limit that the decoder checks."""
    match kind:
        case inspect.UnionType(types=types):
            inner = [describe(one) for one in types if not isinstance(one, inspect.NoneType)]
            return " or ".join(sorted({name for name, _ in inner})) + " or nil", inner[0][1]
        case inspect.IntType():
            return "int", bounds(kind.ge, kind.le, "")
        case inspect.StrType():
            return "str", bounds(kind.min_length, kind.max_length, " chars")
        case inspect.BytesType():
            return "bin", bounds(kind.min_length, kind.max_length, " bytes")
        case inspect.ListType():
            return "list", bounds(kind.min_length, kind.max_length, " items")
        case inspect.BoolType():
            return "bool", ""
        case inspect.LiteralType(values=values):
            return "str", ", ".join(str(value) for value in values)
        case inspect.VarTupleType():
            return "list", bounds(kind.min_length, kind.max_length, " items")
        case inspect.TupleType():
            return "list", ""
        case inspect.DictType() | inspect.StructType():
            return "map", ""
    raise AssertionError(f"the page has no word for {kind}")


def bounds(low: int | None, high: int | None, unit: str) -> str:
    if low is None and high is None:
        return ""
    if low == high:
        return f"{low:,}{unit}"
    if low is None or (low == 0 and unit):
        return f"≤ {high:,}{unit}"
    if high is None:
        return f"≥ {low:,}{unit}"
    return f"{low:,} .. {high:,}{unit}"


def say(value: Any) -> str:
    match value:
        case None:
            return "nil"
        case bool():
            return str(value).lower()
        case bytes():
            return "empty" if not value else value.hex()
        case str():
            return value or "empty"
        case list():
            return json.dumps(value)
    return f"{value:,}"


def fields(kind: type[Struct]) -> list[inspect.Field]:
    found = inspect.type_info(kind)
    assert isinstance(found, inspect.StructType)
    return list(found.fields)


def default_of(field: inspect.Field) -> str:
    if field.default_factory is not NODEFAULT:
        return say(field.default_factory())
    return "required" if field.default is NODEFAULT else say(field.default)


def request_rows(kind: type[Struct]) -> list[Row]:
    """Return field, type, default and limit of each field of a request."""
    return [
        (
            one.name,
            describe(one.type)[0],
            default_of(one),
            DECIDED_LIMITS.get(one.name) or describe(one.type)[1],
        )
        for one in fields(kind)
    ]


def reply_rows(kind: type[Struct]) -> list[Row]:
    """Return field, type, and what it is if it is left out, of each field of a reply."""
    omits = getattr(kind.__struct_config__, "omit_defaults", False)
    return [
        (one.name, describe(one.type)[0], default_of(one).replace("required", "") if omits else "")
        for one in fields(kind)
    ]


# --- commands -----------------------------------------------------------------------------------

# Fields that several commands share stand once, under a heading of their own.
BULK = "Bulk actions: cancel, requeue, purge"
BULK_VERBS = {"cancel", "requeue", "purge"}


def title_of(verb: str) -> str:
    return BULK if verb in BULK_VERBS else verb


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_verb_has_a_section_with_form_and_errors(verb):
    text = section(verb)
    assert f'[id, "{verb}", {{' in text, f"{verb}: no line shows the form of the request"
    assert "**Errors**" in text, f"{verb}: no errors in order of precedence"


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_field_of_a_command_is_documented_with_type_default_and_limit(verb):
    command = COMMANDS[verb]
    if not fields(command):
        assert "No fields." in section(verb)
        return
    rows = [row[:4] for row in table(title_of(verb), "field")]
    if title_of(verb) != verb and "field" in tables(verb):  # what it has besides
        rows += [row[:4] for row in table(verb, "field")]
    assert rows == request_rows(command)


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_field_of_a_reply_is_documented_with_type_and_what_is_left_out(verb):
    if verb in {"fail", "release"}:
        assert "Reply: as of [ack](#ack)" in section(verb)
        assert COMMANDS[verb].reply is COMMANDS["ack"].reply
        return
    assert [row[:3] for row in table(title_of(verb), "reply field")] == reply_rows(COMMANDS[verb].reply)


@pytest.mark.parametrize(
    ("title", "first_column", "kind"),
    [
        ("lease", "field of a job", commands.LeasedJob),
        ("get", "field of an attempt", commands.AttemptInfo),
        ("wait", "field of an ended job", commands.EndedJob),
        ("queues", "field of a queue", commands.QueueInfo),
        ("workers", "field of a worker", commands.WorkerInfo),
        ("Errors", "field of an error", messages.ErrorBody),
    ],
)
def test_every_field_inside_a_reply_is_documented(title, first_column, kind):
    assert [row[:3] for row in table(title, first_column)] == reply_rows(kind)


def test_retry_policies_are_documented():
    assert [row[:4] for row in table("Retry policies", "field of a policy")] == request_rows(
        model.RetryPolicy
    )
    takes = [(row[0], row[2]) for row in table("Retry policies", "kind")]
    assert takes == [(kind, ", ".join(names)) for kind, names in backoff.FIELDS.items()]


def test_events_are_documented():
    rows = table("Events", "event")
    examples = re.findall(r"^    (\[0, .*\])$", section("Events"), re.MULTILINE)
    for (name, body, _), example, (kind, expected) in zip(
        rows, examples, commands.EVENT_NAMES.items(), strict=True
    ):
        request_id, said, _, items = read_message(example)
        assert (request_id, said, name) == (0, expected, expected)
        event = msgspec.convert(items, kind)
        assert msgspec.to_builtins(event).keys() == {body.partition(":")[0].removeprefix("{")}


def test_fields_of_a_filter_are_documented():
    assert [row[:4] for row in table("Filters", "field")] == request_rows(commands.JobFilter)


def test_a_group_is_payloads_and_the_fields_of_submit():
    group = [one.name for one in fields(commands.SubmitGroup)]
    single = [one.name for one in fields(commands.Submit)]
    assert [row[0] for row in table("submit_many", "field of a group")] == ["payloads", "all others"]
    assert set(group) - {"payloads"} == set(single) - {"payload"}
    assert table("submit_many", "field of a group")[0][:4] == request_rows(commands.SubmitGroup)[0]


def test_table_of_verbs_says_what_changes_state_and_which_scope_it_needs():
    found = [(row[0], row[1], row[2]) for row in table("Commands", "verb")]
    expected = [(verb, "yes" if one.writes else "no", one.scope) for verb, one in COMMANDS.items()]
    assert found == expected


def test_nothing_is_documented_that_is_not_a_verb():
    after = page().split("\n## Commands\n")[1].split("\n## ")[0]
    headings = {one.replace("`", "") for one in re.findall(r"^### (.+)$", after, re.MULTILINE)}
    assert headings - {BULK, "Filters", "The filter language"} == set(COMMANDS)


def test_fields_of_the_filter_language_are_documented_with_their_operators():
    kinds = {
        "choice": filters._CHOICES,
        "text": [*filters._TEXTS, "metadata.KEY"],
        "number": filters._NUMBERS,
    }
    kinds["duration"] = filters._SINCE_MS
    expected = {(name, " ".join(filters._OPERATORS[kind])) for kind, names in kinds.items() for name in names}
    assert {row[:2] for row in table("The filter language", "filter field")} == expected
    grammar = re.findall(r"^    (\w+ +=.*)$", section("The filter language"), re.MULTILINE)
    assert grammar and all(line in filters.__doc__ for line in grammar)


def test_options_that_are_not_built_are_listed_and_refused():
    state = State()
    for name, value in [(row[0], row[1]) for row in table("Not built yet", "field")]:
        verb, _, field = name.partition(".")
        if verb == "hello":
            continue  # refused by the engine, see tests/core
        command = msgspec.convert({field: ast.literal_eval(value)}, COMMANDS[verb])
        with pytest.raises(InvalidArgument, match=field):
            DECISIONS[type(command)](command, state, model.LOCAL, model.Now(0, 0), lambda change: None)


# --- errors, limits, states ---------------------------------------------------------------------


def test_every_error_code_is_documented_with_its_retryable_flag():
    found = {row[0]: row[1] for row in table("Errors", "code")}
    assert found == {code: "yes" if one.retryable else "no" for code, one in WIRE_ERRORS.items()}


def test_errors_that_end_the_connection_are_marked():
    for code, _, survives, *_ in table("Errors", "code"):
        kind = WIRE_ERRORS[code]
        ends = issubclass(kind, ProtocolError) and kind.fatal
        assert survives == ("no" if ends else "frame: no" if code == "payload_too_large" else "yes"), code


def test_rule_of_fatal_errors_names_the_codes_that_are_always_fatal():
    rule = section("Connections").split("**Fatal errors** are ")[1].split(", every error with id 0")[0]
    fatal = {code for code, kind in WIRE_ERRORS.items() if issubclass(kind, ProtocolError) and kind.fatal}
    assert set(re.findall(r"`(\w+)`", rule)) == fatal


# Made in the engine for sessions of another key, and there are no keys yet.
UNREACHABLE = {"permission_denied"}


def test_errors_are_sent_or_reserved_as_the_page_says():
    source = "".join(
        path.read_text(encoding="utf-8")
        for room in ("core", "protocol", "server")
        for path in (ROOT / "jqd" / room).glob("*.py")
        if path.name != "connection.py"  # the client's end
    )
    for code, _, _, sent, _ in table("Errors", "code"):
        made = re.search(rf"\b{WIRE_ERRORS[code].__name__}\(|\"{code}\"", source) is not None
        assert sent == ("yes" if made and code not in UNREACHABLE else "reserved"), (
            f"{code}: made here = {made}"
        )


# Units and bit layouts are no limits.
NO_LIMITS = {"SECOND_MS", "MINUTE_MS", "HOUR_MS", "DAY_MS", "SHARD_SHIFT", "GRANT_BITS"}


def test_every_limit_is_documented_with_its_value():
    expected = {
        name: value
        for name, value in vars(model).items()
        if name.isupper() and isinstance(value, int) and not name.startswith("_") and name not in NO_LIMITS
    }
    expected["REQUEST_ID_MAX"] = messages.REQUEST_ID_MAX
    assert {row[0]: number(row[1]) for row in table("Limits", "limit")} == expected


def test_limits_that_the_welcome_tells_are_documented():
    assert {row[0]: number(row[1]) for row in table("hello", "limit")} == LIMITS


def test_settings_that_clients_notice_are_documented_with_their_defaults():
    defaults = {one.name: one.default for one in dataclasses.fields(Config)}
    for name, value, _ in table("Limits", "setting"):
        assert number(value) == defaults[name], name


def test_life_cycle_picture_is_the_transition_table():
    edges = re.findall(r"^ *(\[\*\]|\w+) --> (\[\*\]|\w+)", section("Life cycle"), re.MULTILINE)
    names = set(model.STATE_NAMES)
    moves = {(a, b) for a, b in edges if a in names and b in names}
    expected = {(a.wire_name, b.wire_name) for a, targets in model.TRANSITIONS.items() for b in targets}
    assert moves == expected, f"only in the picture: {moves - expected}; only in the code: {expected - moves}"
    assert [row[0] for row in table("Life cycle", "state")] == list(model.STATE_NAMES)


@pytest.mark.parametrize(
    ("title", "first_column", "kind"),
    [
        ("Life cycle", "reason", model.DeadReason),
        ("Attempts, errors, crashes", "cause", model.Cause),
    ],
)
def test_every_word_that_a_reply_may_say_is_explained(title, first_column, kind):
    assert [row[0] for row in table(title, first_column)] == list(kind.__args__)


# --- examples -----------------------------------------------------------------------------------

Example = tuple[str, Any, bytes]


def examples() -> list[list[Example]]:
    """Return the dialogues: who speaks, what is said, the bytes of the frame where they are shown."""
    return [
        read_dialogue(block)
        for block in re.findall(r"^```wire\n(.*?)^```$", page(), re.MULTILINE | re.DOTALL)
    ]


def read_dialogue(block: str) -> list[Example]:
    said: list[list[str]] = []
    for line in block.splitlines():
        if line.startswith(("C: ", "S: ")):
            said.append([line[0], line[3:], ""])
        elif line.startswith("   | "):
            said[-1][2] += line[5:]
        elif line.startswith("   "):
            said[-1][1] += line.strip() + " "
        else:
            assert not line.strip(), f"neither C:, S:, nor indented: {line!r}"
    return [(who, read_message(text), bytes.fromhex(data)) for who, text, data in said]


def read_message(text: str) -> Any:
    for word, value in (("nil", "None"), ("true", "True"), ("false", "False")):
        text = re.sub(rf"\b{word}\b", value, text)
    return ast.literal_eval(text)


def test_examples_are_requests_and_replies_of_this_protocol():
    assert len(examples()) >= len(COMMANDS) - 2
    verbs: dict[int, str] = {}
    for dialogue in examples():
        for who, message, _ in dialogue:
            if who == "C":
                frame = msgpack.packb(message, use_bin_type=True)
                request = messages.decode_request(frame)
                if request.verb in COMMANDS:
                    verbs[request.request_id] = request.verb
                    messages.decode_command(request)
                continue
            request_id, status, lsn, body = message
            kind = COMMANDS[verbs[request_id]].reply if status == "ok" else messages.ErrorBody
            assert isinstance(lsn, int)
            assert status == "ok" or WIRE_ERRORS[status].retryable is body["retryable"]
            assert set(body) <= {one.name for one in fields(kind)}, message
            msgspec.msgpack.decode(msgpack.packb(body, use_bin_type=True), type=kind)


def test_bytes_in_examples_are_the_frames_of_their_messages():
    shown = [(message, data) for dialogue in examples() for _, message, data in dialogue if data]
    assert shown, "no example shows bytes"
    for message, data in shown:
        (length,) = struct.unpack(">I", data[:4])
        assert length == len(data) - 4, message
        assert msgpack.unpackb(data[4:]) == message
        assert msgpack.packb(message, use_bin_type=True) == data[4:]


def test_every_verb_has_an_example():
    shown = {message[1] for dialogue in examples() for who, message, _ in dialogue if who == "C"}
    assert shown >= set(COMMANDS)


# --- the text -----------------------------------------------------------------------------------


def test_links_inside_the_page_lead_somewhere():
    anchors = {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in sections()}
    for target in re.findall(r"\]\(#([^)]+)\)", page()):
        assert target in anchors, f"(#{target})"


def test_sections_follow_each_other_in_one_order_of_verbs():
    order = [page().index(f"\n### `{verb}`\n") for verb in COMMANDS]
    assert all(a < b for a, b in pairwise(order)), "commands stand in the order of COMMANDS"


def test_commands_are_all_structs_of_the_table():
    assert {one.verb for one in leaves(Command)} == set(COMMANDS)


def leaves(kind: type[Any]) -> list[type[Any]]:
    children = kind.__subclasses__()
    if not children:
        return [kind] if "verb" in vars(kind) else []
    return [leaf for child in children for leaf in leaves(child)]

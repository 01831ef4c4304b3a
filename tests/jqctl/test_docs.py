"""docs/jqctl.md: its reference is what the commands say of themselves, its prose names all there is.

`make docs` writes the reference anew.
"""

import re
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path
from textwrap import dedent

import click
import pytest

from jqctl import __main__ as program
from jqctl.group import COMMON
from jqctl.verbs import cli
from jqd.errors import StorageError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "jqctl.md"
REFERENCE = re.compile(
    r"(?<=<!-- generated: python -m tests\.jqctl\.test_docs -->\n).*?(?=<!-- end -->)", re.DOTALL
)


# --- the reference ----------------------------------------------------------------------------


def verbs(context: click.Context) -> Iterator[click.Context]:
    """Yield a context for each verb below, in order of their names."""
    assert isinstance(context.command, click.Group)
    for name, command in sorted(context.command.commands.items()):
        below = click.Context(command, info_name=name, parent=context)
        yield below
        if isinstance(command, click.Group):
            yield from verbs(below)


def render() -> str:
    root = click.Context(cli, info_name="jqctl")
    lines = ["| verb | what it does |", "| --- | --- |"]
    for context in verbs(root):
        path = context.command_path
        anchor = path.replace(" ", "-")
        lines.append(
            f"| [`{path.partition(' ')[2]}`](#{anchor}) | {escaped(context.command.get_short_help_str(200))} |"
        )
    lines += ["", "Every verb but `completion` and `wal` takes these, before or after the verb:", ""]
    lines += [row for option in cli.params if option.name in COMMON for row in rows(root, option)]
    for context in verbs(root):
        command = context.command
        lines += ["", f"### {context.command_path}", "", "```"]
        lines += [" ".join([context.command_path, *command.collect_usage_pieces(context)]), "```"]
        lines += prose(command.help or "")
        own = [option for option in command.params if option.name not in COMMON]
        if options := [row for option in own for row in rows(context, option)]:
            lines += ["", *options]
    return "\n".join(lines) + "\n\n"


def rows(context: click.Context, parameter: click.Parameter) -> Iterator[str]:
    """Yield the line of an option; an argument stands in the usage and in the prose."""
    record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
    if record is not None:
        yield f"- `{record[0]}`: {escaped(' '.join(record[1].split()))}"


def prose(help: str) -> Iterator[str]:
    """Yield a command's help as Markdown; a block that click is not to fill is code under its first line."""
    for paragraph in cleandoc(help).split("\n\n"):
        yield ""
        if paragraph.startswith("\b\n"):
            head, *code = paragraph.split("\n")[1:]
            yield from (head, "", "```", *dedent("\n".join(code)).split("\n"), "```")
        else:
            yield escaped(" ".join(paragraph.split()))


def escaped(text: str) -> str:
    return re.sub(r"([*<|])", r"\\\1", text)


def test_reference_is_current():
    found = REFERENCE.search(PAGE.read_text())
    assert found and found[0] == render(), "run: make docs"


def test_reference_names_every_verb_and_option_with_an_example():
    text = render()
    for context in verbs(click.Context(cli, info_name="jqctl")):
        section = text.partition(f"### {context.command_path}\n")[2].partition("\n### ")[0]
        assert re.search(rf"^Examples?:\n\n```\n(.*\n)*?.*{context.command_path}", section, re.MULTILINE)
        for parameter in context.command.params:
            if isinstance(parameter, click.Option) and parameter.name not in COMMON:
                assert parameter.opts[0] in section


def test_links_lead_somewhere():
    text = PAGE.read_text()
    anchors = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]*)\)", text)) <= anchors
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert (PAGE.parent / target).exists()


# --- the prose --------------------------------------------------------------------------------


def test_prose_has_lines_that_an_editor_shows():
    lines = REFERENCE.sub("", PAGE.read_text()).splitlines()
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []


def test_every_exit_code_is_explained():
    codes = {value for name, value in vars(program).items() if name.isupper() and isinstance(value, int)}
    codes |= {leaf.exit_code for leaf in StorageError.__subclasses__()}  # of `wal`
    table = PAGE.read_text().partition("## Exit codes")[2].partition("\n## ")[0]
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)} == {0, *codes}


@pytest.mark.parametrize("variable", ["JQD_URL", "NO_COLOR", "FORCE_COLOR", "TERM", "XDG_DATA_HOME", "HOME"])
def test_every_variable_is_explained(variable):
    table = PAGE.read_text().partition("## Environment")[2].partition("\n## ")[0]
    assert f"`{variable}`" in table


def test_every_format_is_explained():
    (option,) = (option for option in cli.params if option.name == "format")
    table = PAGE.read_text().partition("## Output")[2].partition("\n## ")[0]
    assert isinstance(option.type, click.Choice)
    assert re.findall(r"^\| `(\w+)`", table, re.MULTILINE)[-3:] == list(option.type.choices)


if __name__ == "__main__":
    PAGE.write_text(REFERENCE.sub(lambda _: render(), PAGE.read_text()))

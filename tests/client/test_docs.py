"""docs/python.md: its reference is cut out of the code, its figures are those of the code, its names exist.

`python -m tests.client.test_docs` writes the reference anew.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

from jqd import errors
from jqd.client import requests, sync, values
from jqd.client.retry import Backoff
from jqd.client.sync import Client
from jqd.core import commands, model

PAGE = Path(__file__).resolve().parents[2] / "docs" / "python.md"
REFERENCE = re.compile(
    r"(?<=<!-- generated: python -m tests\.client\.test_docs -->\n).*?(?=<!-- end -->)", re.DOTALL
)
OPTIONS = ["JobOptions", "SweepOptions", "UpdateOptions", "QueueOptions", "Held", "HeldJob"]
# What the verbs return and what is in it, in the order of the verbs.
REPLIES = ["Pong", "Submitted", "SubmittedMany", "LeasedJob", "Verdicts", "Extended", "AttemptInfo", "JobInfo", "EndedJob", "Waited", "JobList",
           "QueueInfo", "QueueList", "QueueDetails", "Registered", "WorkerInfo", "WorkerList",
           "WorkersTold", "ServerStats", "Swept", "Updated", "QueueChanged", "SnapshotBegun"]  # fmt: skip


def head(source: str, node: ast.AST) -> str:
    """Return a function or a class up to the end of its docstring."""
    assert isinstance(node, ast.FunctionDef | ast.ClassDef)
    docstring = node.body[0]
    assert isinstance(docstring, ast.Expr), f"{node.name} has no docstring"
    lines = source.splitlines()[node.lineno - 1 : docstring.end_lineno]
    return re.sub(r"\bself(, |,\n *|(?=\)))", "", dedent("\n".join(lines)), count=1)


def whole(source: str, node: ast.ClassDef) -> str:
    """Return a class with its fields, which end where its first method begins."""
    last = max(field.end_lineno or 0 for field in node.body if isinstance(field, ast.AnnAssign))
    return "\n".join(source.splitlines()[node.lineno - 1 : last])


def entries() -> Iterator[tuple[str, str]]:
    """Yield a heading and the code below it: the client, its verbs, what their arguments and replies are."""
    source = Path(sync.__file__).read_text(encoding="utf-8")
    (client,) = (
        node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == "Client"
    )
    yield "Client", head(source, client)
    for node in client.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, head(source, node)
    source = Path(requests.__file__).read_text(encoding="utf-8")
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and node.name in OPTIONS:
            yield node.name, (whole if node.name.startswith("Held") else head)(source, node)
    source = Path(commands.__file__).read_text(encoding="utf-8")
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and node.name in REPLIES:
            yield node.name, whole(source, node)


def render() -> str:
    return "".join(f"\n### {name}\n\n```python\n{code}\n```\n" for name, code in entries()) + "\n"


def prose() -> str:
    return REFERENCE.sub("", PAGE.read_text(encoding="utf-8"))


def test_reference_is_what_the_code_says():
    found = REFERENCE.search(PAGE.read_text(encoding="utf-8"))
    assert found and found[0] == render(), "python -m tests.client.test_docs writes it anew"


def test_reference_has_everything():
    names = [name for name, _ in entries()]
    verbs = [name for name in vars(Client) if not name.startswith("_")]
    assert verbs == names[1 : len(verbs) + 1]
    rest = names[len(verbs) + 1 :]
    assert set(OPTIONS) == set(rest[: len(OPTIONS)]) and rest[len(OPTIONS) :] == REPLIES
    returned = {kind.reply.__name__ for kind in commands.COMMANDS.values()} - {"Leased", "Welcome"}
    assert returned <= {*REPLIES}


def test_exceptions_exist():
    names = set(re.findall(r"`([A-Z]\w+)`", prose().partition("## When it")[2].partition("\n## ")[0]))
    assert {"RequestError", "UnavailableError", "ConnectionLost", "RequestTimeout"} < names
    for name in names:
        assert issubclass(getattr(errors, name), errors.JqdError), name
    assert not hasattr(errors.JqdError("x"), "outcome_unknown")
    assert errors.RequestTimeout("x").outcome_unknown


def test_verbs_in_the_prose_exist():
    for name in re.findall(r"`(?:Client\.)?(\w+_many)\b", prose()):
        assert hasattr(Client, name), name


def test_figures_are_those_of_the_code():
    text = prose()
    backoff = Backoff()
    assert f"{backoff.first_ms} ms, doubled up to {backoff.cap_ms // 1_000} s" in text
    assert f"given up after {backoff.give_up_ms // 1_000} s" in text
    assert f"| `timeout` | {Client()._timeout_ms // 1_000} s |" in text
    assert f"({values.DEFAULT_PORT})" in text and values.DEFAULT_URL in text
    assert f"| {model.JOBS_PER_REQUEST_MAX:,} payloads with the same options |" in text
    for example in re.findall(r"`(\d+\w+)`", text.partition("`Duration`")[2].partition("\n")[0]):
        assert values.to_ms("example", example) > 0


if __name__ == "__main__":
    PAGE.write_text(REFERENCE.sub(lambda _: render(), PAGE.read_text(encoding="utf-8")), encoding="utf-8")

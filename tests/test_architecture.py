"""The house rules that a machine can check.

A rule reads one file and yields the lines that break it; RULES says which files it reads, and gives bad and good
snippets, so that a rule that stopped seeing anything fails here. To add one: write the function, enter it in
RULES. A rule about the whole (every command documented, both clients alike) is a plain test at the end.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).resolve().parent.parent


# --- what a rule reads --------------------------------------------------------------------------


@dataclass(frozen=True)
class File:
    path: str  # from the root of the repository, with slashes
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @property
    def is_package(self) -> bool:
        return self.path.endswith("/__init__.py")

    @property
    def module(self) -> str:
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    def calls(self) -> Iterator[tuple[int, str, ast.Call]]:
        """Yield line, text of what is called, and the call."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call):
                yield node.lineno, ast.unparse(node.func), node

    def imports(self) -> Iterator[tuple[int, str]]:
        """Yield line and dotted name of every import wherever it stands; `from a import b` is `a.b`."""
        package = self.module if self.is_package else self.module.rpartition(".")[0]
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                parts = package.split(".")
                above = parts[: len(parts) - node.level + 1] if node.level else []
                base = ".".join([*above, *([node.module] if node.module else [])])
                yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def named(text: str) -> frozenset[str]:
    return frozenset(text.split())


def within(dotted: str, names: frozenset[str]) -> bool:
    """Tell whether a dotted name, or a package around it, is among the names."""
    return any(name in names for name in around(dotted))


def around(dotted: str) -> Iterator[str]:
    yield dotted
    while "." in dotted:
        dotted = dotted.rpartition(".")[0]
        yield dotted


# --- the rooms: which part may import what ------------------------------------------------------

STDLIB = frozenset(sys.stdlib_module_names)
# What makes a decision depend on more than its arguments: clocks, chance, threads, the world outside.
IMPURE = named(
    """
    _thread asyncio concurrent contextvars ctypes datetime fcntl fileinput getpass glob http importlib io locale
    logging mmap multiprocessing os pathlib pdb platform queue random resource sched secrets select selectors
    shelve shutil signal smtplib socket socketserver sqlite3 ssl subprocess syslog tempfile termios threading
    time tracemalloc tty urllib uuid
    """
)
EVERYTHING = named("*")


@dataclass(frozen=True, kw_only=True)
class Room:
    """A part of the program and what it may know.

    Attributes:
        may: dotted names, each with all below it, beside the room itself.
        never: dotted names that stay forbidden even where it may import everything.
        stdlib: what it may use of the standard library.
    """

    may: frozenset[str] = frozenset()
    never: frozenset[str] = frozenset()
    stdlib: frozenset[str] = STDLIB


# The most specific entry counts. A module in no room breaks the rule: say first what it may know.
ROOMS: Mapping[str, Room] = {
    "jqd.errors": Room(),
    "jqd.core": Room(may=named("jqd.errors msgspec"), stdlib=STDLIB - IMPURE),
    "jqd.protocol": Room(
        may=named("jqd.core.commands jqd.core.model jqd.errors msgspec"), stdlib=STDLIB - IMPURE
    ),
    "jqd.storage": Room(may=named("jqd.errors crc32c")),
    "jqd.server": Room(may=EVERYTHING, never=named("jqd.client jqctl")),
    "jqd.offline": Room(may=named("jqd.core jqd.storage jqd.errors msgspec")),
    "jqd.client": Room(
        may=named("jqd.protocol jqd.core.commands jqd.core.model jqd.errors jqd.__version__ msgspec msgpack")
    ),
    "jqd.__main__": Room(may=EVERYTHING),
    "jqd.testing": Room(may=EVERYTHING, never=named("jqctl")),
    "jqd.pytest_plugin": Room(may=named("jqd.testing pytest")),
    "jqd.worker": Room(may=named("jqd.client jqd.core.model jqd.errors jqd.__version__ click")),
    "jqctl": Room(may=named("jqd.client jqd.errors jqd.__version__ click rich msgspec")),
    "jqctl.offline": Room(may=named("jqctl jqd.offline jqd.errors jqd.__version__ click rich msgspec")),
}


def may_import(room: Room, name: str) -> bool:
    if room.may is EVERYTHING:
        return not within(name, room.never)
    return within(name, room.may) or name.partition(".")[0] in room.stdlib


def rooms_are_kept(file: File) -> Iterator[str]:
    if file.module == "jqd":  # the lazy names; what it loads is tested at the end
        may_not = (
            (line, name)
            for line, name in file.imports()
            if not within(name, named("importlib typing jqd.client jqd.errors"))
        )
        yield from (f"{line}: jqd/__init__.py may not import {name}" for line, name in may_not)
        return
    home = next((name for name in around(file.module) if name in ROOMS), None)
    if home is None:
        yield f"1: {file.module} stands in no room: enter it in ROOMS and in CONTRIBUTING.md"
        return
    room = ROOMS[home]
    for line, name in file.imports():
        first_two = ".".join(name.split(".")[:2])
        if within(name, named("jqd")) and first_two not in {*ROOMS, "jqd.offline", "jqd.__version__"}:
            yield f"{line}: {name} comes from the package itself: name the module that defines it"
        elif not may_import(room, name) and not within(name, named(home)):
            yield f"{line}: {home} may not import {name}"


def pure_rooms_do_nothing(file: File) -> Iterator[str]:
    """No I/O, no code from text, nothing that differs between processes (hash of a str)."""
    forbidden = named("open print input breakpoint exec eval compile __import__ hash")
    for line, called, _ in file.calls():
        if called in forbidden:
            yield f"{line}: {called}() in a room that only decides"


def modules_are_imported_by_name(file: File) -> Iterator[str]:
    """An import that is computed is one that the rooms cannot see."""
    for line, name in file.imports():
        if within(name, named("importlib.import_module importlib.__import__ runpy")):
            yield f"{line}: {name}: write the import out"
    for line, called, _ in file.calls():
        if called in ("__import__", "importlib.import_module", "import_module"):
            yield f"{line}: {called}(): write the import out"


# --- prose --------------------------------------------------------------------------------------


def module_has_a_card(file: File) -> Iterator[str]:
    """What the file is, what it knows, what it must not know; a package says what it is."""
    card = ast.get_docstring(file.tree) or ""
    if not card:
        yield "1: no docstring: say in one sentence what this file is"
    elif not file.is_package:
        yield from (
            f'1: the card lacks "{word}"' for word in ("Knows:", "Must not know:") if word not in card
        )


def public_function_has_a_docstring(file: File) -> Iterator[str]:
    """Functions that another module may use; a class may say all in its fields, methods are left to review."""
    for node in file.tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (
            not node.name.startswith("_") and ast.get_docstring(node) is None
        ):
            yield f"{node.lineno}: {node.name} has no docstring"


def nothing_is_left_to_do(file: File) -> Iterator[str]:
    """An open end is an issue, not a comment."""
    comments = (
        token
        for token in tokenize.generate_tokens(io.StringIO(file.text).readline)
        if token.type == tokenize.COMMENT
    )
    for token in comments:
        if re.search(r"\b(TODO|FIXME|XXX|HACK)\b", token.string):
            yield f"{token.start[0]}: {token.string}"


# --- tests and errors ---------------------------------------------------------------------------


def nothing_sleeps(file: File) -> Iterator[str]:
    """Move the clock or wait for an event; tests/support has helpers that poll with a bound."""
    for line, called, call in file.calls():
        if called.rpartition(".")[2] == "sleep" and not (
            called == "asyncio.sleep" and [ast.unparse(argument) for argument in call.args] == ["0"]
        ):
            yield f"{line}: {called}() in a test"


def nobody_hides_an_exception(file: File) -> Iterator[str]:
    """After the first change an exception ends the process. Who catches all says why: `# noqa: BLE001  reason`.

    Raising it again, or another one from it, is fine anywhere.
    """
    lines = file.text.splitlines()
    for node in ast.walk(file.tree):
        if isinstance(node, ast.ExceptHandler):
            last = node.body[-1]
            if isinstance(last, ast.Raise) and (last.exc is None or last.cause is not None):
                continue
            caught = "everything" if node.type is None else ast.unparse(node.type)
            all_of_it = caught == "everything" or re.search(r"\b(Base)?Exception\b", caught)
            if all_of_it and not re.search(r"noqa: BLE001\W+\w", lines[node.lineno - 1]):
                yield f"{node.lineno}: catches {caught} and does not raise it again"


def judges_share_no_code(file: File) -> Iterator[str]:
    """Who says whether jqd kept its promises does not ask jqd: a mistake that both made would be none."""
    for line, name in file.imports():
        if within(name, named("jqd jqctl")) or not within(name, STDLIB | named("tests.sim.rules")):
            yield f"{line}: a judge imports {name}"


def lock_file_is_portable(file: File) -> Iterator[str]:
    """Hashes and nothing that ties it to one index or machine."""
    for number, line in enumerate(file.text.splitlines(), 1):
        if re.search(r"^\s*-[-a-z]|://|@ file", line) and not re.match(
            r"\s*--hash=sha256:[0-9a-f]{64}", line
        ):
            yield f"{number}: {line.strip()}"
    for entry in file.text.replace("\\\n", "").splitlines():
        if entry[:1].isalnum() and not ("==" in entry and "--hash=sha256:" in entry):
            yield f"1: {entry} is not pinned with a hash"


# --- the table ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Which files a rule reads, and (path, text) pairs that it must refuse or accept."""

    check: Callable[[File], Iterator[str]]
    reads: Sequence[str]
    but: Sequence[str] = ()
    bad: Sequence[tuple[str, str]]
    good: Sequence[tuple[str, str]]

    @property
    def name(self) -> str:
        return self.check.__name__

    def files(self) -> Iterator[Path]:
        for path in sorted({path for pattern in self.reads for path in ROOT.glob(pattern)}):
            if not any(path.relative_to(ROOT).match(pattern) for pattern in self.but):
                yield path


CARD = '"""What it is.\n\nKnows: a.\nMust not know: b.\n"""\n'
HASH = "--hash=sha256:" + "0" * 64

RULES = [
    Rule(
        check=rooms_are_kept,
        reads=["jqd/**/*.py", "jqctl/**/*.py"],
        bad=[
            ("jqd/errors.py", "import msgspec"),
            ("jqd/core/holding.py", "import time"),
            ("jqd/core/holding.py", "import os.path"),
            ("jqd/core/holding.py", "from datetime import datetime"),
            ("jqd/core/holding.py", "def now():\n    from time import time\n    return time()"),
            ("jqd/core/holding.py", "if TYPE_CHECKING:\n    import asyncio"),
            ("jqd/core/holding.py", "try:\n    import random\nexcept ImportError:\n    pass"),
            ("jqd/core/holding.py", "import msgpack"),
            ("jqd/core/holding.py", "from jqd.storage.record import Record"),
            ("jqd/core/holding.py", "from jqd.protocol import framing"),
            ("jqd/core/holding.py", "from jqd import __version__"),
            ("jqd/core/holding.py", "from ..storage import record"),
            ("jqd/core/deep/er.py", "from ...storage import record"),
            ("jqd/core/__init__.py", "from ..storage import record"),
            ("jqd/protocol/framing.py", "from jqd.core import engine"),
            ("jqd/protocol/framing.py", "from jqd.core import *"),
            ("jqd/protocol/framing.py", "import jqd.core"),
            ("jqd/protocol/framing.py", "import jqd.core.commands_of_another_name"),
            ("jqd/protocol/framing.py", "import socket"),
            ("jqd/protocol/framing.py", "import msgpack"),
            ("jqd/storage/wal.py", "from jqd.core import changes"),
            ("jqd/storage/wal.py", "import msgspec"),
            ("jqd/storage/wal.py", "from jqd.server.config import Config"),
            ("jqd/server/driver.py", "from jqd.client.aio import AsyncClient"),
            ("jqd/server/driver.py", "from jqd import client"),
            ("jqd/server/driver.py", "import jqctl.verbs"),
            ("jqd/server/driver.py", "import jqd"),
            ("jqd/server/driver.py", "from jqd import AsyncClient"),
            ("jqd/server/driver.py", "from .. import AsyncClient"),
            ("jqd/offline/repair.py", "from jqd.server.daemon import recover"),
            ("jqd/offline/repair.py", "from jqd.client.values import to_ms"),
            ("jqd/offline/repair.py", "from crc32c import crc32c"),
            ("jqd/offline/repair.py", "import click"),
            ("jqd/client/aio.py", "from jqd.server.session import Session"),
            ("jqd/client/aio.py", "from jqd.core.engine import Engine"),
            ("jqd/client/aio.py", "import uvloop"),
            ("jqd/client/aio.py", "from jqd import JqdError"),
            ("jqctl/verbs.py", "from jqd.core.model import Job"),
            ("jqctl/verbs.py", "from jqd.offline import verify"),
            ("jqctl/verbs.py", "import structlog"),
            ("jqctl/offline.py", "from jqd.storage.wal import Wal"),
            ("jqd/__init__.py", "import asyncio"),
            ("jqd/__init__.py", "from jqd.server.daemon import main"),
            ("jqd/helpers.py", "import re"),
            ("jqd/util/text.py", ""),
        ],
        good=[
            ("jqd/errors.py", "from typing import ClassVar"),
            (
                "jqd/core/holding.py",
                "import heapq\nfrom jqd.core import changes\nfrom jqd.errors import LeaseLost",
            ),
            ("jqd/core/holding.py", "from msgspec import Struct\nfrom . import model"),
            (
                "jqd/protocol/framing.py",
                "import struct\nfrom jqd.core import commands\nimport msgspec.msgpack",
            ),
            (
                "jqd/protocol/framing.py",
                "from jqd.core.commands import Submit\nfrom jqd.errors import BadFrame",
            ),
            (
                "jqd/storage/wal.py",
                "import os, threading\nfrom crc32c import crc32c\nfrom jqd.storage import fs",
            ),
            ("jqd/server/driver.py", "import asyncio, uvloop\nfrom jqd.core.engine import Engine"),
            ("jqd/server/driver.py", "from jqd import __version__"),
            (
                "jqd/offline/repair.py",
                "import os\nfrom jqd.core.state import State\nfrom jqd.storage.wal import WalStore",
            ),
            ("jqd/client/aio.py", "import asyncio, msgpack\nfrom jqd.protocol.connection import Connection"),
            ("jqd/__main__.py", "from jqd.server import daemon"),
            (
                "jqctl/verbs.py",
                "import click\nfrom jqd.client.aio import AsyncClient\nfrom jqctl import shown",
            ),
            ("jqctl/offline.py", "from jqd.offline import verify"),
            ("jqd/__init__.py", "def __getattr__(name):\n    from jqd.client.aio import AsyncClient"),
        ],
    ),
    Rule(
        check=pure_rooms_do_nothing,
        reads=["jqd/core/**/*.py", "jqd/protocol/**/*.py"],
        bad=[
            ("jqd/core/holding.py", "print(job)"),
            ("jqd/core/holding.py", "with open(path) as file: pass"),
            ("jqd/core/holding.py", "jitter = hash(job_id, attempt)"),
            ("jqd/core/holding.py", "time = __import__('time')"),
        ],
        good=[("jqd/core/holding.py", "queue.open(1)\nself.print(x)")],
    ),
    Rule(
        check=modules_are_imported_by_name,
        reads=["jqd/**/*.py", "jqctl/**/*.py"],
        but=["jqd/__init__.py"],  # the lazy names
        bad=[
            ("jqd/server/daemon.py", "import importlib\nimportlib.import_module(name)"),
            ("jqd/server/daemon.py", "from importlib import import_module as load"),
            ("jqd/server/daemon.py", "__import__('jqctl')"),
        ],
        good=[
            (
                "jqd/server/daemon.py",
                "from importlib.resources import files\nfrom importlib.metadata import version",
            )
        ],
    ),
    Rule(
        check=module_has_a_card,
        reads=["jqd/**/*.py"],
        but=["jqd/__main__.py"],
        bad=[
            ("jqd/core/holding.py", ""),
            ("jqd/core/holding.py", "# What it is."),
            ("jqd/core/holding.py", '"""What it is."""'),
            ("jqd/core/holding.py", '"""What it is.\n\nKnows: a.\n"""'),
            ("jqd/core/__init__.py", ""),
        ],
        good=[("jqd/core/holding.py", CARD), ("jqd/core/__init__.py", '"""What it is."""')],
    ),
    Rule(
        check=public_function_has_a_docstring,
        reads=["jqd/**/*.py"],
        bad=[
            ("jqd/core/holding.py", "def extend(): pass"),
            ("jqd/core/holding.py", "async def extend(): pass"),
        ],
        good=[
            (
                "jqd/core/holding.py",
                'def _extend(): pass\nclass Extend:\n    """Say."""\n    def extend(self): pass',
            )
        ],
    ),
    Rule(
        check=nothing_is_left_to_do,
        reads=["jqd/**/*.py", "jqctl/**/*.py", "tests/**/*.py", "scripts/**/*.py"],
        bad=[("jqd/core/holding.py", "x = 1  # TODO: more"), ("tests/test_a.py", "# FIXME")],
        good=[("jqd/core/holding.py", "# TODOS is a queue\nname = 'TODO'")],
    ),
    Rule(
        check=nothing_sleeps,
        reads=["tests/**/*.py"],
        but=["tests/support/*.py", "tests/bench/*.py"],
        bad=[
            ("tests/test_a.py", "time.sleep(0.1)"),
            ("tests/test_a.py", "async def test():\n    await asyncio.sleep(0.01)"),
            ("tests/test_a.py", "from time import sleep\nsleep(1)"),
            ("tests/test_a.py", "time.sleep(0)"),
        ],
        good=[("tests/test_a.py", "async def test():\n    await asyncio.sleep(0)\nname = 'sleep(1)'")],
    ),
    Rule(
        check=nobody_hides_an_exception,
        reads=["jqd/**/*.py"],
        bad=[
            ("jqd/core/engine.py", "try: pass\nexcept Exception: pass"),
            ("jqd/core/engine.py", "try: pass\nexcept (OSError, BaseException) as error: raise KeyError"),
            ("jqd/core/engine.py", "try: pass\nexcept: pass"),
            ("jqd/core/engine.py", "try: pass\nexcept Exception:  # noqa: BLE001\n    pass"),
        ],
        good=[
            ("jqd/core/engine.py", "try: pass\nexcept (OSError, BadFrame): pass"),
            ("jqd/core/engine.py", "try: pass\nexcept BaseException:\n    close()\n    raise"),
            ("jqd/core/engine.py", "try: pass\nexcept Exception as e:\n    raise KeyError(1) from e"),
            (
                "jqd/storage/wal.py",
                "try: pass\nexcept Exception as e:  # noqa: BLE001  poisons\n    poison(e)",
            ),
        ],
    ),
    Rule(
        check=judges_share_no_code,
        reads=["tests/sim/oracle.py", "tests/sim/rules/*.py"],
        bad=[
            ("tests/sim/oracle.py", "from jqd.core.backoff import retry_delay_ms"),
            ("tests/sim/oracle.py", "import jqd"),
            ("tests/sim/rules/leases.py", "from tests.support.naive import NaiveQueue"),
        ],
        good=[("tests/sim/oracle.py", "import math\nfrom tests.sim.rules.leases import Leases")],
    ),
    Rule(
        check=lock_file_is_portable,
        reads=["*.lock"],
        bad=[
            ("requirements.lock", f"--index-url https://somewhere/simple\nclick==8.5.1 {HASH}"),
            ("requirements.lock", f"--find-links ./wheels\nclick==8.5.1 {HASH}"),
            ("requirements.lock", f"click @ https://somewhere/click.whl {HASH}"),
            ("requirements.lock", "click==8.5.1"),
            ("requirements.lock", f"click>=8 {HASH}"),
            ("requirements.lock", f"click==8.5.1\nrich==15.0.0 \\\n    {HASH}"),
        ],
        good=[
            (
                "requirements.lock",
                f"click==8.5.1 \\\n    {HASH} \\\n    {HASH}\n    # via jqd\nrich==15 {HASH}",
            )
        ],
    ),
]

EACH_RULE = pytest.mark.parametrize("rule", RULES, ids=[rule.name for rule in RULES])


@EACH_RULE
def test_house_rule(rule):
    broken = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in rule.files()
        for line in rule.check(File(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")))
    ]
    assert not broken, f"{rule.name}:\n" + "\n".join(broken)


@EACH_RULE
def test_rule_reads_files(rule):
    assert list(rule.files())


def snippets(kind: str) -> list[object]:
    return [
        pytest.param(rule, path, dedent(text), id=f"{rule.name}-{path}-{number}")
        for rule in RULES
        for number, (path, text) in enumerate(getattr(rule, kind))
    ]


@pytest.mark.parametrize(("rule", "path", "text"), snippets("bad"))
def test_rule_refuses(rule, path, text):
    assert list(rule.check(File(path, text)))


@pytest.mark.parametrize(("rule", "path", "text"), snippets("good"))
def test_rule_accepts(rule, path, text):
    assert not list(rule.check(File(path, text)))


# --- the whole ----------------------------------------------------------------------------------


@pytest.mark.parametrize("package", ["jqd", "jqctl", "jqd.errors"])
def test_import_loads_neither_asyncio_nor_uvloop(package):
    code = f"import sys, {package}; print(*sys.modules.keys() & {{'asyncio', 'uvloop', 'rich', 'structlog'}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []


def test_lazy_names_are_there():
    code = "import jqd\nfor name in jqd.__all__: getattr(jqd, name)\nassert set(jqd.__all__) == set(dir(jqd))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_rooms_stand_in_contributing():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rooms = {name.replace(".", "/") for name in ROOMS if name != "jqctl.offline"}
    missing = {room for room in rooms if f"`{room}/`" not in page and f"`{room}.py`" not in page}
    assert not missing

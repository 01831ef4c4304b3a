"""How far long work is: on a real terminal, and nowhere else."""

import re
import subprocess
import sys
from typing import Any

import pytest

from jqctl.progress import Progress
from jqctl.sweeps import sweep
from jqd.core.commands import SubmittedMany, Swept
from tests.support.fakeserver import Asked
from tests.support.terminal import Terminal


def jqctl(shell: Any, *args: str) -> list[str]:
    return [sys.executable, "-m", "jqctl", "--url", shell.server.url, *args]


def sweeping(asked: Asked) -> Swept | None:
    """Answer the first two pages; the third one is answered by `go_on`."""
    cursor: int = asked.command.cursor  # type: ignore[attr-defined]
    return None if cursor == 2_000 else Swept(count=1_000, cursor=cursor + 1_000, results=[])


def go_on(shell: Any) -> None:
    asked = shell.server.asked[-1]
    asked.connection.say(asked.request_id, Swept(count=5, cursor=None, results=[]))


def test_a_sweep_shows_how_many_and_leaves_nothing_behind(shell):
    shell.server.answers["requeue"] = sweeping
    with Terminal(jqctl(shell, "requeue", "--queue", "q", "-o", "json"), stdout=subprocess.PIPE) as terminal:
        assert "requeue" in terminal.read_until("2,000 jobs")
        shell.server.do(go_on, shell)
        assert terminal.end() == 0
        assert terminal.process.stdout.read() == b'{"count":2005,"dry_run":false}\n'
    assert terminal.shown.endswith("\x1b[2K")  # the line is erased


def test_an_interrupted_sweep_says_how_far_it_came(shell):
    shell.server.answers["requeue"] = sweeping
    with Terminal(jqctl(shell, "requeue", "--queue", "q")) as terminal:
        terminal.read_until("2,000 jobs")
        terminal.interrupt()
        assert terminal.end() == 130
    assert terminal.shown.endswith("requeue: 2000 jobs were changed before this\r\n\r\n")


def test_a_sweep_that_is_interrupted_while_it_draws_says_so_too(capsys, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    class Pages:
        def call(self, command: object) -> Swept:
            return Swept(count=2_000, cursor=7, results=[])

    monkeypatch.setattr(Progress, "move", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep(Pages(), "requeue", {"queue": "q"})  # type: ignore[arg-type]
    assert capsys.readouterr().err == "requeue: 2000 jobs were changed before this\n"


def test_a_file_shows_its_bytes_and_its_ranges_stand_whole(shell, tmp_path):
    first = SubmittedMany(jobs=[(1, 10_000, False)])
    shell.server.answers["submit_many"] = lambda _: first if len(shell.server.asked) == 1 else None
    path = tmp_path / "jobs.jsonl"
    path.write_text('{"payload": "a"}\n' * 19_000)  # 323,000 bytes
    with Terminal(jqctl(shell, "submit", "q", "--file", str(path)), columns=120) as terminal:
        assert "check" in terminal.read_until("/323.0 kB")
        terminal.read_until("submit")  # a slow machine shows the check of the first part too
        terminal.read_until("170.0/323.0 kB")
        asked = shell.server.wait(shell.server.heard(2))[-1]
        shell.server.do(asked.connection.say, asked.request_id, SubmittedMany(jobs=[(10_001, 9_000, False)]))
        assert terminal.end() == 0
    # What is left when everything that was erased is gone.
    lines = [line.rpartition("\x1b[2K")[2] for line in terminal.shown.split("\r\n")]
    left = [words for line in lines if (words := re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", line).split())]
    output = [words for words in left if len(words) == 2]
    assert output == [["JOB_ID", "COUNT"], ["1", "10000"], ["10001", "9000"]]


LOADED = """
import sys
from jqctl.__main__ import run
path, *args = sys.argv[1:]
code = run(args)
open(path, "w").write(f"{code} {'rich.progress' in sys.modules}")
"""
UNSEEN = {"stderr": subprocess.DEVNULL}


@pytest.mark.parametrize(
    ("pages", "environ", "streams", "loaded"),
    [
        (4, {}, {}, True),
        (1, {}, {}, False),
        (4, {}, UNSEEN, False),
        (4, {"FORCE_COLOR": "1"}, UNSEEN, False),
        (4, {"TERM": "dumb"}, {}, False),
    ],
)
def test_only_what_is_drawn_is_loaded(shell, tmp_path, pages, environ, streams, loaded):
    def answer(asked: Asked) -> Swept:
        page = asked.command.cursor + 1  # type: ignore[attr-defined]
        return Swept(count=1_000, cursor=None if page == pages else page, results=[])

    shell.server.answers["requeue"] = answer
    path = tmp_path / "loaded"
    args = [str(path), "--url", shell.server.url, "requeue", "--queue", "q", "-o", "json"]
    with Terminal([sys.executable, "-c", LOADED, *args], environ=environ, **streams) as terminal:
        assert terminal.end() == 0
    assert path.read_text() == f"0 {loaded}"
    assert loaded or terminal.shown == f'{{"count":{pages}000,"dry_run":false}}\r\n'


def test_a_file_that_goes_in_at_once_needs_no_bar(shell, tmp_path):
    shell.server.answers["submit_many"] = SubmittedMany(jobs=[(1, 2, False)])
    (tmp_path / "jobs").write_text('{"payload": "a"}\n' * 2)
    args = ["--url", shell.server.url, "submit", "q", "--file", str(tmp_path / "jobs"), "-o", "id"]
    with Terminal([sys.executable, "-c", LOADED, str(tmp_path / "loaded"), *args]) as terminal:
        assert terminal.end() == 0
    assert terminal.shown == "1\r\n2\r\n" and (tmp_path / "loaded").read_text() == "0 False"


def test_a_terminal_without_colours_gets_none(shell):
    shell.server.answers["requeue"] = sweeping
    with Terminal(jqctl(shell, "requeue", "--queue", "q"), environ={"NO_COLOR": "1"}) as terminal:
        assert not re.search(r"\x1b\[[0-9;]*m", terminal.read_until("2,000 jobs"))
        terminal.interrupt()
        terminal.end()

"""What is completed, and that real shells do it."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jqctl import completion
from jqctl.__main__ import run
from jqctl.group import STATES
from jqd.core.commands import QueueInfo, QueueList
from jqd.errors import Busy
from tests.support.daemon import ROOT
from tests.support.fakeserver import Asked
from tests.support.terminal import Terminal


def needs(shell: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(shell) is None, reason=f"there is no {shell} here")


def queue_list(*names: str, cursor: str | None = None) -> QueueList:
    counts: dict[str, Any] = dict.fromkeys(STATES, 1)
    return QueueList(queues=[QueueInfo(queue=name, **counts) for name in names], cursor=cursor)


@pytest.fixture
def patience(monkeypatch) -> None:
    """A busy machine must not make a server that answers look like one that does not."""
    monkeypatch.setattr(completion, "_PATIENCE_S", 30.0)


@pytest.fixture
def complete(monkeypatch, capsys) -> Callable[..., list[str]]:
    """Asks as the script of bash does; returns what it would offer."""

    def ask(line: str) -> list[str]:
        monkeypatch.setenv("_JQCTL_COMPLETE", "bash_complete")
        monkeypatch.setenv("COMP_WORDS", line)
        with pytest.raises(SystemExit) as ended:
            run([])
        out, err = capsys.readouterr()
        assert (ended.value.code, err) == (0, "")
        return [item.removeprefix("plain,") for item in out.split()]

    return ask


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("jqctl qu", ["queue", "queues"]),
        ("jqctl queue ", ["pause", "purge", "resume", "set", "show"]),
        ("jqctl dead ", ["list", "purge", "requeue"]),
        ("jqctl -o ", ["table", "json", "id"]),
        ("jqctl jobs --st", ["--state"]),
        ("jqctl jobs --state de", ["delayed", "dead"]),
        ("jqctl jobs --state=de", ["delayed", "dead"]),
        ("jqctl queue purge q --state ", ["delayed", "ready", "dead"]),
        ("jqctl completion ", ["bash", "zsh", "fish"]),
        ("jqctl submit q --fi", ["--file"]),
        ("jqctl submit 'q' \"a 'b\" --enc", ["--encoding"]),
        ("jqctl submit q --file j", ["file,j"]),
        ("jqctl job ", []),
    ],
)
def test_verbs_options_and_choices_are_completed(complete, line, offered):
    assert complete(line) == offered


@pytest.mark.parametrize(
    "line",
    [
        "lease ",
        "lease other ",
        "submit ",
        "cancel --queue ",
        "requeue --queue=",
        "jobs --queue ",
        "queue show ",
    ],
)
def test_names_of_queues_come_from_the_server(patience, shell, complete, line):
    shell.server.answers["queues"] = queue_list("emails", "mail:high")
    assert complete(f"jqctl --url {shell.server.url} {line}") == ["emails", "mail:high"]
    assert complete(f"jqctl --url {shell.server.url} {line}mail:h") == ["mail:high"]


def test_names_of_all_pages_are_offered(patience, shell, complete):
    def answer(asked: Asked) -> QueueList:
        return queue_list("b") if asked.command.cursor else queue_list("a", cursor="a")  # type: ignore[attr-defined]

    shell.server.answers["queues"] = answer
    assert complete(f"jqctl --url {shell.server.url} lease ") == ["a", "b"]


def test_a_name_that_a_shell_would_read_is_not_offered(patience, shell, complete):
    shell.server.answers["queues"] = queue_list("$(reboot)", "a b", "c\nd", "-o", "\x1b[2J", "fine")
    assert complete(f"jqctl --url {shell.server.url} lease ") == ["fine"]


def test_the_environment_says_where_the_server_is(patience, shell, complete, monkeypatch):
    shell.server.answers["queues"] = queue_list("a")
    monkeypatch.setenv("JQD_URL", shell.server.url)
    assert complete("jqctl lease ") == ["a"]


@pytest.mark.parametrize("url", ["nonsense", "jqd://", "http://x"])
def test_what_is_no_address_is_not_taken_for_the_default_one(patience, shell, complete, monkeypatch, url):
    monkeypatch.setattr("jqctl.connect.default_urls", lambda: [shell.server.url])
    shell.server.answers["queues"] = queue_list("emails")
    monkeypatch.delenv("JQD_URL", raising=False)
    assert complete("jqctl lease ") == ["emails"]
    assert complete(f"jqctl --url {url} lease ") == []
    assert complete(f"jqctl lease --url {url} ") == []


def test_without_an_answer_there_are_no_names_and_no_words(shell, complete, monkeypatch):
    monkeypatch.setattr("jqctl.connect.default_urls", lambda: iter(()))  # a daemon may well run here
    line = f"jqctl --url {shell.server.url} lease "
    shell.server.answers["queues"] = Busy("full")
    assert complete(line) == []
    shell.server.answers.clear()  # silence
    assert complete(line) == []
    shell.server.welcome = None  # more silence
    assert complete(line) == []
    assert complete("jqctl --url jqd://127.0.0.1:1 lease ") == []
    assert complete("jqctl --url nonsense lease ") == []


def test_a_server_that_takes_no_connection_is_not_waited_for(complete, monkeypatch):
    """The client alone would give the connect 5 s; the attempt has the time that the request has."""
    asked_s: list[float] = []

    def connect(address: object, timeout_s: float) -> socket.socket:
        asked_s.append(timeout_s)
        raise TimeoutError

    monkeypatch.setattr("socket.create_connection", connect)
    assert complete("jqctl --url jqd://192.0.2.1:1 lease ") == []
    assert asked_s and max(asked_s) <= 0.3


# --- shells -----------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path) -> str:
    """A search path on which `jqctl` is the one beside these tests, and waits for the machine it runs on."""
    program = tmp_path / "bin" / "jqctl"
    program.parent.mkdir()
    patient = "from jqctl import __main__, completion; completion._PATIENCE_S = 30.0; __main__.main()"
    program.write_text(f"#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -c '{patient}' \"$@\"\n")
    program.chmod(0o755)
    return f"{program.parent}:{os.environ['PATH']}"


@needs("bash")
def test_bash_completes(shell, path, tmp_path):
    shell.server.answers["queues"] = queue_list("emails", "mail:high", "mail:low")
    environ = {"PATH": path, "PS1": "> ", "JQD_URL": shell.server.url, "HOME": str(tmp_path), "HISTFILE": ""}
    with Terminal(["bash", "--norc", "--noprofile", "-i"], environ=environ, columns=500) as terminal:
        terminal.type("bind 'set bell-style none'; source <(jqctl completion bash); echo load''ed\n")
        terminal.read_until("loaded")
        for typed, shown in (
            ("jqctl canc\t", "jqctl cancel "),
            ("--sta\t", "--state "),
            ("del\t", "delayed "),
            ("--queue em\t", "--queue emails "),
            ("--queue=ma\t", "--queue=mail:"),
            ("h\t", "high "),
            ("-o js\t", "-o json "),
        ):
            terminal.type(typed)
            terminal.read_until(shown)
        terminal.type("\x15jqctl queue show mail:l\t")  # Ctrl-U: the line is empty
        terminal.read_until("show mail:low ")
        terminal.type("\x15jqctl queue show mail:\t\t")
        terminal.read_until("high")  # what stands there is not said again
        assert "mail:" not in terminal.read_until("low")
        terminal.type(f"\x15echo {'x' * 5} > {tmp_path}/some-file\n")
        terminal.type(f"jqctl submit q --file {tmp_path}/some\t")
        terminal.read_until(f"{tmp_path}/some-file ")


@needs("zsh")
def test_zsh_completes(shell, path, tmp_path):
    shell.server.answers["queues"] = queue_list("emails", "mail:high", "mail:low")
    environ = {"PATH": path, "HOME": str(tmp_path), "EDITOR": "", "JQD_URL": shell.server.url}
    with Terminal(["zsh", "-f", "-i"], environ=environ) as terminal:
        terminal.type("autoload -U compinit; compinit -D; source <(jqctl completion zsh); echo load''ed\n")
        terminal.read_until("loaded")
        # Ctrl-A: to the beginning, to say what was completed instead of running it.
        terminal.type("jqctl canc\t--sta\tdel\t--queue mail:h\t\x01echo \n")
        terminal.read_until("\njqctl cancel --state delayed --queue mail:high")


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_a_script_is_good_for_its_shell(name, capsys, tmp_path):
    assert run(["completion", name]) == 0
    out, err = capsys.readouterr()
    assert f"_JQCTL_COMPLETE={name}_complete" in out and err == ""
    if shutil.which(name) is not None:
        script = Path(tmp_path / "script")
        script.write_text(out)
        done = subprocess.run([name, "-n", str(script)], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


@needs("fish")
def test_fish_completes(shell, path, tmp_path):
    shell.server.answers["queues"] = queue_list("emails", "mail:high")
    environ = {**os.environ, "PATH": path, "HOME": str(tmp_path), "JQD_URL": shell.server.url}
    asked = ["jqctl cance", "jqctl cancel --sta", "jqctl lease ma"]
    program = "jqctl completion fish | source\n" + "".join(
        f"complete --do-complete '{line}'\n" for line in asked
    )
    done = subprocess.run(
        ["fish", "--no-config", "-c", program], capture_output=True, text=True, env=environ, timeout=50
    )
    offered = [line.partition("\t")[0] for line in done.stdout.splitlines()]
    assert offered == ["cancel", "--state", "mail:high"]

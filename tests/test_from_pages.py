"""docs/from-*.md: what they show of jqd runs, and what they name is there.

Their own code stands in blocks called `py`, which are not run; jqd's in `python`, each with the name of its file in
its first line.
"""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

import jqd
from jqctl.verbs import cli
from jqd.client.app import App, TaskOptions
from jqd.client.handle import SyncHandle
from jqd.core.commands import COMMANDS
from jqd.core.model import STATE_NAMES
from jqd.errors import WIRE_ERRORS
from jqd.worker import command as worker_command
from tests.support.daemon import ROOT, Daemon, environment

PAGES = {
    name: (ROOT / "docs" / f"from-{name}.md").read_text(encoding="utf-8")
    for name in ("celery", "rq", "beanstalkd")
}
EACH_PAGE = pytest.mark.parametrize("name", PAGES)

# What `program.py` prints.
SAYS = {
    "celery": "order 7: 19.99\norder 8: 2.50\n",
    "rq": "True {'sales': 2026}\ndelayed True\ncancelled\n",
    "beanstalkd": "1 b'small-17.png'\n",
}


def files(name: str) -> dict[str, str]:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGES[name], re.DOTALL | re.MULTILINE)
    named = {block.partition("\n")[0].removeprefix("# "): block for block in blocks}
    assert len(named) == len(blocks) and all(file.endswith(".py") for file in named), list(named)
    return named


@pytest.mark.e2e
@EACH_PAGE
def test_what_it_shows_runs(name, tmp_path):
    for file, text in files(name).items():
        (tmp_path / file).write_text(text)
    with Daemon(tmp_path / "data") as daemon:
        environ = environment({"PYTHONPATH": f"{ROOT}:{tmp_path}", "JQD_URL": f"unix://{daemon.socket_path}"})
        worker = re.search(r"^    \$ jqd (worker .*)$", PAGES[name], re.MULTILINE)
        process = None
        if worker is not None:
            process = subprocess.Popen(
                [sys.executable, "-m", "jqd", *worker[1].split()],
                cwd=tmp_path,
                env=environ,
                stderr=subprocess.DEVNULL,
            )
        try:
            done = subprocess.run(
                [sys.executable, "program.py"],
                cwd=tmp_path,
                env=environ,
                capture_output=True,
                text=True,
                timeout=40,
            )
            assert (done.stdout, done.stderr, done.returncode) == (SAYS[name], "", 0)
        finally:
            if process is not None:
                process.terminate()
                assert process.wait(30) == 0


@pytest.mark.e2e
def test_the_worker_of_the_beanstalkd_page_does_what_the_loop_does(tmp_path):
    (tmp_path / "worker.py").write_text(files("beanstalkd")["worker.py"])
    with Daemon(tmp_path / "data") as daemon, jqd.Client(f"unix://{daemon.socket_path}") as client:
        job_id = client.submit("thumbs", b"17.png").job_id
        environ = environment({"PYTHONPATH": f"{ROOT}:{tmp_path}", "JQD_URL": client.url})
        words = [sys.executable, "-m", "jqd", "worker", "worker:app", "-q", "thumbs", "-c", "4", "--burst"]
        subprocess.run(words, cwd=tmp_path, env=environ, check=True, capture_output=True, timeout=40)
        info = client.get(job_id)
        assert (info.state, info.result) == (
            "done",
            b"\xc4\x0csmall-17.png",
        )  # msgpack, as all results of functions


# --- names ------------------------------------------------------------------------------------


@EACH_PAGE
def test_words_of_jqctl_and_of_the_worker_exist(name):
    for said in re.findall(r"`jqctl ([^`]+)`", PAGES[name]):
        words = re.sub(r"'[^']*'|\"[^\"]*\"", "X", said).split()
        group: click.Command = cli
        while words and isinstance(group, click.Group) and words[0] in group.commands:
            group = group.commands[words.pop(0)]
        assert group is not cli, said
        assert not (isinstance(group, click.Group) and words and words[0][0] != "-"), said
        flags = {flag for option in group.params for flag in option.opts}
        assert {word for word in words if word.startswith("-")} <= flags, said
    flags = {flag for option in worker_command.params for flag in option.opts}
    for said in re.findall(r"`?jqd worker ([^`\n]+)", PAGES[name]):
        assert {word for word in said.split() if word.startswith("-")} <= flags, said


@EACH_PAGE
def test_names_of_python_exist(name):
    for word in re.findall(r"\bjqd\.([A-Za-z_]\w*)", PAGES[name]):
        assert hasattr(jqd, word) or word in ("testing", "client"), word
    for word in re.findall(r"@app\.(\w+)", PAGES[name].replace("@app.task`", "")):
        assert hasattr(App, word), word
    options = {
        *TaskOptions.__annotations__,
        *inspect.signature(SyncHandle.cancel).parameters,
        "timeout",
        "in_",
    }
    column = "\n".join(row.split("|")[2] for row in PAGES[name].splitlines() if row.startswith("| "))
    for word in re.findall(r"\b([a-z_]+)=(?!=)", column):
        assert word in options, word


def test_verbs_and_errors_of_the_wire_exist():
    rows = [row.split("|") for row in PAGES["beanstalkd"].splitlines() if row.startswith("| ")]
    words = {word for row in rows for cell in row[2:4] for word in re.findall(r"`([a-z_]+)`", cell)}
    fields = {field for command in COMMANDS.values() for field in command.__struct_fields__}
    assert words - {*COMMANDS, *WIRE_ERRORS, *fields, *STATE_NAMES} == set()


@EACH_PAGE
def test_links_lead_somewhere_and_the_readme_leads_here(name):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", PAGES[name]):
        assert (Path(ROOT) / "docs" / target).exists(), target
    assert f"(docs/from-{name}.md)" in (ROOT / "README.md").read_text(encoding="utf-8")

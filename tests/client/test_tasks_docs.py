"""docs/tasks.md: its programs run, its flags and names exist."""

import re
import subprocess
import sys

import pytest

import jqd
from jqd import testing
from jqd.client.current import CurrentJob
from jqd.worker import command
from tests.support.daemon import ROOT, Daemon, environment

PAGE = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
SHOP, PROGRAM, HOOKS, TESTS, INLINE = BLOCKS


@pytest.mark.e2e
def test_its_programs_run(tmp_path):
    for name, text in (
        ("shop", SHOP),
        ("program", PROGRAM),
        ("hooks", HOOKS),
        ("test_shop", TESTS),
        ("test_inline", INLINE),
    ):
        (tmp_path / f"{name}.py").write_text(text)
    with Daemon(tmp_path / "data", "--listen", "127.0.0.1:0") as daemon:
        environ = {**environment({"PYTHONPATH": f"{ROOT}:{tmp_path}"})}
        url = f"unix://{daemon.socket_path}"
        (tmp_path / "shop.py").write_text(SHOP.replace("jqd://127.0.0.1:7717", url))
        worker = subprocess.Popen(
            [sys.executable, "-m", "jqd", "worker", "hooks:app", "-q", "emails,default"],
            cwd=tmp_path,
            env=environ,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            run = subprocess.run(
                [sys.executable, "program.py"], cwd=tmp_path, env=environ, capture_output=True, text=True
            )
            assert (run.stdout, run.stderr, run.returncode) == ("20\n6\n", "", 0)
        finally:
            worker.terminate()
            said = worker.communicate(timeout=30)[1]
        assert "send took 0." in said, said
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto", "."],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
    )
    assert "3 passed" in done.stdout, done.stdout


def test_its_names_exist():
    for name in re.findall(r"\bjqd\.([A-Za-z_]\w*)", PAGE):
        assert hasattr(jqd, name) or name in ("worker", "testing", "pytest_plugin"), name
    for name in re.findall(r"^\| `(\w+)\(", PAGE.partition("| of `Server`")[2], re.MULTILINE):
        assert hasattr(testing.Server, name), name
    fields = re.findall(
        r"`(\w+)`", PAGE.partition("`jqd.current_job()` in a handler")[2].partition("\n\n")[0]
    )
    assert set(fields) == {name for name in dir(CurrentJob) if not name.startswith("_")}


def test_its_flags_exist():
    flags = {flag for option in command.params for flag in option.opts}
    of_jqctl = {"--help", "--task", "--encoding", "--running", "--all"}
    assert set(re.findall(r"--[a-z][a-z-]+", PAGE)) - of_jqctl <= flags

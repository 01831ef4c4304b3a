"""The demo as a new user sees it, against a daemon of the test's."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import ROOT, Daemon, environment

pytestmark = pytest.mark.e2e

# The demo goes to the default places: here it is sent to a daemon that is none of the user's.
PROGRAM = """
import sys, demo
demo.ENVIRONMENT |= {"JQD_URL": sys.argv[1]}
demo.daemon_pid = lambda: 4711
sys.exit(demo.main())
"""


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    with Daemon(tmp_path / "data", "--unix", str(tmp_path / "s")) as daemon:
        yield f"unix://{daemon.socket_path}"


def run(*words: str, url: str, stdout: int = subprocess.PIPE) -> tuple[int, str, str]:
    done = subprocess.run(
        words,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env=environment({"JQD_URL": url, "PYTHONPATH": f"{ROOT / 'scripts'}:{ROOT}"}),
        cwd=ROOT,
        timeout=50,
    )
    return done.returncode, done.stdout, done.stderr


def test_the_commands_that_it_leaves_behind_work(url):
    code, out, err = run(sys.executable, "-c", PROGRAM, url, url=url)
    assert (code, err) == (0, "") and "  stop:  kill 4711\n" in out
    (hint,) = re.findall(r"^  look:  (.*)$", out, re.MULTILINE)
    commands = [shlex.split(command) for command in re.split(r" {2,}", hint)]
    assert [Path(program).name for program, *_ in commands] == ["jqctl"] * 3
    for command in commands:
        code, out, err = run(*command, url=url)
        assert (code, err) == (0, "") and out, command


def test_a_reader_that_goes_away_is_no_error(url):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert run(sys.executable, "-c", PROGRAM, url, url=url, stdout=writer) == (0, None, "")
    finally:
        os.close(writer)

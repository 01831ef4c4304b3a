"""The sample program asks everything that there is, and works. tests/e2e/test_install.py has its types judged."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from jqd.client.aio import AsyncClient
from jqd.client.sync import Client
from tests.support.daemon import Daemon, environment

PROGRAM = Path(__file__).with_name("every_verb.py")


@pytest.mark.parametrize(("kind", "function"), [(Client, "blocking"), (AsyncClient, "with_asyncio")])
def test_nothing_that_a_client_offers_is_left_out(kind, function):
    (body,) = (node for node in ast.parse(PROGRAM.read_text()).body if getattr(node, "name", "") == function)
    used = {
        node.func.attr
        for node in ast.walk(body)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func.value) == "client"
    }
    # Closed by leaving the `with` block.
    assert used == {name for name in vars(kind) if not name.startswith("_")} - {"close"}


@pytest.mark.e2e
def test_it_works(tmp_path):
    with Daemon(tmp_path / "data") as daemon:
        host, port = daemon.address
        done = subprocess.run(
            [sys.executable, PROGRAM, f"jqd://{host}:{port}"],
            capture_output=True,
            text=True,
            env=environment(),
            timeout=30,
        )
        assert (done.returncode, done.stderr) == (0, "")

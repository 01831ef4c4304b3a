"""The sample program with tasks works. tests/e2e/test_install.py has its types judged."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.daemon import Daemon, environment


@pytest.mark.e2e
def test_it_works(tmp_path):
    with Daemon(tmp_path / "data") as daemon:
        done = subprocess.run(
            [sys.executable, Path(__file__).with_name("tasks.py"), f"unix://{daemon.socket_path}"],
            capture_output=True,
            text=True,
            env=environment(),
            timeout=30,
        )
        assert done.returncode == 0, done.stderr

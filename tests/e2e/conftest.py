"""What several files of these tests begin with. A file that needs another daemon has a fixture of its own by that name."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.workers import Program


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that serves."""
    with Daemon(tmp_path / "data") as started:
        yield started


@pytest.fixture
def program(tmp_path: Path, daemon: Daemon) -> Iterator[Program]:
    """A program with tasks for that daemon."""
    (tmp_path / "program").mkdir()
    with Program(tmp_path / "program", f"unix://{daemon.socket_path}") as made:
        yield made

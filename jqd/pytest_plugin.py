"""Fixtures for pytest: `pytest_plugins = "jqd.pytest_plugin"` in a project's conftest.py.

Knows:         which fixtures there are.
Must not know: how the server runs (testing.py). It is no entry point: nobody loads it who does not ask for it.
"""

from collections.abc import Iterator

import pytest

from jqd.testing import Server


@pytest.fixture
def jqd_server() -> Iterator[Server]:
    """A server of the test's own, without jobs, whose clock the test moves."""
    with Server() as server:
        yield server

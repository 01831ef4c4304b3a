"""A core for each test; after the test its indexes and its log are checked, whatever the test was about."""

from collections.abc import Iterator

import pytest

from tests.support.core import Core


@pytest.fixture
def core() -> Iterator[Core]:
    core = Core()
    yield core
    core.check()

"""A core for each test; after the test its indexes and its log are checked, whatever the test was about."""

from collections.abc import Iterator

import pytest

from tests.support.core import Core


@pytest.fixture
def core(
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Core]:  # checked while a limit that the test lowered is still low
    core = Core()
    yield core
    core.check()

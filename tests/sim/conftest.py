"""What holds for every test of the simulator."""

from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def log_as_it_was() -> Iterator[None]:
    """The simulator turns the daemon's log off for its process; other tests read it."""
    yield
    structlog.reset_defaults()

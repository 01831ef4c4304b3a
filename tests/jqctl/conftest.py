from collections.abc import Iterator

import pytest

from tests.support.fakeserver import FakeServer
from tests.support.shell import Shell


@pytest.fixture
def shell(capsys) -> Iterator[Shell]:
    with FakeServer.thread() as server:
        yield Shell(server, capsys)

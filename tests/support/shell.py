"""jqctl in the process of the test, against a server that says what the test tells it to."""

import json
from typing import Any, NamedTuple

from jqctl.__main__ import run
from tests.support.fakeserver import FakeServer


class Shell(NamedTuple):
    """Runs jqctl against `server`."""

    server: FakeServer
    capture: Any

    def __call__(self, *args: str) -> tuple[int, str, str]:
        code = run(["--url", self.server.url, *args])
        out, err = self.capture.readouterr()
        return code, out, err

    def json(self, *args: str) -> list[Any]:
        code, out, err = self(*args, "-o", "json")
        assert (code, err) == (0, "")
        return [json.loads(line) for line in out.splitlines()]

    @property
    def said(self) -> Any:
        """The last command that came."""
        return self.server.asked[-1].command

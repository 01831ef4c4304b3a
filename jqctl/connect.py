"""Where the server is, and one call after the other to it.

Knows:         the places a daemon listens at by default, in the order they are tried.
Must not know: verbs, what is printed.
"""

import os
from collections.abc import Iterator
from typing import Any, Self, TypeVar

from jqd.client.retry import Backoff
from jqd.client.sync import Client
from jqd.client.values import DEFAULT_URL
from jqd.errors import ConnectionLost

R = TypeVar("R")

SERVICE_SOCKET = "/run/jqd/jqd.sock"


def default_urls() -> Iterator[str]:
    """Yield where a daemon may listen: the service's socket, the data directory's, the TCP port."""
    home = os.environ.get("HOME", "/nonexistent")
    own = os.environ.get("XDG_DATA_HOME") or f"{home}/.local/share"
    data = "/var/lib" if os.geteuid() == 0 else own
    for path in (SERVICE_SOCKET, f"{data}/jqd/jqd.sock"):
        if os.path.exists(path):  # noqa: PTH110 - pathlib costs as much as the whole connection
            yield f"unix://{path}"
    yield DEFAULT_URL


class Connection:
    """A client that connects at the first call; a context manager.

    Args:
        url: `jqd://HOST:PORT` or `unix:///PATH`; None: the first default that connects.
        timeout: Duration for each call.
    """

    def __init__(self, url: str | None, timeout: str) -> None:
        self._url = url
        self._timeout = timeout
        self._backoff: Backoff | None = None
        self._client: Client | None = None

    def wait_for_nobody(self) -> None:
        """From the first call on: while the server is away calls fail at once, instead of trying again."""
        self._backoff = Backoff(give_up_ms=0)

    @property
    def url(self) -> str | None:
        """Where it is connected, or will be."""
        return self._client.url if self._client else self._url

    def call(self, command: Any, *, timeout: Any = None) -> Any:  # noqa: ANN401 - a Command[R] -> R; jqctl knows commands by their builders
        """Send one command and wait for its reply, for `timeout` instead of the usual one.

        Raises: ConnectionLost: nobody answers there; else as Client.call.
        """
        if self._client is None:
            self._client = _connect(self._url, self._timeout, self._backoff)
        return self._client.call(command, timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._client is not None:
            self._client.close()


def _connect(said: str | None, timeout: str, backoff: Backoff | None) -> Client:
    """Return a client of the server at the address that was said, or of the first default that answers.

    A daemon that can be reached and refuses is the answer; only where nobody is the next one is tried.
    """
    failures: list[str] = []
    for url in [said] if said else default_urls():
        client = Client(url, worker=f"jqctl:{os.getpid()}", timeout=timeout, backoff=backoff)
        try:
            client.connect()
        except ConnectionLost as error:
            failures.append(str(error))
            client.close()
        except BaseException:
            client.close()
            raise
        else:
            return client
    hint = "" if said else " (start a daemon with `jqd`, or say where it is with --url)"
    raise ConnectionLost("; ".join(failures) + hint, outcome_unknown=False)

"""The servers that are measured beside each other: how each is started so that it syncs before it replies.

Knows:         the programs, the settings that a fair comparison needs, how to count the jobs in a server.
Must not know: what is measured.

    jqd          its defaults: one fdatasync for all that arrived during the last one
    beanstalkd   -b DIR -f 0: an fsync for every record it writes
    Redis        appendonly yes, appendfsync always, no snapshots: one fdatasync for a turn of its event loop

The peers are Debian's packages; their services are not used. Everything else has the program's default.
"""

import contextlib
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from typing import ClassVar, Final

from tests.bench import dialects
from tests.bench.server import Program, Server

# Program, which is also the name of Debian's package, and the option that makes it say its version.
PROGRAMS: Final = {"beanstalkd": "-v", "redis-server": "--version"}
ANSWER_S_MAX: Final = 10.0


class MissingProgramError(Exception):
    """A program to be measured is not installed."""


class Contestant(Program):
    """A server that the same load can be put on as on the others."""

    dialect: ClassVar[type[dialects.Dialect]]
    # The most jobs that it is worth to fill in before a drain; None: as many as the workload says.
    backlog_max: ClassVar[int | None] = None
    # Whether one request can bring many jobs.
    takes_many: ClassVar[bool] = True

    @contextlib.contextmanager
    def filling(self) -> Iterator[None]:
        """Make it take jobs fast, for a backlog that is not measured."""
        yield

    def counts(self) -> dialects.Counts:
        """Ask how many jobs it has."""
        dialect = self.dialect()
        with socket.create_connection(("127.0.0.1", self.port), ANSWER_S_MAX) as connection:
            connection.sendall(dialect.hello + dialect.census)
            data = b""
            while (counts := dialect.counts(data)) is None:
                more = connection.recv(1 << 16)
                if not more:
                    raise ConnectionError(f"{self.name} closed the connection after {data!r}")
                data += more
        return counts


class Jqd(Server, Contestant):
    dialect = dialects.Jqd


class Beanstalkd(Contestant):
    name = "beanstalkd"
    dialect = dialects.Beanstalkd
    # Some four seconds of its work on a disk that syncs in 40 us.
    backlog_max = 100_000
    takes_many = False
    _sync_ms = 0

    def argv(self) -> list[str]:
        return [
            *(program("beanstalkd"), "-l", "127.0.0.1", "-p", str(self.port)),
            *("-b", self.dir, "-f", str(self._sync_ms)),
        ]

    @contextlib.contextmanager
    def filling(self) -> Iterator[None]:
        """Let it sync every 50 ms: a sync for each job of a backlog would take longer than what is measured."""
        self._restart(50)
        yield
        self._restart(0)

    def _restart(self, sync_ms: int) -> None:
        self.kill()
        self._sync_ms = sync_ms
        self.start()


class Redis(Contestant):
    name = "redis"
    dialect = dialects.Redis

    def argv(self) -> list[str]:
        return [
            *(program("redis-server"), "--bind", "127.0.0.1", "--port", str(self.port), "--dir", self.dir),
            *("--daemonize", "no", "--save", "", "--appendonly", "yes", "--appendfsync", "always"),
        ]

    def is_ready(self) -> bool:
        """Tell whether it has read its file: it takes connections before that."""
        with socket.create_connection(("127.0.0.1", self.port), 1.0) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64) == b"+PONG\r\n"


def program(name: str) -> str:
    """Return the path of an installed program, or say how to install what is missing."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise MissingProgramError(f"{name} is not installed: apt-get install {' '.join(PROGRAMS)}")
    return found


def versions() -> dict[str, str]:
    """Ask the peers' programs for their versions."""
    return {name: _version(program(name), option) for name, option in PROGRAMS.items()}


def _version(path: str, option: str) -> str:
    said = subprocess.run([path, option], capture_output=True, text=True, check=True).stdout
    found = re.search(r"\d+(\.\d+)+", said)
    return found.group() if found else said.strip()

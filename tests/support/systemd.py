"""systemd's side of a service: the directories, variables, descriptors and messages, without a systemd.

with Manager(tmp_path) as manager, manager.daemon() as daemon:
    manager.next()                              the next message of sd_notify, as a dict
manager.daemon(passed=[listening socket])       socket activation

rendered(tmp_path, variant=True)                a copy of the units as they are installed here
"""

import os
import shutil
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from tests.support.daemon import ROOT, Daemon
from tests.support.wire import PATIENCE_S

UNITS = ROOT / "systemd"
INSTALLED = "/usr/bin/jqd"

# Puts inherited descriptors where systemd puts them and says whose they are, sets LimitCORE=0 as the unit does
# (a test aborts the daemon), then becomes it.
_BECOME = """
import fcntl, os, resource, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
count = int(sys.argv[1])
kept = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 3 + count) for number in sys.argv[2:2 + count]]
for index, number in enumerate(kept):
    os.dup2(number, 3 + index)
os.environ["WATCHDOG_PID"] = os.environ["LISTEN_PID"] = str(os.getpid())
os.execvp(sys.argv[2 + count], sys.argv[2 + count:])
"""


class Manager:
    """See the file's card.

    Args:
        directory: state/ and run/ are made in it.
        watchdog_us: how long a sign of life may take.
    """

    def __init__(self, directory: Path, watchdog_us: int = 20_000_000) -> None:
        self.state = directory / "state"
        self.runtime = directory / "run"
        self.runtime.mkdir(mode=0o755)
        self.notify_path = str(directory / "notify")
        self.watchdog_us = watchdog_us
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.settimeout(PATIENCE_S)

    def __enter__(self) -> Self:
        self._notify.bind(self.notify_path)
        return self

    def __exit__(self, *exc: object) -> None:
        self._notify.close()

    @property
    def socket_path(self) -> Path:
        return self.runtime / "jqd.sock"

    def daemon(self, *flags: str, passed: Sequence[socket.socket] = ()) -> Daemon:
        """Return a daemon as the unit would start it: its directories follow from the environment."""
        environ = {
            "NOTIFY_SOCKET": self.notify_path,
            "STATE_DIRECTORY": str(self.state),
            "RUNTIME_DIRECTORY": str(self.runtime),
            "WATCHDOG_USEC": str(self.watchdog_us),
        }
        if passed:
            environ |= {"LISTEN_FDS": str(len(passed)), "LISTEN_FDNAMES": ":".join("jqd" for _ in passed)}
        numbers = [one.fileno() for one in passed]
        wrap = [sys.executable, "-c", _BECOME, str(len(numbers)), *map(str, numbers)]
        return Daemon(None, *flags, wrap=wrap, environ=environ, pass_fds=numbers)

    def next(self) -> dict[str, str]:
        """Wait for the next message."""
        return dict(line.split("=", 1) for line in self._notify.recv(65_536).decode().split("\n"))

    def until(self, name: str) -> list[dict[str, str]]:
        """Return the messages up to the first that says `name`."""
        messages = [self.next()]
        while name not in messages[-1]:
            messages.append(self.next())
        return messages


def rendered(directory: Path, *, socket_activated: bool) -> Path:
    """Copy the units as an administrator would, with the path that jqd has here; return the service's."""
    installed = Path(sys.executable).parent / "jqd"
    assert os.access(installed, os.X_OK), f"{installed}: make setup"
    for name in ("jqd.service", "jqd.socket"):
        text = (UNITS / name).read_text(encoding="utf-8")
        (directory / name).write_text(text.replace(INSTALLED, str(installed)), encoding="utf-8")
    if socket_activated:
        (directory / "jqd.service.d").mkdir()
        shutil.copy(UNITS / "socket-activated.conf", directory / "jqd.service.d")
    return directory / "jqd.service"

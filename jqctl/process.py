"""What the kernel says about the daemon's process: whether it is one, and the processor time that it took.

Knows:         /proc/PID/stat and cmdline, of this machine alone.
Must not know: what is measured, what is printed.
"""

import os
from ipaddress import ip_address
from pathlib import Path
from typing import Final, NamedTuple

from jqd.client.values import UnixAddress, to_address

_PROC: Final = Path("/proc")
# Fields of /proc/PID/stat, counted from the one behind the command, which may hold blanks. proc(5): 14 and 15.
_UTIME: Final = 11
_STIME: Final = 12


class Unknown(Exception):
    """There are no figures. Its message says why."""


class Cpu(NamedTuple):
    """Processor time of all threads since the start, in steps of `step_s`."""

    user_s: float
    system_s: float

    def since(self, before: "Cpu") -> "Cpu":
        return Cpu(self.user_s - before.user_s, self.system_s - before.system_s)


def step_s() -> float:
    """Return the step in which the kernel counts: 10 ms nearly everywhere."""
    return 1 / os.sysconf("SC_CLK_TCK")


def cpu(pid: int) -> Cpu:
    """Read what a process has used.

    Raises: Unknown.
    """
    try:
        fields = (
            (_PROC / str(pid) / "stat")
            .read_text(encoding="utf-8", errors="replace")
            .rpartition(")")[2]
            .split()
        )
    except OSError as error:
        raise Unknown(f"pid = {pid}: {_PROC / str(pid) / 'stat'}: {error.strerror}") from None
    return Cpu(int(fields[_UTIME]) * step_s(), int(fields[_STIME]) * step_s())


def is_near(url: str) -> bool:
    """Tell whether a server is on this machine by its address: a unix socket, or loopback."""
    address = to_address(url)
    if isinstance(address, UnixAddress) or address.host == "localhost":
        return True
    try:
        return ip_address(address.host).is_loopback
    except ValueError:
        return False


def check_daemon(pid: int) -> None:
    """Make sure that a pid that a server told is a jqd here, and not what has that pid on this side of a tunnel
    or outside of a container.

    Raises: Unknown.
    """
    try:
        arguments = (_PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
    except OSError:
        raise Unknown(
            f"the daemon's pid = {pid} is not here: it runs in a container or on another machine"
        ) from None
    if not any(argument.rpartition(b"/")[2] == b"jqd" for argument in arguments[:4]):
        raise Unknown(
            f"the daemon's pid = {pid} is no jqd here: it runs in a container or on another machine"
        )

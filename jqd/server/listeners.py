"""The sockets that the daemon accepts connections on: opened by itself, or passed by systemd.

Knows:         addresses, the protocol of socket activation, who may connect to a unix socket.
Must not know: what comes over a connection.

A passed socket stands for the setting of its family: one or more unix sockets for `unix`, one or more TCP
sockets for `listen`. What was not passed is opened as configured. A passed socket belongs to systemd: it stays
open there while the daemon is down, so clients wait instead of being refused, and its file is never removed
here. What the settings would refuse (an address that other machines can reach) is refused here too.

A unix socket of our own takes its mode from where it lies, and has it from its first moment: the umask holds
at bind(), so there is no instant at which others could connect.

    in $RUNTIME_DIRECTORY    0660    the service's group uses it
    anywhere else            0600    its owner alone; root can always

Sources: sd_listen_fds(3), systemd.socket(5); CVE-2023-45145 (Redis: bind first, chmod later).
"""

import asyncio
import os
import socket
import stat
from collections.abc import Callable, Collection, MutableMapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from jqd.errors import ConfigurationError
from jqd.server.config import Config

# The first passed descriptor; they come one after the other (sd_listen_fds(3)).
PASSED_FD_FIRST: Final = 3
# More passed sockets than this are a mistake: they count against what config.FILES_RESERVED sets aside.
PASSED_COUNT_MAX: Final = 16
# Connections that the kernel holds until they are accepted.
_BACKLOG: Final = 1_024
# A process that serves a socket answers at once, or its backlog is full and it hangs: it is served all the same.
_PROBE_S: Final = 1.0

_SHARED_UMASK: Final = 0o117  # a socket in the runtime directory becomes 0660
_PRIVATE_UMASK: Final = 0o177  # any other 0600

_TCP: Final = (socket.AF_INET, socket.AF_INET6)

Factory = Callable[[], asyncio.Protocol]


@dataclass
class Listeners:
    """What the daemon serves.

    Args:
        addresses: URLs as clients write them, in the order in which they were opened.
        own_path: the socket's file that is ours to remove at the end.
    """

    addresses: list[str] = field(default_factory=list)
    own_path: str | None = None
    servers: list[asyncio.AbstractServer] = field(default_factory=list)

    def close(self) -> None:
        """Accept no more, and remove the file that is ours; a passed socket's is systemd's.

        The file goes first: while it is served, no other daemon puts its own in that place.
        """
        if self.own_path is not None:
            Path(self.own_path).unlink(missing_ok=True)
        for server in self.servers:
            server.close()


# --- passed sockets ---------------------------------------------------------------------------


def take_passed_sockets(environ: MutableMapping[str, str], pid: int) -> list[socket.socket]:
    """Take the sockets that systemd passes to process `pid`, and the variables that say so.

    Raises: ConfigurationError: one of them is nothing that the daemon may serve.
    """
    whose, count, _names = (environ.pop(f"LISTEN_{name}", "") for name in ("PID", "FDS", "FDNAMES"))
    if whose != str(pid) or count in ("", "0"):
        return []  # meant for another process, from which the variables were inherited
    if not (count.isascii() and count.isdigit() and int(count) <= PASSED_COUNT_MAX):
        raise ConfigurationError(f"LISTEN_FDS = {count[:20]!r}: must be 0 to {PASSED_COUNT_MAX} sockets")
    return [_take(number) for number in range(PASSED_FD_FIRST, PASSED_FD_FIRST + int(count))]


def _take(number: int) -> socket.socket:
    where = f"passed socket {number} (LISTEN_FDS)"
    try:
        os.set_inheritable(number, False)
        passed = socket.socket(fileno=number)
    except OSError as error:
        raise ConfigurationError(f"{where}: {error.strerror}") from error
    unfit = _unfit(passed)
    if unfit:
        passed.close()
        raise ConfigurationError(f"{where}: {unfit}")
    return passed


def _unfit(passed: socket.socket) -> str:
    """Say why this socket cannot be served; empty if it can."""
    allowed = "must be a listening stream socket (ListenStream=, Accept=no), unix or TCP"
    if passed.type != socket.SOCK_STREAM or passed.family not in (socket.AF_UNIX, *_TCP):
        return allowed
    if not passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return f"it does not listen; {allowed}"
    if passed.family in _TCP and not ip_address(passed.getsockname()[0]).is_loopback:
        return (
            f"{_url(passed)}: only loopback (127.0.0.0/8, ::1) and unix sockets are allowed: there are no keys yet, "
            "so whoever reaches the port could read and change every job"
        )
    return ""


# --- opening ----------------------------------------------------------------------------------


async def open_listeners(
    new_connection: Factory,
    config: Config,
    passed: Collection[socket.socket],
    runtime_directories: Collection[str],
) -> Listeners:
    """Serve the passed sockets, and what is configured and was not passed.

    Args:    runtime_directories: where a socket is the service's group's, too.
    Raises:  ConfigurationError: an address cannot be served.
    """
    loop = asyncio.get_running_loop()
    opened = Listeners()
    tcp = [one for one in passed if one.family in _TCP]
    unix = [one for one in passed if one.family == socket.AF_UNIX]
    for one in tcp:
        opened.servers.append(await loop.create_server(new_connection, sock=one, backlog=_BACKLOG))
        opened.addresses.append(_url(one))
    if not tcp and config.listen is not None:
        host, port = config.listen
        try:
            server = await loop.create_server(new_connection, host, port, backlog=_BACKLOG)
        except OSError as error:
            # The loop's own text is an account of the call, with the address once more as Python shows it.
            reason = os.strerror(error.errno) if error.errno else error
            raise ConfigurationError(f"listen = {host}:{port}: {reason}") from error
        opened.servers.append(server)
        opened.addresses += map(_url, server.sockets)
    if not unix and config.unix is not None:
        unix = [_bind(config.unix, shared=str(Path(config.unix).parent) in runtime_directories)]
        opened.own_path = config.unix
    for one in unix:
        # What uvloop takes as `sock` it leaves where it is at the end.
        opened.servers.append(await loop.create_unix_server(new_connection, sock=one, backlog=_BACKLOG))
        opened.addresses.append(_url(one))
    return opened


def _url(one: socket.socket) -> str:
    name = one.getsockname()
    if one.family == socket.AF_UNIX:
        # Linux gives an abstract name as bytes; it begins with a zero byte, which is written as @.
        return f"unix://{name}" if isinstance(name, str) else f"unix://@{os.fsdecode(name[1:])}"
    host, port = name[:2]
    return f"jqd://[{host}]:{port}" if ":" in host else f"jqd://{host}:{port}"


def _bind(path: str, *, shared: bool) -> socket.socket:
    remove_stale_socket(path)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # The umask is the process's: no other thread makes files before the daemon serves.
    umask_before = os.umask(_SHARED_UMASK if shared else _PRIVATE_UMASK)
    try:
        bound.bind(path)
    except OSError as error:
        bound.close()
        raise ConfigurationError(f"unix = {path}: {error.strerror or error}") from error
    finally:
        os.umask(umask_before)
    return bound


def remove_stale_socket(path: str) -> None:
    """Remove what a killed daemon left behind; leave alone what somebody still serves, or is no socket."""
    try:
        if not stat.S_ISSOCK(Path(path).lstat().st_mode):
            raise ConfigurationError(f"unix = {path}: there is a file of that name that is no socket")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(_PROBE_S)
            probe.connect(path)
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        Path(path).unlink()
        return
    except OSError as error:
        raise ConfigurationError(f"unix = {path}: {error.strerror or error}") from error
    raise ConfigurationError(f"unix = {path}: another process serves this socket")

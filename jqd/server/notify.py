"""What the daemon tells its service manager: starting, serving, alive, stopping.

Knows:         the sd_notify protocol, systemd's variables NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID.
Must not know: when the daemon is ready, what recovery is.

A message is one datagram of `NAME=value` lines to the unix socket that $NOTIFY_SOCKET names (`@` begins an
abstract name). Without the variable nobody listens and nothing is sent.

The watchdog is fed by the event loop and by nothing else: a loop that is stuck feeds it no more and the
manager ends the daemon, while a disk that takes its time only keeps the commit thread waiting.

Sources: sd_notify(3), sd_watchdog_enabled(3), systemd.service(5).
"""

import asyncio
import socket
from collections.abc import MutableMapping
from typing import Final, Self

from jqd.server.log import get_logger

# A manager that takes no message for this long is in trouble itself. Only what it must not miss waits at all.
PATIENCE_S: Final = 5.0
# The watchdog is fed twice per period, as sd_watchdog_enabled(3) asks for.
_FEEDS_PER_PERIOD: Final = 2

log = get_logger()


class Notifier:
    """See the file's card.

    Args:
        address: None: nobody listens.
        watchdog_s: how long the manager waits for a sign of life; None: it does not.
    """

    def __init__(self, address: str | None, watchdog_s: float | None = None) -> None:
        self.watchdog_s = watchdog_s
        self._failed = False
        self._to = ""
        # One for all messages: where no more files can be opened, the watchdog is still fed.
        self._socket: socket.socket | None = None
        if address is None:
            return
        # systemd also knows vsock:, for the system of a virtual machine.
        if not address.startswith(("/", "@")):
            log.warning("notify_failed", address=address, error="neither a path nor an abstract name")
            return
        self._to = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    @classmethod
    def taken_from(cls, environ: MutableMapping[str, str], pid: int) -> Self:
        """Take systemd's variables out of the environment: they are meant for this process alone."""
        address, period_us, whose = (
            environ.pop(name, "") for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
        )
        watched = period_us.isascii() and period_us.isdigit() and int(period_us) > 0
        if watched and whose in ("", str(pid)):
            return cls(address or None, int(period_us) / 1_000_000)
        return cls(address or None)

    def tell(self, *lines: str, must_arrive: bool = False) -> None:
        """Send one message. What goes wrong is logged, once in a row; the daemon goes on.

        Args:
            must_arrive: wait up to PATIENCE_S for room in the manager's queue.
        """
        if self._socket is None:
            return
        # A path in STATUS may hold anything: it begins no line of its own, and its bytes need not be UTF-8.
        message = "\n".join(line.replace("\n", " ") for line in lines).encode(errors="replace")
        self._socket.settimeout(PATIENCE_S if must_arrive else 0)
        try:
            self._socket.sendto(message, self._to)
        except OSError as error:
            if not self._failed:
                log.warning("notify_failed", address=self._to, error=repr(error))
            self._failed = True
        else:
            self._failed = False

    def close(self) -> None:
        """Send no more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def feed_watchdog(self, loop: asyncio.AbstractEventLoop) -> None:
        """Say that the loop runs, now and from now on, as long as it does."""
        if self.watchdog_s is not None:
            self.tell("WATCHDOG=1")
            loop.call_later(self.watchdog_s / _FEEDS_PER_PERIOD, self.feed_watchdog, loop)


# Where no service manager started the daemon.
SILENT: Final = Notifier(None)

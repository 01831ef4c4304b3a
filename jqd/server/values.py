"""How each type of setting is read, shown and described.

Knows:         numbers, sizes, words, paths, addresses, sync policies; their spelling and what is refused.
Must not know: which settings exist, and where a value was found.

`parse` takes what one source says: text (environment, flags) or whatever TOML has. It returns the typed
value or raises ValueError with what would be allowed. `show` is its inverse: `parse(show(v)) == v`.

Sources: unix(7) for the length of a socket's path; RFC 5952 for the brackets around an IPv6 address.
"""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final, Protocol, TypeVar

from jqd.core.model import SECOND_MS, shorten

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30

OFF: Final = "off"
SOCKET_PATH_BYTES_MAX: Final = 107  # sun_path is 108 bytes with the closing zero
PORT_MAX: Final = 65_535
SYNC_INTERVAL_MS_MAX: Final = 60 * SECOND_MS

Raw = object
Printable = str | int | bool
_Value = TypeVar("_Value")


class Kind(Protocol[_Value]):
    """One type of setting. `metavar` stands for its value in --help."""

    @property
    def metavar(self) -> str: ...

    def parse(self, raw: Raw) -> _Value:
        """Return the value, or raise ValueError with what would be allowed ("must be ...")."""

    def show(self, value: _Value) -> Printable:
        """Return what `parse` reads back as the same value, as a user would write it."""

    def limits(self) -> str:
        """Return the allowed values in a few words."""


@dataclass(frozen=True)
class Number:
    """An integer in `unit`, at least `low` and at most `high`."""

    low: int
    high: int
    unit: str
    metavar: str = "N"

    def parse(self, raw: Raw) -> int:
        value = _integer(raw)
        if value is None or not self.low <= value <= self.high:
            raise ValueError(f"must be {self.limits()}")
        return value

    def show(self, value: int) -> int:
        return value

    def limits(self) -> str:
        return f"a whole number from {self.low} to {self.high} {self.unit}"


@dataclass(frozen=True)
class Size:
    """A number of bytes, plain or with a binary unit: 67108864, 64MiB."""

    low: int
    high: int
    metavar: str = "SIZE"

    def parse(self, raw: Raw) -> int:
        value = _integer(raw)
        if value is None and isinstance(raw, str) and (found := re.fullmatch(r"([0-9]{1,18})([KMG])iB", raw)):
            value = int(found[1]) * {"K": KIB, "M": MIB, "G": GIB}[found[2]]
        if value is None or not self.low <= value <= self.high:
            raise ValueError(f"must be {self.limits()}")
        return value

    def show(self, value: int) -> Printable:
        for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
            if value and value % unit == 0:
                return f"{value // unit}{name}"
        return value

    def limits(self) -> str:
        return f"bytes, plain or in KiB, MiB, GiB, from {self.show(self.low)} to {self.show(self.high)}"


@dataclass(frozen=True)
class Choice:
    """One of some words."""

    words: tuple[str, ...]

    @property
    def metavar(self) -> str:
        return "|".join(self.words)

    def parse(self, raw: Raw) -> str:
        if not isinstance(raw, str) or raw not in self.words:
            raise ValueError(f"must be {self.limits()}")
        return raw

    def show(self, value: str) -> str:
        return value

    def limits(self) -> str:
        return f"{', '.join(self.words[:-1])} or {self.words[-1]}"


@dataclass(frozen=True)
class Switch:
    """Yes or no."""

    metavar: str = "true|false"

    def parse(self, raw: Raw) -> bool:
        if isinstance(raw, bool):
            return raw
        value = (
            {"true": True, "1": True, "false": False, "0": False}.get(raw) if isinstance(raw, str) else None
        )
        if value is None:
            raise ValueError(f"must be {self.limits()}")
        return value

    def show(self, value: bool) -> bool:
        return value

    def limits(self) -> str:
        return "true or false"


@dataclass(frozen=True)
class AbsolutePath:
    """An absolute path; `socket`: of a unix socket, or `off`."""

    socket: bool = False
    metavar: str = "PATH"

    def parse(self, raw: Raw) -> str | None:
        if self.socket and raw == OFF:
            return None
        if not isinstance(raw, str) or not raw.startswith("/"):
            raise ValueError(f"must be {self.limits()}")
        try:
            length = len(raw.encode())
        except UnicodeEncodeError:
            raise ValueError("must be UTF-8") from None
        if "\0" in raw:
            raise ValueError("must be a path: it has a zero byte")
        if self.socket and length > SOCKET_PATH_BYTES_MAX:
            raise ValueError(
                f"the path of a socket has at most {SOCKET_PATH_BYTES_MAX} bytes, this one has {length}: "
                f"choose a shorter one, or `{OFF}`"
            )
        if self.socket and raw.endswith("/"):
            raise ValueError("must be the path of a socket, not of a directory")
        return str(PurePosixPath(raw))

    def show(self, value: str | None) -> str:
        return OFF if value is None else value

    def limits(self) -> str:
        return (
            f"an absolute path of at most {SOCKET_PATH_BYTES_MAX} bytes, or {OFF}"
            if self.socket
            else "an absolute path"
        )


@dataclass(frozen=True)
class Listen:
    """A TCP address of this machine alone, or `off`."""

    metavar: str = "HOST:PORT"

    def parse(self, raw: Raw) -> tuple[str, int] | None:
        from ipaddress import ip_address

        if raw == OFF:
            return None
        found = (
            re.fullmatch(r"(?:\[([^\[\]]*)\]|([^\[\]:]*)):([0-9]{1,5})", raw)
            if isinstance(raw, str)
            else None
        )
        if found is None or int(found[3]) > PORT_MAX:
            raise ValueError(f"must be {self.limits()}")
        host, port = found[1] or found[2] or "", int(found[3])
        if host.lower() == "localhost" and not found[1]:
            return "127.0.0.1", port  # never asks a resolver, which may know another localhost
        try:
            address = ip_address(host)
        except ValueError:
            raise ValueError(f"{shorten(host)} is no literal address; must be {self.limits()}") from None
        if (address.version == 6) != bool(found[1]) or "%" in host:
            raise ValueError(f"must be {self.limits()}")
        if not address.is_loopback:
            raise ValueError(
                "only loopback (127.0.0.0/8, ::1) and unix sockets are allowed: there are no keys yet, so whoever "
                "reaches the port could read and change every job"
            )
        return str(address), port

    def show(self, value: tuple[str, int] | None) -> str:
        if value is None:
            return OFF
        host, port = value
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def limits(self) -> str:
        return f"a loopback address with a port up to {PORT_MAX}, as 127.0.0.1:7717, [::1]:7717 or localhost:7717, or {OFF}"


@dataclass(frozen=True)
class Sync:
    """When the log is synced: None before every reply, else every so many ms."""

    metavar: str = "POLICY"

    def parse(self, raw: Raw) -> int | None:
        if raw == "always":
            return None
        found = re.fullmatch(r"interval=([0-9]{1,5})", raw) if isinstance(raw, str) else None
        if found is None or not 1 <= int(found[1]) <= SYNC_INTERVAL_MS_MAX:
            raise ValueError(f"must be {self.limits()}")
        return int(found[1])

    def show(self, value: int | None) -> str:
        return "always" if value is None else f"interval={value}"

    def limits(self) -> str:
        return f"always, or interval=MS with 1 to {SYNC_INTERVAL_MS_MAX} ms"


def _integer(raw: Raw) -> int | None:
    if isinstance(raw, bool):  # which Python takes for an int
        return None
    if isinstance(raw, str):
        return int(raw) if re.fullmatch(r"-?[0-9]{1,18}", raw) else None
    return raw if isinstance(raw, int) else None

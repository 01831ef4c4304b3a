"""Every setting of the daemon, declared once, and the way its value is found.

Knows:         the settings with type, default, unit, range and help; TOML, environment, flags, systemd's variables.
Must not know: what a setting does; click; os.environ, the current directory and the user (they are handed in).

A setting is one field of Config. Its TOML key, its variable (`JQD_` and the key in capitals), its flag
(`--` and the key with dashes), its line in --help and its row in docs/configuration.md follow from the
field, so none of them can be forgotten or differ.

Precedence: default < file < environment < flag. Nothing is guessed: an unknown key, an unknown `JQD_*`
variable and a bad value are each a ConfigurationError of one line: what was found and where, and what would
be allowed or which name may be meant.

Paths: a flag may be relative (it is meant where it is typed); in the file and in the environment a path is
absolute, since nobody can tell from where a service is started. `~` is the shell's business: refused.

Sources: systemd.exec(5) for STATE_DIRECTORY and RUNTIME_DIRECTORY, the XDG base directory specification,
unix(7) for the length of a socket's path.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

from jqd.core.memory import UNLIMITED_BYTES
from jqd.core.model import DAY_MS, DISCONNECT_GRACE_MS, MINUTE_MS, SECOND_MS, shorten
from jqd.errors import ConfigurationError
from jqd.server.values import (
    GIB,
    KIB,
    MIB,
    OFF,
    AbsolutePath,
    Choice,
    Kind,
    Listen,
    Number,
    Printable,
    Raw,
    Size,
    Switch,
    Sync,
)

DEFAULT_FILE: Final = "/etc/jqd/jqd.toml"
ENV_PREFIX: Final = "JQD_"
CLIENT_VARIABLES: Final = frozenset({"JQD_URL"})  # read by jqctl, often set in the same shell
CONFIG_VARIABLE: Final = "JQD_CONFIG"

FILE_BYTES_MAX: Final = 1 << 20  # a page of settings; who points --config at a disk image is told so
VALUE_CHARS_MAX: Final = 200  # of a value in an error: room for a usual path
CONNECTIONS_DEFAULT: Final = 10_000
CONNECTIONS_MAX: Final = 100_000
# Files that are not connections: log segments, listeners, the loop's own, a margin for accept.
FILES_RESERVED: Final = 64

_SOFT_PERCENT: Final = 60
_HARD_PERCENT: Final = 80

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["json", "console", "auto"]


# --- the settings -----------------------------------------------------------------------------


def _setting(kind: Kind[Any], help: str, *, key: str = "", derived: str = "") -> dict[str, Any]:
    """Describe a field of Config. `derived`: its default in words, where it depends on the machine."""
    return {"kind": kind, "help": help, "key": key, "derived": derived}


@dataclass(frozen=True, kw_only=True)
class Config:
    """What a daemon runs with. Made by `load_config`; by hand in tests, where ranges are not checked."""

    listen: tuple[str, int] | None = field(
        default=("127.0.0.1", 7717),
        metadata=_setting(Listen(), "TCP address to serve; port 0 takes a free one and the log says which."),
    )
    unix: str | None = field(
        metadata=_setting(
            AbsolutePath(socket=True),
            "Unix socket to serve.",
            derived="`$RUNTIME_DIRECTORY/jqd.sock` under systemd, else `jqd.sock` in the data directory",
        ),
    )
    data_dir: str = field(
        metadata=_setting(
            AbsolutePath(),
            "Directory of the log. Made if missing; held by one daemon at a time.",
            derived="`$STATE_DIRECTORY` under systemd, else `/var/lib/jqd` for root, else `$XDG_DATA_HOME/jqd`, "
            "else `~/.local/share/jqd`",
        ),
    )
    sync_interval_ms: int | None = field(
        default=None,
        metadata=_setting(
            Sync(),
            "When the log is synced. `always`: before every reply. `interval=MS`: replies do not wait, and a power "
            "failure loses up to the last MS of acknowledged work.",
            key="sync",
        ),
    )
    segment_bytes: int = field(
        default=64 * MIB,
        metadata=_setting(Size(1 * MIB, 1 * GIB), "Size at which a log file is closed and the next begun."),
    )
    snapshot_bytes: int = field(
        default=256 * MIB,
        metadata=_setting(
            Size(1 * MIB, 1024 * GIB),
            "Growth of the log after which a snapshot is made; more where the last snapshot is larger than that.",
        ),
    )
    snapshot_interval_ms: int = field(
        default=DAY_MS,
        metadata=_setting(
            Number(MINUTE_MS, 30 * DAY_MS, "ms"),
            "A snapshot is made when the last one is that old and anything has changed since.",
        ),
    )
    low_space_bytes: int = field(
        default=256 * MIB,
        metadata=_setting(
            Size(1 * MIB, 1024 * GIB),
            "With less than that free on the disk of the log, new jobs are answered `storage_full`; what is there can "
            "be finished.",
        ),
    )
    commit_queue_bytes: int = field(
        default=64 * MIB,
        metadata=_setting(
            Size(1 * MIB, 4 * GIB),
            "Records that may wait for the disk; beyond, requests are answered `busy`.",
        ),
    )
    memory_soft_bytes: int = field(
        default=UNLIMITED_BYTES,
        metadata=_setting(
            Size(1 * MIB, 12_288 * GIB),
            "What jobs, queues, keys and sessions may take in memory, as they are counted; beyond, new jobs are answered "
            "`overloaded`, and what is there can be finished.",
            derived=f"{_SOFT_PERCENT} % of what the process may have: the least of its cgroup's limit, RAM, and RLIMIT_AS "
            "less what is mapped at the start",
        ),
    )
    memory_hard_bytes: int = field(
        default=UNLIMITED_BYTES,
        metadata=_setting(
            Size(2 * MIB, 16_384 * GIB),
            "The same with what connections hold and what waits for the disk; beyond, new connections are answered "
            "`overloaded`, and leases too. At least a third above memory_soft_bytes: jobs that end may leave that behind.",
            derived=f"{_HARD_PERCENT} % of it",
        ),
    )
    log_level: LogLevel = field(
        default="info",
        metadata=_setting(Choice(("debug", "info", "warning", "error")), "Least severity that is logged."),
    )
    log_format: LogFormat = field(
        default="auto",
        metadata=_setting(
            Choice(("json", "console", "auto")),
            "One JSON object a line, or text for a person; `auto` is `console` if stderr is a terminal, else `json`.",
        ),
    )
    slow_sync_ms: int = field(
        default=1 * SECOND_MS,
        metadata=_setting(Number(1, 60 * SECOND_MS, "ms"), "A sync that takes this long is logged as slow."),
    )
    drain_ms: int = field(
        default=8 * SECOND_MS,
        # The promise is an exit within 10 s of SIGTERM; the last second is for the final sync.
        metadata=_setting(
            Number(0, 9 * SECOND_MS, "ms"),
            "How long SIGTERM lets started requests finish before connections are cut.",
        ),
    )
    max_connections: int = field(
        default=CONNECTIONS_DEFAULT,
        metadata=_setting(
            Number(1, CONNECTIONS_MAX, "connections"),
            f"Connections at a time; at most the hard limit of open files less {FILES_RESERVED}.",
            derived=f"{CONNECTIONS_DEFAULT}, or the hard limit of open files less {FILES_RESERVED} where that is less",
        ),
    )
    hello_timeout_ms: int = field(
        default=5 * SECOND_MS,
        metadata=_setting(
            Number(100, 60 * SECOND_MS, "ms"), "A connection that has not said hello by then is closed."
        ),
    )
    disconnect_grace_ms: int = field(
        default=DISCONNECT_GRACE_MS,
        metadata=_setting(
            Number(0, 60 * SECOND_MS, "ms"),
            "What a worker that lost its last connection has to come back in, before its jobs go to others.",
        ),
    )
    output_bytes_max: int = field(
        default=4 * MIB,
        metadata=_setting(
            Size(64 * KIB, 256 * MIB),
            "Unsent replies of one connection beyond which nothing more is read from it.",
        ),
    )
    output_stall_ms: int = field(
        default=10 * SECOND_MS,
        metadata=_setting(
            Number(100, 600 * SECOND_MS, "ms"),
            "A connection whose replies nobody reads for this long is closed.",
        ),
    )
    accept_clock: bool = field(
        default=False,
        metadata=_setting(
            Switch(),
            "Start although the wall clock is more than a day before the newest record. For one start: as a "
            "permanent setting it takes the protection away.",
        ),
    )
    config_file: str | None = None  # the file that was read
    origins: Mapping[str, str] = field(
        default_factory=dict, compare=False, repr=False
    )  # key -> where it was found


@dataclass(frozen=True)
class Setting:
    """One field of Config as the outside sees it."""

    attribute: str
    key: str
    kind: Kind[Any]
    help: str
    default: Printable  # "" where it is derived
    derived: str  # the default in words, where it depends on the machine

    @property
    def variable(self) -> str:
        return ENV_PREFIX + self.key.upper()

    @property
    def flag(self) -> str:
        return "--" + self.key.replace("_", "-")


def _settings() -> Iterator[Setting]:
    for each in fields(Config):
        if about := each.metadata:
            kind: Kind[Any] = about["kind"]
            default = "" if about["derived"] or each.default is MISSING else kind.show(each.default)
            yield Setting(
                each.name, about["key"] or each.name, kind, about["help"], default, about["derived"]
            )


SETTINGS: Final = tuple(_settings())
_BY_KEY: Final = {setting.key: setting for setting in SETTINGS}
_BY_VARIABLE: Final = {setting.variable: setting for setting in SETTINGS}


# --- finding the values -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    raw: Raw
    origin: str


def load_config(
    flags: Mapping[str, str | bool],
    environ: Mapping[str, str],
    *,
    is_root: bool,
    cwd: str,
    open_files_max: int,
    memory_max: tuple[int, str],
    default_file: str = DEFAULT_FILE,
) -> Config:
    """Find every setting: default < file < environment < flag.

    Args:
        flags:          what was typed: key of the setting (`data_dir`), or `config`, -> text; only what was given.
        cwd:            absolute; relative paths in flags are meant from here.
        open_files_max: how many files the process may have open, at most (the hard limit).
        memory_max:     bytes of memory that the process may have, and what sets them.
        default_file:   read if it is there and neither flag nor variable names another.
    Raises: ConfigurationError: one line with the setting, the value, where it was found and what is allowed.
    """
    file, found = _read_file(_named_file(flags, environ, cwd), default_file)
    found |= _from_environment(environ)
    for key, raw in flags.items():
        if key != "config":
            setting = _BY_KEY[key]
            is_path = isinstance(setting.kind, AbsolutePath) and not (setting.kind.socket and raw == OFF)
            found[key] = _Found(_from_cwd(str(raw), cwd) if is_path else raw, setting.flag)

    values: dict[str, Any] = {
        _BY_KEY[key].attribute: _parse(_BY_KEY[key], each) for key, each in found.items()
    }
    if "data_dir" not in found:
        found["data_dir"] = _default_data_dir(environ, is_root=is_root)
        values["data_dir"] = _parse(_BY_KEY["data_dir"], found["data_dir"])
    if "unix" not in found:
        found["unix"] = _default_socket(environ, values["data_dir"])
        values["unix"] = _parse(_BY_KEY["unix"], found["unix"])
    values["max_connections"] = _connections(found.get("max_connections"), values, open_files_max)

    _limit_memory(found, values, *memory_max)
    origins = {key: found[key].origin if key in found else "default" for key in _BY_KEY}
    config = Config(**values, config_file=file, origins=origins)
    if config.listen is None and config.unix is None:
        raise ConfigurationError(
            f"listen = 'off' ({origins['listen']}) and unix = 'off' ({origins['unix']}): "
            "nobody could reach the daemon; at least one of them must be on"
        )
    return config


def _parse(setting: Setting, found: _Found) -> object:
    try:
        return setting.kind.parse(found.raw)
    except ValueError as error:
        raise _refusal(setting.key, found, str(error)) from None


def _refusal(key: str, found: _Found, allowed: str) -> ConfigurationError:
    return ConfigurationError(f"{key} = {shorten(found.raw, VALUE_CHARS_MAX)} ({found.origin}): {allowed}")


def _from_cwd(path: str, cwd: str) -> str:
    """Make a typed path absolute. What hardly is one (`~`, a URL, nothing) stays for `parse` to judge."""
    if not path or path.startswith("~") or ":/" in path:
        return path
    return _join(cwd, path)


def _join(directory: str, path: str) -> str:
    return str(PurePosixPath(directory, path)) + ("/" if path.endswith("/") else "")


def _connections(found: _Found | None, values: Mapping[str, Any], open_files_max: int) -> int:
    room = open_files_max - FILES_RESERVED
    if found is None:
        found, wanted = _Found(1, "default"), min(CONNECTIONS_DEFAULT, max(room, 1))
    else:
        wanted = values["max_connections"]
    if wanted > room:
        raise _refusal(
            "max_connections",
            found,
            f"must be at most {room}: this process may open {open_files_max} files (ulimit -Hn, or LimitNOFILE= "
            f"of the service) and keeps {FILES_RESERVED} for itself",
        )
    return wanted


def _limit_memory(found: dict[str, _Found], values: dict[str, Any], max_bytes: int, reason: str) -> None:
    """Find both limits of memory: one that is not said gives way to one that is.

    Jobs that end may leave more behind than the soft limit (core/memory.py). Were the hard one within that, neither leases
    nor connections would be taken any more, so that nothing could end and give memory back, after a restart neither.
    """
    soft, hard = "memory_soft_bytes", "memory_hard_bytes"
    if soft not in found:
        size = max(1 * MIB, max_bytes // 100 * _SOFT_PERCENT)
        values[soft] = min(size, values[hard] * _SOFT_PERCENT // _HARD_PERCENT) if hard in found else size
        found[soft] = _Found(values[soft], f"default: {_SOFT_PERCENT} % of {reason}")
    least = -(-values[soft] * _HARD_PERCENT // _SOFT_PERCENT)
    if hard not in found:
        values[hard] = max(2 * MIB, least, max_bytes // 100 * _HARD_PERCENT)
        found[hard] = _Found(values[hard], f"default: {_HARD_PERCENT} % of {reason}")
    if values[hard] < least:
        raise _refusal(
            hard,
            found[hard],
            f"must be at least {least}, a third above memory_soft_bytes = {values[soft]} ({found[soft].origin})",
        )


def _default_data_dir(environ: Mapping[str, str], *, is_root: bool) -> _Found:
    if state := environ.get("STATE_DIRECTORY"):
        return _Found(state.split(":")[0], "default: $STATE_DIRECTORY")
    if is_root:
        return _Found("/var/lib/jqd", "default")
    # The XDG specification: what is not absolute is as good as not set.
    if (share := environ.get("XDG_DATA_HOME", "")).startswith("/"):
        return _Found(_join(share, "jqd"), "default: $XDG_DATA_HOME")
    if (home := environ.get("HOME", "")).startswith("/"):
        return _Found(_join(home, ".local/share/jqd"), "default: $HOME")
    raise ConfigurationError(
        f"data_dir = {shorten(home)} (default: $HOME): no home directory to keep the log in; say {_BY_KEY['data_dir'].flag}"
    )


def _default_socket(environ: Mapping[str, str], data_dir: str) -> _Found:
    if runtime := environ.get("RUNTIME_DIRECTORY"):
        return _Found(_join(runtime.split(":")[0], "jqd.sock"), "default: $RUNTIME_DIRECTORY")
    return _Found(_join(data_dir, "jqd.sock"), "default: in the data directory")


def _from_environment(environ: Mapping[str, str]) -> dict[str, _Found]:
    found = {}
    for name, raw in environ.items():
        if not name.startswith(ENV_PREFIX) or name in CLIENT_VARIABLES or name == CONFIG_VARIABLE:
            continue
        setting = _BY_VARIABLE.get(name)
        if setting is None:
            known = (*_BY_VARIABLE, *CLIENT_VARIABLES, CONFIG_VARIABLE)
            raise ConfigurationError(
                f"environment: unknown variable {shorten(name)}; {_nearest(name, known)}"
            )
        found[setting.key] = _Found(raw, name)
    return found


def _nearest(word: str, known: Iterable[str]) -> str:
    """Say which known name is meant, or where all of them stand."""
    from difflib import get_close_matches

    # What all names share would make any two of them alike.
    names = {_bare(name): name for name in known}
    near = get_close_matches(_bare(word), names, n=1)
    return f"did you mean {names[near[0]]}?" if near else "jqd --help lists all"


def _bare(name: str) -> str:
    return name.lower().replace("-", "_").removeprefix(ENV_PREFIX.lower())


# --- the file ---------------------------------------------------------------------------------


def _named_file(flags: Mapping[str, str | bool], environ: Mapping[str, str], cwd: str) -> _Found | None:
    if "config" in flags:
        found = _Found(_from_cwd(str(flags["config"]), cwd), "--config")
    elif CONFIG_VARIABLE in environ:
        found = _Found(environ[CONFIG_VARIABLE], CONFIG_VARIABLE)
    else:
        return None
    try:
        AbsolutePath().parse(found.raw)
    except ValueError as error:
        raise _refusal("config", found, str(error)) from None
    return found


def _read_file(named: _Found | None, default_file: str) -> tuple[str | None, dict[str, _Found]]:
    """Return the file that was read, if any, and what it says.

    The default file may be missing. One that is there and cannot be read is an error: to go on with
    defaults would be to run on another data directory than the one that was meant.
    """
    from tomllib import TOMLDecodeError, loads

    found = named or _Found(default_file, "default")
    path = str(found.raw)
    try:
        with Path(path).open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        if named is None and isinstance(error, FileNotFoundError | NotADirectoryError):
            return None, {}
        raise _refusal("config", found, f"cannot be read: {error.strerror}") from None
    if len(content) > FILE_BYTES_MAX:
        raise _refusal("config", found, f"must be a file of at most {FILE_BYTES_MAX} bytes")
    try:
        text = content.decode()
        table = loads(text)
    except UnicodeDecodeError as error:
        raise _refusal("config", found, f"must be UTF-8: byte {error.start} is not") from None
    except (TOMLDecodeError, RecursionError) as error:
        raise _refusal("config", found, f"must be TOML: {str(error).splitlines()[0]}") from None
    return path, {key: _entry(key, raw, text, path) for key, raw in table.items()}


def _entry(key: str, raw: Raw, text: str, path: str) -> _Found:
    origin = _printable(path) + _line_of(key, text)
    if key not in _BY_KEY:
        is_table = isinstance(raw, dict) or (
            isinstance(raw, list) and any(isinstance(each, dict) for each in raw)
        )
        hint = "settings are top-level keys, there are no tables" if is_table else _nearest(key, _BY_KEY)
        raise ConfigurationError(f"{origin}: unknown setting {shorten(key)}; {hint}")
    return _Found(raw, origin)


def _printable(path: str) -> str:
    return shorten(path, len(path) * 10)[1:-1]


def _line_of(key: str, text: str) -> str:
    """Return `:LINE` of a top-level key as it is usually written, "" where it cannot be seen easily."""
    pattern = re.compile(rf"""\s*\[*\s*["']?{re.escape(key)}["']?\s*[=.\]]""")
    lines = (number for number, line in enumerate(text.splitlines(), 1) if pattern.match(line))
    return f":{number}" if (number := next(lines, 0)) else ""


# --- showing them -----------------------------------------------------------------------------


def render_config(config: Config) -> str:
    """Write the configuration as a TOML file that gives the same one, with the origin of each value."""
    width = max(len(setting.key) for setting in SETTINGS)
    lines = [
        f"{setting.key:<{width}} = {_toml(setting.kind.show(getattr(config, setting.attribute)))}"
        f"  # {config.origins.get(setting.key, 'default')}"
        for setting in SETTINGS
    ]
    file = _printable(config.config_file) if config.config_file else "none"
    return "\n".join([f"# effective configuration of jqd; file: {file}", *lines, ""])


def _toml(value: Printable) -> str:
    from json import dumps

    # A JSON string is a TOML string, but for U+007F, which TOML wants escaped, and for pairs of \u escapes.
    return dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def render_table() -> str:
    """Write the table of docs/configuration.md."""
    rows = [
        "| setting | default | allowed | meaning |",
        "| --- | --- | --- | --- |",
        (
            f"| `--config`<br>`{CONFIG_VARIABLE}` | `{DEFAULT_FILE}` if it is there | an absolute path | "
            "The file of settings. Given and missing is an error. |"
        ),
    ]
    for setting in SETTINGS:
        default = setting.derived or f"`{_toml(setting.default)}`"
        names = f"`{setting.key}`<br>`{setting.flag}`<br>`{setting.variable}`"
        rows.append(f"| {names} | {default} | {setting.kind.limits()} | {setting.help} |")
    return "\n".join(rows) + "\n"

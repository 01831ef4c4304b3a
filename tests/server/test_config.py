"""Where settings come from, and what is refused. `python -m tests.server.test_config` writes the table of the docs anew."""

import re
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from jqd.errors import EXIT_CONFIGURATION, ConfigurationError
from jqd.server.config import SETTINGS, Config, load_config, render_config, render_table

DOCS = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
TABLE = re.compile(
    r"(?<=<!-- generated: python -m tests\.server\.test_config -->\n).*?(?=<!-- end -->)", re.DOTALL
)
HOME = {"HOME": "/home/ann"}


def load(
    flags=None, environ=None, *, file=None, is_root=False, open_files_max=65_536, memory_bytes=1_000 << 20
) -> Config:
    """Load from what is given alone: no test sees the machine's file or environment."""
    return load_config(
        flags or {},
        HOME if environ is None else environ,
        is_root=is_root,
        cwd="/srv/here",
        open_files_max=open_files_max,
        memory_max=(memory_bytes, "RAM"),
        default_file=str(file or "/nonexistent/jqd.toml"),
    )


def refusal(*args, **keywords) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(*args, **keywords)
    message = str(caught.value)
    assert caught.value.exit_code == EXIT_CONFIGURATION
    assert "\n" not in message and message.isprintable()
    return message


@pytest.fixture
def toml(tmp_path):
    def write(text: str | bytes) -> Path:
        path: Path = tmp_path / "jqd.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


# --- defaults ---------------------------------------------------------------------------------


def test_defaults():
    assert load() == Config(
        listen=("127.0.0.1", 7717),
        unix="/home/ann/.local/share/jqd/jqd.sock",
        data_dir="/home/ann/.local/share/jqd",
        sync_interval_ms=None,
        segment_bytes=67_108_864,
        low_space_bytes=268_435_456,
        commit_queue_bytes=67_108_864,
        memory_soft_bytes=600 << 20,
        memory_hard_bytes=800 << 20,
        log_level="info",
        log_format="auto",
        slow_sync_ms=1_000,
        drain_ms=8_000,
        max_connections=10_000,
        hello_timeout_ms=5_000,
        disconnect_grace_ms=500,
        output_bytes_max=4_194_304,
        output_stall_ms=10_000,
        accept_clock=False,
        config_file=None,
    )


@pytest.mark.parametrize(
    ("environ", "is_root", "data_dir", "unix"),
    [
        (HOME, False, "/home/ann/.local/share/jqd", "/home/ann/.local/share/jqd/jqd.sock"),
        (HOME, True, "/var/lib/jqd", "/var/lib/jqd/jqd.sock"),
        (HOME | {"XDG_DATA_HOME": "/data"}, False, "/data/jqd", "/data/jqd/jqd.sock"),
        (HOME | {"XDG_DATA_HOME": "/data"}, True, "/var/lib/jqd", "/var/lib/jqd/jqd.sock"),
        (
            HOME | {"XDG_DATA_HOME": "data"},
            False,
            "/home/ann/.local/share/jqd",
            "/home/ann/.local/share/jqd/jqd.sock",
        ),
        (HOME | {"STATE_DIRECTORY": "/var/lib/q"}, True, "/var/lib/q", "/var/lib/q/jqd.sock"),
        (HOME | {"STATE_DIRECTORY": "/var/lib/q:/var/lib/r"}, False, "/var/lib/q", "/var/lib/q/jqd.sock"),
        (HOME | {"STATE_DIRECTORY": ""}, True, "/var/lib/jqd", "/var/lib/jqd/jqd.sock"),
        (HOME | {"RUNTIME_DIRECTORY": "/run/q:/run/r"}, True, "/var/lib/jqd", "/run/q/jqd.sock"),
        ({"STATE_DIRECTORY": "/s", "RUNTIME_DIRECTORY": "/r"}, False, "/s", "/r/jqd.sock"),
    ],
)
def test_directories_follow_from_user_and_systemd(environ, is_root, data_dir, unix):
    config = load(environ=environ, is_root=is_root)
    assert (config.data_dir, config.unix) == (data_dir, unix)


def test_socket_follows_a_chosen_data_directory():
    assert load({"data_dir": "/srv/q"}).unix == "/srv/q/jqd.sock"


@pytest.mark.parametrize("environ", [{}, {"HOME": ""}, {"HOME": "here"}, {"HOME": ".", "XDG_DATA_HOME": "."}])
def test_without_a_home_the_data_directory_is_never_the_current_one(environ):
    assert "no home directory to keep the log in; say --data-dir" in refusal(environ=environ)


@pytest.mark.parametrize("name", ["STATE_DIRECTORY", "RUNTIME_DIRECTORY"])
def test_relative_directory_of_systemd_is_refused(name):
    assert f"(default: ${name}): must be an absolute path" in refusal(environ=HOME | {name: "jqd"})


@pytest.mark.parametrize(
    ("open_files_max", "count"), [(65_536, 10_000), (1_024, 960), (65, 1), (2**63, 10_000)]
)
def test_connections_leave_room_for_other_files(open_files_max, count):
    assert load(open_files_max=open_files_max).max_connections == count


@pytest.mark.parametrize(("flags", "open_files_max"), [({}, 64), ({"max_connections": "961"}, 1_024)])
def test_more_connections_than_open_files_are_refused(flags, open_files_max):
    message = refusal(flags, open_files_max=open_files_max)
    assert f"must be at most {open_files_max - 64}: this process may open {open_files_max} files" in message


def test_as_many_connections_as_open_files_allow():
    assert load({"max_connections": "960"}, open_files_max=1_024).max_connections == 960


# --- precedence -------------------------------------------------------------------------------

# Two good values of every setting, as typed, and what they mean.
SAMPLES: dict[str, list[tuple[str, Any]]] = {
    "listen": [("[::1]:1", ("::1", 1)), ("off", None)],
    "unix": [("/a/s", "/a/s"), ("off", None)],
    "data_dir": [("/a", "/a"), ("/b", "/b")],
    "sync": [("interval=5", 5), ("always", None)],
    "segment_bytes": [("1MiB", 1 << 20), ("2097152", 2 << 20)],
    "snapshot_bytes": [("1MiB", 1 << 20), ("1073741824", 1 << 30)],
    "snapshot_interval_ms": [("60000", 60_000), ("3600000", 3_600_000)],
    "low_space_bytes": [("1MiB", 1 << 20), ("1024GiB", 1 << 40)],
    "commit_queue_bytes": [("1GiB", 1 << 30), ("1024KiB", 1 << 20)],
    "memory_soft_bytes": [("1MiB", 1 << 20), ("12288GiB", 12 << 40)],
    "memory_hard_bytes": [("2MiB", 2 << 20), ("16384GiB", 1 << 44)],
    "log_level": [("debug", "debug"), ("error", "error")],
    "log_format": [("json", "json"), ("console", "console")],
    "slow_sync_ms": [("1", 1), ("60000", 60_000)],
    "drain_ms": [("0", 0), ("9000", 9_000)],
    "max_connections": [("1", 1), ("200", 200)],
    "hello_timeout_ms": [("100", 100), ("60000", 60_000)],
    "disconnect_grace_ms": [("0", 0), ("60000", 60_000)],
    "output_bytes_max": [("64KiB", 65_536), ("256MiB", 256 << 20)],
    "output_stall_ms": [("100", 100), ("600000", 600_000)],
    "accept_clock": [("true", True), ("false", False)],
}


def test_every_setting_has_a_sample():
    assert list(SAMPLES) == [setting.key for setting in SETTINGS]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.key)
def test_flag_beats_environment_beats_file_beats_default(setting, toml):
    (text_1, value_1), (text_2, value_2) = SAMPLES[setting.key]
    default = getattr(load(), setting.attribute)
    in_file = toml(f'{setting.key} = "{text_1}"\n')
    in_env_1, in_env_2 = HOME | {setting.variable: text_1}, HOME | {setting.variable: text_2}

    def found(*args, **keywords):
        config = load(*args, **keywords)
        return getattr(config, setting.attribute), config.origins[setting.key].split(":")[0]

    assert found()[0] == default
    assert found(file=in_file) == (value_1, str(in_file))
    assert found(environ=in_env_2, file=in_file) == (value_2, setting.variable)
    assert found({setting.key: text_1}, environ=in_env_2) == (value_1, setting.flag)
    assert found({setting.key: text_2}, environ=in_env_1, file=in_file) == (value_2, setting.flag)


def test_value_that_is_replaced_is_not_looked_at(toml):
    assert load({"drain_ms": "1"}, HOME | {"JQD_DRAIN_MS": "many"}, file=toml("drain_ms = []")).drain_ms == 1


def test_names_follow_from_the_field():
    assert [(setting.key, setting.variable, setting.flag) for setting in SETTINGS][2:4] == [
        ("data_dir", "JQD_DATA_DIR", "--data-dir"),
        ("sync", "JQD_SYNC", "--sync"),
    ]


def test_every_field_but_the_two_about_origin_is_a_setting():
    assert {field.name for field in fields(Config)} - {setting.attribute for setting in SETTINGS} == {
        "config_file",
        "origins",
    }


def test_file_takes_native_types(toml):
    file = toml("drain_ms = 5\naccept_clock = true\nsegment_bytes = 2097152\noutput_bytes_max = '1MiB'\n")
    config = load(file=file)
    assert (config.drain_ms, config.accept_clock) == (5, True)
    assert (config.segment_bytes, config.output_bytes_max) == (2 << 20, 1 << 20)


def test_environment_of_the_client_is_left_alone():
    assert load(environ=HOME | {"JQD_URL": "jqd://there"}) == load()


def test_environment_of_others_is_left_alone():
    assert load(environ=HOME | {"PATH": "/bin", "XJQD_DRAIN": "1", "jqd_drain_ms": "x"}) == load()


# --- memory -----------------------------------------------------------------------------------


def test_limit_of_memory_that_is_not_said_gives_way_to_the_one_that_is():
    def limits(**flags: str) -> tuple[int, int]:
        config = load(flags)
        return config.memory_soft_bytes >> 20, config.memory_hard_bytes >> 20

    assert limits() == (600, 800)
    assert limits(memory_soft_bytes="700MiB") == (700, 933)
    assert limits(memory_soft_bytes="600MiB") == (600, 800)
    assert limits(memory_soft_bytes="900MiB") == (900, 1_200)
    assert limits(memory_hard_bytes="300MiB") == (225, 300)
    assert limits(memory_hard_bytes="3000MiB", memory_soft_bytes="2000MiB") == (2_000, 3_000)
    assert limits(memory_hard_bytes="1200MiB", memory_soft_bytes="900MiB") == (900, 1_200)
    assert load(memory_bytes=5).memory_soft_bytes == 1 << 20
    assert load().origins["memory_soft_bytes"] == "default: 60 % of RAM"
    assert (
        refusal({"memory_hard_bytes": "7MiB", "memory_soft_bytes": "6MiB"})
        == "memory_hard_bytes = '7MiB' (--memory-hard-bytes): must be at least 8388608, a third above "
        "memory_soft_bytes = 6291456 (--memory-soft-bytes)"
    )


# --- the file ---------------------------------------------------------------------------------


def test_named_file_replaces_the_default_one(toml, tmp_path):
    other = tmp_path / "other.toml"
    other.write_text("drain_ms = 2")
    default = toml("drain_ms = 1")
    assert load({"config": str(other)}, file=default).drain_ms == 2
    assert load(environ=HOME | {"JQD_CONFIG": str(other)}, file=default).drain_ms == 2
    assert load({"config": str(default)}, HOME | {"JQD_CONFIG": str(other)}).drain_ms == 1
    assert load({"config": str(other)}).config_file == str(other)


def test_file_of_a_flag_is_meant_from_the_current_directory():
    assert "/srv/here/no.toml" in refusal({"config": "no.toml"})


@pytest.mark.parametrize("missing", ["/nonexistent/jqd.toml", "/dev/null/jqd.toml"])
def test_default_file_may_be_missing_but_a_named_one_may_not(missing):
    assert load(file=missing).config_file is None
    assert refusal({"config": missing}).startswith(f"config = '{missing}' (--config): cannot be read: N")
    assert "(JQD_CONFIG): cannot be read" in refusal(environ={"JQD_CONFIG": missing})


def test_default_file_that_cannot_be_read_is_refused(tmp_path):
    assert "(default): cannot be read: Is a directory" in refusal(file=tmp_path)


def test_empty_file_is_good():
    assert load({"config": "/dev/null"}) == load_with_file("/dev/null")


def load_with_file(path: str) -> Config:
    config = load()
    return Config(
        **{field.name: getattr(config, field.name) for field in fields(Config)} | {"config_file": path}
    )


NO_TABLES = "settings are top-level keys, there are no tables"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("drain_ms = ", "(default): must be TOML: Invalid value"),
        (
            "drain_ms = 1\ndrain_ms = 2",
            "(default): must be TOML: Cannot overwrite a value",
        ),
        (b"unix = '/\xff'", "(default): must be UTF-8: byte 9 is not"),
        ("a = " + "[" * 5_000, "(default): must be TOML: "),
        ("#" * (1 << 20) + "\n", "(default): must be a file of at most 1048576 bytes"),
        ("\nlisen = 'off'", "jqd.toml:2: unknown setting 'lisen'; did you mean listen?"),
        ("data-dir = '/a'", "jqd.toml:1: unknown setting 'data-dir'; did you mean data_dir?"),
        ("JQD_SYNC = 'always'", "jqd.toml:1: unknown setting 'JQD_SYNC'; did you mean sync?"),
        ("max_conns = 1", "jqd.toml:1: unknown setting 'max_conns'; did you mean max_connections?"),
        ("zzz = 1", "jqd.toml:1: unknown setting 'zzz'; jqd --help lists all"),
        ("'' = 1", "jqd.toml:1: unknown setting ''; jqd --help lists all"),
        ('"a\\nb" = 1', "jqd.toml: unknown setting 'a\\nb'; jqd --help lists all"),
        ("\n\n[server]\ndrain_ms = 1", f"jqd.toml:3: unknown setting 'server'; {NO_TABLES}"),
        ("[server.net]\ndrain_ms = 1", f"jqd.toml:1: unknown setting 'server'; {NO_TABLES}"),
        ("[[server]]\ndrain_ms = 1", f"jqd.toml:1: unknown setting 'server'; {NO_TABLES}"),
        ("server.drain_ms = 1", f"jqd.toml:1: unknown setting 'server'; {NO_TABLES}"),
        ("config = '/etc/x'", "jqd.toml:1: unknown setting 'config'"),
        ("url = 'jqd://x'", "jqd.toml:1: unknown setting 'url'"),
        ("# drain_ms = 5\ndrain_ms = 10_000", "jqd.toml:2): must be a whole number from 0 to 9000 ms"),
    ],
)
def test_bad_file_is_refused(text, message, toml):
    assert message in refusal(file=toml(text))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("JQD_LISTN", "did you mean JQD_LISTEN?"),
        ("JQD_URI", "did you mean JQD_URL?"),
        ("JQD_CONF", "did you mean JQD_CONFIG?"),
        ("JQD_drain_ms", "did you mean JQD_DRAIN_MS?"),
        ("JQD_", "jqd --help lists all"),
        ("JQD_SERVICE_HOST", "jqd --help lists all"),
        ("JQD_X\nY", "jqd --help lists all"),
    ],
)
def test_unknown_variable_is_refused(name, hint):
    message = refusal(environ=HOME | {name: "1"})
    assert message == f"environment: unknown variable {name!r}; {hint}"


# --- values -----------------------------------------------------------------------------------

MIB = 1 << 20
SIZES = "must be bytes, plain or in KiB, MiB, GiB, from "
LISTEN = "must be a loopback address with a port up to 65535"
LOOPBACK = "only loopback (127.0.0.0/8, ::1) and unix sockets are allowed: there are no keys yet"


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("listen", "127.0.0.1:0", ("127.0.0.1", 0)),
        ("listen", "127.9.9.9:65535", ("127.9.9.9", 65_535)),
        ("listen", "localhost:7717", ("127.0.0.1", 7717)),
        ("listen", "LocalHost:1", ("127.0.0.1", 1)),
        ("listen", "[::1]:7717", ("::1", 7717)),
        ("listen", "[0:0:0:0:0:0:0:1]:7717", ("::1", 7717)),
        ("unix", "/" + "a" * 106, "/" + "a" * 106),
        ("unix", "jqd.sock", "/srv/here/jqd.sock"),
        ("unix", "./off", "/srv/here/off"),
        ("data_dir", "data", "/srv/here/data"),
        ("data_dir", ".", "/srv/here"),
        ("data_dir", "/a//b/./c/", "/a/b/c"),
        ("data_dir", "off", "/srv/here/off"),
        ("data_dir", "/täglich", "/täglich"),
        ("sync", "interval=1", 1),
        ("sync", "interval=60000", 60_000),
        ("segment_bytes", "1GiB", 1 << 30),
        ("accept_clock", True, True),
        ("accept_clock", False, False),
        ("accept_clock", "1", True),
        ("accept_clock", "0", False),
    ],
)
def test_good_value(key, text, value):
    config = load({key: text})
    assert getattr(config, {"sync": "sync_interval_ms"}.get(key, key)) == value


@pytest.mark.parametrize(
    ("key", "text", "allowed"),
    [
        ("listen", "", LISTEN),
        ("listen", "7717", LISTEN),
        ("listen", "127.0.0.1", LISTEN),
        ("listen", "127.0.0.1:", LISTEN),
        ("listen", "127.0.0.1:65536", LISTEN),
        ("listen", "127.0.0.1:+1", LISTEN),
        ("listen", "127.0.0.1:\u0661", LISTEN),
        ("listen", "127.0.0.1:1\n", LISTEN),
        ("listen", "::1:7717", LISTEN),
        ("listen", "[::1]", LISTEN),
        ("listen", "[127.0.0.1]:1", LISTEN),
        ("listen", "[::1%lo]:1", LISTEN),
        ("listen", "OFF", LISTEN),
        ("listen", "unix:///run/x", LISTEN),
        ("listen", ":7717", "'' is no literal address"),
        ("listen", "db.example:7717", "'db.example' is no literal address"),
        ("listen", "[localhost]:1", "'localhost' is no literal address"),
        ("listen", "127.1:1", "'127.1' is no literal address"),
        ("listen", "0.0.0.0:7717", LOOPBACK),
        ("listen", "10.0.0.1:7717", LOOPBACK),
        ("listen", "[::]:7717", LOOPBACK),
        ("listen", "[fe80::1]:7717", LOOPBACK),
        ("unix", "", "must be an absolute path of at most 107 bytes, or off"),
        ("unix", "~/jqd.sock", "must be an absolute path of at most 107 bytes, or off"),
        ("unix", "unix:///run/jqd.sock", "must be an absolute path of at most 107 bytes, or off"),
        ("unix", "/run/jqd/", "must be the path of a socket, not of a directory"),
        ("unix", "here/", "must be the path of a socket, not of a directory"),
        ("unix", "/" + "a" * 107, "the path of a socket has at most 107 bytes, this one has 108"),
        ("unix", "/" + "ä" * 54, "the path of a socket has at most 107 bytes, this one has 109"),
        ("data_dir", "", "must be an absolute path"),
        ("data_dir", "~ann/jqd", "must be an absolute path"),
        ("data_dir", "/a\0b", "must be a path: it has a zero byte"),
        ("data_dir", "/a\udcff", "must be UTF-8"),
        ("sync", "", "must be always, or interval=MS with 1 to 60000 ms"),
        ("sync", "never", "must be always, or interval=MS with 1 to 60000 ms"),
        ("sync", "interval", "must be always, or interval=MS with 1 to 60000 ms"),
        ("sync", "interval=0", "must be always, or interval=MS with 1 to 60000 ms"),
        ("sync", "interval=60001", "must be always, or interval=MS with 1 to 60000 ms"),
        ("sync", "interval=1.5", "must be always, or interval=MS with 1 to 60000 ms"),
        ("sync", "interval=1s", "must be always, or interval=MS with 1 to 60000 ms"),
        ("segment_bytes", str(MIB - 1), SIZES + "1MiB to 1GiB"),
        ("segment_bytes", str((1 << 30) + 1), SIZES + "1MiB to 1GiB"),
        ("segment_bytes", "64MB", SIZES + "1MiB to 1GiB"),
        ("segment_bytes", "64 MiB", SIZES + "1MiB to 1GiB"),
        ("segment_bytes", "64mib", SIZES + "1MiB to 1GiB"),
        ("segment_bytes", "1.5MiB", SIZES + "1MiB to 1GiB"),
        ("segment_bytes", "-64MiB", SIZES + "1MiB to 1GiB"),
        ("segment_bytes", "9" * 5_000, SIZES + "1MiB to 1GiB"),
        ("segment_bytes", "9" * 5_000 + "MiB", SIZES + "1MiB to 1GiB"),
        ("low_space_bytes", "1023KiB", SIZES + "1MiB to 1024GiB"),
        ("low_space_bytes", "1025GiB", SIZES + "1MiB to 1024GiB"),
        ("low_space_bytes", "0", SIZES + "1MiB to 1024GiB"),
        ("commit_queue_bytes", "1023KiB", SIZES + "1MiB to 4GiB"),
        ("output_bytes_max", "63KiB", SIZES + "64KiB to 256MiB"),
        ("output_bytes_max", "257MiB", SIZES + "64KiB to 256MiB"),
        ("log_level", "INFO", "must be debug, info, warning or error"),
        ("log_level", "warn", "must be debug, info, warning or error"),
        ("log_format", "text", "must be json, console or auto"),
        ("slow_sync_ms", "0", "must be a whole number from 1 to 60000 ms"),
        ("slow_sync_ms", "60001", "must be a whole number from 1 to 60000 ms"),
        ("drain_ms", "-1", "must be a whole number from 0 to 9000 ms"),
        ("drain_ms", "9001", "must be a whole number from 0 to 9000 ms"),
        ("drain_ms", "8s", "must be a whole number from 0 to 9000 ms"),
        ("drain_ms", "8_000", "must be a whole number from 0 to 9000 ms"),
        ("drain_ms", "", "must be a whole number from 0 to 9000 ms"),
        ("drain_ms", "nan", "must be a whole number from 0 to 9000 ms"),
        ("drain_ms", "9" * 5_000, "must be a whole number from 0 to 9000 ms"),
        ("max_connections", "0", "must be a whole number from 1 to 100000 connections"),
        ("max_connections", "100001", "must be a whole number from 1 to 100000 connections"),
        ("hello_timeout_ms", "99", "must be a whole number from 100 to 60000 ms"),
        ("output_stall_ms", "600001", "must be a whole number from 100 to 600000 ms"),
        ("accept_clock", "yes", "must be true or false"),
        ("accept_clock", "", "must be true or false"),
    ],
)
def test_bad_value_is_refused(key, text, allowed):
    message = refusal({key: text}, open_files_max=1 << 20)
    assert message.startswith(f"{key} = ")
    assert f" (--{key.replace('_', '-')}): {allowed}" in message
    assert len(message) < 500


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("listen = 7717", "7717"),
        ("unix = false", "False"),
        ("data_dir = ['/a']", "['/a']"),
        ("sync = 5", "5"),
        ("segment_bytes = true", "True"),
        ("segment_bytes = 6.4e7", "64000000.0"),
        ("log_level = 3", "3"),
        ("drain_ms = true", "True"),
        ("drain_ms = 5.0", "5.0"),
        ("drain_ms = 2026-01-01", "datetime.date(2026, 1, 1)"),
        ("drain_ms = 0x7fffffffffffffffffffffff", "39614081257132168796771975167"),
        ("drain_ms = {a = 1}", "{'a': 1}"),
        ("accept_clock = 1", "1"),
    ],
)
def test_value_of_another_type_in_the_file_is_refused(line, shown, toml):
    file = toml(f"# first\n{line}\n")
    message = refusal(file=file)
    assert message.startswith(f"{line.split()[0]} = {shown} (")
    assert f"{file.name}:2): must be " in message


@pytest.mark.parametrize("key", ["unix", "data_dir"])
def test_relative_path_is_refused_where_nobody_knows_from_where(key, toml):
    assert f"(JQD_{key.upper()}): must be an absolute path" in refusal(
        environ=HOME | {f"JQD_{key.upper()}": "here"}
    )
    assert "jqd.toml:1): must be an absolute path" in refusal(file=toml(f"{key} = 'here'"))


def test_default_socket_that_is_too_long_is_refused():
    message = refusal({"data_dir": "/" + "a" * 100})
    assert (
        "(default: in the data directory): the path of a socket has at most 107 bytes, this one has 110"
        in message
    )
    assert load({"data_dir": "/" + "a" * 100, "unix": "off"}).unix is None


def test_daemon_that_nobody_can_reach_is_refused():
    message = refusal({"listen": "off"}, HOME | {"JQD_UNIX": "off"})
    assert message.startswith("listen = 'off' (--listen) and unix = 'off' (JQD_UNIX): nobody could reach")


# --- what is shown ----------------------------------------------------------------------------

ODD_PATH = "/data/a b'\"\\\t\x7f\u2028é😀#/x"


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {key: samples[0][0] for key, samples in SAMPLES.items()},
        {key: samples[1][0] for key, samples in SAMPLES.items() if key != "unix"},
        {"listen": "127.0.0.1:5", "unix": "off"},
        {"data_dir": ODD_PATH, "segment_bytes": "1048577"},
    ],
)
def test_printed_configuration_is_a_file_that_gives_the_same(flags, toml):
    config = load(flags)
    text = render_config(config)
    again = load(environ={}, file=toml(text))
    assert {setting.key: getattr(again, setting.attribute) for setting in SETTINGS} == {
        setting.key: getattr(config, setting.attribute) for setting in SETTINGS
    }
    assert set(tomllib.loads(text)) == {setting.key for setting in SETTINGS}


def test_printed_configuration_names_every_origin(toml):
    file = toml("\ndrain_ms = 5")
    text = render_config(load({"listen": "[::1]:5"}, HOME | {"JQD_SYNC": "interval=7"}, file=file))
    assert f"file: {file}\n" in text
    lines = {line.split()[0]: line for line in text.splitlines()}
    assert lines["listen"].endswith('= "[::1]:5"  # --listen')
    assert lines["sync"].endswith('= "interval=7"  # JQD_SYNC')
    assert lines["drain_ms"].endswith(f"= 5  # {file}:2")
    assert lines["data_dir"].endswith("  # default: $HOME")
    assert lines["unix"].endswith("  # default: in the data directory")
    assert lines["segment_bytes"].endswith('= "64MiB"  # default')


def test_file_with_an_odd_name_does_not_break_the_printed_configuration(tmp_path):
    file = tmp_path / "a\nb\x7f.toml"
    file.write_text("drain_ms = 5")
    assert tomllib.loads(render_config(load({"config": str(file)})))["drain_ms"] == 5


def test_docs_have_the_table_of_the_code():
    found = TABLE.search(DOCS.read_text())
    assert found and found[0] == render_table(), "run: python -m tests.server.test_config"


def test_prose_of_the_docs_has_lines_that_an_editor_shows():
    lines = TABLE.sub("", DOCS.read_text()).splitlines()
    assert [line for line in lines if len(line) > 120] == []


def test_table_names_every_setting_in_all_its_forms():
    rows = render_table().splitlines()
    assert len(rows) == len(SETTINGS) + 3
    assert (
        '| `sync`<br>`--sync`<br>`JQD_SYNC` | `"always"` | always, or interval=MS with 1 to 60000 ms |'
        in rows[6]
    )
    assert all(row.count("|") == 5 for row in rows)


def test_examples_of_the_docs_are_good(toml):
    text = DOCS.read_text()
    for example in re.findall(r"```toml\n(.*?)```", text, re.DOTALL):
        assert load(file=toml(example)).data_dir == "/srv/jqd"
    assert set(re.findall(r"JQD_[A-Z_]+", text)) - {
        "JQD_PORT",
        "JQD_SERVICE_HOST",
        "JQD_URL",
        "JQD_CONFIG",
        "JQD_",
    } <= {setting.variable for setting in SETTINGS}


if __name__ == "__main__":
    DOCS.write_text(TABLE.sub(lambda _: render_table(), DOCS.read_text()))

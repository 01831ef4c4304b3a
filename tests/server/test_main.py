"""The program from the command line to the exit code. The daemon itself is a stand-in, but for the tests that need none."""

import os
import resource
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

import jqd.__main__ as program
from jqd import __version__, errors
from jqd.errors import ConfigurationError, Corruption, DataDirLocked, DiskFull, Internal
from jqd.server.config import SETTINGS, Config, load_config, render_config
from jqd.server.machine import find_memory
from tests.server.test_config import SAMPLES

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def environ(tmp_path) -> dict[str, str]:
    """An environment that leads nowhere but into this test's directory, without the machine's file."""
    return {"HOME": str(tmp_path), "JQD_CONFIG": "/dev/null", "JQD_DATA_DIR": "/d"}


@pytest.fixture(autouse=True)
def _limits() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def runs(monkeypatch) -> list[Config]:
    """Put a daemon in place that only notes what it is run with."""
    seen: list[Config] = []

    def run(config: Config) -> int:
        seen.append(config)
        return 0

    stand_in(monkeypatch, run)
    return seen


def stand_in(monkeypatch: pytest.MonkeyPatch, run: Callable[[Config], int]) -> None:
    module = ModuleType("jqd.server.daemon")
    vars(module)["run"] = run
    monkeypatch.setitem(sys.modules, "jqd.server.daemon", module)


def main(*argv: str, environ: dict[str, str]) -> int:
    with pytest.raises(SystemExit) as caught:
        program.main(argv, environ)
    code = caught.value.code
    return code if isinstance(code, int) else 0 if code is None else 1


def start(
    *argv: str, python: tuple[str, ...] = (), code: str = "", **environ: str
) -> subprocess.CompletedProcess[str]:
    """Start the real program, with a data directory that cannot be: no mistake here leaves a daemon behind."""
    program = ["-c", code] if code else ["-m", "jqd"]
    return subprocess.run(
        [sys.executable, *python, *program, *argv],
        cwd=ROOT,
        env={"HOME": "/nonexistent", "JQD_CONFIG": "/dev/null", "JQD_DATA_DIR": "/dev/null/d"} | environ,
        capture_output=True,
        text=True,
        timeout=50,
    )


# --- running ----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [[], ["serve"]])
def test_no_command_and_serve_run_the_daemon(command, runs, environ):
    assert main(*command, "--listen", "[::1]:0", environ=environ | {"JQD_DRAIN_MS": "7"}) == 0
    (config,) = runs
    assert (config.listen, config.drain_ms, config.data_dir) == (("::1", 0), 7, "/d")


def test_exit_code_of_the_daemon_is_the_programs(monkeypatch, environ):
    stand_in(monkeypatch, lambda _config: 74)
    assert main(environ=environ) == 74


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.key)
def test_every_setting_is_a_flag(setting, runs, environ):
    for text, value in SAMPLES[setting.key]:
        word = (
            [f"--{'no-' * (text == 'false')}accept-clock"]
            if setting.key == "accept_clock"
            else [setting.flag, text]
        )
        assert main(*word, environ=environ) == 0
        assert getattr(runs[-1], setting.attribute) == value
        assert runs[-1].origins[setting.key] == setting.flag


def test_flag_that_is_not_given_leaves_the_environment(runs, environ):
    main(environ=environ | {"JQD_ACCEPT_CLOCK": "true", "JQD_SYNC": "interval=3"})
    assert runs[0].accept_clock is True and runs[0].sync_interval_ms == 3


def test_relative_flag_is_meant_from_the_current_directory(runs, environ, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.toml").write_text("drain_ms = 3")
    main("--data-dir", "data", "--config", "my.toml", "--unix", "s", environ=environ)
    assert (runs[0].data_dir, runs[0].unix) == (str(tmp_path / "data"), str(tmp_path / "s"))
    assert (runs[0].drain_ms, runs[0].config_file) == (3, str(tmp_path / "my.toml"))


def test_soft_limit_of_open_files_is_raised_as_far_as_needed(runs, environ):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    main("--max-connections", "100", environ=environ)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (256, hard)
    main("--max-connections", "500", environ=environ)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (564, hard)


# --- ends -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigurationError("the clock is behind"), 78),
        (DataDirLocked("/d: held by process 7"), 75),
        (DiskFull("/d: no space"), 74),
        (Corruption("/d/1.log: bad checksum at 40", file="/d/1.log", offset=40), 65),
    ],
)
def test_failure_that_a_user_can_meet_is_one_line_and_its_exit_code(error, code, monkeypatch, environ, capfd):
    def run(_config: Config) -> int:
        raise error

    stand_in(monkeypatch, run)
    assert main(environ=environ) == code
    assert capfd.readouterr() == ("", f"jqd: {error}\n")


@pytest.mark.parametrize(
    "error", [AssertionError("state"), KeyError("x"), Internal("x"), MemoryError()], ids=repr
)
def test_anything_else_is_a_broken_invariant_with_its_traceback(error, monkeypatch, environ, capfd):
    def run(_config: Config) -> int:
        raise error

    stand_in(monkeypatch, run)
    assert main(environ=environ) == 70
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("jqd: Traceback (most recent call last):\n") and type(error).__name__ in err


def test_interrupt_while_it_starts_is_quiet(monkeypatch, environ, capfd):
    def run(_config: Config) -> int:
        raise KeyboardInterrupt

    stand_in(monkeypatch, run)
    assert main(environ=environ) == 130
    assert capfd.readouterr() == ("", "")


def test_failure_with_a_hostile_path_is_one_clean_line(monkeypatch, environ, capfd):
    def run(_config: Config) -> int:
        raise DiskFull("/a\n\x1b[2J\u2028\udcff\x9b: no space")

    stand_in(monkeypatch, run)
    assert main(environ=environ) == 74
    assert capfd.readouterr().err == "jqd: /a\\n\\x1b[2J\\u2028\\udcff\\x9b: no space\n"


def test_bad_setting_is_78_and_one_line(runs, environ, capfd):
    assert main("--drain-ms", "10000", environ=environ) == 78
    assert capfd.readouterr() == (
        "",
        "jqd: drain_ms = '10000' (--drain-ms): must be a whole number from 0 to 9000 ms\n",
    )
    assert runs == []


@pytest.mark.parametrize(
    "argv",
    [["--bogus"], ["serve", "--bogus"], ["bogus"], ["serve", "serve"], ["--listen"], ["--print-config=1"]],
)
def test_usage_error_is_2(argv, runs, environ, capfd):
    assert main(*argv, environ=environ) == 2
    assert "Error: " in capfd.readouterr().err
    assert runs == []


@pytest.mark.parametrize("name", ["uvloop", "structlog", "crc32c"])
def test_missing_extra_is_named_with_its_cure(name, monkeypatch, environ, capfd):
    monkeypatch.setitem(sys.modules, "jqd.server.daemon", None)

    def find(self: object, fullname: str, *_: object) -> None:
        if fullname == "jqd.server.daemon":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.delitem(sys.modules, "jqd.server.daemon")
    monkeypatch.setattr(sys, "meta_path", [type("Finder", (), {"find_spec": find})(), *sys.meta_path])
    assert main(environ=environ) == 2
    assert capfd.readouterr() == (
        "",
        f"jqd: the daemon needs the package {name}: pip install 'jqd[server]'\n",
    )


def test_missing_module_of_our_own_is_not_blamed_on_the_extra(monkeypatch, environ, capfd):
    monkeypatch.setitem(sys.modules, "jqd.server.daemon", None)  # what import takes for "not there"
    assert main(environ=environ) == 70
    assert "pip install" not in capfd.readouterr().err


# --- without the daemon -----------------------------------------------------------------------


def test_print_config_is_the_effective_configuration(environ, capfd):
    argv = ["--print-config", "--sync", "interval=5"]
    assert main(*argv, environ=environ) == 0
    out = capfd.readouterr().out
    assert tomllib.loads(out)["sync"] == "interval=5"
    config = load_config(
        {"sync": "interval=5"},
        environ,
        is_root=os.geteuid() == 0,
        cwd="/",
        open_files_max=program._open_files()[1],
        memory_max=find_memory(),
    )
    assert out == render_config(config)


def test_print_config_refuses_what_a_start_would(environ, capfd):
    assert main("--print-config", "--unix", "/" + "a" * 107, environ=environ) == 78
    assert "at most 107 bytes" in capfd.readouterr().err


def test_version(environ, capfd):
    assert main("--version", environ=environ) == 0
    assert capfd.readouterr().out == f"jqd {__version__}\n"


def test_help_has_every_flag_and_exit_code(environ, capfd):
    assert main("--help", environ=environ) == 0
    text = capfd.readouterr().out
    for flag in ["--config", "--print-config", "--version", *(setting.flag for setting in SETTINGS)]:
        assert f"  {flag}" in text or f" {flag}\n" in text or f", {flag}" in text
    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert codes == {65, 70, 74, 75, 78}
    for code in codes:
        assert f"\n    {code}  " in text
    assert "SIGTERM" in text and "/etc/jqd/jqd.toml" in text and "`" not in text


PROBE = """
import sys
from jqd.__main__ import main
try:
    main(sys.argv[1:])
finally:
    heavy = {"uvloop", "structlog", "crc32c", "asyncio", "jqd.server.daemon"} & set(sys.modules)
    print("loaded:", sorted(heavy), file=sys.stderr)
"""


@pytest.mark.parametrize("flag", ["--help", "--version", "--print-config"])
def test_what_needs_no_daemon_does_not_load_it(flag):
    done = start(flag, code=PROBE)
    assert (done.returncode, done.stderr) == (0, "loaded: []\n")


@pytest.mark.parametrize("option", ["-O", "-OO"])
def test_python_without_asserts_is_refused(option):
    done = start(python=(option,))
    assert done.returncode == 78
    assert done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("jqd: python -O (or PYTHONOPTIMIZE=") and "asserts" in done.stderr


def test_python_without_asserts_by_its_variable_is_refused():
    done = start(PYTHONOPTIMIZE="1")
    assert done.returncode == 78
    assert done.stderr.startswith("jqd: python -O (or PYTHONOPTIMIZE=1)")


def test_unknown_variable_of_the_real_environment_is_refused():
    done = start("--print-config", JQD_LISTN="x")
    assert (done.returncode, done.stderr) == (
        78,
        "jqd: environment: unknown variable 'JQD_LISTN'; did you mean JQD_LISTEN?\n",
    )


CLOSED = """
import os, sys
for descriptor in (0, 1, 2):
    os.close(descriptor)
from jqd.__main__ import _open_standard_streams
_open_standard_streams()
number = os.open("/dev/null", os.O_RDONLY)
os._exit(number)
"""


def test_no_file_gets_the_number_of_a_closed_standard_stream():
    assert start(code=CLOSED).returncode == 3


def test_closed_stderr_does_not_change_the_exit_code():
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "jqd", "--drain-ms", "x"],
            cwd=ROOT,
            env={"HOME": "/nonexistent", "JQD_CONFIG": "/dev/null"},
            stderr=writer,
            timeout=50,
        )
    finally:
        os.close(writer)
    assert done.returncode == 78

"""The program `jqd`: read the command line, find the configuration, run the daemon, turn its end into an exit code.

Knows:         the flags (derived from the settings), --help, the exit codes, which package brings what is missing.
Must not know: what the daemon does. It is imported only to run it: --help, --version and --print-config load no
               uvloop and no structlog, and work without the extra `server`.

    end                                            exit code
    drained after SIGTERM or SIGINT                0
    unknown flag; extra `server` not installed     2
    StorageError, ConfigurationError               their `exit_code`, and one line on stderr
    SIGINT before it serves                        130
    anything else that comes out of the daemon     70, with its traceback: an invariant is broken
"""

import contextlib
import os
import resource
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import NoReturn

import click

from jqd import __version__
from jqd.errors import (
    EXIT_CONFIGURATION,
    EXIT_DATA_DAMAGED,
    EXIT_DIRECTORY_LOCKED,
    EXIT_INVARIANT_BROKEN,
    EXIT_IO_ERROR,
    ConfigurationError,
    StorageError,
)
from jqd.server.config import (
    DEFAULT_FILE,
    FILES_RESERVED,
    SETTINGS,
    Config,
    Setting,
    load_config,
    render_config,
)
from jqd.server.machine import find_memory
from jqd.server.values import Switch

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130  # what a shell says of a program that SIGINT ended
# What the extra `server` brings. Another module that is missing is our own mistake, and shows as one.
SERVER_EXTRA = frozenset({"crc32c", "structlog", "uvloop"})

SUMMARY = """\
Run jqd, a durable job queue, in the foreground.

jqd takes jobs from producers, hands them to workers under a lease, and keeps every change in a log in its data
directory: an answer is sent when its change is on the disk. Work with it through jqctl or the Python client.
To run the tasks of a Python program instead: jqd worker --help.

Each setting is a flag, a variable JQD_NAME and a key of the configuration file. A flag beats the
environment, which beats the file, which beats the default. --print-config shows what comes out and why.
"""

EPILOG = f"""\
\b
Files:
  {DEFAULT_FILE:<22} settings, read if it is there
  DATA_DIR/              the log; one daemon at a time
  DATA_DIR/jqd.sock      the unix socket (under systemd: $RUNTIME_DIRECTORY)

\b
Signals:
  SIGTERM, SIGINT        drain: take nothing new, finish what was started, sync, exit 0 within 10 s
  SIGKILL                loses nothing that was acknowledged

\b
Exit codes:
   0  drained
   {EXIT_USAGE}  usage: unknown flag, or the extra [server] is not installed
  {EXIT_DATA_DAMAGED}  damaged data: the line names file, offset and what to do
  {EXIT_INVARIANT_BROKEN}  broken invariant: a mistake in jqd; stderr has the traceback
  {EXIT_IO_ERROR}  I/O error: a write or sync failed, or the disk is full
  {EXIT_DIRECTORY_LOCKED}  the data directory is held by another daemon
  {EXIT_CONFIGURATION}  configuration: a bad setting, an unusable directory, socket or address
"""


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> NoReturn:
    """Run the program and leave it by SystemExit."""
    _open_standard_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["worker"]:
        from jqd import worker

        worker.main(arguments[1:])
    # `serve` is the default.
    if arguments[:1] == ["serve"]:
        del arguments[0]
    command = _serve_command(os.environ if environ is None else environ)
    command.main(args=arguments, prog_name="jqd")
    raise AssertionError("click leaves by SystemExit")


def _open_standard_streams() -> None:
    """Fill descriptors 0 to 2 where they are closed.

    The next file that is opened would get such a number, and a traceback would be written into the log.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one


def _serve_command(environ: Mapping[str, str]) -> click.Command:
    @click.command(
        "jqd",
        help=SUMMARY,
        epilog=EPILOG,
        options_metavar="[serve] [OPTIONS]",
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    @click.option("--print-config", is_flag=True, help="Print the effective configuration as TOML and exit.")
    @click.version_option(__version__, prog_name="jqd", message="%(prog)s %(version)s")
    def command(config: str | None, print_config: bool, **settings: str | bool | None) -> None:
        flags = {key: raw for key, raw in {"config": config, **settings}.items() if raw is not None}
        sys.exit(_serve(flags, environ, print_config=print_config))

    file = click.Option(
        ["--config"], metavar="PATH", help=f"Settings; default: {DEFAULT_FILE} if it is there."
    )
    command.params[:0] = [file, *map(_option, SETTINGS)]
    return command


def _option(setting: Setting) -> click.Option:
    """Make a flag that hands on what was typed: whether it is good is load_config's to say."""
    if isinstance(setting.kind, Switch):
        return click.Option([f"{setting.flag}/--no-{setting.flag[2:]}"], default=None, help=setting.help)
    text = f"{setting.help} Default: {setting.derived or setting.default}.".replace("`", "")
    return click.Option([setting.flag], metavar=setting.kind.metavar, help=text)


def _serve(flags: Mapping[str, str | bool], environ: Mapping[str, str], *, print_config: bool) -> int:
    try:
        if sys.flags.optimize:
            raise ConfigurationError(
                f"python -O (or PYTHONOPTIMIZE={sys.flags.optimize}) takes out the asserts that stop the daemon "
                "before a broken invariant reaches the disk: start it without"
            )
        config = load_config(
            flags,
            environ,
            is_root=os.geteuid() == 0,
            cwd=os.getcwd(),  # noqa: PTH109  a str is wanted
            open_files_max=_open_files()[1],
            memory_max=find_memory(),
        )
        if print_config:
            click.echo(render_config(config), nl=False)
            return 0
        return _run(config)
    except (ConfigurationError, StorageError) as error:
        _complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:  # while it starts; once it serves, SIGINT drains
        return EXIT_INTERRUPTED
    except Exception:  # noqa: BLE001  the last one to see it: said whole, and the process ends
        _complain(traceback.format_exc(), keeps_lines=True)
        return EXIT_INVARIANT_BROKEN


def _run(config: Config) -> int:
    try:
        from jqd.server.daemon import run
        from jqd.server.log import flush
    except ModuleNotFoundError as error:
        if error.name not in SERVER_EXTRA:
            raise
        _complain(f"the daemon needs the package {error.name}: pip install 'jqd[server]'")
        return EXIT_USAGE
    _allow_open_files(config.max_connections + FILES_RESERVED)
    try:
        return run(config)
    finally:
        flush()  # so that what is said below comes last


def _open_files() -> tuple[int, int]:
    """Return the soft and the hard limit of open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    return (sys.maxsize if soft == unlimited else soft), (sys.maxsize if hard == unlimited else hard)


def _allow_open_files(count: int) -> None:
    """Raise the soft limit to `count`, which load_config has held against the hard one.

    The soft limit is 1,024 nearly everywhere, for the sake of programs that use select().
    """
    soft, hard = _open_files()
    if soft < count <= hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def _complain(text: str, *, keeps_lines: bool = False) -> None:
    """Write to stderr, whatever becomes of it: the exit code says the rest."""
    lines = text.rstrip("\n").split("\n") if keeps_lines else [text]
    clean = "\n".join("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line) for line in lines)
    with contextlib.suppress(OSError):
        os.write(2, f"jqd: {clean}\n".encode(errors="backslashreplace"))


if __name__ == "__main__":
    main()

"""`jqctl`: run the command line and turn what went wrong into an exit code.

Knows:         the exit codes: 0 done, 1 refused by the daemon, 2 usage (whoever finds it), 3 unreachable (a timeout too: the outcome is
               unknown), 4 the time of `wait` is over, 74 the output cannot be written; 130 interrupted, 141 the reader of the output
               went away; of a data directory those of the daemon: 65 damaged, 75 in use, 78 unusable.
Must not know: verbs.

click and the verbs are imported by the functions: main() keeps the garbage collector out of it, which would take a
tenth of the time of a short command.
"""

import gc
import os
import sys
from collections.abc import Sequence
from typing import TextIO

from jqd.errors import EXIT_IO_ERROR, ConnectionLost, JqdError, RequestTimeout, StorageError, WaitTimeout

REFUSED = 1
USAGE = 2
UNREACHABLE = 3
LATE = 4
INTERRUPTED = 130
PIPE_CLOSED = 141


def run(args: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit code."""
    import click

    from jqctl.group import COMPLETION_VARIABLE
    from jqctl.output import PipeClosed, Unreadable
    from jqctl.verbs import cli

    if COMPLETION_VARIABLE in os.environ:
        from jqctl import completion  # noqa: F401 - its shells are known to click from then on
    try:
        code = cli.main(args, prog_name="jqctl", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        error.show()
        return USAGE
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except PipeClosed:
        _drop(sys.stdout)
        return PIPE_CLOSED
    except StorageError as error:  # of a data directory that a verb opened itself
        _complain(str(error))
        return error.exit_code
    except JqdError as error:
        after = "" if error.retry_after_ms is None else f" (try again in {error.retry_after_ms / 1_000:g} s)"
        _complain(f"{error.code}: {error}{after}")
        if isinstance(error, WaitTimeout):
            return LATE
        return UNREACHABLE if isinstance(error, ConnectionLost | RequestTimeout) else REFUSED
    except Unreadable as error:
        _complain(str(error))
        return EXIT_IO_ERROR
    except OSError as error:  # the client turns those of its socket into ConnectionLost
        _drop(sys.stdout)
        _complain(f"cannot write the output: {error.strerror or error}")
        return EXIT_IO_ERROR


def _complain(message: str) -> None:
    import click

    from jqctl.output import clean

    try:
        click.echo(f"jqctl: {clean(message)}", err=True)
    except OSError:  # stderr may be as full as stdout; the exit code says it too
        _drop(sys.stderr)


def _drop(stream: TextIO) -> None:
    """Keep Python from flushing once more, at its end, what nobody takes: it would exit with a code of its own."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _load() -> None:
    """Import the verbs without looking for garbage among what is there to stay."""
    gc.disable()
    from jqctl import verbs  # noqa: F401

    gc.freeze()
    gc.enable()


def main() -> None:
    """Run as a program."""
    try:
        _load()
        if sys.stdout is None:
            _complain("cannot write the output: stdout is closed")
            sys.exit(EXIT_IO_ERROR)
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                # A terminal that cannot show a character gets its escape instead of a traceback.
                stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        code = run()
    except KeyboardInterrupt:  # before run() could see it
        code = INTERRUPTED
    gc.freeze()  # nor is there any to look for at the end: the process takes all with it
    sys.exit(code)


if __name__ == "__main__":
    main()

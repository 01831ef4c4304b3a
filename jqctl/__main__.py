"""`jqctl`: run the command line and turn what went wrong into an exit code.

Knows:         the exit codes: 0 done, 1 refused, 2 usage, 3 unreachable (a timeout too: the outcome is
               unknown); 130 interrupted, 141 the reader of the output went away.
Must not know: verbs.
"""

import os
import sys
from collections.abc import Sequence

import click

from jqctl.output import PipeClosed, clean
from jqctl.verbs import cli
from jqd.errors import ConnectionLost, JqdError, RequestTimeout

REFUSED = 1
USAGE = 2
UNREACHABLE = 3
INTERRUPTED = 130
PIPE_CLOSED = 141


def run(args: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit code."""
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
        # Nobody reads any more. Python would try to flush once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except JqdError as error:
        click.echo(f"jqctl: {error.code}: {clean(str(error))}", err=True)
        return UNREACHABLE if isinstance(error, ConnectionLost | RequestTimeout) else REFUSED


def main() -> None:
    """Run as a program."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character gets its escape instead of a traceback.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(run())


if __name__ == "__main__":
    main()

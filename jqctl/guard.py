"""The parent's side of leftovers.py: has what `jqctl work` runs killed when jqctl itself is.

Knows:         which process groups run, how the program is started and told.
Must not know: jobs, how a command is run (shell.py).

A signal at the parent's death (Linux' PR_SET_PDEATHSIG) would reach the command alone and not what it has started, and
has to be asked for between fork and exec, where a program with threads must run no Python. What this leaves open is the
moment between the start of a command and begin(): a jqctl that is killed then leaves it behind.
"""

import os
import subprocess
import sys
from pathlib import Path

from jqctl import leftovers


class Guard:
    """Knows of the process groups that run. It is started by the first one, and anew if somebody has ended it."""

    def __init__(self) -> None:
        self._groups: set[int] = set()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Make sure that it is there, so that little time lies between the start of a group and begin().

        Raises: OSError: no process can be started.
        """
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        # A session of its own: what the terminal sends is jqctl's. Without the site it starts in some 10 ms.
        self._process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-I", "-S", str(Path(leftovers.__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
        )
        for group in self._groups:
            self._tell(f"+{group}\n")

    def begin(self, group: int) -> None:
        """Have a process group killed if this process ends before end()."""
        self._groups.add(group)
        self._tell(f"+{group}\n")

    def end(self, group: int) -> None:
        """Leave a group alone: its process has ended, and its number may become another one's."""
        self._groups.discard(group)
        self._tell(f"-{group}\n")

    def close(self) -> None:
        """End it. What is registered still is killed."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()
            self._process = None

    def _tell(self, line: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            os.write(self._process.stdin.fileno(), line.encode())
        except BrokenPipeError:
            return  # somebody has ended it: start() makes another one, and tells it all

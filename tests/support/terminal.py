"""A program on a terminal of its own, and a person who reads and types there.

    with Terminal([sys.executable, "-m", "jqctl", ...], stdout=subprocess.PIPE) as terminal:
        terminal.read_until("[y/N]")
        terminal.type("y\\n")
        terminal.interrupt()                Ctrl-C
        code = terminal.end()               waits; `shown` is then all that stood on the terminal

stdin, stdout and stderr are the terminal unless an argument of Popen says otherwise.
"""

import codecs
import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tests.support.wire import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]


class Terminal:
    """See the file's first lines. `rows` and `columns`: its size."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        environ: Mapping[str, str] | None = None,
        rows: int = 24,
        columns: int = 80,
        **streams: Any,
    ) -> None:
        self.shown = ""
        self._read_chars = 0  # what read_until() has returned
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._own, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        unset = ("NO_COLOR", "FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "COLUMNS", "LINES")
        kept = {name: value for name, value in os.environ.items() if name not in unset}
        try:
            self.process = subprocess.Popen(
                command,
                env={**kept, "PYTHONPATH": str(ROOT), "TERM": "xterm", **(environ or {})},
                cwd=ROOT,
                **{"stdin": theirs, "stdout": theirs, "stderr": theirs, **streams},
            )
        finally:
            os.close(theirs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE_S)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        os.close(self._own)

    def read_until(self, text: str) -> str:
        """Wait until this text is shown anew. Returns what was shown up to its end, from the last read on."""
        begin = self._read_chars
        deadline = time.monotonic() + PATIENCE_S
        while (found := self.shown.find(text, begin)) < 0:
            assert self._read() and time.monotonic() < deadline, f"{text!r} was not shown: {self.shown!r}"
        self._read_chars = found + len(text)
        return self.shown[begin : self._read_chars]

    def type(self, text: str) -> None:
        os.write(self._own, text.encode())

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def wait_until_it_reads(self) -> None:
        """Wait until the program's main thread is in read() on its stdin.

        A signal that comes just before that is seen by Python only when the read is over.
        """
        deadline = time.monotonic() + PATIENCE_S
        call = Path(f"/proc/{self.process.pid}/syscall")
        while call.read_text().split()[:2] not in (["0", "0x0"], ["63", "0x0"]):  # x86-64, arm64
            assert time.monotonic() < deadline, f"it reads nothing: {self.shown!r}"
            os.sched_yield()

    def end(self) -> int:
        """Read all that is still shown. Returns the exit code."""
        while self._read():
            pass
        return self.process.wait(PATIENCE_S)

    def _read(self) -> bool:
        assert select.select([self._own], [], [], PATIENCE_S)[0], f"nothing comes after {self.shown!r}"
        with contextlib.suppress(OSError):  # EIO: the program's end of it is closed
            if data := os.read(self._own, 1 << 16):
                self.shown += self._decoder.decode(data)
                return True
        return False

"""A real daemon in a process of its own, on a free port and a directory of the test's.

    with Daemon(tmp_path / "data") as daemon:       started, `ready` was read
        Wire.connect(daemon.address)
        daemon.kill()                               SIGKILL, waits for the end
        daemon.start()                              again on the same directory, on another port
    ...                                             killed at the latest here

    ended(tmp_path / "data", "--listen", "x")       one that is expected not to start: exit code and stderr

It runs the package that stands beside these tests, whatever is installed.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from tests.support.wire import PATIENCE_S, Wire

ROOT = Path(__file__).resolve().parents[2]

Line = dict[str, Any]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return an environment without a setting of jqd or systemd in it."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("JQD_", "LISTEN_", "WATCHDOG_"))
        and name not in ("STATE_DIRECTORY", "RUNTIME_DIRECTORY", "NOTIFY_SOCKET")
    }
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONOPTIMIZE": "", **(extra or {})}


def command(data_dir: Path | str | None, *flags: str, python: Sequence[str] = ()) -> list[str]:
    """Return the command line of a daemon. Flags given last win; data_dir None leaves it to the environment."""
    own = ["--config", os.devnull, "--listen", "127.0.0.1:0", "--log-format", "json"]
    if data_dir is not None:
        own += ["--data-dir", str(data_dir)]
    return [sys.executable, *python, "-m", "jqd", *own, *flags]


class Ended(NamedTuple):
    code: int
    stderr: str

    @property
    def complaint(self) -> str:
        """The one line that the program says why it ended."""
        (line,) = (line for line in self.stderr.splitlines() if line.startswith("jqd: "))
        return line


def ended(data_dir: Path | str, *flags: str, python: Sequence[str] = (), cwd: Path | None = None) -> Ended:
    """Run a daemon that must end by itself."""
    done = subprocess.run(
        command(data_dir, *flags, python=python),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env=environment(),
        cwd=cwd or ROOT,
    )
    return Ended(done.returncode, done.stderr)


def wait_for_the_clock(beyond: int) -> None:
    """Wait until the unix time is beyond an epoch, as it is whenever a person restored a backup."""
    pause = threading.Event()
    while int(time.time()) <= beyond:
        pause.wait(0.05)


class Daemon:
    """See the file's card.

    Args:
        data_dir: None: the environment says it.
        flags: appended to the command line.
        wrap: a program that starts the daemon and stands between, as strace does. Signals go to its group.
        environ: variables beyond those of `environment`.
        pass_fds: descriptors that the program inherits.
    """

    def __init__(
        self,
        data_dir: Path | None,
        *flags: str,
        wrap: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.data_dir = data_dir
        self.flags = flags
        self.wrap = wrap
        self.environ = environ
        self.pass_fds = pass_fds
        self.lines: list[Line] = []
        self.stray: list[str] = []  # what came on stderr and is no line of the log
        self.ready: Line = {}
        self._news: queue.SimpleQueue[Line | None] = queue.SimpleQueue()
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.kill()

    @property
    def process(self) -> "subprocess.Popen[str]":
        assert self._process is not None
        return self._process

    @property
    def pid(self) -> int:
        """The daemon's own, also where another program started it."""
        pid: int = self.ready["pid"]
        return pid

    @property
    def address(self) -> tuple[str, int]:
        (tcp,) = (url for url in self.ready["listen"] if url.startswith("jqd://"))
        host, _, port = tcp.removeprefix("jqd://").rpartition(":")
        return host, int(port)

    @property
    def socket_path(self) -> str:
        (unix,) = (url for url in self.ready["listen"] if url.startswith("unix://"))
        path: str = unix.removeprefix("unix://")
        return path

    def start(self) -> Self:
        """Start it and wait until it serves."""
        self.launch()
        try:
            self.ready = self.wait_for("ready")
        except BaseException:
            self.kill()
            raise
        return self

    def launch(self) -> None:
        """Start it and do not wait."""
        self._reap()
        self.lines, self.stray = [], []
        self._news = queue.SimpleQueue()
        self._process = subprocess.Popen(
            [*self.wrap, *command(self.data_dir, *self.flags)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(self.environ),
            pass_fds=self.pass_fds,
            cwd=ROOT,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, args=(self._process, self._news), daemon=True)
        self._reader.start()

    def _read(self, process: "subprocess.Popen[str]", news: "queue.SimpleQueue[Line | None]") -> None:
        assert process.stderr is not None
        for text in process.stderr:
            try:
                line = json.loads(text)
            except ValueError:
                self.stray.append(text.rstrip("\n"))
                continue
            self.lines.append(line)
            news.put(line)
        news.put(None)

    def wait_for(self, event: str) -> Line:
        """Return the next line of the log with this event."""
        while True:
            try:
                line = self._news.get(timeout=PATIENCE_S)
            except queue.Empty:
                raise AssertionError(f"no {event} within {PATIENCE_S} s: {self.story()}") from None
            if line is None:
                raise AssertionError(f"the daemon ended before {event}: {self.story()}")
            if line["event"] == event:
                return line

    def story(self) -> str:
        return "\n".join([*map(str, self.lines), *self.stray])

    def logged(self, event: str) -> list[Line]:
        return [line for line in self.lines if line["event"] == event]

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def wait(self) -> int:
        """Wait until it ended by itself; return the exit code."""
        code = self.process.wait(PATIENCE_S)
        self._reap()
        return code

    def stop(self) -> int:
        """Ask it to stop, and return the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """End it without asking."""
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self._process.wait(PATIENCE_S)
            self._reap()

    def _reap(self) -> None:
        if self._process is not None and self._process.poll() is not None and self._reader is not None:
            self._reader.join(PATIENCE_S)
            assert self._process.stderr is not None
            self._process.stderr.close()
            self._reader = None

    @contextlib.contextmanager
    def client(self, **hello: object) -> Iterator[Wire]:
        with Wire.connect(self.address, **hello) as wire:
            yield wire

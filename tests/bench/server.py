"""A daemon to be measured: started, watched through /proc, killed, its data removed.

Knows:         how jqd is started, what the kernel says about a process.
Must not know: the protocol, what is measured.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

ROOT: Final = Path(__file__).resolve().parents[2]
# tmpfs would make every sync free; /tmp often is one, /var/tmp hardly ever.
DATA: Final = "/var/tmp"
START_S_MAX: Final = 60.0

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


class Server:
    """A daemon with its defaults, on a free loopback port and with a data directory of its own.

    Args:
        data: the directory that gets the data directory; it has to be on a disk.
    """

    def __init__(self, data: str = DATA) -> None:
        self._dir = tempfile.mkdtemp(prefix="jqd-bench-", dir=data)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start the daemon; returns when it takes connections."""
        environ = {key: value for key, value in os.environ.items() if not key.startswith("JQD_")}
        environ["PYTHONPATH"] = str(ROOT)
        argv = [sys.executable, "-m", "jqd", "--listen", f"127.0.0.1:{self.port}", "--unix", "off"]
        with open(os.path.join(self._dir, "stderr"), "ab") as stderr:
            self._process = subprocess.Popen(
                [*argv, "--data-dir", os.path.join(self._dir, "data")],
                cwd=self._dir,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
            )
        deadline_s = time.monotonic() + START_S_MAX
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1.0):
                return
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError(f"the daemon did not start:\n{self.stderr()}")
            time.sleep(0.002)

    def kill(self) -> None:
        """Kill -9, and wait until it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """End the daemon and remove its data."""
        self.kill()
        shutil.rmtree(self._dir, ignore_errors=True)

    def stderr(self) -> str:
        """Return what the daemon has logged."""
        return Path(self._dir, "stderr").read_text(encoding="utf-8", errors="replace")

    @property
    def pid(self) -> int:
        assert self._process is not None, "not running"
        return self._process.pid

    def cpu_s(self) -> tuple[float, float]:
        """Return the processor time of all its threads so far, (user, system), in steps of a tick (10 ms)."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return int(fields[11]) / _TICKS_PER_S, int(fields[12]) / _TICKS_PER_S

    def rss_bytes(self) -> int:
        """Return its resident memory."""
        return int(Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1]) * _PAGE_BYTES

    def log_bytes(self) -> int:
        """Return the size of its log files."""
        return sum(path.stat().st_size for path in Path(self._dir, "data").rglob("*") if path.is_file())


def file_system(path: str) -> str:
    """Return the type of the file system that a directory is on."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        fields = line.split()
        if fields[2] == wanted:
            return fields[fields.index("-") + 1]
    return "unknown"

"""A server to be measured: started, watched through /proc, killed, its data removed.

Knows:         how jqd is started, what the kernel says about a process.
Must not know: the protocol, what is measured.

The servers of others are in peers.py.
"""

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import ClassVar, Final, Self

from tests.bench import interrupt

ROOT: Final = Path(__file__).resolve().parents[2]
# tmpfs would make every sync free; /tmp often is one, /var/tmp hardly ever.
DATA: Final = "/var/tmp"
START_S_MAX: Final = 300.0  # ten million jobs are read in less

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


class Program:
    """A server with its defaults, on a free loopback port and with a directory of its own.

    Args:
        data: the directory that gets the server's directory; it has to be on a disk.
    """

    name: ClassVar[str]

    def __init__(self, data: str = DATA) -> None:
        self.dir = tempfile.mkdtemp(prefix=f"{self.name}-bench-", dir=data)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    def argv(self) -> list[str]:
        """Return the command that starts it in the foreground."""
        raise NotImplementedError

    def environ(self) -> dict[str, str]:
        return dict(os.environ)

    def is_ready(self) -> bool:
        """Tell whether it answers; OSError means not yet."""
        with socket.create_connection(("127.0.0.1", self.port), 1.0):
            return True

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
        """Start the server; returns when it takes connections."""
        interrupt.check()
        with open(os.path.join(self.dir, "stderr"), "ab") as stderr:
            self._process = subprocess.Popen(
                self.argv(),
                cwd=self.dir,
                env=self.environ(),
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                start_new_session=True,  # so that Ctrl-C reaches the benchmark alone, which then kills the group
            )
        deadline_s = time.monotonic() + START_S_MAX
        while True:
            with contextlib.suppress(OSError):
                if self.is_ready():
                    return
            interrupt.check()
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError(f"{self.name} did not start:\n{self.stderr()}")
            time.sleep(0.002)

    def kill(self) -> None:
        """Kill -9, it and what it has forked, and wait until all of them are gone."""
        if self._process is not None:
            children = self._family()[1:]
            with contextlib.suppress(ProcessLookupError):  # it did not even start
                os.killpg(self.pid, signal.SIGKILL)  # it leads a group: see start()
            self._process.wait()
            self._process = None
            for pid in children:
                with contextlib.suppress(ProcessLookupError):
                    handle = os.pidfd_open(pid)
                    select.select([handle], [], [])
                    os.close(handle)

    def close(self) -> None:
        """End the server and remove its data."""
        self.kill()
        shutil.rmtree(self.dir, ignore_errors=True)

    def stderr(self) -> str:
        """Return what the server has logged."""
        return Path(self.dir, "stderr").read_text(encoding="utf-8", errors="replace")

    @property
    def pid(self) -> int:
        assert self._process is not None, "not running"
        return self._process.pid

    def cpu_s(self) -> tuple[float, float]:
        """Return the processor time so far of all threads and children, (user, system), in steps of a tick (10 ms)."""
        user, system = 0, 0
        for pid in self._family():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the child has just ended
                stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
                # its own, then that of the children it has waited for
                user += int(stat[11]) + int(stat[13])
                system += int(stat[12]) + int(stat[14])
        return user / _TICKS_PER_S, system / _TICKS_PER_S

    def _family(self) -> list[int]:
        """Return its process id and those of its children, and of theirs."""
        family = [self.pid]
        for pid in family:
            for path in Path(f"/proc/{pid}/task").glob("*/children"):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread has just ended
                    family += map(int, path.read_text(encoding="ascii").split())
        return family

    def rss_bytes(self) -> int:
        """Return its resident memory."""
        return int(Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1]) * _PAGE_BYTES

    def rss_bytes_max(self) -> int:
        """Return the most resident memory that it has had since its start."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        return int(status.partition("VmHWM:")[2].split()[0]) << 10


class Server(Program):
    """jqd.

    Args:
        settings: of the daemon, by their names; all others keep their defaults.
    """

    name = "jqd"

    def __init__(self, data: str = DATA, settings: Mapping[str, str] = MappingProxyType({})) -> None:
        super().__init__(data)
        self._settings = {f"JQD_{name.upper()}": value for name, value in settings.items()}

    def argv(self) -> list[str]:
        listen = ["--listen", f"127.0.0.1:{self.port}", "--unix", "off"]
        return [sys.executable, "-m", "jqd", *listen, "--data-dir", os.path.join(self.dir, "data")]

    def environ(self) -> dict[str, str]:
        environ = {key: value for key, value in os.environ.items() if not key.startswith("JQD_")}
        return {**environ, **self._settings, "PYTHONPATH": str(ROOT)}

    def log_bytes(self) -> int:
        """Return the size of its log files."""
        return self._size("*.wal")

    def snapshot_bytes(self) -> int:
        """Return the size of its finished snapshots."""
        return self._size("*.snap")

    def _size(self, names: str) -> int:
        return sum(path.stat().st_size for path in Path(self.dir, "data").glob(names))


def file_system(path: str) -> str:
    """Return the type of the file system that a directory is on."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        fields = line.split()
        if fields[2] == wanted:
            return fields[fields.index("-") + 1]
    return "unknown"

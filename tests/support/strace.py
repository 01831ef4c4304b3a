"""strace between the kernel and a daemon: it fails, delays or kills at chosen system calls. Nothing of jqd is changed.

Daemon(data, wrap=wrap("inject=fdatasync:error=EIO:when=3"))        from the first step on
with attached(daemon.pid, "inject=write:signal=KILL:when=2"):       from now on

strace counts each call of each thread by itself: `when=3` is whichever thread makes its third such call first.
A signal comes before the call is carried out, so that `when=N` and `when=N+1` are both sides of call N.
Only calls on the `paths` count, where some are given: by name, or by what the descriptor was opened as.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tests.support.wire import PATIENCE_S


def _strace() -> str:
    program = shutil.which("strace")
    assert program, "strace is not installed: apt-get install strace"
    return program


def _options(injection: str, paths: Iterable[Path]) -> list[str]:
    calls = injection.removeprefix("inject=").partition(":")[0]
    named = [option for path in paths for option in ("-P", str(path))]
    return ["-o", os.devnull, *named, "-e", f"trace={calls}", "-e", injection]


def wrap(injection: str, paths: Iterable[Path] = ()) -> list[str]:
    """Return what stands before the command line of a daemon."""
    # Faster, for the kernel then stops at the chosen calls alone; but strace 6.1 sends no signal from such a stop.
    fast = [] if ":signal=" in injection else ["--seccomp-bpf"]
    return [_strace(), "-f", "-qq", *fast, *_options(injection, paths)]


@contextlib.contextmanager
def _attached(pid: int, options: list[str]) -> Iterator[None]:
    with subprocess.Popen([_strace(), *options, "-p", str(pid)], stderr=subprocess.PIPE, text=True) as tracer:
        try:
            assert tracer.stderr is not None
            said = tracer.stderr.readline()
            assert "attached" in said, f"strace cannot look at a process (root, and ptrace allowed?): {said}"
            yield
        finally:
            tracer.terminate()
            tracer.communicate(timeout=PATIENCE_S)


@contextlib.contextmanager
def attached(
    pid: int, injection: str, paths: Iterable[Path] = (), *, main_thread_only: bool = False
) -> Iterator[None]:
    """Look at a running process and all its threads, or the main one alone. Counting begins here."""
    with _attached(pid, [*([] if main_thread_only else ["-f"]), *_options(injection, paths)]):
        yield


@contextlib.contextmanager
def strace_of(pid: int, calls: str, report: Path) -> Iterator[Path]:
    """Write down, a line each, which of these calls a running process makes; the file is whole at the end."""
    with _attached(pid, ["-f", "-o", str(report), "-e", f"trace={calls}"]):
        yield report


def files_of(data: Path, segments: Sequence[int]) -> list[Path]:
    """Return every path that a daemon touches in its data directory while it has these segments."""
    names = ["lock", "store", "store.tmp"]
    for number in segments:
        names += [f"{number:016x}.wal", f"{number:016x}.wal.tmp"]
    return [data, *(data / name for name in names)]


def last_segment(data: Path) -> int:
    """Return the number of the newest segment, 0 if there is none."""
    return max((int(path.stem, 16) for path in data.glob("*.wal")), default=0)

"""A job as a process: what the command is given, and what its exit code says.

Knows:         where the payload goes, how a process is ended, exit codes.
Must not know: leases and how many jobs run at a time (jqd.client.worker), flags and help (work.py), what ends a
               command whose jqctl was killed (guard.py).

    exit code            the job
    0                    done; its result is what the command wrote to stdout
    65 (EX_DATAERR)      dead, reason `refused`: no retry would help
    75 (EX_TEMPFAIL)     ready again after --retry-in, and the attempt is not counted
    any other, a signal  an error: tried again after its backoff, at last dead
"""

import asyncio
import contextlib
import errno
import json
import logging
import os
import shlex
import shutil
import signal
from collections.abc import Sequence
from typing import Final

from jqctl.guard import Guard
from jqd.client.app import App, Handler, Runnable
from jqd.client.outcomes import Fail, Retry, Snooze, end_of_process
from jqd.client.requests import HeldJob
from jqd.errors import InvalidArgument

PLACEHOLDER: Final = "{}"
EX_DATAERR: Final = 65
EX_TEMPFAIL: Final = 75

# What a command has to end after SIGTERM. The worker leaves a job behind that takes 5 s.
_ENDS_S: Final = 3.0
# Kept of stdout and stderr, each: fits into a result, which is at most 64 KiB. What is beyond is read and thrown away, so that
# the command does not wait for a reader.
_OUTPUT_BYTES_MAX: Final = 64_000
# Of the end of stderr that becomes the job's error.
_ERROR_CHARS: Final = 2_000
_CHUNK_BYTES: Final = 1 << 16

log: Final = logging.getLogger("jqctl.work")


class ShellApp(App):
    """An app whose every job, whatever task it names, is one run of a command.

    Args:
        command: split into words as a shell does it, but no shell runs it: a payload cannot become a command. Each {} in
            it is the payload; without one the payload is on stdin.
        limit: Duration of one run; None: as long as it likes.
        retry_in: Duration that exit code 75 asks for.
    Raises: InvalidArgument: it holds no command that can be found.
    """

    def __init__(self, url: str | None, command: str, *, limit: str | None, retry_in: str) -> None:
        super().__init__(url)
        try:
            self._words = shlex.split(command)
        except ValueError as error:
            raise InvalidArgument(f"command = {command!r}: {error}") from None
        if not self._words:
            raise InvalidArgument("command = '': there is nothing to run")
        if shutil.which(self._words[0]) is None:
            raise InvalidArgument(f"command = {self._words[0]!r}: there is no such program")
        self._retry_in = retry_in
        self._guard = Guard()
        self._handler = Handler(self, self.run, self._words[0], limit)

    def runnable(self, job: HeldJob) -> Runnable:  # noqa: ARG002 - all jobs alike
        return self._handler

    async def run(self, job: HeldJob) -> str | bytes:
        """Run the command for a job.

        Returns: what it wrote to stdout, text if it is UTF-8.
        Raises:  Fail, Retry, Snooze: see the card. Cancelled, it ends the command first.
        """
        words, stdin = _given(self._words, job.payload)
        try:
            self._guard.start()
            process = await asyncio.create_subprocess_exec(
                *words,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=os.environ | _described(job),
                start_new_session=True,  # Ctrl-C is the worker's; what the command starts ends with it
            )
        except ValueError as error:  # a zero byte
            raise Fail(f"the payload cannot be an argument: {error}") from None
        except OSError as error:
            if error.errno == errno.E2BIG:
                raise Fail(
                    f"the payload cannot be an argument: {len(job.payload)} bytes are too long"
                ) from None
            raise Retry(f"cannot run {self._words[0]}: {error.strerror}") from None
        self._guard.begin(process.pid)
        log.debug("job %d is process %d", job.job_id, process.pid)
        try:
            out, err = await _talk(process, stdin)
        except asyncio.CancelledError:
            await _end(process)
            raise
        finally:
            self._guard.end(process.pid)
        code = process.returncode
        assert code is not None  # it was waited for
        if code == 0:
            return _text_or_bytes(out)
        end = end_of_process(code) if code > 0 else f"ended by {end_of_process(code)}"
        message = f"{end}: {err.decode('utf-8', 'replace').strip()[-_ERROR_CHARS:]}".rstrip(": ")
        if code == EX_DATAERR:
            raise Fail(message)
        if code == EX_TEMPFAIL:
            raise Snooze(self._retry_in)
        raise Retry(message)

    async def close(self) -> None:
        """Close the connections, as an App does, and end what stands beside."""
        await super().close()
        self._guard.close()


def _given(words: Sequence[str], payload: bytes) -> tuple[list[bytes], bytes]:
    """Return the arguments of the command, and what stands on its stdin."""
    if not any(PLACEHOLDER in word for word in words):
        return [os.fsencode(word) for word in words], payload
    return [os.fsencode(word).replace(PLACEHOLDER.encode(), payload) for word in words], b""


def _described(job: HeldJob) -> dict[str, str]:
    return {
        "JQD_JOB_ID": str(job.job_id),
        "JQD_TOKEN": str(job.token),
        "JQD_QUEUE": job.queue,
        "JQD_ATTEMPT": str(job.attempt),
        "JQD_PRIORITY": str(job.priority),
        "JQD_TASK": job.task or "",
        "JQD_METADATA": json.dumps(job.metadata or {}),
    }


async def _talk(process: asyncio.subprocess.Process, stdin: bytes) -> tuple[bytes, bytes]:
    """Write all of stdin, read all of stdout and stderr, and wait until the process has ended."""
    assert process.stdout is not None
    assert process.stderr is not None
    _, out, err, _ = await asyncio.gather(
        _write(process, stdin), _read(process.stdout), _read(process.stderr), process.wait()
    )
    return out, err


async def _write(process: asyncio.subprocess.Process, stdin: bytes) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it need not read
        process.stdin.write(stdin)
        await process.stdin.drain()
    process.stdin.close()


async def _read(stream: asyncio.StreamReader) -> bytes:
    kept = bytearray()
    while chunk := await stream.read(_CHUNK_BYTES):
        kept += chunk[: _OUTPUT_BYTES_MAX - len(kept)]
    return bytes(kept)


async def _end(process: asyncio.subprocess.Process) -> None:
    """End a command, and what it has started: by SIGTERM, and SIGKILL if that does not help."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _ENDS_S)
            return


def _text_or_bytes(out: bytes) -> str | bytes:
    try:
        return out.decode()
    except UnicodeDecodeError:
        return out

"""Show jqd at work: start the daemon unless it runs, then carry jobs from submit through lease to ack.

Knows:         the two programs beside this interpreter, `jqd` and `jqctl`, as a user would call them.
Must not know: anything inside them; all that is shown is what `jqctl` printed.

The daemon stays, with the default directory and socket, so that plain `jqctl` works afterwards.
"""

import json
import os
import shlex
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

BIN = Path(sys.executable).parent
QUEUE = "demo"
PAYLOADS = ("resize photo-1.jpg", "resize photo-2.jpg", "send welcome mail to ann")
START_SECONDS_MAX = 30
# A demo that was interrupted leaves jobs behind; they are finished too, but not without end.
LEASES_MAX = 50
# What would send the daemon or jqctl elsewhere than to the default places.
ELSEWHERE = ("JQD_", "STATE_DIRECTORY", "RUNTIME_DIRECTORY")
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(ELSEWHERE)}

COLOURS = sys.stdout.isatty() and "NO_COLOR" not in os.environ


class DemoError(Exception):
    """What went wrong, in the words that are shown."""


def main() -> int:
    """Run the demo; 0 if all went as it should, as far as anybody looked."""
    try:
        title("1. The daemon")
        started = start_daemon()
        title("2. A producer submits three jobs")
        ours = [submit(payload) for payload in PAYLOADS]
        show("queues")
        title("3. A worker leases each job, does it, and acknowledges it")
        work_off(set(ours))
        title("4. All done, and on disk")
        show("job", ours[-1])
        show("queues")
        farewell(started=started)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever reads has seen enough. Python would try to flush once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except DemoError as error:
        print(f"\n{paint('31', 'demo failed:')} {error}", file=sys.stderr)
        return 1
    return 0


# --- the story ----------------------------------------------------------------------------------


def start_daemon() -> bool:
    """Start jqd in the background unless one answers; True if it was started here."""
    if is_up():
        print("jqd is running already; the demo uses it.")
        return False
    directory = data_directory()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    log_path = directory / "jqd.log"
    print(f"{paint('36', '$')} {shown(BIN / 'jqd')} > {log_path} &")
    with log_path.open("ab") as log:
        log_start = log.tell()
        # A session and pipes of its own: it outlives this terminal, and `make demo | cat` ends.
        daemon = subprocess.Popen(
            [BIN / "jqd"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=ENVIRONMENT,
            start_new_session=True,
        )
    give_up = time.monotonic() + START_SECONDS_MAX
    while not is_up():
        if daemon.poll() is not None:
            raise DemoError(f"jqd ended with exit code {daemon.returncode}.\n{tail(log_path, log_start)}")
        if time.monotonic() > give_up:
            daemon.terminate()
            raise DemoError(f"jqd did not answer in {START_SECONDS_MAX} s.\n{tail(log_path, log_start)}")
        time.sleep(0.05)
    daemon.returncode = 0  # it is meant to stay: no warning that it still runs
    print(f"jqd answers, its data is in {directory}")
    return True


def submit(payload: str) -> str:
    """Submit one job and return its id."""
    (job,) = ask("submit", QUEUE, payload)
    print(paint("32", f"  job {job['job_id']} is on disk"))
    return str(job["job_id"])


def work_off(ours: set[str]) -> None:
    """Lease and acknowledge jobs until ours are done."""
    for _ in range(LEASES_MAX):
        leased = ask("lease", QUEUE, "--count", "1", "--wait", "5")
        if not leased:
            raise DemoError(f"no job to lease, but {len(ours)} were submitted and not done")
        (job,) = leased
        job_id, token = str(job["job_id"]), str(job["token"])
        print(paint("33", f"  job {job_id}, attempt {job['attempt']}: working on {job['payload']!r}"))
        show("ack", job_id, token)
        ours.discard(job_id)
        if not ours:
            return
    raise DemoError(f"{LEASES_MAX} jobs were leased and {len(ours)} of ours are not among them")


def farewell(*, started: bool) -> None:
    """Say how to go on and how to stop the daemon."""
    jqctl, pid = shown(BIN / "jqctl"), daemon_pid()
    title("It goes on running" if started else "It was running before, and goes on")
    print(f"  look:  {jqctl} queues      {jqctl} jobs --queue {QUEUE}      {jqctl} --help")
    if pid is not None:
        print(f"  stop:  kill {pid}")
    if "JQD_URL" in os.environ:
        print("  JQD_URL is set: jqctl goes there, and not to this daemon, until you unset it.")


# --- jqctl --------------------------------------------------------------------------------------


def jqctl(*words: str) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "jqctl"), *words]
    try:
        return subprocess.run(
            command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise DemoError(f"jqctl {words[0]} did not end within a minute") from error


def is_up() -> bool:
    """Tell whether a daemon answers at the default place."""
    done = jqctl("ping")
    if done.returncode not in (0, 3):  # 3 = unreachable; the rest will not get better by waiting
        raise DemoError(f"jqctl ping: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.returncode == 0


def show(*words: str) -> str:
    """Run a command as the reader would, with what it prints; returns that."""
    print(f"{paint('36', '$')} {shown(BIN / 'jqctl')} {shlex.join(words)}", flush=True)
    done = jqctl(*words)
    print("".join(f"  {line}\n" for line in (done.stdout + done.stderr).splitlines()), end="", flush=True)
    if done.returncode != 0:
        raise DemoError(f"jqctl {words[0]}: exit code {done.returncode}")
    return done.stdout


def ask(*words: str) -> list[dict[str, object]]:
    """`show` with JSON output, one object a line, decoded."""
    output = show(*words, "-o", "json")
    try:
        return [json.loads(line) for line in output.splitlines()]
    except ValueError as error:
        raise DemoError(f"jqctl {words[0]} printed something else than JSON: {error}") from error


# --- places -------------------------------------------------------------------------------------


def data_directory() -> Path:
    """Name the default data directory (README: Configuration)."""
    if os.geteuid() == 0:
        return Path("/var/lib/jqd")
    base = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(base).expanduser() / "jqd"


def daemon_pid() -> int | None:
    """Ask the kernel who listens on the default sockets, in the order in which jqctl tries them."""
    for path in (Path("/run/jqd/jqd.sock"), data_directory() / "jqd.sock"):
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(5)
                probe.connect(str(path))
                credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        except OSError:
            continue
        return int(struct.unpack("3i", credentials)[0])
    return None


def tail(path: Path, start: int) -> str:
    """Return the last lines that this run of the daemon wrote."""
    with path.open("rb") as log:
        log.seek(start)
        lines = log.read().decode("utf-8", "replace").splitlines()[-15:]
    return "\n".join([f"The end of {path}:", *(f"  {line}" for line in lines)])


# --- looks --------------------------------------------------------------------------------------


def paint(code: str, text: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if COLOURS else text


def title(text: str) -> None:
    print(f"\n{paint('1', text)}", flush=True)


def shown(path: Path) -> str:
    """Write a path the short way, if it is below the current directory."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    sys.exit(main())

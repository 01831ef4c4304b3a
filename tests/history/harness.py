"""One run: a daemon that is killed again and again, client processes that go on, and all that is known of it after.

    with Run(directory, plan) as run:   everything below the directory; plan: the seed, and how many kills
        run.go()                        raises Violation where the daemon itself gives up: it ends, hangs, or does not start
    load(directory)                     the History of a run
    measure(history, figures)           raises Invalid where too little happened to prove anything

    directory/data      of the daemon        /archive   a hard link to every segment of the log that there ever was
             /clients   a file of records a client process (operations.py)
             /facts     `jqctl wal dump` of the archive, from the first LSN to the last
             /run.json  what the nemesis did, and when
             /daemon.log  what the last daemon said; only if the run itself has failed

The moment of a kill is a number of requests that were answered, drawn from the seed: a slow machine does the same
work as a fast one.

Knows:         processes, signals, files; how much has to happen.
Must not know: what a request means, what is right.
"""

import contextlib
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple, Self

import msgspec
from msgspec import Struct

from tests.history.clients import Settings
from tests.history.operations import History, Operation, Violation, read_facts, read_operations
from tests.history.search import DRAIN
from tests.support.daemon import ROOT, Daemon, environment
from tests.support.wire import PATIENCE_S

# Small, so that a run has many of each. Both are the least that the daemon takes.
FLAGS: Final = ("--segment-bytes", "1MiB", "--snapshot-bytes", "1MiB", "--low-space-bytes", "1MiB")
# Work that a run must have done to say anything. Rates count a request as one, whatever it brings.
OPS_PER_S_MIN: Final = 500
OPS_BETWEEN_KILLS_MIN: Final = 10
DRAIN_S: Final = 90
# A daemon that was stopped for longer than half a second forgives leases that time; see protocol.md.
PAUSES_S: Final = (0.05, 0.2, 0.7)


class Invalid(Exception):
    """A run in which too little happened: neither green nor red."""


class Plan(Struct, kw_only=True):
    """What a run is to be."""

    seed: int
    kills: int = 20
    ops_between: tuple[int, int] = (200, 1_000)


class Figures(Struct, kw_only=True):
    """What a run was. Times are CLOCK_MONOTONIC in ns.

    starts: when daemons were started; kills: when they died of SIGKILL while they served.
    served: from when to when a daemon served, while all clients and the nemesis were at work.
    broken: of each client that ended otherwise than it should: which, how, and the end of what it said.
    """

    seed: int
    starts: list[int] = []
    kills: list[int] = []
    events: dict[str, int] = {}
    served: list[tuple[int, int]] = []
    broken: list[str] = []


class Kind(NamedTuple):
    """A client process."""

    kind: str
    actors: int
    over_proxy: bool = False
    may_be_killed: bool = False
    lease_s_max: float = 5


# Many actors in one process cost less than many processes: what they ask in one moment leaves in one write.
KINDS: Final = (
    Kind("async", 12),
    Kind("async", 8, over_proxy=True),
    Kind("sync", 3),
    Kind("sync", 1, over_proxy=True, may_be_killed=True, lease_s_max=2),
)
DRAINER: Final = Kind("drain", 1)
# Of the end of what a client said that broke: a traceback and what is behind it.
_SAID_CHARS: Final = 4_000


@dataclass
class _Client:
    name: str
    kind: Kind
    process: "subprocess.Popen[bytes]"

    def close(self) -> None:
        """Let it come to its end."""
        assert self.process.stdin is not None
        self.process.stdin.close()


class Run:
    """See the file's card."""

    def __init__(self, directory: Path, plan: Plan) -> None:
        self.directory = directory
        self.plan = plan
        self.random = random.Random(plan.seed)
        self.figures = Figures(seed=plan.seed)
        self.events: Counter[str] = Counter()
        for name in ("archive", "clients", "errors"):
            (directory / name).mkdir(parents=True)
        self.data = directory / "data"
        self.socket = directory / "s"
        self.daemon = Daemon(self.data, "--listen", "off", "--unix", str(self.socket), *FLAGS)
        self.clients: list[_Client] = []
        self.files = 0
        self._ops = 0
        self._progress, self._progress_end = os.pipe()
        self._proxy: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._serves_since = 0

    # --- from begin to end ------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self.daemon.kill()
        if kind is not None:
            (self.directory / "daemon.log").write_text(self.daemon.story())
        others = [client.process for client in self.clients] + ([self._proxy] if self._proxy else [])
        for process in others:
            process.kill()
            process.wait(PATIENCE_S)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        os.close(self._progress)
        os.close(self._progress_end)

    def go(self) -> None:
        self.start_daemon()
        self.start_proxy()
        for kind in KINDS:
            self.start_client(kind)
        self.wait_for_work(self.plan.ops_between[0])
        self._serves_since = time.monotonic_ns()
        while len(self.figures.kills) < self.plan.kills:
            self.wait_for_work(self.random.randrange(*self.plan.ops_between))
            self.strike()
        self.wait_for_work(self.plan.ops_between[0])
        self.serves_no_more()
        self.end()

    def end(self) -> None:
        """Let everybody finish, work everything off, stop, and keep what is needed to judge."""
        for client in self.clients:
            client.close()
        for client in self.clients:
            self.wait_for_end(client, PATIENCE_S * 2)
        self.start_client(DRAINER)
        self.wait_for_end(self.clients[-1], DRAIN_S)
        self.archive()
        self.stop_daemon()
        self.archive()
        shutil.copy(self.data / "store", self.directory / "archive")
        self.stop_proxy()
        self.figures.events = dict(self.events)
        (self.directory / "run.json").write_bytes(msgspec.json.encode(self.figures))
        with (self.directory / "facts").open("wb") as facts:
            command = [sys.executable, "-m", "jqctl", "wal", "dump", str(self.directory / "archive")]
            subprocess.run(command, check=True, stdout=facts, env=environment(), cwd=ROOT, timeout=DRAIN_S)

    # --- processes ----------------------------------------------------------------------------------

    def serves_no_more(self) -> None:
        self.figures.served.append((self._serves_since, time.monotonic_ns()))

    def start_daemon(self) -> None:
        self.figures.starts.append(time.monotonic_ns())
        try:
            self.daemon.start()
        except AssertionError as error:
            raise Violation("does not start", str(error)) from None
        self._serves_since = time.monotonic_ns()
        if self.daemon.logged("recovered")[-1]["snapshot_lsn"]:
            self.events["starts from a snapshot"] += 1
        self.archive()

    def stop_daemon(self) -> None:
        code = self.daemon.stop()
        if code:
            raise Violation("does not stop", f"it ended with {code}: {self.daemon.story()}")

    def check_daemon(self) -> None:
        """Nobody but the nemesis may end it."""
        code = self.daemon.process.poll()
        if code is not None:
            raise Violation("ended by itself", f"with {code}: {self.daemon.story()}")

    def wait_for_end(self, client: "_Client", seconds: float) -> None:
        """Wait until a client has done what it wants to do before it goes. One that broke is noted: what it and the
        others were told is judged all the same.
        """
        try:
            code = client.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.check_daemon()
            raise Violation("hangs", f"client {client.name} was not done within {seconds} s") from None
        if code:
            said = (self.directory / "errors" / client.name).read_text(errors="replace")
            self.figures.broken.append(f"{client.name} ended with {code}: {said[-_SAID_CHARS:]}")

    def start_proxy(self) -> None:
        command = [sys.executable, "-m", "tests.history.proxy", str(self.plan.seed), str(self.socket)]
        self._proxy = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(), cwd=ROOT
        )
        assert self._proxy.stdout is not None
        self._port = int(self._proxy.stdout.readline())

    def stop_proxy(self) -> None:
        assert self._proxy is not None
        said, _ = self._proxy.communicate(timeout=PATIENCE_S)
        self.events.update(json.loads(said))

    def start_client(self, kind: "Kind") -> None:
        self.files += 1
        name = DRAIN if kind is DRAINER else f"c{self.files}"
        settings = Settings(
            name=name,
            url=f"jqd://127.0.0.1:{self._port}" if kind.over_proxy else f"unix://{self.socket}",
            kind=kind.kind,
            seed=str(self.plan.seed),
            file=str(self.directory / "clients" / name),
            actors=kind.actors,
            lease_s_max=kind.lease_s_max,
        )
        with (self.directory / "errors" / name).open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.history.clients", msgspec.json.encode(settings).decode()],
                stdin=subprocess.PIPE,
                stdout=self._progress_end,
                stderr=errors,
                env=environment(),
                cwd=ROOT,
            )
        self.clients.append(_Client(name, kind, process))

    # --- the nemesis ----------------------------------------------------------------------------------

    def wait_for_work(self, ops: int) -> None:
        """Wait until so many more requests were answered well."""
        goal = self._ops + ops
        while self._ops < goal:
            ready, _, _ = select.select([self._progress], [], [], PATIENCE_S)
            if not ready:
                self.check_daemon()
                raise Violation("hangs", f"for {PATIENCE_S} s no request was answered well")
            self._ops += len(os.read(self._progress, 1 << 16))
        self.archive()

    def forget_work(self) -> None:
        """Do not count what was answered before now."""
        while select.select([self._progress], [], [], 0)[0]:
            self._ops += len(os.read(self._progress, 1 << 16))

    def strike(self) -> None:
        self.check_daemon()
        chance = self.random.random()
        if chance < 0.12:
            self.pause()
        elif chance < 0.18:
            self.kill_client()
        elif chance < 0.26:
            self.events["stops"] += 1
            self.serves_no_more()
            self.stop_daemon()
            self.start_daemon()
        else:
            self.kill()

    def kill(self) -> None:
        self.serves_no_more()
        self.daemon.kill()
        self.figures.kills.append(time.monotonic_ns())
        self.events["kills"] += 1
        if any(self.data.glob("*.snap.tmp")):
            self.events["snapshots under way at a kill"] += 1
        if self.random.random() < 0.15:
            self.figures.starts.append(time.monotonic_ns())
            self.daemon.launch()
            try:
                self.daemon.wait_for("recovered")
            except AssertionError as error:
                raise Violation("does not start", str(error)) from None
            self.daemon.kill()
            self.events["kills while recovering"] += 1
        self.start_daemon()
        self.forget_work()

    def pause(self) -> None:
        """Stop the daemon as SIGSTOP does; it does not know."""
        self.events["pauses"] += 1
        self.daemon.signal(signal.SIGSTOP)
        select.select([], [], [], self.random.choice(PAUSES_S))
        self.daemon.signal(signal.SIGCONT)

    def kill_client(self) -> None:
        """Kill a client whose leases are short, and start another one in its place."""
        index = next(at for at, client in enumerate(self.clients) if client.kind.may_be_killed)
        client = self.clients.pop(index)
        client.process.kill()
        client.process.wait(PATIENCE_S)
        assert client.process.stdin is not None
        client.process.stdin.close()
        self.events["clients killed"] += 1
        self.start_client(client.kind)

    def archive(self) -> None:
        """Keep a hard link to each segment: compaction removes them, and a start puts copies in the place of some."""
        for path in self.data.glob("*.wal"):
            kept = self.directory / "archive" / path.name
            with contextlib.suppress(FileNotFoundError):
                if not kept.exists() or kept.stat().st_ino != path.stat().st_ino:
                    new = kept.with_suffix(".new")
                    new.unlink(missing_ok=True)
                    os.link(path, new)
                    new.replace(kept)


# --- what is left of a run ----------------------------------------------------------------------------


def load(directory: Path) -> tuple[History, Figures]:
    """Return what is known of a run."""
    figures = msgspec.json.decode((directory / "run.json").read_bytes(), type=Figures)
    operations: list[Operation] = []
    for file in sorted((directory / "clients").iterdir()):
        operations += read_operations(file)
    with (directory / "facts").open("rb") as lines:
        facts = read_facts(lines)
    return History(operations=operations, facts=facts, starts=figures.starts), figures


def measure(history: History, figures: Figures) -> Counter[str]:
    """Return how much was done. A request counts as one, whatever it brings; the time is that in which a daemon served.

    Raises: Invalid.
    """
    times = sorted(one.returned for one in history.operations if one.is_answered)
    seconds = sum(end - begin for begin, end in figures.served) / 1e9
    within = sum(bisect_left(times, end) - bisect_left(times, begin) for begin, end in figures.served)
    rate = round(within / seconds)
    edges = [bisect_left(times, kill) for kill in figures.kills]
    least = min(later - earlier for earlier, later in pairwise(edges))
    if rate < OPS_PER_S_MIN or least < OPS_BETWEEN_KILLS_MIN:
        raise Invalid(
            f"{rate} requests/s of {OPS_PER_S_MIN}, {least} of {OPS_BETWEEN_KILLS_MIN} between two kills"
        )
    return Counter({"requests answered": len(times), "requests/s": rate, "least between two kills": least})

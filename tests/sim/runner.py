"""Many plans over several processes, and what they came to.

Knows:         how plans are dealt out, counted and compared, how one is written down.
Must not know: what a plan does, how the figures are shown (__main__.py).
"""

import gc
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Final

import structlog

from tests.sim.marks import Marks
from tests.sim.oracle import Violation
from tests.sim.plan import Plan, Settings, make_plan
from tests.sim.planted import planted
from tests.sim.world import Outcome, run

ROOT: Final = Path(__file__).resolve().parents[2]

# Of the seeds, run twice: the second time in a process in which sets and dicts of str have another order.
TWICE_EVERY: Final = 50
TASK_SEEDS: Final = 5


@dataclass
class Done:
    """What some plans came to."""

    schedules: int = 0
    steps: int = 0
    replies: int = 0
    jobs: int = 0
    runs: int = 0  # starts of the daemon
    cpu_s: float = 0.0
    marks: Counter[str] = field(default_factory=Counter)
    hashes: dict[int, int] = field(default_factory=dict)  # of the seeds that are run twice
    failures: list[tuple[int, str, int, str]] = field(default_factory=list)  # seed, invariant, step, text

    def add(self, other: "Done") -> None:
        self.schedules += other.schedules
        self.steps += other.steps
        self.replies += other.replies
        self.jobs += other.jobs
        self.runs += other.runs
        self.cpu_s += other.cpu_s
        self.marks += other.marks
        self.hashes |= other.hashes
        self.failures += other.failures


def quiet() -> None:
    """The daemon's log is not what is looked at here."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))


def run_seeds(seeds: Sequence[int], steps: int, bug: str = "") -> Done:
    """Run some plans. In a process of its own, or in this one."""
    quiet()
    done = Done()
    begun_s = time.process_time()
    gc.freeze()  # what a plan leaves is collected behind it: in the middle of it next to nothing is garbage
    gc.disable()
    for seed in seeds:
        gc.collect()
        marks = Marks()
        try:
            with planted(bug):
                outcome = run(make_plan(seed, steps), marks)
        except Violation as violation:
            done.failures.append((seed, violation.invariant, violation.step, violation.text))
            done.steps += violation.step
        else:
            _count(done, outcome)
        done.schedules += 1
        done.marks.update(marks.counts)
    gc.enable()
    gc.unfreeze()
    done.cpu_s = time.process_time() - begun_s
    return done


def _count(done: Done, outcome: Outcome) -> None:
    done.steps += outcome.steps
    done.replies += outcome.replies
    done.jobs += outcome.jobs
    done.runs += outcome.runs
    if outcome.seed % TWICE_EVERY == 0:
        done.hashes[outcome.seed] = outcome.trace_hash


def run_all(
    seeds: Iterator[int], steps: int, processes: int, until_s: float | None = None, failures_max: int = 3
) -> Done:
    """Run plans over several processes until there are no more seeds, or the time is over."""
    done = Done()
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        under_way: set[Future[Done]] = set()
        while True:
            while len(under_way) < 2 * processes and (until_s is None or time.monotonic() < until_s):
                task = list(islice(seeds, TASK_SEEDS))
                if not task:
                    break
                under_way.add(pool.submit(run_seeds, task, steps))
            if not under_way:
                return done
            finished, under_way = wait(under_way, return_when=FIRST_COMPLETED)
            for future in finished:
                done.add(future.result())
            if len(done.failures) >= failures_max:
                pool.shutdown(cancel_futures=True)
                return done


def hashes_elsewhere(seeds: Sequence[int], steps: int) -> dict[int, int]:
    """Run plans in a process with other hashes of str; return their trace hashes."""
    other = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    command = [sys.executable, "-m", "tests.sim", "hashes", "--steps", str(steps), *map(str, seeds)]
    output = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": other}, check=True, stdout=subprocess.PIPE
    )
    return {int(seed): value for seed, value in json.loads(output.stdout).items()}


# --- plans as text --------------------------------------------------------------------------------


def to_text(plan: Plan) -> str:
    return json.dumps({"seed": plan.seed, "settings": plan.settings._asdict(), "steps": plan.steps})


def from_text(text: str) -> Plan:
    fields = json.loads(text)
    steps = [tuple(step) for step in fields["steps"]]
    return Plan(fields["seed"], Settings(**fields["settings"]), steps)


def attempt(plan: Plan, bug: str = "") -> tuple[str, int] | None:
    try:
        with planted(bug):
            run(plan)
    except Violation as violation:
        return violation.invariant, violation.step
    return None


def commit() -> str:
    """Return the commit that runs, with a + if the files differ from it."""
    try:
        name = subprocess.run(
            ["git", "describe", "--always", "--dirty=+"],
            cwd=ROOT,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name.stdout.strip()

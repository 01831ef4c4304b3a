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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import count, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from tests.sim.images import TASKS as PARTS
from tests.sim.images import Figures, explore
from tests.sim.lives import LIVES
from tests.sim.marks import Marks
from tests.sim.oracle import Violation
from tests.sim.plan import Plan, Settings, make_plan
from tests.sim.planted import PLANTED, planted
from tests.sim.world import Outcome, run

ROOT: Final = Path(__file__).resolve().parents[2]

# Of the seeds, run twice: the second time in a process in which sets and dicts of str have another order.
TWICE_EVERY: Final = 50
TASK_SEEDS: Final = 5
# Where images are made too, one part of a life behind so many tasks of plans: a fifth of the time, about.
OTHERS_EVERY: Final = 3
TELL_EVERY_S: Final = 60
# Bugs are hunted with seeds that no other run has.
PLANTED_FIRST_SEED: Final = 10_000


@dataclass
class Done:
    """What some plans and images came to."""

    schedules: int = 0
    steps: int = 0
    replies: int = 0
    jobs: int = 0
    runs: int = 0  # starts of the daemon
    cpu_s: float = 0.0
    marks: Counter[str] = field(default_factory=Counter)
    hashes: dict[int, int] = field(default_factory=dict)  # of the seeds that are run twice
    failures: list[tuple[int, str, int, str]] = field(default_factory=list)  # seed, invariant, step, text
    images: Figures = field(default_factory=Figures)

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
        self.images.add(other.images)


# What a process is given to do.
Task = Callable[[], Done]


def quiet() -> None:
    """The daemon's log is not what is looked at here."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(50), cache_logger_on_first_use=False
    )


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


def run_images(name: str, seed: int, part: int) -> Done:
    """Look around at a part of a life's points (images.py)."""
    return Done(images=explore(name, seed, part))


def image_tasks(first_seed: int) -> Iterator[Task]:
    """Yield lives without end, each in parts."""
    for seed in count(first_seed):
        for name in LIVES:
            for part in range(PARTS):
                yield partial(run_images, name, seed, part)


def plan_tasks(seeds: Iterator[int], steps: int) -> Iterator[Task]:
    while task := list(islice(seeds, TASK_SEEDS)):
        yield partial(run_seeds, task, steps)


def mixed(tasks: Iterator[Task], others: Iterator[Task]) -> Iterator[Task]:
    """Yield a task of the others behind every OTHERS_EVERY."""
    for number, task in enumerate(tasks, 1):
        yield task
        if number % OTHERS_EVERY == 0:
            yield next(others)


def run_all(
    tasks: Iterator[Task],
    processes: int,
    *,
    until_s: float | None = None,
    failures_max: int = 3,
    tell: Callable[[Done], object] = lambda _: None,
) -> Done:
    """Do tasks in several processes until there are no more, the time is over or too much has failed.

    Args:
        tell: called with what was done so far, about once a minute.
    """
    done = Done()
    told_s = time.monotonic()
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        under_way: set[Future[Done]] = set()
        while True:
            while len(under_way) < 2 * processes and (until_s is None or time.monotonic() < until_s):
                task = next(tasks, None)
                if task is None:
                    break
                under_way.add(pool.submit(task))
            if not under_way:
                return done
            finished, under_way = wait(under_way, return_when=FIRST_COMPLETED)
            for future in finished:
                done.add(future.result())
            if time.monotonic() - told_s >= TELL_EVERY_S:
                told_s = time.monotonic()
                tell(done)
            if len(done.failures) + len(done.images.violations) >= failures_max:
                pool.shutdown(cancel_futures=True)
                return done


def hashes_elsewhere(seeds: Sequence[int], steps: int, processes: int = 1) -> dict[int, int]:
    """Run plans in processes with other hashes of str; return their trace hashes."""
    other = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    command = [sys.executable, "-m", "tests.sim", "hashes", "--steps", str(steps)]
    parts = [seeds[number::processes] for number in range(processes)]
    under_way = [
        subprocess.Popen(
            [*command, *map(str, part)],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": other},
            stdout=subprocess.PIPE,
        )
        for part in parts
        if part
    ]
    found: dict[int, int] = {}
    for process in under_way:
        output, _ = process.communicate()
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, process.args)
        found |= {int(seed): value for seed, value in json.loads(output).items()}
    return found


# --- planted bugs ---------------------------------------------------------------------------------


class Caught(NamedTuple):
    """How long a planted bug lived."""

    name: str
    plans: int  # that were run, the last of which failed
    invariant: str  # that it broke; "": none, in all plans that it was given
    cpu_s: float


def catch(name: str) -> Caught:
    """Run plans with a bug until one fails that does not fail without it."""
    quiet()
    begun_s = time.process_time()
    most = PLANTED[name].seeds
    for number in range(PLANTED[name].begin, most):
        plan = make_plan(PLANTED_FIRST_SEED + number)
        found = attempt(plan, name)
        if found is not None:
            assert _is_fine(plan.seed), f"the plan of seed {plan.seed} fails without a bug"
            return Caught(name, number + 1, found[0], time.process_time() - begun_s)
        gc.collect()
    return Caught(name, most, "", time.process_time() - begun_s)


@cache
def _is_fine(seed: int) -> bool:
    """Tell whether a plan fails of nothing; most bugs fall to the same few plans."""
    return attempt(make_plan(seed)) is None


def catch_all(names: Sequence[str], processes: int) -> Iterator[Caught]:
    """Plant each bug by itself, in several processes."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(catch, names)


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

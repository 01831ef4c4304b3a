"""Run the simulator: `python -m tests.sim run|long|planted|replay|shrink|hashes`.

run      many plans, over all cores; exit 1 if one breaks an invariant, if less work was done than asked, if a rare
         situation never came up, or if a plan that is run twice does not do the same twice
long     plans and crash images from a seed that nobody chose, until the time is over
planted  each planted bug until a plan fails of it; exit 1 if one is not found in as many plans as it is given
replay   one plan again, step by step
shrink   one failing plan, cut down
hashes   the trace hashes of some seeds: what two runs of one seed must have in common
"""

import argparse
import json
import os
import random
import resource
import sys
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Final

from tests.sim.marks import MARKS
from tests.sim.oracle import Violation
from tests.sim.plan import STEPS, make_plan
from tests.sim.planted import PLANTED, planted
from tests.sim.runner import (
    Done,
    attempt,
    catch_all,
    commit,
    from_text,
    hashes_elsewhere,
    image_tasks,
    mixed,
    plan_tasks,
    quiet,
    run_all,
    run_seeds,
    to_text,
)
from tests.sim.shrink import shrink
from tests.sim.world import run

# A change that breaks something must not hide behind luck: CI runs the same seeds each time.
CI_SEEDS: Final = range(1, 3_021)
# A situation that comes up once in so many plans is too rare to be asked of a short run.
MARKS_FROM_SEEDS: Final = 1_000
# So many failures are told; the first is cut down.
FAILURES_TOLD: Final = 3


# --- what came out --------------------------------------------------------------------------------


def figures_of(done: Done, wall_s: float) -> dict[str, Any]:
    """Return what a reader wants to know of a run, for JSON."""
    figures: dict[str, Any] = {
        "commit": commit(),
        "schedules": done.schedules,
        "steps": done.steps,
        "replies": done.replies,
        "jobs": done.jobs,
        "daemon_runs": done.runs,
        "run_twice": len(done.hashes),
        "wall_s": round(wall_s, 1),
        "cpu_s": round(done.cpu_s, 1),
        "steps_per_cpu_s": round(done.steps / max(done.cpu_s, 0.001)),
        "most_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10,
        "marks": sum(count > 0 for count in done.marks.values()),
        "failures": len(done.failures) + len(done.images.violations),
    }
    if done.images.points:
        images = done.images
        figures["images"] = images.images.total()
        figures["image_starts"] = images.starts
        figures["image_starts_per_cpu_s"] = round(images.starts / max(images.cpu_s, 0.001))
    return figures


def teller(begun_s: float) -> Callable[[Done], object]:
    """Return what prints the figures of a run that goes on."""
    return lambda done: print(json.dumps(figures_of(done, time.monotonic() - begun_s)), flush=True)


def judge(done: Done, args: argparse.Namespace, *, twice: bool = True) -> list[str]:
    """Return what is wrong with a run that has broken no invariant, and run again what is run twice."""
    wrong = []
    if done.hashes and twice:
        again = hashes_elsewhere(sorted(done.hashes), args.steps, args.processes)
        wrong += [
            f"seed {seed}: trace {found:x} and, with other hashes of str, {again[seed]:x}"
            for seed, found in done.hashes.items()
            if again[seed] != found
        ]
    if done.steps < args.min_steps:
        wrong.append(
            f"{done.steps} steps were done, {args.min_steps} were asked for: this run proves nothing"
        )
    missing = [name for name in MARKS if not done.marks[name]]
    if missing and done.schedules >= args.marks_from and not args.planted:
        wrong.append("never seen: " + "; ".join(missing))
    return wrong


def report(done: Done, args: argparse.Namespace, first_seed: int, begun_s: float) -> int:
    """Print what a run came to and write it down; return the exit code."""
    wrong = judge(done, args)
    figures = {**figures_of(done, time.monotonic() - begun_s), "first_seed": first_seed}
    for name, times in sorted(done.marks.items(), key=lambda each: -each[1]):
        print(f"{times:9}  {name}")
    print(json.dumps(figures))
    if args.json:
        whole = {**figures, "wrong": wrong, "failed": done.failures, "marks_hit": dict(done.marks)}
        Path(args.json).parent.mkdir(parents=True, exist_ok=True)
        Path(args.json).write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    print("\n".join(done.images.violations + wrong), end="\n" if done.images.violations or wrong else "")
    for number, failure in enumerate(done.failures[:FAILURES_TOLD]):
        report_failure(*failure, args, is_first=number == 0)
    return 1 if done.failures or done.images.violations or wrong else 0


def report_failure(
    seed: int, invariant: str, step: int, text: str, args: argparse.Namespace, *, is_first: bool
) -> None:
    """Say how to see a failure again, and the least that is needed for it."""
    bug = f" --planted {args.planted!r}" if args.planted else ""
    print(f"\nseed {seed}, commit {commit()}: {invariant} at step {step}: {text}")
    print(f"  replay: python -m tests.sim replay {seed} --steps {args.steps}{bug}", flush=True)
    if not is_first or args.no_shrink:
        return
    small = shrink(make_plan(seed, args.steps), lambda plan: attempt(plan, args.planted))
    print(f"  shrunk to {len(small.plan.steps)} steps in {small.runs} runs:")
    print(f"  echo '{to_text(small.plan)}' | python -m tests.sim replay --plan -{bug}", flush=True)


# --- commands -------------------------------------------------------------------------------------


def command_run(args: argparse.Namespace) -> int:
    begun_s = time.monotonic()
    seeds = range(args.first, args.first + args.count)
    if args.planted:  # in this process: the bug is planted here
        done = run_seeds(seeds, args.steps, args.planted)
        done.hashes.clear()
    else:
        tasks = plan_tasks(iter(seeds), args.steps)
        done = run_all(tasks, args.processes, failures_max=args.failures_max, tell=teller(begun_s))
    return report(done, args, args.first, begun_s)


def command_long(args: argparse.Namespace) -> int:
    begun_s = time.monotonic()
    first = args.first if args.first is not None else random.SystemRandom().getrandbits(40)
    print(f"commit {commit()}, {args.seconds} s, {args.processes} processes, first seed {first}", flush=True)
    done = run_all(
        mixed(plan_tasks(count(first), args.steps), image_tasks(first)),
        args.processes,
        until_s=begun_s + args.seconds,
        failures_max=args.failures_max,
        tell=teller(begun_s),
    )
    return report(done, args, first, begun_s)


def command_planted(args: argparse.Namespace) -> int:
    begun_s = time.monotonic()
    names = args.names or list(PLANTED)
    missed = []
    print("plans   of    CPU s  broken      planted bug")
    for caught in catch_all(names, args.processes):
        most = PLANTED[caught.name].seeds
        print(
            f"{caught.plans:5} {most:4} {caught.cpu_s:8.1f}  {caught.invariant or 'nothing':10}  {caught.name}",
            flush=True,
        )
        if not caught.invariant:
            missed.append(caught.name)
    print(
        f"{len(names) - len(missed)} of {len(names)} planted bugs caught in {time.monotonic() - begun_s:.0f} s"
    )
    if missed:
        print("not caught: " + "; ".join(missed))
    return 1 if missed else 0


def command_replay(args: argparse.Namespace) -> int:
    text = sys.stdin.read() if args.plan == "-" else args.plan and Path(args.plan).read_text(encoding="utf-8")
    plan = from_text(text) if text else make_plan(args.seed, args.steps)
    print(f"seed {plan.seed}, commit {commit()}, settings {plan.settings}")
    try:
        with planted(args.planted):
            outcome = run(plan, trace=print if args.trace else None)
    except Violation as violation:
        print(f"{violation.invariant} at step {violation.step}: {violation.text}")
        if args.trace:
            raise
        return 1
    print(f"fine: trace {outcome.trace_hash:x}, state {outcome.state_hash}")
    return 0


def command_shrink(args: argparse.Namespace) -> int:
    small = shrink(make_plan(args.seed, args.steps), lambda plan: attempt(plan, args.planted))
    print(f"{len(small.plan.steps)} steps after {small.runs} runs")
    print(to_text(small.plan))
    return 0


def command_hashes(args: argparse.Namespace) -> int:
    print(json.dumps({seed: run(make_plan(seed, args.steps)).trace_hash for seed in args.seeds}))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description="Simulated runs of the daemon.")
    commands = parser.add_subparsers(required=True)
    each = argparse.ArgumentParser(add_help=False)
    each.add_argument("--steps", type=int, default=STEPS, help="of each plan")
    each.add_argument("--planted", default="", help="with this bug switched on (tests/sim/planted.py)")
    cores = argparse.ArgumentParser(add_help=False)
    cores.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    many = argparse.ArgumentParser(add_help=False, parents=[each, cores])
    many.add_argument("--min-steps", type=int, default=0, help="fail with less")
    many.add_argument(
        "--marks-from", type=int, default=MARKS_FROM_SEEDS, help="ask for all marks of so many plans or more"
    )
    many.add_argument("--json", default="", help="write the figures there")
    many.add_argument("--failures-max", type=int, default=3, help="go on until so many plans have failed")
    many.add_argument("--no-shrink", action="store_true")

    one = commands.add_parser("run", parents=[many], help="many plans")
    one.add_argument("--first", type=int, default=CI_SEEDS.start, help="seed to begin with")
    one.add_argument("--count", type=int, default=len(CI_SEEDS), help="plans")
    one.set_defaults(call=command_run)
    one = commands.add_parser("long", parents=[many], help="plans and crash images until the time is over")
    one.add_argument("--seconds", type=float, default=3_600)
    one.add_argument("--first", type=int, help="seed to begin with (default: a random one)")
    one.set_defaults(call=command_long)
    one = commands.add_parser("planted", parents=[cores], help="is each planted bug found?")
    one.add_argument("names", nargs="*", metavar="NAME", help="these alone")
    one.set_defaults(call=command_planted)
    one = commands.add_parser("replay", parents=[each], help="one plan, step by step")
    one.add_argument("seed", type=int, nargs="?", default=0)
    one.add_argument("--plan", default="", help="file with a plan, - for standard input")
    one.add_argument("--trace", action="store_true", help="print every step and reply")
    one.set_defaults(call=command_replay)
    one = commands.add_parser("shrink", parents=[each], help="cut a failing plan down")
    one.add_argument("seed", type=int)
    one.set_defaults(call=command_shrink)
    one = commands.add_parser("hashes", parents=[each], help="trace hashes as JSON")
    one.add_argument("seeds", type=int, nargs="+")
    one.set_defaults(call=command_hashes)
    args = parser.parse_args(argv)
    quiet()  # of shrinking too, which is done here
    code: int = args.call(args)
    return code


if __name__ == "__main__":
    sys.exit(main())

"""python -m tests.history run [--minutes N] [--kills N] [--seed N] [--keep DIR]; python -m tests.history judge DIR

`run` makes histories and judges them until the time is over, each with a seed of its own, and ends with 1 at the first
that is wrong, with 2 if one is invalid. A seed decides what everybody wants to do and when the daemon is killed, by
requests; threads and sockets do the rest. So a history that was judged wrong is kept in DIR: `judge` judges it again.
"""

import argparse
import random
import sys
import time
from collections import Counter
from pathlib import Path

from tests.history.harness import Invalid, Plan
from tests.history.judge import KEEP, Wrong, judge, make

# Not 1 and 2: so end a traceback and wrong arguments.
WRONG, INVALID = 3, 4
# Figures that do not add up: of several histories the least is told.
RATES = ("requests/s", "least between two kills")


def main() -> int:
    """Read the arguments, and do it."""
    parser = argparse.ArgumentParser(prog="python -m tests.history", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run")
    run.add_argument("--minutes", type=float, default=0, help="go on for that long; 0: one history")
    run.add_argument("--kills", type=int, default=Plan(seed=0).kills, help="of each history")
    run.add_argument(
        "--seed", type=int, default=random.randrange(1 << 32), help="of the first one; +1 for the next"
    )
    run.add_argument("--keep", type=Path, default=KEEP, help="where a wrong history goes")
    again = verbs.add_parser("judge")
    again.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    try:
        if arguments.verb == "judge":
            print(told(judge(arguments.directory)))
        else:
            go_on(arguments.seed, arguments.kills, arguments.minutes, arguments.keep)
    except Wrong as wrong:
        print(f"WRONG\n{wrong}")
        return WRONG
    except Invalid as error:
        print(f"invalid: {error}")
        return INVALID
    return 0


def go_on(seed: int, kills: int, minutes: float, keep: Path) -> None:
    """Make and judge histories until the time is over, or one is not good.

    Raises: Wrong; Invalid.
    """
    until = time.monotonic() + minutes * 60
    total: Counter[str] = Counter()
    while not total or time.monotonic() < until:
        print(f"seed {seed}: ", end="", flush=True)
        figures = make(Plan(seed=seed, kills=kills), keep)
        print(told(figures), flush=True)
        rates = {name: figures.pop(name) for name in RATES}
        total.update(figures)
        for name, rate in rates.items():
            total[name] = min(rate, total.get(name, rate))
        total["histories"] += 1
        seed += 1
    print(f"{total['histories']} histories: {told(total)}")


def told(figures: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in figures.items())


if __name__ == "__main__":
    sys.exit(main())

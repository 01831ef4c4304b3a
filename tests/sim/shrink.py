"""Cut a failing plan down to what it needs to fail.

Knows:         that every sub-list of a plan is a plan, and every smaller number a step may have.
Must not know: what the steps do.

Chunks of steps go first, halves, then quarters, down to single ones (ddmin); then each number of what is left is
made 0 or as small as it can be. A plan counts as failing in the same way if the same invariant is broken.
"""

import time
from collections.abc import Callable
from typing import Final, NamedTuple

from tests.sim.plan import Plan, Step

RUNS_MAX: Final = 2_000
SECONDS_MAX: Final = 60.0

# Runs a plan: the invariant that it breaks, and the step at which it shows; None: it is fine.
Try = Callable[[Plan], tuple[str, int] | None]


class Shrunk(NamedTuple):
    plan: Plan
    runs: int


class _Over(Exception):
    """Enough runs were made."""


class _Shrinker:
    def __init__(self, plan: Plan, attempt: Try, clock_s: Callable[[], float]) -> None:
        self._attempt = attempt
        self._clock_s = clock_s
        self._until_s = clock_s() + SECONDS_MAX
        self.runs = 0
        found = attempt(plan)
        assert found is not None, "this plan does not fail"
        self.invariant, at = found
        self.plan = plan._replace(steps=plan.steps[: at + 1])

    def fails(self, steps: list[Step]) -> bool:
        if self.runs >= RUNS_MAX or self._clock_s() >= self._until_s:
            raise _Over
        self.runs += 1
        smaller = self.plan._replace(steps=steps)
        found = self._attempt(smaller)
        if found is None or found[0] != self.invariant:
            return False
        self.plan = smaller._replace(steps=steps[: found[1] + 1])
        return True

    def drop_steps(self) -> None:
        size = max(1, len(self.plan.steps) // 2)
        while True:
            begin, dropped = 0, False
            while begin < len(self.plan.steps):
                steps = self.plan.steps
                if self.fails(steps[:begin] + steps[begin + size :]):
                    dropped = True
                else:
                    begin += size
            if size == 1 and not dropped:
                return
            size = max(1, size // 2)

    def lower_numbers(self) -> None:
        for at in range(len(self.plan.steps)):
            for place in (1, 2, 3):
                if at >= len(self.plan.steps):
                    return
                for value in (0, 1, 2, 3):
                    steps = list(self.plan.steps)
                    name, *numbers = steps[at]
                    if numbers[place - 1] <= value:
                        break
                    numbers[place - 1] = value
                    steps[at] = (name, *numbers)  # type: ignore[assignment]
                    if self.fails(steps):
                        break


def shrink(plan: Plan, attempt: Try, clock_s: Callable[[], float] = time.monotonic) -> Shrunk:
    """Return the smallest plan found that breaks the same invariant."""
    shrinker = _Shrinker(plan, attempt, clock_s)
    try:
        shrinker.drop_steps()
        shrinker.lower_numbers()
        shrinker.drop_steps()
    except _Over:
        pass
    return Shrunk(shrinker.plan, shrinker.runs)

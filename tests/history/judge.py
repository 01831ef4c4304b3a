"""Makes a history and says what it is worth: good, wrong, or invalid since too little has happened.

    figures = make(plan, keep)      a run and its verdict; what is wrong stays below `keep`, with the seed in its name
    figures = judge(directory)      the verdict over what a run has left

Knows:         which checks there are; that each of them has its say, whatever the other one found.
Must not know: how a run is made, what the checks do.
"""

import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.history import search, witness
from tests.history.harness import Invalid, Plan, Run, load, measure
from tests.history.operations import Violation

CHECKS: Final = {"witness": witness.check, "search": search.check}
# Jobs that the search may leave out, because too many requests about them overlap.
NOT_JUDGED_MAX: Final = 0.01
# Where wrong histories go unless somebody says otherwise: `make clean` removes it, nothing else does.
KEEP: Final = Path(".cache/histories")


class Wrong(Exception):
    """A history that no correct daemon makes. reasons: by check, or by "run" if it came to no end or broke a client."""

    def __init__(self, violations: Mapping[str, Violation]) -> None:
        super().__init__("\n".join(f"{name}: {violation}" for name, violation in violations.items()))
        self.reasons = {name: violation.reason for name, violation in violations.items()}
        self.kept: Path | None = None

    def __str__(self) -> str:
        again = f"\ncheck it again: python -m tests.history judge {self.kept}" if self.kept else ""
        return f"{super().__str__()}{again}"


def make(plan: Plan, keep: Path = KEEP) -> Counter[str]:
    """Make a history and judge it.

    Returns: figures.
    Raises:  Wrong: it was kept, and the text says where.  Invalid.
    """
    with tempfile.TemporaryDirectory(prefix="history-") as temporary:  # short: a socket's path has to be
        directory = Path(temporary) / f"history-{plan.seed}"
        try:
            try:
                with Run(directory, plan) as run:
                    run.go()
            except Violation as violation:
                raise Wrong({"run": violation}) from None
            return judge(directory)
        except Wrong as wrong:
            wrong.kept = _keep(directory, keep)
            raise


def _keep(directory: Path, keep: Path) -> Path:
    """Move a run to where it stays, in the place of an older one of this seed."""
    kept = keep.resolve() / directory.name
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(directory, kept, ignore=shutil.ignore_patterns("s"))  # a socket cannot be copied
    return kept


def judge(directory: Path) -> Counter[str]:
    """Judge what a run has left in its directory.

    Returns: figures.
    Raises:  Wrong; else Invalid: what contradicts itself is wrong, however little it is.
    """
    history, run = load(directory)
    figures = Counter(run.events)
    violations: dict[str, Violation] = {}
    if run.broken:
        violations["run"] = Violation("a client broke", "\n".join(run.broken))
    for name, check in CHECKS.items():
        begin_s = time.process_time()
        try:
            figures += check(history)
        except Violation as violation:
            violations[name] = violation
        figures[f"ms of the {name}"] = round((time.process_time() - begin_s) * 1_000)
    if violations:
        raise Wrong(violations)
    if figures["jobs not judged"] > NOT_JUDGED_MAX * figures["jobs judged"]:
        raise Invalid(f"{figures['jobs not judged']} jobs could not be judged of {figures['jobs judged']}")
    return measure(history, run) + figures

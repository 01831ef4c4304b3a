"""What holds for every test.

The rest stands in pyproject.toml: warnings are errors, strict xfail and markers, a minute for each test.
Order is random (pytest-randomly); the header of a run shows its seed, `make test ARGS="-n 0 --randomly-seed=N"` repeats it.
"""

import os
import signal
from collections.abc import Generator
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings

# A shell without job control starts what it puts in the background (`make test &`, nohup) with Ctrl-C ignored, and
# programs hand that on: none that a test starts and interrupts would end.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

CI = os.environ.get("CI", "") not in ("", "0", "false")

# A deadline per example would measure the machine. `print_blob` gives the line that repeats a failure.
_COMMON = settings(
    deadline=None,
    print_blob=True,
    derandomize=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile("dev", _COMMON, max_examples=100)
settings.register_profile("ci", _COMMON, max_examples=200, database=None)
# By hand, after a change to the core: HYPOTHESIS_PROFILE=long make test
settings.register_profile("long", _COMMON, max_examples=10_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if CI else "dev"))

_Report = TypeVar("_Report", pytest.TestReport, pytest.CollectReport)


def _refuse_skip(report: _Report) -> _Report:
    """A test that CI skips is one that nobody runs: turn it into a failure that repeats the reason."""
    if CI and report.outcome == "skipped" and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"a skipped test fails CI: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _refuse_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _refuse_skip((yield))

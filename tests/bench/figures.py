"""What is made of a measured span, and what is to be known about where it was measured.

Knows:         the kernel's view of this machine.
Must not know: what was done in the span.
"""

import datetime as dt
import os
import platform
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from tests.bench.load import Span
from tests.bench.server import ROOT, file_system

# Above this share of a core the generator, not the server, decides the rate (the CPU per job holds all the same).
CLIENT_SHARE_MAX: Final = 0.9

Figures = dict[str, float]


def figures(span: Span, jobs: int) -> Figures:
    """Turn a measured span into figures a job."""
    server_s = span.user_s + span.system_s
    return {
        "value": server_s / jobs * 1e6,
        "user_us": span.user_s / jobs * 1e6,
        "jobs_per_s": jobs / span.wall_s,
        "server_share": server_s / span.wall_s,
        "client_share": span.client_s / span.wall_s,
        "jobs": jobs,
    }


def about(directory: str) -> dict[str, Any]:
    """Say what was measured where: nothing that names the machine."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    )
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    sync_us, sync_cpu_us = sync_cost(directory)
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "commit": commit.stdout.strip(),
        "processors": f"{os.cpu_count()} x {model}",
        "python": platform.python_version(),
        "kernel": platform.release(),
        "file_system": file_system(directory),
        "load_before": round(os.getloadavg()[0], 2),
        "sync_us": round(sync_us),
        "sync_cpu_us": round(sync_cpu_us),
    }


def sync_cost(directory: str, count: int = 500) -> tuple[float, float]:
    """Measure the machine itself: (wall, CPU) us of one append of 180 bytes and its fdatasync, medians."""
    walls: list[float] = []
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        cpu_s = time.process_time()
        for _ in range(count):
            begun_s = time.perf_counter()
            file.write(bytes(180))
            os.fdatasync(file.fileno())
            walls.append(time.perf_counter() - begun_s)
        cpu_s = time.process_time() - cpu_s
    return statistics.median(walls) * 1e6, cpu_s / count * 1e6

"""python -m tests.bench: what jqd costs, path by path; the figures of docs/performance.md.

Knows:         the command line, where results go.
Must not know: how a path is measured (paths.py).
"""

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from tests.bench import interrupt, paths
from tests.bench.figures import about
from tests.bench.server import DATA


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="What jqd costs, path by path.",
        epilog="paths: " + " ".join(path.name for path in paths.ROWS),
    )
    parser.add_argument("--only", action="append", metavar="NAME", help="this path; repeatable")
    parser.add_argument("--runs", type=int, default=5, help="repetitions of each path (default 5)")
    parser.add_argument("--jobs", type=int, help="jobs in a repetition; default: enough for a second of CPU")
    parser.add_argument(
        "--session",
        action="store_true",
        help="say a session in hello, as the clients do: retries are then answered once",
    )
    parser.add_argument(
        "--dir", default=DATA, help=f"where the data directories go, on a disk (default {DATA})"
    )
    parser.add_argument("--json", metavar="FILE", help="write all figures of all repetitions")
    arguments = parser.parse_args()
    interrupt.listen()
    chosen = [path for path in paths.ROWS if not arguments.only or path.name in arguments.only]
    if not chosen:
        parser.error(
            f"--only {' '.join(arguments.only)}: paths are {' '.join(path.name for path in paths.ROWS)}"
        )
    facts = {**about(arguments.dir), "session": arguments.session}
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    if facts["file_system"] == "tmpfs":
        print(f"{arguments.dir} is not on a disk: a sync costs nothing there", file=sys.stderr)
    print(paths.HEADING, flush=True)
    results: list[dict[str, Any]] = []
    try:
        for path in chosen:
            options = paths.Options(arguments.jobs or path.jobs, arguments.session, arguments.dir)
            results.append(paths.run_path(path, options, arguments.runs))
    except asyncio.CancelledError:
        interrupt.check()
        raise
    if arguments.json:
        Path(arguments.json).write_text(
            json.dumps({**facts, "paths": results}, indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()

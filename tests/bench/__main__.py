"""python -m tests.bench: what jqd costs, and how fast it is beside others; the figures of docs/performance.md.

Knows:         the command line, where results go.
Must not know: how anything is measured: jqd's own paths are in paths.py, jqd beside its peers in versus.py.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Final

from tests.bench import interrupt, paths, peers, tasks, versus
from tests.bench.figures import about
from tests.bench.server import DATA

GROUPS: Final = {
    "paths": [path.name for path in paths.ROWS],
    "peers": [workload.name for workload in versus.WORKLOADS],
    "tasks": list(tasks.ROWS),
}


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="What jqd costs, path by path, and its speed beside beanstalkd, Redis and task frameworks.",
        epilog=" ".join(f"{group}: {' '.join(names)}." for group, names in GROUPS.items()),
    )
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        help="this, or all paths, or all peers, or all tasks; repeatable",
    )
    parser.add_argument(
        "--runs", type=int, default=5, help="repetitions of each path, pairs beside each peer (default 5)"
    )
    parser.add_argument(
        "--dir", default=DATA, help=f"where the data directories go, on a disk (default {DATA})"
    )
    parser.add_argument("--json", metavar="FILE", help="write all figures of all repetitions")
    of_paths = parser.add_argument_group("paths")
    of_paths.add_argument(
        "--jobs", type=int, help="jobs in a repetition; default: enough for a second of CPU"
    )
    of_paths.add_argument(
        "--session",
        action="store_true",
        help="say a session in hello, as the clients do: retries are then answered once",
    )
    of_peers = parser.add_argument_group("peers")
    of_peers.add_argument("--seconds", type=float, default=2.0, help="of each run of a workload (default 2)")
    arguments = parser.parse_args()
    if arguments.runs < 1:
        parser.error(f"--runs {arguments.runs}: must be at least 1")
    if arguments.seconds <= 0:
        parser.error(f"--seconds {arguments.seconds:g}: must be more than 0")
    if not Path(arguments.dir).is_dir():
        parser.error(f"--dir {arguments.dir}: is not a directory")
    chosen = choose(arguments.only, parser)
    wanted_paths = [path for path in paths.ROWS if path.name in chosen]
    wanted_workloads = [workload for workload in versus.WORKLOADS if workload.name in chosen]
    facts: dict[str, Any] = {**about(arguments.dir), "session": arguments.session}
    if wanted_workloads:
        try:
            facts |= peers.versions()
        except peers.MissingProgramError as error:
            parser.error(f"{error} (or --only paths)")
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    if facts["file_system"] == "tmpfs":
        print(f"{arguments.dir} is not on a disk: a sync costs nothing there", file=sys.stderr)
    results: dict[str, list[dict[str, Any]]] = {"paths": [], "peers": [], "tasks": []}
    with interrupt.listening():
        if wanted_paths:
            print(paths.HEADING, flush=True)
        for path in wanted_paths:
            options = paths.Options(arguments.jobs or path.jobs, arguments.session, arguments.dir)
            results["paths"].append(paths.run_path(path, options, arguments.runs))
        if wanted_workloads:
            print(versus.HEADING, flush=True)
        size = versus.Size(seconds=arguments.seconds)
        for workload in wanted_workloads:
            for peer in workload.asked:
                results["peers"].append(versus.compare(workload, peer, size, arguments.dir, arguments.runs))
        for name in (name for name in tasks.ROWS if name in chosen):
            result = tasks.ROWS[name](arguments.dir, arguments.runs)
            results["tasks"].append({"name": name, **result})
            print(f"{name:<20} {result['line']}", flush=True)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({**facts, **results}, indent=1) + "\n", encoding="utf-8")


def choose(only: list[str] | None, parser: argparse.ArgumentParser) -> set[str]:
    """Return the names of what is to be measured; without --only everything."""
    known = {name for names in GROUPS.values() for name in names}
    if only is None:
        return known
    chosen: set[str] = set()
    for name in only:
        if name not in known and name not in GROUPS:
            parser.error(f"--only {name}: there are {', '.join((*GROUPS, *sorted(known)))}")
        chosen |= set(GROUPS.get(name, [name]))
    return chosen


if __name__ == "__main__":
    main()

"""A program beside `jqctl work`: when jqctl is gone, it kills the commands that it was running.

Knows:         which process groups run, from its stdin: "+PID" has begun, "-PID" has ended, a line each.
Must not know: jobs, why jqctl has ended.

The end of stdin is the end of jqctl: the kernel closes the pipe, however jqctl has died. Who ends in order has no
group left by then. It imports next to nothing, and stands beside jqctl for as long as that runs.
"""

import os
import signal
import sys


def main() -> None:
    """Read what begins and ends; at the end of that kill what is left."""
    # jqctl answers these, and ends after its grace.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin.buffer:
        change = groups.add if line.startswith(b"+") else groups.discard
        change(int(line[1:]))
    for group in groups:
        try:
            os.killpg(group, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # it has just ended, or became another user's
            continue


if __name__ == "__main__":
    main()

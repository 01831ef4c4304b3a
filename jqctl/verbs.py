"""Every verb of `jqctl`: importing a module of verbs puts them into the group.

Knows:         which modules have verbs.
Must not know: what they do.
"""

from jqctl import bench, dead, jobs, offline, queues, server, wait, work, workers
from jqctl.group import cli

__all__ = ["bench", "cli", "dead", "jobs", "offline", "queues", "server", "wait", "work", "workers"]

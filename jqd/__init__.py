"""jqd, a durable job queue: the few names that a program needs.

Knows:         where those names live.
Must not know: anything else. Each name is loaded when it is first used, so that `import jqd` costs
               nothing but this file: no asyncio, no uvloop (jqctl starts in under 100 ms).
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jqd import errors
    from jqd.client.aio import AsyncClient
    from jqd.client.app import App
    from jqd.client.current import CurrentJob, current_job
    from jqd.client.outcomes import Fail, Retry, Snooze
    from jqd.client.sync import Client
    from jqd.client.worker import Worker
    from jqd.errors import JqdError, StoreRolledBack

__all__ = [
    "App",
    "AsyncClient",
    "Client",
    "CurrentJob",
    "Fail",
    "JqdError",
    "Retry",
    "Snooze",
    "StoreRolledBack",
    "Worker",
    "__version__",
    "current_job",
    "errors",
]

__version__ = "0.1.0"

# Public name -> the module that defines it; `errors` is a module itself.
_HOMES = {
    "App": "jqd.client.app",
    "AsyncClient": "jqd.client.aio",
    "Client": "jqd.client.sync",
    "CurrentJob": "jqd.client.current",
    "Fail": "jqd.client.outcomes",
    "JqdError": "jqd.errors",
    "Retry": "jqd.client.outcomes",
    "Snooze": "jqd.client.outcomes",
    "StoreRolledBack": "jqd.errors",
    "Worker": "jqd.client.worker",
    "current_job": "jqd.client.current",
    "errors": "jqd",
}


def __getattr__(name: str) -> object:
    """Load a public name on first use (PEP 562)."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'jqd' has no attribute {name!r}")
    value = import_module(f"jqd.{name}") if home == "jqd" else getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

"""jqd, a durable job queue: the few names that a program needs.

Knows:         where those names live.
Must not know: anything else. Each name is loaded when it is first used, so that `import jqd` costs
               nothing but this file: no asyncio, no uvloop (jqctl starts in under 100 ms).
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jqd.client.aio import AsyncClient
    from jqd.client.sync import Client
    from jqd.errors import JqdError, StoreRolledBack

__all__ = ["AsyncClient", "Client", "JqdError", "StoreRolledBack", "__version__", "errors"]

__version__ = "0.1.0"

# Public name -> the module that defines it; `errors` is a module itself.
_HOMES = {
    "AsyncClient": "jqd.client.aio",
    "Client": "jqd.client.sync",
    "JqdError": "jqd.errors",
    "StoreRolledBack": "jqd.errors",
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

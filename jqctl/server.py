"""The verbs about the daemon itself.

Knows:         arguments, help and examples of these verbs.
Must not know: the wire, how a connection is made (connect.py), how a value is shown (output.py).
"""

# ruff: noqa: D301 - click reads the backspace itself, before a paragraph that is not to be filled

import time
from typing import TYPE_CHECKING

from msgspec import structs

from jqctl.group import Settings, verb
from jqctl.replies import show_one

if TYPE_CHECKING:
    from jqctl.connect import Connection


@verb
def stats(settings: Settings, connection: "Connection") -> None:
    """Show figures of the daemon.

    \b
    Example:
      jqctl stats -o json
    """
    from jqd.client import requests

    show_one(settings, connection.call(requests.stats()), ("store_id",))


@verb
def ping(settings: Settings, connection: "Connection") -> None:
    """Ask whether the daemon is there and its disk answers.

    \b
    Example:
      jqctl ping --timeout 2s
    """
    from jqd.client import requests

    began = time.perf_counter()
    reply = connection.call(requests.ping())
    round_trip_ms = round((time.perf_counter() - began) * 1_000, 3)
    thing = structs.asdict(reply) | {"url": connection.url, "round_trip_ms": round_trip_ms}
    show_one(settings, thing, ("url",))

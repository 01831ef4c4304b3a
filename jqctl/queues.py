"""The verbs about queues.

Knows:         arguments, help and examples of these verbs, which fields a table shows.
Must not know: the wire, how a connection is made (connect.py), how a value is shown (output.py).
"""

# ruff: noqa: D301 - click reads the backspace itself, before a paragraph that is not to be filled

from typing import TYPE_CHECKING

from jqctl.group import STATES, Settings, verb
from jqctl.replies import show

if TYPE_CHECKING:
    from jqctl.connect import Connection


@verb
def queues(settings: Settings, connection: "Connection") -> None:
    """List queues with their jobs counted by state.

    \b
    Example:
      jqctl queues -o json
    """
    from jqd.client import requests

    cursor: str | None = ""
    header = True
    while cursor is not None:
        page = connection.call(requests.queues(cursor=cursor))
        show(settings, ("queue", *STATES), page.queues, ("queue",), header=header)
        cursor, header = page.cursor, False

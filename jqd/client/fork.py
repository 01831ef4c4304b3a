"""Clients in a fork: each begins anew there, as if it had just been made.

Knows:         the clients of this process, when it has become another one.
Must not know: what a client consists of.

A fork copies a client as it stands: sockets, which are the parent's connections; a session and request ids, under
which the server takes what both send for one request; locks that other threads held, which nobody in the child
releases. So the child drops all of it before any other code runs there, and its clients connect for themselves when
they are used. What was asked before the fork stays the parent's.

Why os.register_at_fork and not a look at the process id in each request: the child also lets go of the connections of
clients that it never uses. As long as it held a copy, the server would not see the parent close one, or die, and would
hand jobs to a lease that waits for nobody. And a request pays nothing for it.

Not seen: a fork by C code that does not tell Python; a socket that another thread, or an event loop, is just connecting,
of which the child keeps a copy until it ends.
"""

import os
from typing import Protocol
from weakref import WeakSet


class _Client(Protocol):
    def _begin_anew(self) -> None:
        """Drop what is the parent's, without a word to the server. The only thread of a new process calls it."""


_clients: "WeakSet[_Client]" = WeakSet()


def register(client: _Client) -> None:
    """See to it that this client begins anew in forks, for as long as it lives."""
    _clients.add(client)


def _in_child() -> None:
    for client in list(_clients):
        client._begin_anew()


if hasattr(os, "register_at_fork"):  # where there are forks
    os.register_at_fork(after_in_child=_in_child)

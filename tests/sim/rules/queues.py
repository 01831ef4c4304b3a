"""What holds in queues, and what is shown of it.

Knows:         protocol.md "set_queue", "pause", "resume", "queue", "queues": settings and pauses stay over the end of a
               run (I15).
Must not know: anything of jqd; what follows for jobs (reach.py, submits.py, attempts.py, leases.py).

What is known of one queue is its shelf (shelves.py); a queue of which nobody has said anything has none.
"""

from collections.abc import Iterable
from typing import Any

from tests.sim.rules.backoffs import plain
from tests.sim.rules.model import HOUR_MS, SHOWN_DEFAULTS, Args, Request, Violation
from tests.sim.rules.shelves import SETTINGS, Shelf, said_by


class Queues:
    """The shelves of all queues that somebody has set or paused."""

    def __init__(self) -> None:
        self.shelves: dict[str, Shelf] = {}

    def of(self, queue: str) -> Shelf:
        """Return the shelf of a queue of which something is said."""
        return self.shelves.setdefault(queue, Shelf())

    def rolled_back(self) -> None:
        """An older copy of the store was put back."""
        for shelf in self.shelves.values():
            shelf.forget()

    def can_be(self, queue: str, setting: str, lo: int, hi: int) -> list[Any]:
        """Return the values that a setting may have had at an LSN in lo..hi; None: the default."""
        shelf = self.shelves.get(queue)
        return [None] if shelf is None else shelf.can_be(setting, lo, hi)

    def on_set_queue(self, request: Request, body: Args, lsn: int, ms: int) -> None:
        shelf = self.of(request.args["queue"])
        if request.sends > 1:
            return  # as loose as before: the daemon does not remember what changed nothing
        shelf.learned(said_by(request.verb, request.args), lsn)
        possible = [bool(each) for each in shelf.can_be("paused", lsn, lsn)]
        if body["paused"] not in possible:
            raise Violation("I15", f"{request} at LSN {lsn} found the queue paused: {body['paused']}")

    def on_queue(self, request: Request, body: Args, lsn: int, ms: int) -> None:
        self._check_settings(body, lsn, str(request))

    def on_queues(self, request: Request, body: Args, lsn: int, ms: int) -> None:
        for queue in body["queues"] if self.shelves else ():
            if queue["paused"] not in map(bool, self.can_be(queue["queue"], "paused", lsn, lsn)):
                raise Violation("I15", f"{request} at LSN {lsn}: {queue['queue']} paused: {queue['paused']}")

    def _check_settings(self, details: Args, lsn: int, where: str) -> None:
        """What is shown of a queue's settings is what was set."""
        name = details["info"]["queue"]
        shelf = self.shelves.get(name) or Shelf()
        for setting in SETTINGS:
            shown = plain(details[setting]) if setting == "retry" else details[setting]
            possible = [_set_or_default(setting, each) for each in shelf.can_be(setting, lsn, lsn)]
            if shown not in possible:
                raise Violation(
                    "I15", f"{where} at LSN {lsn}: {setting} of {name} is {shown}, not of {possible}"
                )
        paused = [bool(each) for each in shelf.can_be("paused", lsn, lsn)]
        if details["info"]["paused"] not in paused:
            raise Violation("I15", f"{where} at LSN {lsn}: {name} paused: {details['info']['paused']}")

    def see_all(self, settings: Iterable[Args], lsn: int) -> None:
        """All queues are shown with their settings."""
        there = set()
        for details in settings:
            name = details["info"]["queue"]
            there.add(name)
            self._check_settings(details, lsn, "a look at everything")
            said: Args = {"paused": details["info"]["paused"]}
            for setting in SETTINGS:
                value = plain(details[setting]) if setting == "retry" else details[setting]
                said[setting] = None if value == _set_or_default(setting, None) else value
            if name in self.shelves:
                self.shelves[name].learned(said, lsn, all_heard=True)
        for name, shelf in self.shelves.items():
            if name not in there:
                self.not_there(name, shelf, lsn, "a look at everything")
                shelf.learned({**dict.fromkeys(SETTINGS), "paused": False, "kept": None}, lsn, all_heard=True)

    def not_there(self, name: str, shelf: Shelf, lsn: int, where: str) -> None:
        """A queue is not there: nothing can be set of it."""
        for setting in ("kept", "paused"):
            if all(shelf.can_be(setting, lsn, lsn)):
                raise Violation("I15", f"{where} at LSN {lsn}: queue {name} is not there; it is {setting}")


def _set_or_default(setting: str, value: Any) -> Any:
    """Return what holds for a setting of a queue."""
    if value is not None:
        return value
    usual: Args = {"retry": {}, "retention_ms": HOUR_MS, "dead_retention_ms": 720 * HOUR_MS, "length_max": 0}
    return usual[setting] if setting in usual else SHOWN_DEFAULTS[setting]

"""What may hold in a queue: settings and pauses, from what was asked and what was answered.

Knows:         protocol.md "set_queue", "pause", "resume"; of each setting the values that clients are sure of, with
               their LSN, and the requests that may have changed it.
Must not know: anything of jqd; what follows for jobs (queues.py says where).

    shelf.can_be("paused", lo, hi)     the values that it may have had at an LSN in lo..hi

`None` is what nobody set: the server's default. A pause that was not answered is as loose as any other request: until
a later read settles it, the queue may be paused or not.
"""

from bisect import insort
from typing import Any, Final

from tests.sim.rules.backoffs import plain

SETTINGS: Final = (
    *("lease_ms", "max_retries", "max_crashes", "retry", "retention_ms", "dead_retention_ms", "length_max"),
)


def said_by(verb: str, args: dict[str, Any]) -> dict[str, Any]:
    """Return what holds from a request on, by name."""
    if verb != "set_queue":
        return {"paused": verb == "pause"}
    said = {name: args[name] for name in SETTINGS if args.get(name) is not None}
    if "retry" in said:
        said["retry"] = plain(said["retry"])
    if said.get("length_max") == 0:
        said["length_max"] = None
    if args.get("reset"):
        said = {**dict.fromkeys(SETTINGS), **said}
    # With nothing but `reset` a queue is there only as long as it has jobs.
    kept = not args.get("reset") or any(args.get(name) is not None for name in SETTINGS)
    return {**said, "kept": kept or None}


class Shelf:
    """What is known of one queue.

    version: rises with all that is heard of it.
    loose: requests that may have been carried out, with what they say.
    """

    __slots__ = ("_ever", "_past", "_sure", "loose", "version")

    def __init__(self) -> None:
        # Of each name (LSN, number, value), the oldest first; the number keeps values from being compared.
        self._sure: dict[str, list[tuple[int, int, Any]]] = {}
        self._ever: dict[str, list[Any]] = {}
        # Of requests whose outcome nobody knows: floor, the LSN before which it lies if there was one, what they say.
        self._past: list[tuple[int, int, dict[str, Any]]] = []
        self.loose: dict[Any, tuple[Any, dict[str, Any]]] = {}  # by key of the request
        self.version = 0

    def loosen(self, request: Any) -> None:
        said = said_by(request.verb, request.args)
        self.loose[request.key] = (request, said)
        self.version += 1
        for name, value in said.items():
            known = self._ever.setdefault(name, [])
            if value not in known:
                known.append(value)

    def settle(self, request: Any, until_lsn: int = 0) -> None:
        """A request is loose no longer; until_lsn: what became of it nobody knows, but it lies before this LSN."""
        loose = self.loose.pop(request.key, None)
        if loose is not None:
            self.version += 1
            if until_lsn:
                self._past.append((request.floor, until_lsn, loose[1]))

    def learned(self, said: dict[str, Any], lsn: int, *, all_heard: bool = False) -> None:
        """Something holds for sure at an LSN.

        Args:
            all_heard: no reply of an earlier one will come: what holds as before need not be kept twice.
        """
        for name, value in said.items():
            entries = self._sure.get(name, [(0, 0, None)])
            is_certain = len(entries) == 1 or entries[-2][0] < entries[-1][0]
            if all_heard and is_certain and entries[-1][0] <= lsn and entries[-1][2] == value:
                continue  # as before
            self.version += 1
            insort(self._sure.setdefault(name, []), (lsn, self.version, value))
            known = self._ever.setdefault(name, [])
            if value not in known:
                known.append(value)

    def forget(self) -> None:
        """An older copy of the store was put back: anything that was ever said may hold."""
        self.version += 1
        self._past.clear()
        for name, values in self._ever.items():
            if None not in values:
                values.append(None)
            self._sure[name] = [(0, -number, value) for number, value in enumerate(values)]

    def can_be(self, name: str, lo: int, hi: int) -> list[Any]:
        """Return the values of a setting that are possible at an LSN in lo..hi."""
        values: list[Any] = [None]
        at = -1
        for lsn, _, value in self._sure.get(name, ()):
            if lsn > hi:
                break
            if lsn <= lo and lsn > at:
                values, at = [], lsn
            values.append(value)
        for request, said in self.loose.values():
            if name in said and request.floor < hi:
                values.append(said[name])
        for floor, until_lsn, said in self._past:
            if name in said and floor < hi and lo < until_lsn:
                values.append(said[name])
        return values

    def ever(self, name: str) -> list[Any]:
        """Return all values that a setting can ever have had, its default too."""
        return [None, *self._ever.get(name, ())]

    @property
    def newest_lsn(self) -> int:
        return max((entries[-1][0] for entries in self._sure.values() if entries), default=0)

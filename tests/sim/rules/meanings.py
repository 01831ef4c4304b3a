"""What a filter's `where` says of a job of which perhaps not all is known: yes, no, or None for either.

Knows:         the grammar of protocol.md "The filter language", but for escapes in quoted texts.
Must not know: anything of jqd; which jobs there are (looks.py, loose.py).

Ages are either: nobody told when, by the engine clock, a job came or changed.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

# What is known of a job by the names of filter fields; what is not in it is not known. metadata: the whole map.
Facts = dict[str, Any]
Meaning = Callable[[Facts], bool | None]

NUMBERS: Final = ("priority", "attempt", "errors", "crashes")
TEXTS: Final = ("state", "reason", "queue", "task", "error")
_WORD: Final = re.compile(r"""\s*([<>!]?=|[<>(),]|'[^']*'|"[^"]*"|[A-Za-z0-9_.:-]+)""")


def facts_of(info: dict[str, Any]) -> Facts:
    """Return what a job that is shown says of itself."""
    facts: Facts = {name: info.get(name) or "" for name in TEXTS}
    facts.update((name, info.get(name) or 0) for name in NUMBERS)
    facts["metadata"] = info.get("metadata") or {}
    return facts


@lru_cache(maxsize=256)
def meaning(where: str) -> Meaning:
    """Return what tells of a job's facts whether the text means it."""
    words = [each[1] for each in _WORD.finditer(where)]
    found = _any(words)
    assert not words, f"{where}: {words}"
    return found


def _any(words: list[str]) -> Meaning:
    parts = [_all(words)]
    while words and words[0] == "or":
        words.pop(0)
        parts.append(_all(words))
    return lambda facts: _joined([part(facts) for part in parts], one=True)


def _all(words: list[str]) -> Meaning:
    parts = [_one(words)]
    while words and words[0] == "and":
        words.pop(0)
        parts.append(_one(words))
    return lambda facts: _joined([part(facts) for part in parts], one=False)


def _joined(found: list[bool | None], *, one: bool) -> bool | None:
    """Return `one` if any is that; else the other, unless something is not known."""
    if one in found:
        return one
    return None if None in found else not one


def _one(words: list[str]) -> Meaning:
    word = words.pop(0)
    if word == "not":
        inner = _one(words)
        return lambda facts: None if (found := inner(facts)) is None else not found
    if word == "(":
        inner = _any(words)
        assert words.pop(0) == ")"
        return inner
    sign = words.pop(0)
    values = [words.pop(0)]
    if values == ["("]:
        values = []
        while words[0] != ")":
            values += [each for each in (words.pop(0),) if each != ","]
        words.pop(0)
    return _comparison(word, sign, values)


def _comparison(name: str, sign: str, values: list[str]) -> Meaning:
    wanted: list[Any] = [int(each) if name in NUMBERS else each.strip("'\"") for each in values]

    def compare(facts: Facts) -> bool | None:
        if name.startswith("metadata."):
            known = facts.get("metadata")
            found = None if known is None else known.get(name.removeprefix("metadata."), "")
        else:
            found = facts.get(name)
        if found is None:
            return None
        match sign:
            case "=" | "in":
                return found in wanted
            case "!=":
                return found not in wanted
            case "contains":
                return bool(wanted[0].lower() in found.lower())
        first = wanted[0]
        return bool(
            {"<": found < first, "<=": found <= first, ">": found > first, ">=": found >= first}[sign]
        )

    return compare

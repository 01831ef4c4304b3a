"""What an idempotency key must be answered with: from what was asked and what was answered.

Knows:         protocol.md "Keys"; of each key when and with what it was used, and which requests may have used it.
Must not know: anything of jqd; what became of the jobs (keys.py).

A key that was used at some time in lo_ms..hi_ms is surely known while less than its time has passed since lo_ms, and
surely forgotten when that has passed since hi_ms. In between, and where requests are loose that name it, either is
right.
"""

from typing import Any, Final

DAY_MS: Final = 86_400_000
_DEFAULTS: Final[dict[str, object]] = {
    "queue": "default",
    "priority": 0,
    "delivery": "at_least_once",
    "encoding": "raw",
    "tenant": "default",
    "dedupe": "existing",
    "dedupe_until": "finished",
}
_NOT_CONTENT: Final = frozenset({"payload", "payloads", "idempotency_key", "idempotency_ttl_ms"})

Content = tuple[dict[str, Any], list[bytes]]


def content_of(fields: dict[str, Any], payloads: list[bytes]) -> Content:
    """Return what is submitted: a field that is left out is as good as one with its default."""
    said = {
        name: value
        for name, value in fields.items()
        if name not in _NOT_CONTENT and value is not None and value != _DEFAULTS.get(name)
    }
    return said, payloads


class Use:
    """A submit that has given a key its meaning, at some LSN in lo..lsn."""

    __slots__ = ("answer", "content", "hi_ms", "lo", "lo_ms", "lsn", "ttl_ms")

    def __init__(
        self,
        answer: tuple[int, int],
        content: Content,
        lo_ms: int,
        hi_ms: int,
        ttl_ms: int,
        lo: int,
        lsn: int,
    ) -> None:
        self.answer = answer  # first job id, count
        self.content = content
        self.lo_ms, self.hi_ms = lo_ms, hi_ms
        self.ttl_ms = ttl_ms
        self.lo, self.lsn = lo, lsn

    def is_known(self, lo_ms: int, hi_ms: int) -> bool | None:
        """Tell whether the key still has this meaning at a time in lo..hi; None: perhaps."""
        if hi_ms - self.lo_ms < self.ttl_ms:
            return True
        return False if lo_ms - self.hi_ms >= self.ttl_ms else None


class IdempotencyKey:
    """What is known of one key.

    loose:     requests that name it and may have been carried out.
    doubt_lsn: up to this LSN something may have used it of which nobody knows; 0: nothing has. Who makes new jobs with
               it behind that says what it stands for from there on.
    """

    __slots__ = ("doubt_lsn", "loose", "uses")

    def __init__(self) -> None:
        self.uses: list[Use] = []
        self.loose: set[Any] = set()
        self.doubt_lsn = 0.0

    def add(self, use: Use) -> None:
        self.uses = [*self.uses[-3:], use]

    def _is_doubtful(self, key: Any, lsn: int) -> bool:
        settled = not self.doubt_lsn or any(self.doubt_lsn < use.lo and use.lsn <= lsn for use in self.uses)
        return bool(self.loose - {key}) or not settled

    def judge_existing(
        self, key: Any, answer: tuple[int, int], content: Content, lsn: int, lo_ms: int, hi_ms: int
    ) -> str:
        """Judge that a submit got jobs that were there; return what is wrong. For one that had no other reason to."""
        fits = [
            use
            for use in self.uses
            if use.lo <= lsn
            and use.is_known(lo_ms, hi_ms) is not False
            and (use.answer, use.content) == (answer, content)
        ]
        if fits or self._is_doubtful(key, lsn):
            return ""
        return f"got {answer} as if it had been there; the key stood for {[use.answer for use in self.uses]}"

    def judge_new(self, key: Any, lsn: int, lo_ms: int, hi_ms: int) -> str:
        """Judge that a submit made jobs of its own."""
        for use in self.uses:
            if use.lsn < lsn and use.is_known(lo_ms, hi_ms):
                return f"made new jobs, and its key stands for {use.answer} for {use.ttl_ms} ms"
        return ""

    def judge_conflict(self, key: Any, content: Content, lsn: int, lo_ms: int, hi_ms: int) -> str:
        """Judge that a submit was refused for other content."""
        if self._is_doubtful(key, lsn):
            return ""
        known = [use for use in self.uses if use.is_known(lo_ms, hi_ms) is not False]
        if any(use.content != content for use in known):
            return ""
        return (
            f"is in conflict with {[use.answer for use in known]}, which has the same content or is forgotten"
        )

    def must_conflict(self, content: Content, lsn: int, lo_ms: int, hi_ms: int) -> bool:
        """Tell whether a submit should have been refused for other content."""
        newest = max(self.uses, key=lambda use: use.lsn, default=None)
        return bool(
            newest is not None
            and newest.lsn <= lsn
            and newest.is_known(lo_ms, hi_ms)
            and newest.content != content
        )

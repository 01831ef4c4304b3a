r"""The filter language: one line of text that says which jobs are meant, for list, cancel, requeue and purge.

Knows:         its grammar, what each field reads of a job, what a text may cost.
Must not know: how jobs are found (reading.py), which verb asks.

    filter     = all {"or" all}
    all        = one {"and" one}
    one        = "not" one | "(" filter ")" | field operator value | field "in" "(" value {"," value} ")"
    operator   = "=" | "!=" | "<" | "<=" | ">" | ">=" | "contains"
    value      = word | "text" | 'text'            in a text \ stands before a quote or another \
    word       = [A-Za-z0-9_.:-]+

    kind       operators            fields
    choice     = != in              state reason
    text       = != in contains     queue tenant group task error metadata.KEY metadata."KEY"
    number     = != < <= > >= in    priority attempt errors crashes
    duration   < <= > >=            age (since submit) state_age (since it came into its state)

What a job does not have is an empty text. A filter becomes closures over jobs, once a call: no regular
expression, no loop that a client can make longer than its text. Its length, depth and comparisons are bounded
by the limits in model.py; what it costs on a job is told by cost(), and scan() stops when a call has had enough.
Source: protocol.md "The filter language".
"""

import operator as operators
import re
from collections.abc import Callable
from typing import Final, NamedTuple, TypeVar, get_args

from jqd.core import model
from jqd.core.model import DeadReason, Job, JobState, Now
from jqd.errors import InvalidArgument

T = TypeVar("T")
Test = Callable[[Job], bool]
ReadText = Callable[[Job], str]

_ALL: Final = frozenset(JobState)
_NONE: Final[frozenset[JobState]] = frozenset()

_TOKEN: Final = re.compile(
    r"""\s*(?:(?P<word>[A-Za-z0-9_.:-]+)|(?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(?P<sign>!=|<=|>=|[=<>(),]))""",
    re.DOTALL,
)
_ESCAPE: Final = re.compile(r"\\(.)", re.DOTALL)
_NUMBER: Final = re.compile("-?[0-9]{1,9}")
_DURATION: Final = re.compile("(?:[0-9]{1,12}(?:ms|s|m|h|d))+")
_DURATION_PART: Final = re.compile("([0-9]+)(ms|s|m|h|d)")
_UNITS_MS: Final = {
    "ms": 1,
    "s": model.SECOND_MS,
    "m": model.MINUTE_MS,
    "h": model.HOUR_MS,
    "d": model.DAY_MS,
}
_KEYWORDS: Final = frozenset({"and", "or", "not", "in", "contains"})
_ORDERS: Final = ("<", "<=", ">", ">=")
_OPERATORS: Final = {
    "choice": ("=", "!=", "in"),
    "text": ("=", "!=", "in", "contains"),
    "number": ("=", "!=", *_ORDERS, "in"),
    "duration": _ORDERS,
}
# How many characters are searched in the time that a comparison takes; folding what is not ASCII is the slow part.
_CHARACTERS_PER_STEP: Final = 32
_WORD: Final = "[A-Za-z0-9_.:-]+"
_SECONDS_DIGITS_MAX: Final = 12
_COMPARE: Final[dict[str, Callable[[int, int], bool]]] = {
    "=": operators.eq,
    "!=": operators.ne,
    "<": operators.lt,
    "<=": operators.le,
    ">": operators.gt,
    ">=": operators.ge,
}
_TURNED: Final = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}


def _outcome_text(name: str) -> ReadText:
    def read(job: Job) -> str:
        return "" if job.outcome is None else getattr(job.outcome, name) or ""

    return read


def _metadata_text(key: str) -> ReadText:
    def read(job: Job) -> str:
        metadata = job.options.metadata
        return "" if metadata is None else metadata.get(key, "")

    return read


_CHOICES: Final[dict[str, tuple[ReadText, tuple[str, ...]]]] = {
    "state": (lambda job: job.state.wire_name, model.STATE_NAMES),
    "reason": (_outcome_text("reason"), get_args(DeadReason)),
}
_TEXTS: Final[dict[str, ReadText]] = {
    "queue": lambda job: job.options.queue,
    "tenant": lambda job: job.options.tenant,
    "group": lambda job: job.options.group or "",
    "task": lambda job: job.options.task or "",
    "error": _outcome_text("error"),
}
_NUMBERS: Final[dict[str, Callable[[Job], int]]] = {
    "priority": lambda job: job.options.priority,
    "attempt": lambda job: job.attempt,
    "errors": lambda job: job.errors,
    "crashes": lambda job: job.crashes,
}
_SINCE_MS: Final[dict[str, Callable[[Job], int]]] = {
    "age": lambda job: job.created.engine_ms,
    "state_age": lambda job: job.changed.engine_ms,
}
FIELDS: Final = (*_CHOICES, *_TEXTS, "metadata.KEY", *_NUMBERS, *_SINCE_MS)


class Token(NamedTuple):
    """position: of its first character, from 1.  kind: word, text, sign, or end with an empty text."""

    position: int
    kind: str
    text: str


class Part(NamedTuple):
    """A part of a filter.

    may, must: states in which a job may, and in which it certainly does, meet it.
    """

    test: Test
    may: frozenset[JobState] = _ALL
    must: frozenset[JobState] = _NONE


class Filter:
    """A filter, read.

    test:     tells whether a job meets it.
    states:   in which a job may meet it; all where it says nothing about them.
    names_state: whether it says anything about them.
    """

    def __init__(self, part: Part, comparisons: int, searched: list[ReadText], *, names_state: bool) -> None:
        self.test = part.test
        self.states = part.may
        self.names_state = names_state
        self._comparisons = comparisons
        self._searched = searched

    def cost(self, job: Job) -> int:
        """Return what the test of this job costs at most, in comparisons."""
        if not self._searched:
            return self._comparisons
        return self._comparisons + sum(len(read(job)) for read in self._searched) // _CHARACTERS_PER_STEP


def parse(text: str, now: Now) -> Filter:
    """Read a filter of at most FILTER_CHARS_MAX, as the decoder lets through; ages are those at `now`.

    Raises: InvalidArgument: its message and `details.position` name the character, from 1.
    Cost:   O(length).
    """
    return _Parser(text, now).whole()


class _Parser:
    """One text on its way to closures: recursive descent, one token ahead."""

    def __init__(self, text: str, now: Now) -> None:
        self._now = now
        self._depth = 0
        self._comparisons = 0
        self._searched: list[ReadText] = []
        self._names_state = False
        self._tokens = _tokens(text)
        self._at = 0

    def whole(self) -> Filter:
        part = self._any()
        if self._next.kind != "end":
            raise self._unexpected("and, or, or the end")
        return Filter(part, self._comparisons, self._searched, names_state=self._names_state)

    # --- what joins comparisons ---------------------------------------------------------------

    def _any(self) -> Part:
        parts = [self._all()]
        while self._took("or"):
            parts.append(self._all())
        if len(parts) == 1:
            return parts[0]
        tests = tuple(part.test for part in parts)
        may = frozenset[JobState]().union(*(part.may for part in parts))
        must = frozenset[JobState]().union(*(part.must for part in parts))
        return Part(lambda job: any(test(job) for test in tests), may, must)

    def _all(self) -> Part:
        parts = [self._one()]
        while self._took("and"):
            parts.append(self._one())
        if len(parts) == 1:
            return parts[0]
        tests = tuple(part.test for part in parts)
        may = _ALL.intersection(*(part.may for part in parts))
        must = _ALL.intersection(*(part.must for part in parts))
        return Part(lambda job: all(test(job) for test in tests), may, must)

    def _one(self) -> Part:
        opening = self._next
        if not (self._took("not") or self._took("(")):
            return self._comparison()
        self._depth += 1
        if self._depth > model.FILTER_DEPTH_MAX:
            raise _error(
                opening.position, f"nested deeper than {model.FILTER_DEPTH_MAX}, the limit of not and ()"
            )
        if opening.kind == "word":
            part = self._one()
            test = part.test
            part = Part(lambda job: not test(job), _ALL - part.must, _ALL - part.may)
        else:
            part = self._any()
            self._expect(")")
        self._depth -= 1
        return part

    # --- a comparison -------------------------------------------------------------------------

    def _comparison(self) -> Part:
        token = self._take()
        if token.kind != "word" or token.text.lower() in _KEYWORDS:
            raise _unexpected(token, "a field")
        name = token.text
        if name in _CHOICES:
            read, words = _CHOICES[name]
            operator = self._operator(name, "choice")
            values = self._values(operator, lambda value: _choice(name, value, words))
            part = Part(_equal(read, operator, values))
            if name == "state":
                self._names_state = True
                states = frozenset(model.STATES_BY_NAME[value] for value in values)
                states = _ALL - states if operator == "!=" else states
                part = Part(part.test, states, states)
            return part
        if name in _NUMBERS:
            operator = self._operator(name, "number")
            return Part(_number_test(_NUMBERS[name], operator, self._values(operator, _number)))
        if name in _SINCE_MS:
            operator = self._operator(name, "duration")
            (age_ms,) = self._values(operator, _duration_ms)
            return Part(_age_test(_SINCE_MS[name], operator, self._now.engine_ms - age_ms))
        read_text = _TEXTS[name] if name in _TEXTS else self._metadata(token)
        operator = self._operator(name, "text")
        texts = self._values(operator, lambda value: value.text)
        if operator == "contains":
            self._searched.append(read_text)
            wanted = texts[0].casefold()
            return Part(lambda job: wanted in read_text(job).casefold())
        return Part(_equal(read_text, operator, texts))

    def _metadata(self, token: Token) -> ReadText:
        first, dot, key = token.text.partition(".")
        if first != "metadata":
            raise _error(
                token.position,
                f"no field is called {model.shorten(token.text)}: there are {' '.join(FIELDS)}",
            )
        if dot and not key and self._next.kind == "text":  # metadata."any key"
            key = self._take().text
        if not key:
            raise _error(token.position, 'metadata needs a key: metadata.KEY or metadata."KEY"')
        return _metadata_text(key)

    def _operator(self, name: str, kind: str) -> str:
        token = self._take()
        operator = token.text.lower()
        if token.kind not in ("sign", "word") or operator not in _OPERATORS[kind]:
            raise _unexpected(token, f"one of {' '.join(_OPERATORS[kind])} after {name}")
        return operator

    def _values(self, operator: str, convert: Callable[[Token], T]) -> list[T]:
        """Take one value, or after `in` those between parentheses."""
        if operator != "in":
            return [convert(self._value())]
        self._expect("(")
        values = [convert(self._value())]
        while self._took(","):
            values.append(convert(self._value()))
        self._expect(")")
        return values

    def _value(self) -> Token:
        token = self._take()
        if token.kind == "word" and token.text.lower() in _KEYWORDS:
            raise _error(
                token.position, f"{token.text} is a word of the language: as a value it needs quotes"
            )
        if token.kind not in ("word", "text"):
            raise _unexpected(token, "a value")
        self._comparisons += 1
        if self._comparisons > model.FILTER_COMPARISONS_MAX:
            raise _error(token.position, f"more than {model.FILTER_COMPARISONS_MAX} comparisons")
        return token

    # --- tokens -------------------------------------------------------------------------------

    @property
    def _next(self) -> Token:
        return self._tokens[self._at]

    def _take(self) -> Token:
        token = self._next
        self._at += token.kind != "end"
        return token

    def _took(self, text: str) -> bool:
        token = self._next
        if token.kind == "text" or token.text.lower() != text:
            return False
        self._at += 1
        return True

    def _expect(self, text: str) -> None:
        if not self._took(text):
            raise self._unexpected(text)

    def _unexpected(self, wanted: str) -> InvalidArgument:
        return _unexpected(self._next, wanted)


def _tokens(text: str) -> list[Token]:
    tokens: list[Token] = []
    end = len(text.rstrip())
    at = 0
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None:
            at = end - len(text[at:end].lstrip())
            what = (
                "a text without its closing quote" if text[at] in "\"'" else f"{text[at]!a} stands in no word"
            )
            raise _error(at + 1, f"{what}: other texts than {_WORD} need quotes")
        kind = match.lastgroup
        assert kind is not None
        said = match[kind]
        if kind == "text":
            said = _ESCAPE.sub(r"\1", said[1:-1])
        tokens.append(Token(match.start(kind) + 1, kind, said))
        at = match.end()
    return [*tokens, Token(end + 1, "end", "")]


def _error(position: int, what: str) -> InvalidArgument:
    return InvalidArgument(f"filter.where, character {position}: {what}", details={"position": position})


def _unexpected(token: Token, wanted: str) -> InvalidArgument:
    found = "the end" if token.kind == "end" else model.shorten(token.text)
    return _error(token.position, f"expected {wanted}, found {found}")


# --- values and tests ---------------------------------------------------------------------------


def _choice(name: str, token: Token, words: tuple[str, ...]) -> str:
    if token.text not in words:
        raise _error(token.position, f"{name} = {model.shorten(token.text)}: it is one of {' '.join(words)}")
    return token.text


def _number(token: Token) -> int:
    if _NUMBER.fullmatch(token.text) is None:
        raise _error(token.position, f"{model.shorten(token.text)}: a whole number of at most 9 digits")
    return int(token.text)


def _duration_ms(token: Token) -> int:
    """Return milliseconds; a number alone is seconds, as everywhere in jqd where people write durations."""
    if _DURATION.fullmatch(token.text) is not None:
        return sum(int(number) * _UNITS_MS[unit] for number, unit in _DURATION_PART.findall(token.text))
    if token.text.isdecimal() and len(token.text) <= _SECONDS_DIGITS_MAX:
        return int(token.text) * model.SECOND_MS
    raise _error(
        token.position,
        f"{model.shorten(token.text)}: a duration such as 500ms, 30s, 1h30m, 2d, in whole numbers",
    )


def _equal(read: ReadText, operator: str, values: list[str]) -> Test:
    if operator == "!=":
        unwanted = values[0]
        return lambda job: read(job) != unwanted
    if operator == "=":
        wanted = values[0]
        return lambda job: read(job) == wanted
    among = frozenset(values)
    return lambda job: read(job) in among


def _number_test(read: Callable[[Job], int], operator: str, values: list[int]) -> Test:
    if operator == "in":
        among = frozenset(values)
        return lambda job: read(job) in among
    value = values[0]
    compare = _COMPARE[operator]
    return lambda job: compare(read(job), value)


def _age_test(read_since_ms: Callable[[Job], int], operator: str, limit_ms: int) -> Test:
    """Compare ages: the older, the smaller is the time since when it is."""
    compare = _COMPARE[_TURNED[operator]]
    return lambda job: compare(read_since_ms(job), limit_ms)

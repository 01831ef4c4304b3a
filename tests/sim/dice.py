"""Chance from one seed: every decision of a run comes out of a Dice, and two Dice of one seed say the same.

Knows:         random.Random's `random()`, whose stream Python promises to keep.
Must not know: what is decided.
"""

import random
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import TypeVar
from zlib import crc32

T = TypeVar("T")


class Dice:
    """See the file's card."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._random = random.Random(seed).random

    def below(self, limit: int, /) -> int:
        """Return one of 0 to limit - 1."""
        return int(self._random() * limit)

    def chance(self, share: float) -> bool:
        """Tell whether something happens that happens in such a share of all cases, 0 to 1."""
        return self._random() < share

    def pick(self, things: Sequence[T]) -> T:
        return things[int(self._random() * len(things))]

    def child(self, name: str) -> "Dice":
        """Return Dice of their own stream: what they say does not depend on how often these were thrown."""
        return Dice(crc32(f"{self.seed}/{name}".encode()) << 32 | self.seed & 0xFFFFFFFF)


class Bag:
    """Things that are drawn again and again, each as often as its weight says."""

    def __init__(self, weights: dict[str, float]) -> None:
        self._names = list(weights)
        self._ends = list(accumulate(weights.values()))

    def draw(self, dice: Dice) -> str:
        return self._names[bisect_right(self._ends, dice._random() * self._ends[-1])]

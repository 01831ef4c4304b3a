"""Two of something at a time: CI has two cores, and half of what the start of a daemon takes is waiting."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def two_at_a_time(work: Callable[[list[T]], None], items: Iterable[T]) -> None:
    """Work on every other item, and beside it on those between. What fails is raised when both have ended."""
    items = list(items)
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(work, items[half::2]) for half in range(2)]:
            done.result()

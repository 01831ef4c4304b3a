"""In which order a lease with weights may take from its queues.

Knows:         the formula of protocol.md "Order".
Must not know: anything of jqd; which queues have jobs (leases.py).
"""

from collections.abc import Iterable, Iterator
from itertools import combinations


def drawn(queues: list[tuple[str, int]], grant: int) -> list[str]:
    """Return the order of queues that have jobs, with their weights, for a grant number."""
    left = [name for name, weight in queues for _ in range(weight)]
    order: list[str] = []
    n = grant * 2_654_435_769 % 2**32
    while left:
        order.append(left[n * len(left) >> 32])
        left = [name for name in left if name != order[-1]]
        n = (n + 1) * 2_654_435_769 % 2**32
    return order


def orders(queues: list[tuple[str, int]], certain: Iterable[str], grant: int) -> Iterator[list[str]]:
    """Yield the order for each set of queues that may have jobs: those that certainly do, and any of the others."""
    certain = set(certain)
    others = [each for each in queues if each[0] not in certain]
    for count in range(len(others) + 1):
        for more in combinations(others, count):
            yield drawn([each for each in queues if each[0] in certain or each in more], grant)
